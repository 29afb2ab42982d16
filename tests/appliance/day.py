"""A day in the life of a device: scenes on the stage, and what they measured."""

from __future__ import annotations

import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np

from tests.appliance import tree
from tests.appliance.sound import RATE, Recording, Samples, spoken
from tests.appliance.stage import HOLD_S, SOON_S, Stage
from tests.bench.figures import (
    APPEND,
    COMMIT,
    COMMITTED,
    DELTA,
    Frame,
    append_delays_ms,
    between,
)
from tests.bench.table import Row
from voiced.sim.report import correlation, speech_span
from voiced.sim.stand import QUESTION, toml
from voiced.sim.streams import Ear
from voiced.sim.wav import read_wav, to_rate

VOICECTL = "/opt/voiced/current/bin/voicectl"
CONFIG = "/etc/voiced/voiced.toml"
REALTIME = tree.ROOT / "systemd/voiced-realtime.conf"
DROP_IN = "/etc/systemd/system/voiced.service.d/realtime.conf"

LEAD_S = 6.0  # of room before somebody speaks: the gate knows its floor after 4 s
TAIL_S = 3.0
FINGER_S = 0.2  # pressed so long before the first word
HELD_ON_S = 0.8  # released so long after the last: the dial may take most of the words
LISTEN_S = 0.7  # to an answer, before it is cut
GAP_S = 1.6  # behind a question: in the middle of its answer, which is as long
LOG_S = 1.2  # the server writes its log once a second
WHOLE = 0.9  # correlation of what was said and what was heard: resampled twice, over noise


GOALS: dict[str, tuple[float | None, float | None]] = {
    "start to READY": (8000, None),
    "cancel: press to drop()": (None, 60),
    "cancel: interrupt to drop()": (None, 60),
    "cancel: hangup to drop()": (None, 60),
    "held and nothing said: turns committed": (0, 0),
    "pauses of 500 ms that ended a turn": (0, 0),
    "memory (peak RSS)": (60, None),
    "capture xruns": (None, 0),
    "capture dropped blocks": (None, 0),
    "playback xruns": (None, 0),
    "playback holes": (None, 0),
    "systemctl stop": (None, 2000),
    # No promise of the product's, but what says that it is in time: some times what was measured.
    "press to light": (None, 300),
    "press to first append": (None, 2500),
    "speech to wire, held turn": (None, 500),
    "cancel: press to silence": (None, 60),
    "cancel: interrupt to silence": (None, 60),
    "cancel: hangup to silence": (None, 60),
    "speech over the answer: onset to silence": (None, 600),
    "end of speech to turn closed, local": (None, 900),
    # How long the server ponders is its own affair.
    "end of speech to turn closed, semantic_vad": (None, 2000),
    "first delta to first sample": (None, 300),
    "audio_end_ms against what was heard": (None, 10),
    "hands-free: onset to first append": (None, 500),
    "end of speech to turn closed (silence 600 ms)": (None, 900),
    "network back to the answer of what was said": (None, 5000),
    "microphone unplugged to the fault": (None, 2000),
    "microphone plugged in to service": (None, 3000),
    "speaker unplugged to the fault": (None, 2000),
    "speaker plugged in to service": (None, 3000),
    "CPU per minute, idle": (None, None),
}
"""Figure: (median, worst), as far as there is a goal."""


class Broken(AssertionError):
    """The device did not do what it promises."""


class Day:
    """Plays scenes; `rows` grows by what they measure. Scenes raise Broken or MachineError."""

    def __init__(self, stage: Stage, rows: dict[str, Row]) -> None:
        self.stage, self.rows = stage, rows
        samples, rate = read_wav(QUESTION)
        self._voice: Samples = to_rate(samples[:, 0], rate, RATE)
        first, last = speech_span(self._voice, RATE)
        self._first_s, self._last_s = first / RATE, last / RATE

    def _note(self, name: str, *values: float, beside: str = "", unit: str = "ms") -> None:
        row = Row(name + beside, [], GOALS[name], unit)
        self.rows.setdefault(row.name, row).values += values

    # --- the service -------------------------------------------------------------------------

    def start(self) -> None:
        """It is ready soon after it was started, and nothing is wrong."""
        started, ready = (
            float(self.stage.show(name)) / 1000
            for name in ("ExecMainStartTimestampMonotonic", "ActiveEnterTimestampMonotonic")
        )
        self._note("start to READY", ready - started)
        self.serves()

    def serves(self, within_s: float = SOON_S) -> None:
        """Nothing is wrong, and systemd is told so."""
        self.stage.wait(lambda: not self.stage.faults() or None, "no fault", within_s)
        text = self.stage.show("StatusText")
        if not text.startswith("idle · link down"):
            raise Broken(f"systemd was told {text!r}, not that it is idle and nothing is wrong")

    def reload(self) -> None:
        """A valid configuration is taken, an invalid one refused by name; the process stays."""
        process = self.stage.show("MainPID")
        old = self.stage.machine.read(CONFIG).decode()
        try:
            self._reload(old + "\n[turn]\nsilence_ms = 100000\n")
            faults = self.stage.faults()
            if not any("turn.silence_ms" in fault["detail"] for fault in faults):
                raise Broken(f"an invalid setting is not named: {faults}")
        finally:
            self._reload(old + "\n[turn]\nsilence_ms = 500\n")
        self.serves()
        if self.stage.show("MainPID") != process:
            raise Broken("a reload started another process")
        self._reload(old)

    def _reload(self, config: str) -> None:
        self.stage.machine.write(CONFIG, config.encode())
        self.stage.machine.run("systemctl", "reload", "voiced")

    @contextmanager
    def configured(self, **tables: dict[str, object]) -> Iterator[None]:
        """Other settings for a while."""
        old = self.stage.machine.read(CONFIG).decode()
        settings = tomllib.loads(old)
        for name, keys in tables.items():
            settings[name] = {**settings.get(name, {}), **keys}
        self._reload(toml(settings))
        try:
            self.serves()
            yield
        finally:
            self._reload(old)

    def restart(self) -> None:
        """A person's restart: stopped in 2 s, ready again."""
        before = self.stage.now()
        self.stage.machine.run("systemctl", "stop", "voiced")
        self._note("systemctl stop", (self.stage.now() - before) * 1000)
        if self.stage.show("Result") != "success":
            raise Broken(f"it did not stop well: {self.stage.show('Result')}")
        self.stage.machine.run("systemctl", "start", "voiced")
        self.stage.connect()
        self.start()

    # --- talking -----------------------------------------------------------------------------

    def held_turn(self, beside: str = "", cut_by: str = "press") -> None:
        """Hold, speak, let go, hear some of the answer, cut it by a tap or a command, hang up."""
        stage = self.stage
        said = stage.say(spoken(self._voice, LEAD_S, TAIL_S))
        stage.listen()
        pressed, lit = self._hold(said)
        released = stage.release()
        stage.until("turn", released, turn="speaking")
        time.sleep(LISTEN_S)
        cut = stage.tap() if cut_by == "press" else stage.command(cut_by)
        flushed = stage.until("flushed", cut)
        time.sleep(LOG_S)
        stage.hang_up()
        turn = between(stage.frames(), pressed, cut + LOG_S)
        self._note("press to light", (lit - pressed) * 1000)
        self._measure_sent(turn, pressed, said, beside)
        self._measure_cut(turn, cut, flushed, cut_by, beside)

    def _hold(self, said: Recording) -> tuple[float, float]:
        """Press before the first word, wait for the last; when pressed and when lit."""
        stage = self.stage
        stage.look()
        stage.sleep_until(said.started_at + LEAD_S + self._first_s - FINGER_S)
        pressed = stage.press()
        stage.sleep_until(said.started_at + LEAD_S + self._last_s + HELD_ON_S)
        lit = stage.lit()
        if lit is None:
            raise Broken("the light stayed dark while somebody held the button")
        return pressed, lit

    def _measure_sent(
        self, turn: list[Frame], pressed: float, said: Recording, beside: str
    ) -> None:
        appends = [frame for frame in turn if frame.kind == APPEND]
        if not appends:
            raise Broken("nothing was sent of a held turn")
        self._note("press to first append", (appends[0].t - pressed) * 1000, beside=beside)
        delays = list(append_delays_ms(turn, cast(Ear, said), burst_s=0.4))
        self._note("speech to wire, held turn", *delays, beside=beside)
        sent = np.concatenate([frame.audio for frame in appends])
        whole = correlation(to_rate(sent, RATE // 2, RATE), self._voice)
        if whole < WHOLE:
            raise Broken(f"what was said did not arrive whole: correlation {whole:.2f}")

    def _measure_cut(
        self, turn: list[Frame], cut: float, flushed: dict[str, Any], cut_by: str, beside: str
    ) -> None:
        delta = next((frame.t for frame in turn if frame.kind == DELTA), cut)
        first, last, sounded = _sounding(self.stage.heard(), delta, cut + LOG_S)
        drop_ms = (flushed["dropped_at"] - cut) * 1000
        self._note(f"cancel: {cut_by} to drop()", drop_ms, beside=beside)
        self._note(f"cancel: {cut_by} to silence", (last - cut) * 1000, beside=beside)
        self._note("first delta to first sample", (first - delta) * 1000, beside=beside)
        for frame in turn:
            if frame.kind == "conversation.item.truncate":
                off_ms = frame.event["audio_end_ms"] - sounded * 1000
                self._note("audio_end_ms against what was heard", off_ms, beside=beside)

    def nothing_said(self) -> None:
        """A button held in a silent room costs nothing, and sounds."""
        stage = self.stage
        said = stage.say(spoken(self._voice, 12.0, TAIL_S))  # long after
        stage.sleep_until(said.started_at + LEAD_S)
        pressed = stage.press()
        stage.sleep_until(pressed + HOLD_S)
        stage.release()
        stage.until("nothing-said", pressed)
        stage.until("turn", pressed, turn="idle")
        stage.until("link", stage.command("hangup"), link="down")
        time.sleep(LOG_S)
        frames = between(stage.frames(), pressed, stage.now())
        paid = sum(frame.kind == COMMIT for frame in frames)
        self._note("held and nothing said: turns committed", float(paid), unit="")

    def speech_over(self) -> None:
        """Somebody speaks over the answer, and is heard: with an array that cancels its own echo,
        as no sound gets from one of the machine's cards to the other."""
        with self.configured(microphone={"echo": "hardware"}):
            for _ in range(2):  # an array is trusted when for a second nothing of us was heard
                self._hear_out()
            for _ in range(3):
                if not any(self._speak_over() for _ in range(5)):
                    raise Broken("its answers always came too late to be spoken over")

    def _hear_out(self) -> None:
        """Ask, and hear the whole answer."""
        stage = self.stage
        self._hold(stage.say(spoken(self._voice, LEAD_S, TAIL_S)))
        speaking = stage.until("turn", stage.release(), turn="speaking")
        stage.until("turn", speaking["t"], turn="listening")
        stage.hang_up()

    def _speak_over(self) -> bool:
        """False if the answer was not there yet: a busy host makes a slow machine."""
        stage = self.stage
        gap = np.zeros(round(GAP_S * RATE), np.int16)
        twice = np.concatenate((self._voice, gap, self._voice))
        said = stage.say(spoken(twice, LEAD_S, TAIL_S))
        stage.listen()
        self._hold(said)
        released = stage.release()
        speaking = stage.until("turn", released, turn="speaking")
        # The second time it is said, the answer to the first sounds.
        again = said.started_at + LEAD_S + len(self._voice) / RATE + GAP_S + self._first_s
        if speaking["t"] > again:
            stage.hang_up()
            return False
        flushed = stage.until("flushed", released)
        if flushed["t"] < again:
            raise Broken(f"it interrupted itself {again - flushed['t']:.1f} s before anybody spoke")
        time.sleep(LOG_S)
        stage.hang_up()
        _, last, _ = _sounding(stage.heard(), released, flushed["dropped_at"] + 0.3)
        self._note("speech over the answer: onset to silence", (last - again) * 1000)
        return True

    def ends(self) -> None:
        """The other ways to end a turn, and a pause for thought that ends none."""
        for end in ("local", "semantic_vad"):
            with self.configured(turn={"end": end}):
                self._end(end)

    def _end(self, end: str) -> None:
        stage = self.stage
        voice = self._voice[round(self._first_s * RATE) : round(self._last_s * RATE)]
        pause = np.zeros(RATE // 2, np.int16)
        said = stage.say(spoken(np.concatenate((voice, pause, voice)), LEAD_S, TAIL_S))
        turn = self._tap_and_hear_out(said)
        ended = said.started_at + LEAD_S + 2 * len(voice) / RATE + 0.5
        closed = [frame.t for frame in turn if frame.kind == COMMITTED]
        early = sum(t < ended for t in closed)
        self._note("pauses of 500 ms that ended a turn", float(early), unit="")
        late = [(t - ended) * 1000 for t in closed if t >= ended]
        self._note(f"end of speech to turn closed, {end}", *late[:1])

    def _tap_and_hear_out(self, said: Recording) -> list[Frame]:
        """Tap a second before this is said, hear the whole answer, hang up; the turn's frames."""
        stage = self.stage
        stage.sleep_until(said.started_at + LEAD_S - 1.0)
        pressed = stage.tap()
        speaking = stage.until("turn", pressed, turn="speaking")
        stage.until("turn", speaking["t"], turn="listening")
        time.sleep(LOG_S)
        stage.hang_up()
        return between(stage.frames(), pressed, stage.now())

    def free_turn(self) -> None:
        """Tap, speak, and hear the whole answer; hang up."""
        stage = self.stage
        said = stage.say(spoken(self._voice, LEAD_S, TAIL_S))
        stage.listen()
        turn = self._tap_and_hear_out(said)
        begins = said.started_at + LEAD_S
        appends = [frame.t for frame in turn if frame.kind == APPEND]
        closed = [frame.t for frame in turn if frame.kind == COMMITTED]
        deltas = [frame.t for frame in turn if frame.kind == DELTA]
        if len(closed) != 1 or not appends or not deltas:
            raise Broken(f"one sentence made {len(closed)} turns and {len(deltas)} deltas")
        self._note("hands-free: onset to first append", (appends[0] - begins - self._first_s) * 1e3)
        self._note(
            "end of speech to turn closed (silence 600 ms)",
            (closed[0] - begins - self._last_s) * 1000,
        )
        heard = stage.heard()
        first, last, _ = _sounding(heard, deltas[0], stage.now())
        answer = heard.snapshot(heard.index_at(first), heard.index_at(last) + 1)
        whole = correlation(answer, self._voice)
        if whole < WHOLE:
            raise Broken(f"the answer was not heard whole: correlation {whole:.2f}")

    def mute(self) -> None:
        """Muted, a press is refused in sight and nothing is sent; unmuted it serves again."""
        stage = self.stage
        stage.machine.run(VOICECTL, "mute")
        stage.say(spoken(self._voice, 0.5, TAIL_S))
        pressed = stage.tap()
        stage.until("refused", pressed)
        stage.until("light", pressed, light="refused")
        time.sleep(LOG_S)
        if any(frame.kind == APPEND for frame in between(stage.frames(), pressed, stage.now())):
            raise Broken("it sent audio while it was muted")
        stage.machine.run(VOICECTL, "unmute")
        self.serves()

    def stays_muted(self) -> None:
        """It was muted before it was started, and unmuted it serves."""
        if not self.stage.status()["muted"]:
            raise Broken("it forgot that it is muted")
        self.stage.machine.run(VOICECTL, "unmute")
        self.serves()

    # --- trouble -----------------------------------------------------------------------------

    def network_cut(self) -> None:
        """The cable is out while somebody speaks, and back later: what was said is answered."""
        stage = self.stage
        said = stage.say(spoken(self._voice, LEAD_S, TAIL_S))
        stage.listen()
        stage.sleep_until(said.started_at + LEAD_S + self._first_s - FINGER_S)
        stage.press()
        stage.sleep_until(said.started_at + LEAD_S + self._first_s + 0.7)
        stage.machine.unplug_network()
        stage.sleep_until(said.started_at + LEAD_S + self._last_s + FINGER_S)
        released = stage.release()
        stage.until("link-lost", released)
        stage.machine.plug_network()
        back = stage.now()
        speaking = stage.until("turn", back, turn="speaking")
        self._note("network back to the answer of what was said", (speaking["t"] - back) * 1000)
        stage.until("turn", speaking["t"], turn="listening")
        time.sleep(LOG_S)
        stage.hang_up()
        appends = [f for f in between(stage.frames(), back, stage.now()) if f.kind == APPEND]
        if not appends:
            raise Broken("what was said was not sent again")
        sent = np.concatenate([frame.audio for frame in appends])
        whole = correlation(to_rate(sent, RATE // 2, RATE), self._voice)
        if whole < WHOLE:
            raise Broken(f"what was said was not sent again whole: correlation {whole:.2f}")

    def unplug(self, card: str) -> None:
        """A USB card is pulled and put back: a fault by name, then service."""
        stage = self.stage
        name = "microphone" if card == "Mic" else "speaker"
        gone = stage.now()
        stage.machine.unplug_card(card)
        lost = stage.until("fault", gone, fault=f"{name}-lost")
        self._note(f"{name} unplugged to the fault", (lost["t"] - gone) * 1000)
        if name not in stage.show("StatusText"):
            raise Broken(f"systemd is not told of the {name}: {stage.show('StatusText')!r}")
        back = stage.now()
        stage.machine.plug_card(card)
        over = stage.until("fault-over", gone)
        self._note(f"{name} plugged in to service", (over["t"] - back) * 1000)
        self.serves()

    def busy(self, count: int) -> None:
        """Held turns beside two programs that never rest, without and with real-time priority."""
        machine = self.stage.machine
        for number in ("1", "2"):
            burn = ("sh", "-c", "while :; do :; done")
            machine.run("systemd-run", "--quiet", "--collect", f"--unit=busy{number}", *burn)
        try:
            for _ in range(count):
                self.held_turn(", two busy")
            self._note_counters(", two busy")
            self._set_realtime(True)
            for _ in range(count):
                self.held_turn(", two busy, real-time")
            self._note_counters(", two busy, real-time")
        finally:
            machine.run("systemctl", "stop", "busy1", "busy2")
        self._set_realtime(False)

    def _set_realtime(self, on: bool) -> None:
        machine = self.stage.machine
        if on:
            machine.put(REALTIME, DROP_IN)
        else:
            machine.run("rm", DROP_IN)
        machine.run("systemctl", "daemon-reload")
        machine.run("systemctl", "restart", "voiced")
        policy = machine.run("chrt", "--all-tasks", "--pid", self.stage.show("MainPID"))
        if on != ("SCHED_RR" in policy) or on == ("SCHED_OTHER" in policy):
            raise Broken(f"it does not run as it was told: {policy}")
        self.stage.connect()
        self.serves()

    def talk_until(self, power_cut: Callable[[], object]) -> None:
        """The power goes while somebody is in the middle of a sentence."""
        said = self.stage.say(spoken(self._voice, LEAD_S, TAIL_S))
        self.stage.sleep_until(said.started_at + LEAD_S + self._first_s - 1.0)
        pressed = self.stage.press()
        self.stage.until("turn", pressed, turn="hearing")
        self.stage.sleep_until(said.started_at + LEAD_S + (self._first_s + self._last_s) / 2)
        power_cut()

    # --- what it costs -----------------------------------------------------------------------

    def cost(self, seconds: float) -> None:
        """Of a quiet minute, and since it was started."""
        stage = self.stage
        before = stage.cpu_s()
        time.sleep(seconds)
        self._note("CPU per minute, idle", (stage.cpu_s() - before) * 60 / seconds, unit="s")
        self._note("memory (peak RSS)", stage.peak_rss_mb(), unit="MB")
        self._note_counters()

    def _note_counters(self, beside: str = "") -> None:
        """What was lost since the daemon was started."""
        counters = self.stage.status()["counters"]
        for name in ("capture_xruns", "capture_dropped_blocks", "playback_xruns", "playback_holes"):
            self._note(name.replace("_", " "), float(counters[name]), beside=beside, unit="")


def _sounding(heard: Recording, begin: float, end: float) -> tuple[float, float, float]:
    """When the first and the last non-zero sample in a span of time were heard, and how long it
    was from the one to the other. Raises Broken for silence."""
    first = heard.index_at(begin)
    found = np.flatnonzero(heard.snapshot(first, heard.index_at(end)))
    if not len(found):
        raise Broken("an answer that was not heard")
    return (
        heard.time_at(first + int(found[0])),
        heard.time_at(first + int(found[-1])),
        (int(found[-1]) - int(found[0]) + 1) / RATE,
    )
