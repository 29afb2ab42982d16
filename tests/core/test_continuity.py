"""One conversation over many sessions, in simulated time against the built-in server's rules."""

import random
from typing import Any

import pytest

from tests.core.world import SECOND, UNIX_S, World, asked, find, voice
from tests.sim.openai_types import check_client_event
from voiced.config import Config, Memory, Realtime, Turn
from voiced.core.continuity import SUMMARY_S
from voiced.core.conversation import Conversation
from voiced.core.link import LinkState
from voiced.core.turn import TurnState
from voiced.events import KeepConversation, Reconfigured, Tick
from voiced.sim.realtime_session import Script

TOLD = "conversation.item.create"
HOUR = Turn(hang_up_s=3_300)
WRITTEN = Config(realtime=Realtime(transcription="gpt-realtime-whisper"))


def told(world: World) -> list[str]:
    """What new sessions were told, by one system message each."""
    texts = []
    for event in world.events(TOLD):
        item = event["item"]
        assert (item["type"], item["role"]) == ("message", "system")
        texts.append(item["content"][0]["text"])
    return texts


def again(world: World) -> World:
    """One more question and its answer, right now."""
    at = world.now + 0.5
    world.tap(at)
    world.say(SECOND, at + 0.2)
    return world.until_state(TurnState.SPEAKING)


def to_idle(world: World) -> World:
    world.until_state(TurnState.IDLE)
    return world.run(1)


# --- what a new session is told ------------------------------------------------------------


def test_a_first_session_is_told_nothing() -> None:
    assert told(asked(World())) == []


def test_after_a_drop_the_next_session_is_told_what_was_heard_and_said() -> None:
    world = to_idle(asked(World(WRITTEN)))
    world.drop_link()
    again(world)
    (text,) = told(world)
    assert "User: what the user said" in text
    assert "You: Part 1 of 1" in text
    for _, event in world.sent:
        check_client_event(event)
    assert world.verdict.violations == []


def test_without_a_transcription_it_is_told_that_the_users_words_are_gone() -> None:
    world = to_idle(asked(World()))
    world.drop_link()
    (text,) = told(again(world))
    assert "not available" in text
    assert "You: Part 1 of 1" in text
    assert "what the user said" not in text


def test_it_is_told_before_the_first_sound_and_only_once() -> None:
    world = to_idle(asked(World()))
    world.drop_link()
    asked_before = len(world.sent)
    to_idle(again(to_idle(again(world))))
    kinds = [event["type"] for _, event in world.sent[asked_before:]]
    assert kinds.count(TOLD) == 1
    assert kinds.index(TOLD) < kinds.index("input_audio_buffer.append")


def test_of_an_answer_that_was_cut_only_what_was_heard_is_told() -> None:
    world = asked(World(script=Script(answer=voice(8))))
    world.run(4)
    world.command("interrupt")
    to_idle(world)
    world.drop_link()
    (text,) = told(again(world))
    assert "[cut off here]" in text
    assert "milliseconds" not in text  # the end of it


def test_a_session_that_was_hung_up_is_remembered_by_the_next() -> None:
    world = to_idle(asked(World()))
    world.run(70)
    assert world.core.link.state is LinkState.DOWN
    assert len(told(again(world))) == 1


# --- a drop in the middle of an answer -----------------------------------------------------


def torn(world: World, after_s: float) -> World:
    world.run(after_s)
    world.drop_link()
    return world.until_state(TurnState.LISTENING)


def test_an_answer_that_had_come_whole_loses_nothing_with_the_link() -> None:
    world = torn(asked(World(script=Script(answer=voice(8)))), 2.0)  # it comes 20 times faster
    assert find(voice(8), world.heard) >= 0
    assert "network" not in [name for _, name in world.chimes]


def test_an_answer_that_lost_its_end_plays_what_came_and_says_so() -> None:
    world = torn(asked(World(script=Script(answer=voice(8), pace=1.1))), 2.0)
    assert 2.0 < len(world.heard) / 24_000 < 6
    assert world.chimes[-1][1] == "network"
    world.say(SECOND, world.now + 0.3)  # and the talk goes on, on the next session
    world.until_state(TurnState.SPEAKING)
    (text,) = told(world)
    assert "[cut off here]" in text


# --- leaving a session in time -------------------------------------------------------------


def aged(config: Config | None = None, **script: Any) -> World:
    """A conversation whose session nears its end: asked once, idle since."""
    settings = config or Config(turn=HOUR, memory=Memory(minutes=120))
    return to_idle(asked(World(settings, Script(max_session_s=600, **script))))


def test_an_old_session_is_left_while_nobody_talks_with_a_summary_for_the_next() -> None:
    world = aged()
    began = world.dials[0]
    world.run(700, until=lambda: world.core.link.state is LinkState.DOWN)
    assert world.now - began == pytest.approx(500, abs=10)
    (aside,) = [e for e in world.events("response.create") if "response" in e]
    assert aside["response"]["conversation"] == "none"
    (text,) = told(again(world))
    assert "A summary of what was said so far: ok" in text
    assert "You:" not in text
    assert world.verdict.violations == []
    for _, event in world.sent:
        check_client_event(event)


def test_a_summary_is_not_a_turn() -> None:
    world = aged()
    states, chimes, heard = len(world.states), len(world.chimes), len(world.heard)
    world.run(700, until=lambda: world.core.link.state is LinkState.DOWN)
    world.run(5)
    assert (len(world.states), len(world.chimes), len(world.heard)) == (states, chimes, heard)


def test_an_old_session_is_never_left_in_a_turn() -> None:
    world = World(Config(turn=HOUR), Script(max_session_s=60, answer=voice(12)))
    asked(world)
    world.run(until=lambda: world.now > world.dials[0] + 51)
    while world.core.state is not TurnState.IDLE:
        if world.core.state is not TurnState.LISTENING:
            assert world.core.link.state is LinkState.UP
        world.run(0.1)


def test_who_talks_on_and_on_gets_the_new_session_in_a_pause_and_loses_no_word() -> None:
    world = World(Config(turn=HOUR), Script(max_session_s=120, answer=voice(2)))
    asked(world)
    said = 0
    while world.now < world.dials[0] + 300:
        world.until_state(TurnState.LISTENING)
        question, before = voice(1.2, seed=50 + said), len(world.sent)
        world.say(question, world.now + 0.4)
        world.until_state(TurnState.SPEAKING)
        del world.sent[: before - 20]  # or it is searched through again and again
        assert find(question, world.appended()) >= 0
        said += 1
    assert len(world.dials) >= 3
    assert not [note for note in world.notes if note.name == "link-lost"]
    assert len([n for n in world.notes if n.name == "told"]) == len(world.dials) - 1


@pytest.mark.parametrize("answer", ["silence", "failure", "nonsense"])
def test_without_a_summary_the_next_session_is_told_what_was_heard(answer: str) -> None:
    world = aged()

    def spoil(event: dict[str, Any]) -> dict[str, Any] | None:
        response = event.get("response", {})
        aside = response.get("conversation_id", "") is None or "output_text" in event["type"]
        if not aside or answer == "silence":
            return None if aside else event
        if answer == "failure":
            return event if "output_text" not in event["type"] else None
        return {**event, "text": 7} if "text" in event else event

    world.filter = spoil
    world.run(700, until=lambda: world.core._up.session.old)
    asked_at = world.now
    world.run(700, until=lambda: world.core.link.state is LinkState.DOWN)
    assert world.now - asked_at <= SUMMARY_S + 1
    world.filter = lambda event: event
    (text,) = told(again(world))
    assert "You: Part 1 of 1" in text


def test_a_session_that_expires_all_the_same_is_replaced_at_once() -> None:
    """In the middle of the longest answer: 1001 is no end of anything."""
    world = World(Config(turn=HOUR), Script(max_session_s=60, answer=voice(90)))
    asked(world)
    world.run(60)
    assert world.core.state is TurnState.SPEAKING
    world.until_state(TurnState.LISTENING)
    assert len(world.dials) == 2
    assert "network" not in [name for _, name in world.chimes]


# --- forgetting ----------------------------------------------------------------------------


def test_after_the_configured_minutes_all_is_forgotten() -> None:
    world = to_idle(asked(World(Config(memory=Memory(minutes=5)))))
    world.run(4 * 60)
    assert world.core.continuity.memory
    world.run(70)
    assert not world.core.continuity.memory
    assert told(again(world)) == []


def test_a_session_that_is_still_there_is_forgotten_with_it() -> None:
    world = to_idle(asked(World(Config(turn=HOUR, memory=Memory(minutes=5)))))
    assert world.core.link.state is LinkState.UP
    world.run(6 * 60)
    assert world.core.link.state is LinkState.DOWN


def test_a_talk_that_goes_on_is_not_forgotten_in_the_middle() -> None:
    world = World(Config(memory=Memory(minutes=0.2)), Script(answer=voice(30)))
    asked(world)
    world.run(20)
    assert world.core.continuity.memory


def test_who_wants_no_memory_begins_each_session_anew() -> None:
    world = to_idle(asked(World(Config(memory=Memory(minutes=0)))))
    assert not world.core.continuity.memory
    world.drop_link()
    assert told(again(world)) == []


@pytest.mark.parametrize("state", [TurnState.IDLE, TurnState.SPEAKING, TurnState.LISTENING])
def test_a_new_conversation_on_request(state: TurnState) -> None:
    world = asked(World()).until_state(state)
    world.command("forget")
    world.run(1)
    assert world.replies[-1].ok
    assert world.core.state is TurnState.IDLE
    assert world.core.link.state is LinkState.DOWN
    assert told(again(world)) == []


# --- over a restart ------------------------------------------------------------------------

KEPT = Config(memory=Memory(kept=True))


def test_nothing_is_written_down_unless_it_is_wanted() -> None:
    world = to_idle(asked(World()))
    world.run(700)
    assert set(world.kept) <= {None}


def test_what_is_to_be_kept_is_written_once_a_conversation() -> None:
    world = to_idle(asked(World(KEPT)))
    assert len(world.kept) == 1
    world.run(60)
    assert len(world.kept) == 1
    world.run(600)
    assert world.kept[1:] == [None]  # and erased when it is forgotten


def restarted(text: bytes, age_s: float, config: Config = KEPT) -> Conversation:
    core = Conversation(config, random.Random(1), now=50.0)
    core.continuity.load(text, age_s)
    return core


def test_a_restart_goes_on_where_it_was() -> None:
    world = to_idle(asked(World(KEPT)))
    core = restarted(world.kept[0] or b"", age_s=60)
    assert core.continuity.memory.recall() == world.core.continuity.memory.recall()
    core.handle(Tick(50 + 9 * 60 + 1))
    assert not core.continuity.memory  # ten minutes, one of which it was away


@pytest.mark.parametrize("age_s", [600.0, 1e9])
def test_what_is_too_old_after_a_restart_is_erased(age_s: float) -> None:
    world = to_idle(asked(World(KEPT)))
    core = restarted(world.kept[0] or b"", age_s)
    assert not core.continuity.memory
    assert KeepConversation(None) in core.handle(Tick(50.0))


def test_an_age_below_zero_is_that_of_a_wrong_clock_and_counts_as_none() -> None:
    world = to_idle(asked(World(KEPT)))
    assert restarted(world.kept[0] or b"", -1e6).continuity.memory


def test_what_is_forgotten_in_mid_talk_is_not_written_first() -> None:
    world = asked(World(KEPT))
    world.until_state(TurnState.SPEAKING)
    world.command("forget")
    world.run(1)
    assert world.kept == [None]


def test_keeping_that_is_switched_off_erases_what_was_kept() -> None:
    world = to_idle(asked(World(KEPT)))
    world.give(Reconfigured(Config(), world.now))
    assert world.kept[-1] is None
    assert world.core.continuity.memory  # until the minutes are over


# --- the server's clock --------------------------------------------------------------------


def test_the_built_in_server_tells_the_time_of_which_its_limits_are() -> None:
    world = asked(World(script=Script(max_session_s=600)))
    created = next(e for _, e in world.received if e["type"] == "session.created")
    assert created["session"]["expires_at"] == UNIX_S + 600
