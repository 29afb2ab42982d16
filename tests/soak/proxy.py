"""A TCP proxy that can be every bad network between the daemon and its server.

All of it belongs to the loop it was started in. What it delays it keeps in order, and bounded: a
direction that is full is not read any more, so that TCP pushes back as a slow line does.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass

from voiced.sim.server import _drop_incoming

CHUNK_BYTES = 16 * 1024
QUEUED_CHUNKS = 64
"""Of a direction: 1 MB on its way, as a line with a large buffer holds."""
SMALL_BUFFER_BYTES = 8 * 1024
"""Of a socket that is read slowly: the kernel's own would hide the slowness for a minute."""


@dataclass
class Weather:
    """What befalls the bytes of every connection."""

    up_bytes_per_s: float | None = None
    delay_s: float = 0.0
    jitter_s: float = 0.0


class Proxy:
    """Listens on `host`, forwards to `target`."""

    def __init__(self, host: str, target: tuple[str, int], seed: int = 0) -> None:
        self.weather = Weather()
        self.unanswered = False
        """Connections are accepted, and nothing comes of them."""
        self.port = 0
        self._host, self._target = host, target
        self._rng = random.Random(seed)
        self._listener: asyncio.Server | None = None
        self._pairs: set[_Pair] = set()

    def __repr__(self) -> str:
        return f"<Proxy {self._host}:{self.port} {len(self._pairs)} connections {self.weather}>"

    async def start(self) -> None:
        """Listen, again on the same port after `refuse`. Raises OSError."""
        if self._listener is None:
            self._listener = await asyncio.start_server(self._accept, self._host, self.port)
            self.port = self._listener.sockets[0].getsockname()[1]

    async def refuse(self) -> None:
        """New connections are refused until `start`; those there are go on."""
        if self._listener:
            self._listener.close()
            self._listener = None
        await asyncio.sleep(0)

    async def close(self) -> None:
        """Refuse, and end all connections. Safe twice."""
        await self.refuse()
        tasks = [pair.task for pair in self._pairs if pair.task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def clear(self) -> None:
        """Good weather for the connections to come and for those there are."""
        self.weather = Weather()
        self.unanswered = False

    def reset(self) -> None:
        """Break every connection off with a RST, both ways."""
        for pair in self._pairs:
            pair.reset()

    def vanish(self) -> None:
        """Be gone for those who are connected now: nothing is sent, nothing acknowledged."""
        for pair in self._pairs:
            pair.vanish()

    def swallow(self) -> None:
        """From those who are connected now bytes are taken, acknowledged and lost."""
        for pair in self._pairs:
            pair.swallows = True

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        pair = _Pair(reader, writer)
        pair.task = asyncio.current_task()
        self._pairs.add(pair)
        try:
            if self.unanswered:
                await reader.read()  # until it gives up
                return
            server = await asyncio.open_connection(*self._target)
            pair.writers.append(server[1])
            await self._forward(pair, server)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._pairs.discard(pair)
            for each in pair.writers:
                each.transport.abort()

    async def _forward(
        self, pair: _Pair, server: tuple[asyncio.StreamReader, asyncio.StreamWriter]
    ) -> None:
        both = (
            asyncio.create_task(self._carry(pair, pair.reader, server[1], up=True)),
            asyncio.create_task(self._carry(pair, server[0], pair.writers[0], up=False)),
        )
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if pair.vanished:
                await asyncio.Event().wait()  # until the soak ends it
        finally:
            for each in both:
                each.cancel()
            await asyncio.gather(*both, return_exceptions=True)

    async def _carry(
        self,
        pair: _Pair,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        up: bool,
    ) -> None:
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(QUEUED_CHUNKS)
        sender = asyncio.create_task(self._send(pair, queue, writer, up=up))
        due = 0.0
        try:
            while data := await reader.read(CHUNK_BYTES):
                if pair.swallows:
                    continue
                wait_s = self.weather.delay_s + self._rng.uniform(0, self.weather.jitter_s)
                due = max(due, time.monotonic() + wait_s)
                await queue.put((due, data))
            await queue.put((due, b""))
            await sender
        finally:
            sender.cancel()
            await asyncio.gather(sender, return_exceptions=True)

    async def _send(
        self,
        pair: _Pair,
        queue: asyncio.Queue[tuple[float, bytes]],
        writer: asyncio.StreamWriter,
        *,
        up: bool,
    ) -> None:
        while True:
            due, data = await queue.get()
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            if not data:
                return
            if pair.vanished:
                continue
            writer.write(data)
            await writer.drain()
            if up and self.weather.up_bytes_per_s:
                pair.narrow()
                await asyncio.sleep(len(data) / self.weather.up_bytes_per_s)


class _Pair:
    """The daemon's connection, and ours to the server."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writers = reader, [writer]
        self.task: asyncio.Task[None] | None = None
        self.vanished = self.swallows = False

    def _each_socket(self, do: Callable[[socket.socket], object]) -> None:
        for writer in self.writers:
            with contextlib.suppress(OSError):
                do(writer.transport.get_extra_info("socket"))

    def narrow(self) -> None:
        """Let the kernel hold little of what comes from the daemon."""
        with contextlib.suppress(OSError):
            sock = self.writers[0].transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER_BYTES)

    def reset(self) -> None:
        linger = struct.pack("ii", 1, 0)
        self._each_socket(lambda s: s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger))
        for writer in self.writers:
            writer.transport.abort()

    def vanish(self) -> None:
        self.vanished = True
        with contextlib.suppress(OSError):
            _drop_incoming(self.writers[0].transport.get_extra_info("socket"))
