"""Hands-free turns: how soon they begin, how soon they end, and what does not end them."""

from __future__ import annotations

import time

import numpy as np
import soxr

from tests.bench.figures import APPEND, COMMITTED, EAR_RATE, Samples, between, read_frames
from tests.bench.noises import pink
from tests.bench.stage import LOG_S, Stage, Stand

TURNS = 8
NOISE_S = 45
PAUSE_S = 0.5
"""A pause for thought, shorter than `turn.silence_ms`."""


def hands_free(stage: Stage) -> None:
    """With the server's VAD, in quiet."""
    onset = stage.row("hands-free: onset to first append", 80, 250)
    spare = stage.row("sent beyond the speech, hands-free", 1500, 1500)
    kept = stage.row("speech sent, of what was said", None, None, "%")
    with stage.stand("--answer", str(stage.answer(0.3))) as stand:
        said = _turns(stage, stand, stage.voice)
    frames = read_frames(stand.frames)
    length_s = (stage.voice_last - stage.voice_first) / EAR_RATE
    for began, _ in said:
        appends = [f for f in between(frames, began - 0.4, began + 6) if f.kind == APPEND]
        first = [f.t for f in appends[:1]]
        onset.values += [(t - began) * 1000 for t in first]
        turn = between(frames, began - 0.4, began + length_s + 1.5)
        sent_s = sum(len(f.audio) for f in turn if f.kind == APPEND) / 24_000
        spare.values.append((sent_s - length_s) * 1000)
        kept.values.append(100.0 * any(f.kind == COMMITTED for f in turn))


def ends(stage: Stage) -> None:
    """Each way to end a turn, in quiet and in noise of 10 dB under the talker."""
    for noisy in (False, True):
        where = "noise at 10 dB" if noisy else "quiet"
        for end in ("server_vad", "local", "semantic_vad"):
            _end(stage, end, where, noisy)


def _end(stage: Stage, end: str, where: str, noisy: bool) -> None:
    goal = (700, 800) if noisy else (650, 700)
    # How long the server ponders is its own affair: 800 ms here.
    row = stage.row(
        f"end of speech to turn closed, {end}, {where}",
        *((None, None) if end == "semantic_vad" else goal),
    )
    split = stage.row(f"pauses of {PAUSE_S * 1000:.0f} ms that ended a turn, {where}", 0, 0, "")
    speech = stage.voice[stage.voice_first : stage.voice_last]
    pause = np.zeros(round(PAUSE_S * EAR_RATE), np.int16)
    twice = np.concatenate((speech, pause, speech))
    if noisy:
        level = np.sqrt(np.mean(speech.astype(float) ** 2)) * 10 ** (-10 / 20)
        noise = soxr.resample(pink(NOISE_S * 24_000, seed=3), 24_000, EAR_RATE)
        bed = stage.say((noise * level).astype(np.int16))
        bed.wait_started(2)
        time.sleep(4)  # the gate learns the noise
    # A server that goes by the meaning knows speech from noise; of the other the least is expected.
    ear = ("--vad-margin-db", "6") if noisy and end == "semantic_vad" else ()
    with stage.stand("--answer", str(stage.answer(0.3)), *ear, end=end) as stand:
        said = _turns(stage, stand, twice, count=4)
    frames = read_frames(stand.frames)
    for began, ended in said:
        closed = [f.t for f in between(frames, began, ended + 3) if f.kind == COMMITTED]
        split.values.append(float(sum(t < ended for t in closed)))
        row.values += [(t - ended) * 1000 for t in closed if t >= ended][:1]
    if noisy:
        bed.wait_ended(NOISE_S)


def _turns(
    stage: Stage, stand: Stand, said: Samples, count: int = TURNS
) -> list[tuple[float, float]]:
    """Say it some times in one conversation; when each began and ended."""
    stand.tap()
    time.sleep(1.0)
    times = []
    first, last = (stage.voice_first, stage.voice_last) if said is stage.voice else (0, len(said))
    for _ in range(count):
        utterance = stage.say(said)
        since = time.monotonic()
        utterance.wait_ended(10)
        stand.until("speaking", since)
        stand.until("listening", time.monotonic() - 0.3)
        assert utterance.started is not None
        times.append((utterance.started + first / EAR_RATE, utterance.started + last / EAR_RATE))
        time.sleep(stage.rng.uniform(0.8, 1.4))
    time.sleep(LOG_S)
    return times
