"""Power and disk: the daemon is killed at any moment, and the disk takes nothing more.

What the medium itself makes of a power cut is tested with the store; here it is the process that
ends between any two instructions, and starts again.
"""

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.app.test_daemon import DEADLINE_S, Daemon, poll, server, settings
from voiced.sim.rig import Rig

KILLS = int(os.environ.get("VOICED_KILLS", "50"))
KILL_S = 6.0  # a start takes 0.3 s, beside other work 1 s
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
