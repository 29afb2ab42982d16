"""Opening devices: what is asked of ALSA, and what is refused of what it grants.

pyalsaaudio never refuses by itself, so a pretended card shows what a real one may grant.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import alsaaudio
import pytest

from voiced.edge import pcm as pcms
from voiced.edge.pcm import DeviceError
from voiced.sim.rig import Rig

ASKED = "plughw:CARD=Test,DEV=0"


class Card:
    """A PCM that grants what it likes; `calls` are those made on it."""

    def __init__(self, kind: int, mode: int, granted: dict[str, Any], asked: dict[str, Any]):
        self.kind, self.mode, self.asked = kind, mode, asked
        self.calls: list[str] = []
        self.failing: set[str] = set()
        self._granted = granted

    def info(self) -> dict[str, Any]:
        wanted = {"rate": self.asked["rate"], "channels": self.asked["channels"]}
        names = {number: name for name, number in pcms.FORMATS.items()}
        return {**wanted, "format_name": names[self.asked["format"]], **self._granted}

    def drop(self) -> None:
        self._call("drop")

    def close(self) -> None:
        self._call("close")

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if name in self.failing:
            raise alsaaudio.ALSAAudioError("File descriptor in bad state [test]")


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> tuple[list[Card], dict[str, Any]]:
    """The cards opened in a test, and what they grant instead of what is asked."""
    opened: list[Card] = []
    granted: dict[str, Any] = {}

    def open_card(kind: int, mode: int, **asked: Any) -> Card:
        opened.append(Card(kind, mode, granted, asked))
        return opened[-1]

    monkeypatch.setattr(alsaaudio, "PCM", open_card)
    return opened, granted


Cards = tuple[list[Card], dict[str, Any]]


def test_a_microphone_is_asked_for_20_ms_periods_and_waited_on(cards: Cards) -> None:
    card = pcms.open_capture(ASKED, 16_000, 6)
    assert (card.kind, card.mode) == (alsaaudio.PCM_CAPTURE, alsaaudio.PCM_NORMAL)
    assert card.asked == {
        "device": ASKED,
        "rate": 16_000,
        "channels": 6,
        "format": alsaaudio.PCM_FORMAT_S16_LE,
        "periodsize": 320,
        "periods": 50,
    }
    assert card.calls == []


@pytest.mark.parametrize("name", pcms.FORMATS)
def test_a_microphone_is_asked_for_its_format(cards: Cards, name: str) -> None:
    card = pcms.open_capture(ASKED, 48_000, 2, name)
    assert card.asked["format"] == getattr(alsaaudio, f"PCM_FORMAT_{name}")
    assert card.calls == []


def test_a_microphone_of_16_bits_is_not_taken_for_one_of_24(cards: Cards) -> None:
    cards[1]["format_name"] = "S16_LE"
    with pytest.raises(DeviceError, match='Set microphone.format = "S16_LE"'):
        pcms.open_capture(ASKED, 48_000, 2, "S24_3LE")


def test_a_speaker_is_asked_for_mono_and_120_ms_and_never_waited_on(cards: Cards) -> None:
    card, channels = pcms.open_playback(ASKED, 48_000)
    assert (card.kind, card.mode) == (alsaaudio.PCM_PLAYBACK, alsaaudio.PCM_NONBLOCK)
    assert (card.asked["channels"], channels) == (1, 1)
    assert card.asked["periodsize"] * card.asked["periods"] == 48_000 * 0.12


def test_a_speaker_that_only_does_stereo_gives_that(cards: Cards) -> None:
    cards[1]["channels"] = 2
    assert pcms.open_playback(ASKED, 48_000)[1] == 2


@pytest.mark.parametrize(
    ("granted", "told"),
    [
        ({"rate": 44_100}, "does 44100 Hz, not 48000. Set microphone.rate = 44100, or use plughw:"),
        ({"channels": 6}, "has 6 channel(s), not 2. Set microphone.channels = 6"),
        ({"channels": 1}, "has 1 channel(s), not 2. Set microphone.channels = 1"),
        (
            {"format_name": "S32_LE"},
            'does S32_LE, not S16_LE. Set microphone.format = "S32_LE", or use plughw:',
        ),
        ({"format_name": "FLOAT_LE"}, "does FLOAT_LE, not S16_LE. Use plughw: instead of hw:"),
    ],
)
def test_a_microphone_that_grants_something_else_is_refused(
    cards: Cards, granted: dict[str, Any], told: str
) -> None:
    cards[1].update(granted)
    with pytest.raises(DeviceError) as caught:
        pcms.open_capture(ASKED, 48_000, 2)
    assert caught.value.fault == "microphone-wrong"
    assert str(caught.value).startswith(f"{ASKED}: {told}")
    assert cards[0][0].calls == ["drop", "close"]


@pytest.mark.parametrize(
    ("granted", "told"),
    [
        ({"rate": 44_100}, "does 44100 Hz, not 48000. Set speaker.rate = 44100, or use plughw:"),
        ({"channels": 8}, "wants 8 channels. Use plughw: instead of hw:"),
        ({"format_name": "S24_3LE"}, "does S24_3LE, not S16_LE. Use plughw: instead of hw:"),
    ],
)
def test_a_speaker_that_grants_something_else_is_refused(
    cards: Cards, granted: dict[str, Any], told: str
) -> None:
    cards[1].update(granted)
    with pytest.raises(DeviceError) as caught:
        pcms.open_playback(ASKED, 48_000)
    assert caught.value.fault == "speaker-wrong"
    assert str(caught.value).startswith(f"{ASKED}: {told}")
    assert cards[0][0].calls == ["drop", "close"]


@pytest.mark.parametrize(
    ("error", "fault", "told"),
    [
        ("Device or resource busy", "busy", "another program holds it: fuser"),
        ("Permission denied", "lost", "the user must be in the group audio"),
        ("No such file or directory", "lost", "is it plugged in? `arecord -l`"),
        ("No such device", "lost", "see microphone.device"),
    ],
)
def test_a_card_that_does_not_open_is_a_fault_and_the_remedy_is_told(
    monkeypatch: pytest.MonkeyPatch, error: str, fault: str, told: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise alsaaudio.ALSAAudioError(f"{error} [{ASKED}]")

    monkeypatch.setattr(alsaaudio, "PCM", fail)
    with pytest.raises(DeviceError) as caught:
        pcms.open_capture(ASKED, 48_000, 1)
    assert caught.value.fault == f"microphone-{fault}"
    assert str(caught.value).startswith(f"{ASKED}: {error}: ")
    assert told in str(caught.value)
    with pytest.raises(DeviceError) as caught:
        pcms.open_playback(ASKED, 48_000)
    assert caught.value.fault == f"speaker-{fault}"


@pytest.mark.parametrize("failing", [set(), {"drop"}, {"close"}, {"drop", "close"}])
def test_closing_drops_first_and_survives_a_card_that_is_gone(
    cards: Cards, failing: set[str]
) -> None:
    card = pcms.open_capture(ASKED, 48_000, 1)
    card.failing = failing
    pcms.close(card)
    pcms.close(card)
    assert card.calls == ["drop", "close"] * 2


def test_the_rigs_devices_open_as_asked(rig: Rig) -> None:
    microphone = pcms.open_capture(rig.microphone, 48_000, 1)
    try:
        info = microphone.info()
        assert (info["rate"], info["channels"], info["period_size"]) == (48_000, 1, 960)
    finally:
        pcms.close(microphone)
    speaker, channels = pcms.open_playback(rig.speaker, 48_000)
    try:
        assert channels == speaker.info()["channels"] == 1
        assert speaker.info()["buffer_size"] == 48_000 * 0.12
    finally:
        pcms.close(speaker)
        pcms.close(speaker)


def test_a_name_alsa_does_not_know(rig: Rig) -> None:
    with pytest.raises(DeviceError, match=r"^rig_nothing: .*aplay -l.*speaker\.device"):
        pcms.open_playback("rig_nothing", 48_000)


def test_a_name_that_comes_into_alsas_configuration_later_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with asound.conf, and with the names that a card brings along when it is plugged in."""
    config, late = tmp_path / "asound.conf", tmp_path / "late.conf"
    config.write_text(f"</usr/share/alsa/alsa.conf>\n<{late}>\n")
    late.write_text("")
    monkeypatch.setenv("ALSA_CONFIG_PATH", str(config))
    with pytest.raises(DeviceError, match="No such file or directory"):
        pcms.open_capture("late", 24_000, 1)
    late.write_text("pcm.late { type null }\n")
    pcms.close(pcms.open_capture("late", 24_000, 1))


def test_a_device_that_is_not_there_is_an_error_and_no_line_on_stderr(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(DeviceError, match="No such"):
        pcms.open_playback(ASKED, 48_000)
    assert capfd.readouterr() == ("", "")
