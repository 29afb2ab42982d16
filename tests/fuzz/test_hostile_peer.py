"""A peer that keeps to TCP and means no good: it never ends, or never begins. Each is one fault, or
nothing at all; the loop goes on, memory stays, and the next dial connects."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import itertools
import logging
import select
import socket
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection

from tests.certificate import self_signed
from tests.edge.test_link import DEADLINE_S, KEY, Heard, linked, peer, settings
from voiced.edge import link as links
from voiced.events import LinkClosed, LinkFrame

MEGABYTE = 2**20
MOST_HELD = 4 * MEGABYTE
"""Of memory, at any moment: a batch of what was read, and what was made of it."""

MOST_AT_ONCE = 16_384
"""Frames that are handled before the loop looks at everything else; of empty ones, 256 kB, which is
what the loop reads at once, hold eight times as many. Each takes 3 µs, 80 on a small board."""

MOST_SENT = 64 * MEGABYTE
"""Who would swallow this much swallows all."""

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, section 1.3


class Villain:
    """Takes one call in a thread of its own, says `opening` (None: a proper 101) and then what
    `more` yields, for as long as it is taken."""

    def __init__(
        self, more: Iterator[bytes], *, opening: bytes | None = None, reads: bool = True
    ) -> None:
        self.called = False
        self.sent = 0
        self._more, self._opening, self._reads = more, opening, reads
        self._stop = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}/v1/realtime"

    def __enter__(self) -> Villain:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._listener.shutdown(socket.SHUT_RDWR)  # whoever waits in `accept` wakes
        self._thread.join(DEADLINE_S)
        self._listener.close()
        assert not self._thread.is_alive()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            caller, _ = self._listener.accept()
            self.called = True
            with caller:
                caller.settimeout(DEADLINE_S)
                self._talk(caller)

    def _talk(self, caller: socket.socket) -> None:
        opening = self._opening
        if opening is None:
            opening = _upgraded(caller)
        caller.sendall(opening)
        caller.setblocking(False)
        for what in self._more:
            while what and not self._stop.is_set() and self.sent < MOST_SENT:
                readable, writable, _ = select.select(
                    [caller] if self._reads else [], [caller], [], 0.05
                )
                if readable and not caller.recv(65_536):
                    return
                if writable:
                    count = caller.send(what)
                    what = what[count:]
                    self.sent += count
            if self._stop.is_set() or self.sent >= MOST_SENT:
                return
        self._stop.wait(DEADLINE_S)


def _upgraded(caller: socket.socket) -> bytes:
    """Read the request; the answer that accepts it."""
    request = b""
    while b"\r\n\r\n" not in request:
        request += caller.recv(65_536)
    headers = dict(line.partition(b": ")[::2] for line in request.split(b"\r\n"))
    accept = base64.b64encode(hashlib.sha1(headers[b"Sec-WebSocket-Key"] + _GUID).digest())
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
    )


class Load:
    """What the link made of it."""

    held = 0
    """Bytes of memory at the worst moment."""
    at_once = 0
    """Frames between two rounds of the loop, at most."""


def meet(
    villain: Villain,
    *,
    scheme: str = "ws",
    over: Callable[[Heard], bool] | None = None,
    **more: str,
) -> tuple[LinkClosed | None, Load]:
    """Dial it, wait for the end (or until it is `over`), then dial somebody honest. How the first
    ended, once; None if it did not."""
    load = Load()

    async def run() -> LinkClosed | None:
        handled = 0
        process = ClientConnection.process_event

        def counted(self: ClientConnection, event: Any) -> None:
            nonlocal handled
            handled += 1
            load.at_once = max(load.at_once, handled)
            process(self, event)

        async def turn(heard: Heard) -> None:
            nonlocal handled
            while True:
                handled = 0
                heard._changed.set()  # whether it is over is looked at in each round, too
                await asyncio.sleep(0)

        patch.setattr(ClientConnection, "process_event", counted)
        async with peer(lambda ws: ws.send("hello")) as server, linked() as (link, heard):
            turns = asyncio.create_task(turn(heard))
            link.dial(1, settings(f"{scheme}://{villain.address}", **more), KEY)
            await heard.until(lambda: heard.of(LinkClosed) or (over and over(heard)))
            turns.cancel()
            _, load.held = tracemalloc.get_traced_memory()
            link.dial(2, settings(server.url), None)
            await heard.until(lambda: any(each.dial == 2 for each in heard.of(LinkFrame)))
            closed = heard.of(LinkClosed)
            assert [each.dial for each in closed] in ([1], [])
            return closed[0] if closed else None

    tracemalloc.start()
    try:
        with pytest.MonkeyPatch.context() as patch:
            return asyncio.run(run()), load
    finally:
        tracemalloc.stop()


def endless(what: bytes) -> Iterator[bytes]:
    """The same again and again, 64 kB at a time."""
    return itertools.repeat(what * (65_536 // len(what)))


def trickle(what: bytes, every_s: float = 0.02) -> Iterator[bytes]:
    """A byte now and then."""
    pause = threading.Event()
    for byte in itertools.cycle(what):
        pause.wait(every_s)
        yield bytes([byte])


# --- before it is a WebSocket ------------------------------------------------------------


@pytest.mark.parametrize(
    ("opening", "more", "fault"),
    [
        (b"HTTP/1.1 101 ", b"x", "server-error"),
        (b"HTTP/1.1 101 Ok\r\n", b"X-More: x\r\n", "server-error"),
        (b"HTTP/1.1 101 Ok\r\nX: ", b"x", "server-error"),
        (b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n", None),
        (b"HTTP/1.1 403 No\r\n\r\n", b"x", "server-error"),
        (b"HTTP/1.1 403 No\r\nContent-Length: 999999999999\r\n\r\n", b"x", "server-error"),
        (b"\x16\x03\x01\xff\xff", b"\x16\x03\x01\xff\xff", "server-error"),
    ],
    ids=["status", "headers", "header", "continue", "body", "length", "tls"],
)
def test_an_answer_to_the_upgrade_that_never_ends_is_given_up(
    opening: bytes, more: bytes, fault: str | None
) -> None:
    with Villain(endless(more), opening=opening) as villain:
        closed, load = meet(villain)
    assert closed
    assert (closed.fault, closed.http_status) == (fault, None if fault else 100)
    assert villain.sent < MOST_SENT
    assert load.held < MOST_HELD


@pytest.mark.parametrize(
    ("scheme", "opening", "more"),
    [
        ("ws", b"", b""),
        ("ws", b"HTTP/1.1 101 Ok\r\n", b"X: "),
        ("wss", b"", b""),
        ("wss", b"\x16\x03\x03\x40\x00", b"\x02\x00\x3f\xff"),  # a ServerHello, byte for byte
    ],
    ids=["silent", "trickle", "tls silent", "tls trickle"],
)
def test_a_peer_that_stalls_before_it_is_a_websocket_is_given_up_in_time(
    monkeypatch: pytest.MonkeyPatch, scheme: str, opening: bytes, more: bytes
) -> None:
    monkeypatch.setattr(links, "OPEN_TIMEOUT_S", 0.3)
    with Villain(trickle(more) if more else iter([]), opening=opening) as villain:
        closed, load = meet(villain, scheme=scheme)
    assert closed
    assert closed.fault == "timeout"
    assert load.held < MOST_HELD


def test_a_tls_peer_that_never_stops_shaking_hands_is_given_up() -> None:
    with Villain(endless(b"\x16\x03\x03\x40\x00" + b"\1" * 16_384), opening=b"") as villain:
        closed, load = meet(villain, scheme="wss")
    assert closed
    assert closed.fault in ("server-error", "timeout")
    assert villain.sent < MOST_SENT
    assert load.held < MOST_HELD


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("scheme", ["ws", "wss"])
def test_nobody_is_led_elsewhere(status: int, scheme: str) -> None:
    with Villain(iter([])) as elsewhere:
        redirect = f"HTTP/1.1 {status} Go\r\nLocation: {scheme}://{elsewhere.address}\r\n"
        redirect += "Content-Length: 0\r\n\r\n"
        with Villain(iter([]), opening=redirect.encode()) as villain:
            closed, _ = meet(villain)
        assert closed
        assert closed.http_status == status
    assert not elsewhere.called


# --- when it is one ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "more", "reads"),
    [
        (b"\x01\x00", b"\x00\x00", True),
        (b"\x01\x01a", b"\x00\x01a", True),
        (b"", b"\x89\x00", True),
        (b"", b"\x89\x00", False),
        (b"", b"\x8a\x00", True),
        (b"", b"\x81\x00", True),
        (b"", b"\x82\x01x", True),
    ],
    ids=["empty fragments", "fragments of a byte", "pings", "pings, pongs not read", "pongs",
         "empty texts", "bytes"],
)  # fmt: skip
def test_a_flood_of_frames_that_say_nothing_ends_the_connection(
    caplog: pytest.LogCaptureFixture, first: bytes, more: bytes, reads: bool
) -> None:
    with (
        caplog.at_level(logging.WARNING),
        Villain(itertools.chain([first], endless(more)), reads=reads) as villain,
    ):
        closed, load = meet(villain)
    assert closed
    assert villain.sent < MOST_SENT
    assert load.at_once <= MOST_AT_ONCE
    assert load.held < MOST_HELD
    assert len(caplog.records) < 10


def test_long_pings_whose_pongs_nobody_reads_end_the_connection_or_wait() -> None:
    ping = b"\x89\x7d" + b"x" * 125
    with Villain(endless(ping), reads=False) as villain:
        _, load = meet(villain, over=lambda heard: villain.sent > 16 * MEGABYTE)
    assert load.held < MOST_HELD


@pytest.mark.parametrize(
    "frame",
    [b"\x81\x7f" + (15 * MEGABYTE).to_bytes(8, "big"), b"\x81\x7e\xff\xff", b"\x89\x7d", b"\x01"],
    ids=["huge", "long", "ping", "half a header"],
)
def test_a_frame_that_never_ends_costs_what_came_of_it(frame: bytes) -> None:
    with Villain(itertools.chain([frame], trickle(b"x", 0.005))) as villain:
        closed, load = meet(villain, over=lambda heard: villain.sent > len(frame) + 20)
    assert closed is None or frame == b"\x01"
    assert load.held < MEGABYTE


def test_the_largest_frame_costs_some_times_its_size_and_not_more() -> None:
    size = links.MAX_FRAME_BYTES
    frame = b"\x81\x7f" + size.to_bytes(8, "big") + b"x" * size
    with Villain(iter([frame])) as villain:
        _, load = meet(villain, over=lambda heard: bool(heard.of(LinkFrame)))
    assert load.held < 5 * size


@pytest.mark.parametrize(
    ("last", "code"),
    [(b"\x88\x02\x03\xe9", 1001), (b"\xff\xff", None), (b"\x81\x01\xff", None),
     (b"\x81\x7f" + (2**40).to_bytes(8, "big"), None)],
    ids=["goodbye", "garbage", "text", "size"],
)  # fmt: skip
@pytest.mark.parametrize("then", [b"", b"\x81\x02{}"], ids=["stays", "talks on"])
def test_who_ends_it_and_does_not_hang_up_is_left(
    last: bytes, code: int | None, then: bytes
) -> None:
    with Villain(itertools.chain([last], trickle(then) if then else [])) as villain:
        closed, _ = meet(villain)
    assert closed
    assert closed.code == code


def test_a_certificate_is_asked_for_before_anything_is_said(tmp_path: Path) -> None:
    certificate, _ = self_signed(tmp_path, "127.0.0.1")
    with Villain(iter([b"HTTP/1.1 101 Ok\r\n\r\n"]), opening=b"") as villain:
        closed, _ = meet(villain, scheme="wss", ca_file=str(certificate))
    assert closed
    assert closed.fault == "server-error"
