"""What is proposed, and what is complained of, for rooms, voices and microphones of every kind."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from pathlib import Path
from typing import Any, get_type_hints

import msgspec
import pytest

from voiced.config import Gate, Microphone
from voiced.core.calibration import (
    ALLOWED_GAIN_DB,
    ALLOWED_QUIET_DBFS,
    Finding,
    Report,
    Settings,
    judge,
    obstacle,
    refused,
)

SCHEMA = Path(__file__).parents[2] / "docs" / "calibrate.schema.json"

DEFAULT = Settings(use=(0,), gain_db=0.0, echo="half-duplex", quiet_dbfs=-62.0)
SILENT = -120.0


def schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of a report."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Report of voicectl calibrate",
        **msgspec.json.schema(Report),
    }


def meter(
    rms_dbfs: list[float], *, clipped: int = 0, gain_db: float = 0.0, crest_db: float = 14.0
) -> dict[str, Any]:
    """One reading; the first channel is in use, and the gate hears what the channel does."""
    return {
        "level_dbfs": rms_dbfs[0] + gain_db,
        "channels": [
            {
                "rms_dbfs": each,
                "peak_dbfs": min(0.0, each + crest_db),
                "clipped": clipped,
                "constant": each == SILENT,
            }
            for each in rms_dbfs
        ],
    }


def steady(*rms_dbfs: float, **more: Any) -> list[dict[str, Any]]:
    return [meter(list(rms_dbfs), **more)] * 20


def talk(*rms_dbfs: float, **more: Any) -> list[dict[str, Any]]:
    """Fifty readings of somebody who talks, with a pause of a second before."""
    pause = [-119.0 if each > SILENT else SILENT for each in rms_dbfs]
    return [meter(pause, **more)] * 10 + [meter(list(rms_dbfs), **more)] * 40


def names(report: Report) -> list[str]:
    assert report["ok"] is not bool(report["findings"])
    msgspec.convert(report, Report)
    return [finding["name"] for finding in report["findings"]]


def text(report: Report) -> str:
    return " ".join(finding["text"] for finding in report["findings"])


# --- levels ----------------------------------------------------------------------------------


def test_a_good_microphone_is_left_as_it_is() -> None:
    report = judge(steady(-70.0), talk(-26.0), DEFAULT)
    assert names(report) == []
    assert report["proposal"] == {"use": None, "gain_db": None, "quiet_dbfs": None}
    assert report["snr_db"] == pytest.approx(44.0, abs=0.1)


@pytest.mark.parametrize(
    ("speech_dbfs", "now_db", "expected_db"),
    [(-46.0, 0.0, 20.0), (-46.0, 30.0, 20.0), (-46.0, 18.0, None), (-20.0, 0.0, -6.0)],
)
def test_gain_brings_speech_to_26_dB_below_full_scale(
    speech_dbfs: float, now_db: float, expected_db: float | None
) -> None:
    settings = DEFAULT._replace(gain_db=now_db)
    report = judge(steady(-80.0, gain_db=now_db), talk(speech_dbfs, gain_db=now_db), settings)
    assert report["proposal"]["gain_db"] == expected_db


def test_no_peak_comes_nearer_than_6_dB_to_full_scale() -> None:
    report = judge(steady(-80.0), talk(-50.0, crest_db=30.0), DEFAULT)
    assert report["proposal"]["gain_db"] == 14.0  # not 24: the peaks are at -20


def test_a_voice_that_no_gain_brings_up_is_too_faint() -> None:
    report = judge(steady(-95.0), talk(-74.0), DEFAULT)
    assert names(report) == ["too-faint"]
    assert report["proposal"]["gain_db"] == 40.0
    assert "8 dB" in text(report)


def test_pauses_are_no_part_of_the_level() -> None:
    much = [meter([-40.0])] * 15 + [meter([-70.0])] * 35
    report = judge(steady(-70.0), much, DEFAULT)
    assert report["channels"][0]["speech_dbfs"] == -40.0


@pytest.mark.parametrize(
    ("room_dbfs", "speech_dbfs", "expected_dbfs"),
    [
        (-80.0, -26.0, None),  # -62, as it is
        (-63.0, -26.0, -57.0),  # over the room
        (-40.0, -26.0, -56.0),  # but never so high that a whisper would be lost
    ],
)
def test_the_gates_bar_is_above_the_room_and_below_a_whisper(
    room_dbfs: float, speech_dbfs: float, expected_dbfs: float | None
) -> None:
    report = judge(steady(room_dbfs), talk(speech_dbfs), DEFAULT)
    assert report["proposal"]["quiet_dbfs"] == expected_dbfs


def test_the_gates_bar_moves_with_the_gain() -> None:
    """Both are configured together: what the gate hears then is 20 dB louder."""
    settings = DEFAULT._replace(quiet_dbfs=-82.0)
    report = judge(steady(-90.0), talk(-46.0), settings)
    assert report["proposal"]["gain_db"] == 20.0
    assert report["proposal"]["quiet_dbfs"] == -62.0


@pytest.mark.parametrize("seed", range(20))
def test_whatever_is_measured_the_proposal_keeps_its_promises(seed: int) -> None:
    rng = random.Random(seed)
    now_db = float(rng.randrange(-20, 41))
    settings = DEFAULT._replace(gain_db=now_db, quiet_dbfs=float(rng.randrange(-90, -19)))
    room_dbfs, crest_db = rng.uniform(-90, -40), rng.uniform(10, 25)
    speech_dbfs = room_dbfs + rng.uniform(12, 45)
    if speech_dbfs + crest_db > -0.5:
        speech_dbfs = -0.5 - crest_db
    report = judge(
        steady(room_dbfs, gain_db=now_db),
        talk(speech_dbfs, gain_db=now_db, crest_db=crest_db),
        settings,
    )
    proposed = report["proposal"]
    gain_db = now_db if proposed["gain_db"] is None else proposed["gain_db"]
    quiet_dbfs = settings.quiet_dbfs if proposed["quiet_dbfs"] is None else proposed["quiet_dbfs"]
    assert -20 <= gain_db <= 40
    assert -90 <= quiet_dbfs <= -20
    slack_db = 3.0  # what is not worth changing
    assert speech_dbfs + crest_db + gain_db <= -6 + slack_db or gain_db == -20
    assert speech_dbfs + gain_db <= -26 + slack_db or gain_db == -20
    assert quiet_dbfs <= speech_dbfs + gain_db - 30 + slack_db or quiet_dbfs == -90


def test_without_a_gate_there_is_no_bar_to_propose() -> None:
    room = [each | {"level_dbfs": None} for each in steady(-80.0)]
    speech = [each | {"level_dbfs": None} for each in talk(-46.0)]
    report = judge(room, speech, DEFAULT)
    assert report["proposal"] == {"use": None, "gain_db": 20.0, "quiet_dbfs": None}


# --- what is wrong ---------------------------------------------------------------------------


@pytest.mark.parametrize("speech_dbfs", [-60.0, -59.0, -61.5])
def test_nobody_spoke(speech_dbfs: float) -> None:
    report = judge(steady(-60.0), steady(speech_dbfs), DEFAULT)
    assert names(report) == ["nobody-spoke"]
    assert report["proposal"]["gain_db"] is None


def test_a_door_is_not_a_voice() -> None:
    slam = [meter([-60.0])] * 40 + [meter([-20.0])] * 10
    assert names(judge(steady(-60.0), slam, DEFAULT)) == ["nobody-spoke"]


@pytest.mark.parametrize(("snr_db", "complaint"), [(5, True), (9.5, True), (10.5, False)])
def test_a_loud_room_is_told_with_its_snr(snr_db: float, complaint: bool) -> None:
    both_dbfs = -40 + 10 * math.log10(10 ** (snr_db / 10) + 1)
    report = judge(steady(-40.0), talk(both_dbfs), DEFAULT)
    assert ("room-too-loud" in names(report)) is complaint
    assert report["snr_db"] == pytest.approx(snr_db, abs=0.1)


def test_a_clipped_microphone_is_the_cards_business() -> None:
    report = judge(steady(-50.0), talk(-8.0, clipped=300), DEFAULT)
    assert names(report) == ["microphone-clipped"]
    assert "capture volume" in text(report)
    assert report["proposal"] == {"use": None, "gain_db": None, "quiet_dbfs": None}


def test_a_click_is_not_clipping() -> None:
    assert names(judge(steady(-65.0), talk(-26.0, clipped=3), DEFAULT)) == []


@pytest.mark.parametrize("dbfs", [SILENT, -110.0])
def test_a_dead_microphone_alone(dbfs: float) -> None:
    report = judge(steady(dbfs), steady(dbfs), DEFAULT)
    assert names(report) == ["microphone-dead"]
    assert report["proposal"]["use"] is None


def test_a_dead_channel_beside_one_that_hears() -> None:
    report = judge(steady(SILENT, -65.0, -64.0), talk(SILENT, -35.0, -32.0), DEFAULT)
    assert names(report) == ["microphone-dead"]
    assert report["proposal"]["use"] == [2]


def test_a_dead_channel_in_a_mix_is_left_out() -> None:
    settings = DEFAULT._replace(use=(0, 1, 2))
    report = judge(steady(-65.0, SILENT, -64.0), talk(-35.0, SILENT, -35.0), settings)
    assert names(report) == ["microphone-dead"]
    assert "channel 1" in text(report)
    assert report["proposal"]["use"] == [0, 2]


@pytest.mark.parametrize("echo", ["half-duplex", "hardware"])
def test_a_channel_that_does_not_hear_the_talker_is_the_wrong_one(echo: str) -> None:
    settings = DEFAULT._replace(echo=echo)
    report = judge(steady(-66.0, -65.0), talk(-66.0, -36.0), settings)
    assert names(report) == ["microphone-channel"]
    assert report["proposal"] == {"use": [1], "gain_db": 10.0, "quiet_dbfs": None}


def test_a_much_better_channel_is_proposed_and_nothing_is_wrong() -> None:
    report = judge(steady(-60.0, -62.0), talk(-40.0, -32.0), DEFAULT)
    assert names(report) == []
    assert report["proposal"]["use"] == [1]


def test_a_little_better_is_not_worth_it() -> None:
    report = judge(steady(-60.0, -62.0), talk(-30.0, -30.0), DEFAULT)
    assert report["proposal"]["use"] is None


def test_a_processed_channel_is_not_given_up_for_a_better_one() -> None:
    settings = DEFAULT._replace(echo="hardware")
    report = judge(steady(-60.0, -70.0), talk(-40.0, -32.0), settings)
    assert report["proposal"]["use"] is None


def test_a_clipped_channel_is_never_the_better_one() -> None:
    room, speech = steady(-60.0, -62.0), talk(-40.0, -12.0)
    for each in speech:
        each["channels"][1]["clipped"] = 500
    assert judge(room, speech, DEFAULT)["proposal"]["use"] is None


def test_a_microphone_of_which_nothing_comes() -> None:
    none = [{"level_dbfs": None, "channels": None}] * 10
    assert names(judge(none, none, DEFAULT)) == ["microphone-lost"]
    assert names(judge(steady(-60.0), none, DEFAULT)) == ["microphone-lost"]
    assert names(judge([], [], DEFAULT)) == ["microphone-lost"]


def test_the_table_has_a_row_for_each_channel() -> None:
    report = judge(steady(-60.04, -62.0), talk(-33.333, -30.0), DEFAULT._replace(use=(1,)))
    assert report["channels"] == [
        {
            "channel": 0,
            "used": False,
            "room_dbfs": -60.0,
            "speech_dbfs": -33.3,
            "peak_dbfs": -19.3,
            "clipped": 0,
            "constant": False,
        },
        {
            "channel": 1,
            "used": True,
            "room_dbfs": -62.0,
            "speech_dbfs": -30.0,
            "peak_dbfs": -16.0,
            "clipped": 0,
            "constant": False,
        },
    ]


# --- what is in the way ----------------------------------------------------------------------

IDLE: dict[str, Any] = {"muted": False, "turn": "idle", "faults": []}
LOST = {"fault": "microphone-lost", "detail": "hw:1: No such device", "remedy": "plug it in"}


@pytest.mark.parametrize(
    ("snapshot", "name", "told"),
    [
        ({"muted": True}, "muted", "unmute first"),
        ({"turn": "hearing"}, "busy", "voicectl hangup"),
        ({"faults": [LOST]}, "microphone-lost", "hw:1: No such device: plug it in"),
        ({"faults": [LOST], "muted": True}, "muted", "unmute"),
    ],
)
def test_why_not_now(snapshot: dict[str, Any], name: str, told: str) -> None:
    found = obstacle(IDLE | snapshot)
    assert found
    assert found["name"] == name
    assert told in found["text"]
    assert names(refused(found)) == [name]


@pytest.mark.parametrize("fault", ["no-dns", "speaker-lost", "microphone-dead"])
def test_other_faults_are_not_in_the_way(fault: str) -> None:
    assert obstacle(IDLE | {"faults": [{"fault": fault, "detail": "", "remedy": ""}]}) is None


def test_it_proposes_what_the_configuration_allows() -> None:
    def limits(struct: type, name: str) -> tuple[float, float]:
        (meta,) = get_type_hints(struct, include_extras=True)[name].__metadata__
        return meta.ge, meta.le

    assert limits(Microphone, "gain_db") == ALLOWED_GAIN_DB
    assert limits(Gate, "quiet_dbfs") == ALLOWED_QUIET_DBFS


# --- for programs ----------------------------------------------------------------------------


def test_the_schema_in_docs_is_the_reports() -> None:
    assert json.loads(SCHEMA.read_text()) == schema()


def test_every_report_is_json_of_that_type() -> None:
    for report in (
        judge(steady(-65.0, SILENT), talk(-40.0, SILENT), DEFAULT),
        refused(Finding(name="muted", text="x")),
    ):
        again = msgspec.json.decode(json.dumps(report), type=Report)
        assert again == report
        assert list(again) == list(Report.__annotations__)


def test_it_needs_nothing_but_the_standard_library() -> None:
    script = "import sys, voiced.core.calibration; print(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert not {"numpy", "msgspec", "dataclasses", "asyncio"} & set(result.stdout.split())


if __name__ == "__main__":  # python -m tests.core.test_calibration renews the schema
    SCHEMA.write_text(json.dumps(schema(), indent=2) + "\n")
