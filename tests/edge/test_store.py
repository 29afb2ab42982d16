import json
import os
from pathlib import Path

import pytest

from voiced.edge.store import SCHEMA, StateError, Store


def test_where_nothing_was_kept_it_is_not_muted(tmp_path: Path) -> None:
    assert Store(tmp_path / "never made").load_muted() is False


@pytest.mark.parametrize("muted", [True, False])
def test_the_choice_survives_a_restart(tmp_path: Path, muted: bool) -> None:
    Store(tmp_path / "state").save_muted(not muted)
    Store(tmp_path / "state").save_muted(muted)
    assert Store(tmp_path / "state").load_muted() is muted


def test_the_file_carries_its_schema_number(tmp_path: Path) -> None:
    Store(tmp_path).save_muted(True)
    assert json.loads((tmp_path / "state.json").read_text())["schema"] == SCHEMA


def test_a_write_that_fails_leaves_the_old_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    store.save_muted(True)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StateError, match=r"state\.json: No space left"):
        store.save_muted(False)
    assert Store(tmp_path).load_muted() is True


def test_a_power_cut_in_mid_write_leaves_the_old_state(tmp_path: Path) -> None:
    Store(tmp_path).save_muted(True)
    (tmp_path / "state.tmp").write_text('{"sche')
    store = Store(tmp_path)
    assert store.load_muted() is True
    store.save_muted(False)
    assert Store(tmp_path).load_muted() is False


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not json",
        b"\xff\xfe",
        b"[]",
        b"3",
        b'{"schema": 1}',
        b'{"muted": true}',
        b'{"schema": 1, "muted": null}',
        b'{"schema": 1, "muted": "no"}',
        b"[" * 100_000,
    ],
)
def test_a_file_that_makes_no_sense_is_an_error_and_may_be_replaced(
    tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "state.json").write_bytes(content)
    store = Store(tmp_path)
    with pytest.raises(StateError, match=r"state\.json"):
        store.load_muted()
    store.save_muted(True)
    assert Store(tmp_path).load_muted() is True


@pytest.mark.parametrize("schema", [SCHEMA + 1, "2027"])
def test_a_newer_file_is_refused_and_not_overwritten(tmp_path: Path, schema: object) -> None:
    newer = json.dumps({"schema": schema, "muted": False})
    (tmp_path / "state.json").write_text(newer)
    store = Store(tmp_path)
    with pytest.raises(StateError, match="newer voiced"):
        store.load_muted()
    with pytest.raises(StateError, match="not overwritten"):
        store.save_muted(True)
    assert (tmp_path / "state.json").read_text() == newer


def test_a_place_that_can_not_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = Store(tmp_path / "file" / "state")
    for use in (store.load_muted, lambda: store.save_muted(True)):
        with pytest.raises(StateError, match=r"file/state/state\.json: Not a directory"):
            use()
