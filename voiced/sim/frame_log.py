"""The built-in server's log of frames: one JSON object per line, in the order they happened.

``{"t": seconds of CLOCK_MONOTONIC, "session": n, "from": "client"|"server"|"link", "event": {}}``.
`t` is when a client's frame was received or a server's was handed to the socket. Link lines tell
of connects, faults and closes.
"""

from __future__ import annotations

from pathlib import Path
from typing import IO, Any, Literal

import msgspec

BUFFER_BYTES = 1 << 20  # about a second of audio both ways at burst speed; then it writes itself
Source = Literal["client", "server", "link"]


class FrameLog:
    """Writes to `path`; with None, nowhere. Lines reach the file at `flush` at the latest."""

    def __init__(self, path: Path | None) -> None:
        self._file: IO[bytes] | None = path.open("wb", BUFFER_BYTES) if path else None

    def write(self, t: float, session: int, source: Source, event: Any) -> None:
        if self._file is not None:
            line = {"t": t, "session": session, "from": source, "event": event}
            self._file.write(msgspec.json.encode(line) + b"\n")

    def flush(self) -> None:
        if self._file is not None:
            self._file.flush()

    def close(self) -> None:
        """Flush and close; harmless twice."""
        if self._file is not None:
            self._file.close()
            self._file = None
