"""The faults the built-in server can be told to have, and how they are written down.

`NAME[:ARG]@WHEN`, for example ``close:1001@30``, ``slow:8000@0``, ``reset@response.create``.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass

import msgspec

# name -> (what its argument is, or None without one; whether it ends the session)
_KINDS: dict[str, tuple[str | None, bool]] = {
    "close": ("close code", True),
    "reset": (None, True),
    "half-open": (None, False),
    "slow": ("bytes per second", False),
    "garbage": (None, False),
    "mute": (None, False),
    "stall": ("seconds", False),
    "refuse": ("seconds", False),
}
_EVENT = re.compile(r"[a-z_]+(\.[a-z_]+)+")


class FaultError(ValueError):
    """A fault that was not understood."""


@dataclass(frozen=True)
class Fault:
    """`name` with its argument (0 without one), due `at_s` seconds after a session began.

    With `on` it is due when a session has received (not yet answered) or sent an event of that
    type.
    """

    name: str
    value: float = 0.0
    at_s: float = 0.0
    on: str | None = None

    @property
    def ends_session(self) -> bool:
        return _KINDS[self.name][1]


def parse_fault(text: str) -> Fault:
    """Read ``NAME[:ARG][@SECONDS]`` or ``NAME[:ARG]@EVENT``; raises FaultError."""
    what, _, at = text.partition("@")
    name, _, value = what.partition(":")
    if name not in _KINDS:
        raise FaultError(f"{text!r}: unknown fault {name!r}; one of {', '.join(_KINDS)}")
    argument = _KINDS[name][0]
    if bool(value) != bool(argument):
        raise FaultError(f"{text!r}: {name} takes {argument or 'no argument'}")
    on = at if _EVENT.fullmatch(at) else None
    try:
        fault = Fault(name, float(value or 0), float(at or 0) if on is None else 0.0, on)
    except ValueError as error:
        raise FaultError(f"{text!r}: {error}") from error
    if fault.value < 0 or fault.at_s < 0 or (name in ("close", "slow") and fault.value < 1):
        raise FaultError(f"{text!r}: out of range")
    return fault


def _text(**event: object) -> str:
    return msgspec.json.encode(event).decode()


_PLACE = {"response_id": "resp_unknown", "item_id": "item_unknown", "output_index": 0}
_PART = {**_PLACE, "content_index": 0}
GARBAGE: tuple[str | bytes, ...] = (
    "",
    "{",
    '{"type": "response.output_audio.delta", "delta": "AAAA"',
    "null",
    "17",
    '["session.created"]',
    "{}",
    '{"type": 5}',
    '{"type": null, "event_id": []}',
    '{"type": "response.done", "response": "done"}',
    '{"type": "response.done", "response": {"usage": {"total_tokens": "many"}, "output": 3}}',
    '{"type": "input_audio_buffer.speech_started", "audio_start_ms": 1e400, "item_id": "i"}',
    '{"type": "input_audio_buffer.speech_started", "audio_start_ms": 1' + "0" * 60 + "}",
    '{"type": "input_audio_buffer.speech_stopped", "audio_end_ms": -5, "item_id": 7}',
    '{"type": "rate_limits.updated", "rate_limits": {"name": "tokens"}}',
    '{"type": "error", "error": "it broke"}',
    '{"type": "error", "error": null}',
    '{"type": "session.updated"}',
    "[" * 5000 + "]" * 5000,
    _text(type="response.output_audio.delta", **_PART, delta="*** not base64 ***"),
    _text(type="response.output_audio.delta", **_PART, delta="AAAA"),  # three bytes
    _text(type="response.output_audio.delta", **_PART, delta=5),
    _text(type="response.output_audio.delta", **_PART, delta="AAA="),
    _text(type="response.output_audio.delta", **{**_PART, "output_index": 10**12}, delta="AAA="),
    _text(type="response.output_audio.done", **_PART),
    _text(type="response.output_audio_transcript.delta", **_PART, delta=None),
    _text(type="conversation.item.truncated", item_id="item_unknown", audio_end_ms=10**15),
    _text(type="conversation.item.deleted", item_id="item_unknown"),
    _text(type="response.output_item.done", response_id="resp_unknown", output_index=0, item={}),
    _text(type="response.invented_tomorrow", event_id="event_garbage", anything={"at": "all"}),
    "\N{PILE OF POO}" * 100,
    b"\x00\x01\x02binary",
)


def as_logged(frame: str | bytes) -> dict[str, object]:
    """A frame that may be no JSON object, in the form the frame log gives it."""
    if isinstance(frame, bytes):
        return {"binary": base64.b64encode(frame).decode()}
    try:
        event = msgspec.json.decode(frame)
    except (msgspec.DecodeError, RecursionError):
        return {"raw": frame}
    return event if isinstance(event, dict) else {"raw": frame}
