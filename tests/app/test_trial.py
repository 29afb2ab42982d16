"""Whole turns through the real daemon, and every figure of the report computed a second time.

Nothing of `report.py` is used here but its types: the figures come from the recording and the
frame log as anybody would take them, with the report's own `clock` and press times.
"""

import base64
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import wave
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from voiced.sim.report import Report, TurnReport
from voiced.sim.wav import read_wav, to_rate, write_wav

pytestmark = pytest.mark.timeout(180)

VOICES = Path("/usr/share/sounds/alsa")
RUN_S = 50.0  # a run takes 15-25 s, beside busy loops a little more
TRIES = 3  # the rig says itself when a busy machine made it stumble; then nothing was measured
STUMBLED = "this machine is too busy"


@dataclass
class Trial:
    """What a run left behind."""

    exit_code: int
    said: str
    report: Report
    heard: Any  # int16, shape (n,)
    frames: list[dict[str, Any]]

    def time_at(self, index: float) -> float:
        points = self.report.clock
        before = max((p for p in points if p[0] <= index), default=points[0])
        return before[1] + (index - before[0]) / 48_000

    def index_at(self, t: float) -> int:
        points = self.report.clock
        before = max((p for p in points if p[1] <= t), default=points[0])
        return round(before[0] + (t - before[1]) * 48_000)

    def spans(self) -> list[tuple[float, float]]:
        """The part of the run that belongs to each turn."""
        begins = [when(turn, "press") or when(turn, "speech_start") for turn in self.report.turns]
        edges = [0.0, *(at or 0.0 for at in begins[1:]), float("inf")]
        # A follow-up's turn begins with its WAV, its speech a moment later: nothing lies between.
        return list(itertools.pairwise(edges))

    def of(self, span: tuple[float, float], kind: str) -> list[dict[str, Any]]:
        return [
            frame
            for frame in self.frames
            if span[0] <= frame["t"] < span[1] and frame["event"].get("type") == kind
        ]

    def sound(self, span: tuple[float, float]) -> tuple[int, int]:
        """Indices of the answer's first and last non-zero sample in the recording."""
        begin = self.index_at(self.of(span, "response.output_audio.delta")[0]["t"])
        end = len(self.heard) if span[1] == float("inf") else self.index_at(span[1])
        found = begin + np.nonzero(self.heard[begin:end])[0]
        return int(found[0]), int(found[-1])


def when(turn: TurnReport, name: str) -> float | None:
    return next((event.t for event in turn.events if event.name == name), None)


def pcm(frames: list[dict[str, Any]], key: str) -> list[Any]:
    return [np.frombuffer(base64.b64decode(f["event"][key]), "<i2") for f in frames]


def try_it(folder: Path, *arguments: str) -> Trial:
    for _ in range(TRIES):
        trial = _try_once(folder, *arguments)
        if STUMBLED not in trial.said:
            break
    return trial


def _try_once(folder: Path, *arguments: str) -> Trial:
    out, report, frames = folder / "heard.wav", folder / "report.json", folder / "frames.jsonl"
    places = ["--out", str(out), "--report", str(report), "--frames", str(frames)]
    ran = subprocess.run(
        [sys.executable, "-m", "voiced.sim.trial", *places, *arguments],
        capture_output=True,
        text=True,
        timeout=RUN_S,
        check=False,
    )
    assert report.exists(), ran.stderr
    with wave.open(str(out)) as file:
        assert (file.getframerate(), file.getsampwidth(), file.getnchannels()) == (48_000, 2, 1)
        heard = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    return Trial(
        ran.returncode,
        ran.stdout + ran.stderr,
        # The schema in docs is made from this type, which takes no unknown and no missing field.
        msgspec.json.decode(report.read_bytes(), type=Report),
        heard,
        [json.loads(line) for line in frames.read_text().splitlines()],
    )


@pytest.fixture(scope="module")
def tapped(tmp_path_factory: pytest.TempPathFactory) -> Trial:
    return try_it(tmp_path_factory.mktemp("tap"))


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Trial:
    return try_it(tmp_path_factory.mktemp("hold"), "--hold")


@pytest.fixture(scope="module")
def cancelled(tmp_path_factory: pytest.TempPathFactory) -> Trial:
    return try_it(tmp_path_factory.mktemp("cancel"), "--cancel-after", "1")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Trial:
    """Two questions: 8 kHz mono, then 44.1 kHz stereo in the follow-up window."""
    folder = tmp_path_factory.mktemp("two questions")
    paths = [folder / "eight.wav", folder / "cd.wav"]
    for path, name, rate in zip(paths, ("Front_Left", "Front_Right"), (8_000, 44_100), strict=True):
        samples, from_rate = read_wav(VOICES / f"{name}.wav")
        said = to_rate(samples[:, 0], from_rate, rate)
        write_wav(path, np.stack([said, said], axis=1) if rate == 44_100 else said, rate)
    return try_it(folder, "--wav", *map(str, paths))


@pytest.fixture(params=["tapped", "held", "cancelled", "two"])
def trial(request: pytest.FixtureRequest) -> Trial:
    found: Trial = request.getfixturevalue(request.param)
    return found


def turns_of(trial: Trial) -> Iterator[tuple[TurnReport, tuple[float, float]]]:
    return zip(trial.report.turns, trial.spans(), strict=True)


# --- the run -----------------------------------------------------------------------------


def test_every_turn_is_whole(trial: Trial) -> None:
    assert trial.report.problems == [], trial.said
    assert trial.report.ok
    assert trial.exit_code == 0
    assert trial.report.protocol_violations == []


def test_two_questions_are_two_turns_in_one_session(two: Trial) -> None:
    assert [Path(turn.question).name for turn in two.report.turns] == ["eight.wav", "cd.wav"]
    assert {frame["session"] for frame in two.frames} == {1}
    first, second = two.report.turns
    assert when(first, "press") is not None
    assert when(second, "press") is None


def test_what_is_heard_is_what_was_asked(tapped: Trial, held: Trial, two: Trial) -> None:
    for turn in (*tapped.report.turns, *held.report.turns, *two.report.turns):
        assert turn.correlation is not None
        assert turn.correlation > 0.95


def test_a_held_turn_sends_all_from_before_the_press_to_the_release(held: Trial) -> None:
    (turn,) = held.report.turns
    press, release = when(turn, "press"), when(turn, "release")
    assert press is not None
    assert release is not None
    assert turn.sent_s is not None
    assert turn.preroll_s is not None
    assert 0.2 < turn.preroll_s <= 0.31  # turn.preroll_ms is 300
    assert turn.sent_s == pytest.approx(turn.preroll_s + release - press, abs=0.06)


def test_the_light_is_lit_before_anything_is_sent(trial: Trial) -> None:
    append = next(f for f in trial.frames if f["event"].get("type", "").endswith(".append"))
    lights = [light for turn in trial.report.turns for light in turn.lights]
    colour, _, _ = max((each for each in lights if each[1] < append["t"]), key=lambda each: each[1])
    assert any(colour)


def test_states_follow_each_other_as_in_a_talk(tapped: Trial, cancelled: Trial) -> None:
    talk = ["listening", "hearing", "thinking", "speaking", "listening"]
    assert [state for state, _, _ in tapped.report.turns[0].states] == talk
    assert [state for state, _, _ in cancelled.report.turns[0].states] == [*talk, "idle"]


def test_a_cancel_is_silent_at_once_and_stays_silent(cancelled: Trial) -> None:
    (turn,) = cancelled.report.turns
    assert turn.cancel_to_drop_ms is not None
    assert turn.cancel_to_silence_ms is not None
    assert 0 < turn.cancel_to_drop_ms < 50  # the bench knows the goal; here other tests may run
    assert turn.cancel_to_silence_ms < 60
    assert turn.stale_audio_ms == 0
    assert len(turn.audio_end_ms_sent) == 1
    assert turn.audio_end_ms_sent == [pytest.approx(turn.audio_end_ms_heard[0], abs=25)]


def test_the_press_comes_so_long_after_the_first_sound(cancelled: Trial) -> None:
    (turn,) = cancelled.report.turns
    sound, cancel = when(turn, "first_sound"), when(turn, "cancel")
    assert sound is not None
    assert cancel is not None
    assert cancel - sound == pytest.approx(1.0, abs=0.1)


# --- the same figures, computed again ------------------------------------------------------


def test_recomputed_what_was_sent(trial: Trial) -> None:
    for turn, span in turns_of(trial):
        appends = trial.of(span, "input_audio_buffer.append")
        chunks = pcm(appends, "audio")
        assert turn.sent_s == pytest.approx(sum(map(len, chunks)) / 24_000, abs=1e-5)
        runs = [(z, len(list(n))) for z, n in itertools.groupby(np.concatenate(chunks) == 0)]
        zeros = sum(length for zero, length in runs if zero and length >= 480)
        assert turn.zeros_s == pytest.approx(zeros / 24_000, abs=1e-5)
        press = when(turn, "press")
        if press is None:
            assert turn.preroll_s is turn.press_to_first_append_ms is None
            continue
        sent, starts = 0, []
        for before, frame, chunk in zip([appends[0], *appends], appends, chunks, strict=False):
            if frame["t"] - before["t"] > 0.5 or not np.any(chunk):
                break
            sent += len(chunk)
            starts.append(frame["t"] - sent / 24_000)
        assert turn.preroll_s == pytest.approx(max(0.0, press - min(starts)), abs=1e-5)
        first_ms = 1000 * (appends[0]["t"] - press)
        assert turn.press_to_first_append_ms == pytest.approx(first_ms, abs=0.01)


def test_recomputed_when_the_turn_ended(trial: Trial) -> None:
    for turn, span in turns_of(trial):
        speech_end, (committed,) = (
            when(turn, "speech_end"),
            trial.of(span, "input_audio_buffer.committed"),
        )
        assert speech_end is not None
        ended_ms = 1000 * (committed["t"] - speech_end)
        assert turn.speech_end_to_turn_end_ms == pytest.approx(ended_ms, abs=0.01)


def test_recomputed_what_was_answered_and_heard(trial: Trial) -> None:
    for turn, span in turns_of(trial):
        deltas = trial.of(span, "response.output_audio.delta")
        answer = np.concatenate(pcm(deltas, "delta"))
        assert turn.answer_s == pytest.approx(len(answer) / 24_000, abs=1e-5)
        first, last = trial.sound(span)
        assert turn.heard_s == pytest.approx((last - first + 1) / 48_000, abs=1e-5)
        lead_ms = np.nonzero(answer)[0][0] / 24
        delay_ms = 1000 * (trial.time_at(first) - deltas[0]["t"])
        expected_ms = delay_ms - lead_ms - trial.report.rig_delay_ms
        assert turn.first_delta_to_sound_ms == pytest.approx(expected_ms, abs=0.2)


def test_recomputed_correlation(tapped: Trial) -> None:
    (turn,), (span,) = tapped.report.turns, tapped.spans()
    first, last = tapped.sound(span)
    samples, rate = read_wav(turn.question)
    heard = to_rate(tapped.heard[first : last + 1].copy(), 48_000, 24_000).astype(float)
    said = to_rate(samples[:, 0], rate, 24_000).astype(float)
    products = np.correlate(heard, said, "valid")
    lag = int(np.argmax(products))
    window = heard[lag : lag + len(said)]
    best = products[lag] / np.sqrt(np.sum(window**2) * np.sum(said**2))
    assert turn.correlation == pytest.approx(best, abs=0.02)


def test_recomputed_cancel(cancelled: Trial) -> None:
    (turn,), (span,) = cancelled.report.turns, cancelled.spans()
    cancel, drop = when(turn, "cancel"), when(turn, "drop")
    assert cancel is not None
    assert drop is not None
    assert turn.cancel_to_drop_ms == pytest.approx(1000 * (drop - cancel), abs=0.01)
    first, last = cancelled.sound(span)
    silence_ms = 1000 * (cancelled.time_at(last) - cancel) - cancelled.report.rig_drop_ms
    assert turn.cancel_to_silence_ms == pytest.approx(silence_ms, abs=0.2)
    late = cancelled.heard[cancelled.index_at(drop + cancelled.report.rig_drop_ms / 1000 + 0.01) :]
    assert turn.stale_audio_ms == np.count_nonzero(late) / 48
    truncates = [f["event"] for f in cancelled.of(span, "conversation.item.truncate")]
    assert turn.audio_end_items == [event["item_id"] for event in truncates]
    assert turn.audio_end_ms_sent == [event["audio_end_ms"] for event in truncates]
    assert turn.audio_end_ms_heard == [pytest.approx((last - first + 1) / 48, abs=0.5)]


def test_recomputed_usage(trial: Trial) -> None:
    usages = [f["event"]["response"]["usage"] for f in trial.of((0, 1e12), "response.done")]
    assert trial.report.usage is not None
    assert trial.report.usage.total == sum(usage["total_tokens"] for usage in usages)
    assert trial.report.usage.input == sum(usage["input_tokens"] for usage in usages)


def test_every_event_has_the_sample_of_its_time(trial: Trial) -> None:
    for turn in trial.report.turns:
        for event in turn.events:
            assert abs(event.index - trial.index_at(event.t)) <= 10, event


# --- errors --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "exit_code", "says"),
    [
        (["--wav", "nowhere.wav"], 1, "nowhere.wav: No such file or directory"),
        (["--wav", __file__], 1, "not a WAV file"),
        (["--out", "/nowhere/heard.wav"], 1, "/nowhere/heard.wav: can't be written"),
        (["--cancel-after", "-1"], 2, "--cancel-after"),
        (["--key-file", "key"], 2, "--url"),
        (["--url", "ws://127.0.0.1:9/", "--frames", "f"], 2, "--frames"),
    ],
)
def test_an_error_is_one_clear_line(arguments: list[str], exit_code: int, says: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "voiced.sim.trial", *arguments],
        capture_output=True,
        text=True,
        timeout=RUN_S,
        check=False,
    )
    assert ran.returncode == exit_code
    last = ran.stderr.splitlines()[-1]
    assert last.startswith("try.sh: ")
    assert says in last
    assert "Traceback" not in ran.stderr
    assert ran.stdout == ""


def test_interrupted_it_leaves_nothing_behind() -> None:
    with tempfile.TemporaryDirectory() as folder:
        ran = subprocess.Popen(
            [sys.executable, "-m", "voiced.sim.trial"],
            env={**os.environ, "TMPDIR": folder},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        deadline = time.monotonic() + RUN_S
        while not list(Path(folder).glob("voiced-trial-*/control")):  # the daemon is up
            assert time.monotonic() < deadline
            assert ran.poll() is None
            time.sleep(0.05)
        ran.send_signal(signal.SIGINT)
        _, said = ran.communicate(timeout=RUN_S)
        assert (ran.returncode, said.splitlines()[-1]) == (130, "try.sh: interrupted")
        assert list(Path(folder).iterdir()) == []
        assert not [path for path in Path("/proc").glob("[0-9]*/cmdline") if folder in _text(path)]


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:  # it ended meanwhile
        return ""
