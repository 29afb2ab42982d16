"""A board with a finger and an eye: the daemon on gpiozero's mock pins, driven through a socket.

`python -m voiced.sim.board --finger SOCKET -- ARGUMENTS` runs the daemon with ARGUMENTS in this
process and serves SOCKET (mode 0600). JSON lines; `t` is CLOCK_MONOTONIC (`time.monotonic()`):

    in   {"pin": 17, "level": 0}                     drive an input pin (BCM number)
    in   {"pin": 17, "level": 0, "bounce": [2, 1]}   the same with a bouncing contact: the level,
                                                     2 ms later the other one, 1 ms later the level
                                                     (each wait to about a millisecond)
    out  {"pin": 17, "level": 0, "t": 12.3}          done; t is just before the first edge
    in   {"watch": [27, 22]}                         push these pins' states, now and when changed
    out  {"pin": 27, "value": 1.0, "t": 12.4}        0.0 to 1.0 (PWM); null: nobody drives the pin
    out  {"error": "..."}                            not understood, or the pin is no input in use
"""

import argparse
import asyncio
import contextlib
import json
import os
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

from gpiozero import Device
from gpiozero.pins.mock import MockFactory, MockPWMPin

BOUNCES = 20  # a bad switch bounces some ten times
BOUNCE_LONGEST_MS = 100.0
LINE_BYTES = 4096
BACKLOG_BYTES = 65_536  # a watcher that is further behind is dropped: about 1000 changes
STOP_S = 2.0  # the server only ever waits for sockets and for bounces
CONNECT_S = 10.0  # a daemon on a slow board imports for seconds
ANSWER_S = BOUNCES * BOUNCE_LONGEST_MS / 1000 + 2.0

Daemon = Callable[[list[str]], int | None]


class BoardError(RuntimeError):
    """The board refused what was asked of it, or isn't there."""


class Pin(MockPWMPin):  # type: ignore[misc]  # gpiozero has no types
    """A mock pin that tells its board when what it puts out changes."""

    @property
    def number(self) -> int:
        """BCM number."""
        return int(self.info.name.removeprefix("GPIO"))

    @property
    def driven(self) -> float | None:
        """What the daemon puts out, 0.0 to 1.0; None while the pin is no output."""
        return float(self._state) if self._function == "output" else None

    def _change_state(self, value: float) -> bool:
        changed: bool = super()._change_state(value)
        if changed and self._function == "output":
            self.factory.changed(self)
        return changed

    def _set_function(self, value: str) -> None:
        before = self._function
        super()._set_function(value)
        if value != before:
            self.factory.changed(self)


class Board(MockFactory):  # type: ignore[misc]  # gpiozero has no types
    """The pin factory with the socket: `start()` before the daemon, `close()` after it."""

    def __init__(self, path: str | Path) -> None:
        super().__init__(pin_class=Pin)
        self._path = Path(path)
        self._loop = asyncio.new_event_loop()
        self._stopped = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="board", daemon=True)
        self._listener: socket.socket | None = None
        self._clients: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._watchers: dict[asyncio.StreamWriter, set[int]] = {}

    def start(self) -> None:
        """Serve the socket, in a thread. Raises OSError if it can't be bound."""
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISSOCK(self._path.lstat().st_mode):  # left by one that was killed
                self._path.unlink()
        listener = socket.socket(socket.AF_UNIX)
        before = os.umask(0o177)  # no moment in which others could connect
        try:
            listener.bind(str(self._path))
        except BaseException:
            listener.close()
            raise
        finally:
            os.umask(before)
        listener.listen()
        self._listener = listener
        self._thread.start()

    def stop(self) -> None:
        """Stop serving and remove the socket; the pins stay for the daemon to close."""
        if self._thread.is_alive():
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                self._loop.call_soon_threadsafe(self._stopped.set)
            self._thread.join(STOP_S)
        else:
            self._loop.close()
        if self._listener is not None:
            self._listener.close()
            self._listener = None
            self._path.unlink(missing_ok=True)

    def changed(self, pin: Pin) -> None:
        """Called by pins from the daemon's threads: never waits."""
        state = _state(pin.number, pin.driven)
        with contextlib.suppress(RuntimeError):  # after stop() nobody watches
            self._loop.call_soon_threadsafe(self._push, pin.number, state)

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        server = await asyncio.start_unix_server(
            self._accept, sock=self._listener, limit=LINE_BYTES
        )
        await self._stopped.wait()
        # What is half accepted when a server closes, or is cancelled, leaves its socket open.
        for listener in server.sockets:
            self._loop.remove_reader(listener.fileno())
        accepting = asyncio.all_tasks() - {asyncio.current_task()} - set(self._clients)
        await asyncio.gather(*accepting, return_exceptions=True)
        server.close()
        clients = list(self._clients)
        for client in clients:
            self._clients[client].transport.abort()
            client.cancel()
        await asyncio.gather(*clients, return_exceptions=True)
        await asyncio.sleep(0)  # the loop closes aborted sockets in its next round

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client = self._loop.create_task(self._client(reader, writer))
        self._clients[client] = writer
        client.add_done_callback(self._clients.pop)

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                for answer in await self._answer(line, writer):
                    writer.write(answer)
                await writer.drain()
        except (ConnectionError, ValueError):  # hung up; a line too long
            pass
        finally:
            self._watchers.pop(writer, None)
            writer.close()

    async def _answer(self, line: bytes, writer: asyncio.StreamWriter) -> list[bytes]:
        try:
            request = json.loads(line)
            if "watch" in request:
                return self._watch(request["watch"], writer)
            return [await self._drive(**request)]
        except BoardError as error:
            return [_line(error=str(error))]
        except (ValueError, TypeError) as error:
            return [_line(error=f"not understood: {error}")]

    def _watch(self, numbers: Sequence[int], writer: asyncio.StreamWriter) -> list[bytes]:
        numbers = [int(number) for number in numbers]
        self._watchers.setdefault(writer, set()).update(numbers)
        return [_state(number, self._driven(number)) for number in numbers]

    def _driven(self, number: int) -> float | None:
        pin = self._existing(number)
        return pin.driven if pin else None

    def _existing(self, number: int) -> Pin | None:
        # list(): the daemon makes its pins in another thread
        return next((pin for pin in list(self.pins.values()) if pin.number == number), None)

    async def _drive(self, pin: int, level: int, bounce: Sequence[float] = ()) -> bytes:
        if level not in (0, 1):
            raise BoardError(f"level {level!r} is neither 0 nor 1")
        if len(bounce) > BOUNCES or not all(0 <= ms <= BOUNCE_LONGEST_MS for ms in bounce):
            raise BoardError(f"at most {BOUNCES} bounces of 0 to {BOUNCE_LONGEST_MS:g} ms")
        wanted = self._input(pin)
        first_edge_at = time.monotonic()
        _put(wanted, level ^ len(bounce) % 2)
        for done, interval_ms in enumerate(bounce, start=1):
            await asyncio.sleep(interval_ms / 1000)
            _put(wanted, level ^ (len(bounce) - done) % 2)
        return _line(pin=pin, level=level, t=first_edge_at)

    def _input(self, number: int) -> Pin:
        """The pin, if the daemon listens to it."""
        pin = self._existing(number)
        if pin is None or pin.function != "input" or pin.when_changed is None:
            raise BoardError(
                f"pin {number} is not in use as an input; is the daemon up and button.pin {number}?"
            )
        return pin

    def _push(self, number: int, state: bytes) -> None:
        for writer in [w for w, watched in self._watchers.items() if number in watched]:
            if writer.transport.get_write_buffer_size() > BACKLOG_BYTES:
                del self._watchers[writer]
                writer.transport.abort()
            else:
                writer.write(state)


def _put(pin: Pin, level: int) -> None:
    """Drive a pin; what the daemon's callback raises is told to the finger."""
    try:
        if level:
            pin.drive_high()
        else:
            pin.drive_low()
    except Exception as error:
        raise BoardError(f"the daemon's pin callback raised {error!r}") from error


def _state(number: int, value: float | None) -> bytes:
    return _line(pin=number, value=value, t=time.monotonic())


def _line(**fields: Any) -> bytes:
    return json.dumps(fields).encode() + b"\n"


class Finger:
    """The other end of the socket. Waits up to `timeout_s` for the board to appear.

    Raises BoardError when it doesn't, when the board refuses and when it is gone. Buttons pull
    to ground: pressed is level 0.
    """

    def __init__(self, path: str | Path, timeout_s: float = CONNECT_S) -> None:
        self._path = Path(path)
        self._threads: list[threading.Thread] = []
        self._sockets: list[socket.socket] = []
        self._deadline = time.monotonic() + timeout_s
        self._commands = self._connect()
        self._answers = self._commands.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def press(self, pin: int, bounce_ms: Sequence[float] = ()) -> float:
        """Return the monotonic time just before the first edge."""
        return self.drive(pin, 0, bounce_ms)

    def release(self, pin: int, bounce_ms: Sequence[float] = ()) -> float:
        """Return the monotonic time just before the first edge."""
        return self.drive(pin, 1, bounce_ms)

    def drive(self, pin: int, level: int, bounce_ms: Sequence[float] = ()) -> float:
        """Set an input pin, alternating at `bounce_ms` intervals until it stays at `level`."""
        try:
            self._commands.sendall(_line(pin=pin, level=level, bounce=list(bounce_ms)))
            answer = json.loads(self._answers.readline() or b'{"error": "the board is gone"}')
        except (OSError, ValueError) as error:
            raise BoardError(f"{self._path}: {error}") from error
        if "error" in answer:
            raise BoardError(answer["error"])
        at: float = answer["t"]
        return at

    def watch(
        self, pins: Sequence[int], callback: Callable[[int, float | None, float], None]
    ) -> None:
        """Call `callback(pin, value, t)` in a thread, now and at each change, until close().

        `value` is 0.0 to 1.0, or None while nobody drives the pin.
        """
        eye = self._connect()
        eye.settimeout(None)  # lights may rest for ever; close() ends the wait
        eye.sendall(_line(watch=list(pins)))
        thread = threading.Thread(target=_look, args=(eye, callback), name="eye", daemon=True)
        self._threads.append(thread)
        thread.start()

    def close(self) -> None:
        """Hang up and end the watching threads."""
        for connection in self._sockets:
            with contextlib.suppress(OSError):  # the board may be gone
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(STOP_S)
        self._answers.close()
        for connection in self._sockets:
            connection.close()

    def _connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(ANSWER_S)
        while True:
            try:
                connection.connect(str(self._path))
            except OSError as error:
                if time.monotonic() > self._deadline:
                    connection.close()
                    raise BoardError(f"no board at {self._path}: {error}") from error
                time.sleep(0.01)
            else:
                self._sockets.append(connection)
                return connection


def _look(eye: socket.socket, callback: Callable[[int, float | None, float], None]) -> None:
    with eye.makefile("rb") as lines, contextlib.suppress(ConnectionError):
        for line in lines:
            change = json.loads(line)
            callback(change["pin"], change["value"], change["t"])


def run(path: str | Path, arguments: list[str], daemon: Daemon | None = None) -> int:
    """Run the daemon on a board with its socket at `path`; return its exit code."""
    board = Board(path)
    Device.pin_factory = board
    try:
        board.start()
        return (daemon or _voiced())(arguments) or 0
    finally:
        board.stop()


def _voiced() -> Daemon:
    from voiced.__main__ import main  # late: importing it may look at the pin factory

    return main


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the daemon's exit code."""
    parser = argparse.ArgumentParser(prog="python -m voiced.sim.board", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--finger", metavar="SOCKET", required=True, help="where to serve")
    parser.add_argument("arguments", nargs="*", metavar="ARGUMENTS", help="voiced's, after --")
    options = parser.parse_args(argv)
    return run(options.finger, options.arguments)


if __name__ == "__main__":
    sys.exit(main())
