"""Whole turns with the daemon in its sandbox."""

from __future__ import annotations

import time

from tests.systemd.container import DEADLINE_S
from tests.systemd.stage import Device, ask, is_question, tap, wait_quiet, wait_sound
from voiced.sim.stand import LIGHT_PINS
from voiced.sim.streams import Ear, Mouth

SILENT_S = 0.25  # a cancel takes some 20 ms on an idle machine, the finger's way in included
BLUE, WHITE, GREEN, DARK = (0.0, 0.2, 1.0), (0.6, 0.6, 0.6), (0.0, 0.9, 0.2), (0.0, 0.0, 0.0)


def test_a_question_is_answered(device: Device, mouth: Mouth, ear: Ear) -> None:
    device.start()
    with device.finger() as finger:
        let_go = ask(finger, mouth)
        wait_sound(ear, let_go)
        assert is_question(wait_quiet(ear, let_go))
    assert not device.faults()


def test_a_press_silences_an_answer(device: Device, talker: str, mouth: Mouth, ear: Ear) -> None:
    device.configure(realtime={"url": talker})
    device.start()
    with device.finger() as finger, device.watch() as watch:
        wait_sound(ear, ask(finger, mouth))
        pressed = tap(finger)
        watch.wait(lambda: watch.seen("flushed", pressed), DEADLINE_S, "no flush")
        ear.wait_until(pressed + 4 * SILENT_S, DEADLINE_S)
        assert ear.snapshot(ear.index_at(pressed - SILENT_S), ear.index_at(pressed)).any()
        assert not ear.snapshot(ear.index_at(pressed + SILENT_S)).any()


def test_the_lights_follow_a_turn(device: Device, mouth: Mouth, ear: Ear) -> None:
    device.start()
    levels: dict[int, float | None] = {}
    shown: list[tuple[float | None, ...]] = []

    def note(pin: int, value: float | None, at: float) -> None:
        levels[pin] = None if value is None else round(value, 3)
        shown.append(tuple(levels.get(each) for each in LIGHT_PINS))

    with device.finger() as finger, device.watch() as watch:
        finger.watch(LIGHT_PINS, note)
        since = time.monotonic()
        ask(finger, mouth)
        watch.wait(lambda: watch.seen("turn", since, turn="speaking"), DEADLINE_S, "no answer")
        watch.wait(lambda: watch.state == "listening", DEADLINE_S, "no end of the answer")
        watch.command("hangup")
        watch.wait(lambda: watch.state == "idle", DEADLINE_S, "no end")
        watch.wait(lambda: shown[-1] == DARK, DEADLINE_S, "no darkness")
    # A pin changes after the other: only colours at rest are looked for, each after the last.
    rest = iter(shown)
    assert [colour for colour in (BLUE, WHITE, GREEN, BLUE, DARK) if colour not in rest] == []
