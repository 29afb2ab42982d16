"""Short sounds that tell a person what happened: the score, and its samples.

Who only learns one thing learns the contour: rising is "I listen", falling is "goodbye", one high
blip is "sent". What can't be done is told in low, reedy notes, and by their rhythm what it is.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from voiced.events import WIRE_RATE, Samples

PEAK_DBFS = -12.0
"""At full volume. A voice peaks at -6 to -3 dBFS: a sound that nobody asked for stays below it."""

LONGEST_MS = 150

ATTACK_MS = 8
"""The edges are raised cosines. A shorter one clicks, and spreads below what a small speaker can
do."""

PURE = (1.0, 0.15)
REEDY = (1.0, 0.5, 0.35)
"""Amplitudes of fundamental and overtones: friendly, and not so friendly."""

Note = tuple[float, float, int, int]
"""Hz where it begins, Hz where it ends, start in ms, length in ms."""

SCORES: dict[str, tuple[tuple[float, ...], tuple[Note, ...]]] = {
    "listening": (PURE, ((659, 659, 0, 60), (988, 988, 55, 85))),
    "sent": (PURE, ((1319, 1319, 0, 60),)),
    "goodbye": (PURE, ((988, 988, 0, 60), (659, 659, 55, 95))),
    "nothing-said": (PURE, ((880, 587, 0, 140),)),
    "muted": (REEDY, ((523, 523, 0, 150),)),
    "network": (REEDY, ((523, 523, 0, 60), (523, 523, 90, 60))),
    "account": (REEDY, ((659, 659, 0, 38), (659, 659, 56, 38), (659, 659, 112, 38))),
    "server": (REEDY, ((587, 587, 0, 35), (587, 587, 55, 95))),
    "device": (REEDY, ((494, 494, 0, 95), (494, 494, 115, 35))),
}
"""All fundamentals between 490 and 1400 Hz: a small speaker does them, and hardly anything lower.
"""


@cache
def samples(name: str) -> Samples:
    """The earcon: int16, shape (n,), at `WIRE_RATE`, at most `LONGEST_MS`, peak `PEAK_DBFS`;
    read-only. Raises KeyError for a name that is not in `SCORES`."""
    timbre, notes = SCORES[name]
    end_ms = max(start_ms + length_ms for _, _, start_ms, length_ms in notes)
    sound = np.zeros(_frames(end_ms))
    for begin_hz, end_hz, start_ms, length_ms in notes:
        start = _frames(start_ms)
        note = _note(timbre, begin_hz, end_hz, _frames(length_ms))
        sound[start : start + len(note)] += note
    made: Samples = np.rint(sound * 32768 * 10 ** (PEAK_DBFS / 20) / np.abs(sound).max()).astype(
        np.int16
    )
    made.setflags(write=False)
    return made


def _note(
    timbre: tuple[float, ...], begin_hz: float, end_hz: float, frames: int
) -> NDArray[np.float64]:
    hz = np.linspace(begin_hz, end_hz, frames)
    phase = 2 * np.pi * np.cumsum(hz) / WIRE_RATE
    tone = np.sum([a * np.sin((k + 1) * phase) for k, a in enumerate(timbre)], axis=0)
    attack, release = _frames(ATTACK_MS), frames // 2  # it fades like something struck
    envelope = np.ones(frames)
    envelope[:attack] *= _rise(attack)
    envelope[frames - release :] *= _rise(release)[::-1]
    shaped: NDArray[np.float64] = tone * envelope
    shaped -= envelope * (shaped.sum() / envelope.sum())  # no DC
    return shaped


def _rise(frames: int) -> NDArray[np.float64]:
    """Half a cosine, from exactly 0 to nearly 1."""
    rise: NDArray[np.float64] = (1 - np.cos(np.pi * np.arange(frames) / frames)) / 2
    return rise


def _frames(duration_ms: int) -> int:
    return duration_ms * WIRE_RATE // 1000
