"""The gate hears people and nothing else: human recordings in noises it may meet in a room."""

from __future__ import annotations

import time
import wave
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import soxr
from numpy.typing import NDArray

from voiced.core.gate import GATE_PREROLL_MS, Gate, Reading, first_of_run
from voiced.events import BLOCK_FRAMES, BLOCK_MS, SILENCE_DBFS, WIRE_RATE

VOICES = sorted(Path("/usr/share/sounds/alsa").glob("*_*.wav"))
assert len(VOICES) >= 8, "the recordings of alsa-utils are needed"

HANGOVER_MS = 600
SETTLED_BLOCKS = 200  # 4 s
NOISES = ("pink", "fan", "white")

Samples = NDArray[np.float64]


@cache
def voice(path: Path) -> Samples:
    with wave.open(str(path)) as recording:
        assert recording.getnchannels() == 1
        samples = np.frombuffer(recording.readframes(recording.getnframes()), "<i2")
        return soxr.resample(samples.astype(float), recording.getframerate(), WIRE_RATE)


def blocks(samples: Samples) -> Samples:
    return samples[: len(samples) // BLOCK_FRAMES * BLOCK_FRAMES].reshape(-1, BLOCK_FRAMES)


def dbfs(samples: Samples) -> float:
    return 20 * np.log10(np.sqrt(np.mean(samples**2)) / 32768)


def at(level_dbfs: float, samples: Samples) -> Samples:
    return samples * 10 ** ((level_dbfs - dbfs(samples)) / 20)


def noise(kind: str, samples: int, seed: int) -> Samples:
    slope = {"white": 0, "pink": 1, "fan": 2}[kind]
    spectrum = np.fft.rfft(np.random.default_rng(seed).standard_normal(samples))
    hz = np.maximum(np.fft.rfftfreq(samples, 1 / WIRE_RATE), 20)
    made = np.fft.irfft(spectrum * hz ** (-slope / 2), samples)
    if kind == "fan":
        t = np.arange(samples) / WIRE_RATE
        hum = sum(a * np.sin(2 * np.pi * f * t) for f, a in ((120, 1.0), (240, 0.5), (360, 0.3)))
        made = made / made.std() + hum
    return made


def speech_blocks(clean: Samples) -> NDArray[np.bool_]:
    """Blocks of a clean recording within 30 dB of its loudest one."""
    power = np.mean(blocks(clean) ** 2, axis=1)
    return power > power.max() / 1000


def run(gate: Gate, samples: Samples) -> list[Reading]:
    as_int16 = np.clip(np.rint(samples), -32768, 32767).astype(np.int16)
    return [gate.push(block) for block in as_int16.reshape(-1, BLOCK_FRAMES)]


def opened(readings: list[Reading]) -> NDArray[np.bool_]:
    return np.array([reading.open for reading in readings])


def openings(is_open: NDArray[np.bool_]) -> list[int]:
    return [int(i) + 1 for i in np.flatnonzero(is_open[1:] & ~is_open[:-1])]


class Scene(NamedTuple):
    """Every voice once, 5 s of silence first and 3 s after each, on block borders."""

    clean: Samples
    spoken: NDArray[np.bool_]
    utterances: list[tuple[int, int]]  # first and last block of speech

    @property
    def speech_dbfs(self) -> float:
        return dbfs(blocks(self.clean)[self.spoken])


@cache
def scene() -> Scene:
    clean = [np.zeros(250 * BLOCK_FRAMES)]
    spoken = [np.zeros(250, bool)]
    utterances = []
    for path in VOICES:
        said = blocks(voice(path))
        begin = sum(map(len, spoken))
        active = np.flatnonzero(speech_blocks(said.ravel()))
        utterances.append((begin + int(active[0]), begin + int(active[-1])))
        clean += [said.ravel(), np.zeros(150 * BLOCK_FRAMES)]
        spoken += [speech_blocks(said.ravel()), np.zeros(150, bool)]
    return Scene(np.concatenate(clean), np.concatenate(spoken), utterances)


def heard(kind: str, snr_db: float | None, seed: int = 1) -> list[Reading]:
    """The scene in noise: ``snr_db`` under the speech, or a quiet room of -45 dBFS."""
    level = -45.0 if snr_db is None else scene().speech_dbfs - snr_db
    background = at(level, noise(kind, len(scene().clean), seed))
    return run(Gate(hangover_ms=HANGOVER_MS), scene().clean + background)


def kept(is_open: NDArray[np.bool_]) -> NDArray[np.bool_]:
    reached = is_open.copy()
    for i in openings(is_open):
        reached[max(0, i - GATE_PREROLL_MS // BLOCK_MS) : i] = True
    return reached


def close_errors_ms(is_open: NDArray[np.bool_]) -> list[int]:
    """How much later than hangover after the last speech block each utterance was closed."""
    errors = []
    for _, last in scene().utterances:
        closed = last + int(np.argmin(is_open[last:]))
        errors.append((closed - last) * BLOCK_MS - HANGOVER_MS)
    return errors


@pytest.mark.parametrize("kind", NOISES)
@pytest.mark.parametrize("snr_db", [None, 20, 10, 0])
def test_no_utterance_is_missed_and_no_noise_opens(kind: str, snr_db: float | None) -> None:
    is_open = opened(heard(kind, snr_db))
    away = np.ones(len(is_open), bool)
    away[:SETTLED_BLOCKS] = False
    for first, last in scene().utterances:
        assert is_open[first : last + 1].any()
        away[first - 2 : last + (HANGOVER_MS + 200) // BLOCK_MS] = False
    assert not (is_open & away).any()


@pytest.mark.parametrize("kind", NOISES)
@pytest.mark.parametrize("snr_db", [None, 20, 10])
def test_no_onset_is_cut_and_the_speech_is_kept(kind: str, snr_db: float | None) -> None:
    reached = kept(opened(heard(kind, snr_db)))
    assert reached[scene().spoken].mean() >= 0.995
    for first, last in scene().utterances:
        assert reached[first : last + 1].all()


@pytest.mark.parametrize("kind", NOISES)
def test_most_speech_is_kept_where_the_noise_is_as_loud(kind: str) -> None:
    assert kept(opened(heard(kind, 0)))[scene().spoken].mean() >= 0.85


@pytest.mark.parametrize("kind", NOISES)
def test_the_onset_is_found_in_a_quiet_room(kind: str) -> None:
    readings = heard(kind, None)
    is_open = opened(readings)
    for i, (first, _) in zip(openings(is_open), scene().utterances, strict=True):
        assert -200 <= (i - readings[i].onset_blocks - first) * BLOCK_MS <= 40
        assert readings[i].onset_blocks * BLOCK_MS <= GATE_PREROLL_MS
    assert all(r.onset_blocks == 0 for i, r in enumerate(readings) if i not in openings(is_open))


def test_it_closes_one_hangover_after_the_speech_in_a_quiet_room() -> None:
    errors = close_errors_ms(opened(heard("pink", None)))
    assert abs(np.median(errors)) <= 40
    assert max(errors) <= 100


def test_in_noise_at_10_db_it_waits_for_what_may_be_hidden_but_not_for_long() -> None:
    errors = close_errors_ms(opened(heard("pink", 10)))
    assert np.median(errors) <= 100
    assert max(errors) <= 200
    assert min(errors) >= -200


def test_a_strong_sound_opens_it_within_two_blocks() -> None:
    room = at(-60, noise("pink", 5 * WIRE_RATE, seed=23))
    room[4 * WIRE_RATE :] += at(-25, noise("white", WIRE_RATE, seed=24))
    assert openings(opened(run(Gate(hangover_ms=HANGOVER_MS), room))) == [201]


@pytest.mark.parametrize("kind", NOISES)
@pytest.mark.parametrize("level_dbfs", [-60, -40, -20])
def test_stationary_noise_never_opens_it(kind: str, level_dbfs: float) -> None:
    readings = run(
        Gate(hangover_ms=HANGOVER_MS), at(level_dbfs, noise(kind, 60 * WIRE_RATE, seed=5))
    )
    assert not opened(readings)[SETTLED_BLOCKS:].any()


@pytest.mark.parametrize("kind", NOISES)
def test_an_untrained_gate_does_not_open_on_noise(kind: str) -> None:
    gate = Gate(hangover_ms=HANGOVER_MS)
    for seed in range(30):
        gate.reset()
        assert not opened(run(gate, at(-30, noise(kind, 2 * WIRE_RATE, seed)))).any()


def test_a_half_empty_first_block_is_not_the_floor() -> None:
    samples = at(-30, noise("pink", 3 * WIRE_RATE, seed=22))
    samples[:440] = 0
    assert not opened(run(Gate(hangover_ms=HANGOVER_MS), samples)).any()


def test_noise_that_switches_on_is_the_floor_within_four_seconds() -> None:
    quiet = at(-60, noise("pink", 10 * WIRE_RATE, seed=6))
    loud = at(-35, noise("fan", 20 * WIRE_RATE, seed=7))
    is_open = opened(run(Gate(hangover_ms=HANGOVER_MS), np.concatenate([quiet, loud])))
    assert not is_open[500 + SETTLED_BLOCKS :].any()


@pytest.mark.parametrize("click_ms", [5, 20])
def test_thirty_clicks_open_nothing(click_ms: int) -> None:
    rng = np.random.default_rng(8)
    samples = at(-60, noise("pink", 40 * WIRE_RATE, seed=9))
    length = click_ms * WIRE_RATE // 1000
    for i in range(30):
        start = 5 * WIRE_RATE + i * WIRE_RATE + int(rng.integers(BLOCK_FRAMES))
        samples[start : start + length] += 10_000 * rng.standard_normal(length).clip(-2, 2)
    assert not opened(run(Gate(hangover_ms=HANGOVER_MS), samples)).any()


def without_gaps(paths: list[Path], seconds: int) -> Samples:
    """A talker who never pauses longer than the words themselves do."""
    words = [
        blocks(voice(p))[slice(*np.flatnonzero(speech_blocks(voice(p)))[[0, -1]])] for p in paths
    ]
    pass_once = np.concatenate(words).ravel()
    return np.resize(pass_once, seconds * WIRE_RATE)


@pytest.mark.parametrize(("speech_dbfs", "room_dbfs"), [(-22, -45), (-22, -65), (-45, -65)])
def test_a_minute_of_speech_is_one_opening(speech_dbfs: float, room_dbfs: float) -> None:
    speech = at(speech_dbfs, without_gaps(VOICES, 60))
    clean = np.concatenate([np.zeros(4 * WIRE_RATE), speech])
    is_open = opened(
        run(
            Gate(hangover_ms=HANGOVER_MS), clean + at(room_dbfs, noise("pink", len(clean), seed=10))
        )
    )
    assert len(openings(is_open)) == 1
    assert is_open[-1]


@pytest.mark.parametrize("pause_ms", [200, 400, 500])
def test_a_pause_shorter_than_the_hangover_does_not_split(pause_ms: int) -> None:
    pause = np.zeros(pause_ms * WIRE_RATE // 1000)
    words = [part for path in VOICES for part in (without_gaps([path], 1), pause)]
    clean = np.concatenate([np.zeros(4 * WIRE_RATE), *words])
    clean = clean[: len(clean) // BLOCK_FRAMES * BLOCK_FRAMES]
    room = at(-50, noise("pink", len(clean), seed=11))
    assert len(openings(opened(run(Gate(hangover_ms=HANGOVER_MS), clean + room)))) == 1


def test_soft_speech_is_heard_in_a_silent_room() -> None:
    clean = at(-45 + dbfs(scene().clean) - scene().speech_dbfs, scene().clean)
    room = at(-65, noise("pink", len(clean), seed=12))
    is_open = opened(run(Gate(hangover_ms=HANGOVER_MS), clean + room))
    assert kept(is_open)[scene().spoken].mean() >= 0.995
    assert len(openings(is_open)) == len(VOICES)


def test_soft_speech_does_not_raise_the_floor() -> None:
    """Half a minute of soft talk, in words with the pauses of talk, then one more word."""
    pause = np.zeros(15 * BLOCK_FRAMES)
    words = [part for path in VOICES for part in (without_gaps([path], 1), pause)]
    talk = np.resize(np.concatenate(words), 30 * WIRE_RATE)
    clean = np.concatenate([np.zeros(4 * WIRE_RATE), at(-50, talk)])
    readings = run(
        Gate(hangover_ms=HANGOVER_MS), clean + at(-65, noise("pink", len(clean), seed=13))
    )
    before = readings[199].floor_dbfs
    assert max(r.floor_dbfs for r in readings[200:]) - before < 6
    assert opened(readings)[215:].all()


def test_digital_silence_says_nothing_about_the_room() -> None:
    gate = Gate(hangover_ms=HANGOVER_MS)
    room = at(-45, noise("pink", 5 * WIRE_RATE, seed=14))
    floor = run(gate, room)[-1].floor_dbfs
    silent = run(gate, np.zeros(10 * WIRE_RATE))
    assert {r.floor_dbfs for r in silent} == {floor}
    assert {r.level_dbfs for r in silent} == {SILENCE_DBFS}
    assert not opened(run(gate, room)).any()


def test_a_microphone_that_starts_muted_is_finite() -> None:
    for reading in run(Gate(hangover_ms=HANGOVER_MS), np.zeros(WIRE_RATE)):
        figures = (reading.level_dbfs, reading.floor_dbfs, reading.threshold_dbfs, reading.score)
        assert np.isfinite(figures).all()
        assert not reading.open


def test_dither_after_digital_silence_does_not_open_it() -> None:
    dither = at(-70, noise("white", 10 * WIRE_RATE, seed=15))
    samples = np.concatenate([np.zeros(5 * WIRE_RATE), dither])
    assert not opened(run(Gate(hangover_ms=HANGOVER_MS), samples)).any()


def test_an_untrained_gate_stays_closed_in_noise_and_hears_the_first_word() -> None:
    gate = Gate(hangover_ms=HANGOVER_MS)
    room = at(-45, noise("pink", 3 * WIRE_RATE, seed=16))
    assert not opened(run(gate, room[: 2 * WIRE_RATE])).any()
    gate.reset()
    said = blocks(voice(VOICES[0])).ravel()  # from its first block on
    assert opened(run(gate, said + room[: len(said)])).any()


def talking(gate: Gate) -> None:
    room = at(-55, noise("pink", 5 * WIRE_RATE, seed=17))
    run(gate, room[: 4 * WIRE_RATE])
    assert run(gate, room[4 * WIRE_RATE :] + without_gaps(VOICES, 1))[-1].open


def test_close_closes_at_once_and_keeps_the_floor() -> None:
    gate = Gate(hangover_ms=HANGOVER_MS)
    talking(gate)
    gate.close()
    after = run(gate, at(-55, noise("pink", WIRE_RATE, seed=18)))
    assert not opened(after).any()
    assert after[0].floor_dbfs == pytest.approx(-55, abs=5)


def test_reset_forgets_the_floor() -> None:
    gate = Gate(hangover_ms=HANGOVER_MS)
    talking(gate)
    gate.reset()
    louder = run(gate, at(-30, noise("pink", WIRE_RATE, seed=19)))
    assert not opened(louder).any()
    assert louder[-1].floor_dbfs == pytest.approx(-30, abs=5)


@pytest.mark.parametrize("hangover_ms", [200, 600, 1000])
@pytest.mark.parametrize(("snr_db", "extra_ms"), [(40, 20), (0, 160)])
def test_the_hangover_is_counted_from_the_last_speech(
    hangover_ms: int, snr_db: float, extra_ms: int
) -> None:
    """And a little longer the less the speech stood out."""
    gate = Gate(hangover_ms=hangover_ms)
    run(gate, at(-50, noise("white", 4 * WIRE_RATE, seed=25)))
    louder = at(-50 + max(snr_db, 10), noise("white", WIRE_RATE // 2, seed=26))
    assert run(gate, louder)[-1].open
    readings = run(gate, np.zeros(2 * WIRE_RATE))
    assert not any(r.speech for r in readings)
    closed = int(np.argmin(opened(readings)))
    assert (closed + 1) * BLOCK_MS == hangover_ms + extra_ms


def test_forced_open_it_has_a_fresh_hangover_and_its_floor() -> None:
    gate = Gate(hangover_ms=HANGOVER_MS)
    room = at(-45, noise("pink", 6 * WIRE_RATE, seed=27))
    floor = run(gate, room[: 4 * WIRE_RATE])[-1].floor_dbfs
    for _ in range(2):
        gate.force_open()
        readings = run(gate, room[4 * WIRE_RATE : 4 * WIRE_RATE + HANGOVER_MS * WIRE_RATE // 1000])
        assert opened(readings)[:-1].all()
        assert readings[0].floor_dbfs == pytest.approx(floor, abs=1)
    assert not opened(run(gate, room[5 * WIRE_RATE :])).all()


@pytest.mark.parametrize("kind", NOISES)
def test_hardly_audible_speech_is_faint(kind: str) -> None:
    readings = heard(kind, -5)
    for first, last in scene().utterances:
        assert any(r.faint for r in readings[first : last + 6])


@pytest.mark.parametrize("kind", NOISES)
def test_noise_is_hardly_ever_faint(kind: str) -> None:
    readings = run(Gate(hangover_ms=HANGOVER_MS), at(-40, noise(kind, 60 * WIRE_RATE, seed=28)))
    assert np.mean([r.faint for r in readings[SETTLED_BLOCKS:]]) <= 0.01


@pytest.mark.parametrize("level", [0, 1234])
def test_a_constant_microphone_is_never_faint(level: int) -> None:
    readings = run(Gate(hangover_ms=HANGOVER_MS), np.full(5 * WIRE_RATE, float(level)))
    assert not any(r.faint for r in readings)


def test_a_long_sentence_does_not_hide_its_soft_end() -> None:
    """Four seconds of syllables with dips of 60 ms and 30 dB: the dips are not the floor."""
    room = at(-60, noise("pink", 8 * WIRE_RATE, seed=29))
    syllables = np.repeat([1.0, 1.0, 1.0, 1.0, 0.03, 0.03, 0.03], BLOCK_FRAMES)
    talk = np.resize(syllables, 4 * WIRE_RATE) * noise("pink", 4 * WIRE_RATE, seed=30)
    room[4 * WIRE_RATE :] += at(-25, talk)
    readings = run(Gate(hangover_ms=HANGOVER_MS), room)
    assert readings[-1].floor_dbfs - readings[199].floor_dbfs < 6


def test_levels_are_dbfs() -> None:
    t = np.arange(BLOCK_FRAMES) / WIRE_RATE
    tone = 3276.8 * np.sin(2 * np.pi * 1500 * t)  # a sine of -20 dBFS peak is -23 dBFS RMS
    [reading] = run(Gate(hangover_ms=HANGOVER_MS), tone)
    assert reading.level_dbfs == pytest.approx(-23, abs=0.1)


def test_the_threshold_tells_what_opens_in_this_room() -> None:
    room = at(-45, noise("pink", 10 * WIRE_RATE, seed=20))
    for margin_db, opens in ((-2, False), (3, True)):
        gate = Gate(hangover_ms=HANGOVER_MS)
        quiet = run(gate, room)
        needed = quiet[-1].threshold_dbfs - np.mean([r.level_dbfs for r in quiet])
        louder = run(gate, room[:WIRE_RATE] * 10 ** ((needed + margin_db) / 20))
        assert opened(louder).any() == opens


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="hangover_ms"):
        Gate(hangover_ms=0)
    with pytest.raises(ValueError, match="stay_score"):
        Gate(hangover_ms=600, open_score=2, stay_score=3)
    with pytest.raises(ValueError, match="shape"):
        Gate(hangover_ms=600).push(np.zeros(481, np.int16))


def test_a_second_of_audio_costs_a_few_milliseconds() -> None:
    """1.2 ms where it was written; the bound leaves room for slower and busier machines."""
    gate = Gate(hangover_ms=HANGOVER_MS)
    room = np.rint(at(-45, noise("pink", 10 * WIRE_RATE, seed=21))).astype(np.int16)
    begin_s = time.thread_time()
    for block in room.reshape(-1, BLOCK_FRAMES):
        gate.push(block)
    assert (time.thread_time() - begin_s) / 10 < 0.010


@pytest.mark.parametrize("zeros", [240, 400, 470, 480])
def test_a_hole_in_a_steady_noise_opens_nothing(zeros: int) -> None:
    gate = Gate(hangover_ms=600)
    noise = np.random.default_rng(11).normal(0, 104, (1000, 480)).astype(np.int16)
    noise[300, -zeros:] = 0
    assert not any(gate.push(block).open for block in noise)


@pytest.mark.parametrize(
    ("flags", "age"), [(0b1, 0), (0b111, 2), (0b1001, 3), (0b1_0001, 0), (0b100_1001, 6)]
)
def test_a_run_ends_at_a_long_gap(flags: int, age: int) -> None:
    assert first_of_run(flags, 3) == age
