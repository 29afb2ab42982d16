import random

import pytest

from voiced.core.retry import CAP_S, EAGER_TRIES, FIRST_S, Backoff
from voiced.core.uplink import STALE_S


def delays(seed: int, times: int) -> list[float]:
    backoff = Backoff(random.Random(seed))
    return [backoff.next() for _ in range(times)]


def test_the_first_attempt_comes_at_once() -> None:
    assert all(delays(seed, 1) == [0.0] for seed in range(20))


def test_it_is_eager_while_words_are_fresh_then_steps_double_and_jitter_only_shortens_them() -> (
    None
):
    steps = [0.5, *[1] * (EAGER_TRIES - 2), 2, 4, 8, 15, 15, 15]
    for seed in range(200):
        for delay, step in zip(delays(seed, len(steps) + 1)[1:], steps, strict=True):
            assert 0.75 * step <= delay <= step


def test_it_is_eager_as_long_as_words_are_worth_sending() -> None:
    for seed in range(20):
        assert sum(delays(seed, EAGER_TRIES)) == pytest.approx(STALE_S, rel=0.2)


def test_it_never_waits_longer_than_the_cap_however_often_it_failed() -> None:
    assert max(delays(1, 5_000)) <= CAP_S


def test_devices_that_lost_the_same_server_spread() -> None:
    assert len({delays(seed, 2)[1] for seed in range(50)}) > 40


def test_after_a_success_the_next_failure_is_a_first_one() -> None:
    backoff = Backoff(random.Random(1))
    for _ in range(7):
        backoff.next()
    assert backoff.failures == 7
    backoff.reset()
    assert backoff.failures == 0
    assert backoff.next() == 0.0
    assert backoff.next() <= FIRST_S
