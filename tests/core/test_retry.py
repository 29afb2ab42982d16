import random

from voiced.core.retry import CAP_S, FIRST_S, Backoff


def delays(seed: int, times: int) -> list[float]:
    backoff = Backoff(random.Random(seed))
    return [backoff.next() for _ in range(times)]


def test_the_first_attempt_comes_at_once() -> None:
    assert all(delays(seed, 1) == [0.0] for seed in range(20))


def test_steps_double_to_the_cap_and_jitter_only_shortens_them() -> None:
    steps = [0.5, 1, 2, 4, 8, 15, 15, 15]
    for seed in range(200):
        for delay, step in zip(delays(seed, 9)[1:], steps, strict=True):
            assert 0.75 * step <= delay <= step


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
