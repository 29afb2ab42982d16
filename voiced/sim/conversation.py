"""The built-in server's conversation: items in order, their audio, what is left of them."""

from __future__ import annotations

import base64
import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from voiced.sim.vad import Samples

BYTES_PER_MS = 48  # 24 kHz, 16 bit, mono
USER_MS_PER_TOKEN = 100
ASSISTANT_MS_PER_TOKEN = 50


@dataclass
class Item:
    """One conversation item.

    `body` is its wire form without audio. `pcm` is the audio, s16le 24 kHz mono, committed by the
    user or generated so far. `truncated_ms` is where a client cut it, None if it never did.
    """

    body: dict[str, Any]
    pcm: bytearray = field(default_factory=bytearray)
    truncated_ms: int | None = None
    deleted: bool = False

    @property
    def item_id(self) -> str:
        return str(self.body["id"])

    @property
    def role(self) -> str | None:
        role: str | None = self.body.get("role")
        return role

    @property
    def audio(self) -> Samples:
        """All of its audio as int16, shape (n,), whatever was truncated."""
        return np.frombuffer(bytes(self.pcm[: len(self.pcm) // 2 * 2]), "<i2").astype(np.int16)

    @property
    def left_bytes(self) -> int:
        """Length of the audio the model still sees."""
        if self.truncated_ms is None:
            return len(self.pcm)
        return min(len(self.pcm), self.truncated_ms * BYTES_PER_MS)

    def is_spoken(self) -> bool:
        """Whether it is an assistant message with generated audio."""
        return self.role == "assistant" and len(self.pcm) > 0

    def truncate(self, audio_end_ms: int) -> None:
        """Forget the audio from `audio_end_ms` on, and the transcript with it."""
        self.truncated_ms = audio_end_ms
        for part in self.body["content"]:
            if "transcript" in part:
                part["transcript"] = ""

    def wire(self) -> dict[str, Any]:
        return copy.deepcopy(self.body)

    def wire_with_audio(self) -> dict[str, Any]:
        body = self.wire()
        for part in body.get("content", ()):
            if part["type"] in ("input_audio", "output_audio"):
                part["audio"] = base64.b64encode(self.pcm[: self.left_bytes]).decode()
                part["format"] = "pcm16"
        return body

    def tokens(self) -> tuple[int, int]:
        """(text, audio) tokens it costs as context, about as OpenAI counts them."""
        ms_per_token = USER_MS_PER_TOKEN if self.role == "user" else ASSISTANT_MS_PER_TOKEN
        audio = self.left_bytes // (BYTES_PER_MS * ms_per_token)
        return -(-len(_text_of(self.body)) // 4), audio


class Conversation:
    """Items in order. `all` also keeps the deleted ones, by id, for whoever judges afterwards.

    It grows with what is said; the longest session (60 minutes) is its bound, as at OpenAI.
    """

    def __init__(self, conversation_id: str) -> None:
        self.conversation_id = conversation_id
        self.all: dict[str, Item] = {}
        self._order: list[str] = []

    def __iter__(self) -> Iterator[Item]:
        return (self.all[item_id] for item_id in self._order)

    def __contains__(self, item_id: object) -> bool:
        return item_id in self._order

    def get(self, item_id: str) -> Item | None:
        return self.all[item_id] if item_id in self._order else None

    @property
    def last_id(self) -> str | None:
        return self._order[-1] if self._order else None

    def insert(self, item: Item, after: str | None = None) -> str | None:
        """Add `item` after the id `after` ("root": in front, None: at the end).

        Returns the id now before it, None if it is the first.
        """
        if after is None:
            place = len(self._order)
        else:
            place = 0 if after == "root" else self._order.index(after) + 1
        self._order.insert(place, item.item_id)
        self.all[item.item_id] = item
        return self._order[place - 1] if place else None

    def delete(self, item: Item) -> None:
        item.deleted = True
        self._order.remove(item.item_id)

    def has_call(self, call_id: str) -> bool:
        return any(
            item.body["type"] == "function_call" and item.body.get("call_id") == call_id
            for item in self
        )

    def tokens(self) -> tuple[int, int]:
        """(text, audio) tokens of everything in it."""
        counts = [item.tokens() for item in self]
        return sum(text for text, _ in counts), sum(audio for _, audio in counts)


def _text_of(body: dict[str, Any]) -> str:
    parts = body.get("content", ())
    spoken = [part.get("text") or part.get("transcript") or "" for part in parts]
    return "".join([*spoken, body.get("arguments", ""), body.get("output", "")])
