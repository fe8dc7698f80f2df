"""Demo agents that tell stories and obey commands, a demo worker and its client, for `trunkline dev`: traffic of every
event type in the catalog, but for `metrics_update` and `performance_alert`, which the gateway makes itself. That agents
come and go, are made and deleted, is real, and told as of every agent.
"""

import asyncio
import contextlib
import random
import secrets
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

from broker import Broker, Command, Event, Invalid, Retry, Run, Runs, TrunklineError, Unavailable, Worker
from broker.agents.model import Draft, Patch
from broker.patience import pause
from broker.runs.steps import Step

WORKSPACE = "ws-456"
AGENTS = ("agent-123", "agent-456", "agent-789")
ENDPOINT = "coffee-shop-e66b8d23"

_ACTIONS = (
    "Reading file: data.csv",
    "Cleaning columns",
    "Joining orders with customers",
    "Training model",
    "Writing result.json",
)
_QUERIES = ("Analyze market trends", "Summarise open incidents", "Find duplicate invoices", "Draft the weekly report")
_TOPICS = ("Quantum computing", "Supply chains", "Battery chemistry", "Urban mobility")

# What one turn of a story says: type, data, seconds until the next.
Turn = tuple[str, dict[str, Any], float]
Story = Iterator[Turn]

_random = random.Random()  # noqa: S311 (stories, no secrets)
_numbers = count(1)


def _id(kind: str) -> str:
    return f"{kind}_{secrets.token_hex(3)}"


def _pause(longest: float = 1.2) -> float:
    return _random.uniform(0.2, longest)


def task(agent: str) -> Story:
    """A task from start to end; some fail, a few try what their shield forbids."""
    name, steps = f"task-{next(_numbers)}", _random.randint(3, 6)
    yield "task.started", {"task_id": name, "description": _random.choice(_QUERIES)}, _pause()
    for step in range(1, steps + 1):
        rows = 1000 * step
        yield (
            "task.progress",
            {
                "task_id": name,
                "step": step,
                "total_steps": steps,
                "current_action": _random.choice(_ACTIONS),
                "output": f"Processing {rows} rows...",
            },
            _pause(),
        )
    luck = _random.random()
    if luck < 0.15:
        violation = {
            "rule_type": "command",
            "pattern": "rm -rf",
            "attempted_action": "rm -rf /",
            "severity": "critical",
        }
        yield "shield.violation", {"task_id": name, "violation": violation}, _pause()
    if luck < 0.25:
        error = {"code": "FILE_NOT_FOUND", "message": "File /data/input.csv not found"}
        yield "task.failed", {"task_id": name, "error": error, "credits_used": steps}, _pause()
        return
    result = {"success": True, "summary": f"Processed {1000 * steps} rows", "output_files": ["result.json"]}
    yield "task.completed", {"task_id": name, "result": result, "credits_used": 10 * steps}, _pause()


def inference(agent: str) -> Story:
    """An inference of FreeAgentics' kind."""
    name, seconds = _id("inf"), _random.uniform(2, 40)
    yield (
        "agent_status",
        {"old_status": "idle", "new_status": "active", "reason": "inference", "inference_count": next(_numbers)},
        _pause(),
    )
    yield (
        "inference_started",
        {"inference_id": name, "query": _random.choice(_QUERIES), "estimated_duration": 30, "priority": "normal"},
        _pause(),
    )
    for progress in (0.25, 0.65, 0.9):
        yield (
            "inference_progress",
            {
                "inference_id": name,
                "progress": progress,
                "stage": "analysis",
                "estimated_remaining": round(30 * (1 - progress)),
            },
            _pause(),
        )
    if _random.random() < 0.2:
        yield (
            "inference_failed",
            {
                "inference_id": name,
                "error_code": "TIMEOUT",
                "error_message": "Inference timed out",
                "processing_time": round(seconds, 1),
            },
            _pause(),
        )
    else:
        summary = {"confidence": round(_random.uniform(0.7, 0.99), 2), "key_findings": ["trend_1", "trend_2"]}
        yield (
            "inference_completed",
            {
                "inference_id": name,
                "status": "completed",
                "processing_time": round(seconds, 1),
                "result_summary": summary,
            },
            _pause(),
        )
    yield "agent_status", {"old_status": "active", "new_status": "idle", "reason": "done"}, _pause()


def knowledge(agent: str) -> Story:
    """Entities and relations that come, change and go."""
    one, other, link = _id("entity"), _id("entity"), _id("rel")
    for entity in (one, other):
        yield (
            "entity_created",
            {"entity_id": entity, "type": "concept", "label": _random.choice(_TOPICS), "created_by": "user_123"},
            _pause(3),
        )
    yield (
        "relationship_created",
        {
            "relationship_id": link,
            "source_id": one,
            "target_id": other,
            "relationship_type": "related_to",
            "strength": 0.85,
        },
        _pause(3),
    )
    yield "entity_updated", {"entity_id": one, "label": _random.choice(_TOPICS)}, _pause(3)
    yield "relationship_updated", {"relationship_id": link, "strength": 0.6}, _pause(3)
    yield "relationship_deleted", {"relationship_id": link}, _pause(3)
    yield "entity_deleted", {"entity_id": other}, _pause(3)


def system(agent: str) -> Story:
    """The platform's own news."""
    yield (
        "system_status",
        {"old_status": "healthy", "new_status": "degraded", "reason": "high_load", "components": {"redis": "healthy"}},
        3.0,
    )
    yield (
        "system_alert",
        {
            "alert_id": _id("alert"),
            "severity": "error",
            "type": "service_unavailable",
            "message": "Database connection lost",
            "affected_components": ["database"],
        },
        3.0,
    )
    yield "maintenance_mode", {"new_status": "planned", "reason": "upgrade"}, 3.0


# Who tells which stories: an agent (None: nobody in particular) and what it draws from, some more often.
CAST: tuple[tuple[str | None, tuple[Callable[[str], Story], ...]], ...] = (
    (AGENTS[0], (task,)),
    (AGENTS[1], (task, inference, inference)),
    (AGENTS[2], (inference,)),
    (None, (knowledge,)),
    (None, (system,)),
)

# Who goes now and then, after how long, and for how long: so long that it is told.
RESTLESS = (AGENTS[0], AGENTS[2])
STAY_SECONDS = (20.0, 120.0)
AWAY_SECONDS = (20.0, 30.0)


class Actor:
    """One of the cast: tells its stories, and stops and goes on as it is told."""

    def __init__(self, broker: Broker, workspace: str, agent: str | None) -> None:
        self.broker = broker
        self.workspace = workspace
        self.agent = agent
        self.status = "active"
        self.at_work, self.is_here = asyncio.Event(), asyncio.Event()
        self.at_work.set()
        if agent not in AGENTS:
            self.is_here.set()

    async def say(self, kind: str, data: dict[str, Any]) -> None:
        await self.broker.publish(Event(type=kind, workspace_id=self.workspace, agent_id=self.agent, data=data))
        if kind == "agent_status":
            self.status = data["new_status"]

    async def play(self, stories: tuple[Callable[[str], Story], ...]) -> None:
        while True:
            for kind, data, seconds in _random.choice(stories)(self.agent or ""):
                await self.at_work.wait()
                await self.is_here.wait()
                try:
                    await self.say(kind, data)
                except Unavailable:
                    await pause(1)
                await pause(seconds)

    async def live(self, agent: str) -> None:
        """Be here, and hear commands; that it comes and goes is told by presence, as of every agent."""
        while True:
            with contextlib.suppress(Unavailable):  # whoever listens goes on trying
                await self.broker.agents.present(agent, workspace_id=self.workspace)
            await pause(0)
            self.is_here.set()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_random.uniform(*STAY_SECONDS) if agent in RESTLESS else None):
                    await self.listen(agent)
            self.is_here.clear()
            await pause(_random.uniform(*AWAY_SECONDS))

    async def listen(self, agent: str) -> None:
        async with contextlib.aclosing(self.broker.commands(agent, workspace_id=self.workspace)) as commands:
            async for command in commands:
                try:
                    await command.done(await self.obey(command))
                except Invalid as error:
                    await command.failed("CONFIG_REJECTED", str(error))
                except Unavailable as error:
                    await command.failed("UNAVAILABLE", str(error))

    async def obey(self, command: Command) -> dict[str, Any]:
        """Do it; answers what the sender may see."""
        before = self.status
        match command.name:
            case "start":
                await self.change("active", "started_by_user")
                self.at_work.set()
            case "stop":
                self.at_work.clear()
                await self.change("stopped", "stopped_by_user")
            case "restart":
                self.at_work.clear()
                await self.change("restarting", "restarted_by_user")
                await self.change("active", "restarted_by_user")
                self.at_work.set()
            case "update_config":
                # Under a name of its own: a client's keys may be named like fields of the event.
                await self.say("agent_updated", {"config": command.parameters})
            case "get_status":
                return {"old_status": before, "new_status": before, "reason": "requested"}
        return {"old_status": before, "new_status": self.status}

    async def change(self, status: str, reason: str) -> None:
        await self.say("agent_status", {"old_status": self.status, "new_status": status, "reason": reason})


# --- A workflow, as people write them ---


class Overloaded(Exception):  # noqa: N818
    """A model that had no time."""

    code = "OVERLOADED"


class DirectoryDown(Exception):  # noqa: N818
    """A tool that gave no answer."""

    code = "TOOL_FAILED"


def recruiter(broker: Broker, workspace: str) -> Worker:
    """The worker behind the demo's endpoint."""
    worker = Worker(broker.address.url, endpoint=ENDPOINT, workspace_id=workspace, prefix=broker.keys.prefix)

    @worker.workflow("search-candidates")
    async def search(run: Run, user_query: str, organization_id: str, filters: dict[str, Any]) -> list[dict[str, Any]]:
        async with run.task("understand-query", input={"user_query": user_query}) as task:
            skills = await _ask(task, "Which skills are wanted?", ["react", "typescript"])
            task.output({"skills": skills})
        async with run.task("shortlist", input={"skills": skills, "filters": filters}) as task:
            async with asyncio.TaskGroup() as lookups:
                found = [lookups.create_task(_look_up(task, place, skills)) for place in ("crm", "directory")]
            names = [name for lookup in found for name in lookup.result()]
        async with run.task("rank", input={"candidates": len(names)}) as task:
            best = await _ask(task, "Who fits best?", names[:3])
        return [{"name": name, "organization_id": organization_id} for name in best]

    return worker


async def _ask(task: Step, question: str, answer: list[str]) -> list[str]:
    """Ask a model, again when it is overloaded."""
    with contextlib.suppress(Overloaded):
        return await _call(task, question, answer)
    try:
        return await _call(task, question, answer)
    except Overloaded as error:
        raise Retry("the model is overloaded") from error


async def _call(task: Step, question: str, answer: list[str]) -> list[str]:
    async with task.llm(model="large-1", vendor="acme", input=question) as call:
        await asyncio.sleep(_pause())
        if _random.random() < 0.2:
            raise Overloaded("try again")
        call.usage(prompt_tokens=_random.randint(400, 900), completion_tokens=96, total_cost=0.0042)
        call.output(answer)
    return answer


async def _look_up(task: Step, place: str, skills: list[str]) -> list[str]:
    async with task.tool(f"{place}.lookup", input={"skills": skills}) as tool:
        await asyncio.sleep(_pause())
        if _random.random() < 0.08:
            raise DirectoryDown(f"no answer from the {place}")
        names = _random.sample(("Ada", "Grace", "Edsger", "Barbara", "Donald"), 2)
        tool.output({"found": names})
    return names


async def visit(broker: Broker, workspace: str) -> None:
    """A client who starts a run now and then, and sometimes does not wait for its end."""
    runs = Runs(broker)
    parameters = {
        "user_query": "Full stack engineer with 10+ years of experience in React willing to work remotely",
        "organization_id": "272e9e73-fe36-4ea1-acf6-4ea08d21aa0c",
        "filters": {},
    }
    while True:
        try:
            started = await runs.submit(
                workspace, ENDPOINT, "search-candidates", parameters, {}, "ws_demo", seconds=60, max_attempts=3
            )
            await pause(_pause(3))
            if _random.random() < 0.15:
                await runs.cancel(workspace, started.execution_id)
        except TrunklineError:
            await pause(1)  # Redis is away, or the worker is late
        await pause(_pause(8))


async def hire(broker: Broker, workspace: str) -> None:
    """Somebody who makes an agent, changes it and deletes it again: the registry tells of that."""
    draft = Draft(
        name="Research Agent",
        workspace_id=workspace,
        soul={"name": "Rhea", "role": "Researcher", "capabilities": ["python", "web"]},
        shield={"filesystem": {"allowed_paths": ["/project/**"], "blocked_paths": ["/root", "~/.ssh"]}},
    )
    ours = frozenset((workspace,))
    while True:
        try:
            made = await broker.agents.create(workspace, draft, by="user_456")
            for change in (Patch(name="Research Agent II"), Patch(soul={"tone": "professional", "verbosity": "brief"})):
                await broker.agents.present(made.id, workspace_id=workspace)
                await pause(_pause(12))
                await broker.agents.update(ours, made.id, change, by="user_456")
            await broker.agents.delete(ours, made.id, by="user_123")
        except TrunklineError:
            await pause(1)  # Redis is away, or somebody else has deleted it
        await pause(_pause(6))


async def perform(broker: Broker, workspace: str = WORKSPACE) -> None:
    """Let the whole cast tell stories, the agents obey and the worker work, until cancelled."""
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(recruiter(broker, workspace).run())
        tasks.create_task(visit(broker, workspace))
        tasks.create_task(hire(broker, workspace))
        for agent, stories in CAST:
            actor = Actor(broker, workspace, agent)
            tasks.create_task(actor.play(stories))
            if agent in AGENTS:
                tasks.create_task(actor.live(agent))
