"""Our own logging: JSON lines or readable text on standard error, and no secret in either.

The libraries below us log requests with their query and headers; so every record, whoever wrote it, passes `mask` as
text, tracebacks included. Nothing of ours logs what a client said.
"""

import logging
import re
import sys
from datetime import UTC, datetime

import msgspec

_MASK = "***"
_SECRETS = re.compile(
    r"""
      (?P<jwt> eyJ[\w-]{4,}(?:\.[\w-]*){0,2} )                           # a JSON Web Token, or the start of one
    | (?P<query> (?<=[?&])(?:access_)?token=) [^&\s"'\#]*
    | (?P<bearer> \bBearer(?:\s|%20|\+)+) [^\s"',;]+
    | (?P<field> (?:token|access_token|password|secret)"\s*:\s*) (?:"(?:[^"\\]|\\.)*"?|\S+)
    | (?P<header> (?i:\bauthorization|\bcookie)\s*[:=]\s*) [^\r\n]+
    | (?P<key> x-api-key[.]) [^\s"',;]+
    | (?P<minted> \btlk_) [0-9a-f]+
    | (?P<url> \w+://[^\s/:@]*:) [^\s/@]+ (?=@)                             # user:password@ in a URL
    """,
    re.VERBOSE,
)


def mask(text: str) -> str:
    """`text` without tokens, keys and passwords."""
    return _SECRETS.sub(
        lambda match: next((kept for name, kept in match.groupdict().items() if kept and name != "jwt"), "") + _MASK,
        text,
    )


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, logger, message, and the traceback of an error."""

    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": mask(_said(record)),
        }
        if record.exc_info:
            fields["error"] = mask(_sound(self.formatException(record.exc_info)))
        return msgspec.json.encode(fields).decode()


class Readable(logging.Formatter):
    """For people."""

    def format(self, record: logging.LogRecord) -> str:
        line = f"{_time(record)[11:23]} {record.levelname.lower():7} {record.name}: {_said(record)}"
        if record.exc_info:
            line += "\n" + _sound(self.formatException(record.exc_info))
        return mask(line)


def _said(record: logging.LogRecord) -> str:
    return _sound(record.getMessage())


def _sound(text: str) -> str:
    """`text` as it can be written: what is no Unicode stands as an escape."""
    return text.encode(errors="backslashreplace").decode()


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")[:23] + "Z"


def configure(level: str, layout: str) -> None:
    """Send everything that is logged in this process through us, and nothing past us."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if layout == "json" else Readable())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi", "websockets", "websockets.server"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        # They tell of every connection and every bad request; what matters of that stands in our metrics.
        logger.setLevel(logging.ERROR)
    logging.captureWarnings(capture=True)
    sys.excepthook = lambda kind, error, trace: logging.getLogger("trunkline").critical(
        "ended by an error", exc_info=(kind, error, trace)
    )
