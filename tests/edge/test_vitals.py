"""Whatever the machine does, a good card is not called slow or stuck; a broken one always is."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from voiced.edge.vitals import LATE_S, SLOWEST, STILL_S, WINDOW_S, Pace, Position

RATE = 24_000
PERIOD_S = 0.02
PERIOD = round(RATE * PERIOD_S)
BUFFER_S = 1.0  # of the microphone


class Card:
    """A microphone that delivers `share` of its rate to a reader that may be late."""

    def __init__(self, share: float = 1.0, *, silent_loss: bool = False) -> None:
        self.rate = RATE * share
        self.now = self._made_at = 100.0
        self._silent_loss = silent_loss
        self._read = 0.0

    def read(self) -> int:
        """A blocking read of a period; -1 after an overrun."""
        waiting = (self.now - self._made_at) * self.rate - self._read
        if waiting > BUFFER_S * RATE:
            lost = waiting if not self._silent_loss else waiting - BUFFER_S * RATE
            self._read += lost
            if not self._silent_loss:
                return -1
        self._read += PERIOD
        self.now = max(self.now, self._made_at + self._read / self.rate)
        return PERIOD


def measured(card: Card, seconds: float, late: Iterator[float]) -> list[float]:
    """What the pace says meanwhile; before each read the reader is away for the next of `late`."""
    pace, told = Pace(PERIOD_S), []
    end = card.now + seconds
    while card.now < end:
        card.now += next(late)
        asked_at = card.now
        frames = card.read()
        if frames < 0:
            pace.clear()
        elif (rate := pace.add(frames, asked_at, card.now)) is not None:
            told.append(rate)
    return told


def always(seconds: float) -> Iterator[float]:
    while True:
        yield seconds


def stalls(seed: int, longest_s: float) -> Iterator[float]:
    """A busy machine: mostly in time, sometimes away for up to so long."""
    rng = random.Random(seed)
    while True:
        yield rng.uniform(0, longest_s) if rng.random() < 0.03 else rng.uniform(0, 0.005)


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5, 0.89])
def test_a_slow_card_is_measured_within_a_window_of_5_s(share: float) -> None:
    # A read of the slowest takes 1 s, of which a quarter counts.
    told = measured(Card(share), 4 * WINDOW_S + 2, always(0.0))
    assert told
    assert max(told) < SLOWEST * RATE
    if share >= 0.1:
        assert told[0] == pytest.approx(share * RATE, rel=0.01)
        assert len(told) >= 3


@pytest.mark.parametrize("late_s", [0.0, 0.004, 0.019])
def test_a_card_in_time_is_measured_exactly(late_s: float) -> None:
    told = measured(Card(), 50.0, always(late_s))
    assert len(told) >= 3
    assert told == pytest.approx([RATE] * len(told), rel=0.01)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("longest_s", [0.2, 0.95, 4.0])
def test_a_machine_that_stalls_is_no_slow_card(seed: int, longest_s: float) -> None:
    """The card's buffer gives what it kept, or an overrun tells that it could not."""
    told = measured(Card(), 120.0, stalls(seed, longest_s))
    assert all(rate >= SLOWEST * RATE for rate in told)
    assert told or longest_s > BUFFER_S


@pytest.mark.parametrize("seed", range(20))
def test_a_reader_that_falls_behind_is_no_slow_card(seed: int) -> None:
    """For up to a second and a half its work takes it longer than the sound lasts."""

    def bursts() -> Iterator[float]:
        rng = random.Random(seed)
        while True:
            yield from [0.001] * rng.randrange(300)
            yield from [0.04] * rng.randrange(40)

    told = measured(Card(), 120.0, bursts())
    assert told
    assert min(told) >= SLOWEST * RATE


@pytest.mark.parametrize("away_s", [0.3, 1.0, 3.0, 3600.0])
def test_one_standstill_is_no_slow_card_even_if_sound_was_lost_in_silence(away_s: float) -> None:
    def once() -> Iterator[float]:
        yield from [0.0] * 100
        yield away_s
        yield from always(0.0)

    told = measured(Card(silent_loss=True), away_s + 20.0, once())
    assert told
    assert min(told) >= SLOWEST * RATE


def test_a_card_that_only_returns_empty_hands_is_slow_though_nothing_waits() -> None:
    pace = Pace(PERIOD_S)
    told = [pace.add(0, n * 0.001, n * 0.001) for n in range(6_000)]
    assert [rate for rate in told if rate is not None] == [0.0]


# --- the speaker -----------------------------------------------------------------------------

SIZE = RATE * 120 // 1000


def looks(
    pace: float, seconds: float, step_s: float = 0.04, *, stands_at: float = 1e9
) -> str | None:
    """What a device of this pace is found to do, kept full, that stands still after some frames."""
    position, taken, at, played = Position(RATE, SIZE), 0, 50.0, 0.0
    end = at + seconds
    while at < end:
        problem = position.look(taken - int(played), at)
        if problem:
            return problem
        room = SIZE - (taken - int(played))
        position.wrote(room)
        taken += room
        at += step_s
        played = min(played + pace * RATE * step_s, taken, stands_at)
    return None


@pytest.mark.parametrize("step_s", [0.001, 0.04, 0.119, 0.5, 3.0])
@pytest.mark.parametrize("pace", [0.9, 1.0, 1.09])
def test_a_device_in_time_is_never_suspected(pace: float, step_s: float) -> None:
    assert looks(pace, 60.0, step_s) is None


@pytest.mark.parametrize("stands_at", [0, 1, SIZE, 3 * SIZE])
def test_a_device_that_stands_still_with_sound_in_it_is_stuck_after_a_second(
    stands_at: int,
) -> None:
    begun_s = stands_at / RATE
    assert looks(1.0, begun_s + STILL_S - 0.05, stands_at=stands_at) is None
    told = looks(1.0, begun_s + STILL_S + 0.13, stands_at=stands_at)
    assert told == "it holds sound, and its position stands still"


@pytest.mark.parametrize("pace", [1.5, 5.0, 1e6])
def test_a_device_that_takes_sound_faster_than_time_goes_is_found_soon(pace: float) -> None:
    assert looks(pace, 1.0) == "its position runs ahead of the clock"


def test_a_device_keeps_up_when_it_has_played_for_a_second() -> None:
    position = Position(RATE, SIZE)
    for n in range(60):  # always full
        assert position.look(SIZE if n else 0, n * 0.02) is None
        assert position.keeps_up == (n >= 50)
        position.wrote(RATE // 50 if n else SIZE)
    position.clear()
    assert not position.keeps_up
    position.wrote(SIZE)
    for n in range(55):  # it plays for 0.1 s, then no more
        position.look(SIZE - RATE // 50 * min(n, 5), n * 0.02)
    assert not position.keeps_up


def test_a_device_that_has_played_all_may_wait_for_ever() -> None:
    position = Position(RATE, SIZE)
    position.wrote(100)
    assert {position.look(0, n * 0.1) for n in range(100)} == {None}


def test_a_standstill_of_everybody_is_no_stuck_device() -> None:
    """Between two looks the whole machine stood still, and the device with it."""
    position = Position(RATE, SIZE)
    position.wrote(SIZE)
    for at in (10.0, 10.04, 3_000.0):
        assert position.look(SIZE, at) is None
    assert LATE_S < STILL_S
