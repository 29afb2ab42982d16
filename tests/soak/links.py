"""The link: it is lost, the way to the server is bad, there is none, a session gets old."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.soak.network import Network
from tests.soak.stage import KEY, Stage, Turn
from tests.soak.trial import (
    ASKED_S,
    BACK_S,
    BUSY_S,
    NOTICED_S,
    OUTAGE_S,
    Broken,
    Play,
    Scene,
    Trial,
    Trouble,
)
from voiced.core.retry import CAP_S
from voiced.core.uplink import STALE_S
from voiced.edge.link import MAX_LOOKUPS, OPEN_TIMEOUT_S
from voiced.sim.realtime_session import RATE_LIMIT_DELAY_S
from voiced.sim.stand import BUTTON_PIN

# --- it is lost -----------------------------------------------------------------------------------

LONG_TALK_S = 20.0

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
    stage.backstage.do(stage.proxy.swallow)
    stage.end(turn)
    links = [n for n in turn.life.notes if n["event"] == "link-lost"]
    watch = turn.life.watch
    watch.wait(
        lambda: len([n for n in watch.notes if n["event"] == "link-lost"]) > len(links),
        20,
        "it is not noticed",
    )
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


def _begin_stall(stage: Stage) -> tuple[Turn, float]:
    """From the middle of the words on the server says nothing for a while; until when."""
    turn = stage.begin()
    outage_s = stage.rng.uniform(*OUTAGE_S)
    lifted = time.monotonic() + outage_s
    stage.session(lambda session: session.stall(outage_s))
    stage.end(turn)
    return turn, lifted


@contextmanager
def stalling(stage: Stage) -> Iterator[None]:
    """Somebody waits for a server that says nothing for a while."""
    _, lifted = _begin_stall(stage)
    try:
        yield
    finally:
        time.sleep(max(0.0, lifted - time.monotonic()))


def _stall(stage: Stage, trial: Trial) -> None:
    trial.served(stage.answered(*_begin_stall(stage)))


# --- there is no way ------------------------------------------------------------------------------


def _lasting(trouble: Trouble, *faults: str) -> Play:
    """Somebody speaks while the server can't be had; it is said why; then all arrives."""

    def play(stage: Stage, trial: Trial) -> None:
        stage.hang_up()
        with trouble(stage):
            turn = stage.begin(stage.rng.choice(("held", "tapped")))
            until = turn.pressed + stage.rng.uniform(*OUTAGE_S)
            trial.named(*faults)
            stage.end(turn)
            time.sleep(max(0.0, until - time.monotonic()))
        trial.served(stage.answered(turn, time.monotonic()))

    return play


def _long_talk(stage: Stage, trial: Trial) -> None:
    """Somebody talks on and on, and the server is away all that time: it is dialled as often at the
    end as at the beginning, and nothing is lost."""
    stage.hang_up()
    with refused(stage):
        turn = stage.begin(stage.rng.choice(("held", "tapped")), LONG_TALK_S)
        trial.named("no-route")
        stage.end(turn)
    trial.served(stage.answered(turn, time.monotonic()))


def _too_long(stage: Stage, trial: Trial) -> None:
    """Away for so long that what was said is not sent any more, and somebody is told so."""
    stage.hang_up()
    with refused(stage):
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


def _resolver_hangs(stage: Stage, trial: Trial) -> None:
    """A name is looked up and nobody answers: it is said why, and nothing else waits for it."""
    stage.hang_up()
    with in_network(Network.name_answered)(stage):
        turn = stage.begin(stage.rng.choice(("held", "tapped")))
        stage.end(turn)
        while time.monotonic() < turn.pressed + OPEN_TIMEOUT_S - 1:
            _ask_status(stage)
            time.sleep(0.2)
        trial.named("no-dns")
    trial.served(stage.answered(turn, time.monotonic()))


def _presses_while_the_resolver_hangs(stage: Stage, trial: Trial) -> None:
    """Each press looks the name up anew: at some number of threads that is over."""
    stage.hang_up()
    threads = stage.life.count_threads()
    with in_network(Network.name_answered)(stage):
        for _ in range(MAX_LOOKUPS + 4):
            stage.life.finger.press(BUTTON_PIN)
            stage.life.finger.release(BUTTON_PIN)
            time.sleep(0.1)
            _ask_status(stage)
            stage.hang_up()
        more = stage.life.count_threads() - threads
        if not MAX_LOOKUPS / 2 <= more <= MAX_LOOKUPS + 1:  # the disk's may have been started
            raise Broken(f"{more} more threads look the name up")
        turn = stage.begin()
        trial.named("no-dns")
        stage.end(turn)
    trial.served(stage.answered(turn, time.monotonic()))


STATUS_S = 1.0
"""Who asks what state it is in gets an answer, whatever it waits for."""


def _ask_status(stage: Stage) -> None:
    asked = time.monotonic()
    stage.status()
    if (took_s := time.monotonic() - asked) > STATUS_S:
        raise Broken(f"it took {took_s:.1f} s to tell its state")


@contextmanager
def refused(stage: Stage) -> Iterator[None]:
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


def showing(name: str) -> Trouble:
    @contextmanager
    def trouble(stage: Stage) -> Iterator[None]:
        stage.backstage.do(lambda: stage.certificates.show(name))
        try:
            yield
        finally:
            stage.backstage.do(lambda: stage.certificates.show("good"))

    return trouble


@contextmanager
def wrong_key(stage: Stage) -> Iterator[None]:
    stage.configure_server(keys=frozenset({"another"}))
    try:
        yield
    finally:
        stage.configure_server(keys=frozenset({KEY}))


@contextmanager
def no_quota(stage: Stage) -> Iterator[None]:
    stage.configure_server(has_quota=False)
    try:
        yield
    finally:
        stage.configure_server(has_quota=True)


@contextmanager
def _wrong_model(stage: Stage) -> Iterator[None]:
    stage.reload(realtime={"model": "retired-model"})
    yield


def in_network(step: Callable[[Network, bool], None]) -> Trouble:
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


# --- a session gets old ---------------------------------------------------------------------------

LIFE_S = 8.0
"""Of a session, for one turn of 3 s on each side of its half."""


@contextmanager
def _short_sessions(stage: Stage) -> Iterator[None]:
    """Those that begin now tell that they end soon, and do."""
    stage.hang_up()
    stage.configure_server(max_session_s=LIFE_S)
    try:
        yield
    finally:
        stage.configure_server(max_session_s=3600)


def _recycled(stage: Stage, trial: Trial) -> None:
    """It leaves a session in the pause after a turn, asks before what was said, and the next one
    is told."""
    began = time.monotonic()
    with _short_sessions(stage):
        stage.turn(seconds=1.0)
        stage.hear_out()
        watch = stage.life.watch
        stage.poll(lambda: watch.seen("recycle", began), LIFE_S, "it stays")
    trial.served(stage.turn(seconds=1.0))
    frames = [f for f in stage.frames() if f.t > began]
    asked = [f for f in frames if f.event.get("response", {}).get("conversation") == "none"]
    told = [f for f in frames if f.kind == "conversation.item.create"]
    if not asked or "summary" not in json.dumps([f.event for f in told]):
        raise Broken("the next session was not told a summary")
    if watch.seen("link-lost", began):
        raise Broken("the server was quicker")


def _talk_over_sessions(stage: Stage, trial: Trial) -> None:
    """One long conversation, with a pause now and then, and turns at any moment of a session."""
    began = time.monotonic()
    with _short_sessions(stage):
        while time.monotonic() < began + 4 * LIFE_S:
            trial.served(stage.turn(stage.rng.choice(("held", "tapped")), 1.0))
            stage.hear_out()
            time.sleep(stage.rng.uniform(0.2, 2.0))
    if not stage.life.watch.seen("recycle", began):
        raise Broken("no session was left before its end")
    if not stage.status()["remembers"]:
        raise Broken("it does not remember")


def _wrong_clock(stage: Stage, trial: Trial) -> None:
    """The server says when a session ends by a clock that is hours or years off: what it means
    can't be known, and nothing ends because of it."""
    stage.hang_up()
    began = time.monotonic()
    with stage.server_clock_off(stage.rng.choice((-1e9, -3 * 3600, 0.5 - 3600, 36 * 3600, 1e9))):
        stage.turn(seconds=1.0)
        stage.hear_out()
    time.sleep(2.0)
    session = stage.status()["session"]
    trial.served(stage.turn(seconds=1.0))
    if stage.status()["session"] != session or stage.life.watch.seen("recycle", began):
        raise Broken("it left a session that was good")


# --- all of them --------------------------------------------------------------------------------

SCENES = (
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
    Scene("refused", _lasting(refused, "no-route"), BACK_S),
    Scene("a long talk while refused", _long_talk, BACK_S, is_quick=False),
    Scene("refused for long", _too_long, BACK_S, is_quick=False),
    Scene("unanswered", _lasting(_unanswered, "timeout"), CAP_S + BUSY_S, is_quick=False),
    Scene("certificate not yet valid", _lasting(showing("early"), "clock-wrong"), BACK_S),
    Scene("certificate untrusted", _lasting(showing("foreign"), "tls-untrusted"), BACK_S),
    Scene("key refused", _for_a_person(wrong_key, "key-refused"), BUSY_S),
    Scene("model refused", _for_a_person(_wrong_model, "model-refused"), BUSY_S),
    Scene("no credit", _for_a_person(no_quota, "quota"), BUSY_S),
    Scene("no DNS", _lasting(in_network(Network.name_found), "no-dns"), BACK_S, needs="network"),
    Scene("no network", _lasting(in_network(Network.cable), "no-network"), BACK_S, needs="network"),
    Scene("no route", _lasting(in_network(Network.route), "no-route"), BACK_S, needs="network"),
    Scene(
        "resolver hangs",
        _resolver_hangs,
        OPEN_TIMEOUT_S + BACK_S,
        is_quick=False,
        needs="network",
    ),
    Scene(
        "presses while it hangs",
        _presses_while_the_resolver_hangs,
        OPEN_TIMEOUT_S + CAP_S + BUSY_S,
        is_quick=False,
        needs="network",
    ),
    Scene("address changes", _lost(_address_changes), BACK_S, needs="network"),
    Scene("cable out for a moment", _lost(_cable_out), NOTICED_S, needs="network"),
    Scene("session recycled", _recycled, BACK_S),
    Scene("talk over many sessions", _talk_over_sessions, BACK_S, is_quick=False),
    Scene("server's clock is wrong", _wrong_clock, BUSY_S, is_quick=False),
)
