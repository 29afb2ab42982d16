"""Settings: TOML in, typed and validated settings out, or one error that tells all.

The documented default file is `config/voiced.toml`; a test keeps the two the same.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
import stat
import tomllib
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta, Struct

CREDENTIAL = "openai-api-key"
"""Name of the systemd credential that holds the key."""

_PRIVATE = [
    ipaddress.ip_network(n)
    for n in (
        "127.0.0.0/8",
        "::1/128",
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "fc00::/7",
        "fe80::/10",
    )
]


class ConfigError(ValueError):
    """A setting is wrong. The text names file, key, value, what is allowed and the remedy."""


class Secret:
    """A string that prints as asterisks, so that it can't end in a log by accident."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """The secret itself, for the one place that sends it."""
        return self._value

    def __repr__(self) -> str:
        return "Secret(***)"


class _Table(Struct, frozen=True, forbid_unknown_fields=True):
    pass


class Realtime(_Table, frozen=True):
    url: Annotated[str, Meta(description="wss://..., or ws:// to an IP address in the house")] = (
        "wss://api.openai.com/v1/realtime"
    )
    model: Annotated[str, Meta(min_length=1, description="a realtime model's name")] = (
        "gpt-realtime-2.1"
    )
    voice: Annotated[str, Meta(min_length=1, description="a voice's name, such as marin")] = "marin"
    instructions: Annotated[
        str, Meta(min_length=1, description="what the model is told to be; not empty")
    ] = (
        "You are a voice assistant in a small device without a screen. "
        "Answer briefly, in the language you are spoken to."
    )
    transcription: Annotated[
        str, Meta(description='a transcription model, such as gpt-realtime-whisper, or ""')
    ] = ""
    api_key_file: Annotated[
        str, Meta(description="path of a file with the key, readable by its owner only")
    ] = ""
    ca_file: Annotated[
        str, Meta(description="path of a PEM file with the authority that signed your server")
    ] = ""


class Microphone(_Table, frozen=True):
    device: Annotated[
        str, Meta(min_length=1, description="an ALSA name, such as plughw:CARD=Array,DEV=0")
    ] = "plughw:CARD=0,DEV=0"
    rate: Annotated[
        int, Meta(ge=8_000, le=192_000, description="a rate in Hz that the card does natively")
    ] = 48_000
    channels: Annotated[int, Meta(ge=1, le=16, description="a number of channels, 1 to 16")] = 1
    use: Annotated[
        int | Annotated[list[int], Meta(min_length=1)],
        Meta(description="a channel number from 0, or a list of them to mix"),
    ] = 0
    format: Annotated[
        Literal["S16_LE", "S24_LE", "S24_3LE", "S32_LE"],
        Meta(description='"S16_LE", "S24_LE", "S24_3LE" or "S32_LE", as ALSA names them'),
    ] = "S16_LE"
    gain_db: Annotated[
        float, Meta(ge=-20, le=40, description="decibels added in software, -20 to 40")
    ] = 0.0
    echo: Annotated[
        Literal["half-duplex", "cancel", "hardware", "gate"],
        Meta(
            description='"half-duplex" (deaf while it speaks), "cancel" (voiced[aec]), '
            '"hardware" (the array cancels) or "gate" (a speaker far from the microphone)'
        ),
    ] = "half-duplex"

    @property
    def channels_used(self) -> tuple[int, ...]:
        return (self.use,) if isinstance(self.use, int) else tuple(self.use)


class Speaker(_Table, frozen=True):
    device: Annotated[
        str, Meta(min_length=1, description="an ALSA name, such as plughw:CARD=Device,DEV=0")
    ] = "plughw:CARD=0,DEV=0"
    rate: Annotated[
        int, Meta(ge=8_000, le=192_000, description="a rate in Hz that the card does natively")
    ] = 48_000
    volume: Annotated[int, Meta(ge=0, le=100, description="0 to 100 (as the server sent it)")] = 100


class Button(_Table, frozen=True):
    pin: Annotated[
        Annotated[int, Meta(ge=0, le=57)] | Literal["none"],
        Meta(description='a GPIO number (BCM), 0 to 57, or "none"'),
    ] = 17


class Lights(_Table, frozen=True):
    kind: Annotated[
        Literal["none", "led", "pwm", "rgb"],
        Meta(description='"none", "led" (on and off), "pwm" (dims) or "rgb" (three pins)'),
    ] = "none"
    pins: Annotated[
        list[Annotated[int, Meta(ge=0, le=57)]],
        Meta(
            description="GPIO numbers (BCM), 0 to 57: one for led and pwm, red, green, blue for rgb"
        ),
    ] = []


class Gate(_Table, frozen=True):
    enabled: Annotated[bool, Meta(description="true or false")] = True
    quiet_dbfs: Annotated[
        float, Meta(ge=-90, le=-20, description="dBFS below which nothing is speech, -90 to -20")
    ] = -62.0


class Turn(_Table, frozen=True):
    end: Annotated[
        Literal["server_vad", "semantic_vad", "local"],
        Meta(
            description='"server_vad" (the server hears the end), "semantic_vad" (it understands '
            'that you have finished) or "local" (the gate hears it)'
        ),
    ] = "server_vad"
    silence_ms: Annotated[
        int, Meta(ge=200, le=5_000, description="milliseconds of silence, 200 to 5000")
    ] = 600
    preroll_ms: Annotated[
        int, Meta(ge=0, le=500, description="milliseconds from before the press, 0 to 500")
    ] = 300
    follow_up_s: Annotated[
        float, Meta(ge=0, le=600, description="seconds to listen on after an answer, 0 to 600")
    ] = 8.0
    hang_up_s: Annotated[
        float,
        Meta(ge=0, le=3_300, description="seconds until an idle session is closed, 0 to 3300"),
    ] = 60.0
    longest_s: Annotated[
        float, Meta(ge=5, le=600, description="seconds one turn may last, 5 to 600")
    ] = 120.0


class Memory(_Table, frozen=True):
    minutes: Annotated[
        float, Meta(ge=0, le=1_440, description="minutes, 0 (each session begins anew) to 1440")
    ] = 10.0
    kept: Annotated[bool, Meta(description="true or false")] = False


class Sounds(_Table, frozen=True):
    enabled: Annotated[bool, Meta(description="true or false")] = True
    volume: Annotated[int, Meta(ge=0, le=100, description="0 to 100")] = 50


class Config(_Table, frozen=True):
    realtime: Realtime = Realtime()
    microphone: Microphone = Microphone()
    speaker: Speaker = Speaker()
    button: Button = Button()
    lights: Lights = Lights()
    gate: Gate = Gate()
    turn: Turn = Turn()
    memory: Memory = Memory()
    sounds: Sounds = Sounds()


def load(path: Path) -> Config:
    """Read and validate `path`.

    Raises:
        ConfigError: the file can't be read, isn't TOML, or a setting is wrong.
    """
    try:
        text = path.read_text("utf-8")
    except OSError as exc:
        raise ConfigError(
            f"{path}: can't be read: {exc.strerror}. Give another with --config FILE"
        ) from exc
    except UnicodeDecodeError as exc:
        raise ConfigError(f"{path}: not UTF-8 text: {exc.reason} at byte {exc.start}") from exc
    return parse(text, str(path))


def parse(text: str, name: str) -> Config:
    """Validate the TOML in `text`; `name` stands for the file in errors. Raises as `load`."""
    try:
        data = tomllib.loads(text)
    except (ValueError, RecursionError) as exc:  # TOMLDecodeError, a month 13, a number of a book
        raise ConfigError(f"{name}: not valid TOML: {exc}") from exc
    try:
        config = msgspec.convert(data, Config)
    except msgspec.ValidationError as exc:
        raise ConfigError(f"{name}: {_on_one_line(_explain(str(exc), data))}") from exc
    for key, value, problem in _contradictions(config):
        raise ConfigError(f"{name}: {key} = {_on_one_line(_shown(value))}: {problem}")
    return config


def _explain(text: str, data: dict[str, Any]) -> str:
    """msgspec's complaint, with the key as people write it, the value and what is allowed."""
    problem, _, where = text.partition(" - at `$")
    keys = [k for k in re.split(r"[.\[]", where.rstrip("`")) if k]
    unknown = re.search(r"unknown field `(.*)`", problem)
    if unknown:
        keys.append(unknown[1])
        known = _fields(keys[:-1])
        near = difflib.get_close_matches(keys[-1], known, 1)
        remedy = f"Did you mean {near[0]}?" if near else f"Known here: {', '.join(known)}"
        return f"{'.'.join(keys)}: unknown key. {remedy}"
    value: Any = data
    named = [k for k in keys if not k.endswith("]")]
    for key in named:
        value = value[key]
    return f"{'.'.join(named)} = {_shown(value)}: {_allowed(named) or problem}"


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "{...}"
    if isinstance(value, float):
        return repr(value)  # JSON has no nan
    return _without_secrets(msgspec.json.encode(value, enc_hook=str).decode())[:80]


def _on_one_line(text: str) -> str:
    """Without what JSON lets pass and a terminal or `splitlines` takes for an end of line."""
    return "".join(char if char.isprintable() else "?" for char in text)


def _without_secrets(text: str) -> str:
    """What of a value may be shown: people paste keys, and addresses with passwords and tokens."""
    text = re.sub(r"\bsk-[\w-]+", "sk-***", re.sub(r"//[^/]*@", "//***@", text))
    return re.sub(r"(//.*)\?[^\"]*", r"\1?***", text)


def _struct_at(keys: list[str]) -> Any:
    here: Any = Config
    for key in keys:
        here = typing.get_type_hints(here, include_extras=True)[key]
    return here


def _fields(keys: list[str]) -> list[str]:
    return list(_struct_at(keys).__struct_fields__)


def _allowed(keys: list[str]) -> str:
    metas = getattr(_struct_at(keys), "__metadata__", ())
    found = next((m.description for m in metas if isinstance(m, Meta) and m.description), None)
    if found:
        return f"must be {found}"
    return "must be a table of keys" if len(keys) == 1 else ""


def _contradictions(config: Config) -> Iterator[tuple[str, Any, str]]:
    """What each key allows alone but not in this company: (key, value, problem)."""
    mic, speaker, lights = config.microphone, config.speaker, config.lights
    for channel in mic.channels_used:
        if not 0 <= channel < mic.channels:
            yield (
                "microphone.use",
                mic.use,
                f"channel {channel} does not exist: microphone.channels = {mic.channels} "
                f"has channels 0 to {mic.channels - 1}",
            )
    yield from _echo_contradictions(config)
    if re.match(r"\s*(plug:.*)?\b(default|sysdefault|dmix)\b", speaker.device):
        yield (
            "speaker.device",
            speaker.device,
            "mixes in software and goes on playing after a cancel. "
            "Use plughw:CARD=<name>,DEV=0 with a name from `aplay -l`",
        )
    if not config.gate.enabled and config.turn.end == "local":
        yield "gate.enabled", False, 'turn.end = "local" needs the gate to hear the end'
    wanted = {"none": 0, "led": 1, "pwm": 1, "rgb": 3}[lights.kind]
    if len(lights.pins) != wanted:
        yield "lights.pins", lights.pins, f'lights.kind = "{lights.kind}" takes {wanted} pin(s)'
    used = [*lights.pins, *([config.button.pin] if config.button.pin != "none" else [])]
    if len(set(used)) != len(used):
        yield "lights.pins", lights.pins, "a pin is used twice (see button.pin, too)"
    if problem := url_problem(config.realtime.url):
        yield "realtime.url", _without_secrets(config.realtime.url), problem
    key_file = config.realtime.api_key_file
    if key_file and "/" not in key_file:
        yield "realtime.api_key_file", "...", "must be a path with a /, and never the key itself"


def _echo_contradictions(config: Config) -> Iterator[tuple[str, Any, str]]:
    mic = config.microphone
    if mic.echo == "hardware" and len(mic.channels_used) != 1:
        yield (
            "microphone.use",
            mic.use,
            'microphone.echo = "hardware" takes one channel, the one the array has processed: '
            "a raw one mixed in would bring the echo back",
        )
    if mic.echo == "gate" and not config.gate.enabled:
        yield "microphone.echo", mic.echo, "needs gate.enabled = true"


def url_problem(url: str) -> str | None:
    """What is wrong with a server's address, or None.

    Speech and key travel readable over ws://, so it is for addresses that can't leave the
    house: a literal IP in a private range, where no name server can send them elsewhere.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as exc:
        return f"not an address: {exc}"
    if not url.startswith(("ws://", "wss://")) or not host:
        return "must begin with wss:// (or ws:// for a server in the house)"
    if parts.username or parts.query or parts.fragment:
        return "must have no user, ? or # part: the key and the model have their own settings"
    if parts.scheme == "ws" and not is_private(host):
        return (
            "ws:// is not encrypted and only for a literal IP address in the house "
            "(127.x, 10.x, 172.16-31.x, 192.168.x, fc00::/7, fe80::/10). Use wss://"
        )
    return None


def is_private(host: str) -> bool:
    """True for a literal IP address of a private or loopback range."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return any(address in network for network in _PRIVATE)


def is_loopback(host: str) -> bool:
    """True for a literal loopback address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class KeyMissing(ValueError):
    """There is no key, or not one that may be used. The text holds the remedy."""


def read_key(config: Realtime) -> Secret | None:
    """The API key for `config.url`: systemd's credential first, then `api_key_file`.

    None if the server needs none: a key never travels over ws:// except to this machine.

    Raises:
        KeyMissing: no key, or its file can't be read or can be read by others.
    """
    parts = urlsplit(config.url)
    if parts.scheme == "ws" and not is_loopback(parts.hostname or ""):
        return None
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    if directory:
        value = _first_line(Path(directory) / CREDENTIAL, missing_ok=True)
        if value and value != "unset":
            return Secret(value)
    if config.api_key_file:
        path = Path(config.api_key_file)
        value = _first_line(path, missing_ok=False)
        if not value:
            raise KeyMissing(f"realtime.api_key_file = {path}: is empty. Put the key into it")
        return Secret(value)
    if parts.scheme == "ws":
        return None
    raise KeyMissing(
        f"set the credential {CREDENTIAL} and restart, or realtime.api_key_file and reload"
    )


def _first_line(path: Path, *, missing_ok: bool) -> str:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise KeyMissing(f"{path}: is not a regular file: the key must be in one")
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            text = file.read(4096).decode("utf-8", "replace").strip()
    except OSError as exc:
        if missing_ok and isinstance(exc, FileNotFoundError):
            return ""
        raise KeyMissing(
            f"realtime.api_key_file = {path}: can't be read: {exc.strerror}. "
            "Write the key into it, then reload"
        ) from exc
    if mode & 0o077 and not missing_ok:
        raise KeyMissing(
            f"realtime.api_key_file = {path}: can be read by others (mode {mode:04o}). "
            f"Run: chmod 600 {path}, and think of the key as known"
        )
    if not (text.isascii() and text.isprintable()) or " " in text:
        raise KeyMissing(f"{path}: holds no key: a key is one line of printable characters")
    return text
