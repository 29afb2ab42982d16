"""The link's state machine: when to dial, when to wait, when to stop asking."""

from __future__ import annotations

import random
from enum import Enum

from voiced.core.faults import Fault, Retry
from voiced.core.retry import FIRST_S, Backoff

SLOW_RETRY_S = 600.0
"""An account without credit does not fill up sooner; a device that asks each second is a storm."""

OPEN_S = 15.0
"""From the dial to the accepted session. `session.created` was seen 0.8-2.1 s after the TCP
connect; a weak Wi-Fi takes some seconds more for name, TCP and TLS."""


class LinkState(Enum):
    """How things stand with the server."""

    DOWN = "down"
    DIALLING = "dialling"
    UP = "up"
    WAITING = "waiting"
    REFUSED = "refused"


class Link:
    """Dials while it is wanted. `due` is when it dials again, or has dialled for too long; REFUSED,
    when a press may try again.

    A link that is down and not wanted is in service. Only REFUSED needs a person.
    """

    def __init__(self, rng: random.Random) -> None:
        self.state = LinkState.DOWN
        self.fault: Fault | None = None
        self.due: float | None = None
        self.dial = 0
        self._backoff = Backoff(rng)

    def __repr__(self) -> str:
        return f"<Link {self.state.name} dial {self.dial}>"

    @property
    def deadline(self) -> float | None:
        """When `tick` or `overdue` has something to look at, or None."""
        return self.due if self.state in (LinkState.DIALLING, LinkState.WAITING) else None

    @property
    def failures(self) -> int:
        """How often in a row it has failed."""
        return self._backoff.failures

    def want(self, now: float) -> bool:
        """Somebody needs the link now. True if the caller has to dial (serial `self.dial`)."""
        if self.state is LinkState.REFUSED and self.due is not None and now >= self.due:
            self.state = LinkState.DOWN
        if self.state in (LinkState.DOWN, LinkState.WAITING):
            self._dial(now)
            return True
        return False

    def network(self, now: float, *, is_back: bool) -> bool:
        """There is a network, perhaps another one. If it `is_back`, a wait is over, and a dial from
        before that may hang. Else a wait is short now: who tells of each change has many to tell.
        True if the caller has to dial."""
        if is_back and self.state in (LinkState.DIALLING, LinkState.WAITING):
            self._dial(now)
            return True
        if self.state is LinkState.WAITING and self.due is not None:
            self.due = min(self.due, now + FIRST_S)
        return False

    def tick(self, now: float) -> bool:
        """Look at the deadline. True if the caller has to dial."""
        if self.state is LinkState.WAITING and self.due is not None and now >= self.due:
            self._dial(now)
            return True
        return False

    def overdue(self, now: float) -> bool:
        """True if a dial has taken longer than `OPEN_S`: close it and call `lost`."""
        return self.state is LinkState.DIALLING and self.due is not None and now >= self.due

    def up(self) -> None:
        """The server has accepted our session."""
        self.state, self.fault, self.due = LinkState.UP, None, None

    def worked(self) -> None:
        """The server answered. A server that accepts us only to close is still failing."""
        self._backoff.reset()

    def lost(self, fault: Fault, now: float, *, wanted: bool) -> None:
        """The connection is gone, or was never had, for this reason."""
        self.fault = fault
        if fault.retry is Retry.NEVER:
            self.state, self.due = LinkState.REFUSED, None
        elif fault.retry is Retry.SLOWLY:
            self.state, self.due = LinkState.REFUSED, now + SLOW_RETRY_S
        elif wanted:
            self.state, self.due = LinkState.WAITING, now + self._backoff.next()
        else:
            self.down()

    def down(self) -> None:
        """Nobody wants the link any more. REFUSED stays: it is what a person must see."""
        if self.state is not LinkState.REFUSED:
            self.state, self.due, self.fault = LinkState.DOWN, None, None
            self._backoff.reset()

    def forgive(self) -> None:
        """Something a person may have mended has changed (key, configuration)."""
        if self.state is LinkState.REFUSED:
            self.state, self.due, self.fault = LinkState.DOWN, None, None

    def refuse(self, fault: Fault) -> None:
        """Don't even dial: it is known that it can't work (no key)."""
        self.state, self.due, self.fault = LinkState.REFUSED, None, fault

    def _dial(self, now: float) -> None:
        self.dial += 1
        self.state, self.due = LinkState.DIALLING, now + OPEN_S
