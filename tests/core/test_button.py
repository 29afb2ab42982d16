import pytest
from hypothesis import given
from hypothesis import strategies as st

from voiced.core.button import DEBOUNCE_S, HOLD_S, Button, Press

MS = 0.001
UP = (Press.TAP, Press.RELEASE)


class Finger:
    """Drives a button as its shell does: a tick at each deadline, then the edge."""

    def __init__(self) -> None:
        self.button = Button()
        self.reports: list[tuple[Press, float]] = []

    def edge(self, down: bool, at: float) -> None:
        self.wait(at)
        if press := self.button.edge(down, at):
            self.reports.append((press, at))

    def wait(self, until: float) -> None:
        while (due := self.button.deadline()) is not None and due <= until:
            self.tick(due)

    def tick(self, at: float) -> None:
        while press := self.button.tick(at):
            self.reports.append((press, at))

    @property
    def presses(self) -> list[Press]:
        return [press for press, _ in self.reports]


def reported(finger: Finger, *edges: tuple[bool, float], until: float = 10.0) -> list[Press]:
    for down, at in edges:
        finger.edge(down, at)
    finger.wait(until)
    return finger.presses


def test_a_press_is_reported_at_its_first_edge() -> None:
    assert Button().edge(True, 5.0) is Press.DOWN


def test_nothing_happens_to_a_button_nobody_touches() -> None:
    button = Button()
    assert button.deadline() is None
    assert button.tick(100.0) is None
    assert button.edge(False, 100.0) is None


def test_a_bouncing_tap_is_one_tap() -> None:
    bounces = [(True, 0.0), (False, 0.003), (True, 0.005), (False, 0.2), (True, 0.204)]
    assert reported(Finger(), *bounces, (False, 0.209)) == [Press.DOWN, Press.TAP]


def test_a_bouncing_hold_is_one_hold() -> None:
    down = [(True, 0.0), (False, 0.02), (True, 0.025)]
    up = [(False, 2.0), (True, 2.01), (False, 2.02)]
    finger = Finger()
    assert reported(finger, *down, *up) == [Press.DOWN, Press.HOLD, Press.RELEASE]
    assert [at for _, at in finger.reports] == [0.0, HOLD_S, 2.0]


@pytest.mark.parametrize(
    ("held_s", "meant"),
    [
        (HOLD_S - MS, [Press.DOWN, Press.TAP]),
        (HOLD_S, [Press.DOWN, Press.HOLD, Press.RELEASE]),
        (HOLD_S + MS, [Press.DOWN, Press.HOLD, Press.RELEASE]),
    ],
)
def test_the_limit_between_tap_and_hold_is_exact(held_s: float, meant: list[Press]) -> None:
    assert reported(Finger(), (True, 0.0), (False, held_s)) == meant


def test_a_hold_is_reported_while_the_finger_is_down() -> None:
    button = Button()
    button.edge(True, 1.0)
    assert button.tick(1.0 + HOLD_S - MS) is None
    assert button.deadline() == 1.0 + HOLD_S
    assert button.tick(1.0 + HOLD_S) is Press.HOLD
    assert button.tick(1.0 + HOLD_S) is None
    assert button.deadline() is None


def test_a_contact_shorter_than_the_debounce_is_a_tap_when_it_is_over() -> None:
    finger = Finger()
    assert reported(finger, (True, 0.0), (False, 0.005)) == [Press.DOWN, Press.TAP]
    assert finger.reports[1][1] == DEBOUNCE_S


def test_a_release_as_short_as_a_bounce_is_not_lost() -> None:
    """Down, up, and down again within the window of the up: a second press, a little late."""
    edges = [(True, 0.0), (False, 0.1), (True, 0.1 + DEBOUNCE_S / 2)]
    assert reported(Finger(), *edges, until=0.2) == [Press.DOWN, Press.TAP, Press.DOWN]


@pytest.mark.parametrize("level", [False, True])
def test_a_bounce_that_sticks_is_believed_after_the_window(level: bool) -> None:
    finger = Finger()
    for step in range(9):
        finger.edge(step % 2 == 0, step * MS)
    finger.edge(level, 10 * MS)
    finger.wait(DEBOUNCE_S)
    assert (finger.presses[-1] is Press.DOWN) == level


def test_repeated_levels_mean_nothing() -> None:
    edges = [(True, 0.0), (True, 0.05), (True, 0.1), (False, 0.2), (False, 0.3)]
    assert reported(Finger(), *edges) == [Press.DOWN, Press.TAP]


EDGES = st.lists(st.tuples(st.booleans(), st.floats(0, 0.7)), max_size=60)


@given(EDGES)
def test_any_edges_end_with_the_level_that_is(edges: list[tuple[bool, float]]) -> None:
    finger, now, level = Finger(), 0.0, False
    for level, gap_s in edges:  # noqa: B007
        now += gap_s
        finger.edge(level, now)
    finger.wait(now + DEBOUNCE_S)
    reported_down = bool(finger.presses) and finger.presses[-1] not in UP
    assert reported_down == level


@given(EDGES)
def test_any_edges_make_whole_taps_and_holds(edges: list[tuple[bool, float]]) -> None:
    finger, now = Finger(), 0.0
    for level, gap_s in edges:
        now += gap_s
        finger.edge(level, now)
    finger.edge(False, now + 1)
    finger.wait(now + 2)
    assert_whole(finger.presses)
    times = [at for _, at in finger.reports]
    assert times == sorted(times)


def assert_whole(presses: list[Press]) -> None:
    """Each is DOWN TAP or DOWN HOLD RELEASE, to its end."""
    story = " ".join(press.value for press in presses)
    assert not story.replace("down hold release", "").replace("down tap", "").strip(), story


# --- the shell is late ---------------------------------------------------------------------


def test_a_release_that_is_seen_before_the_tick_of_its_hold_is_still_a_hold() -> None:
    finger = Finger()
    finger.reports.append((Press.DOWN, 0.0))
    finger.button.edge(True, 0.0)
    if press := finger.button.edge(False, HOLD_S + 10 * MS):
        finger.reports.append((press, HOLD_S + 10 * MS))
    finger.tick(HOLD_S + 2 * DEBOUNCE_S)
    assert_whole(finger.presses)


def test_a_short_contact_whose_tick_is_late_is_still_a_tap() -> None:
    button = Button()
    button.edge(True, 0.0)
    button.edge(False, 0.005)
    assert button.tick(HOLD_S + 10 * MS) is Press.TAP
