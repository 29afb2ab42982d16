"""systemd and the journal."""

from __future__ import annotations

import logging
import os
import socket
import sys
import time
from collections import deque
from pathlib import Path

from systemd import journal

log = logging.getLogger(__name__)


CGROUPS = Path("/sys/fs/cgroup")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

UNSENT = 16
"""States that wait because systemd reads slowly. A newer status replaces the one that waits; when
it is full the oldest is dropped. `alive` tries again, so a busy systemd is only told late."""


class Service:
    """Tells systemd how it goes, and never waits for it. Without systemd nothing happens.

    (libsystemd's sd_notify blocks when nobody reads the socket; the event loop must not.)
    """

    def __init__(self) -> None:
        watchdog_us = os.environ.get("WATCHDOG_USEC")
        ours = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self.watchdog_s = int(watchdog_us) / 1e6 if watchdog_us and ours else None
        """How often `alive` must be told, at the latest; None: nobody asks."""
        address = os.environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._unsent: deque[str] = deque(maxlen=UNSENT)

    def ready(self) -> None:
        """Started, or done with a reload."""
        self._notify("READY=1")

    def reloading(self) -> None:
        """A reload begins; `ready` ends it."""
        self._notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        self._notify("STOPPING=1")

    def status(self, text: str) -> None:
        """The one line that `systemctl status` shows."""
        if self._unsent and self._unsent[-1].startswith("STATUS="):
            self._unsent.pop()
        self._notify("STATUS=" + text.replace("\n", " "))

    def alive(self) -> None:
        self._notify("WATCHDOG=1")

    def stuck(self) -> None:
        """Have us killed and started again, now instead of when the watchdog is due."""
        self._notify("WATCHDOG=trigger")

    def memory(self) -> tuple[float, float] | None:
        """What this process holds and what the unit allows it, in MB; None without a limit.

        Held is what is its own: files the kernel keeps for us are given back when others need it.
        """
        try:
            group = Path("/proc/self/cgroup").read_text().partition("::")[2].strip()
            allowed = (CGROUPS / group.lstrip("/") / "memory.max").read_text().strip()
            _, resident, shared = Path("/proc/self/statm").read_text().split()[:3]
            limit = int(allowed)
        except (OSError, ValueError):  # no cgroup, or "max"
            return None
        return (int(resident) - int(shared)) * PAGE_BYTES / 2**20, limit / 2**20

    def _notify(self, state: str) -> None:
        if not self._address:
            return
        self._unsent.append(state)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as out:
                while self._unsent:
                    out.sendto(self._unsent[0].encode(), self._address)
                    self._unsent.popleft()
        except BlockingIOError:
            pass  # the rest goes with the next
        except OSError as exc:  # who can't tell how it goes still works
            self._unsent.clear()
            log.debug("systemd does not take %s: %s", state.partition("=")[0], exc)


def set_up_logging() -> None:
    """To the journal with its fields if systemd reads us, else to stderr."""
    handler: logging.Handler
    if _journal_reads_us():
        handler = journal.JournalHandler(SYSLOG_IDENTIFIER="voiced")
        handler.setFormatter(logging.Formatter("%(message)s"))  # the rest are fields
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("websockets").setLevel(logging.WARNING)  # at DEBUG it logs headers
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # it warns of each write to a dead socket


def _journal_reads_us() -> bool:
    """True if stderr is systemd's stream. A shell in a desktop session inherits the variable of
    the desktop, not its stream."""
    stderr = os.fstat(2)
    return os.environ.get("JOURNAL_STREAM") == f"{stderr.st_dev}:{stderr.st_ino}"
