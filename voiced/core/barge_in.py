"""Whether somebody speaks while our own sound is in the room.

A voice is what stays above a bar for most of 100 ms. The bar lies over the noise of the room, and
over the echo that is to be expected of what was played in the last quarter of a second: that minus
what a canceller takes away, or plus the coupling from loudspeaker to microphone, where there is
none and the coupling was measured.

While our canceller looks for the echo (`aligning`), what is heard says nothing. After that it may
still let our sound pass now and then: until it has proven itself, a voice must stand above what it
let pass a moment ago. A first sign makes our sound soft (`Duck`), and that puts the question: what
leaks goes down with it, a voice does not.

Pure: no clock, no device. Time is counted in blocks of 20 ms.
"""

from __future__ import annotations

import math
from collections import deque
from enum import Enum
from typing import Final, Literal

import numpy as np

from voiced.core.gate import first_of_run
from voiced.events import BLOCK_FRAMES, SILENCE_DBFS, Samples

# How far under the loudest of our own sound AEC3 leaves its residual, once it has settled: 20 dB
# and more in rooms with a gain of 6 dB, 28 in most. Arrays promise 30 to 40 dB under the echo.
_RESIDUAL_DB: Final = {"cancel": -28.0, "hardware": -20.0}
_LOUDEST_COUPLING_DB: Final = 8.0  # a microphone in the loudspeaker's box; with a peak on it
_OVER_LEAK_DB: Final = 10.0  # ducking takes 14 dB from an echo
_LEAK_BLOCKS: Final = 50
_DUCKED_DB: Final = 3.0  # our sound has gone down by more since the sign: nothing is learnt of it

# From sound to echo: up to 200 ms on the way, 10 in the canceller, and then the room's decay.
_ECHO_BLOCKS: Final = 12
_DECAY_DB: Final = 2.0  # a block: 60 dB in 0.6 s
_SOUNDING_DBFS: Final = -50.0  # below that, what was played tells nothing about an echo

_QUIET_DBFS: Final = -50.0
_OVER_FLOOR_DB: Final = 12.0
_FLOOR_BLOCKS: Final = 100  # 2 s: our own sound pauses within that, and so does a talker
_FLOOR_SMOOTHING: Final = 0.25

# All of sound. In its life's first 2.4 s AEC3 let it pass in every third room, and once more in
# every twentieth after 4 to 4.4 s.
_SETTLING_BLOCKS: Final = 250
_PROOF_BLOCKS: Final = 50  # of each run
_CLEAN_BLOCKS: Final = 15

_SIGN_OF: Final = (2, 3)  # so many of the last so many blocks
_DOUBTFUL_SIGN_OF: Final = (4, 5)
# A leak of AEC3 lasts 80 to 160 ms. Certain is what is far over the bar (on average 15 dB for four
# blocks), or lasts longer; of 270 answers none was interrupted, with 4 of 5 blocks twelve were.
_CERTAIN_DB: Final = 60.0  # the sum of the excess over the bar of the last blocks
_CERTAIN_BLOCKS: Final = 8
_EXCESS_LIMIT_DB: Final = 25.0
_LASTING_OF: Final = (9, 12)
_UNDUCKED_OF: Final = (5, 6)
_OVER_ECHO_OF: Final = (4, 5)
_SIGN_HOLD_BLOCKS: Final = 25  # longer than ducking takes to be heard: 120 ms of device, and echo
_ONSET_BLOCKS: Final = 15
_ONSET_GAP_BLOCKS: Final = 5  # a voice may sink into the echo for 80 ms between syllables
_MEMORY: Final = (1 << _ONSET_BLOCKS + 1) - 1

_COUPLING_BLOCKS: Final = 400
_MEASURED_BLOCKS: Final = 75
_COUPLING_PERCENTILE: Final = 95
_ECHO_PERCENTILE: Final = 90
_OVER_COUPLING_DB: Final = 5.0
_REVIEW_BLOCKS: Final = 25
_LOST_BLOCKS: Final = 10  # of a voice, before it was confirmed

_ROOM_DB: Final = 10.0
"""Under a talker: where the echo is louder than that, a bar over it would miss too much."""
_ROOM_AGAIN_DB: Final = 12.0
_ASSUMED_TALKER_DBFS: Final = -35.0
"""Somebody 2 m away from a USB microphone at its default volume; on the soft side, so that in doubt
the device would rather not listen than interrupt itself."""
_TALKER_BLOCKS: Final = 250
_TALKER_PERCENTILE: Final = 80


class Sign(Enum):
    NONE = "none"
    POSSIBLE = "possible"
    """Somebody may be speaking."""
    CONFIRMED = "confirmed"
    """Somebody speaks."""


class BargeIn:
    """Hears who speaks over us: `push` each block from our first sound to the end of its echo.

    `mode`: the echo is taken out by our canceller ("cancel") or by the microphone's own
    ("hardware"), or it is not ("gate").
    """

    def __init__(self, mode: Literal["cancel", "hardware", "gate"]) -> None:
        self.onset_blocks = 0
        """With CONFIRMED: how many blocks before this one the voice began, at most 15."""
        self.usable = True
        """False: our own sound is too loud at the microphone to hear anybody over it ("gate")."""
        self.why = ""
        """Why it is not usable, with the levels."""
        self._cancelled = mode != "gate"
        self._of_array = mode == "hardware"
        self._echo_db = _RESIDUAL_DB.get(mode, _LOUDEST_COUPLING_DB)
        """By how much what is heard of us may lie over the loudest that was played lately."""
        self._floor = deque[float](maxlen=_FLOOR_BLOCKS)
        self._smoothed = _QUIET_DBFS
        self._couplings = deque[float](maxlen=_COUPLING_BLOCKS)
        self._echoes = deque[float](maxlen=_COUPLING_BLOCKS)
        self._unsettled = deque[tuple[float, float]](maxlen=_LOST_BLOCKS)
        self._talker = deque[float](maxlen=_TALKER_BLOCKS)
        self._blocks = 0
        self._settling = 0
        self._settled_blocks = _PROOF_BLOCKS if self._of_array else _SETTLING_BLOCKS
        self.reset()

    def __repr__(self) -> str:
        return f"<BargeIn {'proven' if self._proven else 'unproven'} usable={self.usable}>"

    def reset(self) -> None:
        """Our sound begins anew after a silence. What was learnt of the room stays."""
        self._played = deque([SILENCE_DBFS] * _ECHO_BLOCKS, maxlen=_ECHO_BLOCKS)
        self._loudest_dbfs = SILENCE_DBFS
        self._signs = 0  # bit n: n blocks ago was over the bar
        self._over = 0  # bit n: ... and over what leaked lately
        self._excess = deque[float](maxlen=_CERTAIN_BLOCKS)
        self._hold = 0
        self._leaks = deque[float](maxlen=_LEAK_BLOCKS)
        self._before_sign_dbfs = SILENCE_DBFS
        self._begin()

    def _begin(self) -> None:
        # What the array has learnt it keeps: its reference is its own, and never jumps.
        array_is_proven = self._of_array and self._settling >= self._settled_blocks
        self._proven = not self._cancelled or array_is_proven
        self._sounding = self._clean = 0
        self._silent = False

    def talker(self, level_dbfs: float) -> None:
        """The level of a block of speech that was heard while we were silent."""
        self._talker.append(level_dbfs)

    def push(self, samples: Samples, played: Samples | None, *, aligning: bool = False) -> Sign:
        """Judge the next 20 ms: int16 of shape (480,) each; `played` None while only its echo is
        left. `aligning`: our canceller does not yet take it out. Raises ValueError for another
        shape."""
        if samples.shape != (BLOCK_FRAMES,):
            raise ValueError(f"a block has shape {samples.shape}; it must be ({BLOCK_FRAMES},)")
        level_dbfs = _level_dbfs(samples)
        sounding = self._expect(played)
        floor_dbfs = self._learn_floor(level_dbfs)
        low = max(_QUIET_DBFS, floor_dbfs + _OVER_FLOOR_DB, self._loudest_dbfs + self._echo_db)
        bar = max(low, self._over_leaks_dbfs(sounding, level_dbfs))
        self._sounding += sounding
        if aligning:
            return Sign.NONE
        if not self._proven:
            self._weigh(sounding, level_dbfs > low)
        self._signs = (self._signs << 1 | (level_dbfs > low)) & _MEMORY
        self._over = (self._over << 1 | (level_dbfs > bar)) & _MEMORY
        self._excess.append(min(max(level_dbfs - low, 0.0), _EXCESS_LIMIT_DB))
        confirmed = _most(self._over, _UNDUCKED_OF) or (self._proven and self._certain())
        if not self._cancelled:
            self._measure(sounding, level_dbfs, confirmed)
        if confirmed:
            self.onset_blocks = first_of_run(self._signs, _ONSET_GAP_BLOCKS)
            return Sign.CONFIRMED
        self._hold = max(0, self._hold - 1)
        if _most(self._signs, _SIGN_OF if self._proven else _DOUBTFUL_SIGN_OF):
            if not self._hold:
                self._before_sign_dbfs = self._loudest_dbfs
            self._hold = _SIGN_HOLD_BLOCKS
        return Sign.POSSIBLE if self._hold else Sign.NONE

    def _expect(self, played: Samples | None) -> bool:
        """Take what was played; True if it is enough for an echo to be expected."""
        level_dbfs = SILENCE_DBFS if played is None else _level_dbfs(played)
        if played is None:
            self._silent = True
        elif self._silent:  # another run of the device: its position may have jumped
            self._begin()
        self._played.append(level_dbfs)
        self._loudest_dbfs = max(*self._played, self._loudest_dbfs - _DECAY_DB)
        return level_dbfs > _SOUNDING_DBFS

    def _learn_floor(self, level_dbfs: float) -> float:
        self._smoothed += _FLOOR_SMOOTHING * (level_dbfs - self._smoothed)
        self._floor.append(self._smoothed)
        return min(self._floor)

    def _certain(self) -> bool:
        if not self._cancelled:  # an echo doesn't leak
            return _most(self._signs, _OVER_ECHO_OF)
        if not self._signs & 1:
            return False
        return sum(self._excess) >= _CERTAIN_DB or _most(self._signs, _LASTING_OF)

    def _over_leaks_dbfs(self, sounding: bool, level_dbfs: float) -> float:
        """Louder than what the canceller let pass lately, as our sound is now."""
        ducked = self._hold and self._loudest_dbfs < self._before_sign_dbfs - _DUCKED_DB
        if sounding and not ducked:
            self._leaks.append(level_dbfs - self._loudest_dbfs)
        leak_db = max(self._leaks, default=_LOUDEST_COUPLING_DB)
        return self._loudest_dbfs + leak_db + _OVER_LEAK_DB

    def _weigh(self, sounding: bool, sign: bool) -> None:
        """Whether the canceller has proven itself: of our sound nothing was heard for a while."""
        self._clean = 0 if sign else self._clean + sounding
        self._settling += sounding
        self._proven = (
            self._settling >= self._settled_blocks
            and self._sounding >= _PROOF_BLOCKS
            and self._clean >= _CLEAN_BLOCKS
        )

    def _measure(self, sounding: bool, level_dbfs: float, confirmed: bool) -> None:
        """Learn the coupling and the echo's level from blocks in which nobody was heard."""
        if confirmed:
            self._unsettled.clear()
            return
        if len(self._unsettled) == _LOST_BLOCKS:
            coupling_db, echo_dbfs = self._unsettled.popleft()
            self._couplings.append(coupling_db)
            self._echoes.append(echo_dbfs)
        if sounding:
            self._unsettled.append((level_dbfs - self._loudest_dbfs, level_dbfs))
        self._blocks += 1
        if self._blocks % _REVIEW_BLOCKS == 0 and len(self._couplings) >= _MEASURED_BLOCKS:
            self._review()

    def _review(self) -> None:
        highest = float(np.percentile(self._couplings, _COUPLING_PERCENTILE))
        self._echo_db = highest + _OVER_COUPLING_DB
        echo_dbfs = float(np.percentile(self._echoes, _ECHO_PERCENTILE))
        heard = len(self._talker) >= _MEASURED_BLOCKS
        talker_dbfs = (
            float(np.percentile(self._talker, _TALKER_PERCENTILE))
            if heard
            else _ASSUMED_TALKER_DBFS
        )
        self.usable = talker_dbfs - echo_dbfs >= (_ROOM_DB if self.usable else _ROOM_AGAIN_DB)
        self.why = (
            ""
            if self.usable
            else f"its own sound is heard at {echo_dbfs:.0f} dBFS, less than {_ROOM_DB:.0f} dB "
            f"below a talker's {talker_dbfs:.0f} ({'heard' if heard else 'assumed'})"
        )


def _level_dbfs(samples: Samples) -> float:
    """RMS without a constant offset, 0 dBFS = full scale."""
    sound = samples.astype(np.float32)
    sound -= sound.mean()
    power = float(sound @ sound) / (len(sound) * 32_768.0**2)
    return max(SILENCE_DBFS, 10 * math.log10(power)) if power > 0 else SILENCE_DBFS


def _most(flags: int, of: tuple[int, int]) -> bool:
    """True if bit 0 and enough of the last so many bits are set."""
    enough, last = of
    return bool(flags & 1) and (flags & (1 << last) - 1).bit_count() >= enough
