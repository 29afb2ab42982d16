import struct
from pathlib import Path

import numpy as np
import pytest

from voiced.sim.wav import WavError, read_wav, to_rate, write_wav


def riff(
    data: bytes, *, tag: int = 1, channels: int = 1, rate: int = 16_000, bits: int = 16
) -> bytes:
    frame = channels * bits // 8
    head = struct.pack("<HHIIHH", 1 if tag == 1 else tag, channels, rate, rate * frame, frame, bits)
    if tag == 0xFFFE:
        head += struct.pack("<HHIH14s", 22, bits, 0, 1, bytes(14))
    chunks = b"fmt " + struct.pack("<I", len(head)) + head
    chunks += b"LIST" + struct.pack("<I", 3) + b"odd\0"
    chunks += b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(chunks) + 4) + b"WAVE" + chunks


def put(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "x.wav"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("shape", [(1000,), (500, 2)])
def test_what_is_written_is_read_back(tmp_path: Path, shape: tuple[int, ...]) -> None:
    samples = np.random.default_rng(1).integers(-32768, 32768, shape).astype(np.int16)
    write_wav(tmp_path / "x.wav", samples, 48_000)
    read, rate = read_wav(tmp_path / "x.wav")
    assert rate == 48_000
    assert read.dtype == np.int16
    assert np.array_equal(read, samples.reshape(shape[0], -1))


@pytest.mark.parametrize(
    ("bits", "data"),
    [
        (8, bytes([0x80, 0x00, 0xFF, 0x92])),
        (16, struct.pack("<4h", 0, -32768, 0x7F00, 0x1200)),
        (24, b"\xff\x00\x00\x00\x00\x80\x00\x00\x7f\x34\x00\x12"),
        (32, struct.pack("<4i", 0xFFFF, -(2**31), 0x7F000000, 0x12003456)),
    ],
)
@pytest.mark.parametrize("tag", [1, 0xFFFE])
def test_each_width_becomes_the_same_int16(
    tmp_path: Path, bits: int, data: bytes, tag: int
) -> None:
    samples, rate = read_wav(put(tmp_path, riff(data, bits=bits, tag=tag)))
    assert rate == 16_000
    assert samples[:, 0].tolist() == [0, -32768, 0x7F00, 0x1200]


def test_stereo_keeps_its_channels_apart(tmp_path: Path) -> None:
    samples, _ = read_wav(put(tmp_path, riff(struct.pack("<4h", 1, 2, 3, 4), channels=2)))
    assert samples.tolist() == [[1, 2], [3, 4]]


def test_a_file_cut_short_gives_its_whole_frames(tmp_path: Path) -> None:
    whole = riff(struct.pack("<4h", 1, 2, 3, 4), channels=2)
    samples, _ = read_wav(put(tmp_path, whole[:-1]))
    assert samples.tolist() == [[1, 2]]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"ID3 and so on, an mp3 perhaps", "not a WAV"),
        (b"", "not a WAV"),
        (riff(b"\0" * 4)[:30], "damaged"),
        (riff(b""), "no sound"),
        (riff(b"\0" * 8, tag=3, bits=32), "format 3"),
        (riff(b"\0" * 12, channels=6), "6 channels"),
        (riff(b"\0" * 4, rate=192_000), "192000 Hz"),
        (riff(b"\0" * 4, rate=4_000), "4000 Hz"),
        (riff(b"\0" * 4, bits=12), "12 bits"),
    ],
)
def test_anything_else_is_refused_by_name_and_reason(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    with pytest.raises(WavError, match=reason) as error:
        read_wav(put(tmp_path, content))
    assert "x.wav" in str(error.value)


def test_floats_are_not_written_as_if_they_were_samples(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="float64"):
        write_wav(tmp_path / "x.wav", np.zeros(3), 48_000)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("rate_in", "rate_out"), [(24_000, 48_000), (48_000, 24_000), (44_100, 48_000)]
)
def test_a_tone_keeps_its_pitch_level_and_length(rate_in: int, rate_out: int) -> None:
    def tone(rate: int) -> np.ndarray:
        return 10_000 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate)

    out = to_rate(tone(rate_in).astype(np.int16), rate_in, rate_out)
    assert out.dtype == np.int16
    assert len(out) == rate_out
    middle = slice(rate_out // 4, rate_out // 2)
    assert np.abs(out[middle] - tone(rate_out)[middle]).max() < 10


def test_peaks_clip_instead_of_wrapping_round() -> None:
    square = np.where(np.arange(2400) // 60 % 2, -32768, 32767).astype(np.int16)
    out = to_rate(square, 24_000, 48_000)
    assert out.max() == 32767
    assert out.min() == -32768
    away_from_edges = np.arange(2400) % 60 > 5
    away_from_edges &= np.arange(2400) % 60 < 55
    assert np.array_equal(np.sign(out[::2])[away_from_edges], np.sign(square)[away_from_edges])
