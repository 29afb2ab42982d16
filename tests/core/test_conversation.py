"""Whole turns in simulated time, against the built-in server's own rules."""

import json
import random

import msgspec
import numpy as np
import pytest

from tests.core.world import APPEND, World, tapped, voice
from tests.sim.openai_types import check_client_event
from voiced.config import Config, Gate, Microphone, Sounds, Turn
from voiced.core.faults import HARMLESS_ERRORS
from voiced.core.link import LinkState
from voiced.core.turn import TurnState
from voiced.events import (
    WIRE_RATE,
    DeviceBack,
    DeviceFault,
    KeyState,
    LinkClosed,
    LinkFrame,
    Reconfigured,
)
from voiced.sim.realtime_session import Script

LOCAL = Config(turn=Turn(end="local"))
QUESTION = voice(1.5)
SECOND = voice(1.5, seed=2)


def find(needle: np.ndarray, haystack: np.ndarray) -> int:
    """Where the one is in the other, by correlation; -1 if it is not."""
    spectrum = np.fft.rfft(haystack.astype(float), 2 * len(haystack))
    other = np.fft.rfft(needle.astype(float), 2 * len(haystack))
    match = np.fft.irfft(spectrum * np.conj(other))[: len(haystack)]
    place = int(np.argmax(match))
    part = haystack[place : place + len(needle)].astype(float)
    if len(part) < len(needle):
        return -1
    likeness = part @ needle / (np.linalg.norm(part) * np.linalg.norm(needle.astype(float)) + 1)
    return place if likeness > 0.95 else -1


def count_of(needle: np.ndarray, haystack: np.ndarray) -> int:
    """How often it is in there, one after the other."""
    times = 0
    while (place := find(needle, haystack)) >= 0:
        times += 1
        haystack = haystack.copy()
        haystack[place : place + len(needle)] = 0
    return times


def asked(world: World, at: float = 105.0, *, hold: bool = False) -> World:
    """Run until the answer to one question sounds."""
    world.run(at - world.now - 1)
    world.press(at)
    world.say(QUESTION, at + 0.2)
    world.release(at + 1.9 if hold else at + 0.1)
    return world.until_state(TurnState.SPEAKING)


@pytest.mark.parametrize("hold", [False, True])
@pytest.mark.parametrize("config", [Config(), LOCAL], ids=["server_vad", "local"])
def test_a_turn_is_heard_answered_and_played(config: Config, hold: bool) -> None:
    world = asked(World(config), hold=hold)
    world.until_state(TurnState.LISTENING)
    assert world.states == ["listening", "hearing", "thinking", "speaking", "listening"]
    assert find(QUESTION, world.appended()) >= 0
    assert find(QUESTION, world.heard) >= 0
    assert world.verdict.violations == []


@pytest.mark.parametrize("config", [Config(), LOCAL], ids=["server_vad", "local"])
def test_a_conversation_ends_in_idle_and_hangs_up(config: Config) -> None:
    world = asked(World(config)).until_state(TurnState.IDLE)
    assert world.core.link.state is LinkState.UP
    world.run(config.turn.hang_up_s + 1)
    assert world.core.link.state is LinkState.DOWN
    assert world.lights[-1][1] == "dark"


def test_everything_sent_is_of_the_openai_packages_types() -> None:
    for hold in (False, True):
        world = asked(World(), hold=hold)
        world.command("interrupt", world.now + 0.5)
        world.run(3)
        for _, event in world.sent:
            check_client_event(event)
        assert {"session.update", APPEND, "conversation.item.truncate"} <= set(
            world.types(audio=True)
        )


def test_the_first_update_sets_all_that_servers_default_differently() -> None:
    session = asked(World()).events("session.update")[0]["session"]
    assert session["audio"]["output"] == {
        "format": {"type": "audio/pcm", "rate": 24000},
        "voice": "marin",
        "speed": 1.0,
    }
    assert session["audio"]["input"]["turn_detection"]["silence_duration_ms"] == 600
    assert session["audio"]["input"]["turn_detection"]["interrupt_response"] is False
    assert session["audio"]["input"]["transcription"] is None
    assert session["output_modalities"] == ["audio"]


def test_push_to_talk_survives_serialisation_as_null() -> None:
    update = asked(World(), hold=True).events("session.update")[1]
    assert update["session"]["audio"]["input"] == {"turn_detection": None}


# --- the first word ------------------------------------------------------------------------


@pytest.mark.parametrize("hold", [False, True])
def test_what_was_said_up_to_the_preroll_before_the_press_is_sent(hold: bool) -> None:
    world = World()
    world.run(4)
    world.say(QUESTION, 104.75)
    world.press(105.0)
    world.release(106.8 if hold else 105.1)
    world.until_state(TurnState.SPEAKING)
    assert find(QUESTION, world.appended()) >= 0


@pytest.mark.parametrize("hold", [False, True])
@pytest.mark.parametrize("preroll_ms", [0, 100, 500])
def test_nothing_older_than_the_preroll_is_ever_sent(hold: bool, preroll_ms: int) -> None:
    world = World(Config(turn=Turn(preroll_ms=preroll_ms)))
    world.run(3)
    marker = voice(4.0, seed=5)
    world.say(marker, 103.5)
    world.press(105.0)
    world.release(107.8 if hold else 105.1)
    world.until_state(TurnState.SPEAKING)
    sent = world.appended()
    secret = marker[: round((1.5 - preroll_ms / 1000) * WIRE_RATE)]
    piece = secret[-2400:]
    assert find(piece, sent) < 0
    told = marker[len(secret) + 480 : len(secret) + 480 + 4800]
    assert find(told, sent) >= 0


@pytest.mark.parametrize("hold", [False, True])
def test_a_dial_of_three_seconds_loses_no_word(hold: bool) -> None:
    world = asked(World(dial_s=3.0), hold=hold)
    assert count_of(QUESTION, world.appended()) == 1
    world.until_state(TurnState.LISTENING)
    assert find(QUESTION, world.heard) >= 0
    assert world.verdict.violations == []


@pytest.mark.parametrize("config", [Config(), LOCAL], ids=["server_vad", "local"])
@pytest.mark.parametrize("hold", [False, True])
def test_a_link_lost_in_mid_utterance_loses_no_word(config: Config, hold: bool) -> None:
    world = World(config)
    world.run(4)
    world.press(105.0)
    world.say(QUESTION, 105.2)
    world.release(106.9 if hold else 105.1)
    world.at(106.2, world.drop_link)
    world.until_state(TurnState.SPEAKING)
    world.until_state(TurnState.LISTENING)
    assert len(world.dials) == 2
    assert find(QUESTION, world.heard) >= 0
    assert len(world.events("input_audio_buffer.commit")) == 1
    assert world.verdict.violations == []


def test_a_link_lost_while_thinking_asks_again_on_the_next() -> None:
    world = World(script=Script(think_ms=2000))
    world.filter = lambda e: None if e["type"] == "response.created" else e
    world.run(4)
    world.press(105.0)
    world.release(105.1)
    world.say(QUESTION, 105.2)
    world.until_state(TurnState.THINKING)
    world.filter = lambda e: e
    world.drop_link()
    world.until_state(TurnState.SPEAKING)
    world.until_state(TurnState.LISTENING)
    assert find(QUESTION, world.heard) >= 0


def test_an_answered_question_is_not_asked_again() -> None:
    world = World(script=Script(think_ms=2000))
    world.run(4)
    world.press(105.0)
    world.release(105.1)
    world.say(QUESTION, 105.2)
    world.until_state(TurnState.THINKING)
    world.run(0.5)
    world.drop_link()
    world.run(5)
    assert count_of(QUESTION, world.appended()) == 1
    assert "refused" in [name for _, name in world.lights]


def test_what_was_said_too_long_ago_is_not_sent_and_the_user_is_told() -> None:
    world = World()
    world.refuse_until = 145.0
    world.run(4)
    world.press(105.0)
    world.release(105.1)
    world.say(QUESTION, 105.2)
    world.run(55)
    assert world.events(APPEND) == []
    assert "refused" in [name for _, name in world.lights]


# --- the end of a turn ---------------------------------------------------------------------


@pytest.mark.parametrize("config", [Config(), LOCAL], ids=["server_vad", "local"])
def test_a_pause_for_thought_shorter_than_silence_ms_ends_nothing(config: Config) -> None:
    world = tapped(World(config))
    world.say(QUESTION, 105.2)
    world.say(QUESTION, 105.2 + 1.5 + 0.5)
    world.until_state(TurnState.SPEAKING)
    assert len([t for t, e in world.received if e["type"].endswith("committed")]) == 1
    assert count_of(QUESTION, world.appended()) == 2


def test_a_noisy_room_is_closed_with_zeros() -> None:
    """The server's VAD takes this room for speech: only digital silence ends the turn."""
    world = World(script=Script(vad_dbfs=-60.0), noise_rms=200.0)
    asked(world)
    zeros = [e for e in world.events(APPEND) if set(e["audio"]) <= set("A=")]
    assert zeros
    committed = next(t for t, e in world.received if e["type"].endswith("committed"))
    assert committed - 106.7 < 0.9


def test_silence_is_never_streamed() -> None:
    world = asked(World()).until_state(TurnState.LISTENING)
    before = len(world.sent)
    world.run(6)
    assert [e["type"] for _, e in world.sent[before:] if e["type"] == APPEND] == []
    world.until_state(TurnState.IDLE)
    world.run(50)
    assert len(world.sent) <= before + 2


def test_a_server_that_hears_nothing_is_cleared_and_listened_on() -> None:
    world = tapped(World(script=Script(vad_dbfs=0.0)))
    world.say(QUESTION, 105.2)
    world.until_state(TurnState.HEARING)
    world.until_state(TurnState.LISTENING)
    assert world.types()[-1] == "input_audio_buffer.clear"
    assert world.core.snapshot()["counters"]["unheard_turns"] == 1


def test_a_server_that_hears_no_end_gets_a_commit_and_the_vad_back() -> None:
    world = World()
    world.filter = lambda e: (
        None
        if e["type"].split(".")[-1] in ("speech_stopped", "committed", "added", "done", "created")
        and "session" not in e["type"]
        else e
    )
    tapped(world)
    world.say(QUESTION, 105.2)
    world.run(until=lambda: "input_audio_buffer.commit" in world.types())
    kinds = world.types()
    update, commit = kinds.index("session.update", 1), kinds.index("input_audio_buffer.commit")
    assert update < commit


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


def test_the_longest_turn_ends_by_itself_and_is_answered() -> None:
    world = World(Config(turn=Turn(longest_s=5)))
    world.run(4)
    world.press(105.0)
    world.say(voice(20), 105.2)
    world.until_state(TurnState.SPEAKING)
    assert world.now < 112
    assert len(world.appended()) <= 5 * WIRE_RATE


def test_without_a_gate_all_is_sent_from_the_press_on() -> None:
    world = asked(World(Config(gate=Gate(enabled=False))))
    assert find(QUESTION, world.appended()) >= 0
    first = world.first_append_at()
    assert first < 105.6  # before the gate could have opened: the mode was known at the release


def test_without_a_gate_a_press_with_nothing_said_ends() -> None:
    world = tapped(World(Config(gate=Gate(enabled=False))))
    world.run(14)
    assert world.core.state is TurnState.IDLE
    assert world.events("response.create") == []


# --- silence -------------------------------------------------------------------------------


def test_a_press_while_it_speaks_silences_truncates_and_listens() -> None:
    world = asked(World())
    world.run(0.7)
    world.press()
    world.run(0.0)
    assert world.core.state is TurnState.LISTENING
    heard_ms = len(world.heard) * 1000 // WIRE_RATE
    world.run(0.2)
    (cut,) = world.events("conversation.item.truncate")
    assert cut["audio_end_ms"] == heard_ms
    assert world.verdict.violations == []


def test_a_cut_before_the_answer_is_complete_cancels_it_too() -> None:
    world = asked(World(script=Script(pace=1.2)))
    world.run(0.5)
    world.command("interrupt")
    world.run(1)
    kinds = world.types()
    assert kinds.index("conversation.item.truncate") < kinds.index("response.cancel")
    assert world.verdict.violations == []
    assert world.verdict.races == 0


def test_late_deltas_of_a_cancelled_answer_stay_silent() -> None:
    world = asked(World(script=Script(pace=1.2, late_deltas=5)))
    world.run(0.5)
    world.command("interrupt")
    world.run(0.0)
    heard = len(world.heard)
    world.run(3)
    assert len(world.heard) == heard
    assert world.core.snapshot()["counters"]["late_deltas"] >= 5


def test_the_answer_after_a_cut_starts_with_its_own_first_sample() -> None:
    world = asked(World(script=Script(pace=1.2, late_deltas=5)))
    world.run(0.5)
    other = voice(1.2, seed=9)
    world.tap(world.now)
    world.say(other, world.now + 0.3)
    before = world.now
    world.until_state(TurnState.LISTENING).until_state(TurnState.SPEAKING)
    world.until_state(TurnState.LISTENING)
    assert before < world.now
    second = world.heard[-round(2.5 * WIRE_RATE) :]
    assert find(other, second) >= 0
    assert world.verdict.violations == []


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


def test_hang_up_silences_and_closes() -> None:
    world = asked(World())
    world.command("hangup")
    world.run(0.0)
    assert world.core.state is TurnState.IDLE
    assert world.core.link.state is LinkState.DOWN
    heard = len(world.heard)
    world.run(2)
    assert len(world.heard) == heard


def test_a_function_call_without_words_listens_on() -> None:
    from voiced.sim.realtime_session import Call

    world = tapped(World(script=Script(call=Call("set_timer", '{"seconds":600}'))))
    world.say(QUESTION, 105.2)
    world.until_state(TurnState.THINKING).until_state(TurnState.LISTENING)


# --- the button ----------------------------------------------------------------------------


def test_a_tap_with_nothing_said_hangs_up() -> None:
    world = tapped(World())
    world.tap(107.0)
    world.run(3.2)
    assert world.states == ["listening", "idle"]
    assert world.events(APPEND) == []


def test_a_hold_in_the_follow_up_window_talks() -> None:
    world = asked(World()).until_state(TurnState.LISTENING)
    at = world.now + 1
    world.press(at)
    world.say(QUESTION, at + 0.2)
    world.release(at + 1.9)
    world.until_state(TurnState.SPEAKING)
    assert world.events("input_audio_buffer.commit")
    assert world.verdict.violations == []


def test_a_press_in_mid_speech_ends_the_turn_now() -> None:
    world = tapped(World())
    world.say(voice(6), 105.2)
    world.press(107.0)
    world.release(107.1)
    world.run(3.05)
    assert world.core.state is TurnState.THINKING
    world.until_state(TurnState.SPEAKING)
    assert world.now < 108.5
    assert world.verdict.violations == []


def test_a_follow_up_needs_no_press() -> None:
    world = asked(World()).until_state(TurnState.LISTENING)
    other = voice(1.0, seed=3)
    world.say(other, world.now + 1)
    world.until_state(TurnState.SPEAKING)
    assert find(other, world.appended()) >= 0
    assert world.verdict.violations == []


def test_no_follow_up_if_not_wanted() -> None:
    world = asked(World(Config(turn=Turn(follow_up_s=0)))).until_state(TurnState.IDLE)
    assert world.states[-2:] == ["listening", "idle"]


# --- lights and mute -----------------------------------------------------------------------


def test_the_light_is_on_before_the_first_append() -> None:
    world = asked(World())
    lit = next(t for t, name in world.lights if name != "dark")
    assert lit <= world.first_append_at()


def test_nothing_is_sent_if_the_light_does_not_come_on() -> None:
    world = World()
    world.run(4)
    world.lights_work = False
    world.tap(105.0)
    world.say(QUESTION, 105.2)
    world.run(4)
    assert world.events(APPEND) == []


def test_lights_that_fail_in_a_turn_end_it_and_refuse_the_next_press() -> None:
    world = tapped(World())
    world.say(voice(5), 105.2)
    world.until_state(TurnState.HEARING)
    world.give(DeviceFault("lights", "lights-lost", "GPIO27", world.now))
    sent = len(world.events(APPEND))
    world.run(2)
    assert world.core.state is TurnState.IDLE
    assert len(world.events(APPEND)) == sent
    world.tap()
    world.run(1)
    assert world.core.state is TurnState.IDLE


def test_mute_in_mid_speech_sends_nothing_more_and_takes_back_what_was_sent() -> None:
    world = tapped(World())
    world.say(voice(4), 105.2)
    world.command("mute", 106.5)
    world.run(10)
    assert world.core.state is TurnState.IDLE
    assert world.types()[-1] == "input_audio_buffer.clear"
    assert all(t <= 106.5 for t, e in world.sent if e["type"] == APPEND)
    assert world.events("response.create") == []


@pytest.mark.parametrize("hold", [False, True])
def test_preroll_never_reaches_back_over_a_mute(hold: bool) -> None:
    world = World(muted=True)
    secret = voice(3, seed=4)
    world.run(3)
    world.say(secret, 103.5)
    world.command("unmute", 104.9)
    world.press(105.0)
    world.release(107.5 if hold else 105.1)
    world.run(8)
    sent = world.appended()
    before = round(1.4 * WIRE_RATE)
    assert find(secret[before - 4800 : before - 480], sent) < 0
    assert find(secret[before + 960 : before + 9600], sent) >= 0


def test_preroll_never_reaches_back_over_our_own_playback() -> None:
    """The microphone hears the speaker; a hold right after the answer must not send that."""
    world = asked(World())
    echo = voice(6, seed=8)
    world.say(echo, world.now)
    began = world.now
    world.until_state(TurnState.LISTENING)
    before = len(world.appended())
    over = world.now
    world.press(over + 0.05)
    world.release(over + 1.0)
    world.run(2)
    sent = world.appended()[before:]
    edge = round((over - began) * WIRE_RATE)
    assert len(sent) > 0
    assert find(echo[edge - 4800 : edge - 480], sent) < 0


def test_a_muted_press_is_refused_with_a_light() -> None:
    world = tapped(World(muted=True))
    world.say(QUESTION, 105.2)
    world.run(5)
    assert world.sent == []
    assert [name for _, name in world.lights][-3:] == ["muted", "refused", "muted"]


def test_a_muted_device_can_still_be_silenced() -> None:
    world = asked(World())
    world.command("mute")
    world.run(0.3)
    assert world.core.state is TurnState.SPEAKING
    world.press()
    world.run(0.0)
    assert world.core.state is TurnState.IDLE


# --- the link ------------------------------------------------------------------------------


def test_a_missing_key_refuses_and_a_new_one_forgives() -> None:
    world = World()
    world.give(KeyState("key-missing", world.now, "no API key: set it"))
    world.tap(101.0)
    world.run(2)
    assert world.dials == []
    assert "no API key" in world.statuses[-1]
    world.give(KeyState(None, world.now))
    world.tap()
    world.run(1)
    assert len(world.dials) == 1


@pytest.mark.parametrize(
    ("code", "reason", "state"),
    [
        (3000, "invalid_request_error.invalid_api_key", LinkState.REFUSED),
        (1001, "Your session hit the maximum duration of 60 minutes.", LinkState.WAITING),
        (1000, "", LinkState.WAITING),
        (1006, "", LinkState.WAITING),
        (1011, "", LinkState.WAITING),
        (None, "", LinkState.WAITING),
    ],
)
def test_what_a_close_means(code: int | None, reason: str, state: LinkState) -> None:
    world = tapped(World())
    world.run(until=lambda: world.core.link.state is LinkState.UP)
    world.drop_link(code, reason)
    assert world.core.link.state is state


def test_an_error_before_the_close_tells_more_than_its_code() -> None:
    world = tapped(World())
    world.run(until=lambda: world.core.link.state is LinkState.UP)
    error = {"type": "error", "error": {"type": "insufficient_quota", "code": "insufficient_quota"}}
    world.give(LinkFrame(json.dumps(error), world.now, 1))
    world.drop_link(1013)
    assert world.core.link.state is LinkState.REFUSED
    assert world.core.link.due is not None  # ten minutes later a press may try again


def test_idle_and_down_is_in_service_and_dials_nothing() -> None:
    world = asked(World()).until_state(TurnState.IDLE)
    world.drop_link()
    dials = len(world.dials)
    world.run(30)
    assert len(world.dials) == dials
    assert world.core.link.state is LinkState.DOWN


def test_frames_of_a_dead_socket_change_nothing() -> None:
    world = asked(World())
    world.give(LinkFrame('{"type":"session.created","session":{"id":"x"}}', world.now, 0))
    world.give(LinkClosed(world.now, 0, 1006))
    assert world.core.link.state is LinkState.UP


def test_a_server_that_says_nothing_is_given_up_and_redialled() -> None:
    world = World()
    world.filter = lambda e: None if "response" in e["type"] else e
    world.run(4)
    world.press(105.0)
    world.release(106.9)
    world.say(QUESTION, 105.2)
    world.run(until=lambda: len(world.dials) == 2)
    assert 10 < world.now - 106.9 < 12


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


def test_a_new_configuration_takes_effect_with_the_next_session() -> None:
    world = asked(World()).until_state(TurnState.LISTENING)
    world.give(Reconfigured(Config(turn=Turn(silence_ms=900)), world.now))
    world.until_state(TurnState.IDLE)
    assert world.core.link.state is LinkState.DOWN
    asked(world, world.now + 2)
    vad = world.events("session.update")[-1]["session"]["audio"]["input"]["turn_detection"]
    assert vad["silence_duration_ms"] == 900


# --- devices -------------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["microphone", "speaker"])
def test_a_lost_device_refuses_presses_until_it_is_back(device: str) -> None:
    world = World()
    world.run(4)
    world.give(DeviceFault(device, f"{device}-lost", "hw:1: No such device", world.now))  # type: ignore[arg-type]
    world.tap()
    world.run(0.3)
    assert world.core.state is TurnState.IDLE
    assert world.lights[-1][1] == "refused"
    assert "No such device" in world.statuses[-1]
    world.give(DeviceBack(device, world.now))  # type: ignore[arg-type]
    world.run(2)
    asked(world, world.now + 2)


def test_a_microphone_lost_while_it_speaks_lets_it_speak_on() -> None:
    world = asked(World())
    world.give(DeviceFault("microphone", "microphone-lost", "gone", world.now))
    assert world.core.state is TurnState.SPEAKING
    world.until_state(TurnState.IDLE)
    assert find(QUESTION, world.heard) >= 0


def test_a_link_lost_while_it_speaks_plays_what_came() -> None:
    world = asked(World(script=Script(pace=0)))
    world.drop_link()
    world.until_state(TurnState.LISTENING)
    assert find(QUESTION, world.heard) >= 0


# --- anything, in any order ----------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_random_orderings_never_break_a_rule(seed: int) -> None:
    """10,000 random moves in all: fingers, voices, drops, mutes, server tricks. The world's own
    checks are the assertions; at the end, left alone, every device comes to rest in IDLE."""
    rng = random.Random(seed)
    ends = [rng.choice(["server_vad", "local"])]
    script = Script(
        items=rng.choice([1, 2, 3]),
        pace=rng.choice([0, 1.2, 20]),
        late_deltas=rng.choice([0, 3]),
        think_ms=rng.choice([0, 300, 1500]),
    )
    config = Config(
        turn=Turn(end=ends[0], follow_up_s=rng.choice([0, 3.0])),  # type: ignore[arg-type]
        gate=Gate(enabled=ends[0] == "local" or rng.random() < 0.7),
    )
    world = World(config, script, dial_s=rng.choice([0.05, 1.0]))
    for _ in range(500):
        move = rng.random()
        if move < 0.35:
            world.press() if rng.random() < 0.5 else world.release()
        elif move < 0.5:
            world.say(voice(rng.uniform(0.2, 1.5), seed), world.now + rng.uniform(0, 0.5))
        elif move < 0.6:
            world.command(rng.choice(["interrupt", "hangup", "mute", "unmute", "unmute"]))
        elif move < 0.63:
            world.drop_link(rng.choice([1000, 1001, 1006, 1011, None]))
        elif move < 0.65:
            device = rng.choice(["microphone", "speaker", "lights"])
            world.give(DeviceFault(device, f"{device}-lost", "gone", world.now))  # type: ignore[arg-type]
            world.run(rng.uniform(0, 0.5))
            world.give(DeviceBack(device, world.now))  # type: ignore[arg-type]
        elif move < 0.66:
            turn = msgspec.structs.replace(config.turn, follow_up_s=rng.choice([1.0, 2.0]))
            world.give(Reconfigured(msgspec.structs.replace(config, turn=turn), world.now))
        elif move < 0.67 and world.server:
            world.give(LinkFrame(rng.choice(["{", "[]", '{"type":"x"}', b"\0"]), world.now, 1))
        world.run(rng.choice([0.0, 0.01, 0.1, 0.5, 1.0]))
    if world.core.muted:
        world.command("unmute")
    world.release()
    world.run(40)
    assert world.core.state is TurnState.IDLE
    world.run(config.turn.hang_up_s)
    assert world.core.link.state is LinkState.DOWN
    asked(world, world.now + 3)
    assert [v["text"] for v in world.verdict.violations] == []


def test_the_meter_counts_what_is_said_sent_and_heard_as_it_happens() -> None:
    world = asked(World())
    world.run(0.5)
    meter = world.core.meter()
    assert meter["said_s"] == pytest.approx(2.2, abs=0.3)
    assert meter["sent_s"] == pytest.approx(len(world.appended()) / WIRE_RATE, abs=0.01)
    assert meter["heard_s"] == pytest.approx(0.5, abs=0.05)
    world.command("interrupt")
    world.run(0.0)
    assert world.core.meter()["heard_s"] == pytest.approx(len(world.heard) / WIRE_RATE, abs=0.01)


# --- what a review found -------------------------------------------------------------------


@pytest.mark.parametrize("move", ["unmute", "reload"])
def test_a_needless_unmute_or_reload_in_mid_turn_changes_nothing(move: str) -> None:
    world = tapped(World())
    world.say(QUESTION, 105.2)
    new = Reconfigured(Config(turn=Turn(follow_up_s=9.0)), 106.9)
    if move == "unmute":
        world.command("unmute", 106.9)
    else:
        world.at(106.9, lambda: world.give(new))
    world.until_state(TurnState.SPEAKING)
    assert world.now < 109
    assert find(QUESTION, world.appended()) >= 0


def test_mute_while_it_thinks_is_deaf_to_a_late_word_of_the_server() -> None:
    world = tapped(World(script=Script(think_ms=1500)))
    world.say(QUESTION, 105.2)
    world.until_state(TurnState.THINKING)
    world.run(0.1)
    sent = len(world.events(APPEND))
    world.say(voice(1.0, seed=6), world.now)
    world.run(until=lambda: len(world.events(APPEND)) > sent)
    world.command("mute")
    world.until_state(TurnState.SPEAKING)
    world.until_state(TurnState.IDLE)
    assert "hearing" not in world.states[3:]


def test_nothing_from_before_a_mute_is_sent_again_after_it() -> None:
    world = World(script=Script(think_ms=2000))
    world.filter = lambda e: None if e["type"] == "response.created" else e
    tapped(world)
    world.say(QUESTION, 105.2)
    world.until_state(TurnState.THINKING)
    before = len(world.appended())
    world.command("mute")
    world.run(0.1)
    world.drop_link()
    world.command("unmute", world.now + 0.5)
    world.run(20)
    assert len(world.appended()) == before


@pytest.mark.parametrize("said", [False, True])
def test_without_a_gate_a_lost_link_does_not_record_the_room(said: bool) -> None:
    world = tapped(World(Config(gate=Gate(enabled=False))))
    if said:
        world.say(QUESTION, 105.2)
    world.at(106.0, world.drop_link)
    world.run(30)
    assert len(world.appended()) < 15 * WIRE_RATE
    assert len(world.events("input_audio_buffer.commit")) == said


def test_a_question_that_finds_no_network_ends_with_a_sign_in_time() -> None:
    world = World()
    world.refuse_until = 1e9
    tapped(world)
    world.say(QUESTION, 105.2)
    world.run(until=lambda: "refused" in [name for _, name in world.lights])
    assert world.now < 105.2 + 1.5 + 33
    assert "thinking" not in [name for _, name in world.lights]


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


def test_an_answer_that_stops_coming_is_given_up() -> None:
    world = asked(World(script=Script(pace=1.2)))
    world.filter = lambda e: None
    world.run(until=lambda: world.core.state is not TurnState.SPEAKING)
    assert len(world.dials) == 2


def test_a_fatal_error_without_a_close_is_not_asked_again() -> None:
    world = tapped(World())
    world.run(until=lambda: world.core.link.state is LinkState.UP)
    error = {"type": "error", "error": {"code": "insufficient_quota"}}
    world.give(LinkFrame(json.dumps(error), world.now, 1))
    world.run(40)
    assert world.core.link.state is LinkState.REFUSED
    assert len(world.dials) == 1


def test_hanging_up_while_it_speaks_tells_the_next_session_nothing() -> None:
    world = asked(World(script=Script(items=3, pace=0)))
    world.command("hangup")
    world.run(1)
    asked(world, world.now + 2)
    assert world.verdict.violations == []


def test_a_tap_into_the_follow_up_window_after_a_first_word_does_not_hang_up() -> None:
    world = asked(World()).until_state(TurnState.LISTENING)
    at = world.now + 1
    other = voice(1.2, seed=12)
    world.say(other, at)
    world.press(at + 0.04)
    world.release(at + 0.34)
    world.until_state(TurnState.SPEAKING)
    assert find(other, world.appended()) >= 0


def test_a_press_on_a_button_that_is_held_elsewhere_gets_a_sign() -> None:
    world = World()
    world.run(4)
    world.press(105.0)
    world.press(106.0)
    world.run(2.1)
    assert [reply.ok for reply in world.replies] == []
    assert "refused" in [n.name for n in world.notes]


# --- speaking over the answer --------------------------------------------------------------

ARRAY = Config(microphone=Microphone(echo="hardware"))
"""A microphone in which our own sound is not to be heard."""


LONG = Script(answer=voice(6, seed=9))


@pytest.mark.parametrize(("after_s", "within_s"), [(0.3, 0.8), (2.5, 0.25)])
def test_speech_over_an_answer_silences_it_and_is_a_turn(after_s: float, within_s: float) -> None:
    world = asked(World(ARRAY, LONG))
    began = world.now + after_s
    world.say(SECOND, began)
    world.until_state(TurnState.HEARING)
    assert world.now - began < within_s
    assert len(world.heard) < (after_s + within_s + 0.01) * WIRE_RATE
    world.until_state(TurnState.SPEAKING)
    assert find(SECOND, world.appended()) >= 0
    assert world.types().count("conversation.item.truncate") == 1
    assert world.verdict.violations == []


def test_the_answer_is_lowered_before_it_is_cut() -> None:
    world = asked(World(ARRAY, LONG))
    world.say(SECOND, world.now + 2.5)
    world.until_state(TurnState.HEARING)
    assert [on for _, on in world.ducks] == [True]
    assert world.ducks[0][0] < world.now


def test_a_click_over_an_answer_lowers_it_at_most() -> None:
    world = asked(World(ARRAY, LONG))
    click = np.zeros(WIRE_RATE // 10, np.int16)
    click[:480] = np.random.default_rng(4).normal(0, 6000, 480).astype(np.int16)
    world.say(click, world.now + 2.5)
    world.run(3.2)
    assert world.core.state is TurnState.SPEAKING
    assert [on for _, on in world.ducks] in ([], [True, False])


def test_half_duplex_is_deaf_while_it_speaks() -> None:
    world = asked(World(echo_gain=0.5))
    world.say(SECOND, world.now + 0.3)
    world.until_state(TurnState.LISTENING)
    assert world.ducks == []
    assert "hearing" not in world.states[world.states.index("speaking") :]
    assert find(SECOND[:WIRE_RATE], world.appended()) < 0


def test_who_speaks_into_the_end_of_an_answer_is_heard_from_the_first_word() -> None:
    world = asked(World(ARRAY))
    world.say(SECOND, world.now + len(QUESTION) / WIRE_RATE - 0.08)
    world.run(until=lambda: world.states.count("speaking") == 2)
    assert find(SECOND, world.appended()) >= 0


def test_what_was_taken_for_speech_and_is_none_to_the_server_ends_in_listening() -> None:
    world = asked(World(ARRAY, LONG))
    cough = voice(0.3, seed=21)
    world.filter = lambda event: (
        None if event["type"].startswith("input_audio_buffer.speech") else event
    )
    world.say(cough, world.now + 2.5)
    world.until_state(TurnState.HEARING)
    world.run(until=lambda: world.core.state in (TurnState.LISTENING, TurnState.THINKING))
    assert world.core.deadline() is not None


# --- ends by meaning -----------------------------------------------------------------------

MEANING = Config(turn=Turn(end="semantic_vad"))


def test_a_server_that_ends_turns_by_meaning_hears_the_room_until_it_does() -> None:
    world = asked(World(MEANING))
    detection = world.events("session.update")[0]["session"]["audio"]["input"]["turn_detection"]
    assert detection["type"] == "semantic_vad"
    assert detection["interrupt_response"] is False
    assert find(QUESTION, world.appended()) >= 0
    assert np.count_nonzero(world.appended()) > 0.98 * len(world.appended())  # no zeros of ours
    assert world.verdict.violations == []


def test_nothing_is_sent_before_somebody_speaks_or_after_the_turn_though_the_meaning_counts() -> (
    None
):
    world = tapped(World(MEANING))
    world.run(until=lambda: world.now > 108)
    assert len(world.appended()) == 0
    world.say(QUESTION, 108.5)
    world.until_state(TurnState.THINKING)
    sent = len(world.appended())
    world.run(0.2)
    assert len(world.appended()) == sent


def test_a_server_that_never_makes_up_its_mind_is_committed_to() -> None:
    world = World(MEANING)
    world.filter = lambda event: (
        None
        if event["type"] in ("input_audio_buffer.speech_stopped", "input_audio_buffer.committed")
        else event
    )
    tapped(world)
    world.say(QUESTION, 105.5)
    world.run(20)
    assert "input_audio_buffer.commit" in world.types()


def test_where_the_meaning_is_not_understood_the_plain_detection_serves() -> None:
    path = "session.audio.input.turn_detection.eagerness"
    world = asked(World(MEANING, Script(refuse_params=(path,))))
    kinds = [
        (e["session"]["audio"]["input"].get("turn_detection") or {}).get("type")
        for e in world.events("session.update")
    ]
    assert kinds[:2] == ["semantic_vad", "server_vad"]


# --- sounds, and a button held for nothing -------------------------------------------------


def test_a_button_held_for_nothing_costs_nothing_and_sounds() -> None:
    world = World()
    world.run(4)
    world.press(105.0)
    world.release(107.0)
    world.run(4)
    assert world.core.state is TurnState.IDLE
    assert "input_audio_buffer.commit" not in world.types()
    assert world.types()[-1] == "input_audio_buffer.clear"
    assert [name for _, name in world.chimes] == ["nothing-said"]


def test_a_whisper_into_a_held_button_is_a_turn() -> None:
    world = World(noise_rms=10)
    world.run(4)
    world.press(105.0)
    world.say((voice(1.0) * 0.02).astype(np.int16), 105.4)
    world.release(107.0)
    world.until_state(TurnState.SPEAKING)


def test_a_tap_and_nothing_said_ends_with_a_sound() -> None:
    world = tapped(World())
    world.run(2).until_state(TurnState.IDLE)
    assert [name for _, name in world.chimes] == ["listening", "nothing-said"]
    assert len(world.appended()) == 0


def test_no_sound_of_ours_gets_into_the_words_of_who_speaks_already() -> None:
    world = World()
    world.run(4)
    world.say(QUESTION, 104.9)
    world.tap(105.0)
    world.until_state(TurnState.THINKING)
    assert [name for _, name in world.chimes] == ["sent"]


def test_a_held_turn_is_free_of_sounds_until_it_is_sent() -> None:
    world = asked(World(), hold=True)
    assert [name for _, name in world.chimes] == ["sent"]
    assert world.chimes[0][0] > 105 + 1.9


def test_sounds_can_be_switched_off() -> None:
    world = asked(World(Config(sounds=Sounds(enabled=False))))
    world.command("hangup")
    world.run(1)
    assert world.chimes == []


@pytest.mark.parametrize("fault", ["key-missing", "key-refused"])
def test_a_refused_press_is_told_in_words_what_is_wrong(fault: str) -> None:
    world = World()
    world.give(KeyState(fault, world.now, "no key"))
    world.run(1)
    world.tap()
    world.run(1)
    assert [name for _, name in world.chimes] == [fault]


def test_a_light_that_fails_in_a_turn_sounds() -> None:
    world = World()
    world.run(4)
    world.press(105.0)
    world.run(until=lambda: world.now > 105.6)
    world.give(DeviceFault("lights", "lights-lost", "pin 27", world.now))
    assert world.chimes[-1][1] == "lights-lost"


def test_hanging_up_says_goodbye_but_never_behind_an_answer_that_is_cut() -> None:
    world = asked(World())
    world.command("hangup")
    world.run(1)
    assert [name for _, name in world.chimes] == ["listening", "sent"]
    world.tap(world.now)
    world.run(1)
    world.command("hangup")
    world.run(1)
    assert world.chimes[-1][1] == "goodbye"


def test_a_sound_of_ours_is_not_taken_for_speech_however_loud_it_comes_back() -> None:
    world = tapped(World(echo_gain=1.0))
    world.run(2).until_state(TurnState.IDLE)
    assert "hearing" not in world.states
    assert len(world.appended()) == 0


def test_what_is_said_into_a_sound_of_ours_is_not_lost() -> None:
    world = tapped(World(echo_gain=0.02))
    world.say(QUESTION, 105.12)  # the finger is up at 105.1
    world.until_state(TurnState.THINKING)
    assert [name for _, name in world.chimes[:1]] == ["listening"]
    assert find(QUESTION, world.appended()) >= 0


@pytest.mark.parametrize("code", sorted(HARMLESS_ERRORS))
def test_a_harmless_error_makes_no_sound(code: str) -> None:
    world = asked(World())
    before = len(world.chimes)
    error = {"type": "invalid_request_error", "code": code, "message": "a race"}
    told = {"type": "error", "event_id": "e1", "error": error}
    world.give(LinkFrame(json.dumps(told), world.now, 1))
    assert world.chimes[before:] == []


def test_a_line_so_slow_that_the_end_comes_late_makes_one_turn_of_one() -> None:
    world = tapped(World())
    world.run(until=lambda: world.core.link.state is LinkState.UP and world.now > 106)
    world.uplink_delay_s = 2.6
    world.say(voice(4, seed=3), 106.1)
    world.until_state(TurnState.SPEAKING)
    kinds = [event["type"] for _, event in world.received]
    assert kinds.count("input_audio_buffer.committed") == 1
    assert kinds.count("response.created") == 1
    assert "response.create" not in world.types()


def test_a_slow_dial_loses_nothing_where_the_meaning_ends_the_turn() -> None:
    world = tapped(World(MEANING, dial_s=12.0))
    world.say(QUESTION, 105.3)
    world.until_state(TurnState.SPEAKING)
    assert find(QUESTION, world.appended()) >= 0


def test_a_press_ends_a_turn_by_meaning_at_once() -> None:
    world = World(MEANING)
    world.filter = lambda event: (
        None if event["type"] == "input_audio_buffer.speech_stopped" else event
    )
    tapped(world)
    world.say(voice(4), 105.3)
    world.tap(108.0)
    world.run(until=lambda: "input_audio_buffer.commit" in world.types())
    assert world.now < 108.5


def test_an_answer_is_raised_again_when_nobody_can_be_heard_any_more() -> None:
    world = asked(World(ARRAY, LONG))
    world.say(SECOND, world.now + 0.3)
    world.run(until=lambda: bool(world.ducks))
    world.command("mute")
    world.run(0.1)
    assert [on for _, on in world.ducks] == [True, False]


def test_speech_over_an_answer_that_can_not_be_answered_is_refused_as_a_press_is() -> None:
    world = asked(World(ARRAY, LONG))
    world.run(2.5)
    world.give(KeyState("key-refused", world.now, "revoked"))
    world.say(SECOND, world.now + 0.1)
    world.run(1.5)
    assert world.core.state is TurnState.IDLE
    assert world.chimes[-1][1] == "key-refused"


def test_an_answer_that_failed_leaves_no_piece_of_the_question_behind() -> None:
    config = Config(microphone=Microphone(echo="hardware"), turn=Turn(end="local"))
    world = tapped(World(config))
    world.say(QUESTION, 105.3)
    world.until_state(TurnState.THINKING)
    world.command("interrupt")
    world.run(3)
    assert world.states.count("hearing") == 1


def test_a_press_that_cuts_an_answer_is_followed_by_silence() -> None:
    world = asked(World())
    before = len(world.chimes)
    world.tap(world.now + 0.3)
    world.run(2)
    assert world.chimes[before:] == []


def test_a_held_turn_whose_last_blocks_are_late_is_not_thrown_away() -> None:
    world = World()
    world.run(4)
    world.press(105.0)
    world.run(until=lambda: world.now > 105.45)
    world._hear = lambda: None  # type: ignore[method-assign]
    world.release(105.5)
    world.run(until=lambda: world.core.state is not TurnState.HEARING)
    world.run(0.5)
    assert "input_audio_buffer.commit" in world.types()
