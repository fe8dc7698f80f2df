"""One client's conversation, as values: what it says and the time go in, what is to be done comes out."""

import itertools
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.events import Carried
from broker.filters import Filter
from broker.positions import Position
from gateway.auth import READ_ONLY, Claims
from gateway.dialects.maxicore import MAXICORE, TYPES
from gateway.hub import matches
from gateway.messages import (
    Action,
    Close,
    Error,
    Follow,
    GapSaid,
    Heartbeat,
    Interest,
    PongSent,
    Tell,
    Verify,
)
from gateway.reasons import (
    EVENTS_LOST,
    FORBIDDEN,
    IDLE,
    INVALID_MESSAGE,
    INVALID_TOKEN,
    NOT_TEXT,
    PONG_TIMEOUT,
    TOO_MANY_ERRORS,
    TOO_MANY_SUBSCRIPTIONS,
    Reason,
)
from gateway.session import Session
from gateway.settings import Settings

HOUR = 3600.0
DEFAULTS = Settings()


def claims(*workspaces: str, scope: frozenset[str] = READ_ONLY) -> Claims:
    return Claims("user-1", frozenset(workspaces or ["ws-456"]), scope, None, 0.0)


def new(now: float = 0.0, **changes: Any) -> Session:
    """A conversation that has just begun."""
    return Session(MAXICORE, Settings(**changes), now)


def opened(*workspaces: str, lifetime: float = 24 * HOUR, **changes: Any) -> Session:
    """One whose token was verified at the second 0."""
    session = new(**changes)
    assert session.authenticated(claims(*workspaces), lifetime, 0.0) == []
    return session


def says(session: Session, message: Any, now: float = 0.0) -> list[Action]:
    return session.receive(message if isinstance(message, str) else json.dumps(message), now)


def subscribe(session: Session, now: float = 0.0, since: Any = None, **filters: Any) -> list[Action]:
    return says(
        session, {"type": "subscribe", "filters": filters} | ({"since": since} if since is not None else {}), now
    )


def unsubscribe(session: Session, now: float = 0.0, **filters: Any) -> list[Action]:
    return says(session, {"type": "unsubscribe", "filters": filters}, now)


def followed(actions: list[Action]) -> Interest:
    """The interest of the one thing that is to be done."""
    [follow] = actions
    assert isinstance(follow, Follow)
    return follow.interest


def told(actions: list[Action]) -> list[Reason]:
    """The reasons of the errors that the client is told."""
    return [action.notice.reason for action in actions if isinstance(action, Tell) and isinstance(action.notice, Error)]


def closed(actions: list[Action]) -> Reason | None:
    """Why the connection ends; nothing is done after that."""
    reasons = [action.reason for action in actions if isinstance(action, Close)]
    assert reasons == [] or (len(reasons) == 1 and isinstance(actions[-1], Close))
    return reasons[0] if reasons else None


# -- authentication


@pytest.mark.parametrize("token", ["Bearer a.b.c", "a.b.c", ""])
def test_the_first_message_may_carry_the_token_as_it_stands(token: str) -> None:
    session = new()
    assert says(session, {"type": "auth", "token": token}) == [Verify(token)]


def test_a_verified_token_is_not_answered() -> None:
    session = new()
    assert session.claims is None
    assert session.authenticated(claims(), HOUR, 0.0) == []
    assert session.claims == claims()


@pytest.mark.parametrize(
    "first",
    [
        {"type": "subscribe"},
        {"type": "unsubscribe"},
        {"type": "ping"},
        {"type": "pong"},
        {"type": "auth"},
        {"type": "auth", "token": None},
        {"type": "authenticate", "token": "a.b.c"},
        {},
        [],
        "",
        "hello",
        '{"type":"auth","token":"a.b.c"',
    ],
)
def test_any_other_first_message_is_an_invalid_token_and_the_end(first: Any) -> None:
    actions = says(new(), first)
    assert (told(actions), closed(actions)) == ([INVALID_TOKEN], INVALID_TOKEN)


def test_a_token_that_is_denied_is_told_and_closed_without_its_words() -> None:
    session = new()
    says(session, {"type": "auth", "token": "Bearer secret.words.here"})
    actions = session.denied()
    assert (told(actions), closed(actions)) == ([INVALID_TOKEN], INVALID_TOKEN)
    assert "secret" not in repr(actions)
    assert INVALID_TOKEN.close_code == 1008


def test_who_says_nothing_has_ten_seconds_to_authenticate() -> None:
    session = new(now=100.0)
    assert session.due() == 110.0
    assert session.tick(109.9, 0.0) == []
    actions = session.tick(110.0, 0.0)
    assert (told(actions), closed(actions)) == ([INVALID_TOKEN], INVALID_TOKEN)


def test_ping_frames_and_pongs_do_not_put_off_authentication() -> None:
    session = new()
    session.receive_ping(5.0)
    session.receive_pong()
    assert session.due() == 10.0
    assert closed(session.tick(10.0, 0.0)) is INVALID_TOKEN


def test_a_token_ends_at_its_expiry_like_one_that_was_never_good() -> None:
    session = opened(lifetime=100.0)
    subscribe(session)
    assert closed(session.tick(99.9, 99.9)) is None
    assert session.due() <= 100.0
    actions = session.tick(100.0, 100.0)
    assert (told(actions), closed(actions)) == ([INVALID_TOKEN], INVALID_TOKEN)


def test_a_token_may_be_renewed_before_it_expires_and_that_is_silent() -> None:
    session = opened(lifetime=100.0, heartbeat_seconds=HOUR)
    interest = followed(subscribe(session))
    assert says(session, {"type": "auth", "token": "Bearer next"}, 90.0) == [Verify("Bearer next")]
    assert session.authenticated(claims(), 200.0, 91.0) == []
    assert interest != frozenset()
    assert session.due() == 291.0
    assert session.tick(290.9, 0.0) == []
    assert closed(session.tick(291.0, 0.0)) is INVALID_TOKEN


def test_a_renewal_may_also_shorten_a_life() -> None:
    session = opened(lifetime=100.0)
    session.authenticated(claims(), 5.0, 10.0)
    assert closed(session.tick(15.0, 0.0)) is INVALID_TOKEN


def test_a_renewal_that_is_denied_ends_the_conversation() -> None:
    session = opened()
    says(session, {"type": "auth", "token": "Bearer next"})
    assert closed(session.denied()) is INVALID_TOKEN


def test_a_renewed_token_that_names_other_workspaces_changes_what_is_followed() -> None:
    session = opened("ws-1", "ws-2")
    subscribe(session)
    subscribe(session, workspace_id="ws-1", agent_id="a")
    assert followed(session.authenticated(claims("ws-2", "ws-3"), HOUR, 1.0)) == {
        Filter(workspaces=frozenset({"ws-2", "ws-3"}))
    }
    assert followed(session.authenticated(claims("ws-1"), HOUR, 2.0)) == {
        Filter(workspaces=frozenset({"ws-1"})),
        Filter(workspaces=frozenset({"ws-1"}), agents=frozenset({"a"})),
    }


def test_a_token_without_the_scope_to_read_events_lets_nothing_be_followed() -> None:
    session = new()
    actions = session.authenticated(claims(scope=frozenset({"events:write", "agents:read"})), HOUR, 0.0)
    actions += subscribe(session)
    assert not any(isinstance(action, Follow) and action.interest for action in actions)
    assert told(actions) != [], "silence would be taken for success"


# -- subscriptions


def test_before_the_first_subscription_nothing_is_followed() -> None:
    session = new()
    assert session.authenticated(claims(), HOUR, 0.0) == []
    assert says(session, {"type": "unsubscribe"}) == []


def test_no_filters_are_all_workspaces_of_the_token() -> None:
    everything = {Filter(workspaces=frozenset({"ws-1", "ws-2"}))}
    assert followed(says(opened("ws-1", "ws-2"), {"type": "subscribe"})) == everything
    assert followed(subscribe(opened("ws-1", "ws-2"))) == everything


def test_an_id_may_be_a_string_or_a_list() -> None:
    one = followed(subscribe(opened(), agent_id="a", task_id="t", workspace_id="ws-456", event_types="task.failed"))
    assert one == followed(
        subscribe(opened(), agent_id=["a"], task_id=["t"], workspace_id=["ws-456"], event_types=["task.failed"])
    )
    assert one == {
        Filter(
            workspaces=frozenset({"ws-456"}),
            agents=frozenset({"a"}),
            subjects=frozenset({"t"}),
            types=frozenset({"task.failed"}),
        )
    }


def test_equal_subscriptions_count_once_however_they_are_written() -> None:
    session = opened()
    followed(subscribe(session, agent_id=["a", "b"]))
    assert subscribe(session, agent_id=["b", "a", "b"]) == []
    assert subscribe(session, agent_id=["a", "b"], task_id=None) == []
    assert followed(unsubscribe(session, agent_id=["a", "b"])) == frozenset()


def test_another_workspace_is_forbidden_and_changes_nothing() -> None:
    session = opened("ws-1", "ws-2")
    interest = followed(subscribe(session, workspace_id="ws-1"))
    for asked in ("ws-3", ["ws-1", "ws-3"], ["ws-3"]):
        actions = subscribe(session, workspace_id=asked)
        assert (told(actions), closed(actions)) == ([FORBIDDEN], None)
        assert not any(isinstance(action, Follow) for action in actions)
    assert followed(subscribe(session, workspace_id="ws-2")) > interest


@pytest.mark.parametrize(
    "filters",
    [
        {"event_types": ["task.paused"]},
        {"event_types": ["task.progress", "metrics_update"]},
        {"event_types": "TASK.PROGRESS"},
        {"event_types": []},
        {"agent_id": []},
        {"agent_id": ""},
        {"agent_id": 5},
        {"agent_id": [None]},
        {"agent_id": {"is": "a"}},
        {"agent": "a"},
        "agent-123",
        [],
    ],
)
def test_filters_that_mean_nothing_are_refused_and_change_nothing(filters: Any) -> None:
    session = opened()
    subscribe(session, agent_id="a")
    for kind in ("subscribe", "unsubscribe"):
        actions = says(session, {"type": kind, "filters": filters})
        assert (told(actions), closed(actions), len(actions)) == ([INVALID_MESSAGE], None, 1)
    assert followed(unsubscribe(session)) == frozenset()


def test_the_hundred_and_first_subscription_ends_the_conversation() -> None:
    session = opened()
    for number in range(100):
        assert closed(subscribe(session, agent_id=f"agent-{number}")) is None
    for number in range(100):
        assert subscribe(session, agent_id=f"agent-{number}") == [], "equal ones count once"
    actions = subscribe(session, agent_id="agent-100")
    assert (told(actions), closed(actions)) == ([TOO_MANY_SUBSCRIPTIONS], TOO_MANY_SUBSCRIPTIONS)
    assert TOO_MANY_SUBSCRIPTIONS.close_code == 1008


def test_subscriptions_that_were_left_make_room_for_others() -> None:
    session = opened()
    for number in range(250):
        assert closed(subscribe(session, agent_id=f"agent-{number}")) is None
        if number >= 99:
            assert closed(unsubscribe(session, agent_id=f"agent-{number - 99}")) is None


# -- the algebra of subscribe and unsubscribe, against a naive model

OWN, FOREIGN = ["ws-1", "ws-2"], "ws-3"
KEYS = {
    "workspace_id": OWN,
    "agent_id": ["agent-1", "agent-2"],
    "task_id": ["task-1", "task-2"],
    "event_types": ["task.started", "task.progress"],
}
EVERY_EVENT = [
    dict(zip(KEYS, values, strict=True))
    for values in itertools.product(
        [*OWN, FOREIGN], ["agent-1", "agent-2", None], ["task-1", "task-2", None], ["task.started", "task.progress"]
    )
]


def values_of(values: list[str]) -> st.SearchStrategy[Any]:
    """Not given, one, or a list."""
    return st.none() | st.sampled_from(values) | st.lists(st.sampled_from(values), min_size=1, max_size=3)


some_filters = st.fixed_dictionaries({name: values_of(values) for name, values in KEYS.items()})
requests = st.tuples(st.sampled_from(["subscribe", "subscribe", "unsubscribe"]), some_filters)


def as_sets(filters: dict[str, Any]) -> dict[str, set[str]]:
    return {
        name: {value} if isinstance(value, str) else set(value) for name, value in filters.items() if value is not None
    }


def is_wanted(subscriptions: list[dict[str, set[str]]], own: set[str], event: dict[str, str | None]) -> bool:
    """Filters of one subscription are ANDed, subscriptions ORed; without a workspace all of the token's own."""
    return any(
        event["workspace_id"] in subscription.get("workspace_id", own)
        and event["workspace_id"] in own
        and all(event[name] in values for name, values in subscription.items())
        for subscription in subscriptions
    )


def asks_only_for(subscription: dict[str, set[str]], given: dict[str, set[str]], own: set[str]) -> bool:
    """Does the subscription, for each given key, ask only for given values?"""
    subscription = {"workspace_id": own} | subscription
    return all(name in subscription and subscription[name] <= values for name, values in given.items())


def carried(event: dict[str, str | None]) -> Carried:
    return Carried(
        type=str(event["event_types"]),
        data=b"{}",  # type: ignore[arg-type]
        workspace_id=str(event["workspace_id"]),
        agent_id=event["agent_id"],
        task_id=event["task_id"],
    )


CARRIED = [carried(event) for event in EVERY_EVENT]


@given(
    st.sampled_from([OWN, OWN[:1]]),
    st.lists(requests | st.sampled_from([["ws-1"], ["ws-2"], OWN, ["ws-3"]]), max_size=12),
)
@settings(deadline=None, max_examples=200)
def test_subscriptions_add_up_and_unsubscribing_removes_what_the_model_removes(
    own: list[str], said: list[tuple[str, dict[str, Any]] | list[str]]
) -> None:
    """Between them the token is renewed, with other workspaces."""
    session, named = opened(*own), set(own)
    model: list[dict[str, set[str]]] = []
    interest: Interest = frozenset()
    for item in said:
        if isinstance(item, list):
            named = set(item)
            actions = session.authenticated(claims(*item), HOUR, 0.0)
        else:
            kind, filters = item
            actions = says(session, {"type": kind, "filters": filters})
            asked = as_sets(filters)
            if kind == "unsubscribe":
                model = [kept for kept in model if not asks_only_for(kept, asked, named)]
            elif asked.get("workspace_id", named) <= named:
                model.append(asked)
            else:
                assert told(actions) == [FORBIDDEN]
        for action in actions:
            if isinstance(action, Follow):
                interest = action.interest
        for event, same in zip(EVERY_EVENT, CARRIED, strict=True):
            assert matches(interest, same) == is_wanted(model, named, event)


# -- resuming


def test_a_subscription_with_a_position_says_what_is_fresh_in_it() -> None:
    session = opened()
    before = followed(subscribe(session, agent_id="a"))
    [follow] = subscribe(session, since="5-0", task_id="t")
    fresh = frozenset({Filter(workspaces=frozenset({"ws-456"}), subjects=frozenset({"t"}))})
    assert follow == Follow(before | fresh, fresh, before, {"ws-456": "5-0"})


def test_the_same_subscription_again_may_bring_a_position() -> None:
    session = opened()
    interest = followed(subscribe(session))
    assert subscribe(session, since="5-0") == [Follow(interest, interest, interest, {"ws-456": "5-0"})]


def test_a_client_of_several_workspaces_gives_a_position_for_each() -> None:
    session = opened("ws-1", "ws-2")
    [follow] = subscribe(session, since={"ws-1": "5-0", "ws-2": "7-1"})
    assert isinstance(follow, Follow)
    assert follow.since == {"ws-1": "5-0", "ws-2": "7-1"}


def test_one_position_is_enough_for_a_subscription_of_one_workspace() -> None:
    session = opened("ws-1", "ws-2")
    [follow] = subscribe(session, since="5-0", workspace_id="ws-2")
    assert isinstance(follow, Follow)
    assert follow.since == {"ws-2": "5-0"}


def test_one_position_for_several_workspaces_is_refused_and_changes_nothing() -> None:
    session = opened("ws-1", "ws-2")
    actions = subscribe(session, since="5-0")
    assert (told(actions), len(actions)) == ([INVALID_MESSAGE], 1)
    assert unsubscribe(session) == []


def test_a_position_in_another_workspace_is_forbidden_and_changes_nothing() -> None:
    session = opened("ws-1")
    actions = subscribe(session, since={"ws-1": "5-0", "ws-3": "5-0"})
    assert (told(actions), len(actions)) == ([FORBIDDEN], 1)
    assert unsubscribe(session) == []


@pytest.mark.parametrize("is_reset", [False, True])
def test_a_gap_is_said_to_who_resumes(is_reset: bool) -> None:
    session = opened()
    subscribe(session, since="5-0")
    actions = session.gap("ws-456", Position("7-0"), "9-0", is_reset=is_reset)
    assert actions == [Tell(GapSaid("ws-456", "7-0", "9-0"))]


def test_who_cannot_be_told_of_a_gap_is_closed_unless_nothing_is_known_to_be_missing() -> None:
    session = opened()
    subscribe(session)
    assert session.gap("ws-456", Position("7-0"), "9-0", is_reset=False) == [Close(EVENTS_LOST)]
    assert session.gap("ws-456", Position("7-0"), "9-0", is_reset=True) == []
    assert EVENTS_LOST.close_code == 1013


# -- heartbeat


def beats(session: Session, until: float, answers: Any = None) -> list[tuple[float, Action]]:
    """What the clock brings up to `until`, when it comes as the session wishes; `answers(beat)` follows each beat."""
    brought: list[tuple[float, Action]] = []
    while (now := session.due()) <= until:
        actions = session.tick(now, 0.0)
        assert actions or session.due() > now, "the clock would not stop"
        for action in actions:
            brought.append((now, action))
            if isinstance(action, Close):
                return brought
            if isinstance(action, Heartbeat) and answers is not None:
                answers(now + 1)
    return brought


def test_three_unanswered_pings_in_a_row_end_the_connection() -> None:
    session = opened()
    assert beats(session, HOUR) == [
        (30.0, Heartbeat()),
        (60.0, Heartbeat()),
        (90.0, Heartbeat()),
        (120.0, Close(PONG_TIMEOUT)),
    ]
    assert (PONG_TIMEOUT.close_code, PONG_TIMEOUT.text) == (1008, "PONG_TIMEOUT")


ANSWERS = {
    "a pong frame": lambda session, now: session.receive_pong(),
    "a pong": lambda session, now: says(session, {"type": "pong"}, now),
    "a ping": lambda session, now: says(session, {"type": "ping"}, now),
    "a ping frame": lambda session, now: session.receive_ping(now),
    "a subscription": subscribe,
    "a wish that is refused": lambda session, now: subscribe(session, now, workspace_id="ws-other"),
    "a renewal": lambda session, now: says(session, {"type": "auth", "token": "next"}, now),
}


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
def test_whatever_a_client_sends_answers_all_pings_before_it(answer: Any) -> None:
    session = opened()
    brought = beats(session, 29 * 60, lambda now: answer(session, now))
    assert [action for _, action in brought] == 29 * 2 * [Heartbeat()]
    silent = opened()
    count = itertools.count(1)
    brought = beats(silent, 20 * 60, lambda now: answer(silent, now) if next(count) in (3, 5) else None)
    assert [now for now, action in brought if isinstance(action, Heartbeat)] == [30.0 * beat for beat in range(1, 9)]
    assert brought[-1] == (270.0, Close(PONG_TIMEOUT))


def test_even_what_cannot_be_understood_is_a_sign_of_life() -> None:
    session = opened()
    beats(session, 90.0)
    says(session, "hello", 100.0)
    assert beats(session, 120.0) == [(120.0, Heartbeat())]


def test_a_ping_of_the_client_is_answered() -> None:
    assert says(opened(), {"type": "ping"}) == [Tell(PongSent(None))]
    assert says(opened(), {"type": "pong"}) == []


# -- idle


def test_half_an_hour_without_anything_but_pongs_is_idle() -> None:
    for pong in (ANSWERS["a pong frame"], ANSWERS["a pong"]):
        session = opened()
        subscribe(session)
        brought = beats(session, HOUR, lambda now, session=session, pong=pong: pong(session, now))
        assert brought[-1] == (1800.0, Close(IDLE))
        assert all(isinstance(action, Heartbeat) for _, action in brought[:-1])
    assert (IDLE.close_code, IDLE.text) == (1000, "idle")


@pytest.mark.parametrize("kind", ["a ping", "a subscription", "a wish that is refused", "a renewal", "a ping frame"])
def test_any_other_message_starts_the_half_hour_anew(kind: str) -> None:
    session = opened()
    ANSWERS[kind](session, 1000.0)
    brought = beats(session, HOUR, lambda now: session.receive_pong())
    assert brought[-1] == (2800.0, Close(IDLE))


def test_an_event_that_was_delivered_starts_the_half_hour_anew() -> None:
    session = opened(heartbeat_seconds=HOUR)
    assert session.tick(1800.0, 500.0) == []
    assert session.due() == 2300.0
    assert closed(session.tick(2300.0, 500.0)) is IDLE


def test_a_client_that_lives_on_messages_is_never_idle() -> None:
    session = opened()
    for now in range(0, int(6 * HOUR), 1700):
        says(session, {"type": "ping"}, now)
        assert all(closed(session.tick(now + later, 0.0)) is None for later in (10.0, 1699.0))


def test_the_times_are_settings() -> None:
    session = opened(heartbeat_seconds=2.0, idle_seconds=7.0)
    assert session.due() == 2.0
    assert beats(session, 100.0, lambda now: session.receive_pong())[-1] == (7.0, Close(IDLE))
    assert new(auth_seconds=3.0).due() == 3.0


# -- what cannot be understood

GARBAGE = [
    "",
    "hello",
    "{",
    "[]",
    "null",
    "5",
    '"ping"',
    "{}",
    '{"type":null}',
    '{"type":"dance"}',
    '{"type":["ping"]}',
    '{"type":"auth","token":5}',
    '{"type":"subscribe","filters":5}',
    '{"type":"subscribe","since":5}',
    '{"type":"subscribe","filters":{"agent":"a"}}',
    "[" * 5000,
    '{"type":"ping","more":' + "[" * 5000,
    "\ud800",
    '{"type":"ping"}{"type":"ping"}',
    "\x00",
]


@pytest.mark.parametrize("text", GARBAGE)
def test_garbage_is_told_and_the_connection_stays(text: str) -> None:
    session = opened()
    actions = says(session, text)
    assert (told(actions), len(actions)) == ([INVALID_MESSAGE], 1)
    assert says(session, {"type": "ping"}) == [Tell(PongSent(None))]


def test_ten_invalid_messages_in_a_row_end_the_connection() -> None:
    session = opened()
    for text in GARBAGE[:9]:
        assert closed(says(session, text)) is None
    actions = says(session, GARBAGE[9])
    assert (told(actions), closed(actions)) == ([INVALID_MESSAGE], TOO_MANY_ERRORS)
    assert TOO_MANY_ERRORS.close_code == 1008


@pytest.mark.parametrize(
    "good", [{"type": "ping"}, {"type": "pong"}, {"type": "subscribe"}, {"type": "auth", "token": ""}]
)
def test_a_message_that_is_understood_ends_the_row(good: Any) -> None:
    session = opened()
    for _ in range(5):
        for text in GARBAGE[:9]:
            assert closed(says(session, text)) is None
        says(session, good)


def test_an_error_names_the_field_and_the_events_there_are() -> None:
    [action] = subscribe(opened(), event_types=["task.paused"])
    assert isinstance(action, Tell)
    assert isinstance(action.notice, Error)
    assert action.notice.detail.startswith("$.filters.event_types: ")
    assert all(name in action.notice.detail for name in TYPES)


def test_a_binary_message_ends_the_connection() -> None:
    for session in (opened(), new()):
        assert session.receive_binary() == [Close(NOT_TEXT)]
    assert NOT_TEXT.close_code == 1003


@given(st.lists(st.text() | st.sampled_from(GARBAGE) | st.sampled_from(['{"type":"ping"}', '{"type":"subscribe"}'])))
@settings(deadline=None, max_examples=200)
def test_a_conversation_of_any_words_raises_nothing(texts: list[str]) -> None:
    for session in (new(), opened()):
        for number, text in enumerate(texts):
            if closed(session.receive(text, float(number))) is not None:
                break
