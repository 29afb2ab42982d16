"""Rooms made of numbers, in which a loudspeaker sounds and somebody may speak over it.

A room takes what the loudspeaker emits and gives what of it arrives at the microphone: a direct
path, eight early reflections, and a tail of noise that decays by 60 dB in `rt60_s`, through a
small loudspeaker that has no bass and bends what is loud. The same for the same seed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import soxr
from numpy.typing import NDArray

from tests.bench import noises
from tests.bench.voices import ACTIVE_DBFS, Recording, active_level_dbfs
from voiced.events import BLOCK_FRAMES, WIRE_RATE
from voiced.sim.room import Convolver

Samples = NDArray[np.float64]
"""Mono at 24 kHz, 1 = full scale."""

Blocks = NDArray[np.int16]
"""Shape (blocks, 480)."""

_REFLECTIONS = 8
_REFLECTIONS_MS = (2.0, 40.0)  # of walls and table, after the direct sound
_TAIL_FROM_MS = 5.0
_SPEAKER_BASS_HZ = 180.0  # where a loudspeaker of 5 cm has lost 3 dB


@dataclass(frozen=True)
class Room:
    """`gain_db`: how much louder our sound is at the microphone than it was emitted, both as RMS.

    `delay_ms` is of the direct sound, `direct_db` how far it and the reflections stand above the
    tail. `bend` is the loudspeaker's: a peak at full scale comes out as `tanh(bend) / bend`. The
    noise is one of `noises`.
    """

    seed: int = 1
    gain_db: float = 0.0
    delay_ms: float = 20.0
    rt60_s: float = 0.3
    direct_db: float = 6.0
    bend: float = 0.7
    noise_dbfs: float = -65.0
    noise: str = "fan"

    def response(self, seed: int = 0) -> Samples:
        """From the loudspeaker, or with another seed from a person elsewhere in the room."""
        rng = np.random.default_rng((self.seed, seed))
        length = round(self.rt60_s * WIRE_RATE)
        early, t = np.zeros(length), np.arange(length) / WIRE_RATE
        early[0] = 1.0
        for ms in rng.uniform(*_REFLECTIONS_MS, _REFLECTIONS):
            strength = rng.uniform(0.2, 0.7) * 10 ** (-3 * ms / 1000 / self.rt60_s)
            early[round(ms * WIRE_RATE / 1000)] += rng.choice((-1, 1)) * strength
        tail = rng.standard_normal(length) * 10 ** (-3 * t / self.rt60_s)
        tail[: round(_TAIL_FROM_MS * WIRE_RATE / 1000)] = 0.0
        ratio = np.sum(early**2) / np.sum(tail**2) * 10 ** (-self.direct_db / 10)
        return early + tail * math.sqrt(ratio)

    def path(self, emitted: Samples) -> Path:
        """Of blocks as they come; all of `emitted` arrives `gain_db` louder in RMS."""
        delay = np.zeros(round(self.delay_ms * WIRE_RATE / 1000))
        response = np.concatenate((delay, _without_bass(self.response())))
        arrived = _convolved(self._bent(emitted), response)
        response *= _rms(emitted) / _rms(arrived) * 10 ** (self.gain_db / 20)
        return Path(self, Convolver(response[:, np.newaxis], BLOCK_FRAMES))

    def _bent(self, emitted: Samples) -> Samples:
        return np.tanh(self.bend * emitted) / self.bend if self.bend else emitted

    def background(self, samples: int) -> Samples:
        """So much of the noise of the room."""
        made: Samples = getattr(noises, self.noise)(samples, self.seed)
        return made * 10 ** (self.noise_dbfs / 20)

    def said(self, recording: Recording) -> Samples:
        """By a person in the room, at `ACTIVE_DBFS` at the microphone."""
        sound = _convolved(recording.samples, self.response(1))
        return sound * 10 ** ((ACTIVE_DBFS - active_level_dbfs(sound)) / 20)


@dataclass
class Path:
    """From the loudspeaker to the microphone, block after block."""

    room: Room
    convolver: Convolver

    def push(self, emitted: Samples) -> Samples:
        """The echo at the microphone while this block, shape (480,), is emitted."""
        return self.convolver.push(self.room._bent(emitted))[:, 0]


def drifted(sound: Samples, ppm: float) -> Samples:
    """As a microphone hears it whose clock is slower by so much."""
    return soxr.resample(sound, WIRE_RATE, WIRE_RATE * (1 - ppm * 1e-6), "VHQ") if ppm else sound


def answer(said: Sequence[Recording], seconds: float, level_dbfs: float, seed: int) -> Samples:
    """What a device says: these recordings one after the other with pauses as in speech, at an
    active level of `level_dbfs`, from the first word on."""
    rng = np.random.default_rng(seed)
    parts: list[Samples] = []
    while sum(map(len, parts)) < seconds * WIRE_RATE:
        each = said[rng.integers(len(said))]
        words = each.samples[each.first * BLOCK_FRAMES : (each.last + 1) * BLOCK_FRAMES]
        parts += [words, np.zeros(int(rng.uniform(0.1, 0.6) * WIRE_RATE))]
    made = np.concatenate(parts)[: round(seconds * WIRE_RATE)]
    return made * 10 ** ((level_dbfs - ACTIVE_DBFS) / 20)


def as_blocks(samples: Samples) -> Blocks:
    """Rounded and clipped as a card does."""
    whole = samples[: len(samples) // BLOCK_FRAMES * BLOCK_FRAMES]
    rounded: Blocks = np.clip(np.rint(whole * 32768), -32768, 32767).astype(np.int16)
    return rounded.reshape(-1, BLOCK_FRAMES)


def _convolved(sound: Samples, response: Samples) -> Samples:
    size = 1 << (len(sound) + len(response)).bit_length()
    product = np.fft.rfft(sound, size) * np.fft.rfft(response, size)
    whole: Samples = np.fft.irfft(product, size)[: len(sound)]
    return whole


def _without_bass(sound: Samples) -> Samples:
    size = 1 << len(sound).bit_length()
    hz = np.fft.rfftfreq(size, 1 / WIRE_RATE)
    high = 1j * hz / (_SPEAKER_BASS_HZ + 1j * hz)
    passed: Samples = np.fft.irfft(np.fft.rfft(sound, size) * high**2, size)[: len(sound)]
    return passed


def _rms(sound: Samples) -> float:
    return math.sqrt(float(np.mean(sound**2))) + 1e-12
