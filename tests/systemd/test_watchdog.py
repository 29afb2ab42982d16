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

# How long until it serves again. A thread that does not step is found after 5 s, at the second
# look, of which one comes every 2.5 s; one that has ended at the next; all else by systemd, 30 s
# after the last sign of life. It starts 2 s later.
LOOK_S = 2.5
RESTART_S = 2.0
DEAD_S = LOOK_S + RESTART_S
STUCK_S = 5.0 + 2 * LOOK_S + RESTART_S
DAEMON_S = 30.0 + RESTART_S
SPARE_S = 10.0  # many are up at once, one of them spins, on a machine that may be busy

SILENT_S = 60.0  # until silence is a fault


@dataclass(frozen=True)
class Case:
    """A sabotage: its signal counted from SIGRTMIN, and how it must end."""

    number: int
    longest_s: float
    told: str  # by systemd when it kills; the fault, where it must not


KILLED = {
    "wedged loop": Case(1, DAEMON_S, "Watchdog timeout"),
    "spinning loop": Case(2, DAEMON_S, "Watchdog timeout"),
    "deadlock": Case(3, DAEMON_S, "Watchdog timeout"),
    "dead capture thread": Case(4, DEAD_S, "Watchdog request"),
    "hung capture thread": Case(5, STUCK_S, "Watchdog request"),
    "hung playback thread": Case(6, STUCK_S, "Watchdog request"),
}
SPARED = {
    "slow card": Case(7, 1.0 + 5.0, "microphone-slow"),
    "silent card": Case(8, 1.0 + SILENT_S, "microphone-dead"),
}
CASES = SPARED | KILLED


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
        killed = [broken[name] for name in KILLED]
        with contextlib.suppress(AssertionError):  # of what did not come back each test tells
            poll(lambda: all([each.look() for each in killed]), "all", DAEMON_S + SPARE_S)
        yield broken


@pytest.mark.parametrize("name", KILLED)
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


@pytest.mark.parametrize("name", [name for name in KILLED if "thread" in name])
def test_the_journal_names_the_thread_that_was_stuck(broken: dict[str, Broken], name: str) -> None:
    thread = name.split()[1]
    told = f"the {thread} thread is stuck: systemd restarts us"
    assert told in broken[name].device.messages()


@pytest.mark.parametrize("name", SPARED)
def test_a_card_that_does_not_do_its_part_is_a_fault_and_nobody_is_killed(
    broken: dict[str, Broken], name: str
) -> None:
    case, device = CASES[name], broken[name].device
    due = broken[name].began + case.longest_s + SPARE_S
    poll(lambda: case.told in device.faults(), case.told, max(1.0, due - time.monotonic()))
    past = broken[name].began + DAEMON_S + SPARE_S  # the watchdog would have come
    poll(lambda: time.monotonic() > past, "time to pass", 2 * DAEMON_S)
    assert case.told in device.faults()
    assert (device.show("NRestarts"), device.pid) == ("0", broken[name].pid)
    (told,) = [entry for entry in device.journal() if entry.get("VOICED_FAULT") == case.told]
    print(f"watchdog: {name}: {told['MESSAGE']}")  # noqa: T201
