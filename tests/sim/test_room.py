import time
from typing import Any, NamedTuple

import numpy as np
import pytest

from tests.sim.sounds import RATE, speaker
from voiced.sim.rig import Rig
from voiced.sim.room import PERIOD_S, Convolver, Room
from voiced.sim.streams import Ear
from voiced.sim.wav import Samples

TRIES = 3
"""A busy machine makes the room stumble, which it counts, or the sound server lose a few ms, which
nobody does. A rule that is broken is broken each time."""

ROUNDED = 0.51  # once
DELAY_MS = 15  # to which a delay is known: both recordings are dated to 5 ms
WAIT_S = 10.0


def noise(seconds: float, seed: int = 1) -> Samples:
    rng = np.random.default_rng(seed)
    return rng.integers(-9000, 9000, round(seconds * RATE)).astype(np.int16)


def a_response(seconds: float) -> Any:
    """Decaying noise: an impulse response that no other resembles."""
    taps = round(seconds * RATE)
    return np.random.default_rng(3).standard_normal(taps) * np.exp(-5 * np.arange(taps) / taps) / 50


# --- the convolution ---------------------------------------------------------------------------


@pytest.mark.parametrize("taps", [1, 47, 48, 49, 500])
@pytest.mark.parametrize("channels", [1, 3])
def test_block_by_block_it_is_the_convolution_of_the_whole(taps: int, channels: int) -> None:
    rng = np.random.default_rng(taps)
    response, sound = rng.standard_normal((taps, channels)), rng.standard_normal(480)
    convolver = Convolver(response, 48)
    for _ in range(2):
        blocks = [convolver.push(block) for block in sound.reshape(-1, 48)]
        for channel in range(channels):
            whole = np.convolve(sound, response[:, channel])[:480]
            np.testing.assert_allclose(np.concatenate(blocks)[:, channel], whole, atol=1e-9)
        convolver.clear()


# --- the room ----------------------------------------------------------------------------------


class Echo(NamedTuple):
    sound: Samples  # at the microphone, from a sample on that left the speaker
    delay_ms: float  # between both, by the dates of the recordings
    told_ms: float  # by the room


def play(rig: Rig, sound: Samples) -> float:
    """Play it; the time before."""
    asked = time.monotonic()
    pcm = speaker(rig, channels=1)
    pcm.write(sound.tobytes())
    pcm.drain()
    pcm.close()
    return asked


def echo_of(rig: Rig, room: Room, ear: Ear, tap: Ear, sound: Samples, expected: Any) -> Echo:
    """What comes back of `sound`; looked for is what resembles `expected`."""
    asked = play(rig, sound)
    told_ms = room.delay_ms
    played = time.monotonic()
    for each in (ear, tap):
        each.wait_until(played + 0.5, WAIT_S)
    begin = ear.index_at(asked)
    emitted = begin + int(np.flatnonzero(ear.snapshot(begin))[0])
    start = tap.index_at(asked)
    heard = tap.snapshot(start)
    size = 1 << (len(heard) + len(expected)).bit_length()
    product = np.fft.rfft(heard, size) * np.conj(np.fft.rfft(expected, size))
    at = int(np.argmax(np.fft.irfft(product, size)[: len(heard) - len(expected) + 1]))
    delay_ms = 1000 * (tap.time_at(start + at) - ear.time_at(emitted))
    return Echo(heard[at : at + len(expected)], delay_ms, told_ms)


@pytest.mark.parametrize(
    ("response", "gain_db", "extra_ms"), [([1.0], 0.0, 0.0), (a_response(0.1), -6.0, 60.0)]
)
def test_the_echo_is_the_convolution_sample_by_sample_after_the_delay_it_tells(
    rig: Rig, ear: Ear, tap: Ear, response: Any, gain_db: float, extra_ms: float
) -> None:
    sound = noise(1.0)
    expected = np.convolve(sound, response) * 10 ** (gain_db / 20)
    for _ in range(TRIES):
        with Room(rig, response, gain_db, extra_ms) as room:
            echo = echo_of(rig, room, ear, tap, sound, expected)
        if np.allclose(echo.sound, expected, rtol=0, atol=ROUNDED):
            break
    np.testing.assert_allclose(echo.sound, expected, rtol=0, atol=ROUNDED)
    assert echo.delay_ms == pytest.approx(echo.told_ms, abs=DELAY_MS)
    assert 20 < echo.delay_ms - extra_ms < 150


def test_after_a_stall_the_echo_goes_on_with_the_delay_it_tells(
    rig: Rig, ear: Ear, tap: Ear, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = noise(0.5, 2)
    with Room(rig, [1.0]) as room:
        before = room.glitches
        push = room._convolver.push

        def late(block: Any) -> Any:
            monkeypatch.setattr(room._convolver, "push", push)
            time.sleep(0.3)
            return push(block)

        monkeypatch.setattr(room._convolver, "push", late)
        deadline = time.monotonic() + WAIT_S
        while room.glitches == before or not room._flowing():
            assert time.monotonic() < deadline
            time.sleep(PERIOD_S)
        for _ in range(TRIES):
            echo = echo_of(rig, room, ear, tap, sound, sound)
            if np.array_equal(echo.sound, sound):
                break
    np.testing.assert_array_equal(echo.sound, sound)
    assert echo.delay_ms == pytest.approx(echo.told_ms, abs=DELAY_MS)
    assert echo.delay_ms < 150


def test_it_comes_back_with_the_sound_server(rig: Rig) -> None:
    with Room(rig, [1.0]) as room:
        rig.unplug()
        rig.replug()
        deadline = time.monotonic() + WAIT_S
        while not room.reconnects or not room._flowing():
            assert time.monotonic() < deadline
            time.sleep(PERIOD_S)


def test_an_array_has_a_response_for_each_channel_or_one_for_all() -> None:
    rig = Rig(mic_channels=2)
    Room(rig, np.zeros((10, 2)))
    Room(rig, np.zeros(10))
    with pytest.raises(ValueError, match=r"\(10, 3\) is not \(taps,\) or \(taps, 2\)"):
        Room(rig, np.zeros((10, 3)))


@pytest.mark.parametrize("wrong", [np.zeros(0), np.zeros((2, 2, 2))])
def test_a_response_that_can_not_be_is_refused(rig: Rig, wrong: Any) -> None:
    with pytest.raises(ValueError, match="is not"):
        Room(rig, wrong)


def test_a_room_that_can_not_be_is_refused(rig: Rig) -> None:
    with pytest.raises(ValueError, match="-1"):
        Room(rig, [1.0], delay_ms=-1)
    with pytest.raises(ValueError, match="a speaker at 48000 Hz, a microphone at 16000 Hz"):
        Room(Rig(mic_rate=16_000), [1.0])


def test_it_can_be_closed_early_and_again(rig: Rig) -> None:
    Room(rig, [1.0]).close()
    with Room(rig, [1.0]) as room:
        room.close()
        room.close()
        assert not room._thread.is_alive()
