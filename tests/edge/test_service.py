import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from systemd.journal import JournalHandler

from voiced.edge.service import Service, set_up_logging

DEADLINE_S = 5.0


class Systemd:
    """The other end of NOTIFY_SOCKET."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.settimeout(DEADLINE_S)
        self._socket.bind(str(path))

    def told(self) -> list[str]:
        return self._socket.recv(4096).decode().splitlines()

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Systemd]:
    systemd = Systemd(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    yield systemd
    systemd.close()


def set_up(monkeypatch: pytest.MonkeyPatch) -> logging.Handler:
    """The handler it installs; the test's own loggers are as before when it ends."""
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", root.level)
    set_up_logging()
    (handler,) = root.handlers
    return handler


def test_systemd_is_told_in_its_own_words(systemd: Systemd) -> None:
    ours = Service()
    ours.ready()
    assert systemd.told() == ["READY=1"]
    ours.alive()
    assert systemd.told() == ["WATCHDOG=1"]
    ours.stuck()
    assert systemd.told() == ["WATCHDOG=trigger"]
    ours.stopping()
    assert systemd.told() == ["STOPPING=1"]


def test_a_status_is_one_line_whatever_it_says(systemd: Systemd) -> None:
    Service().status("idle · fault: the server said\nREADY=1\nMAINPID=1")
    assert systemd.told() == ["STATUS=idle · fault: the server said READY=1 MAINPID=1"]


def test_a_reload_tells_when_it_began(systemd: Systemd) -> None:
    before = time.monotonic_ns() // 1000
    Service().reloading()
    reloading, at = systemd.told()
    assert reloading == "RELOADING=1"
    name, _, value = at.partition("=")
    assert name == "MONOTONIC_USEC"
    assert before <= int(value) <= time.monotonic_ns() // 1000


@pytest.mark.parametrize("path", [None, "/nonexistent/notify"])
def test_without_systemd_every_call_is_harmless(
    monkeypatch: pytest.MonkeyPatch, path: str | None
) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    if path:
        monkeypatch.setenv("NOTIFY_SOCKET", path)
    ours = Service()
    ours.ready()
    ours.status("idle")
    ours.alive()
    ours.reloading()
    ours.stopping()


@pytest.mark.parametrize(
    ("environment", "watchdog_s"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),  # meant for our parent
    ],
)
def test_the_watchdog_is_fed_if_it_watches_us(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], watchdog_s: float | None
) -> None:
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert Service().watchdog_s == watchdog_s


def test_a_shell_of_a_desktop_session_logs_to_its_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", "9:999999")  # the desktop's, not our stderr
    assert isinstance(set_up(monkeypatch), logging.StreamHandler)


def test_where_systemd_reads_us_fields_go_to_the_journal(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = os.fstat(2)
    monkeypatch.setenv("JOURNAL_STREAM", f"{stderr.st_dev}:{stderr.st_ino}")
    handler = set_up(monkeypatch)
    assert isinstance(handler, JournalHandler)
    record = logging.LogRecord("voiced", logging.INFO, "", 0, "= %s", ("IDLE",), None)
    assert handler.format(record) == "= IDLE"
