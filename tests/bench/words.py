"""No lost word: speech from before the press, while it dials, and through a lost link."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from tests.bench.figures import APPEND, COMMIT, between, longest_hole_ms, read_frames, received
from tests.bench.stage import HOLD_S, LOG_S, Stage
from voiced.sim.stand import BUTTON_PIN


def first_word(stage: Stage) -> None:
    """Held turns, each with a link of its own to dial."""
    append = stage.row("press to first append, dialling meanwhile", 450, 500)
    missing = stage.row("missing of the 300 ms before the press", 20, 30)
    with stage.stand("--answer", str(stage.answer(5))) as stand:
        time.sleep(1)
        pressed = []
        for _ in range(5):
            pressed.append(stand.hold(HOLD_S, 0.2))
            stand.watch.command("hangup")
            stand.until("idle", pressed[-1])
            time.sleep(stage.rng.uniform(0.5, 0.6))
        time.sleep(LOG_S)
    frames = read_frames(stand.frames)
    for press in pressed:
        said = [f for f in between(frames, press, press + HOLD_S) if f.kind == APPEND]
        append.values.append((said[0].t - press) * 1000)
        missing.values.append(300 - _kept_before(said, press))


def _kept_before(said: Sequence[Any], press: float) -> float:
    """How long before the press the first sample sent was captured, in ms: the appends are one
    stretch, so each bounds when it began."""
    total, began = 0, float("inf")
    for frame in said:
        total += len(frame.audio)
        began = min(began, frame.t - total / 24_000)
    return (press - began) * 1000


def link_down(stage: Stage) -> None:
    """What is said while it dials for 3 s, and what was said when the link is lost under it."""
    _whole(stage, "a dial of 3 s", "--dial-delay-s", "3")
    _whole(stage, "a link lost in the middle", "--fault", "reset@2")


def _whole(stage: Stage, name: str, *server_args: str) -> None:
    """Of an utterance of some seconds: the longest stretch the server never got, of all that was
    at the microphone from 300 ms before the press to the release."""
    lost = stage.row(f"words lost: {name}", 30, 30)
    for _ in range(3):
        with stage.stand(*server_args, "--answer", str(stage.answer(1))) as stand:
            time.sleep(1)
            utterance = stage.say()
            utterance.wait_started(2)
            pressed = stand.finger.press(BUTTON_PIN)
            stage.say()  # behind the first: 3 s in all
            time.sleep(3.0)
            released = stand.finger.release(BUTTON_PIN)
            stand.until("speaking", released, 20)
            time.sleep(LOG_S)
        frames = read_frames(stand.frames)
        recorded = stage.tap.snapshot(
            stage.tap.index_at(pressed - 0.3), stage.tap.index_at(released)
        )
        lost.values.append(longest_hole_ms(received(frames), recorded))


def nothing_said(stage: Stage) -> None:
    """A button held in a silent room, on purpose or by a cat: it must not cost anything."""
    paid = stage.row("held and nothing said: turns committed", 0, 0, "")
    with stage.stand() as stand:
        time.sleep(4)  # the gate learns the room
        for _ in range(5):
            pressed = stand.finger.press(BUTTON_PIN)
            time.sleep(1.5)
            stand.finger.release(BUTTON_PIN)
            stand.until("idle", pressed)
            time.sleep(0.3)
        time.sleep(LOG_S)
    paid.values.append(float(sum(frame.kind == COMMIT for frame in read_frames(stand.frames))))
