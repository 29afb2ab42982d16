"""A device in simulated time: the core, a finger, a room, a speaker, and the built-in server.

Everything happens at exact times and in order; nothing sleeps. The invariants that must hold at
any moment are checked at every step: no sound leaves under a dark light or a mute, and no local
cause is unlisted.
"""

from __future__ import annotations

import base64
import heapq
import json
import logging
import random
from collections.abc import Callable
from itertools import count
from typing import Any

import numpy as np

from voiced.config import Config, Turn
from voiced.core import earcons
from voiced.core.conversation import Conversation
from voiced.core.faults import FAULTS
from voiced.core.turn import TurnState
from voiced.events import (
    BLOCK_FRAMES,
    BLOCK_MS,
    WIRE_RATE,
    AudioSent,
    ButtonEdge,
    Chime,
    CloseLink,
    Command,
    DeviceBack,
    Dial,
    DropUnsent,
    Duck,
    EndPlay,
    Event,
    Flush,
    Flushed,
    Hush,
    KeepConversation,
    LightShown,
    LinkClosed,
    LinkFrame,
    LinkOpened,
    MicrophoneBlock,
    Note,
    Play,
    PlaybackDrained,
    PlaybackStarted,
    Reply,
    Restart,
    Samples,
    Send,
    SetMuted,
    Show,
    Status,
    Tick,
)
from voiced.sim.realtime_session import Close, RealtimeSession, Script, Verdict

LATENCY_S = 0.03
UNIX_S = 1.8e9
DEVICE_S = 0.08
"""So much sound is in the speaker's buffer."""


def voice(seconds: float, seed: int = 1) -> Samples:
    """Something the gate takes for speech, and no stretch of which is like another: a buzz of
    many harmonics whose pitch wanders, in syllables."""
    frames = round(seconds * WIRE_RATE)
    rng = np.random.default_rng(seed)
    times = np.arange(0, seconds + 0.1, 0.02)
    pitch = np.interp(np.arange(frames) / WIRE_RATE, times, rng.uniform(90, 250, len(times)))
    phase = 2 * np.pi * np.cumsum(pitch) / WIRE_RATE
    buzz = sum(np.sin(k * phase + rng.uniform(0, 6)) / k for k in range(1, 40))
    syllables = 0.6 + 0.4 * np.sin(2 * np.pi * 4 * np.arange(frames) / WIRE_RATE)
    return np.asarray(3000 * buzz * syllables, np.int16)


LOCAL = Config(turn=Turn(end="local"))
QUESTION = voice(1.5)
SECOND = voice(1.5, seed=2)


class World:
    """`run` until a time or a condition; look at `sent`, `heard`, `lights`, `notes` afterwards."""

    def __init__(
        self,
        config: Config | None = None,
        script: Script | None = None,
        *,
        noise_rms: float = 30.0,
        dial_s: float = 0.1,
        muted: bool = False,
        echo_gain: float = 0.0,
    ) -> None:
        self.now = 100.0
        self.verdict = Verdict()
        self.script = script or Script()
        self.dial_s = dial_s
        self.dials: list[float] = []
        self.refuse_until = 0.0
        self.sent: list[tuple[float, dict[str, Any]]] = []
        self.received: list[tuple[float, dict[str, Any]]] = []
        self.played: list[tuple[float, Samples]] = []
        self.lights: list[tuple[float, str]] = []
        self.notes: list[Note] = []
        self.replies: list[Reply] = []
        self.chimes: list[tuple[float, str]] = []
        self.kept: list[bytes | None] = []
        self.exits: list[int] = []
        self.ducks: list[tuple[float, bool]] = []
        self.states: list[str] = []
        self.statuses: list[str] = []
        self.server: RealtimeSession | None = None
        self.light_dark = True
        self.uplink_delay_s = 0.0
        self.stuck = False
        """The socket takes nothing."""
        self.lights_work = True
        self.filter: Callable[[dict[str, Any]], dict[str, Any] | None] = lambda event: event
        self.core = Conversation(config or Config(), random.Random(1), muted=muted, now=self.now)
        self._noise = np.random.default_rng(7)
        self._noise_rms = noise_rms
        self._echo_gain = echo_gain
        self._room: dict[int, Samples] = {}
        self._muted = muted
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._dial: int | None = None
        self._speaker = Speaker()
        self._pending: list[Event] = []
        for device in ("microphone", "speaker", "lights"):
            self.give(DeviceBack(device, self.now))  # type: ignore[arg-type]
        self.at(self.now, self._hear)

    # --- acting --------------------------------------------------------------------------

    def at(self, when: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._agenda, (when, next(self._order), act))

    def press(self, at: float | None = None) -> None:
        when = self.now if at is None else at
        self.at(when, lambda: self.give(ButtonEdge(True, when)))

    def release(self, at: float | None = None) -> None:
        when = self.now if at is None else at
        self.at(when, lambda: self.give(ButtonEdge(False, when)))

    def tap(self, at: float | None = None) -> None:
        when = self.now if at is None else at
        self.press(when)
        self.release(when + 0.1)

    def command(self, name: str, at: float | None = None) -> None:
        when = self.now if at is None else at
        self.at(when, lambda: self.give(Command(name, "uid 0, pid 1", when)))

    def say(self, samples: Samples, at: float) -> None:
        """Put samples into the room from time `at` on."""
        first = round((at - 100.0) * WIRE_RATE)
        for block in range(first // BLOCK_FRAMES, (first + len(samples)) // BLOCK_FRAMES + 1):
            room = self._room.setdefault(block, np.zeros(BLOCK_FRAMES, np.int16))
            start = block * BLOCK_FRAMES
            a, b = max(first, start), min(first + len(samples), start + BLOCK_FRAMES)
            if b > a:
                room[a - start : b - start] += samples[a - first : b - first]

    def drop_link(self, code: int | None = 1006, reason: str = "") -> None:
        """The connection is gone."""
        dial, self._dial, self.server = self._dial, None, None
        if dial is not None:
            self.give(LinkClosed(self.now, dial, code, reason))

    def run(self, seconds: float | None = None, until: Callable[[], bool] | None = None) -> World:
        """Let time pass: `seconds`, or until a condition (60 s at most, then it fails)."""
        end = self.now + (seconds if seconds is not None else 60.0)
        while not (until and until()):
            step = self._next()
            if step > end:
                self.now = end
                assert until is None, f"it never came to that: {self.core}"
                break
            self.now = max(self.now, step)
            self._step()
        return self

    def until_state(self, state: TurnState) -> World:
        return self.run(until=lambda: self.core.state is state)

    # --- looking -------------------------------------------------------------------------

    def types(self, *, audio: bool = False) -> list[str]:
        """Types of what was sent, in order."""
        names = [event["type"] for _, event in self.sent]
        return [n for n in names if audio or n != "input_audio_buffer.append"]

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [event for _, event in self.sent if event["type"] == kind]

    def appended(self) -> Samples:
        """All audio that was sent, on all sessions."""
        pcm = b"".join(base64.b64decode(e["audio"]) for e in self.events(APPEND))
        return np.frombuffer(pcm, np.int16)

    def first_append_at(self) -> float:
        return next(t for t, event in self.sent if event["type"] == APPEND)

    @property
    def heard(self) -> Samples:
        """What left the speaker, without the silence between."""
        return np.concatenate([np.empty(0, np.int16), *self._speaker.heard])

    # --- inside --------------------------------------------------------------------------

    def _next(self) -> float:
        times = [self._agenda[0][0] if self._agenda else float("inf")]
        if (deadline := self.core.deadline()) is not None:
            times.append(deadline)
        if self.server:
            times.append(self.server.due_s + LATENCY_S)
        if (drained := self._speaker.drained_at()) is not None:
            times.append(drained)
        return min(times)

    def _step(self) -> None:
        if self._agenda and self._agenda[0][0] <= self.now:
            heapq.heappop(self._agenda)[2]()
        elif self.server and self.server.due_s + LATENCY_S <= self.now:
            self._from_server(self.server.advance(self.now - LATENCY_S))
        elif (at := self._speaker.drained_at()) is not None and at <= self.now:
            self.give(PlaybackDrained(self.now, self._speaker.drain(self.now)))
        else:
            self.give(Tick(self.now))

    def _hear(self) -> None:
        began = round((self.now - 100.0) * 1000 / BLOCK_MS) - 1
        noise = self._noise.normal(0, self._noise_rms, BLOCK_FRAMES)
        room = self._room.pop(began, np.zeros(BLOCK_FRAMES, np.int16))
        played = self._speaker.emitted(self.now)
        echo = 0.0 if played is None else self._echo_gain * played
        samples = np.clip(room + noise + echo, -32768, 32767).astype(np.int16)
        if self._muted:
            samples = np.zeros_like(samples)
        self.give(MicrophoneBlock(samples, self.now, self._muted, played))
        self.at(self.now + BLOCK_MS / 1000, self._hear)

    def give(self, event: Event) -> None:
        """One event into the core; its effects are carried out at once, as the app does."""
        self._pending.append(event)
        while self._pending:
            for effect in self.core.handle(self._pending.pop(0)):
                _PERFORM[type(effect)](self, effect)
        assert not [n.text for n in self.notes if n.name == "bug"]

    def _do_dial(self, effect: Dial) -> None:
        self.dials.append(self.now)
        self._dial, self.server = effect.dial, None
        self.at(self.now + self.dial_s, lambda: self._dialled(effect.dial))

    def _dialled(self, dial: int) -> None:
        if dial != self._dial:
            return
        if self.now < self.refuse_until:
            self._dial = None
            self.give(LinkClosed(self.now, dial, None, "refused", None, "no-route"))
            return
        self.give(LinkOpened(self.now, dial, UNIX_S))
        self.server = RealtimeSession(
            self.script,
            model="gpt-realtime-2.1",
            tag=f"s{dial}",
            now_s=self.now,
            unix_s=UNIX_S,
            verdict=self.verdict,
        )
        self._from_server(self.server.start())

    def _do_send(self, effect: Send) -> None:
        event = json.loads(effect.text)
        self.sent.append((self.now, event))
        if event["type"] == APPEND and any(base64.b64decode(event["audio"])):
            assert not self.light_dark, "sound left under a dark light"
            assert not self._muted, "sound left while muted"
        if self.stuck:
            return
        if effect.audio_frames and self._dial is not None:
            dial = self._dial
            self.at(self.now, lambda: self.give(AudioSent(effect.audio_frames, self.now, dial)))
        if self.server:
            text, server = effect.text.decode(), self.server
            arrives = self.now + LATENCY_S + self.uplink_delay_s
            self.at(arrives, lambda: self._to_server(server, text))

    def _to_server(self, server: RealtimeSession, text: str) -> None:
        if server is self.server:
            self._from_server(server.receive(text, self.now))

    def _from_server(self, out: list[Any]) -> None:
        dial = self._dial
        assert dial is not None
        for each in out:
            if isinstance(each, Close):
                self.drop_link(each.code, each.reason)
            elif event := self.filter(each):
                self.received.append((self.now, event))
                self.give(LinkFrame(json.dumps(event), self.now, dial))

    def _do_close(self, _: CloseLink) -> None:
        self._dial, self.server = None, None

    def _do_play(self, effect: Play) -> None:
        if self._speaker.play(effect.samples, effect.epoch, self.now):
            self._pending.append(PlaybackStarted(self.now))

    def _do_chime(self, effect: Chime) -> None:
        self.chimes.append((self.now, effect.name))
        clip = voice(2.0) if FAULTS.get(effect.name) else earcons.samples(effect.name)
        self._speaker.chime(clip, self.now)

    def _do_duck(self, effect: Duck) -> None:
        self.ducks.append((self.now, effect.on))
        self._speaker.duck(effect.on, self.now)

    def _do_flush(self, effect: Flush) -> None:
        heard = self._speaker.flush(effect.epoch, self.now)
        self._pending.insert(0, Flushed(self.now, heard, effect.cause_at))

    def _do_show(self, effect: Show) -> None:
        if not self.lights_work:
            return
        self.lights.append((self.now, effect.pattern.name))
        self.light_dark = not effect.pattern.lit
        self._pending.insert(0, LightShown(effect.pattern, self.now))

    def _do_mute(self, effect: SetMuted) -> None:
        self._muted = effect.muted

    def _do_note(self, note: Note) -> None:
        self.notes.append(note)
        if note.name == "turn":
            self.states.append(note.fields["turn"])
        assert note.level < logging.ERROR or note.name == "too-long", note.text


def tapped(world: World) -> World:
    """Run a new world until just before a tap at 105 s."""
    world.run(4)
    world.tap(105.0)
    return world


def asked(world: World, at: float = 105.0, *, hold: bool = False) -> World:
    """Run until the answer to one question sounds."""
    world.run(at - world.now - 1)
    world.press(at)
    world.say(QUESTION, at + 0.2)
    world.release(at + 1.9 if hold else at + 0.1)
    return world.until_state(TurnState.SPEAKING)


def find(needle: np.ndarray, haystack: np.ndarray) -> int:
    """Where the one is in the other, by correlation; -1 if it is not."""
    spectrum = np.fft.rfft(haystack.astype(float), 2 * len(haystack))
    other = np.fft.rfft(needle.astype(float), 2 * len(haystack))
    match = np.fft.irfft(spectrum * np.conj(other))[: len(haystack)]
    place = int(np.argmax(match))
    part = haystack[place : place + len(needle)].astype(float)
    if len(part) < len(needle):
        return -1
    likeness = part @ needle / (np.linalg.norm(part) * np.linalg.norm(needle.astype(float)) + 1)
    return place if likeness > 0.95 else -1


def count_of(needle: np.ndarray, haystack: np.ndarray) -> int:
    """How often it is in there, one after the other."""
    times = 0
    while (place := find(needle, haystack)) >= 0:
        times += 1
        haystack = haystack.copy()
        haystack[place : place + len(needle)] = 0
    return times


class Speaker:
    """Plays in simulated time, sample by sample, from the first `play` on."""

    def __init__(self) -> None:
        self.heard: list[Samples] = []
        self._epoch = 0
        self._last: tuple[float | None, Samples] = (None, np.empty(0, np.int16))
        self._begin()

    def _begin(self) -> None:
        self._samples = np.empty(0, np.int16)
        self._started: float | None = None
        self._ending = False

    def play(self, samples: Samples, epoch: int, now: float) -> bool:
        assert epoch >= self._epoch, "audio of an answer that was cut"
        assert not self._ending or epoch > self._epoch, "audio after the end"
        if epoch > self._epoch:
            self._epoch = epoch
        first = self._started is None
        self._started = now if self._started is None else self._started
        self._samples = np.concatenate((self._samples, samples))
        return first

    def end(self, epoch: int, now: float) -> None:
        assert epoch == self._epoch
        self._ending = True

    def emitted(self, now: float) -> Samples | None:
        """What left it in the 20 ms before `now`; None if nothing did."""
        span = np.zeros(BLOCK_FRAMES, np.int16)
        current = (self._started, self._samples)
        for started, samples in (self._last, current):
            if started is None:
                continue
            first = round((now - started) * WIRE_RATE) - BLOCK_FRAMES
            a, b = max(first, 0), min(first + BLOCK_FRAMES, len(samples))
            if b > a:
                span[a - first : b - first] = samples[a:b]
        return span if span.any() else None

    def duck(self, on: bool, now: float) -> None:
        """What the device holds already goes on as it is."""
        if self._started is not None:
            first = self._frames(now) + round(DEVICE_S * WIRE_RATE)
            self._samples = self._samples.copy()
            self._samples[first:] = self._samples[first:] * (0.2 if on else 5.0)

    def chime(self, samples: Samples, now: float) -> None:
        if self._started is None:
            self._last = (now, samples)

    def hush(self, now: float) -> None:
        started, samples = self._last
        if self._started is None and started is not None:
            self._last = (started, samples[: max(0, round((now - started) * WIRE_RATE))])

    def _frames(self, now: float) -> int:
        if self._started is None:
            return 0
        return min(int((now - self._started) * WIRE_RATE + 1e-6), len(self._samples))

    def flush(self, epoch: int, now: float) -> int:
        frames = self._frames(now)
        self.heard.append(self._samples[:frames])
        self._last = (self._started, self._samples[:frames])
        self._epoch = epoch
        self._begin()
        return frames

    def drained_at(self) -> float | None:
        if not self._ending or self._started is None:
            return None
        return self._started + len(self._samples) / WIRE_RATE

    def drain(self, now: float) -> int:
        self.heard.append(self._samples)
        self._last = (self._started, self._samples)
        self._begin()
        return self._epoch


APPEND = "input_audio_buffer.append"

_PERFORM: dict[type, Callable[[World, Any], None]] = {
    Dial: World._do_dial,
    Send: World._do_send,
    CloseLink: World._do_close,
    Play: World._do_play,
    EndPlay: lambda world, e: world._speaker.end(e.epoch, world.now),
    Flush: World._do_flush,
    Show: World._do_show,
    Chime: World._do_chime,
    Hush: lambda world, e: world._speaker.hush(world.now),
    KeepConversation: lambda world, e: world.kept.append(e.text),
    Restart: lambda world, e: world.exits.append(e.exit_code),
    Duck: World._do_duck,
    SetMuted: World._do_mute,
    DropUnsent: lambda world, e: None,
    Note: World._do_note,
    Reply: lambda world, e: world.replies.append(e),
    Status: lambda world, e: world.statuses.append(e.text),
}
