"""One conversation over many sessions: when to leave an old one, what to tell a new one, and when
to forget."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from voiced.config import Config
from voiced.core.memory import Memory
from voiced.core.outbox import Outbox
from voiced.core.session import RECYCLE_SHARE, Session, lifetime_s
from voiced.core.timers import Timers
from voiced.events import KeepConversation

SUMMARY_S = 10.0
"""A summary is awaited this long; a text of 200 tokens takes 2-4 s. Without one the old session is
left all the same, and the new one told what was heard."""

SUMMARY_TOKENS = 400

SUMMARY = (
    "Do not answer the user now. Write for yourself a summary of this conversation, in the "
    "language it is in and in at most 150 words: who the user is, what he wants, what was said, "
    "what is still open. Only the summary."
)


class Continuity:
    """Owns the memory and its deadlines `recycle`, `aside` and `forget`."""

    def __init__(self, config: Config, outbox: Outbox, timers: Timers) -> None:
        self.config = config
        self.memory = Memory()
        self._outbox, self._timers = outbox, timers
        self._unkept = False

    def __repr__(self) -> str:
        return f"<Continuity {self.memory!r}>"

    # --- a session -----------------------------------------------------------------------

    def began(self, session: Session, expires_at: float | None) -> None:
        """The server created this session."""
        life_s = lifetime_s(expires_at, session.server_time)
        self._timers.set("recycle", self._outbox.now + RECYCLE_SHARE * life_s)

    def grown_old(self, session: Session) -> None:
        """It is near the end of its life."""
        session.old = True

    def tell(self, session: Session) -> None:
        """Tell a session what was said before it, once, ahead of the first audio."""
        if session.told:
            return
        session.told = True
        if text := self.memory.recall():
            self._outbox.send(self._outbox.encode.tell(text))
            self._outbox.note("told", "the session was told what was said before", logging.INFO)

    def may_leave(self, session: Session) -> bool:
        """Whether all is known that the next session has to be told; asks for it, if not."""
        if session.aside is None and self.memory and self._remembers:
            session.aside = True
            self.memory.ask()
            self._outbox.send(self._outbox.encode.ask_aside(SUMMARY, SUMMARY_TOKENS))
            self._timers.set("aside", self._outbox.now + SUMMARY_S)
        return not session.aside

    def summarised(self, session: Session, text: str) -> None:
        """The session has summarised itself."""
        if session.aside:
            self.memory.summarise(text)
            self.aside_over(session)

    def aside_over(self, session: Session) -> None:
        """Nothing more comes of the summary."""
        session.aside = False
        self._timers.cancel("aside")

    def ended(self) -> None:
        """The session is gone."""
        self._timers.cancel("recycle", "aside")

    # --- remembering ---------------------------------------------------------------------

    @property
    def _remembers(self) -> bool:
        return self.config.memory.minutes > 0

    def asked(self, item_id: str) -> None:
        """As the memory's; these four also begin the time after which all is forgotten anew."""
        if self._remembers:
            self.memory.asked(item_id)
            self.touch()

    def words(self, item_id: str, text: str) -> None:
        self.memory.words(item_id, text)
        self.touch()

    def answers(self, item_id: str, delta: str) -> None:
        if self._remembers:
            self.memory.answers(item_id, delta)
            self.touch()

    def cut(self, heard: Mapping[str, float]) -> None:
        self.memory.cut(heard)
        self.touch()

    def torn(self) -> None:
        """As the memory's."""
        self.memory.torn()

    def touch(self) -> None:
        """The talk goes on."""
        self._unkept = True
        if self.memory:
            self._forget_in(60 * self.config.memory.minutes)

    def forget(self) -> None:
        """Forget all that was said, here and on the disk."""
        self._timers.cancel("forget")
        self.memory.forget()
        self._outbox.add(KeepConversation(None))
        self._unkept = False

    def reconfigure(self, config: Config) -> None:
        """Other rules from now on."""
        before, self.config = self.config.memory, config
        if not self._remembers:
            self.forget()
        elif before.kept and not config.memory.kept:
            self._outbox.add(KeepConversation(None))
        elif before != config.memory:
            self.touch()

    # --- over a restart ------------------------------------------------------------------

    def keep(self) -> None:
        """Have it written down, if it is to be and has changed."""
        if text := self.unkept():
            self._unkept = False
            self._outbox.add(KeepConversation(text))

    def unkept(self) -> bytes | None:
        """What is to be written down and is not, at a stop in mid-conversation."""
        wanted = self.config.memory.kept and self._unkept and self.memory
        return self.memory.dump() if wanted else None

    def load(self, text: bytes, age_s: float) -> None:
        """Go on with what was kept `age_s` ago, unless that is too long. Raises ValueError if it is
        not what `keep` gave."""
        left_s = 60 * self.config.memory.minutes - max(0.0, age_s)
        if left_s <= 0:
            self.forget()
            return
        self.memory.load(text)
        self._forget_in(left_s)

    def _forget_in(self, seconds: float) -> None:
        self._timers.set("forget", self._outbox.now + seconds)
