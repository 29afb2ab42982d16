"""The control socket under attack: who sends nonsense or a flood harms nobody but himself."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import tempfile
import time
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.edge.test_control import Daemon, connected, serve, until
from tests.fuzz import examples, patient
from tests.fuzz.frames import as_text, json_values
from voiced.edge import control
from voiced.edge.control import MAX_BEHIND, MAX_CLIENTS, MAX_LINE

_requests = st.dictionaries(
    st.sampled_from(["command", "meter_ms", "user", "x"]),
    json_values | st.sampled_from(["status", "watch", "mute", "\ud800", 10**30, -1, 0.5]),
)
_lines = (
    st.binary(max_size=50).map(lambda junk: junk.replace(b"\n", b""))
    | json_values.map(as_text).map(lambda text: text.encode("utf-8", "surrogatepass"))
    | _requests.map(json.dumps).map(str.encode)
    | st.sampled_from([b"[" * 30_000, b'{"command":' * 900 + b"1", b"9" * 10_000, b"[1e999]"])
    | st.integers(1, 4_000).map(lambda n: b'{"command":' + b"[" * n + b"]" * n + b"}")
)


async def serves(daemon: Daemon) -> None:
    """Somebody honest comes in and is served."""
    await until(lambda: len(daemon.control._clients) < MAX_CLIENTS)
    async with connected(daemon.path) as client:
        assert "snapshot" in await client.receive()
        assert (await client.ask({"command": "mute"}))["ok"]


@patient
@examples(150)
@given(st.lists(_lines, max_size=8), st.booleans())
def test_each_line_has_one_answer_and_the_next_client_is_served(
    lines: list[bytes], mid_line: bool
) -> None:
    async def talk(daemon: Daemon) -> None:
        async with connected(daemon.path) as client:
            await client.receive()
            for line in lines:
                client.send(line + b"\n")
                answer = await client.receive()
                while "meter" in answer:
                    answer = await client.receive()
                assert answer.keys() <= {"ok", "text", "snapshot"}
            if mid_line:
                client.send(b'{"comm')
        await serves(daemon)
        assert all(isinstance(command, str) for command, _ in daemon.asked)

    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as place:
        patch.setattr(control, "PAUSE_S", 0)
        serve(Path(place), talk)


def test_between_two_lines_of_a_flood_everybody_else_has_his_turn(tmp_path: Path) -> None:
    async def talk(daemon: Daemon) -> None:
        rounds, seen = 0, list[int]()

        def turn() -> None:
            nonlocal rounds
            rounds += 1
            asyncio.get_running_loop().call_soon(turn)

        def handle(command: str, who: str) -> dict[str, object]:
            seen.append(rounds)
            return {"ok": True, "text": ""}

        daemon.control._handle = handle
        turn()
        began = time.monotonic()
        async with connected(daemon.path) as client:
            client.send(b'{"command":"x"}\n' * 50)
            await until(lambda: len(seen) == 50)
        assert len(set(seen)) == 50
        assert time.monotonic() - began >= 49 * control.PAUSE_S
        assert control.PAUSE_S >= 0.01

    serve(tmp_path, talk)


def test_a_flood_waits_in_the_socket_and_not_in_memory(tmp_path: Path) -> None:
    line = b'{"command":"x"}\n'

    async def talk(daemon: Daemon) -> None:
        flooders = [socket.socket(socket.AF_UNIX) for _ in range(MAX_CLIENTS - 1)]
        tracemalloc.start()
        try:
            for flooder in flooders:
                flooder.setblocking(False)
                flooder.connect(str(daemon.path))
            for _ in range(20):
                for flooder in flooders:
                    try:
                        while flooder.send(line * 1_000):
                            pass
                    except BlockingIOError:
                        pass
                await serves(daemon)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert len(daemon.asked) < 20 * MAX_CLIENTS * 20
        assert peak < MAX_CLIENTS * (3 * MAX_LINE + MAX_BEHIND) + 2**20
        for flooder in flooders:
            flooder.close()
        await until(lambda: not daemon.control._clients)

    serve(tmp_path, talk)


def test_a_crowd_is_turned_away_and_told(tmp_path: Path) -> None:
    async def talk(daemon: Daemon) -> None:
        async with contextlib.AsyncExitStack() as crowd:
            for number in range(3 * MAX_CLIENTS):
                client = await crowd.enter_async_context(connected(daemon.path))
                told = await client.receive()
                assert ("snapshot" in told) == (number < MAX_CLIENTS)
                assert len(daemon.control._clients) <= MAX_CLIENTS
        await serves(daemon)

    serve(tmp_path, talk)


def test_who_floods_and_does_not_read_is_dropped_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "PAUSE_S", 0)

    async def talk(daemon: Daemon) -> None:
        daemon.control._snapshot = lambda: {"x": "x" * 8_000}
        flooder = socket.socket(socket.AF_UNIX)
        flooder.setblocking(False)
        flooder.connect(str(daemon.path))
        flooder.send(b'{"command":"status"}\n' * 200)
        await until(lambda: daemon.control.dropped_clients == 1)
        await serves(daemon)
        assert daemon.control.dropped_clients == 1
        flooder.close()

    serve(tmp_path, talk)


def test_who_comes_and_goes_a_thousand_times_leaves_nothing_behind(tmp_path: Path) -> None:
    async def talk(daemon: Daemon) -> None:
        async with connected(daemon.path) as honest:
            await honest.receive()
            before = len(os.listdir("/proc/self/fd"))
            for number in range(1_000):
                with socket.socket(socket.AF_UNIX) as caller:
                    caller.setblocking(False)
                    caller.connect(str(daemon.path))
                    caller.send(b'{"command":"mute"}\n')
                if number % 50 == 49:  # the kernel's queue is 100 long
                    assert (await honest.ask({"command": "mute"}))["ok"]
            await until(lambda: len(daemon.control._clients) == 1)
            await until(lambda: len(os.listdir("/proc/self/fd")) <= before)

    serve(tmp_path, talk)
