"""The microphone. One thread owns the PCM, reads it, and hands blocks to the event loop."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol

import alsaaudio
import numpy as np

from voiced.config import Microphone
from voiced.edge import pcm as pcms
from voiced.edge.resample import Frames, decode, for_microphone, to_mono
from voiced.edge.vitals import SLOWEST, Pace
from voiced.events import (
    BLOCK_FRAMES,
    SILENCE_DBFS,
    WIRE_RATE,
    ChannelLevel,
    ChannelLevels,
    DeviceBack,
    DeviceFault,
    MicrophoneBlock,
    Samples,
)

log = logging.getLogger(__name__)

REOPEN_S = 1.0
"""A missing card is looked for this often. It takes 4 ms and the interpreter lock."""

CLOSE_S = 0.5
"""A read returns within a period of 20 ms, or it hangs."""

CONSTANT_S, CONSTANT_STILL_S = 60, 600
"""After so long without a sample that differs from the one before, a card that runs is opened anew:
what was deaf for want of that hears again. It may be an array that is switched off, so then less
often; the gap is 20 to 50 ms, and never comes into somebody's words."""

OVERRUNS = 10
"""So many in a row with no frame between them are a card that doesn't run. One is a thread that was
kept away for a second."""

LEISURELY_BLOCKS = 50
"""A second: while nobody is to be heard, blocks are worked on in batches. Waking up costs more than
the work itself: 36 ms of CPU per second block by block, 10 in batches, 7 for a bare loop."""

ALIGNED_FRAMES = BLOCK_FRAMES // 10
"""A read that was short once leaves a part of a block behind, and every later block would wait for
the next read. While nobody is to be heard, a part of more than 2 ms is let go instead."""

DATING_S, DATING_TRIES = 0.002, 5
"""Asking what the card holds takes 3.5 us. Kept away for longer than this each time, the date is
early by as long; more tries would only be later themselves."""

HANDOFF_BLOCKS = 150
"""3 s of blocks between thread and event loop. A loop that stalls longer loses the oldest, which
is counted."""

_BYTES: Final = {"S16_LE": 2, "S24_LE": 4, "S24_3LE": 3, "S32_LE": 4}  # of a sample
# A sample within a step of 16 bits of full scale is clipped: an ADC of 16 or 24 bits in a wider
# format clips below the format's own limit, and some clip at minus 32,767.
_TOP: Final = 32_767


class Played(Protocol):
    """What our own speaker emitted."""

    def take(self, frames: int, at: float) -> Samples | None:
        """So many samples at `WIRE_RATE`, the last of them emitted at `at`; None if silent."""
        ...


class Canceller(Protocol):
    """Takes our own sound out of what the microphone hears, a block of `BLOCK_FRAMES` at a time."""

    @property
    def delay_ms(self) -> float:
        """How much later than it came a sample leaves `process`."""
        ...

    @property
    def aligning(self) -> bool:
        """Our own sound is still in what `process` gave last."""
        ...

    def process(self, samples: Samples, played: Samples | None) -> Samples:
        """As many samples; `played` as in `MicrophoneBlock`."""
        ...


class Capture:
    """Reads the microphone for ever; a lost card is opened again when it is back.

    A fault is over when the card has delivered something, one of the rate when it has kept it.

    `wake` is called from the thread when blocks wait; the loop then takes them with `take`.
    `post` is called from the thread with events. Muted, samples become zeros here, in the thread
    that reads them: nothing behind it can leak what it never had. About once a second, but not of
    a second in which it was muted, the levels of all channels are posted.
    """

    def __init__(
        self,
        settings: Microphone,
        wake: Callable[[], None],
        post: Callable[[DeviceBack | DeviceFault | ChannelLevels], None],
        *,
        muted: bool,
        played: Played | None = None,
        canceller: Canceller | None = None,
        clock: Callable[[], float] = time.monotonic,
        open_pcm: Callable[[str, int, int, str], Any] = pcms.open_capture,
    ) -> None:
        self.name = "capture"
        self.xruns = 0
        self.dropped_blocks = 0
        self._handed_over_at = float("-inf")
        self.urgent = False
        """Somebody is to be heard: each block at once. Set by the loop."""
        self.stepped_at = clock()
        self._settings = settings
        self._wake, self._post, self._clock, self._open_pcm = wake, post, clock, open_pcm
        self._played, self._canceller = played, canceller
        self._muted = threading.Event()
        if muted:
            self._muted.set()
        self._blocks: deque[MicrophoneBlock] = deque(maxlen=HANDOFF_BLOCKS)
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._fault: tuple[str, str] | None = None  # its name and detail
        self._pace = Pace(pcms.PERIOD_MS / 1000)
        self._resampler = for_microphone(settings.rate)
        self._partial = np.empty(0, np.int16)
        self._meter = _Meter(settings)
        self._constant_s, self._constant_limit_s = 0, CONSTANT_S

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

    def start(self, after: Capture | None = None) -> None:
        """Start the thread. It opens the device when `after` is closed, and doesn't step until
        then, however long that takes."""
        self.stepped_at = self._clock()
        self._thread = threading.Thread(
            target=self._run, args=(after,), name="capture", daemon=True
        )
        self._thread.start()

    @property
    def has_died(self) -> bool:
        """The thread has ended, and nobody asked for it."""
        ended = self._thread is not None and not self._thread.is_alive()
        return ended and not self._stopping.is_set()

    def close(self, timeout_s: float | None = CLOSE_S) -> None:
        """Stop reading and let go of the device. Safe twice and without `start`.

        A read that hangs for longer (None: for ever) is left behind: closing a PCM under it crashes
        the interpreter.
        """
        self._stopping.set()
        if self._thread:
            self._thread.join(timeout_s)

    def _run(self, after: Capture | None) -> None:
        if after:
            after.close(None)
        wanted = self._settings
        anew = False  # a card that ran is opened again: nobody need know
        while not self._stopping.is_set():
            self.stepped_at = self._clock()
            try:
                pcm = self._open_pcm(wanted.device, wanted.rate, wanted.channels, wanted.format)
            except pcms.DeviceError as exc:
                self._report(exc.fault, str(exc))
                anew = False
            else:
                if self._fault is None and not anew:
                    self._tell_back()
                anew = False
                try:
                    anew = self._read(pcm)
                except _Slow as exc:
                    self._report("microphone-slow", f"{wanted.device}: {exc}")
                except alsaaudio.ALSAAudioError as exc:
                    self._report("microphone-lost", f"{wanted.device}: {exc}")
                except Exception as exc:  # a thread that dies alone is the deaf device
                    log.exception("reading the microphone")
                    self._report("microphone-lost", f"{wanted.device}: {exc!r}")
                finally:
                    pcms.close(pcm)
            if not anew:
                self._stopping.wait(REOPEN_S)

    def _report(self, fault: str, detail: str) -> None:
        known, self._fault = self._fault, (fault, detail)
        # A rate is never measured the same twice.
        said = known == self._fault or (fault == "microphone-slow" and known and known[0] == fault)
        if not said and not self._stopping.is_set():
            self._post(DeviceFault("microphone", fault, detail, self._clock()))

    def _tell_back(self) -> None:
        self._fault = None
        self._post(DeviceBack("microphone", self._clock(), self._settings.device))

    def _read(self, pcm: Any) -> bool:
        """Until it is stopped, or the card had better be opened anew: then True."""
        self._resampler.clear()
        self._meter.clear()
        self._pace.clear()
        self._partial = np.empty(0, np.int16)
        reads: list[bytes] = []
        overruns = 0
        while not self._stopping.is_set():
            asked_at = self._clock()
            frames, data = pcm.read()
            at = self._clock()
            self.stepped_at = at
            if frames < 0:
                self.xruns += 1
                self._pace.clear()
                overruns += 1
                if overruns == OVERRUNS:
                    raise alsaaudio.ALSAAudioError("nothing but overruns")
                continue
            overruns = 0
            self._judge(frames, asked_at, at)
            if self._muted.is_set():
                data = bytes(len(data))
                self._meter.clear()
            else:
                self._meter.add(data)
            reads.append(data)
            if self.urgent or len(reads) >= LEISURELY_BLOCKS:
                self.accept(b"".join(reads), self._captured_at(pcm), leisurely=len(reads) > 1)
                reads.clear()
                if self._meter.is_full:
                    levels = self._meter.read(at)
                    self._post(levels)
                    if self._is_dead(levels):
                        return True
        return False

    def _is_dead(self, levels: ChannelLevels) -> bool:
        """Of the levels of each second: True when the card had better be opened anew."""
        if not all(channel.constant for channel in levels.levels):
            self._constant_s, self._constant_limit_s = 0, CONSTANT_S
            return False
        self._constant_s += 1
        if self.urgent or self._constant_s < self._constant_limit_s:
            return False
        self._constant_s, self._constant_limit_s = 0, CONSTANT_STILL_S
        return True

    def _captured_at(self, pcm: Any) -> float:
        """When the last frame that was read was captured: who reads late is not to take what was
        captured long ago for new. What the card still holds and the time belong together: a thread
        that was kept away between the two asks again."""
        for _ in range(DATING_TRIES):
            before = self._clock()
            waiting = max(0, int(pcm.avail()))
            if self._clock() - before < DATING_S:
                break
        return before - waiting / self._settings.rate

    def _judge(self, frames: int, asked_at: float, at: float) -> None:
        """Raise _Slow where the card falls behind; tell when a fault is over."""
        measured = self._pace.add(frames, asked_at, at)
        nominal = self._settings.rate
        if measured is not None and measured < SLOWEST * nominal:
            raise _Slow(f"{measured:.0f} frames a second, not {nominal}")
        if self._fault is not None:
            proven = frames if self._fault[0] != "microphone-slow" else measured is not None
            if proven:
                self._tell_back()

    def accept(self, data: bytes, at: float, *, leisurely: bool = False) -> None:
        """Turn what was read, frames in the format of the settings, the last at `at`, into blocks
        and hand them over."""
        muted = self._muted.is_set()
        if muted:
            data = bytes(len(data))
        wanted = self._settings
        frames = decode(data, wanted.channels, wanted.format)
        samples = self._resampler.push(to_mono(frames, wanted.channels_used, wanted.gain_db))
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
        played = self._played.take(BLOCK_FRAMES, at) if self._played else None
        aligning = False
        if played is not None:
            self._meter.own_sound = True
        if self._canceller:
            # Muted, zeros push out what it holds from before; there is no echo in them to learn.
            samples = self._canceller.process(samples, None if muted else played)
            at -= self._canceller.delay_ms / 1000
            aligning = self._canceller.aligning
        if muted:  # what the filters still held, too
            samples = np.zeros_like(samples)
        at = self._handed_over_at = max(at, self._handed_over_at + 1e-6)
        if len(self._blocks) == HANDOFF_BLOCKS:
            self.dropped_blocks += 1
        self._blocks.append(MicrophoneBlock(samples, at, muted, played, aligning))


class _Slow(Exception):
    """The card runs and delivers too little; the text says how much."""


class _Meter:
    """The levels of all channels, from the bytes of a second.

    Kept until the second is over and worked on in one go, 0.1 ms for 48 kHz mono: numpy's calls
    would cost more than the work, 50 times a second. Whoever fills it empties it when it is full.
    """

    def __init__(self, settings: Microphone) -> None:
        self._channels, self._format = settings.channels, settings.format
        # A period less, or at 11,025 Hz a batch of 50 reads would fall just short.
        frames = settings.rate - settings.rate * pcms.PERIOD_MS // 1000
        self._enough_bytes = frames * settings.channels * _BYTES[settings.format]
        self.clear()

    def clear(self) -> None:
        """Begin the second anew."""
        self._reads: list[bytes] = []
        self._bytes = 0
        self.own_sound = False

    def add(self, data: bytes) -> None:
        """Take what was read."""
        self._reads.append(data)
        self._bytes += len(data)

    @property
    def is_full(self) -> bool:
        return self._bytes >= self._enough_bytes

    def read(self, at: float) -> ChannelLevels:
        """The levels, and begin anew."""
        frames = decode(b"".join(self._reads), self._channels, self._format)
        levels = ChannelLevels(tuple(_level(channel) for channel in frames.T), self.own_sound, at)
        self.clear()
        return levels


def _level(channel: Frames) -> ChannelLevel:
    """Of int16 or full-scale int32 of shape (n,). A constant offset is no sound and not counted."""
    scale = 1 if channel.dtype == np.int16 else 2**16
    low, high = int(channel.min()), int(channel.max())
    clipped = 0
    if high >= _TOP * scale or low <= -_TOP * scale:
        clipped = int(np.count_nonzero((channel >= _TOP * scale) | (channel <= -_TOP * scale)))
    full_scale = 32_768 * scale
    rms = float(channel.std(dtype=np.float64))
    peak = max(high, -low)
    return ChannelLevel(_dbfs(rms / full_scale), _dbfs(peak / full_scale), clipped, low == high)


def _dbfs(amplitude: float) -> float:
    """Of an amplitude, 1 = full scale."""
    return max(SILENCE_DBFS, 20 * math.log10(amplitude)) if amplitude > 0 else SILENCE_DBFS
