"""What systemd is to the daemon: it starts it, reads what it tells, kills it when it is starved,
and starts it again. And an eye on the process: its memory, threads and descriptors."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Self

from voiced.sim.board import BoardError, Finger
from voiced.sim.stand import _FOREIGN, LIGHT_PINS, START_S, Settings, StandError, Watch, toml

ROOT = Path(__file__).parents[2]

WATCHDOG_S = 10.0
"""The unit's is 30 s: so that what it proves is proven in less."""
RESTART_S = 0.5  # the unit's is 2 s
SAMPLE_S = 0.5
STOP_S = 5.0


@dataclass
class Exit:
    """One end of the daemon. `why` is what the soak did to it, or nothing: then it is a fault."""

    at: float
    code: int
    why: str


@dataclass
class Use:
    """What a process used, sample by sample."""

    rss_mb: list[float] = field(default_factory=list)
    threads: list[float] = field(default_factory=list)
    descriptors: list[float] = field(default_factory=list)


class Lights:
    """The light, as who looks at the pins sees it."""

    def __init__(self) -> None:
        self._levels = dict.fromkeys(LIGHT_PINS, 0.0)
        self._lock = threading.Lock()
        self._changes: deque[tuple[float, bool]] = deque([(0.0, False)], maxlen=20_000)

    def pin(self, pin: int, value: float | None, at: float) -> None:
        """A pin changed."""
        with self._lock:
            self._levels[pin] = value or 0.0
            self._changes.append((at, any(self._levels.values())))

    def gone(self) -> None:
        """Nobody drives the pins any more."""
        for pin in LIGHT_PINS:
            self.pin(pin, None, time.monotonic())

    def lit_within(self, start: float, end: float) -> bool:
        """Whether it was lit at any moment of that time."""
        with self._lock:
            changes = list(self._changes)
        before = [lit for at, lit in changes if at <= start][-1:]
        return any(before) or any(lit for at, lit in changes if start < at <= end)


class Life:
    """One process of the daemon, and those who watch it; also what `Watch` takes for a daemon."""

    def __init__(self, unit: Unit, popen: subprocess.Popen[bytes]) -> None:
        self.popen, self.started_at = popen, time.monotonic()
        self.control = unit.folder / "control"
        self.use = Use()
        self.ready = threading.Event()
        self.notes: list[dict[str, Any]] = []
        self._unit = unit
        self._watch: Watch | None = None
        self._finger: Finger | None = None

    @property
    def is_over(self) -> bool:
        return self.popen.poll() is not None

    def check(self) -> None:
        """Raises StandError if it has ended."""
        if self.is_over:
            raise StandError(f"the daemon ended with {self.popen.returncode}")

    @property
    def watch(self) -> Watch:
        """Its control socket. Raises StandError."""
        if self._watch is None:
            self._watch = Watch(self)  # type: ignore[arg-type]  # the two things it asks for
            self.notes = self._watch.notes
        return self._watch

    @property
    def finger(self) -> Finger:
        """Its button. Raises StandError."""
        if self._finger is None:
            try:
                self._finger = Finger(self._unit.folder / "board")
                self._finger.watch(LIGHT_PINS, self._unit.lights.pin)
            except BoardError as error:
                raise StandError(str(error)) from error
        return self._finger

    def let_go(self) -> None:
        """Hang up. Safe twice."""
        for each in (self._watch, self._finger):
            if each:
                each.close()
        self._watch = self._finger = None

    def count_threads(self) -> int:
        """How many it has now."""
        return len(os.listdir(f"/proc/{self.popen.pid}/task"))

    def sample(self) -> None:
        """Note what it uses now."""
        proc = Path(f"/proc/{self.popen.pid}")
        with contextlib.suppress(OSError, KeyError, ValueError, IndexError):
            status = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines())
            self.use.rss_mb.append(int(status["VmRSS"].split()[0]) / 1024)
            self.use.threads.append(int(status["Threads"]))
            self.use.descriptors.append(len(os.listdir(proc / "fd")))


class Unit:
    """Keeps the daemon running until it is closed. `lives` has every process there was."""

    def __init__(
        self, folder: Path, prefix: Sequence[str], env: Mapping[str, str], sabotage: str
    ) -> None:
        self.folder, self.config = folder, folder / "voiced.toml"
        self.state = folder / "state"
        self.lives: list[Life] = []
        self.exits: list[Exit] = []
        self.lights = Lights()
        self._command = [
            # A soak that is killed leaves no daemon behind.
            *(*prefix, "setpriv", "--pdeathsig", "KILL"),
            *(sys.executable, "-m", "tests.soak.sabotage", sabotage),
            *("--finger", str(folder / "board"), "--", "--config", str(self.config)),
            *("--socket", str(folder / "control"), "--state-dir", str(self.state)),
        ]
        own = {name: value for name, value in os.environ.items() if name not in _FOREIGN}
        notify = {
            "NOTIFY_SOCKET": str(folder / "notify"),
            "WATCHDOG_USEC": str(round(WATCHDOG_S * 1e6)),
        }
        self._env = {**own, **_allocator(), **env, **notify}
        self._notified = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notified.bind(str(folder / "notify"))
        self._notified.settimeout(0.1)
        self._alive_at = time.monotonic()
        self._why = ""
        self._stopping = threading.Event()
        self._changed = threading.Condition()
        self._threads = [
            threading.Thread(target=self._supervise, name="systemd", daemon=True),
            threading.Thread(target=self._read, name="notify", daemon=True),
            threading.Thread(target=self._sample, name="samples", daemon=True),
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for life in self.lives[-1:]:
            life.let_go()
            life.popen.terminate()
            try:
                life.popen.wait(STOP_S)
            except subprocess.TimeoutExpired:
                life.popen.kill()
        for thread in self._threads:
            thread.join(STOP_S)
        self._notified.close()

    def configure(self, settings: Settings) -> None:
        """Write its configuration; a reload makes it count."""
        self.config.write_text(toml(settings), "utf-8")

    @contextmanager
    def dying(self, why: str) -> Iterator[None]:
        """Ends of the daemon in here are of the soak's own doing."""
        self._why = why
        try:
            yield
        finally:
            self._why = ""

    def life(self, timeout_s: float = START_S + WATCHDOG_S) -> Life:
        """The process that is ready now. Raises StandError."""

        def found() -> Life | None:
            return next((x for x in self.lives[-1:] if x.ready.is_set() and not x.is_over), None)

        with self._changed:
            life = self._changed.wait_for(found, timeout_s)
        if life is None:
            raise StandError(f"the daemon was not ready in {timeout_s:.0f} s: {self.last_words()}")
        return life

    def log(self) -> str:
        """All that its processes wrote."""
        return (self.folder / "daemon.log").read_text(errors="replace")

    def last_words(self) -> str:
        lines = [line for line in self.log().splitlines() if line.strip()]
        return lines[-1] if lines else "it said nothing"

    def _supervise(self) -> None:
        while not self._stopping.is_set():
            with (self.folder / "daemon.log").open("ab") as said:
                popen = subprocess.Popen(
                    self._command,
                    env=self._env,
                    stdin=subprocess.DEVNULL,
                    stdout=said,
                    stderr=said,
                    start_new_session=True,
                )
            with contextlib.suppress(OSError):  # the unit's CPUWeight, where we may
                Path(f"/proc/{popen.pid}/autogroup").write_text("-10")
            life = Life(self, popen)
            self._alive_at = time.monotonic()
            self.lives.append(life)
            self._attend(life)
            if not self._stopping.is_set():
                self.exits.append(Exit(time.monotonic(), popen.returncode, self._why))
            life.let_go()
            self.lights.gone()
            self._stopping.wait(RESTART_S)

    def _attend(self, life: Life) -> None:
        """Until it ends. Starved, it is aborted, and killed if that is of no use: as by systemd."""
        number = signal.SIGABRT
        while life.popen.poll() is None:
            limit_s = WATCHDOG_S if life.ready.is_set() else START_S
            starved_s = time.monotonic() - self._alive_at - limit_s
            if starved_s > 0 and not self._stopping.is_set():
                life.popen.send_signal(number)
                number = signal.SIGKILL
                with contextlib.suppress(subprocess.TimeoutExpired):
                    life.popen.wait(STOP_S)
            time.sleep(0.05)

    def _read(self) -> None:
        while not self._stopping.is_set():
            try:
                told = self._notified.recv(65536).split(b"\n")
            except (TimeoutError, OSError):
                continue
            if b"WATCHDOG=1" in told:
                self._alive_at = time.monotonic()
            elif b"WATCHDOG=trigger" in told:
                self._alive_at = float("-inf")
            elif b"READY=1" in told and self.lives:
                self._alive_at = time.monotonic()
                with self._changed:
                    self.lives[-1].ready.set()
                    self._changed.notify_all()

    def _sample(self) -> None:
        while not self._stopping.wait(SAMPLE_S):
            for life in self.lives[-1:]:
                if life.ready.is_set() and not life.is_over:
                    life.sample()


def _allocator() -> dict[str, str]:
    """How the unit has memory allocated: else 8 of the heap's 19 MB were holes after 20 turns."""
    lines = (ROOT / "systemd/voiced.service").read_text().splitlines()
    settings = (line.removeprefix("Environment=").split("=", 1) for line in lines)
    return {name: value[0] for name, *value in settings if name.startswith("MALLOC_")}


def growth(values: Sequence[float]) -> float | None:
    """From the median of the second quarter of a process's life to that of its last; None for a
    life that was too short. The first is for warming up: what it meets, it meets for the first
    time."""
    quarter = len(values) // 4
    if quarter < 5:
        return None
    return median(values[-quarter:]) - median(values[quarter : 2 * quarter])
