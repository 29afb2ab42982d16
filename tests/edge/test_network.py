"""Changes of the network, made in network namespaces of the tests' own."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import logging
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from voiced.edge import network as networks
from voiced.edge.network import Network, has_route
from voiced.events import NetworkChanged

DEADLINE_S = 15.0  # for what takes milliseconds on an idle machine
CLONE_NEWNET = 0x40000000
T = TypeVar("T")


class Namespace:
    """A network of its own: a thread with a loop, and whatever threads and programs it starts."""

    def __init__(self) -> None:
        self.thread = threading.Thread(target=self._run, name="namespace", daemon=True)
        self.loop: asyncio.AbstractEventLoop
        self._ready = threading.Event()
        self._failed: OSError | None = None

    def __enter__(self) -> Namespace:
        self.thread.start()
        assert self._ready.wait(DEADLINE_S)
        if self._failed:
            pytest.skip(f"needs root and network namespaces: {self._failed}")
        self.ip("link set lo up")
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.call_soon_threadsafe(self._stop.set)
        self.thread.join(DEADLINE_S)

    def do(self, what: Coroutine[Any, Any, T]) -> T:
        """Run it here; its result."""
        return asyncio.run_coroutine_threadsafe(what, self.loop).result(2 * DEADLINE_S)

    def ip(self, command: str) -> None:
        self.do(asyncio.to_thread(ip, command))

    async def ip_of(self, other: Namespace, command: str) -> None:
        """From a coroutine here, in the other one."""
        there = asyncio.run_coroutine_threadsafe(asyncio.to_thread(ip, command), other.loop)
        await asyncio.wrap_future(there)

    def _run(self) -> None:
        if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET):
            code = ctypes.get_errno()
            self._failed = OSError(code, os.strerror(code))
            self._ready.set()
        else:
            asyncio.run(self._live())

    async def _live(self) -> None:
        self.loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._ready.set()
        await self._stop.wait()


def ip(command: str) -> None:
    """iproute2, in the namespace of this thread."""
    subprocess.run(["ip", *command.split()], check=True, capture_output=True, text=True)


def need_iproute2() -> None:
    if not shutil.which("ip"):
        pytest.skip("needs iproute2")


@contextlib.contextmanager
def cable() -> Iterator[tuple[Namespace, Namespace]]:
    """`near` (10.77.0.1) in the first namespace and `far` (10.77.0.2) in the second; both up."""
    need_iproute2()
    with Namespace() as here, Namespace() as there:
        here.ip(f"link add near type veth peer name far netns {there.thread.native_id}")
        for end, name, address in ((here, "near", "10.77.0.1"), (there, "far", "10.77.0.2")):
            end.ip(f"addr add {address}/24 dev {name}")
            end.ip(f"link set {name} up")
        yield here, there


@pytest.fixture
def namespace(monkeypatch: pytest.MonkeyPatch) -> Iterator[Namespace]:
    """With a loopback interface alone."""
    need_iproute2()
    monkeypatch.setattr(networks, "PROC_NET", Path("/proc/thread-self/net"))
    with Namespace() as it:
        yield it


class Told:
    """What the network posted."""

    def __init__(self) -> None:
        self.events: list[NetworkChanged] = []
        self._changed = asyncio.Event()

    def __call__(self, event: NetworkChanged) -> None:
        self.events.append(event)
        self._changed.set()

    async def until(self, done: Callable[[list[NetworkChanged]], object]) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not done(self.events):
                self._changed.clear()
                await self._changed.wait()


@contextlib.asynccontextmanager
async def opened() -> AsyncIterator[tuple[Network, Told]]:
    told = Told()
    network = Network(told)
    network.open()
    try:
        yield network, told
    finally:
        network.close()


# --- what is posted ----------------------------------------------------------------------


def test_the_state_is_told_from_the_start() -> None:
    async def run() -> None:
        began = time.monotonic()
        async with opened() as (_, told):
            (event,) = told.events
            assert event.has_route == has_route()
            assert began <= event.at <= time.monotonic()

    asyncio.run(run())


def test_a_network_that_comes_and_goes(namespace: Namespace) -> None:
    async def run() -> list[bool]:
        async with opened() as (_, told):
            await asyncio.to_thread(ip, "link add near type veth peer name far")
            await asyncio.to_thread(ip, "link set far up")
            await asyncio.to_thread(ip, "link set near up")
            await told.until(lambda events: len(events) > 1)
            assert not told.events[-1].has_route  # no address yet: DHCP is slow
            await asyncio.to_thread(ip, "addr add 192.168.7.2/24 dev near")
            await told.until(lambda events: events[-1].has_route)
            await asyncio.to_thread(ip, "addr del 192.168.7.2/24 dev near")
            await told.until(lambda events: not events[-1].has_route)
            await asyncio.to_thread(ip, "-6 addr add fd00:77::2/64 dev near nodad")
            await told.until(lambda events: events[-1].has_route)
            return [event.has_route for event in told.events]

    assert not namespace.do(run())[0]


def test_an_address_that_leaves_the_routes_as_they_are_is_told_too(namespace: Namespace) -> None:
    async def run() -> None:
        async with opened() as (_, told):
            await asyncio.to_thread(ip, "addr add 127.0.0.77/32 dev lo")
            await told.until(lambda events: len(events) > 1)
            assert not told.events[-1].has_route

    namespace.do(run())


def test_a_burst_is_one_event(namespace: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "COALESCE_S", 0.5)  # wider than what a busy machine needs

    async def run() -> None:
        async with opened() as (_, told):
            began = time.monotonic()
            for number in range(10):
                await asyncio.to_thread(ip, f"addr add 127.0.1.{number}/32 dev lo")
            await told.until(lambda events: len(events) > 1)
            took_s = time.monotonic() - began
            assert len(told.events) <= 2 + took_s // 0.5

    namespace.do(run())


def test_messages_without_end_are_told_all_the_while(namespace: Namespace) -> None:
    """A burst does not put the event off: interfaces that flap would never be told."""

    async def run() -> None:
        async with opened() as (_, told):
            for number in range(300):  # some milliseconds each
                verb = "del" if number % 2 else "add"
                await asyncio.to_thread(ip, f"addr {verb} 127.0.0.77/32 dev lo")
                if len(told.events) > 3:
                    return
            pytest.fail("nothing was told in 300 changes")

    namespace.do(run())


def test_lost_messages_are_a_change(namespace: Namespace, caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        async with opened() as (network, told):
            assert network._socket
            network._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
            for number in range(10):  # the loop stands still meanwhile
                ip(f"addr add 127.0.1.{number}/32 dev lo")
            await told.until(lambda events: len(events) > 1)
            so_far = len(told.events)
            ip("addr add 127.0.2.1/32 dev lo")
            await told.until(lambda events: len(events) > so_far)

    namespace.do(run())
    assert not caplog.records


def test_nothing_is_told_after_close(namespace: Namespace) -> None:
    async def run() -> None:
        told = Told()
        network = Network(told)
        network.close()
        network.open()
        async with opened() as (_, other):
            await asyncio.to_thread(ip, "addr add 127.0.0.77/32 dev lo")  # the loop reads of it
            network.close()
            network.close()
            await other.until(lambda events: len(events) > 1)
        assert len(told.events) == 1

    namespace.do(run())


@pytest.mark.parametrize("step", ["socket", "bind", "recv"])
def test_without_the_kernels_messages_it_is_said_once(
    step: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Sandboxed(socket.socket):
        def __init__(self, family: int = -1, *more: Any) -> None:
            if step == "socket" and family == socket.AF_NETLINK:
                raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
            super().__init__(family, *more)

        def bind(self, *_: Any) -> None:
            if step == "bind":
                raise PermissionError(errno.EPERM, "Operation not permitted")

        def recv(self, *_: Any) -> bytes:
            raise PermissionError(errno.EPERM, "Operation not permitted")

    async def run() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(networks.socket, "socket", Sandboxed)
            told = Told()
            network = Network(told)
            network.open()
            if step == "recv":
                assert network._socket
                descriptor = network._socket.fileno()
                network._read()
                assert not asyncio.get_running_loop().remove_reader(descriptor)
            network.close()
        assert len(told.events) == 1

    asyncio.run(run())
    (record,) = caplog.records
    assert record.levelno == logging.WARNING


# --- is there a route --------------------------------------------------------------------

HEADLINE = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT"
NOBODY6 = f"{'0' * 32} 00 {'0' * 32} 00 {'0' * 32} ffffffff 00000001 00000000 00200200       lo"


def line4(interface: str, destination: str, flags: str = "0001") -> str:
    word = int.from_bytes(socket.inet_aton(destination), "little")
    return f"{interface}\t{word:08X}\t00000000\t{flags}\t0\t0\t100\t00FFFFFF\t0\t0\t0"


def line6(interface: str, destination: str, flags: str = "00000001") -> str:
    prefix = socket.inet_pton(socket.AF_INET6, destination).hex()
    return f"{prefix} 40 {'0' * 32} 00 {'0' * 32} 00000100 00000001 00000000 {flags} {interface:>8}"


@pytest.mark.parametrize(
    ("lines4", "lines6", "leads_out"),
    [
        pytest.param([], [NOBODY6], False, id="none"),
        pytest.param([line4("wlan0", "0.0.0.0", "0003")], [], True, id="default"),
        pytest.param([line4("eth0", "192.168.1.0")], [], True, id="the house alone"),
        pytest.param([line4("eth0", "169.254.0.0")], [], False, id="DHCP failed"),
        pytest.param([line4("eth0", "10.0.0.0", "0200")], [], False, id="rejected"),
        pytest.param([line4("lo", "127.0.0.0")], [line6("lo", "::1")], False, id="loopback"),
        pytest.param([], [line6("eth0", "::")], True, id="default of IPv6"),
        pytest.param([], [line6("eth0", "fd00::")], True, id="the house alone, IPv6"),
        pytest.param([], [line6("eth0", "fe80::")], False, id="link-local"),
        pytest.param([], [line6("eth0", "ff00::")], False, id="multicast"),
        pytest.param([], [line6("eth0", "fd00::2", "80200001")], False, id="to ourselves"),
        pytest.param(["", "eth0", "eth0 x y z"], ["zz " * 10, "00 " * 10], False, id="nonsense"),
    ],
)
def test_what_counts_as_a_route(
    lines4: list[str],
    lines6: list[str],
    leads_out: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(networks, "PROC_NET", tmp_path)
    monkeypatch.setattr(networks, "_is_running", lambda interface: True)
    (tmp_path / "route").write_text("\n".join([HEADLINE, *lines4]))
    (tmp_path / "ipv6_route").write_text("\n".join(lines6))
    assert has_route() is leads_out


def test_without_ipv6_the_other_file_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(networks, "PROC_NET", tmp_path)
    assert has_route()  # nothing can be read: try
    (tmp_path / "route").write_text(HEADLINE)
    assert not has_route()


def test_a_route_without_a_carrier_is_none(namespace: Namespace) -> None:
    async def run() -> None:
        for command in (
            "link add near type veth peer name far",
            "link set near up",
            "addr add 192.168.7.2/24 dev near",
        ):
            ip(command)
        assert "near" in (networks.PROC_NET / "route").read_text()
        assert not has_route()
        ip("link set far up")
        assert has_route()

    namespace.do(run())
