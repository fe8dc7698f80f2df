"""Settings: one frozen object, read and checked once, before anything opens.

A field is its type, bounds, default and a sentence with the unit; flags, `TRUNKLINE_*` variables, `--help` and the
README's table are made from them. A flag goes before a variable, a variable before the default.
"""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_type_hints

import msgspec
from msgspec import Meta

from broker import Invalid
from broker.address import read as read_address
from broker.keyspace import Keyspace

from .addresses import networks

VARIABLE_PREFIX = "TRUNKLINE_"
# Whose token `tail --url` shows. No flag has it: what a command was told stands in the list of processes.
TOKEN_VARIABLE = VARIABLE_PREFIX + "TOKEN"

Seconds = float
YEAR = 365 * 24 * 3600


def _m(description: str, **bounds: Any) -> Meta:
    return Meta(description=description, **bounds)


def _limit(description: str) -> Meta:
    return _m(f"{description}; 0: what the protocol and the profile say, -1: no limit", ge=-1)


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything a node can be told."""

    profile: Annotated[
        Literal["production", "development"], _m("limits and log format for a fleet or for one's own machine")
    ] = "production"
    host: Annotated[str, _m("address to listen on")] = "127.0.0.1"
    port: Annotated[int, _m("port to listen on", ge=0, le=65535)] = 8080
    redis_url: Annotated[
        str,
        _m(
            "URL of the Redis that all nodes share: redis://host, redis+sentinel://host,host/service, "
            "redis+cluster://host,host, rediss… with TLS, or unix://path"
        ),
    ] = "redis://127.0.0.1:6379/0"
    prefix: Annotated[str, _m("begins every key and channel in Redis")] = "trunkline"

    jwt_secret: Annotated[
        tuple[str, ...], _m("HS256 secrets: the first signs, all verify; two while one replaces the other")
    ] = ()
    jwt_public_key: Annotated[
        tuple[str, ...], _m("PEM files of RSA, EC or Ed25519 public keys, each for its own algorithm")
    ] = ()
    jwt_jwks_url: Annotated[
        str, _m("URL of a JSON Web Key Set; fetched again for an unknown `kid`, at most once a minute")
    ] = ""
    jwt_issuer: Annotated[str, _m("`iss` that tokens must carry; empty: any")] = ""
    jwt_audience: Annotated[str, _m("`aud` that tokens must carry; empty: any")] = ""
    claim_workspaces: Annotated[str, _m("claim with the list of workspaces")] = "workspaces"
    claim_scope: Annotated[str, _m("claim with the scopes, separated by spaces")] = "scope"
    claim_agent_id: Annotated[str, _m("claim with the agent's id, in an agent's own token")] = "agent_id"
    agent_token_seconds: Annotated[
        int, _m("seconds for which the token is valid that an agent gets for its pairing key", gt=0, le=10 * YEAR)
    ] = YEAR
    allowed_origins: Annotated[tuple[str, ...], _m("browser origins that may connect; empty: all")] = ()

    trusted_proxies: Annotated[
        tuple[str, ...],
        _m("addresses or networks of the balancers whose X-Forwarded-For is believed; empty: nobody's"),
    ] = ()

    log_level: Annotated[Literal["debug", "info", "warning", "error"], _m("least severity to log")] = "info"
    log_format: Annotated[
        Literal["auto", "json", "text"],
        _m("JSON lines or readable text; auto: json in production, but text on a terminal"),
    ] = "auto"

    log_events: Annotated[int, _m("durable events kept per workspace", ge=1)] = 10_000
    log_seconds: Annotated[int, _m("seconds that durable events are kept", ge=1)] = 3600

    auth_seconds: Annotated[Seconds, _m("seconds in which a client must have authenticated", gt=0, le=YEAR)] = 10.0
    heartbeat_seconds: Annotated[
        Seconds,
        _m("seconds between two pings to a client; the third unanswered one ends the connection", gt=0, le=YEAR),
    ] = 30.0
    idle_seconds: Annotated[
        Seconds, _m("seconds without an event or a message after which a MaxiCore connection is closed", gt=0, le=YEAR)
    ] = 1800.0

    max_handshakes_per_second: Annotated[
        int, _m("WebSockets that one node lets in per second, others are told to come again; 0: no limit", ge=0)
    ] = 4000
    max_connections_per_user: Annotated[int, _limit("connections of one user at a time, over all nodes")] = 0
    max_connections_per_address: Annotated[int, _limit("connections of one client address, over all nodes")] = 0
    max_connections_per_endpoint: Annotated[int, _limit("connections of one workflow endpoint, over all nodes")] = 0
    max_connects_per_minute: Annotated[int, _limit("connections admitted per minute and user, over all nodes")] = 0
    max_messages_per_minute: Annotated[int, _limit("messages per minute and connection")] = 0
    max_messages_per_second: Annotated[int, _limit("messages per second and AGNT5 connection")] = 0
    max_requests_per_minute: Annotated[
        int, _limit("REST requests per minute and token, a tenth of it per address without one, over all nodes")
    ] = 0
    max_user_messages_per_minute: Annotated[int, _limit("messages per minute and user, over all nodes")] = 0
    max_event_types: Annotated[int, _limit("event types that one connection may subscribe to")] = 0
    max_subscriptions: Annotated[int, _limit("subscriptions of one connection")] = 0
    max_message_bytes: Annotated[int, _m("largest message a client may send; 0: what its protocol says", ge=0)] = 0
    max_backlog_bytes: Annotated[
        int, _m("bytes that may wait for a slow client before it is closed with 1013", ge=1024)
    ] = 1024 * 1024
    slow_close_seconds: Annotated[
        Seconds, _m("seconds a closed client has to read what is left before it is cut off", gt=0, le=YEAR)
    ] = 5.0

    command_seconds: Annotated[Seconds, _m("seconds in which an agent must have settled a command", gt=0, le=3600)] = (
        10.0
    )

    run_seconds: Annotated[
        Seconds, _m("seconds in which a run must have ended, waiting and retries included", gt=0, le=24 * 3600)
    ] = 3600.0
    run_attempts: Annotated[int, _m("attempts at a run whose workers die or want it tried again", ge=1)] = 3
    max_queued_runs: Annotated[int, _m("runs of one endpoint that may wait for a worker", ge=1)] = 10_000

    alert_cpu_percent: Annotated[float, _m("CPU of the fleet above which an alert is raised; 0: never", ge=0)] = 80.0
    alert_memory_percent: Annotated[
        float, _m("memory of the fleet's machines above which an alert is raised; 0: never", ge=0)
    ] = 80.0
    alert_queue_length: Annotated[int, _m("waiting work above which an alert is raised; 0: never", ge=0)] = 100
    alert_response_seconds: Annotated[
        Seconds, _m("average response time in seconds above which an alert is raised; 0: never", ge=0)
    ] = 60.0
    alert_failure_percent: Annotated[
        float, _m("failed inferences of the last minute above which an alert is raised; 0: never", ge=0, le=100)
    ] = 50.0

    drain_wait_seconds: Annotated[
        Seconds, _m("seconds between not ready and the first close, for balancers to notice", ge=0, le=YEAR)
    ] = 3.0
    drain_seconds: Annotated[Seconds, _m("seconds over which a leaving node spreads its closes", ge=0, le=YEAR)] = 10.0

    def check(self) -> None:
        """What bounds of single fields cannot say. Raises `Invalid` with the field's name."""
        read_address(self.redis_url)
        Keyspace(self.prefix)
        for path in self.jwt_public_key:
            if not Path(path).is_file():
                raise Invalid("jwt_public_key", f"no file {path}")
        try:
            networks(self.trusted_proxies)
        except ValueError as error:
            raise Invalid("trusted_proxies", f"expected addresses or networks, as 10.0.0.0/8: {error}") from None
        if self.jwt_jwks_url and not self.jwt_jwks_url.startswith(("https://", "http://")):
            raise Invalid("jwt_jwks_url", "expected an http:// or https:// URL")

    def check_auth(self) -> None:
        """Raises `Invalid` when no token could be verified."""
        if not (self.jwt_secret or self.jwt_public_key or self.jwt_jwks_url):
            raise Invalid(
                "jwt_secret",
                "set TRUNKLINE_JWT_SECRET (or jwt_public_key, or jwt_jwks_url), as tokens must be verified",
            )


class Field(NamedTuple):
    """One setting, for whoever lists them."""

    name: str
    default: Any
    description: str
    choices: tuple[str, ...]

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        return VARIABLE_PREFIX + self.name.upper()


def fields() -> Iterator[Field]:
    """All settings, in their order."""
    hints = get_type_hints(Settings, include_extras=True)
    for info in msgspec.structs.fields(Settings):
        hint, meta = hints[info.name].__origin__, hints[info.name].__metadata__[0]
        choices = getattr(hint, "__args__", ()) if getattr(hint, "__origin__", None) is Literal else ()
        yield Field(info.name, info.default, meta.description, choices)


def load(environment: Mapping[str, str], flags: Mapping[str, Any]) -> Settings:
    """The settings that flags (those not None) and environment say. Raises `Invalid` with the name as it was given."""
    given: dict[str, Any] = {}
    names: dict[str, str] = {}
    for field in fields():
        value = flags.get(field.name)
        names[field.name] = field.flag if value is not None else field.variable
        if value is None:
            value = environment.get(field.variable)
        if value is not None:
            given[field.name] = (
                value.replace(",", " ").split() if field.default == () and isinstance(value, str) else value
            )
    try:
        settings = msgspec.convert(given, Settings, strict=False)
        settings.check()
    except msgspec.ValidationError as error:
        reason, _, path = str(error).partition(" - at ")
        name = path.strip("`$.").partition("[")[0]
        if choices := next((field.choices for field in fields() if field.name == name), ()):
            reason = f"expected {' or '.join(choices)}"
        raise Invalid(names.get(name, name), reason[:1].lower() + reason[1:].replace("`", "")) from None
    except Invalid as error:
        raise Invalid(names.get(error.path, error.path), error.reason) from error
    return settings


def unknown(environment: Mapping[str, str]) -> list[str]:
    """Variables with our prefix that are no setting: typing errors, most likely."""
    known = {field.variable for field in fields()} | {TOKEN_VARIABLE}
    return sorted(name for name in environment if name.startswith(VARIABLE_PREFIX) and name not in known)


def log_format(settings: Settings) -> str:
    """`json` or `text`."""
    if settings.log_format != "auto":
        return settings.log_format
    return "text" if settings.profile == "development" or sys.stderr.isatty() else "json"
