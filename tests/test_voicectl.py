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

from voiced import voicectl
from voiced.core.calibration import METER_MS, Phase
from voiced.edge.control import MAX_CLIENTS, Control
from voiced.voicectl import (
    COMMANDS,
    Connection,
    NoDaemon,
    Refused,
    calibrate,
    calibration_lines,
    event_line,
    main,
    status_lines,
)

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
    "microphone": {"use": [0], "gain_db": 0.0, "echo": "half-duplex", "quiet_dbfs": -62.0},
}


def meter(rms_dbfs: float) -> dict[str, Any]:
    level = {"rms_dbfs": rms_dbfs, "peak_dbfs": rms_dbfs + 14, "clipped": 0, "constant": False}
    return {"level_dbfs": rms_dbfs, "channels": [level]}


class Daemon:
    """The real control socket, in a loop of its own, over a device that does as it is told."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.asked: list[str] = []
        self.who = ""
        self.clients = 0
        self.snapshot = SNAPSHOT
        self._control = Control(path, self._handle, self._snapshot, lambda: meter(-60.0))
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
        return self.snapshot

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


@pytest.mark.parametrize(
    "command", sorted(set(COMMANDS) - {"status", "watch", "interrupt", "calibrate"})
)
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
def running(daemon: Daemon, *words: str) -> Iterator["subprocess.Popen[str]"]:
    process = subprocess.Popen(
        [sys.executable, "-m", "voiced.voicectl", *words, "--socket", str(daemon.path)],
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
    with running(daemon, "watch") as process:
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
    with running(daemon, "watch", "--json") as process:
        assert process.stdout
        assert json.loads(process.stdout.readline())["version"] == 1
        daemon.tell(event)
        assert json.loads(process.stdout.readline()) == event


def test_watch_ends_with_3_when_the_daemon_stops(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path / "control.sock")
    with running(daemon, "watch") as process:
        assert process.stdout
        process.stdout.readline()
        daemon.close()
        _, err = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == 3
        assert "hung up" in err


def test_watch_into_head_ends_quietly(daemon: Daemon) -> None:
    with running(daemon, "watch") as process:
        assert process.stdout
        process.stdout.readline()
        process.stdout.close()
        daemon.tell({"event": "turn", "t": 1.0, "text": "nobody reads this"})
        assert process.wait(DEADLINE_S) == 0
        assert process.stderr
        assert process.stderr.read() == ""


# --- calibrate -------------------------------------------------------------------------------

IDLE = SNAPSHOT | {"turn": "idle"}


class Room:
    """Stands for the connection: a room for 4 s, then a voice, as the meter shows them.

    Its clock is the meter's: a tenth of a second a reading.
    """

    def __init__(self, levels_dbfs: list[float], after: dict[str, Any] = IDLE) -> None:
        self.sent: list[dict[str, Any]] = []
        self.levels_dbfs, self.after = levels_dbfs, after
        self.shown = 0

    def clock(self) -> float:
        return self.shown / 10

    def send(self, message: dict[str, Any]) -> None:
        self.sent.append(message)

    def messages(self) -> Iterator[dict[str, Any]]:
        yield {"ok": True, "text": "watching"}
        while True:
            yield {"event": "press", "t": 1.0, "text": "somebody plays with the button"}
            self.shown += 1
            yield {"meter": self.meter()}

    def meter(self) -> dict[str, Any]:
        return meter(self.levels_dbfs[self.shown - 1])

    def ask(self, command: str) -> dict[str, Any]:
        assert command == "status"
        return {"ok": True, "snapshot": self.after}


def calibrated(room: Room, before: dict[str, Any] = IDLE) -> Any:
    return calibrate(room, before, room.clock)  # type: ignore[arg-type]


QUIET, VOICE = [-70.0] * 40, [-46.0] * 60


def test_calibrate_hears_the_room_and_the_voice(capsys: pytest.CaptureFixture[str]) -> None:
    room = Room(QUIET + VOICE)
    report = calibrated(room)
    assert room.sent == [{"command": "watch", "meter_ms": METER_MS}]
    assert room.shown == 100
    assert report["ok"]
    assert (report["channels"][0]["room_dbfs"], report["channels"][0]["speech_dbfs"]) == (-70, -46)
    assert report["proposal"]["gain_db"] == 20.0
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "Be quiet, for 4 s.",
        "Now speak normally from where you will stand, for 6 s.",
    ]


def test_calibrate_gives_the_person_time_to_fall_silent() -> None:
    voice = [-26.0] * 60
    assert calibrated(Room([-20.0] * 19 + QUIET[19:] + voice)) == calibrated(Room(QUIET + voice))


def test_calibrate_counts_down_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    calibrated(Room(QUIET + VOICE))
    lines = capsys.readouterr().err.splitlines()
    counts = [line.split()[-1] for line in lines if line.startswith("Be quiet")]
    assert list(dict.fromkeys(counts)) == ["s.", "4", "3", "2", "1", "0"]


@pytest.mark.parametrize(
    ("change", "name"), [({"muted": True}, "muted"), ({"turn": "hearing"}, "busy")]
)
def test_calibrate_does_not_begin_where_it_can_not_hear(change: dict[str, Any], name: str) -> None:
    room = Room([])
    report = calibrated(room, IDLE | change)
    assert [finding["name"] for finding in report["findings"]] == [name]
    assert room.sent == []


def test_calibrate_notices_that_it_was_muted_on_the_way() -> None:
    report = calibrated(Room(QUIET + VOICE, after=IDLE | {"muted": True}))
    assert [finding["name"] for finding in report["findings"]] == ["muted"]


@pytest.mark.parametrize("change", [{"use": [1]}, {"gain_db": 6.0}, {"quiet_dbfs": -50.0}])
def test_calibrate_notices_a_reload_on_the_way(change: dict[str, Any]) -> None:
    after = IDLE | {"microphone": IDLE["microphone"] | change}
    with pytest.raises(Refused, match="configuration changed meanwhile: calibrate again"):
        calibrated(Room(QUIET + VOICE, after=after))


def test_calibrate_notices_another_number_of_channels() -> None:
    class Reloaded(Room):
        def meter(self) -> dict[str, Any]:
            heard = super().meter()
            return heard if self.shown <= 50 else heard | {"channels": heard["channels"] * 2}

    with pytest.raises(Refused, match="configuration changed meanwhile"):
        calibrated(Reloaded(QUIET + VOICE))


def test_calibrate_ends_though_the_meter_falls_silent() -> None:
    class Silent(Room):
        def messages(self) -> Iterator[dict[str, Any]]:
            while True:
                self.shown += 1
                assert self.shown <= 110, "it waits for ever"
                yield {"event": "press", "t": 1.0, "text": "somebody plays with the button"}

    report = calibrated(Silent([]))
    assert [finding["name"] for finding in report["findings"]] == ["microphone-lost"]


def test_calibrate_with_an_older_daemon_is_refused() -> None:
    with pytest.raises(Refused, match="older than voicectl"):
        calibrated(Room([]), {"muted": False})


def test_a_person_reads_a_table_and_what_to_configure() -> None:
    report = calibrated(Room(QUIET + VOICE))
    report["proposal"] = {"use": [1], "gain_db": 20.0, "quiet_dbfs": -58.0}
    assert calibration_lines(report) == [
        "channel        room   speech     peak  clipped",
        " 0 in use     -70.0    -46.0    -32.0        0",
        "Your voice is 24 dB above the room. All levels in dBFS.",
        "Proposed for voiced.toml (then: voicectl reload):",
        "    [microphone]",
        "    use = 1",
        "    gain_db = 20.0",
        "    [gate]",
        "    quiet_dbfs = -58.0",
        "and calibrate again: the rest depends on the channel.",
    ]


def test_a_mix_is_proposed_as_toml_has_it() -> None:
    report = calibrated(Room(QUIET + VOICE))
    report["proposal"] = {"use": [0, 2], "gain_db": None, "quiet_dbfs": None}
    assert "    use = [0, 2]" in calibration_lines(report)


def test_a_person_reads_that_all_is_well() -> None:
    lines = calibration_lines(calibrated(Room(QUIET + [-26.0] * 60)))
    assert lines[-1] == "All is well: nothing to change."


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Phases that are over with the third reading of a real clock."""
    monkeypatch.setattr(voicectl.calibration, "ROOM", Phase("Quiet", 0.3, 0))
    monkeypatch.setattr(voicectl.calibration, "SPEECH", Phase("Speak", 0.3, 0))


@pytest.mark.usefixtures("brief")
def test_calibrate_through_the_socket_ends_with_1_where_something_is_wrong(
    daemon: Daemon, capsys: pytest.CaptureFixture[str]
) -> None:
    daemon.snapshot = IDLE
    assert ask(daemon, "calibrate") == 1
    out, err = capsys.readouterr()
    assert "PROBLEM  nobody-spoke: " in out
    assert err == "Quiet, for 0.3 s.\nSpeak, for 0.3 s.\n"


@pytest.mark.usefixtures("brief")
def test_calibrate_as_json_is_one_object_and_nothing_else(
    daemon: Daemon, capsys: pytest.CaptureFixture[str]
) -> None:
    daemon.snapshot = IDLE
    assert ask(daemon, "calibrate", "--json") == 1
    report = json.loads(capsys.readouterr().out)
    assert (report["version"], report["ok"]) == (1, False)


def test_calibrate_of_a_muted_daemon_says_how_to_unmute(
    daemon: Daemon, capsys: pytest.CaptureFixture[str]
) -> None:
    daemon.snapshot = IDLE | {"muted": True}
    assert ask(daemon, "calibrate") == 1
    assert "unmute first (voicectl unmute)" in capsys.readouterr().out


def test_calibrate_can_be_interrupted(daemon: Daemon) -> None:
    daemon.snapshot = IDLE
    with running(daemon, "calibrate") as process:
        assert process.stderr
        assert process.stderr.readline() == "Be quiet, for 4 s.\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=DEADLINE_S)
        assert (process.returncode, out) == (1, "")
        assert err == "voicectl: interrupted, nothing is changed\n"


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
