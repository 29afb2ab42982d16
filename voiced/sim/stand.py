"""A test stand: the built-in server and the daemon itself as processes, and an eye on the daemon.

The trial, the console and the bench are built on it.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Self

BUTTON_PIN = 17
LIGHT_PINS = (22, 23, 24)  # red, green, blue
QUESTION = Path("/usr/share/sounds/alsa/Front_Center.wav")  # a voice; of alsa-utils

START_S = 20.0  # ready in 0.4 s on a desktop, in 8 s on a slow board
STOP_S = 5.0  # the daemon promises 2 s
STATUS_S = 2.0  # the answer is the loop's next step

# What systemd or a shell may have set for others.
_FOREIGN = ("WATCHDOG_USEC", "WATCHDOG_PID", "JOURNAL_STREAM", "CREDENTIALS_DIRECTORY")

Settings = Mapping[str, Mapping[str, object]]
"""Table -> key -> value, as in voiced.toml."""


class StandError(RuntimeError):
    """It can't be set up or it broke down; the text says why and what to do."""


class Cost(NamedTuple):
    """What a process has used: CPU seconds and peak resident memory; None if it is gone."""

    cpu_s: float | None
    peak_rss_mb: float | None


class Process:
    """A child in a session of its own (Ctrl-C is ours to deal with); its words go to `log`."""

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        log: Path,
        env: Mapping[str, str],
        *,
        talks: bool = False,
    ) -> None:
        self.name = name
        self._log = log
        with log.open("wb") as said:
            self.started_at = time.monotonic()
            self.popen = subprocess.Popen(
                [sys.executable, *arguments],
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if talks else said,
                stderr=said,
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        if self.popen.stdout:
            self.popen.stdout.close()

    def check(self) -> None:
        """Raises StandError if it has ended."""
        code = self.popen.poll()
        if code is not None:
            raise StandError(f"{self.name} ended with exit code {code}: {self.last_words()}")

    def last_words(self) -> str:
        """The last line it wrote."""
        lines = self._log.read_text(errors="replace").split("\n")
        return next((line for line in reversed(lines) if line.strip()), "it said nothing")

    def stop(self) -> int:
        """Ask it to stop, insist after STOP_S; its exit code. Safe twice."""
        self.popen.terminate()
        try:
            return self.popen.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            return self.popen.wait(STOP_S)

    def cost(self) -> Cost:
        """What it has used so far."""
        proc = Path(f"/proc/{self.popen.pid}")
        try:
            ticks = [int(n) for n in (proc / "stat").read_text().rpartition(")")[2].split()[11:13]]
            status = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines())
            peak_kb = int(status["VmHWM"].split()[0])
        except (OSError, KeyError, ValueError):
            return Cost(None, None)
        cpu_s = sum(ticks) / os.sysconf("SC_CLK_TCK")
        return Cost(round(cpu_s, 2), round(peak_kb * 1024 / 1e6, 1))


class Server(Process):
    """The built-in Realtime server, with arguments of `python -m voiced.sim`."""

    def __init__(self, folder: Path, arguments: Sequence[str] = ()) -> None:
        super().__init__(
            "the built-in server",
            ["-m", "voiced.sim", *arguments],
            folder / "server.log",
            dict(os.environ),
            talks=True,
        )

    @cached_property
    def url(self) -> str:
        """Where it listens; the first look waits until it does. Raises StandError."""
        return str(self._line()["url"])

    def _line(self) -> dict[str, Any]:
        # It prints one line when it listens; a process that hangs before is stopped by a timer.
        assert self.popen.stdout
        timer = threading.Timer(START_S, self.popen.kill)
        timer.start()
        try:
            line = self.popen.stdout.readline()
        finally:
            timer.cancel()
        if not line:
            self.stop()
            raise StandError(f"{self.name} did not answer: {self.last_words()}")
        told: dict[str, Any] = json.loads(line)
        return told

    def verdict(self) -> list[str]:
        """Stop it; the protocol violations it saw. Once, and after `url`. Raises StandError."""
        self.stop()
        told = self._line()
        count = told["violation_count"] - len(told["violations"])
        texts = [str(each["text"]) for each in told["violations"]]
        return texts + ([f"and {count} more"] if count else [])


class Daemon(Process):
    """voiced itself with its pins on a board, configured by `settings`.

    `folder` is to be its caller's alone: what is configured and logged stands in it.
    """

    def __init__(
        self,
        folder: Path,
        settings: Settings,
        env: Mapping[str, str],
        module: Sequence[str] = ("voiced.sim.board",),
    ) -> None:
        self.board, self.control = folder / "board", folder / "control"
        config, notify = folder / "voiced.toml", folder / "notify"
        config.write_text(toml(settings), "utf-8")
        own = {name: value for name, value in os.environ.items() if name not in _FOREIGN}
        self._notified = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notified.bind(str(notify))
        super().__init__(
            "the daemon",
            ["-m", *module, "--finger", str(self.board), "--"]
            + ["--config", str(config), "--socket", str(self.control)]
            + ["--state-dir", str(folder / "state")],
            folder / "daemon.log",
            {**own, **env, "NOTIFY_SOCKET": str(notify)},
        )
        self._ready_at: float | None = None
        self._ready = threading.Event()
        self._reader = threading.Thread(target=self._read, name="notify", daemon=True)
        self._reader.start()

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        with contextlib.suppress(OSError):  # closed before
            self._notified.shutdown(socket.SHUT_RDWR)
        self._reader.join(STOP_S)
        self._notified.close()

    def _read(self) -> None:
        """What systemd would read; all of it, for a full socket blocks whoever writes."""
        while told := self._notified.recv(4096):
            if b"READY=1" in told.split(b"\n") and self._ready_at is None:
                self._ready_at = time.monotonic()
                self._ready.set()

    def wait_ready(self) -> float:
        """Milliseconds from its start to READY=1. Raises StandError."""
        while not self._ready.wait(0.1):
            self.check()
            if time.monotonic() > self.started_at + START_S:
                raise StandError(
                    f"the daemon was not ready in {START_S:.0f} s: {self.last_words()}"
                )
        assert self._ready_at is not None
        return (self._ready_at - self.started_at) * 1000


def settings(
    url: str, key_file: Path | None, microphone: str, speaker: str
) -> dict[str, dict[str, object]]:
    """A daemon with all its parts: a server and its key, sound devices, a button, a light."""
    return {
        "realtime": {"url": url, "api_key_file": str(key_file.resolve()) if key_file else ""},
        "microphone": {"device": microphone},
        "speaker": {"device": speaker},
        "button": {"pin": BUTTON_PIN},
        "lights": {"kind": "rgb", "pins": LIGHT_PINS},
        "sounds": {"enabled": False},  # what is heard is the answer, to the sample
    }


def toml(settings: Settings) -> str:
    """Settings as TOML. JSON's strings, numbers, truths and lists are TOML's, too.

    But TOML wants DEL escaped, and has no surrogates to write a character in two halves.
    """
    lines = []
    for table, keys in settings.items():
        lines.append(f"[{table}]")
        lines += [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in keys.items()]
    return "\n".join([*lines, ""]).replace("\x7f", "\\u007f")


class Watch:
    """The daemon's control socket: keeps its events, and answers what state it is in.

    `notes` grows by some ten events per turn.
    """

    def __init__(self, daemon: Daemon) -> None:
        self.notes: list[dict[str, Any]] = []  # under _changed
        self.status: dict[str, Any] | None = None  # the last snapshot
        self._daemon = daemon
        self._changed = threading.Condition()
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.connect(str(daemon.control))
        except OSError as error:
            self._socket.close()
            raise StandError(f"the daemon's control socket: {error.strerror}") from error
        self._thread = threading.Thread(target=self._read, name="watch", daemon=True)
        self._thread.start()
        try:
            self.wait(lambda: self.status is not None, START_S, "the daemon told no state")
        except StandError:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Hang up. Safe twice."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(STOP_S)
        self._socket.close()

    @property
    def state(self) -> str:
        """The turn's state."""
        with self._changed:
            return next((n["turn"] for n in reversed(self.notes) if n["event"] == "turn"), "idle")

    def seen(self, name: str, since: float, **fields: object) -> bool:
        """Whether such an event came since then."""
        return self.last(name, since, **fields) is not None

    def last(self, name: str, since: float, **fields: object) -> dict[str, Any] | None:
        """The latest such event since then, or None."""
        with self._changed:
            found = (
                note
                for note in reversed(self.notes)
                if note["event"] == name and note["t"] >= since and fields.items() <= note.items()
            )
            return next(found, None)

    def wait(self, done: Callable[[], object], timeout_s: float, complaint: str) -> None:
        """Raises StandError after `timeout_s`, or if the daemon ends."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while not done():
                self._daemon.check()
                if time.monotonic() > deadline:
                    raise StandError(f"{complaint} (waited {timeout_s:.0f} s)")
                self._changed.wait(0.1)

    def command(self, name: str) -> None:
        """Send a command; its answer is not waited for. Raises OSError if nobody takes it."""
        self._socket.sendall(json.dumps({"command": name}).encode() + b"\n")

    def ask_status(self) -> dict[str, Any] | None:
        """A fresh snapshot, or None if the daemon has none to give."""
        with self._changed:
            before = self.status
        try:
            self.command("status")
            self.wait(lambda: self.status is not before, STATUS_S, "no status")
        except (OSError, StandError):
            return None
        return self.status

    def _read(self) -> None:
        with self._socket.makefile("rb") as lines, contextlib.suppress(OSError):
            for line in lines:
                told = json.loads(line)
                with self._changed:
                    if "event" in told:
                        self.notes.append(told)
                    elif "snapshot" in told:
                        self.status = told["snapshot"]
                    self._changed.notify_all()
