"""The parts of the documents that are drawn from the code. `python -m tests.docs` renews them."""

import typing
from collections.abc import Callable
from pathlib import Path

from voiced.core.faults import FAULTS
from voiced.core.turn import TABLE, Action, TurnState
from voiced.events import Device

DOCS = Path(__file__).parent.parent / "docs"


def diagram() -> str:
    """The turn machine; all causes between two states on one arrow."""
    arrows: dict[tuple[TurnState, TurnState], list[str]] = {}
    for state, row in TABLE.items():
        for cause, (to, action) in row.items():
            if state is not to or action is not Action.STAY:
                arrows.setdefault((state, to), []).append(cause.value)
    lines = ["```mermaid", "stateDiagram-v2", f"    [*] --> {TurnState.IDLE.name}"]
    for (state, to), causes in arrows.items():
        lines.append(f"    {state.name} --> {to.name}: {', '.join(causes)}")
    return "\n".join([*lines, "```"])


def actions() -> str:
    """What each action does, and with which causes it comes."""
    lines = ["| action | does | on |", "|---|---|---|"]
    for action in Action:
        if action is Action.STAY:
            continue
        on: dict[str, None] = {}
        for row in TABLE.values():
            on |= dict.fromkeys(cause.value for cause, (_, does) in row.items() if does is action)
        lines.append(f"| `{action.name}` | {action.value} | {', '.join(on)} |")
    return "\n".join(lines)


def faults() -> str:
    """The table of faults; the last column is of the link's alone."""
    lines = ["| fault | says | remedy | dialled again |", "|---|---|---|---|"]
    for fault in FAULTS.values():
        of_device = fault.name.startswith(typing.get_args(Device))
        retry = "–" if of_device else fault.retry.value
        lines.append(f"| `{fault.name}` | {fault.status} | {fault.remedy} | {retry} |")
    return "\n".join(lines)


DRAWN: dict[tuple[str, str], Callable[[], str]] = {
    ("architecture.md", "turn"): diagram,
    ("architecture.md", "actions"): actions,
    ("faults.md", "faults"): faults,
}
"""(document, part) -> what stands between `<!-- part -->` and `<!-- end of part -->`."""


def split(text: str, part: str) -> tuple[str, str, str]:
    """What is before, between and behind the markers, markers left outside."""
    begin, end = f"<!-- {part} -->\n", f"\n<!-- end of {part} -->"
    before, found, rest = text.partition(begin)
    between, ended, behind = rest.partition(end)
    if not (found and ended):
        raise ValueError(f"the markers {begin.strip()} and {end.strip()} are missing")
    return before + begin, between, end + behind


def main() -> None:
    """Write all parts anew."""
    for (document, part), draw in DRAWN.items():
        path = DOCS / document
        before, _, behind = split(path.read_text("utf-8"), part)
        path.write_text(before + draw() + behind, "utf-8")


if __name__ == "__main__":
    main()
