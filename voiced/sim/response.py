"""One response of the built-in server: planned at once, emitted step by step, cancellable.

Pure: `due_s` says when the next step falls due, `step()` takes it. The owner stamps the events,
adds the items to its conversation and accounts for them.
"""

from __future__ import annotations

import base64
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from voiced.sim.conversation import BYTES_PER_MS, Item

ServerEvent = dict[str, Any]
LATE_SPACING_S = 0.01  # deltas in flight at a cancel trickle in for a moment; so do ours


class Pacing(NamedTuple):
    """How an answer is sent: the wait before it, the length of a delta, how much faster than it
    is spoken the deltas follow each other (0: all at once)."""

    think_ms: float
    delta_ms: int
    pace: float


@dataclass
class Output:
    """One output item to be generated, and the text (words, or arguments) and audio for it."""

    item: Item
    kind: Literal["audio", "text", "function_call"]
    text: str
    pcm: bytes = b""
    sent_text: str = ""
    state: Literal["planned", "open", "closed"] = "planned"


class Step(NamedTuple):
    due_s: float
    kind: Literal["open", "delta", "close", "end"]
    output: int = 0
    text: str = ""
    pcm: bytes = b""


@dataclass
class Response:
    """`conversation_id` None makes it out-of-band: its items enter no conversation."""

    response_id: str
    conversation_id: str | None
    outputs: list[Output]
    modalities: list[str]
    max_output_tokens: int | str
    voice: Any
    metadata: dict[str, str] | None
    pacing: Pacing
    created_s: float
    status: str = "in_progress"
    reason: str | None = None
    finished: bool = False
    _plan: deque[Step] = field(init=False)

    def __post_init__(self) -> None:
        self._plan = deque(_plan(self.outputs, self.pacing, self.created_s))

    @property
    def due_s(self) -> float:
        return self._plan[0].due_s

    def step(self) -> list[ServerEvent]:
        """The events of the next step, without event ids. The last step sets `finished`."""
        step = self._plan.popleft()
        if step.kind == "end":
            self.finished = True
            if self.status == "in_progress":
                self.status = "completed"
            return []
        if step.kind == "open":
            return self._open(step.output)
        if step.kind == "delta":
            return self._delta(step)
        return self._close(step.output, "completed")

    def cancel(self, now_s: float, reason: str, late_deltas: int) -> None:
        """Stop generating. Up to `late_deltas` audio deltas still come before the end."""
        self.status, self.reason = "cancelled", reason
        late = [
            step
            for step in self._plan
            if step.kind == "delta" and self.outputs[step.output].state == "open"
        ][:late_deltas]
        self._plan = deque(
            step._replace(due_s=now_s + LATE_SPACING_S * (number + 1))
            for number, step in enumerate(late)
        )
        self._plan.append(Step(self._plan[-1].due_s if self._plan else now_s, "end"))

    def fail(self, code: str) -> None:
        """Break off at once, for this error of the server's."""
        self.status, self.reason = "failed", code
        self._plan = deque([Step(self.created_s, "end")])

    def close_open_items(self) -> list[ServerEvent]:
        """The done family of the items a cancel left open."""
        events: list[ServerEvent] = []
        for number, output in enumerate(self.outputs):
            if output.state == "open":
                events += self._close(number, "incomplete")
        return events

    def wire(self, usage: dict[str, Any] | None) -> dict[str, Any]:
        """The response object, as it stands."""
        begun = [output for output in self.outputs if output.state != "planned"]
        details: dict[str, Any] | None = None
        if self.status == "failed":
            details = {"type": "failed", "error": {"type": self.reason, "code": self.reason}}
        elif self.reason:
            details = {"type": self.status, "reason": self.reason}
        return {
            "object": "realtime.response",
            "id": self.response_id,
            "status": self.status,
            "status_details": details,
            "output": [output.item.wire() for output in begun],
            "conversation_id": self.conversation_id,
            "output_modalities": self.modalities,
            "max_output_tokens": self.max_output_tokens,
            "audio": {
                "output": {"format": {"type": "audio/pcm", "rate": 24000}, "voice": self.voice}
            },
            "usage": usage,
            "metadata": self.metadata,
        }

    def _prefix(self, number: int) -> dict[str, Any]:
        return {
            "response_id": self.response_id,
            "item_id": self.outputs[number].item.item_id,
            "output_index": number,
        }

    def _item_event(self, kind: str, number: int) -> ServerEvent:
        return {
            "type": f"response.output_item.{kind}",
            "response_id": self.response_id,
            "output_index": number,
            "item": self.outputs[number].item.wire(),
        }

    def _open(self, number: int) -> list[ServerEvent]:
        output = self.outputs[number]
        output.state = "open"
        events = [self._item_event("added", number)]
        if self.conversation_id:
            events.append({"type": "conversation.item.added", "item": output.item.wire()})
        if output.kind != "function_call":
            part = {"type": output.kind, _TEXT_KEY[output.kind]: ""}
            events.append(
                {
                    "type": "response.content_part.added",
                    **self._prefix(number),
                    "content_index": 0,
                    "part": part,
                }
            )
        return events

    def _delta(self, step: Step) -> list[ServerEvent]:
        output = self.outputs[step.output]
        prefix = self._prefix(step.output)
        events: list[ServerEvent] = []
        if step.text:
            output.sent_text += step.text
            name, own = _TEXT_EVENT[output.kind]
            events.append(
                {"type": f"{name}.delta", **prefix, **own, **_call(output), "delta": step.text}
            )
        if step.pcm:
            output.item.pcm += step.pcm
            delta = base64.b64encode(step.pcm).decode()
            events.append(
                {
                    "type": "response.output_audio.delta",
                    **prefix,
                    "content_index": 0,
                    "delta": delta,
                }
            )
        return events

    def _close(self, number: int, status: str) -> list[ServerEvent]:
        output = self.outputs[number]
        output.state = "closed"
        prefix = self._prefix(number)
        body = output.item.body
        body["status"] = status
        events: list[ServerEvent] = []
        if output.kind == "audio":
            events.append({"type": "response.output_audio.done", **prefix, "content_index": 0})
        name, own = _TEXT_EVENT[output.kind]
        done = {_TEXT_KEY[output.kind]: output.sent_text}
        if output.kind == "function_call":
            body["arguments"] = output.sent_text
            events.append(
                {"type": f"{name}.done", **prefix, **_call(output), "name": body["name"], **done}
            )
        else:
            kept = output.sent_text if output.item.truncated_ms is None else ""
            body["content"] = [
                {"type": f"output_{output.kind}", _TEXT_KEY[output.kind]: kept},
            ]
            events.append({"type": f"{name}.done", **prefix, **own, **done})
            events.append(
                {
                    "type": "response.content_part.done",
                    **prefix,
                    "content_index": 0,
                    "part": {"type": output.kind, **done},
                }
            )
        if self.conversation_id:
            events.append({"type": "conversation.item.done", "item": output.item.wire()})
        events.append(self._item_event("done", number))
        return events


_TEXT_KEY = {"audio": "transcript", "text": "text", "function_call": "arguments"}
_TEXT_EVENT: dict[str, tuple[str, dict[str, int]]] = {
    "audio": ("response.output_audio_transcript", {"content_index": 0}),
    "text": ("response.output_text", {"content_index": 0}),
    "function_call": ("response.function_call_arguments", {}),
}


def _call(output: Output) -> dict[str, str]:
    return {"call_id": output.item.body["call_id"]} if output.kind == "function_call" else {}


def _plan(outputs: Sequence[Output], pacing: Pacing, created_s: float) -> Iterator[Step]:
    """Every step in order. An item opens, and has its first delta, before the one ahead closes."""
    due_s = created_s + pacing.think_ms / 1000
    interval_s = pacing.delta_ms / 1000 / pacing.pace if pacing.pace else 0.0
    sent = 0
    for number, output in enumerate(outputs):
        yield Step(due_s + max(0, sent - 1) * interval_s, "open", number)
        deltas = list(_deltas(output, pacing.delta_ms))
        for place, (text, pcm) in enumerate(deltas):
            at_s = due_s + sent * interval_s
            yield Step(at_s, "delta", number, text, pcm)
            sent += 1 if pcm else 0
            if place == 0 and number:
                yield Step(at_s, "close", number - 1)
    end_s = due_s + max(0, sent - 1) * interval_s
    if outputs:
        yield Step(end_s, "close", len(outputs) - 1)
    yield Step(end_s, "end")


def _deltas(output: Output, delta_ms: int) -> Iterator[tuple[str, bytes]]:
    """(text, pcm) of each delta; the words run ahead of the sound. Always at least one."""
    size = delta_ms * BYTES_PER_MS
    count = max(1, -(-len(output.pcm) // size))
    words = output.text.split(" ")
    per_delta = max(1, -(-2 * len(words) // count))
    for number in range(count):
        ahead = words[number * per_delta : (number + 1) * per_delta]
        space = " " if number and ahead else ""
        yield space + " ".join(ahead), output.pcm[number * size : (number + 1) * size]
