"""How long to wait before dialling again."""

from __future__ import annotations

import random

FIRST_S = 0.5
EAGER_S, EAGER_TRIES = 1.0, 32
"""What was said is worth sending for 30 s: so long, who waits is answered a second after the server
is back. Trouble of the server's own that lasts longer is met with patience."""

CAP_S = 15.0
"""A person who waits at a device gives up after some seconds; a server that comes back is met
by all its devices at once. 15 s bounds the one, the jitter spreads the other."""


class Backoff:
    """Delays in seconds: 0, 0.5, then 1 up to the 32nd, then 2, 4, 8, 15, 15, ... each times 0.75
    to 1."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self.failures = 0

    def next(self) -> float:
        """The delay before the next attempt."""
        self.failures += 1
        if self.failures == 1:
            return 0.0
        if self.failures == 2:
            step = FIRST_S
        else:
            step = min(CAP_S, EAGER_S * 2.0 ** min(max(0, self.failures - EAGER_TRIES), 10))
        return step * self._rng.uniform(0.75, 1.0)

    def reset(self) -> None:
        """A session worked: the next failure is a first one again."""
        self.failures = 0
