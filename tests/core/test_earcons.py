"""The earcons, as a small loudspeaker and a person's ear would judge them."""

from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from voiced.core.earcons import ATTACK_MS, LONGEST_MS, PEAK_DBFS, SCORES, samples
from voiced.core.faults import FAULTS
from voiced.events import WIRE_RATE, Samples

ERRORS = {"muted", "network", "account", "server", "device"}
NAMES = {"listening", "sent", "goodbye", "nothing-said"} | ERRORS

HOP = 120  # 5 ms
WINDOW = 480


def spectrogram(sound: Samples) -> NDArray[np.float64]:
    """Magnitudes, shape (steps of 5 ms, bins of 50 Hz)."""
    padded = np.concatenate((np.zeros(WINDOW), sound.astype(float), np.zeros(WINDOW)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP]
    return np.abs(np.fft.rfft(windows * np.hanning(WINDOW), axis=1))


def likeness(one: Samples, other: Samples) -> float:
    """1 if they look the same at some shift, 0 if they have nothing in common."""
    a, b = spectrogram(one), spectrogram(other)
    wide = np.zeros((len(a) + 2 * len(b), a.shape[1]))
    wide[len(b) : len(b) + len(a)] = a
    best = max(float((wide[i : i + len(b)] * b).sum()) for i in range(len(wide) - len(b) + 1))
    return best / float(np.linalg.norm(a) * np.linalg.norm(b))


def beats_ms(sound: Samples) -> list[int]:
    """The lengths of what sounds between silences."""
    loud = np.abs(sound.astype(int)) > 200
    edges = np.flatnonzero(loud)
    gaps = [0, *(i for i in range(1, len(edges)) if edges[i] - edges[i - 1] > WIRE_RATE * 0.01)]
    ends = [*gaps[1:], len(edges)]
    return [
        round((edges[end - 1] - edges[start]) * 1000 / WIRE_RATE)
        for start, end in zip(gaps, ends, strict=True)
    ]


def pitches_hz(sound: Samples) -> list[float]:
    """The strongest frequency of each third."""
    return [
        float(np.argmax(np.abs(np.fft.rfft(third * np.hanning(len(third)), WIRE_RATE))))
        for third in np.array_split(sound.astype(float), 3)
    ]


def test_there_is_one_for_each_occasion_and_for_each_fault() -> None:
    assert set(SCORES) == NAMES
    assert {fault.earcon for fault in FAULTS.values()} <= NAMES


def test_an_unknown_name_is_an_error() -> None:
    with pytest.raises(KeyError):
        samples("fanfare")


@pytest.mark.parametrize("name", sorted(NAMES))
def test_it_is_short_and_as_loud_as_all_the_others(name: str) -> None:
    sound = samples(name)
    assert sound.dtype == np.int16
    assert 40 <= len(sound) * 1000 / WIRE_RATE <= LONGEST_MS <= 150
    peak_dbfs = 20 * np.log10(np.abs(sound.astype(float)).max() / 32768)
    assert peak_dbfs == pytest.approx(PEAK_DBFS, abs=0.01)


@pytest.mark.parametrize("name", sorted(NAMES))
def test_it_begins_and_ends_softly_and_leaves_the_cone_where_it_was(name: str) -> None:
    sound = samples(name).astype(float)
    assert sound[0] == sound[-1] == 0
    quarter = WIRE_RATE * ATTACK_MS // 4000
    for edge in (sound[:quarter], sound[-quarter:]):
        # a raised cosine is at 15 % after a quarter of its way
        assert np.abs(edge).max() < 0.16 * np.abs(sound).max()
    assert abs(sound.mean()) < 0.5


@pytest.mark.parametrize("name", sorted(NAMES))
def test_a_small_loudspeaker_can_play_it(name: str) -> None:
    power = np.abs(np.fft.rfft(samples(name).astype(float), WIRE_RATE)) ** 2
    assert power[400:3001].sum() / power.sum() > 0.99


@pytest.mark.parametrize("name", sorted(NAMES))
def test_no_two_sound_alike(name: str) -> None:
    others = {other: likeness(samples(name), samples(other)) for other in NAMES - {name}}
    assert likeness(samples(name), samples(name)) == pytest.approx(1)
    assert max(others.values()) < 0.8, others


def test_listening_rises_and_goodbye_falls() -> None:
    rising, falling = pitches_hz(samples("listening")), pitches_hz(samples("goodbye"))
    assert rising[0] < 0.8 * rising[-1]
    assert falling[0] > 1.25 * falling[-1]


def test_errors_are_lower_than_all_that_went_well() -> None:
    lowest = min(max(pitches_hz(samples(name))) for name in NAMES - ERRORS)
    assert all(max(pitches_hz(samples(name))) < lowest for name in ERRORS)


def test_each_error_has_a_rhythm_of_its_own() -> None:
    rhythms = {name: beats_ms(samples(name)) for name in ERRORS}
    assert [len(rhythms[name]) for name in ("muted", "network", "account")] == [1, 2, 3]
    assert all(abs(a - b) < 10 for a, b in pairwise(rhythms["network"]))
    short, long = rhythms["server"]
    assert long > 1.5 * short
    long, short = rhythms["device"]
    assert long > 1.5 * short


def test_it_is_made_once_and_nobody_can_spoil_it() -> None:
    assert samples("sent") is samples("sent")
    with pytest.raises(ValueError, match="read-only"):
        samples("sent")[0] = 1
    again = samples.__wrapped__("sent")
    assert np.array_equal(again, samples("sent"))
