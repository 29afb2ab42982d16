"""What the samples and the frame log tell: pure functions from recordings to milliseconds."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voiced.sim.streams import Ear
from voiced.sim.wav import to_rate

Samples = NDArray[np.int16]

EAR_RATE = 48_000
WIRE_RATE = 24_000
BLOCK = 480
LIKE = 0.3
"""Correlation of 20 ms: 0.05 by chance, 0.6 of white noise that is half a sample out of step."""
APPEND = "input_audio_buffer.append"
COMMIT = "input_audio_buffer.commit"
COMMITTED = "input_audio_buffer.committed"
DELTA = "response.output_audio.delta"


@dataclass(frozen=True)
class Frame:
    """One line of the server's frame log."""

    t: float
    source: str
    event: dict[str, Any]

    @property
    def kind(self) -> str:
        return str(self.event.get("type"))

    @property
    def audio(self) -> Samples:
        return np.frombuffer(base64.b64decode(self.event["audio"]), "<i2")


def read_frames(path: Path) -> list[Frame]:
    lines = (json.loads(line) for line in path.read_text().splitlines())
    return [Frame(line["t"], line["from"], line["event"]) for line in lines]


def between(frames: list[Frame], start: float, end: float) -> list[Frame]:
    return [frame for frame in frames if start <= frame.t < end]


def sounding(ear: Ear, start: float, end: float) -> tuple[float, float, int] | None:
    """Of the sound in a span of time: when its first and last non-zero sample were recorded, and
    the number of samples from the one to the other. None if there is none."""
    first = ear.index_at(start)
    found = np.flatnonzero(ear.snapshot(first, ear.index_at(end)))
    if not len(found):
        return None
    begin, last = first + int(found[0]), first + int(found[-1])
    return ear.time_at(begin), ear.time_at(last), last - begin + 1


def append_delays_ms(frames: list[Frame], tap: Ear, burst_s: float = 0.05) -> Iterator[float]:
    """Of each millisecond in live appends: from when it was at the microphone until it was
    received. The stretch is dated by finding it in the tap's recording."""
    appends = [frame for frame in frames if frame.kind == APPEND]
    if not appends:
        return
    burst_over = appends[0].t + burst_s  # of what was said while it was dialled
    live = [frame for frame in appends if frame.t > burst_over]
    if len(live) < 10:
        return
    sent = np.concatenate([frame.audio for frame in live]).astype(float)
    first = tap.index_at(live[0].t - 0.25)
    recorded = tap.snapshot(first, tap.index_at(live[-1].t + 0.05)).astype(float)
    recorded = recorded[: len(recorded) // 2 * 2]
    half = 0.5 * (recorded[0::2] + recorded[1::2])  # 24 kHz; noise below 10 kHz is enough
    if not len(half):
        return  # a backlog that came when all was said
    size = 1 << (len(half) + len(sent)).bit_length()
    match = np.fft.irfft(np.fft.rfft(half, size) * np.conj(np.fft.rfft(sent, size)), size)
    place = int(np.argmax(match[: len(half)]))
    part = half[place : place + len(sent)]
    n = min(len(part), len(sent))
    if part[:n] @ sent[:n] < 0.7 * np.linalg.norm(part[:n]) * np.linalg.norm(sent[:n]):
        return
    for frame in live:
        for offset in range(0, len(frame.audio), WIRE_RATE // 1000):
            yield (frame.t - tap.time_at(first + 2 * (place + offset))) * 1000
        place += len(frame.audio)


def received(frames: list[Frame]) -> Samples:
    """What the server had of a turn when it was closed: all appends since the buffer was cleared,
    which is done before each turn, on each session."""
    pcm: list[Samples] = []
    turn = np.empty(0, np.int16)
    for frame in frames:
        if frame.kind == "input_audio_buffer.clear":
            pcm = []
        elif frame.kind == APPEND:
            pcm.append(frame.audio)
        elif frame.kind == COMMITTED and pcm:
            turn = np.concatenate(pcm)
    return turn


def longest_hole_ms(sent: Samples, recorded: Samples) -> float:
    """The longest stretch of what was recorded at the microphone (48 kHz) that is not in `sent`
    (24 kHz) at its place; to 20 ms."""
    there = to_rate(recorded, EAR_RATE, WIRE_RATE).astype(float)
    size = 1 << (len(there) + len(sent)).bit_length()
    match = np.fft.irfft(np.fft.rfft(sent, size) * np.conj(np.fft.rfft(there, size)), size)
    place = int(np.argmax(match))
    place -= size if place > size // 2 else 0
    longest = run = 0
    for start in range(0, len(there) - BLOCK + 1, BLOCK):
        part, begin = there[start : start + BLOCK], place + start
        got = sent[max(begin, 0) : max(begin + BLOCK, 0)].astype(float)
        whole = len(got) == BLOCK
        like = whole and part @ got > LIKE * np.linalg.norm(part) * np.linalg.norm(got)
        run = 0 if like else run + 1
        longest = max(longest, run)
    return longest * 1000 * BLOCK / WIRE_RATE
