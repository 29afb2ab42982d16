"""Tries what the unit denies and what it must allow, and prints as JSON how each went.

Started by the container's Python, inside the sandbox and outside: the standard library alone. Each
try is harmless and has a process of its own; its outcome is an errno, 0 if it worked.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path

FORBIDDEN_DEVICE = Path("/dev/forbidden")  # made by the test: any but the unit's
OF_OTHERS = Path("/var/tmp/of-others")  # the test's, too
SETUID_ID = Path("/usr/local/bin/setuid-id")  # `id`, owned by root and setuid
STATE, RUNTIME = Path("/var/lib/voiced"), Path("/run/voiced")

OTHER_ERROR = 255  # no errno is as high

CLONE_NEWUSER = 0x10000000
ADDR_NO_RANDOMIZE = 0x0040000

_libc = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *arguments: object) -> None:
    """A function of the C library that returns -1 and sets errno when it fails."""
    if getattr(_libc, name)(*arguments) == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _write(path: Path) -> None:
    path.write_text("probe")
    path.unlink()


def _run_setuid() -> None:
    if subprocess.run([SETUID_ID, "-u"], capture_output=True, check=True).stdout != b"0\n":
        raise PermissionError(1, "it ran without the rights of its owner")


def _make_setuid() -> None:
    path = STATE / "setuid"
    path.touch()
    path.chmod(0o4755)


def _talk_to_itself(family: socket.AddressFamily, address: str) -> None:
    with socket.create_server((address, 0), family=family) as server:
        socket.create_connection(server.getsockname()[:2], timeout=5).close()


def _send_a_datagram() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.sendto(b"to itself", server.getsockname())


def _netlink() -> None:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as routes:
        routes.bind((0, 0))


def _call_back() -> None:
    called = []

    def compare(*_: object) -> int:
        called.append(True)
        return 0

    kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
    _libc.qsort((ctypes.c_int * 2)(), ctypes.c_size_t(2), ctypes.c_size_t(4), kind(compare))
    if not called:
        raise OSError(OTHER_ERROR, "not called back")


def _import_all() -> None:
    import alsaaudio  # noqa: F401
    import lgpio  # type: ignore[import-not-found]  # noqa: F401
    import msgspec  # noqa: F401
    import numpy  # noqa: F401
    import soxr  # noqa: F401


def _start_a_thread() -> None:
    thread = threading.Thread(target=int)
    thread.start()
    thread.join()


def _read_the_key() -> None:
    (Path(os.environ["CREDENTIALS_DIRECTORY"]) / "openai-api-key").read_text()


Tries = Mapping[str, Callable[[], object]]

DENIED: Tries = {
    "write /etc": lambda: _write(Path("/etc/probe")),
    "write the program": lambda: _write(Path("/opt/voiced/current/probe")),
    "read /home": lambda: os.listdir("/home"),
    "read /root": lambda: os.listdir("/root"),
    "read the temporary files of others": OF_OTHERS.read_text,
    "see other processes": lambda: os.listdir("/proc/1"),
    "open another device": lambda: os.open(FORBIDDEN_DEVICE, os.O_RDWR),
    "mount": lambda: _call("mount", b"none", b"/mnt", b"tmpfs", 0, None),
    "gain rights by a setuid program": _run_setuid,
    "make a setuid program": _make_setuid,
    "writable code": lambda: mmap.mmap(
        -1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
    ),
    "a raw socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP),
    "a packet socket": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW),
    "real-time priority": lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)),
    "a user namespace": lambda: _call("unshare", CLONE_NEWUSER),
    "trace": lambda: _call("ptrace", 0, 0, None, None),
    "the clock": lambda: _call("adjtimex", ctypes.create_string_buffer(512)),  # only asks
    "the host's name": lambda: socket.sethostname(socket.gethostname()),
    "control groups": lambda: os.mkdir("/sys/fs/cgroup/probe"),
    "another personality": lambda: _call("personality", ctypes.c_ulong(ADDR_NO_RANDOMIZE)),
}

ALLOWED: Tries = {
    "write the state": lambda: _write(STATE / "probe"),
    "write the runtime directory": lambda: _write(RUNTIME / "probe"),
    "read the key": _read_the_key,
    "TCP over IPv4": lambda: _talk_to_itself(socket.AF_INET, "127.0.0.1"),
    "UDP, as names are looked up": _send_a_datagram,
    "a socket of IPv6": lambda: socket.socket(socket.AF_INET6, socket.SOCK_STREAM),
    "a Unix socket": lambda: socket.socketpair(socket.AF_UNIX),
    "netlink": _netlink,
    "look up a name": lambda: socket.getaddrinfo("localhost", 443),
    "a callback from C": _call_back,
    "import the packages": _import_all,
    "a thread": _start_a_thread,
}


def outcome(attempt: Callable[[], object]) -> int:
    """0, its errno, or OTHER_ERROR with a traceback on stderr."""
    child = os.fork()
    if child == 0:
        number = OTHER_ERROR
        try:
            attempt()
            number = 0
        except OSError as error:
            number = error.errno or OTHER_ERROR
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(number)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    json.dump({name: outcome(each) for name, each in {**DENIED, **ALLOWED}.items()}, sys.stdout)
