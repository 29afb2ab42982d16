"""Takes our own sound out of what the microphone hears: WebRTC's AEC3, as livekit packs it.

It finds the delay of the echo by itself and follows a drift of the clocks. It needs half a second
to two of sound to learn a room, once.
"""

from __future__ import annotations

import logging
from typing import Any, Final

import numpy as np

from voiced.events import BLOCK_FRAMES, WIRE_RATE, Samples

log = logging.getLogger(__name__)

_FRAME: Final = WIRE_RATE // 100  # the module takes 10 ms at a time, and no other length
_DELAY: Final = 226
"""Samples from in to out: the group delay above 500 Hz, measured on noise. Below 100 Hz the module
takes everything away (hum, steps), and around that it is later."""

_REST_BLOCKS: Final = 50
"""1 s after our last sound no room has an echo of it. Asking the module costs 7 ms of CPU a second
(200 calls), so then it is left alone and what is heard only waits as long as it would in there."""

# From the one to the other: at first the module still gives what it held from before its rest.
_GLIDE: Final = np.clip((np.arange(BLOCK_FRAMES, dtype=np.float32) - _DELAY) / 240, 0, 1)


class CancellerMissing(RuntimeError):
    """The canceller is not installed, or doesn't load. The text holds the remedy."""


class Canceller:
    """For blocks of 20 ms, in order; not for several threads at once. `close` is safe twice.

    `failures` counts blocks that the module didn't take. They are replaced by silence: with the
    echo in it, what was heard would pass for somebody speaking.

    Raises:
        CancellerMissing: the canceller is not installed, or its library doesn't load.
    """

    delay_ms: Final = 1000 * _DELAY / WIRE_RATE

    def __init__(self) -> None:
        self.failures = 0
        self._frame, self._module = _load()
        self._heard = np.zeros(BLOCK_FRAMES + _DELAY, np.int16)
        self._silent_blocks = _REST_BLOCKS

    def __enter__(self) -> Canceller:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give back the module's memory. From now on `process` only delays."""
        self._module = None

    def process(self, samples: Samples, played: Samples | None) -> Samples:
        """What was heard without our own sound, `delay_ms` late: int16 of shape (480,), as given.

        `played` is what our loudspeaker emitted in that time, as many samples; None for silence.
        """
        self._heard = np.concatenate((self._heard[-_DELAY:], samples))
        late = self._heard[:BLOCK_FRAMES]
        was_resting = self._silent_blocks >= _REST_BLOCKS
        self._silent_blocks = 0 if played is not None else self._silent_blocks + 1
        resting = self._silent_blocks >= _REST_BLOCKS
        if self._module is None or (resting and was_resting):
            return late.copy()
        clean = self._cancelled(samples, played)
        if resting or was_resting:
            share = 1 - _GLIDE if resting else _GLIDE
            clean = np.rint(clean * share + late * (1 - share)).astype(np.int16)
        return clean

    def _cancelled(self, samples: Samples, played: Samples | None) -> Samples:
        heard, emitted = bytearray(samples.tobytes()), bytearray(2 * BLOCK_FRAMES)
        if played is not None:
            emitted[:] = played.tobytes()
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
            return np.zeros(BLOCK_FRAMES, np.int16)
        return np.frombuffer(clean, np.int16)

    def _wrapped(self, data: bytearray) -> Any:
        return self._frame(data, WIRE_RATE, 1, _FRAME)


def _load() -> tuple[Any, Any]:
    """The class of a frame, and a module. Imported here: 20 MB and 0.1 s that only its users pay."""
    try:
        from livekit.rtc import AudioFrame
        from livekit.rtc.apm import AudioProcessingModule

        return AudioFrame, AudioProcessingModule(echo_cancellation=True)
    except Exception as exc:
        raise CancellerMissing(
            f"the echo canceller doesn't load ({exc}): pip install 'voiced[aec]'"
        ) from exc
