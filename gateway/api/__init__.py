"""The REST API: MaxiCore's Agents API (seed 001) over HTTP.

    front ─▶ (Starlette's routes) ─▶ desk ─▶ agents ─▶ broker.agents

`front` gives every request an id, a line in the log and an answer whatever happens; `desk` judges who asks and reads
what they say; `agents` has the operations, from which `document` makes the OpenAPI document that `docs` serves.
"""
