import json
import os
import queue
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

import pytest
from gpiozero import LED, PWMLED, Button, Device, DigitalInputDevice

from voiced.sim import board as board_module
from voiced.sim.board import BOUNCES, Board, BoardError, Finger, run

DEADLINE_S = 5.0

Edges: TypeAlias = "queue.Queue[tuple[str, float]]"
Changes: TypeAlias = "queue.Queue[tuple[int, float | None, float]]"


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Board]:
    board = Board(tmp_path / "finger.sock")
    monkeypatch.setattr(Device, "pin_factory", board)
    board.start()
    yield board
    board.stop()


@pytest.fixture
def finger(board: Board, tmp_path: Path) -> Iterator[Finger]:
    with Finger(tmp_path / "finger.sock") as finger:
        yield finger


def contact(pin: int = 17) -> DigitalInputDevice:
    """A button without Button's holding thread, which delays its close by up to a second."""
    return DigitalInputDevice(pin, pull_up=True)


def edges_of(button: DigitalInputDevice) -> Edges:
    edges: Edges = queue.Queue()
    button.when_activated = lambda: edges.put(("down", time.monotonic()))
    button.when_deactivated = lambda: edges.put(("up", time.monotonic()))
    return edges


def watch(finger: Finger, *pins: int) -> Changes:
    changes: Changes = queue.Queue()
    finger.watch(pins, lambda *change: changes.put(change))
    return changes


def values(changes: Changes, count: int) -> list[tuple[int, float | None]]:
    return [changes.get(timeout=DEADLINE_S)[:2] for _ in range(count)]


def read_to_the_end(connection: socket.socket) -> None:
    try:
        while connection.recv(65536):
            pass
    except ConnectionResetError:
        pass


# The finger


def test_a_press_and_a_release_reach_the_daemons_button(finger: Finger) -> None:
    with Button(17) as button:
        edges: Edges = queue.Queue()
        button.when_pressed = lambda: edges.put(("down", time.monotonic()))
        button.when_released = lambda: edges.put(("up", time.monotonic()))
        before = time.monotonic()
        pressed = finger.press(17)
        released = finger.release(17)
        (down, down_at), (up, up_at) = (edges.get(timeout=DEADLINE_S) for _ in range(2))
    assert (down, up) == ("down", "up")
    assert before <= pressed <= down_at <= released <= up_at


def test_a_bouncing_press_ends_pressed(finger: Finger) -> None:
    with contact() as button:
        edges = edges_of(button)
        finger.press(17, bounce_ms=[2, 3, 1, 2])
        seen = [edges.get(timeout=DEADLINE_S) for _ in range(5)]
        assert button.is_active
        assert edges.empty()
    assert [edge for edge, _ in seen] == ["down", "up", "down", "up", "down"]
    intervals_ms = [(b - a) * 1000 for (_, a), (_, b) in zip(seen, seen[1:], strict=False)]
    assert all(ms > asked - 0.5 for ms, asked in zip(intervals_ms, [2, 3, 1, 2], strict=True))


def test_an_odd_number_of_bounces_ends_at_the_wanted_level_too(finger: Finger) -> None:
    with contact() as button:
        finger.press(17, bounce_ms=[1])
        assert button.is_active
        finger.release(17, bounce_ms=[1, 1, 1])
        assert not button.is_active


@pytest.mark.parametrize("pin", [17, 27, 99])
def test_a_pin_that_is_no_input_in_use_is_refused(finger: Finger, pin: int) -> None:
    with LED(27), contact(5):
        contact().close()
        with pytest.raises(BoardError, match=f"pin {pin} is not in use"):
            finger.press(pin)
        finger.press(5)


def test_what_the_daemons_callback_raises_is_told(finger: Finger) -> None:
    def fail() -> None:
        raise RuntimeError("no such luck")

    with contact() as button:
        button.when_activated = fail
        with pytest.raises(BoardError, match="no such luck"):
            finger.press(17)


@pytest.mark.parametrize(
    "line",
    [
        b"hello",
        b"[]",
        b"7",
        b'{"pin": 17}',
        b'{"pin": 17, "level": 2}',
        b'{"pin": 17, "level": 0, "speed": 9}',
        b'{"pin": 17, "level": 0, "bounce": [1000]}',
        b'{"pin": 17, "level": 0, "bounce": "x"}',
        json.dumps({"pin": 17, "level": 0, "bounce": [1] * (BOUNCES + 1)}).encode(),
        b'{"watch": 27}',
        b'{"watch": ["LED"]}',
    ],
)
def test_a_line_it_does_not_understand_is_answered_and_moves_nothing(
    board: Board, tmp_path: Path, line: bytes
) -> None:
    with contact() as button, socket.socket(socket.AF_UNIX) as client:
        client.settimeout(DEADLINE_S)
        client.connect(str(tmp_path / "finger.sock"))
        client.sendall(line + b"\n")
        assert "error" in json.loads(client.recv(4096))
        assert not button.is_active
        client.sendall(b'{"pin": 17, "level": 0}\n')
        assert json.loads(client.recv(4096))["level"] == 0
        assert button.is_active


# The eye


def test_lights_are_seen_as_they_are_and_as_they_change(finger: Finger) -> None:
    with LED(27, initial_value=True) as red, PWMLED(22) as green:
        changes = watch(finger, 27, 22)
        assert values(changes, 2) == [(27, 1.0), (22, 0.0)]
        before = time.monotonic()
        red.off()
        green.value = 0.25
        green.value = 0.25
        green.value = 1
        seen = [changes.get(timeout=DEADLINE_S) for _ in range(3)]
        after = time.monotonic()
    assert [change[:2] for change in seen] == [(27, 0.0), (22, 0.25), (22, 1.0)]
    times = [at for _, _, at in seen]
    assert [before, *times, after] == sorted([before, *times, after])


def test_a_pin_nobody_drives_has_no_value(finger: Finger) -> None:
    changes = watch(finger, 27)
    assert values(changes, 1) == [(27, None)]
    led = LED(27)
    led.on()
    assert values(changes, 2) == [(27, 0.0), (27, 1.0)]
    led.close()
    while (last := changes.get(timeout=DEADLINE_S)[1]) is not None:
        assert last in (0.0, 1.0)


def test_each_watcher_sees_only_what_it_asked_for(finger: Finger) -> None:
    with LED(27) as one, LED(22) as two:
        left, right = watch(finger, 27), watch(finger, 22)
        assert values(left, 1) + values(right, 1) == [(27, 0.0), (22, 0.0)]
        one.on()
        two.on()
        assert values(left, 1) + values(right, 1) == [(27, 1.0), (22, 1.0)]
        assert left.empty()
        assert right.empty()


def test_a_watcher_that_does_not_read_is_dropped_and_never_delays_the_daemon(
    board: Board, finger: Finger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(board_module, "BACKLOG_BYTES", 1000)
    with LED(27) as led, socket.socket(socket.AF_UNIX) as idle:
        idle.settimeout(DEADLINE_S)
        idle.connect(str(tmp_path / "finger.sock"))
        idle.sendall(b'{"watch": [27]}\n')
        assert idle.recv(10)
        for _ in range(5000):
            led.toggle()
        read_to_the_end(idle)  # what the kernel had taken already, then it is over
        changes = watch(finger, 27)
        assert values(changes, 1) == [(27, 0.0)]


# The socket


def test_the_socket_is_private_and_goes_with_the_board(board: Board, tmp_path: Path) -> None:
    path = tmp_path / "finger.sock"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    board.stop()
    board.stop()
    assert not path.exists()


def test_a_socket_left_by_a_killed_board_is_replaced_but_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "finger.sock"
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(path))
    board = Board(path)
    board.start()
    Finger(path).close()
    board.stop()
    path.write_text("precious")
    other = Board(path)
    with pytest.raises(OSError, match="in use"):
        other.start()
    other.stop()
    assert path.read_text() == "precious"


def test_a_finger_without_a_board_gives_up(tmp_path: Path) -> None:
    with pytest.raises(BoardError, match="no board at"):
        Finger(tmp_path / "nobody.sock", timeout_s=0.05)


def test_a_finger_whose_board_is_gone_says_so(board: Board, finger: Finger) -> None:
    changes = watch(finger, 27)
    assert values(changes, 1) == [(27, None)]
    board.stop()
    with pytest.raises(BoardError):
        finger.press(17)
    finger.close()
    finger.close()
    assert not any(thread.name == "eye" for thread in threading.enumerate())


# The daemon


def test_the_daemon_runs_on_the_board_and_its_exit_code_is_handed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Device, "pin_factory", None)
    path = tmp_path / "finger.sock"
    told: list[list[str]] = []

    def daemon(arguments: list[str]) -> int:
        told.append(arguments)
        with contact() as button, LED(27, initial_value=True), Finger(path) as finger:
            finger.press(17)
            assert button.is_active
            assert values(watch(finger, 27), 1) == [(27, 1.0)]
        return 78

    assert run(path, ["--config", "x.toml"], daemon) == 78
    assert told == [["--config", "x.toml"]]
    assert not path.exists()


def test_a_daemon_that_leaves_at_once_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Device, "pin_factory", None)
    assert run(tmp_path / "s", [], lambda arguments: None) == 0
    with pytest.raises(SystemExit, match="3"):
        run(tmp_path / "s", [], lambda arguments: sys.exit(3))
    assert not (tmp_path / "s").exists()
    assert not any(thread.name == "board" for thread in threading.enumerate())


def test_the_command_line_hands_on_what_follows_the_dashes(tmp_path: Path) -> None:
    package = tmp_path / "stand-in"
    package.mkdir()
    (package / "stand_in.py").write_text(
        "import sys, types\n"
        "stand_in = types.ModuleType('voiced.__main__')\n"
        "stand_in.main = lambda argv: print(argv) or 7\n"
        "sys.modules['voiced.__main__'] = stand_in\n"
        "from voiced.sim.board import main\n"
        "sys.exit(main())\n"
    )
    done = subprocess.run(
        [sys.executable, "stand_in.py", "--finger", "s", "--", "--config", "x", "--", "y"],
        cwd=package,
        env={**os.environ, "PYTHONPATH": str(Path(board_module.__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.stdout.strip() == "['--config', 'x', '--', 'y']", done.stderr
    assert done.returncode == 7
