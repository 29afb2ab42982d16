"""The agent over a socket pair, as if it were in a machine; and the host's side of a watch."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self, TextIO

import pytest

from tests.appliance.agent import CHUNK_BYTES, LINE_BYTES, OUTPUT_BYTES, REQUESTS, Agent
from tests.appliance.machine import MachineError, Watch

SOON_S = 20.0  # all of it takes some ms; beside busy loops and a slow disk it may be seconds


class Host:
    """The other end of an agent's port."""

    def __init__(self) -> None:
        self.end, self._port = socket.socketpair()
        self.end.settimeout(SOON_S)
        self._lines = self.end.makefile("rb")
        self._serving = threading.Thread(target=Agent(self._port.fileno()).serve)

    def __enter__(self) -> Self:
        self._serving.start()
        assert "up" in self.hear()
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()
        self.end.shutdown(socket.SHUT_RDWR)
        self._serving.join(SOON_S)
        assert not self._serving.is_alive(), "it serves without a host"
        self.end.close()
        self._port.close()

    def hear(self) -> dict[str, Any]:
        line: dict[str, Any] = json.loads(self._lines.readline())
        return line

    def tell(self, number: int, do: str, **arguments: object) -> None:
        self.end.sendall(json.dumps({"id": number, "do": do, **arguments}).encode() + b"\n")

    def ask(self, do: str, **arguments: object) -> dict[str, Any]:
        self.tell(1, do, **arguments)
        answer = self.hear()
        assert answer.pop("id") == 1
        return answer

    def run(self, script: str, timeout_s: float = SOON_S) -> dict[str, Any]:
        return self.ask("run", command=["sh", "-c", script], timeout_s=timeout_s)


@pytest.fixture
def host() -> Iterator[Host]:
    with Host() as host:
        yield host


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    """Who reads it waits until someone writes."""
    path = tmp_path / "fifo"
    os.mkfifo(path)
    return path


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def taken(lock: TextIO) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


# --- commands ----------------------------------------------------------------------------


def test_a_command_gives_its_exit_code_and_both_outputs(host: Host) -> None:
    told = host.run("echo one; echo two >&2; exit 3")
    assert told == {"code": 3, "out": "one\n", "err": "two\n"}


def test_a_command_that_does_not_exist_is_an_error(host: Host) -> None:
    assert "FileNotFoundError" in host.ask("run", command=["no such"], timeout_s=1)["error"]


def test_a_command_that_takes_too_long_is_killed_with_its_children(
    host: Host, tmp_path: Path
) -> None:
    with (tmp_path / "lock").open("w") as lock:
        # A grandchild holds the lock as long as it lives.
        assert "TimeoutExpired" in host.run(f"flock {lock.name} sleep 600; true", 0.5)["error"]
        deadline = time.monotonic() + SOON_S
        while not taken(lock):
            assert time.monotonic() < deadline, "a child outlives its command"


def test_what_a_command_leaves_running_does_not_hold_its_answer_up(host: Host) -> None:
    told = host.run("sleep 600 & echo $!")
    assert told["code"] == 0
    os.kill(int(told["out"]), signal.SIGKILL)


def test_a_command_that_writes_too_much_fails(host: Host) -> None:
    told = host.run(f"head -c {OUTPUT_BYTES + 1} /dev/zero")
    assert told["code"] != 0
    assert "not permitted" in told["err"]
    assert len(told["out"]) <= OUTPUT_BYTES


# --- files -------------------------------------------------------------------------------


def test_what_is_written_is_read(host: Host, tmp_path: Path) -> None:
    path = str(tmp_path / "file")
    data = bytes(range(256))
    host.ask("write", path=path, data=encoded(b"longer than what comes after it" * 99))
    host.ask("write", path=path, data=encoded(data))
    host.ask("write", path=path, data=encoded(data), append=True)
    assert host.ask("read", path=path) == {"data": encoded(data + data)}
    assert host.ask("read", path=path, offset=500) == {"data": encoded(data[-12:])}


def test_one_answer_holds_one_chunk(host: Host, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(CHUNK_BYTES + 1))
    assert len(base64.b64decode(host.ask("read", path=str(path))["data"])) == CHUNK_BYTES


def test_a_write_is_dated_after_the_file_is_open_and_before_it_is_seen(
    host: Host, fifo: Path
) -> None:
    host.tell(1, "write", path=str(fifo), data=encoded(b"pull-down"))  # waits for a reader
    before = time.monotonic()
    assert fifo.read_bytes() == b"pull-down"
    assert before <= host.hear()["at"] <= time.monotonic()


def test_a_file_that_is_not_there_is_an_error(host: Host, tmp_path: Path) -> None:
    assert "FileNotFoundError" in host.ask("read", path=str(tmp_path / "none"))["error"]


# --- requests ----------------------------------------------------------------------------


def test_a_long_run_does_not_hold_others_up(host: Host, fifo: Path) -> None:
    host.tell(7, "run", command=["cat", str(fifo)], timeout_s=SOON_S)
    assert "at" in host.ask("monotonic")
    host.tell(8, "write", path=str(fifo), data=encoded(b"go"))
    answers = {answer["id"]: answer for answer in (host.hear(), host.hear())}
    assert answers[7]["out"] == "go"
    assert "at" in answers[8]


def test_more_requests_than_it_has_room_for_are_refused(host: Host, tmp_path: Path) -> None:
    with (tmp_path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for number in range(REQUESTS):
            host.tell(number, "run", command=["flock", lock.name, "true"], timeout_s=SOON_S)
        host.tell(REQUESTS, "monotonic")
        refused = host.hear()
    assert refused["id"] == REQUESTS
    assert "under way" in refused["error"]
    answers = [host.hear()["id"] for _ in range(REQUESTS)]
    assert sorted(answers) == list(range(REQUESTS))
    assert "at" in host.ask("monotonic")


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"\xff",
        b"null",
        b"[]",
        b"{}",
        b'{"id": 1}',
        b'{"id": 1, "do": "none"}',
        b'{"id": 1, "do": []}',
        b'{"id": 1, "do": "read"}',
        b'{"id": 1, "do": "read", "path": null}',
        b'{"id": 1, "do": "write", "path": "/", "data": "="}',
        b'{"id": 1, "do": "send", "watch": 5, "line": "to nobody"}',
    ],
)
def test_a_bad_request_gets_an_error_and_the_next_its_answer(host: Host, line: bytes) -> None:
    host.end.sendall(line + b"\n")
    assert host.hear()["error"]
    assert "at" in host.ask("monotonic")


def test_an_endless_line_is_refused_in_parts(host: Host) -> None:
    host.end.sendall(b"x" * (LINE_BYTES + 10) + b"\n")
    assert [host.hear()["id"], host.hear()["id"]] == [None, None]
    assert "at" in host.ask("monotonic")


# --- watches -----------------------------------------------------------------------------


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.settimeout(SOON_S)
        listening.bind(str(tmp_path / "socket"))
        listening.listen()
        yield listening


def test_a_watched_socket_is_heard_spoken_to_and_ends(host: Host, daemon: socket.socket) -> None:
    assert host.ask("watch", path=daemon.getsockname(), watch=5) == {}
    client, _ = daemon.accept()
    with client:
        client.settimeout(SOON_S)
        client.sendall(b'{"event": "press"}\n')
        assert host.hear() == {"watch": 5, "line": '{"event": "press"}\n'}
        host.ask("send", watch=5, line='{"command": "tap"}')
        assert client.recv(100) == b'{"command": "tap"}\n'
    assert host.hear() == {"watch": 5, "line": None}


def test_the_host_may_hang_up(host: Host, daemon: socket.socket) -> None:
    host.ask("watch", path=daemon.getsockname(), watch=5)
    client, _ = daemon.accept()
    with client:
        client.settimeout(SOON_S)
        host.tell(1, "send", watch=5, line=None)
        assert client.recv(1) == b""
        said = [host.hear(), host.hear()]
    assert {"watch": 5, "line": None} in said
    assert {"id": 1} in said


def test_a_socket_that_is_not_there_is_an_error(host: Host, tmp_path: Path) -> None:
    told = host.ask("watch", path=str(tmp_path / "none"), watch=5)
    assert "FileNotFoundError" in told["error"]


def test_a_watch_waits_from_line_to_line() -> None:
    watch = Watch(lambda _: None)
    for number in range(4):
        watch.take(json.dumps({"n": number}))
    assert watch.wait(lambda line: line["n"] % 2 == 1, 0) == {"n": 1}
    assert watch.wait(lambda line: line["n"] % 2 == 1, 0) == {"n": 3}
    with pytest.raises(MachineError, match="within 0"):
        watch.wait(lambda line: True, 0)
    assert len(watch.lines) == 4


def test_a_watch_of_a_closed_socket_does_not_wait() -> None:
    watch = Watch(lambda _: None)
    watch.take('{"n": 1}')
    watch.take(None)
    assert watch.wait(lambda line: True, SOON_S) == {"n": 1}
    with pytest.raises(MachineError, match="closed"):
        watch.wait(lambda line: True, SOON_S)
