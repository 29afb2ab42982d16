"""`python -m tests.bench [--only NAME,...] [--json FILE] [--sabotage NAME]`: the promises,
measured, in one table.

Everything is measured from outside: the speaker's recording, the microphone's tap, the server's
frame log, the pins. The rig's own delay is measured in the same run and taken off. Exit code 1 if
a goal is missed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.bench import answers, cost, echo, ends, gate, silence, words, writes
from tests.bench.sabotage import SABOTAGES
from tests.bench.stage import Scenario, Stage, circumstances
from tests.bench.table import as_json, table
from voiced.sim.rig import Rig
from voiced.sim.stand import StandError
from voiced.sim.streams import Ear, Mouth


def _of_recordings(stage: Stage) -> None:
    """The gate on human voices, without a daemon."""
    for row in gate.rows():
        stage.rows[row.name] = row


def _of_rooms(stage: Stage) -> None:
    """The canceller and the detector in simulated rooms, without a daemon."""
    for row in echo.rows():
        stage.rows[row.name] = row


def _of_a_day(stage: Stage) -> None:
    """What is written to the disk in a simulated day, without a daemon."""
    for row in writes.rows():
        stage.rows[row.name] = row


SCENARIOS: dict[str, tuple[Scenario, ...]] = {
    "silence": (silence.presses, silence.commands, silence.click),
    "speech-over": (silence.speech_over,),
    "words": (words.first_word, words.link_down, words.nothing_said),
    "ends": (ends.hands_free, ends.ends),
    "answers": (answers.trickle,),
    "cost": (cost.cost, cost.with_canceller),
    "gate": (_of_recordings,),
    "echo": (_of_rooms,),
    "writes": (_of_a_day,),
}
"""Name -> what is done. Each takes a minute or two."""


def _measure(stage: Stage, names: list[str]) -> str:
    """Run the scenarios of these names; what broke down, or nothing."""
    try:
        for name in names:
            for scenario in SCENARIOS[name]:
                print(f"{name}: {scenario.__name__.strip('_')}", file=sys.stderr)
                scenario(stage)
    except StandError as exc:
        return str(exc)
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench.sh", description="Measure the promises.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    parser.add_argument("--sabotage", choices=SABOTAGES, default="none", metavar="NAME")
    parser.add_argument(
        "--only", metavar="NAME,...", help=f"some of the scenarios: {', '.join(SCENARIOS)}"
    )
    args = parser.parse_args()
    sabotage = SABOTAGES.get(args.sabotage)
    names = args.only.split(",") if args.only else [sabotage.noticed_by] if sabotage else []
    if unknown := set(names) - set(SCENARIOS):
        parser.error(f"--only {','.join(sorted(unknown))}: one of {', '.join(SCENARIOS)}")
    if sabotage:
        sabotage.apply()  # for what is measured without a daemon
    with tempfile.TemporaryDirectory() as folder, Rig() as rig:
        rig.apply()
        with Ear(rig) as ear, Mouth(rig) as mouth, Ear(rig, Rig.mic_tap) as tap:
            stage = Stage(args.sabotage, rig, ear, mouth, tap, Path(folder))
            broken = _measure(stage, names or list(SCENARIOS))
    rows = list(stage.rows.values())
    print(f"{table(rows)}\n{circumstances(stage)}")
    if args.json:
        args.json.write_text(as_json(rows))
    missed = [row.name for row in rows if not row.ok]
    if broken:
        print(f"broke down: {broken}")
    if missed:
        print("missed: " + "; ".join(missed))
    return 1 if missed or broken else 0


if __name__ == "__main__":
    sys.exit(main())
