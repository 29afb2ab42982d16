import numpy as np
import pytest

from voiced.sim.streams import EAR_PERIOD_S
from voiced.sim.timeline import GAP_PROOF_S, Timeline

RATE = 48_000
PERIOD = round(EAR_PERIOD_S * RATE)


def observe(timeline: Timeline, first: int, periods: int, true_offset: float, seed: int) -> int:
    """Observations of a stream, most of them late by up to 10 ms; the index it ends at."""
    late_s = np.random.default_rng(seed).uniform(0, 0.010, periods)
    late_s[::50] = 0
    for n in range(periods):
        index = first + n * PERIOD
        timeline.observe(true_offset + index / RATE + late_s[n], index)
    return first + periods * PERIOD


def test_late_readings_do_not_shift_the_dates() -> None:
    timeline = Timeline(RATE)
    end = observe(timeline, PERIOD, 2000, 100.0, seed=1)
    for index in (0, 1, RATE, 7 * RATE + 5, end, end + RATE):
        assert timeline.time_at(index) == pytest.approx(100 + index / RATE, abs=0.0005)
        assert timeline.index_at(timeline.time_at(index)) == index
    assert timeline.gaps == []


def test_a_slow_clock_is_followed() -> None:
    timeline = Timeline(RATE)
    slow = 1.0001  # 100 ppm: 180 ms in half an hour
    for index in range(0, 600 * RATE, PERIOD):
        timeline.observe(slow * index / RATE, index)
    for second in (1, 300, 599):
        assert timeline.time_at(second * RATE) == pytest.approx(slow * second, abs=0.001)


def test_lost_samples_are_found_by_the_clock() -> None:
    timeline = Timeline(RATE)
    cut = observe(timeline, 0, 1000, 100.0, seed=1)
    end = observe(timeline, cut, 1000, 100.2, seed=2)
    ((where, lost_s),) = timeline.gaps
    assert where == pytest.approx(cut, abs=2 * PERIOD)
    assert lost_s == pytest.approx(0.2, abs=0.001)
    assert timeline.time_at(cut - 5 * PERIOD) == pytest.approx(
        100 + (cut - 5 * PERIOD) / RATE, abs=0.001
    )
    assert timeline.time_at(end) == pytest.approx(100.2 + end / RATE, abs=0.001)


def test_a_stalled_reader_that_catches_up_lost_nothing() -> None:
    timeline = Timeline(RATE)
    at_stall = observe(timeline, 0, 1000, 100.0, seed=1)
    woke = 100 + at_stall / RATE + 20
    backlog = round(20 * RATE)
    for n in range(0, backlog, PERIOD):  # reads at 100 times the pace
        timeline.observe(woke + n / RATE / 100, at_stall + n)
    observe(timeline, at_stall + backlog + round(0.2 * RATE), 500, 100.0, seed=2)
    assert timeline.gaps == []
    assert timeline.time_at(at_stall + backlog // 2) == pytest.approx(
        100 + (at_stall + backlog // 2) / RATE, abs=0.001
    )


def test_what_was_lost_at_the_end_of_a_long_stall_is_dated_from_there_on() -> None:
    timeline = Timeline(RATE)
    at_stall = observe(timeline, 0, 1000, 100.0, seed=1)
    backlog = 20 * RATE  # kept; then 8 s were lost
    woke = 100 + at_stall / RATE + 28
    for n in range(0, backlog, PERIOD):
        timeline.observe(woke + n / RATE / 100, at_stall + n)
    resumed = at_stall + backlog
    observe(timeline, resumed, 1000, 108.2, seed=2)
    ((where, lost_s),) = timeline.gaps
    assert where == pytest.approx(resumed, abs=0.05 * RATE)
    assert lost_s == pytest.approx(8.2, abs=0.001)
    middle = at_stall + backlog // 2
    assert timeline.time_at(middle) == pytest.approx(100 + middle / RATE, abs=0.001)


def test_a_short_delay_is_no_gap() -> None:
    timeline = Timeline(RATE)
    index = observe(timeline, 0, 1000, 100.0, seed=1)
    for n in range(round(GAP_PROOF_S * RATE / 2 / PERIOD)):
        timeline.observe(100.1 + (index + n * PERIOD) / RATE, index + n * PERIOD)
    observe(timeline, index + RATE, 1000, 100.0, seed=2)
    assert timeline.gaps == []


def test_nothing_is_dated_before_the_first_observation() -> None:
    timeline = Timeline(RATE)
    assert not timeline
    with pytest.raises(LookupError, match="observed"):
        timeline.time_at(0)
