"""One client's conversation, as values: what it says and the time go in, what is to be done comes out."""

import itertools
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.catalog import CATALOG
from broker.commands import Reply
from broker.events import Carried
from broker.filters import Filter
from broker.limits import Taken
from broker.positions import Position
from gateway.auth import READ_ONLY, Claims
from gateway.dialects.freeagentics import FREEAGENTICS, PRODUCTION
from gateway.dialects.maxicore import LIMITS, MAXICORE, TYPES
from gateway.hub import matches
from gateway.messages import (
    Action,
    Close,
    Command,
    Confirmed,
    Enter,
    Error,
    Expiring,
    Follow,
    GapSaid,
    Heartbeat,
    Interest,
    NearLimit,
    Notice,
    PongSent,
    PoolSaid,
    Sample,
    Send,
    StatusSaid,
    Subscribe,
    Take,
    Tell,
    Tune,
    Verify,
    Welcome,
)
from gateway.reasons import (
    AGENT_OFFLINE,
    COMMAND_FAILED,
    COMMAND_TIMEOUT,
    EVENTS_LOST,
    FLOOD,
    FORBIDDEN,
    GOODBYE,
    IDLE,
    INVALID_MESSAGE,
    INVALID_TOKEN,
    NOT_TEXT,
    PONG_TIMEOUT,
    TOO_MANY_CONNECTIONS,
    TOO_MANY_ERRORS,
    TOO_MANY_EVENT_TYPES,
    TOO_MANY_MESSAGES,
    TOO_MANY_SUBSCRIPTIONS,
    UNKNOWN_COMMAND,
    UNKNOWN_EVENT_TYPE,
    Reason,
)
from gateway.session import Session
from gateway.settings import Settings

HOUR = 3600.0
DEFAULTS = Settings()
FREEAGENTICS_TYPES = {name for name, kind in CATALOG.items() if kind.dialect == "freeagentics"}


def claims(*workspaces: str, scope: frozenset[str] = READ_ONLY, user: str = "user-1") -> Claims:
    return Claims(user, user, frozenset(workspaces or ["ws-456"]), scope, None, 0.0)


def new(now: float = 0.0, **changes: Any) -> Session:
    """A conversation that has just begun."""
    return Session(MAXICORE, LIMITS, Settings(**changes), now)


def opened(*workspaces: str, lifetime: float = 24 * HOUR, **changes: Any) -> Session:
    """One whose token was verified at the second 0."""
    session = new(**changes)
    assert session.authenticated(claims(*workspaces), lifetime, 0.0) == [Enter()]
    enter(session)
    return session


def enter(session: Session) -> None:
    """Let it in."""
    welcome = Welcome("client_1", "session_1")
    assert session.entered(welcome, None) == [Tell(welcome)]


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


def test_who_has_a_verified_token_looks_for_a_place() -> None:
    session = new()
    assert session.claims is None
    assert session.authenticated(claims(), HOUR, 0.0) == [Enter()]
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
    assert followed(subscribe(session)) != frozenset()
    assert says(session, {"type": "auth", "token": "Bearer next"}, 90.0) == [Verify("Bearer next")]
    assert session.authenticated(claims(), 200.0, 91.0) == []
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
    assert session.authenticated(claims(), HOUR, 0.0) == [Enter()]
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
    assert says(opened(), {"type": "ping"}) == [Tell(PongSent(0.0))]
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
    assert says(session, {"type": "ping"}) == [Tell(PongSent(0.0))]


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


# -- a place among others


def arrived(session: Session, message: Any, now: float = 0.0) -> list[Action]:
    """What a message that is counted brings."""
    return session.arrive(message if isinstance(message, str) else json.dumps(message), now)


def place_for(
    *workspaces: str, scope: str = "events:read", limits: Any = None, lifetime: float = 24 * HOUR, **changes: Any
) -> Session:
    """A FreeAgentics client's conversation, from the second 0 on; `limits` are those that differ."""
    allowed = msgspec.structs.replace(PRODUCTION, **({"max_user_messages_per_minute": None} | (limits or {})))
    session = Session(FREEAGENTICS, allowed, Settings(**changes), 0.0)
    assert session.authenticated(claims(*workspaces, scope=frozenset(scope.split())), lifetime, 0.0) == [Enter()]
    enter(session)
    return session


def notices(actions: list[Action]) -> list[Notice]:
    return [action.notice for action in actions if isinstance(action, Tell)]


def test_who_has_a_place_is_welcomed_and_told_how_many_its_user_has() -> None:
    session = new()
    session.authenticated(claims(), HOUR, 0.0)
    welcome, pool = Welcome("client_1", "session_1"), PoolSaid("pool_1", 3, 5)
    assert session.entered(welcome, pool) == [Tell(welcome), Tell(pool)]


def test_who_finds_no_place_is_told_when_to_come_back_and_closed() -> None:
    session = new()
    session.authenticated(claims(), HOUR, 0.0)
    actions = session.turned_away(12.5)
    assert (told(actions), closed(actions)) == ([TOO_MANY_CONNECTIONS], TOO_MANY_CONNECTIONS)
    assert [notice.retry_after for notice in notices(actions) if isinstance(notice, Error)] == [12.5]
    assert TOO_MANY_CONNECTIONS.close_code == 1013


def test_who_loses_its_place_is_told_the_same() -> None:
    assert closed(place_for().turned_away(60.0)) is TOO_MANY_CONNECTIONS


def test_a_token_that_is_renewed_while_a_place_is_looked_for_takes_no_second_one() -> None:
    session = new()
    assert session.authenticated(claims(), HOUR, 0.0) == [Enter()]
    assert session.authenticated(claims(), 2 * HOUR, 1.0) == []
    enter(session)
    assert closed(session.tick(HOUR, HOUR)) is None


def test_a_token_that_is_renewed_later_takes_no_second_place_either() -> None:
    assert place_for().authenticated(claims(), HOUR, 1.0) == []


def test_a_token_of_another_subject_renews_nothing() -> None:
    """Its connection and its messages are counted with the first one's."""
    for session in (opened(), place_for()):
        actions = session.authenticated(claims(user="user-2"), HOUR, 1.0)
        assert (told(actions), closed(actions)) == ([INVALID_TOKEN], INVALID_TOKEN)


# -- a token that expires


def test_a_minute_before_its_token_expires_a_client_is_told_once() -> None:
    session = place_for(lifetime=600.0, heartbeat_seconds=HOUR)
    assert session.due() == 540.0
    assert session.tick(539.9, 0.0) == []
    assert session.tick(540.0, 0.0) == [Tell(Expiring(60.0))]
    assert session.due() == 600.0
    assert session.tick(560.0, 0.0) == []
    actions = session.tick(600.0, 0.0)
    assert (told(actions), closed(actions)) == ([INVALID_TOKEN], INVALID_TOKEN)


def test_a_token_that_is_nearly_over_is_told_of_at_once() -> None:
    session = place_for(lifetime=20.0)
    assert session.due() <= 0.0
    assert session.tick(1.0, 0.0) == [Tell(Expiring(19.0))]


def test_a_renewal_puts_the_warning_off() -> None:
    session = place_for(lifetime=600.0, heartbeat_seconds=HOUR)
    session.tick(540.0, 0.0)
    assert session.authenticated(claims(scope=frozenset({"events:read"})), 600.0, 550.0) == []
    assert session.due() == 1090.0
    assert session.tick(600.0, 0.0) == []
    assert session.tick(1090.0, 0.0) == [Tell(Expiring(60.0))]


def test_a_maxicore_client_is_not_told() -> None:
    session = opened(lifetime=600.0, heartbeat_seconds=HOUR)
    assert session.due() == 600.0
    assert session.tick(540.0, 0.0) == []
    assert MAXICORE.say(Expiring(60.0), 0.0) is None


# -- messages in a minute

PING = {"type": "ping"}


def pings(session: Session, count: int, now: float = 0.0) -> list[Action]:
    return [action for _ in range(count) for action in arrived(session, PING, now)]


def warned(actions: list[Action]) -> list[NearLimit]:
    return [notice for notice in notices(actions) if isinstance(notice, NearLimit)]


def test_the_ninety_fifth_message_of_a_hundred_is_warned_of_once() -> None:
    session = place_for()
    assert warned(pings(session, 1, 10.0)) == []
    assert warned(pings(session, 93, 20.0)) == []
    assert arrived(session, PING, 30.0) == [Tell(NearLimit(95, 100, 40.0, is_users=False)), Tell(PongSent(30.0))]
    assert warned(pings(session, 50, 40.0)) == []


def test_the_hundred_and_first_message_is_refused_and_not_done() -> None:
    session = place_for()
    assert told(pings(session, 100, 10.0)) == []
    [action] = arrived(session, {"type": "subscribe", "data": {"events": ["metrics"]}}, 20.0)
    assert isinstance(action, Tell)
    assert isinstance(action.notice, Error)
    assert (action.notice.reason, action.notice.retry_after) == (TOO_MANY_MESSAGES, 50.0)
    assert isinstance(action.notice.request, Subscribe), "so that it can be answered in its own words"
    assert TOO_MANY_MESSAGES.close_code is None
    assert notices(says(session, {"type": "unsubscribe"})) == [Confirmed((), ())]


def test_a_minute_after_its_first_message_a_client_has_a_hundred_more() -> None:
    session = place_for()
    pings(session, 130, 10.0)
    assert told(arrived(session, PING, 69.9)) == [TOO_MANY_MESSAGES]
    actions = pings(session, 100, 70.0)
    assert told(actions) == []
    assert warned(actions) == [NearLimit(95, 100, 60.0, is_users=False)]
    assert told(arrived(session, PING, 71.0)) == [TOO_MANY_MESSAGES]


def test_twice_as_many_messages_as_allowed_end_the_conversation() -> None:
    session = place_for()
    actions = pings(session, 199)
    assert (told(actions), closed(actions)) == (99 * [TOO_MANY_MESSAGES], None)
    actions = arrived(session, PING, 1.0)
    assert (told(actions), closed(actions)) == ([FLOOD], FLOOD)
    assert FLOOD.close_code == 1008


def test_what_was_refused_in_one_minute_is_forgiven_in_the_next() -> None:
    session = place_for()
    for minute in range(5):
        actions = pings(session, 199, 60.0 * minute)
        assert (told(actions), closed(actions)) == (99 * [TOO_MANY_MESSAGES], None)


def test_what_is_refused_is_a_sign_of_life_and_no_mistake() -> None:
    session = place_for()
    pings(session, 100)
    for number in range(50):
        assert told(arrived(session, "hello", 1.0 + number)) == [TOO_MANY_MESSAGES]
    session = place_for()
    brought = beats(session, 600.0, lambda now: pings(session, 150, now))
    assert closed([action for _, action in brought]) is None


def test_before_a_client_has_its_place_nothing_is_counted() -> None:
    session = Session(FREEAGENTICS, PRODUCTION, DEFAULTS, 0.0)
    assert arrived(session, {"type": "auth", "data": {"token": "a.b.c"}}) == [Verify("a.b.c")]
    session.authenticated(claims(), HOUR, 0.0)
    enter(session)
    assert arrived(session, PING) == [Take(json.dumps(PING))]


def test_a_maxicore_client_may_say_as_much_as_it_likes() -> None:
    session = opened()
    assert pings(session, 1000) == 1000 * [Tell(PongSent(0.0))]


def test_a_limit_that_was_lifted_does_not_count() -> None:
    session = place_for(limits={"max_messages_per_minute": None})
    assert pings(session, 1000) == 1000 * [Tell(PongSent(0.0))]


# -- messages of all of a user's connections

USERS = {"max_user_messages_per_minute": 500}


def test_what_a_connection_may_say_is_counted_among_all_of_its_users() -> None:
    session, text = place_for(limits=USERS), json.dumps(PING)
    assert session.arrive(text, 1.0) == [Take(text)]
    assert session.taken(text, Taken(True, 1, 59.0), 2.0) == [Tell(PongSent(2.0))]
    assert place_for(limits=USERS | {"max_messages_per_minute": None}).arrive(text, 1.0) == [Take(text)]


def test_a_user_is_warned_once_by_whichever_connection_comes_to_it() -> None:
    session, text = place_for(limits=USERS), json.dumps(PING)
    for used in (1, 474, 476, 500):
        assert session.taken(text, Taken(True, used, 30.0), 1.0) == [Tell(PongSent(1.0))]
    assert session.taken(text, Taken(True, 475, 30.0), 1.0) == [
        Tell(NearLimit(475, 500, 30.0, is_users=True)),
        Tell(PongSent(1.0)),
    ]


def test_a_user_who_has_said_too_much_is_refused_and_never_closed() -> None:
    session = place_for(limits=USERS)
    text = json.dumps({"type": "command", "data": {"agent_id": "a", "command": "stop"}})
    for _ in range(1000):
        [action] = session.taken(text, Taken(False, 500, 30.0), 1.0)
        assert isinstance(action, Tell)
        assert isinstance(action.notice, Error)
        assert (action.notice.reason, action.notice.retry_after) == (TOO_MANY_MESSAGES, 30.0)
        assert action.notice.request == Command("a", "stop", {})


def test_what_the_connection_refuses_takes_nothing_from_the_user() -> None:
    session = place_for(limits=USERS)
    actions = pings(session, 150)
    assert sum(isinstance(action, Take) for action in actions) == 100
    assert told(actions) == 50 * [TOO_MANY_MESSAGES]
    assert len(warned(actions)) == 1


# -- subscriptions by type


def by_type(session: Session, *events: str, kind: str = "subscribe", now: float = 0.0, **data: Any) -> list[Action]:
    return says(session, {"type": kind, "data": {"events": list(events)} | data}, now)


def test_a_subscription_is_confirmed_once_it_is_followed() -> None:
    session = place_for()
    [follow] = by_type(session, "agent_status", "metrics", agents=["a"])
    assert isinstance(follow, Follow)
    assert follow.said == Confirmed(("agent_status", "metrics"), ("a",))
    assert matches(follow.interest, Carried(type="metrics_update", data=msgspec.Raw(b"{}"), workspace_id="ws-456"))
    assert (follow.sampled, follow.since) == (frozenset(), None)


def test_what_changes_nothing_is_confirmed_at_once() -> None:
    session = place_for()
    by_type(session, "metrics")
    assert by_type(session, "metrics_update") == [Tell(Confirmed(("metrics",), ()))]
    assert by_type(session, "agent_status", kind="unsubscribe") == [Tell(Confirmed(("metrics",), ()))]


def test_giving_back_is_confirmed_with_what_remains() -> None:
    session = place_for()
    by_type(session, "metrics", "agent_status")
    [follow] = by_type(session, "metrics", kind="unsubscribe")
    assert isinstance(follow, Follow)
    assert follow.said == Confirmed(("agent_status",), ())
    [follow] = says(session, {"type": "unsubscribe"})
    assert follow == Follow(frozenset(), said=Confirmed((), ()))


def test_a_position_is_followed_from_and_confirmed() -> None:
    session = place_for()
    before = followed(by_type(session, "agent_status"))
    [follow] = by_type(session, "agent_created", since="5-0")
    assert isinstance(follow, Follow)
    assert (follow.since, follow.before) == ({"ws-456": "5-0"}, before)
    assert [wanted.types for wanted in follow.fresh] == [frozenset({"agent_created"})]
    assert follow.said == Confirmed(("agent_status", "agent_created"), ())


def test_what_is_refused_changes_nothing_and_says_what_was_asked() -> None:
    session = place_for()
    by_type(session, *(f"{name}s" for name in ("metrics_update", "system_alert")))
    many = [*sorted(FREEAGENTICS_TYPES), "connection_established", "command_error"]
    for actions, reason in (
        (by_type(session, "metrics", "invalid_event"), UNKNOWN_EVENT_TYPE),
        (by_type(session, *many), TOO_MANY_EVENT_TYPES),
        (by_type(session, "agent_status", since={"ws-other": "5-0"}), FORBIDDEN),
        (by_type(place_for(scope="commands:send"), "metrics"), FORBIDDEN),
    ):
        [action] = actions
        assert isinstance(action, Tell)
        assert isinstance(action.notice, Error)
        assert action.notice.reason is reason
        assert isinstance(action.notice.request, Subscribe)
    assert notices(says(session, {"type": "unsubscribe", "data": {"agents": ["nobody"]}})) == []


# -- configure


def configure(session: Session, now: float = 0.0, **data: Any) -> list[Action]:
    return says(session, {"type": "configure", "data": data}, now)


def test_how_it_is_delivered_is_tuned_and_what_is_not_named_stays() -> None:
    session = place_for()
    assert configure(session, buffer_size=100) == [Tune(100, None)]
    assert configure(session, compression=False) == [Tune(None, False)]
    assert configure(session, buffer_size=1, compression=True) == [Tune(1, True)]
    assert configure(session) == []


def test_with_an_interval_only_metrics_are_sampled_and_nothing_is_lost() -> None:
    session = place_for()
    everything = followed(by_type(session, *sorted(FREEAGENTICS_TYPES)))
    [follow] = configure(session, metrics_interval=5000)
    assert isinstance(follow, Follow)
    for kind in FREEAGENTICS_TYPES:
        happened = Carried(type=kind, data=msgspec.Raw(b"{}"), workspace_id="ws-456", agent_id="a")
        assert matches(everything, happened)
        assert matches(follow.sampled, happened) == (kind == "metrics_update")
        assert matches(follow.interest, happened) == (kind != "metrics_update")
    assert follow.said is None


def test_metrics_come_once_in_an_interval() -> None:
    session = place_for(heartbeat_seconds=HOUR)
    by_type(session, "metrics", "agent_status")
    configure(session, 2.0, metrics_interval=5000)
    assert session.due() == 7.0
    assert session.tick(6.9, 0.0) == []
    assert beats(session, 20.0) == [(7.0, Sample()), (12.0, Sample()), (17.0, Sample())]


def test_a_clock_that_comes_late_brings_no_two_samples_for_it() -> None:
    session = place_for(heartbeat_seconds=HOUR)
    by_type(session, "metrics")
    configure(session, 0.0, metrics_interval=1000)
    assert session.tick(10.5, 0.0) == [Sample()]
    assert session.tick(10.6, 0.0) == []
    assert session.due() == 11.5


def test_an_interval_may_be_set_before_anything_is_subscribed_to() -> None:
    session = place_for(heartbeat_seconds=HOUR)
    assert configure(session, 0.0, metrics_interval=5000) == []
    assert session.due() == HOUR, "nothing is sampled yet"
    by_type(session, "agent_status", now=20.0)
    assert session.due() == HOUR
    [follow] = by_type(session, "metrics", now=30.0)
    assert isinstance(follow, Follow)
    assert [wanted.types for wanted in follow.sampled] == [frozenset({"metrics_update"})]
    samples = [now for now, action in beats(session, 60.0) if isinstance(action, Sample)]
    assert all(later - earlier >= 5.0 for earlier, later in itertools.pairwise(samples))
    assert len(samples) >= 5


def test_another_interval_holds_from_now_on() -> None:
    session = place_for(heartbeat_seconds=HOUR)
    by_type(session, "metrics")
    configure(session, 0.0, metrics_interval=60_000)
    assert configure(session, 10.0, metrics_interval=1000) == []
    assert beats(session, 12.0) == [(11.0, Sample()), (12.0, Sample())]


def test_who_gives_metrics_back_needs_no_sample() -> None:
    session = place_for(heartbeat_seconds=HOUR)
    by_type(session, "metrics")
    configure(session, 0.0, metrics_interval=1000)
    by_type(session, "metrics", kind="unsubscribe")
    assert session.due() == HOUR
    assert session.tick(30.0, 0.0) == []


def test_samples_keep_nobody_from_the_heartbeat() -> None:
    session = place_for()
    by_type(session, "metrics")
    configure(session, 0.0, metrics_interval=10_000)
    brought = beats(session, 60.0, lambda now: session.receive_pong())
    assert [now for now, action in brought if isinstance(action, Heartbeat)] == [30.0, 60.0]
    assert [now for now, action in brought if isinstance(action, Sample)] == [10.0, 20.0, 30.0, 40.0, 50.0, 60.0]


# -- commands

SENDER = "events:read commands:send"


def command(session: Session, name: str = "stop", **data: Any) -> list[Action]:
    return says(session, {"type": "command", "data": {"agent_id": "agent_123", "command": name} | data})


@pytest.mark.parametrize("name", ["start", "stop", "restart", "update_config", "get_status"])
def test_a_command_is_sent_to_an_agent_of_the_tokens_workspaces(name: str) -> None:
    session = place_for("ws-1", "ws-2", scope=SENDER)
    asked = Command("agent_123", name, {"graceful": True}, "req_1")
    assert command(session, name, parameters={"graceful": True}, request_id="req_1") == [
        Send(asked, frozenset({"ws-1", "ws-2"}))
    ]


def test_a_command_may_name_the_workspace_of_its_agent() -> None:
    [send] = command(place_for("ws-1", "ws-2", scope=SENDER), workspace_id="ws-2")
    assert isinstance(send, Send)
    assert send.workspaces == frozenset({"ws-2"})


@pytest.mark.parametrize(
    ("scope", "data", "reason"),
    [
        ("events:read", {}, FORBIDDEN),
        (SENDER, {"workspace_id": "ws-other"}, FORBIDDEN),
        (SENDER, {"name": "explode"}, UNKNOWN_COMMAND),
        (SENDER, {"name": "STOP"}, UNKNOWN_COMMAND),
        (SENDER, {"name": ""}, UNKNOWN_COMMAND),
    ],
)
def test_a_command_that_is_not_granted_is_refused_with_what_was_asked(scope: str, data: Any, reason: Reason) -> None:
    session = place_for(scope=scope)
    [action] = command(session, **data)
    assert isinstance(action, Tell)
    assert isinstance(action.notice, Error)
    assert action.notice.reason is reason
    assert isinstance(action.notice.request, Command)
    assert reason.close_code is None


STOP, GET_STATUS = (Command("agent_123", name, {}, "req_1") for name in ("stop", "get_status"))


def test_a_command_that_did_not_reach_its_agent_is_told() -> None:
    session = place_for(scope=SENDER)
    assert session.unsent(STOP, AGENT_OFFLINE) == [Tell(Error(AGENT_OFFLINE, AGENT_OFFLINE.text, STOP))]
    assert session.unsent(STOP, INVALID_MESSAGE, "why") == [Tell(Error(INVALID_MESSAGE, "why", STOP))]


@pytest.mark.parametrize("asked", [STOP, GET_STATUS])
def test_a_command_that_failed_is_told_in_the_agents_words(asked: Command) -> None:
    session = place_for(scope=SENDER)
    [error] = notices(session.replied(asked, Reply("k", "failed", "CONFIG_REJECTED", "no such model")))
    assert isinstance(error, Error)
    assert (error.reason.code, error.detail, error.request) == ("CONFIG_REJECTED", "no such model", asked)
    assert error.reason.close_code is None


def test_an_agent_that_does_not_say_why_has_failed_all_the_same() -> None:
    [error] = notices(place_for(scope=SENDER).replied(STOP, Reply("k", "failed")))
    assert isinstance(error, Error)
    assert (error.reason, error.detail) == (COMMAND_FAILED, COMMAND_FAILED.text)


@pytest.mark.parametrize("asked", [STOP, GET_STATUS])
def test_an_agent_that_is_silent_is_a_timeout(asked: Command) -> None:
    actions = place_for(scope=SENDER).replied(asked, Reply("k", "timeout"))
    assert actions == [Tell(Error(COMMAND_TIMEOUT, COMMAND_TIMEOUT.text, asked))]


def test_only_who_asks_for_a_status_hears_of_success() -> None:
    session, status = place_for(scope=SENDER), {"new_status": "idle", "old_status": "idle"}
    assert session.replied(GET_STATUS, Reply("k", "done", result=status)) == [Tell(StatusSaid("agent_123", status))]
    assert session.replied(STOP, Reply("k", "done", result=status)) == []
    assert session.replied(STOP, Reply("k", "done")) == []


@pytest.mark.parametrize("result", [None, {}, {"status": "idle"}, {"new_status": None}, {"new_status": 5}])
def test_who_asks_for_a_status_and_gets_none_is_told_so(result: Any) -> None:
    """It has an `agent_status` or an error to come, and nothing else would ever tell it."""
    actions = place_for(scope=SENDER).replied(GET_STATUS, Reply("k", "done", result=result))
    assert told(actions) == [COMMAND_FAILED]


# -- leaving


def test_who_says_goodbye_is_closed_as_it_wishes() -> None:
    actions = says(place_for(), {"type": "disconnect", "data": {"reason": "user_initiated"}})
    assert actions == [Close(GOODBYE)]
    assert GOODBYE.close_code == 1000


def test_a_freeagentics_client_may_be_idle() -> None:
    session = place_for(idle_seconds=10.0)
    by_type(session, "agent_status")
    brought = beats(session, 6 * HOUR, lambda now: session.receive_pong())
    assert [action for _, action in brought] == 6 * 120 * [Heartbeat()]


def test_but_it_must_answer_pings() -> None:
    assert beats(place_for(), HOUR)[-1] == (120.0, Close(PONG_TIMEOUT))


FREE_WORDS = [
    *('{"type":"ping"}', '{"type":"pong"}', '{"type":"unsubscribe"}', '{"type":"disconnect"}', "hello"),
    *(
        '{"type":"subscribe","data":{"events":["metrics","agent_status"]}}',
        '{"type":"subscribe","data":{"events":[""]}}',
    ),
    *('{"type":"configure","data":{"metrics_interval":250,"buffer_size":5}}', '{"type":"auth","data":{"token":""}}'),
    *('{"type":"command","data":{"agent_id":"a","command":"stop"}}', '{"type":"command","data":{}}'),
]


@given(
    st.lists(st.tuples(st.sampled_from(FREE_WORDS) | st.text(), st.floats(0.0, 40.0), st.booleans()), max_size=30),
    st.sampled_from([SENDER, "events:read", ""]),
)
@settings(deadline=None, max_examples=200)
def test_a_conversation_of_any_words_at_any_time_raises_nothing_and_can_be_said(
    said: list[tuple[str, float, bool]], scope: str
) -> None:
    session = place_for(scope=scope, limits=USERS | {"max_messages_per_minute": 10}, lifetime=300.0)
    now = 0.0
    for text, later, is_granted in said:
        now += later
        actions = session.tick(now, 0.0)
        for action in session.arrive(text, now):
            taken = Taken(is_granted, 475, 10.0)
            actions += session.taken(text, taken, now) if isinstance(action, Take) else [action]
        for notice in notices(actions):
            assert FREEAGENTICS.say(notice, now) is not None
        if closed(actions[-1:]) is not None:
            break
