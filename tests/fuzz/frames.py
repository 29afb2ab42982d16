"""What a server may send that means no good, or has a bug."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from voiced.core.faults import _BY_ERROR_CODE, HARMLESS_ERRORS, RATE_LIMITS, SERVER_FAILURES

_RECORDED = Path(__file__).parents[1] / "data/ga_server_events.jsonl"
EVENTS: list[dict[str, Any]] = [
    json.loads(line) for line in _RECORDED.read_text("utf-8").splitlines()
]

RESPONSE, ITEM, USER_ITEM = "resp_DkF2aa01", "item_DkF2ab01", "item_DkF2ua01"
"""The ids in them, to be replaced by those of the moment."""

CODES = sorted({*_BY_ERROR_CODE, *RATE_LIMITS, *SERVER_FAILURES, *HARMLESS_ERRORS})

_DEEP = {f"deep {n} {opening}": (opening, closing, n) for n in (50, 5_000, 200_000)
         for opening, closing in (("[", "]"), ('{"a":', "}"))}  # fmt: skip
_AS_IS = {
    **{text: text for text in ("NaN", "Infinity", "-Infinity", "1e999", "-0", "01", "0x1", "'x'")},
    "many digits": "9" * 5_000,
    **{name: opening * n + "1" + closing * n for name, (opening, closing, n) in _DEEP.items()},
}
"""Not to be had of `json.dumps`: put into the text by the name that stands in its place."""

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4)
    ),
    max_leaves=10,
)

_wrong = (
    json_values
    | st.sampled_from([-1, 0, 1, 7, 1_000, 2**31, 2**53 + 1, 2**63, 2**64, -(10**40), 1e308, 0.5])
    | st.sampled_from(["", "\0", "\ud800", "AAA", "A A=", "AA==", "====", "ÄÖÜß", "A" * 640])
    | st.sampled_from([300, 3_000, 70_000, 300_000, 2_000_000]).map(lambda n: n * "A")
    | st.sampled_from(CODES)
    | st.sampled_from(list(_AS_IS)).map(lambda name: f"\a{name}\a")
)


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all that is in a JSON value."""
    keys: Any = ()
    if isinstance(value, dict):
        keys = value.keys()
    elif isinstance(value, list):
        keys = range(len(value))
    return [path] * bool(path) + [p for key in keys for p in _places(value[key], (*path, key))]


@st.composite
def damaged(draw: st.DrawFn, most: int = 3, of: str = "") -> str:
    """An event of the protocol in which up to `most` values are missing or are others. `of`: only
    of events whose type begins so."""
    event = copy.deepcopy(draw(st.sampled_from([e for e in EVENTS if e["type"].startswith(of)])))
    for _ in range(draw(st.integers(0, most))):
        if not (places := _places(event)):
            break
        *parents, last = draw(st.sampled_from(places))
        here: Any = event
        for key in parents:
            here = here[key]
        if draw(st.booleans()):
            here[last] = draw(_wrong)
        else:
            del here[last]
    return as_text(event)


def as_text(event: Any) -> str:
    text = json.dumps(event, ensure_ascii=False)
    for name, value in _AS_IS.items():
        text = text.replace(f'"\\u0007{name}\\u0007"', value)
    return text


@st.composite
def torn(draw: st.DrawFn) -> str:
    """An event cut off, or with something in it that is none of it."""
    text = draw(damaged(most=1))
    cut = draw(st.integers(0, min(len(text), 2_000)))
    return text[:cut] + draw(st.sampled_from(["", ",", "\ufeff", text, text[cut:] + text]))


frames = (
    st.text()
    | st.text(st.characters())  # lone surrogates, too
    | st.binary()
    | json_values.map(as_text)
    | st.dictionaries(
        st.just("type") | st.text(),
        st.sampled_from([event["type"] for event in EVENTS]) | json_values,
    ).map(as_text)
    | damaged()
    | torn()
)
"""Of all kinds, hopeless ones included."""
