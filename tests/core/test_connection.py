"""What becomes of a conversation when the network or the server under it fails."""

import json

import pytest

from tests.core.world import APPEND, LOCAL, QUESTION, World, asked, count_of, find, tapped, voice
from voiced.config import Config, Gate, Realtime, Turn
from voiced.core.faults import FAULTS
from voiced.core.link import LinkState
from voiced.core.turn import TurnState
from voiced.core.uplink import STALLED_S
from voiced.events import (
    WIRE_RATE,
    AudioSent,
    KeyState,
    LinkClosed,
    LinkFrame,
    MemoryUsed,
    NetworkChanged,
)
from voiced.sim.realtime_session import Script


def network(world: World, has_route: bool) -> None:
    world.give(NetworkChanged(has_route, world.now))


# --- a link that is lost -----------------------------------------------------------------


def test_who_waits_is_served_a_second_after_the_server_is_back() -> None:
    world = World()
    world.refuse_until = 128.0
    world.press(105.0)
    world.say(voice(15.0, seed=3), 105.2)
    world.release(121.0)
    world.run(128.0 - world.now)
    world.run(1.2, until=lambda: world.core.link.state is LinkState.UP)
    assert world.core.link.state is LinkState.UP


def test_words_that_were_committed_are_not_sent_again_when_they_are_old() -> None:
    world = tapped(World())
    world.say(QUESTION, 105.2)
    world.filter = lambda e: None if e["type"].startswith("response.") else e
    world.until_state(TurnState.THINKING)
    world.run(1)
    world.refuse_until = world.now + 50
    world.drop_link()
    before = len(world.sent)
    world.run(60)
    assert not [e for _, e in world.sent[before:] if e["type"] == APPEND]
    assert any(note.name == "refused" for note in world.notes)


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


def test_a_link_lost_while_it_speaks_plays_what_came() -> None:
    world = asked(World(script=Script(pace=0)))
    world.drop_link()
    world.until_state(TurnState.LISTENING)
    assert find(QUESTION, world.heard) >= 0


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


# --- what it needs, and what ends it -----------------------------------------------------


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


# --- the network -------------------------------------------------------------------------


def test_a_network_that_is_back_is_dialled_at_once() -> None:
    world = World()
    network(world, False)
    world.refuse_until = 118.5
    tapped(world)
    world.say(QUESTION, 105.2)
    world.run(118.5 - world.now)
    assert world.core.link.state is LinkState.WAITING
    network(world, True)
    assert world.dials[-1] == world.now
    world.until_state(TurnState.SPEAKING)
    assert count_of(QUESTION, world.appended()) == 1


def test_a_dial_that_hangs_from_before_does_not_hold_up_the_next() -> None:
    world = World(dial_s=12.0)
    network(world, False)
    tapped(world)
    world.run(105.5 - world.now)
    world.dial_s = 0.1
    network(world, True)
    world.run(1)
    assert world.core.link.state is LinkState.UP


@pytest.mark.parametrize("fault", ["no-dns", "no-route", "timeout"])
def test_without_a_route_it_is_the_network_that_is_missing(fault: str) -> None:
    world = World()
    network(world, False)
    tapped(world).run(1.05)
    world.give(LinkClosed(world.now, world.core.link.dial, fault=fault))
    assert world.core.link.fault is FAULTS["no-network"]
    assert "there is no network" in world.statuses[-1]


def test_a_server_on_this_machine_needs_no_route() -> None:
    world = World(Config(realtime=Realtime(url="ws://127.0.0.1:8000/v1/realtime")))
    network(world, False)
    tapped(world).run(1.05)
    world.give(LinkClosed(world.now, world.core.link.dial, fault="no-route"))
    assert world.core.link.fault is FAULTS["no-route"]


def test_a_lost_link_says_which_fault_it_was_in_the_journal() -> None:
    world = tapped(World())
    world.run(1.3)
    world.drop_link(1001)
    (note,) = [note for note in world.notes if note.name == "link-lost"]
    assert note.fields["fault"] == "session-expired"


def test_a_turn_of_the_other_kind_is_not_disturbed_by_any_of_it() -> None:
    world = asked(World(Config(turn=Turn(end="local"))))
    network(world, True)
    world.give(MemoryUsed(25.6, 256.0, world.now))
    world.until_state(TurnState.LISTENING)
    assert find(QUESTION, world.heard) >= 0


def test_who_waited_in_vain_is_told_in_words_what_was_wrong() -> None:
    world = World()
    world.refuse_until = 145.0
    network(world, False)
    tapped(world)
    world.say(QUESTION, 105.2)
    world.run(50)
    assert world.chimes[-1][1] == "no-network"


# --- a link that is half open ------------------------------------------------------------


@pytest.mark.parametrize("config", [Config(), LOCAL], ids=["server_vad", "local"])
@pytest.mark.parametrize("hold", [False, True])
def test_words_into_a_half_open_link_are_answered_by_the_next(config: Config, hold: bool) -> None:
    """The kernel takes all of it, nothing arrives, nothing comes."""
    world = World(config)
    world.run(4)
    world.press(105.0)
    world.say(QUESTION, 105.8)
    world.release(107.5 if hold else 105.1)
    world.run(until=lambda: world.core.link.state is LinkState.UP and world.now > 105.6)
    world.filter = lambda event: None if len(world.dials) == 1 else event
    world.uplink_delay_s = 1e6
    world.run(until=lambda: len(world.dials) == 2)
    assert world.now < 107.5 + 12
    assert len([k for k in world.types() if k == "input_audio_buffer.clear"]) <= 2
    world.uplink_delay_s = 0.0
    world.until_state(TurnState.SPEAKING)
    world.until_state(TurnState.LISTENING)
    assert find(QUESTION, world.heard) >= 0


def test_a_server_that_heard_nothing_says_so_and_nobody_waits() -> None:
    world = tapped(World(script=Script(vad_dbfs=-5.0)))
    world.say(QUESTION, 105.2)
    world.run(until=lambda: world.core.snapshot()["counters"]["unheard_turns"] == 1)
    assert world.now < 105.2 + 1.5 + 0.8 + 2.0 + 0.5
    assert len(world.dials) == 1
    assert world.core.state is TurnState.LISTENING


# --- a socket that takes nothing ---------------------------------------------------------


def test_a_socket_that_takes_no_audio_is_given_up_and_the_words_go_out_on_the_next() -> None:
    world = tapped(World())
    world.say(QUESTION, 105.7)
    world.run(until=lambda: world.core.link.state is LinkState.UP)
    world.run(0.2)
    world.stuck = True
    world.run(until=lambda: bool(world.events(APPEND)))
    stuck_at = world.now
    world.run(until=lambda: len(world.dials) == 2)
    assert world.now - stuck_at <= STALLED_S + 0.5
    world.stuck = False
    world.until_state(TurnState.SPEAKING)
    world.until_state(TurnState.LISTENING)
    assert find(QUESTION, world.heard) >= 0


def test_a_socket_that_is_merely_slow_is_left_to_it() -> None:
    world = tapped(World())
    world.say(voice(20), 105.7)
    world.run(until=lambda: world.core.link.state is LinkState.UP)
    world.run(0.2)
    world.stuck = True
    end = world.now + 22
    while world.now < end:  # a fifth of a second a second: a fifth of what is said
        world.run(1.0)
        if (dial := world.core.link.dial) and world.events(APPEND):
            world.give(AudioSent(4_800, world.now, dial))
    assert len(world.dials) == 1
