"""What speaks into the rig's microphone and what records its speaker.

`Mouth` speaks, `Ear` records what left the speaker (or what reached the microphone), and both date
their samples by CLOCK_MONOTONIC (`time.monotonic()`).
"""

import contextlib
import logging
import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import alsaaudio
import numpy as np

from voiced.sim.rig import Format, Rig, RigError
from voiced.sim.timeline import Timeline
from voiced.sim.wav import Samples, write_wav

log = logging.getLogger(__name__)

START_S = 5.0  # the first samples come 5-43 ms after opening
STOP_S = 2.0  # threads look up every period (≤ 10 ms) and every retry (50 ms)
THREAD_NICE = -10
RETRY_S = 0.05  # how often mouth and ear look for a server that went away

EAR_PERIOD_S = 0.005  # the smallest in which data still arrives evenly: it sets the dating's grain
EAR_BUFFER_S = 5.0  # 1024 periods is the most that is granted; 21.8 s in all survived a stall
EAR_LONGEST_S = 30 * 60  # 173 MB at 48 kHz
MOUTH_PERIOD_S = 0.010
MOUTH_PERIODS = 8  # 40 ms ran dry beside two busy loops; dates don't suffer from a longer buffer
MOUTH_QUEUE = 64  # utterances said but not yet over
UTTERANCE_LONGEST_S = 600


class Stream(ABC):
    """A thread that keeps one PCM open: it opens it again whenever the server goes and comes."""

    def __init__(self, rig: Rig, name: str) -> None:
        self.reconnects = 0
        self._rig = rig
        self._failure = "nothing was read or written"
        self._stop = threading.Event()
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Start and return when sound flows. Raises RigError if it doesn't in START_S."""
        self._thread.start()
        try:
            self._wait(self._flowing, START_S, "no sound flows")
        except TimeoutError as error:
            self.close()
            raise RigError(f"{error}: {self._failure}; was the rig applied first?") from error

    def close(self) -> None:
        """Stop the thread; it closes its PCM itself, for closing under a read crashes Python."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(STOP_S)

    def _wait(self, done: Callable[[], bool], timeout_s: float, complaint: str) -> None:
        with self._changed:
            if not self._changed.wait_for(done, timeout_s):
                raise TimeoutError(f"{complaint} (waited {timeout_s:.1f} s)")

    def _run(self) -> None:
        with contextlib.suppress(OSError):  # only root may: a room and its air are never late
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), THREAD_NICE)
        while not self._stop.is_set():
            try:
                self._flow()
            except (alsaaudio.ALSAAudioError, RigError) as error:
                self._failure = str(error)
                self._interrupted()
                self._stop.wait(RETRY_S)
            while not self._rig.plugged and not self._stop.is_set():
                self._stop.wait(RETRY_S)  # each vain attempt to open prints a line on stderr

    @abstractmethod
    def _flowing(self) -> bool:
        """Whether sound passes, so that samples can be dated."""

    @abstractmethod
    def _flow(self) -> None:
        """Open the PCM and work it until stopped."""

    @abstractmethod
    def _interrupted(self) -> None:
        """The PCM failed or could not be opened."""


@contextlib.contextmanager
def opened(kind: int, device: str, form: Format, period: int, periods: int) -> Iterator[Any]:
    """A PCM of exactly this format; ALSA changes silently what it can't grant, so compare."""
    pcm = alsaaudio.PCM(
        kind,
        alsaaudio.PCM_NORMAL,
        rate=form.rate,
        channels=form.channels,
        format=alsaaudio.PCM_FORMAT_S16_LE,
        periodsize=period,
        periods=periods,
        device=device,
    )
    try:
        info = pcm.info()
        if (info["rate"], info["channels"]) != form:
            raise RigError(f"{device} gave {info['rate']} Hz x {info['channels']}, not {form}")
        yield pcm
    finally:
        with contextlib.suppress(alsaaudio.ALSAAudioError):
            pcm.drop()  # close() alone would play the buffer out first
        pcm.close()


class Utterance:
    """Something said into the microphone. Times are monotonic, None until it came to pass."""

    def __init__(self, mouth: "Mouth", samples: Samples, at: float | None) -> None:
        self.started: float | None = None  # its first sample was at the microphone
        self.ended: float | None = None  # its last one was
        self.cut = False  # the server went away under it: the rest was never said
        self._mouth = mouth
        self._samples = samples  # (n, channels of the microphone)
        self._at = at
        self._first: int | None = None  # index of its first frame in the mouth's stream

    def __repr__(self) -> str:
        return f"<Utterance {len(self._samples)} frames {self.started} to {self.ended}>"

    def wait_started(self, timeout_s: float) -> float:
        """Return `started`. Raises TimeoutError."""
        self._mouth._wait(lambda: self.started is not None, timeout_s, "it has not begun")
        assert self.started is not None
        return self.started

    def wait_ended(self, timeout_s: float) -> float:
        """Return `ended`. Raises TimeoutError."""
        self._mouth._wait(lambda: self.ended is not None, timeout_s, "it is not over")
        assert self.ended is not None
        return self.ended


class Mouth(Stream):
    """Speaks into the rig's microphone, over a bed of room noise, in real time.

    `noise_dbfs` is the bed's RMS over full scale (32768), white, independent in each channel and
    the same for the same seed; None is digital silence. Starts as a context manager or by start().
    """

    def __init__(self, rig: Rig, noise_dbfs: float | None = -45.0, seed: int = 0) -> None:
        super().__init__(rig, "mouth")
        self.form = rig.formats[rig.mouth]
        self._period = round(MOUTH_PERIOD_S * self.form.rate)
        self._noise_rms = 0.0 if noise_dbfs is None else 32768 * 10 ** (noise_dbfs / 20)
        self._random = np.random.default_rng(seed)
        self._utterances: list[Utterance] = []  # under _changed
        self._timeline = Timeline(self.form.rate)
        self._gaps_before = 0

    @property
    def gaps(self) -> int:
        """Holes in what was said: this thread was too late for the device."""
        return self._gaps_before + len(self._timeline.gaps)

    def say(self, samples: Samples, at: float | None = None) -> Utterance:
        """Mix int16 `samples` in, at the microphone's rate, from monotonic time `at` on.

        Shape (n,) goes to every channel, (n, channels) as it is. None, or a time that can't be
        reached any more, is as soon as possible (some 90 ms); utterances that overlap add up.
        Raises ValueError for another shape or type and RigError when MOUTH_QUEUE are waiting.
        """
        longest = UTTERANCE_LONGEST_S * self.form.rate
        if samples.dtype != np.int16 or not 0 < len(samples) <= longest:
            raise ValueError(f"say 1 sample to {UTTERANCE_LONGEST_S} s of int16")
        if samples.ndim == 1:
            samples = np.repeat(samples[:, np.newaxis], self.form.channels, axis=1)
        if samples.shape[1:] != (self.form.channels,):
            raise ValueError(f"{samples.shape} is not (n,) or (n, {self.form.channels})")
        utterance = Utterance(self, samples, at)
        with self._changed:
            if len(self._utterances) >= MOUTH_QUEUE:
                raise RigError(f"{MOUTH_QUEUE} utterances are waiting; wait for one to end")
            self._utterances.append(utterance)
        return utterance

    def _flowing(self) -> bool:
        return bool(self._timeline)

    def _flow(self) -> None:
        with opened(
            alsaaudio.PCM_PLAYBACK, Rig.mouth, self.form, self._period, MOUTH_PERIODS
        ) as pcm:
            self._gaps_before += len(self._timeline.gaps)
            self._timeline = Timeline(self.form.rate)
            written = 0
            while not self._stop.is_set():
                self._note_heard(written - queued(pcm))
                # It starts with the first write, so that one is long. Not the whole buffer: ALSA's
                # pulse plugin would then take full for empty, and avail() stays wrong for good.
                frames = self._period if written else self._period * (MOUTH_PERIODS - 1)
                sound = self._mix(written, frames)
                written += max(0, pcm.write(sound.tobytes()))  # < 0: underrun, again

    def _interrupted(self) -> None:
        """What was being said is lost, what is still to be said waits."""
        now = time.monotonic()
        with self._changed:
            if self._flowing():
                self.reconnects += 1
                self._timeline = Timeline(self.form.rate)
            for utterance in [u for u in self._utterances if u._first is not None]:
                utterance.started = utterance.started or now
                utterance.ended = now
                utterance.cut = True
                self._utterances.remove(utterance)
            self._changed.notify_all()

    def _note_heard(self, heard: int) -> None:
        """Date what has reached the microphone by now: `heard` frames."""
        if heard <= 0:
            return  # nothing dates the first frame before it is taken from the buffer
        self._timeline.observe(time.monotonic(), heard)
        with self._changed:
            for utterance in [u for u in self._utterances if u._first is not None]:
                self._date(utterance, heard)
            self._changed.notify_all()

    def _date(self, utterance: Utterance, heard: int) -> None:
        first = utterance._first
        assert first is not None
        if utterance.started is None and heard > first:
            utterance.started = self._timeline.time_at(first)
        last = first + len(utterance._samples) - 1
        if heard > last:
            utterance.ended = self._timeline.time_at(last)
            self._utterances.remove(utterance)

    def _mix(self, index: int, frames: int) -> Samples:
        """What is to be written from stream index `index` on, shape (frames, channels)."""
        sound = self._random.standard_normal((frames, self.form.channels)) * self._noise_rms
        with self._changed:
            for utterance in self._utterances:
                if utterance._first is None:
                    utterance._first = self._first_frame(utterance, index)
                if utterance._first is not None:
                    _add(sound, index, utterance._samples, utterance._first)
        mixed: Samples = np.clip(np.rint(sound), -32768, 32767).astype(np.int16)
        return mixed

    def _first_frame(self, utterance: Utterance, index: int) -> int | None:
        """Where it begins if that is within the period from `index` on, else None."""
        if not self._timeline:
            return None  # sound does not flow yet: nothing can be dated
        if utterance._at is None:
            return index
        first = self._timeline.index_at(utterance._at)
        return max(index, first) if first < index + self._period else None


def queued(pcm: Any) -> int:
    """Frames written but not yet taken by the server; all of them while that can't be known."""
    size: int = pcm.info()["buffer_size"]
    available: int = pcm.avail()
    return size - min(available, size) if available >= 0 else size


def _add(sound: Any, index: int, samples: Samples, first: int) -> None:
    """Add the part of `samples` (begun at stream index `first`) that lies in `sound`, in place."""
    begin = max(index, first)
    end = min(index + len(sound), first + len(samples))
    if begin < end:
        sound[begin - index : end - index] += samples[begin - first : end - first]


class Ear(Stream):
    """Records what left the speaker (or another capture PCM of the rig) from its start.

    Kept in memory: one channel, int16, at the sink's own rate, so bit-exact. After EAR_LONGEST_S
    it stops, sets `full` and logs it. While the server is away silence is recorded (`outages`
    lists index and frames of it), so that the recording keeps time; samples lost otherwise are
    listed in `gaps` (index, seconds).
    """

    def __init__(self, rig: Rig, device: str = Rig.ear, channel: int = 0) -> None:
        super().__init__(rig, f"ear {device}")
        self.device = device
        self.form = rig.formats[device]
        self.rate = self.form.rate
        self.full = False
        self.outages: list[tuple[int, int]] = []  # bounded by EAR_LONGEST_S / RETRY_S
        # The server renders a block as a whole: a speaker plays it after that, a microphone has
        # heard it before. The timeline dates the block's last sample by the moment of rendering.
        self._shift_s = EAR_PERIOD_S if device == rig.ear else 0.0
        self._channel = channel
        self._recording = bytearray()  # under _changed
        self._timeline = Timeline(self.rate)
        self._resuming = False

    @property
    def gaps(self) -> list[tuple[int, float]]:
        """Samples the server dropped silently: where (index), how much (seconds)."""
        return list(self._timeline.gaps)

    @property
    def length(self) -> int:
        """Samples recorded so far."""
        return len(self._recording) // 2

    def snapshot(self, start: int = 0, stop: int | None = None) -> Samples:
        """A copy of the recording from index `start` to `stop` or the end, shape (n,)."""
        with self._changed:
            end = self.length if stop is None else stop
            return np.frombuffer(bytes(self._recording[2 * start : 2 * end]), np.int16)

    def time_at(self, index: float) -> float:
        """The monotonic time of sample `index`, to about EAR_PERIOD_S.

        When it left the speaker or was at the microphone. Raises LookupError before start().
        """
        return self._timeline.time_at(index) + self._shift_s

    def index_at(self, at: float) -> int:
        """The sample of monotonic time `at`, the inverse of `time_at`.

        May be yet to come; 0 for a time before the recording. Raises LookupError before start().
        """
        return max(0, self._timeline.index_at(at - self._shift_s))

    def wait_until(self, at: float, timeout_s: float) -> None:
        """Return when the recording holds the sample of monotonic time `at`. TimeoutError."""
        self._wait(
            lambda: self.length > self.index_at(at), timeout_s, "the recording is not there yet"
        )

    def save(self, path: str | Path) -> None:
        """Write the recording so far as a WAV file."""
        write_wav(path, self.snapshot(), self.rate)

    def _flowing(self) -> bool:
        return bool(self._timeline)

    def _flow(self) -> None:
        period = round(EAR_PERIOD_S * self.rate)
        periods = round(EAR_BUFFER_S / EAR_PERIOD_S)
        with opened(alsaaudio.PCM_CAPTURE, self.device, self.form, period, periods) as pcm:
            while not self._stop.is_set():
                frames, data = pcm.read()
                waiting = max(0, pcm.avail())
                if frames > 0:  # else an overrun: what it lost shows in the timeline
                    self._note(data, waiting, time.monotonic())

    def _interrupted(self) -> None:
        if self._flowing() and not self._resuming:
            self._resuming = True
            self.reconnects += 1

    def _note(self, data: bytes, waiting: int, now: float) -> None:
        """Keep what was read; `waiting` more frames exist already."""
        frames = np.frombuffer(data, "<i2").reshape(-1, self.form.channels)
        with self._changed:
            if self._resuming:
                self._fill(self._timeline.index_at(now) - len(frames) - waiting - self.length)
            self._recording += np.ascontiguousarray(frames[:, self._channel]).tobytes()
            self._timeline.observe(now, self.length + waiting)
            self._changed.notify_all()
        if self.length >= EAR_LONGEST_S * self.rate:
            self.full = True
            self._stop.set()
            log.warning("%s stops: it holds its %d s", self._thread.name, EAR_LONGEST_S)

    def _fill(self, frames: int) -> None:
        """Put silence in for the time the server was away."""
        self._resuming = False
        frames = max(0, min(frames, EAR_LONGEST_S * self.rate - self.length))
        self.outages.append((self.length, frames))
        self._recording += bytes(2 * frames)
        self._timeline.restart()
