"""One emulated machine: qemu, and the agent in it.

The agent's channel and qemu's own are socket pairs that qemu inherits: no network of the guest is
involved, there are no names to clash, and the end of qemu is the end of the stream.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import shutil
import socket
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Self

from tests.appliance.agent import CHUNK_BYTES
from tests.appliance.kernel import Kernel
from tests.appliance.tree import System

HERE = Path(__file__).parent

# With vectors of 128 bits, as a Pi has them. numpy takes wider ones where it finds them, and
# emulated these cost the gate three times as much (1.48 against 0.46 ms a block).
NARROW = "max,-avx,-avx2,-f16c,-fma,-vaes,-vpclmulqdq"

QEMU = {
    "amd64": ("qemu-system-x86_64", "-machine", "pc", "-cpu", NARROW),
    "arm64": ("qemu-system-aarch64", "-machine", "virt", "-cpu", "cortex-a72"),
}
CONSOLES = {"amd64": "ttyS0", "arm64": "ttyAMA0"}
QEMU_PACKAGES = {"amd64": "qemu-system-x86", "arm64": "qemu-system-arm"}

CARD_DRIVER = "/sys/bus/platform/drivers/snd_aloop"
CARDS = {"Mic": "snd_aloop.0", "Speaker": "snd_aloop.1"}  # the order of modprobe.d's ids

UP_S = 180.0  # boots in 12 s, arm64 in 25; on a machine that does other things in twice that
OFF_S = 90.0  # it takes 3 s; systemd itself kills after 90
ANSWER_S = 30.0  # an answer takes some ms, a chunk of a file 50; beside two busy guests ten times
GONE_S = 10.0  # a killed process or a card is gone in some ms; a busy host makes it seconds
LINES = 10_000  # of a watch; the oldest go first
CONSOLE_LINES = 15  # of the console in an error

Line = dict[str, Any]


class MachineError(RuntimeError):
    """It doesn't do what it was asked; says what it last said."""


def needed(arch: str) -> dict[str, str]:
    """The programs it takes, each with its package."""
    qemu = {QEMU[arch][0]: QEMU_PACKAGES[arch]}
    return {**qemu, "mke2fs": "e2fsprogs", "setpriv": "util-linux"}


def disk_image(root: Path, out: Path, size_mb: int) -> Path:
    """Make `out`, an ext4 file system with the content of a folder. Raises MachineError."""
    _call("mke2fs", "-q", "-t", "ext4", "-d", str(root), str(out), f"{size_mb}M")
    return out


def _call(*command: str) -> None:
    called = subprocess.run(command, capture_output=True, text=True, check=False)
    if called.returncode:
        words = called.stderr.strip().splitlines()[-3:]
        raise MachineError(f"{' '.join(command)}: {' | '.join(words)}")


def lay_board(root: Path) -> None:
    """Put the board's files and the agent into a tree that will be a machine's root."""
    shutil.copytree(HERE / "board", root, symlinks=True, dirs_exist_ok=True)
    shutil.copy(HERE / "agent.py", root / "usr/lib/voiced-board")


class Watch:
    """What a Unix socket in the guest says, line by line, from the connection on."""

    def __init__(self, ask: Callable[[str | None], object]) -> None:
        self.lines: deque[Line] = deque(maxlen=LINES)
        self._ask = ask
        self._unseen: deque[Line] = deque(maxlen=LINES)
        self._news = threading.Condition()
        self._open = True

    def wait(self, predicate: Callable[[Line], bool], timeout_s: float) -> Line:
        """The next line that satisfies the predicate; what comes before it is passed over.

        Raises MachineError when none comes in time or the socket is closed.
        """
        deadline = time.monotonic() + timeout_s
        with self._news:
            while True:
                while self._unseen:
                    line = self._unseen.popleft()
                    if predicate(line):
                        return line
                left_s = deadline - time.monotonic()
                if not self._open or left_s <= 0:
                    why = f"within {timeout_s} s" if self._open else "before the socket was closed"
                    last = self.lines[-1] if self.lines else "nothing"
                    raise MachineError(f"no such line {why}; the last one: {last}")
                self._news.wait(left_s)

    def send(self, command: Line) -> None:
        """Send one JSON line. Raises MachineError if the socket is closed."""
        self._ask(json.dumps(command))

    def close(self) -> None:
        """Hang up; lines so far stay."""
        if self._open:
            with contextlib.suppress(MachineError):  # closed in the meantime
                self._ask(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def take(self, text: str | None) -> None:
        """The reader's: a line from the guest, None at the end."""
        with self._news:
            if text is None:
                self._open = False
            else:
                line = json.loads(text)
                self.lines.append(line)
                self._unseen.append(line)
            self._news.notify_all()


class Machine:
    """One emulated machine, powered on by `with`; its power is cut at the end.

    `disk`: an ext4 root, never written. Without `keep` changes to it are lost with the power; with
    `keep` they are in `folder`, and another machine with that folder goes on from there.

    Methods may be called from several threads. qemu is killed with the thread that entered it.
    """

    def __init__(
        self,
        system: System,
        kernel: Kernel,
        disk: Path,
        folder: Path,
        *,
        memory_mb: int = 512,
        keep: bool = False,
    ) -> None:
        self.console = folder / "console"
        self._disk = disk
        self._kept = folder / "disk" if keep else None
        self._command = self._line(system, kernel, memory_mb)
        self._numbers = itertools.count(1)
        self._asked: dict[int, Future[Line]] = {}
        self._watches: dict[int, Watch] = {}
        self._up: Future[float] = Future()  # seconds from power-on to the agent
        self._lock = threading.Lock()
        self._resources = contextlib.ExitStack()

    def _line(self, system: System, kernel: Kernel, memory_mb: int) -> list[str]:
        thrown = "on" if self._kept is None else "off"
        return [
            *("setpriv", "--pdeathsig", "KILL"),  # nothing stays when we are killed
            *QEMU[system.arch],
            *("-accel", "tcg,thread=multi", "-smp", "2", "-m", str(memory_mb)),
            *("-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot"),
            *("-kernel", str(kernel.image), "-initrd", str(kernel.initrd)),
            *("-append", f"console={CONSOLES[system.arch]} panic=-1 quiet"),
            *("-drive", f"file={self._kept or self._disk},format=raw,if=virtio,snapshot={thrown}"),
            *("-netdev", "user,id=net,ipv6=off", "-device", "virtio-net-pci,netdev=net,id=nic"),
            *("-device", "virtio-rng-pci", "-device", "virtio-serial-pci"),
            *("-device", "virtserialport,chardev=agent,name=agent"),
        ]

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as started:
            if self._kept is not None and not self._kept.exists():
                _call("cp", "--sparse=always", str(self._disk), str(self._kept))
            self._agent, agents_end = map(started.enter_context, socket.socketpair())
            self._qmp, qmps_end = map(started.enter_context, socket.socketpair())
            console = started.enter_context(self.console.open("ab"))
            self._since = time.monotonic()
            self._qemu = subprocess.Popen(
                [
                    *self._command,
                    *("-chardev", f"socket,id=agent,fd={agents_end.fileno()}"),
                    *("-chardev", f"socket,id=qmp,fd={qmps_end.fileno()}"),
                    *("-mon", "chardev=qmp,mode=control"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                pass_fds=(agents_end.fileno(), qmps_end.fileno()),
                start_new_session=True,
            )
            for end in (agents_end, qmps_end, console):
                end.close()  # qemu's now: its end must be the end of the stream
            self._reader = threading.Thread(target=self._read_agent, name="agent")
            self._reader.start()
            started.callback(self.power_cut)
            self._qmp.settimeout(ANSWER_S)
            self._told = started.enter_context(self._qmp.makefile("rb"))
            self._monitor("qmp_capabilities")
            self._resources = started.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._resources.close()

    def __repr__(self) -> str:
        return f"<Machine {self.console.parent} {'up' if self._up.done() else 'not up'}>"

    # --- power and cables ------------------------------------------------------------

    def wait_up(self) -> float:
        """Wait for the agent; the seconds since power-on. Raises MachineError."""
        try:
            return self._up.result(UP_S)
        except TimeoutError:
            raise MachineError(f"not up after {UP_S} s: {self._last_words()}") from None

    def power_cut(self) -> None:
        """As if someone pulled the plug; twice does no harm."""
        self._qemu.kill()
        self._qemu.wait(GONE_S)
        self._reader.join(GONE_S)

    def power_off(self) -> None:
        """An orderly shutdown, to its end. Raises MachineError."""
        with contextlib.suppress(MachineError):  # the agent may be stopped before it can answer
            self.run("systemctl", "poweroff", "--no-block")
        try:
            self._qemu.wait(OFF_S)
        except subprocess.TimeoutExpired:
            raise MachineError(f"not off after {OFF_S} s: {self._last_words()}") from None
        self._reader.join(GONE_S)

    def unplug_network(self) -> None:
        """Pull the network's cable."""
        self._monitor("set_link", name="nic", up=False)

    def plug_network(self) -> None:
        """Put the network's cable back."""
        self._monitor("set_link", name="nic", up=True)

    def unplug_card(self, name: str) -> None:
        """Pull a USB sound card's plug: "Mic" or "Speaker". Raises MachineError."""
        # The kernel's write ends when the last program has closed the card, maybe never.
        self.run("sh", "-c", f"echo {CARDS[name]} >{CARD_DRIVER}/unbind &")
        self._await_card(name, there=False)

    def plug_card(self, name: str) -> None:
        """Put the plug back; the card has its old number and name.

        Raises MachineError if a program has kept it open for ANSWER_S.
        """
        self.write(f"{CARD_DRIVER}/bind", CARDS[name].encode())
        self._await_card(name, there=True)

    def _await_card(self, name: str, *, there: bool) -> None:
        deadline = time.monotonic() + GONE_S
        while (f"[{name} " in self.read("/proc/asound/cards").decode()) != there:
            if time.monotonic() > deadline:
                raise MachineError(f"{name}: still {'un' * there}plugged after {GONE_S} s")

    def _monitor(self, command: str, **arguments: object) -> None:
        """One command of qemu's own. Raises MachineError."""
        asked = {"execute": command, "arguments": arguments}
        try:
            with self._lock:
                self._qmp.sendall(json.dumps(asked).encode())
                for text in self._told:  # events and a greeting come between
                    told = json.loads(text)
                    if "return" in told:
                        return
                    if "error" in told:
                        raise MachineError(f"{command} {arguments}: {told['error']}")
        except OSError as error:
            raise MachineError(f"{command}: {error!r}: {self._last_words()}") from error
        raise MachineError(f"{command}: qemu is gone: {self._last_words()}")

    # --- in the guest ----------------------------------------------------------------

    def run(self, *command: str, timeout_s: float = 60.0, check: bool = True) -> str:
        """Run a command as root; what it wrote to stdout.

        Raises MachineError if it can't be run, takes too long, or fails while `check` is set.
        """
        told = self._ask("run", timeout_s + ANSWER_S, command=command, timeout_s=timeout_s)
        if check and told["code"] != 0:
            words = (told["err"] or told["out"]).strip().splitlines()[-3:]
            raise MachineError(f"{' '.join(command)}: exit {told['code']}: {' | '.join(words)}")
        return str(told["out"])

    def read(self, path: str) -> bytes:
        """A small file, at most CHUNK_BYTES. Raises MachineError."""
        return base64.b64decode(self._ask("read", path=path)["data"])

    def write(self, path: str, data: bytes) -> float:
        """Write a small file, at most CHUNK_BYTES; the guest's time (s) just before.

        So a write to a simulated pin is a dated finger. Raises MachineError.
        """
        return float(self._ask("write", path=path, data=base64.b64encode(data).decode())["at"])

    def get(self, path: str) -> bytes:
        """A file of any size. Raises MachineError."""
        content = b""
        while True:
            told = self._ask("read", path=path, offset=len(content))
            content += (chunk := base64.b64decode(told["data"]))
            if len(chunk) < CHUNK_BYTES:
                return content

    def put(self, local: Path | bytes, path: str) -> None:
        """Write a file of any size. Raises MachineError."""
        content = local if isinstance(local, bytes) else local.read_bytes()
        for start in range(0, max(len(content), 1), CHUNK_BYTES):
            data = base64.b64encode(content[start : start + CHUNK_BYTES]).decode()
            self._ask("write", path=path, data=data, append=start > 0)

    def monotonic(self) -> float:
        """The guest's CLOCK_MONOTONIC in seconds, from within this call."""
        return float(self._ask("monotonic")["at"])

    def watch(self, path: str) -> Watch:
        """Connect to a Unix socket in the guest that speaks JSON lines. Raises MachineError."""
        number = next(self._numbers)
        watch = Watch(lambda line: self._ask("send", watch=number, line=line))
        self._watches[number] = watch
        try:
            self._ask("watch", watch=number, path=path)
        except MachineError:
            del self._watches[number]
            raise
        return watch

    def _ask(self, do: str, within_s: float = ANSWER_S, **arguments: object) -> Line:
        number = next(self._numbers)
        answer: Future[Line] = Future()
        self._asked[number] = answer
        request = json.dumps({"id": number, "do": do, **arguments}).encode() + b"\n"
        try:
            with self._lock:
                self._agent.sendall(request)
            told = answer.result(within_s)
        except TimeoutError:
            raise MachineError(f"{do}: no answer in {within_s} s: {self._last_words()}") from None
        except OSError as error:
            raise MachineError(f"{do}: {error}: {self._last_words()}") from error
        finally:
            self._asked.pop(number, None)
        if "error" in told:
            raise MachineError(f"{do} {arguments}: {told['error']}")
        return told

    def _read_agent(self) -> None:
        with contextlib.suppress(OSError), self._agent.makefile("rb") as lines:
            for text in lines:
                self._take(json.loads(text))
        off = MachineError(f"the machine is off: {self._last_words()}")
        waiting_all: list[Future[Any]] = [self._up, *self._asked.values()]
        for waiting in waiting_all:
            if not waiting.done():
                waiting.set_exception(off)
        for watch in list(self._watches.values()):
            watch.take(None)

    def _take(self, told: Line) -> None:
        if "watch" in told:
            if watch := self._watches.get(told["watch"]):  # else it could not be opened
                watch.take(told["line"])
        elif "up" in told:
            if not self._up.done():  # the agent was started again
                self._up.set_result(time.monotonic() - self._since)
        elif answer := self._asked.get(told["id"]):  # else nobody waits any more
            answer.set_result(told)

    def _last_words(self) -> str:
        lines = self.console.read_text(errors="replace").splitlines()[-CONSOLE_LINES:]
        return " | ".join(line.strip() for line in lines if line.strip()) or "a silent console"
