"""What survives a restart: whether it is muted."""

from __future__ import annotations

import json
import os
from pathlib import Path

SCHEMA = 1


class StateError(OSError):
    """The state can't be read or written. The text says which file and why."""


class Store:
    """One small JSON file, written by rename, so that a power cut leaves the old or the new."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "state.json"
        self._newer = False

    def load_muted(self) -> bool:
        """The kept choice; False where there was never one.

        Raises:
            StateError: it can't be read, or was written by a newer voiced; that file is then
                left alone. Who can't know must assume: muted.
        """
        try:
            data = json.loads(self._path.read_text("utf-8"))
            schema, muted = data["schema"], data["muted"]
        except FileNotFoundError:
            return False
        except OSError as exc:
            raise StateError(f"{self._path}: {exc.strerror}") from exc
        except (ValueError, KeyError, TypeError, RecursionError) as exc:
            raise StateError(f"{self._path}: not a state file of voiced: {exc}") from exc
        if not isinstance(schema, int) or schema > SCHEMA:
            self._newer = True
            raise StateError(f"{self._path}: written by a newer voiced (schema {schema})")
        if not isinstance(muted, bool):
            raise StateError(f"{self._path}: not a state file of voiced: muted is {muted!r}")
        return muted

    def save_muted(self, muted: bool) -> None:
        """Keep the choice. Blocks on the disk. Raises StateError."""
        if self._newer:
            raise StateError(f"{self._path}: written by a newer voiced; not overwritten")
        temporary = self._path.with_suffix(".tmp")
        try:
            self._path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
            with temporary.open("w", encoding="utf-8") as file:
                json.dump({"schema": SCHEMA, "muted": muted}, file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self._path)
            directory = os.open(self._path.parent, os.O_RDONLY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        except OSError as exc:
            raise StateError(f"{self._path}: {exc.strerror}") from exc
