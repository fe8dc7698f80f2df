"""What is logged is readable or JSON, line by line, and no secret is in either, wherever somebody put it."""

import base64
import contextlib
import hashlib
import io
import json
import logging
import re
import string
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway import logs
from gateway.logs import JsonLines, Readable, mask

from .support import token

URL_SAFE = string.ascii_letters + string.digits + "-_"

# A token of ours, and keys of others that look like nothing.
jwts = st.builds(lambda name: token(sub=name, workspaces=[name]), st.text(URL_SAFE, min_size=1, max_size=30))
opaque = st.binary(max_size=8).map(lambda seed: base64.urlsafe_b64encode(hashlib.sha256(seed).digest()).decode()[:-1])
any_secret = jwts | opaque

# Where clients, libraries and people put what nobody else may read. `{}` is the secret.
PLACES = {
    "a query": "GET /v2/ws?token={} HTTP/1.1",
    "a query behind others": '"WebSocket /v2/ws?envelope=flat&token={}&x=1" [accepted]',
    "a query with Bearer": "ws://127.0.0.1:8080/v2/ws?token=Bearer%20{}",
    "a query with Bearer and a plus": "/v2/ws?token=Bearer+{}&envelope=flat",
    "a query with another name": "https://login.example/?access_token={}#top",
    "a query in quotes": "url='/v2/ws?token={}'",
    "a header": "< Authorization: Bearer {}",
    "a header in lower case": "authorization: bearer {}",
    "a header of another scheme": "Authorization: Basic {}",
    "a header without a scheme": "Authorization: {}",
    "a header with spaces": "authorization :   Bearer   {}",
    "headers as Python shows them": "headers=[('host', 'a'), ('authorization', 'Bearer {}'), ('x', 'y')]",
    "headers of an ASGI server": "[(b'host', b'a'), (b'authorization', b'Bearer {}')]",
    "a cookie": "Cookie: session=1; token={}; theme=dark",
    "a subprotocol": "Sec-WebSocket-Protocol: x-api-key.{}, agnt5",
    "a first message": '{{"type":"auth","token":"Bearer {}"}}',
    "a first message with spaces": '{{"type": "auth", "token" : "{}"}}',
    "a first message that breaks off": '{{"type":"auth","token":"{}',
    "a password": '{{"user":"a","password":"{}"}}',
    "a secret": '{{"secret": "{}", "x": 1}}',
    "a Redis URL": "cannot use Redis at redis://user:{}@redis.example:6379/0",
    "a Redis URL without a user": "rediss://:{}@redis.example:6380",
    "a Redis URL of another kind": "redis+sentinel://:{}@a:26379,b:26379/main/0",
    "a word of a sentence": "this is refused: Bearer {}, since it has expired",
}

JWT_PLACES = {
    "a message": "unexpected {} in the stream",
    "a representation": "Frame(data='{}')",
    "a list": "['agnt5', '{}']",
    "a path": "/v2/ws/{}/x",
    "an assignment": "token={}",
    "a representation of a message": "{{'type': 'auth', 'token': '{}'}}",
}


def survives(secret: str, text: str) -> bool:
    """True when `text` gives the secret away: half of what makes it one is enough."""
    telling = secret.rpartition(".")[2]
    return telling[: len(telling) // 2] in text or secret in text


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
@given(secret=any_secret)
@settings(deadline=None, max_examples=30)
def test_no_secret_survives_where_secrets_are_put(place: str, secret: str) -> None:
    assert not survives(secret, mask(place.format(secret)))


@pytest.mark.parametrize("place", JWT_PLACES.values(), ids=JWT_PLACES)
@given(secret=jwts)
@settings(deadline=None, max_examples=30)
def test_a_token_of_ours_survives_nowhere(place: str, secret: str) -> None:
    assert not survives(secret, mask(place.format(secret)))


@given(st.text(max_size=40), st.sampled_from(list(PLACES.values())), any_secret, st.text(max_size=40))
@settings(deadline=None, max_examples=300)
def test_no_secret_survives_whatever_stands_around_it(before: str, place: str, secret: str, after: str) -> None:
    # What is written right behind it is taken to be of it, what is written right before a word makes it another one.
    assert not survives(secret, mask(f"{before} {place.format(secret)} {after}"))


@given(st.lists(st.tuples(st.sampled_from(list(PLACES.values())), any_secret), min_size=2, max_size=5))
@example([(PLACES["a first message that breaks off"], token()), (PLACES["a secret"], "k-" + 20 * "x")])
@settings(deadline=None)
def test_none_of_several_secrets_survives(placed: list[tuple[str, str]]) -> None:
    line = mask("\n".join(place.format(secret) for place, secret in placed))
    assert not any(survives(secret, line) for _, secret in placed)


@given(any_secret)
@settings(deadline=None)
def test_no_secret_survives_in_a_url_with_every_character_escaped(secret: str) -> None:
    escaped = "".join(f"%{byte:02X}" for byte in secret.encode())
    assert escaped not in mask(f"GET /v2/ws?token={escaped} HTTP/1.1")
    assert escaped not in mask(f"GET /v2/ws?token=Bearer%20{escaped} HTTP/1.1")
    assert quote(secret) not in mask(f"/v2/ws?token={quote(secret)}")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "serving on 127.0.0.1:8080 with Redis at 127.0.0.1:6379",
        "GET /v2/ws?envelope=flat HTTP/1.1",
        "the tokens of a workspace: none",
        'a "token" is missing',
        "http://127.0.0.1:8080/ready",
        "https://user@example.com/x",
        "redis://redis.example:6379/0",
        "at 2026-03-27T10:30:45Z",
        "eye of the storm",
    ],
)
def test_what_is_no_secret_stays_as_it_is(text: str) -> None:
    assert mask(text) == text


def test_what_is_masked_can_be_seen_to_be() -> None:
    assert mask("/v2/ws?token=abc&envelope=flat") == "/v2/ws?token=***&envelope=flat"
    assert mask("redis://user:abc@redis.example") == "redis://user:***@redis.example"
    assert mask('{"token":"abc","x":1}') == '{"token":***,"x":1}'


@given(st.text(max_size=200))
@settings(deadline=None)
def test_masking_twice_masks_no_more(text: str) -> None:
    assert mask(mask(text)) == mask(text)


@pytest.mark.parametrize(
    "text", ["Bearer " * 20_000, "eyJaaaa." * 20_000, '"token":"' * 20_000, "a://b:" * 20_000, "?token=&" * 20_000]
)
def test_a_long_line_takes_no_long_time(text: str) -> None:
    """Whoever can have something logged must not keep the node busy: a search that goes back and forth would."""
    mask(text)


# -- lines


def record(message: str, *arguments: Any, error: BaseException | None = None) -> logging.LogRecord:
    info = (type(error), error, error.__traceback__) if error is not None else None
    return logging.LogRecord("trunkline.test", logging.WARNING, __file__, 1, message, arguments, info)


def failed(with_words: str) -> BaseException:
    """An error with a traceback and a cause."""
    try:
        try:
            raise KeyError(with_words)
        except KeyError as cause:
            raise ValueError(f"cannot read {with_words}") from cause
    except ValueError as error:
        return error


any_text = st.text(max_size=100) | st.text(st.sampled_from('\n\r\t\x00\x1b"\\{}%\u2028\x85ü世'), max_size=20)


@given(any_text, any_text)
@settings(deadline=None, max_examples=200)
def test_a_json_line_is_one_line_of_json(message: str, argument: str) -> None:
    line = JsonLines().format(record("%s: %r", message, argument, error=failed(argument)))
    assert "\n" not in line
    assert "\r" not in line
    fields = json.loads(line)
    assert set(fields) == {"time", "level", "logger", "message", "error"}
    assert (fields["level"], fields["logger"]) == ("warning", "trunkline.test")
    assert fields["message"] == mask(f"{message}: {argument!r}")


def test_a_json_line_tells_when_in_utc_with_milliseconds() -> None:
    made = record("hello")
    made.created = 1_790_000_000.123456
    fields = json.loads(JsonLines().format(made))
    assert fields["time"] == "2026-09-21T14:13:20.123Z"
    assert "error" not in fields


@pytest.mark.parametrize("formatter", [JsonLines(), Readable()], ids=["json", "text"])
def test_text_that_is_not_unicode_is_logged_too(formatter: logging.Formatter) -> None:
    """A file's name, for example: Python carries bytes that are no UTF-8 as surrogates."""
    line = formatter.format(record("no file %s", b"key-\xff.pem".decode(errors="surrogateescape")))
    assert "no file key-" in line
    line.encode(errors="backslashreplace")


@pytest.mark.parametrize("formatter", [JsonLines(), Readable()], ids=["json", "text"])
@given(secret=any_secret, place=st.sampled_from(list(PLACES.values())))
@settings(deadline=None, max_examples=100)
def test_no_secret_survives_in_a_message_an_argument_or_a_traceback(
    formatter: logging.Formatter, secret: str, place: str
) -> None:
    placed = place.format(secret)
    for made in (
        record(placed.replace("%", "%%") + "%s", ""),
        record("%s", placed),
        record("it failed", error=failed(placed)),
        record("%s", placed, error=failed(placed)),
    ):
        assert not survives(secret, formatter.format(made))


@pytest.mark.parametrize("formatter", [JsonLines(), Readable()], ids=["json", "text"])
def test_a_traceback_is_told_with_its_cause(formatter: logging.Formatter) -> None:
    line = formatter.format(record("it failed", error=failed("this")))
    for part in ("it failed", "Traceback (most recent call last)", "KeyError", "ValueError: cannot read this"):
        assert part in line


def test_a_readable_line_begins_with_time_level_and_logger() -> None:
    assert re.fullmatch(
        r"\d\d:\d\d:\d\d\.\d{3} warning trunkline\.test: hello 5", Readable().format(record("hello %d", 5))
    )


# -- a process


@pytest.fixture
def process() -> Iterator[Callable[[str, str], io.StringIO]]:
    """Configure this process' logging; what it writes then is in the answer. All is as before after the test."""
    names = ["uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi", "websockets", "websockets.server"]
    root, others = logging.getLogger(), [logging.getLogger(name) for name in names]
    before = [(logger, logger.level, logger.handlers[:], logger.propagate) for logger in (root, *others)]
    hook = sys.excepthook
    with contextlib.ExitStack() as stack:

        def configure(level: str, layout: str) -> io.StringIO:
            out = io.StringIO()
            stack.enter_context(contextlib.redirect_stderr(out))
            logs.configure(level, layout)
            return out

        yield configure
    logging.captureWarnings(capture=False)
    sys.excepthook = hook
    for logger, level, handlers, propagate in before:
        logger.setLevel(level)
        logger.handlers[:] = handlers
        logger.propagate = propagate


@pytest.mark.parametrize("layout", ["json", "text"])
def test_every_logger_of_the_process_writes_through_the_mask(
    process: Callable[[str, str], io.StringIO], layout: str
) -> None:
    out = process("debug", layout)
    secret = token()
    for name in ("trunkline", "uvicorn.error", "uvicorn.access", "websockets.server", "asyncio", "anybody"):
        logger = logging.getLogger(name)
        logger.error("%s?token=%s", name, secret)
        logger.error("it failed", exc_info=failed(f"Bearer {secret}"))
    written = out.getvalue()
    assert not survives(secret, written)
    for name in ("trunkline", "uvicorn.error", "uvicorn.access", "websockets.server", "asyncio", "anybody"):
        assert f"{name}?token=***" in written
    if layout == "json":
        assert all(json.loads(line)["level"] == "error" for line in written.splitlines())


def test_the_libraries_tales_of_every_connection_are_not_told(process: Callable[[str, str], io.StringIO]) -> None:
    out = process("debug", "text")
    logging.getLogger("uvicorn.error").info("('127.0.0.1', 1) - \"WebSocket /v2/ws?token=abc\" [accepted]")
    logging.getLogger("websockets.server").debug("< GET /v2/ws?token=abc HTTP/1.1")
    logging.getLogger("trunkline").debug("ours")
    assert [line.rpartition(": ")[2] for line in out.getvalue().splitlines()] == ["ours"]


def test_only_what_is_severe_enough_is_written(process: Callable[[str, str], io.StringIO]) -> None:
    out = process("warning", "text")
    logging.getLogger("trunkline").info("no")
    logging.getLogger("trunkline").warning("yes")
    assert len(out.getvalue().splitlines()) == 1


def test_what_ends_the_process_is_logged_and_masked(process: Callable[[str, str], io.StringIO]) -> None:
    out = process("info", "json")
    secret = token()
    error = failed(f"Bearer {secret}")
    sys.excepthook(type(error), error, error.__traceback__)
    [line] = out.getvalue().splitlines()
    fields = json.loads(line)
    assert fields["level"] == "critical"
    assert "Traceback" in fields["error"]
    assert not survives(secret, line)
    assert survives(secret, "".join(traceback.format_exception(error))), "it was there to be masked"
