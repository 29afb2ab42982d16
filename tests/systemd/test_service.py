"""What systemd sees of the daemon: READY, STATUS, faults, reload, stop."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.certificate import self_signed
from tests.systemd.container import CONFIG, DEADLINE_S, KEY_FILE, UNIT, CommandError, poll
from tests.systemd.stage import KEY, Device, ask, tap, wait_sound
from voiced.sim.rig import Rig
from voiced.sim.stand import Server
from voiced.sim.streams import Ear, Mouth

STOP_S = 2.0  # promised
BACK_S = 2.0 + 5.0  # RestartSec, and a start; 2.4 s in all on an idle machine
SILENT_S = 0.2  # after the request; systemctl's way to the daemon included
INVALID = "[turn]\nsilence_ms = 50\n"
SAID_OF_IT = f"/{CONFIG}: turn.silence_ms = 50: must be"
NO_KEY = "no API key: set the credential openai-api-key and restart"


# --- READY and STATUS --------------------------------------------------------------------


def test_ready_means_that_it_serves(device: Device) -> None:
    device.start()
    assert device.show("ActiveState") == "active"
    assert device.status == "idle · link down"
    assert device.faults() == set()


def test_the_status_follows_a_turn_and_a_fault(
    device: Device, rig: Rig, talker: str, mouth: Mouth, ear: Ear
) -> None:
    device.configure(realtime={"url": talker})
    device.start()
    with device.finger() as finger:
        tap(finger)
        device.wait_status("^listening · link up$")
        tap(finger)
        device.wait_status("^idle · link up$")
        ask(finger, mouth)
        device.wait_status("^speaking · link up$")
    try:
        rig.unplug()
        poll(lambda: device.faults() == {"microphone-lost", "speaker-lost"}, "faults")
        status = device.wait_status("^idle · link up")
        assert "microphone is missing: rig_mic: " in status
        assert "speaker is missing: rig_spk: " in status
    finally:
        device.replug()
    device.wait_status("^idle · link (up|down)$")
    device.assert_serves()


def test_the_journal_has_its_own_words_alone_and_their_fields(device: Device, rig: Rig) -> None:
    rig.unplug()  # the sound libraries would like to say something, too
    try:
        device.start()
    finally:
        device.replug()
    device.wait_status("^idle · link down$")
    device.assert_serves()
    said = [entry for entry in device.journal() if entry.get("_SYSTEMD_UNIT") == UNIT]
    assert [entry for entry in said if entry["_TRANSPORT"] != "journal"] == []  # no stray output
    turn = next(entry for entry in said if entry.get("VOICED_EVENT") == "turn")
    assert turn["MESSAGE"].startswith("= IDLE -> LISTENING")
    assert (turn["VOICED_BEFORE"], turn["VOICED_TURN"]) == ("idle", "listening")
    assert turn["SYSLOG_IDENTIFIER"] == "voiced"


# --- what is missing at the start --------------------------------------------------------


def test_without_sound_cards_it_is_up_and_serves_when_they_come(device: Device, rig: Rig) -> None:
    rig.unplug()
    try:
        device.start()
        assert "microphone is missing: rig_mic: " in device.status
        assert device.faults() == {"microphone-lost", "speaker-lost"}
    finally:
        device.replug()
    device.wait_status("^idle · link down$")
    device.assert_serves()


def test_with_a_wrong_microphone_it_is_up_and_serves_after_a_reload(device: Device) -> None:
    device.configure(microphone={"device": "plughw:CARD=Absent,DEV=0"})
    device.start()
    assert "microphone is missing: plughw:CARD=Absent,DEV=0: " in device.status
    device.configure()
    device.systemctl("reload")
    device.wait_status("^idle · link down$")
    device.assert_serves()


def test_without_a_key_it_is_up_and_serves_with_one(device: Device, tmp_path: Path) -> None:
    certificate, private = self_signed(tmp_path, "127.0.0.1")
    tls = ["--tls-cert", str(certificate), "--tls-key", str(private)]
    with Server(tmp_path, ["--key", KEY, *tls]) as server:
        device.write("etc/voiced/ca.pem", certificate.read_text())
        device.configure(realtime={"url": server.url, "ca_file": "/etc/voiced/ca.pem"})
        (device.tree / KEY_FILE).unlink()
        device.start()
        assert f"idle · link refused · {NO_KEY}" in device.status
        device.write(KEY_FILE, KEY, 0o600)
        device.systemctl("restart")
        assert device.status == "idle · link down"
        device.assert_serves()


def test_without_a_network_it_is_up_and_names_what_it_misses(layers: list[Path], rig: Rig) -> None:
    url = "wss://203.0.113.1/v1/realtime"  # an address that is nobody's
    with Device(layers, rig, url, network=False) as device:
        device.start()
        assert device.status == "idle · link down"
        with device.finger() as finger:
            tap(finger)
            device.wait_status("^listening · link waiting · there is no network")
        assert device.show("NRestarts") == "0"


# --- configuration -----------------------------------------------------------------------


def test_an_invalid_configuration_ends_it_until_it_is_mended(device: Device) -> None:
    device.write(CONFIG, INVALID)
    with pytest.raises(CommandError):
        device.start()
    device.wait_show(ActiveState="failed", Result="exit-code", ExecMainStatus="78", NRestarts="0")
    assert any(SAID_OF_IT in message for message in device.messages())
    device.configure()
    device.start()
    assert device.status == "idle · link down"
    device.assert_serves()


def test_a_reload_takes_a_valid_configuration_and_keeps_the_old_one_else(device: Device) -> None:
    device.start()
    pid = device.pid
    device.write(CONFIG, INVALID)
    device.systemctl("reload")
    assert SAID_OF_IT in device.wait_status("the old one goes on")
    assert device.faults() == {"config-invalid"}
    device.assert_serves()

    device.configure(microphone={"device": "rig_nothing"})
    device.systemctl("reload")
    device.wait_status("microphone is missing: rig_nothing")
    assert "config-invalid" not in device.faults()

    device.configure()
    device.systemctl("reload")
    device.wait_status("^idle · link (up|down)$")
    device.assert_serves()
    assert (device.pid, device.show("NRestarts")) == (pid, "0")


# --- the end, and a new beginning --------------------------------------------------------


def test_a_stop_in_the_middle_of_an_answer(
    device: Device, talker: str, mouth: Mouth, ear: Ear
) -> None:
    device.configure(realtime={"url": talker})
    device.start()
    with device.finger() as finger:
        wait_sound(ear, ask(finger, mouth))
    asked = time.monotonic()
    assert device.systemctl("stop") < STOP_S
    ear.wait_until(asked + 4 * SILENT_S, DEADLINE_S)
    assert ear.snapshot(ear.index_at(asked - SILENT_S), ear.index_at(asked)).any()
    assert not ear.snapshot(ear.index_at(asked + SILENT_S)).any()
    device.wait_show(ActiveState="inactive", Result="success", ExecMainStatus="0")
    assert not device.control.exists()
    assert not [text for text in device.messages() if "Traceback" in text]


def test_a_killed_daemon_is_back_and_still_muted(
    device: Device, record_property: Callable[[str, object], None]
) -> None:
    device.start()
    device.run("/opt/voiced/current/bin/voicectl", "mute")
    device.wait_status("^idle · link down · muted$")
    saved = device.tree / "var/lib/voiced/state.json"
    poll(lambda: saved.exists() and b"true" in saved.read_bytes(), "the mute on the disk")
    began = time.monotonic()
    device.kill(signal.SIGKILL)
    device.wait_show(BACK_S, NRestarts="1", ActiveState="active")
    record_property("ready_again_s", round(time.monotonic() - began, 1))
    assert device.status == "idle · link down · muted"
    device.run("/opt/voiced/current/bin/voicectl", "unmute")
    device.assert_serves()
