"""The spoken clips, made from the table of faults. `python -m tests.clips` makes them anew.

Only this needs Debian's package flite (in main, 2.2 there): apt-get install flite.

The voice is flite's `slt`. Flite and its voices are copyright (c) Carnegie Mellon University,
Language Technologies Institute, under a licence in the manner of the X11 one ("free of charge, to
use and distribute this software and its documentation without restriction"; four conditions: keep
the notice, mark modifications, keep the authors' names, endorse nothing by them). It speaks of the
software, which we don't ship; it asks nothing of what the software says.

Of flite's others `kal` is 8 kHz, `kal16` joined from diphones, `awb` has nothing above 4 kHz, and
`rms` is a man's, lower than a small speaker goes. espeak-ng's formants are brighter, but further
from a voice. What `slt` lacks in brightness a filter gives it.
"""

import struct
import subprocess
import tempfile
import wave
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from voiced.core.faults import FAULTS
from voiced.edge.clips import CLIP_RATE_HZ

CLIPS = Path(__file__).parent.parent / "voiced" / "clips"

VOICE = "slt"
STRETCH = 1.15
"""Of its own speed, 216 words a minute, which is much for words that nobody waits for: 188."""

HIGH_PASS_HZ = 700.0
"""First order. The voice alone has 12, 20 and 25 dB less in the octaves from 500, 1000 and 2000 Hz
than below 500 Hz, where a small speaker does nothing; with this 4, 9 and 13 dB. Normal speech has
3, 9 and 14 (ANSI S3.5-1997, table 3, summed up)."""

RMS_DBFS = -23.0
"""An earcon's -12 dBFS peak would put the words at -28 dBFS, and they are to be understood. So they
stand where answers do, a little below; their peaks come to -5.6 dBFS at most."""

SILENCE_DB = -40.0
"""Below the loudest 10 ms; the last weak `t` of "left" is above it."""

FADE_MS = 10


def texts() -> dict[str, str]:
    """Name of a clip -> what it says."""
    return {fault.name: fault.spoken for fault in FAULTS.values() if fault.spoken}


def main() -> None:
    """Make all clips anew; those of no fault are gone."""
    CLIPS.mkdir(exist_ok=True)
    for path in CLIPS.glob("*.wav"):
        path.unlink()
    for name, text in texts().items():
        (CLIPS / f"{name}.wav").write_bytes(as_wav(finished(speak(text)), text))


def speak(text: str) -> NDArray[np.float64]:
    """What the voice says: shape (n,), at `CLIP_RATE_HZ`."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "said.wav"
        stretch = f"duration_stretch={STRETCH}"
        command = ["flite", "-voice", VOICE, "--setf", stretch, "-t", text, "-o", str(path)]
        subprocess.run(command, check=True)
        with wave.open(str(path)) as said:
            assert (said.getnchannels(), said.getframerate()) == (1, CLIP_RATE_HZ)
            return np.frombuffer(said.readframes(said.getnframes()), "<i2").astype(np.float64)


def finished(sound: NDArray[np.float64]) -> NDArray[np.int16]:
    """Brightened, without the silence around it, levelled and faded."""
    spectrum = np.fft.rfft(sound, 2 * len(sound))
    hz = np.fft.rfftfreq(2 * len(sound), 1 / CLIP_RATE_HZ)
    bright = np.fft.irfft(spectrum * hz / np.hypot(hz, HIGH_PASS_HZ))[: len(sound)]

    fade = FADE_MS * CLIP_RATE_HZ // 1000
    power = np.convolve(bright**2, np.full(fade, 1 / fade), "same")
    (loud,) = np.nonzero(power > power.max() * 10 ** (SILENCE_DB / 10))
    kept = bright[max(loud[0] - fade, 0) : loud[-1] + fade]  # the fades take silence, not words

    rise = (1 - np.cos(np.pi * np.arange(fade) / fade)) / 2
    kept[:fade] *= rise
    kept[-fade:] *= rise[::-1]
    kept *= 32768 * 10 ** (RMS_DBFS / 20) / np.sqrt(np.mean(kept**2))
    return np.rint(kept).astype(np.int16)


def as_wav(samples: NDArray[np.int16], text: str) -> bytes:
    """A WAV file that also holds its text, as the comment of a LIST INFO chunk (RIFF MCI, 1991)."""
    buffer = BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(CLIP_RATE_HZ)
        file.writeframes(samples.astype("<i2").tobytes())
    body = buffer.getvalue()[8:] + _chunk(b"LIST", b"INFO" + _chunk(b"ICMT", text.encode() + b"\0"))
    return _chunk(b"RIFF", body)


def text_of(path: Path) -> str:
    """The text that a clip was made from."""
    _, _, found = path.read_bytes().rpartition(b"ICMT")
    (size,) = struct.unpack_from("<I", found)
    return found[4 : 4 + size].rstrip(b"\0").decode()


def _chunk(name: bytes, body: bytes) -> bytes:
    return name + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)


if __name__ == "__main__":
    main()
