"""One session of the built-in Realtime server: the protocol's rules, without a socket or a clock.

Text frames go in with the time they came; server events and, at the end, a `Close` come out.
`due_s` says when `advance` has more to give. Nothing here waits, and time only comes in as `now_s`
(seconds of any one monotonic clock).

It knows nothing of the daemon it is to judge. What a well-behaved client would never send is
answered as OpenAI's server would and recorded as a violation; what a client cannot avoid, because
its frame crossed one of ours, is counted as a race.
"""

from __future__ import annotations

import base64
import binascii
import copy
import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np

from voiced.sim import client_events as ce
from voiced.sim.conversation import BYTES_PER_MS, Conversation, Item
from voiced.sim.response import Output, Pacing, Response, ServerEvent
from voiced.sim.vad import RATE_HZ, EnergyVad, NoiseFloor, Samples

MIN_COMMIT_MS = 100
MAX_APPEND_BYTES = 15 * 1024 * 1024
LONGEST_WAIT_MS = {"low": 8000, "medium": 4000, "auto": 4000, "high": 2000}  # by eagerness
RATE_LIMIT_DELAY_S = 0.04  # seen on the wire: this long after response.done
TRANSCRIPT_DELAY_S = 0.1
TOKEN_LIMIT = 15_000_000
EXPIRED_REASON = "Your session hit the maximum duration of 60 minutes."
INSTRUCTIONS = "You are a helpful voice assistant. Answer briefly."
MAX_RECORDED = 1000  # violations kept in full; later ones are only counted

VAD_DEFAULTS: dict[str, dict[str, Any]] = {
    "server_vad": {
        "type": "server_vad",
        "threshold": 0.5,
        "prefix_padding_ms": 300,
        "silence_duration_ms": 500,
        "idle_timeout_ms": None,
        "create_response": True,
        "interrupt_response": True,
    },
    "semantic_vad": {
        "type": "semantic_vad",
        "eagerness": "auto",
        "create_response": True,
        "interrupt_response": True,
    },
}


class Close(NamedTuple):
    """The server ends the session with this close code and reason."""

    code: int
    reason: str


class Call(NamedTuple):
    """A function the model calls. `speak_too` puts a message item behind it."""

    name: str
    arguments: str
    speak_too: bool = False


Out = ServerEvent | Close


@dataclass(frozen=True, kw_only=True)
class Script:
    """How the server behaves.

    `answer`: int16 samples at 24 kHz, shape (n,), to say; None says back what the user said.
    `items`: message items an answer is split over. `call`: function called on each new user turn.
    `late_deltas`: deltas that still come after a cancel. `transcription`: when the user's words
    arrive if transcription is on ("before": ahead of the commit, "after": behind response.done).
    `vad_dbfs`: the level of speech, for both kinds of turn detection; with `vad_margin_db` it must
    also exceed the noise received before by so much, else a loud room is one long sentence.
    `semantic_ms`: silence after which semantic_vad has understood that the sentence is complete;
    inf: it never does, and waits as long as the eagerness allows.
    `refuse_params`: paths of session.update ("session.reasoning") this server does not know.
    `failures`: error codes; the first answers of a session fail with one each, without a sound.
    `keep_audio_s`: how much received audio a session keeps; older samples are dropped and counted.
    """

    think_ms: float = 300
    delta_ms: int = 200
    pace: float = 20
    answer: Samples | None = None
    items: int = 1
    call: Call | None = None
    late_deltas: int = 0
    vad_dbfs: float = -40.0
    vad_margin_db: float | None = None
    semantic_ms: float = 800
    transcription: Literal["before", "with", "after", "failed", "never"] = "with"
    user_text: str = "what the user said"
    failures: tuple[str, ...] = ()
    refuse_params: tuple[str, ...] = ()
    max_session_s: float = 3600
    keep_audio_s: float = 300


@dataclass
class Verdict:
    """What was wrong with the clients of a server. `violations` holds the first 1000."""

    violations: list[dict[str, Any]] = field(default_factory=list)
    violation_count: int = 0
    races: int = 0

    def violation(self, text: str, event_type: str | None, now_s: float) -> None:
        self.violation_count += 1
        if len(self.violations) < MAX_RECORDED:
            self.violations.append({"text": text, "type": event_type, "t": now_s})


class InputBuffer:
    """The audio a session has received, addressed by sample number since its start.

    Holds the last `keep_samples`; what is older is dropped, and counted in `dropped_samples`.
    """

    def __init__(self, keep_samples: int) -> None:
        self._pcm = bytearray()
        self._keep_bytes = 2 * keep_samples
        self.dropped_samples = 0

    def append(self, pcm: bytes) -> None:
        """Take bytes as they come: an odd count shifts all that follows into noise."""
        self._pcm += pcm
        excess = (len(self._pcm) - self._keep_bytes) // 2
        if excess > 0:
            del self._pcm[: 2 * excess]
            self.dropped_samples += excess

    @property
    def end(self) -> int:
        """Number of samples received since the session's start."""
        return self.dropped_samples + len(self._pcm) // 2

    def pcm(self, start: int, end: int) -> bytes:
        first = max(0, start - self.dropped_samples)
        return bytes(self._pcm[2 * first : 2 * max(first, end - self.dropped_samples)])

    def samples(self, start: int, end: int) -> Samples:
        return np.frombuffer(self.pcm(start, end), "<i2").astype(np.int16)


class RealtimeSession:
    """See the module. `tag` makes this session's ids differ from every other's (<= 8 chars)."""

    def __init__(
        self,
        script: Script,
        *,
        model: str,
        tag: str,
        now_s: float,
        unix_s: float,
        verdict: Verdict | None = None,
    ) -> None:
        self.script = script
        self.verdict = verdict if verdict is not None else Verdict()
        self._tag = tag
        self._serial = 0
        self._now_s = now_s
        self._out: list[Out] = []
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._responses: list[Response] = []
        self._failures = list(script.failures)
        self._has_configured = False
        self._has_spoken = False
        self._unanswered: list[Item] = []
        self._last_spoken_to: list[Item] = []
        self._late_transcripts: list[Item] = []
        self._cached_tokens = (0, 0)
        self._tokens_left = TOKEN_LIMIT
        self.closed = False
        self.conversation = Conversation(self._id("conv"))
        self.buffer = InputBuffer(round(script.keep_audio_s * RATE_HZ))
        self._buffer_start = 0
        self._speech: tuple[str, int] | None = None  # (future item id, first sample) while heard
        margin_db = script.vad_margin_db
        self._floor = None if margin_db is None else NoiseFloor(margin_db)
        self.config = self._server_defaults(model, int(unix_s + script.max_session_s))
        self._vad = self._new_vad()
        self._at(now_s + script.max_session_s, self._expire)

    # --- in and out ---------------------------------------------------------------------

    def start(self) -> list[Out]:
        """The greeting: session.created."""
        self._emit("session.created", session=copy.deepcopy(self.config))
        return self._taken()

    @property
    def due_s(self) -> float:
        """When `advance` has something to do; never in the past of an unfinished `advance`."""
        dues = [response.due_s for response in self._responses]
        dues += [timer[0] for timer in self._timers[:1]]
        return math.inf if self.closed else min(dues, default=math.inf)

    def advance(self, now_s: float) -> list[Out]:
        """Everything that fell due up to `now_s`, in order."""
        while self.due_s <= now_s:
            self._now_s = max(self._now_s, self.due_s)
            running = min(self._responses, key=lambda each: each.due_s, default=None)
            if running is not None and running.due_s <= self._timer_due_s():
                self._step(running)
            else:
                heapq.heappop(self._timers)[2]()
        self._now_s = max(self._now_s, now_s)
        return self._taken()

    def receive(self, text: str, now_s: float) -> list[Out]:
        """Answer one text frame (after what fell due before it)."""
        before = self.advance(now_s)
        if self.closed:
            return before
        try:
            event, raw = ce.parse(text)
        except ce.ClientEventError as error:
            self._reject(error)
            return before + self._taken()
        try:
            self._handle(event, raw)
        except ce.ClientEventError as error:
            error.event_id, error.event_type = raw.get("event_id"), raw["type"]
            self._reject(error)
        return before + self._taken()

    def receive_binary(self, now_s: float) -> list[Out]:
        """Answer a binary frame: this API has none."""
        before = self.advance(now_s)
        self._reject(ce.ClientEventError("invalid_event", "Only text frames are accepted."))
        return before + self._taken()

    @property
    def active(self) -> Response | None:
        """The running response of the default conversation."""
        return next((each for each in self._responses if each.conversation_id), None)

    # --- events, ids, timers --------------------------------------------------------------

    def _id(self, kind: str) -> str:
        self._serial += 1
        return f"{kind}_{self._tag}{self._serial:08d}"

    def _emit(self, event_type: str, **fields: Any) -> None:
        self._out.append({"type": event_type, "event_id": self._id("event"), **fields})

    def _error(self, error: ce.ClientEventError, kind: str = "invalid_request_error") -> None:
        body = {
            "type": kind,
            "code": error.code,
            "message": error.message,
            "param": error.param,
            "event_id": error.event_id,
        }
        self._emit("error", error=body)

    def _reject(self, error: ce.ClientEventError) -> None:
        self._violation(f"{error.code}: {error.message}", error.event_type)
        self._error(error)

    def _violation(self, text: str, event_type: str | None) -> None:
        self.verdict.violation(text, event_type, self._now_s)

    def _taken(self) -> list[Out]:
        out, self._out = self._out, []
        return out

    def _at(self, due_s: float, act: Callable[[], None]) -> None:
        self._serial += 1
        heapq.heappush(self._timers, (due_s, self._serial, act))

    def _timer_due_s(self) -> float:
        return self._timers[0][0] if self._timers else math.inf

    def _expire(self) -> None:
        self._error(ce.ClientEventError("session_expired", EXPIRED_REASON))
        self._out.append(Close(1001, EXPIRED_REASON))
        self.closed = True

    # --- client events --------------------------------------------------------------------

    def _handle(self, event: ce.ClientEvent, raw: dict[str, Any]) -> None:
        match event:
            case ce.SessionUpdate():
                self._update(raw["session"], raw.get("event_id"))
            case ce.BufferAppend():
                self._append(event)
            case ce.BufferCommit():
                self._commit(event)
            case ce.BufferClear():
                self._clear()
            case ce.ItemCreate():
                self._create_item(event, raw["item"])
            case ce.ItemRetrieve():
                item = self._known(event.item_id, "retrieve")
                self._emit("conversation.item.retrieved", item=item.wire_with_audio())
            case ce.ItemTruncate():
                self._truncate(event)
            case ce.ItemDelete():
                self._delete(event)
            case ce.ResponseCreate():
                self._create_response(raw.get("response") or {})
            case ce.ResponseCancel():
                self._cancel(event)
            case ce.OutputBufferClear():
                self._violation("output_audio_buffer.clear is not for WebSockets", raw["type"])

    def _known(self, item_id: str, action: str) -> Item:
        item = self.conversation.get(item_id)
        if item is None:
            raise ce.ClientEventError(
                f"item_{action}_invalid_item_id",
                f"Item with item_id not found: {item_id}",
                param="item_id",
            )
        return item

    # --- the session object ---------------------------------------------------------------

    def _server_defaults(self, model: str, expires_at: int) -> dict[str, Any]:
        pcm = {"type": "audio/pcm", "rate": 24000}
        return {
            "type": "realtime",
            "object": "realtime.session",
            "id": self._id("sess"),
            "model": model,
            "output_modalities": ["audio"],
            "instructions": INSTRUCTIONS,
            "tools": [],
            "tool_choice": "auto",
            "max_output_tokens": "inf",
            "tracing": None,
            "truncation": "auto",
            "prompt": None,
            "expires_at": expires_at,
            "audio": {
                "input": {
                    "format": dict(pcm),
                    "transcription": None,
                    "noise_reduction": None,
                    "turn_detection": dict(VAD_DEFAULTS["server_vad"]),
                },
                "output": {"format": dict(pcm), "voice": "marin", "speed": 1.0},
            },
            "include": None,
        }

    def _update(self, wish: dict[str, Any], event_id: str | None) -> None:
        if refused := self._refused_by_script(wish):
            # This server lacks the parameter; a client cannot know that beforehand.
            error = _unknown_parameter(refused)
            error.event_id = event_id
            self._error(error)
            return
        self._check_update(wish)
        before = copy.deepcopy(self.config)
        self.config = _merged(self.config, wish)
        if wish.get("instructions") == "":
            self.config["instructions"] = INSTRUCTIONS
        if self._turn_detection != before["audio"]["input"]["turn_detection"]:
            self._vad, self._speech = self._new_vad(), None
        if any(self.config[key] != before[key] for key in ("instructions", "tools")):
            self._cached_tokens = (0, 0)
        self._has_configured = True
        self._emit("session.updated", session=copy.deepcopy(self.config))

    def _refused_by_script(self, wish: dict[str, Any]) -> str | None:
        return next((path for path in self.script.refuse_params if _holds(wish, path)), None)

    def _check_update(self, wish: dict[str, Any]) -> None:
        audio = wish.get("audio", {})
        given, sound = audio.get("input", {}), audio.get("output", {})
        if wish.get("model", self.config["model"]) != self.config["model"]:
            raise _invalid("session.model", "The model of a session cannot be changed.")
        for side, name in ((given, "input"), (sound, "output")):
            if side.get("format", {}).get("type", "audio/pcm") != "audio/pcm":
                raise _invalid(f"session.audio.{name}.format.type", "Only audio/pcm here.")
        self._check_model_features(wish, "session")
        self._check_voice(sound, "session.audio.output.voice")
        transcription = given.get("transcription") or {}
        if transcription.get("model") == "gpt-realtime-whisper" and transcription.get("prompt"):
            raise _invalid(
                "session.audio.input.transcription.prompt", "This model takes no prompt."
            )
        if (
            self.config["tracing"]
            and wish.get("tracing", self.config["tracing"]) != (self.config["tracing"])
        ):
            raise _invalid("session.tracing", "Tracing cannot be changed once it is on.")

    def _check_model_features(self, wish: dict[str, Any], path: str) -> None:
        if self.config["model"].startswith("gpt-realtime-2") and not (
            self.config["model"].startswith("gpt-realtime-2025")
        ):
            return
        for name in ("reasoning", "parallel_tool_calls"):
            if name in wish:
                raise _unknown_parameter(f"{path}.{name}")

    def _check_voice(self, output: dict[str, Any], param: str) -> None:
        voice = output.get("voice", self._voice)
        if self._has_spoken and voice != self._voice:
            raise ce.ClientEventError(
                "cannot_update_voice",
                "Cannot update a conversation's voice if assistant audio is present.",
                param=param,
            )

    @property
    def _voice(self) -> Any:
        return self.config["audio"]["output"]["voice"]

    @property
    def _turn_detection(self) -> dict[str, Any] | None:
        detection: dict[str, Any] | None = self.config["audio"]["input"]["turn_detection"]
        return detection

    def _new_vad(self) -> EnergyVad | None:
        detection = self._turn_detection
        if detection is None:
            return None
        if detection["type"] == "semantic_vad":
            silence_ms = min(self.script.semantic_ms, LONGEST_WAIT_MS[detection["eagerness"]])
        else:
            silence_ms = detection["silence_duration_ms"]
        return EnergyVad(self.script.vad_dbfs, round(silence_ms), self.buffer.end, self._floor)

    # --- the input audio buffer -----------------------------------------------------------

    def _append(self, event: ce.BufferAppend) -> None:
        try:
            pcm = base64.b64decode(event.audio, validate=True)
        except (binascii.Error, ValueError) as error:
            raise _invalid("audio", "The audio is not base64.") from error
        if len(pcm) > MAX_APPEND_BYTES:
            raise _invalid("audio", "An append holds at most 15 MiB of audio.")
        if len(pcm) % 2:
            # OpenAI's server takes it without a word, and hears noise from here on.
            self._violation(f"append of {len(pcm)} bytes splits a sample", _APPEND)
        if not self._has_configured:
            self._violation("audio appended before session.updated", _APPEND)
        start = self.buffer.end
        self.buffer.append(pcm)
        if self._vad is None:
            return
        for edge in self._vad.feed(self.buffer.samples(start, self.buffer.end)):
            if edge.kind == "start":
                self._speech_started(edge.sample)
            else:
                self._speech_stopped(edge.sample)

    def _speech_started(self, sample: int) -> None:
        detection = self._turn_detection or {}
        padding = detection.get("prefix_padding_ms", 300) * RATE_HZ // 1000
        start = max(self._buffer_start, sample - padding)
        self._speech = (self._id("item"), start)
        self._emit(
            "input_audio_buffer.speech_started",
            audio_start_ms=_ms(start),
            item_id=self._speech[0],
        )
        if detection.get("interrupt_response") and self.active:
            self._stop(self.active, "turn_detected")

    def _speech_stopped(self, sample: int) -> None:
        if self._speech is None:
            return
        item_id, start = self._speech
        self._speech = None
        self._emit("input_audio_buffer.speech_stopped", audio_end_ms=_ms(sample), item_id=item_id)
        self._commit_audio(item_id, start, sample)
        if (self._turn_detection or {}).get("create_response"):
            self._answer_turn()

    def _answer_turn(self) -> None:
        if self.active:
            self._error(_active_error(self.active))
        else:
            self._respond({})

    def _commit(self, event: ce.BufferCommit) -> None:
        held_ms = (self.buffer.end - self._buffer_start) * 1000 / RATE_HZ
        if held_ms < MIN_COMMIT_MS:
            raise ce.ClientEventError(
                "input_audio_buffer_commit_empty",
                "Error committing input audio buffer: buffer too small. Expected at least "
                f"{MIN_COMMIT_MS}ms of audio, but buffer only has {held_ms:.2f}ms of audio.",
            )
        if self._vad is not None:
            self._violation("commit while turn detection is on", "input_audio_buffer.commit")
        item_id = self._speech[0] if self._speech else self._id("item")
        self._commit_audio(item_id, self._buffer_start, self.buffer.end)
        self._vad, self._speech = self._new_vad(), None

    def _clear(self) -> None:
        self._buffer_start = self.buffer.end
        self._vad, self._speech = self._new_vad(), None
        self._emit("input_audio_buffer.cleared")

    def _commit_audio(self, item_id: str, start: int, end: int) -> None:
        self._buffer_start = end
        content = [{"type": "input_audio", "transcript": None}]
        item = Item(_message(item_id, "user", content, "completed"))
        item.pcm += self.buffer.pcm(start, end)
        transcription = self.script.transcription if self._transcribes else "never"
        if transcription == "before":
            self._transcript_deltas(item)
        previous = self.conversation.insert(item)
        self._unanswered.append(item)
        self._emit("input_audio_buffer.committed", item_id=item_id, previous_item_id=previous)
        self._emit_item(item, previous)
        self._schedule_transcript(item, transcription)

    def _emit_item(self, item: Item, previous: str | None) -> None:
        for kind in ("added", "done"):
            self._emit(f"conversation.item.{kind}", previous_item_id=previous, item=item.wire())

    # --- the user's words -----------------------------------------------------------------

    @property
    def _transcribes(self) -> bool:
        return self.config["audio"]["input"]["transcription"] is not None

    def _schedule_transcript(self, item: Item, order: str) -> None:
        if order == "before":
            self._transcript_completed(item)
        elif order == "with":
            self._at(self._now_s + TRANSCRIPT_DELAY_S, partial(self._transcript, item))
        elif order == "after":
            self._late_transcripts.append(item)
        elif order == "failed":
            self._at(self._now_s + TRANSCRIPT_DELAY_S, partial(self._transcript_failed, item))

    def _transcript(self, item: Item) -> None:
        self._transcript_deltas(item)
        self._transcript_completed(item)

    def _transcript_deltas(self, item: Item) -> None:
        for number, word in enumerate(self.script.user_text.split(" ")):
            self._emit(
                "conversation.item.input_audio_transcription.delta",
                item_id=item.item_id,
                content_index=0,
                delta=f" {word}" if number else word,
                obfuscation="x" * (number % 7 + 3),
            )

    def _transcript_completed(self, item: Item) -> None:
        item.body["content"][0]["transcript"] = self.script.user_text
        seconds = math.ceil(len(item.pcm) / (1000 * BYTES_PER_MS))
        self._emit(
            "conversation.item.input_audio_transcription.completed",
            item_id=item.item_id,
            content_index=0,
            transcript=self.script.user_text,
            usage={"type": "duration", "seconds": seconds},
        )

    def _transcript_failed(self, item: Item) -> None:
        self._emit(
            "conversation.item.input_audio_transcription.failed",
            item_id=item.item_id,
            content_index=0,
            error={
                "type": "transcription_error",
                "code": "audio_unintelligible",
                "message": "The audio could not be transcribed.",
                "param": None,
            },
        )

    # --- items ----------------------------------------------------------------------------

    def _create_item(self, event: ce.ItemCreate, given: dict[str, Any]) -> None:
        after = event.previous_item_id
        if after not in (None, "root") and after not in self.conversation:
            raise _invalid("previous_item_id", f"Previous item not found: {after}")
        item = self._given_item(given)
        previous = self.conversation.insert(item, after)
        if item.pcm:
            self._unanswered.append(item)
        self._emit_item(item, previous)

    def _given_item(self, given: dict[str, Any]) -> Item:
        body = copy.deepcopy(given)
        body["id"] = given.get("id") or self._id("item")
        if body["id"] in self.conversation.all:
            raise _invalid("item.id", f"An item with id {body['id']} already exists.")
        if given["type"] == "mcp_approval_response":
            raise _invalid("item.approval_request_id", "There is no such approval request.")
        if given["type"] == "function_call_output" and not (
            self.conversation.has_call(given["call_id"])
        ):
            raise _invalid("item.call_id", f"No function call has the id {given['call_id']}.")
        if given["type"] == "function_call":
            body.setdefault("call_id", self._id("call"))
        body.update(object="realtime.item", status="completed")
        item = Item(body)
        for part in body.get("content", ()):
            if part["type"] == "input_audio":
                item.pcm += _pcm_of(part.pop("audio"))
                part.setdefault("transcript", None)
        return item

    def _truncate(self, event: ce.ItemTruncate) -> None:
        item = self._known(event.item_id, "truncate")
        if not item.is_spoken():
            raise ce.ClientEventError(
                "unsupported_content_type",
                "Only model output audio messages can be truncated",
                param="item_id",
            )
        if event.content_index != 0:
            raise _invalid("content_index", "The item has no such content part.")
        if event.audio_end_ms * BYTES_PER_MS > item.left_bytes:
            raise _invalid(
                "audio_end_ms",
                f"Audio content of {item.left_bytes // BYTES_PER_MS}ms is already shorter "
                f"than {event.audio_end_ms}ms",
            )
        item.truncate(event.audio_end_ms)
        self._cached_tokens = (0, 0)
        self._emit(
            "conversation.item.truncated",
            item_id=item.item_id,
            content_index=0,
            audio_end_ms=event.audio_end_ms,
        )

    def _delete(self, event: ce.ItemDelete) -> None:
        item = self._known(event.item_id, "delete")
        self.conversation.delete(item)
        self._cached_tokens = (0, 0)
        self._emit("conversation.item.deleted", item_id=item.item_id)

    # --- responses ------------------------------------------------------------------------

    def _create_response(self, wish: dict[str, Any]) -> None:
        is_oob = wish.get("conversation") == "none"
        if self.active and not is_oob:
            raise _active_error(self.active)
        self._check_model_features(wish, "response")
        sound = wish.get("audio", {}).get("output", {})
        self._check_voice(sound, "response.audio.output.voice")
        self._respond(wish)

    def _respond(self, wish: dict[str, Any]) -> None:
        is_oob = wish.get("conversation") == "none"
        modalities = wish.get("output_modalities", self.config["output_modalities"])
        output = wish.get("audio", {}).get("output", {})
        response = Response(
            response_id=self._id("resp"),
            conversation_id=None if is_oob else self.conversation.conversation_id,
            outputs=self._outputs(modalities),
            modalities=list(modalities),
            max_output_tokens=wish.get("max_output_tokens", self.config["max_output_tokens"]),
            voice=output.get("voice", self._voice),
            metadata=wish.get("metadata"),
            pacing=Pacing(self.script.think_ms, self.script.delta_ms, self.script.pace),
            created_s=self._now_s,
        )
        if not is_oob and self._failures:
            response.fail(self._failures.pop(0))
        self._responses.append(response)
        self._emit("response.created", response=response.wire(None))

    def _outputs(self, modalities: list[str]) -> list[Output]:
        if modalities == ["text"]:
            return [Output(self._assistant_item("final_answer"), "text", "ok")]
        call = self.script.call if self._unanswered else None
        if call and not call.speak_too:
            # The turn stays unanswered: the follow-up after the call's output speaks to it.
            self._last_spoken_to, self._unanswered = self._unanswered, []
            return [self._call_output(call)]
        spoken = self._spoken_outputs()
        return [self._call_output(call), *spoken] if call else spoken

    def _call_output(self, call: Call) -> Output:
        body = {
            "id": self._id("item"),
            "object": "realtime.item",
            "type": "function_call",
            "status": "in_progress",
            "name": call.name,
            "call_id": self._id("call"),
            "arguments": "",
        }
        return Output(Item(body), "function_call", call.arguments)

    def _spoken_outputs(self) -> list[Output]:
        pcm = self._answer_pcm()
        count = self.script.items
        samples = len(pcm) // 2
        outputs = []
        for number in range(count):
            phase = "final_answer" if number == count - 1 else "commentary"
            part = pcm[2 * (samples * number // count) : 2 * (samples * (number + 1) // count)]
            text = f"Part {number + 1} of {count} with {len(part) // BYTES_PER_MS} milliseconds."
            outputs.append(Output(self._assistant_item(phase), "audio", text, part))
        return outputs

    def _answer_pcm(self) -> bytes:
        """The scripted answer, or the user's own audio since the last answer.

        Without a new turn it answers the previous one again, as the real model does.
        """
        if self._unanswered:
            self._last_spoken_to, self._unanswered = self._unanswered, []
        if self.script.answer is not None:
            return self.script.answer.astype("<i2").tobytes()
        heard = [bytes(item.pcm) for item in self._last_spoken_to if not item.deleted]
        return b"".join(heard) or _tone()

    def _assistant_item(self, phase: str) -> Item:
        body = _message(self._id("item"), "assistant", [], "in_progress")
        body["phase"] = phase
        return Item(body)

    def _cancel(self, event: ce.ResponseCancel) -> None:
        running = self.active
        if event.response_id is not None:
            running = next(
                (each for each in self._responses if each.response_id == event.response_id), None
            )
        if running is None or running.status == "cancelled":
            self.verdict.races += 1
            self._error(
                ce.ClientEventError(
                    "response_cancel_not_active",
                    "Cancellation failed: no active response found",
                    event_id=event.event_id,
                )
            )
            return
        self._stop(running, "client_cancelled")

    def _stop(self, response: Response, reason: str) -> None:
        if response.status == "cancelled":
            return
        response.cancel(self._now_s, reason, self.script.late_deltas)
        if response.due_s <= self._now_s:
            self._step(response)

    def _step(self, response: Response) -> None:
        self._emit_response_events(response, response.step())
        if response.finished:
            self._finish(response)

    def _emit_response_events(self, response: Response, events: list[ServerEvent]) -> None:
        for event in events:
            if event["type"] == "conversation.item.added":
                item_id = event["item"]["id"]
                item = next(one.item for one in response.outputs if one.item.item_id == item_id)
                event["previous_item_id"] = self.conversation.insert(item)
            elif event["type"] == "conversation.item.done":
                event["previous_item_id"] = None  # seen on the wire though `added` had one
            elif event["type"] == "response.output_audio.delta":
                self._has_spoken = True
            self._out.append(
                {"type": event["type"], "event_id": self._id("event"), **event},
            )

    def _finish(self, response: Response) -> None:
        self._emit_response_events(response, response.close_open_items())
        self._responses.remove(response)
        usage = self._usage(response)
        self._emit("response.done", response=response.wire(usage))
        self._tokens_left -= usage["total_tokens"]
        self._at(self._now_s + RATE_LIMIT_DELAY_S, self._rate_limits)
        late, self._late_transcripts = self._late_transcripts, []
        for item in late:
            self._at(self._now_s + TRANSCRIPT_DELAY_S, partial(self._transcript, item))

    def _rate_limits(self) -> None:
        used = TOKEN_LIMIT - self._tokens_left
        limit = {
            "name": "tokens",
            "limit": TOKEN_LIMIT,
            "remaining": max(0, self._tokens_left),
            "reset_seconds": round(used * 60 / TOKEN_LIMIT, 3),
        }
        self._emit("rate_limits.updated", rate_limits=[limit])

    def _usage(self, response: Response) -> dict[str, Any]:
        """Tokens as billed: the whole context in, what was generated out."""
        made = [output.item.tokens() for output in response.outputs if output.state != "planned"]
        text_out, audio_out = sum(made_[0] for made_ in made), sum(made_[1] for made_ in made)
        context = self.conversation.tokens()
        in_conversation = response.conversation_id is not None
        prompt = str(self.config["instructions"]) + str(self.config["tools"] or "")
        text_in = context[0] + len(prompt) // 4 - (text_out if in_conversation else 0)
        audio_in = context[1] - (audio_out if in_conversation else 0)
        text_in, audio_in = max(0, text_in), max(0, audio_in)
        cached_text = min(self._cached_tokens[0], text_in) // 64 * 64
        cached_audio = min(self._cached_tokens[1], audio_in) // 64 * 64
        self._cached_tokens = (text_in, audio_in)
        return {
            "total_tokens": text_in + audio_in + text_out + audio_out,
            "input_tokens": text_in + audio_in,
            "output_tokens": text_out + audio_out,
            "input_token_details": {
                "text_tokens": text_in,
                "audio_tokens": audio_in,
                "image_tokens": 0,
                "cached_tokens": cached_text + cached_audio,
                "cached_tokens_details": {
                    "text_tokens": cached_text,
                    "audio_tokens": cached_audio,
                    "image_tokens": 0,
                },
            },
            "output_token_details": {"text_tokens": text_out, "audio_tokens": audio_out},
        }


_APPEND = "input_audio_buffer.append"


def _ms(sample: int) -> int:
    return sample * 1000 // RATE_HZ


def _invalid(param: str, message: str) -> ce.ClientEventError:
    return ce.ClientEventError("invalid_value", message, param=param)


def _unknown_parameter(param: str) -> ce.ClientEventError:
    return ce.ClientEventError("unknown_parameter", f"Unknown parameter: '{param}'.", param=param)


def _active_error(active: Response) -> ce.ClientEventError:
    return ce.ClientEventError(
        "conversation_already_has_active_response",
        f"Conversation already has an active response in progress: {active.response_id}.",
    )


def _message(item_id: str, role: str, content: list[dict[str, Any]], status: str) -> dict[str, Any]:
    return {
        "id": item_id,
        "object": "realtime.item",
        "type": "message",
        "status": status,
        "role": role,
        "content": content,
    }


def _pcm_of(audio: str) -> bytes:
    try:
        return base64.b64decode(audio, validate=True)
    except (binascii.Error, ValueError) as error:
        raise _invalid("item.content[0].audio", "The audio is not base64.") from error


def _tone() -> bytes:
    """Half a second of 440 Hz: the answer of a parrot that never heard anything."""
    seconds = np.arange(RATE_HZ // 2) / RATE_HZ
    return (3000 * np.sin(2 * np.pi * 440 * seconds)).astype("<i2").tobytes()


def _holds(wish: dict[str, Any], path: str) -> bool:
    """Whether an update names the parameter at `path`, with anything but null."""
    value: Any = {"session": wish}
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value is not None


def _merged(old: dict[str, Any], wish: dict[str, Any]) -> dict[str, Any]:
    """`old` with every given field of a session.update laid over it.

    An object of the same type keeps the fields the update omits; one of another type starts from
    that type's defaults. Lists and plain values are replaced.
    """
    merged = copy.deepcopy(old)
    for key, value in wish.items():
        before = merged.get(key)
        if not isinstance(value, dict):
            merged[key] = copy.deepcopy(value)
        elif isinstance(before, dict) and value.get("type") in (None, before.get("type")):
            merged[key] = _merged(before, value)
        else:
            merged[key] = _merged(VAD_DEFAULTS.get(value.get("type", ""), {}), value)
    return merged
