"""The conversation: events in, effects out.

Each event is handled in one step: the part it belongs to takes it and tells what it is a cause for,
`talk.py` does what follows, and `_settle` brings link, light, mode and uplink in line with the new
state.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from typing import Any

import msgspec

from voiced.config import Config
from voiced.core.button import Button, Press
from voiced.core.connection import Connection
from voiced.core.continuity import Continuity
from voiced.core.downlink import ASKED_S, Downlink
from voiced.core.faults import FAULTS
from voiced.core.health import Health
from voiced.core.link import Link
from voiced.core.outbox import Outbox
from voiced.core.server import Server
from voiced.core.signs import Signs
from voiced.core.talk import Talk
from voiced.core.timers import Timers
from voiced.core.turn import Cause, TurnState
from voiced.core.uplink import SILENT_S, STALLED_S, Turn, Uplink
from voiced.events import (
    WIRE_RATE,
    AudioSent,
    ButtonEdge,
    ChannelLevels,
    Command,
    DeviceBack,
    DeviceFault,
    Effect,
    Event,
    Flushed,
    KeyState,
    LightShown,
    LinkClosed,
    LinkFrame,
    LinkOpened,
    MemoryUsed,
    MicrophoneBlock,
    NetworkChanged,
    PlaybackDrained,
    PlaybackStarted,
    Reconfigured,
    Reply,
    Tick,
)


class Conversation:
    """The core. `handle` never blocks, and never raises for what comes from outside."""

    def __init__(
        self, config: Config, rng: random.Random, *, muted: bool = False, now: float = 0.0
    ) -> None:
        self._config = config
        self._next_config: Config | None = None
        self._outbox = outbox = Outbox()
        self._timers = timers = Timers()
        outbox.now = now
        self.link = Link(rng)
        self.continuity = continuity = Continuity(config, outbox, timers)
        self._button = Button()
        self._pressed_by: str | None = None  # the client; None: a finger
        self._health = health = Health(config.microphone, outbox)
        self._signs = signs = Signs(outbox, timers, sounds=config.sounds.enabled)
        self._up = up = Uplink(config, outbox, timers)
        self._down = down = Downlink(outbox, timers)
        self._connection = connection = Connection(
            self.link, outbox, timers, up, down, continuity, signs
        )
        self._talk = talk = Talk(
            config, outbox, timers, up, down, continuity, connection, health, signs, muted=muted
        )
        self._server = Server(outbox, timers, up, down, continuity, connection, health, signs, talk)

    def __repr__(self) -> str:
        return f"<Conversation {self.state.name}, link {self.link.state.name}>"

    def handle(self, event: Event) -> list[Effect]:
        """Take one event; what is to be done about it, in this order."""
        self._outbox.now = max(self._outbox.now, event.at)  # blocks come in batches, and late
        self._talk.cause(_HANDLERS[type(event)](self, event))
        self._settle()
        return self._outbox.take()

    def deadline(self) -> float | None:
        """When the core wants a `Tick`, or None."""
        times = (self._timers.next(), self._button.deadline(), self.link.deadline)
        return min((t for t in times if t is not None), default=None)

    def snapshot(self) -> dict[str, Any]:
        """The state as anyone may see it, in JSON types; docs/control.md is its contract."""
        microphone = self._config.microphone
        return {
            "turn": self.state.value,
            "link": self.link.state.value,
            "light": self._signs.light.name if self._signs.light else None,
            "full_duplex": self._talk.microphone.full_duplex,
            "muted": self.muted,
            "faults": [
                {"fault": name, "detail": detail, "remedy": FAULTS[name].remedy}
                for name, detail in self._faults.items()
            ],
            "status": self._signs.status,
            "microphone": {
                "use": list(microphone.channels_used),
                "gain_db": microphone.gain_db,
                "echo": microphone.echo,
                "quiet_dbfs": self._config.gate.quiet_dbfs,
            },
            "session": self._up.session.id or None,
            "model": self._up.session.model or None,
            "tokens": dict(self._server.tokens),
            "remembers": bool(self.continuity.memory),
            "counters": {
                **self._talk.counters,
                **self._server.counters,
                "late_deltas": self._down.late_deltas,
            },
            **self.meter(),
        }

    def meter(self) -> dict[str, Any]:
        """The part of the snapshot that changes all the time."""
        reading = self._talk.microphone.reading
        levels = ("level_dbfs", "floor_dbfs", "threshold_dbfs")
        return {
            **{name: round(getattr(reading, name), 1) if reading else None for name in levels},
            "gate_open": self._talk.microphone.open,
            "said_s": round(self._up.frames_said / WIRE_RATE, 2),
            "sent_s": round(self._up.frames_sent / WIRE_RATE, 2),
            "heard_s": round(self._down.seconds_heard(self._now), 2),
            "channels": self._health.channels,
        }

    @property
    def state(self) -> TurnState:
        """What the device is doing."""
        return self._talk.state

    @property
    def muted(self) -> bool:
        """True while nothing is heard, by a person's will."""
        return self._talk.muted

    @property
    def is_pressed(self) -> bool:
        """True while the button is down, whoever holds it."""
        return self._button.is_down

    @property
    def listens(self) -> bool:
        """True if what the microphone hears now may matter now."""
        deaf = self.state is TurnState.SPEAKING and not self._talk.microphone.full_duplex
        return self.state is not TurnState.IDLE and not deaf

    @property
    def epoch(self) -> int:
        """The current playback epoch."""
        return self._down.epoch

    @property
    def _now(self) -> float:
        return self._outbox.now

    @property
    def _turn(self) -> Turn:
        return self._up.turn

    # --- button and commands -------------------------------------------------------------

    def _on_button(self, event: ButtonEdge) -> None:
        finger = event.down and event.who is None
        if finger and self._pressed_by is not None and self._button.is_down:
            self._talk.press(self._button.let_go())  # a client that pressed may be long gone
        press = self._button.edge(event.down, event.at)
        if press is Press.DOWN:
            self._pressed_by = event.who
            by = f" by {event.who}" if event.who else ""
            self._outbox.note("press", f"press{by}", logging.INFO)
        refusal = self._talk.press(press) if press else None
        if event.down and press is None and self._button.is_settled(event.at):
            refusal = "the button is down already: release it first"
            self._signs.refuse(refusal)
        if event.who is not None:
            self._outbox.add(Reply(refusal is None, refusal or self.state.value))

    def _on_command(self, event: Command) -> None:
        self._outbox.note("command", f"{event.name} by {event.who}", logging.INFO)
        problem = _COMMANDS[event.name](self)
        self._outbox.add(Reply(problem is None, problem or self.state.value))

    def _interrupt(self) -> str | None:
        if self.state not in (TurnState.THINKING, TurnState.SPEAKING):
            return f"nothing to interrupt: {self.state.value}"
        self._talk.cause(Cause.INTERRUPT)
        return None

    def _hang_up(self) -> str | None:
        # An answer that is cut off has its silence for a sign.
        if self.state not in (TurnState.IDLE, TurnState.SPEAKING):
            self._signs.chime("goodbye")
        self._talk.cause(Cause.HANG_UP)
        return None

    def _forget(self) -> str | None:
        """A new conversation: the server's memory of it goes with the session."""
        self.continuity.forget()  # first: who hangs up has it kept
        self._hang_up()
        return None

    # --- server and speaker --------------------------------------------------------------

    def _on_frame(self, event: LinkFrame) -> Cause | None:
        if not self._connection.is_current(event):
            return None
        asked = "silent" in self._timers
        self._talk.cause(self._server.hear(event.text))
        waits = self.state in (TurnState.HEARING, TurnState.THINKING)
        return Cause.UNHEARD if asked and waits and not self._turn.server_heard else None

    def _on_sent(self, event: AudioSent) -> None:
        if self._connection.is_current(event):
            self._up.taken(event.frames)

    def _on_drained(self, event: PlaybackDrained) -> Cause | None:
        live = self._down.live
        if not self._down.drained(event.epoch):
            return None
        self._talk.microphone.own_sound_until(self._now)
        self.continuity.touch()
        if live and live.torn:
            self.continuity.torn()
            self._signs.refuse("the link was lost in the middle of the answer", "network")
        return Cause.DRAINED

    def _on_flushed(self, event: Flushed) -> None:
        if event.frames_heard and not self._turn.by_voice:
            self._talk.microphone.own_sound_until(event.at)
        heard = self._down.flushed(event)
        if heard is not None:
            self.continuity.cut({part.item_id: part.heard_share for part in heard})

    # --- devices and configuration -------------------------------------------------------

    def _on_fault(self, event: DeviceFault) -> Cause | None:
        self._health.add(event.device, event.fault, event.detail)
        if event.device == "lights":
            self._signs.lights_lost()
        if event.device == "microphone":
            self._talk.microphone.wipe(self._now)
            self._down.duck(False)
        listening = self.state in (TurnState.LISTENING, TurnState.HEARING)
        needed = event.device in ("speaker", "lights") or (
            event.device == "microphone" and listening
        )
        if needed and self.state is not TurnState.IDLE:
            self._signs.chime(FAULTS[event.fault].sound)
        return Cause.DEVICE_LOST if needed else None

    def _on_back(self, event: DeviceBack) -> None:
        self._health.over(event.device)
        if event.device == "lights":
            self._signs.lights_back()

    def _on_reconfigured(self, event: Reconfigured) -> None:
        self._next_config = event.config
        self._health.forget("config-invalid")
        self.link.forgive()
        settings = event.config.microphone
        if settings != self._config.microphone:
            # At once: it is another device already, or hears us where it did not.
            self._config = msgspec.structs.replace(self._config, microphone=settings)
            self._talk.reconfigure(self._config)
            self._health.use(settings)

    def _take_config(self) -> None:
        """Between conversations: in the middle of one, its words would be judged by two rules."""
        if self._next_config is None or self.state is not TurnState.IDLE:
            return
        before, self._config, self._next_config = self._config, self._next_config, None
        self._up.config = self._config
        self._signs.sounds = self._config.sounds.enabled
        self.continuity.reconfigure(self._config)
        self._talk.reconfigure(self._config)
        if (before.realtime, before.turn) != (self._config.realtime, self._config.turn):
            self._connection.close()

    # --- time ----------------------------------------------------------------------------

    def _on_tick(self, _: Tick) -> Cause | None:
        while press := self._button.tick(self._now):
            self._talk.press(press)
        while name := self._timers.due(self._now):
            self._talk.cause(_TIMEOUTS[name](self))
        return self._connection.tick()

    def _time_forget(self) -> None:
        """The server remembers as long as its session lasts: that ends, too."""
        if self.state is TurnState.IDLE:
            self.continuity.forget()
            self._connection.close()
        else:
            self.continuity.touch()

    # --- bringing everything in line -----------------------------------------------------

    def _settle(self) -> None:
        self._take_config()
        state, turn = self.state, self._turn
        listening = state is TurnState.LISTENING and turn.held is False and not turn.collecting
        pause = (state is TurnState.IDLE or listening) and not self.is_pressed
        self._connection.recycle(pause=pause)
        self._connection.settle()
        self._signs.show(state, self.link.state, self._faults, muted=self.muted)
        decided = turn.held is not None and state not in (TurnState.IDLE, TurnState.SPEAKING)
        self._up.confirm_mode(decided=decided)
        self._talk.send()
        self._down.ask()
        self._signs.tell(self.state, self.link.state, self._faults, muted=self.muted)

    @property
    def _faults(self) -> dict[str, str]:
        """Name of each present fault -> detail, what matters most first: that which keeps us from
        a turn."""
        present = self._health.faults | self._connection.faults
        weight = {name: (not FAULTS[name].deaf, FAULTS[name].blink) for name in present}
        return {name: present[name] for name in sorted(present, key=weight.__getitem__)}


_C = Conversation

_HANDLERS: dict[type, Callable[[Conversation, Any], Cause | None]] = {
    ButtonEdge: _C._on_button,
    Command: _C._on_command,
    MicrophoneBlock: lambda c, e: c._talk.hear(e),
    ChannelLevels: lambda c, e: c._health.hear(e),
    LinkOpened: lambda c, e: c._connection.opened(e),
    LinkClosed: lambda c, e: c._connection.closed(e),
    LinkFrame: _C._on_frame,
    NetworkChanged: lambda c, e: c._connection.network(e),
    AudioSent: _C._on_sent,
    PlaybackStarted: lambda c, e: c._down.started(e.at),
    PlaybackDrained: _C._on_drained,
    Flushed: _C._on_flushed,
    LightShown: lambda c, e: c._signs.shown(e),
    DeviceFault: _C._on_fault,
    DeviceBack: _C._on_back,
    KeyState: lambda c, e: c._connection.key(e),
    Reconfigured: _C._on_reconfigured,
    MemoryUsed: lambda c, e: c._health.memory(e, talking=c.state is not TurnState.IDLE),
    Tick: _C._on_tick,
}

_COMMANDS: dict[str, Callable[[Conversation], str | None]] = {
    "interrupt": _C._interrupt,
    "hangup": _C._hang_up,
    "forget": _C._forget,
    "mute": lambda c: c._talk.mute(),
    "unmute": lambda c: c._talk.unmute(),
}

_TIMEOUTS: dict[str, Callable[[Conversation], Cause | None]] = {
    "ceiling": lambda c: c._talk.time_ceiling(),
    "hang_up": lambda c: c._connection.close_unwanted(),
    "grace": lambda c: c._up.pad(),
    "tail": lambda c: c._talk.time_tail(),
    "unheard": lambda c: c._talk.time_unheard(),
    "silent": lambda c: c._connection.give_up("timeout", f"asked, no answer in {SILENT_S:.0f} s"),
    "undecided": lambda c: c._talk.time_undecided(),
    "gateless": lambda c: c._talk.time_gateless(),
    "stale": lambda c: c._talk.time_stale(),
    "again": lambda c: c._server.ask_now(),
    "stalled": lambda c: c._connection.give_up("stalled", f"no audio taken for {STALLED_S:.0f} s"),
    "recycle": lambda c: c.continuity.grown_old(c._up.session),
    "aside": lambda c: c.continuity.aside_over(c._up.session),
    "forget": _C._time_forget,
    "doomed": lambda c: c._down.responses.give_up(),
    "create": lambda c: c._server.create_overdue(),
    "asked": lambda c: c._connection.give_up(
        "timeout", f"asked, and nothing came in {ASKED_S:.0f} s"
    ),
    "mode": lambda c: c._server.mode_unanswered(),
    "deletes": lambda c: c._down.delete_overdue(),
    "refused": lambda c: None,  # the light changes when all is brought in line
}
