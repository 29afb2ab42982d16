"""What a conversation does when the network, the server or the machine under it fails."""

import json

import pytest

from tests.core.test_conversation import LOCAL, QUESTION, asked, count_of, find
from tests.core.world import APPEND, World, tapped, voice
from voiced.config import Config, Realtime, Turn
from voiced.core.conversation import RATE_LIMIT_TRIES, STALLED_S
from voiced.core.faults import FAULTS
from voiced.core.link import LinkState
from voiced.core.turn import TurnState
from voiced.events import (
    AudioSent,
    ButtonEdge,
    DeviceBack,
    DeviceFault,
    Hush,
    LinkClosed,
    LinkFrame,
    MemoryUsed,
    NetworkChanged,
)
from voiced.sim.realtime_session import Script

RATE, SERVER = "rate_limit_exceeded", "server_error"


def network(world: World, has_route: bool) -> None:
    world.give(NetworkChanged(has_route, world.now))


# --- the network ---------------------------------------------------------------------------


def test_a_network_that_is_back_is_dialled_at_once() -> None:
    world = World()
    network(world, False)
    world.refuse_until = 118.0
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


# --- a link that is half open -------------------------------------------------------------


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
    world.run(until=lambda: world.core._counters["unheard_turns"] == 1)
    assert world.now < 105.2 + 1.5 + 0.8 + 2.0 + 0.5
    assert len(world.dials) == 1
    assert world.core.state is TurnState.LISTENING


# --- a socket that takes nothing -----------------------------------------------------------


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


# --- an answer that fails ------------------------------------------------------------------


def failing(*codes: str) -> World:
    world = tapped(World(script=Script(failures=codes)))
    world.say(QUESTION, 105.2)
    return world


@pytest.mark.parametrize("codes", [(SERVER,), (RATE,), (RATE,) * RATE_LIMIT_TRIES])
def test_an_answer_that_failed_for_a_moment_is_asked_for_again(codes: tuple[str, ...]) -> None:
    world = failing(*codes).until_state(TurnState.SPEAKING)
    world.until_state(TurnState.LISTENING)
    assert count_of(QUESTION, world.appended()) == 1
    assert find(QUESTION, world.heard) >= 0
    assert not [name for _, name in world.chimes if name in ("server", "network")]
    assert world.verdict.violations == []


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


# --- what is spoken ------------------------------------------------------------------------


def test_a_press_breaks_off_what_is_being_said() -> None:
    world = World()
    world.give(DeviceFault("microphone", "microphone-lost", "gone", world.now))
    world.run(4)
    world.tap()
    world.run(0.3)
    assert world.chimes[-1][1] == "microphone-lost"
    world.give(DeviceBack("microphone", world.now))
    effects = world.core.handle(ButtonEdge(True, world.now))
    assert any(isinstance(effect, Hush) for effect in effects)


# --- memory --------------------------------------------------------------------------------


def used(world: World, share: float) -> None:
    world.give(MemoryUsed(256 * share, 256.0, world.now))


def test_too_much_memory_starts_it_anew_when_nobody_talks() -> None:
    world = World()
    world.run(700)
    asked(world, world.now + 2)
    used(world, 0.9)
    assert world.exits == []
    assert "256 MB" in world.statuses[-1]
    world.until_state(TurnState.IDLE)
    used(world, 0.9)
    assert world.exits == [75]


def test_enough_memory_is_no_fault_and_its_end_is_seen() -> None:
    world = World()
    world.run(700)
    used(world, 0.5)
    assert "memory-high" not in world.core._health.faults
    used(world, 0.9)
    used(world, 0.5)
    assert "memory-high" not in world.core._health.faults


def test_what_is_too_much_from_the_start_is_no_reason_to_start_for_ever() -> None:
    world = World()
    used(world, 0.95)
    world.run(60)
    used(world, 0.95)
    assert world.exits == []
    assert "memory-high" in world.core._health.faults


def test_a_turn_of_the_other_kind_is_not_disturbed_by_any_of_it() -> None:
    world = asked(World(Config(turn=Turn(end="local"))))
    network(world, True)
    used(world, 0.1)
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
