"""The faults that are present now, and what follows from them. Their table is `faults.py`'s."""

from __future__ import annotations

import logging

from voiced.config import Microphone
from voiced.core.channels import Channels
from voiced.core.faults import FAULTS
from voiced.core.outbox import Outbox
from voiced.events import ChannelLevels, MemoryUsed, Restart

MEMORY_SHARE = 0.8
"""Of what the unit allows: beyond that the kernel would end us in mid-sentence."""

SETTLED_S = 600.0
"""A process that needs so much within ten minutes would need it again after a new start."""


class Health:
    """The set of present faults of everything but the link, which keeps its own."""

    def __init__(self, microphone: Microphone, outbox: Outbox) -> None:
        self.faults: dict[str, str] = {}
        """Name of a present fault -> detail."""
        self._settings, self._outbox = microphone, outbox
        self._began_at = outbox.now
        self._channels = Channels(microphone)

    def __repr__(self) -> str:
        return f"<Health {', '.join(self.faults) or 'good'}>"

    @property
    def channels(self) -> list[dict[str, float | int | bool]] | None:
        """The last second of each channel of the microphone, in JSON types; None before it."""
        return self._channels.meter

    def use(self, microphone: Microphone) -> None:
        """The microphone is used differently from now on."""
        self._settings = microphone
        self._hear_anew()

    def add(self, device: str, fault: str, detail: str) -> None:
        """A device has this fault, and no other."""
        self._clear(device, but=fault)
        self.set(fault, detail)

    def over(self, device: str) -> None:
        """A device works."""
        if self._clear(device):
            self._outbox.note("fault-over", f"{device} works again", logging.INFO)

    def set(self, fault: str, detail: str) -> None:
        """This fault is present, with this detail. Said once, not each time."""
        if detail != self.faults.get(fault):
            self.faults[fault] = detail
            text = f"{FAULTS[fault].status}: {detail}"
            self._outbox.note("fault", text, logging.WARNING, fault=fault)

    def forget(self, *faults: str) -> None:
        """These are no faults any more; those that are not present are no harm."""
        for name in faults:
            self.faults.pop(name, None)

    def hear(self, event: ChannelLevels) -> None:
        """What the microphone's channels tell of it."""
        before = set(self._channels.findings)
        self._channels.hear(event)
        for name, text in self._channels.findings.items():
            self.set(name, text)
        for name in before - set(self._channels.findings):
            if self.faults.pop(name, None):
                text = f"no longer: {FAULTS[name].status}"
                self._outbox.note("fault-over", text, logging.INFO, fault=name)

    def memory(self, event: MemoryUsed, *, talking: bool) -> None:
        """Better a new start while nobody talks than the kernel's in mid-sentence."""
        if event.used_mb <= MEMORY_SHARE * event.limit_mb:
            self.forget("memory-high")
            return
        self.set("memory-high", f"{event.used_mb:.0f} of {event.limit_mb:.0f} MB")
        if not talking and self._outbox.now - self._began_at > SETTLED_S:
            self._outbox.add(Restart(FAULTS["memory-high"].exit_code or 0))

    def why_deaf(self) -> tuple[str, str] | None:
        """Why no turn can be taken, and the earcon of it; None if one can."""
        for name, detail in self.faults.items():
            if FAULTS[name].deaf:
                return f"{FAULTS[name].status}: {detail}", FAULTS[name].sound
        return None

    def _clear(self, device: str, but: str = "") -> bool:
        gone = [name for name in self.faults if name.startswith(device) and name != but]
        self.forget(*gone)
        if device == "microphone":
            self._hear_anew()
        return bool(gone)

    def _hear_anew(self) -> None:
        self.forget(*self._channels.findings)
        self._channels = Channels(self._settings)
