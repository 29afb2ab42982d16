"""The client structs: what OpenAI's types accept passes, anything else is named in the error."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from openai.types import realtime as theirs

from tests.sim.openai_types import CLIENT_MODELS, check_client_event
from voiced.sim import client_events as ce

FULL_SESSION: dict[str, Any] = {
    "type": "realtime",
    "output_modalities": ["audio"],
    "instructions": "Speak like a lighthouse keeper.",
    "audio": {
        "input": {
            "format": {"type": "audio/pcm", "rate": 24000},
            "transcription": {"model": "gpt-realtime-whisper", "language": "en"},
            "noise_reduction": {"type": "near_field"},
            "turn_detection": {
                "type": "server_vad",
                "threshold": 0.7,
                "prefix_padding_ms": 200,
                "silence_duration_ms": 600,
                "idle_timeout_ms": None,
                "create_response": True,
                "interrupt_response": False,
            },
        },
        "output": {"format": {"type": "audio/pcm", "rate": 24000}, "voice": "cedar", "speed": 1},
    },
    "tools": [
        {
            "type": "function",
            "name": "fog_horn",
            "description": "Sound it.",
            "parameters": {"type": "object"},
        },
        {
            "type": "mcp",
            "server_label": "shed",
            "server_url": "https://shed.example/mcp",
            "headers": {"X-From": "tower"},
            "allowed_tools": {"tool_names": ["look"]},
            "require_approval": {"never": {"tool_names": ["look"]}},
        },
    ],
    "tool_choice": {"type": "function", "name": "fog_horn"},
    "max_output_tokens": 900,
    "truncation": {
        "type": "retention_ratio",
        "retention_ratio": 0.75,
        "token_limits": {"post_instructions": 6000},
    },
    "tracing": None,
    "reasoning": {"effort": "low"},
    "parallel_tool_calls": True,
}
VALID: list[dict[str, Any]] = [
    {"type": "session.update", "event_id": "cfg", "session": FULL_SESSION},
    {"type": "session.update", "session": {"type": "realtime"}},
    {
        "type": "session.update",
        "session": {
            "type": "realtime",
            "audio": {"input": {"turn_detection": None, "transcription": None}},
            "tool_choice": "none",
            "truncation": "disabled",
            "max_output_tokens": "inf",
        },
    },
    {
        "type": "session.update",
        "session": {
            "type": "realtime",
            "audio": {
                "input": {"turn_detection": {"type": "semantic_vad", "eagerness": "high"}},
                "output": {"voice": {"id": "voice_9"}},
            },
        },
    },
    {"type": "input_audio_buffer.append", "audio": "AAAA"},
    {"type": "input_audio_buffer.commit", "event_id": "c"},
    {"type": "input_audio_buffer.clear"},
    {
        "type": "conversation.item.create",
        "previous_item_id": "root",
        "item": {
            "id": "mine_1",
            "type": "message",
            "role": "user",
            "content": [
                {"type": "input_text", "text": "And this?"},
                {"type": "input_audio", "audio": "AAAA", "transcript": "hm"},
                {"type": "input_image", "image_url": "data:image/png;base64,iVBORw0K"},
            ],
        },
    },
    {
        "type": "conversation.item.create",
        "item": {
            "type": "message",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": "Fog."}],
        },
    },
    {
        "type": "conversation.item.create",
        "item": {
            "type": "message",
            "role": "system",
            "content": [{"type": "input_text", "text": "It is 4 a.m."}],
        },
    },
    {
        "type": "conversation.item.create",
        "item": {"type": "function_call", "call_id": "c1", "name": "fog_horn", "arguments": "{}"},
    },
    {
        "type": "conversation.item.create",
        "item": {"type": "function_call_output", "call_id": "c1", "output": "done"},
    },
    {
        "type": "conversation.item.create",
        "item": {
            "type": "mcp_approval_response",
            "id": "apr",
            "approval_request_id": "mcpr_1",
            "approve": False,
        },
    },
    {"type": "conversation.item.retrieve", "item_id": "i"},
    {
        "type": "conversation.item.truncate",
        "item_id": "i",
        "content_index": 0,
        "audio_end_ms": 12,
    },
    {"type": "conversation.item.delete", "item_id": "i"},
    {"type": "response.create"},
    {
        "type": "response.create",
        "response": {
            "conversation": "none",
            "input": [],
            "instructions": "One sentence.",
            "output_modalities": ["text"],
            "metadata": {"why": "summary"},
            "tool_choice": "none",
            "max_output_tokens": 200,
            "audio": {"output": {"voice": "marin"}},
        },
    },
    {"type": "response.cancel", "response_id": "r"},
    {"type": "output_audio_buffer.clear"},
]


def update(**fields: Any) -> dict[str, Any]:
    return {"type": "session.update", "session": {"type": "realtime", **fields}}


def with_input(**fields: Any) -> dict[str, Any]:
    return update(audio={"input": fields})


def message(role: str, part: dict[str, Any]) -> dict[str, Any]:
    item = {"type": "message", "role": role, "content": [part]}
    return {"type": "conversation.item.create", "item": item}


INVALID: list[tuple[dict[str, Any], str, str]] = [
    ({"event_id": "e"}, "missing_required_parameter", "type"),
    ({"type": "response.make"}, "invalid_value", "type"),
    ({"type": "transcription_session.update", "session": {}}, "invalid_value", "type"),
    ({"type": "session.update"}, "missing_required_parameter", "session"),
    ({"type": "session.update", "session": {}}, "missing_required_parameter", "session.type"),
    (
        {"type": "session.update", "session": {"type": "transcription"}},
        "invalid_value",
        "session.type",
    ),
    (update(voice="marin"), "unknown_parameter", "session.voice"),
    (update(modalities=["audio"]), "unknown_parameter", "session.modalities"),
    (update(temperature=0.8), "unknown_parameter", "session.temperature"),
    (update(turn_detection=None), "unknown_parameter", "session.turn_detection"),
    (update(id="sess_1"), "unknown_parameter", "session.id"),
    (update(output_modalities=["text", "audio"]), "invalid_value", "session.output_modalities"),
    (update(max_output_tokens=0), "invalid_value", "session.max_output_tokens"),
    (update(max_output_tokens=5000), "invalid_value", "session.max_output_tokens"),
    (update(instructions=7), "invalid_type", "session.instructions"),
    (update(instructions=None), "invalid_type", "session.instructions"),
    (
        update(tools=[{"type": "function", "name": "f", "strict": True}]),
        "unknown_parameter",
        "session.tools[0].strict",
    ),
    (
        update(tools=[{"type": "function", "function": {"name": "f"}}]),
        "unknown_parameter",
        "session.tools[0].function",
    ),
    (
        update(audio={"output": {"voice": "hal"}}),
        "invalid_value",
        "session.audio.output.voice",
    ),
    (update(audio={"output": {"speed": 2}}), "invalid_value", "session.audio.output.speed"),
    (
        with_input(format={"type": "audio/pcm", "rate": 16000}),
        "invalid_value",
        "session.audio.input.format.rate",
    ),
    (with_input(format="pcm16"), "invalid_type", "session.audio.input.format"),
    (
        with_input(turn_detection={"type": "semantic_vad", "threshold": 0.5}),
        "unknown_parameter",
        "session.audio.input.turn_detection.threshold",
    ),
    (
        with_input(turn_detection={"type": "server_vad", "idle_timeout_ms": 100}),
        "invalid_value",
        "session.audio.input.turn_detection.idle_timeout_ms",
    ),
    (
        with_input(turn_detection={"type": "none"}),
        "invalid_value",
        "session.audio.input.turn_detection.type",
    ),
    ({"type": "input_audio_buffer.append"}, "missing_required_parameter", "audio"),
    ({"type": "input_audio_buffer.append", "audio": [0]}, "invalid_type", "audio"),
    (
        {"type": "input_audio_buffer.commit", "final": True},
        "unknown_parameter",
        "final",
    ),
    (
        {
            "type": "conversation.item.create",
            "item": {"id": "x" * 33, "type": "message", "role": "user", "content": []},
        },
        "string_above_max_length",
        "item.id",
    ),
    (
        message("assistant", {"type": "output_audio", "transcript": "hi"}),
        "missing_required_parameter",
        "item.content[0].text",
    ),
    (
        message("user", {"type": "output_text", "text": "x"}),
        "invalid_value",
        "item.content[0].type",
    ),
    (message("user", {"type": "text", "text": "x"}), "invalid_value", "item.content[0].type"),
    (
        message("user", {"type": "input_image", "image_url": "http://x/y.png"}),
        "invalid_value",
        "item.content[0].image_url",
    ),
    (
        {"type": "conversation.item.delete", "item_id": "y" * 40},
        "string_above_max_length",
        "item_id",
    ),
    (
        {
            "type": "conversation.item.truncate",
            "item_id": "i",
            "content_index": 0,
            "audio_end_ms": -1,
        },
        "invalid_value",
        "audio_end_ms",
    ),
    (
        {
            "type": "conversation.item.truncate",
            "item_id": "i",
            "content_index": 0,
            "audio_end_ms": 10.5,
        },
        "invalid_type",
        "audio_end_ms",
    ),
    (
        {"type": "response.create", "response": {"modalities": ["audio"]}},
        "unknown_parameter",
        "response.modalities",
    ),
    (
        {"type": "response.create", "response": {"metadata": {"n": 5}}},
        "invalid_type",
        "response.metadata[...]",
    ),
    ({"type": "response.cancel", "event_id": "e" * 513}, "string_above_max_length", "event_id"),
]


@pytest.mark.parametrize("event", VALID, ids=lambda event: str(event["type"]))
def test_what_openais_types_accept_is_accepted(event: dict[str, Any]) -> None:
    check_client_event(event)
    parsed, raw = ce.parse(json.dumps(event))
    assert parsed.__struct_config__.tag == event["type"]
    assert raw == event


def test_every_client_event_is_covered() -> None:
    assert set(ce.EVENT_TYPES) == set(CLIENT_MODELS) == {event["type"] for event in VALID}


@pytest.mark.parametrize(
    ("event", "code", "param"), INVALID, ids=[f"{code}-{param}" for _, code, param in INVALID]
)
def test_what_is_wrong_is_named(event: dict[str, Any], code: str, param: str) -> None:
    with pytest.raises(ce.ClientEventError) as caught:
        ce.parse(json.dumps(event))
    assert (caught.value.code, caught.value.param) == (code, param)
    assert caught.value.event_id == event.get("event_id")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "invalid_json"),
        ("{", "invalid_json"),
        ("[" * 100_000, "invalid_json"),
        ("[]", "invalid_event"),
        ("null", "invalid_event"),
    ],
)
def test_no_object_no_event(text: str, code: str) -> None:
    with pytest.raises(ce.ClientEventError) as caught:
        ce.parse(text)
    assert caught.value.code == code


@pytest.mark.parametrize("event", VALID, ids=lambda event: str(event["type"]))
def test_one_more_field_anywhere_is_refused(event: dict[str, Any]) -> None:
    with pytest.raises(ce.ClientEventError) as caught:
        ce.parse(json.dumps({**event, "surplus": 1}))
    assert caught.value.code == "unknown_parameter"


@pytest.mark.parametrize(
    ("ours", "model", "unlisted"),
    [
        (ce.Session, theirs.RealtimeSessionCreateRequest, set()),
        (ce.AudioInput, theirs.RealtimeAudioConfigInput, set()),
        (ce.AudioOutput, theirs.RealtimeAudioConfigOutput, set()),
        (ce.Transcription, theirs.AudioTranscription, set()),
        (ce.ResponseWish, theirs.RealtimeResponseCreateParams, set()),
        (ce.FunctionTool, theirs.RealtimeFunctionTool, {"type"}),
        (ce.FunctionCall, theirs.RealtimeConversationItemFunctionCall, {"type"}),
        (ce.FunctionCallOutput, theirs.RealtimeConversationItemFunctionCallOutput, {"type"}),
        (ce.Message, theirs.RealtimeConversationItemUserMessage, {"type"}),
        (ce.RetentionRatio, theirs.RealtimeTruncationRetentionRatio, set()),
    ],
)
def test_the_structs_have_the_fields_of_openais_types(
    ours: type[msgspec.Struct], model: Any, unlisted: set[str]
) -> None:
    # msgspec keeps a tag out of the fields, hence `unlisted`.
    assert set(ours.__struct_fields__) | unlisted == set(model.model_fields)
