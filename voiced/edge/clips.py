"""The spoken clips that come with the package: WAV files, read when they are wanted.

Nothing is kept of them: the longest reads in some milliseconds, and all at once would be 2 MB.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

import numpy as np

from voiced.edge.resample import for_speaker
from voiced.events import WIRE_RATE, Samples

log = logging.getLogger(__name__)

CLIP_RATE_HZ: Final = 16_000  # what the voice is made at; there is nothing above 8 kHz to keep
LONGEST_S: Final = 4
"""A longer file is refused before any of its sound is read: who pressed waits for the end of it."""

_CLIPS: Final = Path(__file__).parent.parent / "clips"


class ClipError(ValueError):
    """The file is no clip of ours. The text says which file and why."""


def load(name: str) -> Samples | None:
    """The clip's samples: int16, shape (n,), at `WIRE_RATE`, at most `LONGEST_S`.

    None if there is none of that name, or if it can't be read, which is logged: a damaged file
    costs the words and nothing else. Blocks on the disk.
    """
    try:
        return read(name)
    except FileNotFoundError:
        return None
    except (ClipError, OSError) as exc:
        log.warning("no words for %s: %s", name, exc)
        return None


def read(name: str) -> Samples:
    """As `load`, but raises FileNotFoundError, OSError if it can't be read, or ClipError."""
    import wave  # most devices never need it: half a megabyte

    with (_CLIPS / f"{name}.wav").open("rb") as file:
        try:
            with wave.open(file) as clip:
                shape = clip.getnchannels(), clip.getsampwidth(), clip.getframerate()
                frames = clip.getnframes()
                if shape != (1, 2, CLIP_RATE_HZ) or not 0 < frames <= LONGEST_S * CLIP_RATE_HZ:
                    raise ClipError(f"{name}.wav: {frames} frames of {shape} are not what we make")
                data = clip.readframes(frames)
        except (wave.Error, EOFError, RuntimeError) as exc:  # the last for a chunk's false length
            raise ClipError(f"{name}.wav: not a WAV file: {exc or 'a part is missing'}") from exc
    if len(data) != 2 * frames:
        raise ClipError(f"{name}.wav: cut short, {len(data)} of {2 * frames} bytes")
    resampler = for_speaker(WIRE_RATE, CLIP_RATE_HZ)
    spoken = resampler.push(np.frombuffer(data, "<i2").astype(np.int16))
    return np.concatenate((spoken, resampler.finish()))
