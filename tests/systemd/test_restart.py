"""The restart policy: it never gives a device up, and never spins."""

from __future__ import annotations

import itertools
from pathlib import Path

from tests.systemd.container import Container, poll

DEATHS = 8  # systemd's own default gives up after 5 in 10 s
PAUSE_S = 0.2  # in place of the unit's 2 s, which are a setting like any other
DIES = f"[Service]\nExecStart=\nExecStart=/bin/false\nRestartSec={PAUSE_S}\n"


def test_who_dies_at_once_is_started_for_ever_and_with_a_pause(layers: list[Path]) -> None:
    with Container(layers, dropin=DIES) as container:
        container.call("systemctl", "start", "--no-block", "voiced.service")
        poll(lambda: int(container.show("NRestarts")) >= DEATHS, f"{DEATHS} restarts")
        journal = container.journal()
        starts_us = [
            int(entry["__MONOTONIC_TIMESTAMP"])
            for entry in journal
            if str(entry["MESSAGE"]).startswith("Starting ")
        ]
        assert not [e for e in journal if "repeated too quickly" in str(e["MESSAGE"])]
        assert container.show("Result") != "start-limit-hit"
    pauses_s = [(after - before) / 1e6 for before, after in itertools.pairwise(starts_us)]
    assert len(pauses_s) >= DEATHS - 1
    assert min(pauses_s) >= PAUSE_S
