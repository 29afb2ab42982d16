"""The whole core under attack, in simulated time. `World` and `Siege` hold the invariants and look
at each step: no exception, no local cause that is unlisted, no sound under a dark light or a mute,
no effect that can't be carried out, memory within its bounds. Afterwards it serves."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core.world import voice
from tests.fuzz import examples, patient, weight
from tests.fuzz.frames import CODES, ITEM, RESPONSE, damaged, frames
from tests.fuzz.siege import DEVICES, WORDS, Siege, audio
from voiced.config import Config, Gate, Memory, Microphone, Turn
from voiced.core.answer import LONGEST_ANSWER_S, MOST_PARTS
from voiced.core.faults import FAULTS
from voiced.core.turn import TurnState
from voiced.events import (
    WIRE_RATE,
    ButtonEdge,
    ChannelLevel,
    ChannelLevels,
    Command,
    Device,
    DeviceBack,
    DeviceFault,
    Event,
    KeyState,
    MemoryUsed,
    NetworkChanged,
    PlaybackDrained,
    Reconfigured,
)
from voiced.sim.realtime_session import Script

CONFIGS = [
    Config(turn=turn, gate=gate, microphone=microphone, memory=memory)
    for turn, gate, microphone, memory in (
        (Turn(longest_s=20), Gate(), Microphone(), Memory()),
        (Turn(longest_s=20, end="local"), Gate(), Microphone(echo="hardware"), Memory(minutes=0)),
        (
            Turn(longest_s=20, end="semantic_vad"),
            Gate(),
            Microphone(echo="gate"),
            Memory(kept=True),
        ),
        (Turn(longest_s=20, follow_up_s=0), Gate(enabled=False), Microphone(), Memory()),
    )
]


@dataclass(frozen=True)
class Act:
    """Something that happens to a device; its name is what a failure shows."""

    name: str
    do: Callable[[Siege], object] = field(repr=False)

    def __call__(self, siege: Siege) -> None:
        self.do(siege)


def event(kind: str, **fields: Any) -> str:
    return json.dumps({"type": kind, **fields})


def frame(text: str | bytes) -> Act:
    return Act(f"frame {text[:200]!r}", lambda siege: siege.send(text))


def stale(text: str) -> Act:
    return Act(f"stale {text[:200]}", lambda siege: siege.send(text, stale=True))


def flood(text: str) -> Act:
    return Act(f"flood {text[:200]}", lambda siege: siege.send(*[text] * 50))


def sound(samples: int, output: int) -> Act:
    return frame(audio(RESPONSE, ITEM, samples, output))


def error(code: str, event_id: str | None) -> Act:
    return frame(event("error", error={"code": code, "message": "x", "event_id": event_id}))


def failed(code: str) -> Act:
    details = {"error": {"code": code}}
    response = {"id": RESPONSE, "status": "failed", "status_details": details}
    return frame(event("response.done", response=response))


def close(code: int | None) -> Act:
    return Act(f"close {code}", lambda siege: siege.drop_link(code, "x" * 123))


def wait(seconds: float) -> Act:
    return Act(f"wait {seconds}", lambda siege: siege.run(seconds))


def happens(name: str, make: Callable[[float], Event]) -> Act:
    return Act(name, lambda siege: siege.give(make(siege.now)))


def edge(down: bool) -> Act:
    return happens(f"edge {down}", lambda now: ButtonEdge(down, now))


def command(name: str) -> Act:
    return happens(name, lambda now: Command(name, "uid 0, pid 1", now))


def fault(device: Device, name: str) -> Act:
    return happens(name, lambda now: DeviceFault(device, name, "gone", now))


def back(device: Device) -> Act:
    return happens(f"{device} back", lambda now: DeviceBack(device, now))


def reconfigured(config: Config) -> Act:
    return happens(f"config {CONFIGS.index(config)}", lambda now: Reconfigured(config, now))


def key(name: str | None) -> Act:
    return happens(f"key {name}", lambda now: KeyState(name, now))


def network(has_route: bool) -> Act:
    return happens(f"network {has_route}", lambda now: NetworkChanged(has_route, now))


def memory(used_mb: float) -> Act:
    return happens(f"memory {used_mb}", lambda now: MemoryUsed(used_mb, 100, now))


def levels(dbfs: float, constant: bool, own_sound: bool) -> Act:
    each = (ChannelLevel(dbfs, dbfs, 1_000, constant),)
    return happens(f"levels {dbfs}", lambda now: ChannelLevels(each, own_sound, now))


def _tap(siege: Siege) -> None:
    siege.tap()
    siege.run(0.15)


def _unreachable(siege: Siege) -> None:
    siege.refuse_until = siege.now + 3


def _dark(siege: Siege) -> None:
    """The lights take no pattern any more, and don't say so."""
    siege.lights_work = not siege.lights_work


def _drained_long_ago(siege: Siege) -> None:
    siege.give(PlaybackDrained(siege.now, siege.core.epoch - 1))


TAP = Act("tap", _tap)
DARK = Act("dark", _dark)
SPEAK = Act("speak", lambda siege: siege.say(WORDS, siege.now))


def _faults() -> list[tuple[Device, str]]:
    return [(d, name) for d in DEVICES for name in FAULTS if name.startswith(d)]


def mostly(usual: st.SearchStrategy[Act], rare: st.SearchStrategy[Act]) -> st.SearchStrategy[Act]:
    return st.integers(0, 7).flatmap(lambda n: usual if n else rare)


ENDINGS = st.builds(
    error, st.sampled_from(CODES), st.sampled_from([None, "ask-1", "cfg-1", "mic-3"])
) | st.sampled_from([None, 1000, 1001, 1006, 1009, 1011, 1013, 3000, 4004]).map(close)
SERVER = mostly(
    st.builds(sound, st.sampled_from([1, 480, 24_000]), st.integers(0, 3))
    | damaged(most=0, of="response.output_audio").map(frame)
    | damaged(most=0, of="response.").map(frame)
    | damaged(most=0, of="input_audio_buffer.").map(frame)
    | damaged(most=0).map(frame)
    | damaged(most=1).map(frame)
    | damaged(most=0).map(flood)
    | st.sampled_from(CODES).map(failed),
    ENDINGS | frames.map(frame) | damaged(most=0).map(stale),
)
PERSON = mostly(
    st.sampled_from([TAP, SPEAK, command("interrupt")]),
    st.booleans().map(edge) | st.sampled_from(["hangup", "forget", "mute", "unmute"]).map(command),
)
SURROUNDINGS = (
    st.sampled_from(_faults()).map(lambda both: fault(*both))
    | st.sampled_from(DEVICES).map(back)
    | st.sampled_from(CONFIGS).map(reconfigured)
    | st.sampled_from([None, "key-missing"]).map(key)
    | st.booleans().map(network)
    | st.sampled_from([10.0, 95.0]).map(memory)
    | st.builds(levels, st.sampled_from([-120.0, -50.0, 0.0]), st.booleans(), st.booleans())
    | st.just(Act("drained long ago", _drained_long_ago))
    | st.just(Act("unreachable", _unreachable))
)
TIME = st.sampled_from([0.0, 0.02, 0.1, 0.3, 0.5, 1.0, 2.5]).map(wait)
ACT = TIME | SERVER | mostly(SERVER, PERSON) | mostly(PERSON | SURROUNDINGS, SURROUNDINGS)

BEFORE = st.sampled_from([[], [], [DARK], [command("unmute")], [command("unmute")]])
TURN = st.sampled_from([0.0, 0.7, 0.8, 1.2, 1.6, 2.0, 2.4]).map(
    lambda seconds: [TAP, SPEAK, wait(seconds)]
)
AFTER = st.sampled_from([[], [], [], [DARK], [command("mute")], [command("mute"), wait(1)]])
MOVE = st.tuples(BEFORE, TURN, AFTER, st.lists(ACT, max_size=10)).map(lambda parts: sum(parts, []))
MOVES = st.lists(MOVE, max_size=5)


@patient
@examples(100)
@given(
    config=st.sampled_from(CONFIGS),
    moves=MOVES,
    seed=st.integers(0, 1_000),
    mangle=st.sampled_from([0.0, 0.05, 0.3]),
)
def test_whatever_happens_no_rule_breaks_and_afterwards_it_serves(
    config: Config, moves: list[list[Act]], seed: int, mangle: float
) -> None:
    siege = Siege(config, seed, mangle)
    siege.run(1)
    for move in moves:
        for act in move:
            act(siege)
        siege.check()
    siege.relent()
    siege.check()


# --- without end -----------------------------------------------------------------------------


LONG = 200 * "x"

ENDLESS: dict[str, Callable[[int], str]] = {
    "committed": lambda n: event("input_audio_buffer.committed", item_id=f"{LONG}{n}"),
    "speech": lambda n: event(f"input_audio_buffer.speech_{('stopped', 'started')[n % 2]}"),
    "turns": lambda n: event(
        f"input_audio_buffer.{('speech_started', 'committed')[n % 2]}", item_id=f"item_{n}"
    ),
    "created": lambda n: event("response.created", response={"id": f"{LONG}{n}"}),
    "done": lambda n: event("response.done", response={"id": f"{LONG}{n}", "status": "failed"}),
    "answers": lambda n: (
        event("response.created", response={"id": f"resp_{n // 2}"})
        if n % 2
        else event("response.done", response={"id": f"resp_{n // 2}", "usage": {"total_tokens": 9}})
    ),
    "words": lambda n: event(
        "response.output_audio_transcript.delta",
        **{"response_id": "resp_DkF2aa01", "item_id": f"{LONG}{n}", "delta": 3_000 * "ä"},
    ),
    "more words": lambda n: event(
        "response.output_audio_transcript.delta",
        **{"response_id": RESPONSE, "item_id": "item", "delta": 3_000 * "ä"},
    ),
    "what was said": lambda n: event(
        "conversation.item.input_audio_transcription.completed",
        **{"item_id": "item_DkF2ua01", "transcript": f"{n}" + 3_000 * "ä"},
    ),
    "late sounds": lambda n: audio(f"resp_{n}", f"item_{n}", 480),
    "errors": lambda n: event("error", error={"code": f"{LONG}{n}", "message": 3_000 * "\n"}),
    "rate limits": lambda n: event("rate_limits.updated", rate_limits=[{"reset_seconds": n}] * 50),
    "sessions": lambda n: event("session.created", session={"id": f"{LONG}{n}", "expires_at": n}),
    "updates": lambda n: event("session.updated", session={"id": f"{n}", "x": [{}] * 1_000}),
    "news": lambda n: event(f"response.telepathy_{n}.delta"),
    "nonsense": lambda n: f"{n}" + 3_000 * "ä",
}

FRAMES = 400


@pytest.mark.parametrize("kind", ENDLESS)
@pytest.mark.parametrize("state", [TurnState.THINKING, TurnState.SPEAKING])
def test_what_never_ends_fills_nothing(kind: str, state: TurnState) -> None:
    siege = Siege(CONFIGS[0], 0, 0.0)
    siege.run(3.5)
    TAP(siege)
    SPEAK(siege)
    siege.until_state(TurnState.THINKING)
    siege.until_state(state)
    weights: list[int] = []
    for _ in range(2):
        for n in range(FRAMES):
            siege.send(ENDLESS[kind](len(weights) * FRAMES + n))
        weights.append(weight(siege.core))
    assert weights[1] - weights[0] < 10 * FRAMES
    loud = [note for note in siege.notes if note.level >= logging.WARNING]
    assert len(loud) <= 3
    siege.check()
    siege.relent()


@pytest.mark.parametrize(
    ("delta", "bound"),
    [
        (lambda n: audio(RESPONSE, ITEM, WIRE_RATE), LONGEST_ANSWER_S - 2),
        (lambda n: audio(RESPONSE, f"item_{n}", 1, n // 1_000, n % 1_000), MOST_PARTS - 2),
        (lambda n: audio(RESPONSE, ITEM, 1, n % 3), 3_000 - 20),
    ],
    ids=["sound", "parts", "pieces"],
)
def test_an_answer_without_end_is_cut_and_what_still_comes_is_dropped(
    delta: Callable[[int], str], bound: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    siege = Siege(CONFIGS[0], 0, 0.0)
    siege.run(3.5)
    TAP(siege)
    SPEAK(siege)
    siege.until_state(TurnState.SPEAKING)
    if bound > 1_000:  # sixty thousand take a minute
        monkeypatch.setattr("voiced.core.answer.MOST_DELTAS", 3_000)
    monkeypatch.setattr(siege._speaker, "play", lambda samples, epoch, now: False)
    live = siege.core._down.live
    assert live is not None
    taken = 0
    for n in range(3_500):
        siege.send(delta(n).replace(RESPONSE, live.response_id))
        taken += siege.core._down.live is live
    siege.check()
    assert bound <= taken <= bound + 20
    assert [note.name for note in siege.notes].count("too-long") == 1
    assert siege.core.state is TurnState.LISTENING
    assert siege.core.snapshot()["counters"]["late_deltas"] > 100
    monkeypatch.undo()
    siege.relent()


# --- one at a time ---------------------------------------------------------------------------


def in_state(state: TurnState) -> Siege:
    siege = Siege(CONFIGS[0], 0, 0.0)
    siege.run(3.5)
    if state is not TurnState.IDLE:
        TAP(siege)
        if state is not TurnState.LISTENING:
            siege.say(WORDS, siege.now + 0.2)
        siege.until_state(state)
        siege.run(until=lambda: siege.core._up.session.configured)
    return siege


NONSENSE = ["", "{", "[]", "null", '{"type": 1}', '{"type": "error"}', 200_000 * "[", b"{}", "NaN"]


@pytest.mark.parametrize("frame", NONSENSE, ids=lambda frame: repr(frame)[:20])
@pytest.mark.parametrize("state", [TurnState.LISTENING, TurnState.SPEAKING])
def test_nonsense_is_counted_once_said_once_and_changes_nothing(
    state: TurnState, frame: str | bytes
) -> None:
    siege = in_state(state)
    notes = len(siege.notes)
    siege.send(frame, stale=True)
    for n in (1, 2, 3):
        siege.send(frame)
        assert siege.core.snapshot()["counters"]["nonsense"] == n
    said = [note for note in siege.notes[notes:] if note.level >= logging.WARNING]
    assert [note.name for note in said] == ["nonsense"]
    assert siege.core.state is state
    siege.relent()


def test_news_are_counted_and_change_nothing() -> None:
    siege = in_state(TurnState.SPEAKING)
    for n in (1, 2, 3):
        siege.send(ENDLESS["news"](n))
        assert siege.core.snapshot()["counters"]["unknown_events"] == n
    assert siege.core.state is TurnState.SPEAKING


NEVER_WERE: dict[str, str] = {
    "said": event(
        "conversation.item.input_audio_transcription.completed", item_id="never", transcript="x"
    ),
    "answered": event(
        "response.output_audio_transcript.delta", response_id="never", item_id="never", delta="x"
    ),
    "sounded": audio("never", "never", 2_400),
    "sounded out": event("response.output_audio.done", response_id="never", item_id="never"),
    "summarised": event("response.output_text.done", response_id="never", text="x"),
    "ended": event("response.done", response={"id": "never", "status": "completed"}),
    "deleted": event("conversation.item.deleted", item_id="never"),
    "cut": event("conversation.item.truncated", item_id="never", audio_end_ms=-1),
    "updated": event("session.updated", session={"audio": {"input": {"turn_detection": None}}}),
}


@pytest.mark.parametrize("kind", NEVER_WERE)
@pytest.mark.parametrize("state", [TurnState.IDLE, TurnState.LISTENING, TurnState.SPEAKING])
def test_of_what_never_was_nothing_is_heard_sent_or_remembered(state: TurnState, kind: str) -> None:
    siege = in_state(state)
    siege.script = Script(answer=voice(1.5))
    lines = list(siege.core.continuity.memory._lines)
    sent, live = len(siege.sent), siege.core._down.live
    received = live.frames_received if live else 0
    for _ in range(3):
        siege.send(NEVER_WERE[kind])
    assert siege.core.state is state
    assert siege.core.continuity.memory._lines == lines
    assert not siege.core.continuity.memory._summary
    assert siege.core._down.live is live
    assert (live.frames_received if live else 0) == received
    assert [e["type"] for _, e in siege.sent[sent:] if "append" not in e["type"]] == []
    siege.relent()


@pytest.mark.parametrize("state", [TurnState.LISTENING, TurnState.HEARING, TurnState.SPEAKING])
def test_an_answer_that_nobody_asked_for_is_cancelled_and_not_heard(state: TurnState) -> None:
    siege = in_state(state)
    for n in range(3):
        response_id = f"uninvited_{n}"
        sent = len(siege.sent)
        siege.send(event("response.created", response={"id": response_id}))
        cancels = [e for _, e in siege.sent[sent:] if e["type"] == "response.cancel"]
        assert [each["response_id"] for each in cancels] == [response_id]
        late = siege.core.snapshot()["counters"]["late_deltas"]
        siege.send(audio(response_id, f"item_{n}", 2_400))
        assert siege.core.snapshot()["counters"]["late_deltas"] == late + 1
        assert siege.core.state is state
    siege.relent()


def test_an_answer_that_was_taken_back_before_it_came_is_not_heard() -> None:
    siege = Siege(CONFIGS[0], 0, 0.0)
    siege.run(3.5)
    for _ in range(2):  # the second question takes the first one back
        siege.say(voice(1.0), siege.now)
        siege.press()
        siege.run(1.0)
        siege.release()
        siege.run(until=lambda: siege.core._up.turn.ended)
        siege.server = None  # it is late
    for name in ("first", "second", "third"):
        siege.send(event("response.created", response={"id": name}))
    cancels = [each["response_id"] for each in siege.events("response.cancel")]
    assert cancels == ["first", "third"]
    live = siege.core._down.live
    assert live is not None
    assert live.response_id == "second"
    siege.relent()


@pytest.mark.parametrize("wait_s", [0.05, 0.3, 0.5, 0.8, 1.2, 2.0])
@pytest.mark.parametrize("reached", [True, False], ids=["reached", "unreachable"])
@pytest.mark.parametrize("released", [True, False], ids=["released", "held"])
def test_of_what_was_said_before_a_mute_nothing_leaves_after_it(
    wait_s: float, reached: bool, released: bool
) -> None:
    siege = Siege(CONFIGS[0], 0, 0.0)
    siege.run(3.5)
    if not reached:
        siege.refuse_until = siege.now + 3
    siege.press()
    siege.say(voice(3.0), siege.now)
    siege.run(0.6)
    if released:
        siege.release()
    siege.run(wait_s)
    siege.command("mute")
    siege.run(0.01)
    assert not siege.core._up.turn.utterance.unsent_frames
    assert not bytes(siege.core._up.turn.utterance._pcm).strip(b"\0")
    if not released:
        siege.release()
    siege.run(6)  # the siege looks at all that is sent
    siege.command("unmute")
    sent = len(siege.appended())
    siege.run(3)
    assert len(siege.appended()) == sent
    siege.relent()


def test_what_was_committed_before_a_mute_is_not_sent_again_after_it() -> None:
    siege = Siege(CONFIGS[0], 0, 0.0)
    siege.run(3.5)
    siege.say(voice(1.0), siege.now)
    siege.press()
    siege.run(1.0)
    siege.release()
    siege.run(until=lambda: siege.core._up.turn.ended)
    siege.server = None  # it never answers
    siege.command("mute")
    siege.run(0.01)
    assert not siege.core._up.turn.utterance.frames
    siege.drop_link()
    siege.run(6)  # the siege looks at all that is sent
    siege.relent()


def test_no_preroll_reaches_back_over_a_mute() -> None:
    siege = Siege(CONFIGS[0], 0, 0.0)
    siege.run(3.5)
    siege.say(voice(0.5), siege.now)
    siege.run(0.5)
    siege.command("mute")
    siege.run(0.04)
    siege.command("unmute")
    siege.press()
    siege.run(1.0)
    siege.release()
    siege.run(1.0)
    assert not np.any(np.abs(siege.appended()) > 500)  # the room's noise is 30, a voice 3000
