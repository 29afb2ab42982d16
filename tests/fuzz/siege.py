"""A device in simulated time whose server means no good, and whose surroundings fall apart."""

from __future__ import annotations

import base64
import copy
import json
import logging
import random
from collections import deque
from typing import Any

import msgspec
import numpy as np

from tests.core.world import World, voice
from tests.fuzz import weight
from tests.fuzz.frames import ITEM, RESPONSE, USER_ITEM
from voiced.config import Config, Turn
from voiced.core.answer import LONGEST_ANSWER_S, MOST_DELTAS, MOST_PARTS
from voiced.core.memory import LINE_CHARACTERS, LINES, SUMMARY_CHARACTERS
from voiced.core.turn import TurnState
from voiced.edge.control import MAX_BEHIND
from voiced.events import (
    WIRE_RATE,
    Device,
    DeviceBack,
    Effect,
    Event,
    KeyState,
    LinkFrame,
    MemoryUsed,
    NetworkChanged,
    Note,
    Play,
    Reconfigured,
    Send,
    Status,
)
from voiced.sim.realtime_session import Script

DEVICES: tuple[Device, ...] = ("microphone", "speaker", "button", "lights")
WORDS = voice(0.6)

LONGEST_SEND = 128 * 1024
"""Bytes: what a session is told of the talk so far, 40 lines of 1,500 characters."""

MOST_HELD = 4 * 2**20
"""Bytes in the core: 3 s of pre-roll, a turn of 20 s, 600 s of an answer are not in it."""


class Siege(World):
    """`mangle` in 0..1: how much of what the built-in server says is changed on the way."""

    def __init__(self, config: Config, seed: int, mangle: float) -> None:
        self.chance = random.Random(seed)
        self.mangle = mangle
        self.besieged = True
        self.late: deque[dict[str, Any]] = deque(maxlen=20)
        super().__init__(config, Script(answer=voice(1.5), delta_ms=100))
        handle = self.core.handle

        def checked(event: Event) -> list[Effect]:
            effects = handle(event)
            for effect in effects:
                check_effect(effect)
            return effects

        self.core.handle = checked  # type: ignore[method-assign]

    # --- the server ----------------------------------------------------------------------

    def send(self, *texts: str | bytes, stale: bool = False) -> None:
        """Frames of the server, in which the recorded ids are those of the moment."""
        for text in texts:
            frame = self._of_the_moment(text) if isinstance(text, str) else text
            self.give(LinkFrame(frame, self.now, self.core.link.dial - stale))

    def _of_the_moment(self, text: str) -> str:
        live = self.core._down.live
        response = live.response_id if live else self.core._down.responses.active
        if response:
            text = text.replace(RESPONSE, response)
        if items := self.items:
            text = text.replace(ITEM, items[-1]).replace(USER_ITEM, items[0])
        return text

    @property
    def items(self) -> list[str]:
        """Of which the honest server has spoken last."""
        recent = [event for _, event in self.received[-50:]]
        return [event["item_id"] for event in recent if isinstance(event.get("item_id"), str)]

    def _from_server(self, out: list[Any]) -> None:
        if self.besieged:
            out = [each for one in out for each in self._mangled(one)]
        super()._from_server(out)

    def _mangled(self, event: Any) -> list[Any]:
        """Lost, twice, late, or with a field that is wrong."""
        if not isinstance(event, dict) or self.chance.random() >= self.mangle:
            return [event]
        way = self.chance.randrange(5)
        if way == 0:
            return []
        if way == 1:
            return [event, event]
        if way == 2:
            self.late.append(event)
            return []
        if way == 3 and self.late:
            return [self.late.popleft(), event, self.late.popleft() if self.late else event]
        other = copy.deepcopy(event)
        key = self.chance.choice(list(other))
        other[key] = self.chance.choice([None, -1, 10**30, "", "x" * 300, [], {}, "AAA"])
        return [other]

    # --- afterwards ----------------------------------------------------------------------

    def check(self) -> None:
        """Memory is bounded, and whoever asks is told."""
        core = self.core
        assert weight(core) < MOST_HELD + 2 * core._up.turn.utterance.frames
        assert len(json.dumps(core.snapshot())) < MAX_BEHIND // 4
        assert core._up.turn.utterance.frames <= (core._config.turn.longest_s + 5) * WIRE_RATE
        memory = core.continuity.memory
        assert len(memory._lines) <= LINES
        assert all(len(line.text) <= LINE_CHARACTERS for line in memory._lines)
        assert len(memory._summary) <= SUMMARY_CHARACTERS
        if live := core._down.live:
            assert live.frames_received <= LONGEST_ANSWER_S * WIRE_RATE
            assert live._deltas <= MOST_DELTAS
            assert len(live._parts) <= MOST_PARTS

    def relent(self) -> None:
        """All is well again, as if somebody had mended it, and one turn later so is the device."""
        self.besieged = False
        self.script = Script(answer=voice(1.5))
        self.lights_work = True
        self.refuse_until = 0.0
        if self.core.is_pressed:
            self.release()
        self.run(0.5)
        for device in DEVICES:
            self.give(DeviceBack(device, self.now))
        self.give(MemoryUsed(10, 100, self.now))
        self.give(NetworkChanged(True, self.now))
        self.give(Reconfigured(Config(turn=Turn(follow_up_s=0)), self.now))
        self.give(KeyState(None, self.now))
        self.command("unmute")
        self.command("hangup")
        self.run(3.5)  # the gate learns the room in 3 s
        assert self.core.state is TurnState.IDLE, self.core
        self.drop_link()
        self.tap()
        self.say(WORDS, self.now + 0.3)
        self.until_state(TurnState.SPEAKING)
        before = len(self.heard)
        self.until_state(TurnState.IDLE)
        assert len(self.heard) - before == round(1.5 * WIRE_RATE)
        assert not set(self.core._health.faults) - {"rate-limit", "microphone-dead"}


def check_effect(effect: Effect) -> None:
    """It can be carried out, and nobody who looks on is overwhelmed."""
    if isinstance(effect, Note):
        line = json.dumps({"text": effect.text, **effect.fields})
        line.encode()
        assert len(line) < MAX_BEHIND // 4, line[:500]
        assert logging.DEBUG <= effect.level <= logging.ERROR
    elif isinstance(effect, Status):
        assert len(effect.text) < 2_000
        assert effect.text.isprintable()
    elif isinstance(effect, Send):
        assert len(effect.text) <= LONGEST_SEND
        assert isinstance(msgspec.json.decode(effect.text)["event_id"], str)
    elif isinstance(effect, Play):
        assert effect.samples.dtype == np.int16
        assert effect.samples.ndim == 1
        assert len(effect.samples)


def audio(response_id: str, item_id: str, samples: int, output: int = 0, content: int = 0) -> str:
    """A delta with so many samples."""
    return json.dumps(
        {
            "type": "response.output_audio.delta",
            "response_id": response_id,
            "item_id": item_id,
            "output_index": output,
            "content_index": content,
            "delta": base64.b64encode(b"\1\0" * samples).decode(),
        }
    )
