"""Whether the channels in use hear what they should, told from the levels of a second at a time.

Seconds are evidence for a suspicion, against it, or neither: most of a day nothing is to be heard,
and that says nothing. A suspicion becomes a finding when so many seconds speak for it more than
against it, and ends the same way, so a channel on the edge does not flap.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from voiced.config import Microphone
from voiced.core.calibration import CLIPPED_SAMPLES, SILENT_DBFS
from voiced.events import ChannelLevel, ChannelLevels

DEAD_S: Final = 5
"""No microphone is ever constant: a MEMS capsule alone makes noise at -91 dBFS (65 dB below a sound
of 94 dB, which it gives as -26 dBFS), the step of 16 bits at -101. Beside a channel that hears
something, five seconds are no glitch."""

SILENT_S: Final = 60
"""Where no channel hears anything it may also be a switch on the microphone, or a device that
gives digital silence between sentences."""

REVIVED_S: Final = 3
CHANNEL_S: Final = 5
"""Of seconds in which something was to be heard: two or three sentences."""

OWN_SOUND_S: Final = 3
"""Of our own sound: that much is in any answer."""

CLIPPED_S: Final = 5
UNCLIPPED_S: Final = 10

_QUIETEST_DBFS: Final = -90.0  # about a capsule's own noise: no floor is taken to be lower
_ALIVE_DB: Final = 20.0  # above a silent channel
_FLOOR_SECONDS: Final = 60  # somebody who talks pauses for a second within a minute
# Speech is 15 dB over the room, or nobody would be understood; a fan that starts seldom is.
_HEARD_DB: Final = 15.0
_FAR_QUIETER_DB: Final = 20.0  # the raw channels of one array differ by some dB, not by this
_OWN_SOUND_DB: Final = 10.0  # a canceller takes away 20 to 35; microphones side by side differ by 5
_TALK_SMOOTHING: Final = 0.2


@dataclass(slots=True)
class _Suspicion:
    """Found after `found_s` seconds of evidence net of contrary ones, over after `over_s` the other
    way round. `text` is of the second that made it certain, and stays."""

    name: str
    found_s: int
    over_s: int
    present: bool = False
    text: str = ""
    _score: int = 0

    def weigh(self, evidence: bool, text: str) -> None:
        """Take a second that is evidence for it, or against it."""
        certain = self.found_s * self.over_s
        step = self.over_s if evidence else -self.found_s
        self._score = min(max(self._score + step, 0), certain)
        if self._score == 0:
            self.present = False
        elif self._score == certain and not self.present:
            self.present, self.text = True, text


@dataclass(slots=True)
class _Used:
    """What is suspected of one channel in use."""

    dead: _Suspicion = field(
        default_factory=lambda: _Suspicion("microphone-dead", DEAD_S, REVIVED_S)
    )
    silent: _Suspicion = field(
        default_factory=lambda: _Suspicion("microphone-dead", SILENT_S, REVIVED_S)
    )
    deaf: _Suspicion = field(
        default_factory=lambda: _Suspicion("microphone-channel", CHANNEL_S, CHANNEL_S)
    )
    loopback: _Suspicion = field(
        default_factory=lambda: _Suspicion("microphone-channel", OWN_SOUND_S, OWN_SOUND_S)
    )
    raw: _Suspicion = field(
        default_factory=lambda: _Suspicion("microphone-channel", CHANNEL_S, CHANNEL_S)
    )
    clipped: _Suspicion = field(
        default_factory=lambda: _Suspicion("microphone-clipped", CLIPPED_S, UNCLIPPED_S)
    )

    def suspicions(self) -> Iterator[_Suspicion]:
        yield from (self.dead, self.silent, self.deaf, self.loopback, self.raw, self.clipped)


class Channels:
    """Feed it with `hear`; then look at `findings` and `meter`."""

    def __init__(self, microphone: Microphone) -> None:
        self.findings: dict[str, str] = {}
        """What is wrong now: a fault's name -> which channel, and what to do. One text each."""
        self.meter: list[dict[str, float | int | bool]] | None = None
        """The last second of each channel, in JSON types; None before the first."""
        self._processed = microphone.echo == "hardware"
        self._mixes = len(microphone.channels_used) > 1
        self._used = {channel: _Used() for channel in microphone.channels_used}
        # dBFS of each channel, of seconds without our own sound
        self._past = [deque[float](maxlen=_FLOOR_SECONDS) for _ in range(microphone.channels)]
        self._over_others: dict[tuple[int, int], float] = {}  # dB, of talkers: used, other

    def __repr__(self) -> str:
        return f"<Channels {', '.join(self.findings) or 'good'}>"

    def hear(self, event: ChannelLevels) -> None:
        """Take the next second."""
        levels = event.levels
        if len(levels) != len(self._past):
            return  # it was on its way when the configuration changed
        self.meter = [
            {
                "rms_dbfs": round(level.rms_dbfs, 1),
                "peak_dbfs": round(level.peak_dbfs, 1),
                "clipped": level.clipped,
                "constant": level.constant,
            }
            for level in levels
        ]
        for channel, used in self._used.items():
            self._judge_clipping(used, channel, levels[channel])
            if event.own_sound:
                self._judge_by_own_sound(used, channel, levels)
            else:
                self._judge_by_the_room(used, channel, levels)
        if not event.own_sound:
            for past, level in zip(self._past, levels, strict=True):
                past.append(level.rms_dbfs)
        present = [s for used in self._used.values() for s in used.suspicions() if s.present]
        self.findings = {suspicion.name: suspicion.text for suspicion in reversed(present)}

    def _judge_clipping(self, used: _Used, channel: int, level: ChannelLevel) -> None:
        clipped = level.clipped >= CLIPPED_SAMPLES
        if clipped or self._rise_db(channel, level) >= _HEARD_DB:
            used.clipped.weigh(
                clipped,
                f"channel {channel} is at full scale again and again: lower the card's capture "
                "volume (alsamixer, F4); microphone.gain_db comes too late for that",
            )

    def _judge_by_the_room(
        self, used: _Used, channel: int, levels: tuple[ChannelLevel, ...]
    ) -> None:
        level = levels[channel]
        other = _loudest(levels, but=channel)
        alive = other is not None and levels[other].rms_dbfs > SILENT_DBFS + _ALIVE_DB
        dead = level.constant or (level.rms_dbfs < SILENT_DBFS and alive)
        rise_db = self._rise_db(channel, level)
        other_db = 0.0 if other is None else self._rise_db(other, levels[other])
        heard = max(rise_db, other_db) >= _HEARD_DB
        used.silent.weigh(
            level.constant and not alive,
            f"channel {channel} hears nothing at all: is a switch on the microphone off, or its "
            "cable out?",
        )
        if not dead or (alive and (heard or not self._processed)):
            used.dead.weigh(
                dead and not used.loopback.present,
                f"channel {channel} hears nothing while channel {other} hears something: "
                + self._instead(channel, other),
            )
        if other is None or dead or not heard:
            return
        by_db = levels[other].rms_dbfs - level.rms_dbfs
        used.deaf.weigh(
            by_db > _FAR_QUIETER_DB and rise_db < other_db / 2,
            f"channel {channel} hardly hears what channel {other} hears {by_db:.0f} dB louder: "
            + self._instead(channel, other),
        )
        for each, theirs in enumerate(levels):
            if each != channel and self._rise_db(each, theirs) >= _HEARD_DB:
                over_db = level.rms_dbfs - theirs.rms_dbfs
                before = self._over_others.setdefault((channel, each), over_db)
                self._over_others[channel, each] += _TALK_SMOOTHING * (over_db - before)

    def _judge_by_own_sound(
        self, used: _Used, channel: int, levels: tuple[ChannelLevel, ...]
    ) -> None:
        level, past = levels[channel], self._past[channel]
        if len(past) >= DEAD_S:
            hears_us = level.rms_dbfs > _QUIETEST_DBFS + _ALIVE_DB
            hears_others = max(past) > _QUIETEST_DBFS
            if hears_us or hears_others:
                used.loopback.weigh(
                    not hears_others,
                    f"channel {channel} carries what we play and nothing else: "
                    + self._instead(channel, self._liveliest(but=channel)),
                )
        # How much louder than another channel it has our sound, over how much louder a talker.
        compared = [
            (level.rms_dbfs - levels[other].rms_dbfs - over_db, other)
            for (mine, other), over_db in self._over_others.items()
            if mine == channel
        ]
        if self._processed and compared:
            excess_db, other = max(compared)
            heard = self._rise_db(channel, level) >= _OWN_SOUND_DB
            used.raw.weigh(
                heard and excess_db >= _OWN_SOUND_DB,
                f"channel {channel} hears us {excess_db:.0f} dB more than channel {other}, which "
                f"seems to be the one with the echo cancelled: {self._instead(channel, other)}",
            )

    def _rise_db(self, channel: int, level: ChannelLevel) -> float:
        """How far it is above the quietest second of the last minute; 0 in the first."""
        past = self._past[channel]
        return level.rms_dbfs - max(min(past), _QUIETEST_DBFS) if past else 0.0

    def _liveliest(self, but: int) -> int | None:
        """The channel that heard the loudest second of the last minute."""
        heard = {c: max(past) for c, past in enumerate(self._past) if c != but and past}
        return max(heard, key=heard.__getitem__) if heard else None

    def _instead(self, channel: int, other: int | None) -> str:
        if self._mixes:
            return f"take {channel} out of microphone.use"
        return f"set microphone.use = {'another' if other is None else other}"


def _loudest(levels: tuple[ChannelLevel, ...], but: int) -> int | None:
    others = [channel for channel in range(len(levels)) if channel != but]
    return max(others, key=lambda channel: levels[channel].rms_dbfs) if others else None
