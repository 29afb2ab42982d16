"""A promise broken on purpose: Python under the unit loads this as its sitecustomize.

What it breaks is the daemon's own, so it knows some of its names; nothing of the tests is there.
"""

from __future__ import annotations

import os
from collections.abc import Callable

VARIABLE = "VOICED_SABOTAGE"


def never_reconnects() -> None:
    """A link that was lost is given up."""
    from voiced.core.faults import Fault
    from voiced.core.link import Link

    def lost(self: Link, fault: Fault, now: float, *, wanted: bool) -> None:
        self.refuse(fault)

    Link.lost = lost  # type: ignore[method-assign]


def no_replay() -> None:
    """What was sent on a link that is lost counts as sent."""
    from voiced.core.utterance import Utterance

    Utterance.rewind = lambda self: None  # type: ignore[method-assign]


SABOTAGES: dict[str, tuple[Callable[[], None], str]] = {
    "never-reconnects": (never_reconnects, "cable out"),
    "no-replay": (no_replay, "cable out"),
}
"""Name: what it does, and the scene that must turn red."""

if _wanted := os.environ.get(VARIABLE):
    SABOTAGES[_wanted][0]()
