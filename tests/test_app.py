"""The daemon's inside: the order of events, what is kept, stopping beside a device that hangs."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import alsaaudio
import pytest

from voiced import app as apps
from voiced.app import TAP_S, App, Places
from voiced.config import Button, Config, Microphone
from voiced.edge.echo import CancellerMissing
from voiced.edge.store import StateError, Store
from voiced.events import (
    ButtonEdge,
    Command,
    Effect,
    Event,
    Flush,
    Pattern,
    SetMuted,
    Show,
    Tick,
)

DARK = Pattern("dark", (((0.0, 0.0, 0.0), 0),))
DEADLINE_S = 15.0
STOP_S = 2.0  # promised


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> App:
    """An app that is not running, with `tmp_path / "notify"` for systemd's socket."""
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    places = Places(tmp_path / "voiced.toml", tmp_path / "control", tmp_path / "state")
    return App(Config(button=Button(pin="none")), places)


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(tmp_path / "notify"))
        notify.settimeout(DEADLINE_S)
        yield notify


def test_what_a_flush_and_a_light_answer_comes_before_all_that_waits(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    app._build()
    app._open_pins()
    handled: list[str] = []

    def handle(event: Event) -> list[Effect]:
        if isinstance(event, Command):
            app.dispatch(Tick(0.0))  # an edge that answers at once, from within
            assert handled == []
        handled.append(type(event).__name__)
        return [Flush(1, 0.0), Show(DARK)] if isinstance(event, Command) else []

    monkeypatch.setattr(app._core, "handle", handle)
    app.dispatch(Command("mute", "uid 0, pid 1", 0.0))
    assert handled[0] == "Command"
    assert sorted(handled[1:3]) == ["Flushed", "LightShown"]
    assert handled[3:] == ["Tick"]


def test_the_last_mute_is_the_one_that_is_kept(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[bool] = []
    overtaken, last = threading.Event(), threading.Event()

    def save(_: Store, muted: bool) -> None:
        if muted:
            overtaken.wait(0.2)  # a slow disk
        else:
            overtaken.set()
        kept.append(muted)
        if not muted:
            last.set()

    monkeypatch.setattr(Store, "save_muted", save)

    async def run() -> None:
        app._loop = asyncio.get_running_loop()
        app._build()
        app._set_muted(SetMuted(True))
        app._set_muted(SetMuted(False))
        assert await asyncio.to_thread(last.wait, DEADLINE_S)
        await app._close()

    asyncio.run(run())
    assert kept[-1:] == [False]
    assert len(kept) <= 2  # what was not begun need not be written


def test_what_could_not_be_written_is_written_when_the_disk_takes_it_again(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mute that is lost at the next power cut, months later."""
    tries: list[bool] = []
    kept = threading.Event()

    def save(_: Store, muted: bool) -> None:
        tries.append(muted)
        if len(tries) < 3:
            raise StateError("No space left on device")
        kept.set()

    monkeypatch.setattr(Store, "save_muted", save)
    monkeypatch.setattr(apps, "REPAIR_S", 0.01)

    async def run() -> None:
        app._loop = asyncio.get_running_loop()
        app._build()
        repairs = asyncio.create_task(app._repair())
        app._set_muted(SetMuted(True))
        assert await asyncio.to_thread(kept.wait, DEADLINE_S)
        await asyncio.sleep(0.05)
        repairs.cancel()
        await app._close()

    asyncio.run(run())
    assert tries == [True, True, True]


def test_without_an_echo_canceller_it_serves_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An update that breaks a library must not silence the device."""

    def missing() -> None:
        raise CancellerMissing("it doesn't load")

    monkeypatch.setattr(apps, "Canceller", missing)
    places = Places(tmp_path / "voiced.toml", tmp_path / "control", tmp_path / "state")
    config = Config(microphone=Microphone(echo="cancel"), button=Button(pin="none"))
    app = App(config, places)
    faults: list[list[str]] = []

    async def run() -> None:
        app._loop = asyncio.get_running_loop()
        for told in app._build():
            app.dispatch(told)
        for echo in ("cancel", "half-duplex"):
            snapshot = app._core.snapshot()
            assert snapshot["microphone"]["echo"] == "half-duplex"
            faults.append([each["fault"] for each in snapshot["faults"]])
            places.config.write_text(f'[microphone]\necho = "{echo}"\n[button]\npin = "none"\n')
            assert app._reload() is None
        faults.append([each["fault"] for each in app._core.snapshot()["faults"]])
        await app._close()

    asyncio.run(run())
    assert ["canceller-missing" in names for names in faults] == [True, True, False]


@pytest.fixture
def hanging_devices(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Opening a device takes for ever."""
    over = threading.Event()

    def hang(*_: Any, **__: Any) -> None:
        over.wait()
        raise alsaaudio.ALSAAudioError("No such device [test]")

    monkeypatch.setattr(alsaaudio, "PCM", hang)
    yield
    over.set()


@pytest.mark.usefixtures("hanging_devices")
@pytest.mark.parametrize("until", [b"STATUS=", b"READY=1"], ids=["starting", "ready"])
def test_devices_that_hang_hold_up_neither_readiness_nor_the_end(
    app: App,
    systemd: socket.socket,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    until: bytes,
) -> None:
    ready = until == b"READY=1"
    monkeypatch.setattr(apps, "READY_S", 0.05 if ready else 60.0)
    caplog.set_level(logging.WARNING)

    def told() -> None:
        while not systemd.recv(4096).startswith(until):
            pass

    async def run() -> float:
        running = asyncio.create_task(app.run())
        await asyncio.to_thread(told)
        began = time.monotonic()
        app._stop.set()  # as SIGTERM does
        assert await asyncio.wait_for(running, DEADLINE_S) == 0
        return time.monotonic() - began

    assert asyncio.run(run()) < STOP_S
    assert ("no word of the microphone and the speaker yet" in caplog.text) == ready


def test_a_bug_in_the_core_ends_the_daemon_instead_of_leaving_it_half_done(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> int:
        running = asyncio.create_task(app.run())
        await asyncio.sleep(0)  # it is built in the task's first step
        monkeypatch.setattr(app._core, "handle", lambda event: 1 / 0)
        app.dispatch(Tick(0.0))
        return await asyncio.wait_for(running, DEADLINE_S)

    assert asyncio.run(run()) == 70


def test_a_tap_while_a_finger_holds_does_not_let_go_for_it(app: App) -> None:
    async def run() -> None:
        app._loop = asyncio.get_running_loop()
        app._build()
        app.dispatch(ButtonEdge(True, time.monotonic()))
        assert not app._command("tap", "uid 0, pid 1")["ok"]
        await asyncio.sleep(TAP_S * 2)
        assert app._core.is_pressed
        await app._close()

    asyncio.run(run())
