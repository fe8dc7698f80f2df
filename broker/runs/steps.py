"""What a workflow sees: its run, and the steps inside it as context managers that tell of their start and end.

    async with run.task("shortlist") as task:
        async with task.llm(model="large-1", vendor="acme") as call:
            call.usage(prompt_tokens=812, completion_tokens=96)

Every step has a `step_id`, and as `parent_id` the step it was made by: so the tree holds however tasks run beside each
other. A step that an exception leaves ends in `…_error` with `{"code", "message"}`, and so do those around it.
"""

import secrets
from enum import Enum, auto
from time import monotonic
from types import TracebackType
from typing import Any, Self

from ..errors import Invalid
from .exchange import Claimed
from .outbox import Outbox
from .trouble import InvalidOutput, describe

NOT_ENDED = {"code": "NOT_ENDED", "message": "the run ended before the step did"}


class Trace:
    """The steps of one attempt that are open, and how they speak, until the attempt is over."""

    def __init__(self, outbox: Outbox) -> None:
        self.outbox = outbox
        self.open: dict[Step, None] = {}  # in the order in which they began
        # What a task says that outlives its run is dropped then: it is no mistake of the run, and no harm to it.
        self.is_over = False

    def say(self, kind: str, details: dict[str, Any]) -> None:
        if not self.is_over:
            self.outbox.say(kind, details)


class _Phase(Enum):
    NEW = auto()
    OPEN = auto()
    ENDED = auto()


class Step:
    """One step of a run. Make it with a method of the run or of the step around it."""

    def __init__(self, kind: str, parent: "Step | None", trace: Trace, details: dict[str, Any]) -> None:
        self.step_id = f"step_{secrets.token_hex(6)}"
        self.kind, self._trace, self._phase = kind, trace, _Phase.NEW
        self._always = {"step_id": self.step_id} | ({"parent_id": parent.step_id} if parent else {})
        self._first = details  # told at its start
        self._last: dict[str, Any] = {}  # told at its end
        self._began = 0.0

    def task(self, name: str, *, input: Any = None) -> "Step":  # noqa: A002 (the wire's word)
        """A part of the work: `task_start`, `task_end` or `task_error`."""
        return Step("task", self, self._trace, {"name": name} | _given(input=input))

    def llm(self, *, model: str, vendor: str | None = None, name: str | None = None, input: Any = None) -> "LLM":  # noqa: A002
        """A call of a language model: `llm_start`, `llm_end` or `llm_error`."""
        return LLM("llm", self, self._trace, _given(name=name, model=model, vendor=vendor, input=input))

    def tool(self, name: str, *, input: Any = None) -> "Step":  # noqa: A002
        """A call of a tool: `tool_start`, `tool_end` or `tool_error`."""
        return Step("tool", self, self._trace, {"name": name} | _given(input=input))

    def output(self, value: Any) -> None:
        """What came out of it, of JSON types: told at its end. Raises `RuntimeError` when it is not open."""
        self._keep("output", {"output": value})

    async def __aenter__(self) -> Self:
        """Raises `Invalid` when what was given for its start cannot be told, `RuntimeError` the second time."""
        await self._trace.outbox.room()
        self.begin()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Raises `Invalid` when its output cannot be told."""
        if error is not None:
            self.fail(self._trace.outbox.describe(error))
            return
        try:
            self.end()
        except Invalid as invalid:
            self.fail(describe(invalid))
            raise

    def begin(self) -> None:
        if self._phase is not _Phase.NEW:
            raise RuntimeError(f"a {self.kind} begins once: make another one for each `async with`")
        self._began = monotonic()
        self._trace.say(f"{self.kind}_start", self._always | self._first)
        self._phase = _Phase.OPEN
        self._trace.open[self] = None

    def end(self) -> None:
        """Raises `Invalid` when its output cannot be told: it is open still."""
        try:
            self._close("end", self._last)
        except Invalid as invalid:
            if "output" not in self._last or invalid.path.startswith("$.data."):
                raise  # it is something else
            raise InvalidOutput("output", invalid.reason) from None

    def fail(self, error: dict[str, str]) -> None:
        """End with an error."""
        known = {key: value for key, value in self._last.items() if key != "output"}
        try:
            self._close("error", known | {"error": error})
        except Invalid:  # its usage cannot be told either
            self._close("error", {"error": error})

    def _close(self, how: str, details: dict[str, Any]) -> None:
        """The last word, unless it was said: the end of a run ends what a task that outlives it has left open."""
        if self._phase is _Phase.OPEN:
            self._trace.say(f"{self.kind}_{how}", self._named() | details | self.took())
            self._phase = _Phase.ENDED
            self._trace.open.pop(self, None)

    def _keep(self, call: str, details: dict[str, Any]) -> None:
        if self._phase is not _Phase.OPEN and not self._trace.is_over:
            raise RuntimeError(f"this {self.kind} is not open: call {call}() inside its `async with`")
        self._last |= details

    def _named(self) -> dict[str, Any]:
        names = ("name", "model", "vendor", "attempt")
        return self._always | {name: self._first[name] for name in names if name in self._first}

    def took(self) -> dict[str, float]:
        return {"latency_ms": round((monotonic() - self._began) * 1000, 1)}


class LLM(Step):
    """A call of a language model."""

    def usage(
        self,
        *,
        prompt_tokens: int,
        completion_tokens: int,
        total_tokens: int | None = None,
        total_cost: float | None = None,
    ) -> None:
        """What the call used; told at its end. The total is the sum unless it is given.

        Raises `RuntimeError` when it is not open.
        """
        total = prompt_tokens + completion_tokens if total_tokens is None else total_tokens
        tokens = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, "total_tokens": total}
        self._keep("usage", tokens | _given(total_cost=total_cost))


class Run(Step):
    """One attempt at a run of a workflow; as a step it is the outermost.

    `attempt` counts from 1. What the workflow does outside should bear a second time: a run whose worker died is begun
    again. `metadata` and `connection_id` are the client's.
    """

    def __init__(self, claimed: Claimed, trace: Trace) -> None:
        retried = {"attempt": claimed.attempt} if claimed.attempt > 1 else {}
        super().__init__("workflow", None, trace, {"name": claimed.name, "input": claimed.parameters} | retried)
        self.id = claimed.execution
        self.name = claimed.name
        self.attempt = claimed.attempt
        self.metadata = claimed.metadata
        self.connection_id = claimed.connection or None

    def end_others(self) -> list[str]:
        """End the steps that are open still, innermost first; answers their kinds."""
        left = [step for step in reversed(list(self._trace.open)) if step is not self]
        for step in left:
            step.fail(NOT_ENDED)
        return [step.kind for step in left]


def _given(**details: Any) -> dict[str, Any]:
    return {name: value for name, value in details.items() if value is not None}
