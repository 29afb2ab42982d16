"""What every scenario of the bench stands on: the rig, its ears, a voice, and daemons on demand."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.bench.figures import EAR_RATE, Samples
from tests.bench.table import Row
from voiced.sim.board import Finger
from voiced.sim.rig import Rig
from voiced.sim.rig_delay import Calibration, calibrate
from voiced.sim.stand import BUTTON_PIN, Daemon, Process, Server, Watch
from voiced.sim.streams import Ear, Mouth, Utterance
from voiced.sim.wav import read_wav, to_rate, write_wav

VOICE = Path("/usr/share/sounds/alsa/Front_Center.wav")
HOLD_S = 0.7
LOG_S = 1.2
"""The server writes its frame log once a second."""


class Stage:
    """`rows` collects the figures, by name and in the order they were asked for."""

    def __init__(self, sabotage: str, rig: Rig, ear: Ear, mouth: Mouth, tap: Ear, folder: Path):
        self.rows: dict[str, Row] = {}
        self.sabotage, self.folder = sabotage, folder
        self.rig, self.ear, self.mouth, self.tap = rig, ear, mouth, tap
        self.rng = random.Random(1)
        self.calibration: Calibration = calibrate(rig, ear)
        samples, rate = read_wav(VOICE)
        self.voice = to_rate(samples[:, 0], rate, EAR_RATE)
        self.voice_first, self.voice_last = speech_of(self.voice)
        self.word = self.voice[self.voice_first : self.voice_first + EAR_RATE // 2]
        self._stands = 0

    def row(self, name: str, middle: float | None, worst: float | None, unit: str = "ms") -> Row:
        return self.rows.setdefault(name, Row(name, [], (middle, worst), unit))

    @contextmanager
    def stand(
        self, *server_args: str, microphone: dict[str, object] | None = None, **turn: object
    ) -> Iterator[Stand]:
        """A server and a daemon of their own."""
        self._stands += 1
        folder = self.folder / f"stand-{self._stands}"
        folder.mkdir()
        frames = folder / "frames.jsonl"
        with ExitStack() as stack:
            server = stack.enter_context(Server(folder, ["--frames", str(frames), *server_args]))
            give_share(server)  # the cloud is another machine
            settings: dict[str, dict[str, object]] = {
                "realtime": {"url": server.url},
                "microphone": {"device": Rig.microphone, **(microphone or {})},
                "speaker": {"device": Rig.speaker},
                "button": {"pin": BUTTON_PIN},
                "turn": turn,
                "sounds": {"enabled": False},  # silence is measured
            }
            module = ("tests.bench.sabotage", self.sabotage)
            daemon = stack.enter_context(Daemon(folder, settings, self.rig.env, module))
            give_share(daemon)
            self.row("start to READY", 500, None).values.append(daemon.wait_ready())
            watch = stack.enter_context(Watch(daemon))
            finger = stack.enter_context(Finger(daemon.board))
            yield Stand(self, server, daemon, watch, finger, frames)

    def answer(self, seconds: float) -> Path:
        """Something to say of which no sample is zero, so that silence is exact."""
        path = self.folder / f"answer-{seconds}.wav"
        t = np.arange(round(seconds * 24_000)) / 24_000
        sound = 6000 + 4000 * np.sin(2 * np.pi * 300 * t) + 1500 * np.sin(2 * np.pi * 1234 * t)
        write_wav(path, sound.astype(np.int16), 24_000)
        return path

    def speech_answer(self) -> Path:
        """An answer of some 20 s that is human speech, for rooms that echo it."""
        path = self.folder / "answer-speech.wav"
        takes = [read_wav(take) for take in sorted(VOICE.parent.glob("*_*.wav"))]
        said = np.concatenate([to_rate(samples[:, 0], rate, 24_000) for samples, rate in takes])
        write_wav(path, np.tile(said, 3)[: 20 * 24_000], 24_000)
        return path

    def say(self, samples: Samples | None = None) -> Utterance:
        """Speak into the microphone now."""
        return self.mouth.say(self.voice if samples is None else samples)


@dataclass
class Stand:
    """A daemon with its server, a finger on its button and an eye on its state."""

    stage: Stage
    server: Server
    daemon: Daemon
    watch: Watch
    finger: Finger
    frames: Path

    def tap(self) -> float:
        """A tap; when it was pressed."""
        pressed = self.finger.press(BUTTON_PIN)
        time.sleep(0.1)
        self.finger.release(BUTTON_PIN)
        return pressed

    def hold(self, hold_s: float, listen_s: float) -> float:
        """A held turn with a word in it, then some of its answer; when it was pressed."""
        self.stage.say(self.stage.word)
        pressed = self.finger.press(BUTTON_PIN)
        time.sleep(hold_s)
        released = self.finger.release(BUTTON_PIN)
        self.until("speaking", released)
        time.sleep(listen_s)
        return pressed

    def until(self, state: str, since: float, timeout_s: float = 15) -> None:
        self.watch.wait(
            lambda: self.watch.last("turn", since, turn=state), timeout_s, f"it was not {state}"
        )

    def until_note(self, name: str, since: float, timeout_s: float = 15) -> dict[str, Any]:
        """The event of this name that came since then."""
        self.watch.wait(lambda: self.watch.seen(name, since), timeout_s, f"no {name}")
        return self.watch.last(name, since) or {}

    def cpu_per_minute(self, seconds: float) -> float:
        before = self.daemon.cost().cpu_s or 0.0
        time.sleep(seconds)
        return ((self.daemon.cost().cpu_s or 0.0) - before) * 60 / seconds


Scenario = Callable[[Stage], None]


def speech_of(voice: Samples) -> tuple[int, int]:
    """First and last sample of speech: 20 ms frames within 35 dB of the loudest."""
    size = EAR_RATE // 50
    frames = voice[: len(voice) // size * size].astype(float).reshape(-1, size)
    power = 10 * np.log10((frames**2).mean(axis=1) + 1)
    loud = np.flatnonzero(power > power.max() - 35)
    return int(loud[0]) * size, int(loud[-1] + 1) * size


def give_share(process: Process) -> None:
    """The share of the processor that the unit's CPUWeight gives, where we may: ten times that of
    another session. (A process's own niceness counts within its session only.)"""
    with contextlib.suppress(OSError):  # not root, or a kernel that doesn't group by session
        Path(f"/proc/{process.popen.pid}/autogroup").write_text("-10")


@contextmanager
def busy(count: int) -> Iterator[None]:
    """Processes that do nothing but burn a core, each another program to the kernel."""
    burn = [sys.executable, "-c", "while True: pass"]
    burners = [subprocess.Popen(burn, start_new_session=True) for _ in range(count)]
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()


def circumstances(stage: Stage) -> str:
    """What the figures were measured under, in a line."""
    rig = stage.calibration
    share = (
        "the daemon has the unit's share of the CPU" if os.geteuid() == 0 else "no share of its own"
    )
    return (
        f"the rig's own delay: {rig.delay_ms:.1f} ms from a write to the recording "
        f"(spread {rig.spread_ms:.1f}), {rig.drop_ms:.1f} ms from a drop to silence; {share}"
    )
