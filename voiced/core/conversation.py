"""The conversation: events in, effects out. The table is `turn.py`'s; here is what it means.

Each event is handled in one step: what happened is turned into causes, the table says what
follows, the actions do it, and `_settle` brings link, light, mode and uplink in line with the
new state.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import msgspec

from voiced import config as configs
from voiced.config import Config
from voiced.core import lights, realtime
from voiced.core.answer import LONGEST_ANSWER_S
from voiced.core.button import Button, Press
from voiced.core.continuity import Continuity
from voiced.core.downlink import ASKED_S, Downlink
from voiced.core.faults import (
    FAULTS,
    HARMLESS_ERRORS,
    RATE_LIMITS,
    SERVER_FAILURES,
    Blink,
    Fault,
    of_close,
    of_error,
)
from voiced.core.health import Health
from voiced.core.link import Link, LinkState
from voiced.core.microphone import Change, Microphone
from voiced.core.outbox import Outbox
from voiced.core.session import Session
from voiced.core.timers import Timers
from voiced.core.turn import Action, Cause, TurnState, UnlistedCause, follow
from voiced.core.uplink import STALE_S, UNHEARD_S, Turn, Uplink
from voiced.events import (
    BLOCK_MS,
    WIRE_RATE,
    AudioSent,
    ButtonEdge,
    ChannelLevels,
    Chime,
    CloseLink,
    Command,
    DeviceBack,
    DeviceFault,
    Dial,
    DropUnsent,
    Duck,
    Effect,
    Event,
    Flushed,
    Hush,
    KeyState,
    LightShown,
    LinkClosed,
    LinkFrame,
    LinkOpened,
    MemoryUsed,
    MicrophoneBlock,
    NetworkChanged,
    Pattern,
    PlaybackDrained,
    PlaybackStarted,
    Reconfigured,
    Reply,
    Restart,
    SetMuted,
    Show,
    Status,
    Tick,
)

GRACE_S = 0.04
"""After the gate closed, the server's own end of speech is given this long before zeros help."""

CREATE_S = 1.0
"""The server creates its response within milliseconds of its commit; without one, we ask."""

TAIL_S = 0.1
"""After a release, the last block is awaited this long: one period and a card's own delay."""

FIRST_WORD_S = 10.0
"""How long a press listens for a first word."""

ACTIVE_RESPONSE = "conversation_already_has_active_response"
"""Error code: our response.create was lost, or the server's own attempt; `event_id` may be null."""

EARLY_PRESS_S = 0.5
"""Who presses so soon after the first sound of a hands-free turn means to begin it, not to end it:
the word and the finger start together, and the gate is quicker than either."""

SPEECH_OVER_S = 1.0
"""How far back a turn that begins over an answer may reach: the gate's pre-roll, and what it takes
to be sure that somebody speaks."""

UNDECIDED_S = 6.0
"""A server that ends turns by what it understands waits for 4 s of silence at most (its medium
eagerness); the gate closed `turn.silence_ms` after the speech. The rest is a slow network's."""

THINKING_S = 60.0
"""Twice the longest a model has been seen to think."""

SILENT_S = 5.0
"""A server answers within a round trip; the kernel finds a dead line within 5 s of the words."""

STALLED_S = 5.0
"""A socket that took audio takes more within this time: as long as the kernel waits for a peer that
acknowledges nothing. A line that is merely slow takes some all the time and is not given up: the
next one would be as slow, and get all of it again."""

RATE_LIMIT_TRIES, SERVER_TRIES = 3, 1
"""How often an answer that failed is asked for again."""

AGAIN_S = 0.5
LONGEST_AGAIN_S = 20.0
"""A rate limit tells when it ends; nobody waits longer than this for an answer."""

LOUD_ERRORS = 3
"""So many errors of a session are warnings in the journal; then they are only counted."""

MEMORY_SHARE = 0.8
"""Of what the unit allows: beyond that the kernel would end us in mid-sentence."""

SETTLED_S = 600.0
"""A process that needs so much within ten minutes would need it again after a new start."""


class Conversation:
    """The core. `handle` never blocks, and never raises for what comes from outside."""

    def __init__(
        self, config: Config, rng: random.Random, *, muted: bool = False, now: float = 0.0
    ) -> None:
        self._began_at = now
        self._config = config
        self.state = TurnState.IDLE
        self.muted = muted
        self.link = Link(rng)
        self._outbox = Outbox()
        self._health = Health(config.microphone, self._outbox)
        self._outbox.now = now
        self._timers = Timers()
        self.continuity = Continuity(config, self._outbox, self._timers)
        self._has_route = True
        self._up = Uplink(config, self._outbox, self._timers)
        self._down = Downlink(self._outbox, self._timers)
        self._microphone = Microphone(config)
        self._button = Button()
        self._pressed_at = now
        self._pressed_into = TurnState.IDLE
        self._hearing_since = now
        self._asked_pattern: Pattern | None = None
        self._shown: Pattern | None = None
        self._refused_until = float("-inf")
        self._status = ""
        self._ducked = False
        self._half_duplex = ""  # why, where it should not be
        self._key_detail = ""
        self._next_config: Config | None = None
        self._tokens = {"input": 0, "output": 0, "total": 0}
        self._counters = dict.fromkeys(
            ("turns", "unheard_turns", "nonsense", "unknown_events", "server_errors"), 0
        )

    def __repr__(self) -> str:
        return f"<Conversation {self.state.name}, link {self.link.state.name}>"

    def handle(self, event: Event) -> list[Effect]:
        """Take one event; what is to be done about it, in this order."""
        self._outbox.now = max(self._outbox.now, event.at)  # blocks come in batches, and late
        _HANDLERS[type(event)](self, event)
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
            "light": self._shown.name if self._shown else None,
            "full_duplex": self._microphone.full_duplex,
            "muted": self.muted,
            "faults": [
                {"fault": name, "detail": detail, "remedy": FAULTS[name].remedy}
                for name, detail in self._all_faults().items()
            ],
            "status": self._status,
            "microphone": {
                "use": list(microphone.channels_used),
                "gain_db": microphone.gain_db,
                "echo": microphone.echo,
                "quiet_dbfs": self._config.gate.quiet_dbfs,
            },
            "session": self._up.session.id or None,
            "model": self._up.session.model or None,
            "tokens": dict(self._tokens),
            "remembers": bool(self.continuity.memory),
            "counters": {**self._counters, "late_deltas": self._down.late_deltas},
            **self.meter(),
        }

    def meter(self) -> dict[str, Any]:
        """The part of the snapshot that changes all the time."""
        reading = self._microphone.reading
        levels = ("level_dbfs", "floor_dbfs", "threshold_dbfs")
        return {
            **{name: round(getattr(reading, name), 1) if reading else None for name in levels},
            "gate_open": self._microphone.open,
            "said_s": round(self._up.frames_said / WIRE_RATE, 2),
            "sent_s": round(self._up.frames_sent / WIRE_RATE, 2),
            "heard_s": round(self._down.seconds_heard(self._now), 2),
            "channels": self._health.channels,
        }

    @property
    def is_pressed(self) -> bool:
        """True while the button is down, whoever holds it."""
        return self._button.is_down

    @property
    def listens(self) -> bool:
        """True if what the microphone hears now may matter now."""
        deaf = self.state is TurnState.SPEAKING and not self._microphone.full_duplex
        return self.state is not TurnState.IDLE and not deaf

    @property
    def epoch(self) -> int:
        """The current playback epoch."""
        return self._down.epoch

    # --- causes --------------------------------------------------------------------------

    @property
    def _now(self) -> float:
        return self._outbox.now

    @property
    def _turn(self) -> Turn:
        return self._up.turn

    def _cause(self, cause: Cause) -> None:
        """The one place where the state changes."""
        try:
            row = follow(self.state, cause)
        except UnlistedCause as exc:
            self._outbox.note("bug", f"unlisted cause: {exc}", logging.ERROR)
            return
        if row is None:
            self._outbox.note("late", f"{cause.value} while {self.state.value}", logging.DEBUG)
            return
        before, (self.state, action) = self.state, row
        if before is not self.state:
            self._outbox.note(
                "turn",
                f"= {before.name} -> {self.state.name} ({cause.value})",
                logging.INFO,
                before=before.value,
                turn=self.state.value,
                cause=cause.value,
            )
            self._timers.cancel("ceiling")
            if self.state is TurnState.HEARING and before is not TurnState.THINKING:
                self._hearing_since = self._now
        _ACTIONS[action](self)
        if before is not self.state:
            self._set_ceiling()

    def _set_ceiling(self) -> None:
        """Every state has a way out by time alone."""
        turn = self._config.turn
        if self.state is TurnState.IDLE:
            self._timers.set("hang_up", self._now + turn.hang_up_s)
            self.continuity.keep()
            self._take_config()
            return
        ceiling_s = {
            TurnState.LISTENING: FIRST_WORD_S if self._turn.by_press else turn.follow_up_s,
            TurnState.HEARING: turn.longest_s + UNHEARD_S,
            TurnState.THINKING: THINKING_S,
            TurnState.SPEAKING: LONGEST_ANSWER_S + UNHEARD_S,
        }
        self._timers.set("ceiling", self._now + ceiling_s[self.state])

    # --- actions -------------------------------------------------------------------------

    def _stay(self) -> None:
        pass

    def _open(self) -> None:
        """A press. Hearing began long before; the link is dialled while the user speaks."""
        self._up.begin(self._now - self._preroll_s, by_press=True)
        self._counters["turns"] += 1

    def _await_finger(self) -> None:
        self._turn.held = None
        self._timers.set("ceiling", self._now + FIRST_WORD_S)

    def _follow_up(self) -> None:
        """Listen on, hands-free; or don't, if that is not wanted or can't be."""
        self._forget_turn()
        # Who speaks into the end of an answer has begun before it was over.
        early_s = self._preroll_s if self._microphone.echo_free else 0.0
        self._up.begin(max(self._now - early_s, self._turn.collected_until), held=False)
        if self._why_refused() or not self._config.turn.follow_up_s:
            self._cause(Cause.TIMEOUT)
        else:
            self._listen(self._config.turn.follow_up_s)

    def _hands_free(self) -> None:
        self._listen(FIRST_WORD_S)
        # Not into the words of somebody who speaks already; and silence is the sign of a cut.
        if self.state is TurnState.LISTENING and self._pressed_into is not TurnState.SPEAKING:
            self._chime("listening")

    def _listen(self, window_s: float) -> None:
        """Hands-free from now on. Without a gate all is speech until the server says otherwise."""
        self._turn.held = False
        if not self._config.gate.enabled:
            self._cause(Cause.SPEECH)
            self._timers.set("gateless", self._now + window_s)
        elif self._microphone.spoken_since(self._turn.earliest):
            self._cause(Cause.SPEECH)
            if not self._microphone.open:
                self._pause()

    def _held(self) -> None:
        """The finger is the gate: all from before the press to the release."""
        turn = self._turn
        turn.earliest = max(turn.earliest, self._pressed_at - self._preroll_s)
        turn.held = True
        turn.collecting = True
        turn.faint = self._microphone.faint_since(turn.earliest)
        self._collect(self._microphone.since(turn.earliest))

    def _collect_speech(self) -> None:
        turn = self._turn
        self._timers.cancel("grace", "unheard", "silent", "stale", "undecided")
        turn.collecting = True
        turn.padded = False
        earliest = max(turn.earliest, turn.collected_until)
        if self._config.gate.enabled or turn.by_voice:
            self._collect(self._microphone.from_onset(earliest))
        else:
            self._collect(self._microphone.since(earliest))

    def _await_end(self) -> None:
        """The gate closed: the silence is out, too. If the server does not see it, zeros help; one
        that goes by the meaning hears the room until it has made up its mind."""
        self._turn.collecting = by_meaning = self._up.by_meaning
        self._timers.set("stale", self._now + STALE_S)
        if by_meaning:
            self._timers.set("undecided", self._now + UNDECIDED_S)
        else:
            self._timers.set("grace", self._now + GRACE_S)

    def _end_turn(self) -> None:
        self._timers.cancel("grace", "unheard", "gateless", "undecided")
        self._timers.set("stale", self._now + STALE_S)
        self._turn.forced |= self._up.by_meaning  # seconds of silence would have to convince it
        if self._turn.released_at is None:
            self._end_collecting()
        else:
            self._timers.set("tail", self._now + TAIL_S)

    def _end_collecting(self) -> None:
        """All of the turn is here. Of a held one that may hold nothing, nothing is paid."""
        if self._turn.held and not self._turn.faint:
            self._outbox.note("nothing-said", "nothing was said", logging.INFO)
            self._cause(Cause.NOTHING)
            self._chime_for_nothing()
            return
        self._up.end_collecting()
        self._chime("sent")

    def _await_answer(self) -> None:
        heard_on = self._turn.collecting and not self._config.gate.enabled
        if not (self._turn.ended or self._turn.ending or heard_on):
            self._chime("sent")
        self._turn.ended = True
        self._microphone.rest()
        self._turn.collecting = self._turn.collecting and self._microphone.open
        self._timers.cancel("grace", "unheard", "gateless", "stale", "undecided")
        self._timers.set("asked", self._now + ASKED_S)

    def _go_on(self) -> None:
        """The user speaks on before the answer sounds: it is taken back."""
        self._cut()
        turn = self._turn
        turn.ended = turn.ending = turn.spent = False
        turn.server_heard = True
        if not turn.collecting:
            self._await_end()

    def _abandon(self) -> None:
        self._cut()
        self._outbox.add(DropUnsent())
        self._up.drop()
        self._leave()

    def _retry_turn(self) -> None:
        self._counters["unheard_turns"] += 1
        self._outbox.note("unheard", "the server heard no speech in it", logging.INFO)
        self._abandon()
        if self._config.gate.enabled:
            self._turn.held = False
        else:
            self._cause(Cause.TIMEOUT)  # it heard nothing in the whole window

    def _play(self) -> None:
        self._forget_turn()
        self._turn.collecting = self._ducked = False
        self._timers.set("asked", self._now + ASKED_S)  # until the answer is complete

    def _cut(self) -> None:
        self._forget_turn()
        self._down.cut()
        self._ducked = False  # what is played next begins as loud as ever

    def _cut_and_listen(self) -> None:
        self._cut()
        self._follow_up()

    def _cut_and_open(self) -> None:
        self._cut()
        self._open()

    def _cut_and_hear(self) -> None:
        """Somebody speaks over the answer: from the onset on it is a turn, hands-free."""
        self._cut()
        self._counters["turns"] += 1
        self._up.begin(self._now - SPEECH_OVER_S, held=False)
        self._turn.by_voice = True
        self._collect_speech()
        if not self._config.gate.enabled:
            self._timers.set("gateless", self._now + FIRST_WORD_S)

    def _replay(self) -> None:
        """The session that had the turn is gone: the next one gets it whole."""
        turn = self._turn
        if turn.spent:
            self._refuse("the link was lost in the middle of the answer", "network")
            self._cause(Cause.FAILED)
            return
        self._timers.cancel("grace", "unheard")
        heard, gated = turn.server_heard, self._config.gate.enabled
        self._up.rewind()
        turn.replay = turn.replay or gated or heard or bool(turn.held)
        if self.state is TurnState.THINKING:
            turn.ending = True
        elif not turn.collecting or (turn.replay and not gated and not turn.held):
            self._cause(Cause.END)  # without a gate nothing here would hear the end

    def _leave(self) -> None:
        self._forget_turn()
        self._microphone.close()
        self._up.begin(self._now)

    def _close(self) -> None:
        self._abandon()
        self._close_link()

    def _forget_turn(self) -> None:
        """The deadlines of a turn go with it."""
        self._timers.cancel(
            *("grace", "unheard", "silent", "gateless", "undecided", "tail", "stale"),
            *("create", "asked", "again"),
        )

    def _chime_for_nothing(self) -> None:
        """Nothing was said, or nothing was heard."""
        dead = "microphone-dead" in self._health.faults
        self._chime(FAULTS["microphone-dead"].sound if dead else "nothing-said")

    def _chime(self, name: str) -> None:
        if self._config.sounds.enabled:
            self._outbox.add(Chime(name))

    # --- button and commands -------------------------------------------------------------

    def _on_button(self, event: ButtonEdge) -> None:
        press = self._button.edge(event.down, event.at)
        if press is Press.DOWN:
            by = f" by {event.who}" if event.who else ""
            self._outbox.note("press", f"press{by}", logging.INFO)
        refusal = self._press(press) if press else None
        if event.down and press is None and self._button.is_settled(event.at):
            refusal = "the button is down already: release it first"
            self._refuse(refusal)
        if event.who is not None:
            self._outbox.add(Reply(refusal is None, refusal or self.state.value))

    def _press(self, press: Press) -> str | None:
        """Act on what the finger meant; why it was turned away, if it was."""
        if press is Press.DOWN:
            return self._press_down()
        if press is Press.TAP:
            said = self._microphone.spoken_since(self._pressed_at - self._preroll_s)
            again = self._pressed_into is TurnState.LISTENING and not said
            if again and self.state is TurnState.LISTENING:
                self._chime("goodbye")
            self._cause(Cause.TAP_AGAIN if again else Cause.TAP)
        elif press is Press.HOLD:
            self._cause(Cause.HOLD)
        else:
            self._turn.released_at = self._now if self._turn.held else None
            self._cause(Cause.RELEASE)
        return None

    def _press_down(self) -> str | None:
        self._pressed_at, self._pressed_into = self._now, self.state
        refusal = self._why_refused()
        if refusal is None:
            if self.link.want(self._now):
                self._dial()
            if self.state is not TurnState.SPEAKING:
                self._outbox.add(Hush())
            young = self._now - self._hearing_since < EARLY_PRESS_S
            if not (young and self.state is TurnState.HEARING and self._turn.held is False):
                self._cause(Cause.PRESS)
            return None
        if self.state in (TurnState.THINKING, TurnState.SPEAKING):
            self._cause(Cause.INTERRUPT)  # whatever is wrong, it can be silenced
        self._refuse(*refusal)
        return refusal[0]

    def _why_refused(self) -> tuple[str, str] | None:
        """Why no turn can be taken now, with the remedy, and the earcon of it; or None."""
        if self.muted:
            return "muted: unmute first", "muted"
        link = self.link
        due = link.due is not None and self._now >= link.due
        if link.state is LinkState.REFUSED and link.fault and not due:
            why = f"{link.fault.status}: {self._key_detail or link.fault.remedy}"
            return why, link.fault.sound
        return self._health.why_deaf()

    def _refuse(self, why: str, sound: str = "") -> None:
        """A person is never left without a sign; a sound is no sign into his own words."""
        self._outbox.note("refused", f"refused: {why}", logging.WARNING)
        if sound:
            self._chime(sound)
        self._refused_until = self._now + lights.REFUSED_S
        self._timers.set("refused", self._refused_until)

    def _on_command(self, event: Command) -> None:
        self._outbox.note("command", f"{event.name} by {event.who}", logging.INFO)
        problem = _COMMANDS[event.name](self)
        self._outbox.add(Reply(problem is None, problem or self.state.value))

    def _interrupt(self) -> str | None:
        if self.state not in (TurnState.THINKING, TurnState.SPEAKING):
            return f"nothing to interrupt: {self.state.value}"
        self._cause(Cause.INTERRUPT)
        return None

    def _hang_up(self) -> str | None:
        # An answer that is cut off has its silence for a sign.
        if self.state not in (TurnState.IDLE, TurnState.SPEAKING):
            self._chime("goodbye")
        self._cause(Cause.HANG_UP)
        return None

    def _forget(self) -> str | None:
        """A new conversation: the server's memory of it goes with the session."""
        self._hang_up()
        self.continuity.forget()
        return None

    def _mute(self) -> str | None:
        self.muted = True
        self._outbox.add(SetMuted(True), DropUnsent())
        self._duck(False)
        self._microphone.wipe(self._now)
        self._cause(Cause.MUTE)
        if self.state is TurnState.THINKING:
            whole = self._turn.ended
            self._up.wipe()
            if not whole:
                self._cause(Cause.TIMEOUT)  # the question is wiped: no answer will come
        return None

    def _unmute(self) -> str | None:
        if not self.muted:
            return None
        self.muted = False
        self._health.forget("state-unreadable")
        self._microphone.wipe(self._now)
        self._outbox.add(SetMuted(False))
        return None

    # --- microphone ----------------------------------------------------------------------

    def _on_block(self, event: MicrophoneBlock) -> None:
        if self.muted or event.muted:
            return
        answering = self.state is TurnState.SPEAKING
        change = self._microphone.hear(event, answering=answering)
        if answering:
            self._hear_over_answer(change)
            return
        turn = self._turn
        on_air = turn.collecting and (turn.held or self._microphone.open or self._up.by_meaning)
        if on_air:
            self._collect_live(event)
            if self._up.by_meaning and change is Change.CLOSED:
                self._pause()
            elif change is Change.OPENED:
                self._timers.cancel("undecided")
        elif turn.collecting:
            self._pause()
        elif turn.held is False and change is Change.OPENED and self._may_open():
            self._cause(Cause.SPEECH)

    def _hear_over_answer(self, change: Change | None) -> None:
        """Lower the answer at the first sign of somebody speaking, cut it when that is certain."""
        self._note_half_duplex()
        if change is not Change.OPENED:
            self._duck(self._microphone.maybe_spoken_over)
        elif refusal := self._why_refused():
            self._cause(Cause.INTERRUPT)
            self._refuse(*refusal)
        else:
            self._cause(Cause.SPEECH_OVER)

    def _duck(self, on: bool) -> None:
        if on is not self._ducked:
            self._ducked = on
            self._outbox.add(Duck(on))

    def _note_half_duplex(self) -> None:
        why = self._microphone.why_half_duplex
        if why != self._half_duplex:
            self._half_duplex = why
            text = f"speaking can't interrupt it: {why}" if why else "speaking interrupts it again"
            self._outbox.note("half-duplex", text, logging.WARNING if why else logging.INFO)

    def _may_open(self) -> bool:
        """In THINKING the user may add something, unless a press has ended the turn."""
        state = self.state
        hearing = state in (TurnState.LISTENING, TurnState.HEARING)
        return hearing or (state is TurnState.THINKING and self._turn.ended)

    def _collect_live(self, event: MicrophoneBlock) -> None:
        released_at = self._turn.released_at
        if released_at is None or event.at - BLOCK_MS / 1000 <= released_at:
            self._turn.faint |= self._microphone.faint
            self._collect([(event.samples, event.at)])
        if released_at is not None and event.at >= released_at:
            self._end_collecting()

    def _collect(self, blocks: list[tuple[Any, float]]) -> None:
        if self._up.collect(blocks):
            return
        self._outbox.note("full", "the turn is as long as turn.longest_s allows", logging.WARNING)
        self._turn.collecting = False
        self._turn.released_at = None
        if self.state is TurnState.HEARING:
            self._cause(Cause.FULL)

    def _pause(self) -> None:
        if self.state is TurnState.HEARING:
            self._cause(Cause.END if self._up.by_hand else Cause.PAUSE)
        elif self.state is TurnState.THINKING and self._turn.released_at is None:
            self._turn.collecting = False

    # --- link ----------------------------------------------------------------------------

    def _dial(self) -> None:
        self._up.session = Session()
        self._outbox.add(Dial(self.link.dial))
        self._note_link()

    def _note_link(self) -> None:
        fault = self.link.fault
        text = f"= link {self.link.state.name}" + (f" ({fault.status})" if fault else "")
        self._outbox.note("link", text, logging.INFO, link=self.link.state.value)

    def _close_link(self) -> None:
        """Hang up by our own will."""
        if self.link.state in _HAVE_SOCKET:
            self._outbox.add(CloseLink())
            self._lose_session()
        if self.link.state not in (LinkState.DOWN, LinkState.REFUSED):
            self.link.down()
            self._note_link()

    def _lose_session(self) -> None:
        """The socket is gone, or to be given up."""
        self._timers.cancel("mode", "asked", "create", "again", "stalled", "silent")
        self._up.session = Session()
        self._down.lose_session()
        self.continuity.ended()

    def _is_current(self, event: LinkOpened | LinkClosed | LinkFrame | AudioSent) -> bool:
        """False for what still comes from a socket that was given up."""
        return event.dial == self.link.dial and self.link.state in _HAVE_SOCKET

    @property
    def _is_here(self) -> bool:
        """The server runs on this machine: no network is needed."""
        return configs.is_loopback(urlsplit(self._config.realtime.url).hostname or "")

    def _on_opened(self, event: LinkOpened) -> None:
        if self._is_current(event):
            self._up.session.server_time = event.server_time
            self._outbox.note("link", "connected", logging.DEBUG)

    def _on_closed(self, event: LinkClosed) -> None:
        if self._is_current(event):
            why = " ".join(str(part) for part in (event.code, event.reason) if part)
            fault = of_close(event.code, event.http_status, event.fault)
            if fault.blink is Blink.NETWORK and not self._has_route and not self._is_here:
                fault = FAULTS["no-network"]
            self._lost(fault, why)

    def _lost(self, fault: Fault, why: str) -> None:
        self._lose_session()
        self.link.lost(fault, self._now, wanted=self.state is not TurnState.IDLE)
        level = logging.DEBUG if self.link.failures > 1 else logging.WARNING
        text = f"link lost: {fault.status} ({why})"
        self._outbox.note("link-lost", text, level, fault=fault.name)
        self._note_link()
        refused = self.link.state is LinkState.REFUSED
        if refused and self.state is not TurnState.IDLE:
            self._refuse(f"{fault.status}: {fault.remedy}", fault.sound)
        self._cause(Cause.REFUSED if refused else Cause.LINK_LOST)

    def _give_up_socket(self, fault: str, why: str) -> None:
        self._outbox.add(CloseLink())
        self._lost(FAULTS[fault], why)

    def _on_sent(self, event: AudioSent) -> None:
        if self._is_current(event):
            session = self._up.session
            session.frames_in_flight = max(0, session.frames_in_flight - event.frames)
            self._timers.cancel("stalled")

    def _on_network(self, event: NetworkChanged) -> None:
        """A network that is back is not left waiting for the next step of the retries."""
        is_back, self._has_route = event.has_route and not self._has_route, event.has_route
        if event.has_route and self.link.network(self._now, is_back=is_back):
            self._dial()

    # --- what the server says ------------------------------------------------------------

    def _on_frame(self, event: LinkFrame) -> None:
        if not self._is_current(event):
            return
        if "asked" in self._timers:
            self._timers.set("asked", self._now + ASKED_S)
        asked = "silent" in self._timers
        self._timers.cancel("silent")
        said = realtime.decode(event.text)
        _SERVER_HANDLERS[type(said)](self, said)
        waits = self.state in (TurnState.HEARING, TurnState.THINKING)
        if asked and waits and not self._turn.server_heard:
            self._cause(Cause.UNHEARD)

    def _on_nonsense(self, said: realtime.Nonsense) -> None:
        self._counters["nonsense"] += 1
        level = logging.WARNING if self._counters["nonsense"] == 1 else logging.DEBUG
        self._outbox.note("nonsense", f"the server sent nonsense: {said.detail}", level)

    def _on_other(self, said: realtime.Other) -> None:
        self._counters["unknown_events"] += said.type not in realtime.KNOWN_TYPES

    def _on_session_created(self, said: realtime.SessionCreated) -> None:
        session = self._up.session
        session.created = True
        session.id = said.session.id
        session.model = said.session.model or ""
        self.continuity.began(session, said.session.expires_at)

    def _on_session_updated(self, said: realtime.SessionUpdated) -> None:
        asked = self._up.session.asked
        if asked is None:
            return
        self._timers.cancel("mode")
        if realtime.server_ends(said.session) not in (None, asked.server_ends):
            self._mode_rejected("the server kept another turn_detection")
            return
        self._up.session.confirm()
        if self.link.state is LinkState.DIALLING:
            self.link.up()
            self._note_link()

    def _mode_rejected(self, why: str) -> None:
        if not self._up.mode_rejected(why):
            self._give_up_socket("protocol-refused", why)

    def _on_error(self, said: realtime.Error) -> None:
        error, asked = said.error, self._up.session.asked
        text = f"{error.code or error.type}: {(error.message or '')[:200]}"
        harmless = error.code in HARMLESS_ERRORS
        self._counters["server_errors"] += not harmless
        self._up.session.errors += not harmless
        loud = not harmless and self._up.session.errors <= LOUD_ERRORS
        self._outbox.note("server-error", text, logging.WARNING if loud else logging.DEBUG)
        about_session = error.event_id is None and (error.param or "").startswith("session")
        if fault := of_error(error.code):
            self._give_up_socket(fault.name, text)
        elif asked and (error.event_id == asked.event_id or about_session):
            self._mode_rejected(text)
        elif error.code == ACTIVE_RESPONSE or (error.event_id or "").startswith(
            ("ask-", "commit-")
        ):
            self._on_ask_rejected(error.code)

    def _on_ask_rejected(self, code: str | None) -> None:
        """Our commit or our response.create did nothing."""
        self._down.responses.disappoint()
        if self.state is not TurnState.THINKING or self._turn.spent or self._ask_again(code):
            return
        if code == ACTIVE_RESPONSE:
            self._down.responses.wanted = True
        else:
            self._refuse("the server failed to answer", "server")
            self._cause(Cause.FAILED)

    def _on_speech_started(self, _: realtime.SpeechStarted) -> None:
        if self._up.by_hand or self.muted:
            return
        self._turn.server_heard = True
        self._timers.cancel("gateless")
        if self.state is not TurnState.THINKING or self._turn.ended:
            self._cause(Cause.HEARD)

    def _on_speech_stopped(self, _: realtime.SpeechStopped) -> None:
        if self._up.ended_by_server():
            self._cause(Cause.ENDED)

    def _on_committed(self, said: realtime.Committed) -> None:
        self.continuity.asked(said.item_id)
        if not self._up.ended_by_server():
            return
        if self.state in (TurnState.HEARING, TurnState.THINKING):
            self._down.responses.expect()
            self._timers.set("create", self._now + CREATE_S)
        self._cause(Cause.ENDED)

    def _on_created(self, said: realtime.ResponseCreated) -> None:
        if said.response.out_of_band:
            return
        welcome = self.state is TurnState.THINKING
        if self._down.responses.created(said.response.id, welcome=welcome):
            self.link.worked()
            self._timers.cancel("create", "asked")
            self._turn.spent = True
            self._turn.utterance.forget_sent()
            self._health.forget("rate-limit")
        else:
            self._outbox.send(self._outbox.encode.cancel(said.response.id))

    def _on_audio(self, said: realtime.AudioDelta) -> None:
        try:
            if len(said.samples) and self._down.audio(said):
                self._cause(Cause.ANSWER)
        except OverflowError as exc:
            self._outbox.note("too-long", f"{exc}: it ends here", logging.ERROR)
            self._cause(Cause.TIMEOUT)

    def _on_transcribed(self, said: realtime.Transcribed) -> None:
        self.continuity.words(said.item_id, said.transcript)

    def _on_answer_text(self, said: realtime.AnswerText) -> None:
        if self._down.responses.is_live(said.response_id):
            self.continuity.answers(said.item_id, said.delta)

    def _on_text(self, said: realtime.Text) -> None:
        self.continuity.summarised(self._up.session, said.text)

    def _on_rate_limits(self, said: realtime.RateLimits) -> None:
        self._up.session.limited_until = self._now + said.reset_s

    def _on_audio_done(self, said: realtime.AudioDone) -> None:
        self._down.audio_done(said)

    def _on_done(self, said: realtime.ResponseDone) -> None:
        response = said.response
        answer = self._down.done(response.id)
        if response.usage:
            self._count(response.usage)
        if response.out_of_band and self._up.session.aside:
            self.continuity.aside_over(self._up.session)
        if answer is None:
            return
        self._timers.cancel("asked")
        failed = response.status in ("failed", "incomplete")
        if failed:
            self._outbox.note(
                "answer-failed", f"answer {response.status}: {response.why}", logging.WARNING
            )
        if not answer.frames_received:
            if failed and self._ask_again(response.error_code):
                return
            if failed:
                self._refuse("the server failed to answer", "server")
            self._cause(Cause.FAILED if failed else Cause.NO_ANSWER)

    def _ask_again(self, code: str | None) -> bool:
        """An answer failed without a sound. True if it is worth another try, which is made."""
        turn, session = self._turn, self._up.session
        tries = RATE_LIMIT_TRIES if code in RATE_LIMITS else SERVER_TRIES
        known = code in RATE_LIMITS or code in SERVER_FAILURES
        wait_s = max(AGAIN_S * 4**turn.retries, session.limited_until - self._now)
        if not known or turn.retries >= tries or wait_s > LONGEST_AGAIN_S:
            return False
        turn.retries += 1
        if code in RATE_LIMITS:
            self._health.set("rate-limit", f"asked again in {wait_s:.1f} s")
        self._timers.set("again", self._now + wait_s)
        return True

    def _time_again(self) -> None:
        self._down.responses.wanted = self.state is TurnState.THINKING

    def _count(self, usage: realtime.Usage) -> None:
        self._tokens["input"] += usage.input_tokens or 0
        self._tokens["output"] += usage.output_tokens or 0
        self._tokens["total"] += usage.total_tokens or 0
        text = f"{usage.total_tokens or 0} tokens"
        self._outbox.note("usage", text, logging.DEBUG, tokens=dict(self._tokens))

    # --- speaker -------------------------------------------------------------------------

    def _on_started(self, event: PlaybackStarted) -> None:
        self._down.started(event.at)
        self._outbox.note("sound", "first sample to the speaker", logging.DEBUG)

    def _on_drained(self, event: PlaybackDrained) -> None:
        live = self._down.live
        if self._down.drained(event.epoch):
            self._microphone.own_sound_until(self._now)
            self.continuity.touch()
            if live and live.torn:
                self.continuity.torn()
                self._refuse("the link was lost in the middle of the answer", "network")
            self._cause(Cause.DRAINED)

    def _on_flushed(self, event: Flushed) -> None:
        if event.frames_heard and not self._turn.by_voice:
            self._microphone.own_sound_until(event.at)
        heard = self._down.flushed(event)
        if heard is not None:
            self.continuity.cut({part.item_id: part.heard_share for part in heard})

    # --- devices, key, configuration -----------------------------------------------------

    def _on_fault(self, event: DeviceFault) -> None:
        self._health.add(event.device, event.fault, event.detail)
        if event.device == "lights":
            self._shown = None
        if event.device == "microphone":
            self._microphone.wipe(self._now)
            self._duck(False)
        listening = self.state in (TurnState.LISTENING, TurnState.HEARING)
        if event.device in ("speaker", "lights") or (event.device == "microphone" and listening):
            if self.state is not TurnState.IDLE:
                self._chime(FAULTS[event.fault].sound)
            self._cause(Cause.DEVICE_LOST)

    def _on_back(self, event: DeviceBack) -> None:
        self._health.over(event.device)
        if event.device == "lights":
            self._asked_pattern = None

    def _on_key(self, event: KeyState) -> None:
        self._key_detail = event.detail
        if event.fault is None:
            self.link.forgive()
            return
        self._close_link()
        fault = FAULTS[event.fault]
        self.link.refuse(fault)
        text = f"{fault.status}: {event.detail}"
        self._outbox.note("fault", text, logging.WARNING, fault=event.fault)
        if self.state is not TurnState.IDLE:
            self._refuse(text, fault.sound)
        self._cause(Cause.REFUSED)

    def _on_reconfigured(self, event: Reconfigured) -> None:
        self._next_config = event.config
        self._health.forget("config-invalid")
        self.link.forgive()
        if event.config.microphone != self._config.microphone:
            self._take_microphone(event.config.microphone)
        if self.state is TurnState.IDLE:
            self._take_config()

    def _take_microphone(self, settings: configs.Microphone) -> None:
        """At once: it is another device already, or hears us where it did not."""
        self._config = msgspec.structs.replace(self._config, microphone=settings)
        self._microphone = Microphone(self._config)
        self._health.use(settings)

    def _take_config(self) -> None:
        """Between conversations: in the middle of one, its words would be judged by two rules."""
        if self._next_config is None:
            return
        before, self._config, self._next_config = self._config, self._next_config, None
        self._up.config = self._config
        self.continuity.reconfigure(self._config)
        if (before.gate, before.turn) != (self._config.gate, self._config.turn):
            self._microphone = Microphone(self._config)
        if (before.realtime, before.turn) != (self._config.realtime, self._config.turn):
            self._close_link()

    def _on_memory(self, event: MemoryUsed) -> None:
        """Better a new start while nobody talks than the kernel's in mid-sentence."""
        if event.used_mb <= MEMORY_SHARE * event.limit_mb:
            self._health.forget("memory-high")
            return
        self._health.set("memory-high", f"{event.used_mb:.0f} of {event.limit_mb:.0f} MB")
        if self.state is TurnState.IDLE and self._now - self._began_at > SETTLED_S:
            self._outbox.add(Restart(FAULTS["memory-high"].exit_code or 0))

    # --- time ----------------------------------------------------------------------------

    def _on_tick(self, _: Tick) -> None:
        while press := self._button.tick(self._now):
            self._press(press)
        while name := self._timers.due(self._now):
            _TIMEOUTS[name](self)
        if self.link.overdue(self._now):
            self._give_up_socket("timeout", "no session in time")
        elif self.link.tick(self._now):
            self._dial()

    def _time_ceiling(self) -> None:
        waiting = self.state is TurnState.LISTENING and self.link.state is LinkState.UP
        if not waiting and self.state is not TurnState.SPEAKING:
            self._refuse("what was said could not be answered", self._why_unlinked)
        elif waiting and self._turn.by_press:
            self._chime_for_nothing()
        self._cause(Cause.TIMEOUT)

    @property
    def _why_unlinked(self) -> str:
        """What a person hears of a link that could not be had."""
        return self.link.fault.sound if self.link.fault else "network"

    def _time_stale(self) -> None:
        """Said, and for `STALE_S` no server to send it to."""
        if self._turn.ended or self._turn.appended:
            return
        self._refuse("the link came back too late for what you said", self._why_unlinked)
        self._cause(Cause.TIMEOUT)

    def _time_hang_up(self) -> None:
        if self.state is TurnState.IDLE:
            self._close_link()

    def _time_unheard(self) -> None:
        """The server has all of it and its silence, and did not end the turn. Did it hear no word,
        or was there nobody to hear? A link that is half open tells nothing: so we ask."""
        if not self._turn.server_heard:
            if "silent" not in self._timers:
                self._up.clear()
                self._timers.set("silent", self._now + SILENT_S)
            return
        self._turn.forced = True
        if self.state is TurnState.HEARING:
            self._cause(Cause.END)

    def _time_tail(self) -> None:
        """The last blocks before the release are late. What was not heard may hold a word."""
        released_at = self._turn.released_at or self._now
        self._turn.faint |= self._turn.collected_until < released_at - BLOCK_MS / 1000
        self._end_collecting()

    def _time_undecided(self) -> None:
        """The server should have known long ago whether that was all."""
        if self.state is not TurnState.HEARING:
            return
        if not self._turn.appended:  # it is still being dialled: the server knows nothing yet
            self._timers.set("undecided", self._now + UNDECIDED_S)
        else:
            self._time_unheard()

    def _time_gateless(self) -> None:
        """Without a gate all is streamed; if the server hears no word in it, that's that."""
        if self.state is TurnState.HEARING:
            self._cause(Cause.TIMEOUT)

    def _time_recycle(self) -> None:
        self._up.session.old = True

    def _time_forget(self) -> None:
        """The server remembers as long as its session lasts: that ends, too."""
        if self.state is TurnState.IDLE:
            self.continuity.forget()
            self._close_link()
        else:
            self.continuity.touch()

    def _time_create(self) -> None:
        self._down.responses.disappoint()
        self._down.responses.wanted = self.state is TurnState.THINKING

    # --- bringing everything in line -----------------------------------------------------

    def _recycle(self) -> None:
        """Leave an old session before the server ends it: in a pause, and not without asking it
        what was said. Who talks then gets a new one while he talks."""
        session, turn = self._up.session, self._turn
        listening = self.state is TurnState.LISTENING and turn.held is False
        pause = self.state is TurnState.IDLE or (listening and not turn.collecting)
        busy = self._down.responses.active or self._down.responses.wanted or self.is_pressed
        if session.old and pause and not busy and self.continuity.may_leave(session):
            self._outbox.note("recycle", "leaving a session that is near its end", logging.INFO)
            self._close_link()

    def _settle(self) -> None:
        self._recycle()
        if self.state is TurnState.IDLE and self.link.state is LinkState.WAITING:
            self.link.down()
            self._note_link()
        wanted = self.state is not TurnState.IDLE and self.link.state is LinkState.DOWN
        if wanted and self.link.want(self._now):
            self._dial()
        self._show()
        decided = self.state is not TurnState.IDLE and self._turn.held is not None
        self._up.confirm_mode(decided=decided and self.state is not TurnState.SPEAKING)
        self._send_turn()
        self._down.ask()
        self._tell_status()

    def _show(self) -> None:
        pattern = lights.pattern(
            self.state,
            self.link.state,
            fault=self._blink(),
            muted=self.muted,
            refused=self._now < self._refused_until,
        )
        if pattern is not self._asked_pattern:
            self._asked_pattern = pattern
            self._outbox.add(Show(pattern))

    def _blink(self) -> Blink | None:
        """Of all that is wrong, what matters most: first that which keeps us from a turn."""
        present = [FAULTS[name] for name in self._health.faults]
        present += [self.link.fault] if self.link.fault else []
        order = sorted(present, key=lambda fault: (not fault.deaf, fault.blink))
        return order[0].blink if order else None

    def _on_shown(self, event: LightShown) -> None:
        self._shown = event.pattern
        name = event.pattern.name
        self._outbox.note("light", f"light {name}", logging.DEBUG, light=name)

    def _send_turn(self) -> None:
        """Send, if a light is known to be lit; close the turn when all is out."""
        sending = self.state in (TurnState.HEARING, TurnState.THINKING) and not self.muted
        lit = self._shown is not None and self._shown.lit
        if not (sending and lit and self._up.may_send()):
            return
        self.continuity.tell(self._up.session)
        all_sent = self._up.pump()
        if self._up.session.frames_in_flight and "stalled" not in self._timers:
            self._timers.set("stalled", self._now + STALLED_S)
        if all_sent:
            try:
                self._down.responses.wanted |= self._up.close_turn()
            except ValueError:
                self._cause(Cause.UNHEARD)

    def _tell_status(self) -> None:
        parts = [self.state.value, f"link {self.link.state.value}"]
        parts += ["muted"] if self.muted else []
        for name, detail in self._all_faults().items():
            parts.append(f"{FAULTS[name].status}: {detail}")
        status = " · ".join(parts)
        if status != self._status:
            self._status = status
            self._outbox.add(Status(status))

    def _all_faults(self) -> dict[str, str]:
        faults = dict(self._health.faults)
        if self.link.fault:
            faults[self.link.fault.name] = self._key_detail or self.link.fault.remedy
        return faults

    @property
    def _preroll_s(self) -> float:
        return self._config.turn.preroll_ms / 1000


_HAVE_SOCKET = (LinkState.DIALLING, LinkState.UP)

_C = Conversation

_HANDLERS: dict[type, Callable[[Conversation, Any], None]] = {
    ButtonEdge: _C._on_button,
    Command: _C._on_command,
    MicrophoneBlock: _C._on_block,
    ChannelLevels: lambda c, e: c._health.hear(e),
    LinkOpened: _C._on_opened,
    LinkClosed: _C._on_closed,
    LinkFrame: _C._on_frame,
    NetworkChanged: _C._on_network,
    AudioSent: _C._on_sent,
    PlaybackStarted: _C._on_started,
    PlaybackDrained: _C._on_drained,
    Flushed: _C._on_flushed,
    LightShown: _C._on_shown,
    DeviceFault: _C._on_fault,
    DeviceBack: _C._on_back,
    KeyState: _C._on_key,
    Reconfigured: _C._on_reconfigured,
    MemoryUsed: _C._on_memory,
    Tick: _C._on_tick,
}

_SERVER_HANDLERS: dict[type, Callable[[Conversation, Any], None]] = {
    realtime.SessionCreated: _C._on_session_created,
    realtime.SessionUpdated: _C._on_session_updated,
    realtime.Error: _C._on_error,
    realtime.SpeechStarted: _C._on_speech_started,
    realtime.SpeechStopped: _C._on_speech_stopped,
    realtime.Committed: _C._on_committed,
    realtime.ResponseCreated: _C._on_created,
    realtime.ResponseDone: _C._on_done,
    realtime.AudioDelta: _C._on_audio,
    realtime.AudioDone: _C._on_audio_done,
    realtime.AnswerText: _C._on_answer_text,
    realtime.Text: _C._on_text,
    realtime.Transcribed: _C._on_transcribed,
    realtime.RateLimits: _C._on_rate_limits,
    realtime.Other: _C._on_other,
    realtime.Nonsense: _C._on_nonsense,
}

_COMMANDS: dict[str, Callable[[Conversation], str | None]] = {
    "interrupt": _C._interrupt,
    "hangup": _C._hang_up,
    "forget": _C._forget,
    "mute": _C._mute,
    "unmute": _C._unmute,
}

_TIMEOUTS: dict[str, Callable[[Conversation], None]] = {
    "ceiling": _C._time_ceiling,
    "hang_up": _C._time_hang_up,
    "grace": lambda c: c._up.pad(),
    "tail": _C._time_tail,
    "unheard": _C._time_unheard,
    "silent": lambda c: c._give_up_socket("timeout", f"asked, no answer in {SILENT_S:.0f} s"),
    "undecided": _C._time_undecided,
    "gateless": _C._time_gateless,
    "stale": _C._time_stale,
    "again": _C._time_again,
    "stalled": lambda c: c._give_up_socket("stalled", f"no audio taken for {STALLED_S:.0f} s"),
    "recycle": _C._time_recycle,
    "aside": lambda c: c.continuity.aside_over(c._up.session),
    "forget": _C._time_forget,
    "doomed": lambda c: c._down.responses.give_up(),
    "create": _C._time_create,
    "asked": lambda c: c._give_up_socket("timeout", f"asked, and nothing came in {ASKED_S:.0f} s"),
    "mode": lambda c: c._mode_rejected("no answer in time"),
    "deletes": lambda c: c._down.delete_overdue(),
    "refused": lambda c: None,  # the light changes when all is brought in line
}

_ACTIONS: dict[Action, Callable[[Conversation], None]] = {
    Action.STAY: _C._stay,
    Action.OPEN: _C._open,
    Action.AWAIT_FINGER: _C._await_finger,
    Action.HANDS_FREE: _C._hands_free,
    Action.HELD: _C._held,
    Action.COLLECT: _C._collect_speech,
    Action.AWAIT_END: _C._await_end,
    Action.END_TURN: _C._end_turn,
    Action.AWAIT_ANSWER: _C._await_answer,
    Action.GO_ON: _C._go_on,
    Action.ABANDON: _C._abandon,
    Action.RETRY_TURN: _C._retry_turn,
    Action.PLAY: _C._play,
    Action.CUT: _C._cut_and_listen,
    Action.CUT_AND_OPEN: _C._cut_and_open,
    Action.CUT_AND_HEAR: _C._cut_and_hear,
    Action.FOLLOW_UP: _C._follow_up,
    Action.REPLAY: _C._replay,
    Action.LEAVE: _C._leave,
    Action.CLOSE: _C._close,
}
