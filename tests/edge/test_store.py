import errno
import json
import math
import os
import random
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from voiced.edge.store import CONVERSATION_SCHEMA, LONGEST_BYTES, SCHEMA, StateError, Store

OLD, NEW = b"the old words", 'the new words, ünïcode "quoted"'.encode()


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


def test_a_fifo_in_the_place_of_the_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "state.json")
    with pytest.raises(StateError, match=r"state\.json"):
        Store(tmp_path).load_muted()
    Store(tmp_path).save_muted(True)
    assert Store(tmp_path).load_muted() is True


@pytest.mark.parametrize("schema", [SCHEMA + 1, "2027"])
@pytest.mark.parametrize("key", ["muted", "silenced"])
def test_a_newer_file_is_refused_and_not_overwritten(
    tmp_path: Path, schema: object, key: str
) -> None:
    newer = json.dumps({"schema": schema, key: False})
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


# --- the conversation --------------------------------------------------------------------


def test_where_no_conversation_was_kept_there_is_none(tmp_path: Path) -> None:
    store = Store(tmp_path / "never made")
    assert store.load_conversation() is None
    store.save_conversation(None)
    assert not (tmp_path / "never made").exists()


@pytest.mark.parametrize("text", [b"", b"{}", NEW, b'{"a": ["\\u0000"]}', "\0\n\u2028😀".encode()])
def test_a_conversation_survives_a_restart_to_the_byte(tmp_path: Path, text: bytes) -> None:
    Store(tmp_path).save_conversation(text)
    assert Store(tmp_path).load_conversation() == text
    file = tmp_path / "conversation.json"
    assert json.loads(file.read_text())["schema"] == CONVERSATION_SCHEMA
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert Store(tmp_path).load_muted() is False


def test_a_conversation_has_an_age(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.conversation_age_s() == math.inf
    store.save_conversation(OLD)
    assert 0 <= store.conversation_age_s() < 60
    file = tmp_path / "conversation.json"
    os.utime(file, (0, time.time() - 3600))
    assert store.conversation_age_s() == pytest.approx(3600, abs=60)
    os.utime(file, (0, time.time() + 3600))  # the clock was set back
    assert store.conversation_age_s() == 0


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 64,
        b"not json",
        b'{"schema": 1, "conversation": "\xff"}',
        b'{"schema": 1, "conversation": {"secret": 1}}',
        b'{"schema": 1, "conversation": null}',
        b'{"schema": 1}',
        b"[" * 60_000,
        b'{"schema": 1, "conversation": "' + b"x" * LONGEST_BYTES + b'"}',
    ],
    ids=lambda content: repr(content[:40]),
)
def test_a_damaged_conversation_is_told_and_replaced(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "conversation.json").write_bytes(content)
    store = Store(tmp_path)
    with pytest.raises(StateError, match=r"conversation\.json: not a state file") as raised:
        store.load_conversation()
    assert "secret" not in str(raised.value)
    store.save_conversation(NEW)
    assert Store(tmp_path).load_conversation() == NEW


def test_a_conversation_of_a_newer_version_is_only_erased(tmp_path: Path) -> None:
    file = tmp_path / "conversation.json"
    newer = json.dumps({"schema": CONVERSATION_SCHEMA + 1, "lines": ["secret"]})
    file.write_text(newer)
    store = Store(tmp_path)
    with pytest.raises(StateError, match="newer voiced"):
        store.load_conversation()
    with pytest.raises(StateError, match="not overwritten"):
        store.save_conversation(NEW)
    assert file.read_text() == newer
    store.save_conversation(None)
    assert not file.exists()
    store.save_conversation(NEW)
    assert Store(tmp_path).load_conversation() == NEW


@pytest.mark.parametrize("text", [b"x" * LONGEST_BYTES, b"\0" * (LONGEST_BYTES // 5)])
def test_a_conversation_that_is_too_long_leaves_the_old_one(tmp_path: Path, text: bytes) -> None:
    store = Store(tmp_path)
    store.save_conversation(OLD)
    with pytest.raises(StateError, match="longer than 65536 bytes"):
        store.save_conversation(text)
    assert store.load_conversation() == OLD


def test_what_is_erased_is_gone_from_the_left_over_of_a_crash_too(tmp_path: Path) -> None:
    Store(tmp_path).save_conversation(OLD)
    (tmp_path / "conversation.tmp").write_bytes(NEW)
    Store(tmp_path).save_conversation(None)
    assert list(tmp_path.iterdir()) == []


def test_a_start_cleans_up_what_a_crash_left(tmp_path: Path) -> None:
    for name in ("state.tmp", "conversation.tmp"):
        (tmp_path / name).write_bytes(NEW)
    store = Store(tmp_path)
    assert store.load_muted() is False
    assert store.load_conversation() is None
    assert list(tmp_path.iterdir()) == []


# --- how much is written -----------------------------------------------------------------


def test_what_is_there_already_is_not_written_again(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.save_muted(True)
    store.save_conversation(OLD)
    assert store.writes == 2
    sizes = [file.stat().st_size for file in tmp_path.iterdir()]
    assert store.written_bytes == sum(sizes)
    files = {file.name: file.stat().st_ino for file in tmp_path.iterdir()}
    for _ in range(3):
        store.save_muted(True)
        store.save_conversation(OLD)
    assert store.writes == 2
    assert {file.name: file.stat().st_ino for file in tmp_path.iterdir()} == files
    store.save_muted(False)
    store.save_muted(True)
    store.save_conversation(None)
    store.save_conversation(None)
    assert store.writes == 5
    assert Store(tmp_path).load_muted() is True


# --- power cuts and failing disks --------------------------------------------------------


SHORT_BYTES = 40
"""A disk may take less than it is given."""


class PowerCut(BaseException):
    """Nothing after it happens."""


class Disk:
    """The system calls of the store, of which one fails or is the last, and what the medium holds.

    After a cut the directory is as it was after one of its changes since it was synced (a journal
    keeps their order), and a file that wasn't synced is empty, torn or whole.
    """

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, at: int, error: Any) -> None:
        self._steps, self._error, self._off = at, error, False
        # What may be found in each file; the last is what was written.
        self._files = {path.name: [path.read_bytes()] for path in folder.iterdir()}
        self._names = [dict(zip(self._files, self._files, strict=True))]  # since the last sync
        self._files_open: dict[int, str] = {}
        self._serial = 0
        for name in ("open", "write", "fsync", "close", "replace", "unlink", "mkdir"):
            patch.setattr(os, name, self._step(name, getattr(os, name)))

    def _step(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **options: Any) -> Any:
            self._steps -= 1
            if self._steps == -1 and self._error is PowerCut:
                self._off = True
            if name == "close":
                call(*args)
            if self._off:
                raise PowerCut
            if self._steps == -1:
                raise self._error
            if name == "close":
                return None
            if name == "write":
                args = (args[0], args[1][:SHORT_BYTES])
            done = call(*args, **options)
            getattr(self, f"_{name}", lambda *_: None)(done, *args)
            return done

        return step

    def _open(self, file: int, path: Path, flags: int, mode: int = 0) -> None:
        if not flags & os.O_CREAT:
            return
        names = self._names[-1]
        if path.name not in names:
            self._serial += 1
            self._names.append({**names, path.name: f"new {self._serial}"})
        self._files_open[file] = self._names[-1][path.name]
        self._files.setdefault(self._files_open[file], []).append(b"")

    def _write(self, count: int, file: int, content: bytes) -> None:
        states = self._files[self._files_open[file]]
        before = states[-1]
        states += [before + content[: count // 2], before + content[:count]]

    def _fsync(self, _: None, file: int) -> None:
        if file in self._files_open:
            del self._files[self._files_open.pop(file)][:-1]
        else:
            del self._names[:-1]

    def _replace(self, _: None, old: Path, new: Path) -> None:
        names = dict(self._names[-1])
        names[new.name] = names.pop(old.name)
        self._names.append(names)

    def _unlink(self, _: None, path: Path) -> None:
        self._names.append({n: key for n, key in self._names[-1].items() if n != path.name})

    def outcomes(self, folder: Path) -> Iterator[Path]:
        """Every state the medium may be found in, as a folder."""
        for number, names in enumerate(self._names):
            for which in range(4):
                place = folder / f"{number} {which}"
                place.mkdir(parents=True)
                for name, key in names.items():
                    found = self._files[key]
                    (place / name).write_bytes(found[min(which, len(found) - 1)])
                yield place


def muted(store: Store) -> object:
    return store.load_muted()


def conversation(store: Store) -> object:
    return store.load_conversation()


class Change(NamedTuple):
    """From `old` to `new`."""

    load: Callable[[Store], object]
    save: Callable[[Store, Any], None]
    old: object
    new: object
    left: str = ""
    """A temporary of an earlier crash."""


CHANGES = [
    Change(muted, Store.save_muted, True, False),
    Change(muted, Store.save_muted, False, True, "state.tmp"),
    Change(conversation, Store.save_conversation, OLD, NEW),
    Change(conversation, Store.save_conversation, None, NEW),
    Change(conversation, Store.save_conversation, OLD, None),
    Change(conversation, Store.save_conversation, OLD, NEW, "conversation.tmp"),
    Change(conversation, Store.save_conversation, OLD, None, "conversation.tmp"),
]

STEPS = 14
"""More system calls than a change has: 10 to replace a file, 5 to erase it and its temporary."""


def begin(folder: Path, change: Change) -> Store:
    """A store that has started, with the old state on its disk."""
    store = Store(folder)
    change.save(store, change.old)
    store = Store(folder)
    change.load(store)
    if change.left:
        (folder / change.left).write_bytes(b"cut off, and secret, and longer than what follows" * 9)
    return store


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("at", range(STEPS))
def test_a_power_cut_leaves_the_old_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Change, at: int
) -> None:
    state = tmp_path / "state"
    state.mkdir()
    store = begin(state, change)
    with monkeypatch.context() as patch:
        disk = Disk(state, patch, at, PowerCut)
        done = False
        try:
            change.save(store, change.new)
            done = True
        except PowerCut:
            pass
    assert done or at < STEPS - 1
    for place in disk.outcomes(tmp_path / "outcomes"):
        if done and change.new is None:
            assert not list(place.iterdir())
        found = change.load(Store(place))
        assert found == change.new or (not done and found == change.old)
        assert not list(place.glob("*.tmp"))


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("at", range(STEPS))
def test_a_disk_that_fails_leaves_the_old_or_the_new_and_the_next_save_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Change, at: int
) -> None:
    state = tmp_path / "state"
    state.mkdir()
    store = begin(state, change)
    with monkeypatch.context() as patch:
        Disk(state, patch, at, OSError(errno.EIO, "Input/output error"))
        failed = False
        try:
            change.save(store, change.new)
        except StateError as exc:
            failed = "Input/output error" in str(exc)
    assert change.load(Store(state)) in ((change.old, change.new) if failed else (change.new,))
    with monkeypatch.context() as patch:
        disk = Disk(state, patch, 1000, PowerCut)
        change.save(store, change.new)
    if failed:
        for place in disk.outcomes(tmp_path / "outcomes"):
            assert change.load(Store(place)) == change.new


HAMMER = """
import sys
from pathlib import Path
from voiced.edge.store import Store

store = Store(Path(sys.argv[1]))
print(store.load_muted(), store.load_conversation(), flush=True)  # they raise if unreadable
while True:
    for n in range(20):
        store.save_muted(n % 2 == 0)
        store.save_conversation(None if n % 7 == 0 else b"%d" % n * 9000)
"""


def test_a_process_that_is_killed_while_it_writes_leaves_what_can_be_read(tmp_path: Path) -> None:
    rng = random.Random(5)
    for _ in range(20):
        with subprocess.Popen(
            [sys.executable, "-c", HAMMER, str(tmp_path)], stdout=subprocess.PIPE
        ) as process:
            assert process.stdout
            assert process.stdout.readline()
            time.sleep(rng.uniform(0, 0.02))
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
        assert {path.stem for path in tmp_path.iterdir()} <= {"state", "conversation"}
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 3 * LONGEST_BYTES
    store = Store(tmp_path)
    store.load_muted()
    text = store.load_conversation()
    assert text is None or len(text) in (9000, 18_000)
    assert not list(tmp_path.glob("*.tmp"))
