"""The report's figures, from runs made up sample by sample."""

import base64
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from voiced.sim.report import (
    Clock,
    Daemon,
    Question,
    Run,
    capture_start,
    compute,
    correlation,
    schema,
    speech_span,
    table,
    zeros_in,
)
from voiced.sim.wav import Samples

SCHEMA = Path(__file__).parents[2] / "docs" / "report.schema.json"
T0 = 1000.0  # when the recording began


def noise(seconds: float, rate: int, seed: int = 1) -> Samples:
    """No zeros in it."""
    random = np.random.default_rng(seed)
    size = round(seconds * rate)
    samples: Samples = random.integers(1, 9000, size).astype(np.int16)
    signed: Samples = samples * random.choice(np.array([-1, 1], np.int16), size)
    return signed


def frame(t: float, source: str, kind: str, **fields: Any) -> dict[str, Any]:
    return {"t": T0 + t, "session": 1, "from": source, "event": {"type": kind, **fields}}


def append(t: float, samples: Samples) -> dict[str, Any]:
    audio = base64.b64encode(samples.tobytes()).decode()
    return frame(t, "client", "input_audio_buffer.append", audio=audio)


def delta(t: float, samples: Samples, item: str = "i1", response: str = "r1") -> dict[str, Any]:
    return frame(
        t,
        "server",
        "response.output_audio.delta",
        item_id=item,
        response_id=response,
        delta=base64.b64encode(samples.tobytes()).decode(),
    )


def done(t: float, status: str = "completed", response: str = "r1") -> dict[str, Any]:
    return frame(t, "server", "response.done", response={"id": response, "status": status})


def one_turn(**changes: Any) -> Run:
    """Pressed at 5.0, said 5.2 to 6.2, sent from 5.1 on, ended at 6.8, answered 7.0 to 8.0."""
    said = noise(1.0, 48_000)
    heard = np.zeros(48_000 * 12, np.int16)
    heard[48_000 * 7 + 480 : 48_000 * 8 + 480] = said
    frames = [append(5.12 + 0.02 * n, noise(0.02, 24_000, n)) for n in range(80)]
    frames += [
        frame(6.8, "server", "input_audio_buffer.committed", item_id="u1"),
        frame(6.81, "server", "response.created", response={"id": "r1"}),
        delta(7.0, noise(0.5, 24_000, 91)),
        delta(7.1, noise(0.5, 24_000, 92)),
        done(7.2),
    ]
    notes = [
        {"event": "turn", "t": T0 + at, "turn": state}
        for at, state in (
            (5.0, "listening"),
            (5.3, "hearing"),
            (6.8, "thinking"),
            (7.0, "speaking"),
        )
    ]
    run = Run(
        heard=heard,
        clock=Clock([(0, T0), (48_000 * 12, T0 + 12)]),
        questions=[
            Question("q.wav", said, T0 + 4.7, T0 + 5.0, T0 + 5.1, started_at=T0 + 5.2),
        ],
        frames=frames,
        notes=notes,
        lights=[(T0 + 0.3, (0.0, 0.0, 0.0)), (T0 + 5.001, (0.0, 0.2, 1.0))],
        parrot=True,
        rig_delay_ms=8.0,
        rig_drop_ms=4.0,
        ready_ms=300.04,
        daemon=Daemon(cpu_s=1.0, peak_rss_mb=50.0),
        status={
            "tokens": {"input": 1, "output": 2, "total": 3},
            "counters": {"capture_xruns": 0, "playback_xruns": 0, "playback_holes": 0},
        },
        violations=[],
        problems=[],
    )
    return replace(run, **changes)


def cancelled(stale: bool = False) -> Run:
    """The same, pressed again at 7.5 and dropped at 7.502; heard from 7.01 to 7.505."""
    run = one_turn()
    heard = run.heard.copy()
    heard[round(48_000 * 7.505) :] = 0
    if stale:
        heard[48_000 * 8 : 48_000 * 8 + 96] = 7
    run.questions[0].cancel_at = T0 + 7.5
    truncate = frame(7.503, "client", "conversation.item.truncate", item_id="i1", audio_end_ms=494)
    flushed = {"event": "flushed", "t": T0 + 7.5, "dropped_at": T0 + 7.502, "text": "silent"}
    return replace(
        run, heard=heard, frames=[*(run.frames or ()), truncate], notes=[*run.notes, flushed]
    )


def test_a_whole_turn_is_ok_and_measured() -> None:
    report = compute(one_turn())
    (turn,) = report.turns
    assert (report.problems, report.ok, turn.ok) == ([], True, True)
    assert turn.said_s == 1.0
    assert turn.sent_s == pytest.approx(1.6)
    assert turn.preroll_s == 0.0
    assert turn.answer_s == turn.answer_sound_s == turn.heard_s == 1.0
    assert turn.press_to_first_append_ms == pytest.approx(120)
    assert turn.speech_end_to_turn_end_ms == pytest.approx(600)
    assert turn.first_delta_to_sound_ms == pytest.approx(2.0, abs=0.05)  # 10 less the rig's 8
    assert turn.correlation == pytest.approx(1.0, abs=0.001)
    assert turn.cancel_to_drop_ms is turn.cancel_to_silence_ms is turn.stale_audio_ms is None
    assert [state for state, _, _ in turn.states] == [
        "listening",
        "hearing",
        "thinking",
        "speaking",
    ]
    assert turn.lights[1] == ((0.0, 0.2, 1.0), T0 + 5.001, 240_048)


def test_events_are_in_order_and_have_the_index_of_their_time() -> None:
    events = compute(one_turn()).turns[0].events
    assert [event.t for event in events] == sorted(event.t for event in events)
    assert all(abs(event.index - 48_000 * (event.t - T0)) <= 1 for event in events)
    names = [event.name for event in events if event.name not in ("state", "light")]
    assert names == [
        *("press", "release", "first_append", "speech_start", "speech_end", "committed"),
        *("response_created", "first_delta", "first_sound", "last_delta", "response_done"),
        "last_sound",
    ]


def test_a_cancel_is_measured_to_drop_and_silence() -> None:
    turn = compute(cancelled()).turns[0]
    assert turn.problems == []
    assert turn.cancel_to_drop_ms == pytest.approx(2.0)
    assert turn.cancel_to_silence_ms == pytest.approx(5.0 - 4.0, abs=0.05)
    assert turn.stale_audio_ms == 0.0
    assert (turn.audio_end_items, turn.audio_end_ms_sent) == (["i1"], [494])
    assert turn.audio_end_ms_heard == [pytest.approx(495, abs=0.05)]


def test_sound_that_comes_back_after_a_cancel_is_stale() -> None:
    turn = compute(cancelled(stale=True)).turns[0]
    assert turn.stale_audio_ms == pytest.approx(2.0)  # 96 samples
    assert turn.cancel_to_silence_ms == pytest.approx(502 - 4, abs=0.1)
    assert turn.problems == ["2.0 ms sounded after the drop"]


def test_what_was_heard_is_shared_out_over_the_items() -> None:
    run = cancelled()
    frames = [f for f in run.frames or () if "delta" not in f["event"]]
    frames += [delta(7.0, noise(0.3, 24_000, 91)), delta(7.1, noise(0.7, 24_000, 92), "i2")]
    frames[-3]["event"].update(item_id="i2", audio_end_ms=194)
    turn = compute(replace(run, frames=frames)).turns[0]
    assert turn.audio_end_items == ["i2"]
    assert turn.audio_end_ms_heard == [pytest.approx(195, abs=0.05)]


def test_an_answer_cut_short_is_not_whole() -> None:
    run = one_turn()
    run.heard[round(48_000 * 7.9) :] = 0
    report = compute(run)
    assert not report.ok
    assert report.problems == ["turn 1: 0.890 s were heard of an answer of 1.000 s"]


def test_silence_is_not_an_answer() -> None:
    report = compute(replace(one_turn(), heard=np.zeros(48_000 * 12, np.int16)))
    assert report.problems == ["turn 1: no answer was heard"]
    assert report.turns[0].heard_s is None


def test_a_turn_without_a_response_is_not_whole() -> None:
    run = one_turn()
    frames = [f for f in run.frames or () if f["from"] == "client"]
    assert compute(replace(run, frames=frames)).problems == [
        "turn 1: the server created no response",
        "turn 1: no answer was heard",
    ]


def test_too_much_sent_is_a_problem_only_without_a_finger_on_the_button() -> None:
    run = one_turn()
    more = [append(9.0 + 0.02 * n, noise(0.02, 24_000, n)) for n in range(60)]
    run = replace(run, frames=[*(run.frames or ()), *more])
    assert compute(run).problems == ["turn 1: 2.80 s were sent for 1.00 s of speech"]
    run.questions[0].held = True
    assert compute(run).ok


def test_an_answer_that_was_taken_back_does_not_count() -> None:
    run = one_turn()
    gone = [delta(6.5, noise(0.2, 24_000), response="r0"), done(6.6, "cancelled", "r0")]
    turn = compute(replace(run, frames=[*gone, *(run.frames or ())])).turns[0]
    assert turn.answer_s == 1.0
    assert turn.ok


def test_violations_faults_and_the_rigs_own_trouble_are_problems() -> None:
    run = one_turn(violations=["empty commit"], problems=["the recording has gaps"])
    fault = {"event": "fault", "t": T0 + 6, "text": "speaker lost"}
    report = compute(replace(run, notes=[*run.notes, fault, fault]))
    assert report.problems == [
        "turn 1: speaker lost",
        "protocol violation: empty commit",
        "the recording has gaps",
    ]
    assert report.protocol_violations == ["empty commit"]


def test_each_turn_has_its_own_part_of_the_run() -> None:
    run = one_turn()
    later = Question("p.wav", noise(0.5, 48_000, 7), T0 + 8.7, started_at=T0 + 9.0)
    frames = [*(run.frames or ()), append(9.3, noise(0.2, 24_000))]
    first, second = compute(replace(run, questions=[*run.questions, later], frames=frames)).turns
    assert first.sent_s == pytest.approx(1.6)
    assert second.sent_s == pytest.approx(0.2)
    assert (second.preroll_s, second.press_to_first_append_ms) == (None, None)
    assert second.states == []


def test_without_a_frame_log_what_needs_it_is_absent() -> None:
    turn = compute(replace(one_turn(), frames=None, parrot=False)).turns[0]
    assert turn.problems == []
    assert turn.sent_s is turn.answer_s is turn.correlation is None
    assert turn.speech_end_to_turn_end_ms is turn.first_delta_to_sound_ms is None
    assert turn.heard_s == 1.0


def test_preroll_is_what_was_captured_before_the_press() -> None:
    # Late arrivals don't count: what was said after an append arrived can't be in it.
    stretch = [
        (10.5, noise(0.8, 24_000)),
        (10.52, noise(0.02, 24_000)),
        (10.6, noise(0.02, 24_000)),
    ]
    assert capture_start(stretch) == pytest.approx(9.7)
    # Silence that was made took no time; after a pause a new stretch begins.
    assert capture_start([*stretch, (10.61, np.zeros(9_600, np.int16))]) == pytest.approx(9.7)
    assert capture_start([*stretch, (12.0, noise(4.0, 24_000))]) == pytest.approx(9.7)
    assert capture_start([]) is None


def test_zeros_are_those_that_no_microphone_gives() -> None:
    sound = noise(0.1, 24_000)
    gap = np.concatenate([sound, np.zeros(479, np.int16), sound])
    hole = np.concatenate([sound, np.zeros(240, np.int16)])
    assert zeros_in([gap]) == 0
    assert zeros_in([hole, np.concatenate([np.zeros(240, np.int16), sound])]) == 480
    assert zeros_in([sound, np.zeros(100, np.int16), sound]) == 100
    assert zeros_in([]) == 0


def test_speech_ends_with_the_last_frame_that_is_loud_enough() -> None:
    rate = 48_000
    samples = np.zeros(rate, np.int16)
    samples[9_600:19_200] = 10_000
    samples[19_200:28_800] = 200  # 34 dB down
    samples[28_800:38_400] = 160  # 36 dB down
    assert speech_span(samples, rate) == (9_600, 28_800)
    assert speech_span(np.zeros(100, np.int16), rate) == (0, 0)


def test_correlation_knows_the_question_and_half_of_it() -> None:
    said = noise(1.0, 48_000)
    embedded = np.concatenate([noise(0.3, 48_000, 2) // 50, said, noise(0.3, 48_000, 3) // 50])
    assert correlation(embedded.astype(np.int16), said) > 0.98
    assert correlation(embedded[: 48_000 // 2].astype(np.int16), said) > 0.98
    assert correlation(noise(1.0, 48_000, 5), said) < 0.1
    assert correlation(np.zeros(100, np.int16), said) == 0.0


def test_a_clock_goes_on_at_the_nominal_rate_outside_its_points() -> None:
    clock = Clock([(0, 10.0), (48_000, 11.001)])
    assert clock.index_at(10.5005) == 24_000
    assert clock.time_at(96_000) == pytest.approx(12.001)
    assert clock.index_at(9.0) == -48_000
    with pytest.raises(ValueError):
        Clock([])


def test_the_schema_in_docs_is_the_reports() -> None:
    assert json.loads(SCHEMA.read_text()) == schema()


def test_the_table_says_which_turn_was_not_whole_and_why() -> None:
    run = one_turn()
    run.heard[:] = 0
    lines = table(compute(run)).split("\n")
    assert lines[1].startswith("q.wav ")
    assert lines[1].endswith(" NO")
    assert lines[2] == "problem: turn 1: no answer was heard"
