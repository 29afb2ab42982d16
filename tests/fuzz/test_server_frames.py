"""The codec: any frame is one value, of bounded size, and never an exception."""

from __future__ import annotations

import tracemalloc
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given

from tests.fuzz import examples, patient, weight
from tests.fuzz.frames import EVENTS, frames
from voiced.core import realtime
from voiced.core.realtime import Nonsense, Other, decode

READ = tuple(kind for kind in realtime._TYPES.values()) + (realtime.AudioDelta, Other, Nonsense)

FREE_TEXTS = {"transcript", "delta", "text", "message", "detail"}
"""What is read once and shortened; all else may be kept."""

MEGABYTE = 2**20


def strings(value: Any, name: str = "") -> list[tuple[str, str]]:
    """(field, text) of all texts in a server event."""
    if isinstance(value, str):
        return [(name, value)]
    if isinstance(value, list):
        return [found for each in value for found in strings(each, name)]
    fields = getattr(value, "__struct_fields__", ())
    return [found for each in fields for found in strings(getattr(value, each), each)]


@patient
@examples(1_500)
@given(frames)
def test_any_frame_is_one_value_and_never_an_exception(frame: str | bytes) -> None:
    said = decode(frame)
    assert type(said) in READ
    assert weight(said) < 25 * 256 * 1024 or isinstance(said, realtime.AudioDelta)
    for field, text in strings(said):
        text.encode()
        assert field in FREE_TEXTS or len(text) <= 256
    if isinstance(said, Nonsense):
        assert 0 < len(said.detail) <= 200
    if isinstance(said, realtime.AudioDelta):
        assert said.samples.dtype == np.int16
        assert said.samples.ndim == 1
        assert said.output_index >= 0
        assert said.content_index >= 0


@pytest.mark.parametrize("filler", ["{}", "[]", "0.5", '""', '{"a":[]}', '{"remaining":1}'])
@pytest.mark.parametrize(
    "frame",
    [
        '{"type":"session.updated","session":{"tools":[%s]}}',
        '{"type":"rate_limits.updated","rate_limits":[%s]}',
        '{"type":"session.created","session":{"id":"s","x":[%s]}}',
        '{"type":"response.output_audio.delta","response_id":"r","item_id":"i","delta":"","x":[%s]}',
        '{"type":"response.telepathy","x":[%s]}',
    ],
    ids=lambda frame: frame[9:30],
)
def test_a_frame_never_unpacks_to_many_times_its_size(frame: str, filler: str) -> None:
    text = frame % ",".join([filler] * (4 * MEGABYTE // (len(filler) + 1)))
    tracemalloc.start()
    try:
        decode(text)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 10 * MEGABYTE, f"{peak / MEGABYTE:.0f} MB"


def test_what_the_api_sends_is_far_from_the_bounds() -> None:
    for event in EVENTS:
        assert len(msgspec.json.encode(event)) < realtime._LONGEST_TEXT / 10
        said = decode(msgspec.json.encode(event).decode())
        assert not isinstance(said, Nonsense)
        assert all(len(text) < 256 / 4 for field, text in strings(said) if field not in FREE_TEXTS)
