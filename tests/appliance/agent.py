"""The host's hand in the emulated machine: does what it is asked over a virtio port.

JSON lines, in: `{"id": 1, "do": "run", …}`, one thread for each, so nothing waits for a long one.
Out: `{"id": 1, …}` with what the function of that name returns, or `{"id": 1, "error": "…"}`; and,
unasked, `{"watch": 7, "line": …}` for each line a watched socket sends, `"line": null` at its end.
The first line out is `{"up": …}`.

Standard library and few imports: Python is 25 times slower in there.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

PORT = "/dev/virtio-ports/agent"
CHUNK_BYTES = 262_144  # at most, of a file in one request or answer
OUTPUT_BYTES = 1_048_576  # of a command; writing more fails there with EPERM
LINE_BYTES = 2 * OUTPUT_BYTES  # a request; one longer is taken apart and each part refused
REQUESTS = 32  # at a time; more are refused

Answer = dict[str, Any]


class Agent:
    """Serves one port until its end: a descriptor open for reading and writing."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._writing = threading.Lock()
        self._room = threading.BoundedSemaphore(REQUESTS)
        self._watches: dict[int, socket.socket] = {}
        self._functions: dict[str, Callable[..., Answer]] = {
            "run": run,
            "read": read,
            "write": write,
            "monotonic": monotonic,
            "watch": self._watch,
            "send": self._send,
        }

    def serve(self) -> None:
        """Answer what comes until the other end is closed."""
        self._say({"up": time.monotonic()})
        with open(self._port, "rb", closefd=False) as lines:
            while line := lines.readline(LINE_BYTES):
                self._take(line)

    def _take(self, line: bytes) -> None:
        try:
            request = json.loads(line)
            number = request.pop("id")
            function = self._functions[request.pop("do")]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            self._say({"id": None, "error": f"no request: {error!r} in {line[:80]!r}"})
            return
        if not self._room.acquire(blocking=False):
            self._say({"id": number, "error": f"{REQUESTS} requests are under way already"})
            return
        threading.Thread(target=self._answer, args=(number, function, request), daemon=True).start()

    def _answer(self, number: int, function: Callable[..., Answer], request: Answer) -> None:
        try:
            answer = function(**request)
        except Exception as error:  # whatever it is, the host asked and the agent lives on
            answer = {"error": f"{type(error).__name__}: {error}"}
        finally:
            self._room.release()
        self._say({"id": number, **answer})

    def _say(self, answer: Answer) -> None:
        rest = memoryview(json.dumps(answer).encode() + b"\n")
        with self._writing:
            while rest:
                rest = rest[os.write(self._port, rest) :]

    # --- sockets of the guest --------------------------------------------------------

    def _watch(self, path: str, watch: int) -> Answer:
        """Connect to a Unix socket; its lines follow until it closes."""
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(path)
        except BaseException:
            connection.close()
            raise
        self._watches[watch] = connection
        threading.Thread(target=self._follow, args=(watch, connection), daemon=True).start()
        return {}

    def _follow(self, watch: int, connection: socket.socket) -> None:
        try:
            with connection, connection.makefile("rb") as lines:
                while line := lines.readline(LINE_BYTES):
                    self._say({"watch": watch, "line": line.decode(errors="replace")})
        except OSError:
            pass  # reset: the end all the same
        del self._watches[watch]
        self._say({"watch": watch, "line": None})

    def _send(self, watch: int, line: str | None) -> Answer:
        """Send a line to a watched socket; None closes it."""
        if line is None:
            self._watches[watch].shutdown(socket.SHUT_RDWR)
        else:
            self._watches[watch].sendall(line.encode() + b"\n")
        return {}


# --- what needs no agent -----------------------------------------------------------------


def run(command: list[str], timeout_s: float) -> Answer:
    """Run a command to its end: its exit code and what it wrote.

    Its output goes to memory, not through pipes: what it leaves running doesn't hold the answer up.
    """
    out, err = _memory("out"), _memory("err")
    try:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True
        )
        try:
            code = child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            raise
        return {"code": code, "out": _written(out), "err": _written(err)}
    finally:
        os.close(out)
        os.close(err)


def _memory(name: str) -> int:
    file = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(file, OUTPUT_BYTES)
    fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
    return file


def _written(file: int) -> str:
    # The writers share this descriptor's position.
    return os.pread(file, os.lseek(file, 0, os.SEEK_CUR), 0).decode(errors="replace")


def read(path: str, offset: int = 0) -> Answer:
    """Up to CHUNK_BYTES of a file, base64; fewer only at its end."""
    with open(path, "rb") as file:
        if offset:
            file.seek(offset)
        return {"data": base64.b64encode(file.read(CHUNK_BYTES)).decode()}


def write(path: str, data: str, append: bool = False) -> Answer:
    """Write base64 data to a file; `at` is the time (s) just before."""
    content = base64.b64decode(data)
    with open(path, "ab" if append else "wb", buffering=0) as file:
        at = time.monotonic()
        while content:
            content = content[file.write(content) :]
    return {"at": at}


def monotonic() -> Answer:
    return {"at": time.monotonic()}


def main() -> None:
    sys.setswitchinterval(0.0005)  # a long answer must not hold a dated one up
    port = os.open(PORT, os.O_RDWR | os.O_CLOEXEC)
    Agent(port).serve()


if __name__ == "__main__":
    main()
