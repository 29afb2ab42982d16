"""Power and disk: the daemon is killed at any moment, and the disk takes nothing more.

What the medium itself makes of a power cut is tested with the store; here it is the process that
ends between any two instructions, and starts again.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.app.test_daemon import DEADLINE_S, Daemon, poll, server, settings
from voiced.edge.store import CONVERSATION_SCHEMA, SCHEMA
from voiced.sim.rig import Rig

KILLS = int(os.environ.get("VOICED_KILLS", "50"))
KILL_S = 6.0  # a start takes 0.3 s, a turn 0.5 s, both beside other work some times as long
START_S = 0.8  # a kill before READY comes within
SAVE_S = 0.006  # a kill after a command comes within; a save takes 3 to 12 ms on a virtual disk


def on_disk(state: Path) -> bool:
    """The kept choice, as the next start will find it."""
    try:
        muted: bool = json.loads((state / "state.json").read_bytes())["muted"]
    except FileNotFoundError:
        return False
    return muted


@pytest.mark.timeout(30 + KILL_S * KILLS)
def test_killed_at_any_moment_it_starts_with_the_last_choice_or_the_one_before(
    tmp_path: Path,
) -> None:
    rng = random.Random(50)
    state = tmp_path / "state"
    config = settings(button={"pin": "none"})  # and no rig: a sound device has no part in this
    asked = before = False
    for _ in range(KILLS):
        if rng.random() < 0.2:
            starting = Daemon(tmp_path, config)
            time.sleep(rng.uniform(0, START_S))
            starting.__exit__()
            continue
        with Daemon(tmp_path, config) as daemon:  # whose end is SIGKILL
            assert on_disk(state) in (before, asked)
            before = asked = on_disk(state)
            assert daemon.snapshot()["muted"] == asked
            assert "state-unreadable" not in daemon.faults()
            if state.exists():
                assert {path.name for path in state.iterdir()} <= {"state.json"}
            for _ in range(rng.randrange(1, 4)):
                poll(lambda: on_disk(state) == asked, "the choice on the disk")  # noqa: B023
                before, asked = asked, asked != (rng.random() < 0.8)
                assert daemon.ask("mute" if asked else "unmute")["ok"]
            time.sleep(rng.uniform(0, SAVE_S))


# --- what was said -----------------------------------------------------------------------

WORDS = ("what the user said", "Part 1 of 1")
"""Of which something is in all that the built-in server writes down of a talk."""


def talking(url: str, *, kept: bool) -> str:
    """A configuration in which any held turn is answered, and all is written down by the server."""
    return settings(
        realtime={"url": url, "transcription": "gpt-4o-transcribe"},
        gate={"enabled": False},
        button={"pin": "none"},
        memory={"kept": kept},
    )


def talk(daemon: Daemon) -> None:
    """A held turn, until it is answered; whoever hangs up then has it kept at once."""
    assert daemon.ask("press")["ok"]
    daemon.wait_turn("hearing")
    assert daemon.ask("release")["ok"]
    daemon.wait_turn("speaking")


def turns_on_disk(state: Path) -> int:
    """In the kept conversation, 0 if there is none. It must be whole, with all that it needs."""
    try:
        kept = json.loads((state / "conversation.json").read_bytes())
    except FileNotFoundError:
        return 0
    assert kept["schema"] == CONVERSATION_SCHEMA
    lines = json.loads(kept["conversation"])["lines"]
    assert all(len(line) == 3 for line in lines)
    return sum(who == "User" for who, _, _ in lines)


def files_with_words(folder: Path) -> list[Path]:
    """Those in which something of the talk can be read, the daemon's own log among them."""
    texts = {path: path.read_text(errors="replace") for path in folder.rglob("*") if path.is_file()}
    return [path for path, text in texts.items() if any(word in text for word in WORDS)]


@pytest.mark.timeout(60 + KILL_S * KILLS)
def test_killed_at_any_moment_it_goes_on_with_the_last_talk_or_the_one_before(
    rig: Rig, tmp_path: Path
) -> None:
    rng = random.Random(51)
    state, home = tmp_path / "home/state", tmp_path / "home"
    home.mkdir()
    possible = {0}
    with server(tmp_path, "--pace", "0", "--think-ms", "0") as (url, _):
        config = talking(url, kept=True)
        for _ in range(KILLS):
            with Daemon(home, config) as daemon:
                turns = turns_on_disk(state)
                assert turns in possible
                assert daemon.snapshot()["remembers"] == bool(turns)
                assert "anew" not in daemon.words
                assert {path.name for path in state.glob("*")} <= {"conversation.json"}
                talk(daemon)
                possible = {turns, turns + 1}
                end = rng.choice(["hangup", "hangup", "stop", "nothing"])
                if turns > 5:
                    possible = {turns, 0}
                    assert daemon.ask("forget")["ok"]
                elif end == "hangup":
                    assert daemon.ask("hangup")["ok"]
                elif end == "stop":  # it writes what it has not written yet
                    daemon.process.send_signal(signal.SIGTERM)
                else:
                    possible = {turns}
                time.sleep(rng.uniform(0, SAVE_S))
            assert {path.stem for path in files_with_words(home)} <= {"conversation"}


def test_what_is_not_to_be_kept_is_never_on_the_disk(rig: Rig, tmp_path: Path) -> None:
    rng = random.Random(52)
    home, state = tmp_path / "home", tmp_path / "home/state"
    home.mkdir()
    with server(tmp_path, "--pace", "0", "--think-ms", "0") as (url, _):
        with Daemon(home, talking(url, kept=True)) as daemon:
            talk(daemon)
            assert daemon.ask("hangup")["ok"]
            poll(lambda: turns_on_disk(state), "a talk that is kept")
        for _ in range(5):
            with Daemon(home, talking(url, kept=False)) as daemon:
                poll(lambda: not files_with_words(home), "what was kept before is erased")
                erased = daemon.snapshot()["counters"]["state_writes"]
                talk(daemon)
                assert not files_with_words(home)
                assert daemon.ask("hangup")["ok"]
                assert daemon.snapshot()["remembers"]
                time.sleep(rng.uniform(0, SAVE_S))
                assert daemon.snapshot()["counters"]["state_writes"] == erased
                daemon.process.send_signal(rng.choice([signal.SIGTERM, signal.SIGKILL]))
                daemon.process.wait(DEADLINE_S)
            assert not files_with_words(home)
            assert not list(state.iterdir())


# --- what is found at the start ----------------------------------------------------------


def _file(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def _folder(path: Path) -> None:
    path.mkdir()
    (path / "something").touch()


def _forbidden(path: Path) -> None:
    path.write_text("{}")
    path.chmod(0)


def _loop(path: Path) -> None:
    path.symlink_to(path)


def _newer(path: Path) -> None:
    path.write_text(json.dumps({"schema": max(SCHEMA, CONVERSATION_SCHEMA) + 1, "muted": False}))


def _other_types(path: Path) -> None:
    path.write_text(
        json.dumps({"schema": 1, "muted": 0, "conversation": '{"lines": [[1, null, {}]]}'})
    )


@pytest.fixture
def unprivileged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Modes hold for the daemon even where root runs these tests."""
    if os.geteuid() == 0:
        python = tmp_path / "python"
        python.write_text(
            "#!/bin/sh\nexec setpriv --bounding-set -dac_override,-dac_read_search "
            f'"{sys.executable}" "$@"\n'
        )
        python.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(python))


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (_file(b""), "not a state file"),
        (_file(b'{"schema": 1, "mut'), "not a state file"),
        (_file(b"\0" * 4096), "not a state file"),
        (_file(bytes(range(256)) * 8), "not a state file"),
        (_file(b"9" * 5_000), "not a state file"),
        (_file(b" " * 1_000_000), "longer than"),
        (_other_types, ""),
        (_newer, "written by a newer voiced"),
        (_folder, "Is a directory"),
        (_forbidden, "Permission denied"),
        (_loop, "Too many levels of symbolic links"),
    ],
    ids=["empty", "half", "zeros", "binary", "number", "huge", "types", "newer", "directory",
         "forbidden", "loop"],
)  # fmt: skip
@pytest.mark.usefixtures("unprivileged")
def test_whatever_it_finds_it_starts_and_says_so(
    tmp_path: Path, spoil: Callable[[Path], object], reason: str
) -> None:
    state = tmp_path / "state"
    state.mkdir()
    for name in ("state.json", "conversation.json"):
        spoil(state / name)
    with Daemon(tmp_path, settings(button={"pin": "none"}, memory={"kept": True})) as daemon:
        snapshot = daemon.snapshot()
        assert snapshot["muted"]
        assert not snapshot["remembers"]
        assert reason in daemon.faults()["state-unreadable"]["detail"]
        assert "state can't be read" in daemon.status
        assert "the conversation begins anew: " in daemon.words
        assert reason in daemon.words.partition("begins anew: ")[2].partition("\n")[0]
        assert daemon.ask("unmute")["ok"]  # it says, too, where that can't be kept
        poll(lambda: "state-unreadable" not in daemon.faults(), "an answer of the disk")
        assert not daemon.snapshot()["muted"]
        assert "Traceback" not in daemon.words


# --- a disk that takes nothing -----------------------------------------------------------


def run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"{' '.join(command)}: {done.stderr.strip()}")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk of its own for the state."""
    state = tmp_path / "state"
    state.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(state))
    yield state
    subprocess.run(["umount", "--lazy", str(state)], check=True)


def fill(disk: Path) -> Callable[[], None]:
    filler = disk / "filler"
    with pytest.raises(OSError, match="No space left"):
        filler.write_bytes(b"\0" * 1_000_000)
    return filler.unlink


def write_protect(disk: Path) -> Callable[[], None]:
    run("mount", "-o", "remount,ro", str(disk))
    return lambda: run("mount", "-o", "remount,rw", str(disk))


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [(fill, "No space left on device"), (write_protect, "Read-only file system")],
)
def test_a_disk_that_takes_nothing_costs_the_memory_of_a_mute_and_no_service(
    rig: Rig,
    disk: Path,
    tmp_path: Path,
    spoil: Callable[[Path], Callable[[], None]],
    reason: str,
) -> None:
    mend = spoil(disk)
    with (
        server(tmp_path, "--pace", "0") as (url, _),
        Daemon(tmp_path, settings(realtime={"url": url})) as daemon,
    ):
        assert not daemon.faults()
        assert daemon.ask("mute")["ok"]
        poll(lambda: "mute-not-kept" in daemon.faults(), "a mute that is not kept")
        assert daemon.snapshot()["muted"]
        told = subprocess.run(
            [sys.executable, "-m", "voiced.voicectl", "--socket", str(daemon.control), "status"],
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=True,
        ).stdout
        assert f"mute-not-kept: {disk / 'state.json'}: {reason}" in told

        assert daemon.ask("unmute")["ok"]
        daemon.hold_a_question(rig)
        daemon.wait_turn("speaking")
        assert "mute-not-kept" in daemon.faults()

        mend()
        assert daemon.ask("mute")["ok"]
        poll(lambda: not daemon.faults(), "a mute that is kept")
        assert [path.name for path in disk.iterdir()] == ["state.json"]
        assert "Traceback" not in daemon.words
    with Daemon(tmp_path, settings()) as daemon:
        assert daemon.snapshot()["muted"]


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [(fill, "No space left on device"), (write_protect, "Read-only file system")],
)
def test_a_disk_that_takes_nothing_costs_history_and_no_service(
    rig: Rig,
    disk: Path,
    tmp_path: Path,
    spoil: Callable[[Path], Callable[[], None]],
    reason: str,
) -> None:
    with server(tmp_path, "--pace", "0", "--think-ms", "0") as (url, _):
        config = talking(url, kept=True)
        with Daemon(tmp_path, config) as daemon:
            talk(daemon)
            assert daemon.ask("hangup")["ok"]
            poll(lambda: turns_on_disk(disk) == 1, "a talk that is kept")
        mend = spoil(disk)
        with Daemon(tmp_path, config) as daemon:
            assert daemon.snapshot()["remembers"]
            assert not daemon.faults()
            for _ in range(2):  # it is answered before and after it is known
                talk(daemon)
                assert daemon.ask("hangup")["ok"]
                poll(lambda: "conversation-not-kept" in daemon.faults(), "a talk that is not kept")
            assert reason in daemon.faults()["conversation-not-kept"]["detail"]
            assert "what was said can't be written or erased" in daemon.status
            assert turns_on_disk(disk) == 1  # the last that was kept, whole
            mend()
            talk(daemon)
            assert daemon.ask("hangup")["ok"]
            poll(lambda: not daemon.faults(), "a talk that is kept again")
            assert turns_on_disk(disk) == 4
            assert "Traceback" not in daemon.words
