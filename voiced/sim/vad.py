"""The built-in server's voice activity detection: energy of 20 ms frames, on the audio clock.

Nothing here knows the time of day. Silence is counted in samples received, so audio that is never
sent never ends a turn, however long one waits.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

RATE_HZ = 24_000
FRAME_SAMPLES = 480  # 20 ms
Samples = npt.NDArray[np.int16]


class Edge(NamedTuple):
    """Speech began at, or was judged to have ended at, this sample of the session."""

    kind: Literal["start", "stop"]
    sample: int


class EnergyVad:
    """Speech starts with the first frame of at least `threshold_dbfs` and stops when
    `silence_ms` of frames below it were received in a row.

    `threshold_dbfs` is RMS relative to 32768. `first_sample` is the index, in the session's audio,
    of the first sample that will be fed.
    """

    def __init__(self, threshold_dbfs: float, silence_ms: int, first_sample: int) -> None:
        self._threshold = 32768.0 * 10 ** (threshold_dbfs / 20)
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
        loud = np.sqrt(np.mean(frames * frames, axis=1)) >= self._threshold
        edges = [self._step(bool(frame)) for frame in loud]
        return [edge for edge in edges if edge is not None]

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
