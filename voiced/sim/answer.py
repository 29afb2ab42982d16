"""What the built-in server says when it does not parrot: a WAV file, at the API's rate."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import soxr

from voiced.sim.vad import RATE_HZ, Samples

MIN_RATE_HZ, MAX_RATE_HZ = 8_000, 96_000


class AnswerError(ValueError):
    """The WAV file cannot be used as an answer."""


def load_answer(path: Path) -> Samples:
    """The file's sound as int16, 24 kHz, mono, shape (n,).

    Takes 16 bit PCM of 8 to 96 kHz with one or two channels; raises AnswerError for others and
    for what is no WAV file.
    """
    try:
        with wave.open(str(path), "rb") as file:
            channels, width, rate_hz = (
                file.getnchannels(),
                file.getsampwidth(),
                file.getframerate(),
            )
            pcm = file.readframes(file.getnframes())
    except (OSError, EOFError, wave.Error) as error:
        raise AnswerError(f"{path}: not a readable WAV file: {error}") from error
    if width != 2 or channels not in (1, 2) or not MIN_RATE_HZ <= rate_hz <= MAX_RATE_HZ:
        raise AnswerError(
            f"{path}: {8 * width} bit, {channels} channels, {rate_hz} Hz; "
            "needs 16 bit, 1 or 2 channels, 8000 to 96000 Hz"
        )
    frames = np.frombuffer(pcm[: len(pcm) // (2 * channels) * 2 * channels], "<i2")
    mono = frames.reshape(-1, channels).astype(np.float32).mean(axis=1) / 32768
    if rate_hz != RATE_HZ:
        mono = soxr.resample(mono, rate_hz, RATE_HZ, quality="HQ")
    samples: Samples = np.clip(np.round(mono * 32768), -32768, 32767).astype(np.int16)
    return samples
