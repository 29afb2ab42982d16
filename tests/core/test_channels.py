"""Scenes of seconds: a quiet room, somebody who talks, ourselves; and what is made of them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from voiced.config import Microphone
from voiced.core.channels import (
    CHANNEL_S,
    CLIPPED_S,
    DEAD_S,
    OWN_SOUND_S,
    REVIVED_S,
    SILENT_S,
    UNCLIPPED_S,
    Channels,
)
from voiced.events import ChannelLevel, ChannelLevels

ZERO = ChannelLevel(-120.0, -120.0, 0, True)
STUCK = ChannelLevel(-120.0, -52.6, 0, True)
UNPLUGGED = ChannelLevel(-118.0, -112.0, 0, False)

Scene = Iterable[float | ChannelLevel]


def level(rms_dbfs: float, clipped: int = 0) -> ChannelLevel:
    return ChannelLevel(rms_dbfs, min(0.0, rms_dbfs + 14), clipped, False)


class Watch:
    """Channels, and how often a finding came or went."""

    def __init__(self, channels: int = 1, **more: Any) -> None:
        self.channels = Channels(Microphone(channels=channels, **more))
        self.changes = 0
        self.at = 0.0

    def hear(self, scene: Scene, seconds: int = 1, *, own: bool = False) -> set[str]:
        """The same second over and over; the names of what is found after it."""
        for _ in range(seconds):
            before = set(self.channels.findings)
            levels = tuple(level(x) if isinstance(x, float) else x for x in scene)
            self.at += 1.0
            self.channels.hear(ChannelLevels(levels, own, self.at))
            self.changes += before != set(self.channels.findings)
        return set(self.channels.findings)

    def first(self, scene: Scene, name: str, most: int = 100, *, own: bool = False) -> int:
        """How many seconds of this until it is found."""
        for second in range(1, most + 1):
            if name in self.hear(scene, own=own):
                return second
        raise AssertionError(f"{name} was never found")

    def over(self, scene: Scene, name: str, most: int = 100, *, own: bool = False) -> int:
        for second in range(1, most + 1):
            if name not in self.hear(scene, own=own):
                return second
        raise AssertionError(f"{name} was never over")

    def text(self, name: str) -> str:
        return self.channels.findings[name]


# --- dead ------------------------------------------------------------------------------------


@pytest.mark.parametrize("silence", [ZERO, STUCK])
def test_a_microphone_that_never_changes_is_dead_after_a_minute(silence: ChannelLevel) -> None:
    watch = Watch()
    watch.hear([-70.0], 10)
    assert watch.first([silence], "microphone-dead") == SILENT_S == 60
    assert "channel 0" in watch.text("microphone-dead")
    assert "cable" in watch.text("microphone-dead")


def test_a_revived_microphone_is_no_longer_dead() -> None:
    watch = Watch()
    watch.hear([ZERO], 2 * SILENT_S)
    assert watch.over([-70.0], "microphone-dead") == REVIVED_S
    assert watch.changes == 2


@pytest.mark.parametrize("dbfs", [-70.0, -91.0, -105.0])
def test_a_quiet_microphone_alone_is_not_dead(dbfs: float) -> None:
    assert Watch().hear([dbfs], 600) == set()


def test_a_channel_without_a_capsule_is_dead_beside_one_that_is_alive() -> None:
    watch = Watch(4, use=2)
    assert watch.first([-66.0, -68.0, UNPLUGGED, -67.0], "microphone-dead") == DEAD_S
    assert "channel 2" in watch.text("microphone-dead")
    assert "set microphone.use = 0" in watch.text("microphone-dead")


def test_channels_that_are_not_used_may_be_dead() -> None:
    assert Watch(3, use=1).hear([ZERO, -70.0, ZERO], 100) == set()


def test_a_dead_channel_in_a_mix_is_to_be_left_out() -> None:
    watch = Watch(3, use=[0, 2])
    watch.hear([-70.0, -70.0, ZERO], 10)
    assert "take 2 out of microphone.use" in watch.text("microphone-dead")


def test_a_processed_channel_may_be_silent_while_nobody_speaks() -> None:
    watch = Watch(3, use=0, echo="hardware")
    assert watch.hear([ZERO, -70.0, -70.0], 3_600) == set()
    assert watch.hear([-30.0, -40.0, -40.0], 10) == set()
    assert watch.first([ZERO, -40.0, -40.0], "microphone-dead") == DEAD_S


def test_a_speakerphone_may_be_silent_for_a_minute() -> None:
    assert Watch(echo="hardware").first([ZERO], "microphone-dead") == SILENT_S


@pytest.mark.parametrize(("dead_s", "alive_s"), [(1, 1), (4, 1), (4, 2), (3, 2), (2, 5)])
def test_a_flickering_channel_is_found_once_or_never(dead_s: int, alive_s: int) -> None:
    watch = Watch()
    for _ in range(300):
        watch.hear([ZERO], dead_s)
        watch.hear([-70.0], alive_s)
    assert watch.changes <= 1


# --- the wrong channel -----------------------------------------------------------------------


def test_a_channel_that_does_not_hear_what_another_hears_is_the_wrong_one() -> None:
    watch = Watch(2, use=1)
    assert watch.hear([-70.0, -72.0], 30) == set()
    assert watch.first([-35.0, -71.0], "microphone-channel") == CHANNEL_S
    assert "set microphone.use = 0" in watch.text("microphone-channel")
    watch.hear([-70.0, -72.0], 600)
    assert watch.changes == 1  # silence is no evidence of anything
    assert watch.over([-70.0, -35.0], "microphone-channel") == CHANNEL_S


def test_crosstalk_is_not_hearing() -> None:
    watch = Watch(2, use=1)
    watch.hear([-70.0, -75.0], 5)
    watch.first([-30.0, -68.0], "microphone-channel")  # 40 dB less: what leaks between two wires


def test_a_raw_channel_is_quieter_than_the_processed_one_and_hears_as_well() -> None:
    watch = Watch(2, use=1)
    watch.hear([-70.0, -88.0], 30)
    assert watch.hear([-28.0, -55.0], 600) == set()


def test_a_noise_that_only_another_channel_has_all_the_time_is_not_heard() -> None:
    watch = Watch(2, use=0)
    assert watch.hear([-70.0, -30.0], 600) == set()


def test_a_channel_that_wakes_from_digital_silence_has_not_heard_anything_yet() -> None:
    watch = Watch(2, use=1)
    watch.hear([UNPLUGGED, -95.9], 5)
    assert watch.hear([-75.5, -95.9], 60) == set()


def test_who_talks_nearer_to_another_capsule_is_no_proof() -> None:
    watch = Watch(4, use=3)
    watch.hear([-70.0] * 4, 5)
    assert watch.hear([-32.0, -36.0, -40.0, -44.0], 600) == set()


# --- our own sound ---------------------------------------------------------------------------


def test_the_loopback_of_our_playback_is_the_wrong_channel() -> None:
    watch = Watch(6, use=5)
    room = [-70.0, -69.0, -68.0, -68.0, -69.0]
    assert watch.hear([*room, ZERO], 10) == {"microphone-dead"}
    found = watch.first([*[-40.0] * 5, -20.0], "microphone-channel", own=True)
    assert found == OWN_SOUND_S
    assert "what we play" in watch.text("microphone-channel")
    assert "set microphone.use = 2" in watch.text("microphone-channel")
    assert watch.hear([*room, ZERO], 60) == {"microphone-channel"}


def test_a_microphone_that_hears_us_loudly_hears_others_too() -> None:
    watch = Watch(2, use=0)
    watch.hear([-70.0, -70.0], 10)
    assert watch.hear([-10.0, -30.0], 600, own=True) == set()


def test_our_own_sound_does_not_revive_a_dead_channel() -> None:
    watch = Watch(2, use=1)
    watch.hear([-70.0, ZERO], 10)
    assert watch.hear([-40.0, UNPLUGGED], 60, own=True) == {"microphone-dead"}


def array(use: int) -> Watch:
    """0 is processed, 1 to 4 are raw; a talker has been heard."""
    watch = Watch(5, use=use, echo="hardware")
    watch.hear([-75.0, *[-72.0] * 4], 20)
    watch.hear([-30.0, -42.0, -41.0, -43.0, -40.0], 10)
    return watch


def test_a_raw_channel_where_the_processed_one_is_meant_is_swapped() -> None:
    watch = array(use=1)
    we_play = [-60.0, -30.0, -29.0, -31.0, -28.0]
    assert watch.first(we_play, "microphone-channel", own=True) == CHANNEL_S
    assert "set microphone.use = 0" in watch.text("microphone-channel")


def test_the_processed_channel_is_the_right_one() -> None:
    assert array(use=0).hear([-60.0, -30.0, -29.0, -31.0, -28.0], 600, own=True) == set()


def test_who_talks_over_us_does_not_make_the_processed_channel_a_raw_one() -> None:
    watch = array(use=0)
    assert watch.hear([-28.0, -39.0, -39.0, -41.0, -38.0], 600, own=True) == set()


def test_a_speaker_that_no_channel_hears_proves_nothing() -> None:
    assert array(use=1).hear([-75.0, *[-71.0] * 4], 600, own=True) == set()


def test_without_a_hardware_canceller_every_channel_hears_us() -> None:
    watch = Watch(2, use=1)
    watch.hear([-75.0, -72.0], 20)
    watch.hear([-30.0, -42.0], 10)
    assert watch.hear([-60.0, -30.0], 600, own=True) == set()


# --- clipped ---------------------------------------------------------------------------------


def test_clipping_all_the_time_is_too_much_gain() -> None:
    watch = Watch()
    watch.hear([-50.0], 5)
    assert watch.first([level(-6.0, 400)], "microphone-clipped") == CLIPPED_S
    assert "capture volume" in watch.text("microphone-clipped")
    assert watch.hear([-50.0], 600) == {"microphone-clipped"}  # until somebody talks unclipped
    assert watch.over([-26.0], "microphone-clipped") == UNCLIPPED_S


def test_now_and_then_somebody_shouts() -> None:
    watch = Watch()
    watch.hear([-60.0], 5)
    for _ in range(50):
        assert watch.hear([level(-8.0, 200)], 3) == set()
        watch.hear([-25.0], 7)
        watch.hear([-60.0], 20)


def test_a_click_is_not_clipping() -> None:
    assert Watch().hear([level(-40.0, 3)], 600) == set()


def test_a_full_scale_hum_is_clipping_without_anybody_talking() -> None:
    assert Watch().hear([level(-1.0, 9_000)], CLIPPED_S) == {"microphone-clipped"}


# --- a day -----------------------------------------------------------------------------------

Spread = Callable[[float], list[float]]
"""How loud each channel hears a talker, or us, of a loudness."""

GOOD: list[tuple[dict[str, Any], Spread, Spread]] = [
    ({}, lambda talk: [talk], lambda own: [own]),
    (
        {"channels": 2, "use": [0, 1]},
        lambda talk: [talk, talk - 4],
        lambda own: [own, own + 3],
    ),
    (
        {"channels": 6, "use": 0, "echo": "hardware"},
        lambda talk: [talk + 12, *[talk] * 4, -120.0],
        lambda own: [own - 30, *[own] * 4, own + 10],
    ),
]


@pytest.mark.parametrize(("settings", "talk", "own"), GOOD)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_day_of_talk_noise_and_answers_finds_nothing(
    settings: dict[str, Any], talk: Spread, own: Spread, seed: int
) -> None:
    rng = random.Random(seed)
    watch = Watch(**settings)
    number = settings.get("channels", 1)

    def scene(heard: list[float]) -> list[float | ChannelLevel]:
        """What is heard over the room's own noise, each channel a little different."""
        room = rng.gauss(noise_dbfs, 1.0)
        levels = [max(x, room) + rng.gauss(0, 1.0) for x in heard]
        return [ZERO if x < -119 else level(y) for x, y in zip(heard, levels, strict=True)]

    for _ in range(300):
        noise_dbfs = rng.choice([-75.0, -60.0, -50.0])  # a fan goes on and off
        watch.hear(scene([-119.0] * number), rng.randrange(1, 40))
        for _ in range(rng.randrange(1, 8)):
            watch.hear(scene(talk(rng.gauss(-38, 6))))
        for _ in range(rng.randrange(1, 20)):
            watch.hear(scene(own(rng.gauss(-35, 4))), own=True)
        assert watch.channels.findings == {}


# --- what others read ------------------------------------------------------------------------


def test_the_meter_shows_the_last_second_in_json_types() -> None:
    watch = Watch(2)
    assert watch.channels.meter is None
    watch.hear([ChannelLevel(-61.234, -48.06, 7, False), ZERO])
    assert watch.channels.meter == [
        {"rms_dbfs": -61.2, "peak_dbfs": -48.1, "clipped": 7, "constant": False},
        {"rms_dbfs": -120.0, "peak_dbfs": -120.0, "clipped": 0, "constant": True},
    ]


def test_levels_of_another_configuration_are_not_looked_at() -> None:
    watch = Watch(2)
    assert watch.hear([ZERO], 20) == set()
    assert watch.channels.meter is None


def test_the_text_of_a_finding_stays_while_it_lasts() -> None:
    watch = Watch(2, use=1)
    watch.hear([-70.0, -72.0], 5)
    watch.first([-35.0, -71.0], "microphone-channel")
    text = watch.text("microphone-channel")
    watch.hear([-25.0, -71.0], 20)
    assert watch.text("microphone-channel") == text
