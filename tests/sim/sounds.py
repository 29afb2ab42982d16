"""What the tests of the rig play, and how they find it again."""

from typing import Any

import alsaaudio
import numpy as np

from voiced.sim.rig import Rig
from voiced.sim.wav import Samples

RATE = 48_000


def noise(frames: int, seed: int = 1) -> Samples:
    """Never zero, so that its first and last sample can be found."""
    return np.random.default_rng(seed).integers(1, 20_000, frames).astype(np.int16)


def sounding(samples: Samples) -> tuple[int, Samples]:
    """Index of the first non-zero sample, and everything from it to the last one."""
    where = np.flatnonzero(samples)
    assert len(where), "nothing was heard"
    return int(where[0]), samples[where[0] : where[-1] + 1]


def speaker(rig: Rig, channels: int) -> Any:
    return alsaaudio.PCM(
        alsaaudio.PCM_PLAYBACK,
        alsaaudio.PCM_NORMAL,
        rate=RATE,
        channels=channels,
        format=alsaaudio.PCM_FORMAT_S16_LE,
        periodsize=960,
        periods=6,
        device=rig.speaker,
    )
