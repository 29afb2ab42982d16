from hypothesis import given
from hypothesis import strategies as st

from voiced.core.timers import Timers


def test_nothing_is_due_without_a_deadline() -> None:
    timers = Timers()
    assert timers.next() is None
    assert timers.due(1e9) is None


def test_a_deadline_is_due_from_its_very_time_on_and_once() -> None:
    timers = Timers()
    timers.set("ceiling", 5.0)
    assert timers.next() == 5.0
    assert timers.due(4.999) is None
    assert timers.due(5.0) == "ceiling"
    assert timers.due(5.0) is None
    assert timers.next() is None


def test_setting_again_moves_it() -> None:
    timers = Timers()
    timers.set("asked", 5.0)
    timers.set("asked", 7.0)
    assert timers.due(6.0) is None
    assert timers.due(7.0) == "asked"
    assert timers.due(7.0) is None


def test_cancelled_is_forgotten_and_what_was_never_set_is_no_harm() -> None:
    timers = Timers()
    timers.set("grace", 1.0)
    timers.set("tail", 2.0)
    timers.cancel("grace", "never")
    assert "grace" not in timers
    assert "tail" in timers
    assert timers.due(9.0) == "tail"


@given(st.dictionaries(st.sampled_from("abcdefgh"), st.floats(0, 10)), st.floats(0, 10))
def test_what_has_passed_comes_in_order_and_the_rest_stays(
    deadlines: dict[str, float], now: float
) -> None:
    timers = Timers()
    for name, at in deadlines.items():
        timers.set(name, at)
    taken = []
    while due := timers.due(now):
        taken.append(due)
    times = [deadlines[name] for name in taken]
    assert times == sorted(times)
    assert set(taken) == {name for name, at in deadlines.items() if at <= now}
    assert timers.next() == min((at for at in deadlines.values() if at > now), default=None)
