"""One session of the server as we know it: what it has confirmed, and what we await from it."""

from __future__ import annotations

from dataclasses import dataclass

LONGEST_S = 3_600.0
"""The server ends a session after 60 minutes, whatever is going on in it."""

SHORTEST_S, PLAUSIBLE_S = 60.0, 86_400.0
"""What a server that tells its own limit may mean: Azure's was 30 minutes."""

RECYCLE_SHARE = 5 / 6
"""Of its life a session is left between two turns: ten minutes of sixty, for one turn after the
other to end in."""


def lifetime_s(expires_at: float | None, server_time: float | None) -> float:
    """How long a session lives that was created at `server_time` and ends at `expires_at`, both by
    the server's clock: ours may be years off. `LONGEST_S` where it can't be told."""
    if expires_at and server_time:
        told_s = expires_at - server_time
        if SHORTEST_S <= told_s <= PLAUSIBLE_S:
            return told_s
    return LONGEST_S


@dataclass(slots=True)
class Asked:
    """A session.update on its way. `server_ends` is the mode it sets."""

    event_id: str
    server_ends: bool


@dataclass(slots=True)
class Session:
    """A new one with each socket."""

    id: str = ""
    model: str = ""
    created: bool = False
    configured: bool = False
    reduced: bool = False  # the optional blocks were rejected
    server_ends: bool | None = None  # the confirmed mode; None: not known
    asked: Asked | None = None
    frames_in_flight: int = 0
    server_time: float | None = None  # Unix seconds, when the connection was made
    limited_until: float = float("-inf")  # the server's rate limit
    errors: int = 0  # the server sent
    told: bool = False  # what was said before it
    old: bool = False  # near the end of its life: leave it between two turns
    aside: bool | None = None  # a summary: None not asked for, True on its way, False over

    def confirm(self) -> None:
        """A session.updated for what was asked."""
        if self.asked:
            self.configured = True
            self.server_ends = self.asked.server_ends
            self.asked = None

    def reject(self) -> None:
        """An error for what was asked: nothing of it was applied."""
        self.asked = None
        if not self.configured:
            self.reduced = True
