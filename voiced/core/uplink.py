"""From what is said to the server: who ends the turn, what may be sent when, and its end.

`pump` is the one place where audio leaves, after all its conditions: a session that accepted our
settings, a confirmed mode, a light that is known to be lit, and no mute.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from voiced.config import Config
from voiced.core import realtime
from voiced.core.outbox import Outbox
from voiced.core.session import Asked, Session
from voiced.core.timers import Timers
from voiced.core.utterance import Utterance
from voiced.events import BLOCK_MS, WIRE_RATE, Samples, Send

CONFIRM_S = 2.0
"""A session.update is answered within a round trip (0.1-0.3 s seen). Without
one the turn is committed by us: nobody shall wait for a formality."""

UNHEARD_S = 2.0
"""All audio is out and the server has still not ended the turn: it is a second or more late."""

SILENT_S = 5.0
"""A server answers within a round trip; the kernel finds a dead line within 5 s of the words."""

GRACE_S = 0.04
"""After the gate closed, the server's own end of speech is given this long before zeros help."""

UNDECIDED_S = 6.0
"""A server that ends turns by what it understands waits for 4 s of silence at most (its medium
eagerness); the gate closed `turn.silence_ms` after the speech. The rest is a slow network's."""

TAIL_S = 0.1
"""After a release, the last block is awaited this long: one period and a card's own delay."""

STALE_S = 30.0
"""What was said longer ago is not sent any more when the link is back: the user is told."""

MINIMUM_COMMIT_FRAMES = WIRE_RATE // 10
"""The server refuses to commit less than 100 ms."""

CHUNK_FRAMES = WIRE_RATE // 5
"""200 ms: the most audio in one append, so that a backlog does not hold up what follows it."""

IN_FLIGHT_FRAMES = WIRE_RATE
"""1 s: the most that is handed to the socket and not yet taken by it. The rest waits in the
utterance, where mute can still wipe it and a new session can send it again."""

STALLED_S = 5.0
"""A socket that took audio takes more within this time: as long as the kernel waits for a peer that
acknowledges nothing. A line that is merely slow takes some all the time and is not given up: the
next one would be as slow, and get all of it again."""


@dataclass(slots=True)
class Turn:
    """What belongs to one turn and ends with it."""

    earliest: float
    """Nothing captured before this may be sent."""
    utterance: Utterance
    by_press: bool = False
    held: bool | None = None
    """None: the finger has not told yet."""
    collecting: bool = False
    collected_until: float = float("-inf")
    released_at: float | None = None
    faint: bool = False
    """Somebody may have said something; else a held turn is not worth its price."""
    by_voice: bool = False
    """It began by speaking over an answer."""
    cleared: bool = False
    """The server's buffer, before our first append."""
    appended: bool = False
    padded: bool = False
    """The zeros that help the server's VAD are in the utterance."""
    ending: bool = False
    """All is collected; what remains is to close the turn at the server."""
    ended: bool = False
    """Committed, by us or by the server."""
    server_heard: bool = False
    spent: bool = False
    """Its audio is never sent again: the server answers it, or mute wiped it."""
    replay: bool = False
    """The session that had it is gone: it goes out whole, as one commit."""
    forced: bool = False
    """The server heard speech but no end of it: we commit."""
    retries: int = 0
    """How often its answer failed and was asked for again."""
    unconfirmed: bool = False
    """The server did not take the mode: we commit, whatever it is in."""


class Uplink:
    """Owns the session, the current turn's audio and the deadlines of its end."""

    def __init__(self, config: Config, outbox: Outbox, timers: Timers) -> None:
        self.config = config
        self.session = Session()
        self.turn = Turn(0.0, Utterance(config.turn.longest_s))
        self.frames_said = 0
        self.frames_sent = 0
        self._outbox = outbox
        self._timers = timers

    # --- the turn's audio ----------------------------------------------------------------

    def begin(self, earliest: float, *, by_press: bool = False, held: bool | None = None) -> None:
        """A new turn; the old one's audio is gone."""
        utterance = Utterance(self.config.turn.longest_s)
        self.turn = Turn(earliest, utterance, by_press=by_press, held=held)

    def collect(self, blocks: list[tuple[Samples, float]]) -> bool:
        """Take (samples, captured at) not taken before. False when the turn is as long as it may
        be: what does not fit is not taken."""
        turn = self.turn
        for samples, at in blocks:
            if at <= turn.collected_until:
                continue
            if not turn.utterance.extend(samples):
                return False
            turn.collected_until = at
            self.frames_said += len(samples)
        return True

    def pad(self) -> None:
        """The silence that the server's VAD must receive to end the turn, all at once."""
        if not self.turn.padded:
            self.turn.padded = True
            self.turn.utterance.pad(WIRE_RATE * self.config.turn.silence_ms // 1000)

    def resume(self) -> None:
        """Somebody speaks, or speaks on."""
        self._timers.cancel("grace", "unheard", "silent", "stale", "undecided")
        self.turn.collecting = True
        self.turn.padded = False

    def await_end(self) -> None:
        """The gate closed: the silence is out, too. If the server does not see it, zeros help; one
        that goes by the meaning hears the room until it has made up its mind."""
        self.turn.collecting = by_meaning = self.by_meaning
        self._timers.set("stale", self._outbox.now + STALE_S)
        if by_meaning:
            self._timers.set("undecided", self._outbox.now + UNDECIDED_S)
        else:
            self._timers.set("grace", self._outbox.now + GRACE_S)

    def go_on(self) -> None:
        """The turn was closed at the server, and is not over."""
        turn = self.turn
        turn.ended = turn.ending = turn.spent = False
        turn.server_heard = True
        if not turn.collecting:
            self.await_end()

    def end(self) -> bool:
        """The turn is over. True if all of it is here; else its last blocks are awaited."""
        turn = self.turn
        self._timers.cancel("grace", "unheard", "gateless", "undecided")
        self._timers.set("stale", self._outbox.now + STALE_S)
        turn.forced |= self.by_meaning  # seconds of silence would have to convince it
        if turn.released_at is not None:
            self._timers.set("tail", self._outbox.now + TAIL_S)
        return turn.released_at is None

    def tail_over(self) -> None:
        """The last blocks before the release are late. What was not heard may hold a word."""
        turn = self.turn
        released_at = turn.released_at or self._outbox.now
        turn.faint |= turn.collected_until < released_at - BLOCK_MS / 1000

    def end_collecting(self) -> None:
        """All of the turn is collected."""
        self.turn.collecting = False
        self.turn.ending = True
        self._timers.cancel("tail")
        if not self.by_hand:
            self.pad()

    def rewind(self) -> None:
        """The session that had the turn is gone: nothing of it counts as sent. What has pauses in
        it goes out as one commit: sent in a burst, the server's VAD would split it there."""
        turn = self.turn
        self._timers.cancel("grace", "unheard")
        pauses = self.config.gate.enabled or turn.server_heard or turn.held
        turn.replay = turn.replay or bool(pauses)
        turn.utterance.rewind()
        if turn.utterance.frames and not turn.collecting:
            self._timers.set("stale", turn.collected_until + STALE_S)
        turn.cleared = turn.appended = turn.ended = turn.padded = turn.server_heard = False

    def drop(self) -> None:
        """The turn is thrown away, at the server, too."""
        if self.turn.appended and not self.turn.ended and self.session.configured:
            self.clear()

    def clear(self) -> None:
        """The server throws away what it has of the turn, and says so."""
        self._outbox.send(self._outbox.encode.clear())
        self.turn.appended = False

    def wipe(self) -> None:
        """Mute: no sample of the turn is kept, here or in the server's buffer."""
        turn = self.turn
        turn.utterance = Utterance(self.config.turn.longest_s)
        turn.collecting = False
        turn.spent = True
        if turn.appended and self.session.configured:
            self._outbox.send(self._outbox.encode.clear())

    # --- who ends the turn ---------------------------------------------------------------

    @property
    def by_hand(self) -> bool:
        """True if this turn is ended by our commit, not by the server's VAD."""
        turn = self.turn
        ours = turn.held or turn.replay or turn.forced or turn.unconfirmed
        return bool(ours) or self.config.turn.end == "local"

    def ended_by_server(self) -> bool:
        """The server says that it has ended the turn: whether that counts. It may be late on a slow
        line, and we about to end it ourselves: then it need not be forced any more."""
        turn = self.turn
        if not turn.ended:
            turn.forced = turn.unconfirmed = False
        return not self.by_hand

    @property
    def by_meaning(self) -> bool:
        """True if the server ends this turn by what it understands. It has to hear all of it, the
        silence in the room, too."""
        wanted = self.config.turn.end == "semantic_vad" and not self.session.reduced
        return wanted and not self.by_hand

    def confirm_mode(self, *, decided: bool) -> None:
        """Make the server's turn_detection the one this turn needs; `decided`: it is known."""
        session = self.session
        if not session.created or session.asked:
            return
        settled = not decided or self.turn.unconfirmed or self._mode_is_right
        if session.configured and settled:
            return
        server_ends = not self.by_hand if decided else self.config.turn.end != "local"
        detection = realtime.turn_detection(
            self.config, server_ends=server_ends, reduced=session.reduced
        )
        if session.configured:
            update = realtime.mode_update(detection)
            self._timers.set("mode", self._outbox.now + CONFIRM_S)
        else:
            update = realtime.session_config(self.config, detection, optional=not session.reduced)
        event_id = self._outbox.send(self._outbox.encode.session_update(update))
        session.asked = Asked(event_id, server_ends)

    def mode_rejected(self, why: str) -> bool:
        """Nothing of the update was applied. A first one is tried once more without optional
        blocks; False if that was rejected as well."""
        session = self.session
        hopeless = not session.configured and session.reduced
        self.turn.unconfirmed = session.configured
        session.reject()
        self._timers.cancel("mode")
        self._outbox.note("rejected", f"session.update rejected: {why}", logging.WARNING)
        return not hopeless

    # --- sending -------------------------------------------------------------------------

    def may_send(self) -> bool:
        """The session accepted our settings and the mode of this turn."""
        session, turn = self.session, self.turn
        if not session.configured or session.asked or turn.held is None:
            return False
        return turn.unconfirmed or self._mode_is_right

    @property
    def _mode_is_right(self) -> bool:
        return self.session.server_ends == (not self.by_hand)

    def pump(self) -> bool:
        """Send what is collected, as far as the socket takes it. True if all is sent and no more
        comes, so that the turn can be closed."""
        turn, session = self.turn, self.session
        if not turn.cleared and turn.utterance.unsent_frames:
            turn.cleared = True
            self._outbox.send(self._outbox.encode.clear())
        while turn.utterance.unsent_frames and session.frames_in_flight < IN_FLIGHT_FRAMES:
            pcm = turn.utterance.take(CHUNK_FRAMES)
            text, _ = self._outbox.encode.append(pcm)
            frames = len(pcm) // 2
            self._outbox.add(Send(text, frames))
            turn.appended = True
            session.frames_in_flight += frames
            self.frames_sent += frames
        if session.frames_in_flight and "stalled" not in self._timers:
            self._timers.set("stalled", self._outbox.now + STALLED_S)
        closing = (turn.ending or turn.padded) and not turn.ended
        return closing and not turn.collecting and not turn.utterance.unsent_frames

    def taken(self, frames: int) -> None:
        """The socket has taken so much of what it was handed."""
        self.session.frames_in_flight = max(0, self.session.frames_in_flight - frames)
        self._timers.cancel("stalled")

    def close_turn(self) -> bool:
        """Close the turn at the server: commit, or wait for its VAD, which has its silence now.
        True if a response has to be asked for. ValueError if there is too little to commit."""
        turn = self.turn
        if not self.by_hand:
            if "unheard" not in self._timers:
                self._timers.set("unheard", self._outbox.now + UNHEARD_S)
            return False
        if turn.utterance.frames < MINIMUM_COMMIT_FRAMES:
            raise ValueError("less than 100 ms")
        turn.ended = True
        self._timers.cancel("stale")
        self._outbox.send(self._outbox.encode.commit())
        return True

    # --- a server that does not end it ---------------------------------------------------

    def unheard(self) -> bool:
        """The server has all of it and its silence, and did not end the turn. Did it hear no word,
        or was there nobody to hear? A link that is half open tells nothing: so we ask. True if it
        did hear: then the turn is ended by us."""
        if self.turn.server_heard:
            self.turn.forced = True
        elif "silent" not in self._timers:
            self.clear()
            self._timers.set("silent", self._outbox.now + SILENT_S)
        return self.turn.server_heard

    def undecided(self) -> bool:
        """The server should have known long ago whether that was all. True as for `unheard`."""
        if self.turn.appended:
            return self.unheard()
        # It is still being dialled: the server knows nothing yet.
        self._timers.set("undecided", self._outbox.now + UNDECIDED_S)
        return False
