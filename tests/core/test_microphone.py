import msgspec
import numpy as np
import pytest

from tests.core.world import voice
from voiced.config import Config
from voiced.core.gate import GATE_PREROLL_MS
from voiced.core.microphone import ECHO_TAIL_S, RING_BLOCKS, Change, Microphone
from voiced.events import BLOCK_FRAMES, BLOCK_MS, MicrophoneBlock, Samples

BLOCK_S = BLOCK_MS / 1000
ROOM = np.random.default_rng(3).normal(0, 30, (RING_BLOCKS * 4, BLOCK_FRAMES)).astype(np.int16)


class Ear:
    """A microphone and its clock: each block is the next 20 ms."""

    def __init__(self, *, gated: bool = True, echo: str = "half-duplex") -> None:
        settings = {"gate": {"enabled": gated}, "microphone": {"echo": echo, "use": 0}}
        self.microphone = Microphone(msgspec.convert(settings, Config))
        self.now = 10.0
        self.changes: list[tuple[Change, float]] = []
        self._heard = 0

    def hear(
        self,
        samples: Samples,
        *,
        answering: bool = False,
        played: Samples | None = None,
        aligning: bool = False,
    ) -> None:
        self.now += BLOCK_S
        block = MicrophoneBlock(samples, self.now, False, played, aligning)
        if change := self.microphone.hear(block, answering=answering):
            self.changes.append((change, self.now))

    def room(self, seconds: float) -> "Ear":
        for _ in range(round(seconds / BLOCK_S)):
            self.hear(ROOM[self._heard % len(ROOM)])
            self._heard += 1
        return self

    def speech(self, seconds: float) -> "Ear":
        for block in voice(seconds).reshape(-1, BLOCK_FRAMES):
            self.hear(block)
        return self


def oldest(blocks: list[tuple[Samples, float]]) -> float:
    """When the first of the blocks began."""
    return blocks[0][1] - BLOCK_S


@pytest.mark.parametrize("gated", [False, True])
def test_the_ring_holds_three_seconds_and_the_oldest_makes_room(gated: bool) -> None:
    ear = Ear(gated=gated).room(RING_BLOCKS * BLOCK_S + 1.0)
    blocks = ear.microphone.since(0.0)
    assert len(blocks) == RING_BLOCKS == 150
    assert blocks[-1][1] == ear.now


def test_what_comes_out_is_what_came_in_and_in_order() -> None:
    ear = Ear(gated=False).room(1.0)
    blocks = ear.microphone.since(ear.now - 0.2)
    assert len(blocks) == 10
    assert np.array_equal(np.stack([samples for samples, _ in blocks]), ROOM[40:50])


def test_a_block_that_began_before_the_moment_asked_for_stays_out() -> None:
    ear = Ear(gated=False).room(1.0)
    assert len(ear.microphone.since(ear.now - 10 * BLOCK_S)) == 10
    assert len(ear.microphone.since(ear.now - 9.5 * BLOCK_S)) == 9


# --- the barrier ---------------------------------------------------------------------------


@pytest.mark.parametrize("gated", [False, True])
def test_a_mute_wipes_what_was_heard(gated: bool) -> None:
    ear = Ear(gated=gated).room(1.0)
    ear.microphone.wipe(ear.now)
    assert ear.microphone.since(0.0) == []
    ear.room(0.1)
    assert len(ear.microphone.since(0.0)) == 5
    assert oldest(ear.microphone.since(0.0)) == pytest.approx(11.0)


def test_a_block_from_before_the_mute_that_comes_after_it_stays_out() -> None:
    ear = Ear(gated=False).room(1.0)
    ear.microphone.wipe(ear.now + 0.015)
    ear.room(0.1)
    assert oldest(ear.microphone.since(0.0)) >= 11.015


@pytest.mark.parametrize("gated", [False, True])
def test_nothing_from_before_the_end_of_our_own_sound_comes_out(gated: bool) -> None:
    ear = Ear(gated=gated).room(1.0)
    ear.microphone.own_sound_until(ear.now)
    ear.room(0.4)
    for blocks in (ear.microphone.since(0.0), ear.microphone.from_onset(0.0)):
        assert oldest(blocks) == pytest.approx(11.0)


def test_the_barrier_never_moves_back() -> None:
    ear = Ear(gated=False).room(1.0)
    ear.microphone.own_sound_until(ear.now)
    ear.microphone.own_sound_until(ear.now - 0.5)
    ear.room(0.1)
    assert oldest(ear.microphone.since(0.0)) == pytest.approx(11.0)


def test_a_mute_during_speech_closes_the_gate_and_forgets_the_reading() -> None:
    ear = Ear(gated=True).room(4.0).speech(1.0)
    assert ear.microphone.open
    ear.microphone.wipe(ear.now)
    assert not ear.microphone.open
    assert ear.microphone.reading is None
    assert not ear.microphone.spoken_since(0.0)


def test_what_the_canceller_did_not_take_out_yet_never_comes_out() -> None:
    ear = Ear(gated=True, echo="cancel").room(1.0)
    loud = (ROOM[:60] * 100).astype(np.int16)
    for block in loud[:20]:
        ear.hear(block, answering=True, played=block, aligning=True)
    aligned_at = ear.now
    assert not ear.microphone.maybe_spoken_over
    assert ear.microphone.since(0.0) == []
    for block in loud[20:]:
        ear.hear(ROOM[0], answering=True, played=block)
    assert oldest(ear.microphone.since(0.0)) == pytest.approx(aligned_at)


# --- the gate ------------------------------------------------------------------------------


def test_without_a_gate_it_is_always_open_whatever_happens() -> None:
    ear = Ear(gated=False).room(0.5)
    for close in (ear.microphone.close, lambda: ear.microphone.wipe(ear.now)):
        close()
        assert ear.microphone.open
    ear.microphone.own_sound_until(ear.now)
    assert ear.microphone.open
    assert ear.room(1.0).changes == []
    assert ear.microphone.spoken_since(0.0)


def test_speech_opens_it_and_silence_closes_it_each_told_once() -> None:
    ear = Ear(gated=True).room(4.0).speech(1.0).room(2.0)
    assert [change for change, _ in ear.changes] == [Change.OPENED, Change.CLOSED]
    opened, closed = (at for _, at in ear.changes)
    assert 14.0 < opened < 14.25
    assert 15.6 <= closed + 1e-9 < 15.9


def test_it_reaches_back_over_the_onset_and_not_further_than_allowed() -> None:
    ear = Ear(gated=True).room(4.0).speech(1.0)
    began = oldest(ear.microphone.from_onset(0.0))
    preroll_s = GATE_PREROLL_MS / 1000
    assert 14.0 - 2 * preroll_s <= began <= 14.0 - preroll_s + 0.1
    assert oldest(ear.microphone.from_onset(14.1)) == pytest.approx(14.1)


def test_speech_that_ended_is_remembered_as_long_as_the_ring_has_it() -> None:
    ear = Ear(gated=True).room(4.0).speech(1.0).room(1.0)
    assert ear.microphone.spoken_since(0.0)
    assert not ear.microphone.spoken_since(ear.now - 0.1)
    ear.room(3.0)
    assert not ear.microphone.spoken_since(0.0)


def test_the_gate_is_deaf_to_the_echo_but_the_ring_is_not() -> None:
    ear = Ear(gated=True).room(4.0)
    silent = ear.now
    ear.microphone.own_sound_until(silent)
    ear.speech(0.18)
    assert ear.changes == []
    assert len(ear.microphone.since(0.0)) == 9
    ear.speech(0.5)
    assert ear.changes[0][0] is Change.OPENED
    assert ear.changes[0][1] >= silent + ECHO_TAIL_S
    assert oldest(ear.microphone.from_onset(0.0)) == pytest.approx(silent)


def test_after_a_turn_whoever_speaks_on_opens_it_anew() -> None:
    ear = Ear(gated=True).room(4.0).speech(1.0)
    ear.microphone.close()
    ear.speech(0.5)
    assert [change for change, _ in ear.changes] == [Change.OPENED, Change.OPENED]
