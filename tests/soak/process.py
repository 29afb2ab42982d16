"""The process, the disk it writes to, and the socket it is asked through."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.soak import sabotage
from tests.soak.stage import FOLLOW_UP_S, STATE_KB, Stage
from tests.soak.trial import BUSY_S, START_S, STUCK_S, Broken, Play, Scene, Trial
from tests.systemd.inject import sitecustomize as inject
from voiced.core.faults import FAULTS
from voiced.sim.stand import BUTTON_PIN


def _frozen(stage: Stage, trial: Trial) -> None:
    when = stage.rng.choice(("idle", "words", "answer"))
    turn = stage.begin() if when == "words" else None
    if when == "answer":
        stage.turn()
        time.sleep(0.3)  # it sounds
        stage.scene.hears = False  # the edges of a hole are like no answer
    before = _xruns(stage)
    with stage.stopped(stage.life.popen.pid):
        time.sleep(stage.rng.uniform(1, 3))
    if turn:
        turn.promised = False  # the microphone's buffer holds a fifth of a second
        turn.utterance.wait_ended(10)
        turn.life.finger.release(BUTTON_PIN)
        time.sleep(0.5)
    if when == "answer":
        stage.poll(lambda: _xruns(stage) > before, 1, "the answer's hole is not counted")
    stage.hang_up()
    trial.served(stage.turn(seconds=1.0))


def _xruns(stage: Stage) -> int:
    counters = stage.status()["counters"]
    return int(counters["playback_xruns"] + counters["playback_holes"])


def _killed(stage: Stage, trial: Trial) -> None:
    when = stage.rng.choice(("idle", "words", "answer"))
    if when == "words":
        stage.begin()
    elif when == "answer":
        stage.turn()
    trial.served(_kill(stage) + stage.turn(seconds=1.0))


def _kill(stage: Stage) -> float:
    """Kill it; the seconds until it was ready again."""
    with stage.unit.dying("killed"):
        old, at = stage.life, time.monotonic()
        old.popen.send_signal(signal.SIGKILL)
        old.popen.wait(5)
        stage.poll(lambda: stage.unit.lives[-1] is not old, 5, "it is not started again")
        stage.unit.life()
        return time.monotonic() - at


def _killed_muted(stage: Stage, trial: Trial) -> None:
    stage.command("mute")
    stage.poll(lambda: stage.status()["muted"], 2, "it is not muted")
    time.sleep(0.5)  # a save takes 3 to 12 ms
    took = _kill(stage)
    if not stage.status()["muted"]:
        raise Broken("it has forgotten that it was muted")
    stage.command("unmute")
    stage.poll(lambda: not stage.status()["muted"], 2, "it stays muted")
    trial.served(took + stage.turn(seconds=1.0))


def _broken_within(fault: Callable[[], None]) -> Play:
    """The watchdog is starved, or told: there is a new process."""

    def play(stage: Stage, trial: Trial) -> None:
        stage.scene.hears = False
        old = stage.life
        with stage.unit.dying(fault.__name__):
            old.popen.send_signal(sabotage.signal_of(fault))
            began = time.monotonic()
            stage.poll(lambda: stage.unit.lives[-1] is not old, STUCK_S + 5, "nobody notices")
            if (code := stage.unit.exits[-1].code) != -signal.SIGABRT:
                raise Broken(f"it ended with {code}, and not by the watchdog")
            stage.unit.life()
            stage.rest()
            trial.served(time.monotonic() - began + stage.turn(seconds=1.0))

    return play


def _memory_high(stage: Stage, trial: Trial) -> None:
    """Far too much of it is used: who talks is answered, then it starts anew by itself."""
    turn = stage.begin()
    old = turn.life
    with stage.unit.dying("memory-high"):
        old.popen.send_signal(sabotage.signal_of(sabotage.hoard_memory))
        trial.named("memory-high")
        stage.end(turn)
        trial.served(stage.answered(turn))
        stage.hear_out()
        if old.is_over:
            raise Broken("it ended while somebody talked")
        stage.poll(lambda: old.is_over, FOLLOW_UP_S + sabotage.WEIGH_S + 5, "it goes on")
        gone = time.monotonic()
        stage.poll(lambda: stage.unit.lives[-1] is not old, 5, "it is not started again")
        if (code := stage.unit.exits[-1].code) != FAULTS["memory-high"].exit_code:
            raise Broken(f"it ended with {code}")
        stage.unit.life()
        trial.served(time.monotonic() - gone + stage.turn(seconds=1.0))


def _kept(stage: Stage, trial: Trial) -> None:
    """What was said outlives the process if that is wanted, and else does not."""
    for kept in (True, False):
        stage.reload(memory={"kept": kept})
        stage.turn(seconds=1.0)
        stage.hear_out()
        stage.hang_up()
        time.sleep(0.5)  # a save takes 3 to 12 ms
        took = _kill(stage)
        if stage.status()["remembers"] is not kept:
            raise Broken("it has forgotten what was said" if kept else "it remembers")
        began = time.monotonic()
        trial.served(took + stage.turn(seconds=1.0))
        told = [f for f in stage.frames() if f.kind == "conversation.item.create" and f.t > began]
        if bool(told) is not kept:
            raise Broken("a new session is not told" if kept else "a new session is told")
    stage.reload()


@contextmanager
def full(stage: Stage) -> Iterator[None]:
    filler = stage.unit.state / "filler"
    with contextlib.suppress(OSError):
        filler.write_bytes(bytes(2 * STATE_KB * 1024))
    try:
        yield
    finally:
        filler.unlink()


@contextmanager
def read_only(stage: Stage) -> Iterator[None]:
    def remount(how: str) -> None:
        state = str(stage.unit.state)
        subprocess.run(["mount", "-o", f"remount,{how}", state], check=True, capture_output=True)

    remount("ro")
    try:
        yield
    finally:
        remount("rw")


def _disk(stage: Stage, trial: Trial) -> None:
    """It is full, or read-only: a mute works and is not kept, and everything else goes on."""
    with stage.rng.choice((full, read_only))(stage):
        stage.command("mute")
        trial.named("mute-not-kept")
        if not stage.status()["muted"]:
            raise Broken("it is not muted")
        stage.command("unmute")
        stage.turn(seconds=1.0)
    stage.hang_up()
    stage.command("mute")
    stage.poll(lambda: not stage.faults(), 3, "mute-not-kept stays")
    stage.command("unmute")
    trial.served(stage.turn(seconds=1.0))


@contextmanager
def flooded(stage: Stage) -> Iterator[None]:
    """The socket is full of clients that talk nonsense and read nothing."""
    clients = stage.flood()
    try:
        yield
    finally:
        for client in clients:
            client.close()


def _flood(stage: Stage, trial: Trial) -> None:
    with flooded(stage):
        trial.served(stage.turn(seconds=1.0))


def _watched(name: str, fault: Callable[[], None]) -> Scene:
    return Scene(name, _broken_within(fault), STUCK_S, is_quick=False, is_deadly=True)


SCENES = (
    Scene("disk full or read-only", _disk, BUSY_S, needs="disk"),
    Scene("control socket flooded", _flood, BUSY_S),
    Scene("stopped for a moment", _frozen, BUSY_S),
    Scene("killed", _killed, START_S, is_deadly=True),
    Scene("killed while muted", _killed_muted, START_S, is_deadly=True),
    Scene("killed with a conversation", _kept, START_S, is_deadly=True),
    Scene("memory over its limit", _memory_high, START_S, is_deadly=True),
    _watched("the capture thread ends", inject.end_the_capture_thread),
    _watched("the capture's read hangs", sabotage.hang_the_capture_read),
    _watched("the playback thread hangs", inject.hang_the_playback_thread),
    _watched("the loop hangs", inject.wedge_the_loop),
    _watched("the loop spins", inject.spin_the_loop),
    _watched("the interpreter is held", inject.hold_the_interpreter),
)
