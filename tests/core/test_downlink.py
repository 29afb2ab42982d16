"""What is sent about an answer that is cut, and what of it reaches the speaker."""

import json
from typing import Any

import numpy as np
import pytest

from voiced.core.downlink import ASKED_S, DELETE_S, Downlink
from voiced.core.outbox import Outbox
from voiced.core.realtime import AudioDelta, AudioDone
from voiced.core.timers import Timers
from voiced.events import WIRE_RATE, Effect, EndPlay, Flush, Flushed, Note, Play, Send

MS = WIRE_RATE // 1000
TRUNCATE, CANCEL, DELETE = (
    "conversation.item.truncate",
    "response.cancel",
    "conversation.item.delete",
)


class Desk:
    """A downlink with its outbox; `did` are the effects since the last look."""

    def __init__(self) -> None:
        self.outbox = Outbox()
        self.timers = Timers()
        self.down = Downlink(self.outbox, self.timers)

    def answer(self, response_id: str = "r1") -> None:
        self.down.responses.expect()
        assert self.down.responses.created(response_id, welcome=True)

    def audio(self, item: str, ms: int, output: int = 0, *, part: int = 0, of: str = "r1") -> bool:
        samples = np.ones(ms * MS, np.int16)
        return self.down.audio(AudioDelta(of, item, samples, output, part))

    def part_done(self, item: str, output: int = 0, *, of: str = "r1") -> None:
        self.down.audio_done(AudioDone(of, item, output))

    def cut(self, heard_ms: int) -> None:
        """Silence it; the speaker says that so much was heard."""
        self.down.cut()
        self.did()
        self.down.flushed(Flushed(self.outbox.now, heard_ms * MS, self.outbox.now))

    def did(self) -> list[Effect]:
        return [e for e in self.outbox.take() if not isinstance(e, Note)]

    def told(self) -> list[dict[str, Any]]:
        return [json.loads(e.text) for e in self.did() if isinstance(e, Send)]

    def told_types(self) -> list[str]:
        return [event["type"] for event in self.told()]


@pytest.fixture
def desk() -> Desk:
    return Desk()


def played(effects: list[Effect]) -> int:
    """In ms."""
    return sum(len(e.samples) for e in effects if isinstance(e, Play)) // MS


# --- playing -------------------------------------------------------------------------------


def test_a_whole_answer_is_played_to_its_end(desk: Desk) -> None:
    desk.answer()
    assert desk.audio("a", 200)
    assert desk.down.done("r1") is not None
    effects = desk.did()
    assert played(effects) == 200
    assert effects[-1] == EndPlay(0)
    assert desk.down.drained(0)
    assert desk.down.live is None
    assert desk.down.seconds_heard(0.0) == 0.2


def test_audio_of_anything_but_the_live_answer_is_dropped_and_counted(desk: Desk) -> None:
    assert not desk.audio("x", 20, of="r0")
    desk.answer()
    assert not desk.audio("x", 20, of="r0")
    assert desk.down.late_deltas == 2
    assert desk.did() == []


def test_a_dead_answer_stays_silent(desk: Desk) -> None:
    desk.answer()
    desk.audio("a", 500)
    desk.cut(heard_ms=100)
    desk.did()
    assert not desk.audio("a", 500)
    desk.part_done("a")
    assert desk.down.done("r1") is None
    assert played(desk.did()) == 0


def test_an_answer_without_sound_leaves_nothing_to_play(desk: Desk) -> None:
    desk.answer()
    assert desk.down.done("r1") is not None
    assert desk.down.live is None
    assert desk.did() == []


def test_the_end_of_another_response_ends_nothing(desk: Desk) -> None:
    desk.answer()
    desk.audio("a", 20)
    assert desk.down.done("r0") is None
    assert EndPlay(0) not in desk.did()


def test_a_drain_of_an_earlier_epoch_or_of_half_an_answer_is_not_the_end(desk: Desk) -> None:
    assert not desk.down.drained(0)
    desk.answer()
    desk.audio("a", 20)
    assert not desk.down.drained(0)
    desk.down.done("r1")
    assert not desk.down.drained(7)
    assert desk.down.drained(0)


# --- asking --------------------------------------------------------------------------------


def test_a_response_is_asked_for_once_and_only_when_none_is_being_made(desk: Desk) -> None:
    desk.answer()
    desk.down.responses.wanted = True
    desk.down.ask()
    assert desk.did() == []
    desk.down.done("r1")
    desk.down.ask()
    desk.down.ask()
    assert desk.told_types() == ["response.create"]
    assert desk.timers.next() == ASKED_S


# --- cutting -------------------------------------------------------------------------------


def test_a_cut_flushes_before_all_else_and_begins_a_new_epoch(desk: Desk) -> None:
    desk.answer()
    desk.audio("a", 500)
    desk.outbox.take()
    desk.outbox.send(desk.outbox.encode.clear())
    desk.down.cut()
    assert desk.outbox.take()[0] == Flush(1, 0.0)
    assert desk.down.epoch == 1


def test_with_nothing_to_cut_nothing_is_flushed(desk: Desk) -> None:
    desk.down.cut()
    desk.down.flushed(Flushed(0.0, 0, 0.0))
    assert desk.outbox.take() == []


def test_truncate_then_cancel_then_delete_when_the_response_is_done(desk: Desk) -> None:
    desk.answer()
    desk.audio("a", 300)
    desk.part_done("a")
    desk.audio("b", 300, 1)
    desk.audio("c", 300, 2)
    desk.cut(heard_ms=400)
    cut, cancel = desk.told()
    assert (cut["type"], cut["item_id"], cut["audio_end_ms"]) == (TRUNCATE, "b", 100)
    assert (cancel["type"], cancel["response_id"]) == (CANCEL, "r1")
    desk.down.done("r1")
    assert [(e["type"], e["item_id"]) for e in desk.told()] == [(DELETE, "c")]


def test_deletes_do_not_wait_longer_than_two_seconds(desk: Desk) -> None:
    desk.outbox.now = 50.0
    desk.answer()
    desk.audio("a", 300)
    desk.cut(heard_ms=0)
    assert desk.told_types() == [CANCEL]
    assert DELETE_S == 2.0
    assert desk.timers.due(51.9) is None
    assert desk.timers.due(52.0) == "deletes"
    desk.down.delete_overdue()
    assert desk.told_types() == [DELETE]
    desk.down.done("r1")
    assert desk.told() == []


def test_a_complete_response_is_not_cancelled_and_its_deletes_need_not_wait(desk: Desk) -> None:
    desk.answer()
    desk.audio("a", 300)
    desk.audio("b", 300, 1)
    desk.down.done("r1")
    desk.cut(heard_ms=200)
    assert desk.told_types() == [TRUNCATE, DELETE]


def test_what_was_heard_to_its_end_is_left_alone(desk: Desk) -> None:
    desk.answer()
    desk.audio("a", 300)
    desk.part_done("a")
    desk.audio("b", 300, 1)
    desk.cut(heard_ms=300)
    assert desk.told_types() == [CANCEL]
    desk.down.done("r1")
    assert [e["item_id"] for e in desk.told()] == ["b"]


def test_an_item_heard_as_far_as_it_came_but_not_final_is_truncated_there(desk: Desk) -> None:
    desk.answer()
    desk.audio("a", 300)
    desk.cut(heard_ms=300)
    (cut, _) = desk.told()
    assert (cut["item_id"], cut["audio_end_ms"]) == ("a", 300)


def test_an_unheard_part_of_a_heard_item_is_taken_back_too(desk: Desk) -> None:
    """An item that was heard can't be deleted: its second audio part is truncated to nothing."""
    desk.answer()
    desk.audio("a", 300)
    desk.part_done("a")
    desk.audio("a", 300, part=1)
    desk.cut(heard_ms=300)
    cuts = [e for e in desk.told() if e["type"] == TRUNCATE]
    assert [(e["content_index"], e["audio_end_ms"]) for e in cuts] == [(1, 0)]


def test_a_cut_is_told_once(desk: Desk) -> None:
    desk.answer()
    desk.audio("a", 300)
    desk.cut(heard_ms=100)
    desk.did()
    desk.down.flushed(Flushed(1.0, 9_999, 1.0))
    assert desk.outbox.take() == []


def test_the_note_of_a_flush_says_what_was_heard_of_each_item(desk: Desk) -> None:
    desk.answer()
    desk.audio("a", 300)
    desk.part_done("a")
    desk.audio("b", 300, 1)
    desk.down.cut()
    desk.outbox.take()
    desk.down.flushed(Flushed(7.002, 350 * MS, 7.0))
    (note,) = [e for e in desk.outbox.take() if isinstance(e, Note)]
    assert note.fields["heard_ms"] == {"a": 300, "b": 50}
    assert (note.fields["cause_at"], note.fields["dropped_at"]) == (7.0, 7.002)


# --- a session that is lost ----------------------------------------------------------------


def test_what_came_of_an_answer_is_played_when_its_session_is_lost(desk: Desk) -> None:
    desk.answer()
    desk.audio("a", 300)
    desk.audio("b", 200, 1)
    desk.down.lose_session()
    effects = desk.did()
    assert played(effects) == 500
    assert effects[-1] == EndPlay(0)
    assert desk.down.drained(0)


def test_nobody_is_told_about_an_answer_whose_session_is_lost(desk: Desk) -> None:
    desk.answer()
    desk.audio("a", 300)
    desk.audio("b", 300, 1)
    desk.down.lose_session()
    desk.cut(heard_ms=100)
    assert desk.told() == []
    assert desk.timers.next() is None


def test_an_answer_without_sound_dies_with_its_session(desk: Desk) -> None:
    desk.answer()
    desk.down.lose_session()
    assert desk.down.live is None
    assert desk.did() == []


def test_an_answer_is_not_ended_twice(desk: Desk) -> None:
    desk.answer()
    desk.audio("a", 300)
    desk.down.done("r1")
    desk.did()
    desk.down.lose_session()
    assert desk.did() == []
    assert desk.down.live is not None


def test_deletes_for_a_dead_session_die_with_it(desk: Desk) -> None:
    desk.answer()
    desk.audio("a", 300)
    desk.cut(heard_ms=0)
    desk.did()
    desk.down.lose_session()
    assert desk.timers.next() is None
    desk.down.delete_overdue()
    desk.down.done("r1")
    assert desk.told() == []


def test_what_was_asked_of_a_dead_session_is_not_expected_of_the_next(desk: Desk) -> None:
    desk.down.responses.expect()
    desk.down.lose_session()
    assert not desk.down.responses.created("r1", welcome=True)
