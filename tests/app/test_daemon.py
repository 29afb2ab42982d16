"""The daemon as a process: what systemd, a person and an attacker see of it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest

from voiced.app import STUCK_S
from voiced.sim.rig import Rig
from voiced.sim.stand import QUESTION
from voiced.sim.streams import Ear, Mouth
from voiced.sim.wav import read_wav, to_rate, write_wav

DEADLINE_S = 20.0  # for what takes a second on an idle machine
STOP_S = 2.0  # promised
NOWHERE = "ws://127.0.0.1:1/v1/realtime"  # nobody listens on port 1
NEEDS_KEY = "wss://127.0.0.1:1/v1/realtime"
KEY = "sk-secret-of-the-test"
_FOREIGN = ("CREDENTIALS_DIRECTORY", "JOURNAL_STREAM", "WATCHDOG_USEC", "WATCHDOG_PID")


def toml(**tables: Mapping[str, object]) -> str:
    """JSON's strings, numbers and lists are TOML's, too."""
    lines = []
    for table, keys in tables.items():
        lines += [f"[{table}]", *(f"{key} = {json.dumps(value)}" for key, value in keys.items())]
    return "\n".join([*lines, ""])


def settings(**tables: Mapping[str, object]) -> str:
    """A configuration for the rig, with `tables` in place of its own."""
    return toml(
        **{
            "realtime": {"url": NOWHERE},
            "microphone": {"device": Rig.microphone},
            "speaker": {"device": Rig.speaker},
            "sounds": {"enabled": False},  # what is heard is the answer
            **tables,
        }
    )


def poll(done: Callable[[], Any], what: str, timeout_s: float = DEADLINE_S) -> Any:
    """Wait until it is true; what it was then."""
    deadline = time.monotonic() + timeout_s
    while not (value := done()):
        assert time.monotonic() < deadline, f"not within {timeout_s:.0f} s: {what}"
        time.sleep(0.01)
    return value


class Daemon:
    """The daemon on a board of mock pins, with this test in systemd's place.

    A second one in the same folder finds the state of the first.
    """

    def __init__(self, folder: Path, config: str | None, **env: str) -> None:
        self.config, self.control = folder / "voiced.toml", folder / "control"
        self.state = folder / "state"
        if config is not None:
            self.config.write_text(config)
        self.told: list[tuple[float, str]] = []  # (monotonic time, one datagram)
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        notify = folder / "notify"
        notify.unlink(missing_ok=True)
        self._notify.bind(str(notify))
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        self._output = folder / "output"
        inherited = {name: value for name, value in os.environ.items() if name not in _FOREIGN}
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "voiced.sim.board", "--finger", str(folder / "board"), "--"]
                + ["--config", str(self.config), "--socket", str(self.control)]
                + ["--state-dir", str(self.state)],
                env={**inherited, "NOTIFY_SOCKET": str(notify), **env},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    def __enter__(self) -> Self:
        self.wait_told("READY=1")
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        with contextlib.suppress(OSError):
            self._notify.shutdown(socket.SHUT_RD)
        self._listener.join()
        self._notify.close()

    def _listen(self) -> None:
        while datagram := self._notify.recv(65536):
            self.told.append((time.monotonic(), datagram.decode()))

    @property
    def words(self) -> str:
        """What it wrote to stdout and stderr."""
        return self._output.read_text()

    def told_since(self, at: float, start: str) -> list[str]:
        """What systemd was told since then that starts so."""
        return [text for when, text in self.told if when >= at and text.startswith(start)]

    def wait_told(self, start: str, since: float = 0.0) -> str:
        def told() -> str | None:
            assert self.process.poll() is None, self.words
            return next(iter(self.told_since(since, start)), None)

        return str(poll(told, start))

    @property
    def status(self) -> str:
        """The last line for `systemctl status`."""
        return self.told_since(0.0, "STATUS=")[-1].removeprefix("STATUS=")

    def ask(self, command: str) -> dict[str, Any]:
        """The answer to a command over the control socket."""
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(DEADLINE_S)
            client.connect(str(self.control))
            client.sendall(json.dumps({"command": command}).encode() + b"\n")
            with client.makefile("rb") as lines:
                for line in lines:
                    answer: dict[str, Any] = json.loads(line)
                    if "ok" in answer:
                        return answer
        raise AssertionError(f"no answer to {command}")

    def snapshot(self) -> dict[str, Any]:
        found: dict[str, Any] = self.ask("status")["snapshot"]
        return found

    def faults(self) -> dict[str, dict[str, str]]:
        return {each["fault"]: each for each in self.snapshot()["faults"]}

    def wait_turn(self, state: str) -> None:
        poll(lambda: self.snapshot()["turn"] == state, f"turn {state}")

    def hold_a_question(self, rig: Rig) -> None:
        """Hold the button while something is said."""
        samples, rate = read_wav(QUESTION)
        with Mouth(rig) as mouth:
            assert self.ask("press")["ok"]
            self.wait_turn("hearing")
            mouth.say(to_rate(samples[:, 0], rate, 48_000)).wait_ended(DEADLINE_S)
            assert self.ask("release")["ok"]

    def stop(self, number: int = signal.SIGTERM) -> float:
        """Stop it with a signal; the seconds that took. It must exit with 0."""
        began = time.monotonic()
        self.process.send_signal(number)
        assert self.process.wait(DEADLINE_S) == 0, self.words
        return time.monotonic() - began


@contextlib.contextmanager
def server(folder: Path, *arguments: str) -> Iterator[tuple[str, int]]:
    """The built-in server with a long answer, as a process; its URL and process id."""
    answer = folder / "answer.wav"
    tone = 8000 * np.sin(np.arange(24_000 * 20) * 2 * np.pi * 440 / 24_000)
    write_wav(answer, tone.astype(np.int16), 24_000)
    process = subprocess.Popen(
        [sys.executable, "-m", "voiced.sim", "--answer", str(answer), *arguments],
        stdout=subprocess.PIPE,
    )
    assert process.stdout
    try:
        yield str(json.loads(process.stdout.readline())["url"]), process.pid
    finally:
        process.terminate()
        process.send_signal(signal.SIGCONT)
        process.communicate(timeout=DEADLINE_S)


# --- service -----------------------------------------------------------------------------


def test_it_is_ready_without_a_network_and_tells_its_status(rig: Rig, tmp_path: Path) -> None:
    with Daemon(tmp_path, settings()) as daemon:
        assert daemon.status == "idle · link down"
        snapshot = daemon.snapshot()
        assert (snapshot["turn"], snapshot["link"], snapshot["faults"]) == ("idle", "down", [])
        assert daemon.ask("press")["ok"]  # the server is not there
        daemon.wait_told("STATUS=listening · link waiting · the server can't be reached")
        asked = time.monotonic()
        assert daemon.stop() < STOP_S
        assert daemon.told_since(asked, "STOPPING=1")
        assert not daemon.control.exists()
        assert "Traceback" not in daemon.words


def test_it_stops_in_the_middle_of_an_answer_and_is_silent_at_once(
    rig: Rig, tmp_path: Path
) -> None:
    with (
        server(tmp_path, "--pace", "0") as (url, pid),
        Ear(rig) as ear,
        Daemon(tmp_path, settings(realtime={"url": url})) as daemon,
    ):
        daemon.hold_a_question(rig)
        daemon.wait_turn("speaking")
        poll(lambda: ear.snapshot(max(0, ear.length - 4800)).any(), "sound")
        os.kill(pid, signal.SIGSTOP)  # the goodbye is waited for in vain: silence comes first
        asked = time.monotonic()
        assert daemon.stop() < STOP_S
        stopped = time.monotonic()
        ear.wait_until(stopped + 0.3, DEADLINE_S)
        assert stopped - asked > 0.4
        assert ear.snapshot(ear.index_at(asked) - 4800, ear.index_at(asked)).any()
        assert not ear.snapshot(ear.index_at(asked + 0.2)).any()
        assert "Traceback" not in daemon.words


def test_ctrl_c_stops_it_too(rig: Rig, tmp_path: Path) -> None:
    with Daemon(tmp_path, settings()) as daemon:
        assert daemon.stop(signal.SIGINT) < STOP_S


def test_a_reload_takes_a_valid_configuration_and_keeps_the_old_one_else(
    rig: Rig, tmp_path: Path
) -> None:
    with Daemon(tmp_path, settings()) as daemon:
        daemon.config.write_text(settings(turn={"silence_ms": 50}))
        asked = time.monotonic()
        daemon.process.send_signal(signal.SIGHUP)
        reloading = daemon.wait_told("RELOADING=1", asked).splitlines()
        started_us = int(reloading[1].removeprefix("MONOTONIC_USEC="))
        assert asked <= started_us / 1e6 <= time.monotonic()
        daemon.wait_told("READY=1", asked)
        poll(lambda: "the old one goes on" in daemon.status, "status")
        assert f"{daemon.config}: turn.silence_ms = 50: must be" in daemon.status
        assert "config-invalid" in daemon.faults()

        answer = daemon.ask("reload")
        assert not answer["ok"]
        assert f"{daemon.config}: turn.silence_ms = 50: must be" in answer["text"]

        daemon.config.write_text(settings(microphone={"device": "rig_nothing"}))
        assert daemon.ask("reload")["ok"]
        poll(lambda: "microphone is missing" in daemon.status, "the new configuration at work")
        assert "config-invalid" not in daemon.faults()

        daemon.config.write_text(settings())
        daemon.process.send_signal(signal.SIGHUP)
        poll(lambda: daemon.status == "idle · link down", "the old configuration at work")
        assert "Traceback" not in daemon.words


def test_a_reload_that_changes_the_speaker_ends_an_answer(rig: Rig, tmp_path: Path) -> None:
    with (
        server(tmp_path, "--pace", "0") as (url, _),
        Daemon(tmp_path, settings(realtime={"url": url})) as daemon,
    ):
        daemon.hold_a_question(rig)
        daemon.wait_turn("speaking")
        daemon.config.write_text(
            settings(realtime={"url": url}, speaker={"device": rig.speaker, "volume": 50})
        )
        assert daemon.ask("reload")["ok"]
        poll(lambda: daemon.snapshot()["turn"] != "speaking", "the end of a lost answer", 5)
        poll(lambda: not daemon.faults(), "no fault")
        daemon.hold_a_question(rig)
        daemon.wait_turn("speaking")


def test_the_watchdog_is_fed_until_a_sound_thread_hangs(rig: Rig, tmp_path: Path) -> None:
    with Daemon(tmp_path, settings(), WATCHDOG_USEC="600000") as daemon:
        poll(lambda: len(daemon.told_since(0.0, "WATCHDOG=1")) >= 4, "pings")
        pings = [at for at, text in daemon.told if text == "WATCHDOG=1"]
        assert pings[3] - pings[0] < 3 * 0.6
        sound_server = rig._server
        assert sound_server
        sound_server.send_signal(signal.SIGSTOP)
        try:
            poll(lambda: "capture thread is stuck" in daemon.words, "a thread that is stuck")
            assert daemon.snapshot()["turn"] == "idle"  # the loop itself is well
            noticed = time.monotonic()
            poll(lambda: daemon.words.count("thread is stuck") >= 3, "more of it")
            assert not daemon.told_since(noticed, "WATCHDOG=1")
            assert daemon.told_since(noticed, "WATCHDOG=trigger")  # systemd kills it at that
        finally:
            sound_server.send_signal(signal.SIGCONT)
        poll(lambda: daemon.told_since(noticed, "WATCHDOG=1"), "a ping once it reads on")
        assert daemon.stop() < STOP_S


def test_a_daemon_that_stood_still_as_a_whole_is_not_stuck(rig: Rig, tmp_path: Path) -> None:
    with Daemon(tmp_path, settings(), WATCHDOG_USEC="600000") as daemon:
        daemon.process.send_signal(signal.SIGSTOP)
        time.sleep(STUCK_S + 0.5)  # as a suspended machine
        daemon.process.send_signal(signal.SIGCONT)
        woken = time.monotonic()
        poll(lambda: len(daemon.told_since(woken, "WATCHDOG=1")) >= 3, "pings again")
        assert not daemon.told_since(woken, "WATCHDOG=trigger")


def test_nobody_is_fed_without_a_watchdog(rig: Rig, tmp_path: Path) -> None:
    with Daemon(tmp_path, settings(), WATCHDOG_USEC="100000", WATCHDOG_PID="1") as daemon:
        daemon.stop()
        assert not daemon.told_since(0.0, "WATCHDOG=1")


# --- state -------------------------------------------------------------------------------


def test_mute_and_unmute_outlive_a_restart(rig: Rig, tmp_path: Path) -> None:
    with Daemon(tmp_path, settings()) as daemon:
        assert daemon.ask("mute")["ok"]
        daemon.stop()
    with Daemon(tmp_path, settings()) as daemon:
        assert daemon.snapshot()["muted"]
        poll(lambda: daemon.status == "idle · link down · muted", "status")
        pressed = daemon.ask("press")
        assert not pressed["ok"]
        assert "unmute" in pressed["text"]
        assert daemon.ask("unmute")["ok"]
        daemon.stop()
    with Daemon(tmp_path, settings()) as daemon:
        assert not daemon.snapshot()["muted"]


@pytest.mark.parametrize("text", ["{", '{"schema": 1, "muted": "no"}', "\x00" * 4])
def test_a_state_that_can_not_be_read_starts_muted(rig: Rig, tmp_path: Path, text: str) -> None:
    state = tmp_path / "state" / "state.json"
    state.parent.mkdir()
    state.write_text(text)
    with Daemon(tmp_path, settings()) as daemon:
        assert daemon.snapshot()["muted"]
        poll(lambda: "started muted" in daemon.status and str(state) in daemon.status, "status")
        assert daemon.faults()["state-unreadable"]["remedy"] == "unmute once"
        assert daemon.ask("unmute")["ok"]
        assert not daemon.faults()
        daemon.stop()
    with Daemon(tmp_path, settings()) as daemon:
        assert not daemon.snapshot()["muted"]


def test_the_state_of_a_newer_version_is_not_overwritten(rig: Rig, tmp_path: Path) -> None:
    state = tmp_path / "state" / "state.json"
    state.parent.mkdir()
    newer = '{"schema": 2, "muted": {"left": false}}'
    state.write_text(newer)
    with Daemon(tmp_path, settings()) as daemon:
        assert daemon.snapshot()["muted"]
        poll(lambda: "newer" in daemon.status, "status")
        assert daemon.ask("unmute")["ok"]
        poll(lambda: "not overwritten" in daemon.status, "status")
        assert not daemon.snapshot()["muted"]
        daemon.stop()
    assert state.read_text() == newer


def test_a_mute_that_can_not_be_kept_works_and_says_so(rig: Rig, tmp_path: Path) -> None:
    obstacle = tmp_path / "state" / "state.tmp"
    obstacle.mkdir(parents=True)
    with Daemon(tmp_path, settings()) as daemon:
        assert daemon.ask("mute")["ok"]
        poll(lambda: "not kept over a restart" in daemon.status, "status")
        assert daemon.snapshot()["muted"]
        assert not daemon.ask("press")["ok"]
        obstacle.rmdir()
        assert daemon.ask("mute")["ok"]
        poll(lambda: not daemon.faults(), "kept")


# --- devices -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["microphone", "speaker"])
def test_a_device_that_is_not_there(rig: Rig, tmp_path: Path, name: str) -> None:
    with Daemon(tmp_path, settings(**{name: {"device": "rig_nothing"}})) as daemon:
        fault = daemon.faults()[f"{name}-lost"]
        assert fault["remedy"] == f"plug it in, or set {name}.device"
        assert fault["detail"].startswith("rig_nothing: ")
        poll(lambda: f"{name} is missing: rig_nothing: " in daemon.status, "status")
        pressed = daemon.ask("press")
        assert not pressed["ok"]
        assert f"{name} is missing" in pressed["text"]
        assert daemon.snapshot()["turn"] == "idle"
        assert daemon.stop() < STOP_S
        assert "Traceback" not in daemon.words


def test_a_microphone_with_another_number_of_channels(rig: Rig, tmp_path: Path) -> None:
    conf = tmp_path / "asound.conf"
    conf.write_text(
        f"<{rig.env['ALSA_CONFIG_PATH']}>\n"
        "pcm.pair { type multi slaves.a { pcm null channels 2 }\n"
        "bindings.0 { slave a channel 0 } bindings.1 { slave a channel 1 } }\n"
    )
    config = settings(microphone={"device": "pair"})
    with Daemon(tmp_path, config, ALSA_CONFIG_PATH=str(conf)) as daemon:
        fault = daemon.faults()["microphone-wrong"]
        assert fault["detail"] == "pair: has 2 channel(s), not 1. Set microphone.channels = 2"
        assert not daemon.ask("press")["ok"]


def test_pins_that_can_not_be_had(rig: Rig, tmp_path: Path) -> None:
    config = settings(button={"pin": 50}, lights={"kind": "led", "pins": [51]})
    with Daemon(tmp_path, config) as daemon:
        faults = daemon.faults()
        assert "GPIO50" in faults["button-lost"]["detail"]
        assert "51" in faults["lights-lost"]["detail"]
        refused = daemon.ask("press")
        assert not refused["ok"]
        assert "lights failed" in refused["text"]
        daemon.config.write_text(settings(button={"pin": "none"}))
        assert daemon.ask("reload")["ok"]
        assert not daemon.faults()


# --- key ---------------------------------------------------------------------------------


def no_key(folder: Path) -> tuple[dict[str, object], dict[str, str], str]:
    return {}, {}, "set the credential openai-api-key"


def unset_credential(folder: Path) -> tuple[dict[str, object], dict[str, str], str]:
    (folder / "openai-api-key").write_text("unset\n")
    env = {"CREDENTIALS_DIRECTORY": str(folder)}
    return {}, env, "set the credential openai-api-key"


def missing_file(folder: Path) -> tuple[dict[str, object], dict[str, str], str]:
    file = str(folder / "key")
    return {"api_key_file": file}, {}, f"realtime.api_key_file = {file}: can't be read"


def open_file(folder: Path) -> tuple[dict[str, object], dict[str, str], str]:
    file = folder / "key"
    file.write_text(KEY)
    file.chmod(0o644)
    return {"api_key_file": str(file)}, {}, f"Run: chmod 600 {file}"


def empty_file(folder: Path) -> tuple[dict[str, object], dict[str, str], str]:
    file = folder / "key"
    file.touch(0o600)
    return {"api_key_file": str(file)}, {}, f"realtime.api_key_file = {file}: is empty"


@pytest.mark.parametrize(
    "key", [no_key, unset_credential, missing_file, open_file, empty_file], ids=lambda f: f.__name__
)
def test_without_a_key_it_is_up_and_says_so(
    rig: Rig,
    tmp_path: Path,
    key: Callable[[Path], tuple[dict[str, object], dict[str, str], str]],
) -> None:
    more, env, told = key(tmp_path)
    config = settings(realtime={"url": NEEDS_KEY, **more})
    with Daemon(tmp_path, config, **env) as daemon:
        assert daemon.snapshot()["link"] == "refused"
        assert told in daemon.faults()["key-missing"]["detail"]
        poll(lambda: "link refused · no API key: " in daemon.status, "status")
        assert told in daemon.status
        pressed = daemon.ask("press")
        assert not pressed["ok"]
        assert told in pressed["text"]
        assert daemon.process.poll() is None
        assert KEY not in daemon.words


def key_file(folder: Path) -> Path:
    file = folder / "key"
    file.touch(0o600)
    file.write_text(KEY + "\n")
    return file


def everything_seen(daemon: Daemon) -> str:
    """What others can see of it: its words, its state, its command line, what systemd heard."""
    command_line = Path(f"/proc/{daemon.process.pid}/cmdline").read_text()
    states = json.dumps([daemon.ask("status"), daemon.told])
    return daemon.words + states + command_line


def test_a_key_that_is_used_is_seen_nowhere(rig: Rig, tmp_path: Path) -> None:
    more = {"api_key_file": str(key_file(tmp_path))}
    with server(tmp_path, "--key", KEY) as (url, _):
        config = settings(realtime={"url": url, **more})
        with Daemon(tmp_path, config, PYTHONASYNCIODEBUG="1") as daemon:
            daemon.hold_a_question(rig)
            daemon.wait_turn("speaking")
            assert KEY not in everything_seen(daemon)


def test_a_key_that_is_refused_is_seen_nowhere(rig: Rig, tmp_path: Path) -> None:
    more = {"api_key_file": str(key_file(tmp_path))}
    with (
        server(tmp_path, "--key", "another") as (url, _),
        Daemon(tmp_path, settings(realtime={"url": url, **more})) as daemon,
    ):
        assert daemon.ask("press")["ok"]
        poll(lambda: daemon.snapshot()["link"] == "refused", "a refusal")
        daemon.wait_told("STATUS=idle · link refused · the server refuses the API key")
        assert not daemon.ask("press")["ok"]
        assert KEY not in everything_seen(daemon)


# --- the server --------------------------------------------------------------------------


def test_a_server_that_talks_nonsense_is_served_on(rig: Rig, tmp_path: Path) -> None:
    with (
        server(tmp_path, "--fault", "garbage@0") as (url, _),
        Daemon(tmp_path, settings(realtime={"url": url})) as daemon,
    ):
        daemon.hold_a_question(rig)
        daemon.wait_turn("speaking")
        assert daemon.snapshot()["counters"]["nonsense"] > 5
        daemon.hold_a_question(rig)
        daemon.wait_turn("speaking")
        assert "Traceback" not in daemon.words
        assert " ERROR " not in daemon.words


# --- configuration and start -------------------------------------------------------------


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The daemon's own command line, to its end."""
    return subprocess.run(
        [sys.executable, "-m", "voiced", "--socket", str(folder / "control")]
        + ["--state-dir", str(folder / "state"), *arguments],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


INVALID = [
    (toml(microphone={"devise": "hw:0"}), ["microphone.devise", "unknown key", "device?"]),
    (toml(turn={"silence_ms": "600"}), ['turn.silence_ms = "600"', "must be", "200 to 5000"]),
    ("[turn\n", ["not valid TOML", "line 1"]),
    (
        toml(realtime={"url": "ws://203.0.113.1/v1/realtime"}),
        ["realtime.url", "ws://203.0.113.1", "not encrypted", "Use wss://"],
    ),
    (toml(speaker={"device": "default"}), ["speaker.device", '"default"', "plughw:"]),
    (None, ["No such file", "--config FILE"]),
]


@pytest.mark.parametrize("check", [[], ["--check-config"]], ids=["start", "check"])
@pytest.mark.parametrize(("text", "told"), INVALID)
def test_an_invalid_configuration_is_one_line_and_exit_78(
    tmp_path: Path, text: str | None, told: list[str], check: list[str]
) -> None:
    config = tmp_path / "voiced.toml"
    if text is not None:
        config.write_text(text)
    done = run(tmp_path, "--config", str(config), *check)
    assert done.returncode == 78
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"voiced: {config}: ")
    for part in told:
        assert part in line
    assert not (tmp_path / "control").exists()


def test_a_valid_configuration_is_checked_and_nothing_started(tmp_path: Path) -> None:
    config = tmp_path / "voiced.toml"
    config.write_text(settings())
    done = run(tmp_path, "--config", str(config), "--check-config")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{config}: valid\n"
    assert list(tmp_path.iterdir()) == [config]


def test_a_second_daemon_on_the_socket_gives_way(rig: Rig, tmp_path: Path) -> None:
    with Daemon(tmp_path, settings()) as daemon:
        second = run(tmp_path, "--config", str(daemon.config))
        assert second.returncode == 1
        (line,) = second.stderr.splitlines()
        assert "another voiced is running" in line
        assert str(daemon.control) in line
        assert daemon.snapshot()["turn"] == "idle"


def test_a_socket_that_can_not_be_had_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "voiced.toml").write_text(settings())
    (tmp_path / "file").touch()
    config = str(tmp_path / "voiced.toml")
    done = run(tmp_path, "--config", config, "--socket", str(tmp_path / "file" / "socket"))
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "use --socket" in line
