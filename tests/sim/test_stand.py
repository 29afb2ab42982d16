import os
import socket
import time
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from voiced.sim import stand
from voiced.sim.stand import Daemon, Process, Server, StandError, Watch, settings, toml

WAIT_S = 20.0  # a process starts in 0.1-0.5 s, beside busy loops in some seconds

DEAF = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("deaf", flush=True)
time.sleep(60)
"""

CHATTY = """
import os, pathlib, socket, time
out = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
out.connect(os.environ["NOTIFY_SOCKET"])
out.send(b"STATUS=not READY=1 yet")
while not pathlib.Path(os.environ["GO"]).exists():
    time.sleep(0.01)
for told in (b"STATUS=starting", b"READY=1\\nSTATUS=up", b"WATCHDOG=1"):
    for _ in range(1000):
        out.send(told)
print("all told", flush=True)
time.sleep(60)
"""
"""A daemon that waits for systemd to read, as libsystemd does."""


def a_process(folder: Path, script: str) -> Process:
    return Process("it", ["-c", script], folder / "log", os.environ)


def a_chatty_daemon(folder: Path) -> Daemon:
    (folder / "chatty.py").write_text(CHATTY)
    env = {"PYTHONPATH": str(folder), "GO": str(folder / "go")}
    return Daemon(folder, {}, env, ["chatty"])


def wait_for_words(process: Process, words: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while process.last_words() != words:
        process.check()
        assert time.monotonic() < deadline, process.last_words()
        time.sleep(0.01)


# --- processes -------------------------------------------------------------------------------


def test_a_process_that_ended_is_an_error_with_its_code_and_last_words(tmp_path: Path) -> None:
    with a_process(tmp_path, "print('one\\ntwo\\n'); raise SystemExit(3)") as process:
        process.popen.wait(WAIT_S)
        with pytest.raises(StandError, match="^it ended with exit code 3: two$"):
            process.check()


def test_stop_insists_and_may_be_called_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stand, "STOP_S", 1.0)
    with a_process(tmp_path, DEAF) as process:
        wait_for_words(process, "deaf")
        assert process.stop() == -9
        assert process.stop() == -9


def test_the_cost_of_a_process_is_known_until_it_is_gone(tmp_path: Path) -> None:
    with a_process(tmp_path, DEAF) as process:
        wait_for_words(process, "deaf")
        cpu_s, peak_rss_mb = process.cost()
        assert cpu_s is not None
        assert peak_rss_mb is not None
        assert 1 < peak_rss_mb < 100
        process.popen.kill()
        process.popen.wait(WAIT_S)
        assert process.cost() == (None, None)


def test_a_server_that_does_not_start_is_an_error_with_its_last_words(tmp_path: Path) -> None:
    with (
        Server(tmp_path, ["--items", "0"]) as server,
        pytest.raises(StandError, match="--items and --delta-ms are at least 1"),
    ):
        assert server.url


# --- the daemon ------------------------------------------------------------------------------


def test_a_daemon_that_does_not_start_is_an_error_with_its_last_words(tmp_path: Path) -> None:
    with (
        Daemon(tmp_path, {"button": {"pin": "seventeen"}}, {}) as daemon,
        pytest.raises(StandError, match=r"^the daemon ended with exit code \d+: .*button\.pin"),
    ):
        daemon.wait_ready()


def test_ready_is_awaited_and_the_daemon_never_waits_for_its_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with a_chatty_daemon(tmp_path) as daemon:
        with monkeypatch.context() as patch:
            patch.setattr(stand, "START_S", 0.3)
            with pytest.raises(StandError, match="the daemon was not ready in 0 s"):
                daemon.wait_ready()
        (tmp_path / "go").touch()
        ready_ms = daemon.wait_ready()
        assert ready_ms > 300
        wait_for_words(daemon, "all told")
        assert daemon.wait_ready() == ready_ms  # the first of them


def test_the_daemon_gets_nothing_that_was_meant_for_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WATCHDOG_USEC", "CREDENTIALS_DIRECTORY", "NOTIFY_SOCKET"):
        monkeypatch.setenv(name, "foreign")
    teller = "import os; print([n for n in os.environ if os.environ[n] == 'foreign'])"
    (tmp_path / "teller.py").write_text(teller)
    with Daemon(tmp_path, {}, {"PYTHONPATH": str(tmp_path)}, ["teller"]) as daemon:
        assert daemon.popen.wait(WAIT_S) == 0
        assert daemon.last_words() == "[]"


@pytest.mark.parametrize(
    "text",
    ["", 'a "quoted" \\ one', "Gerät №1 😀/é", "tab\tline\nbell\x07 delete\x7f", "[x] # = 'y'"],
)
def test_settings_are_read_back_equal(text: str) -> None:
    given: stand.Settings = {
        "one": {"text": text, "number": -3, "level": 0.5, "on": True},
        "two": {"list": [1, 2]},
    }
    assert tomllib.loads(toml(given)) == given


def test_the_key_is_named_by_its_whole_path_and_not_read(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("sk-secret")
    written = toml(settings("wss://a/", Path(os.path.relpath(key)), "m", "s"))
    assert tomllib.loads(written)["realtime"]["api_key_file"] == str(key)
    assert "sk-secret" not in written


# --- a watch over the daemon itself ------------------------------------------------------------


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """The daemon itself; it has no sound devices, which is a fault and no reason not to run."""
    with ExitStack() as stack:
        server = stack.enter_context(Server(tmp_path))
        given = settings(server.url, None, "nowhere", "nowhere")
        found = stack.enter_context(Daemon(tmp_path, given, {}))
        found.wait_ready()
        yield found
        found.stop()
        assert server.verdict() == []


def test_a_watch_finds_events_by_name_time_and_fields(daemon: Daemon) -> None:
    with Watch(daemon) as watch:
        begun = time.monotonic()
        for command, light in (("mute", "muted"), ("unmute", "fault-microphone")):
            watch.command(command)
            shown = partial(watch.seen, "light", begun, light=light)
            watch.wait(shown, WAIT_S, f"the light is not {light}")
        muted = watch.last("light", begun, light="muted")
        fault = watch.last("light", begun, light="fault-microphone")
        assert muted is not None
        assert fault is not None
        assert muted["t"] < fault["t"]
        assert watch.last("light", begun) == fault
        assert watch.last("light", fault["t"], light="muted") is None
        assert not watch.seen("light", fault["t"] + 0.001)
        assert not watch.seen("press", begun)
        assert watch.state == "idle"


def test_a_snapshot_is_a_fresh_one_and_none_when_the_daemon_is_gone(daemon: Daemon) -> None:
    with Watch(daemon) as watch:
        first = watch.status
        assert first is not None
        assert {fault["fault"] for fault in first["faults"]} >= {"microphone-lost"}
        assert watch.ask_status() is not first
        daemon.stop()
        assert watch.ask_status() is None
        with pytest.raises(StandError, match="the daemon ended with exit code 0"):
            watch.wait(lambda: False, WAIT_S, "never")
    watch.close()


def test_a_wait_that_is_too_long_says_what_did_not_come(daemon: Daemon) -> None:
    with (
        Watch(daemon) as watch,
        pytest.raises(StandError, match=r"no answer \(waited 0 s\)"),
    ):
        watch.wait(lambda: False, 0.1, "no answer")


def test_without_a_control_socket_there_is_nothing_to_watch(tmp_path: Path) -> None:
    with (
        a_chatty_daemon(tmp_path) as daemon,
        pytest.raises(StandError, match="control socket: No such file"),
    ):
        Watch(daemon)


def test_a_daemon_that_ends_before_it_tells_its_state_is_an_error(tmp_path: Path) -> None:
    with a_chatty_daemon(tmp_path) as daemon, socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(daemon.control))
        silent.listen()
        daemon.stop()
        with pytest.raises(StandError, match="the daemon ended"):
            Watch(daemon)
