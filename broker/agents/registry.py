"""The registry: agents that somebody created, each one hash in Redis, and the indexes by which they are found.

Steps      Making, changing and deleting an agent is one step with the event that tells of it (register.lua).
Changes    A change is merged here and written only if nothing else was written since it was read; else it is merged
           anew. So two changes at the same time are both kept. Each call has a random name, by which Redis knows its
           repetition: an answer that was lost is asked for again, and nothing is done twice.
Finding    A caller names the workspaces that it may see. All of them are asked at once, and alike: an agent of another
           workspace is as if it did not exist, in what is answered and in how long that takes.
Keys       A pairing key says neither workspace nor agent, so a locator under its hash does, which may be stale: only
           the agent's own hash decides whether a key is valid, and uses it up (pair.lua).
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from random import uniform
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import msgspec
from msgspec import UNSET

from ..errors import Invalid, Unavailable
from ..events import Event, pack
from ..keyspace import STATE_SECONDS, check_id, check_workspace
from ..patience import pause
from ..script import Script
from .anchor import Anchor
from .asking import PATIENCE_SECONDS, ask
from .documents import changed_shield, changed_soul, write_soul
from .errors import AgentMissing
from .guard import Guard
from .model import MAX_LIMIT, MAX_OFFSET, Agent, Created, Draft, Page, Paired, Patch, Status
from .pairing import PAIRING_SECONDS, hash_of, make_key
from .purge import Purge
from .records import FIELDS, SUMMARY_FIELDS, Record, read

if TYPE_CHECKING:
    from ..broker import Broker
    from ..shield import Action, Allowed, Resolve, Violation

_SHORTEST, _LONGEST = 0.001, 0.02

Fields = Mapping[str, str | bytes]


class Agents:
    """The agents of all workspaces.

    Every call may raise `Unavailable` when Redis does not answer for seconds. What was to be made or changed may have
    been then; calling again is safe, and a second `create` makes a second agent.
    """

    def __init__(self, broker: "Broker") -> None:
        self._redis = broker.redis
        self._keys = broker.keys
        self._presence = broker.presence
        self._workspace_id = broker.workspace_id
        self._bounds = (broker.log_events, broker.log_seconds, STATE_SECONDS, broker.keys.publish)
        names = ("register", "list", "read", "pair")
        self._register, self._list, self._reader, self._pair = (Script(broker.redis, name) for name in names)
        self._purge = Purge(broker.redis, broker.keys)
        self._guard = Guard(broker)
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def create(self, workspace: str, draft: Draft, *, by: str | None = None) -> Created:
        """Make an agent, for the user `by`. Raises `Invalid`: `$.name`, `$.mode`, `$.soul…`, `$.shield…`."""
        check_workspace(workspace, "$.workspace_id")
        fields: dict[str, str | bytes] = {
            "name": _checked_name(draft.name),
            "mode": check_id(draft.mode, "$.mode"),
            "soul": write_soul(changed_soul({}, draft.soul)),
            "shield": msgspec.json.encode(changed_shield({}, draft.shield)),
        }
        said = {"name": draft.name, "status": "pending"} | ({} if by is None else {"created_by": by})
        agent_id = f"agent-{secrets.token_hex(8)}"
        key = make_key(draft.name, agent_id)
        fields["pairing"] = hash_of(key)
        name = self._keys.pairing(hash_of(key))
        locator = msgspec.json.encode((workspace, agent_id))
        await ask(lambda: self._redis.set(name, locator, ex=PAIRING_SECONDS))
        outcome = await self._do("create", workspace, agent_id, said, fields=fields)
        assert outcome == "done", "64 random bits came twice"
        return Created(agent_id, draft.name, key)

    async def get(self, workspaces: frozenset[str], agent_id: str) -> Agent:
        """All of an agent. Raises `AgentMissing`."""
        return (await self._find(workspaces, agent_id)).agent()

    async def list(
        self,
        workspaces: frozenset[str],
        status: Status | None = None,
        limit: int = 20,
        offset: int = 0,
        before: str | None = None,
    ) -> Page:
        """Up to `limit` (1 to 100) agents that match, newest first: after the first `offset`, or behind `before`.

        `before` is the `next` of the page before. Whoever goes from page to page by it finds every agent that was there
        throughout, with this `status`, exactly once; by `offset`, agents that come show others twice, and those that go
        hide others. A page may have fewer items, or none, and yet a `next`: where agents were deleted just then.
        Raises `Invalid`: `$.limit`, `$.offset`, `$.status`, `$.before`.
        """
        _check_stretch(status, limit, offset, before)
        anchor = None if before is None else Anchor.read(before)
        # One more than is shown tells whether there is more.
        found, total = await self._match(workspaces, status, anchor, offset, limit + 1)
        records = await self._read([(workspace, at.agent_id) for at, workspace in found[:limit]], SUMMARY_FIELDS)
        # One that was deleted a moment ago is none any more.
        items = [record.summary(status) for record in records if record.is_created]
        next_ = found[limit - 1][0].text if len(found) > limit else None
        return Page(items, total - len(records) + len(items), next_)

    async def update(self, workspaces: frozenset[str], agent_id: str, patch: Patch, *, by: str | None = None) -> Agent:
        """Change what `patch` gives: sections of soul and shield are merged. Raises `AgentMissing`, `Invalid`."""
        return (await self._change(workspaces, agent_id, lambda record: _patched(record, patch), by)).agent()

    async def update_soul(
        self, workspaces: frozenset[str], agent_id: str, soul: dict[str, Any], *, by: str | None = None
    ) -> dict[str, Any]:
        """Merge `soul` into the agent's; answers all of it. Raises `AgentMissing`, `Invalid`."""
        return (await self._change(workspaces, agent_id, lambda record: _with_soul(record, soul), by)).soul

    async def update_shield(
        self, workspaces: frozenset[str], agent_id: str, shield: dict[str, Any], *, by: str | None = None
    ) -> dict[str, Any]:
        """Put sections in place of the agent's; answers the whole shield. Raises `AgentMissing`, `Invalid`."""
        return (await self._change(workspaces, agent_id, lambda record: _with_shield(record, shield), by)).shield

    async def delete(
        self, workspaces: frozenset[str], agent_id: str, *, purge: bool = False, by: str | None = None
    ) -> None:
        """Take an agent out of the registry. What comes late of it is live only. Raises `AgentMissing`.

        `purge` removes its events, runs, commands and keys as well, of an agent that was deleted in the last 7 days
        too: so it can be called again when it ended with `Unavailable`.
        """
        record = await self._find(workspaces, agent_id, deleted_too=purge)
        if record.is_created:
            # Before the agent, whose hash alone says where it is: cut short here, it can be called again.
            locator = self._keys.pairing(record.fields["pairing"].decode())
            await ask(lambda: self._redis.delete(locator))
            said = {"name": record.name, "reason": "user_request"} | ({} if by is None else {"deleted_by": by})
            if await self._do("delete", record.workspace, agent_id, said) == "missing" and not purge:
                raise AgentMissing(agent_id)
        if purge:
            await self._purge.run(record.workspace, agent_id)

    async def pair(self, pairing_key: str) -> Paired:
        """Whose key it is; it is used up now. Raises `AgentMissing`: unknown, used or older than 24 h."""
        hash_, call = hash_of(pairing_key), secrets.token_hex(8)
        name = self._keys.pairing(hash_)
        locator = await ask(lambda: self._redis.get(name))
        if locator is None:
            raise AgentMissing("no agent waits for this pairing key")
        workspace, agent_id = msgspec.json.decode(locator, type=tuple[str, str])
        keys = [self._keys.agent(workspace, agent_id)]
        paired = await ask(lambda: self._pair.run(keys, [hash_, call, PAIRING_SECONDS * 1000]))
        if paired is None:
            raise AgentMissing("no agent waits for this pairing key")
        await ask(lambda: self._redis.delete(name))
        return Paired(agent_id, workspace, paired.decode())

    async def present(self, agent_id: str, *, workspace_id: str | None = None) -> None:
        """A sign of life: the agent is online for 15 s from now. Call it every 5 s, for as long as it lives.

        The first one is told as `agent.online`, and that they have ended as `agent.offline`. Listening for commands
        (`Broker.commands`) and the agent's own WebSocket are signs of life too. Raises `AgentMissing` for one that was
        deleted. `workspace_id` is the broker's own unless it is told; `Invalid` without any.
        """
        workspace = self._workspace_id if workspace_id is None else workspace_id
        if workspace is None:
            raise Invalid("workspace_id", "expected one here or in Broker.connect")
        workspace, agent_id = check_workspace(workspace, "workspace_id"), check_id(agent_id, "agent_id")
        (is_kept,) = await ask(lambda: self._presence.renew(workspace, [agent_id]))
        if not is_kept:
            raise AgentMissing(agent_id)

    async def guard(
        self,
        agent_id: str,
        action: "Action",
        *,
        task_id: str | None = None,
        workspace_id: str | None = None,
        home: str | None = None,
        resolve: "Resolve | None" = None,
    ) -> "Allowed | Violation":
        """What the agent's shield says to `action`; a violation is published, too, as `shield.violation` of `task_id`.

        `home` and `resolve` say how the agent's machine reads the shield's paths (see `broker.shield.Policy`); give the
        same function each time. A change of the shield counts within a second. Raises `AgentMissing`; after
        `Unavailable` it may not be done. `workspace_id` is the broker's own unless it is told; `Invalid` without any.
        """
        return await self._guard.check(agent_id, action, workspace_id, task_id=task_id, home=home, resolve=resolve)

    # -- with Redis ---------------------------------------------------------------------------------------------------

    async def _find(self, workspaces: frozenset[str], agent_id: str, *, deleted_too: bool = False) -> Record:
        """The agent, in one round trip. Raises `AgentMissing`."""
        try:
            check_id(agent_id, "agent_id")
        except Invalid:
            raise AgentMissing("no agent has such an id") from None
        for record in await self._read([(workspace, agent_id) for workspace in sorted(workspaces)]):
            if record.is_created or (deleted_too and record.is_deleted):
                return record
        raise AgentMissing(agent_id)

    async def _match(
        self, workspaces: frozenset[str], status: Status | None, anchor: Anchor | None, offset: int, count: int
    ) -> tuple[Sequence[tuple[Anchor, str]], int]:
        """Up to `count` agents with their workspaces, newest first, and how many match in all.

        They are those behind `anchor`, but the first `offset` of them.
        """
        keys, names = self._keys, sorted(workspaces)
        asked = {None: keys.agents, "online": keys.online, "offline": keys.offline, "error": keys.errors}[status]
        # Of several workspaces each may have all that is asked for. One more: the anchor itself may be there.
        skipped = offset if len(names) == 1 else 0
        stretch = (skipped, offset - skipped + count + 1, "+inf" if anchor is None else anchor.place)
        calls = [([keys.presence(name), keys.online(name), keys.offline(name), asked(name)], stretch) for name in names]
        answers = await ask(lambda: self._list.run_many(calls))
        found = [
            (Anchor(int(place), agent.decode()), name)
            for name, answer in zip(names, answers, strict=True)
            for agent, place in zip(answer[1::2], answer[2::2], strict=True)
        ]
        behind = sorted((each for each in found if anchor is None or each[0] < anchor), reverse=True)
        return behind[offset - skipped :][:count], sum(int(answer[0]) for answer in answers)

    async def _read(self, agents: Sequence[tuple[str, str]], fields: Sequence[str] = FIELDS) -> Sequence[Record]:
        """The records of agents by workspace and id, whether they are there or not; of each these fields.

        One call for each workspace: what a command costs the client is more than what Redis takes to read an agent.
        """
        of: dict[str, list[str]] = {}
        for workspace, agent_id in agents:
            of.setdefault(workspace, []).append(agent_id)
        keys = self._keys
        calls: list[tuple[list[str], list[str | int]]] = [
            ([keys.presence(workspace)], [keys.agent(workspace, ""), len(fields), *fields, *ids])
            for workspace, ids in of.items()
        ]
        answers = await ask(lambda: self._reader.run_many(calls))
        found = {
            (workspace, agent_id): read(workspace, agent_id, dict(zip(fields, values, strict=True)), bool(is_present))
            for (workspace, ids), answer in zip(of.items(), answers, strict=True)
            for agent_id, (is_present, values) in zip(ids, answer, strict=True)
        }
        return [found[agent] for agent in agents]

    async def _change(
        self, workspaces: frozenset[str], agent_id: str, change: Callable[[Record], Fields], by: str | None
    ) -> Record:
        """Set what `change` makes of the agent, once nothing else came between; answers the agent after it."""
        async with self._turn(agent_id):
            return await self._merge(workspaces, agent_id, change, by)

    @asynccontextmanager
    async def _turn(self, agent_id: str) -> AsyncIterator[None]:
        """The changes of one agent that this process is asked for go one by one: n at once would be merged n² times.

        Raises `Unavailable` when the turn does not come in 3 s.
        """
        lock = self._turns.setdefault(agent_id, asyncio.Lock())
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await lock.acquire()
        except TimeoutError:
            raise Unavailable("too many changes of one agent at once") from None
        try:
            yield
        finally:
            lock.release()

    async def _merge(
        self, workspaces: frozenset[str], agent_id: str, change: Callable[[Record], Fields], by: str | None
    ) -> Record:
        while True:
            record = await self._find(workspaces, agent_id)
            fields = change(record)
            if not fields:
                return record
            changed = record._replace(
                fields={**record.fields, **{name: _bytes(value) for name, value in fields.items()}}
            )
            said = {"name": changed.name, "changed": sorted(fields)} | ({} if by is None else {"updated_by": by})
            outcome = await self._do("update", record.workspace, agent_id, said, version=record.version, fields=fields)
            if outcome == "missing":
                raise AgentMissing(agent_id)
            if outcome == "done":
                return changed
            await pause(uniform(_SHORTEST, _LONGEST))  # noqa: S311 (so that those who met do not meet again)

    async def _do(
        self,
        action: str,
        workspace: str,
        agent_id: str,
        said: Mapping[str, object],
        *,
        version: str = "",
        fields: Fields | None = None,
    ) -> str:
        """One call of register.lua, which tells everybody `said`; answers its outcome."""
        keys = self._keys
        event = _told(f"agent_{action}d", workspace, agent_id, said)
        names = [keys.agent(workspace, agent_id), keys.agents(workspace), keys.errors(workspace)]
        names += [keys.deleted(workspace), keys.log(workspace), keys.workspace(workspace)]
        names += [keys.presence(workspace), keys.farewells(workspace), keys.online(workspace), keys.offline(workspace)]
        arguments: Any = [action, agent_id, secrets.token_hex(8), version, *self._bounds]
        arguments += [keys.channel(workspace), keys.channel(workspace, agent_id), event]
        if action == "delete":
            arguments.append(_told("agent.offline", workspace, agent_id, {"reason": "Agent deleted"}))
        arguments += [part for field in (fields or {}).items() for part in field]
        outcome = await ask(lambda: self._register.run(names, arguments))
        return str(outcome.decode())


def _told(kind: str, workspace: str, agent_id: str, said: Mapping[str, object]) -> bytes:
    """An event as register.lua wants it."""
    packed = pack(Event(type=kind, workspace_id=workspace, agent_id=agent_id, data=dict(said)))
    return packed.stamp + packed.rest


def _checked_name(name: object) -> str:
    """Raises `Invalid` with `$.name`."""
    if not isinstance(name, str) or not 1 <= len(name) <= 255:
        raise Invalid("$.name", "expected 1 to 255 characters")
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise Invalid("$.name", "text that is not Unicode") from error
    return name


def _check_stretch(status: object, limit: int, offset: int, before: str | None) -> None:
    if status not in (None, "online", "offline", "error"):
        raise Invalid("$.status", "expected online, offline or error")
    if not 1 <= limit <= MAX_LIMIT:
        raise Invalid("$.limit", f"expected 1 to {MAX_LIMIT}")
    if not 0 <= offset <= MAX_OFFSET:
        raise Invalid("$.offset", f"expected 0 to {MAX_OFFSET}")
    if before is not None and offset:
        raise Invalid("$.before", "expected no offset besides")


def _patched(record: Record, patch: Patch) -> Fields:
    """What is to be set for `patch`. Raises `Invalid`."""
    fields: dict[str, str | bytes] = {}
    if patch.name is not UNSET:
        fields["name"] = _checked_name(patch.name)
    if patch.mode is not UNSET:
        fields["mode"] = check_id(patch.mode, "$.mode")
    if patch.soul is not UNSET:
        fields |= _with_soul(record, patch.soul)
    if patch.shield is not UNSET:
        fields |= _with_shield(record, patch.shield)
    return fields


def _with_soul(record: Record, soul: dict[str, Any]) -> Fields:
    return {"soul": write_soul(changed_soul(record.soul, soul))}


def _with_shield(record: Record, shield: dict[str, Any]) -> Fields:
    return {"shield": msgspec.json.encode(changed_shield(record.shield, shield))}


def _bytes(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode()
