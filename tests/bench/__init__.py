"""What Trunkline costs, beside a bare baseline in the same run: `python -m tests.bench` (or `make bench`).

A round starts, for each workload and each of the two servers in turn, a fresh Redis, a fresh server and a fresh load:

    core 0   the server under test: `trunkline serve`, or `baseline.py` (epoll, one send() per message and socket)
    core 1   Redis, the load generator (`load.py`) and the publisher it steers (`publisher.py`)

The Agents API has a baseline of its own: `plain.py`, a bare route of the same framework on the same server.

Read in this order: `payload` (what travels), `machine` (cores and counters), `servers`, `publisher`, `clients`,
`noop` and `runs` (workflows), `registry`, `plain` and `agents` (the Agents API),
`reading` (how a client checks what it is sent), `load` and `pings` (one measured run: what goes out, what comes in),
`plan` (the runs), `profiled` and `sections` (where the time went), `report` (the tables), `__main__`.

Everything listens on 127.0.0.1 only, and ends with the run.
"""
