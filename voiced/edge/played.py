"""What the loudspeaker really emitted, by time: what an echo in the microphone is an echo of.

Sound comes in *runs*: from the first sample that the device took to the moment it ran dry or was
dropped. The speaker's owner writes them; the microphone's thread reads them along its own clock.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from voiced.events import WIRE_RATE, Samples

KEPT_S = 2.0
"""Twice what the microphone's thread may be late. Older samples are overwritten; a reader that
wanted them goes on with the oldest there is, which counts as a resync."""

RUNS = 16
"""How many are remembered for a reader that comes late; the oldest go."""

RESYNC_S = 0.02
"""A reader that is off by less goes on without a jump: a device tells its position to 5 ms, and a
thread wakes up some ms late. At 100 ppm between two clocks it is reached after 200 s of sound."""

PATIENCE = 10
"""Takes in a row that must be off before the reader jumps: 0.2 s of blocks. A thread that was kept
from running stamps a few blocks late, and then it is on time again."""

TAPS = 16
PHASES = 960
"""Of the interpolation. What we play was made from `WIRE_RATE`, so it has nothing above 12 kHz that
could fold: a windowed sinc at the wanted places is all the resampling there is to do, and it has
neither a delay nor a state. 960 divides into every usual rate, from 11,025 Hz up."""


def _kernel() -> NDArray[np.float32]:
    """Weights of the `TAPS` samples around a place, shape (PHASES, TAPS)."""
    taps = np.arange(TAPS) - (TAPS // 2 - 1)
    away = taps - np.arange(PHASES)[:, np.newaxis] / PHASES
    weights = np.sinc(away) * np.cos(np.pi * away / (TAPS + 1)) ** 2
    kernel: NDArray[np.float32] = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return kernel


@dataclass(slots=True, eq=False)
class _Run:
    """Samples `first` to `written` since the reset; those before `end` were played.

    `end` is None while it goes on. Sample `mark` left the speaker at `mark_at`.
    """

    first: int
    written: int
    mark: int
    mark_at: float
    end: int | None = None

    @property
    def last(self) -> int:
        return self.written if self.end is None else self.end


class Played:
    """One owner writes, one reader takes, each in its own thread. A write waits for a take at most
    as long as that needs (0.04 ms)."""

    def __init__(self) -> None:
        self.resyncs = 0
        """How often the reader jumped: the clocks had drifted apart, or it came too late."""
        self._lock = threading.Lock()
        self._runs: deque[_Run] = deque(maxlen=RUNS)
        self._kernel = _kernel()
        self.reset(WIRE_RATE)

    # --- the speaker's owner -------------------------------------------------------------

    def reset(self, rate: int) -> None:
        """Forget all; what is written from now on is at `rate` Hz."""
        with self._lock:
            self._rate = rate
            self._frames_per_frame = rate / WIRE_RATE  # of the device, for one that is taken
            self._ring = np.zeros(int(KEPT_S * rate), np.int16)
            self._written = 0
            self._runs.clear()
            self._reading: _Run | None = None
            self._position = 0  # frames taken of that run
            self._takes_off = 0

    def wrote(self, samples: Samples, pending: int, at: float) -> None:
        """The device took int16 `samples`, shape (n,), and held `pending` frames before, at `at`.

        With none pending it had been silent: a run begins at `at`.
        """
        with self._lock:
            run = self._runs[-1] if self._runs else None
            if run is None or run.end is not None or not pending:
                self._end(run, 0)
                run = _Run(self._written, self._written, self._written, at)
                self._runs.append(run)
            run.mark, run.mark_at = max(run.first, self._written - pending), at
            start = self._written % len(self._ring)
            head = samples[: len(self._ring) - start]
            self._ring[start : start + len(head)] = head
            self._ring[: len(samples) - len(head)] = samples[len(head) :]
            self._written += len(samples)
            run.written = self._written

    def stopped(self, pending: int | None, at: float) -> None:
        """The device was dropped at `at` and will never play the last `pending` frames it took.

        None if it can't be asked: then what the time since the last write allows was played.
        """
        with self._lock:
            run = self._runs[-1] if self._runs else None
            if pending is None and run:
                pending = run.written - self._due(run, at)
            self._end(run, pending or 0)

    @staticmethod
    def _end(run: _Run | None, pending: int) -> None:
        if run and run.end is None:
            run.end = max(run.first, run.written - pending)

    # --- the microphone's thread ---------------------------------------------------------

    def take(self, frames: int, at: float) -> Samples | None:
        """What was emitted in the `frames` / `WIRE_RATE` seconds before `at`: int16, (frames,).

        None if nothing sounded then. Call after call, for stretches that follow each other, gives
        each sample of a run once and in order, though `at` jitters.
        """
        if not self._runs:  # a look without the lock: this is asked for ever, mostly in silence
            return None
        with self._lock:
            taken = np.zeros(frames, np.int16)
            filled, sounded = 0, False
            while self._runs and filled < frames:
                run = self._runs[0]
                filled += self._approach(run, at, frames - filled)
                sound = self._read(run, frames - filled)
                taken[filled : filled + len(sound)] = sound
                sounded |= len(sound) > 0
                filled += len(sound)
                if run.end is None or filled == frames:
                    break
                self._runs.popleft()
            return taken if sounded else None

    def _due(self, run: _Run, at: float) -> int:
        """The sample that left the speaker at `at`, as the last mark tells; one that never was if
        that is before the run began, or after it ended."""
        due = run.mark + round((at - run.mark_at) * self._rate)
        return due if run.end is not None else min(due, run.written)

    def _approach(self, run: _Run, at: float, frames: int) -> int:
        """Stand where the `frames` before `at` begin; how many of them lie before the run."""
        due = self._due(run, at - frames / WIRE_RATE) - run.first
        position = round(due / self._frames_per_frame)
        off = abs(position - self._position) > RESYNC_S * WIRE_RATE
        if run is not self._reading:
            if position <= -frames:
                return frames
            self._seek(run, position if position > RESYNC_S * WIRE_RATE else 0)
            return max(0, -position)
        self._takes_off = self._takes_off + 1 if off else 0
        if self._takes_off >= PATIENCE or self._position < self._oldest(run):
            self.resyncs += 1
            self._seek(run, max(0, position))
        return 0

    def _oldest(self, run: _Run) -> float:
        """The first frame of the run that is not overwritten."""
        return (self._written - len(self._ring) - run.first) / self._frames_per_frame

    def _seek(self, run: _Run, position: int) -> None:
        self._position = max(position, math.ceil(self._oldest(run)))
        self._reading, self._takes_off = run, 0

    def _read(self, run: _Run, frames: int) -> Samples:
        """Up to `frames` of what was played of the run."""
        played = int((run.last - run.first) / self._frames_per_frame)
        frames = min(frames, played - self._position)
        if frames <= 0:
            return np.empty(0, np.int16)
        places = (self._position + np.arange(frames)) * (self._frames_per_frame * PHASES)
        whole, phase = np.divmod(np.rint(places).astype(np.int64), PHASES)
        first = int(whole[0]) - (TAPS // 2 - 1)
        samples = self._samples(run, first, int(whole[-1]) - int(whole[0]) + TAPS)
        windows = np.lib.stride_tricks.sliding_window_view(samples, TAPS)[whole - whole[0]]
        sound = np.einsum("ft,ft->f", windows, self._kernel[phase])
        self._position += frames
        taken: Samples = np.rint(sound).clip(-32_768, 32_767).astype(np.int16)
        return taken

    def _samples(self, run: _Run, first: int, count: int) -> NDArray[np.float32]:
        """Of the run from its sample `first` on; silence before it began and after its end."""
        samples = np.zeros(count, np.float32)
        begin, end = max(first, 0), min(first + count, run.last - run.first)
        inside = np.arange(run.first + begin, run.first + end)
        samples[begin - first : end - first] = self._ring.take(inside, mode="wrap")
        return samples
