"""What a person sees and hears of it all: the light, the earcons, the status line."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

from voiced.core import lights
from voiced.core.faults import FAULTS
from voiced.core.link import LinkState
from voiced.core.outbox import Outbox
from voiced.core.timers import Timers
from voiced.core.turn import TurnState
from voiced.events import Chime, LightShown, Pattern, Show, Status


class Signs:
    """A light is asked for, and counts only when the lights say that it is there."""

    def __init__(self, outbox: Outbox, timers: Timers, *, sounds: bool) -> None:
        self.sounds = sounds
        self.status = ""
        self.light: Pattern | None = None
        """The light that is there; None: not known."""
        self._asked: Pattern | None = None
        self._refused_until = float("-inf")
        self._outbox, self._timers = outbox, timers

    # --- the light -----------------------------------------------------------------------

    @property
    def lit(self) -> bool:
        """True if a light is known to be lit."""
        return self.light is not None and self.light.lit

    def show(self, turn: TurnState, link: LinkState, faults: Iterable[str], *, muted: bool) -> None:
        """Bring the light in line; `faults`: names of those present, what matters most first."""
        refused = self._outbox.now < self._refused_until
        fault = next((FAULTS[name].blink for name in faults), None)
        pattern = lights.pattern(turn, link, fault=fault, muted=muted, refused=refused)
        if pattern is not self._asked:
            self._asked = pattern
            self._outbox.add(Show(pattern))

    def shown(self, event: LightShown) -> None:
        """The light is as it was asked for."""
        self.light = event.pattern
        name = event.pattern.name
        self._outbox.note("light", f"light {name}", logging.DEBUG, light=name)

    def lights_lost(self) -> None:
        """Nobody knows what the lights show."""
        self.light = None

    def lights_back(self) -> None:
        """They have to be told anew."""
        self._asked = None

    # --- sounds and words ----------------------------------------------------------------

    def chime(self, name: str) -> None:
        """An earcon, unless they are switched off."""
        if self.sounds:
            self._outbox.add(Chime(name))

    def refuse(self, why: str, sound: str = "") -> None:
        """A person is never left without a sign; a sound is no sign into his own words."""
        self._outbox.note("refused", f"refused: {why}", logging.WARNING)
        if sound:
            self.chime(sound)
        self._refused_until = self._outbox.now + lights.REFUSED_S
        self._timers.set("refused", self._refused_until)

    def tell(
        self, turn: TurnState, link: LinkState, faults: Mapping[str, str], *, muted: bool
    ) -> None:
        """Bring the status line in line; `faults`: name of a present one -> detail."""
        parts = [turn.value, f"link {link.value}"]
        parts += ["muted"] if muted else []
        parts += [f"{FAULTS[name].status}: {detail}" for name, detail in faults.items()]
        status = " · ".join(parts)
        if status != self.status:
            self.status = status
            self._outbox.add(Status(status))
