"""The unattended trial: whole turns through the real daemon, real libasound and a sound rig.

The daemon is a process of its own on a board of mock pins, the built-in server another. A finger
presses, a mouth speaks into the microphone over room noise, an ear records the speaker. What is
made of the recording is `report.py`'s.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from voiced.sim import report, stand
from voiced.sim.board import BoardError, Finger
from voiced.sim.report import HEARD_RATE, Clock, Question, Rgb, Run
from voiced.sim.rig import Rig, RigError
from voiced.sim.rig_delay import Calibration, calibrate
from voiced.sim.stand import (
    BUTTON_PIN,
    LIGHT_PINS,
    QUESTION,
    STOP_S,
    Daemon,
    Server,
    StandError,
    Watch,
)
from voiced.sim.streams import Ear, Mouth, Utterance
from voiced.sim.wav import Samples, WavError, read_wav, to_rate, write_wav

NOISE_DBFS = -45.0  # a quiet room; the built-in server's bar for speech is -40
ROOM_S = 5.0  # of noise on each side of the questions; the gate knows its floor after 4 s
LEAD_S = 0.5  # the mouth needs 90 ms, the press comes 200 ms ahead
FINGER_S = 0.2  # pressed so long before the first sample, released so long after the last
TAP_S = 0.1
BETWEEN_S = 1.5  # from an answer's end to the next question; the follow-up window is 8 s
QUIET_S = 1.0  # after an answer or a cancel: what comes now would be stale, or a second answer

ANSWER_S = 30.0  # built in: 0.3 s after the turn's end; a model has been seen to think for 20 s
LONGEST_ANSWER_S = 600.0
CUT_S = 2.0  # a cancel takes milliseconds
LONGEST_QUESTION_S = 100.0  # turn.longest_s is 120, with room and pre-roll

CALIBRATION_BURSTS = 8  # 0.4 s each
CLOCK_STEP_S = 1.0
GROUP_S = 0.01  # three pins make one colour; the quickest blinking takes 60 ms a step


class TrialError(RuntimeError):
    """The trial can't be done; the text says why and what to do."""


@dataclass(frozen=True)
class Options:
    """The command line, checked."""

    questions: list[Path]
    out: Path | None
    report: Path | None
    frames: Path | None
    hold: bool
    cancel_after_s: float | None
    answer: Path | None
    end: str
    url: str | None
    key_file: Path | None


# --- what is set up and watched ----------------------------------------------------------


def _settings(options: Options, url: str) -> stand.Settings:
    parts = stand.settings(url, options.key_file, Rig.microphone, Rig.speaker)
    return {**parts, "turn": {"end": options.end}}


class _Lights:
    """The colours that three pins made, each with the time it was complete."""

    def __init__(self, finger: Finger) -> None:
        self.shown: list[tuple[float, Rgb]] = []
        self._levels = dict.fromkeys(LIGHT_PINS, 0.0)
        finger.watch(LIGHT_PINS, self._on_pin)

    def _on_pin(self, pin: int, value: float | None, at: float) -> None:
        self._levels[pin] = value or 0.0
        red, green, blue = (round(self._levels[each], 3) for each in LIGHT_PINS)
        if self.shown and at - self.shown[-1][0] < GROUP_S:
            self.shown.pop()
        if not self.shown or self.shown[-1][1] != (red, green, blue):
            self.shown.append((at, (red, green, blue)))


# --- the run -----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Stage:
    """All that takes part in a turn."""

    options: Options
    mouth: Mouth
    ear: Ear
    finger: Finger
    watch: Watch

    def ask(self, question: Question) -> None:
        """Put one question and hear its answer out.

        Raises TrialError, StandError or BoardError when it goes wrong.
        """
        at = question.asked_at + LEAD_S
        question.held = self.options.hold
        utterance = self.mouth.say(question.samples, at)
        pressing = question.held or self.watch.state != "listening"
        if pressing:
            _sleep_until(at - FINGER_S)
            question.press_at = self.finger.press(BUTTON_PIN)
        if pressing and not question.held:
            _sleep_until(question.press_at or at, TAP_S)
            question.release_at = self.finger.release(BUTTON_PIN)
        ended_at = self._said(question, utterance)
        if question.held:
            _sleep_until(ended_at, FINGER_S)
            question.release_at = self.finger.release(BUTTON_PIN)
        self._hear(question)

    def _said(self, question: Question, utterance: Utterance) -> float:
        longest_s = len(question.samples) / HEARD_RATE + ANSWER_S
        try:
            question.started_at = utterance.wait_started(longest_s)
            return utterance.wait_ended(longest_s)
        except TimeoutError as error:
            raise TrialError(f"the rig's microphone stood still: {error}") from error

    def _hear(self, question: Question) -> None:
        since = question.begins_at

        def speaks() -> bool:
            return self.watch.seen("turn", since, turn="speaking")

        self.watch.wait(speaks, ANSWER_S, f"no answer; the daemon is {self.watch.state}")
        if self.options.cancel_after_s is None or not self._cancel(question):
            self._hear_out()

    def _hear_out(self) -> None:
        """Wait until it is over, and stays over."""

        def rests() -> bool:
            last = [note["t"] for note in self.watch.notes if note["event"] == "turn"][-1:]
            quiet = not last or time.monotonic() - last[0] > QUIET_S
            return quiet and self.watch.state in ("listening", "idle")

        self.watch.wait(rests, LONGEST_ANSWER_S, "the answer does not end")

    def _cancel(self, question: Question) -> bool:
        """Press in the middle of the answer. False if it was over before."""
        assert self.options.cancel_after_s is not None
        sounds_at = self._first_sound(question.begins_at)
        _sleep_until(sounds_at, self.options.cancel_after_s)
        if self.watch.state != "speaking":
            _say(f"{question.name}: the answer was over before --cancel-after; not cancelled")
            return False
        question.cancel_at = cancel_at = self._tap()
        self.watch.wait(lambda: self.watch.seen("flushed", cancel_at), CUT_S, "no flush")
        _sleep_until(cancel_at, QUIET_S)
        if self.watch.state == "listening":
            self._tap()
            self.watch.wait(lambda: self.watch.state == "idle", CUT_S, "a tap did not hang up")
        return True

    def _first_sound(self, since: float) -> float:
        """When the answer's first sample left the speaker."""
        start = self.ear.index_at(since)
        deadline = time.monotonic() + CUT_S
        while time.monotonic() < deadline:
            sound = report.sounding(self.ear.snapshot(start))
            if sound:
                return self.ear.time_at(start + sound[0])
            time.sleep(0.01)
        raise TrialError(f"the daemon speaks and nothing is heard (waited {CUT_S:.0f} s)")

    def _tap(self) -> float:
        at = self.finger.press(BUTTON_PIN)
        _sleep_until(at, TAP_S)
        self.finger.release(BUTTON_PIN)
        return at


def _sleep_until(at: float, plus_s: float = 0.0) -> None:
    time.sleep(max(0.0, at + plus_s - time.monotonic()))


def run(options: Options) -> Run:
    """Put the questions; all that was recorded.

    Raises TrialError, StandError, RigError, WavError, BoardError and OSError, each with one clear
    line.
    """
    questions = [_question(path) for path in options.questions]
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="voiced-trial-")))
        rig = stack.enter_context(Rig())
        rig.apply()
        frames = options.frames or folder / "frames.jsonl"
        arguments = ["--frames", str(frames)]
        arguments += ["--answer", str(options.answer)] if options.answer else []
        server = None if options.url else stack.enter_context(Server(folder, arguments))
        ear = stack.enter_context(Ear(rig))
        calibration = calibrate(rig, ear, CALIBRATION_BURSTS)
        mouth = stack.enter_context(Mouth(rig, NOISE_DBFS))
        url = server.url if server else str(options.url)
        daemon = stack.enter_context(Daemon(folder, _settings(options, url), rig.env))
        found = _converse(options, questions, mouth, ear, daemon, calibration)
        if server:
            found.update(violations=server.verdict(), frames=list(_lines(frames)))
    return Run(**found)


def _converse(
    options: Options,
    questions: list[Question],
    mouth: Mouth,
    ear: Ear,
    daemon: Daemon,
    calibration: Calibration,
) -> dict[str, Any]:
    """Ask every question, stop the daemon; the fields of a Run that do not need the server."""
    ready_ms = daemon.wait_ready()
    with Finger(daemon.board) as finger, Watch(daemon) as watch:
        assert watch.status is not None
        for fault in watch.status["faults"]:
            raise TrialError(f"the daemon has a fault: {fault['fault']}: {fault['detail']}")
        lights = _Lights(finger)
        _sleep_until(time.monotonic(), ROOM_S)
        stage = _Stage(options, mouth, ear, finger, watch)
        asked = list(_ask_all(stage, questions))
        _sleep_until(time.monotonic(), ROOM_S - QUIET_S)  # it was quiet for the rest already
        status, cost = watch.ask_status(), report.Daemon(**daemon.cost()._asdict())
        daemon.stop()
        ended_at = time.monotonic()
        ear.wait_until(ended_at, STOP_S)
    start, stop = ear.index_at(daemon.started_at), ear.index_at(ended_at)
    steps = range(start, stop, round(CLOCK_STEP_S * HEARD_RATE))
    return {
        "heard": ear.snapshot(start, stop),
        "clock": Clock([(index - start, round(ear.time_at(index), 6)) for index in steps]),
        "questions": asked,
        "frames": None,
        "notes": watch.notes,
        "lights": lights.shown,
        "parrot": not options.url and not options.answer,
        "rig_delay_ms": calibration.delay_ms,
        "rig_drop_ms": calibration.drop_ms,
        "ready_ms": ready_ms,
        "daemon": cost,
        "status": status,
        "violations": [],
        "problems": list(_rig_problems(mouth, ear)),
    }


def _ask_all(stage: _Stage, questions: list[Question]) -> Iterator[Question]:
    """Ask one after the other; none after one that failed."""
    for number, question in enumerate(questions):
        if number:
            _sleep_until(time.monotonic(), BETWEEN_S - QUIET_S)
        question.asked_at = time.monotonic()
        try:
            stage.ask(question)
        except (TrialError, StandError, BoardError) as error:
            question.problems.append(str(error))
            left = len(questions) - number - 1
            if left:
                question.problems.append(f"{left} more questions were not asked")
        yield question
        if question.problems:
            return


def _rig_problems(mouth: Mouth, ear: Ear) -> Iterator[str]:
    """The figures are worth nothing if the rig itself stumbled."""
    if mouth.gaps or mouth.reconnects:
        yield "the rig's microphone had gaps: this machine is too busy, try again"
    if ear.gaps or ear.reconnects:
        yield "the recording has gaps: this machine is too busy, try again"


def _question(path: Path) -> Question:
    try:
        samples, rate = read_wav(path)
    except OSError as error:
        raise TrialError(f"{path}: {error.strerror}") from error
    mono = np.rint(samples.astype(np.float32).mean(axis=1)).astype(np.int16)
    if len(mono) > LONGEST_QUESTION_S * rate:
        raise TrialError(f"{path}: longer than {LONGEST_QUESTION_S:.0f} s; cut it")
    return Question(str(path), to_rate(mono, rate, HEARD_RATE), time.monotonic())


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as lines:
        for line in lines:
            yield msgspec.json.decode(line)


# --- the command line --------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="try.sh",
        description="Whole turns through the real daemon, without hardware or key: questions "
        "from WAV files, a recording of the answers, a report. In a terminal and without any of "
        "these options: a console to try the device by hand.",
    )
    add = parser.add_argument
    add(
        "--wav",
        type=Path,
        nargs="+",
        action="extend",
        metavar="QUESTION.wav",
        help="what is said, a turn each; 8 to 96 kHz, mono or stereo (default: a voice that "
        "alsa-utils brings)",
    )
    add("--out", type=Path, metavar="HEARD.wav", help="what left the speaker: 16 bit, 48 kHz")
    add("--report", type=Path, metavar="REPORT.json", help="the figures; see docs/report.md")
    add("--frames", type=Path, metavar="FILE", help="the built-in server's log, JSON lines")
    add("--hold", action="store_true", help="hold the button while speaking (else: tap it)")
    add(
        "--cancel-after",
        type=float,
        metavar="S",
        help="press S seconds into each answer, then hang up",
    )
    add("--answer", type=Path, metavar="FILE.wav", help="what is answered (else: a parrot)")
    add(
        "--end",
        choices=("server_vad", "semantic_vad", "local"),
        default="server_vad",
        help="who ends a turn",
    )
    add("--url", help="ask this Realtime server instead of the built-in one")
    add("--key-file", type=Path, metavar="F", help="file with its key")
    return parser


def _options(argv: list[str] | None) -> Options:
    parser = _parser()
    args = parser.parse_args(argv)
    if args.url and (args.answer or args.frames):
        parser.error("--answer and --frames are the built-in server's: they don't go with --url")
    if args.key_file and not args.url:
        parser.error("--key-file is for the server at --url: give that, too")
    if args.cancel_after is not None and not 0 <= args.cancel_after <= LONGEST_ANSWER_S:
        parser.error(f"--cancel-after: {args.cancel_after} is not 0 to {LONGEST_ANSWER_S:.0f}")
    return Options(
        questions=args.wav or [QUESTION],
        out=args.out,
        report=args.report,
        frames=args.frames,
        hold=args.hold,
        cancel_after_s=args.cancel_after,
        answer=args.answer,
        end=args.end,
        url=args.url,
        key_file=args.key_file,
    )


def _check_writable(options: Options) -> None:
    """A minute later would be too late. Raises TrialError."""
    for path in (options.out, options.report, options.frames):
        if path is None:
            continue
        if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
            raise TrialError(f"{path}: can't be written; name a file in a folder of yours")


def _write(options: Options, heard: Samples, result: report.Report) -> str:
    """Write both; where they are. What was not named goes to a new folder, which stays."""
    out, report_to = options.out, options.report
    if out is None or report_to is None:
        folder = Path(tempfile.mkdtemp(prefix="voiced-try-"))
        out, report_to = out or folder / "heard.wav", report_to or folder / "report.json"
    write_wav(out, heard, HEARD_RATE)
    report_to.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=1) + b"\n")
    return f"heard: {out}\nreport: {report_to}"


def _say(text: str) -> None:
    print(f"try.sh: {text}", file=sys.stderr)


def _stop(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def main(argv: list[str] | None = None) -> int:
    """Exit codes: 0 every turn was whole, 1 not, or an error; 2 usage; 130 interrupted."""
    options = _options(argv)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    try:
        _check_writable(options)
        recorded = run(options)
        result = report.compute(recorded)
        places = _write(options, recorded.heard, result)
    except (TrialError, StandError, RigError, WavError, BoardError, OSError) as error:
        _say(str(error))
        return 1
    except KeyboardInterrupt:
        _say("interrupted")
        return 130
    print(f"{report.table(result)}\n{places}")
    return 0 if result.ok else 1


if __name__ == "__main__":
    sys.exit(main())
