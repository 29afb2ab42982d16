"""The rules of the built-in server, time passed in; the types of `openai` judge each event."""

from __future__ import annotations

import base64
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.sim.openai_types import SERVER_MODELS, check_server_event
from voiced.sim.realtime_session import Call, Close, InputBuffer, Out, RealtimeSession, Script
from voiced.sim.vad import EnergyVad, Samples

RATE_HZ = 24_000
FIXTURE = Path(__file__).parent.parent / "data" / "ga_server_events.jsonl"
MANUAL = {"audio": {"input": {"turn_detection": None}}}
ITEM_DONE = [
    "response.output_audio.done",
    "response.output_audio_transcript.done",
    "response.content_part.done",
    "conversation.item.done",
    "response.output_item.done",
]
ITEM_ADDED = [
    "response.output_item.added",
    "conversation.item.added",
    "response.content_part.added",
]


def speech(ms: int, seed: int = 1) -> Samples:
    """Noise at about -15 dBFS, no two seeds alike."""
    rng = np.random.default_rng(seed)
    return rng.integers(-10_000, 10_000, ms * RATE_HZ // 1000).astype(np.int16)


def silence(ms: int) -> Samples:
    return np.zeros(ms * RATE_HZ // 1000, np.int16)


class Client:
    """Talks to a session and keeps what it said; each reply is checked against OpenAI's types."""

    def __init__(self, script: Script | None = None, *, model: str = "gpt-realtime-2.1") -> None:
        self.now_s = 100.0
        self.session = RealtimeSession(
            script or Script(), model=model, tag="t", now_s=self.now_s, unix_s=1_800_000_000
        )
        self.seen: list[dict[str, Any]] = []
        self.close: Close | None = None
        self.take(self.session.start())

    def take(self, out: list[Out]) -> list[dict[str, Any]]:
        events = []
        for each in out:
            if isinstance(each, Close):
                self.close = each
                continue
            check_server_event(json.loads(json.dumps(each)))
            events.append(each)
        self.seen += events
        return events

    def send(self, event_type: str, **fields: Any) -> list[dict[str, Any]]:
        text = json.dumps({"type": event_type, **fields})
        return self.take(self.session.receive(text, self.now_s))

    def configure(self, **fields: Any) -> list[dict[str, Any]]:
        return self.send("session.update", session={"type": "realtime", **fields})

    def say(self, samples: Samples, chunk_ms: int = 20) -> list[dict[str, Any]]:
        """Append, without any time passing."""
        size = chunk_ms * RATE_HZ // 1000
        events = []
        for start in range(0, len(samples), size):
            pcm = samples[start : start + size].astype("<i2").tobytes()
            events += self.send("input_audio_buffer.append", audio=base64.b64encode(pcm).decode())
        return events

    def wait(self, seconds: float) -> list[dict[str, Any]]:
        self.now_s += seconds
        return self.take(self.session.advance(self.now_s))

    def ask(self, samples: Samples | None = None, wait_s: float = 60) -> list[dict[str, Any]]:
        """One manual turn, and the wait for its answer."""
        if samples is not None:
            self.say(samples, 100)
            self.send("input_audio_buffer.commit")
        return self.send("response.create") + self.wait(wait_s)

    @property
    def violations(self) -> list[str]:
        return [each["text"] for each in self.session.verdict.violations]


def types(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"] for event in events]


def heard(events: list[dict[str, Any]], item_id: str | None = None) -> Samples:
    deltas = [
        base64.b64decode(event["delta"])
        for event in events
        if event["type"] == "response.output_audio.delta" and item_id in (None, event["item_id"])
    ]
    return np.frombuffer(b"".join(deltas), "<i2").astype(np.int16)


def only(events: list[dict[str, Any]], event_type: str) -> dict[str, Any]:
    found = [event for event in events if event["type"] == event_type]
    assert len(found) == 1, types(events)
    return found[0]


def error_of(events: list[dict[str, Any]]) -> tuple[str | None, str | None, str | None]:
    error = only(events, "error")["error"]
    return error["code"], error["param"], error["event_id"]


def manual(script: Script | None = None) -> Client:
    client = Client(script)
    client.configure(**MANUAL)
    return client


def vad(script: Script | None = None, **detection: Any) -> Client:
    client = Client(script)
    client.configure(audio={"input": {"turn_detection": {"type": "server_vad", **detection}}})
    return client


# --- the fixture --------------------------------------------------------------------------------


def test_the_fixture_has_one_valid_example_of_every_ga_server_event() -> None:
    events = [json.loads(line) for line in FIXTURE.read_text().splitlines()]
    for event in events:
        SERVER_MODELS[event["type"]].model_validate(event)
    assert sorted(types(events)) == sorted(SERVER_MODELS)


# --- the session object -------------------------------------------------------------------------


def test_the_greeting_tells_model_expiry_and_the_servers_defaults() -> None:
    session = only(Client().seen, "session.created")["session"]
    assert session["model"] == "gpt-realtime-2.1"
    assert session["expires_at"] == 1_800_003_600
    assert session["audio"]["input"]["turn_detection"] == {
        "type": "server_vad",
        "threshold": 0.5,
        "prefix_padding_ms": 300,
        "silence_duration_ms": 500,
        "idle_timeout_ms": None,
        "create_response": True,
        "interrupt_response": True,
    }


def test_an_update_changes_what_it_names_and_nothing_else() -> None:
    client = Client()
    before = only(client.seen, "session.created")["session"]
    after = only(client.configure(instructions="Whisper."), "session.updated")["session"]
    assert after == {**before, "instructions": "Whisper."}


def test_null_turn_detection_switches_it_off_and_back_to_defaults() -> None:
    client = Client()
    off = only(client.configure(**MANUAL), "session.updated")["session"]
    assert off["audio"]["input"]["turn_detection"] is None
    on = client.configure(
        audio={"input": {"turn_detection": {"type": "server_vad", "silence_duration_ms": 700}}}
    )
    detection = only(on, "session.updated")["session"]["audio"]["input"]["turn_detection"]
    assert detection["silence_duration_ms"] == 700
    assert detection["prefix_padding_ms"] == 300


def test_an_update_of_the_same_turn_detection_keeps_what_it_omits() -> None:
    client = vad(silence_duration_ms=650)
    events = client.configure(
        audio={"input": {"turn_detection": {"type": "server_vad", "create_response": False}}}
    )
    detection = only(events, "session.updated")["session"]["audio"]["input"]["turn_detection"]
    assert (detection["silence_duration_ms"], detection["create_response"]) == (650, False)


def test_empty_instructions_bring_the_servers_own_back() -> None:
    client = Client()
    own = only(client.seen, "session.created")["session"]["instructions"]
    client.configure(instructions="Sing.")
    assert client.configure(instructions="")[0]["session"]["instructions"] == own


def test_a_rejected_update_applies_nothing() -> None:
    client = Client()
    session = {"type": "realtime", "instructions": "Sing.", "voice": "echo"}
    events = client.send("session.update", event_id="cfg-9", session=session)
    assert error_of(events) == ("unknown_parameter", "session.voice", "cfg-9")
    assert types(events) == ["error"]
    assert client.configure()[0]["session"]["instructions"] != "Sing."
    assert len(client.violations) == 1


def test_a_parameter_this_server_lacks_is_refused_but_no_violation() -> None:
    path = "session.audio.input.noise_reduction"
    client = Client(Script(refuse_params=(path,)))
    wish = {"audio": {"input": {"noise_reduction": {"type": "far_field"}}}}
    assert error_of(client.configure(**wish))[:2] == ("unknown_parameter", path)
    assert types(client.configure()) == ["session.updated"]
    assert client.violations == []


def test_reasoning_is_for_newer_models_only() -> None:
    wish = {"reasoning": {"effort": "low"}}
    assert types(Client(model="gpt-realtime-2.1").configure(**wish)) == ["session.updated"]
    for old in ("gpt-realtime-1.5", "gpt-realtime-2025-08-28"):
        refused = Client(model=old).configure(**wish)
        assert error_of(refused)[:2] == ("unknown_parameter", "session.reasoning")


def test_the_voice_is_locked_after_the_first_audio() -> None:
    client = manual()
    assert types(client.configure(audio={"output": {"voice": "cedar"}})) == ["session.updated"]
    client.ask(speech(200))
    assert types(client.configure(audio={"output": {"voice": "cedar"}})) == ["session.updated"]
    code, param, _ = error_of(client.configure(audio={"output": {"voice": "ash"}}))
    assert (code, param) == ("cannot_update_voice", "session.audio.output.voice")


@pytest.mark.parametrize(
    ("wish", "param"),
    [
        ({"model": "gpt-realtime"}, "session.model"),
        (
            {"audio": {"input": {"format": {"type": "audio/pcmu"}}}},
            "session.audio.input.format.type",
        ),
        (
            {
                "audio": {
                    "input": {"transcription": {"model": "gpt-realtime-whisper", "prompt": "x"}}
                }
            },
            "session.audio.input.transcription.prompt",
        ),
    ],
)
def test_what_cannot_be_changed_is_refused(wish: dict[str, Any], param: str) -> None:
    assert error_of(Client().configure(**wish))[:2] == ("invalid_value", param)


# --- turns --------------------------------------------------------------------------------------


def test_a_vad_turn_comes_in_the_order_of_the_wire() -> None:
    client = vad(Script(delta_ms=1000))
    events = client.say(silence(500)) + client.say(speech(400)) + client.say(silence(600))
    events += client.wait(30)
    assert types(events) == [
        "input_audio_buffer.speech_started",
        "input_audio_buffer.speech_stopped",
        "input_audio_buffer.committed",
        "conversation.item.added",
        "conversation.item.done",
        "response.created",
        *ITEM_ADDED,
        "response.output_audio_transcript.delta",
        "response.output_audio.delta",
        "response.output_audio.delta",
        *ITEM_DONE,
        "response.done",
        "rate_limits.updated",
    ]
    assert client.violations == []


def test_a_manual_turn_comes_in_the_order_of_the_wire() -> None:
    client = manual(Script(delta_ms=1000))
    assert client.say(speech(400)) == []
    commit = client.send("input_audio_buffer.commit", event_id="c")
    assert types(commit) == [
        "input_audio_buffer.committed",
        "conversation.item.added",
        "conversation.item.done",
    ]
    answer = client.ask()
    assert types(answer) == [
        "response.created",
        *ITEM_ADDED,
        "response.output_audio_transcript.delta",
        "response.output_audio.delta",
        *ITEM_DONE,
        "response.done",
        "rate_limits.updated",
    ]
    assert client.violations == []


def test_the_vad_hears_on_the_audio_clock() -> None:
    client = vad(silence_duration_ms=500, prefix_padding_ms=300)
    client.say(silence(1000))
    started = only(client.say(speech(400)), "input_audio_buffer.speech_started")
    assert started["audio_start_ms"] == 700
    client.say(silence(480))
    assert client.wait(3000) == []  # an hour without audio is no silence
    stopped = only(client.say(silence(20)), "input_audio_buffer.speech_stopped")
    assert stopped["audio_end_ms"] == 1900
    assert stopped["item_id"] == started["item_id"]


def test_the_clock_of_the_buffer_runs_on_over_turns_and_clears() -> None:
    client = vad(create_response=False)
    client.say(np.concatenate((speech(200), silence(500))))
    client.send("input_audio_buffer.clear")
    client.say(silence(300))
    started = only(client.say(speech(100)), "input_audio_buffer.speech_started")
    assert started["audio_start_ms"] == 700


def test_the_user_item_reaches_from_the_padding_to_the_stop() -> None:
    client = vad(silence_duration_ms=500, prefix_padding_ms=300, create_response=False)
    said = np.concatenate((silence(1000), speech(400), silence(700)))
    events = client.say(said, chunk_ms=70)  # no multiple of a frame
    item_id = only(events, "input_audio_buffer.committed")["item_id"]
    item = client.session.conversation.all[item_id]
    np.testing.assert_array_equal(item.audio, said[700 * 24 : 1900 * 24])


def test_two_turns_never_share_audio() -> None:
    client = vad(silence_duration_ms=100, prefix_padding_ms=1000, create_response=False)
    client.say(np.concatenate((speech(200), silence(100), speech(200, 2), silence(100))))
    lengths = [len(item.audio) for item in client.session.conversation]
    assert lengths == [300 * 24, 300 * 24]


def test_clear_drops_the_speech_in_progress() -> None:
    client = vad()
    client.say(speech(300))
    assert types(client.send("input_audio_buffer.clear")) == ["input_audio_buffer.cleared"]
    assert client.say(silence(2000)) == []
    assert list(client.session.conversation) == []


def semantic(script: Script, **detection: Any) -> Client:
    client = Client(script)
    client.configure(audio={"input": {"turn_detection": {"type": "semantic_vad", **detection}}})
    return client


@pytest.mark.parametrize(
    ("understood_ms", "eagerness", "ends_ms"),
    [
        (800, "auto", 800),
        (300, "low", 300),
        (3000, "auto", 3000),
        (3000, "high", 2000),
        (math.inf, "high", 2000),
        (math.inf, "medium", 4000),
        (math.inf, "auto", 4000),
        (math.inf, "low", 8000),
    ],
)
def test_semantic_vad_ends_a_turn_once_understood_and_at_its_eagerness_at_the_latest(
    understood_ms: float, eagerness: str, ends_ms: int
) -> None:
    client = semantic(Script(semantic_ms=understood_ms), eagerness=eagerness)
    client.say(silence(1000))
    started = only(client.say(speech(300)), "input_audio_buffer.speech_started")
    assert started["audio_start_ms"] == 700
    assert client.say(silence(ends_ms - 20)) == []
    assert client.wait(1000) == []  # it counts what it receives
    stopped, committed, *_ = client.say(silence(20))
    assert stopped["type"] == "input_audio_buffer.speech_stopped"
    assert stopped["audio_end_ms"] == 1300 + ends_ms
    assert committed["type"] == "input_audio_buffer.committed"
    assert "response.created" in types(client.seen)


def test_a_pause_that_semantic_vad_has_not_understood_ends_nothing() -> None:
    client = semantic(Script(semantic_ms=1500))
    said = np.concatenate((speech(300), silence(1480), speech(300, 2), silence(1500)))
    client.say(said)
    (item,) = client.session.conversation
    np.testing.assert_array_equal(item.audio, said)


@pytest.mark.parametrize("may", [True, False])
def test_semantic_vad_creates_and_interrupts_only_if_it_may(may: bool) -> None:
    client = semantic(Script(think_ms=5000), create_response=may, interrupt_response=may)
    client.say(np.concatenate((speech(300), silence(800))))
    assert ("response.created" in types(client.seen)) is may
    if not may:
        client.send("response.create")
    client.say(speech(100))
    assert ("response.done" in types(client.seen)) is may


def test_without_create_response_a_turn_is_only_committed() -> None:
    client = vad(create_response=False)
    client.say(np.concatenate((speech(300), silence(500))))
    client.wait(60)
    assert "response.created" not in types(client.seen)


@pytest.mark.parametrize(("level", "is_heard"), [(400, True), (250, False)])
def test_speech_is_what_is_louder_than_the_threshold(level: int, is_heard: bool) -> None:
    detector = EnergyVad(-40, 500, 0)  # -40 dBFS is an RMS of 327.7
    assert bool(detector.feed(np.full(4800, level, np.int16))) is is_heard


def room(ms: int, rms: float, seed: int = 5) -> Samples:
    noise = np.random.default_rng(seed).standard_normal(ms * 24) * rms
    return np.rint(noise).astype(np.int16)


def test_a_loud_room_is_speech_without_end_unless_speech_must_exceed_it() -> None:
    said = room(5000, 800)  # -32 dBFS
    said[24_000:36_000] += speech(500)
    deaf, keen = vad(), vad(Script(vad_margin_db=10))
    assert types(deaf.say(said)) == ["input_audio_buffer.speech_started"]
    events = keen.say(said)
    assert only(events, "input_audio_buffer.speech_started")["audio_start_ms"] == 700
    assert only(events, "input_audio_buffer.speech_stopped")["audio_end_ms"] == 2000


def test_the_noise_is_known_over_turns_and_silence_that_was_made_is_none() -> None:
    client = vad(Script(vad_margin_db=10))
    client.say(room(1000, 800))
    client.send("input_audio_buffer.clear")
    client.say(silence(2000))
    assert client.say(room(1000, 800, 6)) == []
    assert "input_audio_buffer.speech_started" in types(client.say(speech(100)))


def test_a_room_that_becomes_louder_is_the_new_room_after_five_seconds() -> None:
    client = vad(Script(vad_margin_db=10), silence_duration_ms=200)
    client.say(room(1000, 50))
    started = only(client.say(room(4900, 800)), "input_audio_buffer.speech_started")
    stopped = only(client.say(room(600, 800)), "input_audio_buffer.speech_stopped")
    assert started["item_id"] == stopped["item_id"]


# --- answers ------------------------------------------------------------------------------------


def test_the_parrot_is_bit_exact() -> None:
    client = manual()
    said = speech(1234)
    np.testing.assert_array_equal(heard(client.ask(said)), said)


def test_the_parrot_says_every_item_since_its_last_answer() -> None:
    client = manual()
    client.ask(speech(150, 1))
    parts = [speech(200, 2), speech(300, 3)]
    for part in parts:
        client.say(part)
        client.send("input_audio_buffer.commit")
    np.testing.assert_array_equal(heard(client.ask()), np.concatenate(parts))


def test_asked_again_without_a_new_turn_it_repeats_itself() -> None:
    client = manual()
    first = heard(client.ask(speech(300)))
    np.testing.assert_array_equal(heard(client.ask()), first)


def test_a_scripted_answer_replaces_the_parrot() -> None:
    answer = speech(700, 9)
    client = manual(Script(answer=answer))
    np.testing.assert_array_equal(heard(client.ask(speech(200))), answer)


@pytest.mark.parametrize("items", [2, 3])
def test_an_answer_over_several_items_overlaps_and_keeps_every_sample(items: int) -> None:
    client = manual(Script(items=items))
    said = speech(2000)
    events = client.ask(said)
    added = [event for event in events if event["type"] == "response.output_item.added"]
    phases = [event["item"]["phase"] for event in added]
    assert phases == ["commentary"] * (items - 1) + ["final_answer"]
    parts = [heard(events, event["item"]["id"]) for event in added]
    np.testing.assert_array_equal(np.concatenate(parts), said)
    order = [
        (event["type"].rsplit(".")[-1], event["output_index"])
        for event in events
        if event["type"].startswith("response.output_item")
    ]
    assert order.index(("added", 1)) < order.index(("done", 0)) < order.index(("done", 1))
    output = only(events, "response.done")["response"]["output"]
    assert [item["id"] for item in output] == [event["item"]["id"] for event in added]
    assert {item["status"] for item in output} == {"completed"}


def test_deltas_come_at_their_pace_after_the_thinking() -> None:
    client = manual(Script(think_ms=500, delta_ms=200, pace=2))
    client.say(speech(600))
    client.send("input_audio_buffer.commit")
    client.send("response.create")
    assert client.wait(0.499) == []
    heard_ms = [len(heard(client.wait(step))) // 24 for step in (0.002, 0.097, 0.004, 0.1)]
    assert heard_ms == [200, 0, 200, 200]


def test_without_a_pace_all_deltas_come_at_once() -> None:
    client = manual(Script(think_ms=0, pace=0))
    assert "response.done" in types(client.ask(speech(3000), wait_s=0))


def test_the_transcript_is_complete_and_runs_ahead_of_the_sound() -> None:
    client = manual()
    events = client.ask(speech(3000))
    name = "response.output_audio_transcript"
    text = "".join(event["delta"] for event in events if event["type"] == f"{name}.delta")
    assert text == only(events, f"{name}.done")["transcript"] != ""
    done = only(events, "response.done")["response"]["output"][0]
    assert done["content"] == [{"type": "output_audio", "transcript": text}]
    last = max(place for place, kind in enumerate(types(events)) if kind == f"{name}.delta")
    assert len(heard(events[last:])) > 24 * 1000


def test_a_text_response_says_ok() -> None:
    client = manual()
    client.say(speech(200))
    client.send("input_audio_buffer.commit")
    wish = {"output_modalities": ["text"]}
    events = client.send("response.create", response=wish) + client.wait(5)
    assert only(events, "response.output_text.done")["text"] == "ok"
    assert len(heard(events)) == 0


def test_an_out_of_band_response_stays_out_of_the_conversation() -> None:
    client = manual()
    client.say(speech(500))
    client.send("input_audio_buffer.commit")
    client.send("response.create")
    wish = {"conversation": "none", "output_modalities": ["text"], "metadata": {"for": "me"}}
    events = client.send("response.create", response=wish) + client.wait(60)
    created = only(events[:1], "response.created")["response"]
    assert created["conversation_id"] is None
    assert created["metadata"] == {"for": "me"}
    added = [event for event in events if event["type"] == "conversation.item.added"]
    assert len(added) == 1  # the spoken answer beside it
    assert types(events).count("response.done") == 2
    assert client.violations == []


def test_a_function_call_alone_is_followed_by_words_when_asked() -> None:
    client = manual(Script(call=Call("fog_horn", '{"times": 2}')))
    said = speech(400)
    events = client.ask(said)
    item = only(events, "response.output_item.done")["item"]
    assert (item["name"], item["arguments"]) == ("fog_horn", '{"times": 2}')
    assert item["status"] == "completed"
    arguments = only(events, "response.function_call_arguments.done")
    assert arguments["call_id"] == item["call_id"]
    output = {"type": "function_call_output", "call_id": item["call_id"], "output": "done"}
    assert types(client.send("conversation.item.create", item=output)) == [
        "conversation.item.added",
        "conversation.item.done",
    ]
    np.testing.assert_array_equal(heard(client.ask()), said)
    assert client.violations == []


def test_a_function_call_may_stand_before_the_words() -> None:
    client = manual(Script(call=Call("fog_horn", "{}", speak_too=True)))
    events = client.ask(speech(400))
    kinds = [item["type"] for item in only(events, "response.done")["response"]["output"]]
    assert kinds == ["function_call", "message"]


TRANSCRIPT = "conversation.item.input_audio_transcription"


@pytest.mark.parametrize(
    ("order", "before", "after"),
    [
        ("before", f"{TRANSCRIPT}.delta", "input_audio_buffer.committed"),
        ("before", f"{TRANSCRIPT}.completed", "response.created"),
        ("with", "response.created", f"{TRANSCRIPT}.completed"),
        ("with", f"{TRANSCRIPT}.completed", "response.done"),
        ("after", "response.done", f"{TRANSCRIPT}.delta"),
        ("failed", "response.created", f"{TRANSCRIPT}.failed"),
    ],
)
def test_the_users_words_come_in_any_order(order: Any, before: str, after: str) -> None:
    client = manual(Script(transcription=order))
    client.configure(audio={"input": {"transcription": {"model": "gpt-realtime-whisper"}}})
    client.ask(speech(1200))
    kinds = types(client.seen)
    assert kinds.index(before) < kinds.index(after)
    if order != "failed":
        assert only(client.seen, f"{TRANSCRIPT}.completed")["usage"]["seconds"] == 2


def test_without_transcription_no_words_come() -> None:
    client = manual(Script(transcription="before"))
    client.ask(speech(500))
    assert not [kind for kind in types(client.seen) if kind.startswith(TRANSCRIPT)]


def test_usage_counts_audio_and_caches_what_was_there_before() -> None:
    client = manual()
    first = only(client.ask(speech(3000)), "response.done")["response"]["usage"]
    assert first["input_token_details"]["audio_tokens"] == 30
    assert first["output_token_details"]["audio_tokens"] == 60
    assert first["input_token_details"]["cached_tokens"] == 0
    second = only(client.ask(speech(10_000)), "response.done")["response"]["usage"]
    assert second["input_token_details"]["audio_tokens"] == 30 + 60 + 100
    third = only(client.ask(speech(100)), "response.done")["response"]["usage"]
    details = third["input_token_details"]
    assert details["cached_tokens_details"]["audio_tokens"] == 128
    assert details["cached_tokens"] <= third["input_tokens"]
    for usage in (first, second, third):
        assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
        parts = usage["input_token_details"]
        assert parts["text_tokens"] + parts["audio_tokens"] == usage["input_tokens"]


# --- cancelling ---------------------------------------------------------------------------------


def answering(script: Script, ms: int = 5000, heard_s: float = 0.35) -> Client:
    """A client in the middle of an answer of `ms` (20 times real time by default)."""
    client = manual(script)
    client.say(speech(ms), 100)
    client.send("input_audio_buffer.commit")
    client.send("response.create")
    client.wait(heard_s)
    return client


def test_a_cancel_ends_the_answer_and_closes_its_items() -> None:
    client = answering(Script())
    sent = len(heard(client.seen))
    events = client.send("response.cancel")
    assert types(events) == [*ITEM_DONE, "response.done"]
    response = events[-1]["response"]
    assert response["status"] == "cancelled"
    assert response["status_details"]["reason"] == "client_cancelled"
    assert response["output"][0]["status"] == "incomplete"
    assert response["usage"]["output_token_details"]["audio_tokens"] == sent // 1200
    assert types(client.wait(60)) == ["rate_limits.updated"]


def test_a_cancel_while_thinking_leaves_no_item() -> None:
    client = answering(Script(), heard_s=0.1)
    events = client.send("response.cancel")
    assert types(events) == ["response.done"]
    assert events[0]["response"]["output"] == []


def test_late_deltas_still_come_between_cancel_and_done() -> None:
    client = answering(Script(late_deltas=3))
    assert types(client.send("response.cancel")) == []
    code, _, _ = error_of(client.send("response.create"))
    assert code == "conversation_already_has_active_response"
    late = client.wait(5)
    assert len(heard(late)) == 3 * 200 * 24
    assert only(late, "response.done")["response"]["status"] == "cancelled"


def test_speech_interrupts_when_it_may() -> None:
    for interrupts in (True, False):
        client = vad(interrupt_response=interrupts)
        client.say(np.concatenate((speech(3000), silence(500))), 100)
        client.wait(0.35)
        events = client.say(speech(100))
        started = only(events, "input_audio_buffer.speech_started")
        assert events[0] is started
        if interrupts:
            details = only(events, "response.done")["response"]["status_details"]
            assert details == {"type": "cancelled", "reason": "turn_detected"}
        else:
            assert "response.done" not in types(events)


def test_an_automatic_response_beside_a_running_one_fails_without_blame() -> None:
    client = vad(Script(pace=1), interrupt_response=False)
    client.say(np.concatenate((speech(3000), silence(500))), 100)
    client.wait(0.35)
    events = client.say(np.concatenate((speech(200), silence(500))), 100)
    code, _, event_id = error_of(events)
    assert (code, event_id) == ("conversation_already_has_active_response", None)
    assert client.violations == []


def test_a_second_response_is_refused_and_lost() -> None:
    client = answering(Script())
    events = client.send("response.create", event_id="again")
    assert error_of(events) == ("conversation_already_has_active_response", None, "again")
    assert types(client.wait(60)).count("response.done") == 1
    assert len(client.violations) == 1


def test_a_cancel_of_nothing_is_a_race_and_no_violation() -> None:
    client = manual()
    events = client.send("response.cancel", event_id="x")
    assert error_of(events) == ("response_cancel_not_active", None, "x")
    client.ask(speech(200))
    client.send("response.cancel", response_id="resp_gone")
    assert client.session.verdict.races == 2
    assert client.violations == []


# --- truncating, items --------------------------------------------------------------------------


def last_answer(client: Client) -> str:
    return str(
        [each for each in client.seen if each["type"] == "response.output_item.added"][-1]["item"][
            "id"
        ]
    )


def cut(client: Client, item_id: str, ms: int, index: int = 0) -> list[dict[str, Any]]:
    return client.send(
        "conversation.item.truncate",
        event_id="cut",
        item_id=item_id,
        content_index=index,
        audio_end_ms=ms,
    )


def test_a_truncation_is_remembered_with_its_length() -> None:
    client = manual()
    client.ask(speech(1000))
    item_id = last_answer(client)
    acknowledged = only(cut(client, item_id, 640), "conversation.item.truncated")
    assert acknowledged["audio_end_ms"] == 640
    assert client.session.conversation.all[item_id].truncated_ms == 640
    item = client.send("conversation.item.retrieve", item_id=item_id)[0]["item"]
    assert len(base64.b64decode(item["content"][0]["audio"])) == 640 * 48
    assert item["content"][0]["transcript"] == ""
    assert client.violations == []
    assert error_of(cut(client, item_id, 641))[:2] == ("invalid_value", "audio_end_ms")


def test_a_truncation_beyond_what_was_generated_is_refused() -> None:
    client = answering(Script(delta_ms=200), heard_s=0.3)  # one delta is out
    item_id = last_answer(client)
    assert error_of(cut(client, item_id, 201)) == ("invalid_value", "audio_end_ms", "cut")
    assert types(cut(client, item_id, 200)) == ["conversation.item.truncated"]
    assert len(client.violations) == 1


def test_only_spoken_items_can_be_truncated() -> None:
    client = manual()
    client.ask(speech(300))
    user_id = next(iter(client.session.conversation)).item_id
    assert error_of(cut(client, user_id, 10))[0] == "unsupported_content_type"
    assert error_of(cut(client, "item_nowhere", 10))[0] == "item_truncate_invalid_item_id"
    assert error_of(cut(client, last_answer(client), 10, 1))[:2] == (
        "invalid_value",
        "content_index",
    )


@pytest.mark.parametrize("action", ["delete", "retrieve"])
def test_unknown_items_are_named_by_their_action(action: str) -> None:
    client = Client()
    events = client.send(f"conversation.item.{action}", event_id="e", item_id="item_nowhere")
    assert error_of(events) == (f"item_{action}_invalid_item_id", "item_id", "e")


def test_a_deleted_item_is_gone() -> None:
    client = manual()
    client.ask(speech(300))
    item_id = last_answer(client)
    assert types(client.send("conversation.item.delete", item_id=item_id)) == [
        "conversation.item.deleted"
    ]
    assert error_of(cut(client, item_id, 10))[0] == "item_truncate_invalid_item_id"
    assert client.session.conversation.all[item_id].deleted


def note(item_id: str) -> dict[str, Any]:
    return {
        "id": item_id,
        "type": "message",
        "role": "system",
        "content": [{"type": "input_text", "text": item_id}],
    }


def test_items_go_where_they_are_put() -> None:
    client = Client()
    client.send("conversation.item.create", item=note("b"))
    client.send("conversation.item.create", item=note("a"), previous_item_id="root")
    client.send("conversation.item.create", item=note("d"))
    added = client.send("conversation.item.create", item=note("c"), previous_item_id="b")[0]
    assert added["previous_item_id"] == "b"
    assert [item.item_id for item in client.session.conversation] == ["a", "b", "c", "d"]


def test_an_unplaceable_or_doubled_item_is_refused() -> None:
    client = Client()
    client.send("conversation.item.create", item=note("a"))
    for fields, param in (
        ({"item": note("a")}, "item.id"),
        ({"item": note("b"), "previous_item_id": "z"}, "previous_item_id"),
        (
            {"item": {"type": "function_call_output", "call_id": "c", "output": ""}},
            "item.call_id",
        ),
    ):
        events = client.send("conversation.item.create", event_id="e", **fields)
        assert error_of(events) == ("invalid_value", param, "e")
    assert len(list(client.session.conversation)) == 1


def test_audio_in_a_created_item_is_the_users_voice() -> None:
    client = manual()
    said = speech(250)
    part = {"type": "input_audio", "audio": base64.b64encode(said.tobytes()).decode()}
    item = {"type": "message", "role": "user", "content": [part]}
    added = client.send("conversation.item.create", item=item)[0]
    assert "audio" not in added["item"]["content"][0]
    np.testing.assert_array_equal(heard(client.ask()), said)


# --- what a client must not do ------------------------------------------------------------------


def test_a_commit_below_a_tenth_of_a_second_is_empty() -> None:
    client = manual()
    client.say(silence(99))
    events = client.send("input_audio_buffer.commit", event_id="c")
    assert error_of(events) == ("input_audio_buffer_commit_empty", None, "c")
    client.say(silence(1))
    assert "input_audio_buffer.committed" in types(client.send("input_audio_buffer.commit"))


@pytest.mark.parametrize(
    ("text", "code"),
    [("{", "invalid_json"), ('"hello"', "invalid_event"), ('{"type": "hi"}', "invalid_value")],
)
def test_an_unreadable_frame_is_answered_and_the_session_lives(text: str, code: str) -> None:
    client = Client()
    assert error_of(client.take(client.session.receive(text, 101)))[0] == code
    assert len(client.violations) == 1
    assert types(client.configure()) == ["session.updated"]


def test_a_binary_frame_is_answered_and_the_session_lives() -> None:
    client = Client()
    events = client.take(client.session.receive_binary(101))
    assert error_of(events)[0] == "invalid_event"
    assert types(client.configure()) == ["session.updated"]


def test_what_the_real_server_takes_silently_is_still_a_violation() -> None:
    client = Client()
    assert client.say(silence(20)) == []
    assert client.violations == ["audio appended before session.updated"]
    client.configure()
    odd = base64.b64encode(b"\0\0\0").decode()
    assert client.send("input_audio_buffer.append", audio=odd) == []
    assert client.send("output_audio_buffer.clear") == []
    assert len(client.violations) == 3


@pytest.mark.parametrize(
    "audio", ["not base64!", "AAA", base64.b64encode(b"\0" * (15 << 20) + b"\0\0")]
)
def test_an_append_that_is_no_audio_is_refused(audio: str | bytes) -> None:
    client = manual()
    text = audio if isinstance(audio, str) else audio.decode()
    events = client.send("input_audio_buffer.append", audio=text, event_id="a")
    assert error_of(events) == ("invalid_value", "audio", "a")
    assert len(client.violations) == 1


def test_a_commit_while_the_server_listens_is_obeyed_and_noted() -> None:
    client = vad()
    started = only(client.say(speech(300)), "input_audio_buffer.speech_started")
    events = client.send("input_audio_buffer.commit")
    assert only(events, "input_audio_buffer.committed")["item_id"] == started["item_id"]
    assert client.violations == ["commit while turn detection is on"]
    assert client.say(silence(1000)) == []


# --- its end, its bounds ------------------------------------------------------------------------


def test_a_session_expires_with_an_error_and_a_close() -> None:
    client = Client(Script(max_session_s=20))
    assert client.wait(19.9) == []
    assert error_of(client.wait(0.2))[0] == "session_expired"
    assert client.close is not None
    assert client.close.code == 1001
    assert "maximum duration" in client.close.reason
    assert client.configure() == []


def test_received_audio_is_bounded_and_counts_what_it_dropped() -> None:
    buffer = InputBuffer(keep_samples=100)
    samples = np.arange(250, dtype=np.int16)
    for start in range(0, 250, 50):
        buffer.append(samples[start : start + 50].tobytes())
    assert (buffer.end, buffer.dropped_samples) == (250, 150)
    np.testing.assert_array_equal(buffer.samples(0, 250), samples[150:])


def test_ids_are_short_enough_and_never_repeat() -> None:
    client = vad(Script(items=2))
    client.say(np.concatenate((speech(300), silence(500))))
    client.wait(60)
    ids = [event["event_id"] for event in client.seen]
    assert len(set(ids)) == len(ids)
    assert max(len(item_id) for item_id in client.session.conversation.all) <= 32
