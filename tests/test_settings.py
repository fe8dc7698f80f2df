"""Settings: a flag goes before a variable, a variable before the default, and what cannot be is refused by its name."""

import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from broker import Invalid
from gateway.settings import Field, Settings, fields, load, log_format, unknown

NAMES = [field.name for field in fields()]

# For each setting a text that sets it, and the value that it is then.
GOOD: dict[str, tuple[str, Any]] = {
    "profile": ("development", "development"),
    "host": ("0.0.0.0", "0.0.0.0"),
    "port": ("9000", 9000),
    "redis_url": ("rediss://user:word@redis.example:6380/3", "rediss://user:word@redis.example:6380/3"),
    "prefix": ("staging", "staging"),
    "jwt_secret": ("one,two", ("one", "two")),
    "jwt_public_key": (__file__, (__file__,)),
    "jwt_jwks_url": ("https://login.example/keys", "https://login.example/keys"),
    "jwt_issuer": ("https://login.example", "https://login.example"),
    "jwt_audience": ("trunkline", "trunkline"),
    "claim_workspaces": ("https://example.com/ws", "https://example.com/ws"),
    "claim_scope": ("permissions", "permissions"),
    "claim_agent_id": ("agent", "agent"),
    "agent_token_seconds": ("86400", 86400),
    "allowed_origins": ("https://a.example https://b.example", ("https://a.example", "https://b.example")),
    "trusted_proxies": ("10.0.0.0/8, ::1", ("10.0.0.0/8", "::1")),
    "log_level": ("debug", "debug"),
    "log_format": ("text", "text"),
    "log_events": ("5", 5),
    "log_seconds": ("60", 60),
    "auth_seconds": ("0.5", 0.5),
    "heartbeat_seconds": ("1", 1.0),
    "idle_seconds": ("1e3", 1000.0),
    "max_connections_per_user": ("7", 7),
    "max_connections_per_address": ("-1", -1),
    "max_connections_per_endpoint": ("70", 70),
    "max_connects_per_minute": ("7", 7),
    "max_messages_per_minute": ("-1", -1),
    "max_messages_per_second": ("10", 10),
    "max_requests_per_minute": ("-1", -1),
    "max_user_messages_per_minute": ("7", 7),
    "max_event_types": ("-1", -1),
    "max_subscriptions": ("7", 7),
    "max_message_bytes": ("1024", 1024),
    "max_handshakes_per_second": ("7", 7),
    "max_backlog_bytes": ("2048", 2048),
    "slow_close_seconds": ("1.5", 1.5),
    "command_seconds": ("30", 30.0),
    "run_seconds": ("0.5", 0.5),
    "run_attempts": ("1", 1),
    "max_queued_runs": ("5", 5),
    "alert_cpu_percent": ("95.5", 95.5),
    "alert_memory_percent": ("0", 0.0),
    "alert_queue_length": ("10", 10),
    "alert_response_seconds": ("2.5", 2.5),
    "alert_failure_percent": ("100", 100.0),
    "drain_wait_seconds": ("0", 0.0),
    "drain_seconds": ("0", 0.0),
}

NUMBERS = ["", "many", "1 2", "0x10", "nan", "-inf", "1e999"]
ENDLESS = [*NUMBERS, "inf"]  # without an end a node waits for what never comes; never to ping or to be idle is a choice

# For each setting texts that cannot be it.
BAD: dict[str, list[str]] = {
    "profile": ["", "test", "Production"],
    "port": [*ENDLESS, "-1", "65536", "80.5"],
    "redis_url": [
        "",
        "localhost:6379",
        "http://localhost",
        "redis",
        "redis://localhost:port",
        "redis://localhost:99999",
        "redis://[::1",
        "redis://localhost?socket_timeout=soon",
        "redis://localhost?no_such_option=1",
    ],
    "prefix": ["", "a b", "{a}", "a\nb"],
    "jwt_public_key": ["/no/such/file.pem", str(Path(__file__).parent), f"{__file__},/no/such/file.pem"],
    "jwt_jwks_url": ["login.example/keys", "ftp://login.example/keys", "file:///etc/hostname"],
    "trusted_proxies": ["10.0.0.0/33", "10.0.0.1/8", "proxy.example", "*"],
    "agent_token_seconds": [*ENDLESS, "0", "-1", "1.5"],
    "log_level": ["", "trace", "INFO"],
    "log_format": ["xml"],
    "log_events": [*ENDLESS, "0", "-1", "1.5"],
    "log_seconds": [*ENDLESS, "0", "-1", "1.5"],
    "auth_seconds": [*ENDLESS, "0", "-1"],
    "heartbeat_seconds": [*NUMBERS, "0", "-1"],
    "idle_seconds": [*NUMBERS, "0", "-1"],
    "max_connections_per_user": [*ENDLESS, "-2", "1.5"],
    "max_connections_per_address": [*ENDLESS, "-2", "1.5"],
    "max_connections_per_endpoint": [*ENDLESS, "-2", "1.5"],
    "max_connects_per_minute": [*ENDLESS, "-2", "1.5"],
    "max_messages_per_minute": [*ENDLESS, "-2", "1.5"],
    "max_messages_per_second": [*ENDLESS, "-2", "1.5"],
    "max_requests_per_minute": [*ENDLESS, "-2", "1.5"],
    "max_user_messages_per_minute": [*ENDLESS, "-2", "1.5"],
    "max_event_types": [*ENDLESS, "-2", "1.5"],
    "max_subscriptions": [*ENDLESS, "-2", "1.5"],
    "max_message_bytes": [*ENDLESS, "-1", "1.5"],
    "max_handshakes_per_second": [*ENDLESS, "-1"],
    "max_backlog_bytes": [*ENDLESS, "0", "1023", "-1"],
    "slow_close_seconds": [*ENDLESS, "0", "-1"],
    "command_seconds": [*ENDLESS, "0", "-1", "3601"],
    "run_seconds": [*ENDLESS, "0", "-1", "86401"],
    "run_attempts": [*ENDLESS, "0", "-1", "1.5"],
    "max_queued_runs": [*ENDLESS, "0", "-1", "1.5"],
    "alert_cpu_percent": [*NUMBERS, "-1"],
    "alert_memory_percent": [*NUMBERS, "-1"],
    "alert_queue_length": [*ENDLESS, "-1", "1.5"],
    "alert_response_seconds": [*NUMBERS, "-1"],
    "alert_failure_percent": [*ENDLESS, "-1", "101"],
    "drain_wait_seconds": [*ENDLESS, "-1"],
    "drain_seconds": [*ENDLESS, "-1"],
}


def field_of(name: str) -> Field:
    return next(field for field in fields() if field.name == name)


def test_nothing_given_is_all_defaults_and_they_are_valid() -> None:
    assert load({}, {}) == Settings()
    assert load({}, dict.fromkeys(NAMES)) == Settings()
    assert set(GOOD) == set(NAMES), "this file knows every setting"


@pytest.mark.parametrize("name", GOOD)
def test_a_variable_goes_before_the_default_and_a_flag_before_both(name: str) -> None:
    field, (text, value) = field_of(name), GOOD[name]
    assert value != field.default
    assert getattr(load({field.variable: text}, {}), name) == value
    assert getattr(load({}, {name: text}), name) == value
    assert getattr(load({field.variable: "not this one!"}, {name: text}), name) == value
    assert getattr(load({field.variable: text}, {name: None}), name) == value


@pytest.mark.parametrize("name", GOOD)
def test_one_setting_leaves_the_others_alone(name: str) -> None:
    field, (text, value) = field_of(name), GOOD[name]
    assert load({field.variable: text}, {}) == msgspec.structs.replace(Settings(), **{name: value})


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in BAD.items() for text in texts])
def test_what_a_setting_cannot_be_is_refused_by_the_name_it_was_given_under(name: str, text: str) -> None:
    field = field_of(name)
    with pytest.raises(Invalid) as by_variable:
        load({field.variable: text}, {})
    assert by_variable.value.path == field.variable
    with pytest.raises(Invalid) as by_flag:
        load({field.variable: GOOD[name][0]}, {name: text})
    assert by_flag.value.path == field.flag
    assert by_flag.value.reason == by_variable.value.reason
    assert "\n" not in str(by_flag.value)


@pytest.mark.parametrize(
    "url",
    [
        "redis://user:hunter2@localhost:port",
        "http://user:hunter2@localhost",
        "redis://user:hunter2@[::1",
        "redis://localhost?password=hunter2&db=x&socket_timeout=soon",
        "hunter2",
    ],
)
def test_a_url_that_is_refused_is_not_repeated_with_its_password(url: str) -> None:
    with pytest.raises(Invalid) as invalid:
        load({"TRUNKLINE_REDIS_URL": url}, {})
    assert "hunter2" not in str(invalid.value)


@pytest.mark.parametrize("text", ["a,b", "a b", "a, b", " a ,, b ", "a\nb", "a,b,"])
def test_a_list_is_separated_by_commas_or_spaces(text: str) -> None:
    assert load({"TRUNKLINE_JWT_SECRET": text}, {}).jwt_secret == ("a", "b")
    assert load({}, {"allowed_origins": text}).allowed_origins == ("a", "b")


def test_an_empty_list_is_one() -> None:
    assert load({"TRUNKLINE_JWT_SECRET": "", "TRUNKLINE_ALLOWED_ORIGINS": " , "}, {}) == Settings()


def test_variables_that_are_no_settings_are_found() -> None:
    environment = {
        "TRUNKLINE_JWT_SECRETS": "x",
        "TRUNKLINE_PORT": "1",
        "TRUNKLINE_": "",
        "TRUNKLINE_redis_url": "x",
        "PATH": "/bin",
        "MY_TRUNKLINE_HOST": "x",
        "trunkline_host": "x",
    }
    assert unknown(environment) == ["TRUNKLINE_", "TRUNKLINE_JWT_SECRETS", "TRUNKLINE_redis_url"]
    assert load({"TRUNKLINE_JWT_SECRETS": "x"}, {}) == Settings()
    assert unknown({field.variable: "" for field in fields()}) == []


def test_flags_that_are_no_settings_are_somebody_elses() -> None:
    assert load({}, {"workspace": "ws-1", "run": print, "command": "tail"}) == Settings()


def test_every_setting_says_what_it_is() -> None:
    for field in fields():
        assert field.description
        assert not field.description.endswith(".")
        assert field.flag == "--" + field.name.replace("_", "-")
        assert field.variable == "TRUNKLINE_" + field.name.upper()
        if field.name.endswith("_seconds"):
            assert "second" in field.description
    assert field_of("log_level").choices == ("debug", "info", "warning", "error")
    assert field_of("port").choices == ()


def test_settings_do_not_change() -> None:
    with pytest.raises(AttributeError):
        Settings().port = 1  # type: ignore[misc]


def test_a_node_must_be_able_to_verify_tokens() -> None:
    with pytest.raises(Invalid) as invalid:
        Settings().check_auth()
    assert "TRUNKLINE_JWT_SECRET" in str(invalid.value)
    for enough in ({"jwt_secret": ("x",)}, {"jwt_public_key": ("x.pem",)}, {"jwt_jwks_url": "https://login.example"}):
        Settings(**enough).check_auth()


def test_logs_are_json_in_production_unless_a_person_reads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    assert log_format(Settings()) == "json"
    assert log_format(Settings(profile="development")) == "text"
    assert log_format(Settings(log_format="text")) == "text"
    assert log_format(Settings(log_format="json", profile="development")) == "json"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert log_format(Settings()) == "text"
