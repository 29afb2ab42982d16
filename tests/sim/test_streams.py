import time
from pathlib import Path
from typing import Any

import alsaaudio
import numpy as np
import pytest

from tests.sim.sounds import RATE, noise, sounding, speaker
from voiced.sim import streams
from voiced.sim.rig import Rig, RigError
from voiced.sim.streams import MOUTH_QUEUE, Ear, Mouth
from voiced.sim.wav import read_wav

# The mouth


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


# The ear


def test_the_recording_can_be_saved(rig: Rig, ear: Ear, tmp_path: Path) -> None:
    ear.wait_until(time.monotonic(), timeout_s=5)
    ear.save(tmp_path / "heard.wav")
    samples, rate = read_wav(tmp_path / "heard.wav")
    assert rate == RATE
    assert np.array_equal(samples[:, 0], ear.snapshot(0, len(samples)))


def test_an_ear_without_a_server_says_what_is_wrong(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "START_S", 0.2)
    ear = Ear(rig, rig.ear)
    ear.device = "rig_nowhere"
    with pytest.raises(RigError, match="rig_nowhere"):
        ear.start()


def test_an_ear_that_is_full_stops_and_says_so(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(streams, "EAR_LONGEST_S", 0.1)
    with Ear(rig) as ear:
        ear._thread.join(5)
        assert ear.full
        assert ear.length == 0.1 * RATE
    assert "stops" in caplog.text


# Unplugging


def write_many(pcm: Any, periods: int) -> None:
    for _ in range(periods):
        pcm.write(bytes(960 * 2))


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
