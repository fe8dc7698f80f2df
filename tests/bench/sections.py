"""From samples to sections: which part of the walk the CPU time went to, the kernel's share apart."""

import dataclasses
from collections import Counter
from typing import Any

# Rows of a part and what its functions (`file:function`) begin with. A sample belongs to the innermost function that a
# row names; rows are tried in order, so single functions stand before their files.
Parts = tuple[tuple[str, tuple[str, ...]], ...]

NODE: Parts = (
    ("write to sockets", ("gateway/groups.py:Group.deliver", "gateway/connection.py:Connection.say")),
    ("encode, frame, join", ("gateway/groups.py:frame", "gateway/frames.py:text", "gateway/frames.py:_head")),
    ("compress", ("gateway/frames.py:deflated", "gateway/deflate.py:compress")),
    ("match", ("gateway/hub.py:Index.match", "gateway/hub.py:Hub.dispatch", "gateway/node.py:Node.on_events")),
    (
        "follow positions",
        (
            "gateway/hub.py:agents_of",
            "gateway/connection.py:Connection._complete",
            "gateway/following.py:Following.complete",
        ),
    ),
    ("join and leave groups", ("gateway/hub.py:",)),
    ("read feed, parse", ("broker/resp.py",)),
    (
        "follow positions",
        (
            "broker/feed.py",
            "broker/follower.py",
            "broker/healing.py",
            "broker/lines.py",
            "broker/positions.py",
            "broker/keyspace.py",
        ),
    ),
    ("decode, check events", ("broker/events.py", "broker/catalog.py")),
    (
        "parse what clients say",
        (
            "gateway/dialects/maxicore.py:decode",
            "gateway/dialects/maxicore.py:_asked",
            "gateway/dialects/freeagentics.py:decode",
            "gateway/dialects/freeagentics.py:_asked",
            "gateway/dialects/agnt5.py:decode",
            "gateway/dialects/reading.py",
            "gateway/deflate.py:decompress",
        ),
    ),
    ("encode, frame, join", ("gateway/dialects/",)),
    (
        "handshake",
        (
            "websockets/",
            "gateway/wire.py:Wire._shake_hands",
            "gateway/node.py:Node.admit",
            "gateway/node.py:Node.connect",
        ),
    ),
    ("handshake", ("uvicorn/", "gateway/http.py", "gateway/deflate.py", "gateway/addresses.py")),
    ("parse what clients say", ("gateway/frames.py", "gateway/wire.py")),
    ("check the token", ("gateway/auth.py", "gateway/door.py", "broker/credentials.py", "jwt/")),
    (
        "find a place",
        (
            "broker/limits/leases.py",
            "gateway/places.py",
            "gateway/connection.py:Connection._enter",
            "gateway/connection.py:Connection._find_place",
        ),
    ),
    (
        "count messages",
        (
            "broker/limits/",
            "broker/script.py",
            "gateway/connection.py:Connection._take",
            "gateway/session.py:Session.arrive",
            "gateway/session.py:Session.taken",
        ),
    ),
    (
        "wait, go on",
        (
            "gateway/inbox.py:Inbox.wait",
            "gateway/inbox.py:Inbox._work",
            "gateway/inbox.py:Inbox._go_on",
        ),
    ),
    (
        "session, connection",
        (
            "gateway/session.py",
            "gateway/connection.py",
            "gateway/following.py",
            "gateway/subscriptions.py",
            "gateway/messages.py",
            "gateway/buffer.py",
            "broker/filters.py",
        ),
    ),
    ("commands", ("gateway/orders.py", "broker/commands/")),
    ("replay", ("gateway/replay.py", "broker/log.py")),
    ("runs", ("gateway/executions.py", "broker/runs/")),
    ("vitals", ("gateway/vitals/", "broker/election.py")),
    ("clock", ("gateway/clock.py",)),
    ("metrics", ("gateway/metrics.py", "prometheus_client/")),
    ("ask Redis", ("redis/", "broker/", "asyncio/streams.py", "asyncio/timeouts.py")),
    ("event loop: poll, read", ("asyncio/", "uvloop/")),
)
PRODUCER: Parts = (
    ("make events (ours)", ("tests/bench/",)),
    (
        "check, encode events",
        ("broker/events.py", "broker/catalog.py", "broker/broker.py", "broker/keyspace.py:check_"),
    ),
    ("queue, call", ("broker/",)),
    ("Redis client", ("redis/",)),
    ("event loop", ("asyncio/", "uvloop/")),
)
WORKER: Parts = (
    ("keep runs (a thread)", ("broker/runs/beats.py",)),
    ("take, claim", ("broker/runs/shift.py", "broker/runs/queue.py", "broker/runs/exchange.py")),
    ("check, encode events", ("broker/runs/outbox.py", "broker/events.py", "broker/catalog.py")),
    ("attempt, steps", ("tests/bench/", "broker/runs/")),
    ("queue, call", ("broker/",)),
    ("Redis client", ("redis/",)),
    ("event loop", ("asyncio/", "uvloop/")),
)
REQUESTS: Parts = (
    ("encode the answer", ("gateway/api/answers.py",)),
    ("id, CORS, log line", ("gateway/api/front.py", "gateway/logs.py", "logging/", "gateway/metrics.py")),
    ("check the token", ("gateway/auth.py", "jwt/", "gateway/api/desk.py:Desk._admit", "gateway/api/desk.py:_token")),
    ("count", ("broker/limits/", "gateway/api/desk.py:Desk._count")),
    ("read the query, the body", ("gateway/api/desk.py:_query", "gateway/api/bodies.py", "gateway/api/desk.py")),
    ("check, merge, tell", ("broker/agents/documents.py", "broker/shield/", "broker/events.py", "broker/catalog.py")),
    (
        "ask Redis",
        ("redis/", "broker/script.py", "broker/agents/asking.py", "asyncio/streams.py", "asyncio/timeouts.py"),
    ),
    ("registry", ("gateway/api/", "broker/agents/", "broker/keyspace.py")),
    ("framework", ("starlette/",)),
    ("server", ("uvicorn/",)),
    ("feed, hub", ("broker/resp.py", "broker/feed.py", "broker/positions.py", "gateway/hub.py", "gateway/node.py")),
    ("event loop: poll, read", ("asyncio/", "uvloop/")),
)
OTHER = "other"


@dataclasses.dataclass
class Section:
    """Sample counts of one part."""

    python: int = 0
    kernel: int = 0

    @property
    def both(self) -> int:
        return self.python + self.kernel


def part_of(stack: list[str], table: Parts) -> str:
    for function in stack:
        for part, beginnings in table:
            if function.startswith(beginnings):
                return part
    return OTHER


def sections(samples: list[Any], table: Parts) -> dict[str, Section]:
    """Sections by part, the largest first."""
    found: dict[str, Section] = {}
    for is_kernel, count, stack in samples:
        section = found.setdefault(part_of(stack, table), Section())
        if is_kernel:
            section.kernel += count
        else:
            section.python += count
    return dict(sorted(found.items(), key=lambda item: -item[1].both))


def hottest(samples: list[Any], count: int) -> list[tuple[str, int]]:
    """The functions that were innermost most often."""
    functions: Counter[str] = Counter()
    for _, times, stack in samples:
        functions[stack[0] if stack else OTHER] += times
    return functions.most_common(count)
