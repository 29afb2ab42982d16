"""What recordings and frame logs tell of a scene: words lost or doubled, sound that was not due,
audio that left while the light was dark."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.bench import figures
from tests.bench.figures import APPEND, DELTA, EAR_RATE, WIRE_RATE, Samples, longest_hole_ms
from tests.soak.unit import Lights
from voiced.sim.streams import Ear
from voiced.sim.wav import to_rate

PIECE = WIRE_RATE // 5
"""200 ms: of as much noise two pieces are never alike by chance (0.25 at best, among 5 s)."""
ALIKE = 0.5
"""A piece with a hole in its middle is still like one half of itself by 0.6."""
FAINT, LOUD = 10.0, 150.0
"""RMS of what is no sound, and of what is compared: the room has 58, the words 3,000."""
PAUSE = EAR_RATE // 200
"""5 ms: sound has no such stretch of zeros, and a shorter one does not make a piece unlike."""
EDGE_S = 0.15
"""The recording is dated to 5 ms, and to some periods more where a machine is busy."""
LIT_S = 0.3
"""A frame is received so long after it was sent, at most, while the line is good."""
PREROLL_S = 0.3
LOST_MS = 30.0
"""The comparison is by pieces of 20 ms."""
HOLE = EAR_RATE // 500
"""2 ms of exact zeros: a room has noise. Beside a load of 8 the speaker was late in 18 of 77
utterances, by up to 1.5 s; what was at the microphone was sent."""


@dataclass(frozen=True)
class Frame(figures.Frame):
    """A frame and the session it belongs to."""

    session: int


def answered_turn(frames: Sequence[Frame], since: float) -> Samples:
    """The audio of the turn that the newest answer belongs to, without zeros at its end."""
    asked = [f for f in frames if f.kind == "response.created" and f.t >= since]
    if not asked:
        return np.empty(0, np.int16)
    heard = [f for f in frames if f.session == asked[-1].session and since <= f.t <= asked[-1].t]
    return np.trim_zeros(figures.received(list(heard)), "b")


@dataclass(frozen=True)
class Words:
    """What became of an utterance, in milliseconds."""

    lost_ms: float
    """The longest stretch that the server did not get at its place."""
    doubled_ms: float
    """How much of it the server got at another place, too."""

    @property
    def ok(self) -> bool:
        return self.lost_ms <= LOST_MS and not self.doubled_ms


def compare(sent: Samples, tap: Ear, start: float, end: float) -> Words | None:
    """Hold what the server got of a turn against what was at the microphone in a span of time;
    None if the recording itself has a gap there, or whoever spoke came too late for the device."""
    first, last = tap.index_at(start), tap.index_at(end)
    if any(first - EAR_RATE < index < last + EAR_RATE for index, _ in (*tap.gaps, *tap.outages)):
        return None
    if len(sent) < PIECE:
        return Words((end - start) * 1000, 0.0)
    said = tap.snapshot(first, last)
    if _longest_silence(said) > HOLE:
        return None
    there = to_rate(said, EAR_RATE, WIRE_RATE).astype(float)
    size = 1 << (len(there) + len(sent)).bit_length()
    match = np.fft.irfft(np.fft.rfft(sent, size) * np.conj(np.fft.rfft(there, size)), size)
    place = int(np.argmax(match))
    place -= size if place > size // 2 else 0
    rest = (sent[: max(place, 0)], sent[max(place + len(there), 0) :])
    doubled = sum(
        like >= ALIKE
        for part in rest
        for like in _likenesses(part.astype(float), np.pad(there, PIECE))
    )
    return Words(longest_hole_ms(sent, said), doubled * 1000 * PIECE / WIRE_RATE)


def count_answers(frames: Sequence[Frame], since: float) -> int:
    """How many of the answers that were begun since then had a sound."""
    sounding = {f.event.get("response_id") for f in frames if f.kind == DELTA}
    return len(_begun(frames, since) & sounding)


def _begun(frames: Sequence[Frame], since: float) -> set[str]:
    """The ids of the answers that were begun since then."""
    return {
        f.event["response"]["id"] for f in frames if f.kind == "response.created" and f.t >= since
    }


def _longest_silence(sound: Samples) -> int:
    """Of exact zeros, in samples."""
    sounding = np.flatnonzero(sound)
    return int(np.diff(sounding, prepend=-1, append=len(sound)).max()) - 1


def _likenesses(sound: Any, within: Any) -> Iterator[float]:
    """Of each whole piece of a sound: how like it is to the place in `within` it is most like.
    Those that are faint for the most part are left out: a burst of noise is like any other."""
    size = 1 << (len(within) + PIECE).bit_length()
    spectrum = np.fft.rfft(within, size)
    energy = np.concatenate(([0.0], np.cumsum(within**2)))
    norms = np.sqrt(energy[PIECE:] - energy[:-PIECE]) + FAINT * PIECE**0.5
    for begin in range(0, len(sound) - PIECE + 1, PIECE):
        piece = sound[begin : begin + PIECE]
        norm = float(np.linalg.norm(piece))
        parts = piece.reshape(20, -1).astype(float)
        if np.median(np.sqrt(np.mean(parts**2, axis=1))) > LOUD:
            match = np.fft.irfft(spectrum * np.conj(np.fft.rfft(piece, size)), size)
            yield float((match[: len(norms)] / norms).max()) / norm


def answers(frames: Sequence[Frame], start: float, end: float) -> Samples:
    """The audio of the answers that were begun and sent in a span of time, at WIRE_RATE."""
    asked = _begun(frames, start)
    deltas = [
        f
        for f in frames
        if f.kind == DELTA and start <= f.t <= end and f.event.get("response_id") in asked
    ]
    pcm = b"".join(base64.b64decode(f.event["delta"]) for f in deltas)
    return np.frombuffer(pcm, "<i2")


@dataclass(frozen=True)
class Due:
    """From when to when sound was due, and of which deltas: all from `asked` on."""

    asked: float
    start: float
    end: float


def due(notes: Sequence[dict[str, Any]], start: float, end: float) -> list[Due]:
    """The spans in which the daemon's own events say that it speaks."""
    found: list[Due] = []
    began, asked = None, start
    for note in notes:
        if note["t"] < start or note["event"] not in ("turn", "flushed"):
            continue
        if note.get("turn") == "speaking" and began is None:
            began = note["t"]
        elif began is not None and (note["event"] == "flushed" or note["before"] == "speaking"):
            stopped = note.get("dropped_at", note["t"])
            found.append(Due(asked, began, stopped))
            began, asked = None, stopped
    if began is not None:
        found.append(Due(asked, began, end))
    return found


def stale_ms(
    ear: Ear, frames: Sequence[Frame], spans: Sequence[Due], start: float, end: float
) -> tuple[float, float]:
    """Sound in milliseconds that nobody was due to hear: outside of the spans, and inside of them
    what is in none of their answers."""
    quiet, at = 0, start
    for span in [*spans, Due(end, end + EDGE_S, end)]:
        first, last = ear.index_at(at), ear.index_at(max(at, span.start - EDGE_S))
        quiet += int(np.count_nonzero(ear.snapshot(first, last))) if last > first else 0
        at = max(at, span.end + EDGE_S)
    strange = sum(_strange_pieces(ear, frames, span) for span in spans if not has_gap(ear, span))
    return quiet * 1000 / EAR_RATE, strange * 1000 * PIECE / WIRE_RATE


def has_gap(ear: Ear, span: Due) -> bool:
    """The recording lacks something there, so nobody can say what was heard."""
    first, last = ear.index_at(span.start), ear.index_at(span.end)
    return any(first <= index <= last for index, _ in (*ear.gaps, *ear.outages))


def _strange_pieces(ear: Ear, frames: Sequence[Frame], span: Due) -> int:
    said = answers(frames, span.asked - EDGE_S, span.end).astype(float)
    sound = ear.snapshot(ear.index_at(span.start), ear.index_at(span.end))
    if len(said) < PIECE:
        return int(np.count_nonzero(to_rate(sound, EAR_RATE, WIRE_RATE)) > PIECE)
    within = np.pad(said, PIECE)  # a piece may hold its first or last sample

    def unlike(sound: Samples) -> int:
        heard = to_rate(sound, EAR_RATE, WIRE_RATE).astype(float)
        return sum(like < ALIKE for like in _likenesses(heard, within))

    # A pause may stand where sound was lost, or have come between (an underrun, which is counted).
    return min(unlike(sound), unlike(_without_pauses(sound)))


def _without_pauses(sound: Samples) -> Samples:
    """What is left without stretches of exact zeros of PAUSE samples and more."""
    sounding = np.flatnonzero(sound)
    begins = np.flatnonzero(np.diff(sounding, prepend=-PAUSE) >= PAUSE)
    parts = np.split(sounding, begins[begins > 0])
    return np.concatenate([sound[:0], *(sound[p[0] : p[-1] + 1] for p in parts if len(p))])


def dark_appends(frames: Sequence[Frame], lights: Lights) -> int:
    """Appends with a sample that isn't zero, received while the light had been dark for long."""
    return sum(
        frame.kind == APPEND
        and bool(frame.audio.any())
        and not lights.lit_within(frame.t - LIT_S, frame.t)
        for frame in frames
    )
