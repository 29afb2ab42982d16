"""Deadlines by name. The core never sleeps: its shell asks for the next one and sends a tick."""

from __future__ import annotations


class Timers:
    """At most one deadline per name; setting it again moves it."""

    def __init__(self) -> None:
        self._at: dict[str, float] = {}

    def __repr__(self) -> str:
        return f"<Timers {self._at}>"

    def __contains__(self, name: str) -> bool:
        return name in self._at

    def set(self, name: str, at: float) -> None:
        self._at[name] = at

    def cancel(self, *names: str) -> None:
        """Forget deadlines; those not set are no harm."""
        for name in names:
            self._at.pop(name, None)

    def next(self) -> float | None:
        """When the earliest deadline is, or None."""
        return min(self._at.values(), default=None)

    def due(self, now: float) -> str | None:
        """Take the earliest deadline that has passed, or None. Ask until it is None."""
        name = min(self._at, key=self._at.__getitem__, default=None)
        if name is None or self._at[name] > now:
            return None
        del self._at[name]
        return name
