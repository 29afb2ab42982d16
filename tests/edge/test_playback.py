"""The speaker's owner, stepped by hand, against a device in simulated time; then through ALSA.

`FakePcm` plays in real time of a clock that the test moves, holds a bounded buffer, runs dry,
takes short writes and can be unplugged, as the real ones do.
"""

import random
import threading
import time
from collections.abc import Callable
from typing import Any

import alsaaudio
import numpy as np
import pytest

from voiced.edge.pcm import DeviceError
from voiced.edge.playback import Playback
from voiced.events import (
    WIRE_RATE,
    DeviceBack,
    DeviceFault,
    PlaybackDrained,
    PlaybackStarted,
    Samples,
)
from voiced.sim.rig import Ear, Rig

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
        self._short = short_writes
        self._buffer = np.empty(0, np.int16)
        self._at: float | None = None
        self._xrun = False

    def _advance(self) -> None:
        if self._at is None:
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
        self._check()
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
        self.playback = kind(
            "hw:1", rate, volume, self.posted.append, clock=self.clock, open_pcm=self.open
        )
        self.playback.open_if_needed()
        self._wake_at = 0.0

    def open(self, device: str, rate: int) -> tuple[Any, int]:
        if self.pcm.gone:
            raise DeviceError("speaker-lost", f"{device}: No such device")
        return self.pcm, 1

    def step(self) -> float:
        self.playback.open_if_needed()
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


def flush_is_exact(seed: int, kind: Callable[..., Playback]) -> None:
    """One random ordering of a network, an owner and a flusher, with the promises as assertions.

    Each answer is a constant of its own, so any stale sample shows.
    """
    rng = random.Random(seed)
    bench = Bench(rate=24_000, kind=kind, short_writes=rng if seed % 2 else None)
    epoch, queued = 0, 0
    start = 0
    for _ in range(120):
        move = rng.random()
        if move < 0.35:
            frames = rng.choice([1, 100, 480, 4800])
            bench.playback.play(np.full(frames, epoch % 1000 + 1, np.int16), epoch)
            queued += frames
        elif move < 0.85:
            bench.step()
            bench.clock.now += rng.choice([0.0, 0.001, 0.005, 0.02, 0.1])
        else:
            bench.pcm._advance()
            epoch += 1
            flushed = bench.playback.flush(epoch, bench.clock.now)
            sound = bench.pcm.heard[start:]
            assert set(sound) <= {(epoch - 1) % 1000 + 1}, "stale sound"
            assert flushed.frames_heard == len(sound), "a clock that lies"
            assert len(sound) <= queued
            start, queued = len(bench.pcm.heard), 0
            bench.clock.now += rng.choice([0.0, 0.01, 0.2])
            bench.pcm._advance()
            assert len(bench.pcm.heard) == start, "sound after the flush"


@pytest.mark.parametrize("block", range(20))
def test_two_thousand_random_orderings_of_owner_and_flusher(block: int) -> None:
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


@pytest.mark.parametrize("sabotage", [NoDrop, LatePosition, KeepsTheHand])
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


def test_a_flush_of_an_unplugged_speaker_is_no_harm() -> None:
    bench = Bench()
    bench.playback.play(ramp(48_000), 0)
    bench.run(0.2)
    bench.pcm.gone = True
    bench.playback.flush(1, bench.clock.now)
    assert bench.events(DeviceFault)


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
