"""The codec: any text is one value, never an exception; what we say is OpenAI's own language."""

import base64
import copy
import json
import random
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core.world import World, voice
from tests.sim.openai_types import CLIENT_MODELS, SERVER_MODELS, _extras, check_client_event
from voiced.config import Config, Realtime, Turn
from voiced.core import realtime
from voiced.core.realtime import Encoder, Nonsense, Other, ServerEvent, decode
from voiced.core.turn import TurnState
from voiced.events import LinkFrame

GA_LINES = Path(__file__).parent.parent.joinpath("data/ga_server_events.jsonl").read_text("utf-8")
GA_EVENTS: list[dict[str, Any]] = [json.loads(line) for line in GA_LINES.splitlines()]
HANDLED = {
    "session.created": realtime.SessionCreated,
    "session.updated": realtime.SessionUpdated,
    "error": realtime.Error,
    "input_audio_buffer.speech_started": realtime.SpeechStarted,
    "input_audio_buffer.speech_stopped": realtime.SpeechStopped,
    "input_audio_buffer.committed": realtime.Committed,
    "response.created": realtime.ResponseCreated,
    "response.done": realtime.ResponseDone,
    "response.output_audio.delta": realtime.AudioDelta,
    "response.output_audio.done": realtime.AudioDone,
    "response.output_audio_transcript.delta": realtime.AnswerText,
    "response.output_text.done": realtime.Text,
    "conversation.item.input_audio_transcription.completed": realtime.Transcribed,
    "rate_limits.updated": realtime.RateLimits,
}


def event_of(kind: str) -> dict[str, Any]:
    """A copy of the recorded event of this type."""
    return copy.deepcopy(next(e for e in GA_EVENTS if e["type"] == kind))


def read(event: dict[str, Any]) -> Any:
    return decode(json.dumps(event))


# --- reading -------------------------------------------------------------------------------


@pytest.mark.parametrize("line", GA_LINES.splitlines(), ids=[e["type"] for e in GA_EVENTS])
def test_every_event_of_the_protocol_is_understood(line: str) -> None:
    kind = json.loads(line)["type"]
    assert type(decode(line)) is HANDLED.get(kind, Other)
    assert kind in realtime.KNOWN_TYPES


def test_the_protocol_has_no_event_that_we_take_for_unknown() -> None:
    assert set(SERVER_MODELS) <= realtime.KNOWN_TYPES


def test_a_type_of_the_future_is_another_event() -> None:
    assert decode('{"type":"response.telepathy.delta","x":[1]}') == Other(
        "response.telepathy.delta"
    )
    assert len(decode(json.dumps({"type": "x" * 10_000})).type) == 80  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", HANDLED)
def test_fields_of_the_future_are_ignored(kind: str) -> None:
    event = event_of(kind)
    known = read(event)
    for value in (event, *[v for v in event.values() if isinstance(v, dict)]):
        value["added_in_2031"] = {"deep": [1, None, {"er": 2}]}
    after = read(event)
    assert type(after) is type(known)
    if kind == "session.updated":  # kept as the server gave it
        assert realtime.server_ends(after.session) is realtime.server_ends(known.session)
    elif kind != "response.output_audio.delta":  # arrays don't compare to one truth
        assert after == known


def test_audio_is_read_as_samples() -> None:
    event = event_of("response.output_audio.delta")
    samples = np.array([0, 1, -1, 32_767, -32_768], "<i2")
    event["delta"] = base64.b64encode(samples.tobytes()).decode()
    said = read(event)
    assert said.samples.dtype == np.int16
    assert said.samples.tolist() == [0, 1, -1, 32_767, -32_768]
    assert (said.response_id, said.item_id) == (event["response_id"], event["item_id"])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("delta", "AAA"),  # cut off
        ("delta", "A A="),
        ("delta", "ÄÖÜß"),
        ("delta", "AA=="),  # half a sample
        ("delta", 5),
        ("delta", None),
        ("output_index", -1),
        ("output_index", 10**6),
        ("content_index", 10**30),
        ("content_index", 0.5),
        ("item_id", None),
    ],
)
def test_audio_that_is_none_is_nonsense(field: str, value: object) -> None:
    event = event_of("response.output_audio.delta")
    event[field] = value
    assert isinstance(read(event), Nonsense)


@pytest.mark.parametrize(
    "frame",
    [
        b'{"type":"session.created"}',
        "",
        "hello",
        "null",
        "[]",
        "{}",
        '{"type":null}',
        '{"type":7}',
        '{"type":"error"}',
        '{"type":"error","error":"quota"}',
        '{"type":"response.done","response":{"id":NaN}}',
        '{"type":"response.created","response":{}}',
        '{"type":"session.updated","session":' + "[" * 5_000 + "]" * 5_000 + "}",
        '{"type":"session.updated","session":' + '{"a":' * 100_000 + "1" + "}" * 100_000 + "}",
        '{"type":"x","y":' + "[" * 100_000 + "]" * 100_000 + "}",
        '{"type":"\ud800"}',
    ],
    ids=lambda frame: repr(frame)[:40],
)
def test_what_is_no_event_is_nonsense_that_fits_a_line(frame: str | bytes) -> None:
    said = decode(frame)
    assert isinstance(said, Nonsense)
    assert 0 < len(said.detail) <= 200


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(10**40), 10**40)
    | st.floats()  # NaN and infinities, too
    | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4)
    ),
    max_leaves=10,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all that is in a JSON value."""
    keys: Any = ()
    if isinstance(value, dict):
        keys = value.keys()
    elif isinstance(value, list):
        keys = range(len(value))
    return [path] * bool(path) + [p for key in keys for p in places(value[key], (*path, key))]


@st.composite
def damaged(draw: st.DrawFn) -> str:
    """An event of the protocol with some values replaced by others."""
    event = copy.deepcopy(draw(st.sampled_from(GA_EVENTS)))
    for _ in range(draw(st.integers(0, 3))):
        *parents, last = draw(st.sampled_from(places(event)))
        here: Any = event
        for key in parents:
            here = here[key]
        here[last] = draw(JSON)
    return json.dumps(event)


@given(
    st.text()
    | st.text(st.characters())  # lone surrogates, too
    | st.binary()
    | JSON.map(json.dumps)
    | st.dictionaries(st.just("type") | st.text(), st.sampled_from(list(HANDLED)) | JSON).map(
        json.dumps
    )
    | damaged()
    | st.tuples(damaged(), st.integers(0, 500)).map(lambda cut: cut[0][: cut[1]])
)
def test_any_frame_is_one_value_and_never_an_exception(frame: str | bytes) -> None:
    assert isinstance(decode(frame), ServerEvent)


@pytest.mark.parametrize("seed", range(4))
def test_whatever_the_server_says_no_rule_breaks(seed: int) -> None:
    """The protocol's own events, at the wrong moments and of the wrong responses."""
    rng = random.Random(seed)
    world = World()
    world.run(4)
    for move in range(150):
        if move % 15 == 0:
            world.tap(world.now)
            world.say(voice(0.5, seed), world.now + 0.3)
        world.run(rng.choice([0.0, 0.1, 0.3]))
        event = copy.deepcopy(rng.choice(GA_EVENTS))
        if live := world.core._down.responses.active:
            event["response_id"] = live
            if "response" in event:
                event["response"]["id"] = live
        if event["type"] == "error":
            event["error"]["code"] = rng.choice(["invalid_value", "session_expired", None])
        world.give(LinkFrame(json.dumps(event), world.now, world.core.link.dial))
    world.run(300)
    assert world.core.state is TurnState.IDLE


@pytest.mark.parametrize(
    ("session", "ends"),
    [
        ({"audio": {"input": {"turn_detection": {"type": "server_vad"}}}}, True),
        ({"audio": {"input": {"turn_detection": None}}}, False),
        ({"audio": {"input": {}}}, None),
        ({"audio": {"input": None}}, None),
        ({"audio": 5}, None),
        ({"turn_detection": None}, None),
        ({}, None),
    ],
)
def test_who_ends_turns_as_a_server_tells_it(session: dict[str, Any], ends: bool | None) -> None:
    assert realtime.server_ends(session) is ends


@pytest.mark.parametrize(
    ("response", "out_of_band"),
    [
        ({"id": "r"}, False),  # servers that leave it out
        ({"id": "r", "conversation_id": "c"}, False),
        ({"id": "r", "conversation_id": None}, True),
    ],
)
def test_a_response_outside_the_conversation_is_told_by_its_null(
    response: dict[str, Any], out_of_band: bool
) -> None:
    said = read({"type": "response.created", "response": response})
    assert said.response.out_of_band is out_of_band


@pytest.mark.parametrize(
    ("details", "why"),
    [
        (None, "no reason given"),
        ({"type": "incomplete", "reason": "content_filter"}, "content_filter"),
        ({"type": "failed", "error": {"code": "rate_limit_exceeded"}}, "rate_limit_exceeded: "),
        ({"type": "failed", "error": {"type": "server_error"}}, "no reason given"),
    ],
)
def test_why_a_response_failed_is_said_in_a_word(details: Any, why: str) -> None:
    response = {"id": "r", "status": "failed", "status_details": details}
    assert read({"type": "response.done", "response": response}).response.why == why


# --- writing -------------------------------------------------------------------------------


TURNS = [Turn(end="server_vad", silence_ms=900), Turn(end="local", silence_ms=300)]
CONFIGS = [
    Config(realtime=Realtime(model=model), turn=turn)
    for model, turn in product(["gpt-realtime", "gpt-realtime-2.1"], TURNS)
]


def everything_said() -> list[dict[str, Any]]:
    """One of each of our events, and each session update we can make."""
    encode = Encoder()
    said = [
        encode.append(bytes(960)),
        encode.commit(),
        encode.clear(),
        encode.create_response(),
        encode.cancel("resp_1"),
        encode.truncate("item_1", 1, 1480),
        encode.delete("item_1"),
    ]
    for config, server_ends in product(CONFIGS, (False, True)):
        detection = realtime.turn_detection(config, server_ends=server_ends)
        said.append(encode.session_update(realtime.mode_update(detection)))
        said += [
            encode.session_update(realtime.session_config(config, detection, optional=optional))
            for optional in (False, True)
        ]
    return [{"returned_id": event_id, **json.loads(text)} for text, event_id in said]


@pytest.mark.parametrize("event", everything_said(), ids=lambda e: e["returned_id"])
def test_what_we_say_is_of_the_openai_packages_types(event: dict[str, Any]) -> None:
    assert event.pop("returned_id") == event["event_id"]
    check_client_event(event)
    understood = CLIENT_MODELS[event["type"]].model_validate(event)
    assert not list(_extras(understood)), "a server would say unknown_parameter"


def test_every_event_has_an_id_of_its_own() -> None:
    ids = [event["event_id"] for event in everything_said()]
    assert len(set(ids)) == len(ids)


def test_audio_survives_the_way_out() -> None:
    samples = np.array([1, -2, 32_767, -32_768], "<i2")
    event = json.loads(Encoder().append(samples.tobytes())[0])
    assert base64.b64decode(event["audio"]) == samples.tobytes()


@pytest.mark.parametrize("optional", [False, True])
def test_push_to_talk_is_a_null_that_is_not_left_out(optional: bool) -> None:
    detection = realtime.turn_detection(Config(), server_ends=False)
    for session in (
        realtime.mode_update(detection),
        realtime.session_config(Config(), detection, optional=optional),
    ):
        text, _ = Encoder().session_update(session)
        assert b'"turn_detection":null' in text


@pytest.mark.parametrize("config", CONFIGS)
def test_we_alone_interrupt_and_one_number_ends_a_turn(config: Config) -> None:
    detection = realtime.turn_detection(config, server_ends=True)
    assert detection is not None
    assert detection["interrupt_response"] is False
    assert detection["create_response"] is True
    assert detection["silence_duration_ms"] == config.turn.silence_ms


def test_a_model_that_does_not_reason_is_not_told_how() -> None:
    for config in CONFIGS:
        session = realtime.session_config(config, None, optional=True)
        assert ("reasoning" in session) == config.realtime.model.startswith("gpt-realtime-2")


def test_a_usage_without_counts_does_not_hide_the_end_of_an_answer() -> None:
    usage = {"total_tokens": None, "input_tokens": None}
    said = decode(json.dumps({"type": "response.done", "response": {"id": "r", "usage": usage}}))
    assert isinstance(said, realtime.ResponseDone)
