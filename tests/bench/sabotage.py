"""The daemon with one promise broken: `python -m tests.bench.sabotage NAME --finger ...`.

A measurement that can't fail measures nothing: with each of these the bench must turn red.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from voiced.core import conversation, microphone, uplink
from voiced.core.barge_in import Sign
from voiced.edge import echo, playback
from voiced.edge.playback import Playback
from voiced.sim import board


def no_drop() -> None:
    """A flush forgets the queue, but lets the device play out what it holds."""
    flush = Playback.flush

    def keep_playing(self: Any, epoch: int, cause_at: float) -> Any:
        pcm, self._pcm = self._pcm, _Undroppable(self._pcm)
        try:
            return flush(self, epoch, cause_at)
        finally:
            self._pcm = pcm

    Playback.flush = keep_playing  # type: ignore[method-assign]


class _Undroppable:
    def __init__(self, pcm: Any) -> None:
        self._pcm = pcm

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pcm, name)

    def drop(self) -> int:
        return 0


def write_first() -> None:
    """The owner writes what it has in hand before it honours a flush."""
    flush = Playback.flush

    def write_then_flush(self: Any, epoch: int, cause_at: float) -> Any:
        hand = self._ready[: self._step].copy()
        flushed = flush(self, epoch, cause_at)
        if self._pcm and len(hand):
            self._pcm.write(hand.tobytes())
        return flushed

    Playback.flush = write_then_flush  # type: ignore[method-assign]


def wrong_playhead() -> None:
    """What was heard is taken to be what was written."""
    Playback._pending = lambda self: 0  # type: ignore[method-assign]


def gate_open() -> None:
    """The gate lets everything through."""
    push = microphone.Gate.push

    def always_open(self: Any, block: Any) -> Any:
        reading = push(self, block)
        return type(reading)(**{**_fields(reading), "open": True, "speech": True})

    microphone.Gate.push = always_open  # type: ignore[method-assign]


def _fields(reading: Any) -> dict[str, Any]:
    return {name: getattr(reading, name) for name in reading.__slots__}


def no_preroll() -> None:
    """Nothing from before the press is ever taken."""
    begin = uplink.Uplink.begin

    def begin_now(self: Any, earliest: float, **more: Any) -> None:
        begin(self, max(earliest, self._outbox.now), **more)

    uplink.Uplink.begin = begin_now  # type: ignore[method-assign]
    since = microphone.Microphone.since

    def since_press(self: Any, earliest: float) -> Any:
        return since(self, earliest + 0.3)

    microphone.Microphone.since = since_press  # type: ignore[method-assign]


def no_replay() -> None:
    """What was sent on a link that is lost counts as sent."""
    uplink.Utterance.rewind = lambda self: None  # type: ignore[method-assign]


def pay_for_nothing() -> None:
    """A held button is a turn, whatever was said."""
    microphone.Microphone.faint = property(lambda self: True)  # type: ignore[assignment]


def short_silence() -> None:
    """The gate closes after half of the silence that ends a turn."""
    begin = microphone.Gate.__init__

    def hasty(self: Any, *, hangover_ms: int, **more: Any) -> None:
        begin(self, hangover_ms=hangover_ms // 2, **more)

    microphone.Gate.__init__ = hasty  # type: ignore[method-assign]


def no_zeros() -> None:
    """The server's VAD is never helped to its silence."""
    uplink.Uplink.pad = lambda self: None  # type: ignore[method-assign]


def no_canceller() -> None:
    """The canceller lets everything through."""
    echo.Canceller.process = lambda self, samples, played: samples  # type: ignore[method-assign]


def deaf_over_answer() -> None:
    """Nobody is ever heard over an answer."""
    microphone.BargeIn.push = lambda self, *_, **__: Sign.NONE  # type: ignore[method-assign]


def late_start() -> None:
    """An answer waits for more of it than is needed."""
    playback.PREBUFFER_S = playback.PREBUFFER_WAIT_S = 0.6


def spin() -> None:
    """Every block of the microphone wakes everybody up, whether somebody is to be heard or not."""
    conversation.Conversation.listens = property(lambda self: True)  # type: ignore[assignment]


@dataclass(frozen=True)
class Sabotage:
    """`apply` breaks a promise in this process; the scenarios of `noticed_by` must turn red."""

    apply: Callable[[], None]
    noticed_by: str


SABOTAGES = {
    "no-drop": Sabotage(no_drop, "silence"),
    "write-first": Sabotage(write_first, "silence"),
    "wrong-playhead": Sabotage(wrong_playhead, "silence"),
    "no-canceller": Sabotage(no_canceller, "speech-over"),
    "deaf-over-answer": Sabotage(deaf_over_answer, "speech-over"),
    "no-preroll": Sabotage(no_preroll, "words"),
    "no-replay": Sabotage(no_replay, "words"),
    "pay-for-nothing": Sabotage(pay_for_nothing, "words"),
    "gate-open": Sabotage(gate_open, "ends"),
    "short-silence": Sabotage(short_silence, "ends"),
    "no-zeros": Sabotage(no_zeros, "ends"),
    "late-start": Sabotage(late_start, "answers"),
    "spin": Sabotage(spin, "cost"),
}

if __name__ == "__main__":
    name = sys.argv.pop(1)
    if name != "none":
        SABOTAGES[name].apply()
    sys.exit(board.main())
