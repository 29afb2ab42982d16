"""The wire of the Realtime API (GA): JSON text to typed server events, and our events to JSON.

Reading has one invariant: any text gives exactly one value, a server event, `Other` or
`Nonsense`, and never an exception. Unknown fields and unknown types are the server's right.
"""

from __future__ import annotations

import base64
import binascii
from itertools import count
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta, Struct, field

from voiced.config import Config
from voiced.events import WIRE_RATE, Samples

Name = Annotated[str, Meta(max_length=256)]
"""An id or a code. They are kept, shown and sent back; the API's own have 30 characters at most."""

Count = Annotated[int, Meta(ge=0, lt=2**31)]


class ServerEvent(Struct, frozen=True):
    """What all of them have; `type` selected the class."""


class SessionCreated(ServerEvent, frozen=True):
    class Session(Struct, frozen=True):
        id: Name = ""
        model: Name | None = None
        expires_at: float | None = None

    session: Session = field(default_factory=Session)


class SessionUpdated(ServerEvent, frozen=True):
    session: dict[str, Any] = field(default_factory=dict)


class Error(ServerEvent, frozen=True):
    class Detail(Struct, frozen=True):
        type: Name | None = None
        code: Name | None = None
        message: str | None = None
        param: Name | None = None
        event_id: Name | None = None

    error: Detail


class SpeechStarted(ServerEvent, frozen=True):
    pass


class SpeechStopped(ServerEvent, frozen=True):
    pass


class Committed(ServerEvent, frozen=True):
    item_id: Name = ""


class Transcribed(ServerEvent, frozen=True):
    """What the user said in an item, in words."""

    item_id: Name
    transcript: str = ""


class AnswerText(ServerEvent, frozen=True):
    """The next words of an answer that is spoken."""

    response_id: Name
    item_id: Name
    delta: str = ""


class Text(ServerEvent, frozen=True):
    """All of an answer that is not spoken."""

    response_id: Name
    text: str = ""


class RateLimits(ServerEvent, frozen=True):
    class Limit(Struct, frozen=True):
        remaining: float | None = None
        reset_seconds: float | None = None

    rate_limits: list[Limit] = field(default_factory=list)

    @property
    def reset_s(self) -> float:
        """Until nothing is used up any more."""
        resets = [x.reset_seconds or 0.0 for x in self.rate_limits if not x.remaining]
        return max(resets, default=0.0)


class Usage(Struct, frozen=True):
    total_tokens: Count | None = None
    input_tokens: Count | None = None
    output_tokens: Count | None = None


class Response(Struct, frozen=True):
    class StatusDetails(Struct, frozen=True):
        class Failure(Struct, frozen=True):
            type: Name | None = None
            code: Name | None = None
            message: str | None = None

        type: Name | None = None
        reason: Name | None = None
        error: Failure | None = None

    id: Name
    status: Name | None = None
    conversation_id: Name | None | msgspec.UnsetType = msgspec.UNSET
    status_details: StatusDetails | None = None
    usage: Usage | None = None

    @property
    def out_of_band(self) -> bool:
        """True if it belongs to no conversation. A server that leaves the field out means ours."""
        return self.conversation_id is None

    @property
    def error_code(self) -> str | None:
        """The error's code, if one ended it; its type, where it has none."""
        error = self.status_details.error if self.status_details else None
        return (error.code or error.type) if error else None

    @property
    def why(self) -> str:
        """Why it is not completed, in a word."""
        details = self.status_details
        if details is None:
            return "no reason given"
        if details.error and (details.error.code or details.error.message):
            return f"{details.error.code}: {(details.error.message or '')[:200]}"
        return details.reason or "no reason given"


class ResponseCreated(ServerEvent, frozen=True):
    response: Response


class ResponseDone(ServerEvent, frozen=True):
    response: Response


class AudioDelta(ServerEvent, frozen=True):
    response_id: Name
    item_id: Name
    samples: Samples
    """int16, shape (n,)."""
    output_index: int = 0
    content_index: int = 0


class _AudioDeltaText(Struct, frozen=True):
    response_id: Name
    item_id: Name
    delta: str
    output_index: int = 0
    content_index: int = 0


class AudioDone(ServerEvent, frozen=True):
    response_id: Name
    item_id: Name
    output_index: int = 0
    content_index: int = 0


class Other(ServerEvent, frozen=True):
    """An event of the protocol, or of its future, that changes nothing here."""

    type: str


class Nonsense(ServerEvent, frozen=True):
    """Not an event. `detail` says why, without quoting more than a line of it."""

    detail: str


_TYPES: dict[str, Any] = {
    "session.created": SessionCreated,
    "session.updated": SessionUpdated,
    "error": Error,
    "input_audio_buffer.speech_started": SpeechStarted,
    "input_audio_buffer.speech_stopped": SpeechStopped,
    "input_audio_buffer.committed": Committed,
    "response.created": ResponseCreated,
    "response.done": ResponseDone,
    "response.output_audio.delta": _AudioDeltaText,
    "response.output_audio.done": AudioDone,
    "response.output_audio_transcript.delta": AnswerText,
    "response.output_text.done": Text,
    "conversation.item.input_audio_transcription.completed": Transcribed,
    "rate_limits.updated": RateLimits,
}


KNOWN_TYPES = frozenset(_TYPES) | {
    "conversation.created",
    "conversation.item.added",
    "conversation.item.created",
    "conversation.item.deleted",
    "conversation.item.done",
    "conversation.item.input_audio_transcription.delta",
    "conversation.item.input_audio_transcription.failed",
    "conversation.item.input_audio_transcription.segment",
    "conversation.item.retrieved",
    "conversation.item.truncated",
    "input_audio_buffer.cleared",
    "input_audio_buffer.dtmf_event_received",
    "input_audio_buffer.timeout_triggered",
    "mcp_list_tools.completed",
    "mcp_list_tools.failed",
    "mcp_list_tools.in_progress",
    "output_audio_buffer.cleared",
    "output_audio_buffer.started",
    "output_audio_buffer.stopped",
    "response.content_part.added",
    "response.content_part.done",
    "response.function_call_arguments.delta",
    "response.function_call_arguments.done",
    "response.mcp_call.completed",
    "response.mcp_call.failed",
    "response.mcp_call.in_progress",
    "response.mcp_call_arguments.delta",
    "response.mcp_call_arguments.done",
    "response.output_audio_transcript.done",
    "response.output_item.added",
    "response.output_item.done",
    "response.output_text.delta",
}
"""All of GA; those without a class above change nothing here. Others are counted as unknown."""


class _Typed(Struct, frozen=True):
    type: str


_typed = msgspec.json.Decoder(_Typed)
_decoders = {name: msgspec.json.Decoder(kind) for name, kind in _TYPES.items()}

_LONGEST_TEXT = 256 * 1024
"""Characters of an event that is read and holds no sound: a session with its instructions or an
answer in words take a tenth of it. Values unpack to 25 times as many bytes."""

_LONGEST_INDEX = 1_000
"""An answer of more items or parts than this is no answer."""


def decode(text: str | bytes) -> ServerEvent:
    """The server event in one frame. Never raises; see the invariant above."""
    if isinstance(text, bytes):
        return Nonsense("a binary frame")
    try:
        name = _typed.decode(text).type
        decoder = _decoders.get(name)
        if decoder is None:
            return Other(name[:80])
        if len(text) > _LONGEST_TEXT and _TYPES[name] is not _AudioDeltaText:
            return Nonsense(f"{name} of {len(text)} characters")
        event = decoder.decode(text)
        if isinstance(event, _AudioDeltaText):
            return _audio(event)
    except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
        return Nonsense(str(exc)[:200])
    assert isinstance(event, ServerEvent)
    return event


def _audio(event: _AudioDeltaText) -> ServerEvent:
    if not (0 <= event.output_index < _LONGEST_INDEX and 0 <= event.content_index < _LONGEST_INDEX):
        return Nonsense("an audio delta with an index out of bounds")
    try:
        pcm = base64.b64decode(event.delta, validate=True)
    except binascii.Error as exc:
        return Nonsense(f"an audio delta that is not base64: {exc}")
    if len(pcm) % 2:
        return Nonsense("an audio delta with half a sample")
    return AudioDelta(
        response_id=event.response_id,
        item_id=event.item_id,
        samples=np.frombuffer(pcm, "<i2").astype(np.int16, copy=False),
        output_index=event.output_index,
        content_index=event.content_index,
    )


def server_ends(session: dict[str, Any]) -> bool | None:
    """Whether a session from `session.updated` has the server's VAD on; None if it doesn't say."""
    here: Any = session
    for key in ("audio", "input"):
        here = here.get(key) if isinstance(here, dict) else None
    if not isinstance(here, dict) or "turn_detection" not in here:
        return None
    return here["turn_detection"] is not None


class Encoder:
    """Our events as JSON. Each gets an `event_id`, the only way to tell an error to its cause."""

    def __init__(self) -> None:
        self._serial = count(1)

    def _encode(self, kind: str, name: str, **fields: Any) -> tuple[bytes, str]:
        event_id = f"{name}-{next(self._serial)}"
        return msgspec.json.encode({"type": kind, "event_id": event_id, **fields}), event_id

    def session_update(self, session: dict[str, Any]) -> tuple[bytes, str]:
        """Change the session; returns the text and the event's id, as all of these do."""
        return self._encode("session.update", "cfg", session={"type": "realtime", **session})

    def append(self, pcm: bytes) -> tuple[bytes, str]:
        """Append little-endian PCM16 of `WIRE_RATE`."""
        audio = base64.b64encode(pcm).decode("ascii")
        return self._encode("input_audio_buffer.append", "mic", audio=audio)

    def commit(self) -> tuple[bytes, str]:
        return self._encode("input_audio_buffer.commit", "commit")

    def clear(self) -> tuple[bytes, str]:
        return self._encode("input_audio_buffer.clear", "clear")

    def create_response(self) -> tuple[bytes, str]:
        return self._encode("response.create", "ask")

    def tell(self, text: str) -> tuple[bytes, str]:
        """Add to the conversation what the model is to know; it answers nothing to it."""
        content = [{"type": "input_text", "text": text}]
        item = {"type": "message", "role": "system", "content": content}
        return self._encode("conversation.item.create", "tell", item=item)

    def ask_aside(self, instructions: str, most_tokens: int) -> tuple[bytes, str]:
        """Ask about the conversation, for a `Text` that does not become part of it."""
        response = {
            "conversation": "none",
            "output_modalities": ["text"],
            "instructions": instructions,
            "max_output_tokens": most_tokens,
            "tool_choice": "none",
        }
        return self._encode("response.create", "aside", response=response)

    def cancel(self, response_id: str) -> tuple[bytes, str]:
        return self._encode("response.cancel", "cancel", response_id=response_id)

    def truncate(self, item_id: str, content_index: int, audio_end_ms: int) -> tuple[bytes, str]:
        return self._encode(
            "conversation.item.truncate",
            "cut",
            item_id=item_id,
            content_index=content_index,
            audio_end_ms=audio_end_ms,
        )

    def delete(self, item_id: str) -> tuple[bytes, str]:
        return self._encode("conversation.item.delete", "del", item_id=item_id)


def turn_detection(
    config: Config, *, server_ends: bool, reduced: bool = False
) -> dict[str, Any] | None:
    """The `turn_detection` of a turn: the server's VAD, or None where we commit. `reduced`: the
    server has rejected more than the plain VAD.

    Creating the response is left to the server, which is quicker at it. Interrupting is not: the
    sound must stop here and now, and what stops it also cancels the rest.
    """
    if not server_ends:
        return None
    if config.turn.end == "semantic_vad" and not reduced:
        return {
            "type": "semantic_vad",
            "eagerness": "auto",
            "create_response": True,
            "interrupt_response": False,
        }
    return {
        "type": "server_vad",
        "threshold": 0.5,
        "prefix_padding_ms": 300,
        "silence_duration_ms": config.turn.silence_ms,
        "idle_timeout_ms": None,
        "create_response": True,
        "interrupt_response": False,
    }


def mode_update(detection: dict[str, Any] | None) -> dict[str, Any]:
    """The `session` of an update that changes who ends the turn, and nothing else."""
    return {"audio": {"input": {"turn_detection": detection}}}


def session_config(
    config: Config, detection: dict[str, Any] | None, *, optional: bool
) -> dict[str, Any]:
    """The whole `session` of the first update: all that models or servers default differently.

    An update is taken or rejected whole; `optional=False` leaves out the blocks that some models
    and servers reject.
    """
    pcm = {"type": "audio/pcm", "rate": WIRE_RATE}
    session: dict[str, Any] = {
        "output_modalities": ["audio"],
        "instructions": config.realtime.instructions,
        "audio": {
            "input": {"format": pcm, "turn_detection": detection},
            "output": {"format": pcm, "voice": config.realtime.voice},
        },
    }
    if optional:
        model = config.realtime.transcription
        session["audio"]["input"] |= {
            "transcription": {"model": model} if model else None,
            "noise_reduction": None,
        }
        session["audio"]["output"]["speed"] = 1.0
        session |= {
            "tools": [],
            "tool_choice": "auto",
            "max_output_tokens": "inf",
            "truncation": "auto",
        }
        if config.realtime.model.startswith("gpt-realtime-2"):
            session["reasoning"] = {"effort": "low"}
    return session
