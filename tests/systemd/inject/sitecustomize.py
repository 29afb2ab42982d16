"""Sabotage from within: Python loads this at its start, and a signal lets it happen.

For the daemon in a container; what it breaks is the daemon's own, so it knows some of its names.
"""

from __future__ import annotations

import ctypes
import gc
import signal
import threading
import time
from collections.abc import Callable

FOR_EVER_S = 3600


def wedge_the_loop() -> None:
    """The event loop's thread waits; all others go on."""
    time.sleep(FOR_EVER_S)


def end_the_capture_thread() -> None:
    """It ends between two reads, with nobody told."""
    (capture,) = (thread for thread in threading.enumerate() if thread.name == "capture")
    assert capture.ident
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(capture.ident), ctypes.py_object(SystemExit)
    )


def hang_the_playback_thread() -> None:
    """From its next step on it hangs as in a device, the lock held."""
    (playback,) = (each for each in gc.get_objects() if type(each).__name__ == "Playback")
    playback.step = lambda: time.sleep(FOR_EVER_S)


def hold_the_interpreter() -> None:
    """No thread runs Python any more: a library that waits and does not let go of it."""
    ctypes.PyDLL(None).sleep(FOR_EVER_S)


SABOTAGE: tuple[Callable[[], None], ...] = (
    wedge_the_loop,
    end_the_capture_thread,
    hang_the_playback_thread,
    hold_the_interpreter,
)
"""The first on SIGRTMIN+1, and so on."""

for _number, _sabotage in enumerate(SABOTAGE, signal.SIGRTMIN + 1):
    signal.signal(_number, lambda *_, sabotage=_sabotage: sabotage())
