"""Puts edges and core together: each event goes through the core, and what it answers is done.

The loop serves all but the sound devices, which have a thread each, the disk, and names that are
looked up.
"""

from __future__ import annotations

import asyncio
import logging
import random
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from voiced import config as configs
from voiced.config import Config, ConfigError, KeyMissing, Secret
from voiced.core import earcons
from voiced.core.conversation import Conversation
from voiced.core.faults import FAULTS
from voiced.edge import clips
from voiced.edge.capture import Capture
from voiced.edge.control import Control
from voiced.edge.echo import Canceller, CancellerMissing
from voiced.edge.gpio import Button
from voiced.edge.lights import Lights
from voiced.edge.link import Link
from voiced.edge.network import Network
from voiced.edge.pcm import DeviceError
from voiced.edge.playback import Playback
from voiced.edge.played import Played
from voiced.edge.service import Service
from voiced.edge.store import StateError, Store
from voiced.events import (
    ButtonEdge,
    Chime,
    CloseLink,
    Command,
    DeviceBack,
    DeviceFault,
    Dial,
    DropUnsent,
    Duck,
    EndPlay,
    Event,
    Flush,
    Hush,
    KeepConversation,
    KeyState,
    LightShown,
    MemoryUsed,
    NetworkChanged,
    Note,
    Play,
    Reconfigured,
    Reply,
    Restart,
    Send,
    SetMuted,
    Show,
    Status,
    Tick,
)

log = logging.getLogger("voiced")

Kept = Literal["mute", "conversation"]
"""What outlives a restart; `Device` calls it so."""

READY_S = 5.0
"""Devices are held or known to be missing long before; a sound server that hangs is a fault, not
a reason to be no service."""

STUCK_S = 5.0
"""An audio thread steps every 20 ms, and once a second while it has nothing to do."""

STOP_S = 2
"""The longest a stop may take: 0.5 s to tell the server, 0.5 and 1 s for the audio threads."""

BLOCKS_AT_ONCE = 5
"""Of a batch of blocks: between them the loop looks at everything else, a press above all."""

TAP_S = 0.08
"""How long `voicectl tap` holds the button: a quick finger."""

REPAIR_S = 5.0
"""How often pins that failed are tried again, and what could not be written."""

WEIGH_S = 60.0
"""A leak that matters takes days."""

COMMANDS = ("interrupt", "hangup", "forget", "mute", "unmute")


@dataclass(frozen=True)
class Places:
    """Where things are."""

    config: Path
    socket: Path
    state: Path


class App:
    """The daemon. `run` returns the exit code."""

    def __init__(self, config: Config, places: Places) -> None:
        self._config, self._places = config, places
        self._service = Service()
        self._store = Store(places.state)
        self._disk = ThreadPoolExecutor(1, "disk")  # one at a time, in order
        self._unkept: dict[Kept, bool | bytes | None] = {}
        self._failed: dict[Kept, bool | bytes | None] = {}
        self._unkept_lock = threading.Lock()
        self._key: Secret | None = None
        self._events: deque[Event] = deque()
        self._handling = False
        self._reply: Reply | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._lights: Lights | None = None
        self._button: Button | None = None
        self._exit_code = 0
        self._awaited = {"microphone", "speaker"}
        self._all_met = asyncio.Event()

    async def run(self) -> int:
        """Serve until SIGTERM or SIGINT.

        Raises:
            ControlError: the socket can't be opened.
        """
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        faults = self._build()
        try:
            await self._control.open()
            self._begin(faults)
            async with asyncio.TaskGroup() as tasks:
                keepers = [
                    tasks.create_task(keeper())
                    for keeper in (self._announce, self._watchdog, self._repair, self._weigh)
                ]
                await self._stop.wait()
                for task in keepers:
                    task.cancel()
        finally:
            await self._close()
        return self._exit_code

    def _stop_for_bug(self) -> None:
        """An exception nobody expected: half of an event may be undone. Better a new start than a
        device that looks alive."""
        log.critical("stopping for a bug", exc_info=True)
        self._exit_code = FAULTS["bug"].exit_code or 1
        self._stop.set()

    def _restart(self, effect: Restart) -> None:
        log.warning("stopping to start anew: exit code %d", effect.exit_code)
        self._exit_code = effect.exit_code
        self._stop.set()

    # --- building ------------------------------------------------------------------------

    def _build(self) -> list[DeviceFault | DeviceBack]:
        """Make the core and the edges. What is told of the state and the canceller, if anything."""
        self._config, canceller, *told = _fitted(self._config)
        try:
            muted = self._store.load_muted()
        except StateError as exc:
            muted = True
            told.append(DeviceFault("state", "state-unreadable", str(exc), time.monotonic()))
        self._core = Conversation(self._config, random.Random(), muted=muted, now=time.monotonic())
        self._recall()
        self._link = Link(self.dispatch)
        self._network = Network(self._on_network)
        self._control = Control(
            self._places.socket, self._command, self._snapshot, self._core.meter
        )
        self._played = Played()
        self._capture = self._new_capture(muted, canceller)
        self._playback = self._new_playback()
        return told

    def _recall(self) -> None:
        """Go on with what was said before a restart, if that is wanted."""
        if not self._config.memory.kept:
            self._keep("conversation", None)  # what an earlier configuration kept
            return
        try:
            text, age_s = self._store.load_conversation(), self._store.conversation_age_s()
            if text is not None:
                self._core.continuity.load(text, age_s)
        except (StateError, ValueError) as exc:
            log.warning("the conversation begins anew: %s", exc)

    def _new_capture(self, muted: bool, canceller: Canceller | None) -> Capture:
        return Capture(
            self._config.microphone,
            self._wake,
            self._post,
            muted=muted,
            played=self._played,
            canceller=canceller,
        )

    def _new_playback(self) -> Playback:
        speaker = self._config.speaker
        return Playback(
            speaker.device, speaker.rate, speaker.volume, self._post, played=self._played
        )

    def _begin(self, told: list[DeviceFault | DeviceBack]) -> None:
        for number, handler in (
            (signal.SIGTERM, self._stop.set),
            (signal.SIGINT, self._stop.set),
            (signal.SIGHUP, self._reload),
        ):
            self._loop.add_signal_handler(number, handler)
        for each in told:
            self.dispatch(each)
        self._open_pins()
        self._read_key()
        self._network.open()
        self._capture.start()
        self._playback.start()

    def _open_pins(self) -> None:
        """Take the button and the lights; those that can't be had are faults."""
        now = time.monotonic()
        if self._lights is None:
            try:
                self._lights = Lights(self._config.lights, self._lights_failed)
                self.dispatch(DeviceBack("lights", now))
            except DeviceError as exc:
                self.dispatch(DeviceFault("lights", exc.fault, str(exc), now))
        if self._button is None and isinstance(self._config.button.pin, int):
            try:
                self._button = Button(self._config.button.pin, self._post)
                self.dispatch(DeviceBack("button", now))
            except DeviceError as exc:
                self.dispatch(DeviceFault("button", exc.fault, str(exc), now))

    def _read_key(self) -> None:
        now = time.monotonic()
        try:
            self._key = configs.read_key(self._config.realtime)
            self.dispatch(KeyState(None, now))
        except KeyMissing as exc:
            self._key = None
            self.dispatch(KeyState("key-missing", now, str(exc)))

    async def _close(self) -> None:
        """Silence first, then everything else."""
        # A hung sound server holds the interpreter in `drop`: only the kernel can end us then.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(STOP_S)
        self._service.stopping()
        self._playback.flush(self._core.epoch + 1, time.monotonic())
        self._control.close()
        self._network.close()
        if self._timer:
            self._timer.cancel()
        for edge in (self._button, self._lights):
            if edge:
                edge.close()
        if text := self._core.continuity.unkept():
            self._keep("conversation", text)
        await self._link.closed()
        self._capture.close()
        self._playback.close()
        self._disk.shutdown(wait=False)
        signal.alarm(0)

    # --- events in -----------------------------------------------------------------------

    def _on_network(self, event: NetworkChanged) -> None:
        self._link.check_address()
        self.dispatch(event)

    def _post(self, event: Event) -> None:
        """From any thread."""
        self._call(self.dispatch, event)

    def _wake(self) -> None:
        self._call(self._take_blocks)

    def _call(self, step: Callable[..., None], *args: Event) -> None:
        try:
            self._loop.call_soon_threadsafe(step, *args)
        except RuntimeError:
            pass  # the loop is closed: a thread that hung in its device came too late

    def _take_blocks(self) -> None:
        blocks = self._capture.take(BLOCKS_AT_ONCE)
        for block in blocks:
            self.dispatch(block)
        if len(blocks) == BLOCKS_AT_ONCE:
            self._loop.call_soon(self._take_blocks)

    def dispatch(self, event: Event) -> None:
        """Give the core one event and do what it says. In the loop's thread only."""
        self._events.append(event)
        if self._handling:
            return
        self._handling = True
        try:
            while self._events:
                self._handle(self._events.popleft())
        except Exception:
            self._events.clear()
            self._stop_for_bug()
        finally:
            self._handling = False
        self._capture.urgent = self._core.listens or self._control.is_metered
        self._set_timer()

    def _handle(self, event: Event) -> None:
        if isinstance(event, DeviceBack | DeviceFault):
            self._awaited.discard(event.device)
            if not self._awaited:
                self._all_met.set()
        for effect in self._core.handle(event):
            _PERFORM[type(effect)](self, effect)

    def _set_timer(self) -> None:
        deadline = self._core.deadline()
        if self._timer:
            if self._timer.when() == deadline:
                return
            self._timer.cancel()
        self._timer = None
        if deadline is not None:
            self._timer = self._loop.call_at(deadline, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self.dispatch(Tick(time.monotonic()))

    # --- effects out ---------------------------------------------------------------------

    def _flush(self, effect: Flush) -> None:
        self._events.appendleft(self._playback.flush(effect.epoch, effect.cause_at))

    def _chime(self, effect: Chime) -> None:
        """A clip is as loud as an answer, or it is not understood; an earcon is heard anyway."""
        volume = self._config.sounds.volume
        fault = FAULTS.get(effect.name)
        words = clips.load(effect.name) if fault else None
        if words is not None:
            self._playback.chime(words, 100 if volume else 0)
        else:
            name = fault.earcon if fault else effect.name
            self._playback.chime(earcons.samples(name), volume)

    def _show(self, effect: Show) -> None:
        now = time.monotonic()
        if self._lights is None:
            return  # a fault already
        try:
            self._lights.show(effect.pattern)
        except DeviceError as exc:
            self._lights.close()
            self._lights = None
            self._events.appendleft(DeviceFault("lights", exc.fault, str(exc), now))
        else:
            self._events.appendleft(LightShown(effect.pattern, now))

    def _lights_failed(self, exc: DeviceError) -> None:
        """In a later step of a pattern."""
        if self._lights:
            self._lights.close()
            self._lights = None
        self.dispatch(DeviceFault("lights", exc.fault, str(exc), time.monotonic()))

    def _set_muted(self, effect: SetMuted) -> None:
        self._capture.set_muted(effect.muted)
        self._keep("mute", effect.muted)

    def _keep(self, what: Kept, value: bool | bytes | None) -> None:
        """Have it written. Of what waits for a slow disk, only the newest is."""
        with self._unkept_lock:
            waits = what in self._unkept
            self._unkept[what] = value
            self._failed.pop(what, None)
        if not waits:
            self._disk.submit(self._write, what)

    def _write(self, what: Kept) -> None:
        """In the disk's thread."""
        with self._unkept_lock:
            value = self._unkept.pop(what)
        save: Callable[[Any], None] = (
            self._store.save_muted if what == "mute" else self._store.save_conversation
        )
        try:
            save(value)
        except StateError as exc:
            with self._unkept_lock:
                if what not in self._unkept:
                    self._failed[what] = value
            self._post(DeviceFault(what, f"{what}-not-kept", str(exc), time.monotonic()))
        else:
            self._post(DeviceBack(what, time.monotonic()))

    def _note(self, note: Note) -> None:
        extra = {f"VOICED_{name.upper()}": value for name, value in note.fields.items()}
        if fault := FAULTS.get(note.fields.get("fault", "")):
            extra["MESSAGE_ID"] = fault.message_id
        log.log(note.level, "%s", note.text, extra={"VOICED_EVENT": note.name, **extra})
        self._control.tell({"event": note.name, "t": note.at, "text": note.text, **note.fields})

    # --- commands ------------------------------------------------------------------------

    def _command(self, name: str, who: str) -> dict[str, Any]:
        if name in ("reload", "release"):
            log.info("%s by %s", name, who)
        if name == "reload":
            problem = self._reload()
            return {"ok": problem is None, "text": problem or "reloaded"}
        if name in COMMANDS:
            return self._ask(Command(name, who, time.monotonic()))
        if name in ("press", "tap") and self._core.is_pressed:
            return {"ok": False, "text": "the button is down already: release it first"}
        if name in ("press", "release", "tap"):
            answer = self._ask(ButtonEdge(name != "release", time.monotonic(), who))
            if name == "tap":
                self._loop.call_later(TAP_S, self._release, who)
            return answer
        return {"ok": False, "text": f"unknown command {name[:40]!r}; see voicectl --help"}

    def _release(self, who: str) -> None:
        self.dispatch(ButtonEdge(False, time.monotonic(), who))

    def _ask(self, event: Command | ButtonEdge) -> dict[str, Any]:
        self._reply = None
        self.dispatch(event)
        reply: Reply = self._reply or Reply(False, "no answer")
        return {"ok": reply.ok, "text": reply.text}

    def _set_reply(self, effect: Reply) -> None:
        self._reply = effect

    def _snapshot(self) -> dict[str, Any]:
        counters = {
            "capture_xruns": self._capture.xruns,
            "capture_dropped_blocks": self._capture.dropped_blocks,
            "playback_xruns": self._playback.xruns,
            "playback_holes": self._playback.holes,
            "chimes_skipped": self._playback.chimes_skipped,
            "played_resyncs": self._played.resyncs,
            "control_dropped_clients": self._control.dropped_clients,
            "state_writes": self._store.writes,
            "state_written_bytes": self._store.written_bytes,
        }
        snapshot = self._core.snapshot()
        return {**snapshot, "counters": snapshot["counters"] | counters}

    def _reload(self) -> str | None:
        """Apply a valid new configuration; why the old one stays, if it does."""
        self._service.reloading()
        problem = None
        now = time.monotonic()
        try:
            new = configs.load(self._places.config)
        except ConfigError as exc:
            problem = str(exc)
            self.dispatch(DeviceFault("config", "config-invalid", problem, now))
        else:
            canceller = None
            if new.microphone.echo != "cancel" or new.microphone != self._config.microphone:
                new, canceller, told = _fitted(new)
                self.dispatch(told)
            old, self._config = self._config, new
            self.dispatch(Reconfigured(new, now))
            self._replace_edges(old, new, canceller)
            self._read_key()
            log.info("the new configuration is in use")
        self._service.ready()
        return problem

    def _replace_edges(self, old: Config, new: Config, canceller: Canceller | None) -> None:
        if old.microphone != new.microphone:
            old_capture, self._capture = (
                self._capture,
                self._new_capture(self._core.muted, canceller),
            )
            self._capture.start(after=old_capture)
        if old.speaker != new.speaker:
            detail = "the configuration changed"  # an answer would never end on another device
            self.dispatch(DeviceFault("speaker", "speaker-lost", detail, time.monotonic()))
            old_playback, self._playback = self._playback, self._new_playback()
            self._playback.start(after=old_playback)
        if old.button != new.button:
            if self._button:
                self._button.close()
                self._button = None
            self.dispatch(DeviceBack("button", time.monotonic()))  # a fault was of the old pin
        if old.lights != new.lights and self._lights:
            self._lights.close()
            self._lights = None
        self._open_pins()

    # --- keepers -------------------------------------------------------------------------

    async def _announce(self) -> None:
        """READY once each device is held or known to be missing; a network is not waited for."""
        try:
            await asyncio.wait_for(self._all_met.wait(), READY_S)
        except TimeoutError:
            log.warning("no word of the %s yet", " and the ".join(sorted(self._awaited)))
        self._service.ready()
        log.info("ready: %s", self._core.snapshot()["status"])

    async def _watchdog(self) -> None:
        """Tell systemd we live, as long as both audio threads do. The loop proves itself by it.

        Where all of us stood still (a card that reads slowly, a machine that was suspended), the
        threads have the time to the next look for a step.
        """
        if self._service.watchdog_s is None:
            return
        late: set[tuple[str, float]] = set()
        while True:
            edges = (self._capture, self._playback)
            steps = {(edge.name, edge.stepped_at) for edge in edges}
            before, late = late, {step for step in steps if time.monotonic() - step[1] > STUCK_S}
            dead = {edge.name for edge in edges if edge.has_died}
            stuck = sorted(dead | {name for name, _ in late & before})
            if stuck:
                log.error("the %s thread is stuck: systemd restarts us", " and ".join(stuck))
                self._service.stuck()
            elif not late:
                self._service.alive()
            await asyncio.sleep(min(self._service.watchdog_s / 3, STUCK_S / 2))

    async def _repair(self) -> None:
        """Try again what failed: pins, and what could not be written."""
        while True:
            await asyncio.sleep(REPAIR_S)
            self._open_pins()
            for what, value in list(self._failed.items()):
                self._keep(what, value)

    async def _weigh(self) -> None:
        """Tell the core what memory we use, where the unit sets a limit."""
        while memory := self._service.memory():
            self.dispatch(MemoryUsed(*memory, time.monotonic()))
            await asyncio.sleep(WEIGH_S)


def _fitted(config: Config) -> tuple[Config, Canceller | None, DeviceFault | DeviceBack]:
    """What takes our own sound out of the microphone, if that is wanted. One that doesn't load is a
    fault, and no reason not to serve: in that configuration it is deaf while it speaks."""
    now = time.monotonic()
    if config.microphone.echo != "cancel":
        return config, None, DeviceBack("canceller", now)
    try:
        return config, Canceller(), DeviceBack("canceller", now)
    except CancellerMissing as exc:
        microphone = msgspec.structs.replace(config.microphone, echo="half-duplex")
        fault = DeviceFault("canceller", "canceller-missing", str(exc), now)
        return msgspec.structs.replace(config, microphone=microphone), None, fault


_PERFORM: dict[type, Callable[[App, Any], None]] = {
    Duck: lambda app, e: app._playback.duck(e.on),
    Chime: App._chime,
    Hush: lambda app, e: app._playback.hush(),
    Dial: lambda app, e: app._link.dial(e.dial, app._config.realtime, app._key),
    CloseLink: lambda app, e: app._link.close(),
    Send: lambda app, e: app._link.send(e.text, e.audio_frames),
    DropUnsent: lambda app, e: app._link.drop_unsent(),
    Play: lambda app, e: app._playback.play(e.samples, e.epoch),
    EndPlay: lambda app, e: app._playback.end(e.epoch),
    Flush: App._flush,
    Show: App._show,
    SetMuted: App._set_muted,
    KeepConversation: lambda app, e: app._keep("conversation", e.text),
    Restart: App._restart,
    Status: lambda app, e: app._service.status(e.text),
    Reply: App._set_reply,
    Note: App._note,
}
