"""What the server says: frame by frame, and what of it is a cause for us.

Its errors are judged here, too: which are harmless, which are worth another try, which end it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from voiced.core import realtime
from voiced.core.connection import Connection
from voiced.core.continuity import Continuity
from voiced.core.downlink import ASKED_S, Downlink
from voiced.core.faults import HARMLESS_ERRORS, RATE_LIMITS, SERVER_FAILURES, of_error
from voiced.core.health import Health
from voiced.core.outbox import Outbox
from voiced.core.signs import Signs
from voiced.core.talk import Talk
from voiced.core.timers import Timers
from voiced.core.turn import Cause, TurnState
from voiced.core.uplink import Uplink

CREATE_S = 1.0
"""The server creates its response within milliseconds of its commit; without one, we ask."""

ACTIVE_RESPONSE = "conversation_already_has_active_response"
"""Error code: our response.create was lost, or the server's own attempt; `event_id` may be null."""

RATE_LIMIT_TRIES, SERVER_TRIES = 3, 1
"""How often an answer that failed is asked for again."""

AGAIN_S = 0.5
LONGEST_AGAIN_S = 20.0
"""A rate limit tells when it ends; nobody waits longer than this for an answer."""

LOUD_ERRORS = 3
"""So many errors of a session are warnings in the journal; then they are only counted."""


class Server:
    """Tells each part what of a frame is its own, and the conversation what it is a cause for."""

    def __init__(
        self,
        outbox: Outbox,
        timers: Timers,
        up: Uplink,
        down: Downlink,
        continuity: Continuity,
        connection: Connection,
        health: Health,
        signs: Signs,
        talk: Talk,
    ) -> None:
        self.tokens = {"input": 0, "output": 0, "total": 0}
        self.counters = dict.fromkeys(("nonsense", "unknown_events", "server_errors"), 0)
        self._talk = talk
        self._outbox, self._timers = outbox, timers
        self._up, self._down = up, down
        self._continuity, self._connection = continuity, connection
        self._health, self._signs = health, signs

    def hear(self, text: str | bytes) -> Cause | None:
        """Take one frame."""
        if "asked" in self._timers:
            self._timers.set("asked", self._outbox.now + ASKED_S)
        self._timers.cancel("silent")
        said = realtime.decode(text)
        return _HANDLERS[type(said)](self, said)

    def _on_nonsense(self, said: realtime.Nonsense) -> None:
        self.counters["nonsense"] += 1
        level = logging.WARNING if self.counters["nonsense"] == 1 else logging.DEBUG
        self._outbox.note("nonsense", f"the server sent nonsense: {said.detail}", level)

    def _on_other(self, said: realtime.Other) -> None:
        self.counters["unknown_events"] += said.type not in realtime.KNOWN_TYPES

    # --- the session ---------------------------------------------------------------------

    def _on_session_created(self, said: realtime.SessionCreated) -> None:
        session = self._up.session
        session.created = True
        session.id = said.session.id
        session.model = said.session.model or ""
        self._continuity.began(session, said.session.expires_at)

    def _on_session_updated(self, said: realtime.SessionUpdated) -> Cause | None:
        asked = self._up.session.asked
        if asked is None:
            return None
        self._timers.cancel("mode")
        if realtime.server_ends(said.session) not in (None, asked.server_ends):
            return self.mode_rejected("the server kept another turn_detection")
        self._up.session.confirm()
        self._connection.accepted()
        return None

    def mode_rejected(self, why: str) -> Cause | None:
        """Nothing of our session.update was applied."""
        if self._up.mode_rejected(why):
            return None
        return self._connection.give_up("protocol-refused", why)

    def mode_unanswered(self) -> Cause | None:
        """It may still be applied, and nobody knows when: the next turn asks anew."""
        self._up.session.server_ends = None
        return self.mode_rejected("no answer in time")

    def _on_rate_limits(self, said: realtime.RateLimits) -> None:
        self._up.session.limited_until = self._outbox.now + said.reset_s

    # --- errors --------------------------------------------------------------------------

    def _on_error(self, said: realtime.Error) -> Cause | None:
        error, asked = said.error, self._up.session.asked
        text = f"{error.code or error.type}: {(error.message or '')[:200]}"
        harmless = error.code in HARMLESS_ERRORS
        self.counters["server_errors"] += not harmless
        self._up.session.errors += not harmless
        loud = not harmless and self._up.session.errors <= LOUD_ERRORS
        self._outbox.note("server-error", text, logging.WARNING if loud else logging.DEBUG)
        about_session = error.event_id is None and (error.param or "").startswith("session")
        about_asking = (error.event_id or "").startswith(("ask-", "commit-"))
        if fault := of_error(error.code):
            return self._connection.give_up(fault.name, text)
        if asked and (error.event_id == asked.event_id or about_session):
            return self.mode_rejected(text)
        if error.code == ACTIVE_RESPONSE or about_asking:
            return self._ask_rejected(error.code)
        return None

    def _ask_rejected(self, code: str | None) -> Cause | None:
        """Our commit or our response.create did nothing."""
        self._down.responses.disappoint()
        thinking = self._talk.state is TurnState.THINKING
        if not thinking or self._up.turn.spent or self._ask_again(code):
            return None
        if code == ACTIVE_RESPONSE:
            if self._down.responses.active:
                self._down.responses.wanted = True
            else:  # one we don't know of: nothing will tell when it is over
                self._timers.set("again", self._outbox.now + AGAIN_S)
            return None
        return self._failed()

    def _failed(self) -> Cause:
        self._signs.refuse("the server failed to answer", "server")
        return Cause.FAILED

    def _ask_again(self, code: str | None) -> bool:
        """An answer failed without a sound. True if it is worth another try, which is made."""
        turn, session = self._up.turn, self._up.session
        tries = RATE_LIMIT_TRIES if code in RATE_LIMITS else SERVER_TRIES
        known = code in RATE_LIMITS or code in SERVER_FAILURES
        wait_s = max(AGAIN_S * 4**turn.retries, session.limited_until - self._outbox.now)
        if not known or turn.retries >= tries or wait_s > LONGEST_AGAIN_S:
            return False
        turn.retries += 1
        if code in RATE_LIMITS:
            self._health.set("rate-limit", f"asked again in {wait_s:.1f} s")
        self._timers.set("again", self._outbox.now + wait_s)
        return True

    def ask_now(self) -> None:
        """The wait before another try is over."""
        self._down.responses.wanted = self._talk.state is TurnState.THINKING

    # --- the turn ------------------------------------------------------------------------

    def _on_speech_started(self, _: realtime.SpeechStarted) -> Cause | None:
        turn = self._up.turn
        if self._up.by_hand or self._talk.muted:
            return None
        turn.server_heard = True
        self._timers.cancel("gateless")
        late = self._talk.state is TurnState.THINKING and not turn.ended
        return None if late else Cause.HEARD

    def _on_speech_stopped(self, _: realtime.SpeechStopped) -> Cause | None:
        return Cause.ENDED if self._up.ended_by_server() else None

    def _on_committed(self, said: realtime.Committed) -> Cause | None:
        self._continuity.asked(said.item_id)
        if not self._up.ended_by_server():
            return None
        if self._talk.state in (TurnState.HEARING, TurnState.THINKING):
            self._down.responses.expect()
            self._timers.set("create", self._outbox.now + CREATE_S)
        return Cause.ENDED

    def create_overdue(self) -> None:
        """It committed the turn and makes no response of it: we ask."""
        self._down.responses.disappoint()
        self.ask_now()

    # --- the answer ----------------------------------------------------------------------

    def _on_created(self, said: realtime.ResponseCreated) -> None:
        if said.response.out_of_band:
            return
        welcome = self._talk.state is TurnState.THINKING
        if self._down.responses.created(said.response.id, welcome=welcome):
            self._connection.link.worked()
            self._timers.cancel("create", "asked")
            self._up.turn.spent = True
            self._up.turn.utterance.forget_sent()
            self._health.forget("rate-limit")
        else:
            self._down.refuse(said.response.id)

    def _on_audio(self, said: realtime.AudioDelta) -> Cause | None:
        try:
            heard = len(said.samples) and self._down.audio(said)
        except OverflowError as exc:
            self._outbox.note("too-long", f"{exc}: it ends here", logging.ERROR)
            return Cause.TIMEOUT
        return Cause.ANSWER if heard else None

    def _on_answer_text(self, said: realtime.AnswerText) -> None:
        if self._down.responses.is_live(said.response_id):
            self._continuity.answers(said.item_id, said.delta)

    def _on_done(self, said: realtime.ResponseDone) -> Cause | None:
        response = said.response
        answer = self._down.done(response.id)
        if response.usage:
            self._count(response.usage)
        if response.out_of_band and self._up.session.aside:
            self._continuity.aside_over(self._up.session)
        if answer is None:
            return None
        self._timers.cancel("asked")
        failed = response.status in ("failed", "incomplete")
        if failed:
            text = f"answer {response.status}: {response.why}"
            self._outbox.note("answer-failed", text, logging.WARNING)
        if answer.frames_received:
            return None
        if not failed:
            return Cause.NO_ANSWER
        return None if self._ask_again(response.error_code) else self._failed()

    def _count(self, usage: realtime.Usage) -> None:
        self.tokens["input"] += usage.input_tokens or 0
        self.tokens["output"] += usage.output_tokens or 0
        self.tokens["total"] += usage.total_tokens or 0
        text = f"{usage.total_tokens or 0} tokens"
        self._outbox.note("usage", text, logging.DEBUG, tokens=dict(self.tokens))


_HANDLERS: dict[type, Callable[[Server, Any], Cause | None]] = {
    realtime.SessionCreated: Server._on_session_created,
    realtime.SessionUpdated: Server._on_session_updated,
    realtime.Error: Server._on_error,
    realtime.SpeechStarted: Server._on_speech_started,
    realtime.SpeechStopped: Server._on_speech_stopped,
    realtime.Committed: Server._on_committed,
    realtime.ResponseCreated: Server._on_created,
    realtime.ResponseDone: Server._on_done,
    realtime.AudioDelta: Server._on_audio,
    realtime.AudioDone: lambda s, said: s._down.audio_done(said),
    realtime.AnswerText: Server._on_answer_text,
    realtime.Text: lambda s, said: s._continuity.summarised(s._up.session, said.text),
    realtime.Transcribed: lambda s, said: s._continuity.words(said.item_id, said.transcript),
    realtime.RateLimits: Server._on_rate_limits,
    realtime.Other: Server._on_other,
    realtime.Nonsense: Server._on_nonsense,
}
