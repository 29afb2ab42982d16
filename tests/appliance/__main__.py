"""`python -m tests.appliance [--arch amd64|arm64] [--fast|--weather] [--json FILE]`: a virtual
Pi's day.

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
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from tests.appliance import kernel, sabotage, tree
from tests.appliance.day import VOICECTL, Broken, Day
from tests.appliance.machine import Machine, MachineError, disk_image, lay_board, needed
from tests.appliance.stage import Stage
from tests.appliance.weather import OUTAGE_S, SCENES, SERVER, Weather, furnish
from tests.bench.table import Row, as_json, table
from tests.soak.network import Certificates
from tests.soak.table import FaultRow, Invariant
from tests.soak.table import as_json as faults_as_json
from tests.soak.table import table as fault_table
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
DISK_MB = 2048
BOOTS = 3
"""While it boots, a kernel changes code that its other core may be running. Emulated, one start in
ten ended there; nothing of the product runs yet."""


def _say(text: str) -> None:
    print(f"appliance: {text}", file=sys.stderr, flush=True)


# --- the disk ----------------------------------------------------------------------------


def _owner(folder: Path, url: str, key: str, authority: Path) -> Path:
    """What the owner of a device puts on it: configuration, key, and whom to trust."""
    settings = stand.settings(url, None, "plughw:CARD=Mic,DEV=0", "plughw:CARD=Speaker,DEV=0")
    settings["realtime"] = {"url": url, "ca_file": "/etc/voiced/ca.pem"}
    (folder / "etc/voiced").mkdir(parents=True)
    (folder / "etc/voiced/voiced.toml").write_text(stand.toml(settings))
    shutil.copy(authority, folder / "etc/voiced/ca.pem")
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


@contextmanager
def _bench(
    arch: str, folder: Path, add: Callable[[Path], object] = lambda root: None, *, keep: bool
) -> Iterator[Callable[[], AbstractContextManager[Stage]]]:
    """A server, and a disk that machines start from, one after the other; with `keep` each goes on
    where the last one's power was cut. `add` puts more on the disk. Raises Broken if a promise to
    the server was broken."""
    system = SYSTEMS[arch]
    parts = kernel.build(system)
    certificates = folder / "certificates"
    certificates.mkdir()
    authority = Certificates(certificates, SERVER).ca_file
    key = f"sk-{secrets.token_hex(12)}"
    frames, port = folder / "frames.jsonl", _free_port()
    serving = ("--port", str(port), "--frames", str(frames), "--key", key)
    shown = (certificates / "good.pem", certificates / "good.key")
    tls = ("--tls-cert", str(shown[0]), "--tls-key", str(shown[1]))
    with Server(folder, [*serving, *tls]) as server:
        assert server.url  # it listens
        owner = _owner(folder / "owner", f"wss://{SERVER}:{port}/v1/realtime", key, authority)
        add(owner)
        disk = _disk(system, parts, owner, folder / "root.img")

        @contextmanager
        def powered() -> Iterator[Stage]:
            for left in reversed(range(BOOTS)):
                with Machine(system, parts, disk, folder, keep=keep) as machine:
                    try:
                        _say(f"up after {machine.wait_up():.0f} s")
                    except MachineError as exc:
                        if "Kernel panic" not in str(exc) or not left:
                            raise
                        _say("its kernel panicked before it was up; once more")
                        continue
                    yield Stage(machine, frames)
                    return

        yield powered
        for violation in server.verdict():
            raise Broken(f"protocol violation: {violation}")


def run(arch: str, *, fast: bool, rows: dict[str, Row], folder: Path) -> None:
    """The day on one machine; fills `rows`. Raises Broken and the errors of what it stands on."""
    with _bench(arch, folder, keep=not fast) as powered:
        with powered() as stage:
            day = Day(stage, rows)
            (_short_day if fast else _whole_day)(day)
            if not fast:
                day.talk_until(stage.machine.power_cut)
        if fast:
            return
        with powered() as stage:
            _play(("start after a power cut in mid-turn", Day(stage, rows).start))
            stage.machine.run(VOICECTL, "mute")
            stage.machine.power_cut()
        with powered() as stage:
            day = Day(stage, rows)
            _play(("muted after a power cut", day.stays_muted), ("a turn", day.held_turn))


def run_weather(
    args: argparse.Namespace, folder: Path, rows: dict[str, FaultRow], holds: list[Invariant]
) -> None:
    """The day of bad weather; fills `rows` and `holds`, and raises as `run` does."""
    wanted = args.only.split(",") if args.only else []
    if args.sabotage:
        wanted = [sabotage.SABOTAGES[args.sabotage][1]]
    by_name = {scene.name: scene for scene in SCENES}
    scenes = [by_name[name] for name in wanted]
    bench = _bench(args.arch, folder, lambda root: furnish(root, args.sabotage), keep=False)
    with bench as powered, powered() as stage:
        weather = Weather(stage, args.seed, args.outage_s, rows)
        try:
            for scene in scenes or weather.rng.sample(SCENES, len(SCENES)):
                weather.play(scene, _say)
        finally:
            holds += weather.invariants()
            if args.keep:
                args.keep.write_text(weather.journal())


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/appliance.sh", description=__doc__)
    parser.add_argument("--arch", choices=SYSTEMS, default="amd64")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--fast", action="store_true", help="a short day")
    kind.add_argument("--weather", action="store_true", help="a day of bad weather")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    weather = parser.add_argument_group("bad weather")
    weather.add_argument("--seed", type=int, default=1, metavar="S", help="of order and severity")
    weather.add_argument(
        "--outage-s", type=float, default=OUTAGE_S, metavar="S", help="the long one"
    )
    weather.add_argument("--only", metavar="NAME,...", help="these scenes, in this order")
    weather.add_argument("--sabotage", choices=sabotage.SABOTAGES, default="", metavar="NAME")
    weather.add_argument("--keep", type=Path, metavar="FILE", help="keep the daemon's journal")
    args = parser.parse_args()
    names = {scene.name for scene in SCENES}
    if args.only and (unknown := set(args.only.split(",")) - names):
        parser.error(f"--only {', '.join(sorted(unknown))}: one of {', '.join(sorted(names))}")
    return args


def main() -> int:
    args = _arguments()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    problem = tree.missing(tree.NEEDED | needed(args.arch))
    if problem:
        _say(problem)
        return 1
    rows: dict[str, Row] = {}
    faults: dict[str, FaultRow] = {}
    holds: list[Invariant] = []
    broken = ""
    try:
        # Not /tmp, which may be in memory: two images of 2 GB.
        with tempfile.TemporaryDirectory(prefix="voiced-appliance-", dir="/var/tmp") as name:
            if args.weather:
                run_weather(args, Path(name), faults, holds)
            else:
                run(args.arch, fast=args.fast, rows=rows, folder=Path(name))
    except (Broken, MachineError, StandError, tree.TreeError) as exc:
        broken = str(exc)
    except KeyboardInterrupt:
        _say("interrupted")
        return 130
    finally:
        if args.weather:
            _tell_weather(faults, holds, args)
        else:
            _tell(rows, args.json)
    missed = [row.name for row in rows.values() if not _holds(row, fast=args.fast)]
    missed += [row.name for row in faults.values() if not row.ok]
    missed += [each.name for each in holds if not each.ok]
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


def _tell_weather(
    faults: dict[str, FaultRow], holds: list[Invariant], args: argparse.Namespace
) -> None:
    """The same of a day of bad weather."""
    if faults:
        print(fault_table(list(faults.values()), holds))
        print(f"seed {args.seed}, {args.arch}, an outage of {args.outage_s:.0f} s", flush=True)
    if args.json:
        told = {"seed": args.seed, "arch": args.arch, "outage_s": args.outage_s}
        args.json.write_text(faults_as_json(list(faults.values()), holds, **told))


if __name__ == "__main__":
    sys.exit(main())
