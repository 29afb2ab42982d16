"""Tells when addresses or routes come and go. What follows from it, the core decides."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import ipaddress
import logging
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path

from voiced.events import NetworkChanged

log = logging.getLogger(__name__)

COALESCE_S = 0.1
"""From the first message of a burst to the event. An interface that comes up with an address and
a default route told it in 22 messages within 21 ms, where a program was started for each step;
that takes some times longer on a small board. A burst that lasts longer is told again."""

READS_AT_ONCE = 64
"""Messages taken before the loop looks at everything else; the rest waits in the socket."""

PROC_NET = Path("/proc/net")

# linux/rtnetlink.h, the groups of messages; the socket module doesn't have them.
_RTMGRP_LINK = 0x1
_RTMGRP_IPV4_IFADDR, _RTMGRP_IPV4_ROUTE = 0x10, 0x40
_RTMGRP_IPV6_IFADDR, _RTMGRP_IPV6_ROUTE = 0x100, 0x400
GROUPS = (
    _RTMGRP_LINK
    | _RTMGRP_IPV4_IFADDR
    | _RTMGRP_IPV4_ROUTE
    | _RTMGRP_IPV6_IFADDR
    | _RTMGRP_IPV6_ROUTE
)

# linux/route.h and linux/ipv6_route.h, the flags of a route
_RTF_UP, _RTF_REJECT = 0x1, 0x200
_RTF_ANYCAST, _RTF_LOCAL = 0x100000, 0x80000000

_SIOCGIFFLAGS, _IFF_RUNNING = 0x8913, 0x40  # linux/sockios.h, linux/if.h

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Network:
    """Posts `NetworkChanged` at `open` and after each change, in the loop's thread.

    Where the kernel's messages can't be had (a sandbox without AF_NETLINK), the first event is
    the only one, and the link's own retries have to do.
    """

    def __init__(self, post: Callable[[NetworkChanged], None]) -> None:
        self._post = post
        self._socket: socket.socket | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._later: asyncio.TimerHandle | None = None

    def open(self) -> None:
        """Begin to listen, then tell how it stands now. Needs a running loop."""
        self._loop = asyncio.get_running_loop()
        try:
            self._socket = socket.socket(
                socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE
            )
            self._socket.bind((0, GROUPS))
            self._loop.add_reader(self._socket, self._read)
        except OSError as exc:
            self._fail(exc)
        self._tell()

    def close(self) -> None:
        """Post nothing any more. Safe twice and early."""
        if self._later:
            self._later.cancel()
            self._later = None
        if self._socket and self._loop:
            self._loop.remove_reader(self._socket)
            self._socket.close()
        self._socket = None

    def _read(self) -> None:
        """That something changed is all we want of a message: the files say what there is now."""
        assert self._socket
        for _ in range(READS_AT_ONCE):
            try:
                self._socket.recv(1)  # the rest of the message goes with it
            except BlockingIOError:
                return
            except OSError as exc:
                if exc.errno != errno.ENOBUFS:  # messages were lost: those were changes, too
                    self._fail(exc)
                    return
            self._tell_soon()

    def _tell_soon(self) -> None:
        if self._later is None and self._loop:
            self._later = self._loop.call_later(COALESCE_S, self._tell)

    def _tell(self) -> None:
        self._later = None
        self._post(NetworkChanged(has_route(), time.monotonic()))

    def _fail(self, exc: OSError) -> None:
        log.warning("changes of the network are not seen: %s", exc)
        self.close()


def has_route() -> bool:
    """True if some route leads out of this machine: a default one, or one into the house alone.

    Those of interfaces without a carrier don't count, and neither do link-local ones: they are
    there where DHCP failed. True also where it can't be known.
    """
    tables = [_ways_out("route", _ipv4), _ways_out("ipv6_route", _ipv6)]
    known = [interfaces for interfaces in tables if interfaces is not None]
    return not known or any(_is_running(each) for each in set().union(*known))


Route = tuple[Address, int, str]
"""Destination, flags, interface."""


def _ways_out(name: str, parse: Callable[[list[str]], Route]) -> set[str] | None:
    """The interfaces that routes of this file leave by. None: unreadable, or there is no IPv6."""
    try:
        lines = (PROC_NET / name).read_text("ascii", "replace").splitlines()
    except OSError:
        return None
    found = set()
    for line in lines:
        try:
            destination, flags, interface = parse(line.split())
        except (ValueError, IndexError, struct.error):
            continue  # the headline, or nothing we know
        to_nobody = flags & (_RTF_REJECT | _RTF_LOCAL | _RTF_ANYCAST)
        nearby = destination.is_link_local or destination.is_multicast
        if flags & _RTF_UP and not to_nobody and not nearby and interface != "lo":
            found.add(interface)
    return found


def _ipv4(columns: list[str]) -> Route:
    address = ipaddress.IPv4Address(struct.pack("=I", int(columns[1], 16)))
    return address, int(columns[3], 16), columns[0]


def _ipv6(columns: list[str]) -> Route:
    return ipaddress.IPv6Address(bytes.fromhex(columns[0])), int(columns[8], 16), columns[9]


def _is_running(interface: str) -> bool:
    """False without a carrier: the routes of a static address outlive the cable."""
    request = struct.pack("16sH14x", interface.encode(), 0)
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            answer = fcntl.ioctl(probe, _SIOCGIFFLAGS, request)
    except OSError as exc:
        return exc.errno != errno.ENODEV  # gone meanwhile; else it can't be known
    return bool(struct.unpack("16xH14x", answer)[0] & _IFF_RUNNING)
