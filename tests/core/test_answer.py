import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from voiced.core.answer import LONGEST_ANSWER_S, Answer, Piece, Responses
from voiced.core.realtime import AudioDelta
from voiced.events import WIRE_RATE, Samples


def delta(item: str, output: int, *samples: int, content: int = 0) -> AudioDelta:
    return AudioDelta("resp", item, np.array(samples, np.int16), output, content)


def sound(pieces: list[Piece]) -> list[int]:
    return [int(sample) for piece in pieces for sample in piece.samples]


def test_the_first_item_plays_as_it_comes() -> None:
    answer = Answer("resp")
    assert sound(answer.add(delta("a", 0, 1, 2))) == [1, 2]
    assert sound(answer.add(delta("a", 0, 3))) == [3]
    assert answer.frames_received == 3


def test_an_item_waits_until_the_one_before_it_is_done() -> None:
    answer = Answer("resp")
    answer.add(delta("a", 0, 1))
    assert answer.add(delta("b", 1, 7, 8)) == []
    assert sound(answer.add(delta("a", 0, 2))) == [2]
    assert sound(answer.part_done(0, 0)) == [7, 8]
    assert sound(answer.add(delta("b", 1, 9))) == [9]
    assert answer.items == ["a", "b"]


def test_the_parts_of_an_item_wait_for_each_other_too() -> None:
    answer = Answer("resp")
    answer.add(delta("a", 0, 1))
    assert answer.add(delta("a", 0, 5, content=1)) == []
    pieces = answer.part_done(0, 0)
    assert [(p.item_id, p.content_index) for p in pieces] == [("a", 1)]
    assert answer.items == ["a"]


def test_the_end_of_the_response_lets_out_all_that_waits() -> None:
    answer = Answer("resp")
    for output, item in enumerate("abc"):
        answer.add(delta(item, output, output))
    assert sound(answer.finish()) == [1, 2]
    assert answer.complete
    assert answer.finish() == []
    assert all(part.complete for part in answer.playhead.heard(3))


def test_a_done_that_comes_twice_or_for_nothing_is_no_harm() -> None:
    answer = Answer("resp")
    answer.add(delta("a", 0, 1))
    assert answer.part_done(5, 5) == []
    assert answer.part_done(0, 0) == []
    assert answer.part_done(0, 0) == []


def test_only_what_was_handed_to_the_speaker_can_count_as_heard() -> None:
    answer = Answer("resp")
    answer.add(delta("a", 0, *range(240)))
    answer.add(delta("b", 1, *range(240)))
    assert [part.item_id for part in answer.playhead.heard(480)] == ["a"]
    assert answer.playhead.frames == 240


def test_an_answer_has_a_longest_length_and_keeps_nothing_beyond_it() -> None:
    answer = Answer("resp")
    minute: Samples = np.zeros(60 * WIRE_RATE, np.int16)
    for _ in range(LONGEST_ANSWER_S // 60):
        answer.add(AudioDelta("resp", "a", minute))
    with pytest.raises(OverflowError, match="600 s"):
        answer.add(delta("a", 0, 1))
    assert answer.frames_received == LONGEST_ANSWER_S * WIRE_RATE == answer.playhead.frames


@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_however_items_interleave_they_sound_in_order(
    deltas: list[int], rng: random.Random
) -> None:
    """Items begin in order, as the server does it; then anything may come."""
    answer = Answer("resp")
    expected = [100 * item + n for item, size in enumerate(deltas) for n in range(size)]
    ahead = [[100 * item + n for n in range(size)] for item, size in enumerate(deltas)]
    begun, heard = 0, []
    while any(ahead):
        item = rng.randrange(min(begun + 1, len(ahead)))
        begun = max(begun, item + 1)
        if ahead[item]:
            heard += sound(answer.add(delta(str(item), item, ahead[item].pop(0))))
            if not ahead[item]:
                heard += sound(answer.part_done(item, 0))
        assert heard == expected[: len(heard)]
    assert heard + sound(answer.finish()) == expected


# --- the book of responses -----------------------------------------------------------------


def asked(responses: Responses, response_id: str = "r1", *, welcome: bool = True) -> bool:
    responses.expect()
    return responses.created(response_id, welcome=welcome)


def test_an_expected_response_plays() -> None:
    responses = Responses()
    assert asked(responses)
    assert responses.active == "r1"
    assert responses.is_live("r1")
    assert not responses.is_live("r2")


def test_a_response_nobody_asked_for_does_not_play() -> None:
    responses = Responses()
    assert not responses.created("r1", welcome=True)
    assert responses.live is None
    assert responses.active == "r1"


def test_a_response_that_comes_at_a_bad_moment_does_not_play() -> None:
    assert not asked(Responses(), welcome=False)


def test_a_second_response_does_not_play_over_the_first() -> None:
    responses = Responses()
    asked(responses)
    assert not asked(responses, "r2")
    assert responses.is_live("r1")


def test_taking_back_silences_the_live_one_and_all_that_were_asked_for() -> None:
    responses = Responses()
    asked(responses)
    responses.expect()
    responses.expect()
    responses.wanted = True
    live = responses.take_back()
    assert live is not None
    assert live.response_id == "r1"
    assert not responses.wanted
    assert not responses.created("r2", welcome=True)
    assert not responses.created("r3", welcome=True)
    assert asked(responses, "r4")


def test_what_is_asked_after_a_take_back_plays_and_what_was_before_does_not() -> None:
    responses = Responses()
    responses.expect()
    responses.take_back()
    responses.expect()
    assert not responses.created("old", welcome=True)
    assert responses.created("new", welcome=True)


def test_a_response_that_will_not_come_dooms_no_later_one() -> None:
    responses = Responses()
    responses.expect()
    responses.take_back()
    responses.disappoint()
    assert asked(responses)
    responses = Responses()
    responses.disappoint()
    assert asked(responses)


def test_done_frees_the_place_of_its_own_response_only() -> None:
    responses = Responses()
    asked(responses)
    responses.done("another")
    assert responses.active == "r1"
    responses.done("r1")
    assert responses.active is None
    assert responses.is_live("r1")  # it sounds on


def test_deletes_wait_for_the_end_of_their_own_response() -> None:
    responses = Responses()
    responses.delete_after("r1", ["a", "b"])
    responses.delete_after("r2", [])
    assert responses.done("r2") == []
    assert responses.done("r1") == ["a", "b"]
    assert responses.done("r1") == []


def test_deletes_that_wait_in_vain_are_handed_out_once() -> None:
    responses = Responses()
    responses.delete_after("r1", ["a"])
    responses.delete_after("r2", ["b"])
    assert responses.overdue_deletes() == ["a", "b"]
    assert responses.overdue_deletes() == []
    assert responses.done("r1") == []
