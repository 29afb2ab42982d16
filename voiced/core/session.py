"""One session of the server as we know it: what it has confirmed, and what we await from it."""

from __future__ import annotations

from dataclasses import dataclass


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
