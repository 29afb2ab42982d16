"""Which words become a turn, what ends it, and what is silenced."""

import numpy as np
import pytest

from tests.core.world import (
    APPEND,
    LOCAL,
    QUESTION,
    SECOND,
    World,
    asked,
    count_of,
    find,
    tapped,
    voice,
)
from voiced.config import Config, Gate, Microphone, Turn
from voiced.core.link import LinkState
from voiced.core.turn import TurnState
from voiced.events import BLOCK_FRAMES, BLOCK_MS, WIRE_RATE, KeyState, MicrophoneBlock
from voiced.sim.realtime_session import Script

ARRAY = Config(microphone=Microphone(echo="hardware"))
"""A microphone in which our own sound is not to be heard."""

LONG = Script(answer=voice(6, seed=9))
MEANING = Config(turn=Turn(end="semantic_vad"))


# --- the first word ----------------------------------------------------------------------


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


def test_a_finger_that_comes_with_the_first_word_and_stays_is_the_gate() -> None:
    """Who speaks into the window behind an answer and then holds the button pauses as he likes."""
    world = asked(World()).until_state(TurnState.LISTENING)
    began, before = world.now + 0.5, len(world.received)
    again = began + 1.5 + 1.5
    world.say(QUESTION, began)
    world.say(QUESTION, again)
    world.press(began + 0.25)
    world.release(again + 1.6)
    world.until_state(TurnState.THINKING)
    assert world.now >= again + 1.6
    world.until_state(TurnState.SPEAKING)
    committed = [t for t, e in world.received[before:] if e["type"].endswith("committed")]
    assert len(committed) == 1
    assert count_of(QUESTION, world.appended()) == 3


def test_without_a_gate_what_sounded_before_the_turn_is_not_sent_when_it_comes_late() -> None:
    """While it speaks nobody is heard, so blocks come by the second."""
    world = asked(World(Config(gate=Gate(enabled=False))))
    world.until_state(TurnState.SPEAKING)
    world.until_state(TurnState.HEARING)
    loud = voice(0.8, seed=8)
    for index in range(40):
        block = loud[index * BLOCK_FRAMES : (index + 1) * BLOCK_FRAMES]
        world.give(MicrophoneBlock(block, world.now - 0.8 + index * BLOCK_MS / 1000))
    world.run(1)
    assert find(loud[:9600], world.appended()) < 0


def test_what_was_heard_before_a_mute_is_not_sent_when_it_comes_after_it() -> None:
    """Muted, unmuted and pressed within the second that blocks may be late by."""
    world = World()
    world.run(4.0)
    world._hear = lambda: None  # type: ignore[method-assign]  # the microphone's thread is late
    world.run(0.4)
    world.command("mute")
    world.run(0.1)
    world.command("unmute")
    world.run(0.02)
    began = world.now
    world.press(began)
    world.until_state(TurnState.HEARING)
    heard = voice(1.0, seed=8)
    for index in range(50):
        block = heard[index * BLOCK_FRAMES : (index + 1) * BLOCK_FRAMES]
        world.give(MicrophoneBlock(block, began - 0.48 + index * BLOCK_MS / 1000))
    world.release()
    world.run(2)
    assert find(heard[-4800:], world.appended()) >= 0
    secret = heard[round(0.3 * WIRE_RATE) : round(0.4 * WIRE_RATE)]  # younger than the pre-roll
    assert find(secret, world.appended()) < 0


# --- the end of a turn -------------------------------------------------------------------


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


# --- silence -----------------------------------------------------------------------------


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


def test_a_press_that_cuts_an_answer_is_followed_by_silence() -> None:
    world = asked(World())
    before = len(world.chimes)
    world.tap(world.now + 0.3)
    world.run(2)
    assert world.chimes[before:] == []


# --- the button --------------------------------------------------------------------------


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


def test_a_tap_into_the_follow_up_window_after_a_first_word_does_not_hang_up() -> None:
    world = asked(World()).until_state(TurnState.LISTENING)
    at = world.now + 1
    other = voice(1.2, seed=12)
    world.say(other, at)
    world.press(at + 0.04)
    world.release(at + 0.34)
    world.until_state(TurnState.SPEAKING)
    assert find(other, world.appended()) >= 0


# --- mute --------------------------------------------------------------------------------


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


def test_a_muted_device_can_still_be_silenced() -> None:
    world = asked(World())
    world.command("mute")
    world.run(0.3)
    assert world.core.state is TurnState.SPEAKING
    world.press()
    world.run(0.0)
    assert world.core.state is TurnState.IDLE


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


# --- speaking over the answer ------------------------------------------------------------


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


# --- ends by meaning ---------------------------------------------------------------------


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


# --- a button held for nothing -----------------------------------------------------------


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


# --- our own sounds ----------------------------------------------------------------------


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
