"""The connection to the server: when it is dialled, kept and left, and what ends with a socket.

`link.py` is its state machine. Here are the reasons to follow it: what a close means, when a socket
is given up, why nobody need try.
"""

from __future__ import annotations

import logging
from urllib.parse import urlsplit

from voiced import config as configs
from voiced.core.continuity import Continuity
from voiced.core.downlink import Downlink
from voiced.core.faults import FAULTS, Blink, Fault, of_close
from voiced.core.link import Link, LinkState
from voiced.core.outbox import Outbox
from voiced.core.session import Session
from voiced.core.signs import Signs
from voiced.core.timers import Timers
from voiced.core.turn import Cause
from voiced.core.uplink import Uplink
from voiced.events import (
    AudioSent,
    CloseLink,
    Dial,
    KeyState,
    LinkClosed,
    LinkFrame,
    LinkOpened,
    NetworkChanged,
)

_HAVE_SOCKET = (LinkState.DIALLING, LinkState.UP)


class Connection:
    """Owns the link, and gives each socket a session of its own."""

    def __init__(
        self,
        link: Link,
        outbox: Outbox,
        timers: Timers,
        up: Uplink,
        down: Downlink,
        continuity: Continuity,
        signs: Signs,
    ) -> None:
        self.link = link
        self.wanted = False
        """A conversation goes on: it is dialled for, and missed when it is lost."""
        self._signs = signs
        self._outbox, self._timers = outbox, timers
        self._up, self._down, self._continuity = up, down, continuity
        self._has_route = True
        self._key_detail = ""

    # --- looking -------------------------------------------------------------------------

    def is_current(self, event: LinkOpened | LinkClosed | LinkFrame | AudioSent) -> bool:
        """False for what still comes from a socket that was given up."""
        return event.dial == self.link.dial and self.link.state in _HAVE_SOCKET

    @property
    def faults(self) -> dict[str, str]:
        """Name of the link's fault -> detail; empty if it has none."""
        fault = self.link.fault
        return {fault.name: self._key_detail or fault.remedy} if fault else {}

    def why_refused(self) -> tuple[str, str] | None:
        """Why no turn can be taken, with the remedy, and the earcon of it; None if one can."""
        link = self.link
        due = link.due is not None and self._now >= link.due
        if link.state is LinkState.REFUSED and link.fault and not due:
            return f"{link.fault.status}: {self._key_detail or link.fault.remedy}", link.fault.sound
        return None

    @property
    def why_down(self) -> str:
        """What a person hears of a link that could not be had."""
        return self.link.fault.sound if self.link.fault else "network"

    @property
    def _now(self) -> float:
        return self._outbox.now

    @property
    def _is_here(self) -> bool:
        """The server runs on this machine: no network is needed."""
        return configs.is_loopback(urlsplit(self._up.config.realtime.url).hostname or "")

    # --- by our own will -----------------------------------------------------------------

    def want(self) -> None:
        """Somebody needs the server now."""
        if self.link.want(self._now):
            self._dial()

    def settle(self) -> None:
        """A conversation has its link; without one, no link is waited for."""
        if self.wanted and self.link.state is LinkState.DOWN:
            self.want()
        elif not self.wanted and self.link.state is LinkState.WAITING:
            self.link.down()
            self._note()

    def close(self) -> None:
        """Hang up."""
        if self.link.state in _HAVE_SOCKET:
            self._outbox.add(CloseLink())
            self._lose_session()
        if self.link.state not in (LinkState.DOWN, LinkState.REFUSED):
            self.link.down()
            self._note()

    def close_unwanted(self) -> None:
        """Hang up, unless a conversation goes on."""
        if not self.wanted:
            self.close()

    def recycle(self, *, pause: bool) -> None:
        """Leave an old session before the server ends it: in a pause, and not without asking it
        what was said. Who talks then gets a new one while he talks."""
        session, responses = self._up.session, self._down.responses
        busy = responses.active or responses.wanted
        if session.old and pause and not busy and self._continuity.may_leave(session):
            self._outbox.note("recycle", "leaving a session that is near its end", logging.INFO)
            self.close()

    def give_up(self, fault: str, why: str) -> Cause:
        """This socket leads nowhere: the next one may."""
        self._outbox.add(CloseLink())
        return self._lost(FAULTS[fault], why)

    # --- what happens to it --------------------------------------------------------------

    def opened(self, event: LinkOpened) -> None:
        """There is a socket; the session is still to be accepted."""
        if self.is_current(event):
            self._up.session.server_time = event.server_time
            self._outbox.note("link", "connected", logging.DEBUG)

    def accepted(self) -> None:
        """The server has taken our settings."""
        if self.link.state is LinkState.DIALLING:
            self.link.up()
            self._note()

    def closed(self, event: LinkClosed) -> Cause | None:
        """The socket is gone, or never was."""
        if not self.is_current(event):
            return None
        why = " ".join(str(part) for part in (event.code, event.reason) if part)
        fault = of_close(event.code, event.http_status, event.fault)
        if fault.blink is Blink.NETWORK and not self._has_route and not self._is_here:
            fault = FAULTS["no-network"]
        return self._lost(fault, why)

    def network(self, event: NetworkChanged) -> None:
        """A network that is back is not left waiting for the next step of the retries."""
        is_back, self._has_route = event.has_route and not self._has_route, event.has_route
        if event.has_route and self.link.network(self._now, is_back=is_back):
            self._dial()

    def key(self, event: KeyState) -> Cause | None:
        """There is a key, or why there is none: without one nobody need dial."""
        self._key_detail = event.detail
        if event.fault is None:
            self.link.forgive()
            return None
        self.close()
        fault = FAULTS[event.fault]
        self.link.refuse(fault)
        text = f"{fault.status}: {event.detail}"
        self._outbox.note("fault", text, logging.WARNING, fault=event.fault)
        if self.wanted:
            self._signs.refuse(text, fault.sound)
        return Cause.REFUSED

    def tick(self) -> Cause | None:
        """The link's own deadlines."""
        if self.link.overdue(self._now):
            return self.give_up("timeout", "no session in time")
        if self.link.tick(self._now):
            self._dial()
        return None

    # --- inside --------------------------------------------------------------------------

    def _dial(self) -> None:
        self._up.session = Session()
        self._outbox.add(Dial(self.link.dial))
        self._note()

    def _lost(self, fault: Fault, why: str) -> Cause:
        self._lose_session()
        self.link.lost(fault, self._now, wanted=self.wanted)
        level = logging.DEBUG if self.link.failures > 1 else logging.WARNING
        text = f"link lost: {fault.status} ({why})"
        self._outbox.note("link-lost", text, level, fault=fault.name)
        self._note()
        if self.link.state is not LinkState.REFUSED:
            return Cause.LINK_LOST
        if self.wanted:
            self._signs.refuse(f"{fault.status}: {fault.remedy}", fault.sound)
        return Cause.REFUSED

    def _lose_session(self) -> None:
        """The socket is gone, or to be given up."""
        self._timers.cancel("mode", "asked", "create", "again", "stalled", "silent")
        self._up.session = Session()
        self._down.lose_session()
        self._continuity.ended()

    def _note(self) -> None:
        fault = self.link.fault
        text = f"= link {self.link.state.name}" + (f" ({fault.status})" if fault else "")
        self._outbox.note("link", text, logging.INFO, link=self.link.state.value)
