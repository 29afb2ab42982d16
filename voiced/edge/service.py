"""systemd and the journal."""

from __future__ import annotations

import logging
import os
import sys
import time

from systemd import daemon, journal

log = logging.getLogger(__name__)


class Service:
    """Tells systemd how it goes. Without systemd every call is harmless."""

    def __init__(self) -> None:
        watchdog_us = os.environ.get("WATCHDOG_USEC")
        ours = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self.watchdog_s = int(watchdog_us) / 1e6 if watchdog_us and ours else None
        """How often `alive` must be told, at the latest; None: nobody asks."""

    def ready(self) -> None:
        """Started, or done with a reload."""
        _notify("READY=1")

    def reloading(self) -> None:
        """A reload begins; `ready` ends it."""
        _notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        _notify("STOPPING=1")

    def status(self, text: str) -> None:
        """The one line that `systemctl status` shows."""
        _notify("STATUS=" + text.replace("\n", " "))

    def alive(self) -> None:
        _notify("WATCHDOG=1")


def _notify(state: str) -> None:
    try:
        daemon.notify(state)
    except OSError as exc:  # who can't tell how it goes still works
        log.debug("systemd does not take %s: %s", state.partition("=")[0], exc)


def set_up_logging() -> None:
    """To the journal with its fields if systemd reads us, else to stderr."""
    handler: logging.Handler
    if _journal_reads_us():
        handler = journal.JournalHandler(SYSLOG_IDENTIFIER="voiced")
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("websockets").setLevel(logging.WARNING)  # at DEBUG it logs headers


def _journal_reads_us() -> bool:
    """True if stderr is systemd's stream. A shell in a desktop session inherits the variable of
    the desktop, not its stream."""
    stderr = os.fstat(2)
    return os.environ.get("JOURNAL_STREAM") == f"{stderr.st_dev}:{stderr.st_ino}"
