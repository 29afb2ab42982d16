"""The daemon of the soak: `python -m tests.soak.sabotage NAME --finger ...`.

With a NAME but `none` one of its promises is broken, and the soak must turn red. With any name it
has the faults that only the inside can have: a signal lets each happen, those of the container's
tests (`inject`) and `WITHIN`'s own; and what takes minutes takes seconds (`hurry`).
"""

from __future__ import annotations

import signal
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import alsaaudio

from tests.bench.sabotage import no_replay
from tests.systemd.inject import sitecustomize as inject
from voiced import app
from voiced.core import channels, continuity, health
from voiced.core import link as core_link
from voiced.core import session as core_session
from voiced.edge import capture, lights, link, pcm, service, store
from voiced.edge.pcm import DeviceError
from voiced.sim import board

# --- faults from within --------------------------------------------------------------------

_step = lights.Lights._step
_read = inject._Card.read
_SILENT_S: int = channels.SILENT_S


def fail_the_lights() -> None:
    """The pins take nothing, until they are mended."""

    def fail(self: Any, pattern: Any, index: int) -> None:
        raise DeviceError("lights-lost", "the pins take nothing")

    lights.Lights._step = fail  # type: ignore[method-assign]


def mend_the_lights() -> None:
    """They take what they are given."""
    lights.Lights._step = _step  # type: ignore[method-assign]


def _gone(_card: object) -> tuple[int, bytes]:
    raise alsaaudio.ALSAAudioError("No such device")


def hang_the_capture_read() -> None:
    """As the container's, also after there was a good card again."""
    inject._Card.read = _read  # type: ignore[method-assign]
    inject.hang_the_capture_read()


def halve_the_cards_rate() -> None:
    """As the container's, until there is a good card again."""
    inject._Card.read = _read  # type: ignore[method-assign]
    inject.halve_the_cards_rate()


def silence_the_card() -> None:
    """As the container's, and it takes some seconds to be sure of it, not a minute."""
    inject._Card.read = _read  # type: ignore[method-assign]
    channels.SILENT_S = channels.DEAD_S  # type: ignore[misc]
    inject.silence_the_card()


def hold_the_card() -> None:
    """The microphone is lost, and when it is back another program has it: what ALSA says of a card,
    and the sound servers of the rig never say."""

    def busy(*_: object) -> None:
        raise DeviceError("microphone-busy", "Device or resource busy")

    inject._the("Capture")._open_pcm = busy
    inject._raise_in("capture", alsaaudio.ALSAAudioError)


def give_a_good_card() -> None:
    """A microphone as the rig has it; what there was before is gone."""
    inject._Card.read = _gone  # type: ignore[method-assign, assignment]
    inject._the("Capture")._open_pcm = pcm.open_capture
    channels.SILENT_S = _SILENT_S  # type: ignore[misc]


HOARD_BYTES = 200 * 2**20
"""Beside the 30 MB of its own, over four fifths of what the unit allows."""
_hoard: list[bytes] = []


def hoard_memory() -> None:
    """The process needs far too much, and is not so young that a new one would need it, too."""
    health.SETTLED_S = 0.0
    _hoard.append(b"\1" * HOARD_BYTES)


WITHIN: tuple[Callable[[], None], ...] = (
    *inject.SABOTAGE,
    fail_the_lights,
    mend_the_lights,
    hang_the_capture_read,
    halve_the_cards_rate,
    silence_the_card,
    hold_the_card,
    give_a_good_card,
    hoard_memory,
)
"""The first on SIGRTMIN+1, and so on: the container's have their handlers already."""


def signal_of(fault: Callable[[], None]) -> int:
    """What lets it happen in the daemon."""
    return int(signal.SIGRTMIN) + 1 + WITHIN.index(fault)


# --- a life in short -------------------------------------------------------------------------

SHORTEST_S, RECYCLE_SHARE = 4.0, 1 / 2
"""A session may live for some seconds, and half of them are enough for one turn to end in."""

WEIGH_S = 1.0


def hurry() -> None:
    """What takes the daemon minutes takes it seconds. The unit's limit of memory, too: there is no
    unit here."""
    core_session.SHORTEST_S = SHORTEST_S
    continuity.RECYCLE_SHARE = RECYCLE_SHARE  # type: ignore[attr-defined]
    app.WEIGH_S = WEIGH_S
    service.Service.memory = _memory  # type: ignore[method-assign, assignment]


LIMIT_MB = 256.0  # MemoryMax= of the unit


def _memory(_service: object) -> tuple[float, float]:
    _, resident, shared = Path("/proc/self/statm").read_text().split()[:3]
    return (int(resident) - int(shared)) * service.PAGE_BYTES / 2**20, LIMIT_MB


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


def no_recycle() -> None:
    """A session is left when the server ends it, and not before."""
    continuity.RECYCLE_SHARE = 2.0  # type: ignore[attr-defined]


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
    "no-recycle": Sabotage(no_recycle, "session recycled", ("session recycled",)),
}

if __name__ == "__main__":
    name = sys.argv.pop(1)
    hurry()
    if name != "none":
        SABOTAGES[name].apply()
    for fault in WITHIN[len(inject.SABOTAGE) :]:
        signal.signal(signal_of(fault), lambda *_, fault=fault: fault())
    sys.exit(board.main())
