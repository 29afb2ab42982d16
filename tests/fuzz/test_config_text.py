"""Any text as a configuration is settings, or one line that names the file and keeps secrets."""

from __future__ import annotations

import tempfile
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz import examples, patient
from voiced.config import Config, ConfigError, load, parse

NAME = "/etc/voiced/voiced.toml"
SECRET = "sk-proj-0123456789"
DEFAULT = (Path(__file__).parents[2] / "config/voiced.toml").read_text("utf-8")

KEYS = [
    (table, key)
    for table in Config.__struct_fields__
    for key in getattr(Config(), table).__struct_fields__
]
FREE = [
    ("realtime", "model"),
    ("realtime", "voice"),
    ("realtime", "instructions"),
    ("realtime", "transcription"),
    ("realtime", "ca_file"),
    ("microphone", "device"),
    ("speaker", "device"),
]
"""Any text will do."""

_texts = st.sampled_from(
    [
        SECRET,
        f"wss://me:{SECRET}@example.org/v1?key={SECRET}",
        f"wss://[::1/{SECRET}",
        "ws://192.168.1.2:99999999999/",
        "ws://10.0.0.1\n",
        "default",
        "\0",
        "a\nb",
        "\N{RIGHT-TO-LEFT OVERRIDE}",
        80 * "ä",
    ]
)


def toml(value: object) -> str:
    """As TOML; a text with escapes for all that is not ASCII."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return '"' + "".join(f"\\U{ord(c):08x}" for c in value) + '"'
    if isinstance(value, list):
        return f"[{', '.join(toml(each) for each in value)}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{toml(k)} = {toml(v)}" for k, v in value.items()) + "}"
    return str(value)


_plain = (
    st.booleans()
    | st.integers()
    | st.integers(-2, 60)
    | st.floats()
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=10)
    | _texts
)
_values = st.recursive(
    _plain,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=2)
    ),
    max_leaves=4,
).map(toml) | st.sampled_from(
    ["1979-05-27", "07:32:00", "1979-05-27T07:32:00Z", "0x7f", "1e999", "9" * 30, "[" * 2_000]
)


@st.composite
def _settings(draw: st.DrawFn) -> str:
    """Known and unknown keys with values of any kind."""
    lines = []
    for table, key in draw(st.lists(st.sampled_from(KEYS), max_size=4)):
        wrong = draw(st.sampled_from(["", "", "", "", "x", ".x"]))
        lines.append(f"{table}.{key}{wrong} = {draw(_values)}")
    return "\n".join(lines)


@st.composite
def _default_damaged(draw: st.DrawFn) -> str:
    begin, length = draw(st.integers(0, len(DEFAULT))), draw(st.integers(0, 40))
    return DEFAULT[:begin] + draw(st.text(max_size=5)) + DEFAULT[begin + length :]


def check(message: str, name: str = NAME) -> None:
    assert message.startswith(f"{name}: ")
    assert len(message.splitlines()) == 1
    assert len(message) < 1_000
    assert SECRET not in message
    message.encode()


@patient
@examples(1_000)
@given(st.text() | _settings() | _default_damaged())
def test_any_text_is_settings_or_one_line_about_what_is_wrong(text: str) -> None:
    try:
        assert isinstance(parse(text, NAME), Config)
    except ConfigError as exc:
        check(str(exc))


@patient
@examples(100)
@given(st.binary(max_size=200))
def test_any_file_is_settings_or_one_line_about_what_is_wrong(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "voiced.toml"
        path.write_bytes(content)
        try:
            load(path)
        except ConfigError as exc:
            check(str(exc), str(path))


def test_what_the_strategies_make_is_mostly_toml() -> None:
    values: list[object] = [
        True,
        3,
        0.5,
        "ä\n",
        [1, "x"],
        {"a b": [{}]},
        float("nan"),
        float("-inf"),
    ]
    for value in values:
        assert str(tomllib.loads(f"x = {toml(value)}")["x"]) == str(value)


@pytest.mark.parametrize(("table", "key"), KEYS)
@pytest.mark.parametrize("wrap", [str, lambda text: [text], lambda text: {"x": text}])
def test_a_secret_in_the_wrong_place_is_not_shown(
    table: str, key: str, wrap: Callable[[str], object]
) -> None:
    for secret in (SECRET, f"wss://me:{SECRET[3:]}@example.org", f"wss://x.org/?k={SECRET[3:]}"):
        is_path = key == "api_key_file" and "/" in secret
        if wrap is str and (is_path or (table, key) in FREE):
            parse(f"{table}.{key} = {toml(secret)}", NAME)
            continue
        with pytest.raises(ConfigError) as caught:
            parse(f"{table}.{key} = {toml(wrap(secret))}", NAME)
        assert SECRET[3:] not in str(caught.value)
