"""Responses: which one plays, which are asked for, which are dead, and what is sent about them."""

from __future__ import annotations

from dataclasses import dataclass, field

from voiced.core.playhead import Playhead
from voiced.core.realtime import AudioDelta
from voiced.events import WIRE_RATE, Samples

LONGEST_ANSWER_S = 600
"""10 min, 29 MB: the API's longest answers (4,096 audio tokens of 50 ms) are 3.4 min. An answer
that would exceed it is ended as if the user had interrupted it there."""

MOST_DELTAS = 60_000
"""10 ms each in the longest answer; servers send 50 to 400. Each costs 100 bytes to account for,
however little sound is in it."""

MOST_PARTS = 100
"""Answers have one, or a few around their function calls."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of one audio part, in playing order."""

    item_id: str
    content_index: int
    samples: Samples


@dataclass(slots=True)
class _Part:
    item_id: str
    content_index: int
    waiting: list[Samples] = field(default_factory=list)
    done: bool = False


class Answer:
    """The one response that may be played.

    Items of a response may stream side by side, but are heard one after the other: a part is
    held back until all parts before it are done.
    """

    def __init__(self, response_id: str) -> None:
        self.response_id = response_id
        self.playhead = Playhead()
        self.frames_received = 0
        self._deltas = 0
        self.complete = False
        self.orphaned = False
        """Its session is gone: nobody is there to be told what was heard of it."""
        self.torn = False
        """It was not complete then: the rest of it is lost."""
        self._parts: dict[tuple[int, int], _Part] = {}

    def __repr__(self) -> str:
        return f"<Answer {self.response_id} {self.frames_received} frames>"

    def add(self, delta: AudioDelta) -> list[Piece]:
        """Take audio; what can be played now, in order. OverflowError beyond the bounds."""
        if self.frames_received + len(delta.samples) > LONGEST_ANSWER_S * WIRE_RATE:
            raise OverflowError(f"an answer longer than {LONGEST_ANSWER_S} s")
        place = (delta.output_index, delta.content_index)
        if place not in self._parts and len(self._parts) == MOST_PARTS:
            raise OverflowError(f"an answer of more than {MOST_PARTS} parts")
        if self._deltas == MOST_DELTAS:
            raise OverflowError(f"an answer of more than {MOST_DELTAS} pieces")
        self._deltas += 1
        self.frames_received += len(delta.samples)
        part = self._parts.setdefault(place, _Part(delta.item_id, delta.content_index))
        part.waiting.append(delta.samples)
        return self._release()

    def part_done(self, output_index: int, content_index: int) -> list[Piece]:
        """The server has sent all of this part."""
        part = self._parts.get((output_index, content_index))
        if part is None or part.done:
            return []
        part.done = True
        self.playhead.finish(part.item_id, part.content_index)
        return self._release()

    def finish(self) -> list[Piece]:
        """The response is done, however it ended: nothing more comes."""
        self.complete = True
        pieces: list[Piece] = []
        for place in sorted(self._parts):
            pieces += self.part_done(*place)
        return pieces

    def _release(self) -> list[Piece]:
        pieces: list[Piece] = []
        for place in sorted(self._parts):
            part = self._parts[place]
            for samples in part.waiting:
                self.playhead.queue(part.item_id, part.content_index, len(samples))
                pieces.append(Piece(part.item_id, part.content_index, samples))
            part.waiting.clear()
            if not part.done:
                break
        return pieces

    @property
    def items(self) -> list[str]:
        """All items of which audio came, in playing order."""
        return list(dict.fromkeys(self._parts[place].item_id for place in sorted(self._parts)))


class Responses:
    """Our book of the server's responses: the single owner of response.create and of cancel."""

    def __init__(self) -> None:
        self.active: str | None = None
        self.live: Answer | None = None
        self.wanted = False  # a response.create waits for the active response to end
        self._expected = 0  # asked for, not yet created
        self._doomed = 0  # of those, taken back before they were created
        self._deletes: dict[str, list[str]] = {}
        self._cancelled = ""  # the newest of those we cancelled

    def expect(self) -> None:
        """One more response will be created: we asked, or the server does after its commit."""
        self._expected += 1

    def disappoint(self) -> None:
        """One of the expected will not come: the server said so."""
        self._expected = max(0, self._expected - 1)
        self._doomed = min(self._doomed, self._expected)

    def take_back(self) -> Answer | None:
        """Nothing asked for so far may be heard. Returns the answer that was live, if any."""
        self._doomed = self._expected
        self.wanted = False
        live, self.live = self.live, None
        return live

    @property
    def has_doomed(self) -> bool:
        """Something taken back may still be created."""
        return self._doomed > 0

    def give_up(self) -> None:
        """What was taken back will not be created any more."""
        self._expected -= self._doomed
        self._doomed = 0

    def created(self, response_id: str, *, welcome: bool) -> bool:
        """The server began a response. True if it is the one to play; else cancel it."""
        self.active = response_id
        was_expected = self._expected > 0
        self._expected = max(0, self._expected - 1)
        if self._doomed:
            self._doomed -= 1
            return False
        if not was_expected or not welcome or self.live is not None:
            return False
        self.live = Answer(response_id)
        self.wanted = False
        return True

    def is_live(self, response_id: str) -> bool:
        """True if audio of this response may be played."""
        return self.live is not None and self.live.response_id == response_id

    def done(self, response_id: str) -> list[str]:
        """The server ended a response; returns the items to delete now."""
        if self.active == response_id:
            self.active = None
        return self._deletes.pop(response_id, [])

    def delete_after(self, response_id: str, items: list[str]) -> None:
        """It is cancelled. Delete these when it is done: before, the server may still write to
        them."""
        self._cancelled = response_id
        if items:
            self._deletes[response_id] = items

    def overdue_deletes(self) -> list[str]:
        """All that still wait, for when the done does not come. What was cancelled is over then."""
        if self.active == self._cancelled:
            self.active = None
        items = [item for waiting in self._deletes.values() for item in waiting]
        self._deletes.clear()
        return items
