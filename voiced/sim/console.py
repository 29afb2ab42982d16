"""`python -m voiced.sim.console`: try the daemon at a terminal, with or without a sound card.

The daemon itself runs, on pins without a board and against the built-in server (or a real one).
What is drawn is what it tells at its control socket and what it puts on its pins. With a sound
card that records and plays you speak and hear; else a microphone and a speaker without hardware
take its place, and a key asks a recorded question.
"""

from __future__ import annotations

import argparse
import contextlib
import locale
import os
import re
import select
import shutil
import signal
import sys
import tempfile
import termios
import time
import tty
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import NamedTuple, NoReturn

import alsaaudio

from voiced.edge import pcm
from voiced.sim import stand
from voiced.sim.board import BoardError, Finger
from voiced.sim.rig import Rig, RigError
from voiced.sim.stand import BUTTON_PIN, LIGHT_PINS, QUESTION, Daemon, Server, StandError
from voiced.sim.streams import Mouth
from voiced.sim.wav import read_wav, to_rate
from voiced.voicectl import Connection, Message, NoDaemon, Refused, event_line

RATE = 48_000
"""The daemon's own default."""

TAP_S = 0.08
"""A quick finger. The drawing stands still meanwhile, which nobody sees."""

REDRAW_S = 0.1
METER_MS = 100
LOWEST_DBFS = -80
EVENTS_KEPT = 100
"""Older ones are forgotten; few are on the screen anyway."""

Colour = tuple[float, float, float]

_LONG_KEY = re.compile(r"\x1b[\[O][0-9;]*[A-Za-z~]")
"""Arrows and their like: they begin as Esc does."""


# --- What is known --------------------------------------------------------------------------


@dataclass
class Delays:
    """Of the last press, turn and cut, in ms; None: not come to pass. By the events' own times."""

    light_ms: float | None = None
    thinking_ms: float | None = None
    speaking_ms: float | None = None
    silent_ms: float | None = None


@dataclass
class State:
    """All that is drawn. `take` brings what the daemon says in."""

    sound: str
    """Which microphone and speaker, for the heading."""
    server: str
    can_say: bool
    """True if a key asks the question."""
    snapshot: Message = field(default_factory=dict)
    light: Colour | None = None
    """As the pins have it; None: nobody drives them."""
    holding: bool = False
    events: deque[str] = field(default_factory=lambda: deque(maxlen=EVENTS_KEPT))
    delays: Delays = field(default_factory=Delays)
    _pressed_at: float | None = None
    _spoke_at: float | None = None
    _thinking_at: float | None = None

    def take(self, message: Message, now: float) -> None:
        """A line from the control socket that came at `now` (CLOCK_MONOTONIC)."""
        if "snapshot" in message:
            self.snapshot = message["snapshot"]
        elif "meter" in message:
            self.snapshot |= message["meter"]
            self._note_speech(now)
        elif "event" in message:
            if message["event"] != "light":  # it is drawn
                self.events.append(event_line(message))
            self._time(message)
        elif not message.get("ok", True):
            self.events.append(f"refused: {message['text']}")

    def pressed(self, at: float) -> None:
        """The contact closed at `at`."""
        self._pressed_at = at
        self.delays.light_ms = None

    def shine(self, colour: Colour | None, at: float) -> None:
        """The pins changed at `at`."""
        self.light = colour
        if self._pressed_at is not None and colour and max(colour):
            self.delays.light_ms = (at - self._pressed_at) * 1000
            self._pressed_at = None

    def _note_speech(self, now: float) -> None:
        level, threshold = self.snapshot["level_dbfs"], self.snapshot["threshold_dbfs"]
        if self.snapshot.get("turn") == "hearing" and level is not None and level >= threshold:
            self._spoke_at = now

    def _time(self, event: Message) -> None:
        at, delays = event["t"], self.delays
        if event["event"] == "flushed":
            delays.silent_ms = (event["dropped_at"] - event["cause_at"]) * 1000
        if event["event"] != "turn":
            return
        if event["turn"] == "hearing":
            self._spoke_at = None
            delays.thinking_ms = delays.speaking_ms = None
        elif event["turn"] == "thinking":
            self._thinking_at = at
            if self._spoke_at is not None:
                delays.thinking_ms = (at - self._spoke_at) * 1000
        elif event["turn"] == "speaking" and self._thinking_at is not None:
            delays.speaking_ms = (at - self._thinking_at) * 1000


# --- How it looks ---------------------------------------------------------------------------


class Style(NamedTuple):
    """What the terminal can do."""

    colour: bool = True
    unicode: bool = True


_ASCII = str.maketrans({"█": "#", "░": ".", "─": "-", "→": ">", "│": "|", "·": ","})
_KEYS = "space tap   h hold/let go   {say}m mute   i interrupt   x quit"


def render(state: State, width: int, height: int, style: Style = Style()) -> list[str]:  # noqa: B008
    """The picture: at most `height` lines of at most `width` columns, colours not counted."""
    snapshot = state.snapshot
    head = _spread(f" voiced: {state.sound}", f"server: {state.server} ", width)
    body = [head, "─" * width]
    body += _light_and_state(state)
    body += ["", *_meter(snapshot, width), "", *_delays(state.delays)]
    body += ["─" * width]
    keys = " " + _KEYS.format(say="s say the question   " if state.can_say else "")
    room = max(0, height - len(body) - 2)
    events = [f" {line}" for line in state.events][-room:] if room else []
    lines = [*body, *events, *[""] * (room - len(events)), "─" * width]
    lines = [line[:width] for line in [*lines[: height - 1], keys]]
    if not style.unicode:
        lines = [line.translate(_ASCII) for line in lines]
    return [_paint(line, state.light) for line in lines] if style.colour else lines


def _spread(left: str, right: str, width: int) -> str:
    return left + right.rjust(max(len(right) + 1, width - len(left)))


def _light_and_state(state: State) -> list[str]:
    """The light as a block; beside it what the daemon says of itself."""
    snapshot, lit = state.snapshot, bool(state.light and max(state.light))
    block = ("█" if lit else "░") * 12
    faults = snapshot.get("faults") or []
    tokens = snapshot.get("tokens", {}).get("total", 0)
    texts = [
        f"turn   {str(snapshot.get('turn', 'starting')).upper()}" + "  (held)" * state.holding,
        f"link   {snapshot.get('link', 'none')}",
        f"light  {_colour_name(state.light)}  (pattern: {snapshot.get('light') or 'none'})",
        "muted  " + ("YES: nothing leaves the microphone" if snapshot.get("muted") else "no"),
        f"fault  {faults[0]['fault']}: {faults[0]['detail']}" if faults else "fault  none",
        f"turns  {snapshot.get('counters', {}).get('turns', 0)}, {tokens} tokens",
    ]
    return [f"  {block}   {text}" for text in texts]


def _colour_name(colour: Colour | None) -> str:
    """The nearest of the colours the light is known for."""
    if not colour or not max(colour):
        return "dark"
    red, green, blue = (part / max(colour) for part in colour)
    if min(red, green, blue) > 0.8:
        return "white"
    if red > 0.8:
        return "amber" if green > 0.3 else "red"
    return "green" if green > blue else "blue"


def _meter(snapshot: Message, width: int) -> list[str]:
    """The level over a scale of dB, with the gate's floor and threshold under it."""
    bar_width = max(10, width - 19)
    level, floor = snapshot.get("level_dbfs"), snapshot.get("floor_dbfs")
    threshold = snapshot.get("threshold_dbfs")
    filled = 0 if level is None else _column(level, bar_width)
    bar = "█" * filled + "░" * (bar_width - filled)
    marks = [" "] * bar_width
    for mark, value in (("f", floor), ("t", threshold)):
        if value is not None:
            marks[min(bar_width - 1, _column(value, bar_width))] = mark
    said, sent, heard = (snapshot.get(f"{name}_s", 0.0) for name in ("said", "sent", "heard"))
    gate = "open" if snapshot.get("gate_open") else "closed"
    return [
        f"  mic │{bar}│ " + ("  --" if level is None else f"{level:6.1f} dB"),
        f"       {''.join(marks)}",
        f"  f noise floor  t threshold  gate {gate:<6}   "
        f"said {said:.1f} s  sent {sent:.1f} s  heard {heard:.1f} s",
    ]


def _column(dbfs: float, width: int) -> int:
    share = (dbfs - LOWEST_DBFS) / -LOWEST_DBFS
    return round(width * min(1.0, max(0.0, share)))


def _delays(delays: Delays) -> list[str]:
    def shown(value: float | None, digits: int = 0) -> str:
        return "    -" if value is None else f"{value:5.{digits}f}"

    return [
        f"  press → light       {shown(delays.light_ms, 1)} ms"
        f"    end of speech → thinking  about {shown(delays.thinking_ms)} ms",
        f"  cut → speaker silent{shown(delays.silent_ms, 1)} ms"
        f"    thinking → speaking             {shown(delays.speaking_ms)} ms",
    ]


def _paint(line: str, light: Colour | None) -> str:
    """Colour a row of the light's block, set off the turn and a mute beside it."""
    block, text = line[2:14], line[14:]
    if not block or not set(block) <= set("█#░."):
        return line
    if light and max(light):
        red, green, blue = (round(255 * part) for part in light)
        block = f"\x1b[38;2;{red};{green};{blue}m{block}\x1b[0m"
    if text.startswith("   turn"):
        text = f"\x1b[1m{text}\x1b[0m"
    elif text.startswith("   muted  YES"):
        text = f"\x1b[1;31m{text}\x1b[0m"
    return line[:2] + block + text


# --- The terminal ---------------------------------------------------------------------------


class Screen:
    """Draws on the terminal and gives it back as it was. A dumb one gets lines, no picture."""

    def __init__(self) -> None:
        self._dumb = os.environ.get("TERM", "dumb") == "dumb"
        utf8 = locale.getpreferredencoding(False).lower().replace("-", "") == "utf8"
        self._style = Style(unicode=utf8)
        self._told = 0.0

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        """Keys come one by one and unseen, the picture replaces what was there."""
        before = termios.tcgetattr(sys.stdin)
        try:
            tty.setcbreak(sys.stdin)
            self._write("" if self._dumb else "\x1b[?1049h\x1b[?25l\x1b[?7l")
            yield
        finally:
            self._write("\n" if self._dumb else "\x1b[?7h\x1b[?25h\x1b[?1049l")
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)

    def draw(self, state: State) -> None:
        if self._dumb:
            while state.events:
                self._write(state.events.popleft() + "\n")
            return
        width, height = os.get_terminal_size(sys.stdout.fileno())
        lines = render(state, width, height, self._style)
        self._write("\x1b[H" + "\x1b[K\r\n".join(lines) + "\x1b[K\x1b[J")

    def _write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()


# --- Running it -----------------------------------------------------------------------------


class Sound(NamedTuple):
    """Devices for the daemon, and a mouth if there is nobody to speak."""

    name: str
    microphone: str
    speaker: str
    mouth: Mouth | None = None


def find_cards() -> tuple[str, str] | None:
    """ALSA names of a microphone and a speaker that open as the daemon opens them, or None."""
    names = [f"plughw:CARD={card},DEV=0" for card in alsaaudio.cards()]
    microphone = next((name for name in names if _opens_capture(name)), None)
    speaker = next((name for name in names if _opens_playback(name)), None)
    return (microphone, speaker) if microphone and speaker else None


def _opens_capture(name: str) -> bool:
    try:
        pcm.close(pcm.open_capture(name, RATE, 1))
    except pcm.DeviceError:
        return False
    return True


def _opens_playback(name: str) -> bool:
    try:
        pcm.close(pcm.open_playback(name, RATE)[0])
    except pcm.DeviceError:
        return False
    return True


def _have_sound(stack: ExitStack) -> Sound:
    cards = find_cards()
    if cards:
        return Sound("your sound card", *cards)
    rig = stack.enter_context(Rig())
    rig.apply()
    mouth = stack.enter_context(Mouth(rig))
    return Sound("no sound card, a recorded voice", rig.microphone, rig.speaker, mouth)


def _have_server(stack: ExitStack, folder: Path, answer: Path | None) -> str:
    server = stack.enter_context(Server(folder, ["--answer", str(answer)] if answer else []))
    with _starting(server.name, folder / "server.log"):
        return server.url


def _have_daemon(stack: ExitStack, folder: Path, settings: stand.Settings) -> Daemon:
    daemon = stack.enter_context(Daemon(folder, settings, {}))
    with _starting("voiced", folder / "daemon.log"):
        daemon.wait_ready()
    return daemon


@contextlib.contextmanager
def _starting(name: str, log: Path) -> Iterator[None]:
    """Where there is a terminal, there is room for more than the last line."""
    try:
        yield
    except StandError as exc:
        raise StandError(f"{name} did not start:\n{_tail(log)}") from exc


def _tail(path: Path) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-15:])


class Trial:
    """The keys, the finger and the control socket around a `State`."""

    def __init__(self, state: State, sound: Sound, connection: Connection, finger: Finger) -> None:
        self._state, self._sound = state, sound
        self._connection, self._finger = connection, finger
        self._pins: dict[int, float | None] = {}
        self._keys: dict[str, Callable[[], None]] = {
            " ": self._tap,
            "h": self._hold,
            "s": self._say,
            "m": self._mute,
            "i": lambda: self._command("interrupt"),
        }

    def run(self, screen: Screen) -> None:
        """Until a key ends it. Raises NoDaemon when the daemon is gone."""
        self._finger.watch(LIGHT_PINS, self._see)
        self._command("watch", meter_ms=METER_MS)
        due = 0.0
        while True:
            wait_s = max(0.0, due - time.monotonic())
            ready, _, _ = select.select([sys.stdin, self._connection], [], [], wait_s)
            if self._connection in ready:
                self._receive()
            if sys.stdin in ready and not self._press_keys():
                return
            if time.monotonic() >= due:
                screen.draw(self._state)
                due = time.monotonic() + REDRAW_S

    def _receive(self) -> None:
        messages = self._connection.receive()
        for message in messages:
            self._state.take(message, time.monotonic())
        if any("event" in message for message in messages):
            self._command("status")  # the whole of it, of which an event tells a part

    def _press_keys(self) -> bool:
        """False to end it."""
        typed = os.read(sys.stdin.fileno(), 64).decode(errors="replace")
        if not typed:  # the terminal is gone
            return False
        for key in _LONG_KEY.sub("", typed):
            if key in "x\x1b":
                return False
            try:
                if key in self._keys:
                    self._keys[key]()
            except (BoardError, RigError) as exc:
                self._state.events.append(str(exc))
        return True

    def _command(self, name: str, **more: int) -> None:
        self._connection.send({"command": name, **more})

    def _tap(self) -> None:
        if self._state.holding:
            self._hold()
            return
        self._state.pressed(self._finger.press(BUTTON_PIN))
        time.sleep(TAP_S)
        self._finger.release(BUTTON_PIN)

    def _hold(self) -> None:
        if self._state.holding:
            self._finger.release(BUTTON_PIN)
        else:
            self._state.pressed(self._finger.press(BUTTON_PIN))
        self._state.holding = not self._state.holding

    def _say(self) -> None:
        if self._sound.mouth is None:
            self._state.events.append("there is a real microphone: speak")
            return
        samples, rate = read_wav(QUESTION)
        self._sound.mouth.say(to_rate(samples[:, 0], rate, RATE))

    def _mute(self) -> None:
        self._command("unmute" if self._state.snapshot.get("muted") else "mute")

    def _see(self, pin: int, value: float | None, at: float) -> None:
        """In the finger's own thread; what it sets is replaced whole, never changed."""
        self._pins[pin] = value
        parts = [self._pins.get(number) for number in LIGHT_PINS]
        red, green, blue = (part or 0.0 for part in parts)
        self._state.shine(None if None in parts else (red, green, blue), at)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m voiced.sim.console",
        description="Try voiced at a terminal, with or without a sound card.",
    )
    parser.add_argument(
        "--answer", type=Path, metavar="WAV", help="the built-in server says this, not an echo"
    )
    parser.add_argument("--url", help="a real server instead of the built-in one")
    parser.add_argument("--key-file", type=Path, metavar="FILE", help="its key (mode 0600)")
    args = parser.parse_args(argv)
    if args.answer and args.url:
        parser.error("--answer is for the built-in server: it does not go with --url")
    if args.key_file and not args.url:
        parser.error("--key-file goes with --url")
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        parser.error("needs a terminal; unattended: scripts/try.sh --wav QUESTION.wav")
    return args


def _terminated(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)  # through all that restores the terminal and stops processes


def main(argv: Sequence[str] | None = None) -> int:
    """Run the trial; 0 when it was ended by a key, 1 when it could not go on."""
    args = _arguments(argv)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _terminated)
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="voiced-trial-"))
        stack.callback(lambda: shutil.rmtree(folder, ignore_errors=True))
        try:
            _try(stack, folder, args)
        except KeyboardInterrupt:
            return 0
        except (StandError, RigError, BoardError) as exc:
            print(exc, file=sys.stderr)
        except (NoDaemon, Refused) as exc:
            print(f"{exc}\n{_tail(folder / 'daemon.log')}", file=sys.stderr)
        else:
            return 0
    return 1


def _try(stack: ExitStack, folder: Path, args: argparse.Namespace) -> None:
    print("starting: sound, server, voiced; x ends it", flush=True)
    sound = _have_sound(stack)
    url = args.url or _have_server(stack, folder, args.answer)
    settings = stand.settings(url, args.key_file, sound.microphone, sound.speaker)
    del settings["sounds"]  # here they are for somebody to hear
    daemon = _have_daemon(stack, folder, settings)
    finger = stack.enter_context(Finger(daemon.board))
    connection = stack.enter_context(Connection(str(daemon.control)))
    state = State(sound.name, args.url or "built-in", can_say=sound.mouth is not None)
    screen = Screen()
    with screen.taken():
        Trial(state, sound, connection, finger).run(screen)


if __name__ == "__main__":
    sys.exit(main())
