"""From the server's answer to the speaker, and what the server is told of what was heard."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from voiced.core import realtime
from voiced.core.answer import Answer, Piece, Responses
from voiced.core.outbox import Outbox
from voiced.core.playhead import Heard
from voiced.core.timers import Timers
from voiced.events import WIRE_RATE, Duck, EndPlay, Flush, Flushed, Play

DELETE_S = 2.0
"""How long a delete waits for the end of the response it belongs to."""

DOOMED_S = 3.0
"""A response that was taken back before it existed is awaited this long, to be cancelled. The
server makes one within a round trip of its commit or our request."""

ASKED_S = 10.0
"""We asked and no frame of any kind came: the link is dead (a model's first frame took 0.3-2 s)."""


@dataclass(slots=True)
class _Cut:
    """An answer being cut, until the speaker tells what was heard of it."""

    answer: Answer
    active: bool


class Downlink:
    """Owns the responses and the playback epoch. What it plays can be cut at any moment."""

    def __init__(self, outbox: Outbox, timers: Timers) -> None:
        self.responses = Responses()
        self.frames_heard = 0
        self._sounds_since: float | None = None
        self.late_deltas = 0
        self._outbox = outbox
        self._timers = timers
        self.epoch = 0
        self.ducked = False
        """What is played now is lowered."""
        self._cut: _Cut | None = None

    @property
    def live(self) -> Answer | None:
        """The answer that may be played."""
        return self.responses.live

    # --- from the server -----------------------------------------------------------------

    def audio(self, said: realtime.AudioDelta) -> bool:
        """Queue audio of the live answer. False if it is not: late, and dropped by its id.

        Raises:
            OverflowError: the answer is longer than the bound; nothing of `said` is queued.
        """
        live = self.live
        if live is None or live.complete or not self.responses.is_live(said.response_id):
            self.late_deltas += 1
            return False
        self._play(live.add(said))
        return True

    def audio_done(self, said: realtime.AudioDone) -> None:
        """A part of the live answer is complete; what waited behind it can play."""
        if self.live and self.responses.is_live(said.response_id):
            self._play(self.live.part_done(said.output_index, said.content_index))

    def done(self, response_id: str) -> Answer | None:
        """A response ended. Returns the live answer if it is the one: it is complete then."""
        for item in self.responses.done(response_id):
            self._outbox.send(self._outbox.encode.delete(item))
        live = self.live
        if live is None or not self.responses.is_live(response_id):
            return None
        self.complete(live)
        return live

    def complete(self, live: Answer) -> None:
        """Nothing more comes of the live answer: play it out, or forget it if it has no sound."""
        if live.complete:
            return
        self._play(live.finish())
        if live.frames_received:
            self._outbox.add(EndPlay(self.epoch))
        else:
            self.responses.live = None

    def lose_session(self) -> None:
        """The socket is gone. What came of an answer is played."""
        live = self.live
        self.responses = Responses()
        self._timers.cancel("deletes", "doomed")
        if self._cut:
            self._cut.answer.orphaned = True
        if live and live.frames_received:
            self.responses.live = live
            live.orphaned = True
            live.torn = not live.complete
            self.complete(live)

    # --- asking --------------------------------------------------------------------------

    def ask(self) -> None:
        """The one place that asks for a response: if one is wanted and none is being made."""
        responses = self.responses
        if responses.wanted and responses.active is None:
            responses.wanted = False
            responses.expect()
            self._outbox.send(self._outbox.encode.create_response())
            self._timers.set("asked", self._outbox.now + ASKED_S)

    # --- silence -------------------------------------------------------------------------

    def cut(self) -> None:
        """Take back all that was asked for or sounds. The flush comes first: everything else can
        wait a millisecond."""
        live = self.responses.take_back()
        self.ducked = False  # what is played next begins as loud as ever
        if self.responses.has_doomed:
            self._timers.set("doomed", self._outbox.now + DOOMED_S)
        if live:
            self._cut = _Cut(live, self.responses.active == live.response_id)
            self.epoch += 1
            self._outbox.first(Flush(self.epoch, self._outbox.now))

    def flushed(self, event: Flushed) -> list[Heard] | None:
        """Tell the model what was heard: truncate, cancel, and delete what was never heard.
        Returns it, or None if nothing was being cut."""
        cut, self._cut = self._cut, None
        self._sounds_since = None
        if cut is None:
            return None
        answer = cut.answer
        self.frames_heard += event.frames_heard
        heard = answer.playhead.heard(event.frames_heard)
        if not answer.orphaned:
            self._tell(cut, heard)
        took_ms = (event.at - event.cause_at) * 1000
        self._outbox.note(
            "flushed",
            f"silent {took_ms:.1f} ms after the cause",
            logging.INFO,
            cause_at=event.cause_at,
            dropped_at=event.at,
            heard_ms={part.item_id: part.heard_ms for part in heard},
        )
        return heard

    def _tell(self, cut: _Cut, heard: list[Heard]) -> None:
        answer = cut.answer
        sounded = {part.item_id for part in heard if part.heard_ms}
        for part in heard:
            if part.item_id in sounded and not part.complete:
                self._outbox.send(
                    self._outbox.encode.truncate(part.item_id, part.content_index, part.heard_ms)
                )
        unheard = [item for item in answer.items if item not in sounded]
        if cut.active:
            self._outbox.send(self._outbox.encode.cancel(answer.response_id))
            self.responses.delete_after(answer.response_id, unheard)
            self._timers.set("deletes", self._outbox.now + DELETE_S)
        else:
            self._delete(unheard)

    def refuse(self, response_id: str) -> None:
        """Nobody asked for this response, or nobody waits for it any more."""
        self._outbox.send(self._outbox.encode.cancel(response_id))
        self.responses.delete_after(response_id, [])
        self._timers.set("deletes", self._outbox.now + DELETE_S)

    def delete_overdue(self) -> None:
        """The response they belong to never ended: delete now."""
        self._delete(self.responses.overdue_deletes())

    def drained(self, epoch: int) -> bool:
        """The speaker has played all. True if that was the whole of the live answer."""
        live = self.live
        if epoch != self.epoch or live is None or not live.complete:
            return False
        self.frames_heard += live.frames_received
        self._sounds_since = None
        self.responses.live = None
        self.epoch += 1
        return True

    def _play(self, pieces: list[Piece]) -> None:
        self._outbox.add(*(Play(piece.samples, self.epoch) for piece in pieces))

    def _delete(self, items: list[str]) -> None:
        for item in items:
            self._outbox.send(self._outbox.encode.delete(item))

    def started(self, at: float) -> None:
        """The live answer began to sound."""
        self._sounds_since = at
        self._outbox.note("sound", "first sample to the speaker", logging.DEBUG)

    def duck(self, on: bool) -> None:
        """Lower what is played, or raise it again."""
        if on is not self.ducked:
            self.ducked = on
            self._outbox.add(Duck(on))

    def seconds_heard(self, now: float) -> float:
        """Since the start; of the answer that sounds now by the clock, not by the device."""
        seconds = self.frames_heard / WIRE_RATE
        if self.live and self._sounds_since is not None:
            seconds += min(now - self._sounds_since, self.live.frames_received / WIRE_RATE)
        return seconds
