"""The speaker. One thread owns the PCM; `flush` silences it from any thread, at once.

Every call to the PCM is made under one lock, and none of them waits: the PCM is non-blocking, and
the owner sleeps on a clock, not in `write`. So whoever holds the lock sees a device with nothing
in flight, and a flush is exact: what was heard is known to the frame, and nothing stale can
follow it. (A blocked write would have to be dropped from under the writer, and what part of it was
heard would be a guess; ALSA's descriptors would serve as well, but PipeWire's plugin leaves them
readable, and a poll loop spins.)

A flush cuts hard: behind a drop nothing can be written that would follow without a gap. What can
still be shaped is what the device has not taken yet, and that is what `duck` fades.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import alsaaudio
import numpy as np

from voiced.edge import pcm as pcms
from voiced.edge.played import Played
from voiced.edge.resample import for_speaker
from voiced.edge.vitals import Position
from voiced.events import (
    WIRE_RATE,
    DeviceBack,
    DeviceFault,
    Flushed,
    PlaybackDrained,
    PlaybackStarted,
    Samples,
)

log = logging.getLogger(__name__)

PREBUFFER_S = 0.2
"""An answer that trickles in starts when this much is here, or when so much time has passed: the
holes of a network that delivers every 200 ms are filled, and nobody waits longer."""

PREBUFFER_WAIT_S = 0.25

STEP_MS = 20
"""The least that is written at once."""

REFILL_STEPS = 3
"""The owner sleeps until so much is free, of six: few wake-ups, and 60 ms in hand."""

IDLE_STEP_S = 1.0
"""How often an idle owner steps, so that the watchdog sees it live."""

REOPEN_S = 1.0
"""A missing card is looked for this often. It takes 4 ms and the interpreter lock."""

CLOSE_S = 1.0
"""A step takes milliseconds, a hung sound server for ever."""

PROOF_S = 1.5
"""Of silence, for a device that was stuck to show that it plays again: that takes a second."""

DUCK_GAIN = 0.2
"""-14 dB: who speaks over it hears that he was noticed, and what is said stays intelligible."""

DUCK_MS = 15
"""How long the gain takes from one to the other: no click, and over before the next syllable."""

SILENT = np.empty(0, np.int16)

Post = Callable[[DeviceBack | DeviceFault | PlaybackDrained | PlaybackStarted], None]


class Playback:
    """Plays what it is given, in order, and can tell how much of it was heard.

    `post` is called from the owner's thread with events. An *epoch* is what lies between two
    flushes; frames are counted from its beginning, at `WIRE_RATE`. The queue is bounded by who
    fills it: the core ends an answer that is longer than ten minutes. What the device emits is
    told to `played`, as it was written: after volume and ducking.
    """

    def __init__(
        self,
        device: str,
        rate: int,
        volume: int,
        post: Post,
        *,
        played: Played | None = None,
        clock: Callable[[], float] = time.monotonic,
        open_pcm: Callable[[str, int], tuple[Any, int]] = pcms.open_playback,
    ) -> None:
        self.name = "playback"
        self.holes = 0
        """How often an answer had to wait for the network after it had begun to sound."""
        self.xruns = 0
        """How often the device ran dry while there was something to play."""
        self.chimes_skipped = 0
        """How many chimes were not begun, because something sounded or there was no device."""
        self.stepped_at = clock()
        self._device, self._rate = device, rate
        self._gain = _gain(volume)
        self._played = played or Played()
        self._played.reset(rate)
        self._post, self._clock, self._open_pcm = post, clock, open_pcm
        self._step = rate * STEP_MS // 1000
        self._resampler = for_speaker(rate)
        self._cond = threading.Condition(threading.Lock())
        self._pcm: Any = None
        self._channels = 1
        self._size = 0  # of the device's buffer, in its frames
        self._fault: tuple[str, str] | None = None  # its name and detail
        self._position = Position(rate, 0)
        self._open_at = clock()
        self._proven = False  # it has taken something since it was opened
        self._dry_at = 0.0  # when it will have played what it holds
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._chime = SILENT  # not yet taken by the device
        self._chiming = False  # what the device holds is a chime
        self._begin_epoch(0)

    def _begin_epoch(self, epoch: int) -> None:
        self._epoch = epoch
        self._queue: deque[Samples] = deque()
        self._queued = 0  # frames in it, at WIRE_RATE
        self._queued_at: float | None = None  # since when something waits to begin
        self._ending = False  # nothing more comes
        self._tail_taken = False
        self._ready = SILENT  # resampled, not yet taken by the device
        self._written = 0  # frames of sound the device took
        self._silence = 0  # frames of silence it took behind them
        self._fed = 0  # frames given to the resampler, at WIRE_RATE
        self._sounding = False
        self._exhausted = False  # the device has all there is
        self._starved = False  # and has played it, while more is to come
        self._loudness = self._loudness_wanted = 1.0  # of the next sample; DUCK_GAIN when ducked

    # --- for any thread ------------------------------------------------------------------

    def play(self, samples: Samples, epoch: int) -> None:
        """Queue int16 samples, shape (n,), at `WIRE_RATE`. Never blocks on the device."""
        with self._cond:
            if epoch != self._epoch:
                if epoch < self._epoch:
                    return  # of an answer that was cut
                self._begin_epoch(epoch)
            if self._queued_at is None:
                self._queued_at = self._clock()
            self._queue.append(samples)
            self._queued += len(samples)
            self._cond.notify()

    def end(self, epoch: int) -> None:
        """Nothing more comes: play out, then post `PlaybackDrained`."""
        with self._cond:
            if epoch == self._epoch:
                self._ending = True
                self._cond.notify()

    def flush(self, epoch: int, cause_at: float) -> Flushed:
        """Silence, now. Everything queued is forgotten and epoch `epoch` begins.

        The frames that the device still held are read before they are dropped: after the drop
        nobody could tell. Waits for the lock at most as long as the device takes one write
        (0.1-0.3 ms).
        """
        with self._cond:
            self._chime = SILENT
            heard = self._heard(0)  # of a device that can't be asked: all it took
            if self._pcm and (self._sounding or self._chiming):
                try:
                    pending = self._pending()
                    heard = self._heard(pending)
                    self._drop(pending)
                except alsaaudio.ALSAAudioError as exc:
                    self._lose(f"{self._device}: {exc}")
            at = self._clock()
            self._resampler.clear()
            self._begin_epoch(epoch)
            self._cond.notify()
        return Flushed(at, heard, cause_at)

    def duck(self, on: bool) -> None:
        """Play at `DUCK_GAIN` what the device has not taken yet, or as before again; it glides
        there in `DUCK_MS`. Until the end of the answer; with none it means nothing."""
        with self._cond:
            if self._sounding or self._queue:
                self._loudness_wanted = DUCK_GAIN if on else 1.0

    def chime(self, samples: Samples, volume: int) -> None:
        """Play int16 samples, shape (n,), at `WIRE_RATE`, now, at a volume of 0 to 100.

        If anything sounds or waits to, or there is no device, it is left out and counted. It is
        no part of an answer: none waits for it (it is cut), none of its frames count as heard.
        """
        resampler = for_speaker(self._rate)
        sound = np.concatenate((resampler.push(samples), resampler.finish()))
        with self._cond:
            occupied = self._sounding or self._queue or self._chiming or len(self._chime)
            if self._pcm is None or occupied:
                self.chimes_skipped += 1
                return
            self._chime = _scaled(sound, _gain(volume))
            self._cond.notify()

    def hush(self) -> None:
        """Break off a chime that sounds, or is about to; an answer goes on."""
        with self._cond:
            self._chime = SILENT
            if self._pcm and self._chiming:
                try:
                    self._drop(self._pending())
                except alsaaudio.ALSAAudioError as exc:
                    self._lose(f"{self._device}: {exc}")
                self._cond.notify()

    def start(self, after: Playback | None = None) -> None:
        """Start the owner. It opens the device when `after` is closed, and doesn't step until
        then, however long that takes."""
        self.stepped_at = self._clock()
        self._thread = threading.Thread(
            target=self._run, args=(after,), name="playback", daemon=True
        )
        self._thread.start()

    @property
    def has_died(self) -> bool:
        """The owner has ended, and nobody asked for it."""
        ended = self._thread is not None and not self._thread.is_alive()
        return ended and not self._stopping

    def close(self, timeout_s: float | None = CLOSE_S) -> None:
        """Silence, then let go of the device. Safe twice and without `start`.

        An owner that hangs for longer (None: for ever) is left behind, its device with it.
        """
        with self._cond:
            self._stopping = True
            self._cond.notify()
        if self._thread:
            self._thread.join(timeout_s)
        if self._pcm and not (self._thread and self._thread.is_alive()):
            pcms.close(self._pcm)
            self._pcm = None
            self._played.stopped(None, self._clock())

    # --- the owner -----------------------------------------------------------------------

    def _run(self, after: Playback | None) -> None:
        if after:
            after.close(None)
        while not self._stopping:
            self.open_if_needed()
            with self._cond:
                wait_s = self.step()
                if not self._stopping:
                    self._cond.wait(wait_s)

    def open_if_needed(self) -> None:
        """Open a missing device when it is time to. Without the lock: it may take long."""
        if self._pcm is not None or self._clock() < self._open_at:
            return
        try:
            opened, channels = self._open_pcm(self._device, self._rate)
        except pcms.DeviceError as exc:
            self._open_at = self._clock() + REOPEN_S
            self._report(exc.fault, str(exc))
            return
        with self._cond:
            self._pcm, self._channels = opened, channels
            self._size = int(opened.info()["buffer_size"])
            self._position = Position(self._rate, self._size)
            self._proven = False
        if not self._is_suspect:
            self._tell_back()

    @property
    def _is_suspect(self) -> bool:
        """It opens, and that proves nothing: it was stuck, and has played nothing since."""
        return self._fault is not None and self._fault[0] == "speaker-stuck"

    def _report(self, fault: str, detail: str) -> None:
        if (fault, detail) != self._fault:
            self._fault = fault, detail
            self._post(DeviceFault("speaker", fault, detail, self._clock()))

    def _tell_back(self) -> None:
        self._fault = None
        self._post(DeviceBack("speaker", self._clock(), self._device))

    @property
    def _was_idle(self) -> bool:
        """It has taken nothing of what is to be played now, though it did before: it may have been
        unplugged and plugged in again while it was silent, and not every plugin tells."""
        waits = self._queued_at is not None or len(self._chime) > 0
        return waits and self._proven and not self._written and not self._chiming

    def _reopen(self) -> None:
        """Let go of the device and open it anew, for what waits to be played."""
        lost, self._pcm = self._pcm, None
        self._sounding = False
        pcms.close(lost)
        self._open_at = self._clock()

    def _lose(self, detail: str, stuck_at: int | None = None) -> None:
        """Let go of the device; it tells what was heard no more. `stuck_at` is what it held when it
        stood still, None if it can't be asked: then all it took counts as heard."""
        lost, self._pcm = self._pcm, None
        self._written, self._silence = self._sounded(stuck_at or 0), 0
        pcms.close(lost)
        self._played.stopped(stuck_at, self._clock())
        self._chime, self._chiming = SILENT, False
        self._open_at = self._clock() + REOPEN_S
        self._report("speaker-lost" if stuck_at is None else "speaker-stuck", detail)

    def step(self) -> float:
        """Do what can be done without waiting; the seconds until there is more. Lock held."""
        self.stepped_at = self._clock()
        if self._pcm is None:
            return max(0.0, min(IDLE_STEP_S, self._open_at - self.stepped_at))
        try:
            if self._sounding and not self._starved:
                self._note_dry()
            if not self._sounding or self._starved:
                wait_s = self._wait_to_begin()
                if wait_s is not None:
                    return min(wait_s, self._feed_chime())
            if self._chiming:
                self._drop(self._pending())
            self._chime = SILENT
            return self._feed()
        except _Stuck as exc:
            self._lose(f"{self._device}: {exc}", exc.pending)
        except alsaaudio.ALSAAudioError as exc:
            if self._was_idle:
                self._reopen()
                return 0.0
            self._lose(f"{self._device}: {exc}")
        except Exception as exc:  # a thread that dies alone is the mute device
            log.exception("playing")
            self._lose(f"{self._device}: {exc!r}")
        return REOPEN_S

    def _wait_to_begin(self) -> float | None:
        """None when enough is here to begin (or to go on after a hole)."""
        if self._queued_at is None and not self._ending:
            if self._pcm.state() == alsaaudio.PCM_STATE_DISCONNECTED:
                raise alsaaudio.ALSAAudioError("unplugged")  # an idle device has to be asked
            return IDLE_STEP_S
        waited_s = self._clock() - (self._queued_at or self._clock())
        # What is ready has begun once, on a device that had to be opened anew.
        enough = len(self._ready) or self._queued >= PREBUFFER_S * WIRE_RATE
        if enough or self._ending or (self._queued and waited_s >= PREBUFFER_WAIT_S):
            return None
        return max(0.001, PREBUFFER_WAIT_S - waited_s)

    def _feed_chime(self) -> float:
        """Play the chime, if there is one, and see it out; the seconds until there is more."""
        if not self._chiming and not len(self._chime):
            if not self._is_suspect or self._queue:
                return IDLE_STEP_S
            self._chime = np.zeros(round(PROOF_S * self._rate), np.int16)
        pending = self._look()
        room = self._free(pending)
        if len(self._chime) and room > 0:
            self._chime = self._chime[self._write(self._chime[:room], pending) :]
            self._chiming = True
        if len(self._chime):
            return self._refill_s()
        return self._see_out() or IDLE_STEP_S

    def _feed(self) -> float:
        """Fill the device as far as it has room, or see the answer out."""
        pending = self._pending()
        while (room := self._free(pending)) >= self._step:
            chunk = self._take(room)
            if not len(chunk):
                break
            if not self._sounding:
                self._sounding = True
                self._post(PlaybackStarted(self._clock()))
            self._starved = self._exhausted = False
            taken = self._write_faded(chunk, pending)
            self._ready = self._ready[taken:]
            self._written += taken
            pending += taken
            if taken < len(chunk):
                break
        if len(self._ready) or self._queue:
            return self._refill_s()
        if self._ending:
            self._exhausted = True
            return self._end_answer()
        return self._starve()

    def _free(self, pending: int) -> int:
        """Frames to write beside so many; some stay free: PulseAudio's plugin takes full for
        empty."""
        return self._size - pending - self._step

    def _refill_s(self) -> float:
        return max(0.001, (REFILL_STEPS * self._step - self._room()) / self._rate)

    def _take(self, room: int) -> Samples:
        """Up to `room` frames that are ready; more is resampled as needed."""
        while len(self._ready) < room and self._queue:
            samples = self._queue.popleft()
            self._queued -= len(samples)
            self._fed += len(samples)
            self._add_ready(self._resampler.push(samples))
        if len(self._ready) < room and self._ending and not self._tail_taken:
            self._tail_taken = True
            self._add_ready(self._resampler.finish())
        return self._ready[:room]

    def _add_ready(self, samples: Samples) -> None:
        samples = _scaled(samples, self._gain)
        self._ready = np.concatenate((self._ready, samples)) if len(self._ready) else samples

    def _write_faded(self, mono: Samples, pending: int) -> int:
        """`_write`, on the way to the loudness that is wanted or there."""
        now, wanted = self._loudness, self._loudness_wanted
        if now == wanted == 1.0:
            return self._write(mono, pending)
        slope = (1 - DUCK_GAIN) * 1000 / (DUCK_MS * self._rate)
        steps = slope * np.arange(1, len(mono) + 1)
        gains = np.maximum(now - steps, wanted) if wanted < now else np.minimum(now + steps, wanted)
        taken = self._write(np.rint(mono * gains).astype(np.int16), pending)
        if taken:
            self._loudness = float(gains[taken - 1])
        return taken

    def _write(self, mono: Samples, pending: int) -> int:
        """Frames the device took behind the `pending` that it holds.

        It returns -EPIPE once after an underrun, and takes nothing.
        """
        at = self._clock()
        frames = mono if self._channels == 1 else np.repeat(mono, self._channels)
        data = frames.astype("<i2", copy=False).tobytes()
        taken = int(self._pcm.write(data))
        if taken < 0:
            pending, taken = 0, int(self._pcm.write(data))
        if taken <= 0:
            return 0
        self._proven = True
        self._dry_at = at + (pending + taken) / self._rate
        self._position.wrote(taken)
        self._played.wrote(mono[:taken], pending, at)
        return taken

    def _drop(self, pending: int) -> None:
        """Silence: the device forgets the `pending` frames that it holds."""
        self._pcm.drop()
        self._position.clear()
        self._played.stopped(pending, self._clock())
        self._chiming = False
        self._silence = 0

    def _room(self) -> int:
        """Frames the device would take now: all it has before the first and after an underrun.

        (After a drop, until a write prepares the device anew, `avail` tells anything: after 16
        answers on PulseAudio's plugin it told "none", and the 17th was never heard.)
        """
        if not self._sounding and not self._chiming:
            return self._size
        avail = int(self._pcm.avail())
        if avail >= 0 and self._pcm.state() != alsaaudio.PCM_STATE_XRUN:
            return min(avail, self._size)
        if avail < 0 and avail != -32:
            raise alsaaudio.ALSAAudioError(f"error {-avail}")
        return self._size

    def _pending(self) -> int:
        """Frames the device holds and has not played yet."""
        return self._size - self._room()

    def _look(self) -> int:
        """`_pending`, of a device that keeps up with the clock. Raises _Stuck."""
        pending = self._pending()
        problem = self._position.look(pending, self._clock())
        if problem:
            raise _Stuck(problem, pending)
        if self._is_suspect and self._position.keeps_up:
            self._tell_back()
        return pending

    def _heard(self, pending: int) -> int:
        """Frames heard since the epoch began, at `WIRE_RATE`, while the device holds so many."""
        if not self._sounding:
            return 0
        return min(self._sounded(pending) * WIRE_RATE // self._rate, self._fed)

    def _sounded(self, pending: int) -> int:
        """Frames of sound, of those it took, that the device has played while it holds so many."""
        return min(max(self._written + self._silence - pending, 0), self._written)

    def _note_dry(self) -> None:
        """Tell a hole in the answer, which is the network's, from an underrun, which is ours.

        Who comes a whole buffer after the last frame was due is told what was true before: a sound
        server's plugin learns of an underrun from a thread of its own.
        """
        pending = self._look()
        is_late = self.stepped_at > self._dry_at + self._size / self._rate
        self._dry_at = self.stepped_at + pending / self._rate
        if (pending and not is_late) or (self._exhausted and self._ending):
            return
        if self._exhausted:
            self.holes += 1
            self._starved = True
        else:
            self.xruns += 1

    def _starve(self) -> float:
        """The device has all that came, and more is to come."""
        self._exhausted = True
        self._queued_at = None
        return max(0.001, self._pending() / self._rate)

    def _end_answer(self) -> float:
        wait_s = self._see_out() if self._sounding else 0.0
        if wait_s:
            return wait_s
        self._resampler.clear()
        epoch = self._epoch
        self._begin_epoch(epoch)
        self._post(PlaybackDrained(self._clock(), epoch))
        return IDLE_STEP_S

    def _see_out(self) -> float:
        """Behind the last sample: silence, so that the device ends on it, then drop. The seconds
        until that is due, 0 if it is done."""
        missing = 2 * self._step - self._silence
        if missing > 0:
            self._silence += self._write(np.zeros(missing, np.int16), self._pending())
        pending = self._pending()
        if pending > self._silence:
            return max(0.001, (pending - self._silence) / self._rate)
        self._drop(pending)
        return 0.0


class _Stuck(Exception):
    """The device takes sound and does not play it; `pending` frames are left in it."""

    def __init__(self, problem: str, pending: int) -> None:
        super().__init__(problem)
        self.pending = pending


def _gain(volume: int) -> float:
    """Of a volume of 0 to 100: loudness goes with the logarithm, and the square is near it."""
    return (volume / 100) ** 2


def _scaled(samples: Samples, gain: float) -> Samples:
    if gain == 1.0:
        return samples
    scaled: Samples = np.rint(samples * gain).astype(np.int16)
    return scaled
