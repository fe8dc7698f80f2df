"""What travels between the two ends of a command: its JSON in the agent's stream, and its reply's in the node's.

    commands:{ws-456}:agent-123   c  {"deadline":1790000030000,"key":"9f…","node":"n1","request_id":"req-1",
                                      "name":"update_config","parameters":{"model":"large-1"},"sender":"user-1"}
    replies:{n1}                  r  {"key":"9f…","outcome":"failed","code":"CONFIG_REJECTED","message":"no such model",
                                      "result":null}

`deadline` is Redis' time in ms; `key` is the sender's own random name for the command, by which it knows the reply.
"""

from typing import Any, Literal, NamedTuple

import msgspec

from ..errors import Invalid

NAMES = ("start", "stop", "restart", "update_config", "get_status")

MAX_BYTES = 64 * 1024

Outcome = Literal["done", "failed", "timeout"]


class Sent(msgspec.Struct, kw_only=True):
    """A command as it stands in the agent's stream."""

    deadline: int
    key: str
    node: str
    request_id: str
    name: str
    parameters: dict[str, Any]
    sender: str


class Reply(NamedTuple):
    """What became of a command. `key` is what `Commander.send` answered for it.

    A failure has `code` and `message`, what was done may have a `result`; a timeout has nothing.
    """

    key: str
    outcome: Outcome
    code: str = ""
    message: str = ""
    result: dict[str, Any] | None = None


class _Reply(msgspec.Struct):
    key: str
    outcome: Literal["done", "failed"]
    code: str
    message: str
    result: dict[str, Any] | None


_sent = msgspec.json.Decoder(Sent)
_reply = msgspec.json.Decoder(_Reply)


def pack_command(*, key: str, node: str, request_id: str, name: str, parameters: dict[str, Any], sender: str) -> bytes:
    """A command's JSON without its opening brace: command.lua puts the deadline first. Raises `Invalid`."""
    if name not in NAMES:
        raise Invalid("name", f"expected one of {', '.join(NAMES)}")
    fields = {"key": key, "node": node, "request_id": request_id, "name": name, "sender": sender}
    return _json(fields | {"parameters": parameters}, "parameters")[1:]


def unpack_command(raw: bytes) -> Sent:
    """Raises `Invalid` for what is none."""
    try:
        return _sent.decode(raw)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise Invalid("$", f"no command: {type(error).__name__}") from error


def pack_reply(reply: Reply) -> bytes:
    """Raises `Invalid` when its result cannot travel."""
    if not isinstance(reply.result, dict | None):
        raise Invalid("result", f"expected dict, got {type(reply.result).__name__}")
    return _json(reply._asdict(), "result")


def unpack_reply(raw: bytes) -> Reply:
    """Raises `Invalid` for what is none."""
    try:
        words = _reply.decode(raw)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise Invalid("$", f"no reply: {type(error).__name__}") from error
    return Reply(words.key, words.outcome, words.code, words.message, words.result)


def _json(value: dict[str, Any], path: str) -> bytes:
    try:
        raw = msgspec.json.encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise Invalid(path, f"cannot be written as JSON: {error}") from error
    if len(raw) > MAX_BYTES:
        raise Invalid(path, f"{len(raw)} bytes, at most {MAX_BYTES} are carried")
    return raw
