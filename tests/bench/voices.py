"""People, recorded: what they said, how loud, and in which blocks of 20 ms.

The recordings are those of Debian packages. Whoever judges the gate is not whoever it was tuned on:

- TUNING: a Dutch man and a Czech woman speaking sentences (fillets-ng-data-nl and -cs, 22 kHz), and
  people saying single words in Catalan, Greek, Lithuanian and Ukrainian (ktuberling-data, 44 kHz);
- JUDGING: a Dutch woman and a Czech man speaking sentences, and people saying single words in
  Danish, Irish, Nynorsk (48 kHz) and Walloon, from the same packages.

Recordings whose own noise would show are left out, and so are those of telephone quality.
"""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from tests.bench.noises import in_band
from voiced.events import BLOCK_FRAMES, WIRE_RATE

Samples = NDArray[np.float64]
"""Mono at 24 kHz, 1 = full scale."""

ACTIVE_DBFS = -26.0
"""Each recording is brought to this active level, a usual one. All levels are of 200-7000 Hz."""

SPOKEN_DB = 20.0
"""A block is speech if it lies no more than this below the active level of its recording: beyond
P.56's own margin (15.9 dB), so that soft consonants at the ends of words count."""

_P56_MARGIN_DB = 15.9
_P56_TIME_S = 0.03
_P56_HANGOVER_S = 0.2
_STEP_S = 0.004

_OWN_NOISE_DB = 30.0  # how far the quietest twentieth must lie under the active level
_AROUND_BLOCKS = 10  # kept before the first and after the last block of speech: breath and room
_CLICK_BLOCKS = 1  # a run this short ...
_ALONE_BLOCKS = 10  # ... this far from any other is a smack of the lips, not a word
_LOWEST_RATE_HZ = 16_000


class RecordingsMissing(RuntimeError):
    """The recordings are not installed. The text holds the remedy."""


@dataclass(frozen=True)
class Talker:
    """Whose recordings are where; `pattern` is a glob under /usr/share."""

    name: str
    package: str
    pattern: str
    sentences: bool = False


def _fish(name: str, language: str, initial: str) -> Talker:
    package = f"fillets-ng-data-{language}"
    return Talker(name, package, f"games/fillets-ng/sound/*/{language}/*-{initial}-*.ogg", True)


def _child_s_game(name: str, language: str) -> Talker:
    return Talker(name, "ktuberling-data", f"ktuberling/sounds/{language}/*.*")


TUNING = (
    _fish("Dutch man", "nl", "v"),
    _fish("Czech woman", "cs", "m"),
    _child_s_game("Catalan", "ca"),
    _child_s_game("Greek", "el"),
    _child_s_game("Lithuanian", "lt"),
    _child_s_game("Ukrainian", "uk"),
)
JUDGING = (
    _fish("Dutch woman", "nl", "m"),
    _fish("Czech man", "cs", "v"),
    _child_s_game("Danish", "da"),
    _child_s_game("Irish", "ga"),
    _child_s_game("Nynorsk", "nn"),
    _child_s_game("Walloon", "wa"),
)


@dataclass(frozen=True)
class Recording:
    """One thing said, at `ACTIVE_DBFS`. For each of its blocks whether it is speech, and its level
    in dB over the active one."""

    name: str
    samples: Samples
    spoken: NDArray[np.bool_]
    level_db: NDArray[np.float64]

    @property
    def first(self) -> int:
        return int(np.argmax(self.spoken))

    @property
    def last(self) -> int:
        return len(self.spoken) - 1 - int(np.argmax(self.spoken[::-1]))

    def end(self, snr_db: float) -> int:
        """The last block of speech, or of what follows it (breath, room) while that is above the
        noise: in quiet nothing can tell it from speech, and nothing should."""
        heard = np.flatnonzero(self.level_db[self.last :] > -max(SPOKEN_DB, snr_db))
        return self.last + int(heard[-1])


@cache
def recordings(talkers: tuple[Talker, ...], sentences: int, words: int) -> tuple[Recording, ...]:
    """So many recordings of each talker, spread evenly over what there is.

    Raises:
        RecordingsMissing: a package is not installed.
    """
    missing = sorted({t.package for t in talkers if not any(Path("/usr/share").glob(t.pattern))})
    if missing:
        raise RecordingsMissing(f"apt-get install --no-install-recommends {' '.join(missing)}")
    found: list[Recording] = []
    for talker in talkers:
        wanted = sentences if talker.sentences else words
        paths = sorted(Path("/usr/share").glob(talker.pattern))
        random.Random(1).shuffle(paths)
        usable = (r for r in map(_read, paths) if r)
        found += itertools.islice(usable, wanted)
    return tuple(found)


def _read(path: Path) -> Recording | None:
    """None if it is too noisy, too coarse or empty."""
    stereo, rate = soundfile.read(path, always_2d=True)
    if rate < _LOWEST_RATE_HZ or len(stereo) < 0.2 * rate:
        return None
    samples = soxr.resample(stereo.mean(axis=1), rate, WIRE_RATE)
    samples -= samples.mean()
    samples = np.append(samples, np.zeros(-len(samples) % BLOCK_FRAMES))
    audible = in_band(samples)  # not the breath that pops below it
    active_dbfs = active_level_dbfs(audible)
    power = np.mean(audible.reshape(-1, BLOCK_FRAMES) ** 2, axis=1)
    level = 10 * np.log10(power + 1e-14) - active_dbfs
    spoken = _without_clicks(level > -SPOKEN_DB)
    if np.percentile(level, 5) > -_OWN_NOISE_DB or not spoken.any():
        return None
    begin, end = np.flatnonzero(spoken)[[0, -1]] + (-_AROUND_BLOCKS, _AROUND_BLOCKS + 1)
    blocks = samples.reshape(-1, BLOCK_FRAMES)[max(0, begin) : end]
    said = blocks.ravel() * 10 ** ((ACTIVE_DBFS - active_dbfs) / 20)
    edge = np.linspace(0, 1, BLOCK_FRAMES)
    said[:BLOCK_FRAMES] *= edge
    said[-BLOCK_FRAMES:] *= edge[::-1]
    name = f"{path.parent.name}/{path.stem}"
    return Recording(name, said, spoken[max(0, begin) : end], level[max(0, begin) : end])


def _without_clicks(spoken: NDArray[np.bool_]) -> NDArray[np.bool_]:
    edges = np.flatnonzero(np.diff(np.concatenate([[False], spoken, [False]]).astype(int)))
    runs = edges.reshape(-1, 2)
    kept = spoken.copy()
    for i, (begin, end) in enumerate(runs):
        before = begin - runs[i - 1][1] if i else _ALONE_BLOCKS + 1
        after = runs[i + 1][0] - end if i + 1 < len(runs) else _ALONE_BLOCKS + 1
        if end - begin <= _CLICK_BLOCKS and min(before, after) > _ALONE_BLOCKS:
            kept[begin:end] = False
    return kept


def active_level_dbfs(samples: Samples) -> float:
    """The active speech level of ITU-T P.56, method B, with its envelope in steps of 4 ms."""
    step = round(_STEP_S * WIRE_RATE)
    loudness = np.abs(samples[: len(samples) // step * step]).reshape(-1, step).mean(axis=1)
    keep = math.exp(-_STEP_S / _P56_TIME_S)
    envelope, p, q = np.empty(len(loudness)), 0.0, 0.0
    for i, x in enumerate(loudness):
        p = keep * p + (1 - keep) * x
        q = keep * q + (1 - keep) * p
        envelope[i] = q
    energy = float(np.sum(samples**2))
    hold = np.ones(round(_P56_HANGOVER_S / _STEP_S))
    level_db = -120.0
    for threshold_db in np.arange(-90.0, 0.0, 0.25):
        above = envelope > 10 ** (threshold_db / 20)
        active = np.count_nonzero(np.convolve(above, hold)[: len(above)]) * step
        if not active:
            break
        level_db = 10 * math.log10(energy / active + 1e-14)
        if level_db - threshold_db <= _P56_MARGIN_DB:
            break
    return level_db


def whispered(recording: Recording, seed: int) -> Recording:
    """The same said without a voice: noise through the filter of the mouth.

    A simulation: linear prediction of order 24 over 30 ms gives the filter, white noise replaces
    what excites it, and 6 dB an octave of treble are added, as a whisper lacks the low ones.
    """
    order, frame, hop = 24, 720, 360
    window = np.hanning(frame + 1)[:-1]
    rng = np.random.default_rng(seed)
    said, out = recording.samples, np.zeros(len(recording.samples))
    for start in range(0, len(said) - frame, hop):
        part = said[start : start + frame] * window
        gain = math.sqrt(float(np.mean(part**2)) + 1e-14)
        spectrum = np.abs(np.fft.rfft(part, 2 * frame)) ** 2
        r = np.fft.irfft(spectrum)[: order + 1]
        matrix = r[np.abs(np.subtract.outer(np.arange(order), np.arange(order)))]
        matrix = matrix + np.eye(order) * (1e-4 * r[0] + 1e-12)
        filter_ = np.concatenate([[1.0], -np.linalg.solve(matrix, r[1:])])
        shape = np.fft.rfft(filter_, 2 * frame)
        tilt = np.sqrt(0.05 + np.linspace(0, 1, len(shape)) ** 2)
        breath = np.fft.rfft(rng.standard_normal(frame) * window, 2 * frame)
        made = np.fft.irfft(breath * tilt / shape)[:frame]
        out[start : start + frame] += made * (gain / (made.std() + 1e-9)) * window**0.5
    scale = 10 ** ((ACTIVE_DBFS - active_level_dbfs(in_band(out))) / 20)
    return replace(recording, name=f"{recording.name} whispered", samples=out * scale)
