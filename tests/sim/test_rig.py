import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import alsaaudio
import numpy as np
import pytest

from voiced.sim import rig as rig_module
from voiced.sim.rig import (
    EAR_PERIOD_S,
    GAP_PROOF_S,
    MOUTH_QUEUE,
    Ear,
    Mouth,
    Rig,
    RigError,
    Timeline,
    calibrate,
)
from voiced.sim.wav import Samples, read_wav

RATE = 48_000


def noise(frames: int, seed: int = 1) -> Samples:
    """Never zero, so that its first and last sample can be found."""
    return np.random.default_rng(seed).integers(1, 20_000, frames).astype(np.int16)


def sounding(samples: Samples) -> tuple[int, Samples]:
    """Index of the first non-zero sample, and everything from it to the last one."""
    where = np.flatnonzero(samples)
    assert len(where), "nothing was heard"
    return int(where[0]), samples[where[0] : where[-1] + 1]


def speaker(rig: Rig, channels: int) -> Any:
    return alsaaudio.PCM(
        alsaaudio.PCM_PLAYBACK,
        alsaaudio.PCM_NORMAL,
        rate=RATE,
        channels=channels,
        format=alsaaudio.PCM_FORMAT_S16_LE,
        periodsize=960,
        periods=6,
        device=rig.speaker,
    )


def write_many(pcm: Any, periods: int) -> None:
    for _ in range(periods):
        pcm.write(bytes(960 * 2))


@pytest.fixture
def ear(rig: Rig) -> Iterator[Ear]:
    with Ear(rig) as ear:
        yield ear


@pytest.fixture
def tap(rig: Rig) -> Iterator[Ear]:
    with Ear(rig, rig.mic_tap) as tap:
        yield tap


# The speaker


@pytest.mark.parametrize("channels", [1, 2])
def test_what_is_written_to_the_speaker_is_heard_bit_for_bit(
    rig: Rig, ear: Ear, channels: int
) -> None:
    said = noise(RATE // 2)
    pcm = speaker(rig, channels)
    asked = time.monotonic()
    pcm.write(np.repeat(said, channels).tobytes())
    pcm.drain()
    ear.wait_until(time.monotonic() + 0.05, timeout_s=5)
    pcm.drop()
    pcm.close()
    start = ear.index_at(asked - 0.1)
    first, sound = sounding(ear.snapshot(start))
    assert np.array_equal(sound, said)
    assert abs(ear.time_at(start + first) - asked) < 0.04


def test_drop_leaves_exact_silence(rig: Rig, ear: Ear) -> None:
    pcm = speaker(rig, 1)
    for _ in range(10):
        pcm.write(noise(960).tobytes())
    pcm.drop()
    dropped = time.monotonic()
    ear.wait_until(dropped + 0.3, timeout_s=5)
    pcm.close()
    after = ear.snapshot(ear.index_at(dropped + 0.03))
    assert len(after) > 0.25 * RATE
    assert not after.any()
    assert ear.snapshot(ear.index_at(dropped - 0.1), ear.index_at(dropped - 0.05)).any()


def test_the_recording_can_be_saved(rig: Rig, ear: Ear, tmp_path: Path) -> None:
    ear.wait_until(time.monotonic(), timeout_s=5)
    ear.save(tmp_path / "heard.wav")
    samples, rate = read_wav(tmp_path / "heard.wav")
    assert rate == RATE
    assert np.array_equal(samples[:, 0], ear.snapshot(0, len(samples)))


def test_calibration_is_a_few_milliseconds_and_leaves_the_speaker_free(rig: Rig, ear: Ear) -> None:
    found = calibrate(rig, ear, n=3)
    assert 0 < found.delay_ms < 25
    assert -5 < found.drop_ms < 25
    assert 0 <= found.spread_ms < 40
    end = time.monotonic()
    ear.wait_until(end + 0.1, timeout_s=5)
    assert not ear.snapshot(ear.index_at(end)).any()
    speaker(rig, 1).close()


def test_calibration_complains_when_nothing_is_heard(rig: Rig, tap: Ear) -> None:
    with pytest.raises(RigError, match="did not hear"):
        calibrate(rig, tap, n=1)


# The microphone


def test_what_the_mouth_says_is_at_the_microphone_when_it_says_so(rig: Rig, tap: Ear) -> None:
    said = noise(RATE // 5)
    with Mouth(rig, noise_dbfs=None) as mouth:
        for later_s in (0.1, 0.1234, 0.2):
            at = time.monotonic() + later_s
            utterance = mouth.say(said, at)
            started, ended = utterance.wait_started(5), utterance.wait_ended(5)
            tap.wait_until(ended + 0.05, timeout_s=5)
            start = tap.index_at(started - 0.05)
            first, sound = sounding(tap.snapshot(start))
            assert np.array_equal(sound, said)
            assert abs(started - at) < 0.015
            assert abs(tap.time_at(start + first) - started) < 0.015
            assert ended - started == pytest.approx(len(said) / RATE, abs=0.005)
            assert not utterance.cut


def test_without_a_time_it_is_said_at_once(rig: Rig, tap: Ear) -> None:
    with Mouth(rig, noise_dbfs=None) as mouth:
        asked = time.monotonic()
        assert 0 < mouth.say(noise(480)).wait_started(5) - asked < 0.2
        late = mouth.say(noise(480), at=asked - 60)
        assert late.wait_started(5) > asked


def test_utterances_that_overlap_add_up(rig: Rig, tap: Ear) -> None:
    one, two = noise(4800, seed=1) // 2 + 1, noise(4800, seed=2) // 2 + 1
    with Mouth(rig, noise_dbfs=None) as mouth:
        at = time.monotonic() + 0.2
        first, second = mouth.say(one, at), mouth.say(two, at)
        tap.wait_until(max(first.wait_ended(5), second.wait_ended(5)) + 0.05, timeout_s=5)
    _, sound = sounding(tap.snapshot(tap.index_at(at - 0.05)))
    assert np.array_equal(sound, one + two)


@pytest.mark.parametrize("dbfs", [-45.0, -20.0])
def test_the_room_is_as_loud_as_asked(rig: Rig, tap: Ear, dbfs: float) -> None:
    with Mouth(rig, noise_dbfs=dbfs):
        begun = time.monotonic()
        tap.wait_until(begun + 0.4, timeout_s=5)
        room = tap.snapshot(tap.index_at(begun + 0.1), tap.index_at(begun + 0.4))
    rms = np.sqrt(np.mean(room.astype(float) ** 2))
    assert 20 * np.log10(rms / 32768) == pytest.approx(dbfs, abs=0.5)


def test_the_same_seed_makes_the_same_room(rig: Rig, tap: Ear) -> None:
    rooms = []
    for seed in (7, 7, 8):
        begun = time.monotonic() + 0.02  # the last room has died away
        tap.wait_until(begun, timeout_s=5)
        with Mouth(rig, noise_dbfs=-30, seed=seed):
            tap.wait_until(time.monotonic() + 0.1, timeout_s=5)
        rooms.append(sounding(tap.snapshot(tap.index_at(begun)))[1][:2000])
    assert np.array_equal(rooms[0], rooms[1])
    assert not np.array_equal(rooms[0], rooms[2])


def test_the_mouth_refuses_what_it_cannot_say(rig: Rig) -> None:
    mouth = Mouth(rig)
    with pytest.raises(ValueError, match="int16"):
        mouth.say(np.zeros(10))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"\(10, 2\)"):
        mouth.say(np.zeros((10, 2), np.int16))
    for _ in range(MOUTH_QUEUE):
        mouth.say(np.zeros(1, np.int16))
    with pytest.raises(RigError, match="waiting"):
        mouth.say(np.zeros(1, np.int16))


def test_six_microphones_keep_their_order(rig: Rig) -> None:
    rate = 16_000
    tones_hz = [300, 500, 700, 900, 1100, 1300]
    time_s = np.arange(rate // 2)[:, np.newaxis] / rate
    said = (8000 * np.sin(2 * np.pi * np.array(tones_hz) * time_s)).astype(np.int16)
    with Rig(mic_channels=6, mic_rate=rate) as array:
        array.apply()
        try:
            ears = [Ear(array, array.mic_tap, channel) for channel in range(6)]
            for ear in ears:
                ear.start()
            with Mouth(array, noise_dbfs=None) as mouth:
                ended = mouth.say(said).wait_ended(5)
                for ear in ears:
                    ear.wait_until(ended, timeout_s=5)
        finally:
            rig.apply()
            for ear in ears:
                ear.close()
    for ear, tone_hz in zip(ears, tones_hz, strict=True):
        heard = ear.snapshot(ear.index_at(ended - 0.4), ear.index_at(ended - 0.2))
        spectrum = np.abs(np.fft.rfft(heard))
        assert np.argmax(spectrum) * rate / len(heard) == pytest.approx(tone_hz, abs=5)
        assert heard.max() == pytest.approx(8000, abs=50)


# Unplugging


def test_mouth_and_ear_survive_unplugging(rig: Rig, ear: Ear, tap: Ear) -> None:
    with Mouth(rig, noise_dbfs=None) as mouth:
        under_way = mouth.say(noise(20 * RATE))
        under_way.wait_started(5)
        card = speaker(rig, 1)
        card.write(bytes(960 * 2))
        rig.unplug()
        try:
            with pytest.raises(alsaaudio.ALSAAudioError, match="Input/output error"):
                write_many(card, 100)  # the first ones may still fit, or come back short
            assert under_way.wait_ended(5) > 0
            assert under_way.cut
        finally:
            card.close()
            rig.replug()
        for listener in (ear, tap):  # opening holds the GIL: a loaded machine stalls the mouth
            listener.wait_until(time.monotonic(), timeout_s=10)
        again = mouth.say(noise(4800))
        ended = again.wait_ended(5)
        tap.wait_until(ended + 0.05, timeout_s=5)
        start = tap.index_at(again.wait_started(5) - 0.05)
        first, sound = sounding(tap.snapshot(start))
        assert np.array_equal(sound, noise(4800))
        assert abs(tap.time_at(start + first) - again.wait_started(5)) < 0.015
        ear.wait_until(ended, timeout_s=5)
        assert mouth.reconnects == ear.reconnects == tap.reconnects == 1
    # Silence stands for the outage, so the recording is as long as the time that passed.
    assert len(ear.outages) == 1
    assert ear.length / RATE == pytest.approx(ear.time_at(ear.length) - ear.time_at(0), abs=0.05)


def test_the_server_and_its_directory_are_gone_after_close() -> None:
    rig = Rig()
    rig.start()
    folder = Path(rig.env["ALSA_CONFIG_PATH"]).parent
    server = rig._server
    assert server is not None
    assert folder.exists()
    rig.close()
    rig.close()
    assert server.returncode is not None
    assert not folder.exists()
    with pytest.raises(RigError, match="closed"):
        rig.replug()


def test_a_rig_that_was_never_started_closes() -> None:
    Rig().close()


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(rig_module, "_PLUGIN_DIRS", ())
        with pytest.raises(RigError, match="libasound2-plugins"):
            Rig().start()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RigError, match="apt-get install pulseaudio"):
        Rig().start()


def test_a_server_that_dies_leaves_its_last_words_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = tmp_path / "pulseaudio"
    server.write_text("#!/bin/sh\necho no such luck >&2\nexit 1\n")
    server.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(RigError, match="no such luck"):
        Rig().start()
    assert list(tmp_path.iterdir()) == [server]


def test_an_ear_without_a_server_says_what_is_wrong(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rig_module, "STREAM_START_S", 0.2)
    ear = Ear(rig, rig.ear)
    ear.device = "rig_nowhere"
    with pytest.raises(RigError, match="rig_nowhere"):
        ear.start()


def test_an_ear_that_is_full_stops_and_says_so(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(rig_module, "EAR_LONGEST_S", 0.1)
    with Ear(rig) as ear:
        ear._thread.join(5)
        assert ear.full
        assert ear.length == 0.1 * RATE
    assert "stops" in caplog.text


# Dating samples


PERIOD = round(EAR_PERIOD_S * RATE)


def observe(timeline: Timeline, first: int, periods: int, true_offset: float, seed: int) -> int:
    """Observations of a stream, most of them late by up to 10 ms; the index it ends at."""
    late_s = np.random.default_rng(seed).uniform(0, 0.010, periods)
    late_s[::50] = 0
    for n in range(periods):
        index = first + n * PERIOD
        timeline.observe(true_offset + index / RATE + late_s[n], index)
    return first + periods * PERIOD


def test_late_readings_do_not_shift_the_dates() -> None:
    timeline = Timeline(RATE)
    end = observe(timeline, PERIOD, 2000, 100.0, seed=1)
    for index in (0, 1, RATE, 7 * RATE + 5, end, end + RATE):
        assert timeline.time_at(index) == pytest.approx(100 + index / RATE, abs=0.0005)
        assert timeline.index_at(timeline.time_at(index)) == index
    assert timeline.gaps == []


def test_a_slow_clock_is_followed() -> None:
    timeline = Timeline(RATE)
    slow = 1.0001  # 100 ppm: 180 ms in half an hour
    for index in range(0, 600 * RATE, PERIOD):
        timeline.observe(slow * index / RATE, index)
    for second in (1, 300, 599):
        assert timeline.time_at(second * RATE) == pytest.approx(slow * second, abs=0.001)


def test_lost_samples_are_found_by_the_clock() -> None:
    timeline = Timeline(RATE)
    cut = observe(timeline, 0, 1000, 100.0, seed=1)
    end = observe(timeline, cut, 1000, 100.2, seed=2)
    ((where, lost_s),) = timeline.gaps
    assert where == pytest.approx(cut, abs=2 * PERIOD)
    assert lost_s == pytest.approx(0.2, abs=0.001)
    assert timeline.time_at(cut - 5 * PERIOD) == pytest.approx(
        100 + (cut - 5 * PERIOD) / RATE, abs=0.001
    )
    assert timeline.time_at(end) == pytest.approx(100.2 + end / RATE, abs=0.001)


def test_a_stalled_reader_that_catches_up_lost_nothing() -> None:
    timeline = Timeline(RATE)
    at_stall = observe(timeline, 0, 1000, 100.0, seed=1)
    woke = 100 + at_stall / RATE + 20
    backlog = round(20 * RATE)
    for n in range(0, backlog, PERIOD):  # reads at 100 times the pace
        timeline.observe(woke + n / RATE / 100, at_stall + n)
    observe(timeline, at_stall + backlog + round(0.2 * RATE), 500, 100.0, seed=2)
    assert timeline.gaps == []
    assert timeline.time_at(at_stall + backlog // 2) == pytest.approx(
        100 + (at_stall + backlog // 2) / RATE, abs=0.001
    )


def test_what_was_lost_at_the_end_of_a_long_stall_is_dated_from_there_on() -> None:
    timeline = Timeline(RATE)
    at_stall = observe(timeline, 0, 1000, 100.0, seed=1)
    backlog = 20 * RATE  # kept; then 8 s were lost
    woke = 100 + at_stall / RATE + 28
    for n in range(0, backlog, PERIOD):
        timeline.observe(woke + n / RATE / 100, at_stall + n)
    resumed = at_stall + backlog
    observe(timeline, resumed, 1000, 108.2, seed=2)
    ((where, lost_s),) = timeline.gaps
    assert where == pytest.approx(resumed, abs=0.05 * RATE)
    assert lost_s == pytest.approx(8.2, abs=0.001)
    middle = at_stall + backlog // 2
    assert timeline.time_at(middle) == pytest.approx(100 + middle / RATE, abs=0.001)


def test_a_short_delay_is_no_gap() -> None:
    timeline = Timeline(RATE)
    index = observe(timeline, 0, 1000, 100.0, seed=1)
    for n in range(round(GAP_PROOF_S * RATE / 2 / PERIOD)):
        timeline.observe(100.1 + (index + n * PERIOD) / RATE, index + n * PERIOD)
    observe(timeline, index + RATE, 1000, 100.0, seed=2)
    assert timeline.gaps == []


def test_nothing_is_dated_before_the_first_observation() -> None:
    timeline = Timeline(RATE)
    assert not timeline
    with pytest.raises(LookupError, match="observed"):
        timeline.time_at(0)
