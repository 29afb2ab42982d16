"""The device in its container and the room around it: sound, a finger, a server."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from tests.systemd.container import CONFIG, DEADLINE_S, KEY_FILE, PYTHON, Container, poll
from voiced.sim import report, stand
from voiced.sim.board import Finger
from voiced.sim.rig import Rig
from voiced.sim.stand import BUTTON_PIN, QUESTION, Daemon, Watch
from voiced.sim.streams import Ear, Mouth
from voiced.sim.wav import Samples, read_wav, to_rate

KEY = "sk-secret-of-the-container-tests"

FINGER_S = 0.2  # pressed so long before the first sample, released so long after the last
TAP_S = 0.1
ANSWER_S = 20.0  # the built-in server begins 0.3 s after the turn's end
SAME = 0.9  # correlation; a parrot's answer has 0.99, another voice 0.4
QUIET_S = 0.3  # without a sample: it is over; the parrot's answer has no such pause

# The pins are gpiozero's mock ones; all else is the unit's.
_ON_BOARD = f"""[Service]
ExecStart=
ExecStart={PYTHON} -m voiced.sim.board --finger /run/voiced/board --
"""
_SOUND = "/srv/rig"  # the sound server's socket, as the container sees it


class Device(Container):
    """The daemon under its unit, with the rig for sound cards and pins on a board.

    It has the key that the server wants, and a configuration for both.
    """

    def __init__(
        self,
        layers: Sequence[Path],
        rig: Rig,
        url: str,
        *,
        dropin: str = "",
        files: Mapping[str, str] | None = None,
        network: bool = True,
    ) -> None:
        self._rig, self._url = rig, url
        conf = Path(rig.env["ALSA_CONFIG_PATH"])
        self._runtime = Path(rig.env["PULSE_RUNTIME_PATH"])
        devices = conf.read_text().replace(str(self._runtime), _SOUND).splitlines()
        super().__init__(
            layers,
            dropin=_ON_BOARD + dropin,
            files={
                "etc/asound.conf": "\n".join(line for line in devices if line.startswith("pcm.")),
                "etc/pulse/client.conf": "autospawn = no\nenable-shm = no\n",
                CONFIG: self.config(),
                **(files or {}),
            },
            binds={self._runtime: _SOUND},
            network=network,
        )

    def _furnish(self) -> None:
        super()._furnish()
        self.write(KEY_FILE, KEY + "\n", 0o600)
        self.replug()

    def replug(self) -> None:
        """The rig's sound cards are there, also for the container: PulseAudio opens its folder to
        its own user alone. Here the folder around it keeps others out."""
        self._rig.replug()
        self._runtime.chmod(0o755)

    def config(self, **tables: Mapping[str, object]) -> str:
        """A configuration with these keys in place of its own."""
        own = stand.settings(self._url, None, Rig.microphone, Rig.speaker)
        names = [*own, *(name for name in tables if name not in own)]
        return stand.toml({name: {**own.get(name, {}), **tables.get(name, {})} for name in names})

    def configure(self, **tables: Mapping[str, object]) -> None:
        """Write such a configuration; the daemon is not told."""
        self.write(CONFIG, self.config(**tables))

    def finger(self) -> Finger:
        """At the daemon that runs now."""
        return Finger(self.root / "run/voiced/board")

    def watch(self) -> Watch:
        """Of the daemon that runs now."""
        return Watch(cast(Daemon, self))  # all it wants is `control` and `check`

    def snapshot(self) -> dict[str, Any]:
        """The daemon's own view of itself."""
        with self.watch() as watch:
            assert watch.status is not None
            return watch.status

    def faults(self) -> set[str]:
        """Names of what is wrong now."""
        return {fault["fault"] for fault in self.snapshot()["faults"]}

    def assert_serves(self) -> None:
        """A tap opens a turn, and the server takes part; then it hangs up again."""
        with self.finger() as finger, self.watch() as watch:
            tap(finger)
            watch.wait(lambda: watch.state == "listening", DEADLINE_S, "a tap opens no turn")
            poll(lambda: self.snapshot()["link"] == "up", "a link")
            watch.command("hangup")
            watch.wait(lambda: watch.state == "idle", DEADLINE_S, "no end")


def tap(finger: Finger) -> float:
    """A quick press; when it went down."""
    at = finger.press(BUTTON_PIN)
    time.sleep(TAP_S)
    finger.release(BUTTON_PIN)
    return at


def question() -> Samples:
    """A voice, mono at the rig's rate."""
    samples, rate = read_wav(QUESTION)
    return to_rate(samples[:, 0], rate, report.HEARD_RATE)


def ask(finger: Finger, mouth: Mouth) -> float:
    """Hold the button while the question is said; when it was let go."""
    finger.press(BUTTON_PIN)
    time.sleep(FINGER_S)
    mouth.say(question()).wait_ended(DEADLINE_S)
    time.sleep(FINGER_S)
    return finger.release(BUTTON_PIN)


def wait_sound(ear: Ear, since: float) -> float:
    """Wait for the first sample that leaves the speaker from then on; when it did."""
    start = ear.index_at(since)
    first = poll(lambda: report.sounding(ear.snapshot(start)), "sound", ANSWER_S)[0]
    return ear.time_at(start + first)


def wait_quiet(ear: Ear, since: float) -> Samples:
    """Wait until an answer that began is over; what was heard since then."""
    frames = round(QUIET_S * ear.rate)
    poll(lambda: not ear.snapshot(max(0, ear.length - frames)).any(), "quiet", ANSWER_S)
    return ear.snapshot(ear.index_at(since))


def is_question(heard: Samples) -> bool:
    """Whether this is what `ask` said.

    One of its halves is enough: on a busy machine the rig loses a period, and what comes after it
    no longer fits what comes before.
    """
    begin, end = report.sounding(heard) or (0, 0)
    halves = np.array_split(heard[begin : end + 1], 2)
    return max(report.correlation(half, question()) for half in halves) > SAME


def tone(seconds: float) -> Samples:
    """A long answer, at the wire's rate."""
    wave = 8000 * np.sin(np.arange(round(24_000 * seconds)) * 2 * np.pi * 440 / 24_000)
    return wave.astype(np.int16)
