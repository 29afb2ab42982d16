"""What it costs: processor, memory, and bytes on the line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

from tests.bench.figures import between, read_frames
from tests.bench.stage import HOLD_S, LOG_S, Stage
from voiced.sim.rig import Rig


def cost(stage: Stage) -> None:
    """A daemon that answers, and one that listens to a silent room."""
    live = stage.row("CPU per minute, microphone live, above a bare loop", 0.3, None, "s")
    answering = stage.row("CPU per minute, answering, above a bare loop", 0.7, None, "s")
    memory = stage.row("memory (peak RSS)", 60, None, "MB")
    up = stage.row("bytes up in a silent minute, session open", 2048, None, "B")
    with stage.stand("--answer", str(stage.answer(20))) as stand:
        stand.hold(HOLD_S, 0.5)
        answering.values.append(stand.cpu_per_minute(12) - _bare(stage, 12))
        stand.watch.command("interrupt")
        stand.until("idle", time.monotonic(), 30)
        began = time.monotonic()
        live.values.append(stand.cpu_per_minute(15) - _bare(stage, 15, "silent"))
        over = time.monotonic()
        memory.values.append(stand.daemon.cost().peak_rss_mb or 0.0)
        time.sleep(LOG_S)
    sent = [f for f in between(read_frames(stand.frames), began, over) if f.source == "client"]
    size = sum(len(json.dumps(f.event)) for f in sent)
    up.values.append(size * 60 / (over - began))


def with_canceller(stage: Stage) -> None:
    """The same with the echo canceller in software."""
    live = stage.row("CPU per minute, microphone live, canceller, above bare", None, None, "s")
    memory = stage.row("memory (peak RSS), with the canceller", 85, None, "MB")
    with stage.stand("--answer", str(stage.answer(20)), microphone={"echo": "cancel"}) as stand:
        stand.hold(HOLD_S, 3)
        stand.watch.command("interrupt")
        stand.until("idle", time.monotonic(), 30)
        live.values.append(stand.cpu_per_minute(15) - _bare(stage, 15, "silent"))
        memory.values.append(stand.daemon.cost().peak_rss_mb or 0.0)


def _bare(stage: Stage, seconds: float, *silent: str) -> float:
    ran = subprocess.run(
        [sys.executable, "-m", "tests.bench.bare_loop", Rig.microphone, Rig.speaker]
        + [str(seconds), *silent],
        env={**os.environ, **stage.rig.env},
        stdout=subprocess.PIPE,
        check=True,
        timeout=seconds + 20,
    )
    return float(ran.stdout) * 60 / seconds
