"""`voicectl`: what a person asks of the daemon, over its control socket (docs/control.md).

It imports nothing but the standard library (and what judges a calibration, which doesn't either),
so that it answers at once on a small board.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import pwd
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self

from voiced.core import calibration

DEFAULT_SOCKET = "/run/voiced/control.sock"

EXIT_OK = 0
EXIT_REFUSED = 1
EXIT_USAGE = 2  # argparse's own
EXIT_NO_DAEMON = 3

ANSWER_S = 5.0
"""`reload` closes and opens devices, 2 s at worst; all else is answered at once."""

HEARTBEAT_MS = 1000
"""`watch` has the meter sent this often without printing it: a daemon that sends nothing for
`ANSWER_S` hangs, however quiet the room is."""

MAX_LINE = 1024 * 1024
"""The daemon's lines are a few kB. Who sends more without an end of line is not voiced."""

COMMANDS = {
    "status": "show how it stands",
    "watch": "print what happens, until Ctrl-C",
    "press": "press the button",
    "release": "let it go",
    "tap": "press it and let it go",
    "interrupt": "stop the answer",
    "hangup": "end the conversation and the session",
    "forget": "the same, and forget what was said: the next turn begins anew",
    "mute": "mute the microphone, also after a restart",
    "unmute": "make it live again",
    "reload": "read the configuration again",
    "calibrate": "listen to the room and to you, propose settings",
}

Message = dict[str, Any]


class NoDaemon(Exception):
    """Nobody answers. The text says at which socket and what to do."""


class Refused(Exception):
    """The daemon said no. The text is its reason."""


class Connection:
    """One connection to the control socket. No wait is longer than `timeout_s`.

    Raises NoDaemon where there is no daemon, or none that one may talk to; from every method,
    when it went away.
    """

    def __init__(self, path: str, timeout_s: float = ANSWER_S) -> None:
        self._path, self._timeout_s = path, timeout_s
        self._buffer = b""
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(timeout_s)
        try:
            self._socket.connect(path)
        except OSError as exc:
            self.close()
            raise NoDaemon(_why_not(path, exc)) from exc

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def fileno(self) -> int:
        """For `select`: `receive` does not block when this can be read."""
        return self._socket.fileno()

    def send(self, message: Message) -> None:
        try:
            self._socket.sendall(json.dumps(message).encode() + b"\n")
        except OSError as exc:
            raise NoDaemon(f"voiced at {self._path} is gone: {exc}") from exc

    def receive(self) -> list[Message]:
        """Wait for more, return the messages that are complete: none, if only a part came.

        Raises Refused for the daemon's last word before it hangs up.
        """
        try:
            data = self._socket.recv(65536)
        except TimeoutError as exc:
            raise NoDaemon(
                f"voiced at {self._path} does not answer (waited {self._timeout_s:g} s): "
                "systemctl restart voiced"
            ) from exc
        except OSError as exc:
            raise NoDaemon(f"voiced at {self._path} is gone: {exc}") from exc
        if not data:
            raise NoDaemon(f"voiced at {self._path} hung up: did it stop? systemctl status voiced")
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        if len(self._buffer) > MAX_LINE:
            raise NoDaemon(f"{self._path} is not voiced: a line of more than {MAX_LINE} bytes")
        return [self._decode(line) for line in lines]

    def messages(self) -> Iterator[Message]:
        """All messages as they come, without end."""
        while True:
            yield from self.receive()

    def ask(self, command: str) -> Message:
        """Send a command and return its answer, `ok` or not."""
        self.send({"command": command, "user": _user()})
        deadline = time.monotonic() + self._timeout_s
        for message in self.messages():
            if "ok" in message:
                return message
            if time.monotonic() > deadline:  # events come, the answer does not
                break
        raise NoDaemon(f"voiced at {self._path} does not answer {command}")

    def _decode(self, line: bytes) -> Message:
        try:
            message = json.loads(line)
        except ValueError as exc:
            raise NoDaemon(f"{self._path} is not voiced: it said {line[:40]!r}") from exc
        if not isinstance(message, dict):
            raise NoDaemon(f"{self._path} is not voiced: it said {line[:40]!r}")
        if "error" in message:
            raise Refused(str(message["error"]))
        return message


def _user() -> str:
    """Who asks, for the daemon's log."""
    try:
        return os.environ.get("SUDO_USER") or pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a user without a name
        return f"uid {os.getuid()}"


def _why_not(path: str, exc: OSError) -> str:
    if isinstance(exc, PermissionError):
        return (
            f"you may not use {path}: join the group voiced-ctl "
            "(sudo usermod -aG voiced-ctl $USER, then log in again)"
        )
    return (
        f"no daemon at {path} ({exc.strerror or exc}): is it running? "
        "systemctl status voiced; for another socket use --socket PATH"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Do what is asked; returns the exit code. SystemExit with EXIT_USAGE for wrong arguments."""
    args = _arguments(argv)
    try:
        with Connection(args.socket) as daemon:
            return _run(daemon, args.command, as_json=args.json)
    except Refused as exc:
        return _complain(exc, EXIT_REFUSED)
    except NoDaemon as exc:
        return _complain(exc, EXIT_NO_DAEMON)
    except BrokenPipeError:  # `voicectl watch | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK


def _complain(problem: Exception, code: int) -> int:
    print(f"voicectl: {_clean(problem)}", file=sys.stderr)
    return code


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    width = max(map(len, COMMANDS))
    parser = argparse.ArgumentParser(
        prog="voicectl",
        description="Ask something of the voice appliance daemon.",
        epilog="commands:\n" + "\n".join(f"  {n:{width}}  {h}" for n, h in COMMANDS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND")
    parser.add_argument(
        "--socket", metavar="PATH", default=DEFAULT_SOCKET, help="default: %(default)s"
    )
    parser.add_argument("--json", action="store_true", help="print it for programs")
    return parser.parse_args(argv)


def _run(daemon: Connection, command: str, *, as_json: bool) -> int:
    if command == "watch":
        return _watch(daemon, as_json=as_json)
    hello = next(daemon.messages())
    if "snapshot" not in hello:
        raise NoDaemon("what answers is not voiced: it began without a snapshot")
    if command == "status":
        print(json.dumps(hello) if as_json else "\n".join(status_lines(hello["snapshot"])))
        return EXIT_OK
    if command == "calibrate":
        return _calibrate(daemon, hello["snapshot"], as_json=as_json)
    answer = daemon.ask(command)
    if as_json:
        print(json.dumps({"version": hello["version"], **answer}))
    elif answer["ok"]:
        print(_clean(answer["text"]))
    if answer["ok"]:
        return EXIT_OK
    return EXIT_REFUSED if as_json else _complain(Refused(answer["text"]), EXIT_REFUSED)


def _watch(daemon: Connection, *, as_json: bool) -> int:
    try:
        daemon.send({"command": "watch", "meter_ms": HEARTBEAT_MS})
        for message in daemon.messages():
            line = _watch_line(message, as_json=as_json)
            if line:
                print(line, flush=True)
    except KeyboardInterrupt:
        pass
    return EXIT_OK


def _watch_line(message: Message, *, as_json: bool) -> str | None:
    if as_json:
        return json.dumps(message) if "event" in message or "snapshot" in message else None
    if "snapshot" in message:
        return f"now: {_clean(message['snapshot']['status'])}"
    return event_line(message) if "event" in message else None


def _calibrate(daemon: Connection, snapshot: Message, *, as_json: bool) -> int:
    try:
        report = calibrate(daemon, snapshot)
    except KeyboardInterrupt:
        return _complain(Refused("interrupted, nothing is changed"), EXIT_REFUSED)
    print(json.dumps(report) if as_json else "\n".join(calibration_lines(report)))
    return EXIT_OK if report["ok"] else EXIT_REFUSED


def calibrate(
    daemon: Connection, snapshot: Message, clock: Callable[[], float] = time.monotonic
) -> calibration.Report:
    """Listen to room and voice, as the person is told to on stderr, and judge them.

    The daemon's meter paces it: nothing here sleeps. Raises Refused if the microphone's settings
    were others afterwards, and if the daemon is too old.
    """
    if "microphone" not in snapshot:
        raise Refused("this voiced is older than voicectl: systemctl restart voiced")
    before = snapshot["microphone"]
    obstacle = calibration.obstacle(snapshot)
    if obstacle:
        return calibration.refused(obstacle)
    daemon.send({"command": "watch", "meter_ms": calibration.METER_MS})
    room = _listen(daemon, calibration.ROOM, clock)
    speech = _listen(daemon, calibration.SPEECH, clock)
    snapshot = daemon.ask("status")["snapshot"]
    obstacle = calibration.obstacle(snapshot)  # somebody muted or pressed meanwhile
    if obstacle:
        return calibration.refused(obstacle)
    now = snapshot["microphone"]
    numbers = {len(meter["channels"]) for meter in room + speech if meter["channels"]}
    if now != before or len(numbers) > 1:
        raise Refused("the configuration changed meanwhile: calibrate again")
    settings = calibration.Settings(
        tuple(now["use"]), now["gain_db"], now["echo"], now["quiet_dbfs"]
    )
    return calibration.judge(room, speech, settings)


def _listen(
    daemon: Connection, phase: calibration.Phase, clock: Callable[[], float]
) -> list[Message]:
    """The meter's readings of a phase, once it has settled; none if only other messages come."""
    readings = []
    began = clock()
    countdown = sys.stderr.isatty()
    told = f"{phase.say}, for {phase.seconds:g} s."
    print(told, end="" if countdown else "\n", file=sys.stderr, flush=True)
    for message in daemon.messages():
        elapsed_s = clock() - began
        if "meter" in message and elapsed_s >= phase.settled_s:
            readings.append(message["meter"])
        if countdown:
            left_s = max(0, math.ceil(phase.seconds - elapsed_s))
            print(f"\r{told} {left_s:2} ", end="", file=sys.stderr, flush=True)
        if elapsed_s >= phase.seconds:
            break
    if countdown:
        print(file=sys.stderr)
    return readings


def calibration_lines(report: calibration.Report) -> list[str]:
    """The report as a person reads it: a table, what is wrong, what to configure."""
    lines = []
    if report["channels"]:
        lines.append("channel        room   speech     peak  clipped")
    for each in report["channels"]:
        mark = "in use" if each["used"] else ""
        lines.append(
            f"{each['channel']:>2} {mark:<7} {each['room_dbfs']:>8.1f} {each['speech_dbfs']:>8.1f} "
            f"{each['peak_dbfs']:>8.1f} {each['clipped']:>8}"
        )
    if report["snr_db"] is not None:
        lines.append(f"Your voice is {report['snr_db']:.0f} dB above the room. All levels in dBFS.")
    lines += [_clean(f"PROBLEM  {each['name']}: {each['text']}") for each in report["findings"]]
    proposed = _toml(report["proposal"])
    if proposed:
        lines += ["Proposed for voiced.toml (then: voicectl reload):", *proposed]
    elif report["ok"]:
        lines.append("All is well: nothing to change.")
    return lines


def _toml(proposal: calibration.Proposal) -> list[str]:
    lines = []
    use, gain_db, quiet_dbfs = proposal["use"], proposal["gain_db"], proposal["quiet_dbfs"]
    if use is not None:
        lines.append(f"    use = {use[0] if len(use) == 1 else use}")
    if gain_db is not None:
        lines.append(f"    gain_db = {gain_db}")
    if lines:
        lines.insert(0, "    [microphone]")
    if quiet_dbfs is not None:
        lines += ["    [gate]", f"    quiet_dbfs = {quiet_dbfs}"]
    if use is not None:
        lines.append("and calibrate again: the rest depends on the channel.")
    return lines


def event_line(event: Message) -> str:
    """One event with the time of day. `t` is of this machine's monotonic clock."""
    at = time.time() - (time.monotonic() - event["t"])
    clock = time.strftime("%H:%M:%S", time.localtime(at))
    return f"{clock}.{int(at % 1 * 1000):03d} {event['event']:<13} {_clean(event['text'])}"


def status_lines(snapshot: Message) -> list[str]:
    """The snapshot as a person reads it."""
    session = f" ({snapshot['model']}, {snapshot['session']})" if snapshot["session"] else ""
    rows = [
        ("turn", snapshot["turn"]),
        ("link", snapshot["link"] + session),
        ("light", snapshot["light"] or "none"),
        ("microphone", _microphone(snapshot)),
        ("audio", "said {said_s} s, sent {sent_s} s, heard {heard_s} s".format(**snapshot)),
        ("tokens", "{input} in, {output} out, {total} in all".format(**snapshot["tokens"])),
    ]
    counted = ", ".join(f"{name} {n}" for name, n in snapshot["counters"].items() if n)
    rows.append(("counters", counted or "all zero"))
    for fault in snapshot["faults"]:
        rows.append(("FAULT", f"{fault['fault']}: {fault['detail']}"))
        if fault["remedy"] != fault["detail"]:
            rows.append(("", f"remedy: {fault['remedy']}"))
    return [_clean(f"{name:<11} {text}") for name, text in rows]


def _microphone(snapshot: Message) -> str:
    if snapshot["muted"]:
        return "MUTED"
    if snapshot["level_dbfs"] is None:
        return "nothing heard yet"
    gate = "open" if snapshot["gate_open"] else "closed"
    return (
        "{level_dbfs} dBFS, floor {floor_dbfs}, opens at {threshold_dbfs}; gate ".format(**snapshot)
        + gate
    )


def _clean(text: object) -> str:
    """Without control characters: some of it was written by the server."""
    return "".join(c if c.isprintable() else "?" for c in str(text))


if __name__ == "__main__":
    sys.exit(main())
