"""What a day costs the memory card, and the journal: in simulated time, with the store that writes
for it. Between two turns nothing is heard, for a day of the microphone takes an hour to simulate.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.bench.table import Row
from tests.core.world import World, voice
from voiced.config import Config, Memory, Realtime, Turn
from voiced.core.turn import TurnState
from voiced.edge.store import Store
from voiced.events import Effect, Event, KeepConversation, Note, SetMuted
from voiced.sim.realtime_session import Script

TURNS = 200
WAKING_S, DAY_S = 16 * 3_600.0, 24 * 3_600.0
READY_S = 3.5
"""The gate learns the room in 3 s."""

KEPT_MB = 0.032
"""The most that a conversation takes."""

ASKED = "could you tell me what the weather is going to be like tomorrow afternoon"
ANSWERED = (
    "Tomorrow afternoon it will be mostly cloudy with a high of eighteen degrees, a light wind "
    "from the west and a small chance of rain towards the evening."
)
"""Ten seconds of speech; what is simulated is a second, with these words."""


class Day(World):
    """A world whose effects reach a disk, and which may be left alone for hours."""

    def __init__(self, config: Config, store: Store) -> None:
        self.journal_lines = self.journal_bytes = 0
        self._asleep = False
        super().__init__(config, Script(answer=voice(1.0), delta_ms=1_000, user_text=ASKED))
        self.filter = self._in_words
        self._turns = 0
        handle = self.core.handle

        def kept(event: Event) -> list[Effect]:
            effects = handle(event)
            for effect in effects:
                if isinstance(effect, KeepConversation):
                    store.save_conversation(effect.text)
                elif isinstance(effect, SetMuted):
                    store.save_muted(effect.muted)
                elif isinstance(effect, Note) and effect.level >= logging.INFO:
                    self.journal_lines += 1
                    self.journal_bytes += len(effect.text.encode()) + 1
            return effects

        self.core.handle = kept  # type: ignore[method-assign]

    def turn(self) -> None:
        """A tap, a question, and all of the answer, which is another each time."""
        self._turns += 1
        self.run(READY_S)
        self.tap()
        self.say(voice(0.6), self.now + 0.3)
        self.until_state(TurnState.SPEAKING)
        self.until_state(TurnState.IDLE)
        for seen in (self.sent, self.received, self.notes):
            seen.clear()

    def sleep_until(self, when: float) -> None:
        """Time passes, and nothing is heard."""
        self._asleep = True
        self.run(when - self.now)
        self._asleep = False
        self.at(self.now, self._hear)

    def _in_words(self, event: dict[str, Any]) -> dict[str, Any]:
        is_words = event["type"] == "response.output_audio_transcript.delta"
        return {**event, "delta": f"{self._turns}. {ANSWERED}"} if is_words else event

    def _hear(self) -> None:
        if not self._asleep:
            super()._hear()


def _a_day(turns: int, *, kept: bool) -> tuple[Store, Day]:
    """What was written in it."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "state")
        store.load_muted()
        config = Config(
            realtime=Realtime(transcription="gpt-4o-transcribe"),
            memory=Memory(kept=kept),
            turn=Turn(follow_up_s=0),
        )
        if not kept:
            store.save_conversation(None)  # as at each start
        day = Day(config, store)
        began = day.now
        for number in range(turns):
            day.sleep_until(began + number * WAKING_S / turns)
            day.turn()
        day.sleep_until(began + DAY_S)
        return store, day


def rows() -> Iterator[Row]:
    """Nothing is written for who does not ask for it; who does pays one small file a turn."""
    idle, silent = _a_day(0, kept=False)
    yield Row("writes of state, an idle day", [idle.writes], (0, None), "")
    yield Row("lines in the journal, an idle day", [silent.journal_lines], (0, None), "")
    used, day = _a_day(TURNS, kept=False)
    yield Row(f"writes of state, a day of {TURNS} turns", [used.writes], (0, None), "")
    yield Row("lines in the journal, a turn", [day.journal_lines / TURNS], (20, None), "")
    yield Row("bytes of them, a turn", [day.journal_bytes / TURNS], (1_500, None), "B")
    kept, _ = _a_day(TURNS, kept=True)
    yield Row("the same day with memory.kept: writes", [kept.writes], (2 * TURNS, None), "")
    yield Row("the same: written", [kept.written_bytes / 1e6], (TURNS * KEPT_MB, None), "MB")
