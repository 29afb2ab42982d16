"""The energy gate: which microphone blocks hold speech, over a noise floor it tracks itself.

Six bands are watched separately, because a fan is loud in one of them and a voice in several. Each
band's floor is the minimum of its smoothed level over three seconds: speech, however soft, pauses
within that time and lets the minimum through; a fan does not, and becomes the floor.

Pure: no clock, no device. Time is counted in blocks of 20 ms.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from voiced.events import BLOCK_FRAMES, BLOCK_MS, SILENCE_DBFS, WIRE_RATE, Samples

GATE_PREROLL_MS: Final = 300
"""How far back a caller must be able to reach when the gate opens; bounds ``onset_blocks``."""

_FFT_SAMPLES: Final = 512
# Up to 7 kHz, since the burst that ends "left" lies above 4; from 200 Hz, above the mains hum.
_BAND_EDGES_HZ: Final = (200, 400, 700, 1200, 2200, 4000, 7000)
_LOWEST_POWER: Final = np.float32(10 ** (SILENCE_DBFS / 10) / 6)
_FULL_SCALE: Final = 32_768.0

_FLOOR_BLOCKS: Final = 150  # 3 s: longer than people speak without a gap, short enough to adapt
_FLOOR_EVERY_BLOCKS: Final = 4  # how often it is renewed once 3 s are known: it is the dear part
_FLOOR_SMOOTHING: Final = np.float32(0.25)
# In noise the minimum over 3 s lies below the mean by one standard deviation of the block levels
# (2.8 dB in the narrow bands, 0.8 in the widest, measured on white noise). Added to the minimum, so
# that the floor is the mean plus half a deviation: no noise block then scores 4, 1 in 100 scores 2.
# A hum varies less (0.2 dB) and gets the same of its own deviation, and a little to spare.
_FLOOR_BIAS_DB: Final = (4.3, 4.0, 2.8, 2.1, 1.5, 1.2)
_BIAS_PER_DEVIATION: Final = np.float32(1.5)
_LEAST_BIAS_DB: Final = np.float32(0.5)
# Over a sentence without a pause the minimum would be its softest syllables. These leave the mean
# far above it, unlike noise (1 to 3 dB, 5 at most). Then the floor rises by 2 dB a second only.
_STEADY_DB: Final = 6.0
_RISE_DB: Final = np.float32(0.16)  # in each renewal
_FLOOR_BELOW_QUIET_DB: Final = 20.0  # no band's floor sinks further below quiet_dbfs
_EXCESS_LIMIT_DB: Final = 15.0  # one whistling band must not open the gate
_SCORE_SMOOTHING: Final = 0.4

_NEPERS_PER_DB: Final = np.float32(math.log(10) / 10)  # of power

# Three of four blocks: a click of 20 ms touches two at most. Two in a row will do if the sound
# fills them: a click leaves one of their halves empty, speech none of them 15 dB under the loudest
# (12 to 20 dB made no difference on recordings of 6 people; 20 ms are saved in the median).
_OPENING_MASK: Final = 0b1111
_OPENING_BLOCKS: Final = 3
_FILLED_POWER: Final = 10**-1.5
_HALF_SAMPLES: Final = BLOCK_FRAMES // 2

# The soft end of a word sinks into the noise before it ends: at 10 dB the last block that can be
# told from noise comes 40 to 100 ms early in the median and 300 ms in 1 of 20, in a quiet room at
# its end. So the gate waits longer the less the talker stands out. More than this would keep half
# of all turns open 100 ms too long; it leaves a quarter of the pauses 100 ms short of the hangover
# taken for ends at 10 dB (before: 6 in 10), none in a quiet room.
_LEAST_EXTRA_BLOCKS: Final = 1
_MOST_EXTRA_BLOCKS: Final = 8
_CLEAR_DB: Final = 28.0  # loudest block over the floor at which nothing is hidden
_HIDDEN_BLOCKS_PER_DB: Final = 0.7
_LOUDEST_FADES_DB: Final = 0.05  # a block; the talker turns away

# A bar chosen at 8 dB more noise than speech, where 1 word in 12 stays below it; noise alone (5
# minutes each of fan, hum and pink) is above it in 1 second of 15 to 150, or never.
_FAINT_MASK: Final = (1 << 10) - 1
_FAINT_BLOCKS: Final = 4
_FAINT_SCORE: Final = 1.3

_ONSET_MASK: Final = (1 << (GATE_PREROLL_MS // BLOCK_MS + 1)) - 1
_ONSET_GAP_BLOCKS: Final = 7  # an unstressed syllable may be lost in noise for 140 ms


@dataclass(frozen=True, slots=True)
class Reading:
    """What the gate makes of one block. Levels are RMS in 200-7000 Hz, 0 dBFS = full scale.

    ``threshold_dbfs`` is for a meter and approximate: the level at which a sound with the
    spectrum of the floor would count as speech. A sound in few bands needs more.
    ``score`` is the RMS over the bands of the block's excess above the floor in dB, each 0-15: in
    noise the end of a word shows in one or two bands, which a mean would drown.
    ``speech``: this block is above the stay bar (gate open) or the open bar (gate closed).
    ``open`` includes the hangover. The block that completes the hangover reads closed.
    ``onset_blocks``: with the reading that opens the gate, how many blocks before this one the
    speech began, as far as the gate can tell, at most ``GATE_PREROLL_MS``; otherwise 0.
    ``faint``: somebody may be speaking or whispering, by a much lower bar than that for opening;
    stationary noise stays below it nearly always, a microphone that gives a constant always.
    """

    level_dbfs: float
    floor_dbfs: float
    threshold_dbfs: float
    score: float
    speech: bool
    open: bool
    onset_blocks: int
    faint: bool


class Gate:
    """Opens on speech, closes ``hangover_ms`` (rounded up to blocks) after the last of it and 20
    to 160 ms, more the less the talker stands out: what noise hides of a word is no pause.

    Opens when three of four blocks score above ``open_score`` and lie above ``quiet_dbfs``, or two
    in a row that the sound fills; stays while blocks score above ``stay_score``. Raises ValueError
    if ``hangover_ms`` is not positive or ``stay_score`` exceeds ``open_score``.
    """

    def __init__(
        self,
        *,
        hangover_ms: int,
        open_score: float = 4.0,
        stay_score: float = 1.7,
        quiet_dbfs: float = -62.0,
    ) -> None:
        if hangover_ms <= 0:
            raise ValueError(f"hangover_ms is {hangover_ms}; it must be positive")
        if stay_score > open_score:
            raise ValueError(f"stay_score {stay_score} exceeds open_score {open_score}; lower it")
        self._hangover_blocks = -(-hangover_ms // BLOCK_MS)
        self._open_score = open_score
        self._stay_score = stay_score
        self._quiet_dbfs = quiet_dbfs

        self._window = np.hanning(BLOCK_FRAMES + 1)[:-1].astype(np.float32)
        # So scaled, the one-sided power of a windowed block is its mean square, 1 = full scale.
        energy = float(np.sum(self._window**2))
        self._window *= np.float32(math.sqrt(2.0 / (_FFT_SAMPLES * energy)) / _FULL_SCALE)
        self._windowed = np.zeros(_FFT_SAMPLES, np.float32)
        bins = [round(hz * _FFT_SAMPLES / WIRE_RATE) for hz in _BAND_EDGES_HZ]
        self._bins = slice(bins[0], bins[-1])
        self._band_starts = np.array(bins[:-1]) - bins[0]
        self._bias = np.array(_FLOOR_BIAS_DB, np.float32)
        self._lowest_floor = np.float32(quiet_dbfs - _FLOOR_BELOW_QUIET_DB)
        self._minima = np.empty((len(_FLOOR_BIAS_DB), _FLOOR_BLOCKS), np.float32)
        self._smoothed = np.zeros(len(_FLOOR_BIAS_DB), np.float32)
        self.reset()

    def __repr__(self) -> str:
        return f"<Gate {'open' if self._open else 'closed'} floor={self._floor_dbfs:.0f} dBFS>"

    def reset(self) -> None:
        """Close and forget the floor: another device, or the end of a mute."""
        self._minima.fill(np.inf)
        self._blocks_learned = 0
        self._floor = np.full(len(_FLOOR_BIAS_DB), self._lowest_floor, np.float32)
        self._floor_dbfs = _dbfs(np.exp(self._floor * _NEPERS_PER_DB))
        self.close()

    def force_open(self) -> None:
        """Open now, with a fresh hangover: somebody was heard by other means. Keeps the floor."""
        self._open = True
        self._silent_blocks = 0

    def close(self) -> None:
        """Close at once and keep the floor: the turn ended, or our own sound begins."""
        self._open = False
        self._silent_blocks = 0
        self._smoothed_score = 0.0
        self._loud = 0  # bit n: n blocks ago counted towards opening
        self._voiced = 0  # bit n: n blocks ago scored above the stay bar
        self._halves = (0.0, 0.0)  # the energy of the last loud block's two halves
        self._faint = 0  # bit n: n blocks ago the smoothed score was above _FAINT_SCORE
        self._loudest_db = 0.0  # of the speech since it opened, over the floor

    def push(self, block: Samples) -> Reading:
        """Judge the next 20 ms, int16 of shape (480,) at 24 kHz. Raises ValueError otherwise."""
        if block.shape != (BLOCK_FRAMES,):
            raise ValueError(f"a block has shape {block.shape}; it must be ({BLOCK_FRAMES},)")
        power = self._band_powers(block)
        bands = np.divide(np.log(power), _NEPERS_PER_DB, dtype=np.float32)
        # A muted microphone says nothing about the room, nor does a block with a hole in it: one
        # of 17 ms made a steady noise pass for speech for the 3 s of the floor.
        if 2 * np.count_nonzero(block) >= BLOCK_FRAMES:
            self._learn_floor(bands)
        level_dbfs = max(SILENCE_DBFS, _dbfs(power))
        excess = np.minimum(np.maximum(bands - self._floor, 0.0), _EXCESS_LIMIT_DB)
        score = math.sqrt(float(excess @ excess) / excess.size)
        self._smoothed_score += _SCORE_SMOOTHING * (score - self._smoothed_score)

        # The block's own score alone would restart the hangover on an outlier of the noise, the
        # smoothed one alone would linger after the end of speech.
        above_stay = self._smoothed_score > self._stay_score and score > self._stay_score / 2
        loud = score > self._open_score and level_dbfs > self._quiet_dbfs
        self._loud = (self._loud << 1 | loud) & _OPENING_MASK
        self._voiced = (self._voiced << 1 | (score > self._stay_score)) & _ONSET_MASK
        self._faint = (self._faint << 1 | (self._smoothed_score > _FAINT_SCORE)) & _FAINT_MASK
        speech = above_stay if self._open else loud
        onset_blocks = 0
        if self._open:
            self._hold(speech, level_dbfs - self._floor_dbfs)
        elif loud and (self._filled(block) or self._loud.bit_count() >= _OPENING_BLOCKS):
            self.force_open()
            onset_blocks = first_of_run(self._voiced, _ONSET_GAP_BLOCKS)
        return Reading(
            level_dbfs=level_dbfs,
            floor_dbfs=self._floor_dbfs,
            threshold_dbfs=max(self._quiet_dbfs, self._floor_dbfs + self._open_score),
            score=score,
            speech=speech,
            open=self._open,
            onset_blocks=onset_blocks,
            faint=self._faint.bit_count() >= _FAINT_BLOCKS,
        )

    def _hold(self, speech: bool, over_floor_db: float) -> None:
        """Stay open, or close after the hangover and what the noise may have hidden."""
        if speech:
            self._silent_blocks = 0
            self._loudest_db = max(self._loudest_db - _LOUDEST_FADES_DB, over_floor_db)
            return
        self._silent_blocks += 1
        hidden = (_CLEAR_DB - self._loudest_db) * _HIDDEN_BLOCKS_PER_DB
        extra = min(
            max(_LEAST_EXTRA_BLOCKS + round(hidden), _LEAST_EXTRA_BLOCKS), _MOST_EXTRA_BLOCKS
        )
        if self._silent_blocks >= self._hangover_blocks + extra:
            self.close()

    def _filled(self, block: Samples) -> bool:
        """True if this loud block and the one before it are filled by one sound."""
        steps = np.diff(block.astype(np.float32))  # where hum from the mains doesn't count
        early, late = steps[:_HALF_SAMPLES], steps[_HALF_SAMPLES:]
        before, self._halves = self._halves, (float(early @ early), float(late @ late))
        halves = before + self._halves
        return self._loud & 0b11 == 0b11 and min(halves) > _FILLED_POWER * max(halves)

    def _band_powers(self, block: Samples) -> NDArray[np.float32]:
        """Return the mean square of each band, 1 = full scale, never 0."""
        np.multiply(block, self._window, out=self._windowed[:BLOCK_FRAMES])
        spectrum = np.fft.rfft(self._windowed)[self._bins]
        power = np.add.reduceat((spectrum * spectrum.conj()).real, self._band_starts)
        powers: NDArray[np.float32] = np.maximum(power, _LOWEST_POWER).astype(np.float32)
        return powers

    def _learn_floor(self, bands: NDArray[np.float32]) -> None:
        """Follow the minimum; of a card's first block, which may be half empty, keep nothing."""
        gain = _FLOOR_SMOOTHING if self._blocks_learned > 1 else np.float32(1.0)
        self._smoothed += gain * (bands - self._smoothed)
        slot = max(0, self._blocks_learned - 1) % _FLOOR_BLOCKS  # the second replaces the first
        self._minima[:, slot] = self._smoothed
        self._blocks_learned += 1
        trained = self._blocks_learned > _FLOOR_BLOCKS
        if trained and self._blocks_learned % _FLOOR_EVERY_BLOCKS:
            return
        minimum = self._minima.min(axis=1)
        if trained:
            spread = self._minima.mean(axis=1) - minimum
            floor = minimum + np.minimum(self._bias, _BIAS_PER_DEVIATION * spread + _LEAST_BIAS_DB)
            np.minimum(floor, self._floor + _RISE_DB, out=floor, where=spread > _STEADY_DB)
        else:
            floor = minimum + self._bias
        np.maximum(floor, self._lowest_floor, out=self._floor)
        self._floor_dbfs = _dbfs(np.exp(self._floor * _NEPERS_PER_DB))


def _dbfs(powers: NDArray[np.float32]) -> float:
    return 10.0 * math.log10(float(powers.sum()))


def first_of_run(flags: int, gap_blocks: int) -> int:
    """Return the age in blocks (bit n: n blocks ago) of the oldest set bit that is not parted from
    bit 0 by `gap_blocks` clear ones or more."""
    first = 0
    for age in range(flags.bit_length()):
        if flags >> age & 1:
            if age - first > gap_blocks:
                break
            first = age
    return first
