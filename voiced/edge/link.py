"""The WebSocket. One dial at a time; what an older one still says carries its serial."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable
from urllib.parse import quote, urlsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI

from voiced import __version__
from voiced.config import Realtime, Secret, is_private
from voiced.events import AudioSent, LinkClosed, LinkFrame, LinkOpened

log = logging.getLogger(__name__)

OPEN_TIMEOUT_S = 10.0
"""TCP, TLS and upgrade took 0.3-1.5 s where it was seen; a weak Wi-Fi needs some seconds more."""

CLOSE_TIMEOUT_S = 0.5
"""We never wait for a server to say goodbye: stopping has 2 s for everything."""

PING_INTERVAL_S, PING_TIMEOUT_S = 20.0, 30.0
"""For an idle session. A home uplink full of an upload delays a pong by many seconds: a short
limit would kill a link that is merely slow."""

USER_TIMEOUT_MS = 5_000
"""TCP_USER_TIMEOUT: data sent and not acknowledged for this long is a dead link."""

MAX_FRAME_BYTES = 16 * 2**20
"""A retrieved item exceeds the library's 1 MiB. Larger than this is no answer: close 1009."""

MAX_UNSENT = 256
"""Frames queued for the socket. The core keeps audio to 1 s, so this is never reached; if it is,
the socket takes nothing and is given up as stalled."""

Post = Callable[[LinkOpened | LinkClosed | LinkFrame | AudioSent], None]


class _NoRedirects(connect):
    """A redirect would carry the key to another host."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        return exc


class Link:
    """Dials, reads and writes; `post` takes the events, in the loop's thread."""

    def __init__(self, post: Post) -> None:
        self._post = post
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
        headers = {"Authorization": f"Bearer {key.reveal()}"} if key else {}
        secure = settings.url.startswith("wss:")
        ws = await _NoRedirects(
            f"{settings.url}?model={quote(settings.model)}",
            additional_headers=headers,
            user_agent_header=f"voiced/{__version__}",
            ssl=await self._context(settings.ca_file) if secure else None,
            proxy=None,
            compression=None,
            max_size=MAX_FRAME_BYTES,
            open_timeout=OPEN_TIMEOUT_S,
            close_timeout=CLOSE_TIMEOUT_S,
            ping_interval=PING_INTERVAL_S,
            ping_timeout=PING_TIMEOUT_S,
        )
        try:
            _prepare(ws, settings)
            sock.post(LinkOpened(time.monotonic(), sock.serial))
            return await sock.converse(ws)
        finally:
            await _say_goodbye(ws)

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
                text = await ws.recv()
                self.post(LinkFrame(text, time.monotonic(), self.serial))
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


def _prepare(ws: ClientConnection, settings: Realtime) -> None:
    sock = ws.transport.get_extra_info("socket")
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)
    peer = str(ws.remote_address[0])
    if urlsplit(settings.url).scheme == "ws" and not is_private(peer):
        raise InvalidHandshake(f"ws:// led to {peer}, which is not in the house")


async def _say_goodbye(ws: ClientConnection) -> None:
    """Close, but don't wait for a peer that takes nothing: with unsent data the library would."""
    try:
        async with asyncio.timeout(CLOSE_TIMEOUT_S):
            await ws.close()
    except TimeoutError:
        pass
    finally:
        ws.transport.abort()


def _fault(exc: Exception) -> str:
    if isinstance(exc, ssl.SSLCertVerificationError):
        return "tls-untrusted"
    if isinstance(exc, socket.gaierror | UnicodeError):  # of a name that can't be one
        return "no-dns"
    if isinstance(exc, TimeoutError):
        return "timeout"
    spoke = isinstance(exc, InvalidHandshake | ssl.SSLError)
    return "server-error" if spoke else "no-route"
