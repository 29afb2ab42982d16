import asyncio
import contextlib
import json
import os
import pwd
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from voiced.edge.control import MAX_CLIENTS, Control
from voiced.voicectl import COMMANDS, Connection, NoDaemon, event_line, main, status_lines

DEADLINE_S = 10.0
ME = pwd.getpwuid(os.getuid()).pw_name

SNAPSHOT: dict[str, Any] = {
    "turn": "listening",
    "link": "up",
    "light": "listening",
    "muted": False,
    "faults": [],
    "status": "listening · link up",
    "session": "sess_1",
    "model": "gpt-realtime",
    "tokens": {"input": 11, "output": 22, "total": 33},
    "counters": {"turns": 3, "playback_xruns": 0},
    "level_dbfs": -43.2,
    "floor_dbfs": -58.1,
    "threshold_dbfs": -50.0,
    "gate_open": True,
    "said_s": 1.5,
    "sent_s": 2.5,
    "heard_s": 3.5,
}


class Daemon:
    """The real control socket, in a loop of its own, over a device that does as it is told."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.asked: list[str] = []
        self.who = ""
        self.clients = 0
        self._control = Control(path, self._handle, self._snapshot, lambda: {"level_dbfs": -1.0})
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._control.open(), self._loop).result(DEADLINE_S)

    def tell(self, event: dict[str, Any]) -> None:
        self._loop.call_soon_threadsafe(self._control.tell, event)

    def close(self) -> None:
        async def end() -> None:
            self._control.close()
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait_for(task, DEADLINE_S)

        asyncio.run_coroutine_threadsafe(end(), self._loop).result(DEADLINE_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(DEADLINE_S)
        self._loop.close()

    def _snapshot(self) -> dict[str, Any]:
        self.clients += 1
        return SNAPSHOT

    def _handle(self, name: str, who: str) -> dict[str, Any]:
        self.asked.append(name)
        self.who = who
        self._control.tell({"event": "command", "t": 1.0, "text": name})  # before the answer
        ok = name != "interrupt"
        return {"ok": ok, "text": "idle" if ok else "nothing to interrupt: idle"}


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    daemon = Daemon(tmp_path / "control.sock")
    yield daemon
    daemon.close()


def ask(daemon: Daemon, *words: str) -> int:
    return main([*words, "--socket", str(daemon.path)])


# --- commands --------------------------------------------------------------------------------


@pytest.mark.parametrize("command", sorted(set(COMMANDS) - {"status", "watch", "interrupt"}))
def test_a_command_reaches_the_daemon_and_its_answer_the_person(
    daemon: Daemon, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    assert ask(daemon, command) == 0
    assert daemon.asked == [command]
    assert capsys.readouterr().out == "idle\n"


@pytest.mark.parametrize(("sudo_user", "name"), [(None, ME), ("anna", "anna")])
def test_the_daemon_is_told_who_asks(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, sudo_user: str | None, name: str
) -> None:
    monkeypatch.delenv("SUDO_USER", raising=False)
    if sudo_user:
        monkeypatch.setenv("SUDO_USER", sudo_user)
    assert ask(daemon, "mute") == 0
    assert f"({name}, it says)" in daemon.who


def test_a_refusal_is_exit_1_with_the_reason(
    daemon: Daemon, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask(daemon, "interrupt") == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "voicectl: nothing to interrupt: idle\n"


@pytest.mark.parametrize(("command", "code"), [("mute", 0), ("interrupt", 1)])
def test_as_json_the_answer_comes_as_it_is_with_the_version(
    daemon: Daemon, capsys: pytest.CaptureFixture[str], command: str, code: int
) -> None:
    assert ask(daemon, command, "--json") == code
    out, err = capsys.readouterr()
    answer = json.loads(out)
    assert answer["version"] == 1
    assert answer["ok"] is (code == 0)
    assert err == ""


def test_status_as_json_is_the_daemons_own(
    daemon: Daemon, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask(daemon, "--json", "status") == 0
    assert json.loads(capsys.readouterr().out) == {"version": 1, "snapshot": SNAPSHOT}


def test_status_tells_a_person_everything(
    daemon: Daemon, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask(daemon, "status") == 0
    out = capsys.readouterr().out
    for said in (
        "turn        listening",
        "up (gpt-realtime, sess_1)",
        "-43.2 dBFS, floor -58.1, opens at -50.0; gate open",
        "said 1.5 s, sent 2.5 s, heard 3.5 s",
        "11 in, 22 out, 33 in all",
        "turns 3\n",
    ):
        assert said in out
    assert "xruns" not in out
    assert "FAULT" not in out


@pytest.mark.parametrize("argv", [[], ["dance"], ["status", "now"], ["mute", "--sockt", "x"]])
def test_a_wrong_usage_is_exit_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(argv)
    assert exit_.value.code == 2
    assert "usage: voicectl" in capsys.readouterr().err


# --- status ----------------------------------------------------------------------------------


def test_a_fault_is_shown_with_its_remedy() -> None:
    fault = {"fault": "speaker-lost", "detail": "plughw:0: gone", "remedy": "plug it in"}
    text = "\n".join(status_lines(SNAPSHOT | {"faults": [fault]}))
    assert "FAULT       speaker-lost: plughw:0: gone\n            remedy: plug it in" in text


def test_mute_is_not_overlooked() -> None:
    muted = {"muted": True, "level_dbfs": None, "floor_dbfs": None, "threshold_dbfs": None}
    assert "microphone  MUTED" in status_lines(SNAPSHOT | muted)


def test_a_daemon_that_just_started_has_a_status_too() -> None:
    new = dict.fromkeys(["light", "session", "model", "level_dbfs", "floor_dbfs"])
    text = "\n".join(status_lines(SNAPSHOT | new | {"counters": {"turns": 0}}))
    assert "None" not in text
    assert "all zero" in text


def test_what_a_server_wrote_can_not_steer_the_terminal() -> None:
    fault = {"fault": "x", "detail": "\x1b[2J\nFAULT none", "remedy": ""}
    assert all(line.isprintable() for line in status_lines(SNAPSHOT | {"faults": [fault]}))
    assert event_line({"event": "x", "t": 0.0, "text": "\x1b]0;x\x07"}).isprintable()


# --- watch -----------------------------------------------------------------------------------


@contextlib.contextmanager
def watching(daemon: Daemon, *options: str) -> Iterator["subprocess.Popen[str]"]:
    process = subprocess.Popen(
        [sys.executable, "-m", "voiced.voicectl", "watch", "--socket", str(daemon.path), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def test_watch_prints_a_line_per_event_until_ctrl_c(daemon: Daemon) -> None:
    with watching(daemon) as process:
        assert process.stdout
        assert process.stdout.readline() == "now: listening · link up\n"
        daemon.tell({"event": "turn", "t": 1.0, "text": "= IDLE -> LISTENING (press)"})
        line = process.stdout.readline()
        assert line.endswith(" turn          = IDLE -> LISTENING (press)\n")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=DEADLINE_S)
        assert (process.returncode, out, err) == (0, "", "")


def test_watch_as_json_gives_the_lines_as_they_are(daemon: Daemon) -> None:
    event = {"event": "turn", "t": 1.0, "text": "x", "before": "idle"}
    with watching(daemon, "--json") as process:
        assert process.stdout
        assert json.loads(process.stdout.readline())["version"] == 1
        daemon.tell(event)
        assert json.loads(process.stdout.readline()) == event


def test_watch_ends_with_3_when_the_daemon_stops(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path / "control.sock")
    with watching(daemon) as process:
        assert process.stdout
        process.stdout.readline()
        daemon.close()
        _, err = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == 3
        assert "hung up" in err


def test_watch_into_head_ends_quietly(daemon: Daemon) -> None:
    with watching(daemon) as process:
        assert process.stdout
        process.stdout.readline()
        process.stdout.close()
        daemon.tell({"event": "turn", "t": 1.0, "text": "nobody reads this"})
        assert process.wait(DEADLINE_S) == 0
        assert process.stderr
        assert process.stderr.read() == ""


# --- no daemon -------------------------------------------------------------------------------


def test_no_daemon_is_exit_3_with_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "none.sock"
    assert main(["status", "--socket", str(path)]) == 3
    err = capsys.readouterr().err
    assert f"no daemon at {path} (No such file or directory): is it running?" in err


def test_a_socket_left_by_a_crash_is_no_daemon(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket(socket.AF_UNIX) as crashed:
        crashed.bind(str(tmp_path / "sock"))
    assert main(["status", "--socket", str(tmp_path / "sock")]) == 3
    assert "Connection refused" in capsys.readouterr().err


def test_who_may_not_is_told_of_the_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def forbidden(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "connect", forbidden)
    assert main(["mute", "--socket", str(tmp_path / "sock")]) == 3
    assert "join the group voiced-ctl" in capsys.readouterr().err


def test_too_many_clients_is_a_refusal(daemon: Daemon, capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(MAX_CLIENTS):
            client = stack.enter_context(Connection(str(daemon.path)))
            assert "snapshot" in client.receive()[0]
        assert ask(daemon, "status") == 1
    assert "clients already" in capsys.readouterr().err


@contextlib.contextmanager
def impostor(path: Path, says: bytes, *, again: bool = False) -> Iterator[Connection]:
    """A connection to somebody who says this (over and over) and then nothing."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with Connection(str(path), timeout_s=0.2) as connection:
            peer, _ = listener.accept()
            talker = threading.Thread(target=_talk, args=(peer, says, again))
            talker.start()
            try:
                yield connection
            finally:
                connection.close()
                talker.join(DEADLINE_S)
                peer.close()


def _talk(peer: socket.socket, says: bytes, again: bool) -> None:
    with contextlib.suppress(OSError):
        peer.sendall(says)
        while again:
            peer.sendall(says)


def test_a_daemon_that_says_nothing_is_not_waited_for(tmp_path: Path) -> None:
    with impostor(tmp_path / "s", b"") as connection, pytest.raises(NoDaemon, match="not answer"):
        connection.receive()


def test_a_daemon_that_only_sends_events_is_not_waited_for(tmp_path: Path) -> None:
    with (
        impostor(tmp_path / "s", b'{"event":"x"}\n' * 100, again=True) as connection,
        pytest.raises(NoDaemon, match="does not answer mute"),
    ):
        connection.ask("mute")


@pytest.mark.parametrize(
    ("says", "again"), [(b"HTTP/1.1 400\n", False), (b"[]\n", False), (b"x" * 4096, True)]
)
def test_who_speaks_another_language_is_not_voiced(
    tmp_path: Path, says: bytes, again: bool
) -> None:
    with (
        impostor(tmp_path / "s", says, again=again) as connection,
        pytest.raises(NoDaemon, match="is not voiced"),
    ):
        next(connection.messages())


def test_it_starts_without_any_package_but_the_standard_library() -> None:
    script = "import sys, voiced.voicectl; print(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=os.environ
    )
    slow = {"numpy", "msgspec", "asyncio", "gpiozero", "websockets", "alsaaudio"}
    assert not slow & set(result.stdout.split())
