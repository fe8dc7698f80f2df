"""What a dialect is. Pure: text in, messages out; events and notices in, text out."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import msgspec

from broker.events import Carried

from ..messages import Notice, Request

# The words of one event, or None where the dialect has none for it.
Encode = Callable[[Carried], bytes | None]


class Variant(msgspec.Struct, frozen=True, eq=False):
    """One form of a dialect's events. Connections of one variant share their frames. Equal only to itself."""

    dialect: str
    name: str
    encode: Encode


class Limits(NamedTuple):
    """What the document promises, or how we read it."""

    max_message_bytes: int
    max_subscriptions: int
    max_filter_values: int = 2000  # ids in all subscriptions of a connection together
    max_errors_in_row: int = 10
    max_pings_unanswered: int = 3


class Dialect(NamedTuple):
    """`decode` raises `Refused` for what is not one of its messages; `say` answers None where it has no words."""

    name: str
    path: str
    limits: Limits
    variants: Mapping[str, Variant]
    choose: Callable[[Mapping[str, str]], str]  # the query → the name of a variant; raises Refused
    decode: Callable[[str], Request]
    say: Callable[[Notice], bytes | None]
