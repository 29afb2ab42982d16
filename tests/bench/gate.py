"""The gate on recorded people in made noise: `python -m tests.bench.gate [--tuning]`.

Everything is computed from the clean recordings: which blocks are speech, where it begins, where
it ends (`voices`). Noise is laid under them at a ratio of its RMS to the active speech level. A
fixed threshold and webrtcvad stand beside the gate, under the gate's own policy: open on three of
four blocks, the same pre-roll and hangover. `--tuning` takes the people the gate was tuned on.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import soxr
import webrtcvad
from numpy.typing import NDArray

from tests.bench import noises
from tests.bench.table import Row
from tests.bench.voices import (
    ACTIVE_DBFS,
    JUDGING,
    TUNING,
    Recording,
    Samples,
    Talker,
    recordings,
    whispered,
)
from voiced.core.gate import GATE_PREROLL_MS, Gate, Reading
from voiced.events import BLOCK_FRAMES, BLOCK_MS, WIRE_RATE

HANGOVER_MS = 600
HANGOVER = HANGOVER_MS // BLOCK_MS
PREROLL = GATE_PREROLL_MS // BLOCK_MS
SETTLED = 4_000 // BLOCK_MS
SENTENCES, WORDS = 14, 7
SNRS_DB = (20, 10, 5, 0)
SOFT_DBFS = -45.0  # a quiet talker, or one far away
NIGHT_DBFS = -65.0  # the quietest room
PAUSE_MS = HANGOVER_MS - 100

Flags = NDArray[np.bool_]
Blocks = NDArray[np.int16]

# --- what decides ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Decision:
    """For each block whether the detector was open, and how far back its opening reaches."""

    open: Flags
    reach: NDArray[np.int_]


Detector = Callable[[Blocks], Decision]


def readings(blocks: Blocks, gate_class: type[Gate] = Gate) -> list[Reading]:
    gate = gate_class(hangover_ms=HANGOVER_MS)
    return [gate.push(block) for block in blocks]


def by_gate(gate_class: type[Gate]) -> Detector:
    def decide(blocks: Blocks) -> Decision:
        told = readings(blocks, gate_class)
        onsets = np.array([r.onset_blocks for r in told])
        return Decision(np.array([r.open for r in told]), PREROLL + onsets)

    return decide


def by_threshold(threshold_dbfs: float) -> Detector:
    def decide(blocks: Blocks) -> Decision:
        power = np.mean((blocks / 32768.0) ** 2, axis=1)
        return _held(power > 10 ** (threshold_dbfs / 10))

    return decide


def by_webrtcvad(blocks: Blocks) -> Decision:
    vad = webrtcvad.Vad(3)
    at_16k = soxr.resample(blocks.ravel(), WIRE_RATE, 16_000)
    frames = np.resize(at_16k, len(blocks) * 320).reshape(-1, 320)
    return _held(np.array([vad.is_speech(frame.tobytes(), 16_000) for frame in frames]))


def _held(speech: Flags) -> Decision:
    """A plain policy for others: open on three of four, close after the hangover."""
    is_open, silent, out = False, 0, np.zeros(len(speech), bool)
    for i, loud in enumerate(speech):
        silent = 0 if loud else silent + 1
        if not is_open:
            is_open = bool(speech[max(0, i - 3) : i + 1].sum() >= 3)
        elif silent >= HANGOVER:
            is_open = False
        out[i] = is_open
    return Decision(out, np.full(len(speech), PREROLL))


# --- what is heard -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Scene:
    """A room in which things are said one after the other; `said`: (first block, recording)."""

    clean: Samples
    said: tuple[tuple[int, Recording], ...]

    @property
    def spoken(self) -> Flags:
        flags = np.zeros(len(self.clean) // BLOCK_FRAMES, bool)
        for begin, recording in self.said:
            flags[begin : begin + len(recording.spoken)] |= recording.spoken
        return flags

    def in_noise(self, noise: Samples, noise_dbfs: float, speech_dbfs: float) -> Blocks:
        """Samples as a card gives them, int16 of shape (blocks, 480)."""
        mixed = self.clean * 10 ** ((speech_dbfs - ACTIVE_DBFS) / 20)
        mixed = mixed + noise * 10 ** (noise_dbfs / 20)
        return as_blocks(mixed)


def as_blocks(samples: Samples) -> Blocks:
    whole = samples[: len(samples) // BLOCK_FRAMES * BLOCK_FRAMES]
    rounded: Blocks = np.clip(np.rint(whole * 32768), -32768, 32767).astype(np.int16)
    return rounded.reshape(-1, BLOCK_FRAMES)


def one_by_one(said: Iterable[Recording]) -> Scene:
    """5 s of nothing first, and between what is said 1.8 to 2.6 s."""
    rng = np.random.default_rng(1)
    parts, placed, at = [np.zeros(5 * WIRE_RATE)], [], 250
    for recording in said:
        placed.append((at, recording))
        gap = int(rng.integers(90, 130))
        parts += [recording.samples, np.zeros(gap * BLOCK_FRAMES)]
        at += len(recording.spoken) + gap
    return Scene(np.concatenate(parts), tuple(placed))


def joined(said: Iterable[Recording], pause_ms: int, seconds: float = 1e9) -> Scene:
    """All from the first to the last block of speech of each, with this pause in between."""
    parts, placed, at = [np.zeros(5 * WIRE_RATE)], [], 250
    pause = pause_ms // BLOCK_MS
    for r in said:
        blocks = slice(r.first, r.last + 1)
        samples = r.samples.reshape(-1, BLOCK_FRAMES)[blocks].ravel()
        placed.append((at, Recording(r.name, samples, r.spoken[blocks], r.level_db[blocks])))
        parts += [samples, np.zeros(pause * BLOCK_FRAMES)]
        at += blocks.stop - blocks.start + pause
        if at * BLOCK_MS > seconds * 1000:
            break
    return Scene(np.concatenate(parts), tuple(placed))


# --- how it did --------------------------------------------------------------------------------


@dataclass
class Score:
    """Of one detector in one condition. Times in ms; `late_ms`: closed after speech + hangover."""

    kept: float
    cut: int
    missed: int
    false_open: float
    open_ms: list[float] = field(default_factory=list)
    late_ms: list[float] = field(default_factory=list)
    split: int = 0

    def __str__(self) -> str:
        def both(values: list[float]) -> str:
            return f"{np.median(values):4.0f} {max(values):4.0f}" if values else "   -    -"

        return (
            f"{self.kept:6.2f} {self.cut:3} {self.missed:3} {self.false_open:6.2f}  "
            f"{both(self.open_ms)}  {both(self.late_ms)} {self.split:3}"
        )


def score(scene: Scene, decision: Decision, snr_db: float) -> Score:
    is_open = decision.open
    reached = is_open.copy()
    starts = np.flatnonzero(is_open & ~np.concatenate([[False], is_open[:-1]]))
    for i in starts:
        reached[max(0, i - decision.reach[i]) : i] = True
    away = np.ones(len(is_open), bool)
    result = Score(100 * float(reached[scene.spoken].mean()), 0, 0, 0.0)
    for begin, recording in scene.said:
        first, last = begin + recording.first, begin + recording.last
        end = begin + recording.end(snr_db)
        away[begin : end + HANGOVER] = False
        heard = np.flatnonzero(is_open[first : last + 1])
        result.cut += not reached[first]
        if not len(heard):
            result.missed += 1
            continue
        if not is_open[first - 1]:
            result.open_ms.append(float(heard[0] + 1) * BLOCK_MS)
        result.split += int(np.sum((starts > first + heard[0]) & (starts <= last)))
        after = is_open[end:]
        closed = int(np.argmin(after)) if not after.all() else len(after)
        result.late_ms.append(float(closed - HANGOVER) * BLOCK_MS)
    if away[SETTLED:].any():
        # An opening for speech that lasts too long is late, and that is another figure.
        by_noise = np.zeros(len(is_open), bool)
        for i in starts[away[starts]]:
            by_noise[i : i + int(np.argmin(np.append(is_open[i:], False)))] = True
        result.false_open = 100 * float((by_noise & away)[SETTLED:].sum() / away[SETTLED:].sum())
    return result


def background(kind: str, scene: Scene, others: Sequence[Recording], seed: int = 2) -> Samples:
    if kind == "babble":
        return noises.babble(len(scene.clean), seed, [r.samples for r in others])
    made = {**noises.STATIONARY, "music": noises.music}[kind]
    return made(len(scene.clean), seed)


@dataclass(frozen=True)
class Condition:
    kind: str
    snr_db: float
    scene: Scene
    blocks: Blocks

    def __str__(self) -> str:
        return f"{self.kind} {self.snr_db:g} dB"


def conditions(
    said: Sequence[Recording], others: Sequence[Recording], *more: str
) -> Iterator[Condition]:
    """`more` kinds of noise than the stationary ones."""
    scene = one_by_one(said)
    room = noises.pink(len(scene.clean), 3)
    yield Condition("quiet", 32, scene, scene.in_noise(room, ACTIVE_DBFS - 32, ACTIVE_DBFS))
    yield Condition("quiet talker", 20, scene, scene.in_noise(room, NIGHT_DBFS, SOFT_DBFS))
    whispers = one_by_one([whispered(r, i) for i, r in enumerate(said)])
    yield Condition("whisper", 20, whispers, whispers.in_noise(room, NIGHT_DBFS, SOFT_DBFS))
    for kind in (*noises.STATIONARY, *more):
        noise = background(kind, scene, others)
        for snr_db in SNRS_DB:
            blocks = scene.in_noise(noise, ACTIVE_DBFS - snr_db, ACTIVE_DBFS)
            yield Condition(kind, snr_db, scene, blocks)


def noise_alone() -> dict[str, Blocks]:
    """A minute of each, from hardly there to as loud as a talker."""
    return {
        f"{kind} {dbfs} dBFS": as_blocks(make(60 * WIRE_RATE, dbfs + 100) * 10 ** (dbfs / 20))
        for kind, make in noises.STATIONARY.items()
        for dbfs in (-60, -40, -26)
    }


def long_talk(said: Sequence[Recording], snr_db: float) -> Condition:
    """A minute without a pause."""
    scene = joined(said, 0, 65)
    noise = noises.pink(len(scene.clean), 5)
    blocks = scene.in_noise(noise, ACTIVE_DBFS - snr_db, ACTIVE_DBFS)
    return Condition("pink", snr_db, scene, blocks)


def thoughtful(said: Sequence[Recording], kind: str, snr_db: float) -> Condition:
    """Pauses for thought, all just shorter than what ends a turn."""
    scene = joined(said, PAUSE_MS)
    noise = noises.STATIONARY[kind](len(scene.clean), 6)
    blocks = scene.in_noise(noise, ACTIVE_DBFS - snr_db, ACTIVE_DBFS)
    return Condition(kind, snr_db, scene, blocks)


def noise_switching(kind: str, on: bool) -> Blocks:
    """A quiet room for 10 s, then noise for 20 (`on`), or the other way round."""
    loud = noises.STATIONARY[kind](20 * WIRE_RATE, 7) * 10 ** (-35 / 20)
    quiet = noises.pink(10 * WIRE_RATE, 8) * 10 ** (NIGHT_DBFS / 20)
    return as_blocks(np.concatenate([quiet, loud] if on else [loud, quiet]))


def knocks(length_ms: int) -> Blocks:
    """30 of them, one a second from 5 s on, as loud as a talker's loudest syllable."""
    rng = np.random.default_rng(9)
    samples = noises.pink(40 * WIRE_RATE, 10) * 10 ** (NIGHT_DBFS / 20)
    length = length_ms * WIRE_RATE // 1000
    for i in range(30):
        start = (5 + i) * WIRE_RATE + int(rng.integers(BLOCK_FRAMES))
        samples[start : start + length] += 0.3 * rng.standard_normal(length).clip(-2, 2)
    return as_blocks(samples)


def openings(is_open: Flags) -> int:
    return int(np.sum(is_open[1:] & ~is_open[:-1]))


# --- held turns: whether there is anything in them ---------------------------------------------


def unnoticed(condition: Condition, gate_class: type[Gate]) -> float:
    """% of what was said of which no block, from its begin to 100 ms after, reads `faint`."""
    faint = np.array([r.faint for r in readings(condition.blocks, gate_class)])
    noticed = [
        faint[begin + r.first : begin + r.last + 6].any() for begin, r in condition.scene.said
    ]
    return 100 - 100 * float(np.mean(noticed))


def mistaken(blocks: Blocks, gate_class: type[Gate]) -> float:
    """% of the seconds from 4 s on with a block that reads `faint`."""
    faint = np.array([r.faint for r in readings(blocks, gate_class)])[SETTLED:]
    seconds = faint[: len(faint) // 50 * 50].reshape(-1, 50)
    return 100 * float(seconds.any(axis=1).mean())


def hardly_heard(said: Sequence[Recording]) -> Iterator[Condition]:
    whispers = one_by_one([whispered(r, i) for i, r in enumerate(said)])
    room = noises.pink(len(whispers.clean), 11)
    yield Condition("whisper", 15, whispers, whispers.in_noise(room, NIGHT_DBFS, NIGHT_DBFS + 15))
    scene = one_by_one(said)
    for kind, make in noises.STATIONARY.items():
        noise = make(len(scene.clean), 12)
        blocks = scene.in_noise(noise, ACTIVE_DBFS + 5, ACTIVE_DBFS)
        yield Condition(kind, -5, scene, blocks)


# --- the figures -------------------------------------------------------------------------------


def rows(gate_class: type[Gate] = Gate) -> list[Row]:
    """The gate's figures against their goals, a value for each condition or thing said.

    Raises:
        RecordingsMissing: the packages are not installed.
    """
    said = recordings(JUDGING, SENTENCES, WORDS)
    lost = Row("gate: speech lost, quiet and to 10 dB", goal=(None, 0.5), unit="%")
    cut = Row("gate: onsets cut, quiet and to 10 dB", goal=(None, 0), unit="")
    stuck = Row("gate: open in fan, hum, pink noise to 0 dB", goal=(None, 0), unit="%")
    onset = Row("gate: onset to open, quiet", goal=(60, 250))
    quiet = Row("gate: end of speech to closed, quiet", goal=(HANGOVER_MS + 50, None))
    noisy = Row("gate: end of speech to closed, 10 dB", goal=(HANGOVER_MS + 100, None))
    split = Row(f"gate: turns split at {PAUSE_MS} ms of silence, quiet", goal=(None, 0), unit="%")
    masked = Row(f"gate: turns split at {PAUSE_MS} ms of silence, 10 dB", unit="%")
    missed = Row("gate: held turns at -5 dB or whispered, unnoticed", goal=(5, 10), unit="%")
    noise = Row("gate: held turns of noise, taken for speech", goal=(5, 10), unit="%")
    babble = Row("gate: open in babble 20 dB under the talker", unit="%")
    decide = by_gate(gate_class)
    for condition in conditions(said, _other_words(JUDGING), "babble"):
        kind, snr_db = condition.kind, condition.snr_db
        result = score(condition.scene, decide(condition.blocks), snr_db)
        if kind == "babble":
            babble.values += [result.false_open] if snr_db == 20 else []
            continue
        stuck.values.append(result.false_open)
        if snr_db < 10:
            continue
        lost.values.append(100 - result.kept)
        cut.values.append(result.cut)
        late = [HANGOVER_MS + ms for ms in result.late_ms]
        if kind == "quiet":
            onset.values += result.open_ms
            quiet.values += late
        elif snr_db == 10:
            noisy.values += late
    for blocks in noise_alone().values():
        stuck.values.append(100 * float(decide(blocks).open[SETTLED:].mean()))
        noise.values.append(mistaken(blocks, gate_class))
    for kind in noises.STATIONARY:
        for row, snr_db in ((split, 32), (masked, 10)):
            row.values.append(splits(thoughtful(said, kind, snr_db), decide))
    missed.values += [unnoticed(condition, gate_class) for condition in hardly_heard(said)]
    return [lost, cut, stuck, onset, quiet, noisy, split, masked, missed, noise, babble]


def splits(condition: Condition, decide: Detector) -> float:
    """% of the pauses between recordings in which the gate closed."""
    is_open = decide(condition.blocks).open
    said = condition.scene.said
    ends = [begin + recording.last for begin, recording in said[:-1]]
    begins = [begin + recording.first for begin, recording in said[1:]]
    closed = [not is_open[end : begin + 3].all() for end, begin in zip(ends, begins, strict=True)]
    return 100 * float(np.mean(closed))


def _other_words(talkers: tuple[Talker, ...]) -> tuple[Recording, ...]:
    """For the babble: people who are not among those talking."""
    others = TUNING if talkers is JUDGING else JUDGING
    return recordings(tuple(t for t in others if not t.sentences), SENTENCES, WORDS)


def main() -> None:
    """Print the whole matrix."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tuning", action="store_true", help="the people it was tuned on")
    parser.add_argument("--alone", action="store_true", help="no other detectors beside it")
    args = parser.parse_args()
    talkers = TUNING if args.tuning else JUDGING
    said = recordings(talkers, SENTENCES, WORDS)
    detectors: dict[str, Detector] = {"gate": by_gate(Gate)}
    if not args.alone:
        detectors |= {"-45 dBFS": by_threshold(-45), "-40 dBFS": by_threshold(-40)}
        detectors["webrtcvad"] = by_webrtcvad
    print(f"{len(said)} recordings. Kept %, onsets cut, missed, open in noise %; median and worst")
    print("ms from onset to open; the same from the end of speech and hangover to closed; splits")
    for condition in conditions(said, _other_words(talkers), "music", "babble"):
        for name, decide in detectors.items():
            result = score(condition.scene, decide(condition.blocks), condition.snr_db)
            print(f"{condition!s:18} {name:10} {result}")
    for name, decide in detectors.items():
        print(f"\n{name}")
        _print_rest(said, decide)
    print("\nheld turns, gate")
    for condition in hardly_heard(said):
        print(f"  unnoticed, {condition}: {unnoticed(condition, Gate):.1f} %")
    for room, blocks in noise_alone().items():
        print(f"  taken for speech, {room}: {mistaken(blocks, Gate):.1f} %")


def _print_rest(said: Sequence[Recording], decide: Detector) -> None:
    for room, blocks in noise_alone().items():
        share = 100 * float(decide(blocks).open[SETTLED:].mean())
        print(f"  open in {room}: {share:.1f} %")
    for snr_db in (20, 10, 5):
        talk = long_talk(said, snr_db)
        kept = score(talk.scene, decide(talk.blocks), snr_db).kept
        print(f"  of a minute without a pause kept, {talk}: {kept:.2f} %")
    for snr_db in (32, 20, 10):
        for kind in noises.STATIONARY:
            pauses = thoughtful(said, kind, snr_db)
            print(f"  split at {PAUSE_MS} ms of silence, {pauses}: {splits(pauses, decide):.1f} %")
    for kind in noises.STATIONARY:
        for on in (True, False):
            flags = decide(noise_switching(kind, on)).open[500 if on else 1000 :]
            open_s = float(flags.sum()) * BLOCK_MS / 1000
            print(f"  open after {kind} goes {'on' if on else 'off'}: {open_s:.1f} s")
    for length_ms in (5, 20, 100):
        count = openings(decide(knocks(length_ms)).open)
        print(f"  opened by 30 knocks of {length_ms} ms: {count}")


if __name__ == "__main__":
    main()
