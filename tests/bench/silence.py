"""Answers that are cut: by the button, by a command, by hanging up, and by speaking over them."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import soxr

from tests.bench.figures import DELTA, EAR_RATE, append_delays_ms, between, read_frames, sounding
from tests.bench.rooms import Room as Reverberation
from tests.bench.stage import HOLD_S, LOG_S, Stage, Stand, busy
from voiced.sim.room import Room
from voiced.sim.stand import BUTTON_PIN

CUTS = 20
WARM_UP_S = 8.0
"""A canceller learns its room once: so long is the first answer."""

TRUNCATE = "conversation.item.truncate"


@dataclass
class _Cut:
    pressed: float
    """When the turn began whose answer was cut."""
    at: float
    """The cause."""


def presses(stage: Stage) -> None:
    """Held turns, each cut by the press of the next, on a quiet machine and on a busy one."""
    _by_press(stage, "quiet machine")
    if stage.sabotage == "none":
        with busy(2):
            _by_press(stage, "two busy processes")


def _by_press(stage: Stage, name: str) -> None:
    with stage.stand("--answer", str(stage.answer(20)), "--think-ms", "50") as stand:
        pressed = [stand.hold(HOLD_S, stage.rng.uniform(0.3, 0.9)) for _ in range(CUTS + 1)]
        stand.finger.press(BUTTON_PIN)
        stand.finger.release(BUTTON_PIN)
        cuts = [_Cut(a, b) for a, b in zip(pressed, pressed[1:], strict=False)]
        _judge(stage, stand, "press", f", {name}", cuts)
        _judge_turns(stage, stand, name, cuts)


def commands(stage: Stage) -> None:
    """`voicectl interrupt` and `voicectl hangup`."""
    with stage.stand("--answer", str(stage.answer(20)), "--think-ms", "50") as stand:
        for command, state in (("interrupt", "listening"), ("hangup", "idle")):
            cuts = []
            for _ in range(CUTS // 2):
                pressed = stand.hold(HOLD_S, stage.rng.uniform(0.3, 0.9))
                cuts.append(_Cut(pressed, time.monotonic()))
                stand.watch.command(command)
                stand.until(state, cuts[-1].at)
                time.sleep(0.3)
            _judge(stage, stand, command, "", cuts)


def _judge(stage: Stage, stand: Stand, cause: str, beside: str, cuts: list[_Cut]) -> None:
    """The figures that every cut has, whatever its cause."""
    drop = stage.row(f"cancel: {cause} to drop(){beside}", 2, 5)
    silence = stage.row(f"cancel: {cause} to silence{beside}", 2, 5)
    stale = stage.row(f"stale sound after a cancel by {cause}{beside}", 0, 0)
    time.sleep(LOG_S)
    notes, frames = list(stand.watch.notes), read_frames(stand.frames)
    drop_s = stage.calibration.drop_ms / 1000
    for cut in cuts:
        flushed = next(n for n in notes if n["event"] == "flushed" and n["t"] >= cut.at)
        drop.values.append((flushed["dropped_at"] - cut.at) * 1000)
        quiet_until = cut.at + HOLD_S - 0.05
        sound = sounding(stage.ear, cut.pressed + HOLD_S, quiet_until)
        assert sound, "an answer that was not heard"
        silence.values.append((sound[1] - cut.at - drop_s) * 1000)
        late = sounding(stage.ear, flushed["dropped_at"] + drop_s + 0.012, quiet_until)
        stale.values.append(late[2] / 48 if late else 0.0)
        if cause == "hangup":
            continue  # nobody is left to be told what was heard
        end = stage.row(f"audio_end_ms against what was heard, {cause}{beside}", 5, 10)
        told = [f for f in between(frames, cut.at, cut.at + 0.5) if f.kind == TRUNCATE]
        end.values += [f.event["audio_end_ms"] - sound[2] / 48 for f in told[:1]]


def _judge_turns(stage: Stage, stand: Stand, name: str, cuts: list[_Cut]) -> None:
    """What else held turns tell: how fast speech goes out and an answer comes in."""
    begin = stage.row(f"first delta to first sample, {name}", 10, 10)
    wire = stage.row(f"speech to wire, held turn, {name}", 21, 35)
    frames = read_frames(stand.frames)
    for cut in cuts:
        answered = between(frames, cut.pressed + HOLD_S, cut.at)
        delta = next(f.t for f in answered if f.kind == DELTA)
        sound = sounding(stage.ear, delta, cut.at)
        assert sound, "an answer that was not heard"
        begin.values.append((sound[0] - delta) * 1000 - stage.calibration.delay_ms)
        said = between(frames, cut.pressed, cut.pressed + HOLD_S)
        wire.values += append_delays_ms(said, stage.tap)


def speech_over(stage: Stage) -> None:
    """Somebody speaks over the answer, with a canceller in software and a room around it, and
    with an array that cancels by itself (so that nothing of the answer is in the microphone)."""
    impulse = soxr.resample(Reverberation(seed=5).response(), 24_000, EAR_RATE)
    impulse /= np.sqrt(np.sum(impulse**2))
    for echo in ("hardware", "cancel"):
        answer = str(stage.speech_answer())
        with ExitStack() as stack:
            if echo == "cancel":
                stack.enter_context(Room(stage.rig, impulse, gain_db=-6.0, delay_ms=0.0))
            stand = stack.enter_context(stage.stand("--answer", answer, microphone={"echo": echo}))
            stand.hold(HOLD_S, WARM_UP_S)
            stand.watch.command("hangup")
            stand.until("idle", time.monotonic() - 1)
            name = f"speech over the answer, {echo}"
            _speak_over(stage, stand, name, (2.5, 4.0), (200, 300), 0)
            _speak_over(stage, stand, f"{name}, its first 2 s", (0.3, 1.5), (None, None), None)


def _speak_over(
    stage: Stage,
    stand: Stand,
    name: str,
    after_s: tuple[float, float],
    goal_ms: tuple[float | None, float | None],
    missed_goal: float | None,
) -> None:
    silence = stage.row(f"{name}: onset to silence", *goal_ms)
    missed = stage.row(f"{name}: not noticed", missed_goal, None, "")
    alone = stage.row(f"{name}: interrupted itself", 0, 0, "")
    drop_s = stage.calibration.drop_ms / 1000
    for _ in range(CUTS // 2):
        stand.hold(HOLD_S, 0.0)
        speaking = time.monotonic()
        time.sleep(stage.rng.uniform(*after_s))
        alone.values.append(float(stand.watch.seen("flushed", speaking)))
        if alone.values[-1]:
            continue
        utterance = stage.say()
        onset = utterance.wait_started(2) + stage.voice_first / EAR_RATE
        flushed = _flushed(stand, speaking, 1.5)
        missed.values.append(float(flushed is None))
        if flushed:
            sound = sounding(stage.ear, onset - 0.5, flushed["dropped_at"] + 0.2)
            assert sound, "an answer that was not heard"
            silence.values.append((sound[1] - onset - drop_s) * 1000)
        utterance.wait_ended(5)
        stand.watch.command("hangup")
        stand.until("idle", speaking)


def _flushed(stand: Stand, since: float, timeout_s: float) -> dict[str, Any] | None:
    """The cut of an answer, or None if there was none in time."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if told := stand.watch.last("flushed", since):
            return told
        time.sleep(0.01)
    return None


def click(stage: Stage) -> None:
    """The step that a cut leaves in the sound, of the loudest there is in it: reported only."""
    step = stage.row("step at a cut, of the answer's own peak", None, None, "%")
    with stage.stand("--answer", str(stage.speech_answer())) as stand:
        for _ in range(CUTS // 2):
            stand.hold(HOLD_S, stage.rng.uniform(0.5, 1.5))
            at = time.monotonic()
            stand.watch.command("interrupt")
            stand.until("listening", at)
            time.sleep(0.2)
            sound = stage.ear.snapshot(stage.ear.index_at(at - 1), stage.ear.index_at(at + 0.1))
            last = int(np.flatnonzero(sound)[-1])
            step.values.append(100 * abs(int(sound[last])) / int(np.abs(sound).max()))
