"""Microphone, speaker and lights: gone, back, hanging, or there and of no use."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.soak import sabotage
from tests.soak.stage import Stage
from tests.soak.trial import (
    DEVICE_S,
    PINS_S,
    STUCK_S,
    Broken,
    Play,
    Scene,
    Trial,
    Trouble,
)
from tests.soak.unit import WATCHDOG_S
from voiced.edge.vitals import WINDOW_S
from voiced.sim.board import BoardError
from voiced.sim.stand import BUTTON_PIN, StandError


@contextmanager
def microphone_unplugged(stage: Stage) -> Iterator[None]:
    stage.microphone_rig.unplug()
    try:
        yield
    finally:
        stage.microphone_rig.replug()


@contextmanager
def speaker_unplugged(stage: Stage) -> Iterator[None]:
    stage.scene.hears = False
    stage.speaker_rig.unplug()
    try:
        yield
    finally:
        stage.speaker_rig.replug()


def from_within(begin: Callable[[], None], end: Callable[[], None]) -> Trouble:
    """What signals do and undo inside of the daemon."""

    @contextmanager
    def trouble(stage: Stage) -> Iterator[None]:
        stage.life.popen.send_signal(sabotage.signal_of(begin))
        try:
            yield
        finally:
            stage.life.popen.send_signal(sabotage.signal_of(end))

    return trouble


dark_pins = from_within(sabotage.fail_the_lights, sabotage.mend_the_lights)
held_card = from_within(sabotage.hold_the_card, sabotage.give_a_good_card)
slow_card = from_within(sabotage.halve_the_cards_rate, sabotage.give_a_good_card)
silent_card = from_within(sabotage.silence_the_card, sabotage.give_a_good_card)


def back(stage: Stage, trial: Trial) -> None:
    """All devices are back: they are taken again, and an answer is heard."""
    lifted = time.monotonic()
    gone = stage.poll(lambda: not stage.faults(), 20, "it is not taken again")
    stage.listen()
    took = stage.turn(seconds=1.0)
    stage.poll(lambda: stage.ear.snapshot().any(), 2, "the answer is not heard")
    trial.served(gone - lifted + took)


def _microphone(stage: Stage, trial: Trial) -> None:
    turn = stage.begin() if stage.rng.random() < 0.5 else None
    if turn is None and stage.rng.random() < 0.5:
        stage.turn()
    with microphone_unplugged(stage):
        trial.named("microphone-lost")
        if turn:
            turn.life.finger.release(BUTTON_PIN)
        time.sleep(stage.rng.uniform(0, 2))
    back(stage, trial)


def _speaker(stage: Stage, trial: Trial) -> None:
    """A loss is noticed when there is something to play. In idle there is nothing: the first
    answer after it must be heard all the same."""
    when = stage.rng.choice(("idle", "words", "answer"))
    turn = stage.begin() if when == "words" else None
    if when == "answer":
        stage.turn()
    with speaker_unplugged(stage):
        if turn:
            stage.end(turn)
        if when != "idle":
            trial.named("speaker-lost")
        time.sleep(stage.rng.uniform(0, 2))
    back(stage, trial)


def _bad_card(trouble: Trouble, fault: str) -> Play:
    """There is a card, and no use in it, until there is another one. Nobody is taken for served."""

    def play(stage: Stage, trial: Trial) -> None:
        stage.hang_up()
        with trouble(stage):
            trial.named(fault)
            pressed = stage.life.finger.press(BUTTON_PIN)
            time.sleep(stage.rng.uniform(0.5, 1.5))
            stage.life.finger.release(BUTTON_PIN)
            time.sleep(0.5)
            if any(f.kind == "response.created" and f.t > pressed for f in stage.frames()):
                raise Broken("nothing was heard, and it was answered")
            stage.hang_up()
        back(stage, trial)

    return play


def _sound_hangs(device: str) -> Play:
    def play(stage: Stage, trial: Trial) -> None:
        rig = stage.microphone_rig if device == "microphone" else stage.speaker_rig
        assert rig._server
        stage.scene.hears = False
        with stage.unit.dying(f"the {device}'s sound server hangs"):
            stage.turn(seconds=1.0)
            with stage.stopped(rig._server.pid):
                time.sleep(stage.rng.choice((stage.rng.uniform(2, 4), WATCHDOG_S + 5.0)))
            lifted = time.monotonic()
            time.sleep(1.0)  # a speaker that stood still may only now be known to be stuck
            gone = stage.poll(lambda: _good(stage), STUCK_S, "it does not recover")
            stage.listen()
            stage.rest()
            trial.served(gone - lifted + stage.turn(seconds=1.0))

    return play


def _good(stage: Stage) -> bool:
    """Whether it says so. No answer is none."""
    try:
        return not stage.faults()
    except StandError:
        return False


def _lights_fail(stage: Stage, trial: Trial) -> None:
    began = time.monotonic()
    with dark_pins(stage), contextlib.suppress(BoardError):
        stage.life.finger.press(BUTTON_PIN)
        trial.named("lights-lost")
        time.sleep(stage.rng.uniform(0, 3))
        stage.life.finger.release(BUTTON_PIN)
    lifted = time.monotonic()
    if any(f.kind == "input_audio_buffer.append" and f.t > began for f in stage.frames()):
        raise Broken("audio left without a light")
    gone = stage.poll(lambda: not stage.faults(), 20, "the lights stay lost")
    trial.served(gone - lifted + stage.turn(seconds=1.0))


SCENES = (
    Scene("microphone unplugged", _microphone, DEVICE_S),
    Scene("speaker unplugged", _speaker, DEVICE_S),
    Scene("microphone busy", _bad_card(held_card, "microphone-busy"), DEVICE_S),
    Scene(
        "microphone at half its rate",
        _bad_card(slow_card, "microphone-slow"),
        WINDOW_S + DEVICE_S,
        is_quick=False,
    ),
    Scene(
        "microphone gives zeros",
        _bad_card(silent_card, "microphone-dead"),
        DEVICE_S,
        is_quick=False,
    ),
    Scene("lights fail", _lights_fail, PINS_S),
    Scene("microphone's server hangs", _sound_hangs("microphone"), STUCK_S, is_deadly=True),
    Scene("speaker's server hangs", _sound_hangs("speaker"), STUCK_S, is_deadly=True),
)
