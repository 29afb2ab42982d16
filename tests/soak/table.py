"""What the soak found, a line a row, for people and as JSON.

JSON: `version`; `seed`; `minutes` (as they were); `faults`: for each its `name`, `injected`,
`recovered`, `states` (the named states that were seen), `worst_s` (null: never), `goal_s`, `ok`,
`complaints`; `invariants`: for each its `name`, `value` (null: not judged), `goal`, `unit`, `ok`;
`not_injected`: name -> why;
`memory_mb`: over the longest life of a process, the median of each tenth.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class FaultRow:
    """One fault, over all the times it was injected."""

    name: str
    goal_s: float
    injected: int = 0
    recovered: int = 0
    states: set[str] = field(default_factory=set)
    worst_s: float | None = None
    complaints: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        late = self.worst_s is not None and self.worst_s > self.goal_s
        return self.recovered == self.injected and not late and not self.complaints


@dataclass
class Invariant:
    """Something that holds all the time. `value` None: there was too little to judge by, and what
    was not judged is not known to hold."""

    name: str
    value: float | None
    goal: float
    unit: str = ""

    @property
    def ok(self) -> bool:
        return self.value is not None and self.value <= self.goal


def table(faults: Sequence[FaultRow], invariants: Sequence[Invariant]) -> str:
    """`!!` marks what is not as promised."""
    head = f"{'fault':32} {'injected':>8} {'recovered':>9}  {'worst s':>7} {'goal s':>7}     state"
    lines = [head]
    for row in faults:
        worst = "-" if row.worst_s is None else f"{row.worst_s:.1f}"
        lines.append(
            f"{row.name:32} {row.injected:8} {row.recovered:9}  {worst:>7} {row.goal_s:7.1f}  "
            f"{'  ' if row.ok else '!!'} {', '.join(sorted(row.states))}".rstrip()
        )
        lines += [f"{'':4}{each}" for each in row.complaints[:3]]
    lines += ["", f"{'holds all the time':51}  {'value':>7} {'at most':>7}"]
    for each in invariants:
        value = "-" if each.value is None else f"{each.value:.1f}"
        lines.append(
            f"{each.name:51}  {value:>7} {each.goal:7.1f}  {'  ' if each.ok else '!!'} {each.unit}"
        )
    return "\n".join(lines)


def as_json(faults: Sequence[FaultRow], invariants: Sequence[Invariant], **more: Any) -> str:
    """The same for programs."""
    told = {
        "version": 1,
        **more,
        "faults": [{**asdict(row), "states": sorted(row.states), "ok": row.ok} for row in faults],
        "invariants": [{**asdict(each), "ok": each.ok} for each in invariants],
    }
    return json.dumps(told, indent=1) + "\n"
