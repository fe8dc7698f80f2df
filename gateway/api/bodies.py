"""A request's body: read up to its bounds, then understood. Errors say where and what was expected, never what was."""

import asyncio
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request

from broker import Invalid

from ..dialects.reading import may_be_told
from . import yaml
from .answers import INVALID_REQUEST, PAYLOAD_TOO_LARGE, REQUEST_TIMEOUT, UNAVAILABLE, UNSUPPORTED_MEDIA_TYPE, Failure

JSON = "application/json"
# What `curl -d` says of whatever it sends. A page in a browser could say it too, of a form, but it has no token to add.
FORM = "application/x-www-form-urlencoded"
YAML = ("application/yaml", "application/x-yaml", "text/yaml")

# A body that never ends would be held for ever.
READ_SECONDS = 30.0

# YAML takes many times as long as JSON, so it is read in a thread: in one, since each more would take its turns from
# the loop, and so from everybody. Whoever has waited for it so long is told to come back.
YAML_SECONDS = 3.0
_yaml_thread = ThreadPoolExecutor(1, "yaml")

# A body of a megabyte may hold 350,000 values, and a node would stand still for 70 ms; agents have far fewer.
MAX_VALUES = 64 * 1024

_MISSING = re.compile(r"Object missing required field `(\w+)`")
_UNKNOWN = re.compile(r"Object contains unknown field `(.+)`", re.DOTALL)

T = TypeVar("T")


async def read(request: Request, limit: int) -> bytes:
    """The body, if it has at most `limit` bytes and is here within `READ_SECONDS`.

    What has more is refused as soon as that is known. Raises `Failure`, and `ClientDisconnect` when nobody waits for an
    answer any more.
    """
    if int(request.headers.get("Content-Length", 0)) > limit:
        raise _too_large(limit)
    try:
        async with asyncio.timeout(READ_SECONDS):
            body = await _read(request, limit)
    except TimeoutError:
        raise Failure(REQUEST_TIMEOUT) from None
    if not body and "Upgrade" in request.headers:
        # httptools takes what follows such a head for the other protocol's: the body was there, and is lost.
        raise Failure(INVALID_REQUEST, "Upgrade: a request with a body cannot ask for another protocol")
    return body


async def _read(request: Request, limit: int) -> bytes:
    body = bytearray()
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body += message.get("body", b"")
        if len(body) > limit:
            raise _too_large(limit)
        if not message.get("more_body", False):
            return bytes(body)


async def understand(body: bytes, content_type: str | None, kind: type[T], *, may_be_yaml: bool) -> T:
    """The value of type `kind` in `body`. No content type is JSON's, and so is the one that curl sends unasked.

    Raises `Failure`, or `Invalid` with the path.
    """
    name, _, parameters = (content_type or JSON).partition(";")
    name = name.strip().lower()
    if not _is_utf8(parameters):
        raise Failure(UNSUPPORTED_MEDIA_TYPE, "Content-Type: only UTF-8 is read")
    if name in (JSON, FORM) or (name.startswith("application/") and name.endswith("+json")):
        _check_values(body)
        return checked(lambda: msgspec.json.decode(body, type=kind))
    if name in YAML and may_be_yaml:
        value = await _read_yaml(_text(body))
        return checked(lambda: msgspec.convert(value, kind))
    raise Failure(UNSUPPORTED_MEDIA_TYPE, f"Content-Type: expected {' or '.join((JSON, *YAML * may_be_yaml))}")


def _check_values(body: bytes) -> None:
    """Raises `Invalid` for more than a node is to decode, told by the signs in front of values, in texts as well."""
    if sum(map(body.count, (b"[", b"{", b","))) > MAX_VALUES:
        raise Invalid("$", f"expected at most {MAX_VALUES} values")


async def _read_yaml(text: str) -> dict[str, Any]:
    """Raises `Invalid`, and `Failure` when its turn does not come in `YAML_SECONDS`."""
    try:
        async with asyncio.timeout(YAML_SECONDS):
            return await asyncio.get_running_loop().run_in_executor(_yaml_thread, yaml.read, text)
    except TimeoutError:
        raise Failure(UNAVAILABLE, "Too much YAML at once. JSON is read at any time") from None


def checked(make: Callable[[], T]) -> T:
    """What `make` makes with msgspec. Raises `Failure` for what is no JSON, else `Invalid` with the wrong field."""
    try:
        return make()
    except msgspec.ValidationError as error:
        raise _invalid(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise Failure(INVALID_REQUEST, "$: not JSON") from None
    except RecursionError:
        raise Invalid("$", "nested too deeply") from None


def _invalid(words: str) -> Invalid:
    """msgspec's words, with the path of the field that is missing or unknown."""
    text, _, path = words.partition(" - at ")
    path = path.strip("`") or "$"
    if missing := _MISSING.fullmatch(text):
        return Invalid(f"{path}.{missing[1]}", "required")
    if unknown := _UNKNOWN.fullmatch(text):
        return Invalid(f"{path}.{unknown[1]}" if may_be_told(unknown[1]) else path, "no such field")
    if text.startswith("Invalid enum value"):  # and then it repeats it
        return Invalid(path, "expected one of the documented values")
    return Invalid(path, text[:1].lower() + text[1:].replace("`", ""))


def _text(body: bytes) -> str:
    try:
        return body.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise Invalid("$", "not UTF-8") from None


def _is_utf8(parameters: str) -> bool:
    charset = re.search(r"charset\s*=\s*\"?([^\s\";]*)", parameters, re.IGNORECASE)
    return charset is None or charset[1].lower() in ("utf-8", "utf8", "us-ascii")


def _too_large(limit: int) -> Failure:
    return Failure(PAYLOAD_TOO_LARGE, f"The body may have at most {limit:,} bytes")
