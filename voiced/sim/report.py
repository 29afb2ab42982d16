"""What a trial found: every figure from the recording, the frame log and the timeline.

Pure. Times are CLOCK_MONOTONIC seconds, sample indices count from the start of HEARD.wav (48 kHz).
`docs/report.schema.json` is written from the types here, `docs/report.md` explains the figures.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta, Struct

from voiced.sim.wav import Samples, to_rate

HEARD_RATE = 48_000
WIRE_RATE = 24_000

SPEECH_FRAME_S = 0.02
SPEECH_RANGE_DB = 35.0
"""A frame is speech if it is within this of the loudest: a weak final sound is 20-30 dB down."""

ZERO_RUN_S = 0.02
"""Exact zeros at least this long are silence that was made, not heard."""

PAUSE_S = 0.5
"""Appends further apart than this are two stretches: blocks come every 20 ms."""

WHOLE_S = 0.03
"""The most by which an answer as heard may differ from what the server sent."""

MARGIN_S = 1.5
"""What a hands-free turn may send beyond its speech: pre-roll, and the silence that ends it."""

RESOLUTION_S = 0.01
"""Sound this soon after a drop is not stale: recordings are dated to 5 ms, at both ends."""

Rgb = tuple[float, float, float]


# --- what goes in ------------------------------------------------------------------------


class Clock:
    """Which sample of the recording passed when: straight lines between (index, time) points.

    Raises ValueError without a point; outside the points the nominal rate counts.
    """

    def __init__(self, points: Sequence[tuple[int, float]], rate: int = HEARD_RATE) -> None:
        if not points:
            raise ValueError("a clock needs at least one point")
        self.points = list(points)
        # A day of nominal rate on both sides, so that interpolation is all there is.
        (first, at_first), (last, at_last) = self.points[0], self.points[-1]
        day = 86_400
        self._indices = np.array(
            [first - day * rate, *(index for index, _ in self.points), last + day * rate], float
        )
        self._times = np.array([at_first - day, *(at for _, at in self.points), at_last + day])

    def time_at(self, index: float) -> float:
        """When sample `index` passed."""
        return float(np.interp(index, self._indices, self._times))

    def index_at(self, at: float) -> int:
        """The sample that passed at `at`; negative before the recording."""
        return round(float(np.interp(at, self._times, self._indices)))


@dataclass
class Question:
    """One question as it was put; times are None for what did not come to pass."""

    name: str
    samples: Samples  # at HEARD_RATE, shape (n,)
    asked_at: float  # when it was decided to ask it
    press_at: float | None = None
    release_at: float | None = None
    started_at: float | None = None  # its first sample was at the microphone
    cancel_at: float | None = None
    held: bool = False
    problems: list[str] = field(default_factory=list)

    @property
    def begins_at(self) -> float:
        """Everything from here on belongs to this turn."""
        times = [at for at in (self.press_at, self.started_at) if at is not None]
        return min(times, default=self.asked_at)


@dataclass(frozen=True)
class Run:
    """All that a trial recorded.

    `frames` holds the frame log's lines as dicts, or None if the server was not ours; `notes` the
    control socket's events; `lights` (time, colour) at each change of the pins.
    """

    heard: Samples
    clock: Clock
    questions: Sequence[Question]
    frames: Sequence[Mapping[str, Any]] | None
    notes: Sequence[Mapping[str, Any]]
    lights: Sequence[tuple[float, Rgb]]
    parrot: bool
    rig_delay_ms: float
    rig_drop_ms: float
    ready_ms: float | None
    daemon: Daemon
    status: Mapping[str, Any] | None  # the daemon's last snapshot
    violations: Sequence[str]
    problems: Sequence[str]


# --- what comes out ----------------------------------------------------------------------


class _Table(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


def _text(description: str) -> Meta:
    return Meta(description=description)


class Mark(_Table, frozen=True):
    """Something that happened."""

    name: Literal[
        "press",
        "release",
        "speech_start",
        "speech_end",
        "first_append",
        "committed",
        "response_created",
        "first_delta",
        "last_delta",
        "first_sound",
        "last_sound",
        "cancel",
        "drop",
        "truncate",
        "response_done",
        "state",
        "light",
    ]
    t: Annotated[float, _text("CLOCK_MONOTONIC, seconds")]
    index: Annotated[int, _text("the sample of HEARD.wav that left the speaker at t")]
    value: Annotated[str | Rgb | None, _text("the state, the light's colour, an id")]


class Daemon(_Table, frozen=True):
    """What the daemon cost, with the interpreter and the mock pins, at the end of the run."""

    cpu_s: Annotated[float | None, _text("user and system time")]
    peak_rss_mb: Annotated[float | None, _text("VmHWM, in 1e6 bytes")]


class Xruns(_Table, frozen=True):
    """The daemon's own counters."""

    capture: int | None
    playback: int | None
    holes: Annotated[int | None, _text("an answer ran dry because the network was late")]


class Usage(_Table, frozen=True):
    """Tokens of all responses."""

    input: int
    output: int
    total: int


class TurnReport(_Table, frozen=True):
    """One question and its answer. Absent is null; without our own server much is."""

    question: Annotated[str, _text("the WAV file")]
    ok: Annotated[bool, _text("the turn was whole")]
    problems: Annotated[list[str], _text("why it was not")]
    said_s: Annotated[float, _text("length of the WAV")]
    sent_s: Annotated[float | None, _text("audio appended; its three parts follow")]
    speech_s: Annotated[float | None, _text("sent_s less zeros_s and preroll_s")]
    zeros_s: Annotated[float | None, _text("all-zero appends and runs of 20 ms of exact zeros")]
    preroll_s: Annotated[float | None, _text("audio from before the press; null without one")]
    answer_s: Annotated[float | None, _text("audio the server sent")]
    answer_sound_s: Annotated[float | None, _text("of it, first to last non-zero sample")]
    heard_s: Annotated[float | None, _text("first to last non-zero sample in HEARD.wav")]
    correlation: Annotated[
        float | None, _text("normalised cross-correlation of heard and question; parrot only")
    ]
    states: Annotated[list[tuple[str, float, int]], _text("[turn state, t, index]")]
    lights: Annotated[list[tuple[Rgb, float, int]], _text("[[red, green, blue], t, index]")]
    press_to_first_append_ms: float | None
    speech_end_to_turn_end_ms: Annotated[
        float | None, _text("last speech at the microphone to the server's committed")
    ]
    first_delta_to_sound_ms: Annotated[
        float | None, _text("less rig_delay_ms and the zeros the answer begins with")
    ]
    cancel_to_drop_ms: Annotated[float | None, _text("press at the pin to drop() returned")]
    cancel_to_silence_ms: Annotated[
        float | None, _text("press at the pin to the last non-zero sample, less rig_drop_ms")
    ]
    stale_audio_ms: Annotated[
        float | None, _text("non-zero samples from 10 ms after the drop to the next answer")
    ]
    audio_end_items: Annotated[list[str], _text("items that were truncated")]
    audio_end_ms_sent: Annotated[list[int], _text("what their truncate said")]
    audio_end_ms_heard: Annotated[list[float], _text("what HEARD.wav holds of them")]
    events: Annotated[list[Mark], _text("all that happened, in order")]


class Report(_Table, frozen=True):
    """What `scripts/try.sh --report` writes; docs/report.md explains it."""

    version: Literal[1]
    ok: Annotated[bool, _text("every turn was whole and there is no other problem")]
    problems: list[str]
    protocol_violations: list[str]
    xruns: Xruns
    usage: Usage | None
    rig_delay_ms: Annotated[float, _text("the rig's own: write to first sample in HEARD.wav")]
    rig_drop_ms: Annotated[float, _text("the rig's own: drop to last sample in HEARD.wav")]
    ready_ms: Annotated[float | None, _text("daemon started to READY=1")]
    daemon: Daemon
    clock: Annotated[
        list[tuple[int, float]], _text("[index, t] points that date HEARD.wav's samples")
    ]
    turns: list[TurnReport]


def schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of a report."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Report of an unattended trial of voiced",
        **msgspec.json.schema(Report),
    }


# --- measures ----------------------------------------------------------------------------


def speech_span(samples: Samples, rate: int) -> tuple[int, int]:
    """First and one past the last sample of the speech in mono `samples`, by frames of 20 ms."""
    size = round(SPEECH_FRAME_S * rate)
    frames = [samples[at : at + size].astype(np.float64) for at in range(0, len(samples), size)]
    power = np.array([float(np.mean(frame**2)) for frame in frames])
    loud = np.flatnonzero(power >= max(power.max() * 10 ** (-SPEECH_RANGE_DB / 10), 1e-9))
    if not len(loud):
        return 0, 0
    return int(loud[0]) * size, min((int(loud[-1]) + 1) * size, len(samples))


def sounding(samples: Samples) -> tuple[int, int] | None:
    """The first and the last non-zero sample, or None in silence."""
    found = np.flatnonzero(samples)
    return (int(found[0]), int(found[-1])) if len(found) else None


def zeros_in(appends: Sequence[Samples]) -> int:
    """Samples in all-zero appends, or in runs of exact zeros of at least ZERO_RUN_S."""
    if not appends:
        return 0
    zero = np.concatenate(appends) == 0
    edges = np.flatnonzero(np.diff(np.concatenate(([False], zero, [False])).astype(np.int8)))
    made = np.zeros(len(zero), bool)
    for begin, end in zip(edges[::2], edges[1::2], strict=True):
        made[begin:end] = end - begin >= ZERO_RUN_S * WIRE_RATE
    at = 0
    for each in appends:
        made[at : at + len(each)] |= not each.any()
        at += len(each)
    return int(made.sum())


def capture_start(appends: Sequence[tuple[float, Samples]]) -> float | None:
    """When the first sample of the first stretch of (received at, samples) was captured, at the
    latest: no append can hold what was said after it arrived."""
    start, captured, before = math.inf, 0, math.inf
    for at, samples in appends:
        if at - before > PAUSE_S or not samples.any():
            break
        before = at
        captured += len(samples)
        start = min(start, at - captured / WIRE_RATE)
    return start if captured else None


def correlation(heard: Samples, question: Samples) -> float:
    """The best normalised cross-correlation of two recordings at HEARD_RATE, 0.0 to 1.0.

    Compared at the wire's rate: nothing above its half can come back. The shorter one is sought
    in the longer one, also across its ends, so that half an answer is found in the question.
    """
    pair = [to_rate(each, HEARD_RATE, WIRE_RATE).astype(np.float64) for each in (heard, question)]
    sought, within = sorted(pair, key=len)
    if not sought.any() or not within.any():
        return 0.0
    size = 1 << (2 * len(sought) + len(within)).bit_length()
    padded = np.pad(within, len(sought))
    product = np.fft.rfft(padded, size) * np.conj(np.fft.rfft(sought, size))
    lags = len(within) + len(sought) + 1
    dots = np.fft.irfft(product, size)[:lags]
    sums = np.concatenate(([0.0], np.cumsum(padded**2)))
    energy = sums[len(sought) : len(sought) + lags] - sums[:lags]
    floor = 1e-6 * float(np.sum(sought**2))  # beyond the ends there is nothing to compare with
    scale = np.sqrt(np.sum(sought**2) * np.maximum(energy, floor))
    return float(np.clip(np.max(dots / scale), 0.0, 1.0))


# --- one turn ----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Answer:
    """What the server sent of one turn's answer. `audio`: (sent at, item, samples)."""

    audio: list[tuple[float, str, Samples]]

    @property
    def samples(self) -> Samples:
        return np.concatenate([np.empty(0, np.int16), *(pcm for _, _, pcm in self.audio)])

    def items(self) -> Iterator[tuple[str, int, int]]:
        """(item, first sample, number of samples), in order."""
        lengths: dict[str, int] = {}
        for _, item, pcm in self.audio:
            lengths[item] = lengths.get(item, 0) + len(pcm)
        begin = 0
        for item, length in lengths.items():
            yield item, begin, length
            begin += length


def _pcm(text: str) -> Samples:
    return np.frombuffer(base64.b64decode(text), "<i2").astype(np.int16)


class _Turn:
    """One question with the part of the run that is its own: from `begin` to before `end`."""

    def __init__(self, run: Run, question: Question, begin: float, end: float) -> None:
        self.run, self.question = run, question
        self._end = end
        self.notes = [note for note in run.notes if begin <= note["t"] < end]
        self.lights = [(at, rgb) for at, rgb in run.lights if begin <= at < end]
        self.frames = [frame for frame in run.frames or () if begin <= frame["t"] < end]
        first, last = speech_span(question.samples, HEARD_RATE)
        self.speech_s = (last - first) / HEARD_RATE
        started = question.started_at
        self.speech_start = None if started is None else started + first / HEARD_RATE
        self.speech_end = None if started is None else started + last / HEARD_RATE
        self.appends = [
            (frame["t"], _pcm(frame["event"]["audio"]))
            for frame in self.of("client", "input_audio_buffer.append")
        ]
        self.answer = _Answer(list(self._audio()))
        self.sound = self._sound()
        self.drop_at: float | None = next(
            (n["dropped_at"] for n in self.noted("flushed") if self._caused_by_cancel(n)), None
        )

    def of(self, source: str, kind: str) -> list[Mapping[str, Any]]:
        """The frames of this type."""
        return [f for f in self.frames if f["from"] == source and f["event"].get("type") == kind]

    def noted(self, name: str) -> list[Mapping[str, Any]]:
        """The control socket's events of this name."""
        return [note for note in self.notes if note["event"] == name]

    def _caused_by_cancel(self, note: Mapping[str, Any]) -> bool:
        cancel = self.question.cancel_at
        return cancel is not None and bool(note["t"] >= cancel)

    def _audio(self) -> Iterator[tuple[float, str, Samples]]:
        """The answer's audio; not of responses that were taken back before they sounded."""
        taken_back = set()
        if self.question.cancel_at is None:
            done = [frame["event"]["response"] for frame in self.of("server", "response.done")]
            taken_back = {each["id"] for each in done if each["status"] == "cancelled"}
        for frame in self.of("server", "response.output_audio.delta"):
            event = frame["event"]
            if event["response_id"] not in taken_back:
                yield frame["t"], event["item_id"], _pcm(event["delta"])

    @property
    def first_delta(self) -> float | None:
        return self.answer.audio[0][0] if self.answer.audio else None

    def _sound(self) -> tuple[int, int] | None:
        """First and last index of the answer in the recording: all that sounds until the next
        question, and not before the server sent it (or, with another's server, we spoke)."""
        speaking = [n["t"] for n in self.noted("turn") if n["turn"] == "speaking"]
        begins = self.first_delta if self.run.frames is not None else min(speaking, default=None)
        if begins is None:
            return None
        clock, heard = self.run.clock, self.run.heard
        begin = max(0, clock.index_at(begins))
        end = len(heard) if self._end == math.inf else max(0, clock.index_at(self._end))
        found = sounding(heard[begin:end])
        return (begin + found[0], begin + found[1]) if found else None

    # --- figures -------------------------------------------------------------------------

    def sent_samples(self) -> int:
        return sum(len(samples) for _, samples in self.appends)

    def preroll_s(self) -> float | None:
        start, press = capture_start(self.appends), self.question.press_at
        return None if start is None or press is None else max(0.0, press - start)

    def heard(self) -> Samples:
        if self.sound is None:
            return self.run.heard[:0]
        return self.run.heard[self.sound[0] : self.sound[1] + 1]

    def sound_at(self, which: Literal[0, 1]) -> float | None:
        return None if self.sound is None else self.run.clock.time_at(self.sound[which])

    def turn_end(self) -> float | None:
        committed = self.of("server", "input_audio_buffer.committed")
        return committed[-1]["t"] if committed else None

    def stale_ms(self) -> float | None:
        if self.drop_at is None or self.sound is None:
            return None
        silent_at = self.drop_at + self.run.rig_drop_ms / 1000 + RESOLUTION_S
        after = max(self.run.clock.index_at(silent_at), self.sound[0])
        stale = int(np.count_nonzero(self.run.heard[after : self.sound[1] + 1]))
        return round(stale / HEARD_RATE * 1000, 3)

    def truncates(self) -> list[tuple[str, int]]:
        """(item, audio_end_ms) as sent."""
        if self.run.frames is None:
            return [(i, ms) for n in self.noted("flushed") for i, ms in n["heard_ms"].items() if ms]
        events = [f["event"] for f in self.of("client", "conversation.item.truncate")]
        return [(event["item_id"], event["audio_end_ms"]) for event in events]

    def heard_ms_of(self, wanted: str) -> float:
        """How much of an item is in the recording, in ms."""
        sent = sounding(self.answer.samples)
        if self.sound is None or sent is None:
            return 0.0
        heard_s = sent[0] / WIRE_RATE + (self.sound[1] + 1 - self.sound[0]) / HEARD_RATE
        for item, begin, length in self.answer.items():
            if item == wanted:
                return 1000 * min(max(heard_s - begin / WIRE_RATE, 0.0), length / WIRE_RATE)
        return 0.0

    # --- what happened -------------------------------------------------------------------

    def events(self) -> list[Mark]:
        marks = [
            *self._once("press", self.question.press_at),
            *self._once("release", self.question.release_at),
            *self._once("speech_start", self.speech_start),
            *self._once("speech_end", self.speech_end),
            *self._once("first_append", self.appends[0][0] if self.appends else None),
            *self._once("first_delta", self.first_delta),
            *self._once("last_delta", self.answer.audio[-1][0] if self.answer.audio else None),
            *self._once("first_sound", self.sound_at(0)),
            *self._once("last_sound", self.sound_at(1)),
            *self._once("cancel", self.question.cancel_at),
            *self._once("drop", self.drop_at),
            *self._frames("committed", "server", "input_audio_buffer.committed"),
            *self._frames("response_created", "server", "response.created"),
            *self._frames("response_done", "server", "response.done"),
            *self._frames("truncate", "client", "conversation.item.truncate"),
            *(self._mark("state", note["t"], note["turn"]) for note in self.noted("turn")),
            *(self._mark("light", at, rgb) for at, rgb in self.lights),
        ]
        return sorted(marks, key=lambda mark: mark.t)

    def _mark(self, name: Any, at: float, value: str | Rgb | None = None) -> Mark:
        return Mark(name=name, t=at, index=self.run.clock.index_at(at), value=value)

    def _once(self, name: str, at: float | None) -> list[Mark]:
        return [] if at is None else [self._mark(name, at)]

    def _frames(self, name: str, source: str, kind: str) -> list[Mark]:
        return [
            self._mark(
                name,
                frame["t"],
                frame["event"].get("item_id") or frame["event"].get("response", {}).get("id"),
            )
            for frame in self.of(source, kind)
        ]

    # --- the verdict ---------------------------------------------------------------------

    def problems(self) -> list[str]:
        """Why this turn was not whole."""
        found = list(self.question.problems)
        for name in ("refused", "fault", "link-lost", "bug"):
            found += [note["text"] for note in self.noted(name)]
        found += self._unsent() if self.run.frames is not None else []
        found += self._unheard()
        return list(dict.fromkeys(found))  # a fault that lasts is told again and again

    def _unsent(self) -> list[str]:
        found = []
        if not self.of("server", "response.created"):
            found.append("the server created no response")
        commits = len(self.of("server", "input_audio_buffer.committed"))
        if commits > 1 and not self.question.held:
            found.append(
                f"the server ended the turn {commits} times: the question has long pauses; "
                "try it with --hold"
            )
        sent_s = self.sent_samples() / WIRE_RATE
        if not self.question.held and sent_s > self.speech_s + MARGIN_S:
            found.append(f"{sent_s:.2f} s were sent for {self.speech_s:.2f} s of speech")
        return found

    def _unheard(self) -> list[str]:
        if self.sound is None:
            return ["no answer was heard"]
        if self.question.cancel_at is not None:
            if self.drop_at is None:
                return ["the daemon did not drop the answer on the press"]
            stale_ms = self.stale_ms()
            return [f"{stale_ms} ms sounded after the drop"] if stale_ms else []
        sent, heard_s = sounding(self.answer.samples), len(self.heard()) / HEARD_RATE
        if sent is None:
            return []
        answer_s = (sent[1] + 1 - sent[0]) / WIRE_RATE
        if abs(heard_s - answer_s) <= WHOLE_S:
            return []
        return [f"{heard_s:.3f} s were heard of an answer of {answer_s:.3f} s"]

    def report(self) -> TurnReport:
        """All figures of the turn."""
        run, question = self.run, self.question
        ours = run.frames is not None
        sent, zeros = self.sent_samples(), zeros_in([pcm for _, pcm in self.appends])
        preroll_s = self.preroll_s()
        answer = self.answer.samples
        extent = sounding(answer)
        lead_ms = 1000 * extent[0] / WIRE_RATE if extent else 0.0
        problems = self.problems()
        index_at = run.clock.index_at
        return TurnReport(
            question=question.name,
            ok=not problems,
            problems=problems,
            said_s=round(len(question.samples) / HEARD_RATE, 6),
            sent_s=_s(sent / WIRE_RATE) if ours else None,
            speech_s=_s((sent - zeros) / WIRE_RATE - (preroll_s or 0.0)) if ours else None,
            zeros_s=_s(zeros / WIRE_RATE) if ours else None,
            preroll_s=_s(preroll_s),
            answer_s=_s(len(answer) / WIRE_RATE) if ours else None,
            answer_sound_s=_s((extent[1] + 1 - extent[0]) / WIRE_RATE) if extent else None,
            heard_s=_s(len(self.heard()) / HEARD_RATE) if self.sound else None,
            correlation=(
                round(correlation(self.heard(), question.samples), 4)
                if run.parrot and self.sound
                else None
            ),
            states=[(n["turn"], n["t"], index_at(n["t"])) for n in self.noted("turn")],
            lights=[(rgb, at, index_at(at)) for at, rgb in self.lights],
            press_to_first_append_ms=_ms(
                question.press_at, self.appends[0][0] if self.appends else None
            ),
            speech_end_to_turn_end_ms=_ms(self.speech_end, self.turn_end()),
            first_delta_to_sound_ms=_ms(
                self.first_delta, self.sound_at(0), run.rig_delay_ms + lead_ms
            ),
            cancel_to_drop_ms=_ms(question.cancel_at, self.drop_at),
            cancel_to_silence_ms=_ms(question.cancel_at, self.sound_at(1), run.rig_drop_ms),
            stale_audio_ms=self.stale_ms(),
            audio_end_items=[item for item, _ in self.truncates()],
            audio_end_ms_sent=[end_ms for _, end_ms in self.truncates()],
            audio_end_ms_heard=(
                [round(self.heard_ms_of(item), 3) for item, _ in self.truncates()] if ours else []
            ),
            events=self.events(),
        )


def _s(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)


def _ms(since: float | None, until: float | None, less_ms: float = 0.0) -> float | None:
    return None if since is None or until is None else round(1000 * (until - since) - less_ms, 3)


# --- the whole ---------------------------------------------------------------------------


def compute(run: Run) -> Report:
    """The report. Turn by turn, everything from the first question's start to the next one's."""
    begins = [-math.inf, *(question.begins_at for question in run.questions[1:])]
    ends = [*begins[1:], math.inf]
    turns = [
        _Turn(run, question, begin, end).report()
        for question, begin, end in zip(run.questions, begins, ends, strict=True)
    ]
    problems = [f"turn {n}: {why}" for n, turn in enumerate(turns, 1) for why in turn.problems]
    problems += [f"protocol violation: {text}" for text in run.violations]
    problems += run.problems
    counters = run.status["counters"] if run.status else {}
    return Report(
        version=1,
        ok=not problems,
        problems=problems,
        protocol_violations=list(run.violations),
        xruns=Xruns(
            capture=counters.get("capture_xruns"),
            playback=counters.get("playback_xruns"),
            holes=counters.get("playback_holes"),
        ),
        usage=msgspec.convert(run.status["tokens"], Usage) if run.status else None,
        rig_delay_ms=round(run.rig_delay_ms, 3),
        rig_drop_ms=round(run.rig_drop_ms, 3),
        ready_ms=None if run.ready_ms is None else round(run.ready_ms, 1),
        daemon=run.daemon,
        clock=run.clock.points,
        turns=turns,
    )


_COLUMNS = (
    ("said s", "said_s", 2),
    ("sent s", "sent_s", 2),
    ("answer s", "answer_s", 2),
    ("heard s", "heard_s", 2),
    ("turn end ms", "speech_end_to_turn_end_ms", 0),
    ("first sound ms", "first_delta_to_sound_ms", 1),
    ("drop ms", "cancel_to_drop_ms", 1),
    ("silence ms", "cancel_to_silence_ms", 1),
)


def table(report: Report) -> str:
    """The report for a person: a line for each turn, then what was wrong."""
    rows = [["question", *(title for title, _, _ in _COLUMNS), "whole"]]
    for turn in report.turns:
        figures = [(getattr(turn, name), digits) for _, name, digits in _COLUMNS]
        cells = ["-" if value is None else f"{value:.{digits}f}" for value, digits in figures]
        rows.append([turn.question.rsplit("/", 1)[-1], *cells, "yes" if turn.ok else "NO"])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    ]
    return "\n".join([*lines, *(f"problem: {why}" for why in report.problems)])
