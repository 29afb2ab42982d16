"""The key is seen by the daemon alone, and the control socket by its friends."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.systemd.container import CONFIG, UNIT
from tests.systemd.stage import KEY, Device, ask, wait_sound
from voiced.sim.rig import Rig
from voiced.sim.streams import Ear, Mouth

VOICECTL = "/opt/voiced/current/bin/voicectl"
CREDENTIAL = f"/run/credentials/{UNIT}/openai-api-key"
NO_DAEMON = 3  # exit code of voicectl

USERS = """\
u friend   -
m friend   voiced-ctl
u stranger -
"""


@pytest.fixture
def peopled(layers: list[Path], rig: Rig, parrot: str) -> Iterator[Device]:
    """With a user in the group voiced-ctl and one outside it."""
    with Device(layers, rig, parrot, files={"etc/sysusers.d/test.conf": USERS}) as device:
        yield device


def seen(device: Device) -> dict[str, str]:
    """What others see of the daemon."""
    processes = [path for path in (device.root / "proc").iterdir() if path.name.isdecimal()]
    return {
        "status": device.call("systemctl", "status", "--full", "--lines=1000", UNIT).stdout,
        "properties": device.run("systemctl", "show", "--all", UNIT),
        "voicectl": device.call(VOICECTL, "status").stdout,
        **{f"{path}/{name}": _text(path / name) for path in processes for name in _OF_PROCESSES},
    }


_OF_PROCESSES = ("cmdline", "environ")


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:  # it has ended
        return ""


def test_the_key_is_used_and_seen_nowhere(device: Device, rig: Rig, mouth: Mouth, ear: Ear) -> None:
    views = {}
    device.start()
    with device.finger() as finger:
        wait_sound(ear, ask(finger, mouth))
    views["in a turn"] = seen(device)
    try:
        rig.unplug()
        device.wait_status("microphone is missing")
        views["in a fault"] = seen(device)
    finally:
        device.replug()
    device.write(CONFIG, "[turn\n")
    device.systemctl("reload")
    device.wait_status("the old one goes on")
    views["after a reload"] = seen(device)
    environment = str(device.root / f"proc/{device.pid}/environ")
    device.systemctl("stop")
    views["after a stop"] = seen(device)

    assert "NOTIFY_SOCKET" in views["after a reload"][environment]  # it would be seen
    assert environment not in views["after a stop"]
    assert any("voiced.sim.board" in text for text in views["in a turn"].values())
    found = [
        (when, where) for when, view in views.items() for where, text in view.items() if KEY in text
    ]
    assert not found
    exported = device.run("journalctl", "--output=export", "--all")
    assert "VOICED_EVENT=turn" in exported
    assert KEY not in exported


def test_only_the_daemon_reads_the_key(peopled: Device) -> None:
    peopled.start()
    assert peopled.run("cat", CREDENTIAL).strip() == KEY
    for user in ("friend", "stranger"):
        assert "Permission denied" in peopled.call("cat", CREDENTIAL, user=user).stderr


def test_only_friends_talk_to_the_daemon(peopled: Device) -> None:
    peopled.start()
    peopled.run(VOICECTL, "mute", user="friend")
    peopled.wait_status("muted$")
    refused = peopled.call(VOICECTL, "unmute", user="stranger")
    assert refused.returncode == NO_DAEMON
    assert "muted" in peopled.status
