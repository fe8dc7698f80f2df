"""A conversation that a key has opened, as values: runs are asked for, counted and refused."""

import json
from math import inf
from typing import Any

import pytest

from broker.filters import Filter
from gateway.auth import Claims
from gateway.dialects.agnt5 import AGNT5, LIMITS
from gateway.door import SCOPE
from gateway.messages import (
    Action,
    CancelRun,
    Close,
    Error,
    Execute,
    Follow,
    GapSaid,
    Heartbeat,
    PongSent,
    ResumeRuns,
    StartRun,
    Tell,
)
from gateway.reasons import (
    EVENTS_LOST,
    FLOOD,
    FORBIDDEN,
    INVALID_MESSAGE,
    RUN_UNKNOWN,
    TOO_MANY_ERRORS,
    TOO_MANY_MESSAGES,
    UNAVAILABLE,
)
from gateway.session import Session
from gateway.settings import Settings

RUN = {"name": "search", "parameters": {"q": "react"}, "metadata": {"k": 1}, "connection_id": "ws_1"}
START = StartRun("search", {"q": "react"}, {"k": 1}, "ws_1")
NOTHING_YET = Filter(workspaces=frozenset({"ws-1"}), agents=frozenset({"shop"}), subjects=frozenset())


def let_in(scope: frozenset[str] = SCOPE) -> Session:
    session = Session(AGNT5, LIMITS, Settings(), 0.0)
    claims = Claims("key_1", "key_1", frozenset({"ws-1"}), scope, "shop", inf)
    assert session.let_in(claims) == [Follow(frozenset({NOTHING_YET}))]
    return session


def says(session: Session, message: Any, now: float = 0.0) -> list[Action]:
    return session.arrive(message if isinstance(message, str) else json.dumps(message), now)


@pytest.mark.parametrize(
    ("message", "request_"),
    [
        (RUN, START),
        ({"name": "search"}, StartRun("search", {}, {}, None)),
        ({"type": None, "name": "search", "connection_id": None}, StartRun("search", {}, {}, None)),
        ({"type": "cancel", "execution_id": "exec_1"}, CancelRun("exec_1")),
        ({"type": "resume", "connection_id": "ws_1"}, ResumeRuns("ws_1", None)),
        ({"type": "resume", "connection_id": "ws_1", "since": "1-0"}, ResumeRuns("ws_1", "1-0")),
    ],
)
def test_what_is_asked_about_runs_is_to_be_done(message: dict[str, Any], request_: Any) -> None:
    assert says(let_in(), message) == [Execute(request_)]


@pytest.mark.parametrize("message", [RUN, {"type": "cancel", "execution_id": "exec_1"}])
def test_without_the_scope_nothing_is_done(message: dict[str, Any]) -> None:
    (told,) = says(let_in(frozenset({"events:read"})), message)
    assert isinstance(told, Tell)
    assert isinstance(told.notice, Error)
    assert told.notice.reason is FORBIDDEN


def test_a_refusal_says_what_it_is_about() -> None:
    assert let_in().refused(START, UNAVAILABLE) == [Tell(Error(UNAVAILABLE, UNAVAILABLE.text, START))]
    assert let_in().refused(START, INVALID_MESSAGE, "$.name: …") == [Tell(Error(INVALID_MESSAGE, "$.name: …", START))]


def test_ten_wrong_messages_in_a_row_close_and_unknown_runs_do_not_count() -> None:
    session = let_in()
    for _ in range(20):
        assert says(session, {"type": "cancel", "execution_id": "exec_1"}) == [Execute(CancelRun("exec_1"))]
        assert len(session.refused(CancelRun("exec_1"), RUN_UNKNOWN)) == 1
    wrong = [says(session, "{}")[1:] for _ in range(10)]
    assert wrong == [[]] * 9 + [[Close(TOO_MANY_ERRORS)]]


def test_a_hundred_messages_a_second_two_hundred_and_the_end() -> None:
    session = let_in()
    for number in range(1, 101):
        assert says(session, {"type": "ping"}, number / 200)[-1] == Tell(PongSent(number / 200))
    for number in range(101, 201):
        (told,) = says(session, RUN, 0.9)
        assert isinstance(told, Tell)
        assert isinstance(told.notice, Error)
        assert (told.notice.reason, told.notice.request) == (TOO_MANY_MESSAGES, START), number
    assert says(session, RUN, 0.9)[-1] == Close(FLOOD)


def test_the_next_second_begins_anew() -> None:
    session = let_in()
    for second in (0.0, 1.0, 2.0):
        answers = [says(session, RUN, second)[-1] for _ in range(150)]
        assert answers[:100] == [Execute(START)] * 100
        assert all(isinstance(told, Tell) for told in answers[100:])


def test_it_never_expires_and_is_never_idle() -> None:
    session = let_in()
    assert session.tick(30.0, 0.0) == [Heartbeat()]
    session.receive_pong()
    session._ping_at = 1e9
    assert session.tick(365 * 24 * 3600.0, 0.0) == []


def test_lost_events_end_the_connection_unless_it_resumes() -> None:
    assert let_in().gap("ws-1", "1-0", "5-0", is_reset=False) == [Close(EVENTS_LOST)]
    session = let_in()
    says(session, {"type": "resume", "connection_id": "ws_1"})
    assert session.gap("ws-1", "1-0", "5-0", is_reset=False) == [Tell(GapSaid("ws-1", "1-0", "5-0"))]
