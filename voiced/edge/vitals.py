"""Whether a sound device keeps up with the clock. Frames and times come in; nothing is asked here.

A card is judged by the time in which somebody looked at it. A thread that was kept from running, or
a machine that stood still, comes back after a gap, and what the card did meanwhile (it went on, it
stood still as well, it lost what nobody fetched) can't be told from what it did not do.
"""

from __future__ import annotations

LATE_S = 0.25
"""A gap between two looks counts as so much at most. Looks come every 20 to 120 ms. One longer gap
takes 5 % from a window of 5 s, too little to be taken for a slow card; a card that is so slow that
each read is a gap still has less than a tenth of its rate."""

WINDOW_S = 5.0
"""A second that is lost to a hiccup of the USB is a fifth of it, and the fault lasts no longer."""

LONGEST_S = 15.0
"""A window without an end, because the reader is late all the time, ends here: the second of sound
that the card may hold for it is 7 %."""

SLOWEST = 0.9
"""Of the nominal rate. Crystals are within 0.01 %, a card that plays 44.1 for 48 kHz has 0.92; what
loses a tenth of its sound loses words."""

STILL_S = 2.0
"""Many times what the device holds; a Bluetooth speaker behind a sound server needs a second or
more to begin."""

FASTEST = 1.1
"""Of the nominal rate, beside a buffer that may be played out at once."""


class Pace:
    """How many frames a microphone delivers in a second, from reads that wait for it."""

    def __init__(self, period_s: float) -> None:
        """A read waits up to `period_s` where the card keeps up."""
        self._period_s = period_s
        self.clear()

    def clear(self) -> None:
        """Begin the window anew: frames were lost, and nobody knows how many."""
        self._at: float | None = None
        self._frames, self._looked_s = 0, 0.0

    def add(self, frames: int, asked_at: float, at: float) -> float | None:
        """A read gave so many frames. The rate in Hz when a window is over, else None.

        It is over when a read had to wait: until then the card has more than it was asked for, and
        who falls behind is the reader.
        """
        if self._at is None:
            self._at = at
            return None
        took_s, self._at = at - self._at, at
        measured = None
        waited = at - asked_at >= self._period_s / 2 or not frames
        if self._looked_s >= (WINDOW_S if waited else LONGEST_S):
            measured = self._frames / self._looked_s
            self._frames, self._looked_s = 0, 0.0
        self._frames += frames
        self._looked_s += min(took_s, LATE_S)
        return measured


class Position:
    """Where a speaker says it is, from what it took and what it still holds."""

    def __init__(self, rate: int, size: int) -> None:
        """`size` is what the device can hold, in frames at `rate`."""
        self._rate, self._size = rate, size
        self.clear()

    def clear(self) -> None:
        """The device was dropped: it holds nothing, and counts from zero."""
        self._taken = 0
        self._at: float | None = None  # of the last look, as `_position`
        self._position = self._first = 0
        self._since = self._still_s = 0.0
        self.keeps_up = False
        """It has played for a second in time, or nearly: more than half of it."""

    def wrote(self, frames: int) -> None:
        """The device took so many."""
        self._taken += frames

    def look(self, pending: int, at: float) -> str | None:
        """It holds `pending` frames at `at`. What is wrong with that, if anything is."""
        position = self._taken - pending
        if self._at is None:
            self._at = self._since = at
            self._position = self._first = position
            return None
        moved = position != self._position or not pending
        self._still_s = 0.0 if moved else self._still_s + min(at - self._at, LATE_S)
        self._at, self._position = at, position
        if self._still_s >= STILL_S:
            return "it holds sound, and its position stands still"
        passed_s = at - self._since
        if position - self._first > self._size + FASTEST * self._rate * passed_s:
            return "its position runs ahead of the clock"
        if passed_s >= 1.0:
            self.keeps_up = position - self._first > self._rate * passed_s / 2
            self._since, self._first = at, position
        return None
