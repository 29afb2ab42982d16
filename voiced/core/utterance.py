"""The audio of the current turn, from its pre-roll on: sent, and sent again after a drop."""

from __future__ import annotations

from voiced.events import WIRE_RATE, Samples


class Utterance:
    """Bounded by `longest_s`; when it is full, `extend` says so and the turn ends by commit."""

    def __init__(self, longest_s: float) -> None:
        self._limit_frames = round(longest_s * WIRE_RATE)
        self._pcm = bytearray()
        self._sent = 0

    def __repr__(self) -> str:
        return f"<Utterance {self.frames} frames, {self.unsent_frames} unsent>"

    @property
    def frames(self) -> int:
        return len(self._pcm) // 2

    @property
    def unsent_frames(self) -> int:
        return (len(self._pcm) - self._sent) // 2

    def extend(self, samples: Samples) -> bool:
        """Append int16 samples, shape (n,). False if they would exceed the bound: none is kept."""
        if self.frames + len(samples) > self._limit_frames:
            return False
        self._pcm += samples.astype("<i2", copy=False).tobytes()
        return True

    def pad(self, frames: int) -> None:
        """Append zeros, so that the server's VAD hears the silence. Allowed beyond the bound."""
        self._pcm += bytes(2 * frames)

    def take(self, most_frames: int) -> bytes:
        """The next unsent audio as little-endian PCM16, at most `most_frames`; b"" if none."""
        chunk = bytes(self._pcm[self._sent : self._sent + 2 * most_frames])
        self._sent += len(chunk)
        return chunk

    def rewind(self) -> None:
        """Nothing counts as sent any more: the server that had it is gone."""
        self._sent = 0

    def forget_sent(self) -> None:
        """What was sent need never be sent again: the server has begun to answer it."""
        del self._pcm[: self._sent]
        self._sent = 0
