"""The codec: any frame is one value, of bounded size, and never an exception."""

from __future__ import annotations

import math
import tracemalloc
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given

from tests.fuzz import examples, patient, weight
from tests.fuzz.frames import EVENTS, as_text, frames
from voiced.core import realtime
from voiced.core.realtime import Nonsense, Other, decode

READ = tuple(kind for kind in realtime._TYPES.values()) + (realtime.AudioDelta, Other, Nonsense)

FREE_TEXTS = {"transcript", "delta", "text", "message", "detail"}
"""What is read once and shortened; all else may be kept."""

DELTA = "response.output_audio.delta"
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


_PLAIN = {"response_id": "r", "item_id": "i", "delta": "AAAAAAAA"}


@pytest.mark.parametrize(
    "wrong",
    [
        *(
            {**_PLAIN, index: value}
            for index in ("output_index", "content_index")
            for value in (-1, -(2**63), 1_000, 2**64, 10**400, 0.5, "0", None)
        ),
        *(
            {**_PLAIN, "delta": text}
            for text in ("AAA", "AAAA AAAA", "AAAAAAAA\n", "====", "ÄÖÜß", "AAAAAAAA-_")
        ),
        {**_PLAIN, "delta": "AAAA"},  # a sample and a half
        {**_PLAIN, "delta": 0},
        {**_PLAIN, "delta": None},
        {**_PLAIN, "item_id": 257 * "x"},
        {"item_id": "i", "delta": "AAAAAAAA"},
    ],
    ids=repr,
)
def test_sound_that_has_no_place_or_is_none_is_nonsense(wrong: dict[str, Any]) -> None:
    assert isinstance(decode(as_text({"type": DELTA, **_PLAIN})), realtime.AudioDelta)
    assert isinstance(decode(as_text({"type": DELTA, **wrong})), Nonsense)


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999", "01", "9" * 5_000])
@pytest.mark.parametrize(
    "frame",
    [
        '{"type":"response.output_audio.delta","response_id":"r","item_id":"i","delta":"AAAAAAAA",'
        '"output_index":%s}',
        '{"type":"session.created","session":{"expires_at":%s}}',
        '{"type":"rate_limits.updated","rate_limits":[{"reset_seconds":%s}]}',
        '{"type":"response.done","response":{"id":"r","usage":{"total_tokens":%s}}}',
    ],
    ids=["index", "expiry", "limit", "tokens"],
)
def test_a_number_that_is_none_is_nonsense_or_finite(frame: str, number: str) -> None:
    said = decode(frame % number)
    if isinstance(said, realtime.SessionCreated):
        assert math.isfinite(said.session.expires_at or 0.0)
    elif isinstance(said, realtime.RateLimits):
        assert math.isfinite(said.reset_s)
    else:
        assert isinstance(said, Nonsense)


@pytest.mark.parametrize("tokens", [-1, 2**31, 10**400, 0.5])
def test_a_price_that_is_none_is_nonsense(tokens: float) -> None:
    response = {"id": "r", "usage": {"input_tokens": tokens}}
    assert isinstance(decode(as_text({"type": "response.done", "response": response})), Nonsense)


def test_of_a_name_that_never_ends_the_beginning_is_kept() -> None:
    said = decode(as_text({"type": "x" * MEGABYTE}))
    assert isinstance(said, Other)
    assert len(said.type) < 100


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
