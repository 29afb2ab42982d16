"""Turns of all kinds, with nothing wrong: what a person does, and what he asks for."""

from __future__ import annotations

import time

from tests.soak.stage import Mode, Stage
from tests.soak.trial import BUSY_S, Broken, Play, Scene, Trial
from voiced.sim.stand import BUTTON_PIN


def _plain(mode: Mode) -> Play:
    def play(stage: Stage, trial: Trial) -> None:
        trial.served(stage.turn(mode, stage.rng.uniform(1.0, 2.0)))
        stage.hear_out()

    return play


def _follow_up(stage: Stage, trial: Trial) -> None:
    stage.turn(seconds=1.0)
    stage.hear_out()
    turn = stage.say_on()
    stage.end(turn)
    trial.served(stage.answered(turn))


def _interrupt(stage: Stage, trial: Trial) -> None:
    stage.turn()
    time.sleep(stage.rng.uniform(0.1, 0.8))
    if stage.rng.random() < 0.5:
        stage.command("interrupt")
    trial.served(stage.turn(seconds=1.0))


def _speech_over(stage: Stage, trial: Trial) -> None:
    stage.turn(seconds=2.0)
    time.sleep(0.6)
    over = stage.say_on(1.2)
    over.promised = False  # what comes before it is sure that somebody speaks may miss its start
    stage.end(over)
    trial.served(stage.answered(over))


def _hang_up(stage: Stage, trial: Trial) -> None:
    turn = stage.begin()
    stage.hang_up()
    turn.life.finger.release(BUTTON_PIN)
    turn.utterance.wait_ended(5)
    trial.served(stage.turn(seconds=1.0))
    time.sleep(0.2)
    stage.hang_up()


def _nothing_said(stage: Stage, trial: Trial) -> None:
    """Noise alone passes for a whisper in 6 of 400 such holds, so it may happen once."""
    if _holds_and_pays(stage) and _holds_and_pays(stage):
        raise Broken("silence was committed")
    trial.served(stage.turn(seconds=1.0))


def _holds_and_pays(stage: Stage) -> bool:
    """Hold the button in a silent room. Whether a turn was committed."""
    time.sleep(1.0)  # what is taken begins before the press
    life = stage.life
    since = life.finger.press(BUTTON_PIN)
    time.sleep(0.8)
    life.finger.release(BUTTON_PIN)

    def over() -> bool:
        return life.watch.state != "hearing"

    stage.poll(over, 5, "it hears for ever")
    time.sleep(0.3)
    commits = [f for f in stage.frames() if f.kind == "input_audio_buffer.commit" and f.t > since]
    if not commits:
        stage.poll(lambda: life.watch.state == "idle", 5, "it waits for an answer to nothing")
    stage.hang_up()
    return bool(commits)


def _mute(stage: Stage, trial: Trial) -> None:
    turn = stage.begin()
    stage.command("mute")
    since = stage.poll(lambda: stage.status()["muted"], 2, "it is not muted") + 0.3
    stage.end(turn)
    time.sleep(0.5)
    left = [f for f in stage.frames() if f.kind == "input_audio_buffer.append" and f.t > since]
    if any(frame.audio.any() for frame in left):
        raise Broken("audio left while it was muted")
    stage.command("unmute")
    stage.poll(lambda: not stage.status()["muted"], 2, "it stays muted")
    trial.served(stage.turn(seconds=1.0))


def _forget(stage: Stage, trial: Trial) -> None:
    stage.turn(seconds=1.0)
    stage.command("forget")
    stage.poll(lambda: not stage.status()["remembers"], 2, "it remembers")
    trial.served(stage.turn(seconds=1.0))


def _reload(stage: Stage, trial: Trial) -> None:
    turn = stage.begin()
    stage.reload(turn={"hang_up_s": stage.rng.choice([30.0, 90.0])})
    stage.end(turn)
    trial.served(stage.answered(turn))
    stage.hear_out()
    stage.reload()


def _reload_invalid(stage: Stage, trial: Trial) -> None:
    stage.reload(turn={"silence_ms": "soon"})
    trial.named("config-invalid")
    stage.turn(seconds=1.0)
    stage.reload()
    stage.poll(lambda: "config-invalid" not in stage.faults(), 3, "config-invalid stays")
    trial.served(stage.turn(seconds=1.0))


SCENES = (
    Scene("held turn", _plain("held"), BUSY_S),
    Scene("tapped turn", _plain("tapped"), BUSY_S),
    Scene("follow-up", _follow_up, BUSY_S),
    Scene("interrupted", _interrupt, BUSY_S),
    Scene("spoken over", _speech_over, BUSY_S),
    Scene("hung up", _hang_up, BUSY_S),
    Scene("nothing said", _nothing_said, BUSY_S),
    Scene("muted in the words", _mute, BUSY_S),
    Scene("forget", _forget, BUSY_S),
    Scene("reload in the words", _reload, BUSY_S),
    Scene("invalid reload", _reload_invalid, BUSY_S),
)
