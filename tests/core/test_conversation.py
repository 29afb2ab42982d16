"""Whole turns in simulated time, against the built-in server's own rules."""

import random

import msgspec
import pytest

from tests.core.world import APPEND, LOCAL, QUESTION, World, asked, find, tapped, voice
from tests.sim.openai_types import check_client_event
from voiced.config import Config, Gate, Turn
from voiced.core.link import LinkState
from voiced.core.turn import TurnState
from voiced.events import (
    WIRE_RATE,
    ButtonEdge,
    DeviceBack,
    DeviceFault,
    LinkFrame,
    Reconfigured,
)
from voiced.sim.realtime_session import Script


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


def test_a_finger_presses_though_a_client_that_pressed_has_gone() -> None:
    world = World()
    world.at(105.0, lambda: world.give(ButtonEdge(True, world.now, "uid 0, pid 1")))
    world.say(QUESTION, 105.2)
    world.press(108.0)
    world.release(108.1)
    world.run(108.2 - world.now)
    assert world.core.state is TurnState.LISTENING
    assert world.core.snapshot()["counters"]["turns"] == 2
    assert not world.core.is_pressed
    assert not [note for note in world.notes if note.name == "refused"]


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


# --- commands, devices, configuration ----------------------------------------------------


def test_hang_up_silences_and_closes() -> None:
    world = asked(World())
    world.command("hangup")
    world.run(0.0)
    assert world.core.state is TurnState.IDLE
    assert world.core.link.state is LinkState.DOWN
    heard = len(world.heard)
    world.run(2)
    assert len(world.heard) == heard


def test_a_new_configuration_takes_effect_with_the_next_session() -> None:
    world = asked(World()).until_state(TurnState.LISTENING)
    world.give(Reconfigured(Config(turn=Turn(silence_ms=900)), world.now))
    world.until_state(TurnState.IDLE)
    assert world.core.link.state is LinkState.DOWN
    asked(world, world.now + 2)
    vad = world.events("session.update")[-1]["session"]["audio"]["input"]["turn_detection"]
    assert vad["silence_duration_ms"] == 900


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


# --- anything, in any order --------------------------------------------------------------


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


def test_what_keeps_it_from_a_turn_is_named_before_what_does_not() -> None:
    world = World()
    for device, fault in (("canceller", "canceller-missing"), ("microphone", "microphone-lost")):
        world.give(DeviceFault(device, fault, "why", world.now))  # type: ignore[arg-type]
    snapshot = world.core.snapshot()
    assert [each["fault"] for each in snapshot["faults"]] == [
        "microphone-lost",
        "canceller-missing",
    ]
    assert snapshot["light"] == "fault-microphone"
    assert snapshot["status"].index("microphone is missing") < snapshot["status"].index("canceller")
