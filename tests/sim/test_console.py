import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from typing import Any

import alsaaudio
import pytest

from voiced.edge import pcm
from voiced.edge.pcm import DeviceError
from voiced.sim import console
from voiced.sim.console import State, Style, find_cards, main, render

PLAIN = Style(colour=False)
START_S = 30.0  # two processes that import, and a sound server, beside other work

SNAPSHOT: dict[str, Any] = {
    "turn": "hearing",
    "link": "up",
    "light": "hearing",
    "muted": False,
    "faults": [],
    "tokens": {"input": 1, "output": 2, "total": 3},
    "counters": {"turns": 7},
    "level_dbfs": -20.0,
    "floor_dbfs": -60.0,
    "threshold_dbfs": -40.0,
    "gate_open": True,
    "said_s": 1.26,
    "sent_s": 2.0,
    "heard_s": 3.0,
}


def a_state(**changes: Any) -> State:
    state = State("a card", "built-in", can_say=True, light=(0.6, 0.6, 0.6))
    state.take({"version": 1, "snapshot": SNAPSHOT | changes}, 0.0)
    return state


def picture(state: State, width: int = 80, height: int = 24) -> str:
    return "\n".join(render(state, width, height, PLAIN))


def turn(before: str, after: str, t: float) -> dict[str, Any]:
    return {"event": "turn", "t": t, "text": "", "before": before, "turn": after, "cause": "x"}


# --- render ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "height"), [(80, 24), (40, 10), (200, 60), (10, 3), (1, 1)])
def test_the_picture_fits_whatever_the_terminal(width: int, height: int) -> None:
    state = a_state()
    for number in range(200):
        state.take({"event": "press", "t": float(number), "text": "press " * 50}, 0.0)
    lines = render(state, width, height, PLAIN)
    assert len(lines) <= height
    assert max(map(len, lines)) <= width


def test_on_80_by_24_everything_is_said() -> None:
    text = picture(a_state())
    for said in ("HEARING", "white", "-20.0 dB", "gate open", "said 1.3 s", "sent 2.0 s"):
        assert said in text
    assert "heard 3.0 s" in text
    assert "x quit" in text.splitlines()[-1]


def test_before_the_first_snapshot_there_is_a_picture_too() -> None:
    assert "STARTING" in picture(State("a card", "built-in", can_say=False))


def test_the_meter_stands_at_the_level_with_floor_and_threshold_under_it() -> None:
    lines = picture(a_state()).splitlines()
    at = next(i for i, line in enumerate(lines) if "mic" in line)
    bar, marks = lines[at], lines[at + 1]
    begin, end = bar.index("│") + 1, bar.rindex("│")
    assert bar.count("█") / (end - begin) == pytest.approx(0.75, abs=0.02)  # -20 of -80..0
    assert (marks.index("f") - begin) / (end - begin) == pytest.approx(0.25, abs=0.02)
    assert (marks.index("t") - begin) / (end - begin) == pytest.approx(0.5, abs=0.02)


def test_a_level_off_the_scale_stays_in_the_bar() -> None:
    loud, silent = a_state(level_dbfs=6.0, threshold_dbfs=3.0), a_state(level_dbfs=-120.0)
    bar = next(line for line in picture(loud).splitlines() if "mic" in line)
    assert "░" not in bar
    bar = next(line for line in picture(silent).splitlines() if "mic" in line)
    assert "█" not in bar


@pytest.mark.parametrize(
    ("light", "name"),
    [
        (None, "dark"),
        ((0.0, 0.0, 0.0), "dark"),
        ((0.6, 0.6, 0.6), "white"),
        ((0.0, 0.2, 1.0), "blue"),
        ((0.0, 0.9, 0.2), "green"),
        ((1.0, 0.5, 0.0), "amber"),
        ((0.3, 0.15, 0.0), "amber"),
        ((1.0, 0.0, 0.0), "red"),
    ],
)
def test_the_light_is_what_the_pins_say_not_what_the_daemon_says(light: Any, name: str) -> None:
    state = a_state(light="speaking", level_dbfs=None)
    state.light = light
    text = picture(state)
    assert f"light  {name}  (pattern: speaking)" in text
    assert ("█" in text) == (name != "dark")


def test_the_lit_block_has_the_colour_of_the_pins() -> None:
    state = a_state()
    state.light = (0.0, 0.2, 1.0)
    assert "\x1b[38;2;0;51;255m████" in "\n".join(render(state, 80, 24))


def test_colours_do_not_change_the_text() -> None:
    state = a_state(muted=True)
    coloured = "\n".join(render(state, 80, 24))
    assert "\x1b[" in coloured
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == picture(state)


def test_a_terminal_without_colours_and_unicode_gets_plain_ascii() -> None:
    text = "\n".join(render(a_state(), 80, 24, Style(colour=False, unicode=False)))
    assert text.isascii()
    assert "\x1b" not in text


def test_mute_fault_and_a_held_button_are_seen() -> None:
    fault = {"fault": "speaker-lost", "detail": "unplugged", "remedy": "plug it in"}
    state = a_state(muted=True, faults=[fault])
    state.holding = True
    text = picture(state)
    assert "muted  YES" in text
    assert "speaker-lost: unplugged" in text
    assert "(held)" in text


def test_the_key_for_the_question_is_offered_only_where_it_works() -> None:
    state = a_state()
    assert "s say" in picture(state)
    state.can_say = False
    assert "s say" not in picture(state)


# --- State -----------------------------------------------------------------------------------


def test_delays_come_from_the_times_of_the_events() -> None:
    state = a_state(turn="idle")
    state.pressed(10.0)
    state.shine((0.0, 0.0, 0.0), 10.001)  # still dark
    state.shine((0.0, 0.2, 1.0), 10.002)
    state.shine((0.0, 0.05, 0.25), 10.3)  # blinks on: not the first light
    state.take(turn("listening", "hearing", 11.0), 11.0)
    state.take({"snapshot": SNAPSHOT}, 11.0)
    loud, soft = {"level_dbfs": -20.0}, {"level_dbfs": -70.0}
    state.take({"meter": loud}, 12.0)
    state.take({"meter": soft}, 12.5)
    state.take(turn("hearing", "thinking", 12.6), 12.6)
    state.take(turn("thinking", "speaking", 12.9), 12.9)
    flushed = {"event": "flushed", "t": 13.0, "text": "", "cause_at": 13.0, "dropped_at": 13.0015}
    state.take(flushed, 13.1)
    delays = state.delays
    assert delays.light_ms == pytest.approx(2)
    assert delays.thinking_ms == pytest.approx(600)
    assert delays.speaking_ms == pytest.approx(300)
    assert delays.silent_ms == pytest.approx(1.5)
    text = picture(state)
    assert "about   600 ms" in text
    assert "1.5 ms" in text


def test_a_new_turn_does_not_show_the_delays_of_the_last() -> None:
    state = a_state()
    state.take({"meter": {"level_dbfs": -20.0}}, 1.0)
    state.take(turn("hearing", "thinking", 1.6), 1.6)
    state.take(turn("listening", "hearing", 5.0), 5.0)
    assert state.delays.thinking_ms is None


def test_muted_there_is_no_level_and_no_speech() -> None:
    state = a_state(level_dbfs=None, threshold_dbfs=None)
    state.take({"meter": {"level_dbfs": None}}, 1.0)
    assert "--" in picture(state)


def test_a_refused_command_is_shown_with_its_reason() -> None:
    state = a_state()
    state.take({"ok": False, "text": "nothing to interrupt: idle"}, 0.0)
    assert "refused: nothing to interrupt: idle" in picture(state)


def test_events_are_kept_in_bounds() -> None:
    state = a_state()
    for _ in range(10 * console.EVENTS_KEPT):
        state.take({"event": "press", "t": 0.0, "text": "press"}, 0.0)
    assert len(state.events) == console.EVENTS_KEPT


# --- the sound card --------------------------------------------------------------------------


class _Pcm:
    def drop(self) -> None: ...
    def close(self) -> None: ...


def fake_cards(monkeypatch: pytest.MonkeyPatch, capture: str, playback: str) -> None:
    def opens(which: str) -> Any:
        def open_it(device: str, *_: int) -> Any:
            if which not in device:
                raise DeviceError("microphone-lost", "no")
            return _Pcm()

        return open_it

    monkeypatch.setattr(alsaaudio, "cards", lambda: ["HDMI", "Array", "Headphones"])
    monkeypatch.setattr(pcm, "open_capture", opens(capture))
    monkeypatch.setattr(pcm, "open_playback", lambda *a: (opens(playback)(*a), 2))


def test_a_microphone_and_a_speaker_may_be_two_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cards(monkeypatch, "Array", "Headphones")
    assert find_cards() == ("plughw:CARD=Array,DEV=0", "plughw:CARD=Headphones,DEV=0")


def test_a_card_that_only_plays_is_not_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cards(monkeypatch, "none", "Headphones")
    assert find_cards() is None


# --- the program -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "argv", [[], ["--key-file", "k"], ["--url", "wss://a/", "--answer", "b.wav"]]
)
def test_without_a_terminal_or_with_options_that_do_not_go_together_it_is_a_usage_error(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(argv)
    assert exit_.value.code == 2
    assert "console: error:" in capsys.readouterr().err


class Terminal:
    """The program on a pseudo-terminal."""

    def __init__(self) -> None:
        self.fd, self._inner = pty.openpty()
        termios.tcsetwinsize(self.fd, (24, 80))
        self.modes = termios.tcgetattr(self._inner)
        self.shown = ""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "voiced.sim.console"],
            stdin=self._inner,
            stdout=self._inner,
            stderr=self._inner,
            start_new_session=True,
            env={**os.environ, "TERM": "xterm", "LC_ALL": "C.UTF-8"},
        )

    def type(self, keys: str) -> None:
        os.write(self.fd, keys.encode())

    def wait_for(self, pattern: str) -> None:
        deadline = time.monotonic() + START_S
        while not re.search(pattern, self.shown):
            assert time.monotonic() < deadline, self.shown[-3000:]
            self.read()

    def read(self) -> None:
        if select.select([self.fd], [], [], 0.1)[0]:
            self.shown += os.read(self.fd, 65536).decode(errors="replace")

    def end(self) -> int:
        deadline = time.monotonic() + START_S
        while self.process.poll() is None:
            assert time.monotonic() < deadline, self.shown[-3000:]
            self.read()
        self.read()
        return self.process.returncode

    def is_restored(self) -> bool:
        return (
            termios.tcgetattr(self._inner) == self.modes
            and self.shown.count("\x1b[?1049h") == self.shown.count("\x1b[?1049l") == 1
        )

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(START_S)
        os.close(self.fd)
        os.close(self._inner)


@pytest.mark.skipif(bool(alsaaudio.cards()), reason="a real card hears the room")
@pytest.mark.timeout(120)
def test_a_question_is_asked_and_answered_at_a_terminal() -> None:
    terminal = Terminal()
    try:
        terminal.wait_for("IDLE")
        terminal.type(" s")
        terminal.wait_for("SPEAKING")
        terminal.wait_for("green")
        terminal.type("m")
        terminal.wait_for("muted  YES")
        terminal.type("\x1b[A")  # an arrow ends nothing
        terminal.type("x")
        assert terminal.end() == 0
        assert terminal.is_restored()
    finally:
        terminal.close()


@pytest.mark.skipif(bool(alsaaudio.cards()), reason="a real card may be in use")
@pytest.mark.timeout(120)
def test_a_terminated_trial_gives_the_terminal_back() -> None:
    terminal = Terminal()
    try:
        terminal.wait_for("IDLE")
        terminal.process.send_signal(signal.SIGTERM)
        assert terminal.end() == 128 + signal.SIGTERM
        assert terminal.is_restored()
    finally:
        terminal.close()
