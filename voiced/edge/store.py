"""What survives a restart: whether it is muted and, where that is configured, what was said.

What is promised: each file is replaced as a whole, and who cuts the power at any moment finds the
old one or the new one. Once a save has returned, it is the new one. A command is answered before
its save returns (a slow card must not hold up the light), so a cut in between, milliseconds after
a mute, brings back the choice before it.

What is erased is unlinked, and its directory synced. Nothing is overwritten in place: a card
writes elsewhere anyway.
"""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Any

SCHEMA = 1
CONVERSATION_SCHEMA = 1

LONGEST_BYTES = 65_536
"""Of one file. A longer one is not written, and not read either: it is not ours."""

_NOTHING = b""


class StateError(OSError):
    """The state can't be read, written or erased. The text says which file and why."""


class Store:
    """Two small files in `directory`. Whoever saves does so in one thread at a time."""

    def __init__(self, directory: Path) -> None:
        self._muted = _File(directory / "state.json", SCHEMA, "muted", bool)
        self._conversation = _File(
            directory / "conversation.json", CONVERSATION_SCHEMA, "conversation", str
        )

    @property
    def writes(self) -> int:
        """How often a file was written or erased."""
        return self._muted.writes + self._conversation.writes

    @property
    def written_bytes(self) -> int:
        """The length of what was written. (A card erases and writes far larger blocks.)"""
        return self._muted.written_bytes + self._conversation.written_bytes

    def load_muted(self) -> bool:
        """The kept choice; False where there was never one.

        Raises:
            StateError: it can't be read, or was written by a newer voiced; that file is then
                left alone. Who can't know must assume: muted.
        """
        return bool(self._muted.read())

    def save_muted(self, muted: bool) -> None:
        """Keep the choice. Blocks on the disk. Raises StateError."""
        self._muted.write(muted)

    def load_conversation(self) -> bytes | None:
        """What `save_conversation` was given; None where nothing is kept.

        Raises:
            StateError: it can't be read, or was written by a newer voiced. It is history: a damaged
                file is no reason not to start; the next save replaces it.
        """
        text: str | None = self._conversation.read()
        return None if text is None else text.encode(errors="replace")  # JSON may hold surrogates

    def conversation_age_s(self) -> float:
        """Seconds since the conversation was saved, by this machine's clock; infinite where there
        is none. A machine whose clock stood still while it was off counts that time not at all.
        """
        return self._conversation.age_s()

    def save_conversation(self, text: bytes | None) -> None:
        """Keep `text` (UTF-8) instead of what was kept before; None: erase what was kept.

        Blocks on the disk. A file of a newer voiced is erased when that is asked for (who wants
        something forgotten doesn't ask which version wrote it), but never replaced.

        Raises:
            StateError: it can't be written or erased, or is longer than LONGEST_BYTES with its
                escapes; what was kept before still is, unless it was just this erasing that failed.
            UnicodeDecodeError: it isn't UTF-8.
        """
        if text is None:
            self._conversation.erase()
        else:
            self._conversation.write(text.decode())


class _File:
    """A JSON object of a schema number and one value, mode 0600.

    At most one temporary is ever left behind, by a crash; reading, writing and erasing remove it.
    """

    def __init__(self, path: Path, schema: int, key: str, kind: type) -> None:
        self._path, self._schema, self._key, self._kind = path, schema, key, kind
        self._temporary = path.with_suffix(".tmp")
        self._newer = False
        self._on_disk: bytes | None = None
        """What surely outlives a power cut; None: we can't know."""
        self.writes = 0
        self.written_bytes = 0

    def read(self) -> Any:
        """Its value, of `kind`; None where there is no file. Raises StateError."""
        self._drop_temporary()
        try:
            with open(self._path, "rb", opener=_without_waiting) as file:
                content = file.read(LONGEST_BYTES + 1)
            if len(content) > LONGEST_BYTES:
                raise ValueError(f"longer than {LONGEST_BYTES} bytes")
            data = json.loads(content.decode())
            schema = data["schema"]
            self._newer = not isinstance(schema, int) or schema > self._schema
            if not self._newer:
                value = data[self._key]
                if isinstance(value, self._kind):
                    return value
                raise TypeError(f"{self._key} is no {self._kind.__name__}")
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise self._error(exc.strerror) from exc
        except (ValueError, KeyError, TypeError, RecursionError) as exc:
            raise self._error(f"not a state file of voiced: {exc}") from exc
        raise self._error(f"written by a newer voiced (schema {schema})")

    def age_s(self) -> float:
        """Since it was last written; never negative, and infinite where it can't be known."""
        try:
            return max(0.0, time.time() - self._path.stat().st_mtime)
        except OSError:
            return math.inf

    def write(self, value: object) -> None:
        """Replace it, unless it is there already. Raises StateError."""
        if self._newer:
            raise self._error("written by a newer voiced; not overwritten")
        content = json.dumps(
            {"schema": self._schema, self._key: value}, ensure_ascii=False
        ).encode()
        if len(content) > LONGEST_BYTES:
            raise self._error(f"would be longer than {LONGEST_BYTES} bytes; not written")
        if content == self._on_disk:
            return
        try:
            self._path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
            self._write_temporary(content)
            self._on_disk = None
            os.replace(self._temporary, self._path)
            self._sync_directory()
        except OSError as exc:
            self._drop_temporary()  # a full disk needs the room
            raise self._error(exc.strerror) from exc
        self._on_disk = content
        self.writes += 1
        self.written_bytes += len(content)

    def erase(self) -> None:
        """Remove it, and what a crash may have left of it. Raises StateError."""
        if self._on_disk == _NOTHING:
            return
        self._on_disk = None
        try:
            # Asked first: a read-only disk refuses to remove even what isn't there.
            found = [path for path in (self._path, self._temporary) if os.path.lexists(path)]
            for path in found:
                os.unlink(path)
            self._sync_directory()
        except FileNotFoundError:
            pass  # there never was a directory
        except OSError as exc:
            raise self._error(f"can't be erased: {exc.strerror}") from exc
        else:
            self.writes += bool(found)
        self._on_disk = _NOTHING
        self._newer = False

    def _write_temporary(self, content: bytes) -> None:
        file = os.open(self._temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            while content:
                content = content[os.write(file, content) :]
            os.fsync(file)
        finally:
            os.close(file)

    def _sync_directory(self) -> None:
        directory = os.open(self._path.parent, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def _drop_temporary(self) -> None:
        try:
            os.unlink(self._temporary)
        except OSError:
            pass  # there is none; or a disk that can't be written, which is told by a save

    def _error(self, problem: str | None) -> StateError:
        return StateError(f"{self._path}: {problem}")


def _without_waiting(path: str, flags: int) -> int:
    """A FIFO in the place of a file would be waited for until somebody writes to it."""
    return os.open(path, flags | os.O_NONBLOCK)
