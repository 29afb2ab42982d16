"""What was heard a moment ago, and whether somebody speaks: the pre-roll ring, the gate, and the
detector that takes its place while our own sound is in the room."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from voiced.config import Config
from voiced.core.barge_in import BargeIn, Sign
from voiced.core.gate import GATE_PREROLL_MS, Gate, Reading
from voiced.events import BLOCK_MS, MicrophoneBlock, Samples

_BLOCK_S = BLOCK_MS / 1000

RING_BLOCKS = 3_000 // BLOCK_MS
"""3 s: the longest pre-roll, the time a press takes to become a tap or a hold, and the gate's
own reach-back, together under 1.5 s. The oldest block makes room: that is the ring's purpose."""

ECHO_TAIL_S = 0.2
"""After our own playback the room still sounds; a living room's early decay takes 100-200 ms.
The gate does not listen meanwhile; what a person says then is kept, as the ring has it."""

CHIME_TAIL_S = 0.08
"""After an earcon, which is short and 9 dB softer at least."""


class Change(Enum):
    OPENED = "opened"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class _Block:
    samples: Samples
    at: float
    open: bool
    faint: bool

    @property
    def began_at(self) -> float:
        return self.at - _BLOCK_S


class Microphone:
    """`since` and `from_onset` hand out blocks that may be sent, and never one that may not:
    none from before the barrier, which mute and our own playback move forward (unless its echo
    is taken out).

    Without a gate it is open all the time, except while our own answer sounds.
    """

    def __init__(self, config: Config) -> None:
        gate, echo = config.gate, config.microphone.echo
        hangover_ms, quiet_dbfs = config.turn.silence_ms, gate.quiet_dbfs
        self._gate = Gate(hangover_ms=hangover_ms, quiet_dbfs=quiet_dbfs) if gate.enabled else None
        self._over_us = None if echo == "half-duplex" else BargeIn(echo)
        self.echo_free = echo in ("cancel", "hardware")
        """Our own sound is not in what is heard, so all of it may be sent."""
        self._ring: deque[_Block] = deque(maxlen=RING_BLOCKS)
        self._barrier_at = float("-inf")
        self._answering = False
        self._sound_since = self._sound_until = float("-inf")
        self._tail_s = ECHO_TAIL_S
        self._onset_at = float("-inf")
        self.reading: Reading | None = None
        self.open = not gate.enabled
        self.maybe_spoken_over = False
        """Somebody may be speaking over our own sound."""

    @property
    def faint(self) -> bool:
        """True if somebody may be speaking or whispering, by the lowest of bars."""
        return bool(self._ring) and self._ring[-1].faint

    @property
    def full_duplex(self) -> bool:
        """Whether it listens while an answer sounds."""
        return self._over_us is not None and self._over_us.usable

    @property
    def why_half_duplex(self) -> str:
        """Why it doesn't listen while an answer sounds, though it should; or nothing."""
        return self._over_us.why if self._over_us and not self._over_us.usable else ""

    def hear(self, block: MicrophoneBlock, *, answering: bool) -> Change | None:
        """Take one block. `answering`: an answer sounds, or is about to.

        While it does, OPENED means that somebody has certainly spoken over it.
        """
        at = block.at
        if answering and not self._answering:
            self.close()
            self.open = False
        self._answering = answering
        was_open = self.open
        if answering or block.played is not None:
            if at - self._sound_until > self._tail_s:
                self._tail_s = CHIME_TAIL_S
                self._sound_since = at - _BLOCK_S
                if self._over_us:
                    self._over_us.reset()
            self._sound_until = at
        if answering:
            self._tail_s = ECHO_TAIL_S
            if block.aligning and block.played is not None:
                self._barrier_at = max(self._barrier_at, at)
        in_the_room = at - self._sound_until < self._tail_s
        if in_the_room and self._over_us:
            self._hear_over_us(block)
        if answering and not self.full_duplex:
            self.own_sound_until(at)
            return None
        if not self._gate:
            self.open = self.open or not answering
        elif not in_the_room:
            self._judge(self._gate, block)
        faint = self.reading.faint if self.reading and not in_the_room else True
        self._ring.append(_Block(block.samples, at, self.open, faint))
        if self.open == was_open:
            return None
        return Change.OPENED if self.open else Change.CLOSED

    def _judge(self, gate: Gate, block: MicrophoneBlock) -> None:
        was_open = self.open
        self.maybe_spoken_over = False
        self.reading = reading = gate.push(block.samples)
        self.open = reading.open
        if self.open and not was_open:
            self._onset_at = block.at - (reading.onset_blocks + 1) * _BLOCK_S
            if self._onset_at < self._sound_until + self._tail_s + _BLOCK_S:
                # It may have begun while the gate was deaf.
                self._onset_at = min(self._onset_at, self._sound_since + GATE_PREROLL_MS / 1000)
        if self._over_us and reading.open and reading.speech:
            self._over_us.talker(reading.level_dbfs)

    def _hear_over_us(self, block: MicrophoneBlock) -> None:
        assert self._over_us
        sign = self._over_us.push(block.samples, block.played, aligning=block.aligning)
        self.maybe_spoken_over = sign is not Sign.NONE
        if sign is not Sign.CONFIRMED or self.open or not self._over_us.usable:
            return
        self._onset_at = block.at - (self._over_us.onset_blocks + 1) * _BLOCK_S
        if not self.echo_free:
            self._barrier_at = max(self._barrier_at, self._onset_at)
        if self._gate:
            self._gate.force_open()
        self.open = True

    def close(self) -> None:
        """The turn is over, or an answer begins: whoever speaks on opens it anew."""
        if self._gate:
            self._gate.close()
            self.open = False

    def rest(self) -> None:
        """The server has heard the end: whoever speaks on opens the gate anew, unless somebody
        speaks at this moment, who was told to stop."""
        if self.reading and not self.reading.speech:
            self.close()

    def wipe(self, now: float) -> None:
        """Forget all and everything (mute)."""
        self._ring.clear()
        self._barrier_at = now
        self.maybe_spoken_over = False
        self.reading = None
        if self._gate:
            self._gate.reset()
            self.open = False

    def own_sound_until(self, now: float) -> None:
        """Our own answer was in the room until `now`: unless its echo is taken out, nothing from
        before may be sent."""
        if not self.echo_free:
            self._barrier_at = max(self._barrier_at, now)
        self._sound_until = now
        self._tail_s = ECHO_TAIL_S
        self.maybe_spoken_over = False
        self.close()

    def spoken_since(self, earliest: float) -> bool:
        """True if the gate was open in some block that may be sent."""
        return any(block.open for block in self._allowed(earliest))

    def faint_since(self, earliest: float) -> bool:
        """True if `faint` was true of some block that may be sent."""
        return any(block.faint for block in self._allowed(earliest))

    def since(self, earliest: float) -> list[tuple[Samples, float]]:
        """(samples, captured at) of all blocks that began at or after `earliest`."""
        return [(block.samples, block.at) for block in self._allowed(earliest)]

    def from_onset(self, earliest: float) -> list[tuple[Samples, float]]:
        """As `since`, but from the gate's pre-roll before the onset it opened for."""
        return self.since(max(earliest, self._onset_at - GATE_PREROLL_MS / 1000))

    def may_send(self, began_at: float, earliest: float) -> bool:
        """Whether what began then may be sent, of what is not older than `earliest`."""
        # Blocks are dated by their arrival, which jitters; half a block's doubt would lose one.
        return began_at >= max(earliest, self._barrier_at) - 1e-3

    def _allowed(self, earliest: float) -> Iterable[_Block]:
        return (b for b in self._ring if self.may_send(b.began_at, earliest))
