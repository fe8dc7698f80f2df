"""The worker of `runs`: a workflow that does nothing, so that all it costs is ours.

python -m gateway worker tests.bench.noop:worker        (REDIS_URL from the environment)
"""

import os

from broker import Run, Worker

from . import payload
from .servers import ENDPOINT, PREFIX

CONCURRENCY = 100

worker = Worker(
    os.environ["REDIS_URL"],
    endpoint=ENDPOINT,
    workspace_id=payload.WORKSPACE,
    prefix=PREFIX,
    concurrency=CONCURRENCY,
)


@worker.workflow("noop")
async def noop(run: Run) -> None: ...
