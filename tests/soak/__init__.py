"""The long run: one node under steady events, and clients who come and go. `make soak` prints it.

producer (a process of its own) → a real node → guests (words) → diary; run does it on the clock, and what was kept
becomes figures, and those one table.
"""
