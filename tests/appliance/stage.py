"""What stands around the machine: a server, a finger, an eye, a mouth and an ear.

Every time is the guest's CLOCK_MONOTONIC. The server's frames come with this machine's clock and
are brought to the guest's; the two differ by less than half a round trip of the agent.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from tests.appliance.machine import Machine, MachineError, Watch
from tests.appliance.sound import RATE, Recording, Samples, room
from tests.bench.figures import Frame, read_frames
from tests.soak import judge

BUTTON_PIN = 17
LIGHT_PINS = (22, 23, 24)
CONTROL = "/run/voiced/control.sock"
GPIO = "/sys/devices/platform/gpio-sim.0/gpiochip0"
TRACE = "/sys/kernel/tracing"
CARD = "/proc/asound/{card}/pcm1{way}/sub0/status"

CLOCK_TICKS = 100  # USER_HZ, on every Linux
SOON_S = 30.0  # for what takes a second on a Pi: emulated, and perhaps beside other work
START_S = 120.0  # it starts in 8 s, or in 25 beside other work; the unit gives it 60
TAP_S = 0.1
HOLD_S = 1.2  # the daemon takes it for a hold after 0.4 s

T = TypeVar("T")

MOUTH, EAR, ROOM = "/run/mouth.raw", "/run/ear.raw", "/run/room.raw"
ROOM_S = 20


class Stage:
    """A running machine and all around it that a person, a room and a cloud would be."""

    def __init__(self, machine: Machine, frames: Path) -> None:
        self.machine = machine
        self.watch: Watch
        self.connect()
        self._frames = frames
        self._ear_began = 0.0
        self._offset_s = self._measure_offset()
        # Dimmed lights are written a hundred times a second: only the first that goes up is kept.
        first_up = b"get == 0 && value == 1"
        machine.write(f"{TRACE}/trace_clock", b"mono")
        machine.write(f"{TRACE}/events/gpio/gpio_value/filter", first_up)
        machine.write(f"{TRACE}/events/gpio/gpio_value/trigger", b"traceoff if " + first_up)
        machine.write(f"{TRACE}/events/gpio/gpio_value/enable", b"1")
        machine.put(room(ROOM_S).tobytes(), ROOM)
        self.say(room(0.1))

    def connect(self) -> None:
        """To the control socket of the daemon that starts now."""

        def connected() -> Watch | None:
            try:
                return self.machine.watch(CONTROL)
            except MachineError:
                return None  # not yet

        self.watch = self.wait(connected, "the control socket", START_S)

    def now(self) -> float:
        """The guest's time."""
        return time.monotonic() + self._offset_s

    def _measure_offset(self) -> float:
        """The guest's clock less ours, by the quickest of some questions."""
        asked = []
        for _ in range(8):
            before = time.monotonic()
            there = self.machine.monotonic()
            after = time.monotonic()
            asked.append((after - before, there - (before + after) / 2))
        return min(asked)[1]

    def frames(self) -> list[Frame]:
        """The server's log so far, in the guest's time."""
        frames = read_frames(self._frames)
        return [Frame(frame.t + self._offset_s, frame.source, frame.event) for frame in frames]

    def talk(self) -> list[judge.Frame]:
        """The same, each with the session it belongs to."""
        told = map(json.loads, self._frames.read_text().splitlines())
        return [
            judge.Frame(line["t"] + self._offset_s, line["from"], line["event"], line["session"])
            for line in told
        ]

    # --- the finger --------------------------------------------------------------------------

    def press(self) -> float:
        """When the line fell."""
        return self.machine.write(f"{GPIO}/sim_gpio{BUTTON_PIN}/pull", b"pull-down")

    def release(self) -> float:
        """When it rose."""
        return self.machine.write(f"{GPIO}/sim_gpio{BUTTON_PIN}/pull", b"pull-up")

    def tap(self) -> float:
        """When it was pressed."""
        at = self.press()
        time.sleep(TAP_S)
        self.release()
        return at

    # --- the eye -----------------------------------------------------------------------------

    def look(self) -> None:
        """Look at the light, which is dark, until it is lit."""
        self.machine.write(f"{TRACE}/trace", b"")
        self.machine.write(f"{TRACE}/tracing_on", b"1")

    def lit(self) -> float | None:
        """When it was lit since `look`, as the kernel saw it; None: it is dark."""
        trace = self.machine.read(f"{TRACE}/trace").decode()
        found = re.search(r" (\d+\.\d+): gpio_value: \d+ set 1$", trace, re.MULTILINE)
        return float(found[1]) if found else None

    # --- the mouth and the ear ---------------------------------------------------------------

    def say(self, samples: Samples) -> Recording:
        """Play into the microphone's card, and the noise of a room behind it until the next time:
        no microphone hears nothing at all. What is said, with its place in time."""
        self.machine.run("systemctl", "stop", "mouth", check=False)
        self.machine.put(samples.tobytes(), MOUTH)
        endless = f"(cat {MOUTH}; while cat {ROOM}; do :; done)"
        self._sound("mouth", "aplay", "plughw:CARD=Mic,DEV=1", before=endless)
        return Recording(samples, self._began("Mic", "p"))

    def listen(self) -> None:
        """Record the speaker's card from now on."""
        self.machine.run("systemctl", "stop", "ear", check=False)
        self._sound("ear", "arecord", "hw:CARD=Speaker,DEV=1", file=EAR)
        self._ear_began = self._began("Speaker", "c")

    def heard(self) -> Recording:
        """The recording so far."""
        return Recording(np.frombuffer(self.machine.get(EAR), np.int16), self._ear_began)

    def _sound(
        self, name: str, program: str, device: str, *, file: str = "", before: str = ""
    ) -> None:
        """Start `aplay` or `arecord` with a file, or behind what a shell says before it."""
        command = (
            f"{program} -q -D {device} -t raw -f S16_LE -c 1 -r {RATE} --buffer-time=4000000 "
            f"--period-time=50000 {file}"
        )
        shell = f"{before} | {command}" if before else f"exec {command}"
        self.machine.run("systemd-run", "--quiet", "--collect", f"--unit={name}", "sh", "-c", shell)

    def _began(self, card: str, way: str) -> float:
        """When the stream on our side of a card was started, by the kernel."""
        path = CARD.format(card=card, way=way)

        def started() -> float | None:
            status = self.machine.read(path).decode()
            found = re.search(r"state: RUNNING\n.*trigger_time: ([\d.]+)", status, re.DOTALL)
            return float(found[1]) if found else None

        return self.wait(started, f"sound on {card}")

    # --- the device as its owner sees it -------------------------------------------------------

    def show(self, name: str) -> str:
        """One of systemd's properties of the service."""
        return self.machine.run("systemctl", "show", "-P", name, "voiced").strip()

    def status(self) -> dict[str, Any]:
        """The daemon's snapshot, asked for now."""

        def last() -> dict[str, Any] | None:
            return next((line for line in reversed(self._told()) if "snapshot" in line), None)

        before = last()
        self.watch.send({"command": "status"})
        told = self.wait(lambda: None if (now := last()) is before else now, "a status")
        return dict(told["snapshot"])

    def until(
        self, event: str, since: float, within_s: float = SOON_S, **fields: object
    ) -> dict[str, Any]:
        """The first such event of the daemon since then; waits for it."""

        def seen() -> dict[str, Any] | None:
            told = (line for line in self._told() if line.get("event") == event)
            late = (line for line in told if line["t"] >= since)
            return next((line for line in late if fields.items() <= line.items()), None)

        return self.wait(seen, f"{event} {fields}", within_s)

    def _told(self) -> list[dict[str, Any]]:
        return list(self.watch.lines)

    def faults(self) -> list[dict[str, str]]:
        """What is wrong now."""
        return list(self.status()["faults"])

    def cpu_s(self) -> float:
        """What the service has used since it was started."""
        stat = self.machine.read(f"/proc/{self.show('MainPID')}/stat").decode()
        return sum(map(int, stat.rpartition(")")[2].split()[11:13])) / CLOCK_TICKS

    def peak_rss_mb(self) -> float:
        status = self.machine.read(f"/proc/{self.show('MainPID')}/status").decode()
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        return int(found[1]) * 1024 / 1e6 if found else 0.0

    def command(self, name: str) -> float:
        """Send it; when."""
        at = self.machine.monotonic()
        self.watch.send({"command": name})
        return at

    def hang_up(self) -> None:
        """To idle, if it isn't."""
        if self.status()["turn"] != "idle":
            self.until("turn", self.command("hangup"), turn="idle")

    # --- waiting -----------------------------------------------------------------------------

    def sleep_until(self, at: float) -> None:
        """Until the guest's time `at`, to a round trip."""
        time.sleep(max(0.0, at - self._offset_s - time.monotonic()))

    def wait(self, done: Callable[[], T | None], what: str, timeout_s: float = SOON_S) -> T:
        """Ask until there is an answer. Raises MachineError."""
        deadline = time.monotonic() + timeout_s
        while (answer := done()) is None:
            if time.monotonic() > deadline:
                raise MachineError(f"not within {timeout_s:.0f} s: {what}")
            time.sleep(0.02)
        return answer
