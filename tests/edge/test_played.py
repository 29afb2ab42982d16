"""What the speaker emitted, asked in simulated time by a microphone with a clock of its own."""

import random
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from voiced.edge.played import KEPT_S, PATIENCE, RESYNC_S, Played
from voiced.events import BLOCK_FRAMES, WIRE_RATE, Samples

BLOCK_S = BLOCK_FRAMES / WIRE_RATE
HELD_S = 0.12
"""The device's buffer, full after each write of this owner."""


class Speaker:
    """An owner that writes `sound` every 60 ms into a device that plays it from `begin` on, at a
    clock that runs `fast_ppm` fast, and tells its position up to `coarse_s` late."""

    def __init__(
        self,
        sound: Samples,
        rate: int = WIRE_RATE,
        begin: float = 0.0,
        fast_ppm: float = 0.0,
        coarse_s: float = 0.0,
    ) -> None:
        self.played = Played()
        self.played.reset(rate)
        self.sound, self.begin = sound, begin
        self.rate, self.coarse_s = rate, coarse_s
        self._speed = rate * (1 + fast_ppm / 1e6)
        self._written = 0
        self._rng = random.Random(1)
        self._write_at = begin

    def pending(self, at: float) -> int:
        return max(0, self._written - round((at - self.begin) * self._speed))

    def run_to(self, now: float) -> None:
        while self._write_at <= now and self._written < len(self.sound):
            at, pending = self._write_at, self.pending(self._write_at)
            chunk = self.sound[self._written :][: round(HELD_S * self.rate) - pending]
            late = round(self._rng.uniform(0, self.coarse_s) * self.rate)
            self.played.wrote(chunk, min(self._written, pending + late), at)
            self._written += len(chunk)
            self._write_at += 0.06
        if self._written == len(self.sound) and not self.pending(now):
            self.played.stopped(0, now)


def blocks(until: float, jitter_s: float = 0.0, fast_ppm: float = 0.0) -> Iterator[float]:
    """When blocks of the microphone end."""
    rng = random.Random(2)
    for number in range(1, int(until / BLOCK_S) + 1):
        yield number * BLOCK_S * (1 - fast_ppm / 1e6) + rng.uniform(0, jitter_s)


def noise(seconds: float, rate: int = WIRE_RATE) -> Samples:
    """No sample is zero, and each place is recognised."""
    samples = np.random.default_rng(3).integers(1, 8000, round(seconds * rate))
    return samples.astype(np.int16)


def tone(seconds: float, rate: int, hz: float = 440.0) -> Samples:
    t = np.arange(round(seconds * rate)) / rate
    return np.asarray(8000 * np.sin(2 * np.pi * hz * t), np.int16)


def hear(speaker: Speaker, ats: Iterator[float]) -> Samples:
    heard = []
    for at in ats:
        speaker.run_to(at)
        taken = speaker.played.take(BLOCK_FRAMES, at)
        heard.append(np.zeros(BLOCK_FRAMES, np.int16) if taken is None else taken)
    return np.concatenate(heard)


def test_what_was_written_is_taken_when_it_was_played() -> None:
    speaker = Speaker(noise(1.0), begin=0.105)
    heard = hear(speaker, blocks(2))
    before = round(0.105 * WIRE_RATE)
    assert not heard[:before].any()
    assert np.array_equal(heard[before : before + WIRE_RATE], speaker.sound)
    assert not heard[before + WIRE_RATE :].any()


@pytest.mark.parametrize("begin", [0.1, 0.101, 0.104, 0.115, 0.119])
def test_jitter_on_both_sides_takes_no_sample_twice_and_skips_none(begin: float) -> None:
    speaker = Speaker(noise(10.0), begin=begin, coarse_s=0.005)
    heard = np.trim_zeros(hear(speaker, blocks(11, jitter_s=0.008)))
    assert np.array_equal(heard, speaker.sound)
    assert speaker.played.resyncs == 0


def test_a_thread_that_was_late_for_once_does_not_jump() -> None:
    speaker = Speaker(noise(2.0))

    def stalled() -> Iterator[float]:
        for number, at in enumerate(blocks(2.1)):
            yield at + max(0.0, 0.09 - BLOCK_S * (number - 20)) * (number >= 20)

    heard = np.trim_zeros(hear(speaker, stalled()))
    assert np.array_equal(heard, speaker.sound)


@pytest.mark.parametrize("fast_ppm", [-100.0, 100.0])
def test_clocks_that_drift_apart_cost_one_jump_in_minutes(fast_ppm: float) -> None:
    period = 30_000
    seconds = 300.0
    sound = (np.arange(round(seconds * WIRE_RATE)) % period + 1).astype(np.int16)
    speaker = Speaker(sound, fast_ppm=fast_ppm)
    worst = 0.0
    for at in blocks(seconds - 1, jitter_s=0.002):
        speaker.run_to(at)
        taken = speaker.played.take(BLOCK_FRAMES, at)
        assert taken is not None
        due = at * (1 + fast_ppm / 1e6) * WIRE_RATE
        off = (int(taken[-1]) - due + period / 2) % period - period / 2
        worst = max(worst, abs(off) / WIRE_RATE)
    assert RESYNC_S - 0.005 < worst < RESYNC_S + 0.005
    assert speaker.played.resyncs == 1


def test_a_position_that_stays_off_is_taken_after_a_little_patience() -> None:
    """The microphone was away for half a second: its next blocks are of what plays then."""
    speaker = Speaker(noise(3.0))
    hear(speaker, blocks(0.5))
    for number, at in enumerate(at for at in blocks(2) if at > 1.001):
        speaker.run_to(at)
        taken = speaker.played.take(BLOCK_FRAMES, at)
        if number >= PATIENCE:
            assert taken is not None
            end = round(at * WIRE_RATE)
            assert np.array_equal(taken, speaker.sound[end - BLOCK_FRAMES : end])
    assert speaker.played.resyncs == 1


def test_what_a_drop_threw_away_was_never_played() -> None:
    speaker = Speaker(noise(3.0))
    heard = hear(speaker, blocks(0.5))
    dropped_at = 0.507
    speaker.run_to(dropped_at)
    speaker.played.stopped(speaker.pending(dropped_at), dropped_at)
    last = speaker.played.take(BLOCK_FRAMES, 0.52)
    assert last is not None
    whole = np.concatenate((heard, last))
    end = round(dropped_at * WIRE_RATE)
    assert np.array_equal(whole[:end], speaker.sound[:end])
    assert not whole[end:].any()
    assert speaker.played.take(BLOCK_FRAMES, 0.54) is None


def test_a_device_that_is_gone_played_what_the_time_allowed() -> None:
    speaker = Speaker(noise(3.0))
    hear(speaker, blocks(0.5))
    speaker.played.stopped(None, 0.507)
    last = speaker.played.take(BLOCK_FRAMES, 0.52)
    assert last is not None
    assert np.count_nonzero(last) == round(0.007 * WIRE_RATE)


def test_a_gap_between_answers_is_silent_and_the_next_begins_on_time() -> None:
    played = Played()
    played.wrote(np.full(2400, 1000, np.int16), 0, 0.1)
    played.stopped(0, 0.2)
    heard = []
    for at in blocks(0.6):
        if 0.41 < at < 0.43:
            played.wrote(np.full(2400, 2000, np.int16), 0, 0.407)
        heard.append((at, played.take(BLOCK_FRAMES, at)))
    assert all(taken is None for at, taken in heard if 0.22 < at < 0.405)
    whole = np.concatenate([np.zeros(BLOCK_FRAMES, np.int16) if t is None else t for _, t in heard])
    first = np.flatnonzero(whole == 2000)
    assert (first[0], len(first)) == (round(0.407 * WIRE_RATE), 2400)
    assert np.count_nonzero(whole == 1000) == 2400
    assert played.resyncs == 0


def test_a_hole_in_an_answer_is_a_hole_here() -> None:
    """With nothing pending the device had run dry: what is written then begins anew."""
    played = Played()
    played.wrote(np.full(480, 1000, np.int16), 0, 0.0)
    first = played.take(BLOCK_FRAMES, 0.02)
    assert first is not None
    for number in range(2, 52):
        assert played.take(BLOCK_FRAMES, number * BLOCK_S) is None
    played.wrote(np.full(480, 2000, np.int16), 0, 1.03)
    parts = [played.take(BLOCK_FRAMES, at) for at in (1.04, 1.06)]
    whole = np.concatenate([part for part in parts if part is not None])
    assert np.array_equal(np.flatnonzero(whole == 2000), np.arange(240, 720))
    assert played.resyncs == 0


@pytest.mark.parametrize("hz", [440.0, 3000.0])
@pytest.mark.parametrize("rate", [96_000, 48_000, 44_100, 32_000, 22_050, 16_000, 11_025])
def test_other_rates_come_out_at_the_wire_rate_on_time_and_without_clicks(
    rate: int, hz: float
) -> None:
    speaker = Speaker(tone(2.0, rate, hz), rate)
    heard = hear(speaker, blocks(2.1, jitter_s=0.005))[: 2 * WIRE_RATE].astype(float)
    error = (heard - tone(2.0, WIRE_RATE, hz))[20:-20]  # a tone begins and ends with a bend
    assert np.abs(error).max() < 0.01 * 8000


def test_what_sounded_before_and_what_lies_behind_does_not_leak_into_a_run() -> None:
    """The places between two samples are made from those around them: only of the same run."""
    played = Played()
    played.reset(44_100)
    for number in range(40):
        played.wrote(np.full(4410, 20_000, np.int16), 0, number * 0.1)
    played.wrote(np.zeros(4410, np.int16), 0, 5.0)
    taken = played.take(round(0.1 * WIRE_RATE), 5.1)
    assert taken is not None
    assert not taken.any()


def test_resampled_a_drop_still_cuts() -> None:
    speaker = Speaker(tone(2.0, 44_100), 44_100)
    hear(speaker, blocks(0.5))
    speaker.played.stopped(speaker.pending(0.51), 0.51)
    last = speaker.played.take(BLOCK_FRAMES, 0.52)
    assert last is not None
    assert not last[241:].any()
    assert last[200:239].any()


def test_a_reader_that_comes_late_gets_what_there_still_is() -> None:
    speaker = Speaker(noise(6.0))
    hear(speaker, blocks(0.1))
    speaker.run_to(5.0)
    late = speaker.played.take(BLOCK_FRAMES, 0.12)
    assert late is not None
    oldest = speaker.sound[: round(5.1 * WIRE_RATE)][-int(KEPT_S * WIRE_RATE) :]
    assert late[0] in oldest[: round(0.1 * WIRE_RATE)]
    assert speaker.played.resyncs == 1


def test_of_answers_that_nobody_took_the_oldest_are_forgotten() -> None:
    played = Played()
    for number in range(100):
        played.wrote(np.full(480, 1 + number, np.int16), 0, float(number))
        played.stopped(0, number + 0.02)
    taken = played.take(BLOCK_FRAMES, 99.02)
    assert taken is not None
    assert set(taken) == {100}
    assert played.take(BLOCK_FRAMES, 99.04) is None


def test_a_reset_forgets_and_takes_the_new_rate() -> None:
    played = Played()
    played.wrote(noise(0.1), 0, 0.0)
    played.reset(48_000)
    assert played.take(BLOCK_FRAMES, 0.02) is None
    played.wrote(tone(0.1, 48_000), 0, 1.0)
    taken = played.take(BLOCK_FRAMES, 1.02)
    assert taken is not None
    assert (taken.shape, taken.dtype) == ((BLOCK_FRAMES,), np.int16)


def test_in_silence_a_take_does_not_even_wait_for_the_lock() -> None:
    played = Played()
    with played._lock:
        assert played.take(BLOCK_FRAMES, 1.0) is None


def test_two_threads_share_it() -> None:
    speaker = Speaker(noise(20.0))
    now = 0.0
    finished = threading.Event()

    def own() -> None:
        while not finished.is_set():
            speaker.run_to(now)

    owner = threading.Thread(target=own)
    owner.start()
    heard = []
    for at in blocks(2):
        while speaker._write_at <= at:
            now = at
        taken = speaker.played.take(BLOCK_FRAMES, at)
        assert taken is not None
        heard.append(taken)
    finished.set()
    owner.join()
    whole = np.concatenate(heard)
    assert np.array_equal(whole, speaker.sound[: len(whole)])
