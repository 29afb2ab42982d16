"""Sample rates and sample formats: what a card delivers or wants, against 24 kHz mono int16.

From the microphone every millisecond of delay is felt, so the small ratios go through a FIR of our
own with under 1 ms and blocks of constant size. Towards the speaker audio comes faster than real
time, so soxr's delay costs nothing, and its quality is taken. Used by one thread each; no locks.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd
from typing import Any, Final, Literal, Protocol

import numpy as np
import soxr
from numpy.typing import NDArray

Samples = NDArray[np.int16]
Frames = NDArray[np.int16] | NDArray[np.int32]
SampleFormat = Literal["S16_LE", "S24_LE", "S24_3LE", "S32_LE"]
"""As ALSA names them; S24_LE has its three bytes in four."""

MODEL_RATE_HZ: Final = 24_000


class Resampler(Protocol):
    """A streaming converter of mono int16 of shape (n,), any n, to the same at another rate.

    The blocks' borders leave no trace: the outputs of ``push`` and ``finish`` joined are the same
    samples, however the input was cut. Too loud a result saturates.
    """

    delay_ms: float
    """Input held back: how much later than its input a sample leaves ``push`` on average."""

    def push(self, x: Samples) -> Samples:
        """Take input, return the output it completes (possibly none)."""
        ...

    def finish(self) -> Samples:
        """Return the tail, as if silence followed, and start afresh."""
        ...

    def clear(self) -> None:
        """Drop everything held; the next input meets a fresh resampler."""
        ...


def for_microphone(rate_in: int, rate_out: int = MODEL_RATE_HZ) -> Resampler:
    """Return the resampler with the least delay for these rates in Hz.

    Identity, our FIR for ratios up to 4 (48, 32, 16, 96, 12, 8 kHz), else soxr (44.1 kHz).
    Raises ValueError for a rate that is not positive.
    """
    up, down = _ratio(rate_in, rate_out)
    if up == down:
        return _Identity()
    if max(up, down) <= _LARGEST_FACTOR:
        return _Polyphase(rate_in, up, down)
    return _Soxr(rate_in, rate_out)


def for_speaker(rate_out: int, rate_in: int = MODEL_RATE_HZ) -> Resampler:
    """Return the resampler whose output sample n stands for input sample n * rate_in / rate_out.

    Identity or soxr. Its delay is counted in input, so ``finish`` after the last sample.
    Raises ValueError for a rate that is not positive.
    """
    up, down = _ratio(rate_in, rate_out)
    return _Identity() if up == down else _Soxr(rate_in, rate_out)


def decode(data: bytes, channels: int, sample_format: SampleFormat) -> Frames:
    """Return the frames (n, channels) in ``data``, interleaved, without loss.

    S16_LE gives int16. The wider formats give int32, left-justified: full scale is 2**31 in all.
    Raises ValueError if ``data`` is not whole frames.
    """
    if sample_format == "S16_LE":
        narrow = np.frombuffer(data, "<i2").astype(np.int16, copy=False)
        return narrow.reshape(-1, channels)
    if sample_format == "S24_3LE":
        packed = np.frombuffer(data, np.uint8).reshape(-1, 3)
        padded = np.zeros((len(packed), 4), np.uint8)
        padded[:, 1:] = packed
        wide = padded.view("<i4")
    else:
        wide = np.frombuffer(data, "<i4")
    wide = wide.astype(np.int32, copy=False).reshape(-1, channels)
    # ALSA leaves the top byte of S24_LE undefined.
    return wide << 8 if sample_format == "S24_LE" else wide


def to_mono(frames: Frames, channels_used: Sequence[int], gain_db: float = 0.0) -> Samples:
    """Return int16 (n,) from frames (n, channels): the mean of the channels used, amplified.

    Mean and gain are taken of all the bits there are, and only then rounded to the nearest (halves
    to even) and saturated: a quiet 24 bit microphone gains bits, not steps. Raises IndexError for a
    channel that is not there, ValueError for none at all.
    """
    if not channels_used:
        raise ValueError("no channel to use; name at least one")
    if len(channels_used) == 1 and gain_db == 0 and frames.dtype == np.int16:
        return frames[:, channels_used[0]].astype(np.int16)
    # A sum of up to 16 int32 is exact, so the result does not depend on how the input was cut.
    total = frames.T[list(channels_used)].sum(axis=0, dtype=np.float64)
    bits = 16 if frames.dtype == np.int32 else 0
    return _to_int16(total * (10 ** (gain_db / 20) / len(channels_used) / 2**bits))


def _to_int16(y: NDArray[Any]) -> Samples:
    narrow: Samples = np.rint(y).clip(-32_768, 32_767).astype(np.int16)
    return narrow


def _ratio(rate_in: int, rate_out: int) -> tuple[int, int]:
    if rate_in <= 0 or rate_out <= 0:
        raise ValueError(f"cannot resample {rate_in} Hz to {rate_out} Hz; rates must be positive")
    divisor = gcd(rate_in, rate_out)
    return rate_out // divisor, rate_in // divisor


class _Identity:
    delay_ms = 0.0

    def push(self, x: Samples) -> Samples:
        return x

    def finish(self) -> Samples:
        return np.empty(0, np.int16)

    def clear(self) -> None:
        pass


_LARGEST_FACTOR: Final = 4
# Divides the samples of 20 ms at every rate our FIR serves. At 16 OpenBLAS woke a second thread for
# each product: the same time, twice the CPU (1.6 instead of 0.8 ms per second of 48 kHz).
_GROUP: Final = 8
_STOP_BAND_DB: Final = 81.0
_TRANSITION_HZ: Final = 2600.0  # as narrow as a delay under 1 ms allows
_TAP_STEP: Final = 2.0**-20


class _Polyphase:
    """Rational resampler: one matrix product per push, from groups of 8 * down to 8 * up samples.

    Taps are multiples of 2**-20, so every sum is exact in float64: the same input gives the same
    output however it is cut and whatever BLAS adds up. Blocks of whole groups (any of 20 ms) come
    out at once; of others fewer than 8 * down samples (0.34 ms) wait for the next push.
    """

    def __init__(self, rate_in: int, up: int, down: int) -> None:
        rate_up = rate_in * up
        taps = up * _low_pass(rate_up, stop_hz=rate_up / max(up, down) / 2)
        self.delay_ms = (len(taps) - 1) / 2 / rate_up * 1000
        self._group_in = _GROUP * down
        self._past = -(-len(taps) // up) - 1
        self._matrix = np.zeros((self._past + self._group_in, _GROUP * up))
        for row, column in np.ndindex(self._matrix.shape):
            tap = column * down - (row - self._past) * up
            if 0 <= tap < len(taps):
                self._matrix[row, column] = taps[tap]
        self._held = np.zeros(self._past, np.int16)

    def push(self, x: Samples) -> Samples:
        x_held = np.concatenate([self._held, x])
        groups = (len(x_held) - self._past) // self._group_in
        self._held = x_held[groups * self._group_in :]
        if groups == 0:
            return np.empty(0, np.int16)
        windows = np.lib.stride_tricks.sliding_window_view(x_held, len(self._matrix))
        y = windows[:: self._group_in].astype(np.float64) @ self._matrix
        return _to_int16(y.ravel())

    def finish(self) -> Samples:
        tail = self.push(np.zeros(self._past + self._group_in - 1, np.int16))
        self.clear()
        return tail

    def clear(self) -> None:
        self._held = np.zeros(self._past, np.int16)


def _low_pass(rate_hz: int, stop_hz: float) -> NDArray[np.float64]:
    """Kaiser-windowed sinc (odd length, gain 1) that reaches the stop band at ``stop_hz``.

    Under 16 kHz the transition narrows to a third of the band, at the price of delay (8 kHz: 2 ms).
    Length and window after Kaiser's formulas (Oppenheim and Schafer, 7.6).
    """
    width = (_STOP_BAND_DB - 8) / (2.285 * 2 * np.pi)  # transition in cycles, times the length
    half = round(width * rate_hz / min(_TRANSITION_HZ, 0.33 * stop_hz) / 2)
    t = np.arange(-half, half + 1)
    cutoff = stop_hz / rate_hz - width / (2 * half) / 2
    window = np.kaiser(2 * half + 1, 0.1102 * (_STOP_BAND_DB - 8.7))
    taps: NDArray[np.float64] = 2 * cutoff * np.sinc(2 * cutoff * t) * window
    rounded: NDArray[np.float64] = np.rint(taps / taps.sum() / _TAP_STEP) * _TAP_STEP
    return rounded


class _Soxr:
    """libsoxr, HQ. It compensates its delay, so it holds input back and gives in bursts.

    Fed with float32: its int16 output is dithered, so silence would not come out silent.
    """

    delay_ms = 21.0  # mean over 20 ms blocks, worst 38; measured for 44.1 -> 24 and 24 -> 48 kHz

    def __init__(self, rate_in: int, rate_out: int) -> None:
        self._stream = soxr.ResampleStream(rate_in, rate_out, 1, dtype="float32", quality="HQ")

    def push(self, x: Samples) -> Samples:
        return _to_int16(self._stream.resample_chunk(x.astype(np.float32)))

    def finish(self) -> Samples:
        tail = _to_int16(self._stream.resample_chunk(np.empty(0, np.float32), last=True))
        self._stream.clear()
        return tail

    def clear(self) -> None:
        self._stream.clear()
