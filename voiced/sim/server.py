"""The built-in Realtime server: sockets, pacing, faults and the frame log around RealtimeSession.

    async with SimServer(SimOptions(answer=samples)) as server:
        ...  # a client connects to server.url
        await server.wait_for(lambda: server.sessions, timeout_s=5)

The rules of the protocol are in realtime_session.py; here frames are only carried.
"""

from __future__ import annotations

import asyncio
import ctypes
import math
import secrets
import socket
import ssl
import struct
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any, Self

import msgspec
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from voiced.sim import admission, faults
from voiced.sim.conversation import Item
from voiced.sim.faults import Fault
from voiced.sim.frame_log import FrameLog, Source
from voiced.sim.realtime_session import Close, Out, RealtimeSession, Script, Verdict
from voiced.sim.vad import Samples

HOST = "127.0.0.1"
PING_INTERVAL_S = 20  # as OpenAI's server does
CLOSE_TIMEOUT_S = 2  # a client that does not answer our close frame is cut off
MAX_FRAME_BYTES = 32 << 20  # 15 MiB of audio are 20 MiB of base64: let the session judge it
READ_QUEUE_FRAMES = 4  # unread frames before TCP pushes back; small so that `slow` is slow
KEPT_SESSIONS = 16  # older sessions, with their audio, are forgotten
KEPT_EVENTS = 20_000  # per session and direction; older events are forgotten
FLUSH_INTERVAL_S = 1.0
SMALL_RECEIVE_BUFFER_BYTES = 4096
_SECRET_HEADERS = ("authorization", "api-key", "proxy-authorization", "cookie")


@dataclass(frozen=True, kw_only=True)
class SimOptions(Script):
    """A Script and what lies around it.

    `keys`: accepted API keys; None accepts everyone. `http_status`: refuse the upgrade with this
    status (0: don't). `dial_delay_s`: wait before the upgrade. `reset_dials`: so many dials are
    broken off then. `faults` happen by themselves, each once, in the first session that gets old
    enough or sees its event.
    """

    port: int = 0
    keys: frozenset[str] | None = None
    has_quota: bool = True
    http_status: int = 0
    dial_delay_s: float = 0.0
    reset_dials: int = 0
    ssl: ssl.SSLContext | None = None
    frames: Path | None = None
    faults: tuple[Fault, ...] = field(default=())


class SimSession:
    """One connection that passed the upgrade.

    `events_received` and `events_sent` are the JSON events in order, with the audio of appends
    and deltas replaced by its base64 length (`audio_chars`). A refused client's has no protocol
    session: `refusal` says why. `close_code` is None while it is open.
    """

    def __init__(self, server: SimServer, connection: ServerConnection, number: int) -> None:
        self.number = number
        self.refusal: admission.Refusal | None = None
        self.close_code: int | None = None
        self.events_received: deque[dict[str, Any]] = deque(maxlen=KEPT_EVENTS)
        self.events_sent: deque[dict[str, Any]] = deque(maxlen=KEPT_EVENTS)
        self.protocol: RealtimeSession | None = None
        self._server = server
        self._connection = connection
        self._outbox: deque[Out | str | bytes] = deque()
        self._wake = asyncio.Event()
        self._silent_until_s = 0.0
        self._is_muted = False
        self._is_half_open = False
        self._read_bytes_per_s = math.inf

    def __repr__(self) -> str:
        state = "open" if self.is_open else f"closed {self.close_code}"
        return f"<SimSession {self.number} {state} received={len(self.events_received)}>"

    # --- what it saw ----------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        return self.close_code is None

    def received_audio(self) -> Samples:
        """All appended samples, int16, shape (n,); only the last `keep_audio_s` of them."""
        assert self.protocol is not None, "a refused client has no session"
        buffer = self.protocol.buffer
        return buffer.samples(0, buffer.end)

    @property
    def items(self) -> dict[str, Item]:
        """Every item the conversation ever had, by id, deleted ones too."""
        return self.protocol.conversation.all if self.protocol else {}

    @property
    def user_items(self) -> list[Item]:
        """Items holding the user's audio, in the order they were committed."""
        return [each for each in self.items.values() if each.role == "user" and each.pcm]

    @property
    def assistant_items(self) -> list[Item]:
        return [each for each in self.items.values() if each.role == "assistant"]

    def received(self, event_type: str) -> list[dict[str, Any]]:
        return [event for event in self.events_received if event.get("type") == event_type]

    # --- faults ---------------------------------------------------------------------------

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """End the session with a close frame; harmless twice."""
        await self._connection.close(code, reason)

    def reset(self) -> None:
        """Break the TCP connection off with a RST."""
        self._log("link", {"type": "fault", "name": "reset"})
        _reset(self._connection)

    def half_open(self) -> None:
        """Become a peer that has vanished: nothing is sent, read, or even acknowledged."""
        self._log("link", {"type": "fault", "name": "half-open"})
        self._is_half_open = True
        if self._connection.keepalive_task is not None:
            self._connection.keepalive_task.cancel()
        self._connection.transport.pause_reading()
        _drop_incoming(self._socket)

    def slow(self, bytes_per_s: float) -> None:
        """Read no faster than this from now on."""
        self._read_bytes_per_s = bytes_per_s
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_RECEIVE_BUFFER_BYTES)

    def mute(self) -> None:
        """Take everything and say nothing any more. Pings are still answered."""
        self._is_muted = True

    def stall(self, seconds: float) -> None:
        """Say nothing for a while, then all of it."""
        self._silent_until_s = time.monotonic() + seconds

    def garbage(self) -> None:
        """Send frames no client should trust."""
        for frame in faults.GARBAGE:
            self.send_raw(frame)

    def send_raw(self, frame: dict[str, Any] | str | bytes) -> None:
        """Send any event, or any text or bytes, as they are."""
        self._push([frame])

    # --- carrying frames ------------------------------------------------------------------

    @property
    def _socket(self) -> socket.socket:
        found: socket.socket = self._connection.transport.get_extra_info("socket")
        return found

    def _log(self, source: Source, event: Any, t: float | None = None) -> None:
        self._server.log(time.monotonic() if t is None else t, self.number, source, event)

    async def run(self, request: Request) -> None:
        """Serve the connection until it ends, whatever ends it."""
        self._log("link", {"type": "connect", "path": request.path, **_shown(request)})
        try:
            await self._serve(request)
        except* (ConnectionClosed, _LinkEnded):
            pass
        finally:
            self.close_code = self._connection.close_code or 1006
            reason = self._connection.close_reason or ""
            self._log("link", {"type": "close", "code": self.close_code, "reason": reason})
            self._server.changed()

    async def _serve(self, request: Request) -> None:
        options = self._server.options
        self.refusal = admission.refusal(
            request.path, request.headers, keys=options.keys, has_quota=options.has_quota
        )
        if self.refusal is not None:
            self._push(_refused(self.refusal))
        else:
            self.protocol = RealtimeSession(
                options,
                model=admission.model_of(request.path) or "",
                tag=secrets.token_hex(4),
                now_s=time.monotonic(),
                unix_s=time.time(),
                verdict=self._server.verdict,
            )
            self._push(self.protocol.start())
        self._server.changed()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._read())
            group.create_task(self._pump())
            if self.protocol is not None:
                group.create_task(self._server.run_faults(self))

    async def _read(self) -> None:
        async for frame in self._connection:
            if self._is_half_open:
                await self._connection.wait_closed()
                break
            now_s = time.monotonic()
            event = faults.as_logged(frame)
            self._log("client", event, now_s)
            self.events_received.append(_without_audio(event))
            if await self._server.have_faults_on(event, self):
                break
            if self.protocol is not None:
                self._push(_answers(self.protocol, frame, now_s))
            self._server.changed()
            if self._read_bytes_per_s < math.inf:
                await self._rest(len(frame) / self._read_bytes_per_s)
        raise _LinkEnded

    async def _rest(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._connection.wait_closed()
        except TimeoutError:
            pass

    def _push(self, out: Iterable[Out | str | bytes]) -> None:
        self._outbox.extend(out)
        self._wake.set()

    async def _pump(self) -> None:
        """Send what is due, in order. Cancellation loses at most the frame being sent.

        The outbox is bounded by what is generated: `advance` is not called while a send waits.
        """
        while True:
            now_s = time.monotonic()
            if self._is_half_open:
                await self._connection.wait_closed()
                return
            if now_s < self._silent_until_s:
                await asyncio.sleep(self._silent_until_s - now_s)
            elif self._outbox:
                await self._send(self._outbox.popleft())
            else:
                await self._advance(now_s)

    async def _advance(self, now_s: float) -> None:
        self._wake.clear()
        if self.protocol is not None:
            self._outbox.extend(self.protocol.advance(now_s))
        if self._outbox:
            return
        due_s = self.protocol.due_s if self.protocol is not None else math.inf
        try:
            async with asyncio.timeout(None if due_s == math.inf else max(0.0, due_s - now_s)):
                await self._wake.wait()
        except TimeoutError:
            pass

    async def _send(self, out: Out | str | bytes) -> None:
        if isinstance(out, Close):
            await self._connection.close(out.code, out.reason)
        elif not self._is_muted:
            event = faults.as_logged(out) if isinstance(out, str | bytes) else out
            self._log("server", event)
            self.events_sent.append(_without_audio(event))
            if isinstance(out, dict):
                await self._connection.send(msgspec.json.encode(out), text=True)
            else:
                await self._connection.send(out)
            await self._server.have_faults_on(event, self)
            self._server.changed()

    def abandon(self) -> None:
        """Let go of a connection whose peer can no longer answer a close frame."""
        if self._is_half_open:
            self._connection.transport.abort()


class SimServer:
    """Listens on 127.0.0.1. Close it twice, or early, without harm.

    A failure inside a session (a bug here, not a fault asked for) is raised by `close`.
    """

    def __init__(self, options: SimOptions | None = None) -> None:
        self.options = options or SimOptions()
        self.verdict = Verdict()
        self.sessions: deque[SimSession] = deque(maxlen=KEPT_SESSIONS)
        self.dials = 0  # HTTP requests for an upgrade, also refused ones
        self.session_count = 0
        timed = (fault for fault in self.options.faults if fault.on is None)
        self._pending_faults = sorted(timed, key=lambda fault: fault.at_s)
        self._faults_on = [fault for fault in self.options.faults if fault.on is not None]
        self._frame_log = FrameLog(None)
        self._listener: Server | None = None
        self._port = self.options.port
        self._changed = asyncio.Event()
        self._failure: BaseException | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    # --- for tests ------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """The URL without a model: clients add ``?model=``."""
        scheme = "ws" if self.options.ssl is None else "wss"
        return f"{scheme}://{HOST}:{self._port}{admission.PATH}"

    @property
    def violations(self) -> list[dict[str, Any]]:
        """What clients did that the protocol forbids: dicts of text, type and t (monotonic)."""
        return self.verdict.violations

    @property
    def races(self) -> int:
        return self.verdict.races

    @property
    def is_listening(self) -> bool:
        """False while it refuses, before its start, and after its end."""
        return self._listener is not None

    @property
    def current(self) -> SimSession:
        """The newest session; raises LookupError if there was none yet."""
        if not self.sessions:
            raise LookupError("no client has connected yet")
        return self.sessions[-1]

    async def wait_for(self, predicate: Callable[[], object], timeout_s: float) -> None:
        """Wait until the predicate is true; it is asked again after every frame and close.

        Raises TimeoutError with the sessions' state.
        """
        try:
            async with asyncio.timeout(timeout_s):
                while not predicate():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError as error:
            raise TimeoutError(f"not within {timeout_s} s: {list(self.sessions)}") from error

    def send_raw(self, frame: dict[str, Any] | str | bytes) -> None:
        """Inject a frame into the newest session."""
        self.current.send_raw(frame)

    async def fault(self, fault: Fault | str) -> None:
        """Have a fault now, in the newest session; text as in faults.py. Its `at_s` is ignored."""
        if isinstance(fault, str):
            fault = faults.parse_fault(fault)
        await self._have(fault, None if fault.name == "refuse" else self.current)

    async def refuse(self, seconds: float) -> None:
        """Take no new connections for a while (ECONNREFUSED); returns when it began."""
        if self._listener is None:
            return
        self._listener.close(close_connections=False)
        self._listener = None
        await asyncio.sleep(0)  # it closes its socket in a task of its own
        task = asyncio.create_task(self._listen_again(seconds))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- for sessions ---------------------------------------------------------------------

    def log(self, t: float, session: int, source: Source, event: Any) -> None:
        self._frame_log.write(t, session, source, event)

    def changed(self) -> None:
        self._changed.set()

    async def run_faults(self, session: SimSession) -> None:
        """Have the scheduled faults in this session, until one of them ends it."""
        began_s = time.monotonic()
        while self._pending_faults:
            await asyncio.sleep(began_s + self._pending_faults[0].at_s - time.monotonic())
            fault = self._pending_faults.pop(0)
            await self._have(fault, session)
            if fault.ends_session:
                return

    async def have_faults_on(self, event: dict[str, Any], session: SimSession) -> bool:
        """Have the faults that wait for such an event; whether they end the session."""
        due = [fault for fault in self._faults_on if fault.on == event.get("type")]
        for fault in due:
            self._faults_on.remove(fault)
            await self._have(fault, session)
        return any(fault.ends_session for fault in due)

    async def _have(self, fault: Fault, session: SimSession | None) -> None:
        if fault.name == "refuse":
            await self.refuse(fault.value)
            return
        if session is None or not session.is_open:
            return
        match fault.name:
            case "close":
                await session.close(int(fault.value))
            case "reset":
                session.reset()
            case "half-open":
                session.half_open()
            case "slow":
                session.slow(fault.value)
            case "garbage":
                session.garbage()
            case "mute":
                session.mute()
            case "stall":
                session.stall(fault.value)

    # --- life -----------------------------------------------------------------------------

    async def start(self) -> None:
        """Listen; raises OSError if the port is taken or the frame log cannot be written."""
        self._frame_log = FrameLog(self.options.frames)
        await self._listen()
        task = asyncio.create_task(self._flush_regularly())
        self._tasks.add(task)

    async def close(self) -> None:
        """Close every session with 1001, stop listening, write the log out."""
        tasks, self._tasks = self._tasks, set()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        open_sessions = [each for each in self.sessions if each.is_open]
        for session in open_sessions:
            session.abandon()
        await asyncio.gather(*(session.close(1001) for session in open_sessions))
        if self._listener is not None:
            self._listener.close()
            await self._listener.wait_closed()
            self._listener = None
        await self.wait_for(lambda: not any(each.is_open for each in self.sessions), 5)
        self._frame_log.close()
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _listen(self) -> None:
        self._listener = await serve(
            self._handle,
            HOST,
            self._port,
            ssl=self.options.ssl,
            process_request=self._judge_request,
            compression=None,
            ping_interval=PING_INTERVAL_S,
            close_timeout=CLOSE_TIMEOUT_S,
            max_size=MAX_FRAME_BYTES,
            max_queue=READ_QUEUE_FRAMES,
        )
        self._port = next(iter(self._listener.sockets)).getsockname()[1]
        self.changed()

    async def _listen_again(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        await self._listen()

    async def _judge_request(
        self, connection: ServerConnection, request: Request
    ) -> Response | None:
        self.dials += 1
        number = self.dials
        self.changed()
        if self.options.dial_delay_s:
            await asyncio.sleep(self.options.dial_delay_s)
        if number <= self.options.reset_dials:
            self.log(time.monotonic(), 0, "link", {"type": "fault", "name": "reset-dial"})
            _reset(connection)
            await connection.wait_closed()
            return None
        status = self.options.http_status
        if not status and not admission.is_served(request.path):
            status = HTTPStatus.NOT_FOUND
        if not status:
            return None
        event = {"type": "http", "status": status, "path": request.path, **_shown(request)}
        self.log(time.monotonic(), 0, "link", event)
        return connection.respond(HTTPStatus(status), "Refused.\n")

    async def _handle(self, connection: ServerConnection) -> None:
        assert connection.request is not None
        self.session_count += 1
        session = SimSession(self, connection, self.session_count)
        self.sessions.append(session)
        try:
            await session.run(connection.request)
        except Exception as error:
            self._failure = error
            raise

    async def _flush_regularly(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_INTERVAL_S)
            self._frame_log.flush()


class _LinkEnded(Exception):
    """The client is gone; ends the tasks of its session."""


def _answers(protocol: RealtimeSession, frame: str | bytes, now_s: float) -> list[Out]:
    if isinstance(frame, bytes):
        return protocol.receive_binary(now_s)
    return protocol.receive(frame, now_s)


def _refused(refusal: admission.Refusal) -> list[Out]:
    error = {
        "type": refusal.kind,
        "code": refusal.code,
        "message": refusal.message,
        "param": None,
        "event_id": None,
    }
    event_id = f"event_{secrets.token_hex(8)}"
    return [
        {"type": "error", "event_id": event_id, "error": error},
        Close(refusal.close_code, refusal.close_reason),
    ]


def _shown(request: Request) -> dict[str, Any]:
    """The request's headers for the log; of the secret ones only whether they were there."""
    plain = {
        name.lower(): value
        for name, value in request.headers.raw_items()
        if name.lower() not in _SECRET_HEADERS
    }
    hidden = {name: name in request.headers for name in _SECRET_HEADERS}
    return {"authorization": hidden["authorization"], "headers": {**plain, **hidden}}


def _without_audio(event: dict[str, Any]) -> dict[str, Any]:
    key = {
        "input_audio_buffer.append": "audio",
        "response.output_audio.delta": "delta",
    }.get(str(event.get("type")))
    if key is None or not isinstance(event.get(key), str):
        return event
    rest = {name: value for name, value in event.items() if name != key}
    return {**rest, "audio_chars": len(event[key])}


def _reset(connection: ServerConnection) -> None:
    """Break the TCP connection off with a RST: what has not been sent is thrown away."""
    tcp = connection.transport.get_extra_info("socket")
    tcp.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.transport.abort()


def _drop_incoming(tcp: socket.socket) -> None:
    """Have the kernel discard every segment that arrives, before TCP acknowledges it.

    A socket filter of one instruction, "accept 0 bytes" (BPF_RET|BPF_K, see linux/filter.h): the
    other side sees what a pulled cable looks like. Needs no privilege.
    """
    instruction = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))
    program = struct.pack("HP", 1, ctypes.addressof(instruction))
    tcp.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)


_SO_ATTACH_FILTER = 26  # not in the socket module
