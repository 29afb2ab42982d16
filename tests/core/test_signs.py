"""Whoever is in front of it sees and hears how things stand."""

import pytest

from tests.core.world import APPEND, QUESTION, World, asked, tapped, voice
from voiced.config import Config, Sounds
from voiced.core.turn import TurnState
from voiced.events import ButtonEdge, DeviceBack, DeviceFault, Hush, KeyState

# --- lights ------------------------------------------------------------------------------


def test_the_light_is_on_before_the_first_append() -> None:
    world = asked(World())
    lit = next(t for t, name in world.lights if name != "dark")
    assert lit <= world.first_append_at()


def test_nothing_is_sent_if_the_light_does_not_come_on() -> None:
    world = World()
    world.run(4)
    world.lights_work = False
    world.tap(105.0)
    world.say(QUESTION, 105.2)
    world.run(4)
    assert world.events(APPEND) == []


def test_lights_that_fail_in_a_turn_end_it_and_refuse_the_next_press() -> None:
    world = tapped(World())
    world.say(voice(5), 105.2)
    world.until_state(TurnState.HEARING)
    world.give(DeviceFault("lights", "lights-lost", "GPIO27", world.now))
    sent = len(world.events(APPEND))
    world.run(2)
    assert world.core.state is TurnState.IDLE
    assert len(world.events(APPEND)) == sent
    world.tap()
    world.run(1)
    assert world.core.state is TurnState.IDLE


def test_a_muted_press_is_refused_with_a_light() -> None:
    world = tapped(World(muted=True))
    world.say(QUESTION, 105.2)
    world.run(5)
    assert world.sent == []
    assert [name for _, name in world.lights][-3:] == ["muted", "refused", "muted"]


# --- sounds ------------------------------------------------------------------------------


def test_a_press_on_a_button_that_is_held_elsewhere_gets_a_sign() -> None:
    world = World()
    world.run(4)
    world.press(105.0)
    world.press(106.0)
    world.run(2.1)
    assert [reply.ok for reply in world.replies] == []
    assert "refused" in [n.name for n in world.notes]


def test_a_tap_and_nothing_said_ends_with_a_sound() -> None:
    world = tapped(World())
    world.run(2).until_state(TurnState.IDLE)
    assert [name for _, name in world.chimes] == ["listening", "nothing-said"]
    assert len(world.appended()) == 0


def test_no_sound_of_ours_gets_into_the_words_of_who_speaks_already() -> None:
    world = World()
    world.run(4)
    world.say(QUESTION, 104.9)
    world.tap(105.0)
    world.until_state(TurnState.THINKING)
    assert [name for _, name in world.chimes] == ["sent"]


def test_a_held_turn_is_free_of_sounds_until_it_is_sent() -> None:
    world = asked(World(), hold=True)
    assert [name for _, name in world.chimes] == ["sent"]
    assert world.chimes[0][0] > 105 + 1.9


def test_sounds_can_be_switched_off() -> None:
    world = asked(World(Config(sounds=Sounds(enabled=False))))
    world.command("hangup")
    world.run(1)
    assert world.chimes == []


@pytest.mark.parametrize("fault", ["key-missing", "key-refused"])
def test_a_refused_press_is_told_in_words_what_is_wrong(fault: str) -> None:
    world = World()
    world.give(KeyState(fault, world.now, "no key"))
    world.run(1)
    world.tap()
    world.run(1)
    assert [name for _, name in world.chimes] == [fault]


def test_a_light_that_fails_in_a_turn_sounds() -> None:
    world = World()
    world.run(4)
    world.press(105.0)
    world.run(until=lambda: world.now > 105.6)
    world.give(DeviceFault("lights", "lights-lost", "pin 27", world.now))
    assert world.chimes[-1][1] == "lights-lost"


def test_hanging_up_says_goodbye_but_never_behind_an_answer_that_is_cut() -> None:
    world = asked(World())
    world.command("hangup")
    world.run(1)
    assert [name for _, name in world.chimes] == ["listening", "sent"]
    world.tap(world.now)
    world.run(1)
    world.command("hangup")
    world.run(1)
    assert world.chimes[-1][1] == "goodbye"


def test_a_press_breaks_off_what_is_being_said() -> None:
    world = World()
    world.give(DeviceFault("microphone", "microphone-lost", "gone", world.now))
    world.run(4)
    world.tap()
    world.run(0.3)
    assert world.chimes[-1][1] == "microphone-lost"
    world.give(DeviceBack("microphone", world.now))
    effects = world.core.handle(ButtonEdge(True, world.now))
    assert any(isinstance(effect, Hush) for effect in effects)
