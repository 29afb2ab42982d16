import pytest

from tests.docs import DOCS, DRAWN, diagram, split
from voiced.core.turn import TABLE, TurnState


@pytest.mark.parametrize(("document", "part"), DRAWN)
def test_what_is_drawn_from_the_code_is_up_to_date(document: str, part: str) -> None:
    _, between, _ = split((DOCS / document).read_text("utf-8"), part)
    drawn = DRAWN[document, part]()
    assert between == drawn, f"docs/{document} is old. Run: python -m tests.docs"


def test_the_diagram_has_an_arrow_for_every_change_of_state() -> None:
    lines = diagram().splitlines()
    for state, row in TABLE.items():
        for cause, (to, _) in row.items():
            if state is not to:
                (arrow,) = [x for x in lines if x.startswith(f"    {state.name} --> {to.name}: ")]
                assert cause.value in arrow.partition(": ")[2].split(", ")


def test_the_diagram_begins_in_idle_and_shows_every_state() -> None:
    text = diagram()
    assert f"[*] --> {TurnState.IDLE.name}" in text
    for state in TurnState:
        assert f" --> {state.name}" in text


def test_a_document_without_its_markers_is_not_taken_for_current() -> None:
    with pytest.raises(ValueError, match="end of turn"):
        split("<!-- turn -->\n and no end", "turn")
