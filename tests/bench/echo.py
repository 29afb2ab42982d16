"""Does it hear itself, and does it hear who speaks over it: `python -m tests.bench.echo`.

The real canceller and the real detector in simulated rooms (`rooms`), block by block and in a loop:
what the detector asks for (ducking) is heard 120 ms later. What the loudspeaker says and what
people say over it are recordings of people. Before each answer the device's position is off by up
to 3 ms another way, and the microphone's clock runs up to 100 ppm fast or slow.

Rooms, seeds and people differ from those the detector was tuned on (`--tuning` takes those).
`--all` prints the misses by gain, delay, level and kind of noise.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from tests.bench import noises
from tests.bench.rooms import Room, Samples, answer, as_blocks, drifted
from tests.bench.voices import ACTIVE_DBFS, Recording
from voiced.core.echo import Interjection, Sign
from voiced.core.gate import BLOCK_MS, BLOCK_SAMPLES, RATE_HZ
from voiced.edge.echo import Canceller

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
    seed: int
    far_dbfs: float
    ppm: float
    when: tuple[int, int] | None = None
    over_db: float = 0.0


@dataclass
class Outcome:
    """`latencies_ms` from the first syllable of what was caught; `echo_dbfs` and `left_dbfs`: the
    echo before and after the canceller, from 2 s of sound on."""

    scene: Scene
    usable: bool = True
    interrupted_itself: int = 0
    first_answer: bool = False
    caught: int = 0
    missed: int = 0
    latencies_ms: list[float] = field(default_factory=list)
    signs: int = 0
    said: list[tuple[int, int, int]] = field(default_factory=list)
    loss_db: float = 0.0
    canceller_ms: float = 0.0  # of CPU, per second


def scenes(count: int, first_seed: int) -> list[Scene]:
    """Rooms drawn from the whole range of the promise."""
    drawn = []
    for seed in range(first_seed, first_seed + count):
        rng = np.random.default_rng(seed)
        room = Room(
            seed=seed,
            gain_db=float(rng.choice((-20, -12, -6, 0, 3, 6))),
            delay_ms=float(np.exp(rng.uniform(np.log(5), np.log(200)))),
            rt60_s=float(rng.uniform(0.2, 0.6)),
            direct_db=float(rng.uniform(0, 12)),
            bend=float(rng.choice((0, 0.7, 1.5))),
            noise_dbfs=float(rng.choice((-75, -65, -55))),
            noise=str(rng.choice(list(noises.STATIONARY))),
        )
        ppm = float(rng.uniform(-100, 100))
        drawn.append(Scene(room, seed, float(rng.choice((-20, -26))), ppm))
    return drawn


def syllable(recording: Recording) -> int:
    """The block in which the first syllable begins: three blocks within 10 dB of the level."""
    loud = recording.level_db > -10
    runs = np.flatnonzero(loud[:-2] & loud[1:-1] & loud[2:])
    return int(runs[0]) if len(runs) else recording.first


def play(scene: Scene, mode: Mode, people: Sequence[Recording]) -> Outcome:
    """Three answers in a row; in each that somebody interjects they do so once."""
    rng = np.random.default_rng((scene.seed, 1))
    room, outcome = scene.room, Outcome(scene)
    order = rng.permutation(len(people))
    device = [people[i] for i in order[: len(people) // 2] if len(people[i].samples) > RATE_HZ]
    others = [people[i] for i in order[len(people) // 2 :]]

    total = LEAD_BLOCKS + ANSWERS * (ANSWER_BLOCKS + PAUSE_BLOCKS)
    played, emitted, near = (np.zeros(total * BLOCK_SAMPLES) for _ in range(3))
    sounding = np.zeros(total, bool)
    begins = [LEAD_BLOCKS + i * (ANSWER_BLOCKS + PAUSE_BLOCKS) for i in range(ANSWERS)]
    said: list[tuple[int, int, int]] = []  # first sample of its first syllable, block before, after
    for i, begin in enumerate(begins):
        sound = answer(device, ANSWER_BLOCKS * BLOCK_MS / 1000, scene.far_dbfs, scene.seed + i)
        _put(played, sound, begin * BLOCK_SAMPLES)
        off = round(rng.uniform(-JITTER_S, JITTER_S) * RATE_HZ)
        _put(emitted, drifted(sound, scene.ppm), begin * BLOCK_SAMPLES + off)
        sounding[begin : begin + ANSWER_BLOCKS] = True
        if scene.when:
            recording = others[rng.integers(len(others))]
            sample = round((begin + rng.uniform(*scene.when)) * BLOCK_SAMPLES)
            words = room.said(recording)[recording.first * BLOCK_SAMPLES :][: 2 * RATE_HZ]
            _put(near, words, sample)
            onset = sample + (syllable(recording) - recording.first) * BLOCK_SAMPLES
            end = (sample + len(words)) // BLOCK_SAMPLES + AFTERWARDS_BLOCKS
            said.append((onset, sample // BLOCK_SAMPLES, end))

    echo_dbfs = scene.far_dbfs + room.gain_db
    level_dbfs = TALKER_DBFS if mode == "gate" else echo_dbfs
    near *= 10 ** ((level_dbfs + scene.over_db - ACTIVE_DBFS) / 20)
    noise = getattr(noises, room.noise)(len(near), scene.seed) * 10 ** (room.noise_dbfs / 20)
    path = room.path(emitted[: begins[1] * BLOCK_SAMPLES])
    detector = Interjection(mode)
    canceller = Canceller() if mode == "cancel" else None
    asked, gain, last, at_once = [False] * DUCK_BLOCKS, 1.0, -TAIL_BLOCKS - 1, True
    confirmed: list[int] = []
    power, cpu_s = np.zeros((total, 2)), 0.0
    for i in range(total):
        block = slice(i * BLOCK_SAMPLES, (i + 1) * BLOCK_SAMPLES)
        wanted = DUCKED if asked.pop(0) else 1.0
        glide = np.linspace(gain, wanted, BLOCK_SAMPLES)
        gain = wanted
        echo = path.push(emitted[block] * glide)
        if mode == "hardware":
            echo = echo * 10 ** (HARDWARE_DB / 20)
        heard = as_blocks(echo + near[block] + noise[block])[0]
        ours = as_blocks(played[block] * glide)[0] if sounding[i] else None
        clean = heard
        if canceller:
            began = time.process_time()
            clean = canceller.process(heard, ours)
            cpu_s += time.process_time() - began
        power[i] = np.mean((heard / 32768.0) ** 2), np.mean((clean / 32768.0) ** 2)
        if ours is not None and i - last > TAIL_BLOCKS:
            detector.reset()
        last = i if ours is not None else last
        sign = Sign.NONE
        if i - last <= TAIL_BLOCKS:
            sign = detector.push(clean, ours)
        if sign is Sign.CONFIRMED and detector.usable:
            confirmed.append(i)
        asked.append(sign is not Sign.NONE and detector.usable)
        outcome.signs += asked[-1] and not asked[-2]
    outcome.usable = detector.usable
    outcome.said = said
    mine = [any(begin <= i <= end for _, begin, end in said) for i in confirmed]
    outcome.interrupted_itself = mine.count(False)
    for onset, begin, end in said:
        found = [i for i in confirmed if begin <= i <= end]
        if found:
            outcome.caught += 1
            outcome.latencies_ms.append(((found[0] + 1) * BLOCK_SAMPLES - onset) / RATE_HZ * 1000)
        else:
            outcome.missed += 1
    settled = power[begins[0] + 100 : begins[0] + ANSWER_BLOCKS]
    before, after = np.mean(settled, axis=0)
    outcome.loss_db = 10 * np.log10(before / (after + 1e-12))
    outcome.canceller_ms = 1000 * cpu_s / (ANSWERS * ANSWER_BLOCKS * BLOCK_MS / 1000)
    if canceller:
        canceller.close()
    return outcome


def _put(into: Samples, sound: Samples, at: int) -> None:
    end = min(len(into), at + len(sound))
    into[at:end] += sound[: end - at]
