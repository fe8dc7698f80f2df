"""The guard: an agent's actions are held against its shield as it is stored now, and violations are told."""

import pytest

from broker import Broker, Invalid, Unavailable
from broker.agents import AgentMissing, guard
from broker.agents.guard import Guard
from broker.agents.model import Draft
from broker.local import LocalRedis
from broker.shield import ALLOWED, Command, Network, Policy, Read, Violation

from .proxy import proxy
from .test_agents import OURS, WORKSPACE, told

pytestmark = pytest.mark.anyio

SHIELD = {"filesystem": {"blocked_paths": ["/etc"]}, "commands": {"blocked_patterns": ["rm -rf"]}}


async def guarded(broker: Broker) -> str:
    """An agent with `SHIELD`."""
    return (await broker.agents.create(WORKSPACE, Draft(name="Alpha", workspace_id=WORKSPACE, shield=SHIELD))).id


async def test_a_violation_is_answered_and_told_and_what_is_allowed_is_neither(redis_url: str, prefix: str) -> None:
    async with Broker.connect(redis_url, prefix=prefix, workspace_id=WORKSPACE) as broker:
        agent_id = await guarded(broker)
        assert await broker.agents.guard(agent_id, Read("/data/x")) == ALLOWED
        assert await broker.agents.guard(agent_id, Network("example.com")) == ALLOWED
        violation = await broker.agents.guard(agent_id, Command("rm -rf /data"))
        assert isinstance(violation, Violation)
        assert (violation.rule_type, violation.pattern) == ("command", "rm -rf")
        huge = Read("/etc/\ud800" + "x" * 300_000)
        assert await broker.agents.guard(agent_id, huge, workspace_id=WORKSPACE) != ALLOWED
        _, first, second = await told(broker)
        assert (first.type, first.agent_id) == ("shield.violation", agent_id)
        assert first.data == {
            "violation": {
                "rule_type": "command",
                "pattern": "rm -rf",
                "attempted_action": "rm -rf /data",
                "severity": violation.severity,
            }
        }
        assert second.data["violation"]["rule_type"] == "filesystem"


async def test_a_change_of_the_shield_counts_in_other_processes_too(
    redis_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Broker.connect(redis_url, prefix=prefix) as one, Broker.connect(redis_url, prefix=prefix) as other:
        agent_id = await guarded(one)

        async def is_allowed() -> bool:
            return await other.agents.guard(agent_id, Read("/srv/x"), workspace_id=WORKSPACE) == ALLOWED

        assert await is_allowed()
        await one.agents.update_shield(OURS, agent_id, {"filesystem": {"blocked_paths": ["/srv"]}})
        assert await is_allowed(), "within the second no question is asked"
        monkeypatch.setattr(guard, "FRESH_SECONDS", 0.0)
        other.agents._guard._known.clear()
        assert not await is_allowed()
        await one.agents.update_soul(OURS, agent_id, {"a": 1})
        assert not await is_allowed()
        await one.agents.update_shield(OURS, agent_id, {"filesystem": {}})
        assert await is_allowed()
        await one.agents.delete(OURS, agent_id)
        with pytest.raises(AgentMissing):
            await is_allowed()


async def test_the_policies_that_are_kept_are_bounded(
    redis_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Broker.connect(redis_url, prefix=prefix, workspace_id=WORKSPACE) as broker:
        kept = Guard(broker)
        agents = [await guarded(broker) for _ in range(4)]
        await kept.check(agents[0], Read("/data"), None)
        monkeypatch.setattr(guard, "MAX_BYTES", 2 * kept._bytes)
        monkeypatch.setattr(guard, "FRESH_SECONDS", 0.0)
        for agent_id in [*agents, agents[3]]:
            await kept.check(agent_id, Read("/data"), None)
        assert [whose.agent_id for whose in kept._known] == agents[2:]
        assert kept._bytes == guard.MAX_BYTES
        for agent_id in agents[2:]:
            await broker.agents.delete(OURS, agent_id)
            with pytest.raises(AgentMissing):
                await kept.check(agent_id, Read("/data"), None)
        assert (kept._known, kept._bytes) == ({}, 0)


async def test_a_violation_names_its_task(redis_url: str, prefix: str) -> None:
    async with Broker.connect(redis_url, prefix=prefix, workspace_id=WORKSPACE) as broker:
        agent_id = await guarded(broker)
        await Guard(broker).check(agent_id, Read("/etc/x"), None, task_id="task-456")
        (_, event) = await told(broker)
        assert event.data["task_id"] == "task-456"
        with pytest.raises(Invalid, match=r"^task_id: "):
            await Guard(broker).check(agent_id, Read("/data"), None, task_id="")


async def test_paths_are_read_as_the_agent_s_machine_does(redis_url: str, prefix: str) -> None:
    async with Broker.connect(redis_url, prefix=prefix, workspace_id=WORKSPACE) as broker:
        agent_id, kept = await guarded(broker), Guard(broker)
        await broker.agents.update_shield(OURS, agent_id, {"filesystem": {"blocked_paths": ["~/.ssh"]}})

        async def is_allowed(path: str, home: str | None) -> bool:
            action = Read(path, path)
            return await kept.check(agent_id, action, None, home=home, resolve=str.upper) == ALLOWED

        assert await is_allowed("/srv/ann/.ssh", None)
        assert not await is_allowed("/srv/ann/.ssh", "/srv/ann")
        assert not await is_allowed("/SRV/ANN/.SSH", "/srv/ann")
        assert await is_allowed("/home/joe/.ssh", "/srv/ann")
        assert not await is_allowed("/home/joe/.ssh", None)


async def test_a_shield_is_compiled_once_for_each_change(
    redis_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = []
    monkeypatch.setattr(guard, "Policy", lambda *given, **options: compiled.append(given) or Policy(*given, **options))
    monkeypatch.setattr(guard, "FRESH_SECONDS", 0.0)
    async with Broker.connect(redis_url, prefix=prefix, workspace_id=WORKSPACE) as broker:
        agent_id = await guarded(broker)
        for _ in range(3):
            await broker.agents.guard(agent_id, Read("/data"))
        await broker.agents.update_soul(OURS, agent_id, {"a": 1})
        await broker.agents.guard(agent_id, Read("/data"))
        assert len(compiled) == 1
        await broker.agents.update_shield(OURS, agent_id, {"filesystem": {}})
        await broker.agents.guard(agent_id, Read("/data"))
        assert len(compiled) == 2


async def test_a_violation_that_was_told_in_doubt_is_told_once(redis: LocalRedis, prefix: str) -> None:
    async with (
        proxy(redis.port) as middle,
        Broker.connect(middle.url, prefix=prefix, workspace_id=WORKSPACE, patience_seconds=0.2) as broker,
    ):
        agent_id = await guarded(broker)
        assert await broker.agents.guard(agent_id, Read("/data")) == ALLOWED
        middle.pause()
        with pytest.raises(Unavailable):
            await broker.agents.guard(agent_id, Read("/etc/x"))
        middle.go_on()
        assert await broker.agents.guard(agent_id, Read("/etc/x")) != ALLOWED
        assert [event.type for event in await told(broker)] == ["agent_created", "shield.violation"]


async def test_what_cannot_be_judged_is_not_allowed(redis: LocalRedis, prefix: str) -> None:
    async with proxy(redis.port) as middle, Broker.connect(middle.url, prefix=prefix) as broker:
        agent_id = await guarded(broker)
        with pytest.raises(Invalid, match=r"^workspace_id: "):
            await broker.agents.guard(agent_id, Read("/data"))
        for elsewhere in (("agent-0", WORKSPACE), (agent_id, "ws-other")):
            with pytest.raises(AgentMissing):
                await broker.agents.guard(elsewhere[0], Read("/data"), workspace_id=elsewhere[1])
        middle.pause()
        with pytest.raises(Unavailable):
            await broker.agents.guard(agent_id, Read("/data"), workspace_id=WORKSPACE)
        middle.go_on()
