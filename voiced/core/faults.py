"""Everything that can go wrong, a row each: how it is known, what to say, when to try again.

Edges and the codec only recognise; what follows from it stands here and nowhere else.
"""

from __future__ import annotations

import uuid
from dataclasses import KW_ONLY, dataclass
from enum import Enum, IntEnum
from functools import partial


class Retry(Enum):
    """When it is tried again."""

    SOON = "while it is wanted: at once, then in growing steps"
    SLOWLY = "when a press asks for it, after ten minutes"
    NEVER = "when a person has changed something"
    SECOND = "every second"
    FIVE_SECONDS = "every five seconds"
    ALWAYS = "it goes on meanwhile"
    RESTART = "by a new start of the service"


class Blink(IntEnum):
    """What the light tells while nobody talks: so many flashes, then a pause."""

    MICROPHONE = 1
    SPEAKER = 2
    NETWORK = 3
    ACCOUNT = 4
    SERVER = 5
    DEVICE = 6


_MESSAGES = uuid.UUID("5f2c1c34-6d0b-4f5e-9d0a-3f6d1b6f7a52")  # drawn once, for ours alone


@dataclass(frozen=True, slots=True)
class Fault:
    """One row. `status` is what is wrong, `remedy` what a person does; both for one line."""

    name: str
    status: str
    remedy: str
    known_by: str
    spoken: str = ""
    """What a person is told in words who presses in vain, if there is something to be done."""
    _: KW_ONLY
    blink: Blink
    retry: Retry
    earcon: str
    """A row of `core.earcons`."""
    deaf: bool = False
    """No turn can be taken while it lasts."""
    exit_code: int | None = None
    """Set where it ends the process."""

    @property
    def sound(self) -> str:
        """What a person hears of it: the clip of this name, or the earcon."""
        return self.name if self.spoken else self.earcon

    @property
    def message_id(self) -> str:
        """The journal's MESSAGE_ID, 32 hexadecimal digits: the same in every release."""
        return uuid.uuid5(_MESSAGES, self.name).hex


_microphone = partial(Fault, blink=Blink.MICROPHONE, retry=Retry.ALWAYS, earcon="device")
_no_microphone = partial(_microphone, retry=Retry.SECOND, deaf=True)
# Nothing about the speaker is spoken: there is nothing to say it with.
_speaker = partial(Fault, blink=Blink.SPEAKER, retry=Retry.SECOND, earcon="device", deaf=True)
_device = partial(Fault, blink=Blink.DEVICE, retry=Retry.ALWAYS, earcon="device")
_network = partial(Fault, blink=Blink.NETWORK, retry=Retry.SOON, earcon="network")
_account = partial(Fault, blink=Blink.ACCOUNT, retry=Retry.NEVER, earcon="account")
_server = partial(Fault, blink=Blink.SERVER, retry=Retry.SOON, earcon="server")

_ROWS = (
    _no_microphone(
        "microphone-lost",
        "microphone is missing",
        "plug it in, or set microphone.device",
        "it can't be opened, a read fails, or it does nothing but overrun",
        "My microphone is missing. Please plug it in.",
    ),
    _no_microphone(
        "microphone-busy",
        "another program holds the microphone",
        "stop that program: fuser -v /dev/snd/*",
        "opening it says busy",
        "Another program is using my microphone.",
    ),
    _no_microphone(
        "microphone-wrong",
        "microphone can't do what is configured",
        "see [microphone]",
        "the card grants another rate, format or number of channels",
        "My microphone is not set up correctly.",
    ),
    _no_microphone(
        "microphone-slow",
        "microphone delivers too little sound",
        "plug it in anew; a hub or a long cable?",
        "its reads give under 90 % of its rate over 5 s",
        "My microphone does not work as it should. Please plug it in again.",
    ),
    _microphone(
        "microphone-dead",
        "microphone delivers no sound",
        "see microphone.use; is it off?",
        "no sample changes: 5 s beside a channel that hears, 60 s alone",
        "I can not hear anything. Is my microphone switched off?",
    ),
    _microphone(
        "microphone-channel",
        "another channel hears better",
        "run voicectl calibrate",
        "20 dB less than another channel, of speech or of our own sound",
    ),
    _microphone(
        "microphone-clipped",
        "microphone is overdriven",
        "lower its gain in alsamixer",
        "10 samples a second at full scale, in 5 seconds of speech",
    ),
    _device(
        "canceller-missing",
        "no echo canceller, so it is deaf while it speaks",
        "pip install 'voiced[aec]', or set microphone.echo",
        "its library is not there, or doesn't load",
        retry=Retry.NEVER,
    ),
    _speaker(
        "speaker-lost",
        "speaker is missing",
        "plug it in, or set speaker.device",
        "it can't be opened, or a write fails",
    ),
    _speaker(
        "speaker-busy",
        "another program holds the speaker",
        "stop that program: fuser -v /dev/snd/*",
        "opening it says busy",
    ),
    _speaker(
        "speaker-wrong",
        "speaker can't do what is configured",
        "see [speaker]",
        "the card grants another rate, format or number of channels",
    ),
    _speaker(
        "speaker-stuck",
        "speaker takes no sound",
        "plug it in anew; a hub or a long cable?",
        "it holds sound and stands still for 2 s, or runs ahead of the clock",
    ),
    _device(
        "button-lost",
        "button's pin can't be used",
        "see button.pin; is another program on it?",
        "the pin can't be claimed",
        retry=Retry.FIVE_SECONDS,
    ),
    _device(
        "lights-lost",
        "lights failed, so nothing is sent",
        "see [lights]",
        "the pins can't be claimed or set",
        retry=Retry.FIVE_SECONDS,
        spoken="My light does not work, so I do not listen.",
        deaf=True,
    ),
    _device(
        "mute-not-kept",
        "mute is not kept over a restart",
        "is the disk full or read-only?",
        "writing the state fails",
        retry=Retry.FIVE_SECONDS,
    ),
    _device(
        "conversation-not-kept",
        "what was said can't be written or erased",
        "is the disk full or read-only?",
        "writing or erasing the conversation fails",
        retry=Retry.FIVE_SECONDS,
    ),
    _device(
        "state-unreadable",
        "state can't be read, so it started muted",
        "unmute once",
        "the state file is damaged, unreadable or from a newer voiced",
    ),
    _device(
        "config-invalid",
        "new configuration is invalid, the old one goes on",
        "see the journal",
        "a reload finds a wrong setting (at the start: exit)",
        exit_code=78,
    ),
    _device(
        "memory-high",
        "voiced uses too much memory",
        "none: it starts anew when nobody talks",
        "over four fifths of what the unit allows it",
        retry=Retry.RESTART,
        exit_code=75,
    ),
    _device(
        "bug",
        "voiced failed",
        "report it with the journal",
        "an exception that nobody expected",
        retry=Retry.RESTART,
        exit_code=70,
    ),
    _account(
        "key-missing",
        "no API key",
        "see the journal",
        "neither the credential nor realtime.api_key_file has one",
        "My access key is missing. Please add it.",
    ),
    _account(
        "key-refused",
        "the server refuses the API key",
        "give a valid key",
        "close 3000, HTTP 401, or an error of the key or account",
        "The server refuses my access key.",
    ),
    _account(
        "model-refused",
        "the server refuses the model",
        "set realtime.model",
        "close 4004, or an error of the model: retired, unknown, not allowed",
        "The server does not offer my model any more.",
    ),
    _account(
        "quota",
        "no credit left",
        "top the account up",
        "close 1013, HTTP 402, or an error of quota or billing",
        "My account has no credit left.",
        retry=Retry.SLOWLY,
    ),
    _server(
        "protocol-refused",
        "the server speaks another protocol",
        "set realtime.url; is voiced too old?",
        "close 4000, or a plain session.update is rejected",
        retry=Retry.NEVER,
        spoken="The server does not understand me. I may need an update.",
    ),
    _network(
        "clock-wrong",
        "the clock is wrong",
        "is there a time server (timedatectl)?",
        "a certificate is not yet valid, or has expired by a clock 20 years ahead",
        "My clock is wrong, so I can not talk to the server.",
    ),
    _network(
        "tls-untrusted",
        "the server's certificate is not trusted",
        "see realtime.ca_file; who is in between?",
        "the certificate can't be verified",
        "I do not trust the server that answers me.",
    ),
    _network(
        "no-network",
        "there is no network",
        "is the Wi-Fi up?",
        "a failed dial, and no route, address or interface but to ourselves",
        "I have no network connection.",
    ),
    _network(
        "no-dns",
        "the server's name is not found",
        "is the network up?",
        "the name can't be resolved, or not within 10 s",
        "I can not reach the internet.",
    ),
    _network(
        "no-route",
        "the server can't be reached",
        "is the network up?",
        "the connection is refused, or no way leads there",
        "I can not reach the server.",
    ),
    _network(
        "timeout",
        "the server does not answer",
        "is the network up?",
        "no session 15 s after the dial, or no frame 10 s after asking",
        "The server does not answer me.",
    ),
    _network(
        "stalled",
        "the link took no more data",
        "is the network slow?",
        "the socket took no audio for 5 s",
    ),
    _network(
        "link-lost",
        "the link was lost",
        "none: it is dialled again",
        "no close frame: reset, half-open, address gone; or an unknown close",
    ),
    _server(
        "server-error",
        "the server failed",
        "none: it is tried again",
        "close 1011 or 1012, HTTP but 401 and 402, a failed TLS handshake",
    ),
    _server(
        "rate-limit",
        "the server limits the rate",
        "none: it is asked again; talk less, or raise the limit",
        "an answer failed for a rate limit",
        retry=Retry.ALWAYS,
    ),
    _server(
        "session-expired",
        "the session reached its longest age",
        "none: it is dialled again",
        "close 1001, or an error session_expired",
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

RATE_LIMITS = frozenset({"rate_limit_exceeded", "inference_rate_limit_exceeded"})
SERVER_FAILURES = frozenset({"server_error", "internal_error", "inference_server_error"})
"""Codes of answers that failed, and may not fail a moment later."""

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
