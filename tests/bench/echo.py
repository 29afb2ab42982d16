"""Does it hear itself, and does it hear who speaks over it: `python -m tests.bench.echo`.

The real canceller and the real detector in simulated rooms (`rooms`), block by block and in a loop:
what the detector asks for (ducking) is heard 120 ms later. What the loudspeaker says and what
people say over it are recordings of people. Before each answer the device's position is off by up
to 3 ms another way, and the microphone's clock runs up to 100 ppm fast or slow.

Rooms, seeds and people differ from those the detector was tuned on (`--tuning` takes those).
`--rows` prints what the whole bench shows of it.
"""

from __future__ import annotations

import argparse
import time
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from tests.bench import noises
from tests.bench.rooms import Room, Samples, answer, as_blocks, drifted
from tests.bench.table import Row, table
from tests.bench.voices import ACTIVE_DBFS, JUDGING, TUNING, Recording, recordings
from voiced.core.barge_in import BargeIn, Sign
from voiced.edge.echo import Canceller
from voiced.events import BLOCK_FRAMES, BLOCK_MS, WIRE_RATE

Mode = Literal["cancel", "hardware", "gate"]

ANSWERS, ANSWER_BLOCKS, PAUSE_BLOCKS, LEAD_BLOCKS = 3, 300, 75, 50
TAIL_BLOCKS = 10
DUCK_BLOCKS = 6  # of sound that the device has taken already
DUCKED = 0.2
JITTER_S = 0.003
HARDWARE_DB = -35.0
TALKER_DBFS = -30.0  # of a talker where nothing is cancelled
AFTERWARDS_BLOCKS = 15  # an interjection still sounds in the room, and is found late

EARLY, LATER = (5, 100), (160, 250)
"""When somebody interjects: blocks after the beginning of an answer."""


@dataclass(frozen=True)
class Scene:
    """A room, what is said in it, and when somebody interjects: in blocks of an answer; None for
    nobody, at `over_db` over the echo (in mode gate: over the talker's normal level)."""

    room: Room
    far_dbfs: float
    ppm: float
    when: tuple[int, int] | None = None
    over_db: float = 0.0


@dataclass
class Outcome:
    """What came of a scene. `latencies_ms` are from the first syllable of what was caught;
    `clear_ms` from where it first was as loud as the echo for three blocks, if it ever was."""

    scene: Scene
    usable: bool = True
    interrupted_itself: int = 0
    caught: int = 0
    missed: int = 0
    latencies_ms: list[float] = field(default_factory=list)
    clear_ms: list[float] = field(default_factory=list)
    signs: int = 0
    loss_db: float = 0.0
    canceller_ms: float = 0.0  # of CPU, per second of sound


def scenes(count: int, first_seed: int) -> list[Scene]:
    """Rooms drawn from the whole range of the promise."""
    drawn = []
    for seed in range(first_seed, first_seed + count):
        rng = np.random.default_rng(seed)
        room = Room(
            seed=seed,
            gain_db=float(rng.choice((-20, -12, -6, 0, 3, 6))),
            delay_ms=float(np.exp(rng.uniform(np.log(8), np.log(200)))),
            rt60_s=float(rng.uniform(0.2, 0.6)),
            direct_db=float(rng.uniform(0, 12)),
            bend=float(rng.choice((0, 0.7, 1.5))),
            noise_dbfs=float(rng.choice((-75, -65, -55))),
            noise=str(rng.choice(list(noises.STATIONARY))),
        )
        ppm = float(rng.uniform(-100, 100))
        drawn.append(Scene(room, float(rng.choice((-20, -26))), ppm))
    return drawn


def syllable(recording: Recording) -> int:
    """The block in which the first syllable begins: three blocks within 10 dB of the level."""
    loud = recording.level_db > -10
    runs = np.flatnonzero(loud[:-2] & loud[1:-1] & loud[2:])
    return int(runs[0]) if len(runs) else recording.first


def play(scene: Scene, mode: Mode, people: Sequence[Recording]) -> Outcome:
    """Three answers in a row; if somebody interjects, then once in the second and the third."""
    rng = np.random.default_rng((scene.room.seed, 1))
    room, outcome = scene.room, Outcome(scene)
    order = rng.permutation(len(people))
    device = [people[i] for i in order[: len(people) // 2] if len(people[i].samples) > WIRE_RATE]
    others = [people[i] for i in order[len(people) // 2 :]]

    total = LEAD_BLOCKS + ANSWERS * (ANSWER_BLOCKS + PAUSE_BLOCKS)
    played, emitted, near = (np.zeros(total * BLOCK_FRAMES) for _ in range(3))
    sounding = np.zeros(total, bool)
    begins = [LEAD_BLOCKS + i * (ANSWER_BLOCKS + PAUSE_BLOCKS) for i in range(ANSWERS)]
    said: list[tuple[int, int, int]] = []  # first sample of its first syllable, block before, after
    for i, begin in enumerate(begins):
        sound = answer(device, ANSWER_BLOCKS * BLOCK_MS / 1000, scene.far_dbfs, room.seed + i)
        _put(played, sound, begin * BLOCK_FRAMES)
        off = round(rng.uniform(-JITTER_S, JITTER_S) * WIRE_RATE)
        _put(emitted, drifted(sound, scene.ppm), begin * BLOCK_FRAMES + off)
        sounding[begin : begin + ANSWER_BLOCKS] = True
        if scene.when and i:
            recording = others[rng.integers(len(others))]
            sample = round((begin + rng.uniform(*scene.when)) * BLOCK_FRAMES)
            words = room.said(recording)[recording.first * BLOCK_FRAMES :][: 2 * WIRE_RATE]
            _put(near, words, sample)
            onset = sample + (syllable(recording) - recording.first) * BLOCK_FRAMES
            end = (sample + len(words)) // BLOCK_FRAMES + AFTERWARDS_BLOCKS
            said.append((onset, sample // BLOCK_FRAMES, end))

    echo_dbfs = scene.far_dbfs + room.gain_db
    level_dbfs = TALKER_DBFS if mode == "gate" else echo_dbfs
    near *= 10 ** ((level_dbfs + scene.over_db - ACTIVE_DBFS) / 20)
    talks: list[float] = []
    noise = room.background(len(near))
    if mode == "gate":  # it has heard them before
        words = np.concatenate([room.said(each) for each in others[:8]])
        for block in as_blocks(words * 10 ** ((TALKER_DBFS - ACTIVE_DBFS) / 20)):
            level = 10 * np.log10(_power(block / 32768.0))
            if level > TALKER_DBFS - 15:
                talks.append(level)
    path = room.path(emitted[: begins[1] * BLOCK_FRAMES])
    detector = BargeIn(mode)
    for level in talks:
        detector.talker(level)
    canceller = Canceller() if mode == "cancel" else None
    asked, gain, last = [False] * DUCK_BLOCKS, 1.0, -TAIL_BLOCKS - 1
    confirmed: list[int] = []
    power, cpu_s = np.zeros((total, 4)), 0.0  # heard, cleaned, the talker, the echo
    for i in range(total):
        block = slice(i * BLOCK_FRAMES, (i + 1) * BLOCK_FRAMES)
        wanted = DUCKED if asked.pop(0) else 1.0
        glide = np.linspace(gain, wanted, BLOCK_FRAMES)
        gain = wanted
        echo = path.push(emitted[block] * glide)
        if mode == "hardware":
            echo = echo * 10 ** (HARDWARE_DB / 20)
        heard = as_blocks(echo + near[block] + noise[block])[0]
        ours = as_blocks(played[block] * glide)[0] if sounding[i] else None
        clean, aligning = heard, False
        if canceller:
            began = time.process_time()
            clean = canceller.process(heard, ours)
            cpu_s += time.process_time() - began
            aligning = canceller.aligning
        power[i] = [_power(each) for each in (heard / 32768.0, clean / 32768.0, near[block], echo)]
        if ours is not None and i - last > TAIL_BLOCKS:
            detector.reset()
        last = i if ours is not None else last
        sign = Sign.NONE
        if i - last <= TAIL_BLOCKS:
            sign = detector.push(clean, ours, aligning=aligning)
        if sign is Sign.CONFIRMED and detector.usable:
            confirmed.append(i)
        asked.append(sign is not Sign.NONE and detector.usable)
        outcome.signs += asked[-1] and not asked[-2]
    outcome.usable = detector.usable
    mine = [any(begin <= i <= end for _, begin, end in said) for i in confirmed]
    outcome.interrupted_itself = mine.count(False)
    for onset, begin, end in said:
        found = [i for i in confirmed if begin <= i <= end]
        if found:
            outcome.caught += 1
            at = (found[0] + 1) * BLOCK_FRAMES
            outcome.latencies_ms.append((at - onset) / WIRE_RATE * 1000)
            louder = power[begin:end, 2] > power[begin:end, 3]
            clear = np.flatnonzero(louder[:-2] & louder[1:-1] & louder[2:])
            if len(clear):
                outcome.clear_ms.append((at - (begin + clear[0]) * BLOCK_FRAMES) / WIRE_RATE * 1000)
        else:
            outcome.missed += 1
    before, after, *_ = np.mean(power[begins[0] + 100 : begins[0] + ANSWER_BLOCKS], axis=0)
    outcome.loss_db = 10 * np.log10(before / after)
    outcome.canceller_ms = 1000 * cpu_s / (ANSWERS * ANSWER_BLOCKS * BLOCK_MS / 1000)
    return outcome


def _power(sound: Samples) -> float:
    return float(np.mean(sound**2)) + 1e-12


def _put(into: Samples, sound: Samples, at: int) -> None:
    end = min(len(into), at + len(sound))
    into[at:end] += sound[: end - at]


# --- the figures -------------------------------------------------------------------------------

_FIRST_SEED = {"tuning": 30_000, "judging": 60_000}


def _outcomes(chosen: Sequence[Scene], mode: Mode, people: Sequence[Recording]) -> list[Outcome]:
    return [play(scene, mode, people) for scene in chosen]


def _interrupted_itself(outcomes: Sequence[Outcome], mode: Mode) -> Row:
    """How often in each scene with nobody in it; where it is usable at all."""
    found = [float(each.interrupted_itself) for each in outcomes]
    return Row(f"it interrupts itself, {mode}", found, (0, 0), "x")


def _missed(outcomes: Sequence[Outcome], mode: Mode) -> Row:
    on = [each for each in outcomes if each.usable]
    spoken = sum(each.caught + each.missed for each in on)
    share = [100 * sum(each.missed for each in on) / spoken] if spoken else []
    return Row(f"interjections missed, {mode}", share, (5, None), "%")


def _within_reach(chosen: Sequence[Scene]) -> list[Scene]:
    """The same rooms with a loudspeaker so far away that mode gate can be on."""
    return [replace(s, room=replace(s.room, gain_db=-20.0), far_dbfs=-26.0) for s in chosen]


def rows(rooms: int = 16, *, tuning: bool = False) -> list[Row]:
    """The figures of the promise from so many rooms (and 2/5 as many for the other modes).

    Raises RecordingsMissing if the recordings are not installed.
    """
    people = recordings(TUNING if tuning else JUDGING, 14, 8)
    chosen = scenes(rooms, _FIRST_SEED["tuning" if tuning else "judging"])
    fewer = chosen[: max(1, rooms * 2 // 5)]
    alone = _outcomes(chosen, "cancel", people)
    over = _outcomes([replace(s, when=LATER) for s in chosen], "cancel", people)
    near = _within_reach(fewer)
    gated = _outcomes([replace(s, when=LATER) for s in near], "gate", people)
    return [
        _interrupted_itself(alone, "cancel"),
        _interrupted_itself(_outcomes(fewer, "hardware", people), "hardware"),
        _interrupted_itself(_outcomes(fewer + near, "gate", people), "gate"),
        _missed(over, "cancel"),
        _missed(gated, "gate"),
        Row(
            "speech over the answer -> confirmed, cancel",
            [ms for each in over for ms in each.latencies_ms],
            (160, 260),
        ),
        Row("echo taken out after 2 s", [each.loss_db for each in alone], unit="dB"),
        Row("canceller, CPU a second of sound", [each.canceller_ms for each in alone]),
    ]


def matrix(rooms: int, *, tuning: bool) -> str:
    """Modes by levels and moments, and in mode cancel by the loudspeaker's gain."""
    people = recordings(TUNING if tuning else JUDGING, 14, 8)
    chosen = scenes(rooms, _FIRST_SEED["tuning" if tuning else "judging"])
    lines = [
        f"{'':34} {'on':>5} {'itself':>6} {'missed':>9} {'median':>6} {'p95':>5} {'worst':>5} ms"
    ]

    def add(name: str, outcomes: Sequence[Outcome]) -> None:
        on = [each for each in outcomes if each.usable]
        ms = [ms for each in on for ms in each.latencies_ms] or [float("nan")]
        missed, caught = sum(o.missed for o in on), sum(o.caught for o in on)
        itself = sum(o.interrupted_itself > 0 for o in outcomes)
        lines.append(
            f"{name:34} {len(on):2}/{len(outcomes):2} {itself:6} {missed:4}/{missed + caught:4} "
            f"{np.median(ms):6.0f} {np.percentile(ms, 95):5.0f} {max(ms):5.0f}"
        )

    for mode in typing.get_args(Mode):
        rooms_for = chosen + _within_reach(chosen) if mode == "gate" else chosen
        add(f"{mode}, nobody speaks", _outcomes(rooms_for, mode, people))
        for over_db in (-6.0, 0.0, 6.0):
            spoken = [replace(s, when=LATER, over_db=over_db) for s in rooms_for]
            outcomes = _outcomes(spoken, mode, people)
            add(f"{mode}, {over_db:+.0f} dB", outcomes)
            if mode == "cancel" and not over_db:
                for gain_db in sorted({s.room.gain_db for s in chosen}):
                    some = [o for o in outcomes if o.scene.room.gain_db == gain_db]
                    add(f"  with a gain of {gain_db:+.0f} dB", some)
        early = [replace(s, when=EARLY) for s in rooms_for]
        add(f"{mode}, 0 dB, in its first 2 s", _outcomes(early, mode, people))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rooms", type=int, default=60, help="how many (5 s of CPU each)")
    parser.add_argument("--tuning", action="store_true", help="rooms and people it was tuned on")
    parser.add_argument("--rows", action="store_true", help="the bench's own rows instead")
    wanted = parser.parse_args()
    if wanted.rows:
        print(table(rows(tuning=wanted.tuning)))
    else:
        print(matrix(wanted.rooms, tuning=wanted.tuning))


if __name__ == "__main__":
    main()
