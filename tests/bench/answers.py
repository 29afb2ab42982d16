"""Answers that come slowly."""

from __future__ import annotations

import time

from tests.bench.figures import DELTA, read_frames, sounding
from tests.bench.stage import HOLD_S, LOG_S, Stage


def trickle(stage: Stage) -> None:
    """The server delivers hardly faster than real time, 200 ms at once."""
    begin = stage.row("first delta to first sample, trickle", 255, 265)
    holes = stage.row("holes in an answer that trickles in", 0, 0, "")
    with stage.stand("--pace", "1.2", "--answer", str(stage.answer(3))) as stand:
        starts = [stand.hold(HOLD_S, 3.2) for _ in range(3)]
        time.sleep(LOG_S)
        status = stand.watch.ask_status() or {}
    holes.values.append(status["counters"]["playback_holes"])
    frames = read_frames(stand.frames)
    for start in starts:
        delta = next(f.t for f in frames if f.kind == DELTA and f.t > start + HOLD_S)
        sound = sounding(stage.ear, delta, delta + 3)
        assert sound, "an answer that was not heard"
        begin.values.append((sound[0] - delta) * 1000 - stage.calibration.delay_ms)
