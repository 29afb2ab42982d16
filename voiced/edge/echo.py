"""Takes our own sound out of what the microphone hears: WebRTC's AEC3, as livekit packs it.

AEC3 finds the delay of the echo by itself, follows a drift of the clocks, and needs up to 3 s of
sound to learn a room. What it can't bear is a reference that jumps: half a millisecond lets our
sound pass for a second. But each time the loudspeaker starts, its position is known to some
milliseconds only. So at the beginning of each run the reference is first brought in line: the
response of the room, as the first 0.3 s show it, is laid over the one that is known.
"""

from __future__ import annotations

import logging
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from voiced.events import BLOCK_FRAMES, WIRE_RATE, Samples

log = logging.getLogger(__name__)

Response = NDArray[np.float32]

_FRAME: Final = WIRE_RATE // 100  # the module takes 10 ms at a time, and no other length
_DELAY: Final = 226
"""Samples from in to out: the group delay above 500 Hz, measured on noise. Below 80 Hz the module
takes everything away (hum, steps), and around that it is later."""

_REST_BLOCKS: Final = 50
"""1 s after our last sound no room has an echo of it. Asking the module costs 7 ms of CPU a second
(200 calls), so then it is left alone and what is heard only waits as long as it would in there."""

# At first the module still gives what it held from before its rest.
_GLIDE: Final = np.clip((np.arange(BLOCK_FRAMES, dtype=np.float32) - _DELAY) / 240, 0, 1)

# 15 blocks were enough to find each of 40 rooms again to the sample, with delays up to 200 ms; 10
# were not for three with 145 and more. The first time there is nothing to compare with.
_ALIGNING_BLOCKS: Final = 15
_LEARNING_BLOCKS: Final = 25
_PATIENCE_BLOCKS: Final = 50
_SOUNDING: Final = 100.0  # RMS of a block that is worth counting: -50 dBFS

_LAGS: Final = WIRE_RATE // 4  # 200 ms on the way, and the first reflections
_FFT: Final = 24_000
_BAND_HZ: Final = (200, 8_000)
_JUMP: Final = WIRE_RATE // 100  # a device tells its position to 5 ms
# AEC3 wants the reference some time before the echo: with 2 ms it let all pass in some rooms.
_CLOSEST: Final = 120
_LEAD: Final = 144  # if there is room, it is kept back, to be able to come earlier as well
_FORGETS: Final = np.float32(0.8)
# Half a second at 100 ppm is 1.2 samples. AEC3 didn't notice a jump of 4.
_DRIFT: Final = 24
_STEP: Final = 2


class CancellerMissing(RuntimeError):
    """The canceller is not installed, or doesn't load. The text says why."""


class Canceller:
    """For blocks of 20 ms, in order; not for several threads at once.

    At the beginning of each run of our sound, for 0.3 to 1 s, what is heard is passed on as it is
    (`aligning`).

    `failures` counts blocks that the module didn't take. While we sound they are replaced by
    silence: with the echo in it, what was heard would pass for somebody speaking.

    Raises:
        CancellerMissing: the canceller is not installed, or its library doesn't load.
    """

    delay_ms: float = 1000 * _DELAY / WIRE_RATE

    def __init__(self) -> None:
        self.failures = 0
        self.aligning = False
        """Whether our own sound, or its echo, is still in what `process` gave last."""
        self._frame, self._module = _load()
        self._alignment = Alignment()
        self._heard = np.zeros(BLOCK_FRAMES + _DELAY, np.int16)
        self._reference = np.zeros(BLOCK_FRAMES + _LEAD + _JUMP, np.int16)
        self._beginning: list[tuple[Samples, Samples]] | None = None
        self._silent_blocks = _REST_BLOCKS

    def process(self, samples: Samples, played: Samples | None) -> Samples:
        """What was heard without our own sound, `delay_ms` late: int16 of shape (480,), as given.

        `played` is what our loudspeaker emitted in that time, as many samples; None for silence.
        """
        self._heard = np.concatenate((self._heard[-_DELAY:], samples))
        late = self._heard[:BLOCK_FRAMES].copy()
        silent_before = self._silent_blocks
        self._silent_blocks = 0 if played is not None else silent_before + 1
        resting = self._silent_blocks >= _REST_BLOCKS
        if resting:
            self._beginning = None  # too short to be found
        elif played is not None and silent_before:
            self._beginning = []
        self.aligning = self._beginning is not None
        if resting and silent_before >= _REST_BLOCKS:
            return late
        if played is None:
            clean = self._cancelled(samples, np.zeros_like(samples))
            return _blend(clean, late) if resting else clean
        if self._beginning is None:
            self._alignment.listen(samples, played)
            return self._cancelled(samples, played)
        self._beginning.append((samples, played))
        if not self._alignment.find(self._beginning):
            return late
        for heard, emitted in self._beginning:  # it hears all of the run, in a burst
            clean = self._cancelled(heard, emitted)
        self._beginning = None
        return _blend(late, clean)

    def _cancelled(self, samples: Samples, played: Samples) -> Samples:
        self._reference = np.concatenate((self._reference[BLOCK_FRAMES:], played))
        start = len(self._reference) - BLOCK_FRAMES - self._alignment.shift
        heard = samples.tobytes()
        emitted = self._reference[start : start + BLOCK_FRAMES].tobytes()
        clean = bytearray()
        try:
            for start in range(0, len(heard), 2 * _FRAME):
                there = slice(start, start + 2 * _FRAME)
                self._module.process_reverse_stream(self._wrapped(emitted[there]))
                frame = self._wrapped(heard[there])
                self._module.process_stream(frame)
                clean += frame.data
        except Exception as exc:  # whatever its library says: the thread must go on
            self.failures += 1
            level = logging.DEBUG if self.failures > 1 else logging.WARNING
            log.log(level, "the echo canceller failed: %r", exc)
            return np.zeros(BLOCK_FRAMES, np.int16) if played.any() else self._heard[:BLOCK_FRAMES]
        return np.frombuffer(clean, np.int16)

    def _wrapped(self, data: bytes) -> Any:
        return self._frame(bytearray(data), WIRE_RATE, 1, _FRAME)


class Alignment:
    """Finds by how much the reference must be later, so that the echo follows it as it always did.

    The response of the room is the cross-correlation of what was heard with what was played, each
    frequency counting alike. It is laid over the one that is known, within 10 ms.
    """

    def __init__(self) -> None:
        self.shift = 0
        """By how many samples the reference is to be kept back, up to 384."""
        self._known: Response | None = None
        self._lead = self._jump = 0
        self._listened: list[tuple[Samples, Samples]] = []

    def _place(self) -> None:
        self.shift = min(max(0, self._lead + self._jump), _LEAD + _JUMP)

    def find(self, beginning: list[tuple[Samples, Samples]]) -> bool:
        """Look at what was heard and played of a run so far; False while that is too little."""
        needed = _LEARNING_BLOCKS if self._known is None else _ALIGNING_BLOCKS
        sounding = sum(_rms(played) > _SOUNDING for _, played in beginning)
        if sounding < needed:
            return len(beginning) >= _PATIENCE_BLOCKS  # it goes on as it was
        response = _response(beginning)
        if self._known is None:
            self._lead = min(max(int(np.argmax(response)) - _CLOSEST, 0), _LEAD)
            self._known = response
        self._jump = _offset(response, self._known, 0, _JUMP)
        self._listened = []
        self._place()
        return True

    def listen(self, samples: Samples, played: Samples) -> None:
        """Learn on from the sound of an aligned run, and follow a drift of the clocks."""
        self._listened.append((samples, played))
        if self._known is None or len(self._listened) < _LEARNING_BLOCKS:
            return
        if sum(_rms(each) > _SOUNDING for _, each in self._listened) >= _ALIGNING_BLOCKS:
            response = _response(self._listened)
            drift = _offset(response, self._known, self._jump, _DRIFT) - self._jump
            self._known = _FORGETS * self._known + np.roll(response, -self._jump - drift)
            self._jump += max(-_STEP, min(_STEP, drift))
            self._place()
        self._listened = []


def _response(blocks: list[tuple[Samples, Samples]]) -> Response:
    """Of the room, to the last half second of (heard, played): shape (_LAGS,)."""
    last = blocks[-_LEARNING_BLOCKS:]
    # Edges, which both have in common, would pass for an echo without delay.
    ramp = np.sin(np.linspace(0, np.pi / 2, BLOCK_FRAMES)) ** 2
    window = np.ones(len(last) * BLOCK_FRAMES)
    window[:BLOCK_FRAMES], window[-BLOCK_FRAMES:] = ramp, ramp[::-1]
    heard = np.fft.rfft(np.concatenate([each for each, _ in last]) * window, _FFT)
    played = np.fft.rfft(np.concatenate([each for _, each in last]) * window, _FFT)
    low, high = (hz * _FFT // WIRE_RATE for hz in _BAND_HZ)
    product = np.zeros_like(heard)
    product[low:high] = heard[low:high] * played[low:high].conj()
    product[low:high] /= np.abs(product[low:high]) + 1e-9
    response: Response = np.fft.irfft(product, _FFT)[:_LAGS].astype(np.float32)
    return response


def _offset(response: Response, known: Response, near: int, within: int) -> int:
    """By how many samples the response is later than the known one: `near`, give or take."""
    margin = abs(near) + within
    middle = known[margin:-margin]
    start = margin + near - within
    overlap = np.correlate(response[start : start + len(middle) + 2 * within], middle)
    return near - within + int(np.argmax(overlap))


def _rms(samples: Samples) -> float:
    sound = samples.astype(np.float32)
    return float(np.sqrt(sound @ sound / len(sound)))


def _blend(before: Samples, after: Samples) -> Samples:
    """From the one to the other within the block."""
    blended: Samples = np.rint(before * (1 - _GLIDE) + after * _GLIDE).astype(np.int16)
    return blended


def _load() -> tuple[Any, Any]:
    """The class of a frame, and a module. Imported here: only its users pay 20 MB and 0.1 s."""
    try:
        from livekit.rtc import AudioFrame
        from livekit.rtc.apm import AudioProcessingModule

        return AudioFrame, AudioProcessingModule(echo_cancellation=True)
    except Exception as exc:
        raise CancellerMissing(f"livekit doesn't load: {exc}") from exc
