"""The door for who brings an API key: judged in the handshake, since a browser hears of nothing else than a connection.

A key is checked in Redis, and its connection counted there, before the handshake is answered. Each connection is then
known by its key, so that a key that is revoked takes its connections with it.
"""

from collections import defaultdict
from math import ceil, inf
from secrets import token_hex
from typing import NamedTuple, Protocol

from broker.credentials import Credentials, Outcome
from broker.errors import Unavailable
from broker.limits import Leases

from . import places
from .auth import Claims
from .limits import Limits
from .messages import Knock, Refused
from .metrics import Metrics
from .reasons import ENDPOINT_UNKNOWN, KEY_ELSEWHERE, KEY_REFUSED, TOO_MANY_CONNECTIONS, UNAVAILABLE, Reason

SCOPE = frozenset({"events:read", "runs:start"})

# Seconds until it is worth to come back.
RETRY_AFTER = 1

_REFUSED: dict[Outcome, Reason] = {
    Outcome.ENDPOINT_UNKNOWN: ENDPOINT_UNKNOWN,
    Outcome.KEY_BAD: KEY_REFUSED,
    Outcome.KEY_ELSEWHERE: KEY_ELSEWHERE,
}


class Entry(NamedTuple):
    """Who came in: by which key, as whom, and with which lease, if connections are counted."""

    claims: Claims
    lease: str | None

    @property
    def key_id(self) -> str:
        return self.claims.subject


class Guest(Protocol):
    """A connection that came in by a key."""

    def revoke(self) -> None:
        """Hear that the key opens nothing any more."""


class Door:
    """Opens to keys, and closes behind them when they are revoked. A node has `run` running."""

    def __init__(self, credentials: Credentials, leases: Leases, metrics: Metrics) -> None:
        self._credentials = credentials
        self._leases = leases
        self._metrics = metrics
        self._guests: dict[str, set[Guest]] = defaultdict(set)  # by key

    async def open(self, dialect: str, limits: Limits, knock: Knock) -> Entry:
        """Let a client in, or raise `Refused`. The lease of an entry that is not used must be released."""
        try:
            verdict = await self._credentials.check(knock.endpoint, knock.key)
        except Unavailable:
            raise Refused(UNAVAILABLE) from None
        if (reason := _REFUSED.get(verdict.outcome)) is not None:
            raise Refused(reason)
        claims = Claims(
            subject=verdict.key_id,
            user=verdict.key_id,
            workspaces=frozenset((verdict.workspace,)),
            scope=SCOPE,
            agent_id=knock.endpoint,
            expires_at=inf,
        )
        return Entry(claims, await self._find_place(dialect, limits, knock.endpoint))

    async def _find_place(self, dialect: str, limits: Limits, endpoint: str) -> str | None:
        wanted = places.of_endpoint(dialect, limits, endpoint)
        if not wanted:
            return None
        lease = token_hex(8)
        verdict = await self._leases.admit(lease, *wanted)
        if not verdict.is_admitted:
            self._metrics.refused.add(dialect, places.limit_name(verdict.full))
            raise Refused(TOO_MANY_CONNECTIONS._replace(retry_after=max(ceil(verdict.retry_after), RETRY_AFTER)))
        return lease

    # -- revocation

    def enter(self, guest: Guest, key_id: str) -> None:
        """`guest` can be found by its key from now on. The key may have been revoked while it came in."""
        self._guests[key_id].add(guest)
        if self._credentials.is_revoked(key_id):
            guest.revoke()

    def leave(self, guest: Guest, key_id: str) -> None:
        guests = self._guests[key_id]
        guests.discard(guest)
        if not guests:
            del self._guests[key_id]

    async def run(self) -> None:
        """Close the connections of each key that is revoked, until cancelled."""
        await self._credentials.run(self._revoked)

    def _revoked(self, key_id: str) -> None:
        for guest in list(self._guests.get(key_id, ())):
            guest.revoke()
