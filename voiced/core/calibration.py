"""What some seconds of a quiet room and of somebody's voice say about the microphone's settings.

`voicectl calibrate` collects the control socket's meter and asks here. Nothing but the standard
library, and little of that: it has to start at once on a small board.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple, TypedDict

Meter = Mapping[str, Any]
"""One line of the control socket's meter."""

METER_MS: Final = 100


class Phase(NamedTuple):
    """What a person is told, for how long it lasts, and from when on the meter is looked at."""

    say: str
    seconds: float
    settled_s: float


ROOM: Final = Phase("Be quiet", 4, 2)
"""A reading's channels are of a second that began up to two seconds ago."""

SPEECH: Final = Phase("Now speak normally from where you will stand", 6, 1)

SPEECH_DBFS: Final = -26.0
"""Where the active level of speech belongs: what ITU-T P.830 has speech recorded at for tests of
codecs, 26 dB below the overload point. A raised voice is 6 dB louder, a loud one 12 (ANSI S3.5)."""

PEAK_DBFS: Final = -6.0
"""No peak of a normal voice may come nearer to full scale: a raised one then just fits."""

LEAST_SNR_DB: Final = 10.0
"""The gate is promised to miss nothing from here on."""

CLIPPED_SAMPLES: Final = 10
"""In a second: several crests cut flat. One or two are a click."""

SILENT_DBFS: Final = -96.0
"""Below what 16 bits can tell from nothing."""

_ACTIVE_DB: Final = 15.9  # ITU-T P.56: what is further below the active level is a pause
_LEAST_ACTIVE: Final = 0.3  # of the readings: a door that falls shut is in one second of six
_BETTER_DB: Final = 6.0  # of SNR: microphones of one array differ by some 3
# A whisper is some 20 dB below a normal voice, its soft syllables 10 below that: those must get
# over the gate's quiet_dbfs. 36 is the default's distance from speech at the level above.
_QUIET_BELOW_SPEECH_DB: Final = 36.0
_QUIET_BELOW_SPEECH_LEAST_DB: Final = 30.0
_QUIET_ABOVE_ROOM_DB: Final = 6.0
_WORTH_CHANGING_DB: Final = 3.0  # the same person speaks as much louder or softer the next time

ALLOWED_GAIN_DB: Final = (-20.0, 40.0)
"""What the configuration allows; a test holds it against that, which would be slow to import."""

ALLOWED_QUIET_DBFS: Final = (-90.0, -20.0)
"""Likewise."""


class Settings(NamedTuple):
    """What is configured now."""

    use: tuple[int, ...]
    gain_db: float
    echo: str
    quiet_dbfs: float


class ChannelReport(TypedDict):
    """Levels are of the card's own samples, before gain; `clipped` is of the worst second."""

    channel: int
    used: bool
    room_dbfs: float
    speech_dbfs: float
    peak_dbfs: float
    clipped: int
    constant: bool


class Finding(TypedDict):
    """Something that is wrong, and what to do."""

    name: str
    text: str


class Proposal(TypedDict):
    """What to configure; null: leave it as it is."""

    use: list[int] | None
    gain_db: float | None
    quiet_dbfs: float | None


class Report(TypedDict):
    """What `voicectl calibrate --json` prints; docs/control.md explains it."""

    version: Literal[1]
    ok: bool
    channels: list[ChannelReport]
    snr_db: float | None
    findings: list[Finding]
    proposal: Proposal


_ABSENT: Final = {"microphone-lost", "microphone-busy", "microphone-wrong", "microphone-slow"}


def obstacle(snapshot: Mapping[str, Any]) -> Finding | None:
    """Why this daemon can't be calibrated now, if it can't."""
    if snapshot["muted"]:
        return _finding("muted", "the microphone is muted: unmute first (voicectl unmute)")
    for fault in snapshot["faults"]:
        if fault["fault"] in _ABSENT:
            return _finding(fault["fault"], f"{fault['detail']}: {fault['remedy']}")
    if snapshot["turn"] != "idle":
        return _finding("busy", "a conversation goes on: end it first (voicectl hangup)")
    return None


def refused(finding: Finding) -> Report:
    """The report where there was nothing to listen to."""
    return _report([], None, [finding], Proposal(use=None, gain_db=None, quiet_dbfs=None))


def judge(room: Sequence[Meter], speech: Sequence[Meter], settings: Settings) -> Report:
    """Make a report of what the meter showed in the two phases, once settled."""
    in_room = [meter["channels"] for meter in room if meter["channels"]]
    in_speech = [meter["channels"] for meter in speech if meter["channels"]]
    if not in_room or not in_speech:
        return refused(_finding("microphone-lost", "no sound came from it: see voicectl status"))
    number = len(in_speech[0])
    channels = [_Channel([r[n] for r in in_room], [r[n] for r in in_speech]) for n in range(number)]
    findings, use = _channel_findings(channels, settings)
    chosen = [channels[n] for n in (use or settings.use)]
    snr_db = max(channel.snr_db for channel in chosen)
    proposal = Proposal(use=use, gain_db=None, quiet_dbfs=None)
    if not any(finding["name"] in _DEAF for finding in findings):
        if snr_db < LEAST_SNR_DB:
            findings.append(
                _finding(
                    "room-too-loud",
                    f"the room is only {max(0.0, snr_db):.0f} dB below your voice, and should be "
                    f"{LEAST_SNR_DB:.0f}: come closer, or turn off what is humming",
                )
            )
        proposal["gain_db"] = _gain_db(chosen, settings, findings)
        if use is None:
            gain_db = settings.gain_db if proposal["gain_db"] is None else proposal["gain_db"]
            proposal["quiet_dbfs"] = _quiet_dbfs(room, speech, gain_db, settings)
    told = [
        ChannelReport(
            channel=n,
            used=n in settings.use,
            room_dbfs=round(channel.room_dbfs, 1),
            speech_dbfs=round(channel.speech_dbfs, 1),
            peak_dbfs=round(channel.peak_dbfs, 1),
            clipped=channel.clipped,
            constant=channel.constant,
        )
        for n, channel in enumerate(channels)
    ]
    return _report(told, round(snr_db, 1), findings, proposal)


_DEAF: Final = {"microphone-dead", "microphone-clipped", "nobody-spoke"}
"""Findings that leave nothing to compute a level from."""


class _Channel:
    """What one channel heard; arguments are its part of the meter's readings."""

    def __init__(self, room: Sequence[Meter], speech: Sequence[Meter]) -> None:
        both = [*room, *speech]
        self.room_dbfs = _quantile([each["rms_dbfs"] for each in room], 0.5)
        self.speech_dbfs, self.active = _active([each["rms_dbfs"] for each in speech])
        self.peak_dbfs = max(each["peak_dbfs"] for each in speech)
        self.clipped = max(each["clipped"] for each in both)
        self.constant = all(each["constant"] for each in both)
        self.is_clipped = self.clipped >= CLIPPED_SAMPLES
        self.is_dead = max(self.room_dbfs, self.speech_dbfs) < SILENT_DBFS
        self.snr_db = _snr_db(self.speech_dbfs, self.room_dbfs)
        self.heard_speech = self.snr_db > 0 and self.active >= _LEAST_ACTIVE


def _channel_findings(
    channels: Sequence[_Channel], settings: Settings
) -> tuple[list[Finding], list[int] | None]:
    """What is wrong with the channels in use, and which to use instead, if any."""
    findings = []
    alive = [n for n in settings.use if not channels[n].is_dead]
    good = [n for n, each in enumerate(channels) if each.heard_speech and not each.is_clipped]
    best = max(good, key=lambda n: channels[n].snr_db, default=None)
    use = None
    for n in settings.use:
        if channels[n].is_dead:
            text = f"channel {n} hears nothing: is a switch on the microphone off, or its cable out"
            findings.append(_finding("microphone-dead", f"{text}?"))
        elif channels[n].is_clipped:
            text = f"channel {n} is at full scale: lower the card's capture volume (alsamixer, F4)"
            findings.append(_finding("microphone-clipped", text))
    if findings:
        if not alive and best is not None:
            use = [best]
        elif len(alive) < len(settings.use) and alive:
            use = alive
    elif best is None:
        findings.append(_finding("nobody-spoke", "no voice was heard: speak up, and try again"))
    else:
        ours_db = max(channels[n].snr_db for n in alive)
        theirs_db = channels[best].snr_db
        better = best not in settings.use and theirs_db >= ours_db + _BETTER_DB
        deaf = ours_db < _BETTER_DB and theirs_db >= LEAST_SNR_DB
        if better and deaf:
            text = f"channel {best} hears you, and what is in use hardly does"
            findings.append(_finding("microphone-channel", text))
        # An array's processed channel is the one without our own echo, however it hears.
        if better and (deaf or settings.echo != "hardware"):
            use = [best]
    return findings, use


def _gain_db(
    chosen: Sequence[_Channel], settings: Settings, findings: list[Finding]
) -> float | None:
    speech_dbfs = sum(channel.speech_dbfs for channel in chosen) / len(chosen)
    peak_dbfs = max(channel.peak_dbfs for channel in chosen)
    wanted_db = _whole_below(min(SPEECH_DBFS - speech_dbfs, PEAK_DBFS - peak_dbfs))
    gain_db = min(max(wanted_db, ALLOWED_GAIN_DB[0]), ALLOWED_GAIN_DB[1])
    if wanted_db > gain_db + _WORTH_CHANGING_DB:
        text = (
            f"your voice is too faint, {wanted_db - gain_db:.0f} dB even with all the gain there "
            "is: raise the card's capture volume (alsamixer, F4), or come closer"
        )
        findings.append(_finding("too-faint", text))
    return _if_worth_it(gain_db, settings.gain_db)


def _quiet_dbfs(
    room: Sequence[Meter], speech: Sequence[Meter], gain_db: float, settings: Settings
) -> float | None:
    """Above the room, and low enough for a whisper; of the meter's own level, as the gate's is."""
    in_room = [meter["level_dbfs"] for meter in room if meter["level_dbfs"] is not None]
    in_speech = [meter["level_dbfs"] for meter in speech if meter["level_dbfs"] is not None]
    if not in_room or not in_speech:
        return None  # the gate is off
    louder_db = gain_db - settings.gain_db
    speech_dbfs = _active(in_speech)[0] + louder_db
    room_dbfs = _quantile(in_room, 0.95) + louder_db
    quiet_dbfs = max(speech_dbfs - _QUIET_BELOW_SPEECH_DB, room_dbfs + _QUIET_ABOVE_ROOM_DB)
    quiet_dbfs = min(quiet_dbfs, speech_dbfs - _QUIET_BELOW_SPEECH_LEAST_DB)
    allowed = min(max(quiet_dbfs, ALLOWED_QUIET_DBFS[0]), ALLOWED_QUIET_DBFS[1])
    return _if_worth_it(_whole_below(allowed), settings.quiet_dbfs)


def _whole_below(value: float) -> float:
    return float(math.floor(round(value, 1)))


def _if_worth_it(new: float, now: float) -> float | None:
    return new if abs(new - now) >= _WORTH_CHANGING_DB else None


def _active(levels_dbfs: Sequence[float]) -> tuple[float, float]:
    """The active level as P.56 defines it, of a list of levels, and what share of them is active.

    That is the mean power of those which are not `_ACTIVE_DB` below that very mean.
    """
    active = list(levels_dbfs)
    while True:
        mean_dbfs = _dbfs(sum(10 ** (each / 10) for each in active) / len(active))
        above = [each for each in active if each >= mean_dbfs - _ACTIVE_DB]
        if len(above) == len(active):
            return mean_dbfs, len(active) / len(levels_dbfs)
        active = above


def _snr_db(both_dbfs: float, noise_dbfs: float) -> float:
    """Of speech that was measured with the noise in it; -20 where there is none."""
    power = 10 ** ((both_dbfs - noise_dbfs) / 10) - 1
    return _dbfs(max(power, 0.01))


def _dbfs(power: float) -> float:
    return 10 * math.log10(power)


def _quantile(values: Sequence[float], share: float) -> float:
    return sorted(values)[round((len(values) - 1) * share)]


def _finding(name: str, text: str) -> Finding:
    return Finding(name=name, text=text)


def _report(
    channels: list[ChannelReport],
    snr_db: float | None,
    findings: list[Finding],
    proposal: Proposal,
) -> Report:
    return Report(
        version=1,
        ok=not findings,
        channels=channels,
        snr_db=snr_db,
        findings=findings,
        proposal=proposal,
    )
