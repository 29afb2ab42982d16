"""One turn after the other: the state, and what each action of the table does.

`turn.py` says what follows from a cause; here it is done. What a finger and the microphone mean is
told here, too, since that depends on the turn.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from voiced.config import Config
from voiced.core.answer import LONGEST_ANSWER_S
from voiced.core.button import Press
from voiced.core.connection import Connection
from voiced.core.continuity import Continuity
from voiced.core.downlink import ASKED_S, Downlink
from voiced.core.faults import FAULTS
from voiced.core.health import Health
from voiced.core.link import LinkState
from voiced.core.microphone import Change, Microphone
from voiced.core.outbox import Outbox
from voiced.core.signs import Signs
from voiced.core.timers import Timers
from voiced.core.turn import Action, Cause, TurnState, UnlistedCause, follow
from voiced.core.uplink import UNHEARD_S, Turn, Uplink
from voiced.events import BLOCK_MS, DropUnsent, Hush, MicrophoneBlock, SetMuted

FIRST_WORD_S = 10.0
"""How long a press listens for a first word."""

EARLY_PRESS_S = 0.5
"""Who presses so soon after the first sound of a hands-free turn means to begin it, not to end it:
the word and the finger start together, and the gate is quicker than either."""

SPEECH_OVER_S = 1.0
"""How far back a turn that begins over an answer may reach: the gate's pre-roll, and what it takes
to be sure that somebody speaks."""

THINKING_S = 60.0
"""Twice the longest a model has been seen to think."""


class Talk:
    """Owns the state of the turn, the microphone, and the mute that is over both."""

    def __init__(
        self,
        config: Config,
        outbox: Outbox,
        timers: Timers,
        up: Uplink,
        down: Downlink,
        continuity: Continuity,
        connection: Connection,
        health: Health,
        signs: Signs,
        *,
        muted: bool,
    ) -> None:
        self.state = TurnState.IDLE
        self.muted = muted
        self.microphone = Microphone(config)
        self.counters = {"turns": 0, "unheard_turns": 0}
        self._config = config
        self._outbox, self._timers = outbox, timers
        self._up, self._down = up, down
        self._continuity, self._connection = continuity, connection
        self._health, self._signs = health, signs
        self._pressed_at = self._hearing_since = outbox.now
        self._pressed_into = TurnState.IDLE
        self._half_duplex = ""  # why, where it should not be

    def reconfigure(self, config: Config) -> None:
        """Other rules from now on."""
        before, self._config = self._config, config
        old, new = ((each.microphone, each.gate, each.turn) for each in (before, config))
        if old != new:
            self.microphone = Microphone(config)

    def _why_refused(self) -> tuple[str, str] | None:
        """Why no turn can be taken now, with the remedy, and the earcon of it; or None."""
        if self.muted:
            return "muted: unmute first", "muted"
        return self._connection.why_refused() or self._health.why_deaf()

    @property
    def _preroll_s(self) -> float:
        return self._config.turn.preroll_ms / 1000

    # --- causes --------------------------------------------------------------------------

    @property
    def _now(self) -> float:
        return self._outbox.now

    @property
    def _turn(self) -> Turn:
        return self._up.turn

    def cause(self, cause: Cause | None) -> None:
        """The one place where the state changes. None is no cause."""
        if cause is None:
            return
        try:
            row = follow(self.state, cause)
        except UnlistedCause as exc:
            self._outbox.note("bug", f"unlisted cause: {exc}", logging.ERROR)
            return
        if row is None:
            self._outbox.note("late", f"{cause.value} while {self.state.value}", logging.DEBUG)
            return
        before, (self.state, action) = self.state, row
        self._connection.wanted = self.state is not TurnState.IDLE
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
            self._continuity.keep()
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
        self.counters["turns"] += 1

    def _await_finger(self) -> None:
        self._turn.held = None
        self._timers.set("ceiling", self._now + FIRST_WORD_S)

    def _follow_up(self) -> None:
        """Listen on, hands-free; or don't, if that is not wanted or can't be."""
        self._forget_turn()
        # Who speaks into the end of an answer has begun before it was over.
        early_s = self._preroll_s if self.microphone.echo_free else 0.0
        self._up.begin(max(self._now - early_s, self._turn.collected_until), held=False)
        if self._why_refused() or not self._config.turn.follow_up_s:
            self.cause(Cause.TIMEOUT)
        else:
            self._listen(self._config.turn.follow_up_s)

    def _hands_free(self) -> None:
        self._listen(FIRST_WORD_S)
        # Not into the words of somebody who speaks already; and silence is the sign of a cut.
        if self.state is TurnState.LISTENING and self._pressed_into is not TurnState.SPEAKING:
            self._signs.chime("listening")

    def _listen(self, window_s: float) -> None:
        """Hands-free from now on. Without a gate all is speech until the server says otherwise."""
        self._turn.held = False
        if not self._config.gate.enabled:
            self.cause(Cause.SPEECH)
            self._timers.set("gateless", self._now + window_s)
        elif self.microphone.spoken_since(self._turn.earliest):
            self.cause(Cause.SPEECH)
            if not self.microphone.open:
                self._pause()

    def _held(self) -> None:
        """The finger is the gate: all from before the press to the release."""
        turn = self._turn
        turn.earliest = max(turn.earliest, self._pressed_at - self._preroll_s)
        turn.held = True
        turn.collecting = True
        turn.faint = self.microphone.faint_since(turn.earliest)
        self._collect(self.microphone.since(turn.earliest))

    def _collect_speech(self) -> None:
        self._up.resume()
        turn = self._turn
        earliest = max(turn.earliest, turn.collected_until)
        if self._config.gate.enabled or turn.by_voice:
            self._collect(self.microphone.from_onset(earliest))
        else:
            self._collect(self.microphone.since(earliest))

    def _end_turn(self) -> None:
        if self._up.end():
            self._end_collecting()

    def _end_collecting(self) -> None:
        """All of the turn is here. Of a held one that may hold nothing, nothing is paid."""
        if self._turn.held and not self._turn.faint:
            self._outbox.note("nothing-said", "nothing was said", logging.INFO)
            self.cause(Cause.NOTHING)
            self._chime_for_nothing()
            return
        self._up.end_collecting()
        self._signs.chime("sent")

    def _await_answer(self) -> None:
        heard_on = self._turn.collecting and not self._config.gate.enabled
        if not (self._turn.ended or self._turn.ending or heard_on):
            self._signs.chime("sent")
        self._turn.ended = True
        self.microphone.rest()
        self._turn.collecting = self._turn.collecting and self.microphone.open
        self._timers.cancel("grace", "unheard", "gateless", "stale", "undecided")
        self._timers.set("asked", self._now + ASKED_S)

    def _go_on(self) -> None:
        """The user speaks on before the answer sounds: it is taken back."""
        self._cut()
        self._up.go_on()

    def _abandon(self) -> None:
        self._cut()
        self._outbox.add(DropUnsent())
        self._up.drop()
        self._leave()

    def _retry_turn(self) -> None:
        self.counters["unheard_turns"] += 1
        self._outbox.note("unheard", "the server heard no speech in it", logging.INFO)
        self._abandon()
        if self._config.gate.enabled:
            self._turn.held = False
        else:
            self.cause(Cause.TIMEOUT)  # it heard nothing in the whole window

    def _play(self) -> None:
        self._forget_turn()
        self._turn.collecting = self._down.ducked = False
        self._timers.set("asked", self._now + ASKED_S)  # until the answer is complete

    def _cut(self) -> None:
        self._forget_turn()
        self._down.cut()

    def _cut_and_listen(self) -> None:
        self._cut()
        self._follow_up()

    def _cut_and_open(self) -> None:
        self._cut()
        self._open()

    def _cut_and_hear(self) -> None:
        """Somebody speaks over the answer: from the onset on it is a turn, hands-free."""
        self._cut()
        self.counters["turns"] += 1
        self._up.begin(self._now - SPEECH_OVER_S, held=False)
        self._turn.by_voice = True
        self._collect_speech()
        if not self._config.gate.enabled:
            self._timers.set("gateless", self._now + FIRST_WORD_S)

    def _replay(self) -> None:
        """The session that had the turn is gone: the next one gets it whole."""
        turn = self._turn
        if turn.spent:
            self._signs.refuse("the link was lost in the middle of the answer", "network")
            self.cause(Cause.FAILED)
            return
        self._up.rewind()
        endless = turn.replay and not self._config.gate.enabled and not turn.held
        if self.state is TurnState.THINKING:
            turn.ending = True
        elif endless or not turn.collecting:
            self.cause(Cause.END)  # without a gate nothing here would hear the end

    def _leave(self) -> None:
        self._forget_turn()
        self.microphone.close()
        self._up.begin(self._now)

    def _close(self) -> None:
        self._abandon()
        self._connection.close()

    def _forget_turn(self) -> None:
        """The deadlines of a turn go with it."""
        self._timers.cancel(
            *("grace", "unheard", "silent", "gateless", "undecided", "tail", "stale"),
            *("create", "asked", "again"),
        )
        self._health.forget("rate-limit")

    def _chime_for_nothing(self) -> None:
        """Nothing was said, or nothing was heard."""
        dead = "microphone-dead" in self._health.faults
        self._signs.chime(FAULTS["microphone-dead"].sound if dead else "nothing-said")

    # --- mute ----------------------------------------------------------------------------

    def mute(self) -> None:
        """Nothing is heard from now on, and nothing that was heard is kept."""
        self.muted = True
        self._outbox.add(SetMuted(True), DropUnsent())
        self._down.duck(False)
        self.microphone.wipe(self._now)
        self.cause(Cause.MUTE)
        if self.state is TurnState.THINKING:
            whole = self._turn.ended
            self._up.wipe()
            if not whole:
                self.cause(Cause.TIMEOUT)  # the question is wiped: no answer will come

    def unmute(self) -> None:
        """It may hear again; what was before stays forgotten."""
        if not self.muted:
            return
        self.muted = False
        self._health.forget("state-unreadable")
        self.microphone.wipe(self._now)
        self._outbox.add(SetMuted(False))

    # --- the finger ----------------------------------------------------------------------

    def press(self, press: Press) -> str | None:
        """Act on what the finger meant; why it was turned away, if it was."""
        if press is Press.DOWN:
            return self._press_down()
        if press is Press.TAP:
            said = self.microphone.spoken_since(self._pressed_at - self._preroll_s)
            again = self._pressed_into is TurnState.LISTENING and not said
            if again and self.state is TurnState.LISTENING:
                self._signs.chime("goodbye")
            self.cause(Cause.TAP_AGAIN if again else Cause.TAP)
        elif press is Press.HOLD:
            self.cause(Cause.HOLD)
        else:
            self._turn.released_at = self._now if self._turn.held else None
            self.cause(Cause.RELEASE)
        return None

    def _press_down(self) -> str | None:
        self._pressed_at, self._pressed_into = self._now, self.state
        refusal = self._why_refused()
        if refusal is None:
            self._connection.want()
            if self.state is not TurnState.SPEAKING:
                self._outbox.add(Hush())
            young = self._now - self._hearing_since < EARLY_PRESS_S
            if not (young and self.state is TurnState.HEARING and self._turn.held is False):
                self.cause(Cause.PRESS)
            return None
        if self.state in (TurnState.THINKING, TurnState.SPEAKING):
            self.cause(Cause.INTERRUPT)  # whatever is wrong, it can be silenced
        self._signs.refuse(*refusal)
        return refusal[0]

    # --- microphone ----------------------------------------------------------------------

    def hear(self, event: MicrophoneBlock) -> None:
        """Take one block of the microphone."""
        if self.muted or event.muted:
            return
        answering = self.state is TurnState.SPEAKING
        change = self.microphone.hear(event, answering=answering)
        if answering:
            self._hear_over_answer(change)
            return
        turn = self._turn
        on_air = turn.collecting and (turn.held or self.microphone.open or self._up.by_meaning)
        if on_air:
            self._collect_live(event)
            if self._up.by_meaning and change is Change.CLOSED:
                self._pause()
            elif change is Change.OPENED:
                self._timers.cancel("undecided")
        elif turn.collecting:
            self._pause()
        elif turn.held is False and change is Change.OPENED and self._may_open():
            self.cause(Cause.SPEECH)

    def _hear_over_answer(self, change: Change | None) -> None:
        """Lower the answer at the first sign of somebody speaking, cut it when that is certain."""
        self._note_half_duplex()
        if change is not Change.OPENED:
            self._down.duck(self.microphone.maybe_spoken_over)
        elif refusal := self._why_refused():
            self.cause(Cause.INTERRUPT)
            self._signs.refuse(*refusal)
        else:
            self.cause(Cause.SPEECH_OVER)

    def _note_half_duplex(self) -> None:
        why = self.microphone.why_half_duplex
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
        released_at, began_at = self._turn.released_at, event.at - BLOCK_MS / 1000
        # Blocks come in batches, and late: this one may be from before the turn, or a mute.
        may = self.microphone.may_send(began_at, self._turn.earliest)
        if may and (released_at is None or began_at <= released_at):
            self._turn.faint |= self.microphone.faint
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
            self.cause(Cause.FULL)

    def _pause(self) -> None:
        if self.state is TurnState.HEARING:
            self.cause(Cause.END if self._up.by_hand else Cause.PAUSE)
        elif self.state is TurnState.THINKING and self._turn.released_at is None:
            self._turn.collecting = False

    # --- time ----------------------------------------------------------------------------

    def time_ceiling(self) -> Cause:
        waiting = self.state is TurnState.LISTENING and self._connection.link.state is LinkState.UP
        if not waiting and self.state is not TurnState.SPEAKING:
            self._signs.refuse("what was said could not be answered", self._connection.why_down)
        elif waiting and self._turn.by_press:
            self._chime_for_nothing()
        return Cause.TIMEOUT

    def time_stale(self) -> Cause | None:
        """Said, and for `STALE_S` no server to send it to."""
        if self._turn.ended or self._turn.appended:
            return None
        why = "the link came back too late for what you said"
        self._signs.refuse(why, self._connection.why_down)
        return Cause.TIMEOUT

    def time_tail(self) -> None:
        self._up.tail_over()
        self._end_collecting()

    def time_unheard(self) -> Cause | None:
        heard = self._up.unheard()
        return Cause.END if heard and self.state is TurnState.HEARING else None

    def time_undecided(self) -> Cause | None:
        decide = self.state is TurnState.HEARING and self._up.undecided()
        return Cause.END if decide else None

    def time_gateless(self) -> Cause | None:
        """Without a gate all is streamed; if the server hears no word in it, that's that."""
        return Cause.TIMEOUT if self.state is TurnState.HEARING else None

    # --- sending -------------------------------------------------------------------------

    def send(self) -> None:
        """Send, if a light is known to be lit; close the turn when all is out."""
        sending = self.state in (TurnState.HEARING, TurnState.THINKING) and not self.muted
        if not (sending and self._signs.lit and self._up.may_send()):
            return
        self._continuity.tell(self._up.session)
        if self._up.pump():
            try:
                self._down.responses.wanted |= self._up.close_turn()
            except ValueError:
                self.cause(Cause.UNHEARD)


_ACTIONS: dict[Action, Callable[[Talk], None]] = {
    Action.STAY: Talk._stay,
    Action.OPEN: Talk._open,
    Action.AWAIT_FINGER: Talk._await_finger,
    Action.HANDS_FREE: Talk._hands_free,
    Action.HELD: Talk._held,
    Action.COLLECT: Talk._collect_speech,
    Action.AWAIT_END: lambda talk: talk._up.await_end(),
    Action.END_TURN: Talk._end_turn,
    Action.AWAIT_ANSWER: Talk._await_answer,
    Action.GO_ON: Talk._go_on,
    Action.ABANDON: Talk._abandon,
    Action.RETRY_TURN: Talk._retry_turn,
    Action.PLAY: Talk._play,
    Action.CUT: Talk._cut_and_listen,
    Action.CUT_AND_OPEN: Talk._cut_and_open,
    Action.CUT_AND_HEAR: Talk._cut_and_hear,
    Action.FOLLOW_UP: Talk._follow_up,
    Action.REPLAY: Talk._replay,
    Action.LEAVE: Talk._leave,
    Action.CLOSE: Talk._close,
}
