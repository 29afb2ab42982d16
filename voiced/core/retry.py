"""How long to wait before dialling again."""

from __future__ import annotations

import random

FIRST_S = 0.5
CAP_S = 15.0
"""A person who waits at a device gives up after some seconds; a server that comes back is met
by all its devices at once. 15 s bounds the one, the jitter spreads the other."""


class Backoff:
    """Delays in seconds: 0, then 0.5, 1, 2, 4, 8, 15, 15, ... each times 0.75 to 1."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self.failures = 0

    def next(self) -> float:
        """The delay before the next attempt."""
        self.failures += 1
        if self.failures == 1:
            return 0.0
        step = min(CAP_S, FIRST_S * 2.0 ** min(self.failures - 2, 10))
        return step * self._rng.uniform(0.75, 1.0)

    def reset(self) -> None:
        """A session worked: the next failure is a first one again."""
        self.failures = 0
