"""The unit: systemd understands it, it says what the daemon relies on, it closes what it can."""

from __future__ import annotations

import configparser
import re
import subprocess
from pathlib import Path

from tests.appliance import tree

UNIT = tree.ROOT / "systemd" / "voiced.service"

EXPOSURE = 14  # of 100, as systemd-analyze reckons; 92 is a unit that closes nothing

NEEDED = {
    "Unit": {
        "After": "sound.target network.target time-set.target",
        "StartLimitIntervalSec": "0",
    },
    "Service": {
        "Type": "notify",
        "NotifyAccess": "main",
        "ExecReload": "kill -HUP $MAINPID",
        "Restart": "always",
        "RestartSec": "2",
        "RestartPreventExitStatus": "78",
        "WatchdogSec": "30",
        "TimeoutStopSec": "10",
        "CPUWeight": "1000",
        "RuntimeDirectory": "voiced",
        "StateDirectory": "voiced",
        "WorkingDirectory": "%t/voiced",
    },
    "Install": {"WantedBy": "multi-user.target"},
}


def test_the_unit_says_what_the_daemon_relies_on() -> None:
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(UNIT)
    for section, directives in NEEDED.items():
        assert directives.items() <= dict(unit[section]).items()


def test_the_environment_lets_lgpio_work() -> None:
    environment = re.findall(r"^Environment=(.*)$", UNIT.read_text(), re.MULTILINE)
    assert sorted(environment) == [
        "GPIOZERO_PIN_FACTORY=lgpio",
        "LG_WD=%t/voiced",
        "MALLOC_ARENA_MAX=1",
        "MALLOC_TRIM_THRESHOLD_=131072",
    ]


def test_the_program_is_the_daemon_with_its_own_defaults() -> None:
    assert re.search(r"^ExecStart=/\S+/bin/voiced$", UNIT.read_text(), re.MULTILINE)


def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    copy = tmp_path / UNIT.name
    copy.write_text(re.sub(r"(?m)^ExecStart=\S+", "ExecStart=/bin/true", UNIT.read_text()))
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(copy)],
        capture_output=True,
        text=True,
        timeout=30,  # takes half a second
        check=False,
    )
    assert (verified.returncode, verified.stdout + verified.stderr) == (0, "")


def test_the_exposure_is_low_as_debian_12_reckons(layers: list[Path]) -> None:
    with tree.mounted(layers) as root:
        told = tree.run_in(
            root,
            *("systemd-analyze", "security", "--offline=true", f"--threshold={EXPOSURE}"),
            *("--no-pager", f"/etc/systemd/system/{UNIT.name}"),
        )  # raises above the threshold
    assert "Overall exposure level" in told
