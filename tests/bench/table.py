"""Figures against their goals, as a table for people and as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import median


@dataclass
class Row:
    """One figure against its goal. `goal` holds (median, worst); None: no goal."""

    name: str
    values: list[float] = field(default_factory=list)
    goal: tuple[float | None, float | None] = (None, None)
    unit: str = "ms"

    @property
    def middle(self) -> float:
        return median(self.values)

    @property
    def worst(self) -> float:
        return max(self.values, key=abs)

    @property
    def ok(self) -> bool:
        return self.within(1.0)

    def within(self, times: float) -> bool:
        """Whether it stays within so many times its goal."""
        if not self.values:
            return False
        pairs = zip((self.middle, self.worst), self.goal, strict=True)
        return all(goal is None or abs(value) <= times * goal for value, goal in pairs)


def table(rows: Iterable[Row]) -> str:
    """A line a figure; `!!` marks a goal that is missed."""
    lines = [f"{'figure':58} {'median':>9} {'worst':>9}  {'goal':>13}      n"]
    for row in rows:
        goal = " / ".join("-" if g is None else f"{g:g}" for g in row.goal)
        middle = f"{row.middle:9.1f} {row.worst:9.1f}" if row.values else f"{'none':>19}"
        verdict = "  " if row.ok else "!!"
        lines.append(
            f"{row.name:58} {middle}  {goal:>10} {row.unit:2} {verdict} {len(row.values):4}"
        )
    return "\n".join(lines)


def as_json(rows: Iterable[Row]) -> str:
    """The same for programs: `version`, and in `rows` an object for each figure."""
    told = [
        {
            "name": row.name,
            "unit": row.unit,
            "median": row.middle if row.values else None,
            "worst": row.worst if row.values else None,
            "goal": row.goal,
            "n": len(row.values),
            "ok": row.ok,
        }
        for row in rows
    ]
    return json.dumps({"version": 1, "rows": told}, indent=1) + "\n"
