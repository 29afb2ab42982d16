"""The WebSocket. One dial at a time; what an older one still says carries its serial."""

from __future__ import annotations

import asyncio
import email.utils
import errno
import logging
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from websockets.asyncio.client import ClientConnection, connect
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI
from websockets.frames import Frame
from websockets.protocol import Event
from websockets.uri import WebSocketURI, parse_uri

from voiced import __version__
from voiced.config import Realtime, Secret, is_loopback, is_private
from voiced.events import AudioSent, LinkClosed, LinkFrame, LinkOpened

log = logging.getLogger(__name__)

OPEN_TIMEOUT_S = 10.0
"""Name, TCP, TLS and upgrade took 0.3-1.5 s where it was seen; a weak Wi-Fi needs some seconds
more."""

HEAD_START_S = 0.25
"""An address is tried alone for so long, then the next one beside it (RFC 8305, section 5): where
IPv6 leads nowhere, IPv4 must not wait for it."""

KNOCK_AGAIN_S, MAX_KNOCKING = 1.0, 16
"""What a line drops of a connection's beginning, the kernel repeats after 1, 3 and 7 s: who dials
just before the line is good again would wait for up to 4 s. So all addresses are tried again each
second, beside those that still wait; at most so many wait, then no more are added."""

MAX_LOOKUPS = 8
"""Of names, that hang at once; one more fails as not found. Resolvers that said nothing held one
for 10 s (a single one) to 56 s (three, and a search domain), and a dial comes every 10 s."""

CLOSE_TIMEOUT_S = 0.5
"""We never wait for a server to say goodbye: stopping has 2 s for everything."""

PING_INTERVAL_S, PING_TIMEOUT_S = 20.0, 30.0
"""For an idle session. A home uplink full of an upload delays a pong by many seconds: a short
limit would kill a link that is merely slow."""

USER_TIMEOUT_MS = 5_000
"""TCP_USER_TIMEOUT: data sent and not acknowledged for this long is a dead link."""

MAX_FRAME_BYTES = 16 * 2**20
"""A retrieved item exceeds the library's 1 MiB. Larger than this is no answer: close 1009."""

FRAMES_AT_ONCE = 16
"""Read before the loop looks at everything else. An answer begins with some ten frames: on a
machine 25 times slower than a desktop a round of the loop for each made its sound 200 ms late."""

MAX_UNSENT = 256
"""Frames queued for the socket. The core keeps audio to 1 s, so this is never reached; if it is,
the socket takes nothing and is given up as stalled."""

SHORT_BYTES, MOST_SHORT = 16, 10_000
"""A frame this short holds no event, and a connection may bring so many: a ping a second for the
hour that a session lasts, and as much again. Pings, or the empty fragments of one message, came
131,072 at a time and held the loop for seconds; here they end the connection."""

MOST_UNREAD_BYTES = 2**20
"""Of ours, by the server. We wait for it from 64 kB on; what the library says to its pings does
not, and was 11 MB before TCP gave up."""

PIECE_BYTES = 4096
"""Parsed before the short ones are counted."""

LAST_PLAUSIBLE = datetime(2046, 1, 1, tzinfo=UTC)
"""Twenty years after this release: a clock beyond it is wrong, and no certificate has expired."""

Post = Callable[[LinkOpened | LinkClosed | LinkFrame | AudioSent], None]

Address = tuple[Any, ...]
"""(family, type, protocol, name, socket address), as getaddrinfo says it."""

LookUp = Callable[..., list[Address]]
"""`socket.getaddrinfo`, or what stands for it."""


class _Connection(ClientConnection):
    """Hangs up on a server that floods us with frames that say nothing, and on one that stays when
    the WebSocket is over: the library would wait for it to hang up first."""

    _short = 0
    _over = False

    def data_received(self, data: bytes) -> None:
        for start in range(0, len(data), PIECE_BYTES):
            if self.transport.is_closing():
                return
            super().data_received(data[start : start + PIECE_BYTES])
            unread = self.transport.get_write_buffer_size()
            if self._short > MOST_SHORT or unread > MOST_UNREAD_BYTES:
                self.transport.abort()
        if self.protocol.close_expected() and not self._over:
            self._over = True
            self.loop.call_later(CLOSE_TIMEOUT_S, self.transport.abort)

    def process_event(self, event: Event) -> None:
        self._short += isinstance(event, Frame) and len(event.data) < SHORT_BYTES
        super().process_event(event)


class _NoRedirects(connect):
    """A redirect would carry the key to another host."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        return exc


class Link:
    """Dials, reads and writes; `post` takes the events, in the loop's thread."""

    def __init__(self, post: Post, look_up: LookUp = socket.getaddrinfo) -> None:
        self._post = post
        self._names = _Names(look_up)
        self._socket: _Socket | None = None
        self._contexts: dict[str, ssl.SSLContext] = {}

    def dial(self, serial: int, settings: Realtime, key: Secret | None) -> None:
        """Connect in the background. An earlier socket is given up."""
        self.close()
        self._socket = _Socket(serial, self._post)
        self._socket.task = asyncio.create_task(self._run(self._socket, settings, key))

    def send(self, text: bytes, audio_frames: int = 0) -> None:
        """Queue one text frame; nothing happens without a connection."""
        if self._socket:
            self._socket.queue(text, audio_frames)

    def drop_unsent(self) -> None:
        """Forget queued audio, as if it had been sent."""
        if self._socket:
            self._socket.drop_audio()

    def check_address(self) -> None:
        """After a change of the network: give the link up if our address went away.

        TCP would notice only when it sends, after `USER_TIMEOUT_MS`.
        """
        sock = self._socket
        if sock and sock.local and _is_gone(*sock.local):
            self.close()
            reason = f"our address {sock.local[1][0]} is gone"
            now = time.monotonic()
            self._post(LinkClosed(now, sock.serial, reason=reason, fault="link-lost"))

    def close(self) -> None:
        """Give the socket up, with all that is queued for it. It posts nothing any more."""
        if self._socket:
            self._socket.give_up()
        self._socket = None

    async def closed(self) -> None:
        """Close and wait until the server has been told, for at most `CLOSE_TIMEOUT_S`."""
        task = self._socket.task if self._socket else None
        self.close()
        if task:
            await asyncio.wait([task], timeout=CLOSE_TIMEOUT_S)

    async def _run(self, sock: _Socket, settings: Realtime, key: Secret | None) -> None:
        closed = LinkClosed(0, sock.serial)
        try:
            closed = await self._converse(sock, settings, key)
        except InvalidStatus as exc:
            status = exc.response.status_code
            closed = LinkClosed(0, sock.serial, reason=f"HTTP {status}", http_status=status)
        except (OSError, InvalidHandshake, InvalidURI, UnicodeError) as exc:
            if isinstance(exc, ssl.SSLCertVerificationError):
                self._contexts.clear()  # who mends it replaces files: the next dial reads them
            closed = LinkClosed(0, sock.serial, reason=str(exc)[:200], fault=_fault(exc))
        except Exception as exc:  # unforeseen, but the core must learn that the link is gone
            log.exception("the link broke")
            closed = LinkClosed(0, sock.serial, reason=repr(exc)[:200], fault="server-error")
        sock.post(
            LinkClosed(
                time.monotonic(),
                sock.serial,
                closed.code,
                closed.reason,
                closed.http_status,
                closed.fault,
            )
        )

    async def _converse(self, sock: _Socket, settings: Realtime, key: Secret | None) -> LinkClosed:
        ws = await self._open(sock, settings, key)
        try:
            server_time = _server_time(ws.response.headers) if ws.response else None
            sock.post(LinkOpened(time.monotonic(), sock.serial, server_time))
            return await sock.converse(ws)
        finally:
            await _say_goodbye(ws)

    async def _open(
        self, sock: _Socket, settings: Realtime, key: Secret | None
    ) -> ClientConnection:
        url = f"{settings.url}?model={quote(settings.model)}"
        uri = parse_uri(url)
        context = await self._context(settings.ca_file) if uri.secure else None
        addresses: list[Address] = []
        try:
            async with asyncio.timeout(OPEN_TIMEOUT_S):
                addresses = await self._names.find(uri.host, uri.port)
                tcp = await _reach(addresses)
                sock.local = (tcp.family, tcp.getsockname())
                _prepare(tcp, uri)
                return await _NoRedirects(
                    url,
                    sock=tcp,
                    additional_headers={"Authorization": f"Bearer {key.reveal()}"} if key else {},
                    user_agent_header=f"voiced/{__version__}",
                    ssl=context,
                    create_connection=_Connection,
                    proxy=None,
                    compression=None,
                    max_size=MAX_FRAME_BYTES,
                    open_timeout=None,
                    close_timeout=CLOSE_TIMEOUT_S,
                    ping_interval=PING_INTERVAL_S,
                    ping_timeout=PING_TIMEOUT_S,
                )
        except TimeoutError as exc:
            text = f"no answer in {OPEN_TIMEOUT_S:.0f} s"
            if not addresses:
                raise socket.gaierror(socket.EAI_AGAIN, text) from exc
            raise TimeoutError(text) from exc

    async def _context(self, ca_file: str) -> ssl.SSLContext:
        """Reading the authorities takes 20 ms here and 300 on a small board: once, in a thread."""
        if ca_file not in self._contexts:
            try:
                self._contexts[ca_file] = await asyncio.to_thread(
                    ssl.create_default_context, cafile=ca_file or None
                )
            except OSError as exc:  # no file, or no certificate in it: nobody can be trusted
                text = f"realtime.ca_file = {ca_file}: {exc.strerror}"
                raise ssl.SSLCertVerificationError(exc.errno, text) from exc
        return self._contexts[ca_file]


class _Socket:
    """One connection: its queue dies with it."""

    def __init__(self, serial: int, post: Post) -> None:
        self.serial = serial
        self.local: tuple[int, Any] | None = None
        """Family and address of our end, once it is connected."""
        self.task: asyncio.Task[None] | None = None
        self._post = post
        self._unsent: deque[tuple[bytes, int]] = deque()
        self._waiting = asyncio.Event()
        self._ws: ClientConnection | None = None
        self._stalled = False
        self._given_up = False

    def post(self, event: LinkOpened | LinkClosed | LinkFrame | AudioSent) -> None:
        if not self._given_up:
            self._post(event)

    def give_up(self) -> None:
        """Cancelling reaches the tasks only in the loop's next round: be silent from now on."""
        self._given_up = True
        self._unsent.clear()
        if self.task:
            self.task.cancel()

    def queue(self, text: bytes, audio_frames: int) -> None:
        if len(self._unsent) < MAX_UNSENT:
            self._unsent.append((text, audio_frames))
            self._waiting.set()
            return
        self._stalled = True
        if self._ws:
            self._ws.transport.abort()  # from here: the writer waits for the socket

    def drop_audio(self) -> None:
        dropped = sum(frames for _, frames in self._unsent)
        self._unsent = deque(entry for entry in self._unsent if not entry[1])
        if dropped:
            self.post(AudioSent(dropped, time.monotonic(), self.serial))

    async def converse(self, ws: ClientConnection) -> LinkClosed:
        """Read and write until the connection ends, whoever ends it and however."""
        if self._stalled:
            return LinkClosed(0, self.serial, fault="stalled")
        self._ws = ws
        writer = asyncio.create_task(self._write(ws))
        try:
            while True:
                for _ in range(FRAMES_AT_ONCE):
                    text = await ws.recv()
                    self.post(LinkFrame(text, time.monotonic(), self.serial))
                await asyncio.sleep(0)  # `recv` doesn't, while there is something
        except ConnectionClosed as exc:
            if self._stalled:
                return LinkClosed(0, self.serial, fault="stalled")
            received = exc.rcvd
            if received is None:
                return LinkClosed(0, self.serial, reason="no close frame")
            return LinkClosed(0, self.serial, received.code, received.reason)
        finally:
            writer.cancel()
            await asyncio.wait([writer])

    async def _write(self, ws: ClientConnection) -> None:
        try:
            while True:
                await self._waiting.wait()
                self._waiting.clear()
                while self._unsent:
                    text, frames = self._unsent.popleft()
                    await ws.send(text, text=True)
                    if frames:
                        self.post(AudioSent(frames, time.monotonic(), self.serial))
        except ConnectionClosed:
            pass  # the reader sees it, too, and tells


class _Names:
    """Looks names up, each in a thread of its own, which nobody waits for.

    A lookup that hangs can't be stopped. Here it delays no other, neither does it delay the end
    of the process; and a new dial asks anew, since the resolver may be another by now.
    """

    def __init__(self, look_up: LookUp) -> None:
        self._look_up = look_up
        self._running: list[Future[list[Address]]] = []

    async def find(self, host: str, port: int) -> list[Address]:
        """At least one address; cancelling leaves the thread to itself.

        Raises:
            socket.gaierror: there is none, or `MAX_LOOKUPS` hang.
            UnicodeError: this can't be a name.
        """
        try:
            return list(
                socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
            )
        except socket.gaierror:
            pass  # a name
        self._running = [each for each in self._running if not each.done()]
        if len(self._running) >= MAX_LOOKUPS:
            raise socket.gaierror(socket.EAI_AGAIN, f"{MAX_LOOKUPS} lookups hang")
        answer: Future[list[Address]] = Future()
        answer.set_running_or_notify_cancel()  # nobody can cancel it
        thread = threading.Thread(
            target=self._ask, args=(answer, host, port), name="lookup", daemon=True
        )
        thread.start()
        self._running.append(answer)
        return await asyncio.wrap_future(answer)

    def _ask(self, answer: Future[list[Address]], host: str, port: int) -> None:
        try:
            answer.set_result(self._look_up(host, port, type=socket.SOCK_STREAM))
        except Exception as exc:
            answer.set_exception(exc)


async def _reach(addresses: list[Address]) -> socket.socket:
    """Connect to the address that answers first; the others are given up. While none answers, they
    are tried again and again: the caller has a deadline.

    Raises:
        OSError: none did. Where reasons differ, one that is not for want of an address of ours:
            most homes have no IPv6.
    """
    waiting = deque(addresses)
    failures: list[OSError] = []
    attempts: set[asyncio.Task[socket.socket]] = set()
    try:
        while waiting or attempts:
            if waiting:
                attempts.add(asyncio.create_task(_connect(waiting.popleft())))
            done, _ = await asyncio.wait(
                attempts,
                timeout=HEAD_START_S if waiting else KNOCK_AGAIN_S,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if not (done or waiting) and len(attempts) < MAX_KNOCKING:
                waiting.extend(addresses)
            for attempt in done:
                attempts.remove(attempt)
                try:
                    return attempt.result()
                except OSError as exc:
                    failures.append(exc)
        raise min(failures, key=lambda exc: exc.errno in (*_NO_NETWORK, errno.ENETUNREACH))
    finally:
        for attempt in attempts:
            attempt.add_done_callback(_discard)
            attempt.cancel()


async def _connect(address: Address) -> socket.socket:
    family, kind, protocol, _, where = address
    sock = socket.socket(family, kind | socket.SOCK_NONBLOCK, protocol)
    try:
        await asyncio.get_running_loop().sock_connect(sock, where)
    except BaseException:
        sock.close()
        raise
    return sock


def _discard(attempt: asyncio.Task[socket.socket]) -> None:
    """It came second, if it came at all."""
    if not attempt.cancelled() and attempt.exception() is None:
        attempt.result().close()


def _prepare(sock: socket.socket, uri: WebSocketURI) -> None:
    """Before anything is said: the key goes to nobody else."""
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)
        peer = str(sock.getpeername()[0])
        if not uri.secure and not is_private(peer):
            raise InvalidHandshake(f"ws:// led to {peer}, which is not in the house")
    except BaseException:
        sock.close()
        raise


def _is_gone(family: int, local: Any) -> bool:
    """True if this address is not ours any more."""
    if is_loopback(local[0]):
        return False
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((local[0], 0, *local[2:]))
    except OSError as exc:  # ENODEV: a link-local one, and its interface went
        return exc.errno in (errno.EADDRNOTAVAIL, errno.ENODEV)
    return False


def _server_time(headers: Headers) -> float | None:
    """Of the `Date` header, Unix seconds; None if there is none, or nonsense."""
    for text in headers.get_all("Date"):
        try:
            date = email.utils.parsedate_to_datetime(text)
            return date.replace(tzinfo=date.tzinfo or UTC).timestamp()
        except (ValueError, TypeError, IndexError, OverflowError):
            pass
    return None


async def _say_goodbye(ws: ClientConnection) -> None:
    """Close, but don't wait for a peer that takes nothing: with unsent data the library would."""
    try:
        async with asyncio.timeout(CLOSE_TIMEOUT_S):
            await ws.close()
    except TimeoutError:
        pass
    finally:
        ws.transport.abort()


_NO_NETWORK = (errno.ENETDOWN, errno.EADDRNOTAVAIL)
"""Only our own kernel says these. ENETUNREACH may be a router's word, too: what it means depends
on the routes, and the core knows them."""


def _fault(exc: Exception) -> str:
    if isinstance(exc, ssl.SSLCertVerificationError):
        return "clock-wrong" if _blames_clock(exc) else "tls-untrusted"
    if isinstance(exc, socket.gaierror | UnicodeError):  # of a name that can't be one
        return "no-dns"
    if isinstance(exc, TimeoutError):
        return "timeout"
    if isinstance(exc, InvalidHandshake | ssl.SSLError):
        return "server-error"
    return "no-network" if isinstance(exc, OSError) and exc.errno in _NO_NETWORK else "no-route"


def _blames_clock(exc: ssl.SSLCertVerificationError) -> bool:
    """A clock that is late, as without a battery, finds certificates not yet valid.

    What has expired by a late clock has expired in truth; only a clock that is far ahead is to
    blame for that. A few years ahead look like an old certificate, and are told as one.
    """
    code = getattr(exc, "verify_code", 0)  # none in what `_context` raises
    expired_by_far = code == _HAS_EXPIRED and datetime.now(UTC) > LAST_PLAUSIBLE
    return code == _NOT_YET_VALID or expired_by_far


_NOT_YET_VALID, _HAS_EXPIRED = 9, 10  # X509_V_ERR_... of openssl/x509_vfy.h
