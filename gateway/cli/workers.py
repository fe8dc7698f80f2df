"""`trunkline worker`."""

import argparse
import asyncio
import importlib
import logging
import os
import signal
import sys
import threading
from pathlib import Path
from typing import NoReturn

from broker import Invalid, Worker
from broker.runs.shift import FAREWELL_SECONDS

from ..settings import Settings
from .parsing import REDIS, Commands
from .running import run

# How long a process lives on after its worker has left, and its runs had their farewell.
LAST_SECONDS = 1.5


def add(commands: Commands) -> None:
    worker = commands.add(
        "worker", _worker, "run a workflow worker, until it is told to end", (*REDIS, "drain_seconds")
    )
    worker.add_argument(
        "worker",
        metavar="MODULE:WORKER",
        help="where its Worker stands; the module is found from the current directory",
    )


def _worker(settings: Settings, options: argparse.Namespace) -> int:
    worker, end = _find_worker(options.worker), _End()

    async def work() -> int:
        loop = asyncio.get_running_loop()

        def stop(number: int, frame: object) -> None:
            loop.call_soon_threadsafe(worker.stop)
            end.ask(settings.drain_seconds + FAREWELL_SECONDS + LAST_SECONDS)

        # The interpreter's own handlers: they are called also while a workflow blocks the loop.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)
        try:
            await worker.run(
                grace_seconds=settings.drain_seconds,
                redis_url=settings.redis_url,
                prefix=settings.prefix,
                log_events=settings.log_events,
                log_seconds=settings.log_seconds,
            )
        finally:
            end.expect(LAST_SECONDS)
        return 0

    try:
        return run(work())
    finally:
        end.has_come.set()


class _End:
    """The end of a worker's process. A workflow may hinder it: by swallowing its cancellation, or blocking the loop."""

    def __init__(self) -> None:
        self.has_come = threading.Event()
        self._is_asked = False

    def ask(self, seconds: float) -> None:
        """End within `seconds`; at once when asked again."""
        if self._is_asked:
            _leave("told to end for the second time")
        self._is_asked = True
        self.expect(seconds)

    def expect(self, seconds: float) -> None:
        def wait() -> None:
            if not self.has_come.wait(seconds):
                _leave("not all of it has ended in time")

        threading.Thread(target=wait, daemon=True).start()


def _leave(why: str) -> NoReturn:
    try:
        logging.getLogger("trunkline").error("the worker leaves at once: %s", why)
        logging.shutdown()
        sys.stdout.flush()
    finally:
        os._exit(1)


def _find_worker(where: str) -> Worker:
    """The `Worker` of that name in that module. What the module itself raises is its author's to see, whole."""
    name, _, attribute = where.partition(":")
    if not (name and attribute):
        raise Invalid("worker", f"expected module:worker, got {where!r}")
    if name.endswith(".py") or not all(part.isidentifier() for part in name.split(".")):
        meant = name.removesuffix(".py").strip("./").replace("/", ".")
        raise Invalid("worker", f"expected a module's name, as {meant}:{attribute}, got {where!r}")
    sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        raise Invalid("worker", f"no module {error.name!r} here or among what is installed") from None
    worker = getattr(module, attribute, None)
    if not isinstance(worker, Worker):
        raise Invalid("worker", f"no Worker {attribute!r} in the module {name!r}")
    return worker
