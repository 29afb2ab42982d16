"""`python -m tests.soak [--minutes N] [--seed S] [--only NAME,...] [--json FILE] [--keep FILE]`
`python -m tests.soak --sabotage NAME | --sabotages`

The real daemon, through real libasound and a real TLS connection, in a random mix of turns and
faults. The same seed gives the same order. Exit code 1 if a promise was broken. With a sabotage
one is broken on purpose, and the exit code is 1 if that was not noticed.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from tests.soak.sabotage import SABOTAGES
from tests.soak.scenes import SCENES
from tests.soak.stage import Stage, Verdict
from tests.soak.table import FaultRow, Invariant, as_json, table
from tests.soak.trial import Scene, Trial
from tests.soak.unit import Use, growth

MORTAL_SHARE = 0.7
"""Of the time without what ends the process: growth is seen in one that lives long."""

LISTEN_S = 10 * 60
"""Recordings are begun anew after this long."""

RSS_MB, THREADS, DESCRIPTORS = 4.0, 1.0, 2.0
"""Growth from the second quarter of a life to its last. Memory: 0.7 MB in five minutes of
all that is quick, 1.7 MB in two of what is not. Threads: one may look up a name. A descriptor more
is that of a link, of which one may be open in the one and not in the other."""

UNCOMPARED_PERCENT = 50.0
"""Where the machine was too late to speak or to record. Beside a load of 8 it was a quarter."""


class Soak:
    """The rows, and what fills them."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.rows = {scene.name: FaultRow(scene.name, scene.goal_s) for scene in SCENES}
        self.verdicts: list[Verdict] = []
        self.disordered = 0
        self.not_injected: dict[str, str] = {}
        self.began = time.monotonic()
        self._counters: dict[str, int] = {}
        self._life: object = None
        self._listening_since = time.monotonic()

    def can(self, scene: Scene) -> bool:
        """Whether it can be played here; notes why not."""
        if why := self.stage.lacks(scene.needs):
            self.not_injected[scene.name] = why
        return not why

    def play(self, scene: Scene) -> None:
        """One scene, from rest to rest. Raises what there is no way back from."""
        stage, row = self.stage, self.rows[scene.name]
        if time.monotonic() - self._listening_since > LISTEN_S:
            stage.listen()
            self._listening_since = time.monotonic()
        stage.begin_scene()
        trial = Trial(stage)
        row.injected += 1
        exits, complaints = len(stage.unit.exits), len(row.complaints)
        began = time.monotonic()
        try:
            scene.play(stage, trial)
            row.recovered += 1
        except Exception as exc:  # whatever it was, the table is not lost for it
            row.complaints.append(f"{type(exc).__name__}: {exc}")
        row.states |= trial.states
        row.worst_s = max([row.worst_s or 0.0, *trial.served_s]) if trial.served_s else row.worst_s
        for each in stage.unit.exits[exits:]:
            if not each.why:
                row.complaints.append(f"the daemon ended with {each.code}")
        took = ", ".join(f"{seconds:.1f} s" for seconds in trial.served_s)
        wrong = "; ".join(row.complaints[complaints:])
        _say(f"{began - self.began:7.1f} {scene.name}: {wrong or took}")
        stage.rest()
        verdict = stage.verdict()
        self.verdicts.append(verdict)
        self._tell(scene, verdict)
        self._look_at_counters()

    def _tell(self, scene: Scene, verdict: Verdict) -> None:
        """Where something is wrong, say in which scene."""
        if not verdict.ok:
            _say(f"        {scene.name}: {verdict}")

    def _look_at_counters(self) -> None:
        """They only ever grow, in one process."""
        life, now = self.stage.life, self.stage.status()["counters"]
        if life is self._life:
            self.disordered += sum(now[name] < self._counters[name] for name in now)
        self.disordered += sum(value < 0 for value in now.values())
        self._life, self._counters = life, now

    def memory_mb(self) -> list[float]:
        """Of the longest life, the median of each tenth."""
        values = self._longest().rss_mb
        size = max(1, len(values) // 10)
        return [median(values[at : at + size]) for at in range(0, len(values) - size + 1, size)]

    def _longest(self) -> Use:
        return max((life.use for life in self.stage.unit.lives), key=lambda use: len(use.rss_mb))

    def invariants(self) -> list[Invariant]:
        unit, use = self.stage.unit, self._longest()
        found = self.verdicts
        exits = sum(not each.why for each in unit.exits)
        said = unit.log()
        return [
            Invariant("words lost or doubled", self._words(), 0, "turns"),
            Invariant("answered more than once", sum(v.repeated for v in found), 0),
            Invariant("words not compared", self._uncompared_percent(), UNCOMPARED_PERCENT, "%"),
            Invariant("sound that was not due", max(v.undue_ms for v in found), 0, "ms"),
            Invariant("sound of another answer", max(v.strange_ms for v in found), 0, "ms"),
            Invariant("audio left in the dark", sum(v.dark for v in found), 0, "appends"),
            Invariant("memory grown", growth(use.rss_mb), RSS_MB, "MB"),
            Invariant("threads grown", growth(use.threads), THREADS),
            Invariant("descriptors grown", growth(use.descriptors), DESCRIPTORS),
            Invariant("ends that nobody asked for", exits, 0),
            Invariant("counters that went back", self.disordered, 0),
            Invariant(
                "violations of the protocol",
                self.stage.backstage.do(lambda: self.stage.server.verdict.violation_count),
                0,
            ),
            Invariant("unexpected exceptions in its journal", said.count("Traceback"), 0),
            Invariant("own errors in its journal", said.count(" unlisted cause"), 0),
        ]

    def _uncompared_percent(self) -> float:
        unjudged = sum(v.unjudged for v in self.verdicts)
        return 100 * unjudged / max(1, unjudged + sum(v.words for v in self.verdicts))

    def _words(self) -> float | None:
        if not any(v.words for v in self.verdicts):
            return None
        return sum(not v.words_ok for v in self.verdicts)


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def order(seed: int, minutes: float, soak: Soak) -> Iterator[Scene]:
    """Rounds of all scenes, each in an order of its own. In the first, only the quick ones; near
    the end those that may end the process, too."""
    rng = random.Random(seed)
    began, whole_s = time.monotonic(), minutes * 60

    def share() -> float:
        return (time.monotonic() - began) / whole_s

    mine = [scene for scene in SCENES if soak.can(scene)]
    lively = [scene for scene in mine if not scene.is_deadly]
    first = [scene for scene in lively if scene.is_quick]
    yield from rng.sample(first, len(first))
    while share() < MORTAL_SHARE:
        for scene in rng.sample(lively, len(lively)):
            if share() < MORTAL_SHARE:
                yield scene
    deadly = [scene for scene in mine if scene.is_deadly]
    yield from rng.sample(quick := [s for s in deadly if s.is_quick], len(quick))
    while share() < 1:
        for scene in rng.sample(mine, len(mine)):
            if share() < 1:
                yield scene


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/soak.sh", description="Turns and faults.")
    parser.add_argument("--minutes", type=float, default=60.0, metavar="N")
    parser.add_argument("--seed", type=int, default=1, metavar="S")
    parser.add_argument("--only", metavar="NAME,...", help="these scenes, once, in this order")
    broken = parser.add_mutually_exclusive_group()
    broken.add_argument("--sabotage", choices=SABOTAGES, metavar="NAME", help="is it noticed?")
    broken.add_argument("--sabotages", action="store_true", help="each, until one is not noticed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table there, too")
    parser.add_argument(
        "--keep",
        type=Path,
        metavar="FILE",
        help="keep the daemon's journal, and beside it words that were lost or doubled",
    )
    args = parser.parse_args()
    names = {scene.name for scene in SCENES}
    if args.only and (unknown := set(args.only.split(",")) - names):
        parser.error(f"--only {', '.join(sorted(unknown))}: one of {', '.join(sorted(names))}")
    return args


def run(args: argparse.Namespace, sabotaged: str | None) -> int:
    """One soak, told; the exit code."""
    by_name = {scene.name: scene for scene in SCENES}
    sabotage = SABOTAGES[sabotaged] if sabotaged else None
    names = args.only.split(",") if args.only else sabotage.scenes if sabotage else ()
    broken = ""
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        with Stage(args.seed, sabotaged or "none", Path(folder), args.keep) as stage:
            soak = Soak(stage)
            chosen = [by_name[name] for name in names if soak.can(by_name[name])]
            played = "nothing"
            try:
                for scene in chosen if names else order(args.seed, args.minutes, soak):
                    played = scene.name
                    soak.play(scene)
            except (Exception, KeyboardInterrupt) as exc:
                broken = f"no way back after {played}: {exc!r}"
            invariants = soak.invariants() if soak.verdicts else []
            if names:  # of some scenes alone not all can be judged
                invariants = [each for each in invariants if each.value is not None]
            memory_mb = soak.memory_mb()
            minutes = (time.monotonic() - soak.began) / 60
            if args.keep:
                args.keep.write_text(stage.unit.log())
        rows = [row for row in soak.rows.values() if row.injected]
    if not names:
        late = [row.name for row in soak.rows.values() if not row.injected]
        soak.not_injected = {**dict.fromkeys(late, "no time for it"), **soak.not_injected}
    print(table(rows, invariants))
    unjudged = sum(verdict.unjudged for verdict in soak.verdicts)
    words = sum(verdict.words for verdict in soak.verdicts)
    print(
        f"\nseed {args.seed}, {minutes:.1f} minutes, {sum(row.injected for row in rows)} scenes; "
        f"{words} utterances compared, {unjudged} not (the recording had a gap)"
    )
    for why, count in Counter(soak.not_injected.values()).items():
        left_out = ", ".join(name for name, each in soak.not_injected.items() if each == why)
        print(f"NOT INJECTED, {count}: {left_out}: {why}")
    print("memory over the longest life, MB: " + " ".join(f"{mb:.1f}" for mb in memory_mb))
    if broken:
        print(f"broke down: {broken}")
    if args.json:
        args.json.write_text(
            as_json(
                rows,
                invariants,
                seed=args.seed,
                minutes=round(minutes, 2),
                not_injected=soak.not_injected,
                memory_mb=memory_mb,
            )
        )
    red = [each.name for each in (*rows, *invariants) if not each.ok]
    if red:
        print("red: " + "; ".join(red))
    if sabotage and not args.only:
        noticed = sabotage.noticed_by in red and not broken
        print(f"{sabotaged}: {'noticed' if noticed else 'NOT NOTICED'} by: {sabotage.noticed_by}")
        return 0 if noticed else 1
    return 1 if red or broken else 0


def main() -> int:
    args = _arguments()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)  # clean up, whoever ends it
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    sys.setswitchinterval(0.0005)
    names = SABOTAGES if args.sabotages else [args.sabotage]
    return next((code for name in names if (code := run(args, name))), 0)


if __name__ == "__main__":
    sys.exit(main())
