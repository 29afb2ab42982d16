"""The daemon of the soak: `python -m tests.soak.sabotage NAME --finger ...`.

With a NAME but `none` one of its promises is broken, and the soak must turn red. With any name it
has the faults that only the inside can have: a signal lets each happen, those of the container's
tests (`inject`) and the lights'.
"""

from __future__ import annotations

import signal
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.bench.sabotage import no_replay
from tests.systemd.inject import sitecustomize as inject
from voiced import app
from voiced.core import link as core_link
from voiced.edge import capture, lights, link, service, store
from voiced.edge.pcm import DeviceError
from voiced.sim import board

# --- faults from within --------------------------------------------------------------------

LIGHTS_FAIL_S = 3.0


def fail_the_lights() -> None:
    """For some seconds the pins take nothing."""
    step, over = lights.Lights._step, time.monotonic() + LIGHTS_FAIL_S

    def fail(self: Any, pattern: Any, index: int) -> None:
        if time.monotonic() < over:
            raise DeviceError("lights-lost", "the pins take nothing")
        step(self, pattern, index)

    lights.Lights._step = fail  # type: ignore[method-assign]


LIGHTS_SIGNAL = signal.SIGRTMIN + 1 + len(inject.SABOTAGE)


def signal_of(name: str) -> int:
    """What lets the container's sabotage of this name happen."""
    names = [each.__name__ for each in inject.SABOTAGE]
    return int(signal.SIGRTMIN) + 1 + names.index(name)


# --- broken promises -------------------------------------------------------------------------


def never_reconnects() -> None:
    """A link that was lost is not dialled again."""
    lost = core_link.Link.lost
    want = core_link.Link.want

    def lose(self: Any, *args: Any, **more: Any) -> None:
        lost(self, *args, **more)
        self.given_up = True

    def want_once(self: Any, now: float) -> bool:
        return not hasattr(self, "given_up") and want(self, now)

    core_link.Link.lost = lose  # type: ignore[method-assign]
    core_link.Link.want = want_once  # type: ignore[method-assign]
    core_link.Link.tick = lambda self, now: False  # type: ignore[method-assign]


def watchdog_only_pings() -> None:
    """The watchdog is told that all is well, whatever is."""
    service.Service.stuck = service.Service.alive  # type: ignore[method-assign]
    always = property(lambda self: time.monotonic(), lambda self, at: None)
    capture.Capture.stepped_at = always  # type: ignore[assignment]
    capture.Capture.has_died = property(lambda self: False)  # type: ignore[assignment]


STALE_FRAMES = 10


def stale_after_reconnect() -> None:
    """What an old socket had last in its queue is sent on the new one, behind its first audio."""
    queue = link._Socket.queue
    sent: dict[int, deque[tuple[bytes, int]]] = {}

    def keep(self: Any, text: bytes, audio_frames: int) -> None:
        queue(self, text, audio_frames)
        first = self.serial not in sent
        if not audio_frames:
            return
        ours = sent.setdefault(self.serial, deque(maxlen=STALE_FRAMES))
        ours.append((text, audio_frames))
        if first:
            for old in sent.get(self.serial - 1, ()):
                queue(self, *old)

    link._Socket.queue = keep  # type: ignore[method-assign]


def mute_forgotten() -> None:
    """The choice to be muted is not written down."""
    store.Store.save_muted = lambda self, muted: None  # type: ignore[method-assign]


LEAK_BYTES = 20_000  # for each event, of which there are some 60 a second while somebody talks
_leaked: list[bytes] = []


def memory_leak() -> None:
    """Something of every event is kept."""
    handle = app.App._handle

    def leak(self: Any, event: Any) -> None:
        _leaked.append(bytes([len(_leaked) % 255 + 1]) * LEAK_BYTES)
        handle(self, event)

    app.App._handle = leak  # type: ignore[method-assign]


def deaf_after_replug() -> None:
    """A microphone that is back is not read: its thread has ended, and looks alive."""
    watchdog_only_pings()
    tell_back = capture.Capture._tell_back

    def deaf(self: Any) -> None:
        again = self._fault is not None
        tell_back(self)
        if again:
            raise SystemExit

    capture.Capture._tell_back = deaf  # type: ignore[method-assign]


@dataclass(frozen=True)
class Sabotage:
    """`apply` breaks a promise in this process; then the row `noticed_by` must turn red, in a run
    of nothing but `scenes`."""

    apply: Callable[[], None]
    noticed_by: str
    scenes: tuple[str, ...]


SABOTAGES = {
    "never-reconnects": Sabotage(never_reconnects, "TCP reset", ("TCP reset",)),
    "watchdog-only-pings": Sabotage(
        watchdog_only_pings, "the capture thread ends", ("the capture thread ends",)
    ),
    "no-replay": Sabotage(no_replay, "words lost or doubled", ("reset in the words",)),
    "stale-after-reconnect": Sabotage(
        stale_after_reconnect, "words lost or doubled", ("reset in the words",)
    ),
    "mute-forgotten": Sabotage(mute_forgotten, "killed while muted", ("killed while muted",)),
    "memory-leak": Sabotage(memory_leak, "memory grown", ("held turn", "tapped turn") * 4),
    "deaf-after-replug": Sabotage(
        deaf_after_replug, "microphone unplugged", ("microphone unplugged",)
    ),
}

if __name__ == "__main__":
    name = sys.argv.pop(1)
    if name != "none":
        SABOTAGES[name].apply()
    signal.signal(LIGHTS_SIGNAL, lambda *_: fail_the_lights())
    sys.exit(board.main())
