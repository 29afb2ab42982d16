"""Everything that can go wrong, a row each: what to say, what a person can do, when to retry.

Edges and the codec only recognise; what follows from it stands here and nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Retry(Enum):
    """When a lost or refused link is dialled again, while somebody wants it."""

    SOON = "at once, then in growing steps"
    SLOWLY = "when a press asks for it, after ten minutes"
    NEVER = "when a person has changed something"


@dataclass(frozen=True, slots=True)
class Fault:
    """One row. `status` is what is wrong, `remedy` what a person does; both for one line."""

    name: str
    status: str
    remedy: str
    retry: Retry = Retry.SOON
    sound: str = "device"
    """Its earcon: a row of `core.earcons`."""
    deaf: bool = False
    """No turn can be taken while it lasts."""


_SOON, _SLOWLY, _NEVER = Retry.SOON, Retry.SLOWLY, Retry.NEVER


def _deaf(name: str, status: str, remedy: str) -> Fault:
    return Fault(name, status, remedy, deaf=True)


def _link(name: str, status: str, remedy: str, retry: Retry, sound: str) -> Fault:
    return Fault(name, status, remedy, retry, sound)


_ROWS = (
    _deaf("microphone-lost", "microphone is missing", "plug it in, or set microphone.device"),
    _deaf("microphone-wrong", "microphone can't do what is configured", "see [microphone]"),
    Fault("microphone-dead", "microphone delivers no sound", "see microphone.use; is it off?"),
    Fault("microphone-channel", "another channel hears better", "run voicectl calibrate"),
    Fault("microphone-clipped", "microphone is overdriven", "lower its gain in alsamixer"),
    _deaf("speaker-lost", "speaker is missing", "plug it in, or set speaker.device"),
    _deaf("speaker-wrong", "speaker can't do what is configured", "see [speaker]"),
    Fault("button-lost", "button's pin can't be used", "see button.pin; is another program on it?"),
    _deaf("lights-lost", "lights failed, so nothing is sent", "see [lights]"),
    Fault("mute-not-kept", "mute is not kept over a restart", "is the disk full or read-only?"),
    Fault("state-unreadable", "state can't be read, so it started muted", "unmute once"),
    Fault("config-invalid", "new configuration is invalid, the old one goes on", "see the journal"),
    _link("key-missing", "no API key", "see the journal", _NEVER, "account"),
    _link("key-refused", "the server refuses the API key", "give a valid key", _NEVER, "account"),
    _link("model-refused", "the server refuses the model", "set realtime.model", _NEVER, "account"),
    _link(
        "protocol-refused",
        "the server speaks another protocol",
        "set realtime.url",
        _NEVER,
        "server",
    ),
    _link("quota", "no credit left", "top the account up", _SLOWLY, "account"),
    _link(
        "tls-untrusted",
        "the server's certificate is not trusted",
        "see realtime.ca_file; clock?",
        _SOON,
        "network",
    ),
    _link("no-dns", "the server's name is not found", "is the network up?", _SOON, "network"),
    _link("no-route", "the server can't be reached", "is the network up?", _SOON, "network"),
    _link("timeout", "the server does not answer", "is the network up?", _SOON, "network"),
    _link("stalled", "the link took no more data", "is the network slow?", _SOON, "network"),
    _link("server-error", "the server failed", "none: it is tried again", _SOON, "server"),
    _link("link-lost", "the link was lost", "none: it is dialled again", _SOON, "network"),
    _link(
        "session-expired",
        "the session reached its longest age",
        "none: it is dialled again",
        _SOON,
        "network",
    ),
)

FAULTS = {row.name: row for row in _ROWS}

_BY_ERROR_CODE = {
    "invalid_api_key": "key-refused",
    "account_deactivated": "key-refused",
    "missing_model": "model-refused",
    "invalid_model": "model-refused",
    "model_not_found": "model-refused",
    "beta_api_shape_disabled": "protocol-refused",
    "insufficient_quota": "quota",
    "billing_hard_limit_reached": "quota",
    "session_expired": "session-expired",
}

_BY_CLOSE_CODE = {
    1001: "session-expired",  # "clean" for the library, but nobody asked for it
    1011: "server-error",
    1012: "server-error",
    1013: "quota",  # "try again later" by name; the only cause seen is an empty account
    3000: "key-refused",
    4000: "protocol-refused",
    4004: "model-refused",
}

_BY_HTTP_STATUS = {401: "key-refused", 402: "quota"}
"""All others are retried: a proxy in the house says 403, 404 or 502 while its server starts."""

HARMLESS_ERRORS = frozenset(
    {
        "input_audio_buffer_commit_empty",
        "response_cancel_not_active",
        "item_truncate_invalid_item_id",
        "item_delete_invalid_item_id",
        "invalid_item_id",
        "unsupported_content_type",
    }
)
"""Codes of races that both sides run as a matter of course; no light, no sound, a debug line."""


def of_error(code: str | None) -> Fault | None:
    """The fault that an `error` event's code announces; None for all that leave the link be."""
    return FAULTS.get(_BY_ERROR_CODE.get(code or "", ""))


def of_close(code: int | None, http_status: int | None, named: str | None) -> Fault:
    """The fault behind a closed or failed connection.

    `named` is what the edge recognised (an exception) or an `error` event announced before.
    """
    if named:
        return FAULTS[named]
    if http_status is not None:
        return FAULTS[_BY_HTTP_STATUS.get(http_status, "server-error")]
    return FAULTS[_BY_CLOSE_CODE.get(code or 0, "link-lost")]
