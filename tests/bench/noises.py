"""What may sound in a room besides its people, made of numbers: the same for the same seed.

Each function takes a length in samples at 24 kHz and a seed and returns float64 of unit RMS in the
band where speech is: what a room has below 200 Hz says nothing about how well people are heard.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from voiced.events import WIRE_RATE

Samples = NDArray[np.float64]
Noise = Callable[[int, int], Samples]


BAND_HZ = (200, 7000)
_QUICK = 2**14  # a transform of a multiple of this is quick


def in_band(samples: Samples) -> Samples:
    """What of it lies between 200 and 7000 Hz."""
    spectrum = np.fft.rfft(samples)
    hz = np.fft.rfftfreq(len(samples), 1 / WIRE_RATE)
    spectrum[(hz < BAND_HZ[0]) | (hz > BAND_HZ[1])] = 0
    kept: Samples = np.fft.irfft(spectrum, len(samples))
    return kept


def _unit(samples: Samples) -> Samples:
    whole = samples[: max(len(samples) // _QUICK, 1) * _QUICK]
    unit: Samples = samples / np.sqrt(np.mean(in_band(whole) ** 2))
    return unit


def coloured(samples: int, seed: int, slope: float) -> Samples:
    """Noise whose power falls with frequency to the power of `slope`, level below 20 Hz."""
    size = -(-samples // _QUICK) * _QUICK
    white = np.random.default_rng(seed).standard_normal(size)
    hz = np.maximum(np.fft.rfftfreq(size, 1 / WIRE_RATE), 20)
    return _unit(np.fft.irfft(np.fft.rfft(white) * hz ** (-slope / 2), size)[:samples])


def white(samples: int, seed: int) -> Samples:
    return coloured(samples, seed, 0)


def pink(samples: int, seed: int) -> Samples:
    return coloured(samples, seed, 1)


def fan(samples: int, seed: int) -> Samples:
    """Rushing air, and blades that pass 120 times a second."""
    t = np.arange(samples) / WIRE_RATE
    blades = sum(a * np.sin(2 * np.pi * f * t) for f, a in ((120, 1.0), (240, 0.5), (360, 0.3)))
    return _unit(coloured(samples, seed, 1.6) + 0.7 * blades)


def hum(samples: int, seed: int) -> Samples:
    """A transformer: the mains and its harmonics up to 4 kHz, over a little hiss."""
    rng = np.random.default_rng(seed)
    t = np.arange(50 * WIRE_RATE) / WIRE_RATE  # the period of a mains that is not exact
    made = np.zeros(len(t))
    for n in range(1, 81):
        strength = (1.0 if n == 1 or n % 2 == 0 else 0.3) / n
        made += strength * np.sin(2 * np.pi * 50.02 * n * t + rng.uniform(0, 2 * np.pi))
    return _unit(np.resize(_unit(made), samples) + 0.05 * white(samples, seed + 1))


def music(samples: int, seed: int) -> Samples:
    """Chords, a bass, a melody and a drum at 100 beats a minute."""
    rng = np.random.default_rng(seed)
    beat = WIRE_RATE * 60 // 100
    made = np.zeros(samples + 4 * beat)
    scale = (0, 2, 4, 5, 7, 9, 11)
    for i, start in enumerate(range(0, samples, beat)):
        root = scale[rng.integers(7)] if i % 4 == 0 else 0
        if i % 4 == 0:
            for step in (0, 4, 7):
                _pluck(made, start, 196 * 2 ** ((root + step) / 12), 4 * beat, 0.5)
        _pluck(made, start, 98 * 2 ** (root / 12), beat, 1.0)
        for half in (0, beat // 2):
            if rng.random() < 0.7:
                _pluck(made, start + half, 392 * 2 ** (scale[rng.integers(7)] / 12), beat, 0.6)
        if i % 2:
            length = WIRE_RATE // 8
            hit = rng.standard_normal(length) * np.exp(-np.arange(length) / (0.02 * WIRE_RATE))
            made[start : start + length] += 1.5 * hit
    return _unit(made[:samples])


def _pluck(into: Samples, start: int, hz: float, length: int, strength: float) -> None:
    t = np.arange(min(length, len(into) - start)) / WIRE_RATE
    for n in range(1, 9):
        tone = np.sin(2 * np.pi * n * hz * t) * np.exp(-t * (2 + n))
        into[start : start + len(t)] += strength / n * tone


def babble(samples: int, seed: int, voices: Sequence[Samples], talkers: int = 6) -> Samples:
    """So many people at once, each saying one thing after the other from `voices`."""
    rng = np.random.default_rng(seed)
    made = np.zeros(samples)
    for _ in range(talkers):
        at = -int(rng.integers(WIRE_RATE))
        while at < samples:
            said = voices[int(rng.integers(len(voices)))]
            begin, end = max(0, at), min(samples, at + len(said))
            if end > begin:
                made[begin:end] += said[begin - at : end - at]
            at += len(said) + int(rng.integers(WIRE_RATE // 4))
    return _unit(made)


STATIONARY: dict[str, Noise] = {"fan": fan, "hum": hum, "pink": pink}
