"""The built-in server's voice activity detection: energy of 20 ms frames, on the audio clock.

Nothing here knows the time of day. Silence is counted in samples received, so audio that is never
sent never ends a turn, however long one waits.
"""

from __future__ import annotations

from collections import deque
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

RATE_HZ = 24_000
FRAME_SAMPLES = 480  # 20 ms
FLOOR_FRAMES = 250  # 5 s: nobody talks longer without a dip between two words
Samples = npt.NDArray[np.int16]


class Edge(NamedTuple):
    """Speech began at, or was judged to have ended at, this sample of the session."""

    kind: Literal["start", "stop"]
    sample: int


class NoiseFloor:
    """What is speech in a noisy room: only what exceeds the noise by `margin_db`.

    The noise is the quietest of the last FLOOR_FRAMES received, so the first ones are taken for
    the room. Digital silence is made, not heard: it tells nothing of a room.
    """

    def __init__(self, margin_db: float) -> None:
        self._margin = 10 ** (margin_db / 10)
        self._powers: deque[float] = deque(maxlen=FLOOR_FRAMES)

    def exceeded_by(self, power: float) -> bool:
        """Take the next frame's mean square; whether it stands out."""
        if power:
            self._powers.append(power)
        return power > 0 and power >= self._margin * min(self._powers)


class EnergyVad:
    """Speech starts with the first loud frame and stops when `silence_ms` of frames that are not
    were received in a row.

    Loud is an RMS of `threshold_dbfs`, relative to 32768, if it also stands out from `floor`.
    `first_sample` is the index, in the session's audio, of the first sample that will be fed.
    """

    def __init__(
        self,
        threshold_dbfs: float,
        silence_ms: int,
        first_sample: int,
        floor: NoiseFloor | None = None,
    ) -> None:
        self._threshold = (32768.0 * 10 ** (threshold_dbfs / 20)) ** 2
        self._floor = floor
        self._silence_frames = max(1, -(-silence_ms * RATE_HZ // (1000 * FRAME_SAMPLES)))
        self._next_frame = first_sample
        self._rest: Samples = np.zeros(0, np.int16)
        self._quiet_frames = 0
        self.speaking = False

    def feed(self, samples: Samples) -> list[Edge]:
        """Take `samples`, shape (n,), and give the edges found; less than a frame is kept back."""
        pending = np.concatenate((self._rest, samples))
        whole = len(pending) // FRAME_SAMPLES * FRAME_SAMPLES
        frames = pending[:whole].reshape(-1, FRAME_SAMPLES).astype(np.float64)
        self._rest = pending[whole:]
        edges = [self._step(self._is_loud(float(power))) for power in np.mean(frames**2, axis=1)]
        return [edge for edge in edges if edge is not None]

    def _is_loud(self, power: float) -> bool:
        stands_out = self._floor is None or self._floor.exceeded_by(power)
        return stands_out and power >= self._threshold

    def _step(self, loud: bool) -> Edge | None:
        start = self._next_frame
        self._next_frame += FRAME_SAMPLES
        self._quiet_frames = 0 if loud else self._quiet_frames + 1
        if loud and not self.speaking:
            self.speaking = True
            return Edge("start", start)
        if self.speaking and self._quiet_frames >= self._silence_frames:
            self.speaking = False
            return Edge("stop", self._next_frame)
        return None
