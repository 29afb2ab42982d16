"""All that takes part: two rigs (a microphone's and a speaker's, so that each can be unplugged
alone), the server behind its proxy, the network, the daemon's unit; and what a person does."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
import os
import random
import signal
import socket
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self
from unittest import mock

import numpy as np

from tests.app.test_first_word import words
from tests.soak import judge
from tests.soak.judge import Frame
from tests.soak.network import Certificates, Network, NoNetwork, network
from tests.soak.proxy import Proxy
from tests.soak.unit import Life, Unit
from voiced.sim import server, stand
from voiced.sim.realtime_session import RealtimeSession
from voiced.sim.rig import Rig
from voiced.sim.server import SimOptions, SimServer
from voiced.sim.stand import BUTTON_PIN, StandError
from voiced.sim.streams import Ear, Mouth, Utterance

KEY = "sk-of-the-soak"
NOISE_DBFS = -55.0
LEAD_S = 0.2  # the words begin so long before the press; turn.preroll_ms is 300
TAIL_S = 0.2
TAP_S = 0.1
FOLLOW_UP_S = 2.0
SILENCE_S = 0.6  # turn.silence_ms
THINK_MS = 100
PACE, LATE_DELTAS = 1.3, 3
"""Times real time: an answer is on its way for most of the time that it sounds, so that what
befalls it, befalls its middle; and some of it still comes when it was cancelled."""
GIVE_UP_S = 30.0
"""Nothing that is promised takes longer; who waits longer waits in vain."""
NAMED_S = 20.0  # the longest: a dial that nobody answers, 15 s
KEPT_FRAMES = 50_000
STATE_KB = 64

Mode = Literal["held", "tapped"]


class Server(SimServer):
    """The built-in server, with its frame log in memory."""

    def __init__(self, options: SimOptions) -> None:
        super().__init__(options)
        self.frames: deque[Frame] = deque(maxlen=KEPT_FRAMES)

    def log(self, t: float, session: int, source: Any, event: Any) -> None:
        self.frames.append(Frame(t, source, event, session))


class Backstage:
    """A thread with a loop, for server and proxy."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="server", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    def run(self, step: Coroutine[Any, Any, Any]) -> Any:
        """Do it there, and wait."""
        return asyncio.run_coroutine_threadsafe(step, self._loop).result(20)

    def do(self, step: Callable[[], Any]) -> Any:
        """The same of a plain function."""

        async def call() -> Any:
            return step()

        return self.run(call())


@dataclass
class Turn:
    """Something said to the daemon."""

    mode: Mode
    utterance: Utterance
    seconds: float
    life: Life
    pressed: float = 0.0
    released: float = 0.0
    promised: bool = True
    """All of it has to arrive."""


@dataclass
class Scene:
    """What is known of the scene that plays, to be judged when it is over."""

    began: float = field(default_factory=time.monotonic)
    answered: list[Turn] = field(default_factory=list)
    hears: bool = True
    """The ear can be trusted: nobody held the sound up."""
    slow_line: bool = False
    """What is received was sent long before."""


class Stage:
    """Entered, it is ready to be talked to."""

    def __init__(self, seed: int, sabotage: str, folder: Path, keep: Path | None = None) -> None:
        """`keep`: beside it, what was said and what arrived is kept where they differ."""
        self.rng = random.Random(seed)
        self.seed, self.sabotage, self.folder, self.keep = seed, sabotage, folder, keep
        self.scene = Scene()
        self.disk_is_own = False
        self._is_changed = False  # the configuration, and nobody has put it back
        self._said = seed * 1000
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        try:
            self._set_up(self._stack)
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _set_up(self, stack: ExitStack) -> None:
        self.network: Network | NoNetwork = stack.enter_context(network())
        self.certificates = Certificates(self.folder, self.network.host)
        self.backstage = stack.enter_context(Backstage())
        self.server = Server(
            SimOptions(
                keys=frozenset({KEY}),
                think_ms=THINK_MS,
                ssl=self.certificates.context,
                pace=PACE,
                late_deltas=LATE_DELTAS,
            )
        )
        self.backstage.run(self.server.start())
        stack.callback(lambda: self.backstage.run(self.server.close()))
        self.proxy = Proxy(self.network.address, ("127.0.0.1", self.server._port), self.seed)
        self.backstage.run(self.proxy.start())
        stack.callback(lambda: self.backstage.run(self.proxy.close()))
        self.microphone_rig = stack.enter_context(Rig())
        self.speaker_rig = stack.enter_context(Rig())
        env = self._one_sound_system()
        os.environ.update(env)
        self._own_disk(stack)
        self.unit = Unit(self.folder, self.network.prefix, env, self.sabotage)
        self.settings = self._settings()
        self.unit.configure(self.settings)
        stack.enter_context(self.unit)
        self.listen()
        stack.callback(self._stop_listening)
        self.unit.life()

    def _one_sound_system(self) -> dict[str, str]:
        """An environment in which the one rig has the microphone and the other the speaker."""
        lines = ["</usr/share/alsa/alsa.conf>"]
        for rig, devices in (
            (self.microphone_rig, {Rig.microphone: "mic.monitor", Rig.mic_tap: "mic.monitor"}),
            (self.microphone_rig, {Rig.mouth: "mic"}),
            (self.speaker_rig, {Rig.speaker: "speaker", Rig.ear: "speaker.monitor"}),
        ):
            lines += [
                f'pcm.{name} {{ type pulse server "{rig.env["PULSE_SERVER"]}" device "{device}" }}'
                for name, device in devices.items()
            ]
        path = self.folder / "asound.conf"
        path.write_text("\n".join([*lines, ""]))
        return {**self.microphone_rig.env, "ALSA_CONFIG_PATH": str(path)}

    def _own_disk(self, stack: ExitStack) -> None:
        """A small disk for the state, if we may mount one."""
        state = self.folder / "state"
        state.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={STATE_KB}k", "soak", str(state)]
        if subprocess.run(mount, capture_output=True, check=False).returncode == 0:
            self.disk_is_own = True
            umount = ["umount", "--lazy", str(state)]
            stack.callback(lambda: subprocess.run(umount, check=False))

    def _settings(self) -> dict[str, dict[str, object]]:
        key_file = self.folder / "key"
        key_file.touch(0o600)
        key_file.write_text(KEY)
        url = f"wss://{self.network.host}:{self.proxy.port}/v1/realtime"
        settings = stand.settings(url, key_file, Rig.microphone, Rig.speaker)
        settings["realtime"]["ca_file"] = str(self.certificates.ca_file)
        # The array of the rig hears nothing of the speaker, so that somebody can speak over it.
        settings["microphone"]["echo"] = "hardware"
        settings["turn"] = {"follow_up_s": FOLLOW_UP_S}
        return settings

    def listen(self) -> None:
        """Begin new recordings: they are bounded, and a server that hung upsets their dates."""
        self._stop_listening()
        self.ear = Ear(self.speaker_rig)
        self.tap = Ear(self.microphone_rig, Rig.mic_tap)
        self.mouth = Mouth(self.microphone_rig, NOISE_DBFS, seed=self.seed)
        self._streams = ExitStack()
        for stream in (self.ear, self.tap, self.mouth):
            self._streams.enter_context(stream)

    def _stop_listening(self) -> None:
        with contextlib.suppress(AttributeError):
            self._streams.close()

    def lacks(self, needs: str) -> str:
        """Why what needs this can't be played here, or nothing."""
        has, why = {
            "": (True, ""),
            "network": (self.network.is_own, "needs root and network namespaces"),
            "disk": (self.disk_is_own, "needs the right to mount"),
        }[needs]
        return "" if has else why

    # --- what is seen ------------------------------------------------------------------------

    @property
    def life(self) -> Life:
        return self.unit.life()

    def status(self) -> dict[str, Any]:
        """A fresh snapshot. Raises StandError."""
        told = self.life.watch.ask_status()
        if told is None:
            raise StandError("the control socket does not answer")
        return told

    def faults(self) -> set[str]:
        return {each["fault"] for each in self.status()["faults"]}

    def frames(self) -> list[Frame]:
        """What the server and the daemon have said in this scene."""
        found: list[Frame] = self.backstage.do(lambda: list(self.server.frames))
        return found

    def poll(self, done: Callable[[], object], timeout_s: float, complaint: str) -> float:
        """Wait until it is true; when it was. Raises StandError."""
        deadline = time.monotonic() + timeout_s
        while not done():
            if time.monotonic() > deadline:
                raise StandError(f"{complaint} (waited {timeout_s:.0f} s)")
            time.sleep(0.02)
        return time.monotonic()

    # --- what a person does --------------------------------------------------------------------

    def begin(self, mode: Mode = "held", seconds: float = 1.6) -> Turn:
        """Speak, and press with the first word. Returns in the middle of the words."""
        life = self.life
        self._said += 1
        utterance = self.mouth.say(words(seconds, self._said))
        turn = Turn(mode, utterance, seconds, life)
        utterance.wait_started(5)
        time.sleep(LEAD_S)
        turn.pressed = life.finger.press(BUTTON_PIN)
        if mode == "tapped":
            time.sleep(TAP_S)
            life.finger.release(BUTTON_PIN)
        time.sleep(max(0.0, seconds / 2 - LEAD_S))
        return turn

    def say_on(self, seconds: float = 1.6) -> Turn:
        """Speak without a press: into the window after an answer, or over one."""
        self._said += 1
        turn = Turn("tapped", self.mouth.say(words(seconds, self._said)), seconds, self.life)
        turn.pressed = turn.utterance.wait_started(5)
        return turn

    def end(self, turn: Turn) -> None:
        """Wait for the last word; let the button go."""
        ended = turn.utterance.wait_ended(turn.seconds + 10)
        if turn.mode == "held":
            time.sleep(TAIL_S)
            turn.released = turn.life.finger.release(BUTTON_PIN)
        else:
            turn.released = ended + SILENCE_S

    def answered(self, turn: Turn, lifted: float = 0.0) -> float:
        """Wait for the answer; the seconds it took, of those that somebody waited for it."""
        watch = turn.life.watch
        asked = turn.released if turn.mode == "held" else turn.utterance.started or turn.pressed
        deadline = time.monotonic() + GIVE_UP_S
        while not (note := watch.last("turn", asked, turn="speaking")):
            turn.life.check()
            if time.monotonic() > deadline:
                raise StandError(f"no answer in {GIVE_UP_S:.0f} s; it is {watch.state}")
            time.sleep(0.02)
        self.scene.answered.append(turn)
        return max(0.0, float(note["t"]) - max(turn.released, lifted))

    def turn(self, mode: Mode = "held", seconds: float = 1.6) -> float:
        """A whole turn up to its answer."""
        turn = self.begin(mode, seconds)
        self.end(turn)
        return self.answered(turn)

    def hear_out(self) -> None:
        """Wait until the answer is over."""
        watch = self.life.watch
        self.poll(lambda: watch.state in ("listening", "idle"), 20, "the answer does not end")

    def command(self, name: str) -> None:
        """Ask the daemon for something. Raises StandError."""
        try:
            self.life.watch.command(name)
        except OSError as error:
            raise StandError(f"{name}: {error}") from error

    def hang_up(self) -> None:
        """No turn, and no link."""
        self.command("hangup")
        watch = self.life.watch
        self.poll(lambda: watch.state == "idle", 5, "it does not hang up")
        time.sleep(0.1)

    def reload(self, **changes: dict[str, object]) -> None:
        """Give it this configuration: the soak's own with these keys."""
        settings = copy.deepcopy(self.settings)
        for table, keys in changes.items():
            settings.setdefault(table, {}).update(keys)
        self._is_changed = True
        self.unit.configure(settings)
        self.command("reload")
        self._is_changed = settings != self.settings
        time.sleep(0.3)

    # --- what is done to it ------------------------------------------------------------------

    def configure_server(self, **changes: Any) -> None:
        """For the sessions to come."""
        options = replace(self.server.options, **changes)
        self.backstage.do(lambda: setattr(self.server, "options", options))

    @contextmanager
    def server_clock_off(self, seconds: float) -> Iterator[None]:
        """Sessions that begin in here end, they say, by a clock that goes wrong; by that of the
        connection's Date it is right."""

        def session(*args: Any, unix_s: float, **more: Any) -> RealtimeSession:
            return RealtimeSession(*args, unix_s=unix_s + seconds, **more)

        with mock.patch.object(server, "RealtimeSession", session):
            yield

    def session(self, do: Callable[[Any], Any]) -> None:
        """Something befalls the session that is open, if one is."""

        async def befall() -> None:
            if self.server.sessions and self.server.current.is_open:
                done = do(self.server.current)
                if asyncio.iscoroutine(done):
                    await done

        self.backstage.run(befall())

    @contextmanager
    def stopped(self, pid: int) -> Iterator[None]:
        """A process stands still."""
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    def flood(self) -> list[socket.socket]:
        """Clients of the control socket that send nonsense, long lines, and read nothing."""
        self.status()  # who asks now is still let in, and stays
        clients = []
        for number in range(20):
            client = socket.socket(socket.AF_UNIX)
            client.settimeout(1.0)
            with contextlib.suppress(OSError):
                client.connect(str(self.unit.folder / "control"))
                line = json.dumps({"command": "status"}).encode() + b"\n"
                client.sendall([line * 500, b"{]\n" * 1000, b"x" * 100_000][number % 3])
            clients.append(client)
        return clients

    # --- between scenes ------------------------------------------------------------------------

    def begin_scene(self) -> None:
        self.backstage.do(self.server.frames.clear)
        self.scene = Scene()

    def rest(self) -> None:
        """Everything as at the beginning, whatever happened. Raises StandError."""
        self.backstage.do(self.proxy.clear)
        self.backstage.run(self.proxy.start())
        life = self.life
        with contextlib.suppress(Exception):
            life.finger.release(BUTTON_PIN)
        if life.watch.ask_status() is None:
            raise StandError("the control socket does not answer")
        if self.status()["muted"]:
            self.command("unmute")
        self.hang_up()
        if self._is_changed:
            self.reload()
        time.sleep(0.2)

    def verdict(self) -> Verdict:
        """Judge the scene that is over."""
        scene, now = self.scene, time.monotonic()
        frames = self.frames()
        found = Verdict()
        for turn in scene.answered:
            self._judge_words(turn, frames, found)
        if scene.hears:
            notes = [note for life in self.unit.lives[-3:] for note in list(life.notes)]
            spans = judge.due(notes, scene.began, now)
            with contextlib.suppress(TimeoutError, LookupError):
                self.ear.wait_until(now, 2)
                stale = judge.stale_ms(self.ear, frames, spans, scene.began, now)
                found.undue_ms, found.strange_ms = stale
                if found.strange_ms and self.keep:
                    self._keep_sound(frames, spans)
        if not scene.slow_line:
            found.dark = judge.dark_appends(frames, self.unit.lights)
        return found

    def _keep_sound(self, frames: list[Frame], spans: list[judge.Due]) -> None:
        """What was heard and what was due, beside the journal."""
        assert self.keep
        for span in spans:
            heard = self.ear.snapshot(self.ear.index_at(span.start), self.ear.index_at(span.end))
            said = judge.answers(frames, span.asked - judge.EDGE_S, span.end)
            path = self.keep.with_name(f"{self.keep.name}-heard-{span.start:.0f}")
            np.savez(path, heard=heard, said=said, start_end_s=(span.start, span.end))

    def _judge_words(self, turn: Turn, frames: list[Frame], found: Verdict) -> None:
        said = turn.utterance
        if not turn.promised or said.cut or not (said.started and said.ended):
            return
        begun = (turn.pressed if turn.mode == "held" else said.started) - judge.PREROLL_S - 0.2
        later = [t for t in self.scene.answered if t.pressed > turn.released]
        until = later[0].pressed if later else float("inf")
        mine = [f for f in frames if f.t < until]
        sent = judge.answered_turn(mine, begun)
        found.repeated += max(0, judge.count_answers(mine, turn.pressed) - 1)
        words = judge.compare(sent, self.tap, said.started, said.ended)
        if words is None:
            found.unjudged += 1
            return
        found.words += 1
        found.lost_ms = max(found.lost_ms, words.lost_ms)
        found.doubled_ms = max(found.doubled_ms, words.doubled_ms)
        if self.keep and not words.ok:
            span = (self.tap.index_at(begun), self.tap.index_at(said.ended + 1.0))
            np.savez(
                self.keep.with_name(f"{self.keep.name}-{said.started:.0f}"),
                sent=sent,
                recorded=self.tap.snapshot(*span),
                begun_started_ended_s=(begun, said.started, said.ended),
            )


@dataclass
class Verdict:
    """What was wrong in a scene; zeros are good. `words`: utterances that were compared;
    `repeated`: answers to what had one already."""

    words: int = 0
    unjudged: int = 0
    lost_ms: float = 0.0
    doubled_ms: float = 0.0
    undue_ms: float = 0.0
    strange_ms: float = 0.0
    dark: int = 0
    repeated: int = 0

    @property
    def ok(self) -> bool:
        others = (self.undue_ms, self.strange_ms, self.dark, self.repeated)
        return self.words_ok and not any(others)

    @property
    def words_ok(self) -> bool:
        return judge.Words(self.lost_ms, self.doubled_ms).ok
