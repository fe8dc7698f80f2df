"""Runs: what clients start and workers do. `submitter` is the sender's end, `worker` the worker's, `exchange` between.

The worker's side, in the order of the walk: worker (what people write) → shift (takes runs) → beats (keeps them) →
queue (Redis) → attempt (one try at a run) → hold (until when) → steps (what the workflow sees) → outbox (what it says).
"""

from .exchange import Execution, execution_id
from .steps import Run
from .submitter import Runs, Submitted
from .trouble import Retry
from .worker import Worker

__all__ = ["Execution", "Retry", "Run", "Runs", "Submitted", "Worker", "execution_id"]
