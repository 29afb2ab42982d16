"""The state table as a whole. What its rows do in a turn is told in test_conversation.py."""

import random

import pytest

from tests.core.world import World, tapped, voice
from voiced.config import Config
from voiced.core import talk
from voiced.core.conversation import Conversation
from voiced.core.faults import FAULTS
from voiced.core.link import LinkState
from voiced.core.turn import FROM_SERVER, TABLE, Action, Cause, TurnState, UnlistedCause, follow
from voiced.events import KeyState, Tick

STATES = list(TurnState)

AT_ANY_TIME = {
    Cause.PRESS,  # a finger does as it likes,
    Cause.TAP,
    Cause.TAP_AGAIN,
    Cause.HOLD,  # and time may have changed the state under it
    Cause.RELEASE,
    Cause.HANG_UP,  # voicectl, too
    Cause.MUTE,
    Cause.LINK_LOST,
    Cause.REFUSED,
    Cause.DEVICE_LOST,
}


def reachable(start: TurnState) -> set[TurnState]:
    seen, ahead = {start}, [start]
    while ahead:
        for state, _ in TABLE[ahead.pop()].values():
            if state not in seen:
                seen.add(state)
                ahead.append(state)
    return seen


def test_every_state_has_a_row() -> None:
    assert set(TABLE) == set(STATES)


def test_every_state_is_reached_from_idle() -> None:
    assert reachable(TurnState.IDLE) == set(STATES)


@pytest.mark.parametrize("state", [s for s in STATES if s is not TurnState.IDLE])
def test_time_alone_leads_back_to_idle(state: TurnState) -> None:
    passed = [state]
    while state is not TurnState.IDLE:
        state, _ = TABLE[state][Cause.TIMEOUT]
        assert state not in passed, f"waiting goes round in circles: {passed}"
        passed.append(state)


def test_idle_waits_for_nothing() -> None:
    assert Cause.TIMEOUT not in TABLE[TurnState.IDLE]


@pytest.mark.parametrize("state", [s for s in STATES if s is not TurnState.IDLE])
@pytest.mark.parametrize("cause", [Cause.HANG_UP, Cause.DEVICE_LOST])
def test_every_state_can_be_left_for_idle_at_once(state: TurnState, cause: Cause) -> None:
    assert TABLE[state][cause][0] is TurnState.IDLE


@pytest.mark.parametrize("state", STATES)
def test_what_may_happen_at_any_time_is_listed(state: TurnState) -> None:
    assert set(TABLE[state]) >= AT_ANY_TIME


@pytest.mark.parametrize("state", [TurnState.THINKING, TurnState.SPEAKING])
def test_an_answer_can_be_interrupted(state: TurnState) -> None:
    assert TABLE[state][Cause.INTERRUPT] == (TurnState.LISTENING, Action.CUT)


@pytest.mark.parametrize("cause", [Cause.PRESS, Cause.INTERRUPT, Cause.TIMEOUT])
def test_leaving_a_sounding_answer_flushes_it(cause: Cause) -> None:
    assert TABLE[TurnState.SPEAKING][cause][1] in (Action.CUT, Action.CUT_AND_OPEN)


def test_only_a_press_leads_out_of_idle() -> None:
    assert [c for c, (to, _) in TABLE[TurnState.IDLE].items() if to is not TurnState.IDLE] == [
        Cause.PRESS
    ]


def test_every_cause_is_used() -> None:
    assert {cause for row in TABLE.values() for cause in row} == set(Cause)


def test_every_action_is_used_and_carried_out() -> None:
    assert {action for row in TABLE.values() for _, action in row.values()} == set(Action)
    assert set(talk._ACTIONS) == set(Action)


def test_no_two_names_read_the_same() -> None:
    for names in (TurnState, Cause, Action):
        assert len(names.__members__) == len(list(names))


def test_follow_reads_the_table() -> None:
    for state, row in TABLE.items():
        for cause, target in row.items():
            assert follow(state, cause) == target


@pytest.mark.parametrize("state", STATES)
def test_an_unlisted_cause_is_late_from_the_server_and_a_bug_from_us(state: TurnState) -> None:
    for cause in set(Cause) - set(TABLE[state]):
        if cause in FROM_SERVER:
            assert follow(state, cause) is None
        else:
            with pytest.raises(UnlistedCause, match=f"{cause.name} in {state.name}"):
                follow(state, cause)


# --- what comes at a bad moment ------------------------------------------------------------


def test_a_press_in_the_last_moment_of_listening_still_talks() -> None:
    """The first word's time runs out while the finger is down and not yet told apart."""
    world = tapped(World())
    world.press(114.8)
    world.say(voice(1.5), 115.3)
    world.release(117.0)
    world.run(12)
    assert world.core.state is TurnState.HEARING


def test_a_key_that_is_taken_away_ends_the_turn_with_a_sign() -> None:
    world = tapped(World())
    world.say(voice(3), 105.2)
    world.until_state(TurnState.HEARING)
    world.give(KeyState("key-missing", world.now, "no API key: set it"))
    world.run(1)
    assert world.core.state is TurnState.IDLE
    assert "refused" in [name for _, name in world.lights]


def test_a_mode_asked_for_in_a_turn_that_was_left_does_not_block_the_next() -> None:
    world = tapped(World())
    world.run(until=lambda: world.core.link.state is LinkState.UP)
    world.filter = lambda event: None if event["type"] == "session.updated" else event
    world.press(106.0)
    world.command("mute", 106.6)
    world.release(106.8)
    world.command("unmute", 107.0)
    world.press(110.0)
    world.say(voice(1.5), 110.2)
    world.release(112.0)
    world.run(15)
    assert "speaking" in world.states


def test_a_deadline_that_has_passed_is_not_asked_for_again() -> None:
    """Ten minutes without credit: the shell would tick for ever, as fast as it can."""
    core = Conversation(Config(), random.Random(1))
    core.link.lost(FAULTS["quota"], 100.0, wanted=True)
    due = core.deadline()
    while due is not None and due < 10_000:
        core.handle(Tick(due))
        following = core.deadline()
        assert following is None or following > due
        due = following
