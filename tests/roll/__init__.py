"""The measured roll: what a deploy, and the death of a node, are to thousands of clients. `make roll` prints it.

fleet → run (the deed, on the clock) ← crowd (one process, many clients: client, words) ← producer (steady events);
what they kept becomes figures, and those one table.
"""
