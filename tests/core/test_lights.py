from itertools import product
from typing import Any

import pytest

from voiced.core import lights
from voiced.core.faults import Blink
from voiced.core.link import LinkState
from voiced.core.turn import TurnState
from voiced.events import Pattern

Flags = dict[str, Any]

ALL = [
    (turn, link, {"fault": fault, "muted": muted, "refused": refused})
    for turn, link in product(TurnState, LinkState)
    for fault, muted, refused in product((None, *Blink), (False, True), (False, True))
]
NOTHING: Flags = {"fault": None, "muted": False, "refused": False}

ON_ONE_LED = 0.4
"""What is brighter lights an LED that can't dim; the rule is the edge's, the need ours."""


def shown(turn: TurnState, link: LinkState, flags: Flags) -> Pattern:
    return lights.pattern(turn, link, **flags)


def test_every_state_has_a_pattern_that_can_be_shown() -> None:
    for case in ALL:
        pattern = shown(*case)
        assert pattern.steps
        for colour, duration_ms in pattern.steps:
            assert all(0 <= part <= 1 for part in colour)
            assert duration_ms > 0


def test_dark_means_idle_and_nothing_to_tell() -> None:
    for turn, link, flags in ALL:
        quiet = turn is TurnState.IDLE and not any(flags.values())
        assert (shown(turn, link, flags) is lights.DARK) == quiet


def test_audio_never_leaves_under_a_light_that_one_led_can_not_show() -> None:
    """Not for a moment: a blinking LED is dark half of the time."""
    for turn, link, flags in ALL:
        if turn in (TurnState.HEARING, TurnState.THINKING) and link is LinkState.UP:
            steps = shown(turn, link, flags).steps
            assert min(max(colour) for colour, _ in steps) > ON_ONE_LED


def test_every_pattern_but_dark_shows_on_one_led() -> None:
    for case in ALL:
        pattern = shown(*case)
        brightest = max(max(colour) for colour, _ in pattern.steps)
        assert brightest > ON_ONE_LED or pattern is lights.DARK


def test_patterns_that_mean_different_things_differ() -> None:
    patterns = {shown(*case) for case in ALL}
    assert len({p.name for p in patterns}) == len({p.steps for p in patterns}) == len(patterns)


def test_a_steady_red_is_never_all_that_tells_mute_from_fault_from_refused() -> None:
    """They are all red: people tell them by how they blink."""
    rhythms = {
        tuple((max(colour) > ON_ONE_LED, duration) for colour, duration in pattern.steps)
        for pattern in (lights.MUTED, lights.REFUSED, *lights.FAULTS.values())
    }
    assert len(rhythms) == 2 + len(Blink)


@pytest.mark.parametrize("blink", Blink)
def test_a_fault_is_told_by_a_number_of_flashes(blink: Blink) -> None:
    pattern = shown(TurnState.IDLE, LinkState.DOWN, NOTHING | {"fault": blink})
    lit = [max(colour) > ON_ONE_LED for colour, _ in pattern.steps]
    assert sum(lit) == blink
    assert lit[::2] == [True] * blink  # each followed by a dark step
    pauses = [ms for colour, ms in pattern.steps if max(colour) == 0]
    assert pauses[-1] >= 4 * max(pauses[:-1], default=0)  # nobody miscounts where it begins


def test_a_refused_press_shows_where_it_hides_no_sound_that_leaves() -> None:
    for turn, link, flags in ALL:
        quiet = turn in (TurnState.IDLE, TurnState.LISTENING)
        assert (shown(turn, link, flags | {"refused": True}) is lights.REFUSED) == quiet


@pytest.mark.parametrize("link", [link for link in LinkState if link is not LinkState.UP])
def test_listening_tells_whether_the_server_is_there(link: LinkState) -> None:
    flags = NOTHING
    there = shown(TurnState.LISTENING, LinkState.UP, flags)
    assert shown(TurnState.LISTENING, link, flags) is not there


def test_muted_and_faulty_shows_muted() -> None:
    """Who muted it must see that it is; the fault is told with the next press."""
    flags = NOTHING | {"fault": Blink.NETWORK, "muted": True}
    assert shown(TurnState.IDLE, LinkState.DOWN, flags) is lights.MUTED
