import ast
import asyncio
import json
import os
import re
import socket
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import UnionType
from typing import Any

import pytest

import voiced
from voiced.app import COMMANDS, App, Places
from voiced.config import Config
from voiced.edge.control import (
    MAX_BEHIND,
    MAX_CLIENTS,
    MAX_LINE,
    METER_MAX_MS,
    METER_MIN_MS,
    VERSION,
    Control,
    ControlError,
)

DEADLINE_S = 10.0
CONTRACT = (Path(__file__).parents[2] / "docs/control.md").read_text("utf-8")


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def receive(self) -> Any:
        """The next message; None when the daemon hung up."""
        try:
            line = await asyncio.wait_for(self._reader.readline(), DEADLINE_S)
        except ConnectionResetError:
            return None
        return json.loads(line) if line else None

    async def ask(self, request: Any) -> Any:
        self.send(json.dumps(request).encode() + b"\n")
        return await self.receive()

    def send(self, data: bytes) -> None:
        self._writer.write(data)

    def close(self) -> None:
        self._writer.close()


@asynccontextmanager
async def connected(path: Path) -> AsyncIterator[Client]:
    """A client that has not yet received anything."""
    client = Client(*await asyncio.open_unix_connection(str(path)))
    try:
        yield client
    finally:
        client.close()


class Daemon:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.asked: list[tuple[str, str]] = []
        self.control = Control(path, self._handle, lambda: {"turn": "idle"}, lambda: {"level": -1})

    def _handle(self, command: str, who: str) -> dict[str, Any]:
        self.asked.append((command, who))
        return {"ok": command == "mute", "text": f"did {command}"}


def serve(tmp_path: Path, talk: Callable[[Daemon], Awaitable[None]]) -> None:
    """Run `talk` while a control socket is served."""

    async def main() -> None:
        daemon = Daemon(tmp_path / "control.sock")
        await daemon.control.open()
        try:
            await talk(daemon)
        finally:
            daemon.control.close()
            await asyncio.sleep(0)  # the loop closes sockets in its next round

    asyncio.run(main())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110  # nothing tells of it
            await asyncio.sleep(0.001)


# --- talking ---------------------------------------------------------------------------------


def test_who_connects_gets_version_and_snapshot_then_every_event(tmp_path: Path) -> None:
    async def talk(daemon: Daemon) -> None:
        async with connected(daemon.path) as one, connected(daemon.path) as other:
            for client in (one, other):
                assert await client.receive() == {"version": VERSION, "snapshot": {"turn": "idle"}}
            daemon.control.tell({"event": "turn", "t": 1.5})
            for client in (one, other):
                assert await client.receive() == {"event": "turn", "t": 1.5}

    serve(tmp_path, talk)


def test_a_command_is_handled_and_answered(tmp_path: Path) -> None:
    async def talk(daemon: Daemon) -> None:
        async with connected(daemon.path) as client:
            await client.receive()
            assert await client.ask({"command": "mute"}) == {"ok": True, "text": "did mute"}
            assert await client.ask({"command": "dance"}) == {"ok": False, "text": "did dance"}
            assert [name for name, _ in daemon.asked] == ["mute", "dance"]

    serve(tmp_path, talk)


def test_who_asked_is_told_as_the_kernel_knows_it(tmp_path: Path) -> None:
    async def talk(daemon: Daemon) -> None:
        async with connected(daemon.path) as client:
            await client.receive()
            await client.ask({"command": "mute", "who": "root"})
            await client.ask({"command": "mute", "user": "anna"})
            for not_a_name in ("", "x" * 33, "an\nna", 7, None, ["anna"]):
                await client.ask({"command": "mute", "user": not_a_name})
        known = f"uid {os.getuid()}, pid {os.getpid()}"
        whose = [who for _, who in daemon.asked]
        assert whose == [known, f"{known} (anna, it says)", *[known] * 6]

    serve(tmp_path, talk)


def test_status_is_the_snapshot_again(tmp_path: Path) -> None:
    async def talk(daemon: Daemon) -> None:
        async with connected(daemon.path) as client:
            await client.receive()
            answer = await client.ask({"command": "status"})
            assert answer == {"ok": True, "snapshot": {"turn": "idle"}}
        assert daemon.asked == []

    serve(tmp_path, talk)


@pytest.mark.parametrize(
    "line",
    [b"", b"tap", b"\xff\xfe", b"[]", b"3", b'"mute"', b"null", b"{}", b"[" * 60_000],
)
def test_a_line_that_makes_no_sense_is_answered_and_the_next_one_works(
    tmp_path: Path, line: bytes
) -> None:
    async def talk(daemon: Daemon) -> None:
        async with connected(daemon.path) as client:
            await client.receive()
            client.send(line + b"\n")
            answer = await client.receive()
            assert answer["ok"] is False
            assert "not understood" in answer["text"]
            assert (await client.ask({"command": "mute"}))["ok"]

    serve(tmp_path, talk)


def test_half_a_line_waits_for_its_end(tmp_path: Path) -> None:
    async def talk(daemon: Daemon) -> None:
        async with connected(daemon.path) as client:
            await client.receive()
            client.send(b'{"comm')
            assert daemon.asked == []
            client.send(b'and": "mute"}\n{"command": "mute"}\n')
            assert (await client.receive())["ok"]
            assert (await client.receive())["ok"]

    serve(tmp_path, talk)


# --- the meter -------------------------------------------------------------------------------


class FakeTimers:
    """`call_later` that only remembers."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.delays: list[float] = []
        self.fire: Callable[[], None] = lambda: None
        loop = asyncio.get_running_loop()
        real = loop.call_later

        def call_later(delay: float, callback: Any, *args: Any, **more: Any) -> Any:
            if getattr(callback, "__name__", "") != "measure":
                return real(delay, callback, *args, **more)
            self.delays.append(delay)
            self.fire = lambda: callback(*args)
            return real(3600, lambda: None)

        monkeypatch.setattr(loop, "call_later", call_later)


@pytest.mark.parametrize(
    ("asked_ms", "period_ms"),
    [(100, 100), (1, METER_MIN_MS), (10**9, METER_MAX_MS), (10**400, METER_MAX_MS)],
)
def test_the_meter_comes_at_once_and_then_at_its_period(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked_ms: int, period_ms: int
) -> None:
    async def talk(daemon: Daemon) -> None:
        timers = FakeTimers(monkeypatch)
        async with connected(daemon.path) as client:
            await client.receive()
            first = await client.ask({"command": "watch", "meter_ms": asked_ms})
            assert first == {"meter": {"level": -1}}
            assert (await client.receive())["ok"]
            timers.fire()
            assert await client.receive() == {"meter": {"level": -1}}
            assert timers.delays == [period_ms / 1000] * 2

    serve(tmp_path, talk)


@pytest.mark.parametrize("period", [0, -5, None, "fast", 0.1])
def test_without_a_period_no_meter_comes(tmp_path: Path, period: Any) -> None:
    async def talk(daemon: Daemon) -> None:
        async with connected(daemon.path) as client:
            await client.receive()
            assert (await client.ask({"command": "watch", "meter_ms": period}))["ok"]
            assert (await client.ask({"command": "mute"}))["text"] == "did mute"

    serve(tmp_path, talk)


# --- limits ----------------------------------------------------------------------------------


def test_the_ninth_client_is_told_why_and_gets_the_next_free_place(tmp_path: Path) -> None:
    async def talk(daemon: Daemon) -> None:
        clients = [
            Client(*await asyncio.open_unix_connection(str(daemon.path)))
            for _ in range(MAX_CLIENTS)
        ]
        for client in clients:
            assert "snapshot" in await client.receive()
        async with connected(daemon.path) as ninth:
            assert "clients" in (await ninth.receive())["error"]
            assert await ninth.receive() is None
        clients[0].close()
        assert await comes_in(daemon)
        for client in clients:
            client.close()

    serve(tmp_path, talk)


async def comes_in(daemon: Daemon) -> bool:
    """True when a new client is served, which takes a moment after another left."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            async with connected(daemon.path) as client:
                if "snapshot" in await client.receive():
                    return True


def test_a_client_that_does_not_read_is_dropped_and_its_place_is_free(tmp_path: Path) -> None:
    async def talk(daemon: Daemon) -> None:
        sleepers = [socket.socket(socket.AF_UNIX) for _ in range(MAX_CLIENTS)]
        for sleeper in sleepers:
            sleeper.setblocking(False)
            sleeper.connect(str(daemon.path))
        await until(lambda: len(daemon.control._clients) == MAX_CLIENTS)
        event = {"event": "x", "text": "x" * 10_000}
        for _ in range(1000):
            daemon.control.tell(event)
        assert daemon.control.dropped_clients == MAX_CLIENTS
        assert await comes_in(daemon)
        for sleeper in sleepers:
            sleeper.close()

    serve(tmp_path, talk)


def test_a_client_that_reads_is_not_dropped_because_another_does_not(tmp_path: Path) -> None:
    async def talk(daemon: Daemon) -> None:
        sleeper = socket.socket(socket.AF_UNIX)
        sleeper.setblocking(False)
        sleeper.connect(str(daemon.path))
        async with connected(daemon.path) as client:
            await client.receive()
            for number in range(200):
                daemon.control.tell({"event": "x", "n": number, "text": "x" * (MAX_BEHIND // 8)})
                assert (await client.receive())["n"] == number
        assert daemon.control.dropped_clients == 1
        sleeper.close()

    serve(tmp_path, talk)


def test_a_line_that_is_too_long_is_the_last(tmp_path: Path) -> None:
    async def talk(daemon: Daemon) -> None:
        async with connected(daemon.path) as client:
            await client.receive()
            client.send(b"x" * (3 * MAX_LINE))
            assert "longer than" in (await client.receive())["error"]
            assert await client.receive() is None
        async with connected(daemon.path) as client:
            await client.receive()
            assert (await client.ask({"command": "mute"}))["ok"]

    serve(tmp_path, talk)


# --- the socket ------------------------------------------------------------------------------


def test_the_socket_is_for_its_owner_and_group_and_gone_after_closing(tmp_path: Path) -> None:
    async def talk(daemon: Daemon) -> None:
        mode = daemon.path.stat().st_mode
        assert stat.S_ISSOCK(mode)
        assert stat.S_IMODE(mode) == 0o660
        daemon.control.close()
        assert not daemon.path.exists()
        daemon.control.close()

    serve(tmp_path, talk)


def test_closing_before_opening_is_no_harm(tmp_path: Path) -> None:
    Daemon(tmp_path / "control.sock").control.close()


def test_closing_hangs_up_on_everybody(tmp_path: Path) -> None:
    async def talk(daemon: Daemon) -> None:
        async with connected(daemon.path) as client:
            await client.receive()
            await client.ask({"command": "watch", "meter_ms": 1000})
            await client.receive()
            daemon.control.close()
            assert await client.receive() is None

    serve(tmp_path, talk)


def test_a_socket_left_by_a_crash_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as crashed:
        crashed.bind(str(tmp_path / "control.sock"))

    async def talk(daemon: Daemon) -> None:
        async with connected(daemon.path) as client:
            assert "snapshot" in await client.receive()

    serve(tmp_path, talk)


def test_a_second_daemon_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    async def talk(daemon: Daemon) -> None:
        second = Daemon(daemon.path)
        with pytest.raises(ControlError, match="another voiced is running"):
            await second.control.open()
        second.control.close()
        async with connected(daemon.path) as client:
            assert "snapshot" in await client.receive()

    serve(tmp_path, talk)


def test_a_file_that_is_no_socket_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "precious.txt"
    path.write_text("precious")
    daemon = Daemon(path)
    with pytest.raises(ControlError, match="use --socket"):
        asyncio.run(daemon.control.open())
    assert path.read_text() == "precious"


@pytest.mark.parametrize("name", ["file/control.sock", "x" * 200])
def test_a_path_that_can_not_be_used_is_named_with_a_reason(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ControlError, match="use --socket") as error:
        asyncio.run(Daemon(tmp_path / name).control.open())
    assert "None" not in str(error.value)


# --- the contract ----------------------------------------------------------------------------

TYPES: dict[str, type | UnionType] = {
    "string": str,
    "string or null": str | None,
    "boolean": bool,
    "number": int | float,
    "number or null": int | float | None,
    "array": list,
    "array or null": list | None,
    "object": dict,
}


def rows(heading: str) -> Iterator[list[str]]:
    """The cells of the table rows of the contract under `heading`, whose first cell is code."""
    section = re.split(r"^#+ ", CONTRACT.partition(f"# {heading}\n")[2], flags=re.MULTILINE)[0]
    for line in section.splitlines():
        if line.startswith("| `"):
            yield [cell.strip() for cell in line.strip("|").split("|")]


def code(cell: str) -> set[str]:
    return set(re.findall(r"`([^`]+)`", cell))


@pytest.fixture
def app(tmp_path: Path) -> App:
    app = App(Config(), Places(tmp_path / "voiced.toml", tmp_path / "sock", tmp_path))
    app._build()
    return app


def test_the_contract_has_every_field_of_the_snapshot_with_its_type(app: App) -> None:
    snapshot = json.loads(json.dumps(app._snapshot()))
    fields = {next(iter(code(row[0]))): row[1] for row in rows("The snapshot") if len(row) == 3}
    assert set(fields) == set(snapshot)
    for name, value in snapshot.items():
        assert isinstance(value, TYPES[fields[name]]), name


def test_the_contract_has_every_counter_and_every_kind_of_token(app: App) -> None:
    snapshot = app._snapshot()
    counters = {next(iter(code(row[0]))) for row in rows("The snapshot") if len(row) == 2}
    assert counters == set(snapshot["counters"])
    tokens = next(row[2] for row in rows("The snapshot") if row[0] == "`tokens`")
    assert code(tokens) == set(snapshot["tokens"])


def test_the_last_fields_of_the_snapshot_are_the_meter(app: App) -> None:
    names = [next(iter(code(row[0]))) for row in rows("The snapshot") if len(row) == 3]
    assert "The last eight (from `level_dbfs` on) are the *meter*" in CONTRACT
    assert set(names[-8:]) == set(app._core.meter())


def notes() -> Iterator[tuple[str, set[str]]]:
    """Name and fields of each event, as the sources call `note(name, text, level, **fields)`."""
    for path in Path(voiced.__file__).parent.rglob("*.py"):
        if "sim" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".note"):
                name = ast.literal_eval(node.args[0])
                yield name, {str(keyword.arg) for keyword in node.keywords}


def test_the_contract_has_every_event_with_its_fields() -> None:
    emitted: dict[str, set[str]] = {}
    for name, fields in notes():
        emitted.setdefault(name, set()).update(fields)
    written = {next(iter(code(name))): code(fields) for name, fields, _ in rows("Events")}
    assert written == emitted


def test_the_contract_has_every_command_and_no_other() -> None:
    commands = {next(iter(code(row[0]))) for row in rows("What goes in")}
    own = {"status", "watch", "press", "release", "tap", "reload"}
    assert commands == own | set(COMMANDS)


def test_the_contract_has_the_limits() -> None:
    assert f"- {MAX_CLIENTS} clients" in CONTRACT
    assert f"between {METER_MIN_MS} and {METER_MAX_MS}" in CONTRACT
    assert MAX_LINE == MAX_BEHIND == 64 * 1024
    assert CONTRACT.count("64 kB") == 2
