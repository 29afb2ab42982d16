"""A Debian with the product, booted by its own systemd in a container of its own.

The unit is the installed one, sandbox included; a drop-in may change what a test must change. The
container shares this machine's network, unless it is to have none.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from tests.appliance import tree
from voiced.sim.stand import StandError

UNIT = "voiced.service"
PYTHON = "/opt/voiced/current/bin/python"
CONFIG = "etc/voiced/voiced.toml"
KEY_FILE = "etc/credstore/openai-api-key"

BOOT_S = 30.0  # takes 0.5 s on an idle machine
DEADLINE_S = 20.0  # for what takes a second
COMMAND_S = 75.0  # a start may take the unit's TimeoutStartSec, 60 s
KILL_S = 10.0  # killing takes milliseconds
POLL_S = 0.05  # a look from outside costs 10 ms of CPU

_LAID = {
    # a machine's messages are to be gone with it, and all to be seen
    "etc/systemd/journald.conf.d/test.conf": "[Journal]\nStorage=volatile\nRateLimitBurst=0\n",
}


class CommandError(AssertionError):
    """A command in a container failed; the text says which and what it said."""


def poll(done: Callable[[], Any], what: str, timeout_s: float = DEADLINE_S) -> Any:
    """Wait until it is true; what it was then."""
    deadline = time.monotonic() + timeout_s
    while not (value := done()):
        assert time.monotonic() < deadline, f"not within {timeout_s:.0f} s: {what}"
        time.sleep(POLL_S)
    return value


class Container:
    """Boots as a context manager, the unit not started; killed with all that is in it on exit.

    `layers` are `tree.product`'s. `dropin` goes beside the unit, `files` (place: text) into the
    tree, `binds` (folder here: place there) are seen as they change. Raises TreeError when it
    can't be set up, and AssertionError when it doesn't boot.
    """

    def __init__(
        self,
        layers: Sequence[Path],
        *,
        dropin: str = "",
        files: Mapping[str, str] | None = None,
        binds: Mapping[Path, str] | None = None,
        network: bool = True,
    ) -> None:
        self._layers, self._network, self._binds = layers, network, binds or {}
        self._files = {**_LAID, **(files or {})}
        if dropin:
            self._files[f"etc/systemd/system/{UNIT}.d/test.conf"] = dropin
        self._stack = contextlib.ExitStack()
        self._leader = 0
        self.tree = Path()
        """Its file system but for /run, /tmp, /proc and the like; see `root`."""

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self.tree = stack.enter_context(tree.mounted(self._layers))
            self._furnish()
            self._boot(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _furnish(self) -> None:
        """Make the tree what it is to boot with."""
        for place, text in self._files.items():
            self.write(place, text)
        enabled = self.tree / f"etc/systemd/system/multi-user.target.wants/{UNIT}"
        enabled.unlink()  # each test starts it when its stage is set

    def _boot(self, stack: contextlib.ExitStack) -> None:
        name = f"voiced-{secrets.token_hex(4)}"
        said = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
        groups = stack.enter_context(_control_groups(name))
        stack.callback(_forget, name)
        join = "".join(f'echo $$ >"{group}/cgroup.procs"; ' for group in groups)
        nspawn = subprocess.Popen(
            # It must not outlive us, should somebody kill us; at TERM it shuts the container down.
            ["setpriv", "--pdeathsig", "TERM", "sh", "-c", f'{join}exec "$@"', "sh"]
            + ["systemd-nspawn", "--quiet", "-D", str(self.tree), f"--machine={name}", "--boot"]
            + ["--register=no", "--keep-unit", "--console=pipe"]
            # for DevicePolicy=, and so that to refuse the clock is left to the unit
            + ["--system-call-filter=bpf adjtimex clock_adjtime"]
            + ([] if self._network else ["--private-network"])
            + [f"--bind-ro={folder}:{place}" for folder, place in self._binds.items()],
            # as on a Pi, whatever this machine has
            env={**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"},
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            start_new_session=True,
        )
        stack.callback(_end, nspawn, groups)

        def booted() -> bool:
            if nspawn.poll() is not None:
                said.seek(0)
                raise tree.TreeError(f"systemd-nspawn: {said.read().decode(errors='replace')}")
            self._leader = _pid_1(nspawn.pid)
            return bool(self._leader) and self.run_state() in ("running", "degraded")

        poll(booted, "the container's boot", BOOT_S)

    # --- looking in ----------------------------------------------------------------------

    @property
    def root(self) -> Path:
        """Its file system as its own processes see it."""
        return Path(f"/proc/{self._leader}/root")

    @property
    def control(self) -> Path:
        """The daemon's control socket; with `check` what stand.Watch wants of a daemon."""
        return self.root / "run/voiced/control.sock"

    def check(self) -> None:
        """Raises StandError if the unit is not up."""
        if self.show("ActiveState") not in ("active", "reloading"):
            raise StandError(f"the unit is {self.show('ActiveState')}: {self.messages()[-3:]}")

    def write(self, place: str, text: str, mode: int = 0o644) -> None:
        """Lay a file into the tree, before or after the boot."""
        path = self.tree / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode)
        path.chmod(mode)
        path.write_text(text)

    def call(self, *command: str, user: str = "root") -> subprocess.CompletedProcess[str]:
        """Run a command in the container to its end, whatever that is."""
        return subprocess.run(
            ["nsenter", "-t", str(self._leader), "-a"]
            + ["setpriv", "--reuid", user, "--regid", user, "--init-groups", *command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            check=False,
        )

    def run(self, *command: str, user: str = "root") -> str:
        """Run a command in the container; its output. Raises CommandError."""
        called = self.call(*command, user=user)
        if called.returncode:
            words = called.stderr.strip() or called.stdout.strip()
            raise CommandError(f"{' '.join(command)}: exit code {called.returncode}: {words}")
        return called.stdout

    def run_state(self) -> str:
        """Of the whole system: "running" when it has booted."""
        return self.call("systemctl", "is-system-running").stdout.strip()

    def show(self, name: str) -> str:
        """A property of the unit, as systemd names it."""
        return self.run("systemctl", "show", "--value", "-p", name, UNIT).strip()

    def is_so(self, wanted: Mapping[str, str]) -> bool:
        """Whether the unit's properties are these."""
        return all(self.show(name) == value for name, value in wanted.items())

    @property
    def status(self) -> str:
        """What the daemon told systemd last."""
        return self.show("StatusText")

    @property
    def pid(self) -> int:
        """The daemon's, by the container's own count."""
        return int(self.show("MainPID"))

    def journal(self) -> list[dict[str, Any]]:
        """What the daemon and systemd said of the unit, oldest first, with all fields."""
        lines = self.run("journalctl", "--unit", UNIT, "--output=json", "--all", "--quiet")
        return [json.loads(line) for line in lines.splitlines()]

    def messages(self) -> list[str]:
        """The texts of `journal`."""
        return [str(entry["MESSAGE"]) for entry in self.journal()]

    def wait_status(self, wanted: str) -> str:
        """Wait until the status matches the regular expression; the whole of it."""

        def matches() -> str | None:
            status = self.status
            return status if re.search(wanted, status) else None

        try:
            return str(poll(matches, f"status {wanted!r}"))
        except AssertionError as error:
            raise AssertionError(f"{error}; it is {self.status!r}") from None

    def wait_show(self, timeout_s: float = DEADLINE_S, **wanted: str) -> None:
        """Wait until the unit's properties are these."""
        try:
            poll(lambda: self.is_so(wanted), f"{wanted}", timeout_s)
        except AssertionError as error:
            raise AssertionError(f"{error}; {[self.show(n) for n in wanted]}") from None

    # --- the unit ------------------------------------------------------------------------

    def systemctl(self, verb: str) -> float:
        """`systemctl VERB` on the unit; the seconds it took. Raises CommandError."""
        began = time.monotonic()
        self.run("systemctl", verb, UNIT)
        return time.monotonic() - began

    def start(self) -> None:
        """Returns when it is READY. Raises CommandError, with its last words."""
        try:
            self.systemctl("start")
        except CommandError as error:
            raise CommandError(f"{error}: {self.messages()[-5:]}") from None

    def kill(self, number: int) -> None:
        """Send a signal to the daemon alone."""
        self.run("systemctl", "kill", "--kill-whom=main", f"--signal={number}", UNIT)


def _pid_1(nspawn: int) -> int:
    """The container's first process, a child of nspawn; 0 if there is none (yet)."""
    with contextlib.suppress(OSError):  # gone between two looks
        for child in Path(f"/proc/{nspawn}/task/{nspawn}/children").read_text().split():
            status = Path(f"/proc/{child}/status").read_text()
            if re.search(r"^NSpid:.*\t1$", status, re.MULTILINE):
                return int(child)
    return 0


def _end(nspawn: subprocess.Popen[bytes], groups: Sequence[Path]) -> None:
    """Kill the container, at which nspawn tidies up and ends."""
    if leader := _pid_1(nspawn.pid):
        os.kill(leader, signal.SIGKILL)
    else:
        nspawn.kill()
    nspawn.wait(KILL_S)
    poll(lambda: _killed(groups), "the container's death", KILL_S)


def _forget(name: str) -> None:
    """What nspawn removes itself only where /run is in memory."""
    with contextlib.suppress(OSError):
        Path(f"/run/systemd/nspawn/propagate/{name}").rmdir()


@contextlib.contextmanager
def _control_groups(name: str) -> Iterator[list[Path]]:
    """A control group of its own wherever systemd keeps some, removed at the end.

    Without one all containers would share ours, and each systemd kill what another one started.
    """
    ours = {line.split(":")[1]: line.split(":")[2] for line in _lines("/proc/self/cgroup")}
    groups = []
    for _, mount, kind, options, *_ in map(str.split, _lines("/proc/mounts")):
        if kind == "cgroup2":
            groups.append(Path(mount + ours[""]) / name)
        elif kind == "cgroup" and "name=systemd" in options.split(","):
            groups.append(Path(mount + ours["name=systemd"]) / name)
    try:
        for group in groups:
            group.mkdir(exist_ok=True)  # a hierarchy may be mounted twice
        yield groups
    finally:
        for folder in _folders(groups):
            folder.rmdir()


def _killed(groups: Sequence[Path]) -> bool:
    """Kill what is in control groups; whether nothing was."""
    pids = [int(pid) for folder in _folders(groups) for pid in _lines(f"{folder}/cgroup.procs")]
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return not pids


def _folders(groups: Sequence[Path]) -> list[Path]:
    """Control groups and all within, the innermost first."""
    return [Path(each) for group in groups for each, _, _ in os.walk(group, topdown=False)]


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()
