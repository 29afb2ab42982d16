"""What the user has heard of each item of an answer."""

from __future__ import annotations

from dataclasses import dataclass

from voiced.events import WIRE_RATE

_FRAMES_PER_MS = WIRE_RATE // 1000


@dataclass(frozen=True, slots=True)
class Heard:
    """One audio part of an item. `heard_ms` never exceeds `received_ms`; both round down."""

    item_id: str
    content_index: int
    heard_ms: int
    received_ms: int
    complete: bool
    """Heard to its very end, and nothing more of it can come."""

    @property
    def heard_share(self) -> float:
        """0 to 1, of what was received."""
        return self.heard_ms / self.received_ms if self.received_ms else 0.0


@dataclass(slots=True)
class _Part:
    queued: int = 0
    final: bool = False


class Playhead:
    """Maps frames that left the speaker onto the parts that were queued, in queueing order."""

    def __init__(self) -> None:
        self._parts: dict[tuple[str, int], _Part] = {}
        self._segments: list[tuple[tuple[str, int], int]] = []

    def queue(self, item_id: str, content_index: int, frames: int) -> None:
        """`frames` of this part were handed to the speaker's queue, behind all earlier ones."""
        key = (item_id, content_index)
        self._parts.setdefault(key, _Part()).queued += frames
        if self._segments and self._segments[-1][0] == key:
            self._segments[-1] = (key, self._segments[-1][1] + frames)
        else:
            self._segments.append((key, frames))

    def finish(self, item_id: str, content_index: int) -> None:
        """The server has sent all there is of this part."""
        if part := self._parts.get((item_id, content_index)):
            part.final = True

    @property
    def frames(self) -> int:
        """All frames queued so far."""
        return sum(frames for _, frames in self._segments)

    def heard(self, frames_heard: int) -> list[Heard]:
        """How much of each part was heard, if `frames_heard` frames left the speaker."""
        heard = dict.fromkeys(self._parts, 0)
        left = frames_heard
        for key, frames in self._segments:
            heard[key] += min(frames, left)
            left -= min(frames, left)
        return [
            Heard(
                item_id,
                content_index,
                heard[item_id, content_index] // _FRAMES_PER_MS,
                part.queued // _FRAMES_PER_MS,
                part.final and heard[item_id, content_index] == part.queued,
            )
            for (item_id, content_index), part in self._parts.items()
        ]
