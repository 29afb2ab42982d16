"""`python -m tests.appliance [--arch amd64|arm64] [--fast] [--json FILE]`: the virtual Pi's day.

Builds what it needs (cached), boots, plays the scenes, prints the table. Exit code 1 if a promise
is broken or a goal is missed (on a short day, missed by far).
"""

from __future__ import annotations

import argparse
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.appliance import kernel, tree
from tests.appliance.day import VOICECTL, Broken, Day
from tests.appliance.machine import Machine, MachineError, disk_image, lay_board, needed
from tests.appliance.stage import Stage
from tests.bench.table import Row, as_json, table
from tests.certificate import self_signed
from voiced.sim import stand
from voiced.sim.stand import Server, StandError

SHORT_DAY = {"ms": 3.0, "MB": 1.1}
"""Times the goal: the times of one commit differed by a factor of two from hour to hour, its peak
of memory by a megabyte."""

LIVE = {"speech to wire, held turn"}
"""A dial that takes all of the one held turn leaves nothing that was sent live."""

SERVERS = {"playback holes"}
"""What the server is late with, which shares the host."""

SYSTEMS = {"amd64": tree.BOOKWORM, "arm64": tree.TRIXIE_ARM}
HOST = "10.0.2.2"  # where the guest finds this machine's loopback
DISK_MB = 2048


def _say(text: str) -> None:
    print(f"appliance: {text}", file=sys.stderr, flush=True)


# --- the disk ----------------------------------------------------------------------------


def _owner(folder: Path, url: str, key: str, certificate: Path) -> Path:
    """What the owner of a device puts on it: configuration, key, and whom to trust."""
    settings = stand.settings(url, None, "plughw:CARD=Mic,DEV=0", "plughw:CARD=Speaker,DEV=0")
    settings["realtime"] = {"url": url, "ca_file": "/etc/voiced/ca.pem"}
    (folder / "etc/voiced").mkdir(parents=True)
    (folder / "etc/voiced/voiced.toml").write_text(stand.toml(settings))
    shutil.copy(certificate, folder / "etc/voiced/ca.pem")
    (folder / "etc/credstore").mkdir(mode=0o700)
    (folder / "etc/credstore/openai-api-key").write_text(key)
    (folder / "etc/credstore/openai-api-key").chmod(0o600)
    return folder


def _disk(system: tree.System, parts: kernel.Kernel, owner: Path, out: Path) -> Path:
    """An image of everything: the owner's, the board's, the kernel's, the product, Debian."""
    with tree.mounted([owner, parts.modules, *tree.product(system)]) as root:
        lay_board(root)
        return disk_image(root, out, DISK_MB)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# --- the day -----------------------------------------------------------------------------


def _play(*scenes: tuple[str, Callable[[], object]]) -> None:
    for name, scene in scenes:
        began = time.monotonic()
        scene()
        _say(f"{name}: {time.monotonic() - began:.0f} s")


def _short_day(day: Day) -> None:
    _play(
        ("start", day.start),
        ("held turn, cut", day.held_turn),
        ("hands-free turn", day.free_turn),
        ("nothing said", day.nothing_said),
        ("speech over the answer", day.speech_over),
        ("muted", day.mute),
        ("reload", day.reload),
        ("what it costs", lambda: day.cost(10)),
        ("restart", day.restart),
    )


def _whole_day(day: Day) -> None:
    _play(
        ("start", day.start),
        *[("held turn, cut", day.held_turn)] * 10,
        *[("hands-free turn", day.free_turn)] * 5,
        *[("cut by a command", lambda: day.held_turn(cut_by="interrupt"))] * 5,
        *[("cut by hanging up", lambda: day.held_turn(cut_by="hangup"))] * 5,
        ("nothing said", day.nothing_said),
        ("speech over the answer", day.speech_over),
        ("other ends of a turn", day.ends),
        ("muted", day.mute),
        ("reload", day.reload),
        ("what it costs", lambda: day.cost(60)),
        ("network cut", day.network_cut),
        ("microphone unplugged", lambda: day.unplug("Mic")),
        ("speaker unplugged", lambda: day.unplug("Speaker")),
        ("restart", day.restart),
        ("beside busy programs", lambda: day.busy(5)),
    )


def run(arch: str, *, fast: bool, rows: dict[str, Row], folder: Path) -> None:
    """The day on one machine; fills `rows`. Raises Broken and the errors of what it stands on."""
    system = SYSTEMS[arch]
    parts = kernel.build(system)
    certificate, certificate_key = self_signed(folder, HOST)
    key = f"sk-{secrets.token_hex(12)}"
    frames, port = folder / "frames.jsonl", _free_port()
    serving = ("--port", str(port), "--frames", str(frames), "--key", key)
    tls = ("--tls-cert", str(certificate), "--tls-key", str(certificate_key))
    with Server(folder, [*serving, *tls]) as server:
        assert server.url  # it listens
        owner = _owner(folder / "owner", f"wss://{HOST}:{port}/v1/realtime", key, certificate)
        disk = _disk(system, parts, owner, folder / "root.img")

        @contextmanager
        def powered() -> Iterator[Day]:
            with Machine(system, parts, disk, folder, keep=not fast) as machine:
                _say(f"up after {machine.wait_up():.0f} s")
                yield Day(Stage(machine, frames), rows)

        with powered() as day:
            (_short_day if fast else _whole_day)(day)
            if not fast:
                day.talk_until(day.stage.machine.power_cut)
        if not fast:
            with powered() as day:
                _play(("start after a power cut in mid-turn", day.start))
                day.stage.machine.run(VOICECTL, "mute")
                day.stage.machine.power_cut()
            with powered() as day:
                _play(("muted after a power cut", day.stays_muted), ("a turn", day.held_turn))
        for violation in server.verdict():
            raise Broken(f"protocol violation: {violation}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/appliance.sh", description=__doc__)
    parser.add_argument("--arch", choices=SYSTEMS, default="amd64")
    parser.add_argument("--fast", action="store_true", help="a short day")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    args = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    problem = tree.missing(tree.NEEDED | needed(args.arch))
    if problem:
        _say(problem)
        return 1
    rows: dict[str, Row] = {}
    broken = ""
    try:
        # Not /tmp, which may be in memory: two images of 2 GB.
        with tempfile.TemporaryDirectory(prefix="voiced-appliance-", dir="/var/tmp") as name:
            run(args.arch, fast=args.fast, rows=rows, folder=Path(name))
    except (Broken, MachineError, StandError, tree.TreeError) as exc:
        broken = str(exc)
    except KeyboardInterrupt:
        _say("interrupted")
        return 130
    finally:
        _tell(rows, args.json)
    missed = [row.name for row in rows.values() if not _holds(row, fast=args.fast)]
    if missed:
        print("missed: " + "; ".join(missed))
    if broken:
        print(f"broken: {broken}")
    return 1 if missed or broken else 0


def _holds(row: Row, *, fast: bool) -> bool:
    """A short day has each time once, on a machine that others share: its times are shown, and
    only what is far off counts. A whole day has many, and its goals are goals."""
    if fast and (row.name in SERVERS or (row.name in LIVE and not row.values)):
        return True
    return row.within(SHORT_DAY.get(row.unit, 1.0) if fast else 1.0)


def _tell(rows: dict[str, Row], file: Path | None) -> None:
    """What was measured, however it ended."""
    if rows:
        print(table(rows.values()), flush=True)
    if file:
        file.write_text(as_json(rows.values()))


if __name__ == "__main__":
    sys.exit(main())
