"""What scenes are made of: what they promise, what they tell, and what lasts while they play.

A scene has a fault befall the daemon, at a random moment where the moment matters, and tells its
`Trial` how long it took until somebody was answered who had been waiting since the fault was over.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from tests.soak.stage import NAMED_S, Stage
from tests.soak.unit import WATCHDOG_S
from voiced.core.uplink import CONFIRM_S, UNHEARD_S

BUSY_S = 2.0
"""What a loaded machine of two cores adds to anything: no promise is judged tighter."""

BACK_S = 1.0 + BUSY_S
"""With a turn open, back within a second of the server's return (outages up to 30 s)."""

NOTICED_S = 6.0 + BACK_S
"""A half-open link is noticed within 6 s while somebody talks: TCP_USER_TIMEOUT 5 s."""

ASKED_S = UNHEARD_S + CONFIRM_S + 10.0 + BACK_S
"""No frame of any kind for 10 s after asking; and before that, hands-free, the server is awaited to
end the turn, and then to let us end it."""

DEVICE_S = 1.0 + BUSY_S
"""A lost device is tried again every second."""

PINS_S = 5.0 + BUSY_S
"""Pins that failed are tried again every five seconds."""

START_S = 1.0 + 3.0 + BUSY_S
"""A new start: the soak's RestartSec, READY and the first turn, beside other work."""

STUCK_S = 10.0 + WATCHDOG_S + START_S
"""An audio thread that steps no more is noticed in 5 s and believed at the second look."""

OUTAGE_S = (2.5, 8.0)
"""Shortest and longest: the retries have come to their steps of a second."""


class Broken(RuntimeError):
    """A promise was not kept; the text says which."""


@dataclass
class Trial:
    """What a scene tells of itself."""

    stage: Stage
    served_s: list[float] = field(default_factory=list)
    states: set[str] = field(default_factory=set)

    def served(self, seconds: float) -> None:
        """So long somebody waited for the service to be back."""
        self.served_s.append(seconds)

    def named(self, *faults: str) -> None:
        """While it lasts, the daemon says what is wrong: one of these."""
        stage = self.stage
        seen: set[str] = set()

        def told() -> bool:
            seen.update(stage.faults())
            return bool(seen & set(faults))

        stage.poll(told, NAMED_S, f"it doesn't say {' or '.join(faults)}")
        self.states |= seen & set(faults)


Play = Callable[[Stage, Trial], None]

Trouble = Callable[[Stage], AbstractContextManager[None]]
"""It lasts as long as somebody is inside."""


@dataclass(frozen=True)
class Scene:
    """`goal_s`: the longest wait for service. `is_quick`: also in a short run. `is_deadly`: the
    process may end, which hides how it grows: played when most of the time is over. `needs`: what
    can't be had everywhere."""

    name: str
    play: Play
    goal_s: float
    is_quick: bool = True
    is_deadly: bool = False
    needs: str = ""
