"""What happens in the soak: turns of all kinds, and one row for each fault.

A scene has a fault befall the daemon, at a random moment where the moment matters, and tells its
`Trial` how long it took until somebody was answered who had been waiting since the fault was over.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

from tests.soak import sabotage
from tests.soak.network import Network
from tests.soak.stage import KEY, NAMED_S, STATE_KB, Mode, Stage
from tests.soak.unit import WATCHDOG_S
from voiced.core.retry import CAP_S
from voiced.core.uplink import STALE_S
from voiced.sim.board import BoardError
from voiced.sim.realtime_session import RATE_LIMIT_DELAY_S
from voiced.sim.stand import BUTTON_PIN, StandError

BUSY_S = 2.0
"""What a loaded machine of two cores adds to anything: no promise is judged tighter."""

BACK_S = 1.0 + BUSY_S
"""With a turn open, back within a second of the server's return (outages up to 30 s)."""

NOTICED_S = 6.0 + BACK_S
"""A half-open link is noticed within 6 s while somebody talks: TCP_USER_TIMEOUT 5 s."""

ASKED_S = 10.0 + BACK_S
"""No frame of any kind for 10 s after asking."""

DEVICE_S = 1.0 + BUSY_S
"""A lost device is tried again every second."""

PINS_S = 5.0 + BUSY_S
"""Pins that failed are tried again every five seconds."""

START_S = 1.0 + 3.0 + BUSY_S
"""A new start: the soak's RestartSec, READY and the first turn, beside other work."""

STUCK_S = 10.0 + WATCHDOG_S + START_S
"""An audio thread that steps no more is noticed in 5 s and believed at the second look."""

OUTAGE_S = 2.5


class Broken(RuntimeError):
    """A promise was not kept; the text says which."""


@dataclass
class Trial:
    """What a scene tells of itself."""

    stage: Stage
    served_s: list[float] = field(default_factory=list)
    states: set[str] = field(default_factory=set)

    def served(self, seconds: float) -> None:
        """So long somebody waited for the service to be back."""
        self.served_s.append(seconds)

    def named(self, *faults: str) -> None:
        """While it lasts, the daemon says what is wrong: one of these."""
        stage = self.stage
        seen: set[str] = set()

        def told() -> bool:
            seen.update(stage.faults())
            return bool(seen & set(faults))

        stage.poll(told, NAMED_S, f"it doesn't say {' or '.join(faults)}")
        self.states |= seen & set(faults)


Play = Callable[[Stage, Trial], None]


@dataclass(frozen=True)
class Scene:
    """`goal_s`: the longest wait for service. `is_quick`: also in a short run. `is_deadly`: the
    process may end, which hides how it grows: played when most of the time is over. `needs`: what
    can't be had everywhere."""

    name: str
    play: Play
    goal_s: float
    is_quick: bool = True
    is_deadly: bool = False
    needs: str = ""


# --- turns ------------------------------------------------------------------------------------


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
    time.sleep(1.0)  # what is taken begins before the press
    life = stage.life
    since = life.finger.press(BUTTON_PIN)
    time.sleep(0.8)
    life.finger.release(BUTTON_PIN)
    stage.poll(lambda: life.watch.state == "idle", 5, "it waits for an answer to nothing")
    commits = [f for f in stage.frames() if f.kind == "input_audio_buffer.commit" and f.t > since]
    if commits:
        raise Broken("silence was committed")
    trial.served(stage.turn(seconds=1.0))


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


# --- the link is lost ---------------------------------------------------------------------------

Harm = Callable[[Stage], None]


def _lost(harm: Harm, moment: str = "") -> Play:
    """The link is lost while it is idle, in the words, or in the answer."""

    def play(stage: Stage, trial: Trial) -> None:
        when = moment or stage.rng.choice(("idle", "words", "answer"))
        if when == "words":
            turn = stage.begin(stage.rng.choice(("held", "tapped")) if not moment else "held", 2.0)
            if not moment:
                time.sleep(stage.rng.uniform(0, 0.6))
            harm(stage)
            stage.end(turn)
            trial.served(stage.answered(turn))
            return
        stage.turn()
        if when == "idle":
            stage.hear_out()
        time.sleep(0.3)
        harm(stage)
        time.sleep(0.2)
        trial.served(stage.turn(seconds=1.0))

    return play


def _close(code: int) -> Harm:
    return lambda stage: stage.session(lambda session: session.close(code))


def _reset(stage: Stage) -> None:
    stage.backstage.do(stage.proxy.reset)


def _vanish(stage: Stage) -> None:
    stage.backstage.do(stage.proxy.vanish)


def _refusing_close(code: int, fault: str) -> Play:
    """The server says that it is of no use to come again; until somebody has done something."""

    def play(stage: Stage, trial: Trial) -> None:
        stage.turn(seconds=1.0)
        _close(code)(stage)
        trial.named(fault)
        stage.reload()
        trial.served(stage.turn(seconds=1.0))

    return play


def _garbage(stage: Stage, trial: Trial) -> None:
    turn = stage.begin()
    stage.session(lambda session: session.garbage())
    stage.end(turn)
    trial.served(stage.answered(turn))
    stage.session(lambda session: session.garbage())
    stage.hear_out()
    trial.served(stage.turn(seconds=1.0))


def _failed_answer(stage: Stage, trial: Trial) -> None:
    stage.hang_up()
    code = stage.rng.choice(("rate_limit_exceeded", "server_error"))
    stage.configure_server(failures=(code,))
    try:
        trial.served(stage.turn())
    finally:
        stage.configure_server(failures=())
    stage.hang_up()


def _expired(stage: Stage, trial: Trial) -> None:
    stage.hang_up()
    stage.configure_server(max_session_s=2.0)
    try:
        turn = stage.begin(seconds=2.1)
        time.sleep(1.2)
        stage.configure_server(max_session_s=3600)
        stage.end(turn)
        trial.served(stage.answered(turn))
    finally:
        stage.configure_server(max_session_s=3600)


def _swallowed(stage: Stage, trial: Trial) -> None:
    """Everything is taken, acknowledged and lost, in this one connection."""
    turn = stage.begin(stage.rng.choice(("held", "tapped")))
    stage.backstage.do(lambda: setattr(stage.proxy.weather, "swallow", True))
    stage.end(turn)
    links = [n for n in turn.life.notes if n["event"] == "link-lost"]
    watch = turn.life.watch
    watch.wait(
        lambda: len([n for n in watch.notes if n["event"] == "link-lost"]) > len(links),
        20,
        "it is not noticed",
    )
    stage.backstage.do(stage.proxy.clear)
    trial.served(stage.answered(turn))


# --- the way is bad -------------------------------------------------------------------------------


def _weather(**changes: float) -> Play:
    def play(stage: Stage, trial: Trial) -> None:
        stage.scene.slow_line = True

        def change() -> None:
            for name, value in changes.items():
                setattr(stage.proxy.weather, name, value)

        turn = stage.begin()
        stage.backstage.do(change)
        stage.end(turn)
        trial.served(stage.answered(turn))
        stage.hear_out()
        stage.backstage.do(stage.proxy.clear)
        stage.turn(seconds=1.0)

    return play


def _stall(stage: Stage, trial: Trial) -> None:
    turn = stage.begin()
    lifted = time.monotonic() + OUTAGE_S
    stage.session(lambda session: session.stall(OUTAGE_S))
    stage.end(turn)
    trial.served(stage.answered(turn, lifted))


# --- there is no way ------------------------------------------------------------------------------

Trouble = Callable[[Stage], AbstractContextManager[None]]


def _lasting(trouble: Trouble, *faults: str) -> Play:
    """Somebody speaks while the server can't be had; it is said why; then all arrives."""

    def play(stage: Stage, trial: Trial) -> None:
        stage.hang_up()
        with trouble(stage):
            turn = stage.begin(stage.rng.choice(("held", "tapped")))
            until = turn.pressed + OUTAGE_S
            trial.named(*faults)
            stage.end(turn)
            time.sleep(max(0.0, until - time.monotonic()))
        trial.served(stage.answered(turn, time.monotonic()))

    return play


def _too_long(stage: Stage, trial: Trial) -> None:
    """Away for so long that what was said is not sent any more, and somebody is told so."""
    stage.hang_up()
    with _refused(stage):
        turn = stage.begin()
        trial.named("no-route")
        stage.end(turn)
        watch = turn.life.watch
        stage.poll(lambda: watch.seen("refused", turn.pressed), STALE_S + 5, "nobody is told")
        time.sleep(5.0)
    trial.served(stage.turn(seconds=1.0))


def _for_a_person(trouble: Trouble, fault: str) -> Play:
    """Nothing of it ends by itself; a person does something, and reloads."""

    def play(stage: Stage, trial: Trial) -> None:
        stage.hang_up()
        with trouble(stage):
            turn = stage.begin()
            trial.named(fault)
            stage.end(turn)
        stage.reload()
        trial.served(stage.turn(seconds=1.0))

    return play


@contextmanager
def _refused(stage: Stage) -> Iterator[None]:
    stage.backstage.run(stage.proxy.refuse())
    try:
        yield
    finally:
        stage.backstage.run(stage.proxy.start())


@contextmanager
def _unanswered(stage: Stage) -> Iterator[None]:
    stage.backstage.do(lambda: setattr(stage.proxy, "unanswered", True))
    try:
        yield
    finally:
        stage.backstage.do(stage.proxy.clear)


def _showing(name: str) -> Trouble:
    @contextmanager
    def trouble(stage: Stage) -> Iterator[None]:
        stage.backstage.do(lambda: stage.certificates.show(name))
        try:
            yield
        finally:
            stage.backstage.do(lambda: stage.certificates.show("good"))

    return trouble


@contextmanager
def _wrong_key(stage: Stage) -> Iterator[None]:
    stage.configure_server(keys=frozenset({"another"}))
    try:
        yield
    finally:
        stage.configure_server(keys=frozenset({KEY}))


@contextmanager
def _no_quota(stage: Stage) -> Iterator[None]:
    stage.configure_server(has_quota=False)
    try:
        yield
    finally:
        stage.configure_server(has_quota=True)


@contextmanager
def _wrong_model(stage: Stage) -> Iterator[None]:
    stage.reload(realtime={"model": "retired-model"})
    yield


def _in_network(step: Callable[[Network, bool], None]) -> Trouble:
    @contextmanager
    def trouble(stage: Stage) -> Iterator[None]:
        assert isinstance(stage.network, Network)
        step(stage.network, False)
        try:
            yield
        finally:
            step(stage.network, True)

    return trouble


def _address_changes(stage: Stage) -> None:
    assert isinstance(stage.network, Network)
    stage.network.move(3)
    stage.network.move(stage.rng.choice((2, 4)))


def _cable_out(stage: Stage) -> None:
    """For a moment, under a link that is up."""
    assert isinstance(stage.network, Network)
    stage.network.cable(False)
    time.sleep(0.7)
    stage.network.cable(True)


# --- devices --------------------------------------------------------------------------------------


def _microphone(stage: Stage, trial: Trial) -> None:
    turn = stage.begin() if stage.rng.random() < 0.5 else None
    if turn is None and stage.rng.random() < 0.5:
        stage.turn()
    stage.microphone_rig.unplug()
    try:
        trial.named("microphone-lost")
        if turn:
            turn.life.finger.release(BUTTON_PIN)
        time.sleep(stage.rng.uniform(0, 2))
    finally:
        stage.microphone_rig.replug()
    _back(stage, trial)


def _speaker(stage: Stage, trial: Trial) -> None:
    """A loss is noticed when there is something to play. In idle there is nothing: the first
    answer after it must be heard all the same."""
    when = stage.rng.choice(("idle", "words", "answer"))
    turn = stage.begin() if when == "words" else None
    if when == "answer":
        stage.turn()
    stage.speaker_rig.unplug()
    stage.scene.hears = False
    try:
        if turn:
            stage.end(turn)
        if when != "idle":
            trial.named("speaker-lost")
        time.sleep(stage.rng.uniform(0, 2))
    finally:
        stage.speaker_rig.replug()
    _back(stage, trial)


def _back(stage: Stage, trial: Trial) -> None:
    """A device is back: it is taken again, and an answer is heard."""
    lifted = time.monotonic()
    gone = stage.poll(lambda: not stage.faults(), 20, "it is not taken again")
    stage.listen()
    took = stage.turn(seconds=1.0)
    stage.poll(lambda: stage.ear.snapshot().any(), 2, "the answer is not heard")
    trial.served(gone - lifted + took)


def _sound_hangs(device: str) -> Play:
    def play(stage: Stage, trial: Trial) -> None:
        rig = stage.microphone_rig if device == "microphone" else stage.speaker_rig
        assert rig._server
        stage.scene.hears = False
        with stage.unit.dying(f"the {device}'s sound server hangs"):
            stage.turn(seconds=1.0)
            with stage.stopped(rig._server.pid):
                time.sleep(stage.rng.uniform(2, 4))
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
    stage.life.popen.send_signal(sabotage.LIGHTS_SIGNAL)
    began = time.monotonic()
    with contextlib.suppress(BoardError):
        stage.life.finger.press(BUTTON_PIN)
        trial.named("lights-lost")
        stage.life.finger.release(BUTTON_PIN)
    if any(f.kind == "input_audio_buffer.append" and f.t > began for f in stage.frames()):
        raise Broken("audio left without a light")
    lifted = began + sabotage.LIGHTS_FAIL_S
    gone = stage.poll(lambda: not stage.faults(), 20, "the lights stay lost")
    trial.served(gone - lifted + stage.turn(seconds=1.0))


# --- the process, the disk, the socket ------------------------------------------------------------


def _frozen(stage: Stage, trial: Trial) -> None:
    when = stage.rng.choice(("idle", "words", "answer"))
    turn = stage.begin() if when == "words" else None
    if when == "answer":
        stage.turn()
    with stage.stopped(stage.life.popen.pid):
        time.sleep(stage.rng.uniform(1, 3))
    if turn:
        turn.promised = False  # the microphone's buffer holds a fifth of a second
        turn.utterance.wait_ended(10)
        turn.life.finger.release(BUTTON_PIN)
        time.sleep(0.5)
    stage.hang_up()
    trial.served(stage.turn(seconds=1.0))


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


def _thread_dies(name: str) -> Play:
    def play(stage: Stage, trial: Trial) -> None:
        stage.scene.hears = False
        old = stage.life
        with stage.unit.dying(name):
            old.popen.send_signal(sabotage.signal_of(name))
            began = time.monotonic()
            stage.poll(lambda: stage.unit.lives[-1] is not old, STUCK_S + 5, "nobody notices")
            stage.unit.life()
            stage.rest()
            trial.served(time.monotonic() - began + stage.turn(seconds=1.0))

    return play


@contextmanager
def _full(stage: Stage) -> Iterator[None]:
    filler = stage.unit.state / "filler"
    with contextlib.suppress(OSError):
        filler.write_bytes(bytes(2 * STATE_KB * 1024))
    try:
        yield
    finally:
        filler.unlink()


@contextmanager
def _read_only(stage: Stage) -> Iterator[None]:
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
    with stage.rng.choice((_full, _read_only))(stage):
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


def _flood(stage: Stage, trial: Trial) -> None:
    clients = stage.flood()
    try:
        trial.served(stage.turn(seconds=1.0))
    finally:
        for client in clients:
            client.close()


# --- all of them ----------------------------------------------------------------------------------

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
    Scene("close 1000", _lost(_close(1000)), BACK_S),
    Scene("close 1001", _lost(_close(1001)), BACK_S),
    Scene("close 1011", _lost(_close(1011)), BACK_S),
    Scene("close 1012", _lost(_close(1012)), BACK_S),
    Scene("close 1013", _refusing_close(1013, "quota"), BUSY_S),
    Scene("close 4000", _refusing_close(4000, "protocol-refused"), BUSY_S),
    Scene("TCP reset", _lost(_reset), BACK_S),
    Scene("reset in the words", _lost(_reset, "words"), BACK_S),
    Scene("half-open", _lost(_vanish), NOTICED_S),
    Scene("taken and lost", _swallowed, ASKED_S, is_quick=False),
    Scene("garbage", _garbage, BUSY_S),
    Scene("failed answer", _failed_answer, RATE_LIMIT_DELAY_S + 1.0 + BUSY_S),
    Scene("session expired", _expired, BACK_S),
    Scene("slow uplink", _weather(up_bytes_per_s=40_000), 6.0 + BUSY_S),
    Scene("delay and jitter", _weather(delay_s=0.3, jitter_s=0.3), 2.0 + BUSY_S),
    Scene("server stalls", _stall, BACK_S),
    Scene("refused", _lasting(_refused, "no-route"), BACK_S),
    Scene("refused for long", _too_long, BACK_S, is_quick=False),
    Scene("unanswered", _lasting(_unanswered, "timeout"), CAP_S + BUSY_S, is_quick=False),
    Scene("certificate not yet valid", _lasting(_showing("early"), "clock-wrong"), BACK_S),
    Scene("certificate untrusted", _lasting(_showing("foreign"), "tls-untrusted"), BACK_S),
    Scene("key refused", _for_a_person(_wrong_key, "key-refused"), BUSY_S),
    Scene("model refused", _for_a_person(_wrong_model, "model-refused"), BUSY_S),
    Scene("no credit", _for_a_person(_no_quota, "quota"), BUSY_S),
    Scene("no DNS", _lasting(_in_network(Network.name_found), "no-dns"), BACK_S, needs="network"),
    Scene(
        "no network", _lasting(_in_network(Network.cable), "no-network"), BACK_S, needs="network"
    ),
    Scene("no route", _lasting(_in_network(Network.route), "no-route"), BACK_S, needs="network"),
    Scene("address changes", _lost(_address_changes), BACK_S, needs="network"),
    Scene("cable out for a moment", _lost(_cable_out), NOTICED_S, needs="network"),
    Scene("microphone unplugged", _microphone, DEVICE_S),
    Scene("speaker unplugged", _speaker, DEVICE_S),
    Scene("lights fail", _lights_fail, PINS_S),
    Scene("disk full or read-only", _disk, BUSY_S, needs="disk"),
    Scene("control socket flooded", _flood, BUSY_S),
    Scene("stopped for a moment", _frozen, BUSY_S),
    Scene("microphone's server hangs", _sound_hangs("microphone"), STUCK_S, is_deadly=True),
    Scene("speaker's server hangs", _sound_hangs("speaker"), STUCK_S, is_deadly=True),
    Scene("killed", _killed, START_S, is_deadly=True),
    Scene("killed while muted", _killed_muted, START_S, is_deadly=True),
    Scene(
        "the capture thread ends",
        _thread_dies("end_the_capture_thread"),
        STUCK_S,
        is_quick=False,
        is_deadly=True,
    ),
    Scene(
        "the playback thread hangs",
        _thread_dies("hang_the_playback_thread"),
        STUCK_S,
        is_quick=False,
        is_deadly=True,
    ),
)
