"""The speaker's owner, stepped by hand, against a device in simulated time; then through ALSA.

`FakePcm` plays in real time of a clock that the test moves, holds a bounded buffer, runs dry,
takes short writes and can be unplugged, as the real ones do.
"""

import random
import threading
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import alsaaudio
import numpy as np
import pytest

from voiced.edge.pcm import DeviceError
from voiced.edge.playback import DUCK_GAIN, DUCK_MS, IDLE_STEP_S, Playback
from voiced.edge.played import Played
from voiced.edge.vitals import STILL_S
from voiced.events import (
    WIRE_RATE,
    DeviceBack,
    DeviceFault,
    PlaybackDrained,
    PlaybackStarted,
    Samples,
)
from voiced.sim.rig import Rig
from voiced.sim.streams import Ear

RATE = 48_000


class Clock:
    def __init__(self) -> None:
        self.now = 10.0

    def __call__(self) -> float:
        return self.now


class FakePcm:
    """A non-blocking playback PCM of 120 ms, as pyalsaaudio 0.11 behaves."""

    def __init__(
        self, clock: Clock, rate: int = RATE, short_writes: random.Random | None = None
    ) -> None:
        self.clock, self.rate = clock, rate
        self.size = rate * 120 // 1000
        self.heard = np.empty(0, np.int16)
        self.drops = 0
        self.gone = False
        self.stale = False
        """It was away for a moment, and only a write tells."""
        self.stuck = False
        self.meanwhile: Callable[[], None] = lambda: None
        """What another thread does in the middle of a write."""
        self._short = short_writes
        self._buffer = np.empty(0, np.int16)
        self._at: float | None = None
        self._xrun = False

    def _advance(self) -> None:
        if self._at is None:
            return
        if self.stuck:
            self._at = self.clock()
            return
        frames = int(round((self.clock() - self._at) * self.rate, 3))
        played = min(frames, len(self._buffer))
        self.heard = np.concatenate((self.heard, self._buffer[:played]))
        self._buffer = self._buffer[played:]
        self._at += frames / self.rate
        if frames and not len(self._buffer):
            self._xrun, self._at = True, None

    def _check(self) -> None:
        if self.gone:
            raise alsaaudio.ALSAAudioError("No such device [hw:1]")
        self._advance()

    def info(self) -> dict[str, Any]:
        return {"buffer_size": self.size, "channels": 1}

    def state(self) -> int:
        if self.gone:
            return alsaaudio.PCM_STATE_DISCONNECTED
        self._advance()
        return alsaaudio.PCM_STATE_XRUN if self._xrun else alsaaudio.PCM_STATE_RUNNING

    def avail(self) -> int:
        if self.gone:
            return -19
        if self._at is None and self.drops and not self._xrun:
            return 0  # after a drop it tells anything
        self._advance()
        return -32 if self._xrun else self.size - len(self._buffer)

    def write(self, data: bytes) -> int:
        if self.stale:
            raise alsaaudio.ALSAAudioError("Input/output error [hw:1]")
        self._check()
        self.meanwhile()
        if self._xrun:
            self._xrun = False
            return -32
        samples = np.frombuffer(data, "<i2")
        room = self.size - len(self._buffer)
        if self._short:
            room = min(room, self._short.randrange(1, self.size))
        taken = samples[:room]
        self._buffer = np.concatenate((self._buffer, taken))
        if self._at is None:
            self._at = self.clock()
        return len(taken)

    def drop(self) -> int:
        self._check()
        self.drops += 1
        self._buffer = np.empty(0, np.int16)
        self._at, self._xrun = None, False
        return 0

    def close(self) -> None:
        pass


class Bench:
    """A `Playback` whose owner is stepped by the test."""

    def __init__(
        self,
        rate: int = RATE,
        volume: int = 100,
        kind: Callable[..., Playback] = Playback,
        short_writes: random.Random | None = None,
    ) -> None:
        self.clock = Clock()
        self.pcm = FakePcm(self.clock, rate, short_writes)
        self.posted: list[Any] = []
        self.played = Played()
        self.steps = 0
        self.never_well = False
        self.playback = kind(
            "hw:1",
            rate,
            volume,
            self.posted.append,
            played=self.played,
            clock=self.clock,
            open_pcm=self.open,
        )
        self.playback.open_if_needed()

    def open(self, device: str, rate: int) -> tuple[Any, int]:
        if self.pcm.gone:
            raise DeviceError("speaker-lost", f"{device}: No such device")
        self.pcm.stale, self.pcm._at = self.never_well, None
        return self.pcm, 1

    def step(self) -> float:
        self.playback.open_if_needed()
        self.steps += 1
        with self.playback._cond:  # as the owner does
            return self.playback.step()

    def run(self, seconds: float) -> None:
        """Let time pass; the owner sleeps exactly as long as it asked to."""
        end = self.clock.now + seconds
        while self.clock.now < end:
            wait_s = self.step()
            self.clock.now = min(end, self.clock.now + max(wait_s, 0.0005))

    def events(self, kind: type) -> list[Any]:
        return [event for event in self.posted if isinstance(event, kind)]


def ramp(frames: int, start: int = 1) -> Samples:
    """No sample is zero, and each tells where it stood."""
    return ((np.arange(start, start + frames) % 30_000) + 1).astype(np.int16)


def tone(seconds: float, hz: float = 440.0) -> Samples:
    t = np.arange(round(seconds * WIRE_RATE)) / WIRE_RATE
    return np.asarray(8000 * np.sin(2 * np.pi * hz * t + 1), np.int16)


def last_step_dbfs(sound: Samples) -> float:
    """How far a recording fell at once when it fell silent: the click of a cut."""
    return float(20 * np.log10(abs(int(np.trim_zeros(sound)[-1])) / 32768))


def test_an_answer_is_heard_to_its_last_sample_and_reported() -> None:
    bench = Bench(rate=24_000)
    samples = ramp(WIRE_RATE)
    bench.playback.play(samples, 0)
    bench.playback.end(0)
    bench.run(3)
    sound = bench.pcm.heard[: len(samples)]
    assert np.array_equal(sound, samples)
    assert not bench.pcm.heard[len(samples) :].any()
    assert len(bench.events(PlaybackStarted)) == 1
    assert [e.epoch for e in bench.events(PlaybackDrained)] == [0]


def test_resampled_it_has_the_right_length_and_pitch() -> None:
    bench = Bench()
    bench.playback.play(tone(1.0), 0)
    bench.playback.end(0)
    bench.run(2)
    sound = np.trim_zeros(bench.pcm.heard)
    assert abs(len(sound) - RATE) <= 4
    spectrum = np.abs(np.fft.rfft(sound.astype(float) * np.hanning(len(sound))))
    assert abs(np.argmax(spectrum) * RATE / len(sound) - 440) < 1


def test_short_writes_lose_and_repeat_nothing() -> None:
    bench = Bench(rate=24_000, short_writes=random.Random(3))
    samples = ramp(WIRE_RATE)
    bench.playback.play(samples, 0)
    bench.playback.end(0)
    bench.run(3)
    assert np.array_equal(np.trim_zeros(bench.pcm.heard), samples)


def test_a_burst_starts_at_once_a_trickle_after_its_buffer() -> None:
    burst, trickle, drop = Bench(), Bench(), Bench()
    burst.playback.play(ramp(4800), 0)
    burst.run(0.001)
    assert burst.events(PlaybackStarted)
    for part in range(4):
        assert not trickle.events(PlaybackStarted)
        trickle.playback.play(ramp(1200, part), 0)
        trickle.run(0.01)
    assert trickle.events(PlaybackStarted)
    drop.playback.play(ramp(2400), 0)
    drop.run(0.3)
    assert drop.events(PlaybackStarted)[0].at == pytest.approx(10.25, abs=0.002)


def test_a_trickle_of_200_ms_deltas_has_no_hole() -> None:
    bench = Bench()
    for part in range(20):
        bench.playback.play(ramp(4800, part * 4800), 0)
        bench.run(0.2 / 1.2)
    bench.playback.end(0)
    bench.run(2)
    sound = np.trim_zeros(bench.pcm.heard)
    assert bench.playback.holes == 0
    assert len(sound) == pytest.approx(4 * RATE, abs=4)


def test_a_starved_answer_is_a_counted_hole_and_goes_on() -> None:
    bench = Bench()
    bench.playback.play(ramp(4800), 0)
    bench.run(1)
    bench.playback.play(ramp(4800, 4800), 0)
    bench.playback.end(0)
    bench.run(2)
    assert bench.playback.holes == 1
    assert [e.epoch for e in bench.events(PlaybackDrained)] == [0]


def test_an_owner_that_came_too_late_is_a_counted_xrun_and_loses_nothing() -> None:
    bench = Bench(rate=24_000)
    samples = ramp(24_000)
    bench.playback.play(samples, 0)
    bench.playback.end(0)
    bench.step()
    bench.clock.now += 0.5
    bench.run(2)
    assert (bench.playback.xruns, bench.playback.holes) == (1, 0)
    assert np.array_equal(np.trim_zeros(bench.pcm.heard), samples)


def test_so_is_one_that_is_told_what_was_true_before() -> None:
    bench = Bench(rate=24_000)
    bench.playback.play(ramp(24_000), 0)
    bench.playback.end(0)
    bench.step()
    bench.clock.now += 0.5
    with (
        mock.patch.object(bench.pcm, "avail", return_value=bench.pcm.size // 2),
        mock.patch.object(bench.pcm, "state", return_value=alsaaudio.PCM_STATE_RUNNING),
    ):
        bench.step()
    bench.run(2)
    assert bench.playback.xruns == 1


def test_a_device_that_hesitates_has_not_run_dry() -> None:
    bench = Bench(rate=24_000)
    bench.playback.play(ramp(24_000), 0)
    bench.playback.end(0)
    bench.step()
    bench.pcm.stuck = True
    bench.run(STILL_S / 2)
    bench.pcm.stuck = False
    bench.run(2)
    assert (bench.playback.xruns, bench.playback.holes) == (0, 0)


def test_volume_scales_and_full_volume_changes_nothing() -> None:
    loud, soft = Bench(rate=24_000), Bench(rate=24_000, volume=50)
    for bench in (loud, soft):
        bench.playback.play(tone(0.5), 0)
        bench.playback.end(0)
        bench.run(1)
    full, half = (np.trim_zeros(b.pcm.heard).astype(float) for b in (loud, soft))
    assert np.array_equal(full, tone(0.5)[: len(full)])
    assert np.linalg.norm(half) / np.linalg.norm(full) == pytest.approx(0.25, abs=0.01)


# --- flush -----------------------------------------------------------------------------------


def test_flush_is_silent_at_once_and_tells_what_was_heard() -> None:
    bench = Bench(rate=24_000)
    bench.playback.play(ramp(48_000), 0)
    bench.run(0.5)
    flushed = bench.playback.flush(1, bench.clock.now)
    heard = len(bench.pcm.heard)
    bench.run(1)
    assert len(bench.pcm.heard) == heard
    assert flushed.frames_heard == heard == 12_000
    assert bench.events(PlaybackDrained) == []


def test_flush_with_nothing_to_play_is_no_harm() -> None:
    bench = Bench()
    assert bench.playback.flush(1, 0.0).frames_heard == 0
    assert bench.playback.flush(2, 0.0).frames_heard == 0


def test_what_comes_for_a_cut_answer_stays_silent() -> None:
    bench = Bench()
    bench.playback.play(ramp(24_000), 0)
    bench.run(0.2)
    bench.playback.flush(1, bench.clock.now)
    heard = len(bench.pcm.heard)
    bench.playback.play(ramp(24_000), 0)
    bench.playback.end(0)
    bench.run(1)
    assert len(bench.pcm.heard) == heard


def test_after_a_flush_the_new_answer_starts_with_its_own_first_sample() -> None:
    bench = Bench()
    bench.playback.play(np.full(24_000, 20_000, np.int16), 0)
    bench.run(0.2)
    bench.playback.flush(1, bench.clock.now)
    heard = len(bench.pcm.heard)
    bench.playback.play(np.full(24_000, -20_000, np.int16), 1)
    bench.playback.end(1)
    bench.run(2)
    new = bench.pcm.heard[heard:]
    # soxr rings by up to 12 % at the step; the resampler's tail of the old would be at +20,000.
    assert new.max() < 3000
    assert abs(np.count_nonzero(new < -15_000) - RATE) < 20


def test_a_flush_while_the_device_has_run_dry_heard_all_that_came() -> None:
    bench = Bench(rate=24_000)
    bench.playback.play(ramp(6000), 0)
    bench.run(1)
    assert bench.playback.flush(1, bench.clock.now).frames_heard == 6000


def assert_silent_after_flush(bench: Bench, frames_heard: int, epoch: int = 1) -> None:
    """A flush now hears so many frames, and nothing sounds until the next answer's own samples."""
    bench.pcm._advance()
    heard = len(bench.pcm.heard)
    assert bench.playback.flush(epoch, bench.clock.now).frames_heard == frames_heard
    bench.run(0.3)
    assert len(bench.pcm.heard) == heard
    bench.playback.play(np.full(WIRE_RATE // 2, -9000, np.int16), epoch)
    bench.playback.end(epoch)
    bench.run(1)
    new = np.trim_zeros(bench.pcm.heard[heard:])
    assert new.max() < 2000, "stale sound"  # a resampler rings by up to 12 % at its first step
    assert len(new) == pytest.approx(bench.pcm.rate // 2, abs=20)


def test_a_flush_cuts_all_the_items_of_an_answer() -> None:
    bench = Bench(rate=24_000)
    for _ in range(40):
        bench.playback.play(ramp(480), 0)
    bench.run(0.1)
    assert_silent_after_flush(bench, 2400)


def test_a_second_flush_behind_the_first_hears_nothing_and_does_no_harm() -> None:
    bench = Bench(rate=24_000)
    bench.playback.play(ramp(24_000), 0)
    bench.run(0.1)
    assert bench.playback.flush(1, bench.clock.now).frames_heard == 2400
    assert_silent_after_flush(bench, 0, epoch=2)
    assert bench.pcm.drops == 2  # one of them behind the second answer's end


def test_of_two_flushes_at_once_the_second_waits_for_the_first() -> None:
    bench = Bench(rate=24_000)
    bench.playback.play(ramp(24_000), 0)
    bench.run(0.1)
    second: list[int] = []
    drop = bench.pcm.drop
    other = threading.Thread(
        target=lambda: second.append(bench.playback.flush(2, bench.clock.now).frames_heard)
    )

    def drop_slowly() -> int:
        if not other.ident:
            other.start()
        assert not second, "a flush inside a flush"
        return drop()

    bench.pcm.drop = drop_slowly  # type: ignore[method-assign]
    first = bench.playback.flush(1, bench.clock.now).frames_heard
    other.join()
    assert (first, second) == (2400, [0])
    heard = len(bench.pcm.heard)
    bench.playback.play(ramp(24_000), 1)
    bench.run(0.5)
    assert len(bench.pcm.heard) == heard


@pytest.mark.parametrize("avail", [-32, 17])
@pytest.mark.parametrize("noticed", [True, False])
def test_a_flush_while_the_device_is_in_xrun(avail: int, noticed: bool) -> None:
    """The owner came too late; the device is in xrun, and some still tell an old `avail` there."""
    bench = Bench(rate=24_000)
    bench.playback.play(ramp(24_000), 0)
    bench.step()
    taken = bench.pcm.size - 480  # a step of it stays free
    bench.clock.now += 0.5
    tell = bench.pcm.avail

    def avail_in_xrun() -> int:
        told = tell()
        return avail if bench.pcm._xrun else told

    bench.pcm.avail = avail_in_xrun  # type: ignore[method-assign]
    if noticed:
        bench.step()
        bench.clock.now += 0.05
        taken += 1200
    assert bench.playback.xruns == noticed
    assert_silent_after_flush(bench, taken)


def test_a_flush_while_the_answer_waits_for_the_network() -> None:
    bench = Bench(rate=24_000)
    bench.playback.play(ramp(6000), 0)
    bench.run(0.5)
    assert bench.playback.holes == 1
    bench.playback.play(ramp(100), 0)  # too little to go on
    bench.run(0.01)
    assert_silent_after_flush(bench, 6000)


@pytest.mark.parametrize("after_s", [0.21, 0.245, 0.2495, 0.2505, 0.5])
def test_a_flush_between_the_last_write_and_the_end(after_s: float) -> None:
    """An answer of 250 ms: written whole, with silence behind it, partly or wholly heard."""
    bench = Bench(rate=24_000)
    bench.playback.play(ramp(6000), 0)
    bench.playback.end(0)
    bench.run(after_s)
    drained = bool(bench.events(PlaybackDrained))
    assert drained == (after_s > 0.25)
    heard = 0 if drained else min(6000, round(after_s * 24_000))
    assert_silent_after_flush(bench, heard)


@pytest.mark.parametrize("after_s", [0.05, 0.15, 0.19, 0.5])
def test_a_flush_while_the_resampler_holds_a_tail(after_s: float) -> None:
    """soxr keeps up to 38 ms of what it was given; no more comes, and no end."""
    bench = Bench(rate=48_000)
    bench.playback.play(np.full(4800, 9000, np.int16), 0)
    bench.run(after_s)
    bench.pcm._advance()
    of_answer = len(bench.pcm.heard) // 2
    assert of_answer < 4800
    assert_silent_after_flush(bench, of_answer)


def test_a_flush_of_a_ducked_answer_and_the_next_is_as_loud_as_ever() -> None:
    bench = Bench(rate=24_000)
    bench.playback.play(np.full(24_000, 9000, np.int16), 0)
    bench.run(0.2)
    bench.playback.duck(True)
    bench.run(0.2)
    assert bench.pcm.heard[-1] == 9000 * DUCK_GAIN
    assert_silent_after_flush(bench, 9600)
    assert bench.pcm.heard.min() == -9000


def test_a_flush_silences_a_chime_that_nobody_heard_of() -> None:
    bench = Bench(rate=24_000)
    bench.playback.chime(np.full(3600, 9000, np.int16), 100)
    bench.run(0.05)
    bench.pcm._advance()
    assert len(bench.pcm.heard) == 1200
    assert_silent_after_flush(bench, 0)


def test_a_flush_before_a_chime_has_begun_forgets_it() -> None:
    bench = Bench(rate=24_000)
    bench.playback.chime(np.full(3600, 9000, np.int16), 100)
    assert_silent_after_flush(bench, 0)


def test_a_cut_is_a_step_of_what_sounded_and_smaller_when_ducked() -> None:
    """Behind a drop nothing can be written: the measure of the click is the last sample."""
    steps = []
    for ducked in (False, True):
        bench = Bench(rate=24_000)
        bench.playback.play(np.full(24_000, 16_384, np.int16), 0)
        bench.run(0.2)
        bench.playback.duck(ducked)
        bench.run(0.2)
        bench.playback.flush(1, bench.clock.now)
        steps.append(last_step_dbfs(bench.pcm.heard))
    assert steps == [pytest.approx(-6.02, abs=0.01), pytest.approx(-20.0, abs=0.01)]


LEVELS = (100, 1000, 10_000)
"""Each answer is a constant, ducked or not unlike those before and after it."""

CHIME = np.full(1000, -15_000, np.int16)


def flush_is_exact(seed: int, kind: Callable[..., Playback]) -> None:
    """One random ordering of a network, an owner and a requester, with the promises as assertions.

    The microphone's clock asks for what was played, and must have been told the same as the ear.
    """
    rng = random.Random(seed)
    bench = Bench(rate=24_000, kind=kind, short_writes=rng if seed % 2 else None)
    playback, pcm = bench.playback, bench.pcm
    epoch, queued, ended, start = 0, 0, False, 0
    told: list[Samples] = []

    def let_pass(seconds: float) -> None:
        bench.clock.now += seconds
        taken = bench.played.take(round(seconds * WIRE_RATE), bench.clock.now)
        if taken is not None:
            told.append(taken)

    def flush() -> None:
        nonlocal epoch, queued, ended, start
        pcm._advance()
        drained = any(event.epoch == epoch for event in bench.events(PlaybackDrained))
        level = LEVELS[epoch % 3]
        epoch += 1
        flushed = playback.flush(epoch, bench.clock.now)
        sound = pcm.heard[start:]
        answer = sound[sound > 0]
        assert np.all((answer >= DUCK_GAIN * level) & (answer <= level)), "stale sound"
        assert set(sound[sound < 0]) <= {-15_000}
        assert len(answer) <= queued
        # Once it is played out and reported, there is no answer whose frames could be told.
        assert flushed.frames_heard == (0 if drained else len(answer)), "a clock that lies"
        assert not drained or len(answer) == queued, "reported before it was heard"
        start, queued, ended = len(pcm.heard), 0, False
        let_pass(rng.choice([0.0, 0.01, 0.2]))
        pcm._advance()
        assert len(pcm.heard) == start, "sound after the flush"

    def meanwhile() -> None:
        if playback._cond.acquire(blocking=False):  # somebody wrote without the lock
            playback._cond.release()
            if rng.random() < 0.3:
                flush()

    pcm.meanwhile = meanwhile
    for _ in range(120):
        move = rng.random()
        if move < 0.3 and not ended:
            frames = rng.choice([1, 100, 480, 4800])
            playback.play(np.full(frames, LEVELS[epoch % 3], np.int16), epoch)
            queued += frames
        elif move < 0.34:
            playback.chime(CHIME, 100)
        elif move < 0.38:
            playback.duck(rng.random() < 0.7)
        elif move < 0.4:
            playback.end(epoch)
            ended = True
        elif move < 0.85:
            bench.step()
            let_pass(rng.choice([0.0, 0.001, 0.005, 0.02, 0.1]))
        else:
            flush()
            if rng.random() < 0.2:
                flush()
    pcm._advance()
    whole = np.concatenate([*told, CHIME[:0]])
    assert np.array_equal(whole[whole != 0], pcm.heard[pcm.heard != 0]), "a wrong reference"


@pytest.mark.parametrize("block", range(20))
def test_two_thousand_random_orderings_of_owner_and_requester(block: int) -> None:
    """The lock makes a step and a flush indivisible, so orderings of whole steps are all there
    are; that the lock is held is tested below, with real threads."""
    for seed in range(block * 100, block * 100 + 100):
        flush_is_exact(seed, Playback)


class NoDrop(Playback):
    """Sabotage: forgets the queue, but lets the device play on."""

    def flush(self, epoch: int, cause_at: float) -> Any:
        pcm, self._pcm = self._pcm, None
        try:
            return super().flush(epoch, cause_at)
        finally:
            self._pcm = pcm


class LatePosition(Playback):
    """Sabotage: asks the device what it holds after the drop."""

    def flush(self, epoch: int, cause_at: float) -> Any:
        if self._pcm and self._sounding:
            self._pcm.drop()
        return super().flush(epoch, cause_at)


class KeepsTheHand(Playback):
    """Sabotage: writes what it had in hand before it honours the flush."""

    def flush(self, epoch: int, cause_at: float) -> Any:
        hand = self._ready[:480]
        flushed = super().flush(epoch, cause_at)
        if len(hand) and self._pcm:
            self._pcm.write(hand.tobytes())
        return flushed


class WritesUnlocked(Playback):
    """Sabotage: lets go of the lock while the device takes a write."""

    def _write(self, mono: Samples, pending: int) -> int:
        self._cond.release()
        try:
            return super()._write(mono, pending)
        finally:
            self._cond.acquire()


class CountsTheChime(Playback):
    """Sabotage: takes a chime for a part of the answer."""

    def chime(self, samples: Samples, volume: int) -> None:
        self.play(samples, self._epoch)


class TellsWhatItWrote(Playback):
    """Sabotage: the reference has all that was written, dropped or not."""

    def _drop(self, pending: int) -> None:
        super()._drop(pending)
        if self._played._runs:
            self._played._runs[-1].end = self._played._runs[-1].written


@pytest.mark.parametrize(
    "sabotage",
    [NoDrop, LatePosition, KeepsTheHand, WritesUnlocked, CountsTheChime, TellsWhatItWrote],
)
def test_the_random_orderings_find_each_sabotage(sabotage: type[Playback]) -> None:
    def search() -> None:
        for seed in range(200):
            flush_is_exact(seed, sabotage)

    with pytest.raises(AssertionError):
        search()


def test_real_threads_never_let_a_stale_sample_follow_a_flush() -> None:
    """The same with the owner in its own thread, against a device that checks its callers."""
    clock = Clock()

    class Guarded(FakePcm):
        inside = 0

        def write(self, data: bytes) -> int:
            self.inside += 1
            assert self.inside == 1
            time.sleep(0)  # let somebody else run in the middle of it
            taken = super().write(data)
            self.inside -= 1
            return taken

        def drop(self) -> int:
            assert self.inside == 0, "a drop in the middle of a write"
            return super().drop()

    pcm = Guarded(clock)
    playback = Playback(
        "hw:1", RATE, 100, lambda _: None, clock=clock, open_pcm=lambda *_: (pcm, 1)
    )
    playback.start()
    rng = random.Random(5)
    for epoch in range(300):
        playback.play(ramp(rng.choice([480, 4800])), epoch)
        for _ in range(rng.randrange(4)):
            clock.now += 0.02
            time.sleep(0)
        playback.flush(epoch + 1, clock.now)
        heard = len(pcm.heard)
        clock.now += 0.2
        pcm._advance()
        assert len(pcm.heard) == heard
    playback.close()


# --- duck ------------------------------------------------------------------------------------


def test_duck_fades_what_is_not_written_yet_and_back() -> None:
    bench = Bench()
    sound = tone(3.0, 200.0)
    bench.playback.play(sound, 0)
    bench.playback.end(0)
    bench.run(1.0)
    bench.playback.duck(True)
    bench.run(1.0)
    bench.playback.duck(False)
    bench.run(2.0)
    heard = np.trim_zeros(bench.pcm.heard).astype(float)

    def peak(second: float) -> float:
        return float(np.abs(heard[round(second * RATE) :][: RATE // 100]).max())

    assert peak(0.99) == pytest.approx(8000, rel=0.01)
    assert peak(1.14) == pytest.approx(8000 * DUCK_GAIN, rel=0.01)
    assert peak(1.99) == pytest.approx(8000 * DUCK_GAIN, rel=0.01)
    assert peak(2.14) == pytest.approx(8000, rel=0.01)
    of_tone = 8000 * 2 * np.pi * 200 / RATE
    of_ramp = 8000 * (1 - DUCK_GAIN) / (DUCK_MS / 1000 * RATE)
    inner = np.diff(heard[100:-100])  # the tone itself begins with a step
    assert np.abs(inner).max() <= 1.01 * (of_tone + of_ramp) + 2


@pytest.mark.parametrize("seed", range(5))
def test_however_the_device_takes_it_a_duck_has_no_step(seed: int) -> None:
    rng = random.Random(seed)
    bench = Bench(rate=24_000, short_writes=rng)
    bench.playback.play(np.full(72_000, 10_000, np.int16), 0)
    for _ in range(200):
        bench.playback.duck(rng.random() < 0.5)
        bench.run(rng.choice([0.001, 0.01, 0.03]))
    assert np.ptp(bench.pcm.heard) == 10_000 * (1 - DUCK_GAIN)
    of_ramp = 10_000 * (1 - DUCK_GAIN) / (DUCK_MS * 24)
    assert np.abs(np.diff(bench.pcm.heard)).max() <= of_ramp + 1


def test_ducked_an_answer_is_as_long_and_the_next_one_as_loud_as_ever() -> None:
    bench = Bench(rate=24_000)
    for _ in range(2):
        bench.playback.play(np.full(24_000, 10_000, np.int16), 0)
        bench.playback.end(0)
        bench.run(0.2)
        assert bench.pcm.heard[-1] == 10_000
        bench.playback.duck(True)
        bench.run(2)
    assert len(np.flatnonzero(bench.pcm.heard)) == 48_000
    assert len(bench.events(PlaybackDrained)) == 2


def test_with_nothing_to_duck_a_duck_means_nothing() -> None:
    bench = Bench(rate=24_000)
    bench.playback.duck(True)
    bench.playback.play(np.full(24_000, 10_000, np.int16), 0)
    bench.run(0.5)
    assert set(bench.pcm.heard) == {10_000}


# --- chime -----------------------------------------------------------------------------------


def test_a_chime_sounds_at_once_and_is_no_answer() -> None:
    bench = Bench(rate=24_000)
    sound = ramp(3600)
    bench.playback.chime(sound, 100)
    bench.step()
    assert len(bench.pcm._buffer)
    bench.run(0.5)
    assert np.array_equal(np.trim_zeros(bench.pcm.heard), sound)
    assert bench.pcm.drops == 1
    assert [type(event) for event in bench.posted] == [DeviceBack]
    assert bench.playback.chimes_skipped == 0


def test_a_chime_has_a_volume_of_its_own() -> None:
    bench = Bench(rate=24_000, volume=10)
    bench.playback.chime(np.full(2400, 10_000, np.int16), 50)
    bench.run(0.5)
    assert set(bench.pcm.heard[:2400]) == {2500}


def test_a_chime_at_another_rate_sounds_whole() -> None:
    bench = Bench(rate=48_000)
    bench.playback.chime(tone(0.15), 100)
    bench.run(0.5)
    assert len(np.trim_zeros(bench.pcm.heard)) == pytest.approx(0.15 * RATE, abs=4)


def test_a_chime_that_something_is_in_the_way_of_is_left_out_and_counted() -> None:
    bench = Bench(rate=24_000)
    bench.playback.chime(CHIME, 100)
    bench.playback.chime(CHIME, 100)  # the first has not begun
    bench.run(0.01)
    bench.playback.chime(CHIME, 100)  # it sounds
    bench.run(0.5)
    bench.playback.play(ramp(100), 0)
    bench.playback.chime(CHIME, 100)  # an answer is about to begin
    bench.run(0.5)
    bench.playback.chime(CHIME, 100)  # it waits for the network
    bench.playback.end(0)
    bench.run(0.5)
    bench.playback.chime(CHIME, 100)
    bench.run(0.5)
    assert bench.playback.chimes_skipped == 4
    assert np.count_nonzero(bench.pcm.heard == CHIME[0]) == 2 * len(CHIME)


def test_an_answer_waits_for_no_chime() -> None:
    bench = Bench(rate=24_000)
    bench.playback.chime(np.full(3600, -15_000, np.int16), 100)
    bench.run(0.03)
    bench.playback.play(ramp(12_000), 0)
    bench.playback.end(0)
    bench.run(1)
    assert bench.events(PlaybackStarted)[0].at == pytest.approx(10.03, abs=0.001)
    assert np.count_nonzero(bench.pcm.heard < 0) == 720
    assert np.array_equal(np.trim_zeros(bench.pcm.heard[720:]), ramp(12_000))
    assert len(bench.events(PlaybackDrained)) == 1


def test_a_chime_sounds_on_while_an_answer_gathers() -> None:
    bench = Bench(rate=24_000)
    bench.playback.chime(np.full(3600, -15_000, np.int16), 100)
    bench.run(0.01)
    bench.playback.play(ramp(2400), 0)
    bench.run(0.6)
    assert bench.events(PlaybackStarted)[0].at == pytest.approx(10.26, abs=0.002)
    assert np.count_nonzero(bench.pcm.heard < 0) == 3600
    assert bench.playback.flush(1, bench.clock.now).frames_heard == 2400


def test_frames_of_a_chime_do_not_count_as_heard_of_the_answer_behind_it() -> None:
    bench = Bench(rate=24_000)
    bench.playback.chime(np.full(3600, -15_000, np.int16), 100)
    bench.run(0.1)
    bench.playback.play(ramp(12_000), 0)
    bench.run(0.1)
    assert bench.playback.flush(1, bench.clock.now).frames_heard == 2400


def test_a_chime_without_a_device_is_left_out() -> None:
    bench = Bench(rate=24_000)
    bench.pcm.gone = True
    bench.run(1.1)
    bench.playback.chime(CHIME, 100)
    bench.pcm.gone = False
    bench.run(3)
    assert not len(bench.pcm.heard)
    assert bench.playback.chimes_skipped == 1


def test_a_chime_ends_with_its_device_and_does_not_come_back_with_it() -> None:
    bench = Bench(rate=24_000)
    bench.playback.chime(np.full(3600, 9000, np.int16), 100)
    bench.run(0.03)
    bench.pcm.gone = True
    bench.run(1)
    assert bench.events(DeviceFault)
    heard = len(bench.pcm.heard)
    bench.pcm.gone, bench.pcm._buffer = False, np.empty(0, np.int16)
    bench.run(2)
    assert len(bench.pcm.heard) == heard
    bench.playback.chime(np.full(3600, 9000, np.int16), 100)
    bench.run(0.5)
    assert np.count_nonzero(bench.pcm.heard[heard:]) == 3600


def test_idle_the_owner_wakes_up_for_the_watchdog_alone() -> None:
    bench = Bench()
    bench.playback.chime(tone(0.1), 100)
    bench.playback.duck(True)
    bench.run(1)
    assert bench.step() == IDLE_STEP_S
    bench.steps = 0
    bench.run(60)
    assert bench.steps == pytest.approx(60 / IDLE_STEP_S, abs=1)


# --- the reference -----------------------------------------------------------------------------


def test_the_reference_has_volume_and_ducking_in_it_and_no_more() -> None:
    bench = Bench(rate=24_000, volume=50)
    bench.playback.play(np.full(12_000, 10_000, np.int16), 0)
    bench.playback.end(0)
    told = []
    for block in range(40):
        bench.run(0.02)
        if block == 10:
            bench.playback.duck(True)
        taken = bench.played.take(480, bench.clock.now)
        told.append(np.zeros(480, np.int16) if taken is None else taken)
    whole = np.concatenate(told)
    assert (whole[0], whole[11_999]) == (2500, 500)
    assert np.array_equal(whole[:12_000], bench.pcm.heard[:12_000])
    assert not whole[12_000:].any()


def test_a_device_that_ran_dry_between_look_and_write_has_a_gap_in_the_reference() -> None:
    bench = Bench(rate=24_000)
    bench.playback.play(np.full(24_000, 10_000, np.int16), 0)
    bench.run(0.1)
    tell, looks = bench.pcm.state, []

    def slow_state() -> int:
        told = tell()
        looks.append(told)
        if len(looks) == 2:  # the first look of the step asks whether it has run dry
            bench.clock.now += 0.3
        return told

    bench.pcm.state = slow_state  # type: ignore[method-assign]
    begin = bench.clock.now
    bench.step()
    again = bench.clock.now
    told = bench.played.take(round(0.32 * WIRE_RATE), again + 0.02)
    assert told is not None
    sounding = np.flatnonzero(told) / WIRE_RATE
    gap = sounding[np.argmax(np.diff(sounding)) + 1]
    assert gap == pytest.approx(again - begin, abs=0.001)
    assert np.diff(sounding).max() > 0.15


# --- the device ------------------------------------------------------------------------------


def test_an_unplugged_speaker_is_a_fault_and_comes_back() -> None:
    bench = Bench()
    assert [e.device for e in bench.events(DeviceBack)] == ["speaker"]
    bench.playback.play(ramp(48_000), 0)
    bench.run(0.2)
    bench.pcm.gone = True
    bench.run(2)
    assert [e.fault for e in bench.events(DeviceFault)][0] == "speaker-lost"
    bench.pcm.gone = False
    bench.run(2)
    assert len(bench.events(DeviceBack)) == 2


def test_a_speaker_that_is_unplugged_while_nothing_plays_is_a_fault_soon() -> None:
    bench = Bench()
    bench.run(2)
    bench.pcm.gone = True
    bench.run(1.1)
    fault = bench.events(DeviceFault)[0]
    assert fault.fault == "speaker-lost"
    assert "unplugged" in fault.detail


def after_a_nap(*, never_well: bool = False) -> Bench:
    """A speaker that has played, and was unplugged and plugged in again while it was silent."""
    bench = Bench(rate=24_000)
    bench.playback.play(ramp(12_000), 0)
    bench.playback.end(0)
    bench.run(2)
    bench.pcm.stale, bench.never_well = True, never_well
    return bench


def test_a_speaker_that_was_away_while_it_was_silent_plays_the_next_answer_whole() -> None:
    bench = after_a_nap()
    before = len(bench.pcm.heard)
    bench.playback.play(ramp(24_000), 1)
    bench.playback.end(1)
    bench.run(2)
    assert np.array_equal(np.trim_zeros(bench.pcm.heard[before:]), ramp(24_000))
    assert not bench.events(DeviceFault)
    assert [event.epoch for event in bench.events(PlaybackDrained)] == [0, 1]


def test_it_sounds_a_chime_as_well() -> None:
    bench = after_a_nap()
    before = len(bench.pcm.heard)
    bench.playback.chime(CHIME, 100)
    bench.run(1)
    assert np.count_nonzero(bench.pcm.heard[before:]) == len(CHIME)


def test_a_speaker_that_opens_and_takes_nothing_is_lost() -> None:
    bench = after_a_nap(never_well=True)
    bench.playback.play(ramp(24_000), 1)
    bench.run(1)
    assert [event.fault for event in bench.events(DeviceFault)] == ["speaker-lost"]


def test_a_flush_of_an_unplugged_speaker_is_no_harm() -> None:
    bench = Bench()
    bench.playback.play(ramp(48_000), 0)
    bench.run(0.2)
    bench.pcm.gone = True
    bench.playback.flush(1, bench.clock.now)
    assert bench.events(DeviceFault)


def test_a_speaker_that_stands_still_is_stuck_and_what_was_heard_is_told() -> None:
    bench = Bench(rate=24_000)
    bench.playback.play(ramp(48_000), 0)
    bench.run(0.5)
    bench.pcm._advance()
    bench.pcm.stuck = True
    bench.run(STILL_S - 0.05)
    assert not bench.events(DeviceFault)
    bench.run(0.2)
    (fault,) = bench.events(DeviceFault)
    assert fault.fault == "speaker-stuck"
    assert "stands still" in fault.detail
    assert bench.pcm.drops == 1
    heard = bench.pcm.heard
    assert bench.playback.flush(1, bench.clock.now).frames_heard == len(heard) == 12_000
    told = [bench.played.take(480, 10.0 + n * 0.02) for n in range(1, 100)]
    emitted = np.concatenate([block for block in told if block is not None])
    assert np.array_equal(np.trim_zeros(emitted), heard)


def test_stuck_it_is_one_fault_until_it_has_played_a_second_of_silence() -> None:
    bench = Bench(rate=24_000)
    bench.pcm.stuck = True
    bench.playback.chime(CHIME, 100)
    bench.run(30)
    assert [e.fault for e in bench.events(DeviceFault)] == ["speaker-stuck"]
    assert len(bench.events(DeviceBack)) == 1  # at the start
    bench.pcm.stuck, freed = False, bench.clock.now
    bench.run(4)
    assert len(bench.events(DeviceBack)) == 2
    assert 1.0 < bench.events(DeviceBack)[-1].at - freed < 3.2
    assert not bench.pcm.heard.any()
    bench.playback.chime(CHIME, 100)
    bench.run(0.5)
    assert np.count_nonzero(bench.pcm.heard) == len(CHIME)


def test_a_stuck_speaker_that_is_plugged_in_anew_is_back_at_once() -> None:
    bench = Bench()
    bench.pcm.stuck = True
    bench.playback.chime(CHIME, 100)
    bench.run(3)
    bench.pcm.gone = True
    bench.run(2)
    bench.pcm.gone = bench.pcm.stuck = False
    bench.run(1.1)
    faults = [e.fault for e in bench.events(DeviceFault)]
    assert (faults[0], faults[-1]) == ("speaker-stuck", "speaker-lost")
    assert len(bench.events(DeviceBack)) == 2


def test_a_speaker_that_swallows_an_answer_in_no_time_is_stuck() -> None:
    bench = Bench(rate=24_000)
    bench.pcm.avail = lambda: bench.pcm.size  # type: ignore[method-assign]
    bench.pcm.write = lambda data: len(data) // 2  # type: ignore[method-assign]
    bench.playback.play(ramp(48_000), 0)
    bench.playback.end(0)
    bench.run(0.5)
    (fault,) = bench.events(DeviceFault)
    assert fault.fault == "speaker-stuck"
    assert "ahead of the clock" in fault.detail
    assert not bench.events(PlaybackDrained)
    bench.run(10)
    assert len(bench.events(DeviceBack)) == 1  # at the start
    assert len(bench.events(DeviceFault)) == 1


def test_answers_that_are_cut_one_after_the_other_do_not_make_a_hurried_device() -> None:
    bench = Bench(rate=24_000)
    for epoch in range(50):
        bench.playback.play(ramp(9_600), epoch)
        bench.run(0.09)
        bench.playback.flush(epoch + 1, bench.clock.now)
    assert not bench.events(DeviceFault)


def test_a_machine_that_stands_still_has_no_stuck_speaker() -> None:
    bench = Bench(rate=24_000)
    bench.playback.play(ramp(48_000), 0)
    bench.run(0.5)
    bench.pcm.stuck = True
    for _ in range(3):
        bench.step()
        bench.clock.now += 100.0
    bench.pcm.stuck = False
    bench.playback.end(0)
    bench.run(3)
    assert not bench.events(DeviceFault)
    assert len(bench.events(PlaybackDrained)) == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_owner_that_ends_by_itself_has_died_and_one_that_was_closed_has_not() -> None:
    def end(*_: Any) -> Any:
        raise SystemExit

    dead = Playback("hw:1", RATE, 100, lambda _: None, open_pcm=end)
    closed = Playback("hw:1", RATE, 100, lambda _: None, open_pcm=lambda *_: (FakePcm(Clock()), 1))
    dead.start()
    closed.start()
    until(lambda: dead.has_died)
    assert not closed.has_died
    closed.close()
    assert not closed.has_died


def test_a_successor_opens_when_its_predecessor_has_closed() -> None:
    order: list[str] = []

    class Old(FakePcm):
        def close(self) -> None:
            order.append("closed")

    def open_new(*_: Any) -> tuple[Any, int]:
        order.append("opened")
        return FakePcm(Clock()), 1

    old = Playback("hw:1", RATE, 100, lambda _: None, open_pcm=lambda *_: (Old(Clock()), 1))
    new = Playback("hw:1", RATE, 100, lambda _: None, open_pcm=open_new)
    old.start()
    until(lambda: old._pcm is not None)
    new.start(after=old)
    until(lambda: len(order) == 2)
    new.close()
    assert order == ["closed", "opened"]


def test_close_is_safe_early_and_twice() -> None:
    bench = Bench()
    bench.playback.close()
    bench.playback.close()


def test_a_stereo_card_gets_both_channels() -> None:
    clock = Clock()
    written: list[bytes] = []

    class Stereo(FakePcm):
        def write(self, data: bytes) -> int:
            written.append(data)
            return len(data) // 4

    playback = Playback(
        "hw:1",
        24_000,
        100,
        lambda _: None,
        clock=clock,
        open_pcm=lambda *_: (Stereo(clock, 24_000), 2),
    )
    playback.open_if_needed()
    playback.play(ramp(4800), 0)
    playback.step()
    frames = np.frombuffer(written[0], "<i2").reshape(-1, 2)
    assert np.array_equal(frames[:, 0], frames[:, 1])
    assert np.array_equal(frames[:100, 0], ramp(100))


# --- through libasound -------------------------------------------------------------------------


def until(condition: Callable[[], object], timeout_s: float = 5.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it never came to that"
        threading.Event().wait(0.005)


@pytest.fixture
def speaker(rig: Rig) -> Any:
    posted: list[Any] = []
    playback = Playback(rig.speaker, RATE, 100, posted.append)
    playback.start()
    until(lambda: posted)
    yield playback, posted
    playback.close()


def test_a_real_device_that_waits_for_more_is_not_stuck(speaker: Any) -> None:
    """Two short pieces and a long wait behind each, in which it runs dry."""
    playback, posted = speaker
    for n in range(2):
        playback.play(tone(0.1 + 0.1 * n), 0)
        until(lambda n=n: playback.holes == n + 1)
        began = time.monotonic()
        until(lambda began=began: time.monotonic() > began + 1.3)
    assert {type(event) for event in posted} == {DeviceBack, PlaybackStarted}


def test_every_sample_arrives_at_a_real_device(rig: Rig, speaker: Any) -> None:
    playback, posted = speaker
    with Ear(rig) as ear:
        first = ear.length
        samples = tone(1.0)
        playback.play(samples, 0)
        playback.end(0)
        until(lambda: any(isinstance(e, PlaybackDrained) for e in posted))
        ear.wait_until(time.monotonic(), 5)
        sound = np.trim_zeros(ear.snapshot(first))
    expected = np.interp(np.arange(RATE) / 2, np.arange(len(samples)), samples.astype(float))
    n = min(len(sound), RATE)
    assert abs(len(sound) - RATE) <= 6
    likeness = sound[:n] @ expected[:n] / np.linalg.norm(sound[:n]) / np.linalg.norm(expected[:n])
    assert likeness > 0.999


def test_a_real_device_falls_silent_and_tells_what_was_heard(rig: Rig, speaker: Any) -> None:
    playback, posted = speaker
    with Ear(rig) as ear:
        for epoch in range(5):
            first = ear.length
            playback.play(tone(2.0), epoch * 2)
            until(lambda first=first: ear.snapshot(first).any())
            until(lambda first=first: np.count_nonzero(ear.snapshot(first)) > RATE * 0.3)
            flushed = playback.flush(epoch * 2 + 1, time.monotonic())
            ear.wait_until(flushed.at + 0.25, 5)
            sound = np.trim_zeros(ear.snapshot(first))
            last = first + np.flatnonzero(ear.snapshot(first))[-1]
            assert ear.time_at(last) - flushed.at < 0.03  # the rig's own delay is in it
            assert abs(len(sound) / RATE - flushed.frames_heard / WIRE_RATE) < 0.03


def test_a_real_device_plays_chimes_and_cuts_them_for_an_answer(rig: Rig, speaker: Any) -> None:
    playback, posted = speaker
    answer = tone(0.5)
    with Ear(rig) as ear:
        ear.wait_until(time.monotonic(), 5)
        for _ in range(3):
            posted.clear()
            first = ear.length
            playback.chime(tone(0.1, 1000.0), 100)
            until(lambda first=first: ear.snapshot(first).any())
            playback.play(answer, 0)
            playback.end(0)
            until(lambda: any(isinstance(e, PlaybackDrained) for e in posted))
            playback.chime(tone(0.1, 1000.0), 100)
            ear.wait_until(time.monotonic() + 0.3, 5)
            sound = ear.snapshot(first)[::2].astype(float)
            found = np.correlate(sound, answer.astype(float), "valid")
            at = int(np.argmax(found))
            heard = sound[at : at + len(answer)]
            assert found[at] > 0.97 * np.linalg.norm(heard) * np.linalg.norm(answer)
            chimed = [len(np.trim_zeros(part)) / WIRE_RATE for part in (sound[:at], sound[at:])]
            assert 0 < chimed[0] < 0.1
            assert chimed[1] > 0.59  # the answer, and the chime right behind it
    assert playback.chimes_skipped == 0


def lag_of_the_ear(rig: Rig) -> tuple[float, float, bool]:
    """A second of noise: by how much the ear hears later than the reference tells, in seconds, how
    like the two are, and whether all went as on an idle machine."""
    posted: list[Any] = []
    played = Played()
    playback = Playback(rig.speaker, RATE, 100, posted.append, played=played)
    playback.start()
    until(lambda: posted)
    white = np.random.default_rng(4).integers(-20_000, 20_000, WIRE_RATE)
    noise = np.convolve(white, np.ones(16) / 16, "same").astype(np.int16)
    told: list[Samples] = []
    with Ear(rig) as ear:
        ear.wait_until(time.monotonic(), 5)
        playback.play(noise, 0)
        playback.end(0)
        begin = at = time.monotonic()
        while at < begin + 1.2:
            at += 0.02
            until(lambda at=at: time.monotonic() >= at)
            taken = played.take(480, at)
            told.append(np.zeros(480, np.int16) if taken is None else taken)
        ear.wait_until(at, 5)
        first = ear.index_at(begin)
        heard = ear.snapshot(first, first + 2 * 480 * len(told))[::2].astype(float)
    playback.close()
    reference = np.concatenate(told).astype(float)
    spectrum = np.fft.rfft(heard, 2**16) * np.conj(np.fft.rfft(reference, 2**16))
    match = np.fft.irfft(spectrum)
    lag = (int(np.argmax(match)) + 2**15) % 2**16 - 2**15
    likeness = match.max() / np.linalg.norm(heard) / np.linalg.norm(reference)
    return lag / WIRE_RATE, float(likeness), not (playback.xruns or played.resyncs)


def test_the_reference_is_what_a_real_device_emitted_and_not_later(rig: Rig) -> None:
    """An echo canceller can find an echo that is behind its reference, and never one before it."""
    for _ in range(3):  # beside other work the device may run dry
        lag_s, likeness, undisturbed = lag_of_the_ear(rig)
        if undisturbed:
            break
    assert likeness > 0.97  # 0.98 where the ear's samples lie half way between
    assert -0.005 < lag_s < 0.03  # measured 0 to 7 ms, dated to 5


# --- hush ------------------------------------------------------------------------------------


def test_a_hush_breaks_off_a_long_chime_and_the_next_one_sounds() -> None:
    bench = Bench(rate=24_000)
    bench.playback.chime(np.full(72_000, 9000, np.int16), 100)
    bench.run(0.3)
    bench.playback.hush()
    bench.run(1.0)
    bench.pcm._advance()
    assert np.count_nonzero(bench.pcm.heard == 9000) == pytest.approx(0.3 * 24_000, abs=120)
    bench.playback.chime(ramp(100), 100)
    bench.run(0.5)
    assert bench.playback.chimes_skipped == 0
    assert np.array_equal(np.trim_zeros(bench.pcm.heard)[-100:], ramp(100))


def test_a_hush_before_a_chime_has_begun_forgets_it() -> None:
    bench = Bench(rate=24_000)
    bench.playback.chime(np.full(3600, 9000, np.int16), 100)
    bench.playback.hush()
    bench.run(0.5)
    assert not bench.pcm.heard.any()


def test_a_hush_leaves_an_answer_alone() -> None:
    bench = Bench(rate=24_000)
    bench.playback.hush()
    bench.playback.play(ramp(24_000), 0)
    bench.playback.end(0)
    bench.run(0.5)
    bench.playback.hush()
    bench.run(1.0)
    assert np.array_equal(np.trim_zeros(bench.pcm.heard), ramp(24_000))
