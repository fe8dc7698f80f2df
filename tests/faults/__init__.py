"""The fault run: a real fleet, a seeded schedule of faults, and a model that says what every client must have seen.

    plan  ──▶ havoc ──▶ fleet (redises · nodes · HAProxy · links)
     seed       │          ▲                  │
                │      producers ──▶ journals │ watchers · residents · runs
                ▼                        └────┴──▶ verdict ──▶ model: violations ──▶ table

plan.py      pure: a seed becomes a topology and a schedule
words.py     pure: the events that producers publish, known again by their key
model.py     pure: what was published and what a client saw → what is wrong with it
havoc.py     performs the schedule on the fleet; redises.py and fleet.py are what it breaks
members.py   the nodes, each with all its lives
publishers.py who publishes, by producer.py and the command line; journal.py is what they write down
crowd.py     all clients: watchers.py keep all they were told, residents.py are agents with a socket of their own
verdict.py   what is wrong with a seed: the model's word, the runs' and the logs'; leases.py is what is held in the end
run.py       one seed from its start to its verdict; `python -m tests.faults` many of them, and a table
"""
