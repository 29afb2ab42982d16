"""The watchdog: a daemon that hangs is killed, says where it hung, and serves again."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.systemd.container import poll
from tests.systemd.stage import Device
from voiced.sim.rig import Rig

INJECT = Path(__file__).parent / "inject" / "sitecustomize.py"
INJECTED = "[Service]\nEnvironment=PYTHONPATH=/srv/inject\n"

# How long until it serves again. A stuck sound thread is found after 5 s, at the second look, of
# which one comes every 2.5 s; all else by systemd, 30 s after the last sign of life. It starts 2 s
# later.
THREAD_S = 5.0 + 2 * 2.5 + 2.0
DAEMON_S = 30.0 + 2.0
SPARE_S = 5.0  # four are up at once, on a machine that may be busy


@dataclass(frozen=True)
class Case:
    """A sabotage: its signal counted from SIGRTMIN, and what must follow."""

    number: int
    longest_s: float
    told: str  # by systemd when it kills


CASES = {
    "wedged loop": Case(1, DAEMON_S, "Watchdog timeout"),
    "dead capture thread": Case(2, THREAD_S, "Watchdog request"),
    "stuck playback thread": Case(3, THREAD_S, "Watchdog request"),
    "deadlock": Case(4, DAEMON_S, "Watchdog timeout"),
}


@dataclass
class Broken:
    """A device whose daemon was broken."""

    device: Device
    pid: int  # of the daemon that was broken
    began: float
    took_s: float | None = None  # until it was READY again

    def look(self) -> bool:
        """Whether it is back."""
        wanted = {"ActiveState": "active", "NRestarts": "1"}
        if self.took_s is None and self.device.is_so(wanted):
            self.took_s = time.monotonic() - self.began
        return self.took_s is not None


@pytest.fixture(scope="module")
def broken(layers: list[Path], rig: Rig, parrot: str) -> Iterator[dict[str, Broken]]:
    """Each case in a container of its own, all at once: it is mostly waiting."""
    files = {"srv/inject/sitecustomize.py": INJECT.read_text()}
    with contextlib.ExitStack() as stack:
        broken = {}
        for name, case in CASES.items():
            device = Device(layers, rig, parrot, dropin=INJECTED, files=files)
            stack.enter_context(device).start()
            device.assert_serves()
            broken[name] = Broken(device, device.pid, time.monotonic())
            device.kill(signal.SIGRTMIN + case.number)
        with contextlib.suppress(AssertionError):  # of what did not come back each test tells
            poll(lambda: all([each.look() for each in broken.values()]), "all", DAEMON_S + SPARE_S)
        yield broken


@pytest.mark.parametrize("name", CASES)
def test_it_is_killed_and_serves_again(
    broken: dict[str, Broken], name: str, record_property: Callable[[str, object], None]
) -> None:
    case, device, took_s = CASES[name], broken[name].device, broken[name].took_s
    assert took_s is not None, device.messages()[-5:]
    print(f"watchdog: {name}: READY again after {took_s:.1f} s")  # noqa: T201
    record_property("ready_again_s", round(took_s, 1))
    assert took_s < case.longest_s + SPARE_S
    assert device.pid != broken[name].pid
    device.wait_status("^idle · link down$")
    device.assert_serves()
    messages = device.messages()
    assert [text for text in messages if case.told in text]
    assert [entry for entry in device.journal() if entry.get("UNIT_RESULT") == "watchdog"]
    assert [text for text in messages if text.startswith("Current thread 0x")]  # all their stacks


@pytest.mark.parametrize("thread", ["capture", "playback"])
def test_the_journal_names_the_thread_that_was_stuck(
    broken: dict[str, Broken], thread: str
) -> None:
    (name,) = (name for name in CASES if thread in name)
    told = f"the {thread} thread is stuck: systemd restarts us"
    assert told in broken[name].device.messages()
