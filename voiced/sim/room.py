"""The air between the rig's speaker and its microphone: what the speaker emits comes back as echo.

A thread records the speaker, convolves it with a room's impulse response and plays the result into
the microphone, where the sound server mixes it with what `Mouth` says. It works 40 ms ahead, so
that it does not stumble beside other work: in a room without any delay the echo still comes
33-40 ms after the sound, and up to 83 ms when the machine was busy at the start (measured on two
cores, idle and beside two busy loops). It then stays so; `Room.delay_ms` tells how long it is.
"""

from __future__ import annotations

import time
from typing import Any

import alsaaudio
import numpy as np
import numpy.typing as npt

from voiced.sim.rig import Rig
from voiced.sim.streams import EAR_PERIOD_S, Stream, opened, queued
from voiced.sim.timeline import Timeline
from voiced.sim.wav import Samples

PERIOD_S = 0.010
LEAD_PERIODS = 4  # 40 ms wait at the microphone: so late may this thread be
BUFFER_PERIODS = LEAD_PERIODS + 2
CAPTURE_S = 1.0  # holds what comes during a stall; it is thrown away then, and no sample more

Floats = npt.NDArray[np.float64]


class Convolver:
    """Convolves a stream with `response`, shape (taps, channels), block by block.

    Overlap-save in partitions as long as a block: no delay of its own. A Room with 300 ms of
    response takes 3.6 % of a core.
    """

    def __init__(self, response: Floats, block: int) -> None:
        taps, channels = response.shape
        parts = max(1, -(-taps // block))
        padded = np.zeros((parts * block, channels))
        padded[:taps] = response
        self._block = block
        self._parts = np.fft.rfft(padded.reshape(parts, block, channels), 2 * block, axis=1)
        self.clear()

    def clear(self) -> None:
        """Forget what was pushed."""
        self._pushed = np.zeros(self._parts.shape[:2], complex)  # newest first
        self._before = np.zeros(self._block)

    def push(self, block: Floats) -> Floats:
        """Take the next samples, shape (block,); what they and those before make of this block,
        shape (block, channels)."""
        self._pushed = np.roll(self._pushed, 1, axis=0)
        self._pushed[0] = np.fft.rfft(np.concatenate((self._before, block)))
        self._before = block
        product = np.einsum("pb,pbc->bc", self._pushed, self._parts)
        echo: Floats = np.fft.irfft(product, 2 * self._block, axis=0)[self._block :]
        return echo


class Room(Stream):
    """An echo path on a rig, from start() or as a context manager until close().

    `impulse_response` is at the rig's rate; shape (taps,) reaches every channel of the microphone
    alike, (taps, channels) each by its own. `gain_db` and `delay_ms` come on top of it. Raises
    ValueError for another shape, a negative delay, or a rig whose microphone and speaker differ in
    rate.

    `glitches` counts how often the echo broke off because this thread was late: it goes on with
    what is heard then. `reconnects` counts how often the sound server went away.
    """

    def __init__(
        self,
        rig: Rig,
        impulse_response: npt.ArrayLike,
        gain_db: float = 0.0,
        delay_ms: float = 0.0,
    ) -> None:
        super().__init__(rig, "room")
        self.glitches = 0
        self._speaker, self._microphone = rig.formats[rig.ear], rig.formats[rig.mouth]
        rate, channels = self._microphone
        if self._speaker.rate != rate:
            raise ValueError(f"a speaker at {self._speaker.rate} Hz, a microphone at {rate} Hz")
        response = np.asarray(impulse_response, np.float64)
        if response.ndim == 1:
            response = np.repeat(response[:, np.newaxis], channels, axis=1)
        if not response.size or response.shape[1:] != (channels,):
            raise ValueError(f"{response.shape} is not (taps,) or (taps, {channels})")
        if delay_ms < 0:
            raise ValueError(f"delay_ms is {delay_ms}: no echo comes before its sound")
        self._extra_ms = delay_ms
        self._period = round(PERIOD_S * rate)
        delay = np.zeros((round(delay_ms / 1000 * rate), channels))
        taps = np.concatenate((delay, response * 10 ** (gain_db / 20)))
        self._convolver = Convolver(taps, self._period)
        self._date_anew()

    @property
    def delay_ms(self) -> float:
        """From a sample at the speaker to its echo at the microphone, without what the impulse
        response itself begins with; known to about 10 ms. LookupError before start()."""
        emitted = self._emitted.time_at(self._captured) + EAR_PERIOD_S
        returned = self._returned.time_at(self._captured + LEAD_PERIODS * self._period)
        return 1000 * (returned - emitted) + self._extra_ms

    def _flowing(self) -> bool:
        return bool(self._emitted) and bool(self._returned)

    def _flow(self) -> None:
        period, waiting = self._period, round(CAPTURE_S / PERIOD_S)
        capture, playback = alsaaudio.PCM_CAPTURE, alsaaudio.PCM_PLAYBACK
        with (
            opened(capture, Rig.ear, self._speaker, period, waiting) as ear,
            opened(playback, Rig.mouth, self._microphone, period, BUFFER_PERIODS) as mouth,
        ):
            self._convolver.clear()
            self._begin(ear, mouth)
            while not self._stop.is_set():
                echo = self._echo(ear)
                if not queued(mouth):  # an underrun; ALSA's pulse plugin tells nothing of it
                    self.glitches += 1
                    self._begin(ear, mouth)
                    continue
                mouth.write(echo.tobytes())
                self._written += len(echo)
                with self._changed:
                    self._returned.observe(time.monotonic(), self._written - queued(mouth))
                    self._changed.notify_all()

    def _interrupted(self) -> None:
        if self._flowing():
            self.reconnects += 1
        self._date_anew()

    def _date_anew(self) -> None:
        self._emitted = Timeline(self._speaker.rate)
        self._returned = Timeline(self._microphone.rate)
        self._captured = self._written = 0  # of streams that run in step from here on

    def _begin(self, ear: Any, mouth: Any) -> None:
        """Make the delay what it should be: throw away what waits here, put silence in there."""
        while ear.avail() >= self._period:
            self._echo(ear)
        self._date_anew()
        self._written = LEAD_PERIODS * self._period
        mouth.write(bytes(2 * self._written * self._microphone.channels))

    def _echo(self, ear: Any) -> Samples:
        """Wait for the speaker's next period; its echo, shape (period, channels)."""
        frames, data = ear.read()
        waiting = max(0, ear.avail())
        heard = np.zeros((self._period, self._speaker.channels))
        heard[: max(0, frames)] = np.frombuffer(data, "<i2").reshape(-1, self._speaker.channels)
        self._captured += self._period
        self._emitted.observe(time.monotonic(), self._captured + waiting)
        echo = self._convolver.push(heard.mean(axis=1))
        sound: Samples = np.clip(np.rint(echo), -32768, 32767).astype(np.int16)
        return sound
