"""The daemon with one promise broken: `python -m tests.bench.sabotage NAME --finger ...`.

A measurement that can't fail measures nothing: with each of these the bench must turn red.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from voiced.core import microphone, uplink
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


SABOTAGES: dict[str, Callable[[], None]] = {
    "no-drop": no_drop,
    "write-first": write_first,
    "wrong-playhead": wrong_playhead,
    "gate-open": gate_open,
    "no-preroll": no_preroll,
}

if __name__ == "__main__":
    name = sys.argv.pop(1)
    if name != "none":
        SABOTAGES[name]()
    sys.exit(board.main())
