"""The node: what all of its connections share, and what happens between them, the feed and the clock."""

import asyncio
import contextlib
import logging
import random
import re
import secrets
import time
from collections import Counter, deque
from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs

from redis.exceptions import RedisError
from websockets.exceptions import InvalidHandshake
from websockets.headers import parse_subprotocol
from websockets.http11 import Request

from broker import Invalid
from broker.broker import Broker
from broker.credentials import Credentials
from broker.events import Carried
from broker.feed import Feed
from broker.filters import Filter
from broker.limits import Leases, Place, Windows
from broker.lines import Gap, Taker
from broker.patience import pause
from broker.presence import Sweeper

from . import addresses
from .auth import Verifier
from .clock import TICK_SECONDS, Wheel
from .connection import Admission, Connection
from .dialects import ALL, Dialect
from .door import Door, Entry
from .executions import Executions
from .gate import Gate
from .groups import Take
from .hub import Hub
from .messages import Refused
from .metrics import Metrics
from .orders import Orders
from .reasons import (
    BUG,
    ENDPOINT_UNKNOWN,
    GOING_AWAY,
    KEY_ELSEWHERE,
    KEY_REFUSED,
    TOO_MANY_CONNECTIONS,
    UNAVAILABLE,
)
from .replay import Replays
from .residents import Residents
from .settings import Settings
from .vitals import Vitals
from .wire import Refusal, Wire

logger = logging.getLogger("trunkline.node")

REDIS_CHECK_SECONDS = 1.0
REJECTED_LOG_SECONDS = 1.0
# A leaving node's connections are closed so long after their places are given back: Redis has heard of it by then.
GIVE_BACK_SECONDS = 0.1
# How often a drain looks whether the client whose turn comes is still there.
DRAIN_LOOK_SECONDS = 0.1
LOOP_LAG_TICKS = int(15 / TICK_SECONDS)
_VERSION = re.compile(r"v?(\d{1,2})(?:[.+-][0-9A-Za-z.+-]{0,30})?", re.ASCII)
KNOWN_CLOSE_CODES = frozenset({1000, 1001, 1002, 1003, 1005, 1006, 1007, 1008, 1009, 1010, 1011, 1012, 1013})


class Node(Taker):
    """Takes what the feed brings, admits clients, runs the clock. Its parts are handed to it."""

    def __init__(self, settings: Settings, broker: Broker, verifier: Verifier) -> None:
        self.settings = settings
        self.broker = broker
        self.verifier = verifier
        self.metrics = Metrics()
        self.hub = Hub()
        self.feed = Feed(broker.address, broker.keys, broker.log, self, "trunkline-feed", publisher=broker.redis)
        self.replays = Replays(broker.log, self.feed, self.hub, self.metrics)
        self.limits = {dialect.name: dialect.limits[settings.profile].under(settings) for dialect in ALL}
        self.leases = Leases(broker.redis, broker.keys, on_lost=self._lost_place)
        self.windows = Windows(broker.redis, broker.keys)
        self.name = secrets.token_hex(8)
        self.orders = Orders(broker, self.name, self.metrics, settings.command_seconds)
        self.door = Door(Credentials(broker.redis, broker.keys), self.leases, self.metrics)
        self.residents = Residents(broker)
        self.sweeper = Sweeper(broker.redis, broker.keys, broker.presence, self.name)
        self.executions = Executions(broker, self.hub, self.metrics, settings)
        self.vitals = Vitals(broker, self.name, settings, tap=self.tap, queue_length=self._waiting)
        self.wheel: Wheel[Connection] = Wheel(self.now())
        self.connections: set[Connection] = set()
        self.leased: dict[str, Connection] = {}  # by lease
        self._proxies = addresses.networks(settings.trusted_proxies)
        self._gate = Gate(settings.max_handshakes_per_second, self.now())
        self.is_draining = False
        self.is_redis_up = False
        self._open: Counter[str] = Counter()
        self._lags: deque[float] = deque((0.0,), maxlen=LOOP_LAG_TICKS)
        self._dialects = {dialect.path: dialect for dialect in ALL}
        self._rejected_logged_at = float("-inf")
        self._read_gauges()

    @staticmethod
    def now() -> float:
        """Seconds of the clock that sessions and the wheel go by."""
        return time.monotonic()

    @property
    def is_ready(self) -> bool:
        """True when a newcomer would be served."""
        return self.has_redis and not self.is_draining

    @property
    def has_redis(self) -> bool:
        """True as far as we know: it answers, the feed stands, and what is published comes."""
        return self.is_redis_up and self.feed.is_connected and not self.feed.is_deaf

    @property
    def parts(self) -> tuple[Callable[[], Coroutine[Any, Any, None]], ...]:
        """What must run beside the server."""
        return (
            self.feed.run,
            self.leases.run,
            self.door.run,
            self.orders.run,
            self.vitals.run,
            self.sweeper.run,
            self.run_clock,
            self.run_checks,
        )

    # -- clients

    def dialect(self, request: Request) -> Dialect:
        """Who is spoken to at this path. Raises `Refusal`."""
        dialect = self._dialects.get(request.path.partition("?")[0])
        if dialect is None:
            raise Refusal(HTTPStatus.NOT_FOUND, f"no WebSocket here; there is {', '.join(self._dialects)}")
        return dialect

    def admit(self, dialect: Dialect, request: Request, peer: str) -> Admission:
        """Judge a handshake that came from the address `peer`. Raises `Refusal`."""
        if self.is_draining:
            raise _away("this node is leaving", 1)
        if (wait := self._gate.wait(self.now())) > 0:
            raise _away("too many clients come at once", wait)
        headers, origins = request.headers, self.settings.allowed_origins
        if origins and not set(headers.get_all("Origin")) <= set(origins):
            raise Refusal(HTTPStatus.FORBIDDEN, "this origin is not allowed")
        credentials = headers.get_all("Authorization")
        if len(credentials) > 1:
            raise Refusal(HTTPStatus.BAD_REQUEST, "more than one Authorization header")
        try:
            asked = request.path.partition("?")[2]
            query = {name: values[-1] for name, values in parse_qs(asked, keep_blank_values=True).items()}
            variant = dialect.variants[dialect.choose(query)]
            offered = [name for value in headers.get_all("Sec-WebSocket-Protocol") for name in parse_subprotocol(value)]
            knock = dialect.knock(query, offered) if dialect.knock is not None else None
        except Refused as refused:
            raise _refusal(refused) from None
        except (ValueError, InvalidHandshake):
            raise Refusal(HTTPStatus.BAD_REQUEST, "the query or the subprotocols cannot be read") from None
        return Admission(
            dialect,
            variant,
            token=query.get("token") or next(iter(credentials), None),
            address=addresses.client_address(peer, headers.get_all("X-Forwarded-For"), self._proxies),
            fingerprint=next(iter(headers.get_all("X-Client-Fingerprint")), None),
            version=next(iter(headers.get_all("X-Client-Version")), None),
            knock=knock,
        )

    async def open(self, admission: Admission) -> Entry:
        """Let in who knocks with a key. Raises `Refusal`."""
        assert admission.knock is not None
        dialect = admission.dialect.name
        try:
            if not self.is_redis_up:
                raise Refused(UNAVAILABLE)
            entry = await self.door.open(dialect, self.limits[dialect], admission.knock)
        except Refused as refused:
            raise _refusal(refused) from None
        if self.is_draining:
            self.turn_away(entry)
            raise _away("this node is leaving", 1)
        return entry

    def turn_away(self, entry: Entry) -> None:
        """Who was let in does not come: its place is another's."""
        if entry.lease is not None:
            self.leases.release(entry.lease)

    def connect(self, wire: Wire, admission: Admission) -> Connection:
        """A client has come."""
        connection = Connection(self, wire, admission, self.now())
        self.connections.add(connection)
        self._open[admission.dialect.name] += 1
        self.metrics.opened.add(admission.dialect.name)
        if admission.version is not None:
            self._note_version(admission.dialect, admission.version)
        logger.debug("a %s client came, %d are here", admission.dialect.name, len(self.connections))
        return connection

    def disconnected(self, connection: Connection, code: int) -> None:
        """A client has gone."""
        self.connections.discard(connection)
        self._open[connection.dialect.name] -= 1
        known = str(code) if code in KNOWN_CLOSE_CODES else "other"
        self.metrics.closed.add(connection.dialect.name, known)
        logger.debug("a %s client left with %s, %d are here", connection.dialect.name, known, len(self.connections))

    def max_message_bytes(self, dialect: Dialect) -> int:
        return self.limits[dialect.name].max_message_bytes

    def _note_version(self, dialect: Dialect, version: str) -> None:
        """What a client says of itself is anything: only what looks like a version is repeated."""
        found = _VERSION.fullmatch(version)
        self.metrics.client_versions.add(dialect.name, found[1] if found else "other")
        if found:
            logger.info("a %s client of version %s came", dialect.name, version)

    def _lost_place(self, lease: str, place: Place) -> None:
        """A lease had ended before it could be renewed, and its place is taken."""
        connection = self.leased.get(lease)
        if connection is not None:
            connection.lose_place()

    # -- figures

    async def _waiting(self, workspace: str) -> int:
        """Commands and runs that wait for an agent or a worker."""
        return sum(await asyncio.gather(self.orders.waiting(workspace), self.executions.waiting(workspace)))

    def tap(self, workspace: str, take: Take) -> Callable[[], None]:
        """Hand every event of `workspace` to `take` until the function that this answers is called."""
        wants = ((workspace, None),)
        self.feed.want(wants)
        variant = next(iter(ALL[0].variants.values()))
        end = self.hub.tap(variant, frozenset((Filter(workspaces=frozenset((workspace,))),)), take)

        def leave() -> None:
            end()
            self.feed.unwant(wants)

        return leave

    # -- what the feed brings

    def on_events(self, events: list[Carried]) -> None:
        metrics = self.metrics
        metrics.received.add(amount=len(events))
        metrics.batch.observe(len(events))
        self.hub.dispatch(events, self.now())
        if (first := events[0].id) is not None:
            metrics.lag.observe(max(0.0, time.time() - int(first.partition("-")[0]) / 1000))

    def on_gap(self, gap: Gap) -> None:
        self.metrics.gaps.add("said")
        logger.error("events of a workspace are lost for good%s", ": Redis lost its history" if gap.is_reset else "")
        self.hub.lose(gap)

    def on_rejected(self, error: Invalid) -> None:
        self.metrics.rejected.add()
        if self.now() - self._rejected_logged_at > REJECTED_LOG_SECONDS:
            self._rejected_logged_at = self.now()
            # The path alone: the rest may repeat what somebody published.
            logger.warning("a message on a channel is no event: wrong at %s", error.path)

    def on_connection(self, *, is_up: bool) -> None:
        if is_up:
            logger.info("subscribed through Redis at %s", self.broker.address)
            self.leases.refresh()
        else:
            self.metrics.reconnects.add()
            self.metrics.redis_errors.add()
            self._look_again()

    def _look_again(self) -> None:
        for connection in list(self.connections):
            connection.look_again()

    def on_healed(self, events: int) -> None:
        self.metrics.gaps.add("healed")
        self.metrics.healed_events.add(amount=events)

    # -- the clock

    async def run_clock(self) -> None:
        """Turn the wheel, and notice how late the event loop is."""
        while True:
            before = self.now()
            await asyncio.sleep(TICK_SECONDS)
            now = self.now()
            self._lags.append(max(0.0, now - before - TICK_SECONDS))
            for connection in self.wheel.advance(now):
                try:
                    connection.tick(now)
                except Exception:
                    logger.exception("a bug ended a connection while its time had come")
                    with contextlib.suppress(Exception):
                        connection.close(BUG)

    async def run_checks(self) -> None:
        """Ask Redis every second whether it is there."""
        while True:
            try:
                async with asyncio.timeout(2 * REDIS_CHECK_SECONDS):
                    seconds, microseconds = await self.broker.redis.time()
            except (RedisError, OSError) as error:
                if self.is_redis_up:
                    logger.error("Redis at %s does not answer: %s", self.broker.address, error or type(error).__name__)
                    self.is_redis_up = False
                    self._look_again()
                self.metrics.redis_errors.add()
            else:
                self.is_redis_up = True
                now = seconds + microseconds / 1e6
                self.orders.tick(now)
                self.executions.tick(self.hub.watches, now)
            await pause(REDIS_CHECK_SECONDS)

    # -- leaving

    async def drain(self) -> None:
        """Not ready → wait for the balancer → a farewell to everybody, spread over the drain window."""
        self.is_draining = True
        logger.info("leaving: not ready, %d connections", len(self.connections))
        await asyncio.sleep(self.settings.drain_wait_seconds)
        leaving = list(self.connections)
        started, window = self.now(), self.settings.drain_seconds
        for number, connection in enumerate(leaving):
            # Spread with jitter: clients that come back at the same moment are a storm for who takes them over.
            at = started + window * (number + random.random()) / len(leaving)  # noqa: S311
            while not connection.is_gone and (wait := at - self.now()) > 0:  # noqa: ASYNC110
                await asyncio.sleep(min(wait, DRAIN_LOOK_SECONDS))
            # Before it is told: who comes back at once, wherever, must find its place free.
            connection.give_back(refund=True)
            asyncio.get_running_loop().call_later(GIVE_BACK_SECONDS, connection.close, GOING_AWAY)
        deadline = self.now() + self.settings.slow_close_seconds + 1
        while self.connections and self.now() < deadline:  # noqa: ASYNC110 (once in a node's life)
            await asyncio.sleep(0.02)

    def send_all_away(self) -> None:
        """A farewell to everybody at once: somebody cannot wait for the drain."""
        for connection in list(self.connections):
            connection.give_back(refund=True)
            connection.close(GOING_AWAY)

    def _read_gauges(self) -> None:
        metrics = self.metrics
        metrics.connections.read = lambda: {dialect.name: self._open[dialect.name] for dialect in ALL}
        metrics.groups.read = lambda: {"": self.hub.groups}
        metrics.channels.read = lambda: {"": self.feed.channels}
        metrics.feed_up.read = lambda: {"": float(self.feed.is_whole)}
        metrics.loop_lag.read = lambda: {"": max(self._lags)}
        metrics.draining.read = lambda: {"": float(self.is_draining)}
        metrics.leases.read = lambda: {"": self.leases.held}

    def collect_counts(self) -> None:
        """Bring what others count into the metrics; when Prometheus asks."""
        self.metrics.limit_decisions.set("redis", amount=self.windows.by_redis)
        self.metrics.limit_decisions.set("node", amount=self.windows.by_node)
        for outcome, number in self.feed.probes.items():
            self.metrics.feed_probes.set(outcome, amount=number)
        for dialect in ALL:
            deliveries = self.hub.deliveries.get(dialect.name)
            self.metrics.delivered.set(dialect.name, amount=deliveries.events if deliveries else 0)
            self.metrics.sent_bytes.set(dialect.name, amount=deliveries.bytes if deliveries else 0)


# How a handshake is answered where a client cannot have its way; everything else is a bad request.
_STATUSES = {
    KEY_REFUSED.code: HTTPStatus.UNAUTHORIZED,
    KEY_ELSEWHERE.code: HTTPStatus.FORBIDDEN,
    ENDPOINT_UNKNOWN.code: HTTPStatus.NOT_FOUND,
    TOO_MANY_CONNECTIONS.code: HTTPStatus.TOO_MANY_REQUESTS,
    UNAVAILABLE.code: HTTPStatus.SERVICE_UNAVAILABLE,
}


def _refusal(refused: Refused) -> Refusal:
    code, status = refused.reason.code, _STATUSES.get(refused.reason.code, HTTPStatus.BAD_REQUEST)
    # What has no time of its own is worth a try soon.
    soon = 1 if status is HTTPStatus.SERVICE_UNAVAILABLE else None
    return Refusal(status, refused.detail, code=code, retry_after=refused.reason.retry_after or soon)


def _away(why: str, seconds: int) -> Refusal:
    """Another node may have room now, and this one in so many seconds."""
    return Refusal(HTTPStatus.SERVICE_UNAVAILABLE, why, code=UNAVAILABLE.code, retry_after=seconds)
