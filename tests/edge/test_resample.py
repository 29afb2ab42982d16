"""Tones in, tones out: level, aliasing, borders, tails and time of the resamplers; the formats."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from voiced.edge.resample import Resampler, decode, for_microphone, for_speaker, to_mono

OWN_RATES = [48_000, 96_000, 32_000, 16_000, 12_000, 8_000]
MICROPHONE_RATES = [*OWN_RATES, 44_100, 22_050, 11_025, 24_000]
SPEAKER_RATES = [48_000, 44_100, 16_000, 24_000]

Make = Callable[[], Resampler]
EVERY: list[Make] = [
    *(lambda rate=rate: for_microphone(rate) for rate in MICROPHONE_RATES),
    *(lambda rate=rate: for_speaker(rate) for rate in SPEAKER_RATES),
]
EVERY_NAME = [
    *(f"microphone-{rate}" for rate in MICROPHONE_RATES),
    *(f"speaker-{rate}" for rate in SPEAKER_RATES),
]


def tone(hz: float, rate: int, seconds: float = 1.0, peak: float = 16_000.0) -> NDArray[np.int16]:
    t = np.arange(round(rate * seconds)) / rate
    return np.rint(peak * np.sin(2 * np.pi * hz * t)).astype(np.int16)


def fours(lowest_hz: float, highest_hz: float, number: int) -> NDArray[np.float64]:
    """Frequencies for ``tone`` that fall on a line of ``spectrum_db``."""
    return np.round(np.linspace(lowest_hz, highest_hz, number) / 4) * 4


def babble(samples: int, seed: int, peak: int = 12_000) -> NDArray[np.int16]:
    return np.random.default_rng(seed).integers(-peak, peak, samples).astype(np.int16)


def all_of(resampler: Resampler, x: NDArray[np.int16]) -> NDArray[np.int16]:
    return np.concatenate([resampler.push(x), resampler.finish()])


def spectrum_db(y: NDArray[np.int16], rate: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Frequencies and the level at each over 0.75 s, 0 dB = a tone of peak 16,000 and n * 4 Hz."""
    inner = y[rate // 8 : rate * 7 // 8].astype(float)
    window = np.kaiser(len(inner), 16)
    level = np.abs(np.fft.rfft(inner * window)) / window.sum() * 2 / 16_000
    return np.fft.rfftfreq(len(inner), 1 / rate), 20 * np.log10(level + 1e-9)


def level_db(y: NDArray[np.int16], hz: float, rate: int) -> float:
    frequencies, level = spectrum_db(y, rate)
    return float(level[np.abs(frequencies - hz) < 20].max())


def strongest_other_db(y: NDArray[np.int16], hz: float | None, rate: int) -> float:
    frequencies, level = spectrum_db(y, rate)
    if hz is not None:
        level = level[np.abs(frequencies - hz) > 60]
    return float(level.max())


@pytest.mark.parametrize(
    ("rate", "flat_hz"),
    [(48_000, 9_900), (96_000, 9_900), (32_000, 9_900), (16_000, 5_900), (12_000, 4_400)]
    + [(8_000, 2_900), (44_100, 10_500), (24_000, 11_000)],
)
def test_the_microphone_is_flat_over_the_band_of_speech(rate: int, flat_hz: int) -> None:
    for hz in fours(100, flat_hz, 12):
        y = all_of(for_microphone(rate), tone(hz, rate))
        assert level_db(y, hz, 24_000) == pytest.approx(0, abs=0.5)


def test_sixteen_kilohertz_reach_up_to_six_and_a_half() -> None:
    for hz, loss_db in ((6_000, 0.6), (6_400, 3.0)):
        y = all_of(for_microphone(16_000), tone(hz, 16_000))
        assert level_db(y, hz, 24_000) > -loss_db


@pytest.mark.parametrize("rate", [48_000, 96_000, 32_000, 44_100])
def test_tones_above_the_band_do_not_fold_into_it(rate: int) -> None:
    for hz in fours(12_100, rate / 2 - 100, 15):
        y = all_of(for_microphone(rate), tone(hz, rate))
        assert strongest_other_db(y, None, 24_000) < -80


@pytest.mark.parametrize("rate", [32_000, 16_000, 12_000, 8_000, 22_050])
def test_tones_leave_no_images(rate: int) -> None:
    for hz in fours(200, min(rate / 2, 12_000) * 0.9, 15):
        y = all_of(for_microphone(rate), tone(hz, rate))
        assert strongest_other_db(y, hz, 24_000) < -80


@pytest.mark.parametrize("make", EVERY, ids=EVERY_NAME)
def test_the_borders_of_blocks_leave_no_trace(make: Make) -> None:
    rng = np.random.default_rng(1)
    x = babble(30_000, seed=2)
    cut = make()
    pieces = []
    begin = 0
    while begin < len(x):
        end = begin + int(rng.choice([0, 1, 2, 127, 128, 472, 480, 481, 960, 3000]))
        pieces.append(cut.push(x[begin:end]))
        begin = end
    assert np.array_equal(np.concatenate([*pieces, cut.finish()]), all_of(make(), x))


@pytest.mark.parametrize("make", EVERY, ids=EVERY_NAME)
def test_clear_leaves_nothing_of_the_old_signal(make: Make) -> None:
    resampler = make()
    resampler.clear()
    resampler.push(babble(5_001, seed=3))
    resampler.clear()
    assert not all_of(resampler, np.zeros(10_000, np.int16)).any()


@pytest.mark.parametrize("make", EVERY, ids=EVERY_NAME)
def test_finish_starts_afresh(make: Make) -> None:
    resampler = make()
    x = babble(9_001, seed=4)
    first = all_of(resampler, x)
    assert np.array_equal(all_of(resampler, x), first)
    assert not all_of(resampler, x[:0]).any()


@pytest.mark.parametrize("make", EVERY, ids=EVERY_NAME)
def test_full_scale_saturates_and_never_wraps(make: Make) -> None:
    square = np.where(np.arange(24_000) // 60 % 2, 32_767, -32_768).astype(np.int16)
    y = all_of(make(), square).astype(int)
    if make().delay_ms:
        assert y.max() == 32_767  # the overshoot was there, and was cut
        assert y.min() == -32_768
    # A wrapped sample has two neighbours on the other side of the scale.
    sign = np.sign(y)
    lonely = (sign[1:-1] != sign[:-2]) & (sign[1:-1] != sign[2:]) & (np.abs(y[1:-1]) > 20_000)
    assert not lonely.any()


@pytest.mark.parametrize("make", EVERY, ids=EVERY_NAME)
def test_it_speaks_int16_of_shape_n(make: Make) -> None:
    resampler = make()
    for y in (resampler.push(babble(480, seed=5)), resampler.finish()):
        assert y.dtype == np.int16
        assert y.ndim == 1


@pytest.mark.parametrize("rate", OWN_RATES)
def test_twenty_milliseconds_in_are_twenty_out_at_once(rate: int) -> None:
    resampler = for_microphone(rate)
    block = babble(rate // 50, seed=6)
    assert {len(resampler.push(block)) for _ in range(50)} == {480}


@pytest.mark.parametrize(
    ("rate", "longest_ms"), [(48_000, 1), (96_000, 1), (32_000, 1), (16_000, 1), (8_000, 2)]
)
def test_a_click_comes_out_of_the_microphone_as_late_as_promised(
    rate: int, longest_ms: float
) -> None:
    resampler = for_microphone(rate)
    click = np.zeros(rate // 5, np.int16)
    click[rate // 10] = 20_000
    heard_ms = (int(np.argmax(all_of(resampler, click))) - 2_400) / 24
    assert heard_ms == pytest.approx(resampler.delay_ms, abs=1 / 24)
    assert resampler.delay_ms < longest_ms


@pytest.mark.parametrize("rate", OWN_RATES)
def test_the_tail_holds_what_the_filter_still_owed(rate: int) -> None:
    resampler = for_microphone(rate)
    click = np.zeros(rate // 50, np.int16)
    click[-1] = 20_000
    resampler.push(click)
    tail = resampler.finish()
    expected_ms = resampler.delay_ms - 1000 / rate  # the tail begins one input sample later
    assert np.argmax(tail) / 24 == pytest.approx(expected_ms, abs=1 / 24)
    assert len(tail) / 24 < 2 * resampler.delay_ms + 1.4


@pytest.mark.parametrize("rate", SPEAKER_RATES)
@pytest.mark.parametrize("samples", [1, 480, 23_999, 24_000])
def test_the_speaker_gets_as_long_a_sound_as_was_sent(rate: int, samples: int) -> None:
    y = all_of(for_speaker(rate), babble(samples, seed=7))
    assert len(y) == pytest.approx(samples * rate / 24_000, abs=1)


@pytest.mark.parametrize("rate", SPEAKER_RATES)
def test_the_speakers_sample_n_stands_for_its_share_of_the_input(rate: int) -> None:
    """A band-limited noise, computed at both rates from the same sines, must match in place."""
    rng = np.random.default_rng(8)
    hz, phase = rng.uniform(200, 6_000, 60), rng.uniform(0, 2 * np.pi, 60)

    def sound(at: int) -> NDArray[np.float64]:
        t = np.arange(at)[:, None] / at
        return 500 * np.sin(2 * np.pi * hz * t + phase).sum(axis=1)

    resampler = for_speaker(rate)
    x = np.rint(sound(24_000)).astype(np.int16)
    y = np.concatenate([resampler.push(b) for b in x.reshape(-1, 480)] + [resampler.finish()])
    expected = sound(rate)
    inner = slice(rate // 10, -rate // 10)
    lags = range(-20, 21)
    match = [float(np.roll(y, -lag)[inner] @ expected[inner]) for lag in lags]
    assert abs(lags[int(np.argmax(match))]) <= 1
    assert np.abs(y[inner] - expected[inner]).max() < 50


def test_soxrs_delay_is_as_documented() -> None:
    resampler = for_speaker(48_000)
    got, lags_ms = 0, []
    for i in range(1, 201):
        got += len(resampler.push(babble(480, seed=i)))
        lags_ms.append(i * 20 - got / 48)
    assert np.mean(lags_ms) == pytest.approx(resampler.delay_ms, abs=3)
    assert max(lags_ms) < 45


def test_rates_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="positive"):
        for_microphone(0)
    with pytest.raises(ValueError, match="positive"):
        for_speaker(-1)


@pytest.mark.parametrize("make", EVERY, ids=EVERY_NAME)
def test_a_second_of_audio_costs_a_few_milliseconds(make: Make) -> None:
    """Under 1 ms where it was written; the bound leaves room for slower and busier machines."""
    resampler = make()
    block = babble(480, seed=9)
    resampler.push(block)
    begin_s = time.thread_time()
    for _ in range(100):
        resampler.push(block)
    assert time.thread_time() - begin_s < 0.050


def six_tones() -> NDArray[np.float64]:
    t = np.arange(4_800) / 16_000
    return np.stack([0.25 * np.sin(2 * np.pi * 500 * (c + 1) * t) for c in range(6)], axis=1)


def pitch_hz(y: NDArray[np.int16]) -> float:
    return float(np.argmax(np.abs(np.fft.rfft(y))) * 16_000 / len(y))


def encode(wide: NDArray[np.int32], sample_format: str) -> bytes:
    """What a card would give for full-scale int32."""
    if sample_format == "S16_LE":
        return (wide >> 16).astype("<i2").tobytes()
    if sample_format == "S24_LE":
        return (wide >> 8 & 0xFFFFFF).astype("<i4").tobytes()
    if sample_format == "S24_3LE":
        return b"".join(int(x).to_bytes(4, "little", signed=True)[1:] for x in wide.ravel())
    return wide.astype("<i4").tobytes()


FORMATS = ["S16_LE", "S24_LE", "S24_3LE", "S32_LE"]
EXTREMES = np.array([2**31 - 1, -(2**31), 0, -1, 1, 0x12345678, -0x12345678, 0x7FFFFF00], np.int32)


@pytest.mark.parametrize("sample_format", FORMATS)
def test_six_tones_come_out_of_their_channels(sample_format: str) -> None:
    data = encode(np.rint(six_tones() * 2**31).astype(np.int32), sample_format)
    frames = decode(data, 6, sample_format)  # type: ignore[arg-type]
    assert frames.shape == (4_800, 6)
    for channel in range(6):
        mono = to_mono(frames, [channel])
        assert mono.shape == (4_800,)
        assert mono.dtype == np.int16
        assert mono.max() == 8_192
        assert pitch_hz(mono) == 500 * (channel + 1)


@pytest.mark.parametrize(
    ("sample_format", "kept"), [("S24_LE", 8), ("S24_3LE", 8), ("S32_LE", 0), ("S16_LE", 16)]
)
def test_no_bit_is_lost_in_decoding(sample_format: str, kept: int) -> None:
    """`kept` are the low bits that the format does not have."""
    frames = decode(encode(EXTREMES, sample_format), 2, sample_format)  # type: ignore[arg-type]
    expected = EXTREMES >> kept << kept
    got = frames.astype(np.int64) << (16 if sample_format == "S16_LE" else 0)
    assert got.ravel().tolist() == expected.tolist()


def test_the_top_byte_of_s24_is_not_looked_at() -> None:
    samples = np.array([0x00123400, 0x7F123400, 0x00FEDC00, -0x012400], "<i4")
    mono = to_mono(decode(samples.tobytes(), 1, "S24_LE"), [0])
    assert mono.tolist() == [0x1234, 0x1234, -0x124, -0x124]


def test_wide_samples_round_to_the_nearest_and_saturate() -> None:
    one = 2**16
    wide = [2**31 - 1, -(2**31), one, one // 2 + 1, one // 2, one + one // 2, -one]
    mono = to_mono(np.array([wide], np.int32).T, [0])
    assert mono.tolist() == [32_767, -32_768, 1, 1, 0, 2, -1]


@pytest.mark.parametrize("sample_format", FORMATS)
def test_half_a_frame_is_refused(sample_format: str) -> None:
    one = len(encode(np.zeros(1, np.int32), sample_format))
    with pytest.raises(ValueError):
        decode(bytes(3 * one), 2, sample_format)  # type: ignore[arg-type]
    with pytest.raises(ValueError):
        decode(bytes(2 * one + 1), 1, sample_format)  # type: ignore[arg-type]


def test_several_channels_are_averaged_without_overflow() -> None:
    frames = np.array([[32_767, 32_767, 5], [-32_768, 32_767, 5], [100, 201, 5]], np.int16)
    assert to_mono(frames, [0, 1]).tolist() == [32_767, 0, 150]
    assert to_mono(frames, [2]).tolist() == [5, 5, 5]
    loud = np.full((2, 16), 2**31 - 1, np.int32)
    assert to_mono(loud, range(16)).tolist() == [32_767, 32_767]


@pytest.mark.parametrize(("gain_db", "expected"), [(6.0, 1_995), (-6.0, 501), (20.0, 10_000)])
def test_gain_is_in_decibels_and_applied_after_the_mix(gain_db: float, expected: int) -> None:
    frames = np.array([[500, 1_500]], np.int16)
    assert to_mono(frames, [0, 1], gain_db).tolist() == [expected]


def test_gain_saturates_on_both_sides() -> None:
    frames = np.array([[5_000], [-5_000]], np.int16)
    assert to_mono(frames, [0], 40.0)[:, None].tolist() == [[32_767], [-32_768]]


def test_a_quiet_microphone_of_24_bits_gains_bits_and_not_steps() -> None:
    """A tone of 3 steps of 16 bits, 40 dB up: from 16 bits it comes with their steps, coarse."""
    t = np.arange(4_800) / 16_000
    tone_ = 3 * 2**16 * np.sin(2 * np.pi * 500 * t)
    frames = np.rint(tone_[:, None] / 2**8).astype(np.int32) << 8
    loud = to_mono(frames, [0], 40.0)
    assert np.abs(loud - tone_ * 100 / 2**16).max() < 1
    coarse = to_mono(np.rint(frames / 2**16).astype(np.int16), [0], 40.0)
    assert np.abs(coarse - tone_ * 100 / 2**16).max() > 40


def test_the_mix_does_not_depend_on_where_the_input_was_cut() -> None:
    frames = np.random.default_rng(5).integers(-(2**31), 2**31, (1_000, 6)).astype(np.int32)
    whole = to_mono(frames, [0, 2, 5], 3.0)
    parts = [to_mono(frames[at : at + 7], [0, 2, 5], 3.0) for at in range(0, 1_000, 7)]
    assert np.array_equal(np.concatenate(parts), whole)


def test_channels_that_are_not_there_are_refused() -> None:
    frames = np.zeros((4, 2), np.int16)
    with pytest.raises(IndexError):
        to_mono(frames, [2])
    with pytest.raises(ValueError, match="channel"):
        to_mono(frames, [])
