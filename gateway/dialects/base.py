"""What a dialect is. Pure: text in, messages out; events and notices in, text out."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from broker.events import Carried

from .. import frames
from ..limits import Limits
from ..messages import Knock, Notice, Request
from ..subscriptions import Subscriptions

# The words of one event, or None where the dialect has none for it.
Encode = Callable[[Carried], bytes | None]


class Variant(msgspec.Struct, frozen=True, eq=False):
    """One form of a dialect's events. Connections of one variant share their frames. Equal only to itself."""

    dialect: str
    name: str
    encode: Encode
    frame: Callable[[bytes], bytes] = frames.text


class Dialect(NamedTuple):
    """`decode` raises `Refused` for what is not one of its messages; `say` answers None where it has no words.

    `limits` are by profile. A client that brings no token may give it as its first message where that is `token_later`.
    Where clients bring an API key, `knock` reads it from the query and the subprotocols that are offered, and raises
    `Refused`. `refuse` makes the body (JSON) of a refused handshake from a code and a text; None: the text alone.
    Where `agents_speak`, an agent's own token makes a connection the agent's: it says events, and is given commands.
    `deflated` is the variant of who has switched compression on; None: the dialect has no word to switch it.
    """

    name: str
    path: str
    limits: Mapping[str, Limits]
    variants: Mapping[str, Variant]
    choose: Callable[[Mapping[str, str]], str]  # the query → the name of a variant; raises Refused
    decode: Callable[[str], Request]
    say: Callable[[Notice, float], bytes | None]  # and the time, Unix seconds
    subscriptions: Callable[[Limits], Subscriptions]
    token_later: bool = False
    agents_speak: bool = False
    knock: Callable[[Mapping[str, str], Sequence[str]], Knock] | None = None
    refuse: Callable[[str, str], bytes] | None = None
    deflated: Variant | None = None
