"""From raw, bouncing edges to press, tap, hold and release.

gpiozero's own debounce drops edges and its hold times start threads; here time is passed in.
"""

from __future__ import annotations

from enum import Enum

DEBOUNCE_S = 0.03
"""Contacts bounce 1-10 ms, worn ones 20. A finger can't let go and press again within 30 ms."""

HOLD_S = 0.4
"""Held longer than this is hold-to-talk. A tap takes 80-250 ms."""


class Press(Enum):
    """What the finger meant."""

    DOWN = "down"
    TAP = "tap"
    HOLD = "hold"
    RELEASE = "release"


class Button:
    """Acts on the leading edge, then ignores the bounce, then looks where the level ended."""

    def __init__(self) -> None:
        self._level = False  # as it is on the wire
        self._down = False  # as we have reported it
        self._quiet_until = float("-inf")
        self._hold_at: float | None = None

    @property
    def is_down(self) -> bool:
        """As it was reported last."""
        return self._down

    def is_settled(self, now: float) -> bool:
        """True if an edge now is no bounce."""
        return now >= self._quiet_until

    def edge(self, down: bool, now: float) -> Press | None:
        """A raw edge at `now`; what it means at once, if anything."""
        self._level = down
        if now < self._quiet_until:
            return None
        return self._settle(now)

    def let_go(self) -> Press:
        """Whoever holds it does so no more: what that means. It may be pressed at once."""
        was_tap = self._hold_at is not None
        self._level = self._down = False
        self._hold_at, self._quiet_until = None, float("-inf")
        return Press.TAP if was_tap else Press.RELEASE

    def deadline(self) -> float | None:
        """When `tick` has something to look at, or None."""
        times = [self._hold_at] if self._hold_at is not None else []
        if self._level != self._down:
            times.append(self._quiet_until)
        return min(times, default=None)

    def tick(self, now: float) -> Press | None:
        """What time alone has decided by `now`. Ask until it is None."""
        if self._level != self._down and now >= self._quiet_until:
            return self._settle(self._quiet_until)
        if self._hold_at is not None and now >= self._hold_at:
            self._hold_at = None
            return Press.HOLD
        return None

    def _settle(self, at: float) -> Press | None:
        """The level as it was at `at`, which a late caller learns afterwards."""
        if self._level == self._down:
            return None
        if self._hold_at is not None and at >= self._hold_at:
            self._hold_at = None
            return Press.HOLD  # the release is the next tick's
        self._quiet_until = at + DEBOUNCE_S
        self._down = self._level
        if self._down:
            self._hold_at = at + HOLD_S
            return Press.DOWN
        was_tap = self._hold_at is not None
        self._hold_at = None
        return Press.TAP if was_tap else Press.RELEASE
