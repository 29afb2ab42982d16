"""The microphone. One thread owns the PCM, reads it, and hands blocks to the event loop."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import alsaaudio
import numpy as np

from voiced.config import Microphone
from voiced.edge import pcm as pcms
from voiced.edge.resample import decode, for_microphone, to_mono
from voiced.events import BLOCK_FRAMES, WIRE_RATE, DeviceBack, DeviceFault, MicrophoneBlock, Samples

log = logging.getLogger(__name__)

REOPEN_S = 1.0
"""A missing card is looked for this often. It takes 4 ms and the interpreter lock."""

LEISURELY_BLOCKS = 50
"""A second: while nobody is to be heard, blocks are worked on in batches. Waking up costs more than
the work itself: 36 ms of CPU per second block by block, 10 in batches, 7 for a bare loop."""

ALIGNED_FRAMES = BLOCK_FRAMES // 10
"""A read that was short once leaves a part of a block behind, and every later block would wait for
the next read. While nobody is to be heard, a part of more than 2 ms is let go instead."""

HANDOFF_BLOCKS = 150
"""3 s of blocks between thread and event loop. A loop that stalls longer loses the oldest, which
is counted."""


class Capture:
    """Reads the microphone for ever; a lost card is opened again when it is back.

    `wake` is called from the thread when blocks wait; the loop then takes them with `take`.
    `post` is called from the thread with events. Muted, samples become zeros here, in the thread
    that reads them: nothing behind it can leak what it never had.
    """

    def __init__(
        self,
        settings: Microphone,
        wake: Callable[[], None],
        post: Callable[[DeviceBack | DeviceFault], None],
        *,
        muted: bool,
        clock: Callable[[], float] = time.monotonic,
        open_pcm: Callable[[str, int, int], Any] = pcms.open_capture,
    ) -> None:
        self.xruns = 0
        self.dropped_blocks = 0
        self.urgent = False
        """Somebody is to be heard: each block at once. Set by the loop."""
        self.stepped_at = clock()
        self._settings = settings
        self._wake, self._post, self._clock, self._open_pcm = wake, post, clock, open_pcm
        self._muted = threading.Event()
        if muted:
            self._muted.set()
        self._blocks: deque[MicrophoneBlock] = deque(maxlen=HANDOFF_BLOCKS)
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._fault: str | None = None
        self._resampler = for_microphone(settings.rate)
        self._partial = np.empty(0, np.int16)

    def set_muted(self, muted: bool) -> None:
        """From now on zeros, or sound again. What waits for the loop is wiped."""
        if muted:
            self._muted.set()
            self._blocks.clear()
        else:
            self._muted.clear()

    def take(self, most: int = HANDOFF_BLOCKS) -> list[MicrophoneBlock]:
        """Up to `most` of the blocks that wait, oldest first."""
        blocks: list[MicrophoneBlock] = []
        while self._blocks and len(blocks) < most:
            blocks.append(self._blocks.popleft())
        return blocks

    def start(self) -> None:
        """Start the thread."""
        self._thread = threading.Thread(target=self._run, name="capture", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop reading and let go of the device. Safe twice and without `start`.

        A read that hangs is left behind: closing a PCM under it crashes the interpreter.
        """
        self._stopping.set()
        if self._thread:
            self._thread.join(0.5)  # a read returns within a period of 20 ms

    def _run(self) -> None:
        while not self._stopping.is_set():
            self.stepped_at = self._clock()
            try:
                pcm = self._open_pcm(
                    self._settings.device, self._settings.rate, self._settings.channels
                )
            except pcms.DeviceError as exc:
                self._report(exc.fault, str(exc))
            else:
                self._fault = None
                self._post(DeviceBack("microphone", self._clock(), self._settings.device))
                try:
                    self._read(pcm)
                except alsaaudio.ALSAAudioError as exc:
                    self._report("microphone-lost", f"{self._settings.device}: {exc}")
                except Exception as exc:  # a thread that dies alone is the deaf device
                    log.exception("reading the microphone")
                    self._report("microphone-lost", f"{self._settings.device}: {exc!r}")
                finally:
                    pcms.close(pcm)
            self._stopping.wait(REOPEN_S)

    def _report(self, fault: str, detail: str) -> None:
        if detail != self._fault:
            self._fault = detail
            self._post(DeviceFault("microphone", fault, detail, self._clock()))

    def _read(self, pcm: Any) -> None:
        self._resampler.clear()
        self._partial = np.empty(0, np.int16)
        reads: list[bytes] = []
        while not self._stopping.is_set():
            frames, data = pcm.read()
            at = self._clock()
            self.stepped_at = at
            if frames < 0:
                self.xruns += 1
                continue
            reads.append(bytes(len(data)) if self._muted.is_set() else data)
            if self.urgent or len(reads) >= LEISURELY_BLOCKS:
                self.accept(b"".join(reads), at, leisurely=len(reads) > 1)
                reads.clear()

    def accept(self, data: bytes, at: float, *, leisurely: bool = False) -> None:
        """Turn what was read, interleaved S16_LE, its last frame at `at`, into blocks and hand
        them over."""
        muted = self._muted.is_set()
        if muted:
            data = bytes(len(data))
        frames = decode(data, self._settings.channels, "s16")
        samples = self._resampler.push(to_mono(frames, self._settings.use))
        if len(self._partial):
            samples = np.concatenate((self._partial, samples))
        whole = len(samples) // BLOCK_FRAMES * BLOCK_FRAMES
        self._partial = samples[whole:]
        if leisurely and len(self._partial) > ALIGNED_FRAMES:
            self._partial = self._partial[:0]
        for start in range(0, whole, BLOCK_FRAMES):
            end = start + BLOCK_FRAMES
            self._hand_over(samples[start:end], at - (whole - end) / WIRE_RATE, muted)
        if whole:
            self._wake()

    def _hand_over(self, samples: Samples, at: float, muted: bool) -> None:
        if len(self._blocks) == HANDOFF_BLOCKS:
            self.dropped_blocks += 1
        self._blocks.append(MicrophoneBlock(samples, at, muted))
