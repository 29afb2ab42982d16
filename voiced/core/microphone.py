"""What was heard a moment ago, and whether somebody speaks: the pre-roll ring and the gate."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from voiced.core.gate import GATE_PREROLL_MS, Gate, Reading
from voiced.events import BLOCK_MS, Samples

_BLOCK_S = BLOCK_MS / 1000

RING_BLOCKS = 3_000 // BLOCK_MS
"""3 s: the longest pre-roll, the time a press takes to become a tap or a hold, and the gate's
own reach-back, together under 1.5 s. The oldest block makes room: that is the ring's purpose."""

ECHO_TAIL_S = 0.2
"""After our own playback the room still sounds; a living room's early decay takes 100-200 ms.
The gate does not listen meanwhile; what a person says then is kept, as the ring has it."""


class Change(Enum):
    OPENED = "opened"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class _Block:
    samples: Samples
    at: float
    open: bool

    @property
    def began_at(self) -> float:
        return self.at - _BLOCK_S


class Microphone:
    """`since` and `from_onset` hand out blocks that may be sent, and never one that may not:
    none from before the barrier, which mute and our own playback move forward."""

    def __init__(self, *, hangover_ms: int, gated: bool) -> None:
        self._gate = Gate(hangover_ms=hangover_ms) if gated else None
        self._ring: deque[_Block] = deque(maxlen=RING_BLOCKS)
        self._barrier_at = float("-inf")
        self._deaf_until = float("-inf")
        self._onset_at = float("-inf")
        self.reading: Reading | None = None
        self.open = not gated

    def hear(self, samples: Samples, at: float) -> Change | None:
        """Take one block whose last sample was captured at `at`."""
        was_open = self.open
        if self._gate and at >= self._deaf_until:
            self.reading = self._gate.push(samples)
            self.open = self.reading.open
            if self.open and not was_open:
                self._onset_at = at - self.reading.onset_blocks * _BLOCK_S - _BLOCK_S
        self._ring.append(_Block(samples, at, self.open))
        if self.open == was_open:
            return None
        return Change.OPENED if self.open else Change.CLOSED

    def close(self) -> None:
        """The turn is over: whoever speaks on opens the gate anew."""
        if self._gate:
            self._gate.close()
            self.open = False

    def wipe(self, now: float) -> None:
        """Forget all and everything (mute)."""
        self._ring.clear()
        self._barrier_at = now
        self.reading = None
        if self._gate:
            self._gate.reset()
            self.open = False

    def own_sound_until(self, now: float) -> None:
        """Our own playback was in the room until `now`: nothing before may be sent."""
        self._barrier_at = max(self._barrier_at, now)
        self._deaf_until = now + ECHO_TAIL_S
        self.close()

    def spoken_since(self, earliest: float) -> bool:
        """True if the gate was open in some block that may be sent."""
        return any(block.open for block in self._allowed(earliest))

    def since(self, earliest: float) -> list[tuple[Samples, float]]:
        """(samples, captured at) of all blocks that began at or after `earliest`."""
        return [(block.samples, block.at) for block in self._allowed(earliest)]

    def from_onset(self, earliest: float) -> list[tuple[Samples, float]]:
        """As `since`, but from the gate's pre-roll before the onset it opened for."""
        return self.since(max(earliest, self._onset_at - GATE_PREROLL_MS / 1000))

    def _allowed(self, earliest: float) -> Iterable[_Block]:
        from_at = max(earliest, self._barrier_at)
        # Blocks are dated by their arrival, which jitters; half a block's doubt would lose one.
        return (b for b in self._ring if b.began_at >= from_at - 1e-3)
