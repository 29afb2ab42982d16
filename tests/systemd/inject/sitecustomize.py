"""Sabotage from within: Python loads this at its start, and a signal lets it happen.

For the daemon in a container; what it breaks is the daemon's own, so it knows some of its names.
"""

from __future__ import annotations

import array
import ctypes
import gc
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

FOR_EVER_S = 3600
PERIOD_S = 0.02


def wedge_the_loop() -> None:
    """The event loop's thread waits; all others go on."""
    time.sleep(FOR_EVER_S)


def end_the_capture_thread() -> None:
    """It ends between two reads, with nobody told."""
    _raise_in("capture", SystemExit)


def hang_the_playback_thread() -> None:
    """The device takes a write and never returns, the lock held."""
    playback = _the("Playback")
    playback._write = lambda *_: time.sleep(FOR_EVER_S)
    click = sys.modules["numpy"].ones(2400, "int16")
    playback.chime(click, 100)


def hold_the_interpreter() -> None:
    """No thread runs Python any more: a library that waits and does not let go of it."""
    ctypes.PyDLL(None).sleep(FOR_EVER_S)


def spin_the_loop() -> None:
    """One event leads to itself: the loop is busy, and never comes to anything else."""
    app = _the("App")
    app._handle = app._events.append


def hang_the_capture_read() -> None:
    """The card delivers nothing, and the read waits for it."""
    _replace_the_card(_noise, share=PERIOD_S / FOR_EVER_S)


def halve_the_cards_rate() -> None:
    """The card says it runs, and delivers half of what it should."""
    _replace_the_card(_noise, share=0.5)


def silence_the_card() -> None:
    """The card delivers in time, and nothing but zeros."""
    _replace_the_card(lambda frames: bytes(2 * frames), share=1.0)


class _Card:
    """A microphone that delivers `share` of its rate."""

    def __init__(self, data: bytes, share: float) -> None:
        self._data, self._wait_s = data, PERIOD_S / share
        self._next = time.monotonic()

    def read(self) -> tuple[int, bytes]:
        self._next += self._wait_s
        time.sleep(max(0.0, self._next - time.monotonic()))
        return len(self._data) // 2, self._data

    def avail(self) -> int:
        return 0

    def drop(self) -> None:
        pass

    def close(self) -> None:
        pass


def _replace_the_card(data: Callable[[int], bytes], share: float) -> None:
    """The microphone is lost, and from now on another one, mono, is in its place."""

    def open_pcm(_device: str, rate: int, _channels: int, _format: str) -> _Card:
        return _Card(data(round(rate * PERIOD_S)), share)

    _the("Capture")._open_pcm = open_pcm
    _raise_in("capture", sys.modules["alsaaudio"].ALSAAudioError)


def _noise(frames: int) -> bytes:
    rng = random.Random(1)
    return array.array("h", [rng.randrange(-50, 50) for _ in range(frames)]).tobytes()


def _the(name: str) -> Any:
    """The one object of the class with this name."""
    (found,) = (each for each in gc.get_objects() if type(each).__name__ == name)
    return found


def _raise_in(name: str, exception: type[BaseException]) -> None:
    (thread,) = (thread for thread in threading.enumerate() if thread.name == name)
    assert thread.ident
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread.ident), ctypes.py_object(exception)
    )


SABOTAGE: tuple[Callable[[], None], ...] = (
    wedge_the_loop,
    spin_the_loop,
    hold_the_interpreter,
    end_the_capture_thread,
    hang_the_capture_read,
    hang_the_playback_thread,
    halve_the_cards_rate,
    silence_the_card,
)
"""The first on SIGRTMIN+1, and so on."""

for _number, _sabotage in enumerate(SABOTAGE, signal.SIGRTMIN + 1):
    signal.signal(_number, lambda *_, sabotage=_sabotage: sabotage())
