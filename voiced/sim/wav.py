"""WAV files in and out, as int16, and one-shot changes of rate."""

import struct
import wave
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soxr

Samples = npt.NDArray[np.int16]

LOWEST_RATE = 8_000
HIGHEST_RATE = 96_000
_PCM = 0x0001
_EXTENSIBLE = 0xFFFE  # the format many tools write for 24 bits; Python 3.11's wave refuses it


class WavError(ValueError):
    """A file that is not the WAV we read; the message names the file, the fault and the cure."""


def read_wav(path: str | Path) -> tuple[Samples, int]:
    """Return `(samples, rate)`: int16 of shape (n, channels), and the rate in Hz.

    Takes PCM of 8, 16, 24 or 32 bits, 8 to 96 kHz, mono or stereo. Wider samples lose their low
    bits. A file cut short (a recorder killed, a pipe) gives what whole frames it holds.

    Raises WavError for anything else and OSError if the file cannot be read.
    """
    channels, rate, bits, data = _parse(Path(path))
    frame_bytes = channels * bits // 8
    data = data[: len(data) // frame_bytes * frame_bytes]
    if not data:
        raise WavError(f"{path}: holds no sound")
    return _to_int16(data, bits).reshape(-1, channels), rate


def write_wav(path: str | Path, samples: Samples, rate: int) -> None:
    """Write int16 `samples`, shape (n,) or (n, channels), at `rate` Hz. Raises OSError."""
    if samples.dtype != np.int16:
        raise TypeError(f"samples are {samples.dtype}, not int16")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1 if samples.ndim == 1 else samples.shape[1])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.astype("<i2").tobytes())


def to_rate(samples: Samples, rate_in: int, rate_out: int) -> Samples:
    """Return mono int16 `samples`, shape (n,), at another rate; grown peaks clip.

    Resampled in floating point, so that the result is the same on every run: no dither.
    """
    if rate_in == rate_out:
        return samples
    resampled = soxr.resample(samples.astype(np.float32), rate_in, rate_out, quality="HQ")
    clipped: Samples = np.clip(np.rint(resampled), -32768, 32767).astype(np.int16)
    return clipped


def _parse(path: Path) -> tuple[int, int, int, bytes]:
    """Return (channels, rate in Hz, bits per sample, sample bytes), all checked."""
    raw = path.read_bytes()
    if raw[:4] != b"RIFF" or raw[8:12] != b"WAVE":
        raise WavError(f"{path}: not a WAV file; convert it with: sox {path.name} out.wav")
    shape: tuple[int, int, int] | None = None
    at = 12
    while at + 8 <= len(raw):
        name, size = struct.unpack_from("<4sI", raw, at)
        body = raw[at + 8 : at + 8 + size]
        if name == b"fmt ":
            shape = _format(path, body)
        elif name == b"data":
            if shape is None:
                break
            return (*shape, body)
        at += 8 + size + size % 2  # chunks are padded to an even length
    raise WavError(f"{path}: damaged, it has no format or no data; record or convert it again")


def _format(path: Path, body: bytes) -> tuple[int, int, int]:
    """Return (channels, rate in Hz, bits per sample) of a format chunk."""
    if len(body) < 16:
        raise WavError(f"{path}: damaged, its format is cut short; record or convert it again")
    tag, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", body)
    if tag == _EXTENSIBLE and len(body) >= 26:
        (tag,) = struct.unpack_from("<H", body, 24)
    if tag != _PCM or bits not in (8, 16, 24, 32):
        raise WavError(
            f"{path}: format {tag} with {bits} bits; only PCM of 8, 16, 24 or 32 bits is read, "
            f"convert it with: sox {path.name} -e signed -b 16 out.wav"
        )
    if channels not in (1, 2):
        raise WavError(f"{path}: {channels} channels; only mono and stereo are read")
    if not LOWEST_RATE <= rate <= HIGHEST_RATE:
        raise WavError(f"{path}: {rate} Hz; only {LOWEST_RATE} to {HIGHEST_RATE} Hz are read")
    return channels, rate, bits


def _to_int16(data: bytes, bits: int) -> Samples:
    if bits == 8:  # the only unsigned one
        return (np.frombuffer(data, np.uint8).astype(np.int16) - 128) * np.int16(256)
    step = bits // 8
    top_two = np.frombuffer(data, np.uint8).reshape(-1, step)[:, step - 2 :]
    return np.ascontiguousarray(top_two).view("<i2").reshape(-1).astype(np.int16)
