"""What one client may have and do: each document's figures, unless settings say otherwise."""

from typing import Any

import msgspec
import pytest

from gateway.dialects import ALL
from gateway.limits import UNLIMITED, Limits
from gateway.settings import Settings, fields

BY_NAME = {dialect.name: dialect.limits for dialect in ALL}

# FreeAgentics, "Production Limits", "Development Limits" and "Connection Limits"; five times as many messages per user.
DOCUMENTED = {
    "production": {
        "max_message_bytes": 64 * 1024,
        "max_connections_per_user": 5,
        "max_connections_per_address": 20,
        "max_connects_per_minute": 10,
        "max_messages_per_minute": 100,
        "max_user_messages_per_minute": 500,
        "max_event_types": 20,
    },
    "development": {
        "max_message_bytes": 128 * 1024,
        "max_connections_per_user": 10,
        "max_connections_per_address": 50,
        "max_connects_per_minute": 10,
        "max_messages_per_minute": 200,
        "max_user_messages_per_minute": 1000,
        "max_event_types": 50,
    },
}
FIGURES = list(DOCUMENTED["production"])
FREEAGENTICS, MAXICORE = BY_NAME["freeagentics"]["production"], BY_NAME["maxicore"]["production"]


def figures(limits: Limits) -> dict[str, Any]:
    return {name: getattr(limits, name) for name in FIGURES}


@pytest.mark.parametrize("profile", ["production", "development"])
def test_freeagentics_clients_have_what_their_document_promises(profile: str) -> None:
    limits = BY_NAME["freeagentics"][profile]
    assert figures(limits) == DOCUMENTED[profile]
    assert (limits.max_subscriptions, limits.may_idle, limits.warn_seconds) == (None, True, 60.0)


@pytest.mark.parametrize("profile", ["production", "development"])
def test_maxicore_clients_have_subscriptions_to_spare_and_none_of_the_other_limits(profile: str) -> None:
    limits = BY_NAME["maxicore"][profile]
    assert figures(limits) == dict.fromkeys(FIGURES) | {"max_message_bytes": 64 * 1024}
    assert (limits.max_subscriptions, limits.may_idle, limits.warn_seconds) == (100, False, 0.0)


@pytest.mark.parametrize("name", BY_NAME)
def test_every_dialect_bounds_errors_and_unanswered_pings(name: str) -> None:
    for limits in BY_NAME[name].values():
        assert (limits.max_errors_in_row, limits.max_pings_unanswered) == (10, 3)


@pytest.mark.parametrize("limits", [FREEAGENTICS, MAXICORE])
def test_settings_that_say_nothing_change_nothing(limits: Limits) -> None:
    assert limits.under(Settings()) == limits


@pytest.mark.parametrize("name", FIGURES)
def test_a_setting_replaces_one_figure_and_no_other(name: str) -> None:
    under = FREEAGENTICS.under(Settings(**{name: 7}))
    assert figures(under) == figures(FREEAGENTICS) | {name: 7}
    assert FREEAGENTICS.under(Settings()) == FREEAGENTICS, "the protocol's own are as they were"


@pytest.mark.parametrize("name", [name for name in FIGURES if name != "max_message_bytes"])
def test_minus_one_lifts_a_limit(name: str) -> None:
    """Connections are counted all the same: a client is told how many its user has."""
    lifted = UNLIMITED if name.startswith("max_connect") else None
    assert figures(FREEAGENTICS.under(Settings(**{name: -1}))) == figures(FREEAGENTICS) | {name: lifted}


def test_the_limit_of_subscriptions_can_be_replaced_and_lifted() -> None:
    assert MAXICORE.under(Settings(max_subscriptions=3)).max_subscriptions == 3
    assert MAXICORE.under(Settings(max_subscriptions=-1)).max_subscriptions is None


@pytest.mark.parametrize("given", [7, -1])
def test_a_limit_that_a_protocol_does_not_have_is_not_invented(given: int) -> None:
    names = [name for name in FIGURES if getattr(MAXICORE, name) is None]
    assert MAXICORE.under(Settings(**dict.fromkeys(names, given))) == MAXICORE
    assert FREEAGENTICS.under(Settings(max_subscriptions=given)) == FREEAGENTICS


def test_every_figure_that_a_document_promises_is_a_setting() -> None:
    assert {*FIGURES, "max_subscriptions"} <= {field.name for field in fields()}
    of_limits = {field.name for field in fields() if field.description.endswith("-1: no limit")}
    of_limits.discard("max_requests_per_minute")  # of the REST API, which is no dialect
    assert of_limits < {field.name for field in msgspec.structs.fields(Limits)}
