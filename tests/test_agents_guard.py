"""The guard: an agent's actions are held against its shield as it is stored now, and violations are told."""

import pytest

from broker import Broker, Invalid, Unavailable
from broker.agents import AgentMissing, guard
from broker.agents.model import Draft
from broker.local import LocalRedis
from broker.shield import Command, Network, Read

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
        assert await broker.agents.guard(agent_id, Read("/data/x")) is None
        assert await broker.agents.guard(agent_id, Network("example.com")) is None
        violation = await broker.agents.guard(agent_id, Command("rm -rf /data"))
        assert violation is not None
        assert (violation.rule_type, violation.pattern) == ("command", "rm -rf")
        assert (
            await broker.agents.guard(agent_id, Read("/etc/\ud800" + "x" * 300_000), workspace_id=WORKSPACE) is not None
        )
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
            return await other.agents.guard(agent_id, Read("/srv/x"), workspace_id=WORKSPACE) is None

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
    monkeypatch.setattr(guard, "MAX_POLICIES", 2)
    async with Broker.connect(redis_url, prefix=prefix, workspace_id=WORKSPACE) as broker:
        for _ in range(4):
            await broker.agents.guard(await guarded(broker), Read("/data"))
        assert len(broker.agents._guard._known) == 2


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
