"""What leaves the device, in which order, and under which conditions."""

import base64
import json
from typing import Any

import numpy as np
import pytest

from voiced.config import Config, Turn
from voiced.core.outbox import Outbox
from voiced.core.timers import Timers
from voiced.core.uplink import (
    CHUNK_FRAMES,
    CONFIRM_S,
    IN_FLIGHT_FRAMES,
    MINIMUM_COMMIT_FRAMES,
    UNHEARD_S,
    Uplink,
)
from voiced.events import BLOCK_FRAMES, WIRE_RATE, Samples, Send

APPEND, CLEAR, COMMIT = (
    "input_audio_buffer.append",
    "input_audio_buffer.clear",
    "input_audio_buffer.commit",
)
BLOCK_S = BLOCK_FRAMES / WIRE_RATE


class Desk:
    """An uplink with a configured session, in a turn that may send."""

    def __init__(self, config: Config | None = None, *, held: bool | None = False) -> None:
        self.outbox = Outbox()
        self.timers = Timers()
        self.up = Uplink(config or Config(), self.outbox, self.timers)
        session = self.up.session
        session.created = session.configured = session.server_ends = True
        self.up.begin(0.0, held=held)

    def say(self, frames: int, start: float = 1.0) -> bool:
        """Collect whole blocks that were captured from `start` on."""
        blocks = frames // BLOCK_FRAMES
        return self.up.collect([(block(n), start + n * BLOCK_S) for n in range(blocks)])

    def told(self) -> list[dict[str, Any]]:
        return [json.loads(e.text) for e in self.outbox.take() if isinstance(e, Send)]

    def told_types(self) -> list[str]:
        return [event["type"] for event in self.told()]


def block(number: int) -> Samples:
    return np.full(BLOCK_FRAMES, number + 1, np.int16)


def appended(events: list[dict[str, Any]]) -> Samples:
    pcm = b"".join(base64.b64decode(e["audio"]) for e in events if e["type"] == APPEND)
    return np.frombuffer(pcm, "<i2")


# --- sending -------------------------------------------------------------------------------


def test_the_buffer_is_cleared_once_before_the_first_append() -> None:
    desk = Desk()
    desk.say(BLOCK_FRAMES)
    desk.up.pump()
    desk.say(BLOCK_FRAMES, start=2.0)
    desk.up.pump()
    assert desk.told_types() == [CLEAR, APPEND, APPEND]


def test_with_nothing_said_nothing_is_sent() -> None:
    desk = Desk()
    desk.up.pump()
    assert desk.told() == []


def test_a_backlog_goes_out_in_chunks_as_far_as_the_socket_takes_it() -> None:
    desk = Desk()
    desk.say(3 * IN_FLIGHT_FRAMES)
    desk.up.pump()
    sends = [e for e in desk.outbox.take() if isinstance(e, Send) and e.audio_frames]
    assert max(e.audio_frames for e in sends) == CHUNK_FRAMES
    sent = sum(e.audio_frames for e in sends)
    assert IN_FLIGHT_FRAMES <= sent < IN_FLIGHT_FRAMES + CHUNK_FRAMES
    desk.up.pump()
    assert desk.told() == []
    desk.up.session.frames_in_flight = 0
    desk.up.pump()
    assert desk.told() != []
    assert desk.up.frames_sent == 2 * sent


def test_no_block_is_collected_twice() -> None:
    desk = Desk()
    desk.up.collect([(block(0), 1.00), (block(1), 1.02)])
    desk.up.collect([(block(0), 1.00), (block(1), 1.02), (block(2), 1.04)])
    desk.up.pump()
    assert list(appended(desk.told())[::BLOCK_FRAMES]) == [1, 2, 3]


def test_a_full_turn_takes_nothing_more() -> None:
    desk = Desk(Config(turn=Turn(longest_s=5)))
    assert desk.say(5 * WIRE_RATE)
    assert not desk.say(BLOCK_FRAMES, start=50.0)
    assert desk.up.turn.utterance.frames == 5 * WIRE_RATE


def test_pumped_empty_is_the_end_only_when_the_turn_is_ending() -> None:
    desk = Desk(held=True)
    desk.up.turn.collecting = True
    desk.say(MINIMUM_COMMIT_FRAMES)
    assert not desk.up.pump()
    desk.up.end_collecting()
    assert desk.up.pump()
    desk.up.turn.ended = True
    assert not desk.up.pump()


@pytest.mark.parametrize(
    ("held", "may"),
    [(None, False), (False, True), (True, False)],
    ids=["finger undecided", "hands-free", "held, while the server's VAD is on"],
)
def test_nothing_is_sent_before_the_mode_is_known_and_confirmed(
    held: bool | None, may: bool
) -> None:
    assert Desk(held=held).up.may_send() is may


def test_nothing_is_sent_while_an_update_is_on_its_way_or_before_the_first() -> None:
    desk = Desk(held=True)
    desk.up.confirm_mode(decided=True)
    assert not desk.up.may_send()
    desk.up.session.confirm()
    assert desk.up.may_send()
    desk.up.session.configured = False
    assert not desk.up.may_send()


# --- the mode ------------------------------------------------------------------------------


def detection(event: dict[str, Any]) -> Any:
    return event["session"]["audio"]["input"]["turn_detection"]


def test_nothing_is_asked_of_a_session_that_is_not_there_or_is_right() -> None:
    desk = Desk()
    desk.up.confirm_mode(decided=True)
    desk.up.confirm_mode(decided=False)
    desk.up.session.created = False
    desk.up.session.configured = False
    desk.up.confirm_mode(decided=True)
    assert desk.told() == []


@pytest.mark.parametrize("held", [False, True])
def test_a_mode_that_differs_is_asked_for_once_with_a_deadline(held: bool) -> None:
    desk = Desk(held=held)
    desk.outbox.now = 10.0
    desk.up.session.server_ends = held
    desk.up.confirm_mode(decided=True)
    desk.up.confirm_mode(decided=True)
    (update,) = desk.told()
    assert (detection(update) is None) == held
    assert update["session"].keys() == {"type", "audio"}
    assert desk.timers.next() == 10.0 + CONFIRM_S


def test_a_first_update_says_everything_and_a_second_only_what_all_servers_know() -> None:
    desk = Desk()
    session = desk.up.session
    session.configured = False
    desk.up.confirm_mode(decided=False)
    (full,) = desk.told()
    assert desk.up.mode_rejected("unknown_parameter")
    desk.up.confirm_mode(decided=False)
    (reduced,) = desk.told()
    assert reduced["session"].keys() < full["session"].keys()
    assert detection(reduced) == detection(full)
    assert not desk.up.mode_rejected("unknown_parameter again")


def test_a_rejected_mode_makes_the_turn_a_commit_and_is_not_asked_for_again() -> None:
    desk = Desk(held=True)
    desk.up.confirm_mode(decided=True)
    desk.told()
    assert desk.up.mode_rejected("no")
    desk.up.confirm_mode(decided=True)
    assert desk.told() == []
    assert desk.timers.next() is None
    assert desk.up.by_hand
    assert desk.up.may_send()


def test_who_ends_the_turn() -> None:
    assert not Desk(held=False).up.by_hand
    assert Desk(held=True).up.by_hand
    assert Desk(Config(turn=Turn(end="local")), held=False).up.by_hand
    for reason in ("replay", "forced", "unconfirmed"):
        desk = Desk()
        setattr(desk.up.turn, reason, True)
        assert desk.up.by_hand


# --- the end of a turn ---------------------------------------------------------------------


def test_a_turn_of_ours_is_committed_and_wants_an_answer() -> None:
    desk = Desk(held=True)
    desk.say(MINIMUM_COMMIT_FRAMES)
    assert desk.up.close_turn()
    assert desk.told_types() == [COMMIT]
    assert desk.up.turn.ended


def test_less_than_the_server_takes_is_never_committed() -> None:
    desk = Desk(held=True)
    desk.say(MINIMUM_COMMIT_FRAMES - BLOCK_FRAMES)
    with pytest.raises(ValueError, match="100 ms"):
        desk.up.close_turn()
    assert desk.told() == []


def test_a_turn_of_the_servers_gets_its_silence_once_and_a_deadline() -> None:
    desk = Desk(Config(turn=Turn(silence_ms=700)))
    desk.outbox.now = 10.0
    desk.say(WIRE_RATE)
    desk.up.end_collecting()
    desk.up.pad()
    assert desk.up.turn.utterance.frames == WIRE_RATE + 700 * WIRE_RATE // 1000
    assert not desk.up.close_turn()
    desk.outbox.now = 11.0
    desk.up.close_turn()
    assert desk.timers.next() == 10.0 + UNHEARD_S
    assert desk.told() == []


def test_a_turn_of_ours_gets_no_zeros() -> None:
    desk = Desk(held=True)
    desk.say(WIRE_RATE)
    desk.up.end_collecting()
    assert desk.up.turn.utterance.frames == WIRE_RATE


@pytest.mark.parametrize(
    ("appended", "ended", "told"),
    [(True, False, [CLEAR]), (False, False, []), (True, True, [])],
)
def test_a_turn_thrown_away_is_cleared_where_the_server_has_some_of_it(
    appended: bool, ended: bool, told: list[str]
) -> None:
    desk = Desk()
    desk.up.turn.appended, desk.up.turn.ended = appended, ended
    desk.up.drop()
    assert desk.told_types() == told


def test_a_new_turn_has_nothing_of_the_old() -> None:
    desk = Desk(held=True)
    desk.say(WIRE_RATE)
    desk.up.rewind()
    desk.up.begin(5.0)
    assert desk.up.turn.utterance.frames == 0
    assert not desk.up.by_hand
    assert not desk.up.may_send()


# --- after a lost session ------------------------------------------------------------------


def test_a_turn_goes_out_again_whole_and_as_one_commit() -> None:
    desk = Desk()
    desk.say(WIRE_RATE // 2)
    desk.up.pump()
    first = appended(desk.told())
    desk.up.session.frames_in_flight = 0
    desk.up.rewind()
    desk.up.turn.replay = True
    desk.up.session.server_ends = False
    assert desk.up.may_send()
    desk.up.end_collecting()
    assert desk.up.pump()
    events = desk.told()
    assert events[0]["type"] == CLEAR
    assert np.array_equal(appended(events), first)
    assert desk.up.close_turn()
