"""The course of a watch, decided from values: what it says, what it hands on, how long it waits, and what ends it."""

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker import Event, Invalid, Unavailable
from broker.client import Denied, Gap
from broker.client.course import (
    FIRST_PAUSE_SECONDS,
    LONGEST_PAUSE_SECONDS,
    LONGEST_RETRY_AFTER_SECONDS,
    Course,
    Heard,
    Lost,
)
from broker.client.words import PING, PONG, Asked, NoMessage, read, subscribe

CUT = Lost("cut", close_code=1006)


def course(since: Any = None, patience: float | None = None, **asked: Any) -> Course:
    return Course(Asked(**{name: frozenset(ids) for name, ids in asked.items()}), since, patience, 0.0)


def event(position: str | None, workspace: str = "ws-1", **changes: Any) -> str:
    envelope = {"type": "task.progress", "workspace_id": workspace, "task_id": "t", "agent_id": "a"}
    envelope |= {"timestamp": "2026-03-27T10:30:45Z", "data": {"step": 1}}
    return json.dumps(envelope | ({"event_id": position} if position else {}) | changes)


def gap(since: str, workspace: str = "ws-1") -> str:
    return json.dumps({"type": "resume.gap", "workspace_id": workspace, "since": since, "oldest": "90-0"})


def pong(complete: Any = None) -> str:
    return json.dumps({"type": "pong"} | ({"event_id": complete} if complete is not None else {}))


def error(code: str, message: str = "words") -> str:
    return json.dumps({"type": "error", "error": {"code": code, "message": message}})


def ids(one: Course, *messages: str) -> list[str | None]:
    """The events that these messages bring, by their ids; a gap is its own `since`."""
    items = [one.receive(message).item for message in messages]
    return [item.id if isinstance(item, Event) else str(item.since) for item in items if item is not None]


def since_of(one: Course) -> Any:
    """What it would resume from on a new connection."""
    return json.loads(one.open()[0]).get("since")


# -- what is said and heard


def test_a_new_connection_subscribes_and_asks_when_that_is_done() -> None:
    first, second = course(agents=["a-2", "a-1"], types=["task.progress"]).open()
    assert json.loads(first) == {
        "type": "subscribe",
        "filters": {"agent_id": ["a-1", "a-2"], "event_types": ["task.progress"]},
    }
    assert second == PING
    assert subscribe(Asked(), None) == '{"type":"subscribe","filters":{}}'


def test_an_event_is_what_a_watcher_beside_redis_gets() -> None:
    assert course().receive(event("5-0")).item == Event(
        type="task.progress",
        workspace_id="ws-1",
        agent_id="a",
        data={"task_id": "t", "step": 1},
        timestamp="2026-03-27T10:30:45Z",
        id="5-0",
    )
    live_only = course().receive(event(None, data={"step": 2}, task_id=None)).item
    assert isinstance(live_only, Event)
    assert (live_only.id, live_only.ephemeral, live_only.data) == (None, True, {"step": 2})


@pytest.mark.parametrize("number", ["1e999", "9" * 5000])
def test_a_number_past_what_a_float_holds_is_infinite_as_for_everybody_else(number: str) -> None:
    item = course().receive(event("5-0").replace('{"step": 1}', f'{{"step": {number}}}')).item
    assert isinstance(item, Event)
    assert item.data["step"] == float("inf")


def test_what_a_newer_gateway_says_besides_is_let_pass() -> None:
    one = course()
    for words in ('{"type":"weather","sun":true}', '{"type":"agent.command","command_id":"1-0","data":{}}'):
        assert one.receive(words) == Heard()
    assert isinstance(one.receive(event("5-0", type="task.dreamt")).item, Event)


@pytest.mark.parametrize(
    "words", ["", "[]", "{", '{"type":1}', '{"type":"pong","event_id":"soon"}', '{"type":"pong","event_id":{"w":"x"}}']
)
def test_what_is_no_message_is_said_to_be_none(words: str) -> None:
    with pytest.raises(NoMessage):
        course().receive(words)


@given(st.text() | st.binary())
def test_whatever_is_received_is_read_or_refused(words: str | bytes) -> None:
    with contextlib.suppress(NoMessage):
        read(words)


def test_a_ping_is_answered() -> None:
    assert course().receive('{"type":"ping"}') == Heard(reply=PONG)


# -- positions


def test_the_first_pong_says_where_the_watch_begins_and_makes_it_one_that_is_told_of_gaps() -> None:
    one = course(agents=["a"])
    one.open()
    assert one.receive(pong()) == Heard(), "not yet live: there is no position"
    reply = one.receive(pong("7-0")).reply
    assert json.loads(reply or "") == {"type": "subscribe", "filters": {"agent_id": ["a"]}, "since": "7-0"}
    assert one.receive(pong("8-0")).reply is None
    assert since_of(one) == "8-0"


def test_who_came_with_a_position_need_not_subscribe_again() -> None:
    one = course("3-0")
    assert since_of(one) == "3-0"
    assert one.receive(pong("7-0")) == Heard()


def test_the_position_is_the_newest_of_what_has_come() -> None:
    one = course()
    assert ids(one, event("5-0"), event("5-1")) == ["5-0", "5-1"]
    assert since_of(one) == {"ws-1": "5-1"}
    one.receive('{"type":"ping","event_id":"9-0"}')
    assert since_of(one) == {"ws-1": "9-0"}
    one.receive(pong("8-0"))
    assert since_of(one) == {"ws-1": "9-0"}
    one.receive(event(None))
    assert since_of(one) == {"ws-1": "9-0"}


def test_a_position_without_a_name_is_the_one_of_the_only_workspace() -> None:
    one = course("5-0")
    assert ids(one, event("4-0"), event("5-0"), event("6-0")) == ["6-0"]
    assert since_of(one) == {"ws-1": "6-0"}
    named = course("5-0", workspaces=["ws-1"])
    assert since_of(named) == {"ws-1": "5-0"}


def test_each_of_several_workspaces_has_a_position_of_its_own() -> None:
    one = course({"ws-1": "5-0"})
    one.open()
    assert ids(one, event("5-0"), event("3-0", "ws-2"), event("3-0", "ws-2"), event("6-0")) == ["3-0", "6-0"]
    one.receive(pong({"ws-1": "6-0", "ws-2": "4-0", "ws-3": "2-0"}))
    assert since_of(one) == {"ws-1": "6-0", "ws-2": "4-0", "ws-3": "2-0"}


def test_what_came_already_is_dropped() -> None:
    one = course()
    assert ids(one, event("5-0"), event("6-0")) == ["5-0", "6-0"]
    one.open()
    assert ids(one, event("5-0"), event("6-0"), event("10-0"), event("9-9")) == ["10-0"]


# -- gaps


def test_a_gap_is_said_once_until_something_comes_behind_it() -> None:
    one = course("5-0", agents=["a"])
    item = one.receive(gap("5-0")).item
    assert item == Gap("ws-1", frozenset(("a",)), "5-0", "90-0")
    one.open()
    assert ids(one, gap("5-0"), event("95-0"), gap("95-0")) == ["95-0", "95-0"]


def test_behind_a_gap_history_may_begin_anew() -> None:
    """Redis lost what it had, and its clock went back: that is no reason to drop what comes now."""
    one = course()
    assert ids(one, event("500-0"), gap("500-0"), event("7-0"), event("7-0"), event("8-0")) == [
        "500-0", "500-0", "7-0", "8-0",
    ]  # fmt: skip
    other = course("500-0")
    assert ids(other, gap("500-0")) == ["500-0"]
    other.receive(pong("3-0"))
    assert since_of(other) == {"ws-1": "3-0"}


# -- silence


def test_silence_is_asked_once_and_then_believed() -> None:
    one = course()
    assert (one.quiet(), one.quiet()) == (PING, None)
    one.open()
    assert one.quiet() == PING
    one.receive(pong())
    assert one.quiet() == PING


# -- waiting


def test_pauses_double_up_to_a_bound_with_full_jitter_and_begin_anew_after_a_good_connection() -> None:
    one = course()
    waits = [one.lost(CUT, 0.0, 1.0) for _ in range(10)]
    assert waits[:3] == [FIRST_PAUSE_SECONDS, 2 * FIRST_PAUSE_SECONDS, 4 * FIRST_PAUSE_SECONDS]
    assert waits[-1] == LONGEST_PAUSE_SECONDS
    assert one.lost(CUT, 0.0, 0.0) == 0.0
    one.receive(pong("5-0"))
    assert one.lost(CUT, 0.0, 1.0) == FIRST_PAUSE_SECONDS
    one.receive(event("6-0"))
    assert one.lost(CUT, 0.0, 0.5) == FIRST_PAUSE_SECONDS / 2


def test_the_gateways_own_wish_to_wait_comes_first() -> None:
    assert course().lost(Lost("draining", status=503, retry_after=7.0), 0.0, 0.0) == 7.0
    for_ever = Lost("closed for the season", status=503, retry_after=1e9)
    assert course().lost(for_ever, 0.0, 0.0) == LONGEST_RETRY_AFTER_SECONDS


@pytest.mark.parametrize("code", [1000, 1001, 1002, 1006, 1008, 1011, 1012, 1013])
def test_these_closes_pass(code: int) -> None:
    assert course().lost(Lost("closed", close_code=code), 0.0, 1.0) == FIRST_PAUSE_SECONDS


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_these_refusals_pass(status: int) -> None:
    assert course().lost(Lost("refused", status=status), 0.0, 1.0) == FIRST_PAUSE_SECONDS


@pytest.mark.parametrize(
    ("lost", "ending"),
    [
        (Lost("a page", status=200), Invalid),
        (Lost("bad", status=400), Invalid),
        (Lost("not you", status=403), Denied),
        (Lost("no WebSocket here; there is /v2/ws", status=404), Invalid),
        (Lost("too big", close_code=1009), Invalid),
    ],
)
def test_what_does_not_pass_by_itself_is_raised(lost: Lost, ending: type[Exception]) -> None:
    with pytest.raises(ending, match=lost.reason):
        course().lost(lost, 0.0, 1.0)


def test_patience_counts_from_the_end_of_the_last_good_connection() -> None:
    one = course(patience=10.0)
    assert one.lost(CUT, 9.0, 1.0) == FIRST_PAUSE_SECONDS
    one.receive(event("5-0"))
    assert one.lost(CUT, 100.0, 1.0) == FIRST_PAUSE_SECONDS
    assert one.lost(CUT, 109.0, 1.0) == 2 * FIRST_PAUSE_SECONDS
    with pytest.raises(Unavailable, match="cut"):
        one.lost(CUT, 109.9, 1.0)


# -- tokens


def test_a_token_that_is_refused_ends_the_watch_unless_there_is_another() -> None:
    one = course()
    assert one.present("first") == "first"
    one.receive(error("INVALID_TOKEN"))
    assert one.lost(Lost("closed", close_code=1008), 0.0, 1.0) == 0.0
    with pytest.raises(Denied):
        one.present("first")
    assert one.present("second") == "second"
    # It has not been judged yet: no gateway is there.
    assert one.lost(Lost("away", status=503, retry_after=7.0), 0.0, 1.0) == 7.0 + FIRST_PAUSE_SECONDS
    assert one.present("second") == "second"
    one.receive(pong("5-0"))
    one.receive(error("INVALID_TOKEN"))
    assert one.present("third") == "third"
    assert one.lost(Lost("who are you", status=401), 0.0, 1.0) == 0.0
    with pytest.raises(Denied):
        one.present("fourth")


@pytest.mark.parametrize("token", ["", "two\nlines", "grüezi"])
def test_a_token_that_no_header_can_carry_is_not_sent(token: str) -> None:
    with pytest.raises(Invalid) as caught:
        course().present(token)
    assert token not in str(caught.value) or not token


@pytest.mark.parametrize(
    ("code", "text", "ending"),
    [
        ("FORBIDDEN", "$.filters.workspace_id: the token does not name this workspace", Denied),
        ("INVALID_MESSAGE", "$.filters.event_types: expected some of task.failed, task.started", Invalid),
        ("INVALID_MESSAGE", "$.since: expected an object {workspace_id: position} for several workspaces", Invalid),
        ("TOO_MANY_SUBSCRIPTIONS", "Too many concurrent subscriptions", Invalid),
    ],
)
def test_what_cannot_be_watched_is_raised_in_the_gateways_words(code: str, text: str, ending: type[Exception]) -> None:
    with pytest.raises(ending) as caught:
        course().receive(error(code, text))
    assert text in str(caught.value)


def test_an_error_that_may_pass_is_waited_out() -> None:
    one = course()
    assert one.receive(error("TOO_MANY_CONNECTIONS")) == Heard()
    assert one.lost(Lost("full", close_code=1013), 0.0, 1.0) == FIRST_PAUSE_SECONDS
