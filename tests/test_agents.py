"""The registry of agents: what is kept, told and found, whoever writes at the same time and whatever answer is lost."""

import asyncio
import contextlib
import random
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from msgspec.structs import asdict

from broker import Broker, Event, Invalid, Unavailable
from broker.agents import AgentMissing
from broker.agents.anchor import Anchor
from broker.agents.documents import MAX_SOUL_BYTES, MAX_SOUL_DEPTH
from broker.agents.model import MAX_OFFSET, Draft, Patch, Status
from broker.agents.pairing import hash_of
from broker.local import LocalRedis

from .proxy import Proxy, proxy

pytestmark = pytest.mark.anyio

WORKSPACE = "ws-456"
OURS = frozenset({WORKSPACE})
THEIRS = frozenset({"ws-other"})

# Seed 001, "Agent erstellen".
SEED: dict[str, Any] = {
    "name": "Data Pipeline Agent",
    "workspace_id": WORKSPACE,
    "mode": "computer",
    "soul": {
        "name": "DataBot",
        "role": "Data Engineer",
        "capabilities": ["python", "sql", "bash"],
        "memory": {"long_term_enabled": True, "max_history": 5000},
    },
    "shield": {"filesystem": {"allowed_paths": ["/data", "/tmp"], "blocked_paths": ["/root", "/etc"]}},
}


def draft(name: str = "Alpha", workspace: str = WORKSPACE, **more: Any) -> Draft:
    return Draft(name=name, workspace_id=workspace, **more)


async def made(broker: Broker, *names: str, workspace: str = WORKSPACE) -> list[str]:
    """Agents of these names, made in this order; their ids."""
    return [(await broker.agents.create(workspace, draft(name, workspace))).id for name in names]


async def told(broker: Broker, workspace: str = WORKSPACE) -> list[Event]:
    """All that stands in the workspace's log."""
    page = await broker.log.page(workspace, "0-0", 1000)
    assert page.is_last
    return [event.event() for event in page.events]


async def be_present(broker: Broker, *agents: str, workspace: str = WORKSPACE) -> None:
    await broker.presence.renew(workspace, agents)


async def names(broker: Broker, workspaces: frozenset[str] = OURS, **asked: Any) -> list[str]:
    return [item.name for item in (await broker.agents.list(workspaces, **asked)).items]


# -- making, reading, changing


async def test_an_agent_is_kept_as_it_was_made(redis_url: str, prefix: str) -> None:
    async with Broker.connect(redis_url, prefix=prefix) as broker:
        created = await broker.agents.create(WORKSPACE, Draft(**SEED), by="user-1")
        agent = await broker.agents.get(OURS, created.id)
        assert re.fullmatch(r"agent-[0-9a-f]{16}", created.id)
        assert (created.name, agent.name, agent.mode, agent.workspace_id) == (
            SEED["name"],
            SEED["name"],
            "computer",
            WORKSPACE,
        )
        assert agent.soul == SEED["soul"]
        assert agent.shield == {"version": "2.0"} | SEED["shield"]
        assert (agent.status, agent.last_activity, agent.credits_used) == ("offline", None, 0)
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", agent.created_at)


async def test_making_changing_and_deleting_are_told_in_the_words_of_the_document(redis_url: str, prefix: str) -> None:
    async with Broker.connect(redis_url, prefix=prefix) as broker:
        created = await broker.agents.create(WORKSPACE, draft(), by="user-1")
        await broker.agents.update(OURS, created.id, Patch(name="Beta", soul={"tone": "brief"}), by="user-2")
        await broker.agents.update(OURS, created.id, Patch())  # nothing was changed
        await broker.agents.delete(OURS, created.id, by="user-3")
        events = await told(broker)
        assert {event.agent_id for event in events} == {created.id}
        assert [(event.type, event.data) for event in events] == [
            ("agent_created", {"name": "Alpha", "status": "pending", "created_by": "user-1"}),
            ("agent_updated", {"name": "Beta", "changed": ["name", "soul"], "updated_by": "user-2"}),
            ("agent_deleted", {"name": "Beta", "reason": "user_request", "deleted_by": "user-3"}),
        ]


async def test_a_change_is_merged_into_soul_and_shield_and_answers_the_whole(redis_url: str, prefix: str) -> None:
    async with Broker.connect(redis_url, prefix=prefix) as broker:
        agent_id = (await broker.agents.create(WORKSPACE, Draft(**SEED))).id
        changes = {"name": "Production Data Pipeline", "soul": {"tone": "professional", "memory": {"max_history": 1}}}
        agent = await broker.agents.update(
            OURS, agent_id, Patch(**changes, shield={"commands": {"blocked_patterns": ["rm"]}})
        )
        memory = {"long_term_enabled": True, "max_history": 1}
        assert agent.name == "Production Data Pipeline"
        assert agent.soul == SEED["soul"] | {"memory": memory, "tone": "professional"}
        assert list(agent.soul) == ["name", "role", "capabilities", "memory", "tone"]
        assert agent.shield == {"version": "2.0"} | SEED["shield"] | {"commands": {"blocked_patterns": ["rm"]}}
        assert agent == await broker.agents.get(OURS, agent_id)


async def test_a_soul_keeps_each_key_where_it_was_put(redis_url: str, prefix: str) -> None:
    async with Broker.connect(redis_url, prefix=prefix) as broker:
        agent_id = (await broker.agents.create(WORKSPACE, Draft(**SEED))).id
        given = {"name": "DataBot v2", "personality": {"tone": "technical"}, "x": [{}, [], None, 2**70, 0.5, "ü"]}
        soul = await broker.agents.update_soul(OURS, agent_id, given)
        assert soul == SEED["soul"] | given == (await broker.agents.get(OURS, agent_id)).soul


async def test_null_in_a_soul_is_a_value_as_any_other(redis_url: str, prefix: str) -> None:
    async with Broker.connect(redis_url, prefix=prefix) as broker:
        agent_id = (await broker.agents.create(WORKSPACE, draft(soul={"a": {"b": 1}, "c": None}))).id
        assert await broker.agents.update_soul(OURS, agent_id, {"a": None}) == {"a": None, "c": None}
        assert await broker.agents.update_soul(OURS, agent_id, {"a": {"d": 1}}) == {"a": {"d": 1}, "c": None}


async def test_sections_of_a_shield_are_replaced_and_others_stay(redis_url: str, prefix: str) -> None:
    async with Broker.connect(redis_url, prefix=prefix) as broker:
        agent_id = (await broker.agents.create(WORKSPACE, Draft(**SEED))).id
        given = {"filesystem": {"allowed_paths": ["/project/**"]}, "commands": {"blocked_patterns": ["rm -rf"]}}
        shield = await broker.agents.update_shield(OURS, agent_id, given)
        assert shield == {"version": "2.0"} | given
        network = {"network": {"blocked_hosts": ["evil.example"]}}
        assert await broker.agents.update_shield(OURS, agent_id, network) == shield | network


DEEP: dict[str, Any] = {}
for _ in range(MAX_SOUL_DEPTH):
    DEEP = {"a": DEEP}
CYCLE: dict[str, Any] = {}
CYCLE["a"] = [CYCLE] * 10
BOMB: Any = "lol"
for _ in range(20):
    BOMB = [BOMB] * 10

BAD: list[tuple[dict[str, Any], str]] = [
    ({"name": ""}, "$.name"),
    ({"name": "x" * 256}, "$.name"),
    ({"name": "\ud800"}, "$.name"),
    ({"name": 5}, "$.name"),
    ({"mode": ""}, "$.mode"),
    ({"soul": [1]}, "$.soul"),
    ({"soul": {"a": {"b": [1, {1, 2}]}}}, "$.soul.a.b[1]"),
    ({"soul": {"a": {5: 1}}}, "$.soul.a"),
    ({"soul": {"a": float("nan")}}, "$.soul.a"),
    ({"soul": {"a": b"x"}}, "$.soul.a"),
    ({"soul": {"a": "\ud800"}}, "$.soul"),
    ({"soul": {"a": 10**5000}}, "$.soul"),
    ({"soul": {"a": "x" * MAX_SOUL_BYTES}}, "$.soul"),
    ({"soul": {"a": [0] * MAX_SOUL_BYTES}}, "$.soul"),
    ({"soul": DEEP}, "$.soul"),
    ({"soul": CYCLE}, "$.soul"),
    ({"soul": {"a": BOMB}}, "$.soul"),
    ({"shield": {"filesystem": {"allowed_paths": ["relative"]}}}, "$.shield.filesystem.allowed_paths[0]"),
    ({"shield": {"unknown": {}}}, "$.shield"),
    ({"shield": []}, "$.shield"),
]


@pytest.mark.parametrize(("wrong", "path"), BAD, ids=[f"{path} {n}" for n, (_, path) in enumerate(BAD)])
async def test_what_is_wrong_is_named_and_nothing_is_stored(
    redis_url: str, prefix: str, wrong: dict[str, Any], path: str
) -> None:
    async with Broker.connect(redis_url, prefix=prefix) as broker:
        with pytest.raises(Invalid) as invalid:
            await broker.agents.create(WORKSPACE, Draft(**{"name": "Alpha", "workspace_id": WORKSPACE} | wrong))
        assert invalid.value.path.startswith(path)
        assert await broker.redis.keys(f"{prefix}:*") == []
        (agent_id,) = await made(broker, "Alpha")
        before = await broker.agents.get(OURS, agent_id)
        with pytest.raises(Invalid) as invalid:
            await broker.agents.update(OURS, agent_id, Patch(**wrong))
        assert invalid.value.path.startswith(path)
        assert await broker.agents.get(OURS, agent_id) == before


async def test_a_soul_may_be_as_large_and_deep_as_promised_but_not_grow_past_it(redis_url: str, prefix: str) -> None:
    async with Broker.connect(redis_url, prefix=prefix) as broker:
        full = {"a": "x" * (MAX_SOUL_BYTES - 8)}
        agent_id = (await broker.agents.create(WORKSPACE, draft(soul=full))).id
        with pytest.raises(Invalid, match=r"^\$\.soul: expected at most 65536 bytes"):
            await broker.agents.update_soul(OURS, agent_id, {"b": 1})
        assert (await broker.agents.get(OURS, agent_id)).soul == full
        assert await broker.agents.update_soul(OURS, agent_id, DEEP["a"]) == DEEP["a"]


# -- workspaces


async def test_an_agent_of_another_workspace_is_as_if_it_did_not_exist(redis_url: str, prefix: str) -> None:
    async with Broker.connect(redis_url, prefix=prefix) as broker:
        agents = broker.agents
        (agent_id,) = await made(broker, "Alpha")
        before = await agents.get(OURS, agent_id)
        for name in (agent_id, "agent-0000000000000000", "", "\ud800", "x" * 300):
            for workspaces in (THEIRS, frozenset[str]()):
                for call in (
                    agents.get(workspaces, name),
                    agents.update(workspaces, name, Patch(name="Mine")),
                    agents.update_soul(workspaces, name, {"a": 1}),
                    agents.update_shield(workspaces, name, {}),
                    agents.delete(workspaces, name),
                    agents.delete(workspaces, name, purge=True),
                ):
                    with pytest.raises(AgentMissing):
                        await call
        assert await agents.list(THEIRS) == await agents.list(frozenset()) == ([], 0, None)
        assert await agents.get(OURS, agent_id) == await agents.get(OURS | THEIRS, agent_id) == before
        assert await told(broker, "ws-other") == []


async def test_an_agent_elsewhere_and_none_at_all_cost_redis_the_same(redis_url: str, prefix: str) -> None:
    async def commands(broker: Broker, agent_id: str) -> Counter[str]:
        async def counted() -> Counter[str]:
            stats = await broker.redis.info("commandstats")
            return Counter({name: line["calls"] for name, line in stats.items()})

        before = await counted()
        with pytest.raises(AgentMissing):
            await broker.agents.get(THEIRS, agent_id)
        return await counted() - before

    async with Broker.connect(redis_url, prefix=prefix) as broker:
        (agent_id,) = await made(broker, "Alpha")
        assert await commands(broker, agent_id) == await commands(broker, "agent-0000000000000000")


async def test_agents_that_only_publish_are_not_in_the_registry(redis_url: str, prefix: str) -> None:
    async with Broker.connect(redis_url, prefix=prefix) as broker:
        await broker.publish(Event(type="agent.online", workspace_id=WORKSPACE, agent_id="agent-1"))
        assert await broker.agents.list(OURS) == ([], 0, None)
        for purge in (False, True):
            with pytest.raises(AgentMissing):
                await broker.agents.delete(OURS, "agent-1", purge=purge)
        assert await broker.redis.ttl(broker.keys.agent(WORKSPACE, "agent-1")) > 0


# -- lists


async def test_a_list_is_newest_first_and_its_order_stays_as_agents_come_and_go(redis_url: str, prefix: str) -> None:
    async with Broker.connect(redis_url, prefix=prefix) as broker:
        ids = await made(broker, *(f"a{number}" for number in range(9)))
        assert await names(broker) == [f"a{number}" for number in reversed(range(9))]
        assert await names(broker, limit=3, offset=2) == ["a6", "a5", "a4"]
        await broker.agents.update(OURS, ids[0], Patch(name="A0"))
        await made(broker, "new")
        assert await names(broker, limit=3, offset=3) == ["a6", "a5", "a4"]
        await broker.agents.delete(OURS, ids[5])
        page = await broker.agents.list(OURS, limit=4, offset=3)
        assert [item.name for item in page.items] == ["a6", "a4", "a3", "a2"]
        assert page.total == 9
        assert await names(broker, offset=MAX_OFFSET) == []


async def test_a_list_of_several_workspaces_is_one_list(redis_url: str, prefix: str) -> None:
    both = OURS | THEIRS
    async with Broker.connect(redis_url, prefix=prefix) as broker:
        for number in range(6):
            await made(broker, f"a{number}", workspace=("ws-456", "ws-other", "ws-third")[number % 3])
            await asyncio.sleep(0.002)  # another millisecond
        assert await names(broker, both) == ["a4", "a3", "a1", "a0"]
        assert await names(broker, both, limit=2, offset=1) == ["a3", "a1"]
        assert (await broker.agents.list(both, limit=1)).total == 4
        assert await names(broker, OURS) == ["a3", "a0"]


async def test_what_is_listed_is_a_part_of_the_details(redis_url: str, prefix: str) -> None:
    async with Broker.connect(redis_url, prefix=prefix) as broker:
        (agent_id,) = await made(broker, "Alpha")
        done = Event(
            type="task.completed", workspace_id=WORKSPACE, agent_id=agent_id, data={"task_id": "t", "credits_used": 7}
        )
        await broker.publish(done)
        (item,) = (await broker.agents.list(OURS)).items
        agent = asdict(await broker.agents.get(OURS, agent_id))
        assert asdict(item).items() <= agent.items()
        assert agent["credits_used"] == 7
        assert agent["last_activity"] >= agent["created_at"]


async def test_a_list_does_not_read_the_documents_of_its_agents(redis_url: str, prefix: str) -> None:
    async with Broker.connect(redis_url, prefix=prefix) as broker:
        for number in range(5):
            await broker.agents.create(WORKSPACE, draft(f"a{number}", soul={"long": "x" * 60_000}))
        before = (await broker.redis.info("stats"))["total_net_output_bytes"]
        assert len(await names(broker)) == 5
        assert (await broker.redis.info("stats"))["total_net_output_bytes"] - before < 60_000


async def walked(
    broker: Broker,
    workspaces: frozenset[str],
    status: Status | None,
    limit: int,
    between: Callable[[list[str]], Awaitable[object]],
) -> list[str]:
    """The ids on all pages, none of them twice; `between` two of them something is done with those of the last."""
    found: list[str] = []
    page = await broker.agents.list(workspaces, status, limit)
    while True:
        shown = [item.id for item in page.items]
        assert len(shown) <= limit
        assert not set(shown) & set(found)
        found += shown
        if page.next is None:
            return found
        await between(shown)
        page = await broker.agents.list(workspaces, status, limit, before=page.next)


@pytest.mark.parametrize("seed", range(8))
async def test_whoever_follows_next_finds_each_that_stays_once_whoever_comes_and_goes(
    redis_url: str, prefix: str, seed: int
) -> None:
    choice = random.Random(seed)
    workspaces = ["ws-456", "ws-other", "ws-third"][: 1 + seed % 3]
    async with Broker.connect(redis_url, prefix=prefix) as broker:
        # The model: the workspace of each agent there is.
        living = {(await made(broker, "a", workspace=each))[0]: each for each in choice.choices(workspaces, k=24)}
        ever = set(living)

        async def come_and_go(shown: list[str]) -> None:
            gone = choice.sample(sorted(living), min(2, len(living))) + shown[-1:] * choice.randrange(2)
            for agent in dict.fromkeys(gone):
                if workspace := living.pop(agent, None):
                    await broker.agents.delete(frozenset({workspace}), agent)
            for workspace in choice.choices(workspaces, k=2):
                (agent,) = await made(broker, "new", workspace=workspace)
                living[agent] = workspace
                ever.add(agent)

        before = list(living)
        found = await walked(broker, frozenset(workspaces), "offline" if seed % 2 else None, 1 + seed % 4, come_and_go)
        assert {agent for agent in before if agent in living} <= set(found)
        assert set(found) <= ever


async def test_agents_of_one_place_in_several_workspaces_are_shown_once_each(redis_url: str, prefix: str) -> None:
    async with Broker.connect(redis_url, prefix=prefix) as broker:
        places: dict[str, int] = {}
        workspaces = ("ws-456", "ws-other", "ws-third")
        for workspace in workspaces:
            ids = await made(broker, *"abcd", workspace=workspace)
            of = {agent: 1_790_000_000_000 + number for number, agent in enumerate(ids)}
            for key in (broker.keys.agents(workspace), broker.keys.offline(workspace)):
                await broker.redis.zadd(key, of)
            places |= of

        async def nothing(shown: list[str]) -> None:
            pass

        for status in (None, "offline"):
            for limit in range(1, 14):
                found = await walked(broker, frozenset(workspaces), status, limit, nothing)  # type: ignore[arg-type]
                assert found == sorted(places, key=lambda agent: (places[agent], agent), reverse=True)


async def test_a_list_goes_on_behind_an_agent_that_is_gone_though_a_new_one_has_its_place(
    redis_url: str, prefix: str
) -> None:
    async with Broker.connect(redis_url, prefix=prefix) as broker:
        old, newest = await made(broker, "old", "newest")
        key, ahead = broker.keys.agents(WORKSPACE), 4_000_000_000_000
        await broker.redis.zadd(key, {old: ahead, newest: ahead + 1})
        page = await broker.agents.list(OURS, limit=1)
        await broker.agents.delete(OURS, newest)
        (new,) = await made(broker, "new")
        assert await broker.redis.zscore(key, new) == ahead + 1
        rest = [item.id for item in (await broker.agents.list(OURS, before=page.next)).items]
        assert [agent for agent in rest if agent != new] == [old]


async def test_there_is_a_next_exactly_as_long_as_there_is_more(redis_url: str, prefix: str) -> None:
    async with Broker.connect(redis_url, prefix=prefix) as broker:
        await made(broker, *"abcd")
        for limit, offset, has_next in ((4, 0, False), (3, 0, True), (2, 2, False), (1, 2, True), (4, 9, False)):
            assert ((await broker.agents.list(OURS, limit=limit, offset=offset)).next is not None) is has_next
        second = await broker.agents.list(OURS, limit=2, before=(await broker.agents.list(OURS, limit=2)).next)
        assert ([item.name for item in second.items], second.total, second.next) == (["b", "a"], 4, None)


@pytest.mark.parametrize(
    "asked",
    [
        {"limit": 0},
        {"limit": 101},
        {"offset": -1},
        {"offset": MAX_OFFSET + 1},
        {"status": "busy"},
        {"before": ""},
        {"before": "agent-1"},
        {"before": "ü"},
        {"before": "W10="},  # []
        {"before": "Wy0xLCJhIl0="},  # [-1,"a"]
        {"before": "WzEsIv8iXQ=="},  # not UTF-8
        {"before": Anchor(1, "a").text, "offset": 1},
    ],
    ids=str,
)
async def test_a_stretch_that_cannot_be_is_invalid(redis_url: str, prefix: str, asked: dict[str, Any]) -> None:
    async with Broker.connect(redis_url, prefix=prefix) as broker:
        with pytest.raises(Invalid, match=rf"^\$\.{next(iter(asked))}: expected"):
            await broker.agents.list(OURS, **asked)


# -- status


def status_event(agent_id: str, status: object, **more: Any) -> Event:
    data = {"new_status": status, "reason": '"type":"agent_status","new_status":"error"'}
    return Event(type="agent_status", workspace_id=WORKSPACE, agent_id=agent_id, data=data, **more)


async def test_a_status_is_what_the_agent_said_last_if_that_is_error_else_its_presence(
    redis_url: str, prefix: str
) -> None:
    async with Broker.connect(redis_url, prefix=prefix) as broker:
        (agent_id,) = await made(broker, "Alpha")

        async def status() -> str:
            found = (await broker.agents.get(OURS, agent_id)).status
            for asked in ("online", "offline", "error"):
                page = await broker.agents.list(OURS, status=asked)  # type: ignore[arg-type]
                assert ([item.status for item in page.items], page.total) == (
                    ([found], 1) if asked == found else ([], 0)
                )
            return found

        assert await status() == "offline"
        await be_present(broker, agent_id)
        assert await status() == "online"
        await broker.publish(status_event(agent_id, "error", timestamp="2026-03-27T10:30:45Z"))
        assert await status() == "error"
        await broker.redis.zadd(broker.keys.presence(WORKSPACE), {agent_id: 1})
        assert await status() == "error"
        await broker.publish(Event(type="agent.online", workspace_id=WORKSPACE, agent_id=agent_id))
        assert await status() == "error"
        await broker.publish(status_event(agent_id, "active"))
        assert await status() == "offline"
        await broker.publish(status_event(agent_id, "error", ephemeral=True))
        assert await status() == "error"
        await broker.publish_many([status_event(agent_id, "error"), status_event(agent_id, "idle")])
        assert await status() == "offline"


async def test_a_filter_by_status_pages_through_those_that_match(redis_url: str, prefix: str) -> None:
    async with Broker.connect(redis_url, prefix=prefix) as broker:
        ids = await made(broker, *(f"a{number}" for number in range(12)))
        await be_present(broker, *ids[::2])
        await broker.publish_many([status_event(ids[2], "error"), status_event(ids[3], "error")])
        assert await names(broker, status="online") == ["a10", "a8", "a6", "a4", "a0"]
        assert await names(broker, status="online", limit=2, offset=1) == ["a8", "a6"]
        assert await names(broker, status="offline") == ["a11", "a9", "a7", "a5", "a1"]
        assert await names(broker, status="error") == ["a3", "a2"]
        assert (await broker.agents.list(OURS, status="online", limit=1)).total == 5
        await broker.agents.delete(OURS, ids[3])
        assert await names(broker, status="error") == ["a2"]


async def test_a_lease_that_has_ended_counts_before_anybody_is_told_and_so_does_one_that_is_renewed_then(
    redis_url: str, prefix: str
) -> None:
    async with Broker.connect(redis_url, prefix=prefix) as broker:
        ids = await made(broker, "a0", "a1", "a2")
        await be_present(broker, *ids)
        await broker.redis.zadd(broker.keys.presence(WORKSPACE), {ids[1]: 1})
        for _ in range(2):
            assert await names(broker, status="online") == ["a2", "a0"]
            assert await names(broker, status="offline") == ["a1"]
        assert (await broker.agents.get(OURS, ids[1])).status == "offline"
        await be_present(broker, ids[1])
        assert await names(broker, status="online") == ["a2", "a1", "a0"]
        await broker.redis.zadd(broker.keys.presence(WORKSPACE), {ids[1]: 1})
        assert await names(broker, status="offline") == ["a1"]
        await broker.presence.leave(WORKSPACE, [ids[1]])  # a goodbye is a sign of life
        assert await names(broker, status="online") == ["a2", "a1", "a0"]
        await broker.redis.zadd(broker.keys.presence(WORKSPACE), {ids[1]: 1})
        await broker.presence.sweep([WORKSPACE], time.time())
        assert await names(broker, status="offline") == ["a1"]
        await broker.redis.delete(broker.keys.presence(WORKSPACE))
        assert await names(broker, status="offline") == ["a2", "a1", "a0"]


async def test_lists_by_status_agree_with_the_details_whatever_happens(redis_url: str, prefix: str) -> None:
    choice = random.Random(5)
    async with Broker.connect(redis_url, prefix=prefix) as broker:
        ids = await made(broker, *(f"a{number}" for number in range(8)))
        for _ in range(150):
            agent = choice.choice(ids)
            match choice.randrange(8):
                case 0 | 1:
                    await broker.presence.renew(WORKSPACE, [agent])
                case 2:
                    await broker.presence.leave(WORKSPACE, [agent])
                case 3:
                    await broker.redis.zadd(broker.keys.presence(WORKSPACE), {agent: 1}, xx=True)
                case 4:
                    await broker.presence.sweep([WORKSPACE], time.time())
                case 5:
                    await broker.publish(status_event(agent, "error"))
                case 6:
                    await broker.publish(status_event(agent, "idle"))
                case _:
                    await broker.agents.delete(OURS, agent)
                    ids.remove(agent)
                    ids += await made(broker, "new")
            found = {agent: (await broker.agents.get(OURS, agent)).status for agent in reversed(ids)}
            for status in ("online", "offline", "error"):
                page = await broker.agents.list(OURS, status=status)  # type: ignore[arg-type]
                expected = [agent for agent, its_status in found.items() if its_status == status]
                assert ([item.id for item in page.items], page.total) == (expected, len(expected))


async def test_a_page_of_many_agents_costs_redis_as_much_as_one_of_few(redis_url: str, prefix: str) -> None:
    """Counted in what the script asks Redis for: no stretch of the many is read to find the few."""

    async def calls(broker: Broker, **asked: Any) -> int:
        await broker.redis.config_resetstat()
        await broker.agents.list(OURS, limit=1, **asked)
        stats = await broker.redis.info("commandstats")
        return sum(line["calls"] for name, line in stats.items() if name.startswith(("cmdstat_z", "cmdstat_s")))

    async with Broker.connect(redis_url, prefix=prefix) as broker:
        ids = await made(broker, *(f"a{number}" for number in range(60)))
        await be_present(broker, *ids[:30])
        await broker.publish_many([status_event(agent, "error") for agent in ids[20:40]])
        for status in (None, "online", "offline", "error"):
            assert await calls(broker, status=status) <= 5
            assert await calls(broker, status=status, offset=15) <= 5
            assert await calls(broker, status=status, before=Anchor(2**50, "").text) <= 5


# -- writers at the same time, lost answers


async def test_fifty_writers_over_two_brokers_lose_no_change_and_leave_no_ghost(redis_url: str, prefix: str) -> None:
    async with Broker.connect(redis_url, prefix=prefix) as one, Broker.connect(redis_url, prefix=prefix) as other:
        ids = await made(one, *(f"a{number}" for number in range(20)))
        gone = set(ids[15:])
        more: list[str] = []

        async def write(number: int) -> None:
            agents = (one, other)[number % 2].agents
            for turn in range(6):
                agent_id = ids[(number + turn) % 15]
                key = f"w{number}t{turn}"
                await agents.update(OURS, agent_id, Patch(soul={"put": {key: 1}}))
                await agents.update_soul(OURS, agent_id, {"post": {key: [number]}})
                section = ("filesystem", "commands", "network")[number % 3]
                await agents.update_shield(OURS, agent_id, {section: {}})
                page = await agents.list(OURS, limit=100)
                assert len({item.id for item in page.items}) == len(page.items) == page.total
            if number < 5:
                await agents.delete(OURS, ids[15 + number])
            elif number < 15:
                more.append((await agents.create(WORKSPACE, draft(f"n{number}"))).id)

        await asyncio.gather(*(write(number) for number in range(50)))
        page = await other.agents.list(OURS, limit=100)
        assert {item.id for item in page.items} == (set(ids) - gone) | set(more)
        assert page.total == 25
        for index, agent_id in enumerate(ids[:15]):
            agent = await one.agents.get(OURS, agent_id)
            keys = {f"w{n}t{t}" for n in range(50) for t in range(6) if (n + t) % 15 == index}
            assert set(agent.soul["put"]) == set(agent.soul["post"]) == keys
            assert set(agent.shield) == {"version", "filesystem", "commands", "network"}
        counts = Counter(event.type for event in await told(one))
        assert counts == {"agent_created": 30, "agent_updated": 900, "agent_deleted": 5}


async def test_two_who_delete_the_same_agent_delete_it_once(redis_url: str, prefix: str) -> None:
    async with Broker.connect(redis_url, prefix=prefix) as broker:
        (agent_id,) = await made(broker, "Alpha")
        outcomes = await asyncio.gather(
            *(broker.agents.delete(OURS, agent_id) for _ in range(5)), return_exceptions=True
        )
        assert sorted(type(outcome).__name__ for outcome in outcomes) == ["AgentMissing"] * 4 + ["NoneType"]
        assert [event.type for event in await told(broker)] == ["agent_created", "agent_deleted"]
        with pytest.raises(AgentMissing):
            await broker.agents.update(OURS, agent_id, Patch(name="Beta"))


async def test_whoever_comes_second_changes_nothing(redis_url: str, prefix: str) -> None:
    """The branches of register.lua that only a race reaches."""
    async with Broker.connect(redis_url, prefix=prefix) as broker:
        agent_id, gone = await made(broker, "Alpha", "Beta")
        stale = (await broker.agents._find(OURS, agent_id)).version
        await broker.agents.update(OURS, agent_id, Patch(mode="cloud"))
        await broker.agents.delete(OURS, gone)
        count = len(await told(broker))
        fields = {"name": "Mine"}
        said = {"name": "Mine"}
        assert await broker.agents._do("update", WORKSPACE, agent_id, said, version=stale, fields=fields) == "changed"
        assert await broker.agents._do("create", WORKSPACE, agent_id, said, fields=fields) == "changed"
        assert await broker.agents._do("update", WORKSPACE, gone, said, version=stale, fields=fields) == "missing"
        assert (await broker.agents.get(OURS, agent_id)).name == "Alpha"
        assert len(await told(broker)) == count


@pytest.mark.parametrize("is_purged", [False, True])
async def test_the_repetition_of_its_making_brings_no_deleted_agent_back(
    redis_url: str, prefix: str, is_purged: bool
) -> None:
    """The answer to the first was lost; meanwhile somebody found the agent in a list, and deleted it."""
    async with Broker.connect(redis_url, prefix=prefix) as broker:
        (agent_id,) = await made(broker, "Alpha")
        await broker.agents.delete(OURS, agent_id, purge=is_purged)
        before = await told(broker)
        assert await broker.agents._do("create", WORKSPACE, agent_id, {"name": "Alpha"}, fields={"name": "A"}) == "done"
        assert await told(broker) == before
        assert await broker.agents.list(OURS) == ([], 0, None)
        with pytest.raises(AgentMissing):
            await broker.agents.get(OURS, agent_id)


async def test_an_agent_that_is_deleted_while_it_is_changed_is_missing(
    redis_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Broker.connect(redis_url, prefix=prefix) as broker, Broker.connect(redis_url, prefix=prefix) as other:
        (agent_id,) = await made(broker, "Alpha")
        find = broker.agents._find

        async def find_and_lose(*asked: Any, **more: Any) -> Any:
            record = await find(*asked, **more)
            await other.agents.delete(OURS, agent_id)
            return record

        monkeypatch.setattr(broker.agents, "_find", find_and_lose)
        with pytest.raises(AgentMissing):
            await broker.agents.update(OURS, agent_id, Patch(name="Beta"))


async def test_a_pairing_key_of_an_agent_that_is_not_kept_opens_nothing(redis_url: str, prefix: str) -> None:
    async with Broker.connect(redis_url, prefix=prefix) as broker:
        created = await broker.agents.create(WORKSPACE, draft())
        await broker.redis.delete(broker.keys.agent(WORKSPACE, created.id))
        with pytest.raises(AgentMissing):
            await broker.agents.pair(created.pairing_key)


async def test_lost_answers_do_nothing_twice(redis: LocalRedis, prefix: str) -> None:
    async with proxy(redis.port) as middle, Broker.connect(middle.url, prefix=prefix) as broker:
        await made(broker, "before")
        for lost in (1, 2, 3):
            middle.lose_answers(lost)
            created = await broker.agents.create(WORKSPACE, draft())
            middle.lose_answers(lost)
            await broker.agents.update(OURS, created.id, Patch(soul={"lost": lost}))
            middle.lose_answers(lost)
            assert (await broker.agents.pair(created.pairing_key)).agent_id == created.id
            middle.lose_answers(lost)
            await broker.agents.delete(OURS, created.id, purge=lost == 3)
        assert middle.lost >= 12
        assert await names(broker) == ["before"]
        each = ["agent_created", "agent_updated", "agent_deleted"]
        assert [event.type for event in await told(broker)] == ["agent_created", *each, *each, "agent_deleted"]


async def test_a_call_that_redis_never_answers_is_unavailable(redis: LocalRedis, prefix: str) -> None:
    async with proxy(redis.port) as middle, Broker.connect(middle.url, prefix=prefix) as broker:
        (agent_id,) = await made(broker, "Alpha")
        middle.pause()
        calls = (
            broker.agents.get(OURS, agent_id),
            broker.agents.list(OURS),
            broker.agents.create(WORKSPACE, draft()),
            broker.agents.delete(OURS, agent_id),
            broker.agents.pair("MC-X"),
        )
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {Unavailable}
        middle.go_on()


# -- credits


async def test_credits_over_ten_thousand_events_are_exact_though_answers_are_lost(
    redis: LocalRedis, prefix: str
) -> None:
    """Two producers at once, each with losses of its own, of which it hears at times that nothing was taken."""

    async def publish_all(broker: Broker, middle: Proxy, numbers: range) -> int:
        used = 0
        for first in numbers[::500]:
            events = [
                Event(
                    type="task.completed" if number % 3 else "task.failed",
                    workspace_id=WORKSPACE,
                    agent_id=agent_id,
                    data={"task_id": f"t{number}", "credits_used": number % 11}
                    | ({} if number % 3 else {"error": {"code": "E", "message": "m"}}),
                )
                for number in range(first, first + 500)
            ]
            used += sum(event.data["credits_used"] for event in events)
            middle.lose_answers(first // 500 % 4)
            if first % 2000 == 0:
                middle.lose_answers(10_000)
                with pytest.raises(Unavailable):
                    await broker.publish_many(events)
                middle.lose_answers(0)
            while True:  # a machine under load may need more than one's patience
                with contextlib.suppress(Unavailable):
                    await broker.publish_many(events)
                    break
        return used

    async with (
        proxy(redis.port) as first,
        proxy(redis.port) as second,
        Broker.connect(first.url, prefix=prefix, patience_seconds=0.3) as one,
        Broker.connect(second.url, prefix=prefix, patience_seconds=0.3) as other,
    ):
        (agent_id,) = await made(one, "Alpha")
        used = await asyncio.gather(
            publish_all(one, first, range(5000)), publish_all(other, second, range(5000, 10_000))
        )
        assert (await one.agents.get(OURS, agent_id)).credits_used == sum(used)
        assert first.lost > 0 < second.lost


async def test_a_created_agent_and_its_credits_never_expire(redis_url: str, prefix: str) -> None:
    async with Broker.connect(redis_url, prefix=prefix) as broker:
        (agent_id,) = await made(broker, "Alpha")
        await broker.publish(Event(type="agent.online", workspace_id=WORKSPACE, agent_id=agent_id))
        assert await broker.redis.ttl(broker.keys.agent(WORKSPACE, agent_id)) == -1
        assert await broker.redis.ttl(broker.keys.agents(WORKSPACE)) == -1


# -- pairing


async def test_a_pairing_key_is_shown_once_and_kept_as_its_hash(redis_url: str, prefix: str) -> None:
    async with Broker.connect(redis_url, prefix=prefix) as broker:
        created = await broker.agents.create(WORKSPACE, draft("Data Pipeline Agent"))
        key = created.pairing_key
        assert re.fullmatch(rf"MC-DATA-{created.id[6:].upper()}[A-Z2-9]{{4}}-[A-Z2-9]{{6}}", key)
        for name in await broker.redis.keys(f"{prefix}:*"):
            kind = await broker.redis.type(name)
            raw = await broker.redis.dump(name)
            assert kind == b"hash" or key.encode() not in raw
        assert key.encode() not in b"".join(
            (await broker.redis.hgetall(broker.keys.agent(WORKSPACE, created.id))).values()
        )
        assert 86_000 < await broker.redis.ttl(broker.keys.pairing(hash_of(key))) <= 86_400


@pytest.mark.parametrize(
    ("name", "shown"), [("世界", "AGENT"), ("über-Agent", "BER"), ("x" * 20, "XXXXXXXX"), ("a1 b", "A1")]
)
async def test_a_pairing_key_shows_the_first_word_of_the_name(
    redis_url: str, prefix: str, name: str, shown: str
) -> None:
    async with Broker.connect(redis_url, prefix=prefix) as broker:
        created = await broker.agents.create(WORKSPACE, draft(name))
        assert created.pairing_key.startswith(f"MC-{shown}-")


async def test_a_pairing_key_is_used_once(redis_url: str, prefix: str) -> None:
    async with Broker.connect(redis_url, prefix=prefix) as broker:
        created = await broker.agents.create(WORKSPACE, draft())
        calls = [broker.agents.pair(created.pairing_key) for _ in range(8)]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        paired = [outcome for outcome in outcomes if not isinstance(outcome, Exception)]
        assert paired == [(created.id, WORKSPACE, "Alpha")]
        assert all(isinstance(outcome, AgentMissing) for outcome in outcomes if isinstance(outcome, Exception))
        for wrong in (created.pairing_key, created.pairing_key.lower(), "MC-A-B-C", "", "\ud800"):
            with pytest.raises(AgentMissing):
                await broker.agents.pair(wrong)


async def test_a_pairing_key_ends_with_its_day_and_with_its_agent(redis_url: str, prefix: str) -> None:
    async with Broker.connect(redis_url, prefix=prefix) as broker:
        old = await broker.agents.create(WORKSPACE, draft())
        name = broker.keys.agent(WORKSPACE, old.id)
        made_at = int(await broker.redis.hget(name, "created") or 0)
        await broker.redis.hset(name, "created", str(made_at - 24 * 3600 * 1000))
        with pytest.raises(AgentMissing):
            await broker.agents.pair(old.pairing_key)
        gone = await broker.agents.create(WORKSPACE, draft())
        await broker.agents.delete(OURS, gone.id)
        assert not await broker.redis.exists(broker.keys.pairing(hash_of(gone.pairing_key)))
        with pytest.raises(AgentMissing):
            await broker.agents.pair(gone.pairing_key)
