"""What is made of the server's words, and of its errors."""

import json

import pytest

from tests.core.world import QUESTION, SECOND, World, asked, count_of, find, tapped
from voiced.config import Config, Microphone, Turn
from voiced.core.faults import HARMLESS_ERRORS
from voiced.core.link import LinkState
from voiced.core.server import RATE_LIMIT_TRIES
from voiced.core.turn import TurnState
from voiced.events import LinkFrame
from voiced.sim.realtime_session import Script

RATE, SERVER = "rate_limit_exceeded", "server_error"


def failing(*codes: str) -> World:
    world = tapped(World(script=Script(failures=codes)))
    world.say(QUESTION, 105.2)
    return world


# --- its settings ------------------------------------------------------------------------


def test_a_mode_that_was_never_confirmed_is_set_anew_for_the_next_turn() -> None:
    """It was applied all the same: the server ends no turn any more."""
    world = asked(World()).until_state(TurnState.LISTENING)
    told = len(world.events("session.update"))
    world.filter = lambda e: None if e["type"] == "session.updated" else e
    pressed = world.now + 0.5
    world.press(pressed)
    world.say(SECOND, pressed + 0.2)
    world.release(pressed + 2)
    world.run(pressed + 2 - world.now)
    world.until_state(TurnState.SPEAKING)
    world.filter = lambda e: e
    assert len(world.events("session.update")) > told
    world.until_state(TurnState.LISTENING)
    world.say(QUESTION, world.now + 0.5)
    world.until_state(TurnState.HEARING)
    world.until_state(TurnState.SPEAKING)
    assert world.core.snapshot()["counters"]["unheard_turns"] == 0


# --- its answers -------------------------------------------------------------------------


def test_an_answer_that_never_ends_does_not_keep_the_next_from_being_asked_for() -> None:
    world = asked(World()).until_state(TurnState.SPEAKING)
    world.filter = lambda e: None if e["type"] == "response.done" else e
    world.command("interrupt")
    pressed = world.now + 5
    world.press(pressed)
    world.say(SECOND, pressed + 0.2)
    world.release(pressed + 2)
    world.run(pressed + 2 - world.now)
    world.until_state(TurnState.SPEAKING)
    assert world.now - pressed < 4


def test_a_response_that_is_active_and_unknown_is_waited_for_not_stormed() -> None:
    busy = {
        "type": "error",
        "event_id": "e",
        "error": {
            "type": "invalid_request_error",
            "code": "conversation_already_has_active_response",
            "message": "busy",
        },
    }
    world = World()
    world.filter = lambda e: busy if e["type"] == "response.created" else e
    world.press(105.0)
    world.say(QUESTION, 105.2)
    world.release(107.0)
    world.run(20)
    assert len(world.events("response.create")) < 60


def test_a_server_that_forgets_its_response_is_asked_once() -> None:
    script = Script()
    world = World(script=script)

    def forget(event: dict) -> dict | None:
        if event["type"] == "session.updated":  # as if it had taken create_response
            assert world.server
            world.server.config["audio"]["input"]["turn_detection"]["create_response"] = False
        return event

    world.filter = forget
    asked(world)
    assert len(world.events("response.create")) == 1


def test_late_deltas_of_a_cancelled_answer_stay_silent() -> None:
    world = asked(World(script=Script(pace=1.2, late_deltas=5)))
    world.run(0.5)
    world.command("interrupt")
    world.run(0.0)
    heard = len(world.heard)
    world.run(3)
    assert len(world.heard) == heard
    assert world.core.snapshot()["counters"]["late_deltas"] >= 5


def test_a_press_before_the_response_exists_kills_it_when_it_comes() -> None:
    world = tapped(World(script=Script(think_ms=500)))
    world.say(QUESTION, 105.2)
    world.until_state(TurnState.THINKING)
    world.press()
    world.run(0.0)
    world.release(world.now + 0.1)
    world.run(3)
    assert len(world.heard) == 0
    assert world.verdict.violations == []


def test_several_items_are_played_in_order_and_cut_one_by_one() -> None:
    world = asked(World(script=Script(items=3, pace=0)))
    world.run(0.9)
    world.command("interrupt")
    world.run(3)
    assert len(world.events("conversation.item.truncate")) == 1
    assert len(world.events("conversation.item.delete")) == 1
    assert world.verdict.violations == []


def test_overlapping_items_sound_one_after_the_other() -> None:
    world = asked(World(script=Script(items=2))).until_state(TurnState.LISTENING)
    assert find(QUESTION, world.heard) >= 0


def test_response_done_before_the_end_of_the_sound_changes_nothing() -> None:
    world = asked(World(script=Script(pace=0)))
    done = next(t for t, e in world.received if e["type"] == "response.done")
    world.until_state(TurnState.LISTENING)
    assert world.now > done + 1.5
    assert world.events("conversation.item.truncate") == []


def test_a_function_call_without_words_listens_on() -> None:
    from voiced.sim.realtime_session import Call

    world = tapped(World(script=Script(call=Call("set_timer", '{"seconds":600}'))))
    world.say(QUESTION, 105.2)
    world.until_state(TurnState.THINKING).until_state(TurnState.LISTENING)


def test_a_response_that_never_comes_does_not_doom_the_next() -> None:
    world = World()
    world.filter = lambda e: None if e["type"].startswith("response.") else e
    tapped(world)
    world.say(QUESTION, 105.2)
    world.until_state(TurnState.THINKING)
    world.run(0.2)
    world.command("interrupt")
    world.run(4)
    world.filter = lambda e: e
    world.drop_link()
    asked(world, world.now + 15)


@pytest.mark.parametrize("code", sorted(HARMLESS_ERRORS))
def test_a_harmless_error_makes_no_sound(code: str) -> None:
    world = asked(World())
    before = len(world.chimes)
    error = {"type": "invalid_request_error", "code": code, "message": "a race"}
    told = {"type": "error", "event_id": "e1", "error": error}
    world.give(LinkFrame(json.dumps(told), world.now, 1))
    assert world.chimes[before:] == []


def test_an_answer_that_failed_leaves_no_piece_of_the_question_behind() -> None:
    config = Config(microphone=Microphone(echo="hardware"), turn=Turn(end="local"))
    world = tapped(World(config))
    world.say(QUESTION, 105.3)
    world.until_state(TurnState.THINKING)
    world.command("interrupt")
    world.run(3)
    assert world.states.count("hearing") == 1


# --- its settings ------------------------------------------------------------------------


def test_a_rejected_first_update_is_tried_without_its_optional_blocks() -> None:
    world = asked(World(script=Script(refuse_params=("session.reasoning",))))
    first, second = world.events("session.update")[:2]
    assert "reasoning" in first["session"]
    assert "reasoning" not in second["session"]


def test_a_server_of_another_protocol_is_refused() -> None:
    world = tapped(World(script=Script(refuse_params=("session.audio",))))
    world.run(3)
    assert world.core.link.state is LinkState.REFUSED
    assert "another protocol" in world.statuses[-1]


def test_a_mode_that_is_not_confirmed_becomes_a_commit() -> None:
    world = tapped(World())
    world.run(until=lambda: world.core.link.state is LinkState.UP)
    world.run(12)
    assert world.core.state is TurnState.IDLE
    world.filter = lambda e: None if e["type"] == "session.updated" else e
    at = world.now + 1
    world.press(at)
    world.say(QUESTION, at + 0.2)
    world.release(at + 1.9)
    world.until_state(TurnState.SPEAKING)
    assert world.events("input_audio_buffer.commit")
    assert find(QUESTION, world.appended()) >= 0


# --- an answer that fails ----------------------------------------------------------------


@pytest.mark.parametrize("codes", [(SERVER,), (RATE,), (RATE,) * RATE_LIMIT_TRIES])
def test_an_answer_that_failed_for_a_moment_is_asked_for_again(codes: tuple[str, ...]) -> None:
    world = failing(*codes).until_state(TurnState.SPEAKING)
    world.until_state(TurnState.LISTENING)
    assert count_of(QUESTION, world.appended()) == 1
    assert find(QUESTION, world.heard) >= 0
    assert not [name for _, name in world.chimes if name in ("server", "network")]
    assert world.verdict.violations == []


def test_a_rate_limit_is_no_fault_any_more_when_nobody_waits() -> None:
    world = failing(*[RATE] * 5)
    world.run(60, until=lambda: bool(world.core.snapshot()["faults"]))
    assert [each["fault"] for each in world.core.snapshot()["faults"]] == ["rate-limit"]
    world.command("hangup")
    world.run(0.1)
    assert not world.core.snapshot()["faults"]


def test_a_rate_limit_is_said_while_it_lasts() -> None:
    world = failing(RATE)
    world.run(until=lambda: "rate-limit" in world.core._health.faults)
    assert "the server limits the rate" in world.statuses[-1]
    world.until_state(TurnState.SPEAKING)
    assert "rate" not in world.statuses[-1]


@pytest.mark.parametrize(
    "codes", [(SERVER,) * 2, (RATE,) * (RATE_LIMIT_TRIES + 1), ("content_policy",)]
)
def test_an_answer_that_fails_for_good_is_told(codes: tuple[str, ...]) -> None:
    world = failing(*codes)
    world.run(until=lambda: "server" in [name for _, name in world.chimes])
    assert world.core.state in (TurnState.LISTENING, TurnState.IDLE)
    assert len([t for t in world.types() if t == "response.create"]) == len(codes) - 1


def test_who_interrupts_while_it_waits_to_ask_again_gets_no_answer() -> None:
    world = failing(RATE)
    world.run(until=lambda: "again" in world.core._timers)
    world.command("interrupt")
    world.run(10)
    assert "response.create" not in world.types()
    assert len(world.heard) == 0


def test_a_limit_that_lasts_longer_than_anybody_waits_is_told_at_once() -> None:
    world = failing(RATE)
    world.until_state(TurnState.THINKING)
    limits = [{"name": "requests", "limit": 10, "remaining": 0, "reset_seconds": 3600}]
    event = {"type": "rate_limits.updated", "event_id": "e", "rate_limits": limits}
    world.give(LinkFrame(json.dumps(event), world.now, world.core.link.dial))
    world.run(2)
    assert "server" in [name for _, name in world.chimes]
    assert "response.create" not in world.types()
