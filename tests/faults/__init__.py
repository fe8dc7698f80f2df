"""The fault run: a real fleet, a seeded schedule of faults, and a model that says what every client must have seen.

    plan  ──▶ havoc ──▶ fleet (redises · nodes · HAProxy · links)
     seed       │          ▲                  │
                │      producers ──▶ journals │ watchers · residents · runs
                ▼                        └────┴──▶ witness ──▶ model: violations ──▶ table

plan.py      pure: a seed becomes a topology and a schedule
words.py     pure: the events that producers publish, known again by their key
model.py     pure: what was published and what a client saw → what is wrong with it
havoc.py     performs the schedule on the fleet; redises.py and fleet.py are what it breaks
watchers.py  clients that keep all they were told; residents.py agents with a socket of their own
run.py       one seed from its start to its verdict; `python -m tests.faults` many of them, and a table
"""
