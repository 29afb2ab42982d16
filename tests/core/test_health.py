"""What is wrong is known once, told once, and forgotten when it is over."""

import logging

import pytest

from tests.core.world import World, asked
from voiced.config import Microphone
from voiced.core.faults import FAULTS
from voiced.core.health import Health
from voiced.core.outbox import Outbox
from voiced.core.turn import TurnState
from voiced.events import ChannelLevel, ChannelLevels, MemoryUsed, Note

TALKING = ChannelLevel(-30.0, -12.0, 0, False)
DEAD = ChannelLevel(-120.0, -120.0, 0, True)


class Patient:
    def __init__(self) -> None:
        self.outbox = Outbox()
        self.health = Health(Microphone(channels=2, use=0), self.outbox)
        self._at = 0.0

    def hear(self, *levels: ChannelLevel, seconds: int = 10) -> "Patient":
        for _ in range(seconds):
            self._at += 1.0
            self.health.hear(ChannelLevels(levels, False, self._at))
        return self

    def told(self) -> list[tuple[str, int]]:
        return [(e.name, e.level) for e in self.outbox.take() if isinstance(e, Note)]


def test_a_fault_is_told_once_and_its_end_once() -> None:
    patient = Patient()
    for _ in range(3):
        patient.health.add("speaker", "speaker-lost", "unplugged")
    assert patient.told() == [("fault", logging.WARNING)]
    patient.health.over("speaker")
    patient.health.over("speaker")
    assert patient.told() == [("fault-over", logging.INFO)]
    assert patient.health.faults == {}


def test_a_device_has_one_fault_at_a_time_and_leaves_others_theirs() -> None:
    patient = Patient()
    patient.health.add("speaker", "speaker-lost", "unplugged")
    patient.health.add("microphone", "microphone-lost", "unplugged")
    patient.health.add("microphone", "microphone-wrong", "does 16000 Hz")
    assert list(patient.health.faults) == ["speaker-lost", "microphone-wrong"]


@pytest.mark.parametrize("name", [name for name, row in FAULTS.items() if row.deaf])
def test_what_makes_deaf_says_why_with_a_sound(name: str) -> None:
    patient = Patient()
    patient.health.add(name.partition("-")[0], name, "so it is")
    why, sound = patient.health.why_deaf() or ("", "")
    assert "so it is" in why
    assert sound == FAULTS[name].sound


def test_what_is_only_a_pity_makes_not_deaf() -> None:
    patient = Patient()
    patient.health.add("mute", "mute-not-kept", "read-only file system")
    assert patient.health.why_deaf() is None


def test_a_dead_channel_is_told_until_it_lives_and_refuses_nobody() -> None:
    patient = Patient().hear(DEAD, TALKING)
    assert patient.health.why_deaf() is None  # it may be one of a mix, or silent between sentences
    assert "channel 0" in patient.health.faults["microphone-dead"]
    patient.hear(TALKING, TALKING)
    assert patient.health.faults == {}
    assert [name for name, _ in patient.told()] == ["fault", "fault-over"]


def test_another_channel_in_use_is_judged_anew() -> None:
    patient = Patient().hear(DEAD, TALKING)
    patient.health.use(Microphone(channels=2, use=1))
    assert patient.health.faults == {}
    assert patient.hear(DEAD, TALKING).health.why_deaf() is None


def test_a_microphone_that_comes_back_is_judged_anew() -> None:
    patient = Patient().hear(DEAD, TALKING)
    patient.health.over("microphone")
    assert patient.health.faults == {}
    assert patient.health.channels is None


# --- memory ------------------------------------------------------------------------------


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
