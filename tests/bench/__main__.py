"""`python -m tests.bench [--json FILE] [--sabotage NAME]`: the promises, measured, in one table.

Everything is measured from outside: the speaker's recording, the microphone's tap, the server's
frame log, the pins. The rig's own delay is measured in the same run and taken off. Exit code 1 if
a goal is missed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.bench.figures import APPEND, DELTA, append_delays_ms, between, read_frames, sounding
from tests.bench.sabotage import SABOTAGES
from tests.bench.table import Row, as_json, table
from voiced.sim.board import Finger
from voiced.sim.rig import Calibration, Ear, Mouth, Rig, calibrate
from voiced.sim.stand import BUTTON_PIN, Daemon, Process, Server, StandError, Watch
from voiced.sim.wav import read_wav, to_rate, write_wav

VOICE = Path("/usr/share/sounds/alsa/Front_Center.wav")
CANCELS = 20
HOLD_S = 0.7


class Bench:
    """Runs the scenarios one after the other and collects rows."""

    def __init__(self, sabotage: str, rig: Rig, ear: Ear, folder: Path) -> None:
        self.rows: dict[str, Row] = {}
        self._sabotage, self._rig, self._ear, self._folder = sabotage, rig, ear, folder
        self._rng = random.Random(1)
        self.calibration: Calibration = calibrate(rig, ear)

    def row(self, name: str, middle: float | None, worst: float | None, unit: str = "ms") -> Row:
        return self.rows.setdefault(name, Row(name, [], (middle, worst), unit))

    @contextmanager
    def stand(self, name: str, *server_args: str, **turn: object) -> Iterator[_Stand]:
        """A server and a daemon of their own."""
        folder = self._folder / name
        folder.mkdir()
        frames = folder / "frames.jsonl"
        with ExitStack() as stack:
            server = stack.enter_context(Server(folder, ["--frames", str(frames), *server_args]))
            _give_share(server)  # the cloud is another machine
            settings = {
                "realtime": {"url": server.url},
                "microphone": {"device": Rig.microphone},
                "speaker": {"device": Rig.speaker},
                "button": {"pin": BUTTON_PIN},
                "turn": turn,
            }
            module = ("tests.bench.sabotage", self._sabotage)
            daemon = stack.enter_context(Daemon(folder, settings, self._rig.env, module))
            _give_share(daemon)
            self.row("start to READY", 500, None).values.append(daemon.wait_ready())
            watch = stack.enter_context(Watch(daemon))
            finger = stack.enter_context(Finger(daemon.board))
            yield _Stand(server, daemon, watch, finger, frames)

    # --- held turns, each cut by the press of the next -------------------------------------

    def cancels(self, name: str, tap: Ear, *server_args: str) -> None:
        drop = self.row(f"cancel: press to drop(), {name}", 2, 5)
        silence = self.row(f"cancel: press to silence, {name}", 2, 5)
        end = self.row(f"audio_end_ms against what was heard, {name}", 5, 10)
        stale = self.row(f"stale sound after a cancel, {name}", 0, 0)
        begin = self.row(f"first delta to first sample, {name}", 10, 10)
        wire = self.row(f"speech to wire, held turn, {name}", 21, 35)
        with self.stand(f"cancels-{name.replace(' ', '-')}", *server_args) as stand:
            presses = [stand.hold(HOLD_S, self._rng.uniform(0.3, 0.9)) for _ in range(CANCELS + 1)]
            stand.finger.press(BUTTON_PIN)
            stand.finger.release(BUTTON_PIN)
            time.sleep(1.2)  # the frame log is written once a second
            notes = list(stand.watch.notes)
        frames = read_frames(stand.frames)
        delay_s, drop_s = self.calibration.delay_ms / 1000, self.calibration.drop_ms / 1000
        for start, cut in zip(presses, presses[1:], strict=False):
            flushed = next(n for n in notes if n["event"] == "flushed" and n["t"] >= cut)
            drop.values.append((flushed["dropped_at"] - cut) * 1000)
            turn = between(frames, start, cut + 0.5)
            delta = next(f.t for f in turn if f.kind == DELTA and f.t > start + HOLD_S)
            sound = sounding(self._ear, delta, cut + HOLD_S - 0.05)
            assert sound, "an answer that was not heard"
            silence.values.append((sound[1] - cut - drop_s) * 1000)
            begin.values.append((sound[0] - delta - delay_s) * 1000)
            late = sounding(self._ear, flushed["dropped_at"] + drop_s + 0.012, cut + HOLD_S - 0.05)
            stale.values.append(late[2] / 48 if late else 0.0)
            cuts = [f for f in turn if f.kind == "conversation.item.truncate" and f.t > cut]
            for truncate in cuts[:1]:
                end.values.append(truncate.event["audio_end_ms"] - sound[2] / 48)
            wire.values += append_delays_ms(between(frames, start, start + HOLD_S), tap)

    # --- the first word --------------------------------------------------------------------

    def first_word(self) -> None:
        append = self.row("press to first append, dialling meanwhile", 450, 500)
        missing = self.row("missing of the 300 ms before the press", 20, 30)
        with self.stand("first-word", "--answer", str(self._answer(5))) as stand:
            time.sleep(1)
            presses = []
            for _ in range(5):
                presses.append(stand.hold(HOLD_S, 0.2))
                stand.watch.command("hangup")
                stand.until("idle", presses[-1])
                time.sleep(self._rng.uniform(0.5, 0.6))
            time.sleep(1.2)
        frames = read_frames(stand.frames)
        for press in presses:
            said = [f for f in between(frames, press, press + HOLD_S) if f.kind == APPEND]
            append.values.append((said[0].t - press) * 1000)
            missing.values.append(300 - _kept_before(said, press))

    # --- answers that trickle in -----------------------------------------------------------

    def trickle(self) -> None:
        begin = self.row("first delta to first sample, trickle", 255, 265)
        holes = self.row("holes in an answer that trickles in", 0, 0, "")
        with self.stand("trickle", "--pace", "1.2", "--answer", str(self._answer(3))) as stand:
            starts = [stand.hold(HOLD_S, 3.2) for _ in range(3)]
            time.sleep(1.2)
            status = stand.watch.ask_status() or {}
        holes.values.append(status["counters"]["playback_holes"])
        frames = read_frames(stand.frames)
        for start in starts:
            delta = next(f.t for f in frames if f.kind == DELTA and f.t > start + HOLD_S)
            sound = sounding(self._ear, delta, delta + 3)
            assert sound
            begin.values.append((sound[0] - delta) * 1000 - self.calibration.delay_ms)

    # --- hands-free ------------------------------------------------------------------------

    def hands_free(self, mouth: Mouth) -> None:
        onset = self.row("hands-free: onset to first append", None, 250)
        closed = self.row("end of speech to turn closed (silence 600 ms)", 650, 700)
        kept = self.row("speech sent, of what was said", None, None, "%")
        spare = self.row("sent beyond the speech, hands-free", 1500, 1500)
        samples, rate = read_wav(VOICE)
        voice = to_rate(samples[:, 0], rate, EAR_RATE)
        first, last = _speech_of(voice)
        with self.stand("hands-free", "--answer", str(self._answer(0.3))) as stand:
            stand.finger.press(BUTTON_PIN)
            time.sleep(0.1)
            stand.finger.release(BUTTON_PIN)
            time.sleep(1.0)
            said = []
            for _ in range(8):
                utterance = mouth.say(voice)
                since = time.monotonic()
                utterance.wait_ended(10)
                stand.until("speaking", since)
                stand.until("listening", time.monotonic() - 0.3)
                said.append(utterance)
                time.sleep(self._rng.uniform(0.8, 1.4))
            time.sleep(1.2)
        frames = read_frames(stand.frames)
        for utterance in said:
            start = utterance.started + first / EAR_RATE
            stop = utterance.started + last / EAR_RATE
            turn = between(frames, utterance.started - 0.4, stop + 2)
            appends = [f for f in turn if f.kind == APPEND]
            committed = [f for f in turn if f.kind == "input_audio_buffer.committed"]
            onset.values.append((appends[0].t - start) * 1000)
            closed.values += [(f.t - stop) * 1000 for f in committed[:1]]
            sent_s = sum(len(f.audio) for f in appends) / 24_000
            spare.values.append((sent_s - (last - first) / EAR_RATE) * 1000)
            kept.values.append(100.0 * bool(committed))

    # --- what it costs ---------------------------------------------------------------------

    def cost(self) -> None:
        live = self.row("CPU per minute, microphone live, above a bare loop", 0.3, None, "s")
        answering = self.row("CPU per minute, answering, above a bare loop", 0.7, None, "s")
        memory = self.row("memory (peak RSS)", 60, None, "MB")
        up = self.row("bytes up in a silent minute, session open", 2048, None, "B")
        with self.stand("cost", "--answer", str(self._answer(20))) as stand:
            stand.hold(HOLD_S, 0.5)
            answering.values.append(stand.cpu_per_minute(12) - self._bare(12))
            stand.watch.command("interrupt")
            stand.until("idle", time.monotonic(), 30)
            began = time.monotonic()
            live.values.append(stand.cpu_per_minute(15) - self._bare(15, "silent"))
            over = time.monotonic()
            memory.values.append(stand.daemon.cost().peak_rss_mb or 0.0)
            time.sleep(1.2)
        sent = [f for f in between(read_frames(stand.frames), began, over) if f.source == "client"]
        size = sum(len(json.dumps(f.event)) for f in sent)
        up.values.append(size * 60 / (over - began))

    def _bare(self, seconds: float, *silent: str) -> float:
        ran = subprocess.run(
            [sys.executable, "-m", "tests.bench.bare_loop", Rig.microphone, Rig.speaker]
            + [str(seconds), *silent],
            env={**os.environ, **self._rig.env},
            stdout=subprocess.PIPE,
            check=True,
            timeout=seconds + 20,
        )
        return float(ran.stdout) * 60 / seconds

    def _answer(self, seconds: float) -> Path:
        """Something to say of which no sample is zero, so that silence is exact."""
        path = self._folder / f"answer-{seconds}.wav"
        t = np.arange(round(seconds * 24_000)) / 24_000
        sound = 6000 + 4000 * np.sin(2 * np.pi * 300 * t) + 1500 * np.sin(2 * np.pi * 1234 * t)
        write_wav(path, sound.astype(np.int16), 24_000)
        return path

    def run(self, mouth: Mouth, tap: Ear) -> None:
        """All scenarios; with a sabotage, those that must notice it."""
        long = ("--answer", str(self._answer(20)), "--think-ms", "50")
        if self._sabotage in ("none", "no-drop", "write-first", "wrong-playhead"):
            self.cancels("quiet machine", tap, *long)
        if self._sabotage in ("none", "no-preroll"):
            self.first_word()
        if self._sabotage in ("none", "gate-open"):
            self.hands_free(mouth)
        if self._sabotage == "none":
            with _busy(2):
                self.cancels("two busy processes", tap, *long)
            self.trickle()
            self.cost()


EAR_RATE = 48_000


@dataclass
class _Stand:
    server: Server
    daemon: Daemon
    watch: Watch
    finger: Finger
    frames: Path

    def hold(self, hold_s: float, listen_s: float) -> float:
        """A held turn, then some of its answer; when it was pressed."""
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

    def cpu_per_minute(self, seconds: float) -> float:
        before = self.daemon.cost().cpu_s or 0.0
        time.sleep(seconds)
        return ((self.daemon.cost().cpu_s or 0.0) - before) * 60 / seconds


def _kept_before(said: Sequence[Any], press: float) -> float:
    """How long before the press the first sample sent was captured, in ms: the appends are one
    stretch, so each bounds when it began."""
    total, began = 0, float("inf")
    for frame in said:
        total += len(frame.audio)
        began = min(began, frame.t - total / 24_000)
    return (press - began) * 1000


def _speech_of(voice: np.ndarray[Any, Any]) -> tuple[int, int]:
    """First and last sample of speech: 20 ms frames within 35 dB of the loudest."""
    size = EAR_RATE // 50
    frames = voice[: len(voice) // size * size].astype(float).reshape(-1, size)
    power = 10 * np.log10((frames**2).mean(axis=1) + 1)
    loud = np.flatnonzero(power > power.max() - 35)
    return int(loud[0]) * size, int(loud[-1] + 1) * size


def _give_share(process: Process) -> None:
    """The share of the processor that the unit's CPUWeight gives, where we may: ten times that of
    another session. (A process's own niceness counts within its session only.)"""
    with contextlib.suppress(OSError):  # not root, or a kernel that doesn't group by session
        Path(f"/proc/{process.popen.pid}/autogroup").write_text("-10")


@contextmanager
def _busy(count: int) -> Iterator[None]:
    """Processes that do nothing but burn a core, each another program to the kernel."""
    burn = [sys.executable, "-c", "while True: pass"]
    burners = [subprocess.Popen(burn, start_new_session=True) for _ in range(count)]
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()


def _circumstances(bench: Bench) -> str:
    rig = bench.calibration
    return (
        f"the rig's own delay: {rig.delay_ms:.1f} ms from a write to the recording "
        f"(spread {rig.spread_ms:.1f}), {rig.drop_ms:.1f} ms from a drop to silence; "
        + (
            "the daemon has the unit's share of the CPU"
            if os.geteuid() == 0
            else "no share of its own"
        )
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench.sh", description="Measure the promises.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    parser.add_argument("--sabotage", choices=SABOTAGES, default="none", metavar="NAME")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, Rig() as rig:
        rig.apply()
        with Ear(rig) as ear, Mouth(rig) as mouth, Ear(rig, Rig.mic_tap) as tap:
            bench = Bench(args.sabotage, rig, ear, Path(name))
            broken = ""
            try:
                bench.run(mouth, tap)
            except StandError as exc:
                broken = str(exc)
    rows = list(bench.rows.values())
    print(f"{table(rows)}\n{_circumstances(bench)}")
    if args.json:
        args.json.write_text(as_json(rows))
    missed = [row.name for row in rows if not row.ok]
    if broken:
        print(f"broke down: {broken}")
    if missed:
        print("missed: " + "; ".join(missed))
    return 1 if missed or broken else 0


if __name__ == "__main__":
    sys.exit(main())
