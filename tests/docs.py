"""The parts of the documents that are drawn from the code. `python -m tests.docs` renews them."""

from collections.abc import Callable
from pathlib import Path

from voiced.core.faults import FAULTS
from voiced.core.turn import TABLE, Action, TurnState

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
    """The table of faults, and what is said and written of each."""
    lines = [
        "| fault | says | known by | remedy | tried again | light | deaf | exit |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for fault in FAULTS.values():
        deaf, code = "yes" if fault.deaf else "", fault.exit_code or ""
        cells = (fault.status, fault.known_by, fault.remedy, fault.retry.value, fault.blink.value)
        lines.append(f"| `{fault.name}` | {' | '.join(map(str, cells))} | {deaf} | {code} |")
    return "\n".join(lines)


def messages() -> str:
    """What each fault is called in the journal, and what a person hears of it."""
    lines = ["| fault | MESSAGE_ID | sound | words |", "|---|---|---|---|"]
    lines += [
        f"| `{fault.name}` | `{fault.message_id}` | {fault.earcon} | {fault.spoken or '–'} |"
        for fault in FAULTS.values()
    ]
    return "\n".join(lines)


DRAWN: dict[tuple[str, str], Callable[[], str]] = {
    ("architecture.md", "turn"): diagram,
    ("architecture.md", "actions"): actions,
    ("faults.md", "faults"): faults,
    ("faults.md", "messages"): messages,
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
