"""What travels between the two ends of a run, and what they agree on.

    run:{ws-456}:exec_9f…  body  {"parameters":{"user_query":"…"},"metadata":{"idempotency_key":"k1"}}

A run is *queued*, then *running* while somebody holds it, then *completed*, *failed* or *cancelled* for good. Who holds
it has a random name for this attempt (`holder`) and a lease, which it renews. Whoever ends a run holds it first, also
who cancels one that is queued; the event that ends it and its state are one step of publish.lua.
"""

import secrets
from hashlib import sha256
from typing import Any, Literal, NamedTuple

import msgspec

from ..errors import Invalid
from ..positions import Position

# Redis drops a lease that was not renewed for so long. Whoever holds it stops `MARGIN_SECONDS` before.
LEASE_SECONDS = 10.0
# How long a run's keys live, beyond any deadline; 24 h after its end.
KEYS_SECONDS = 48 * 3600
MAX_SECONDS = 24 * 3600

MAX_BYTES = 128 * 1024

State = Literal["queued", "running", "completed", "failed", "cancelled"]
# Who serves the workflow of a run: a live worker; nobody now, but somebody did when it was accepted or has begun it; or
# nobody that is known.
Served = Literal["live", "before", ""]
# What becomes of an attempt that is given back: it counts, it does not, or it was none.
Fate = Literal["counted", "spared", "unbegun"]


class _Body(msgspec.Struct):
    parameters: dict[str, Any]
    metadata: dict[str, Any]


class Claimed(NamedTuple):
    """A run that is held. `tries` are the attempts that count, this one among them; `left_ms` until its deadline."""

    execution: str
    holder: str
    name: str
    connection: str
    attempt: int
    tries: int
    max_tries: int
    left_ms: int
    is_cancelled: bool
    served: Served
    parameters: dict[str, Any]
    metadata: dict[str, Any]


class Execution(NamedTuple):
    """A run as its client's connection remembers it: what was said of it comes after `since` in the workspace's log.

    `deadline` is in Unix seconds by Redis' clock.
    """

    id: str
    name: str
    state: State
    since: Position
    deadline: float


_body = msgspec.json.Decoder(_Body)


def pack_body(parameters: dict[str, Any], metadata: dict[str, Any]) -> bytes:
    """Raises `Invalid` for what cannot travel."""
    for path, value in (("parameters", parameters), ("metadata", metadata)):
        if not isinstance(value, dict):
            raise Invalid(path, f"expected dict, got {type(value).__name__}")
    try:
        raw = msgspec.json.encode(_Body(parameters, metadata))
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise Invalid("parameters", f"cannot be written as JSON: {error}") from error
    if len(raw) > MAX_BYTES:
        raise Invalid("parameters", f"{len(raw)} bytes with metadata, at most {MAX_BYTES} are carried")
    return raw


def digest(name: str, body: bytes) -> str:
    """What is asked for, by what `pack_body` made: the same however the members of objects are ordered."""
    try:
        said = msgspec.json.encode([name, msgspec.json.decode(body)], order="sorted")
    except (ValueError, RecursionError) as error:  # what we have written and cannot read, no worker could
        raise Invalid("parameters", f"cannot be read as JSON: {error}") from error
    return sha256(said).hexdigest()[:32]


def read_claim(execution: str, holder: str, answer: list[bytes]) -> Claimed | None:
    """The answer of claim.lua; None: it is not to be had. Raises `Invalid` when it is no run of ours."""
    if not answer:
        return None
    try:
        words: list[Any] = [word.decode() for word in answer[:8]]
        name, connection, attempt, tries, max_tries, left, cancelled, served = words
        body = _body.decode(answer[8])
        numbers = (int(attempt), int(tries), int(max_tries), int(left))
    except (msgspec.MsgspecError, ValueError, RecursionError, TypeError, AttributeError) as error:
        raise Invalid("$", f"no run: {type(error).__name__}") from error
    return Claimed(
        execution, holder, name, connection, *numbers, bool(cancelled), served, body.parameters, body.metadata
    )


def execution_id(endpoint: str, connection: str, key: object) -> str:
    """The id of a run: random, unless its client gave a `key` under which it may be started once.

    The id of the latter is made of that key, so that the run itself remembers it: again means the same run. The key is
    any JSON value but null, as it is: `1` is another than `"1"` and than `1.0`. Raises `Invalid` for other values.
    """
    if key is None or not connection:
        return f"exec_{secrets.token_hex(12)}"
    try:
        said = msgspec.json.encode([endpoint, connection, key])
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise Invalid("metadata.idempotency_key", f"cannot be written as JSON: {error}") from error
    return f"exec_{sha256(said).hexdigest()[:24]}"
