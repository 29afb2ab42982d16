"""A day of bad weather: what befalls the network, the clock, the cards, the disk and the memory of
a device, by the kernel's own means; and whether it is in service again by itself after each.

The line's faults act on both of its ways: what comes in is led through an `ifb` device, as netem
harms only what goes out.
"""

from __future__ import annotations

import contextlib
import copy
import random
import shutil
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from tests.app.test_first_word import words
from tests.appliance import sabotage
from tests.appliance.day import HELD_ON_S, LOG_S, Broken
from tests.appliance.machine import MachineError
from tests.appliance.sound import Recording, room, spoken
from tests.appliance.stage import Stage
from tests.bench.figures import APPEND, WIRE_RATE
from tests.soak import judge
from tests.soak.table import FaultRow, Invariant
from voiced.core.uplink import STALE_S
from voiced.sim.stand import toml
from voiced.sim.streams import Ear

SERVER = "realtime.pi.test"
HOST = "10.0.2.2"  # where the guest finds the machine that emulates it
ADDRESSES = ("10.0.2.15", "10.0.2.16")
STATE = "/var/lib/voiced"
STATE_KB = 64
BROKEN = "/usr/lib/voiced-board/sabotage"
OUTAGE_S = 600.0

LEAD_S = 2.0  # of room before the press
FINGER_S = 0.1  # pressed so long before the first word
OVER_S = 20.0  # an answer is as long as its question
CLOCK_YEARS = (1, 25)  # from the last time it knew, to the beginning of the century

# What is promised, and beside it what the emulation takes. The soak allows a loaded desktop 2 s for
# all that somebody waits for; Python is 25 times slower in here, waiting is not.
EMULATED_S = 4 * 2.0
TURN_S = EMULATED_S
BACK_S = 1.0 + EMULATED_S
STEP_S = 4.0 + EMULATED_S
"""One step of the retries, that the trouble of some 5 s has led to."""
LINE_S = 6.0 + EMULATED_S
"""On a bad line: as on the soak's slow one."""
LOOKUP_S = 10.0 + EMULATED_S
"""A name server that says nothing holds a dial for so long, and perhaps it has just been asked."""
DEVICE_S = 1.0 + EMULATED_S
START_S = 2.0 + 2 * 8.0 + EMULATED_S
"""systemd waits for 2 s, and it is READY in 8: in twice that beside other work."""

TRIES = 3
"""Of a scene in which the host was too busy."""

NOTICED_S = 6.0 + 2.0
"""A link that is dead is noticed in 6 s while somebody talks; a timer that is late, a busy host."""
NAMED_S = 30.0
"""Until the state has its name. The longest dial takes 15 s."""

SILENT = """\
import socket, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("127.0.0.1", 53))
time.sleep(3600)
"""
"""A name server that takes every question and answers none."""


@dataclass
class Turn:
    """Something said with the button held."""

    said: Recording
    begin: float
    """When its first word was at the microphone, and when the last one was over."""
    end: float
    pressed: float
    missed: int
    """How often the microphone was read too late, until then."""
    released: float = 0.0


@dataclass(frozen=True)
class Scene:
    """One row. `play` returns how long somebody waited for service, in seconds. `is_deadly`: the
    process ends."""

    name: str
    play: Callable[[Weather], float]
    goal_s: float
    is_deadly: bool = False


def furnish(root: Path, broken: str) -> None:
    """What such a day takes into the tree of a machine: a disk of its own for the state, and a
    sabotage, if one is named.

    Gate and resampler are no part of the weather, and two thirds of what the daemon costs in here:
    without them it is in time on a host that does other things, too.
    """
    config = root / "etc/voiced/voiced.toml"
    settings = tomllib.loads(config.read_text())
    settings["microphone"]["rate"] = WIRE_RATE
    settings["gate"] = {"enabled": False}
    settings["turn"] = {"follow_up_s": 0}  # it would take the room for speech
    config.write_text(toml(settings))
    (root / "etc/fstab").write_text(f"state {STATE} tmpfs size={STATE_KB}k 0 0\n")
    if broken:
        folder, dropins = root / BROKEN[1:], root / "etc/systemd/system/voiced.service.d"
        folder.mkdir(parents=True)
        shutil.copy(sabotage.__file__, folder / "sitecustomize.py")
        dropins.mkdir(parents=True)
        environment = f"PYTHONPATH={BROKEN} {sabotage.VARIABLE}={broken}"
        (dropins / "sabotage.conf").write_text(f"[Service]\nEnvironment={environment}\n")


class Weather:
    """Plays scenes, each from rest to rest; fills `rows`."""

    def __init__(self, stage: Stage, seed: int, outage_s: float, rows: dict[str, FaultRow]) -> None:
        self.stage, self.machine, self.outage_s = stage, stage.machine, outage_s
        self.rng = random.Random(seed)
        self._rows = rows
        self._seed, self._spoken, self._bad_words = seed * 1000, 0, 0
        self._judged = 0
        self._starved = False  # words of this scene are lost, and the host has lost them
        self._row, self._began = FaultRow("", 0), 0.0
        self._lifted = 0.0  # when the scene's last trouble began to be over
        self._nic = self.machine.run("ip", "-o", "route", "get", HOST).split(" dev ")[1].split()[0]
        self._lay_line()

    def _lay_line(self) -> None:
        """Both ways of the line go where netem can harm them, packet by packet."""
        nic = self._nic
        self.machine.run("modprobe", "ifb", "numifbs=1")
        for command in (
            f"ip link set dev {nic} gso_max_segs 1",  # else 64 kB at once are lost
            "ip link set dev ifb0 up",
            f"tc qdisc add dev {nic} ingress",
            f"tc filter add dev {nic} parent ffff: matchall action mirred egress redirect dev ifb0",
        ):
            self.machine.run(*command.split())

    # --- scene by scene ----------------------------------------------------------------------

    def play(self, scene: Scene, say: Callable[[str], None]) -> None:
        """From rest to rest. Raises Broken or MachineError where there is no way back.

        Once more where a busy host starved the microphone's card: that is no weather.
        """
        for _ in range(TRIES):
            if self._play(scene, say):
                return
        self._row.complaints.append(f"the host was too busy, {TRIES} times")

    def _play(self, scene: Scene, say: Callable[[str], None]) -> bool:
        """False where the host was too busy: it does not count."""
        row = self._rows.setdefault(scene.name, FaultRow(scene.name, scene.goal_s))
        before = copy.deepcopy(row), self._judged, self._bad_words
        self._row, complaints = row, len(row.complaints)
        self._starved = False
        row.injected += 1
        process, self._began = self.stage.show("MainPID"), self.stage.now()
        try:
            waited_s = scene.play(self)
            row.worst_s = max(row.worst_s or 0.0, waited_s)
            row.recovered += 1
            told = f"{waited_s:.1f} s"
        except (Broken, MachineError) as exc:
            row.complaints.append(f"{type(exc).__name__}: {exc}")
            told = ""
        if self.stage.show("MainPID") != process and not scene.is_deadly:
            row.complaints.append("the daemon has ended, and nobody asked for it")
        told = "; ".join([*row.complaints[complaints:], told])
        if len(row.complaints) > complaints and "microphone-slow" in self._told():
            self._starved = True
        if self._starved:
            self._row, self._judged, self._bad_words = before
            self._rows[scene.name] = self._row
            told = f"not counted, the host was busy: {told}"
        say(f"{scene.name}: {told} (all of it {self.stage.now() - self._began:.0f} s)")
        self._rest()
        return not self._starved

    def _told(self) -> set[str]:
        """The faults that it has named in this scene."""
        said = (line for line in list(self.stage.watch.lines) if line.get("t", 0.0) > self._began)
        return {line["fault"] for line in said if line.get("event") in ("fault", "link-lost")}

    def _rest(self) -> None:
        """No turn, no link, no fault."""
        stage = self.stage
        stage.release()
        stage.command("hangup")

        def rests() -> bool | None:
            now = stage.status()
            return not now["faults"] and (now["turn"], now["link"]) == ("idle", "down") or None

        stage.wait(rests, "at rest", NAMED_S)

    def invariants(self) -> list[Invariant]:
        """What holds all day."""
        bad = self._bad_words if self._judged else None
        exceptions = self.journal().count("Traceback")
        return [
            Invariant("words lost or doubled", bad, 0, f"turns of {self._judged}"),
            Invariant("unexpected exceptions in its journal", exceptions, 0),
        ]

    def journal(self) -> str:
        """What the service has said."""
        path = "/run/journal"
        self.machine.run("sh", "-c", f"journalctl -u voiced -o short-monotonic >{path}")
        return self.machine.get(path).decode(errors="replace")

    def count_oom_kills(self) -> int:
        """How often the journal says that the kernel killed it for its memory."""
        return self.journal().count("oom-kill")

    # --- talking -----------------------------------------------------------------------------

    def begin(self, seconds: float = 1.6) -> Turn:
        """Press, and speak; returns in the middle of the words."""
        stage = self.stage
        self._spoken += 1
        samples = spoken(words(seconds, self._seed + self._spoken), LEAD_S, HELD_ON_S)
        said = stage.say(samples)
        begin = said.started_at + LEAD_S
        missed = self._missed()
        stage.sleep_until(begin - FINGER_S)
        turn = Turn(said, begin, begin + seconds, stage.press(), missed)
        stage.sleep_until(begin + seconds / 2)
        return turn

    def end(self, turn: Turn) -> None:
        """Let the button go behind the last word."""
        self.stage.sleep_until(turn.end + 2 * FINGER_S)
        turn.released = self.stage.release()

    def answered(self, turn: Turn) -> float:
        """Wait for the answer and hear it out; hold what arrived against what was said. How long
        somebody waited for it since the trouble was over."""
        stage = self.stage
        speaking = stage.until("turn", turn.pressed, STALE_S + OVER_S, turn="speaking")
        stage.until("turn", speaking["t"], OVER_S, turn="idle")
        time.sleep(LOG_S)
        self._judge(turn)
        return max(0.0, float(speaking["t"]) - max(turn.released, self._lifted))

    def _judge(self, turn: Turn) -> None:
        talk = self.stage.talk()
        since = turn.pressed - judge.PREROLL_S - 0.2
        count = sum(f.kind == "response.created" and f.t >= since for f in talk)
        if count != 1:
            self._row.complaints.append(f"{count} answers to what was said once")
        sent = judge.answered_turn(talk, since)
        tap = cast(Ear, turn.said)  # as far as it is asked
        found = judge.compare(sent, tap, turn.begin, turn.end)
        assert found
        self._judged += 1
        if found.ok:
            return
        if self._missed() != turn.missed:  # no fault of the weather: the card was read too late
            self._starved = True
        else:
            self._bad_words += 1
            self._row.complaints.append(f"{found}")

    def _missed(self) -> int:
        counters = self.stage.status()["counters"]
        return int(counters["capture_xruns"]) + int(counters["capture_dropped_blocks"])

    def turn(self) -> float:
        """A whole turn, up to its answer."""
        turn = self.begin()
        self.end(turn)
        return self.answered(turn)

    def named(self, *faults: str) -> None:
        """In this scene it says what is wrong: one of these."""

        self._row.states |= self.stage.wait(
            lambda: self._told() & set(faults) or None, " or ".join(faults), NAMED_S
        )

    def sleep(self, shortest_s: float, longest_s: float) -> None:
        """As long as the seed says."""
        time.sleep(self.rng.uniform(shortest_s, longest_s))

    # --- troubles ----------------------------------------------------------------------------

    @contextmanager
    def line(self, *harm: str) -> Iterator[None]:
        """What goes either way is harmed like this (tc-netem(8)); the carrier stays."""
        ends = (self._nic, "ifb0")
        for end in ends:
            self.machine.run("tc", "qdisc", "replace", "dev", end, "root", "netem", *harm)
        try:
            yield
        finally:
            self._lifted = self.stage.now()
            for end in ends:
                self.machine.run("tc", "qdisc", "del", "dev", end, "root")

    @contextmanager
    def no_cable(self) -> Iterator[None]:
        self.machine.unplug_network()
        try:
            yield
        finally:
            self._lifted = self.stage.now()
            self.machine.plug_network()

    @contextmanager
    def no_name(self, *, silent: bool) -> Iterator[None]:
        """Nobody knows the server's name: the name server is not there, or `silent`."""
        files = {path: self.machine.read(path) for path in ("/etc/hosts", "/etc/resolv.conf")}
        if silent:
            unit = ("--quiet", "--collect", "--unit=resolver")
            self.machine.run("systemd-run", *unit, "/usr/bin/python3", "-c", SILENT)
        self.machine.write("/etc/resolv.conf", b"nameserver 127.0.0.1\n")
        self.machine.write("/etc/hosts", b"127.0.0.1 localhost\n")
        try:
            yield
        finally:
            self._lifted = self.stage.now()
            for path, content in files.items():
                self.machine.write(path, content)
            self.machine.run("systemctl", "stop", "resolver", check=False)

    @contextmanager
    def wrong_clock(self, years: float) -> Iterator[None]:
        """As after a start without a battery, and until a time server has been asked."""
        self._set_clock(time.time() - years * 365.25 * 86_400)
        try:
            yield
        finally:
            self._lifted = self.stage.now()
            self._set_clock(time.time())

    def _set_clock(self, at: float) -> None:
        self.machine.run("date", "--set", f"@{at:.3f}")

    @contextmanager
    def full_disk(self) -> Iterator[None]:
        self.machine.run("dd", "if=/dev/zero", f"of={STATE}/filler", "bs=4k", check=False)
        try:
            yield
        finally:
            self._lifted = self.stage.now()
            self.machine.run("rm", f"{STATE}/filler")

    @contextmanager
    def read_only_disk(self) -> Iterator[None]:
        self.machine.run("mount", "-o", "remount,ro", STATE)
        try:
            yield
        finally:
            self._lifted = self.stage.now()
            self.machine.run("mount", "-o", "remount,rw", STATE)

    def move(self, old: str, new: str) -> None:
        """Another address, as a router hands out after its restart."""
        for verb, address in (("add", new), ("del", old)):
            self.machine.run("ip", "address", verb, f"{address}/24", "dev", self._nic)
        self._lifted = self.stage.now()

    def card_number(self, name: str) -> str:
        return self.machine.run("readlink", f"/proc/asound/{name}").strip()


# --- the line -------------------------------------------------------------------------------------

Harm = Callable[[random.Random], Sequence[str]]


def _bad_line(harm: Harm) -> Callable[[Weather], float]:
    """A whole turn from the dial to the end of the answer."""

    def play(weather: Weather) -> float:
        with weather.line(*harm(weather.rng)):
            return weather.turn()

    return play


def _loss(rng: random.Random) -> Sequence[str]:
    return ("loss", f"{rng.uniform(2, 12):.1f}%")


def _delay(rng: random.Random) -> Sequence[str]:
    delay_ms = rng.uniform(100, 300)
    return ("delay", f"{delay_ms:.0f}ms", f"{delay_ms * rng.uniform(0.2, 0.6):.0f}ms")


def _disorder(rng: random.Random) -> Sequence[str]:
    doubled = ("duplicate", f"{rng.uniform(1, 10):.1f}%")
    return ("delay", "50ms", "reorder", f"{rng.uniform(20, 50):.0f}%", "50%", *doubled)


def _gap(weather: Weather) -> float:
    """For so short that nobody has to dial anew."""
    turn = weather.begin(2.5)
    with weather.line("loss", "100%"):
        weather.sleep(0.5, 2.5)
    weather.end(turn)
    return weather.answered(turn)


def _half_open(weather: Weather) -> float:
    """Nothing gets through any more, and nothing says so."""
    turn = weather.begin(6.0)  # the link is up by its middle
    weather.stage.until("link", turn.pressed, link="up")
    with weather.line("loss", "100%"):
        gone = weather.stage.now()
        weather.end(turn)
        lost = weather.stage.until("link-lost", gone)
        weather.named("link-lost", "timeout", "stalled", "no-route")
        weather.sleep(0.0, 2.0)
    noticed_s = float(lost["t"]) - gone
    waited_s = weather.answered(turn)
    if noticed_s > NOTICED_S:
        raise Broken(f"noticed after {noticed_s:.1f} s, not in {NOTICED_S:.0f}")
    return waited_s


# --- the network ----------------------------------------------------------------------------------


def _cable_out(weather: Weather) -> float:
    turn = weather.begin(3.0)
    weather.stage.until("link", turn.pressed, link="up")
    with weather.no_cable():
        weather.named("no-network")
        weather.end(turn)
        weather.sleep(0.0, 4.0)
    return weather.answered(turn)


def _outage(weather: Weather) -> float:
    """So long that what is said in its middle is too old, and the person is told so."""
    stage = weather.stage
    with weather.no_cable():
        time.sleep(weather.outage_s / 2)
        turn = weather.begin()
        weather.named("no-network")
        weather.end(turn)
        stage.until("refused", turn.pressed, STALE_S + NAMED_S)
        stage.until("turn", turn.pressed, turn="idle")
        time.sleep(weather.outage_s / 2)
    time.sleep(LOG_S)
    if any(frame.kind == APPEND and frame.t > turn.pressed for frame in stage.talk()):
        raise Broken("what was too old was sent")
    return weather.turn()


def _no_name(*, silent: bool) -> Callable[[Weather], float]:
    def play(weather: Weather) -> float:
        with weather.no_name(silent=silent):
            turn = weather.begin()
            weather.end(turn)
            weather.named("no-dns")
            weather.sleep(0.0, 3.0)
        return weather.answered(turn)

    return play


def _address_changes(weather: Weather) -> float:
    turn = weather.begin(3.0)
    weather.stage.until("link", turn.pressed, link="up")
    weather.move(*ADDRESSES)
    try:
        weather.end(turn)
        return weather.answered(turn)
    finally:
        weather.move(*reversed(ADDRESSES))


# --- clock, cards, disk, memory -------------------------------------------------------------------


def _clock(weather: Weather) -> float:
    with weather.wrong_clock(weather.rng.uniform(*CLOCK_YEARS)):
        turn = weather.begin()
        weather.named("clock-wrong")
        weather.end(turn)
        weather.sleep(0.0, 2.0)
    return weather.answered(turn)


def _cards_renumbered(weather: Weather) -> float:
    """Both are pulled, perhaps while somebody speaks, and are back the other way round."""
    stage, machine = weather.stage, weather.machine
    before = [weather.card_number(name) for name in ("Mic", "Speaker")]
    turn = weather.begin() if weather.rng.random() < 0.5 else None
    for card in ("Mic", "Speaker"):
        machine.unplug_card(card)
    weather.named("microphone-lost")
    weather.named("speaker-lost")
    if turn:
        weather.end(turn)  # some of its words nobody could hear
    weather.sleep(0.0, 3.0)
    first = "Speaker" if before == ["card0", "card1"] else "Mic"
    for card in (first, "Mic" if first == "Speaker" else "Speaker"):
        machine.plug_card(card)
    plugged = stage.now()
    stage.say(room(0.1))  # no microphone hears nothing at all
    if [weather.card_number(name) for name in ("Mic", "Speaker")] == before:
        raise Broken("the cards have the numbers they had")
    stage.wait(lambda: not stage.faults() or None, "the cards taken again")
    over = [line["t"] for line in list(stage.watch.lines) if line.get("event") == "fault-over"]
    stage.listen()
    waited_s = weather.turn()
    if not stage.heard().samples.any():
        raise Broken("the answer was not heard")
    return max(0.0, float(over[-1]) - plugged) + waited_s


Trouble = Callable[[Weather], AbstractContextManager[None]]


def _disk(trouble: Trouble) -> Callable[[Weather], float]:
    """A mute works and is not kept, and everything else goes on."""

    def play(weather: Weather) -> float:
        stage = weather.stage
        with trouble(weather):
            stage.command("mute")
            weather.named("mute-not-kept")
            if not stage.status()["muted"]:
                raise Broken("it is not muted")
            stage.command("unmute")
            stage.wait(lambda: not stage.status()["muted"] or None, "unmuted")
            waited_s = weather.turn()
        for command in ("mute", "unmute"):  # the next thing to keep
            stage.command(command)
        stage.wait(lambda: not stage.faults() or None, "mute-not-kept over")
        return waited_s

    return play


def _out_of_memory(weather: Weather) -> float:
    """The kernel kills it, in the words or not, until it is allowed what it needs."""
    stage, machine = weather.stage, weather.machine
    before, killed = int(stage.show("NRestarts")), weather.count_oom_kills()
    limit = stage.show("MemoryMax")

    def allow(amount: str) -> None:
        machine.run("systemctl", "set-property", "--runtime", "voiced", f"MemoryMax={amount}")

    if weather.rng.random() < 0.5:
        weather.begin()
    allow("8M")
    try:
        stage.wait(lambda: int(stage.show("NRestarts")) > before or None, "killed", NAMED_S)
        stage.wait(
            lambda: weather.count_oom_kills() > killed or None, "killed by the kernel", NAMED_S
        )
        weather._row.states.add("oom-kill")
    finally:
        allow(limit)
    lifted = stage.now()
    stage.release()
    with contextlib.suppress(MachineError):
        stage.watch.close()
    stage.wait(lambda: stage.show("ActiveState") == "active" or None, "READY", START_S + NAMED_S)
    stage.connect()
    ready = float(stage.show("ActiveEnterTimestampMonotonic")) / 1e6
    return max(0.0, ready - lifted) + weather.turn()


SCENES = (
    Scene("held turn", Weather.turn, TURN_S),
    Scene("loss", _bad_line(_loss), LINE_S),
    Scene("delay and jitter", _bad_line(_delay), LINE_S),
    Scene("reordered and doubled packets", _bad_line(_disorder), LINE_S),
    Scene("nothing passes for a moment", _gap, BACK_S),
    Scene("half-open", _half_open, BACK_S),
    Scene("cable out", _cable_out, BACK_S),
    Scene("a long outage", _outage, TURN_S),
    Scene("no name server", _no_name(silent=False), STEP_S),
    Scene("silent name server", _no_name(silent=True), LOOKUP_S),
    Scene("address changes", _address_changes, BACK_S),
    Scene("cards come back renumbered", _cards_renumbered, DEVICE_S),
    Scene("clock years back", _clock, STEP_S),
    Scene("disk full", _disk(Weather.full_disk), TURN_S),
    Scene("disk read-only", _disk(Weather.read_only_disk), TURN_S),
    Scene("out of memory", _out_of_memory, START_S, is_deadly=True),
)
"""Played in an order that the seed tells, each once."""
