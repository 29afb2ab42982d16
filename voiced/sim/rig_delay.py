"""The rig's own delay: what it adds to every measurement made through it."""

import statistics
import time
from dataclasses import dataclass
from typing import Any

import alsaaudio
import numpy as np

from voiced.sim.rig import Format, Rig, RigError
from voiced.sim.streams import Ear, opened

HEARD_S = 5.0  # the recording is behind by a period of 5 ms; the rest is for a loaded machine


@dataclass(frozen=True)
class Calibration:
    """What the rig itself adds to a measurement, medians in ms."""

    delay_ms: float  # write() called on a prepared device → first non-zero sample recorded
    spread_ms: float  # longest less shortest of these delays
    drop_ms: float  # drop() returned → last non-zero sample recorded


def calibrate(rig: Rig, ear: Ear, n: int = 10, channels: int = 1) -> Calibration:
    """Measure the rig's own delays with the speaker opened as the daemon does; takes 0.4 s each.

    The speaker must be free and silent, `ear` recording it. Leaves it closed and silent.
    Raises RigError when a burst isn't heard.
    """
    form = Format(rig.formats[rig.speaker].rate, channels)
    period = form.rate // 50
    random = np.random.default_rng(n)
    delays_ms, drops_ms = [], []
    with opened(alsaaudio.PCM_PLAYBACK, rig.speaker, form, period, 6) as pcm:
        for _ in range(n):
            time.sleep(random.uniform(0, 0.02))  # or the bursts fall in step with the server
            asked, dropped = _play_and_drop(pcm, period * channels)
            first, last = _heard(ear, asked, dropped)
            delays_ms.append((first - asked) * 1e3)
            drops_ms.append((last - dropped) * 1e3)
    return Calibration(
        statistics.median(delays_ms),
        max(delays_ms) - min(delays_ms),
        statistics.median(drops_ms),
    )


def _play_and_drop(pcm: Any, period_samples: int) -> tuple[float, float]:
    """Play a tone without a zero in it, drop it; the times of the first write and of the end."""
    tone = np.where(np.arange(period_samples) % 96 < 48, 8000, -8000).astype("<i2").tobytes()
    asked = time.monotonic()
    pcm.write(tone * 2)
    for _ in range(10):
        pcm.write(tone)
    pcm.drop()
    return asked, time.monotonic()


def _heard(ear: Ear, asked: float, dropped: float) -> tuple[float, float]:
    """The times of the first and the last non-zero sample of a burst."""
    silence_s = 0.1
    ear.wait_until(dropped + silence_s, HEARD_S)
    start = ear.index_at(asked - silence_s / 2)
    sounding = np.flatnonzero(ear.snapshot(start, ear.index_at(dropped + silence_s)))
    if not len(sounding):
        raise RigError("the ear did not hear the speaker; does something else hold it?")
    return ear.time_at(start + int(sounding[0])), ear.time_at(start + int(sounding[-1]))
