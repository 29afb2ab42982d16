import logging
import random
import subprocess
import sys
import time
import tomllib
import wave
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import tests.clips as maker
from tests.clips import CLIPS, text_of, texts
from voiced.edge import clips
from voiced.edge.clips import CLIP_RATE_HZ, LONGEST_S, ClipError, load, read
from voiced.events import WIRE_RATE

HOW = "Run: python -m tests.clips"

every_clip = pytest.mark.parametrize("name", texts())


def dbfs(value: float) -> float:
    return 20 * float(np.log10(value / 32768))


def put(
    directory: Path, name: str, samples: NDArray[np.int16], rate_hz: int = CLIP_RATE_HZ
) -> None:
    with wave.open(str(directory / f"{name}.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate_hz)
        file.writeframes(samples.astype("<i2").tobytes())


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that the clips are taken from instead."""
    monkeypatch.setattr(clips, "_CLIPS", tmp_path)
    return tmp_path


# --- the clips that we ship ---------------------------------------------------------------


def test_what_is_to_be_spoken_has_a_clip_and_no_clip_is_left_over() -> None:
    assert {path.name for path in CLIPS.iterdir()} == {f"{name}.wav" for name in texts()}, HOW


@every_clip
def test_a_clip_says_what_stands_in_the_table(name: str) -> None:
    assert text_of(CLIPS / f"{name}.wav") == texts()[name], HOW


@every_clip
def test_a_clip_is_as_loud_as_speech_and_clips_nowhere(name: str) -> None:
    sound = read(name).astype(np.float64)
    assert dbfs(float(np.sqrt(np.mean(sound**2)))) == pytest.approx(maker.RMS_DBFS, abs=0.2)
    assert dbfs(float(np.abs(sound).max())) < -3  # no louder than an answer's peaks
    assert abs(sound.mean()) < 3


@every_clip
def test_a_clip_is_short_and_begins_and_ends_in_silence(name: str) -> None:
    sound = read(name)
    assert sound.dtype == np.int16
    assert sound.ndim == 1
    assert 0.5 < len(sound) / WIRE_RATE <= LONGEST_S
    # A step of 1 % of full scale is heard as a click.
    assert np.abs(sound[[0, -1]]).max() < 20
    # But the words begin soon: it answers a press.
    early = np.abs(sound[: WIRE_RATE // 10].astype(np.int32)).max()
    assert early > np.abs(sound.astype(np.int32)).max() / 10


def test_all_clips_together_are_small() -> None:
    assert sum(path.stat().st_size for path in CLIPS.iterdir()) < 1_600_000


def test_the_longest_clip_loads_at_once() -> None:
    """It is read in the loop, beside everything else. 2 ms were measured; a Pi needs some more."""
    longest = max(texts(), key=lambda name: (CLIPS / f"{name}.wav").stat().st_size)
    begun = time.process_time()
    load(longest)
    assert time.process_time() - begun < 0.1


def test_the_package_lists_its_clips() -> None:
    project = tomllib.loads((CLIPS.parent.parent / "pyproject.toml").read_text("utf-8"))
    listed = project["tool"]["setuptools"]["package-data"]["voiced"]
    found = {path for pattern in listed for path in CLIPS.parent.glob(pattern)}
    assert set(CLIPS.iterdir()) <= found


def test_the_words_are_found_from_any_directory(tmp_path: Path) -> None:
    name = next(iter(texts()))
    asked = f"from voiced.edge.clips import load; print(len(load({name!r})))"
    said = subprocess.run([sys.executable, "-c", asked], cwd=tmp_path, capture_output=True)
    assert int(said.stdout) == len(read(name))


# --- what is read of them -----------------------------------------------------------------


def test_a_clip_comes_at_the_wire_rate_with_its_pitch_and_its_level(shelf: Path) -> None:
    t = np.arange(CLIP_RATE_HZ) / CLIP_RATE_HZ
    put(shelf, "tone", np.rint(8000 * np.sin(2 * np.pi * 1000 * t)).astype(np.int16))
    sound = load("tone")
    assert sound is not None
    assert len(sound) == WIRE_RATE
    middle = slice(WIRE_RATE // 10, -WIRE_RATE // 10)  # a resampler rings at the ends
    expected = 8000 * np.sin(2 * np.pi * 1000 * np.arange(WIRE_RATE) / WIRE_RATE)
    np.testing.assert_allclose(sound[middle], expected[middle], atol=3)


def test_where_there_is_no_clip_there_are_no_words(caplog: pytest.LogCaptureFixture) -> None:
    assert load("never-made") is None
    assert not caplog.records


@pytest.mark.parametrize("kept", [0, 3, 20, 44, 45, 1000])
def test_a_clip_cut_short_costs_the_words_and_is_logged(
    shelf: Path, caplog: pytest.LogCaptureFixture, kept: int
) -> None:
    put(shelf, "quota", np.ones(1600, np.int16))
    path = shelf / "quota.wav"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ClipError, match=r"quota\.wav"):
        read("quota")
    with caplog.at_level(logging.WARNING):
        assert load("quota") is None
    assert "no words for quota: quota.wav" in caplog.text


def test_a_file_that_can_not_be_read_costs_the_words(
    shelf: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (shelf / "quota.wav").mkdir()
    assert load("quota") is None
    assert "no words for quota" in caplog.text


@pytest.mark.parametrize("rate_hz", [8_000, 24_000])
def test_another_rate_is_refused_rather_than_played_at_another_pitch(
    shelf: Path, rate_hz: int
) -> None:
    put(shelf, "quota", np.ones(1600, np.int16), rate_hz)
    with pytest.raises(ClipError, match=str(rate_hz)):
        read("quota")


@pytest.mark.parametrize("frames", [0, LONGEST_S * CLIP_RATE_HZ + 1])
def test_nothing_and_too_much_are_refused(shelf: Path, frames: int) -> None:
    put(shelf, "quota", np.ones(frames, np.int16))
    with pytest.raises(ClipError, match=f"{frames} frames"):
        read("quota")


def test_whatever_bytes_a_card_gives_back_it_goes_on(shelf: Path) -> None:
    """A worn card returns anything: 1000 files with up to four wrong bytes in their headers."""
    chance = random.Random(5)
    put(shelf, "whole", np.ones(100, np.int16))
    whole = (shelf / "whole.wav").read_bytes()
    lost = 0
    for _ in range(1000):
        damaged = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            damaged[chance.randrange(44)] = chance.randrange(256)
        (shelf / "quota.wav").write_bytes(damaged)
        lost += load("quota") is None
    assert lost > 900


# --- how they are made --------------------------------------------------------------------


def hum(_: str) -> NDArray[np.float64]:
    """Half a second of a tone, in the middle of as much silence: stands for the voice."""
    tone = 5000 * np.sin(2 * np.pi * 1000 * np.arange(CLIP_RATE_HZ // 2) / CLIP_RATE_HZ)
    return np.pad(tone, CLIP_RATE_HZ // 4)


def test_the_silence_around_the_words_is_cut() -> None:
    made = maker.finished(hum(""))
    assert len(made) / CLIP_RATE_HZ == pytest.approx(0.52, abs=0.02)  # and two fades


def test_made_twice_the_clips_are_the_same_bytes_and_old_ones_are_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maker, "CLIPS", tmp_path)
    monkeypatch.setattr(maker, "speak", hum)
    (tmp_path / "of-no-fault.wav").write_bytes(b"")
    maker.main()
    first = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    maker.main()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == first
    assert set(first) == {f"{name}.wav" for name in texts()}


@pytest.mark.parametrize("text", ["odd", "even"])
def test_a_text_is_read_back_and_is_no_part_of_the_sound(tmp_path: Path, text: str) -> None:
    path = tmp_path / "said.wav"
    path.write_bytes(maker.as_wav(np.full(50, 7, np.int16), text))
    assert text_of(path) == text
    with wave.open(str(path)) as file:
        assert file.getnframes() == 50
    assert path.stat().st_size == 8 + int.from_bytes(path.read_bytes()[4:8], "little")
