"""The control socket: JSON lines over a Unix socket; docs/control.md is its contract."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

VERSION = 1
MAX_CLIENTS = 8
MAX_LINE = 64 * 1024
MAX_BEHIND = 64 * 1024
"""Bytes a client may leave unread; a slower one is dropped, so that it holds up nobody."""

MAX_NAME = 32
"""Characters of a user's name; useradd takes no more."""

PAUSE_S = 0.01
"""Between two commands of a client: whoever sends a flood of them holds up nobody but himself. What
he has sent waits in the socket, and he with it."""

METER_MIN_MS = 50
METER_MAX_MS = 60_000
"""The meter's period is brought between these two."""

Answer = dict[str, Any]
Handler = Callable[[str, str], Answer]


class ControlError(OSError):
    """The socket can't be opened. The text says why and what to do."""


class Control:
    """Serves clients: whoever is of the daemon's own group, which the unit makes voiced-ctl.

    `handle(command, who)` answers a command; `snapshot` and `meter` describe the state as JSON
    types."""

    def __init__(
        self,
        path: Path,
        handle: Handler,
        snapshot: Callable[[], dict[str, Any]],
        meter: Callable[[], dict[str, Any]],
    ) -> None:
        self.dropped_clients = 0
        self._path = path
        self._handle, self._snapshot, self._meter = handle, snapshot, meter
        self._server: asyncio.Server | None = None
        self._clients: set[_Client] = set()

    async def open(self) -> None:
        """Listen. Raises ControlError if another daemon does, or the path can't be used."""
        if _is_served(self._path):
            raise ControlError(f"{self._path}: another voiced is running; stop it, or use --socket")
        try:
            self._path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            old = os.umask(0o117)
            try:  # asyncio replaces a socket left by a crash, and nothing but a socket
                self._server = await asyncio.start_unix_server(
                    self._serve, str(self._path), limit=MAX_LINE
                )
            finally:
                os.umask(old)
        except OSError as exc:
            raise ControlError(f"{self._path}: {exc.strerror or exc}; use --socket") from exc

    def close(self) -> None:
        """Stop listening and drop the clients. Safe twice and without `open`."""
        if self._server:
            self._server.close()
            self._server = None
            self._path.unlink(missing_ok=True)
        for client in list(self._clients):
            client.drop()

    @property
    def is_metered(self) -> bool:
        """True if somebody looks at the meter."""
        return any(client.is_metered for client in self._clients)

    def tell(self, event: dict[str, Any]) -> None:
        """Send an event to everybody who is connected."""
        if self._clients:
            line = _line(event)
            for client in list(self._clients):
                self._send(client, line)

    def _send(self, client: _Client, line: bytes) -> None:
        if not client.send(line):
            self.dropped_clients += 1

    def _tell_meter(self, client: _Client) -> None:
        self._send(client, _line({"meter": self._meter()}))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client = _Client(writer)
        if len(self._clients) >= MAX_CLIENTS:
            client.send(_line({"error": f"there are {MAX_CLIENTS} clients already"}))
            client.drop()
            return
        self._clients.add(client)
        try:
            client.send(_line({"version": VERSION, "snapshot": self._snapshot()}))
            while line := await reader.readline():
                self._send(client, _line(self._answer(client, line)))
                await asyncio.sleep(PAUSE_S)
        except ValueError:
            client.send(_line({"error": f"a line is longer than {MAX_LINE} bytes"}))
        except OSError:
            pass  # the client is gone
        finally:
            self._clients.discard(client)
            client.drop()

    def _answer(self, client: _Client, line: bytes) -> Answer:
        try:
            request = json.loads(line)
            command = request["command"]
        except (ValueError, TypeError, KeyError, RecursionError):
            return {"ok": False, "text": 'not understood: send {"command": "status"}'}
        if command == "status":
            return {"ok": True, "snapshot": self._snapshot()}
        if command == "watch":
            client.measure(request.get("meter_ms"), self._tell_meter)
            return {"ok": True, "text": "watching"}
        return self._handle(str(command), client.who + _claimed(request.get("user")))


class _Client:
    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self._timer: asyncio.TimerHandle | None = None
        self.who = _who(writer.get_extra_info("socket"))

    @property
    def is_metered(self) -> bool:
        return self._timer is not None

    def send(self, line: bytes) -> bool:
        """False if the client is so far behind that it was dropped."""
        if self._writer.is_closing():
            return True
        self._writer.write(line)
        if self._writer.transport.get_write_buffer_size() > MAX_BEHIND:
            self.drop()
            return False
        return True

    def drop(self) -> None:
        """Hang up. What a slow client has not read is thrown away: it would keep its place."""
        if self._timer:
            self._timer.cancel()
        if self._writer.transport.get_write_buffer_size():
            self._writer.transport.abort()
        else:
            self._writer.close()

    def measure(self, period_ms: Any, tell: Callable[[_Client], None]) -> None:
        """Tell the meter now and every `period_ms`; None or 0 ends it."""
        if self._timer:
            self._timer.cancel()
            self._timer = None
        if not isinstance(period_ms, int) or period_ms <= 0 or self._writer.is_closing():
            return
        tell(self)
        delay_s = min(max(period_ms, METER_MIN_MS), METER_MAX_MS) / 1000
        self._timer = asyncio.get_running_loop().call_later(delay_s, self.measure, period_ms, tell)


def _line(message: dict[str, Any]) -> bytes:
    return json.dumps(message, separators=(",", ":"), default=str).encode() + b"\n"


def _who(sock: Any) -> str:
    """Who is at the other end, as the kernel knows it."""
    pid, uid, _ = struct.unpack(
        "3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    )
    return f"uid {uid}, pid {pid}"


def _claimed(user: Any) -> str:
    """Whose the client says it is. In the unit's user namespace the kernel calls everybody but
    root 65534, and those who may connect are trusted anyway."""
    is_name = isinstance(user, str) and user.isprintable() and 0 < len(user) <= MAX_NAME
    return f" ({user}, it says)" if is_name else ""


def _is_served(path: Path) -> bool:
    """True if somebody listens there. A file left by a crash is nobody."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(0.5)
        try:
            probe.connect(str(path))
        except (BlockingIOError, TimeoutError):
            return True  # too busy to accept, but there
        except OSError:
            return False
        return True
