"""A cluster under load: what its sharded channels send to each node, and what the death of a master is to clients.

run (cluster, nodes, the houses and the producer of tests/soak) → traffic, counted by the kernel → table.
`make shards` prints it.
"""
