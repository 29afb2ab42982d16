"""Where the parts of the core put what is to be done, in order."""

from __future__ import annotations

from typing import Any

from voiced.core.realtime import Encoder
from voiced.events import Chime, Effect, Note, Send


class Outbox:
    """The effects of the event being handled. `now` is that event's time."""

    def __init__(self) -> None:
        self.now = 0.0
        self.encode = Encoder()
        self._effects: list[Effect] = []

    def add(self, *effects: Effect) -> None:
        self._effects += effects

    def first(self, effect: Effect) -> None:
        """To be done before all else: a flush."""
        self._effects.insert(0, effect)

    def send(self, encoded: tuple[bytes, str]) -> str:
        """Send what `encode` made; returns its event id."""
        text, event_id = encoded
        self.add(Send(text))
        return event_id

    def note(self, name: str, text: str, level: int, **fields: Any) -> None:
        """Tell the journal and whoever watches."""
        self.add(Note(name, self.now, text, level, fields))

    def take(self) -> list[Effect]:
        """All effects so far, sounds last: no word waits for one. The box is empty then."""
        effects, self._effects = self._effects, []
        return sorted(effects, key=lambda effect: isinstance(effect, Chime))
