"""What was said, for a session that was not there: bounded, and forgotten with time.

A session of the server ends with its connection, and with it all that was said in it. So we keep
in words what the user *heard* of the answers, what he said if somebody writes that down, and tell
the next session. A summary, asked for while the old session lasts, replaces what it covers.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import takewhile

import msgspec

LINES = 40
"""Of what was said last; the oldest makes room. A summary takes their place, so this many are
reached only in a talk that loses its link again and again."""

LINE_CHARACTERS = 1_500
"""Of one of them: two minutes of speech. What exceeds it is left out at the end."""

SUMMARY_CHARACTERS = 3_000
"""About 750 tokens, less than 10 s of speech cost."""

KEPT_BYTES = 32_000
"""On the disk. All lines at their longest exceed it in scripts of three bytes a character only."""

_CUT = " [cut off here]"
_LEFT_OUT = " ..."
_UNKNOWN = "[not known]"

_BEFORE = (
    "The connection was replaced in the middle of your conversation with this user. Go on as if "
    "nothing had happened, and do not mention it. "
)
_NOT_WRITTEN_DOWN = (
    "What the user said in it is not available; if it matters, ask. "
    "What the user has heard of you, oldest first:"
)
_WRITTEN_DOWN = "What was said, oldest first:"
_SUMMARY = "A summary of what was said so far: "


class _Line(msgspec.Struct):
    who: str
    text: str = ""
    item_id: str = ""
    cut: bool = False

    def __str__(self) -> str:
        return f"{self.who}: {self.text or _UNKNOWN}{_CUT if self.cut else ''}"


class _Kept(msgspec.Struct):
    """As it is written to the disk. The lines are `(who, text, cut)`."""

    summary: str = ""
    lines: list[tuple[str, str, bool]] = []


class Memory:
    """Feed it with what the server transcribes; `recall` is what a new session is told."""

    def __init__(self) -> None:
        self._summary = ""
        self._lines: list[_Line] = []
        self._asked: int | None = None  # a summary on its way covers so many lines

    def __repr__(self) -> str:
        return f"<Memory {len(self._lines)} lines{', a summary' if self._summary else ''}>"

    def __bool__(self) -> bool:
        """Whether there is anything to remember."""
        return bool(self._lines or self._summary)

    # --- what was said -------------------------------------------------------------------

    def asked(self, item_id: str) -> None:
        """The user has said something; its words may follow."""
        self._line("User", item_id)

    def words(self, item_id: str, text: str) -> None:
        """What the user said in it, as a transcription has it. Of an item that is forgotten or was
        never announced, nothing is kept."""
        if line := self._find(item_id):
            line.text = _shortened(text.strip(), LINE_CHARACTERS)

    def answers(self, item_id: str, delta: str) -> None:
        """The answer goes on with these words."""
        line = self._find(item_id) or self._line("You", item_id)
        line.text = _shortened(line.text + delta, LINE_CHARACTERS)

    def cut(self, heard: Mapping[str, float]) -> None:
        """The last answer was cut off. Of each of its items this share, 0 to 1, was heard; of one
        that is not named, nothing."""
        for line in self._last_answer():
            share = heard.get(line.item_id, 0.0)
            if share < 1.0:
                kept = line.text[: round(len(line.text) * share)]
                line.text = kept.rpartition(" ")[0]  # half a word was not understood
                line.cut = True
        self._lines = [line for line in self._lines if line.text or line.who == "User"]

    def torn(self) -> None:
        """The end of the last answer never came."""
        for line in self._last_answer()[-1:]:
            line.cut = True

    # --- a summary -----------------------------------------------------------------------

    def ask(self) -> None:
        """A summary of all so far has been asked for."""
        self._asked = len(self._lines)

    def summarise(self, text: str) -> None:
        """The summary that was asked for: it replaces what it covers. One that nobody asked for,
        or an empty one, changes nothing."""
        if self._asked is not None and text.strip():
            self._summary = _shortened(text.strip(), SUMMARY_CHARACTERS)
            del self._lines[: self._asked]
        self._asked = None

    # --- for the next session ------------------------------------------------------------

    def recall(self) -> str | None:
        """What a new session is told, in words for the model; None if there is nothing to tell."""
        if not self:
            return None
        said = [line for line in self._lines if line.who == "User"]
        parts = []
        if self._summary:
            parts.append(_SUMMARY + self._summary)
        if self._lines:
            known = not said or any(line.text for line in said)
            parts.append(_WRITTEN_DOWN if known else _NOT_WRITTEN_DOWN)
            parts += [str(line) for line in self._lines if known or line.who != "User"]
        return _BEFORE + "\n".join(parts)

    def forget(self) -> None:
        """Forget all of it."""
        self._summary, self._lines, self._asked = "", [], None

    # --- over a restart ------------------------------------------------------------------

    def dump(self) -> bytes:
        """As `load` takes it, at most `KEPT_BYTES`; for that, the oldest lines are left out."""
        lines = [(line.who, line.text, line.cut) for line in self._lines]
        while len(text := msgspec.json.encode(_Kept(self._summary, lines))) > KEPT_BYTES:
            del lines[0]
        return text

    def load(self, text: bytes) -> None:
        """Remember what was kept. Raises ValueError if it is not that; nothing is changed then."""
        kept = msgspec.json.decode(text, type=_Kept)
        self._summary = _shortened(kept.summary, SUMMARY_CHARACTERS)
        self._lines = [
            _Line("User" if who == "User" else "You", _shortened(said, LINE_CHARACTERS), cut=cut)
            for who, said, cut in kept.lines[-LINES:]
        ]

    def _last_answer(self) -> list[_Line]:
        lines = self._lines
        return list(takewhile(lambda line: line.who == "You", reversed(lines)))[::-1]

    def _find(self, item_id: str) -> _Line | None:
        return next((line for line in self._lines if item_id and line.item_id == item_id), None)

    def _line(self, who: str, item_id: str) -> _Line:
        line = _Line(who, item_id=item_id)
        self._lines.append(line)
        if len(self._lines) > LINES:
            del self._lines[0]
            if self._asked:
                self._asked -= 1
        return line


def _shortened(text: str, most: int) -> str:
    if len(text) <= most:
        return text
    return text[: most - len(_LEFT_OUT)].removesuffix(_LEFT_OUT) + _LEFT_OUT
