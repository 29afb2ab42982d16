"""The table of faults against the protocol's own lists of closes and errors."""

import ast
import re
import typing
from pathlib import Path

import pytest

import voiced
from voiced.core.faults import FAULTS, HARMLESS_ERRORS, Fault, Retry, of_close, of_error
from voiced.events import Device

PACKAGE = Path(voiced.__file__).parent
DEVICES = typing.get_args(Device)


@pytest.mark.parametrize("row", FAULTS.values(), ids=FAULTS)
def test_every_fault_says_what_is_wrong_and_what_to_do_in_a_line(row: Fault) -> None:
    for text in (row.status, row.remedy):
        assert text.strip() == text != ""
        assert text.isprintable()
        assert len(text) <= 60
        assert not text.endswith(".")


def test_no_two_faults_look_the_same_to_a_person() -> None:
    assert len({row.status for row in FAULTS.values()}) == len(FAULTS)


def test_each_device_has_a_fault_and_no_fault_two_devices() -> None:
    """What ends with a device is found by the beginning of its name."""
    owners = {name: [d for d in DEVICES if name.startswith(d)] for name in FAULTS}
    assert max(len(found) for found in owners.values()) == 1
    assert {found[0] for found in owners.values() if found} == set(DEVICES)


def test_every_fault_that_the_edges_name_has_a_row() -> None:
    named = set()
    for path in [*PACKAGE.glob("edge/*.py"), PACKAGE / "app.py"]:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                named |= set(re.findall(r"^[a-z]+(?:-[a-z]+)+$", node.value))
    assert {"microphone-lost", "no-dns", "key-missing"} <= named
    assert named - {"half-duplex"} <= set(FAULTS)  # a value of microphone.echo


FATAL = [
    "invalid_api_key",
    "account_deactivated",
    "missing_model",
    "invalid_model",
    "model_not_found",
    "beta_api_shape_disabled",
]
SLOW = ["insufficient_quota", "billing_hard_limit_reached"]
LINK_STAYS: list[str | None] = [
    "rate_limit_exceeded",
    "inference_rate_limit_exceeded",
    "server_error",
    "conversation_already_has_active_response",
    "cannot_update_voice",
    "invalid_value",
    "unknown_parameter",
    "missing_required_parameter",
    "invalid_type",
    "string_above_max_length",
    "invalid_json",
    "invalid_event",
    "audio_unintelligible",
    "something_new",
    "",
    None,
]
HARMLESS = [
    "input_audio_buffer_commit_empty",
    "response_cancel_not_active",
    "unsupported_content_type",
    "item_truncate_invalid_item_id",
    "item_delete_invalid_item_id",
    "invalid_item_id",
]


@pytest.mark.parametrize(
    ("code", "retry"),
    [(c, Retry.NEVER) for c in FATAL]
    + [(c, Retry.SLOWLY) for c in SLOW]
    + [("session_expired", Retry.SOON)],
)
def test_an_error_code_that_announces_the_end_of_the_link(code: str, retry: Retry) -> None:
    fault = of_error(code)
    assert fault is not None
    assert fault.retry is retry
    assert code not in HARMLESS_ERRORS
    # The close that follows says less and changes nothing about it.
    assert of_close(1000, None, fault.name) is fault


@pytest.mark.parametrize("code", [*LINK_STAYS, *HARMLESS])
def test_an_error_code_that_leaves_the_link_be(code: str | None) -> None:
    assert of_error(code) is None


@pytest.mark.parametrize("code", HARMLESS)
def test_a_race_that_nobody_lost_is_harmless(code: str) -> None:
    assert code in HARMLESS_ERRORS


def test_our_own_mistakes_are_not_harmless() -> None:
    loud = {"unknown_parameter", "missing_required_parameter", "invalid_json", "invalid_event"}
    assert not loud & HARMLESS_ERRORS


@pytest.mark.parametrize(
    ("code", "retry"),
    [
        (3000, Retry.NEVER),
        (4000, Retry.NEVER),
        (4004, Retry.NEVER),
        (1013, Retry.SLOWLY),
        (1000, Retry.SOON),
        (1001, Retry.SOON),
        (1005, Retry.SOON),
        (1006, Retry.SOON),
        (1011, Retry.SOON),
        (1012, Retry.SOON),
        (1015, Retry.SOON),
        (None, Retry.SOON),
        (4999, Retry.SOON),
    ],
)
def test_a_close_code_without_an_error_before_it(code: int | None, retry: Retry) -> None:
    assert of_close(code, None, None).retry is retry


def test_the_longest_age_of_a_session_is_not_taken_for_its_end() -> None:
    """1001 ends a loop over `websockets` without an exception, though nobody asked for it."""
    assert of_close(1001, None, None) is FAULTS["session-expired"]


@pytest.mark.parametrize(
    ("status", "retry"),
    [
        (401, Retry.NEVER),
        (400, Retry.SOON),
        (403, Retry.SOON),
        (404, Retry.SOON),
        (402, Retry.SLOWLY),
        (429, Retry.SOON),
        (500, Retry.SOON),
        (502, Retry.SOON),
        (503, Retry.SOON),
    ],
)
def test_a_gateway_that_refuses_the_upgrade(status: int, retry: Retry) -> None:
    assert of_close(None, status, None).retry is retry


def test_what_the_edge_recognised_outranks_the_codes() -> None:
    assert of_close(3000, 401, "no-dns") is FAULTS["no-dns"]
