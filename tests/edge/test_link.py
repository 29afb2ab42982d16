"""The WebSocket edge against real sockets: the built-in server, a plain one, and bare TCP."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import errno
import logging
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from tests import certificate as certificates
from tests.certificate import self_signed
from tests.edge.test_network import Namespace, cable, ip
from voiced.config import Realtime, Secret
from voiced.edge import link as links
from voiced.edge.link import CLOSE_TIMEOUT_S, MAX_LOOKUPS, MAX_UNSENT, Link
from voiced.edge.service import set_up_logging
from voiced.events import AudioSent, LinkClosed, LinkFrame, LinkOpened
from voiced.sim.faults import GARBAGE
from voiced.sim.server import SimOptions, SimServer

DEADLINE_S = 15.0  # for what takes milliseconds on an idle machine
KEY = Secret("sk-secret-of-the-test")

Event = LinkOpened | LinkClosed | LinkFrame | AudioSent
Kind = TypeVar("Kind", LinkOpened, LinkClosed, LinkFrame, AudioSent)


class Heard:
    """What the link posted."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._changed = asyncio.Event()

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        self._changed.set()

    def of(self, kind: type[Kind]) -> list[Kind]:
        return [event for event in self.events if isinstance(event, kind)]

    async def next(self, kind: type[Kind], number: int = 1) -> Kind:
        """The `number`th event of this kind."""
        await self.until(lambda: len(self.of(kind)) >= number)
        return self.of(kind)[number - 1]

    async def next_of_dial(self, dial: int) -> Event:
        """What this dial posts first."""
        await self.until(lambda: any(event.dial == dial for event in self.events))
        return next(event for event in self.events if event.dial == dial)

    async def until(self, done: Callable[[], object]) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not done():
                self._changed.clear()
                await self._changed.wait()


def settings(url: str, **more: str) -> Realtime:
    return Realtime(url=url, **more)


@contextlib.asynccontextmanager
async def linked(
    look_up: links.LookUp = socket.getaddrinfo,
) -> AsyncIterator[tuple[Link, Heard]]:
    heard = Heard()
    link = Link(heard, look_up)
    try:
        yield link, heard
    finally:
        await link.closed()


def with_sim(
    test: Callable[[SimServer, Link, Heard], Awaitable[None]], options: SimOptions | None = None
) -> None:
    """Run a test with a link that has dialled (serial 7) the built-in server."""

    async def run() -> None:
        async with SimServer(options) as server, linked() as (link, heard):
            link.dial(7, settings(server.url), KEY)
            await test(server, link, heard)

    asyncio.run(run())


Talk = Callable[[ServerConnection], Awaitable[object]]


class Peer:
    """A plain WebSocket server: keeps requests and frames, and does what `talk` says first."""

    def __init__(self, talk: Talk | None = None) -> None:
        self.requests: list[Request] = []
        self.frames: asyncio.Queue[str | bytes] = asyncio.Queue()
        self.closed: asyncio.Queue[int | None] = asyncio.Queue()
        self.url = ""
        self._talk = talk

    async def handle(self, ws: ServerConnection) -> None:
        assert ws.request
        self.requests.append(ws.request)
        try:
            if self._talk:
                await self._talk(ws)
            async for frame in ws:
                self.frames.put_nowait(frame)
        except ConnectionClosed:
            pass
        finally:
            self.closed.put_nowait(ws.close_code)


@contextlib.asynccontextmanager
async def peer(
    talk: Talk | None = None, dates: list[str] | None = None, address: str = "127.0.0.1"
) -> AsyncIterator[Peer]:
    """`dates` are its `Date` headers, if not the time."""
    it = Peer(talk)

    def date(_: ServerConnection, __: Request, response: Response) -> None:
        if dates is not None:
            del response.headers["Date"]
            for each in dates:
                response.headers["Date"] = each

    server = serve(it.handle, address, 0, max_queue=1, close_timeout=0.2, process_response=date)
    async with server as running:
        port = next(iter(running.sockets)).getsockname()[1]
        it.url = f"ws://{address}:{port}/v1/realtime"
        yield it


@contextlib.asynccontextmanager
async def raw_server(answer: bytes) -> AsyncIterator[str]:
    """Bare TCP: to the first byte it says `answer` and hangs up; b"": it waits. Gives its URL."""
    done = asyncio.Event()

    async def serve_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(answer)
        if not answer:
            await done.wait()
        writer.close()

    server = await asyncio.start_server(serve_one, "127.0.0.1", 0)
    try:
        yield f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1/realtime"
    finally:
        done.set()
        server.close()
        await server.wait_closed()


def fails(url: str, look_up: links.LookUp = socket.getaddrinfo, **more: str) -> LinkClosed:
    """Dial `url`; how it failed. Nothing else may be posted."""

    async def run() -> LinkClosed:
        async with linked(look_up) as (link, heard):
            link.dial(3, settings(url, **more), KEY)
            closed = await heard.next(LinkClosed)
            assert heard.events == [closed]
            assert closed.dial == 3
            return closed

    return asyncio.run(run())


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# --- frames ------------------------------------------------------------------------------


def test_frames_go_both_ways_with_the_dials_serial() -> None:
    async def test(server: SimServer, link: Link, heard: Heard) -> None:
        began = time.monotonic()
        opened = await heard.next(LinkOpened)
        created = await heard.next(LinkFrame)
        assert b"session.created" in _bytes(created.text)
        link.send(b'{"type": "input_audio_buffer.append", "audio": "AAAA"}', audio_frames=480)
        link.send(b'{"type": "input_audio_buffer.clear"}')
        sent = await heard.next(AudioSent)
        cleared = await heard.next(LinkFrame, 2)
        assert b"input_audio_buffer.cleared" in _bytes(cleared.text)
        assert sent.frames == 480
        types = [event["type"] for event in server.current.events_received]
        assert types == ["input_audio_buffer.append", "input_audio_buffer.clear"]
        assert {event.dial for event in heard.events} == {7}
        assert began <= opened.at <= created.at <= cleared.at <= time.monotonic()

    with_sim(test)


def _bytes(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text


def test_garbage_and_binary_frames_come_through_as_they_are() -> None:
    async def test(server: SimServer, link: Link, heard: Heard) -> None:
        await heard.next(LinkFrame)
        await server.fault("garbage")
        await heard.next(LinkFrame, 1 + len(GARBAGE))
        assert tuple(frame.text for frame in heard.of(LinkFrame)[1:]) == GARBAGE
        assert not heard.of(LinkClosed)

    with_sim(test)


def test_text_that_is_no_utf8_ends_the_connection() -> None:
    async def run() -> None:
        async with (
            peer(lambda ws: ws.send(b"\xff\xfe", text=True)) as server,
            linked() as (link, heard),
        ):
            link.dial(1, settings(server.url), None)
            assert (await heard.next(LinkClosed)).fault is None
            assert await server.closed.get() == 1007
            assert not heard.of(LinkFrame)

    asyncio.run(run())


def test_a_frame_that_is_too_large_ends_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "MAX_FRAME_BYTES", 1000)

    async def run() -> None:
        async with peer(lambda ws: ws.send("x" * 1001)) as server, linked() as (link, heard):
            link.dial(1, settings(server.url), None)
            await heard.next(LinkClosed)
            assert await server.closed.get() == 1009
            assert not heard.of(LinkFrame)

    asyncio.run(run())


def test_the_request_has_model_and_key_and_nothing_else_of_ours() -> None:
    async def run() -> None:
        async with peer() as server, linked() as (link, heard):
            link.dial(1, settings(server.url, model="a b&c"), KEY)
            await heard.next(LinkOpened)
            link.dial(2, settings(server.url), None)
            await heard.next(LinkOpened, 2)
            first, second = server.requests
            assert first.path == "/v1/realtime?model=a%20b%26c"
            assert first.headers["Authorization"] == f"Bearer {KEY.reveal()}"
            assert first.headers["User-Agent"].startswith("voiced/")
            assert "Authorization" not in second.headers
            for name in ("OpenAI-Beta", "Sec-WebSocket-Extensions", "Sec-WebSocket-Protocol"):
                assert name not in first.headers

    asyncio.run(run())


def told_time(dates: list[str] | None) -> float | None:
    """`server_time` of a server with these `Date` headers."""

    async def run() -> float | None:
        async with peer(dates=dates) as server, linked() as (link, heard):
            link.dial(1, settings(server.url), None)
            return (await heard.next(LinkOpened)).server_time

    return asyncio.run(run())


def test_the_servers_clock_is_told() -> None:
    before = time.time()
    server_time = told_time(None)
    assert server_time is not None
    assert before - 1 <= server_time <= time.time()  # it tells whole seconds


@pytest.mark.parametrize(
    ("dates", "server_time"),
    [
        (["Thu, 01 Jan 1970 00:01:40 GMT"], 100.0),
        (["Thu, 01 Jan 1970 00:01:40 -0000"], 100.0),  # no zone, for the parser
        (["Thu, 01 Jan 1970 01:01:40 +0100"], 100.0),
        (["yesterday", "Thu, 01 Jan 1970 00:01:40 GMT"], 100.0),
        ([], None),
        ([""], None),
        (["0"], None),
        (["Thu, 32 Jan 1970 00:01:40 GMT"], None),
        ([f"Thu, 01 Jan 1970 00:01:40 +{'9' * 20}"], None),
        ([f"Thu, 01 Jan {'9' * 30} 00:01:40 GMT"], None),
    ],
)
def test_a_date_is_read_or_left(dates: list[str], server_time: float | None) -> None:
    assert told_time(dates) == server_time


# --- how it ends -------------------------------------------------------------------------


@pytest.mark.parametrize("code", [1000, 1001, 1011, 3000])
def test_a_close_frame_is_told_with_its_code_and_reason(code: int) -> None:
    async def test(server: SimServer, link: Link, heard: Heard) -> None:
        await heard.next(LinkFrame)
        await server.current.close(code, "as it is")
        closed = await heard.next(LinkClosed)
        assert (closed.code, closed.reason) == (code, "as it is")
        assert (closed.http_status, closed.fault, closed.dial) == (None, None, 7)
        link.send(b"{}", audio_frames=480)  # into the void
        await link.closed()
        assert heard.events[-1] is closed

    with_sim(test)


def test_a_wrong_key_is_an_error_frame_and_close_3000() -> None:
    async def test(server: SimServer, link: Link, heard: Heard) -> None:
        closed = await heard.next(LinkClosed)
        assert closed.code == 3000
        assert b"invalid_api_key" in _bytes((await heard.next(LinkFrame)).text)
        assert [type(event) for event in heard.events] == [LinkOpened, LinkFrame, LinkClosed]

    with_sim(test, SimOptions(keys=frozenset({"another"})))


def test_a_reset_is_an_end_without_a_close_frame() -> None:
    async def test(server: SimServer, link: Link, heard: Heard) -> None:
        await heard.next(LinkFrame)
        await server.fault("reset")
        closed = await heard.next(LinkClosed)
        assert (closed.code, closed.http_status, closed.fault) == (None, None, None)

    with_sim(test)


def test_a_peer_that_acknowledges_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "USER_TIMEOUT_MS", 300)

    async def test(server: SimServer, link: Link, heard: Heard) -> None:
        await heard.next(LinkFrame)
        await server.fault("half-open")
        link.send(b'{"type": "input_audio_buffer.clear"}')
        began = time.monotonic()
        closed = await heard.next(LinkClosed)
        assert closed.code is None
        assert time.monotonic() - began < 5  # the ping's limit is 30 s

    with_sim(test)


def test_a_refused_port_is_no_route() -> None:
    closed = fails(f"ws://127.0.0.1:{free_port()}/v1/realtime")
    assert (closed.fault, closed.http_status, closed.code) == ("no-route", None, None)


@pytest.mark.parametrize("status", [401, 404, 503])
def test_an_upgrade_refused_by_http_tells_its_status(status: int) -> None:
    async def test(server: SimServer, link: Link, heard: Heard) -> None:
        closed = await heard.next(LinkClosed)
        assert (closed.http_status, closed.code, closed.fault) == (status, None, None)
        assert heard.events == [closed]
        assert server.dials == 1

    with_sim(test, SimOptions(http_status=status))


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        (errno.ENETDOWN, "no-network"),
        (errno.EADDRNOTAVAIL, "no-network"),
        (errno.ENETUNREACH, "no-route"),
        (errno.EHOSTUNREACH, "no-route"),
        (errno.ECONNREFUSED, "no-route"),
        (errno.ETIMEDOUT, "timeout"),
    ],
)
def test_why_the_server_is_not_reached(
    code: int, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def connect(address: links.Address) -> socket.socket:
        raise OSError(code, "as it is")

    monkeypatch.setattr(links, "_connect", connect)
    assert fails("ws://192.0.2.1/v1/realtime").fault == fault


@pytest.mark.parametrize("first", [errno.ENETUNREACH, errno.EADDRNOTAVAIL])
def test_of_several_addresses_the_one_that_could_be_reached_tells_why(
    first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A house without IPv6: what is wrong with the server is what IPv4 says."""

    async def connect(address: links.Address) -> socket.socket:
        code = first if address[0] == socket.AF_INET6 else errno.ECONNREFUSED
        raise OSError(code, str(address[4][0]))

    monkeypatch.setattr(links, "_connect", connect)
    addresses = [*address_of("2001:db8::1"), *address_of("192.0.2.1"), *address_of("2001:db8::2")]
    closed = fails("ws://server.example/v1/realtime", lambda *_, **__: addresses)
    assert closed.fault == "no-route"
    assert "192.0.2.1" in closed.reason


def address_of(literal: str, port: int = 80) -> list[links.Address]:
    return list(socket.getaddrinfo(literal, port, type=socket.SOCK_STREAM))


def test_an_address_that_leads_nowhere_does_not_delay_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given_up = []
    connect_in_truth = links._connect

    async def connect(address: links.Address) -> socket.socket:
        if address[4][0] == "127.0.0.1":
            return await connect_in_truth(address)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            given_up.append(address[4][0])
            raise
        raise AssertionError

    monkeypatch.setattr(links, "_connect", connect)

    async def run() -> None:
        async with peer() as server:
            port = int(server.url.split(":")[2].partition("/")[0])
            addresses = [*address_of("2001:db8::1"), *address_of("127.0.0.1", port)]
            async with linked(lambda *_, **__: addresses) as (link, heard):
                link.dial(1, settings(f"ws://server.example:{port}/v1/realtime"), None)
                async with asyncio.timeout(links.OPEN_TIMEOUT_S / 2):
                    await heard.next(LinkOpened)
                assert given_up == ["2001:db8::1"]

    asyncio.run(run())


def test_a_line_that_dropped_the_first_knock_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    connect_in_truth = links._connect
    tried = []

    async def connect(address: links.Address) -> socket.socket:
        tried.append(address)
        if len(tried) <= 3:
            await asyncio.Event().wait()
        return await connect_in_truth(address)

    monkeypatch.setattr(links, "_connect", connect)
    monkeypatch.setattr(links, "KNOCK_AGAIN_S", 0.01)

    async def run() -> None:
        async with peer() as server, linked() as (link, heard):
            link.dial(1, settings(server.url), None)
            await heard.next(LinkOpened)

    asyncio.run(run())
    assert len(tried) == 4


def test_a_server_that_never_answers_is_knocked_at_a_bounded_number_of_times(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried = []

    async def connect(address: links.Address) -> socket.socket:
        tried.append(address)
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(links, "_connect", connect)
    monkeypatch.setattr(links, "KNOCK_AGAIN_S", 0.001)
    monkeypatch.setattr(links, "OPEN_TIMEOUT_S", 0.5)
    assert fails("ws://192.0.2.1/v1/realtime").fault == "timeout"
    assert len(tried) == links.MAX_KNOCKING


def test_of_two_that_connect_the_second_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """With ResourceWarning an error, a socket forgotten fails the test."""
    both = asyncio.Event()
    count = 0
    connect_in_truth = links._connect

    async def connect(address: links.Address) -> socket.socket:
        nonlocal count
        sock = await connect_in_truth(address)
        count += 1
        if count == 2:
            both.set()
        await both.wait()
        return sock

    monkeypatch.setattr(links, "_connect", connect)

    async def run() -> None:
        async with peer() as server:
            port = int(server.url.split(":")[2].partition("/")[0])
            addresses = address_of("127.0.0.1", port) * 2
            async with linked(lambda *_, **__: addresses) as (link, heard):
                link.dial(1, settings(f"ws://server.example:{port}/v1/realtime"), None)
                await heard.next(LinkOpened)
        assert len(server.requests) == 1

    asyncio.run(run())


# --- names -------------------------------------------------------------------------------


def test_a_name_is_looked_up() -> None:
    asked = []

    def look_up(host: str, port: int, **_: Any) -> list[links.Address]:
        asked.append(host)
        return address_of("127.0.0.1", port)

    async def run() -> None:
        async with peer() as server, linked(look_up) as (link, heard):
            link.dial(1, settings(server.url.replace("127.0.0.1", "server.example")), None)
            await heard.next(LinkOpened)
            assert server.requests[0].headers["Host"].startswith("server.example:")
            link.dial(2, settings(server.url), None)
            await heard.next(LinkOpened, 2)
        assert asked == ["server.example"]  # an address is no name

    asyncio.run(run())


def test_a_name_that_is_not_found() -> None:
    def not_found(*_: Any, **__: Any) -> list[links.Address]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    assert fails("wss://realtime.example/v1/realtime", not_found).fault == "no-dns"


class DeadResolver:
    """Hangs until `answer` is set; then, as ever, 127.0.0.1."""

    def __init__(self) -> None:
        self.answer = threading.Event()
        self.asked = 0

    def __call__(self, host: str, port: int, **_: Any) -> list[links.Address]:
        self.asked += 1
        assert self.answer.wait(4 * DEADLINE_S)
        return address_of("127.0.0.1", port)


def test_a_resolver_that_hangs_is_a_name_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "OPEN_TIMEOUT_S", 0.1)
    resolver = DeadResolver()
    closed = fails("wss://realtime.example/v1/realtime", resolver)
    assert closed.fault == "no-dns"
    resolver.answer.set()


def test_lookups_that_hang_are_bounded_and_delay_nothing_that_comes_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ten minutes without a resolver: 40 dials, 15 s apart, are given up one after the other."""
    resolver = DeadResolver()

    async def run() -> None:
        async with peer() as server, linked(resolver) as (link, heard):
            named = settings(server.url.replace("127.0.0.1", "server.example"))
            threads = threading.active_count()
            with monkeypatch.context() as patch:
                patch.setattr(links, "OPEN_TIMEOUT_S", 0.01)
                for number in range(40):
                    link.dial(number, named, None)
                    closed = await heard.next(LinkClosed, number + 1)
                    assert closed.fault == "no-dns"
            assert resolver.asked == MAX_LOOKUPS
            assert threading.active_count() <= threads + MAX_LOOKUPS
            async with asyncio.timeout(DEADLINE_S):  # and the loop's own threads are free
                await asyncio.gather(*(asyncio.to_thread(lambda: None) for _ in range(40)))
            resolver.answer.set()
            for number in range(40, 1000):
                link.dial(number, named, None)
                if isinstance(await heard.next_of_dial(number), LinkOpened):
                    return
            pytest.fail("the answers to the lookups that hung did not make room")

    asyncio.run(run())


def test_a_dial_does_not_wait_for_the_lookup_of_an_earlier_one() -> None:
    """The network came back, with another resolver; the first lookup waits for the old one."""
    dead = DeadResolver()

    def look_up(host: str, port: int, **more: Any) -> list[links.Address]:
        return dead(host, port) if not dead.asked else address_of("127.0.0.1", port)

    async def run() -> None:
        async with peer() as server, linked(look_up) as (link, heard):
            named = settings(server.url.replace("127.0.0.1", "server.example"))
            link.dial(1, named, None)
            await asyncio.to_thread(wait_for, lambda: dead.asked)
            link.dial(2, named, None)
            assert (await heard.next(LinkOpened)).dial == 2
            dead.answer.set()

    asyncio.run(run())


def wait_for(done: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_lookup_that_hangs_does_not_delay_the_end_of_the_process() -> None:
    program = """
import asyncio, threading, time
from voiced.config import Realtime
from voiced.edge.link import Link

asked = threading.Event()

def look_up(*_, **__):
    asked.set()
    time.sleep(600)

async def run():
    link = Link(print, look_up)
    link.dial(1, Realtime(url="wss://realtime.example/v1/realtime"), None)
    await asyncio.to_thread(asked.wait)
    await link.closed()

asyncio.run(run())
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=2 * DEADLINE_S)


def test_a_name_that_can_not_be_one() -> None:
    assert fails("wss://a..b/v1/realtime").fault == "no-dns"


def test_a_server_that_never_answers_the_upgrade_times_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(links, "OPEN_TIMEOUT_S", 0.2)

    async def run() -> None:
        async with raw_server(b"") as url, linked() as (link, heard):
            link.dial(1, settings(url), KEY)
            assert (await heard.next(LinkClosed)).fault == "timeout"
            assert not heard.of(LinkOpened)

    asyncio.run(run())


@pytest.mark.parametrize("answer", [b"SSH-2.0-OpenSSH_9.2\r\n\r\n", b"\x00\r\n\r\n"])
def test_a_server_that_is_no_web_server_at_all(answer: bytes) -> None:
    async def run() -> None:
        async with raw_server(answer) as url, linked() as (link, heard):
            link.dial(1, settings(url), KEY)
            assert (await heard.next(LinkClosed)).fault == "server-error"

    asyncio.run(run())


def test_a_redirect_is_not_followed() -> None:
    async def run() -> None:
        async with peer() as other:
            answer = f"HTTP/1.1 302 Found\r\nLocation: {other.url}\r\nContent-Length: 0\r\n\r\n"
            async with raw_server(answer.encode()) as url, linked() as (link, heard):
                link.dial(1, settings(url), KEY)
                assert (await heard.next(LinkClosed)).http_status == 302
                assert not other.requests

    asyncio.run(run())


def test_a_proxy_in_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("all_proxy", "http_proxy", "https_proxy", "ws_proxy", "wss_proxy", "socks_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    monkeypatch.delenv("no_proxy", raising=False)

    async def test(server: SimServer, link: Link, heard: Heard) -> None:
        await heard.next(LinkOpened)

    with_sim(test)


def test_ws_to_a_peer_outside_the_house_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "is_private", lambda peer: False)

    async def test(server: SimServer, link: Link, heard: Heard) -> None:
        closed = await heard.next(LinkClosed)
        assert heard.events == [closed]
        assert "127.0.0.1" in closed.reason

    with_sim(test)


# --- TLS ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ssl.SSLContext]:
    """A certificate for 127.0.0.1 that signed itself, and a server's context with it."""
    certificate, key = self_signed(tmp_path_factory.mktemp("tls"), "127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return certificate, context


def dial_tls(context: ssl.SSLContext, ca_file: str) -> list[Event]:
    """Dial a wss:// server; all that was posted up to the first frame or the end."""

    async def run() -> list[Event]:
        async with SimServer(SimOptions(ssl=context)) as server, linked() as (link, heard):
            link.dial(1, settings(server.url, ca_file=ca_file), KEY)
            await heard.until(lambda: heard.of(LinkFrame) or heard.of(LinkClosed))
            return heard.events

    return asyncio.run(run())


def test_an_authority_of_ones_own_is_trusted(authority: tuple[Path, ssl.SSLContext]) -> None:
    certificate, context = authority
    assert [type(event) for event in dial_tls(context, str(certificate))] == [LinkOpened, LinkFrame]


def test_a_certificate_nobody_knows_is_untrusted(authority: tuple[Path, ssl.SSLContext]) -> None:
    (closed,) = dial_tls(authority[1], "")
    assert isinstance(closed, LinkClosed)
    assert closed.fault == "tls-untrusted"


def test_an_authority_that_was_put_right_is_read_at_the_next_dial(
    authority: tuple[Path, ssl.SSLContext], tmp_path: Path
) -> None:
    certificate, context = authority
    another, _ = self_signed(tmp_path, "127.0.0.1")

    async def run() -> list[Event]:
        async with SimServer(SimOptions(ssl=context)) as server, linked() as (link, heard):
            link.dial(1, settings(server.url, ca_file=str(another)), KEY)
            await heard.until(lambda: heard.of(LinkClosed))
            another.write_bytes(certificate.read_bytes())
            link.dial(2, settings(server.url, ca_file=str(another)), KEY)
            await heard.until(lambda: heard.of(LinkFrame) or len(heard.of(LinkClosed)) > 1)
            return heard.events

    assert [type(event) for event in asyncio.run(run())] == [LinkClosed, LinkOpened, LinkFrame]


def fault_of_certificate(folder: Path, made_days_ago: int, patch: pytest.MonkeyPatch) -> str | None:
    """Of a certificate that is valid from a day before to a day after it was made."""

    class Then(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Then:
            then = datetime.datetime.now(tz) - datetime.timedelta(days=made_days_ago)
            return cls.fromtimestamp(then.timestamp(), tz)

    clock = SimpleNamespace(datetime=Then, timedelta=datetime.timedelta, UTC=datetime.UTC)
    patch.setattr(certificates, "datetime", clock)
    certificate, key = self_signed(folder, "127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    last = dial_tls(context, str(certificate))[-1]
    return last.fault if isinstance(last, LinkClosed) else None


def test_a_certificate_not_yet_valid_tells_of_the_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fault_of_certificate(tmp_path, -3, monkeypatch) == "clock-wrong"


def test_an_expired_certificate_is_untrusted_unless_the_clock_is_far_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fault_of_certificate(tmp_path, 3, monkeypatch) == "tls-untrusted"
    yesterday = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    monkeypatch.setattr(links, "LAST_PLAUSIBLE", yesterday)
    assert fault_of_certificate(tmp_path, 3, monkeypatch) == "clock-wrong"
    assert fault_of_certificate(tmp_path, 0, monkeypatch) is None


@pytest.mark.parametrize("text", [None, "no certificate"])
def test_a_ca_file_that_can_not_be_used_is_named(tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "ca.pem"
    if text:
        file.write_text(text)
    closed = fails(f"wss://127.0.0.1:{free_port()}/v1/realtime", ca_file=str(file))
    assert closed.fault == "tls-untrusted"
    assert f"realtime.ca_file = {file}" in closed.reason


def test_a_server_without_tls_is_no_missing_network() -> None:
    async def run() -> None:
        async with (
            raw_server(b"HTTP/1.1 400 Bad\r\n\r\n") as url,
            linked() as (link, heard),
        ):
            link.dial(1, settings(url.replace("ws:", "wss:")), KEY)
            assert (await heard.next(LinkClosed)).fault == "server-error"

    asyncio.run(run())


# --- giving up ---------------------------------------------------------------------------


def test_nothing_is_posted_after_close() -> None:
    async def flood(ws: ServerConnection) -> None:
        for _ in range(500):
            await ws.send("more")

    async def run() -> None:
        async with peer(flood) as server, linked() as (link, heard):
            link.dial(1, settings(server.url), None)
            await heard.next(LinkFrame, 20)
            link.close()
            so_far = list(heard.events)
            async with asyncio.timeout(DEADLINE_S):
                await server.closed.get()
            assert heard.events == so_far

    asyncio.run(run())


def test_close_drops_what_is_queued_and_reports_none_of_it() -> None:
    async def run() -> None:
        async with peer() as server, linked() as (link, heard):
            link.dial(1, settings(server.url), None)
            await heard.next(LinkOpened)
            link.send(b"first", audio_frames=480)
            await heard.next(AudioSent)
            link.send(b"second", audio_frames=480)
            link.close()
            link.send(b"third", audio_frames=480)
            async with asyncio.timeout(DEADLINE_S):
                assert await server.closed.get() == 1000
            assert server.frames.get_nowait() == "first"
            assert server.frames.empty()
            assert len(heard.of(AudioSent)) == 1
            assert not heard.of(LinkClosed)

    asyncio.run(run())


def test_a_second_dial_gives_up_the_first() -> None:
    async def test(server: SimServer, link: Link, heard: Heard) -> None:
        await heard.next(LinkFrame)
        link.dial(8, settings(server.url), KEY)
        before = len(heard.events)
        await heard.next(LinkFrame, 2)
        await server.wait_for(lambda: not server.sessions[0].is_open, DEADLINE_S)
        assert server.sessions[0].close_code == 1000
        assert server.sessions[1].is_open
        assert {event.dial for event in heard.events[before:]} == {8}

    with_sim(test)


def test_a_second_dial_gives_up_a_first_that_hangs() -> None:
    async def run() -> None:
        async with raw_server(b"") as hung, SimServer() as server, linked() as (link, heard):
            link.dial(1, settings(hung), KEY)
            link.send(b"for the first", audio_frames=480)
            link.dial(2, settings(server.url), KEY)
            await heard.next(LinkFrame)
            assert {event.dial for event in heard.events} == {2}
            assert not server.current.events_received

    asyncio.run(run())


def test_drop_unsent_drops_audio_only_and_accounts_for_it() -> None:
    async def run() -> None:
        async with peer() as server, linked() as (link, heard):
            link.dial(1, settings(server.url), None)
            await heard.next(LinkOpened)
            link.send(b"audio one", audio_frames=480)
            link.send(b"text")
            link.send(b"audio two", audio_frames=960)
            link.drop_unsent()
            assert [sent.frames for sent in heard.of(AudioSent)] == [1440]
            link.drop_unsent()
            link.send(b"audio three", audio_frames=480)
            await heard.next(AudioSent, 2)
            async with asyncio.timeout(DEADLINE_S):
                assert [await server.frames.get() for _ in range(2)] == ["text", "audio three"]
            assert [sent.frames for sent in heard.of(AudioSent)] == [1440, 480]

    asyncio.run(run())


def test_a_socket_that_takes_nothing_is_given_up_as_stalled() -> None:
    async def run() -> None:
        reads = asyncio.Event()
        async with peer(lambda ws: reads.wait()) as server, linked() as (link, heard):
            link.dial(1, settings(server.url), None)
            await heard.next(LinkOpened)
            sent = 0
            while not heard.of(LinkClosed) and sent < 4 * MAX_UNSENT:
                link.send(bytes(64 * 1024), audio_frames=480)  # the kernel takes some megabytes
                sent += 1
                await asyncio.sleep(0)
            async with asyncio.timeout(2):  # TCP alone would notice after USER_TIMEOUT_MS
                closed = await heard.next(LinkClosed)
            assert closed.fault == "stalled"
            assert sent > MAX_UNSENT
            reads.set()

    asyncio.run(run())


def test_too_much_said_before_the_connection_stalls_it_too() -> None:
    async def test(server: SimServer, link: Link, heard: Heard) -> None:
        for _ in range(MAX_UNSENT + 1):
            link.send(b"{}")
        assert (await heard.next(LinkClosed)).fault == "stalled"
        assert not server.sessions or not server.current.events_received

    with_sim(test)


def test_closed_waits_until_the_server_knows() -> None:
    async def test(server: SimServer, link: Link, heard: Heard) -> None:
        await heard.next(LinkFrame)
        await link.closed()
        await server.wait_for(lambda: not server.current.is_open, DEADLINE_S)
        assert server.current.close_code == 1000
        await link.closed()

    with_sim(test)


@pytest.mark.parametrize("unsent", [0, 50])
def test_closed_does_not_wait_long_for_a_server_that_hangs(unsent: int) -> None:
    async def test(server: SimServer, link: Link, heard: Heard) -> None:
        await heard.next(LinkFrame)
        await server.fault("half-open")
        for _ in range(unsent):
            link.send(bytes(64 * 1024))
            await asyncio.sleep(0)
        began = time.monotonic()
        await link.closed()
        assert time.monotonic() - began < CLOSE_TIMEOUT_S + 0.5

    with_sim(test)


def test_closing_without_a_dial_does_nothing() -> None:
    async def run() -> None:
        async with linked() as (link, heard):
            link.close()
            link.close()
            link.send(b"{}")
            link.drop_unsent()
            await link.closed()
            assert heard.events == []

    asyncio.run(run())


# --- the network changes ------------------------------------------------------------------


def test_an_address_that_stays_keeps_the_link() -> None:
    async def test(server: SimServer, link: Link, heard: Heard) -> None:
        link.check_address()  # not yet connected
        await heard.next(LinkFrame)
        link.check_address()
        link.send(b'{"type": "input_audio_buffer.clear"}')
        await heard.next(LinkFrame, 2)
        assert not heard.of(LinkClosed)
        await link.closed()
        link.check_address()
        assert not heard.of(LinkClosed)

    with_sim(test)


@contextlib.contextmanager
def far_peer(there: Namespace) -> Iterator[Peer]:
    """At 10.77.0.2."""
    stack = contextlib.AsyncExitStack()
    try:
        yield there.do(stack.enter_async_context(peer(address="10.77.0.2")))
    finally:
        there.do(stack.aclose())


def test_an_address_that_goes_ends_the_link_at_once() -> None:
    with cable() as (here, there), far_peer(there) as server:

        async def run() -> None:
            async with linked() as (link, heard):
                link.dial(4, settings(server.url), None)
                await heard.next(LinkOpened)
                await asyncio.to_thread(ip, "addr add 10.77.0.9/24 dev near")
                link.check_address()
                assert not heard.of(LinkClosed)
                await asyncio.to_thread(ip, "addr del 10.77.0.1/24 dev near")
                link.check_address()
                (closed,) = heard.of(LinkClosed)
                assert (closed.dial, closed.fault) == (4, "link-lost")
                assert "10.77.0.1 is gone" in closed.reason
                link.check_address()
                assert heard.events[-1] is closed

        here.do(run())


def test_a_peer_that_vanishes_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """While audio is sent by its acknowledgements, idle by the first ping without one."""
    ping_s = 1.0
    monkeypatch.setattr(links, "PING_INTERVAL_S", ping_s)
    user_s = links.USER_TIMEOUT_MS / 1000
    assert user_s + 1 <= 6

    async def noticed_s(heard: Heard, since: float) -> float:
        return (await heard.next(LinkClosed)).at - since

    with cable() as (here, there), far_peer(there) as server:

        async def run() -> tuple[float, float]:
            async with linked() as (busy, busy_heard), linked() as (idle, idle_heard):
                for link, heard in ((busy, busy_heard), (idle, idle_heard)):
                    link.dial(1, settings(server.url), None)
                    await heard.next(LinkOpened)
                busy.send(bytes(1280), audio_frames=480)
                await here.ip_of(there, "addr del 10.77.0.2/24 dev far")
                vanished = time.monotonic()
                for _ in range(50):
                    busy.send(bytes(1280), audio_frames=480)
                return await asyncio.gather(
                    noticed_s(busy_heard, vanished), noticed_s(idle_heard, vanished)
                )

        busy_s, idle_s = here.do(run())
    assert user_s - 1 < busy_s < user_s + 1
    assert idle_s < ping_s + user_s + 1


# --- the key -----------------------------------------------------------------------------


def test_the_key_is_in_no_log_and_no_repr(caplog: pytest.LogCaptureFixture) -> None:
    set_up_logging()
    caplog.set_level(logging.DEBUG)

    async def run(status: int) -> str:
        options = SimOptions(http_status=status, keys=frozenset({"another"}))
        async with SimServer(options) as server, linked() as (link, heard):
            link.dial(1, settings(server.url), KEY)
            await heard.next(LinkClosed)
            return f"{link!r} {vars(link)!r} {heard.events!r} {KEY} {KEY!r}"

    for status in (0, 401):
        assert KEY.reveal() not in asyncio.run(run(status), debug=True)
    assert KEY.reveal() not in caplog.text
