"""A request's body: read up to its bounds, then understood. Errors say where and what was expected, never what was."""

import asyncio
import re
from collections.abc import Callable
from typing import TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request

from broker import Invalid

from ..dialects.reading import may_be_told
from . import yaml
from .answers import INVALID_REQUEST, PAYLOAD_TOO_LARGE, REQUEST_TIMEOUT, UNSUPPORTED_MEDIA_TYPE, Failure

JSON = "application/json"
YAML = ("application/yaml", "application/x-yaml", "text/yaml")

# A body that never ends would be held for ever.
READ_SECONDS = 30.0

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
    """The value of type `kind` in `body`. No content type is JSON's. Raises `Failure`, or `Invalid` with the path."""
    name, _, parameters = (content_type or JSON).partition(";")
    name = name.strip().lower()
    if not _is_utf8(parameters):
        raise Failure(UNSUPPORTED_MEDIA_TYPE, "Content-Type: only UTF-8 is read")
    if name == JSON or (name.startswith("application/") and name.endswith("+json")):
        return checked(lambda: msgspec.json.decode(body, type=kind))
    if name in YAML and may_be_yaml:
        # In a thread, since it takes a hundred times as long as JSON: others are not to wait for it.
        value = await asyncio.to_thread(yaml.read, _text(body))
        return checked(lambda: msgspec.convert(value, kind))
    raise Failure(UNSUPPORTED_MEDIA_TYPE, f"Content-Type: expected {' or '.join((JSON, *YAML * may_be_yaml))}")


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
