import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from voiced.core.utterance import Utterance
from voiced.events import WIRE_RATE, Samples


def ramp(frames: int, start: int = 1) -> Samples:
    return np.arange(start, start + frames).astype(np.int16)


def all_of(utterance: Utterance, chunk: int = 4_800) -> Samples:
    taken = b""
    while part := utterance.take(chunk):
        taken += part
    return np.frombuffer(taken, "<i2")


def test_it_is_taken_in_order_in_chunks_and_once() -> None:
    utterance = Utterance(1.0)
    utterance.extend(ramp(5))
    utterance.extend(ramp(3, start=6))
    assert utterance.take(6) == ramp(6).astype("<i2").tobytes()
    assert (utterance.frames, utterance.unsent_frames) == (8, 2)
    assert utterance.take(6) == ramp(2, start=7).astype("<i2").tobytes()
    assert utterance.take(6) == b""


def test_the_wire_is_little_endian_whatever_the_machine() -> None:
    utterance = Utterance(1.0)
    utterance.extend(np.array([258], ">i2").astype(np.int16))
    assert utterance.take(1) == b"\x02\x01"


def test_the_bound_is_exact_and_what_exceeds_it_is_left_out_whole() -> None:
    utterance = Utterance(0.01)
    limit = WIRE_RATE // 100
    assert utterance.extend(ramp(limit - 1))
    assert not utterance.extend(ramp(2))
    assert utterance.frames == limit - 1
    assert utterance.extend(ramp(1))
    assert not utterance.extend(ramp(1))


def test_the_zeros_of_the_end_fit_even_into_a_full_one() -> None:
    utterance = Utterance(0.01)
    utterance.extend(ramp(WIRE_RATE // 100))
    utterance.pad(480)
    assert not all_of(utterance)[-480:].any()
    assert utterance.frames == WIRE_RATE // 100 + 480


def test_rewound_it_goes_out_whole_again() -> None:
    utterance = Utterance(1.0)
    utterance.extend(ramp(1_000))
    utterance.take(700)
    utterance.rewind()
    assert utterance.unsent_frames == 1_000
    assert np.array_equal(all_of(utterance), ramp(1_000))


def test_what_is_answered_is_freed_and_what_is_unsent_kept() -> None:
    utterance = Utterance(1.0)
    utterance.extend(ramp(1_000))
    utterance.take(700)
    utterance.forget_sent()
    utterance.rewind()
    assert np.array_equal(all_of(utterance), ramp(300, start=701))


@given(st.lists(st.tuples(st.integers(0, 900), st.integers(0, 900)), max_size=20))
def test_every_frame_is_sent_exactly_once(moves: list[tuple[int, int]]) -> None:
    utterance, put, got = Utterance(10.0), 0, b""
    for came, taken in moves:
        utterance.extend(ramp(came, start=put))
        put += came
        got += utterance.take(taken)
        assert len(got) // 2 + utterance.unsent_frames == put
    got += all_of(utterance).tobytes()
    assert np.array_equal(np.frombuffer(got, "<i2"), ramp(put, start=0))
