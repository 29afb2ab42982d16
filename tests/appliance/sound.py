"""What is played and recorded in the guest, as samples with a place in time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Samples = NDArray[np.int16]

RATE = 48_000


@dataclass(frozen=True)
class Recording:
    """Mono samples at RATE; the first one passed at `started_at`, a monotonic time of the guest.

    The cards' clock is the kernel's own, so the rate is exact; a sample is dated to one tick of
    the kernel (4 ms), at which the loopback card moves what was written.
    """

    samples: Samples  # (n,)
    started_at: float
    gaps = outages = ()  # of these cards' there are none

    def time_at(self, index: float) -> float:
        """When sample `index` passed."""
        return self.started_at + index / RATE

    def index_at(self, at: float) -> int:
        """The sample that passed at `at`, the first one for times before it."""
        return max(0, round((at - self.started_at) * RATE))

    def snapshot(self, start: int = 0, stop: int | None = None) -> Samples:
        """A part of it, as indices."""
        return self.samples[start:stop]


def room(seconds: float, dbfs: float = -50.0, seed: int = 0) -> Samples:
    """White noise of this RMS level under full scale: a quiet room."""
    rms = 32768 * 10 ** (dbfs / 20)
    noise = np.random.default_rng(seed).standard_normal(round(seconds * RATE)) * rms
    return noise.round().astype(np.int16)


def spoken(voice: Samples, lead_s: float, tail_s: float) -> Samples:
    """A voice in a quiet room: noise before it, under it and after it."""
    noise = room(lead_s + len(voice) / RATE + tail_s).astype(np.int32)
    begin = round(lead_s * RATE)
    noise[begin : begin + len(voice)] += voice
    return noise.clip(-32768, 32767).astype(np.int16)
