"""The eleven GA client events as strict structs, and the judgement of a client frame by them.

Everything a client may send over a WebSocket is declared here and nowhere else. An unknown field,
a wrong type or a value out of range is an error, as it is at OpenAI's server. Optional fields hold
``UNSET`` when absent, so that an explicit ``null`` stays distinguishable.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

ItemId: TypeAlias = Annotated[str, Meta(max_length=32)]
EventId: TypeAlias = Annotated[str, Meta(max_length=512)]
Count: TypeAlias = Annotated[int, Meta(ge=0)]
Share: TypeAlias = Annotated[float, Meta(ge=0, le=1)]
Status: TypeAlias = Literal["completed", "incomplete", "in_progress"]
Modalities: TypeAlias = Annotated[list[Literal["text", "audio"]], Meta(min_length=1, max_length=1)]
MaxTokens: TypeAlias = Annotated[int, Meta(ge=1, le=4096)] | Literal["inf"]


class Strict(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all: keyword only, and a field nobody declared is an error."""


class Tagged(Strict, frozen=True, kw_only=True, tag_field="type"):
    """Base of everything told apart by its ``type``."""


# --- the session object ---------------------------------------------------------------------


class Pcm(Tagged, frozen=True, kw_only=True, tag="audio/pcm"):
    rate: Literal[24000] | UnsetType = UNSET


class Pcmu(Tagged, frozen=True, kw_only=True, tag="audio/pcmu"):
    pass


class Pcma(Tagged, frozen=True, kw_only=True, tag="audio/pcma"):
    pass


Format: TypeAlias = Pcm | Pcmu | Pcma


class Transcription(Strict, frozen=True, kw_only=True):
    model: str | UnsetType = UNSET
    language: str | UnsetType = UNSET
    prompt: str | None | UnsetType = UNSET
    delay: Literal["minimal", "low", "medium", "high", "xhigh"] | UnsetType = UNSET
    keywords: list[str] | UnsetType = UNSET
    languages: list[str] | UnsetType = UNSET


class NoiseReduction(Strict, frozen=True, kw_only=True):
    type: Literal["near_field", "far_field"]
    strength: float | UnsetType = UNSET


class ServerVad(Tagged, frozen=True, kw_only=True, tag="server_vad"):
    threshold: Share | UnsetType = UNSET
    prefix_padding_ms: Count | UnsetType = UNSET
    silence_duration_ms: Count | UnsetType = UNSET
    idle_timeout_ms: Annotated[int, Meta(ge=5000, le=30000)] | None | UnsetType = UNSET
    create_response: bool | UnsetType = UNSET
    interrupt_response: bool | UnsetType = UNSET


class SemanticVad(Tagged, frozen=True, kw_only=True, tag="semantic_vad"):
    eagerness: Literal["low", "medium", "high", "auto"] | UnsetType = UNSET
    create_response: bool | UnsetType = UNSET
    interrupt_response: bool | UnsetType = UNSET


class VoiceId(Strict, frozen=True, kw_only=True):
    id: str


Voice: TypeAlias = (
    Literal[
        "alloy",
        "ash",
        "ballad",
        "cedar",
        "coral",
        "echo",
        "marin",
        "sage",
        "shimmer",
        "verse",
    ]
    | VoiceId
)


class AudioInput(Strict, frozen=True, kw_only=True):
    format: Format | UnsetType = UNSET
    transcription: Transcription | None | UnsetType = UNSET
    noise_reduction: NoiseReduction | None | UnsetType = UNSET
    turn_detection: ServerVad | SemanticVad | None | UnsetType = UNSET


class AudioOutput(Strict, frozen=True, kw_only=True):
    format: Format | UnsetType = UNSET
    voice: Voice | UnsetType = UNSET
    speed: Annotated[float, Meta(ge=0.25, le=1.5)] | UnsetType = UNSET


class Audio(Strict, frozen=True, kw_only=True):
    input: AudioInput | UnsetType = UNSET
    output: AudioOutput | UnsetType = UNSET


class FunctionTool(Tagged, frozen=True, kw_only=True, tag="function"):
    name: str
    description: str | UnsetType = UNSET
    parameters: dict[str, Any] | UnsetType = UNSET


class ToolFilter(Strict, frozen=True, kw_only=True):
    tool_names: list[str] | UnsetType = UNSET
    read_only: bool | UnsetType = UNSET


class ApprovalFilter(Strict, frozen=True, kw_only=True):
    always: ToolFilter | UnsetType = UNSET
    never: ToolFilter | UnsetType = UNSET


class McpTool(Tagged, frozen=True, kw_only=True, tag="mcp"):
    server_label: str
    server_url: str | UnsetType = UNSET
    connector_id: str | UnsetType = UNSET
    tunnel_id: str | UnsetType = UNSET
    authorization: str | UnsetType = UNSET
    headers: dict[str, str] | None | UnsetType = UNSET
    allowed_tools: list[str] | ToolFilter | None | UnsetType = UNSET
    require_approval: Literal["always", "never"] | ApprovalFilter | None | UnsetType = UNSET
    server_description: str | UnsetType = UNSET
    defer_loading: bool | UnsetType = UNSET
    allowed_callers: list[Literal["direct", "programmatic"]] | None | UnsetType = UNSET


class FunctionChoice(Tagged, frozen=True, kw_only=True, tag="function"):
    name: str


class McpChoice(Tagged, frozen=True, kw_only=True, tag="mcp"):
    server_label: str
    name: str | None | UnsetType = UNSET


Tools: TypeAlias = list[FunctionTool | McpTool]
ToolChoice: TypeAlias = Literal["auto", "none", "required"] | FunctionChoice | McpChoice


class TokenLimits(Strict, frozen=True, kw_only=True):
    post_instructions: Count | UnsetType = UNSET


class RetentionRatio(Strict, frozen=True, kw_only=True):
    type: Literal["retention_ratio"]
    retention_ratio: Share
    token_limits: TokenLimits | UnsetType = UNSET


class Tracing(Strict, frozen=True, kw_only=True):
    workflow_name: str | UnsetType = UNSET
    group_id: str | UnsetType = UNSET
    metadata: dict[str, Any] | UnsetType = UNSET


class Prompt(Strict, frozen=True, kw_only=True):
    id: str
    version: str | None | UnsetType = UNSET
    variables: dict[str, Any] | None | UnsetType = UNSET


class Reasoning(Strict, frozen=True, kw_only=True):
    effort: Literal["minimal", "low", "medium", "high", "xhigh"] | UnsetType = UNSET


class Session(Strict, frozen=True, kw_only=True):
    type: Literal["realtime"]
    model: str | UnsetType = UNSET
    output_modalities: Modalities | UnsetType = UNSET
    instructions: str | UnsetType = UNSET
    audio: Audio | UnsetType = UNSET
    tools: Tools | UnsetType = UNSET
    tool_choice: ToolChoice | UnsetType = UNSET
    max_output_tokens: MaxTokens | UnsetType = UNSET
    truncation: Literal["auto", "disabled"] | RetentionRatio | UnsetType = UNSET
    tracing: Literal["auto"] | Tracing | None | UnsetType = UNSET
    include: list[Literal["item.input_audio_transcription.logprobs"]] | None | UnsetType = UNSET
    prompt: Prompt | None | UnsetType = UNSET
    reasoning: Reasoning | UnsetType = UNSET
    parallel_tool_calls: bool | UnsetType = UNSET


# --- conversation items ---------------------------------------------------------------------


class InputText(Tagged, frozen=True, kw_only=True, tag="input_text"):
    text: str


class InputAudio(Tagged, frozen=True, kw_only=True, tag="input_audio"):
    audio: str
    transcript: str | None | UnsetType = UNSET


class InputImage(Tagged, frozen=True, kw_only=True, tag="input_image"):
    image_url: Annotated[str, Meta(pattern="^data:image/(png|jpeg);base64,")]
    detail: Literal["auto", "low", "high"] | UnsetType = UNSET


class OutputText(Tagged, frozen=True, kw_only=True, tag="output_text"):
    text: str


class OutputAudio(Tagged, frozen=True, kw_only=True, tag="output_audio"):
    """Only the server makes these; declared so that the right error can be given."""

    transcript: str | None | UnsetType = UNSET
    audio: str | UnsetType = UNSET


Content: TypeAlias = InputText | InputAudio | InputImage | OutputText | OutputAudio
_CONTENT_OF_ROLE: dict[str, tuple[type[Struct], ...]] = {
    "system": (InputText,),
    "user": (InputText, InputAudio, InputImage),
    "assistant": (OutputText,),
}


class Item(Tagged, frozen=True, kw_only=True):
    id: ItemId | None | UnsetType = UNSET
    object: Literal["realtime.item"] | UnsetType = UNSET
    status: Status | UnsetType = UNSET


class Message(Item, frozen=True, kw_only=True, tag="message"):
    role: Literal["system", "user", "assistant"]
    content: list[Content]


class FunctionCall(Item, frozen=True, kw_only=True, tag="function_call"):
    name: str
    arguments: str
    call_id: ItemId | UnsetType = UNSET


class FunctionCallOutput(Item, frozen=True, kw_only=True, tag="function_call_output"):
    call_id: ItemId
    output: str


class McpApprovalResponse(Tagged, frozen=True, kw_only=True, tag="mcp_approval_response"):
    id: ItemId
    approval_request_id: str
    approve: bool
    reason: str | None | UnsetType = UNSET


class ItemReference(Tagged, frozen=True, kw_only=True, tag="item_reference"):
    id: str


AnyItem: TypeAlias = Message | FunctionCall | FunctionCallOutput | McpApprovalResponse


# --- the response a client asks for ---------------------------------------------------------


class ResponseAudioOutput(Strict, frozen=True, kw_only=True):
    format: Format | UnsetType = UNSET
    voice: Voice | UnsetType = UNSET


class ResponseAudio(Strict, frozen=True, kw_only=True):
    output: ResponseAudioOutput | UnsetType = UNSET


Metadata: TypeAlias = Annotated[
    dict[
        Annotated[str, Meta(max_length=64)],
        Annotated[str, Meta(max_length=512)],
    ],
    Meta(max_length=16),
]


class ResponseWish(Strict, frozen=True, kw_only=True):
    conversation: Literal["auto", "none"] | UnsetType = UNSET
    input: list[AnyItem | ItemReference] | UnsetType = UNSET
    instructions: str | UnsetType = UNSET
    output_modalities: Modalities | UnsetType = UNSET
    audio: ResponseAudio | UnsetType = UNSET
    tools: Tools | UnsetType = UNSET
    tool_choice: ToolChoice | UnsetType = UNSET
    max_output_tokens: MaxTokens | UnsetType = UNSET
    metadata: Metadata | None | UnsetType = UNSET
    reasoning: Reasoning | UnsetType = UNSET
    parallel_tool_calls: bool | UnsetType = UNSET
    prompt: Prompt | None | UnsetType = UNSET


# --- the events -----------------------------------------------------------------------------


class Event(Tagged, frozen=True, kw_only=True):
    event_id: EventId | None = None


class SessionUpdate(Event, frozen=True, kw_only=True, tag="session.update"):
    session: Session


class BufferAppend(Event, frozen=True, kw_only=True, tag="input_audio_buffer.append"):
    audio: str


class BufferCommit(Event, frozen=True, kw_only=True, tag="input_audio_buffer.commit"):
    pass


class BufferClear(Event, frozen=True, kw_only=True, tag="input_audio_buffer.clear"):
    pass


class ItemCreate(Event, frozen=True, kw_only=True, tag="conversation.item.create"):
    item: AnyItem
    previous_item_id: str | None = None


class ItemRetrieve(Event, frozen=True, kw_only=True, tag="conversation.item.retrieve"):
    item_id: ItemId


class ItemTruncate(Event, frozen=True, kw_only=True, tag="conversation.item.truncate"):
    item_id: ItemId
    content_index: Count
    audio_end_ms: Count


class ItemDelete(Event, frozen=True, kw_only=True, tag="conversation.item.delete"):
    item_id: ItemId


class ResponseCreate(Event, frozen=True, kw_only=True, tag="response.create"):
    response: ResponseWish | None = None


class ResponseCancel(Event, frozen=True, kw_only=True, tag="response.cancel"):
    response_id: str | None = None


class OutputBufferClear(Event, frozen=True, kw_only=True, tag="output_audio_buffer.clear"):
    """Speaks to WebRTC and SIP peers only; over a WebSocket it does nothing."""


ClientEvent: TypeAlias = (
    SessionUpdate
    | BufferAppend
    | BufferCommit
    | BufferClear
    | ItemCreate
    | ItemRetrieve
    | ItemTruncate
    | ItemDelete
    | ResponseCreate
    | ResponseCancel
    | OutputBufferClear
)
EVENT_TYPES: tuple[str, ...] = (
    "session.update",
    "input_audio_buffer.append",
    "input_audio_buffer.commit",
    "input_audio_buffer.clear",
    "conversation.item.create",
    "conversation.item.retrieve",
    "conversation.item.truncate",
    "conversation.item.delete",
    "response.create",
    "response.cancel",
    "output_audio_buffer.clear",
)


class ClientEventError(ValueError):
    """A client frame the server rejects.

    ``code`` is the API's error code, ``param`` the path of the offending field or None,
    ``event_id`` the client's own id of the frame or None, ``event_type`` the frame's type or None
    if it has no readable one.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        param: str | None = None,
        event_id: str | None = None,
        event_type: str | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param
        self.event_id = event_id
        self.event_type = event_type


def parse(text: str) -> tuple[ClientEvent, dict[str, Any]]:
    """The event in a text frame, checked, and the same as plain JSON values.

    Raises ClientEventError for anything that is not exactly one of the eleven events.
    """
    raw = _decode(text)
    event_id = raw["event_id"] if isinstance(raw.get("event_id"), str) else None
    event_type = raw["type"] if isinstance(raw.get("type"), str) else None
    try:
        _check_type(raw)
        event: ClientEvent = msgspec.convert(raw, ClientEvent)
        _check_contents(event)
    except msgspec.ValidationError as error:
        raise _translated(str(error), event_id, event_type) from error
    except ClientEventError as error:
        error.event_id, error.event_type = event_id, event_type
        raise
    return event, raw


def _decode(text: str) -> dict[str, Any]:
    try:
        raw = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        raise ClientEventError("invalid_json", f"Could not parse the frame: {error}") from error
    if not isinstance(raw, dict):
        raise ClientEventError("invalid_event", "A client event is a JSON object.")
    return raw


def _check_type(raw: dict[str, Any]) -> None:
    if "type" not in raw:
        raise ClientEventError(
            "missing_required_parameter", "Missing required parameter: 'type'.", param="type"
        )
    if raw["type"] not in EVENT_TYPES:
        allowed = ", ".join(repr(name) for name in EVENT_TYPES)
        raise ClientEventError(
            "invalid_value",
            f"Invalid value: {raw['type']!r}. Supported values are: {allowed}.",
            param="type",
        )


def _check_contents(event: ClientEvent) -> None:
    if isinstance(event, ItemCreate):
        _check_message(event.item, "item")
    elif isinstance(event, ResponseCreate) and event.response is not None:
        wished = event.response.input
        for number, item in enumerate(wished if isinstance(wished, list) else ()):
            _check_message(item, f"response.input[{number}]")


def _check_message(item: Struct, path: str) -> None:
    if not isinstance(item, Message):
        return
    for number, part in enumerate(item.content):
        if isinstance(part, _CONTENT_OF_ROLE[item.role]):
            continue
        where = f"{path}.content[{number}]"
        if item.role == "assistant" and isinstance(part, OutputAudio):
            raise ClientEventError(
                "missing_required_parameter",
                f"Missing required parameter: '{where}.text'.",
                param=f"{where}.text",
            )
        raise ClientEventError(
            "invalid_value",
            f"This content type does not go with the role {item.role!r}.",
            param=f"{where}.type",
        )


# The forms of msgspec's messages. Everything not listed is a value out of its range.
_FORMS = (
    (re.compile(r"Object contains unknown field `(.+?)`"), "unknown_parameter", "Unknown"),
    (
        re.compile(r"Object missing required field `(.+?)`"),
        "missing_required_parameter",
        "Missing required",
    ),
)
_PLACE = re.compile(r" - at `(?:key in )?\$\.?(.*?)`$")


def _translated(report: str, event_id: str | None, event_type: str | None) -> ClientEventError:
    place = _PLACE.search(report)
    path = place[1] if place else ""
    code, param, message = _value_code(report), path, f"Invalid '{path}': {report}."
    for form, form_code, word in _FORMS:
        if found := form.match(report):
            code, param = form_code, f"{path}.{found[1]}" if path else found[1]
            message = f"{word} parameter: '{param}'."
    return ClientEventError(
        code, message, param=param or None, event_id=event_id, event_type=event_type
    )


def _value_code(report: str) -> str:
    if "of length <=" in report and "`str`" in report:
        return "string_above_max_length"
    return "invalid_type" if ", got `" in report else "invalid_value"
