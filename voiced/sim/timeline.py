"""When the samples of a stream passed, learned from readings that may come late."""

import math
import threading
from bisect import bisect_right
from typing import Any, NamedTuple

GAP_S = 0.015  # the server's block changes with its clients by less; losing a period is more
GAP_PROOF_S = 0.5  # a late reader catches up in less, lost samples never come back
WINDOW_S = 1.0  # in a second even a loaded machine reads on time once
ANCHORS = 4096  # over an hour of windows; older ones are forgotten


class _Lateness(NamedTuple):
    """A run of late observations: where and when it began, how late then, how late at best."""

    first: int
    at: float
    offset_s: float
    least_s: float


class Timeline:
    """The dates of a steady stream's samples, from observations "at this time, so many had passed".

    An observation can be late but never early, so of a second's observations the earliest is
    right. When they stay late by more than GAP_S for GAP_PROOF_S, samples have been lost: that
    is counted in `gaps` (index, seconds) and later samples are dated anew. Thread-safe.
    """

    def __init__(self, rate: int) -> None:
        self.rate = rate
        self.gaps: list[tuple[int, float]] = []  # at most one per GAP_PROOF_S
        self._lock = threading.Lock()
        self._indices: list[int] = []  # anchors: this index passed at this time
        self._times: list[float] = []
        self._settled_at = 0  # from this index on the last anchor is no longer corrected
        self._window_end = 0
        self._window_best = math.inf
        self._late: _Lateness | None = None
        self._fresh = True

    def __bool__(self) -> bool:
        """Whether there is anything to date by."""
        return bool(self._indices)

    def restart(self) -> None:
        """Expect the stream to go on after a pause of unknown length."""
        with self._lock:
            self._fresh = True

    def observe(self, at: float, index: int) -> None:
        """At monotonic time `at`, sample `index` had passed or was just passing."""
        offset = at - index / self.rate
        with self._lock:
            if self._fresh:
                self._begin(index, offset)
            elif offset > self._floor() + GAP_S:
                self._note_late(at, index, offset)
            else:
                self._late = None
                self._note_timely(index, offset)

    def time_at(self, index: float) -> float:
        """The monotonic time at which sample `index` passed. Raises LookupError when unknown."""
        with self._lock:
            return _interpolate(index, self._indices, self._times, 1 / self.rate)

    def index_at(self, at: float) -> int:
        """The sample that passed at monotonic time `at`. Raises LookupError when unknown."""
        with self._lock:
            return round(_interpolate(at, self._times, self._indices, self.rate))

    def _floor(self) -> float:
        return self._times[-1] - self._indices[-1] / self.rate

    def _begin(self, index: int, offset: float) -> None:
        self._fresh = False
        self._late = None
        self._anchor(index, offset)
        self._settled_at = index + round(WINDOW_S * self.rate)
        self._window_end = self._settled_at + round(WINDOW_S * self.rate)
        self._window_best = math.inf

    def _note_timely(self, index: int, offset: float) -> None:
        if index < self._settled_at:
            begun = self._indices[-1] / self.rate
            self._times[-1] = min(self._times[-1], begun + offset)
            return
        self._window_best = min(self._window_best, offset)
        if index >= self._window_end:
            self._anchor(index, self._window_best)
            self._window_end = index + round(WINDOW_S * self.rate)
            self._window_best = math.inf

    def _note_late(self, at: float, index: int, offset: float) -> None:
        late = self._late
        if late is None or offset < late.offset_s - GAP_S:  # a stalled reader is catching up
            late = _Lateness(index, at, offset, offset)
        self._late = late = late._replace(least_s=min(late.least_s, offset))
        if at - late.at < GAP_PROOF_S:
            return
        lost_s = late.least_s - self._floor()
        first = max(late.first, self._indices[-1] + 2)
        self.gaps.append((first, lost_s))
        self._anchor(first - 1, self._floor())
        self._begin(first, late.least_s)

    def _anchor(self, index: int, offset: float) -> None:
        self._indices.append(index)
        self._times.append(index / self.rate + offset)
        del self._indices[:-ANCHORS], self._times[:-ANCHORS]


def _interpolate(x: float, xs: list[Any], ys: list[Any], slope: float) -> float:
    """Straight between the points, along `slope` outside them."""
    if not xs:
        raise LookupError("nothing has been observed yet; start the stream and wait for it")
    after = bisect_right(xs, x)
    if after == 0:
        return float(ys[0] + (x - xs[0]) * slope)
    if after == len(xs):
        return float(ys[-1] + (x - xs[-1]) * slope)
    share = (x - xs[after - 1]) / (xs[after] - xs[after - 1])
    return float(ys[after - 1] + share * (ys[after] - ys[after - 1]))
