import builtins
import logging
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from voiced.edge.echo import Alignment, Canceller, CancellerMissing
from voiced.events import BLOCK_FRAMES, WIRE_RATE, Samples

DELAY = 226


def sound(blocks: int, seed: int, rms: float = 2_000.0) -> Samples:
    """Noise that swells and fades as speech does, int16 of shape (blocks, 480)."""
    rng = np.random.default_rng(seed)
    swell = np.repeat(rng.uniform(0.3, 1.5, blocks), BLOCK_FRAMES)
    made = rng.standard_normal(blocks * BLOCK_FRAMES) * swell * rms
    return np.clip(made, -32768, 32767).astype(np.int16).reshape(blocks, BLOCK_FRAMES)


def late(played: Samples, samples: int, gain: float = 0.5) -> Samples:
    """Its echo in a room without walls."""
    heard = np.concatenate((np.zeros(samples), played.ravel() * gain))[: played.size]
    return heard.astype(np.int16).reshape(played.shape)


def rms(samples: Samples) -> float:
    return float(np.sqrt(np.mean(samples.astype(float) ** 2)))


@pytest.fixture
def canceller() -> Iterator[Canceller]:
    pytest.importorskip("livekit.rtc.apm")
    canceller = Canceller()
    yield canceller
    assert canceller.failures == 0


def test_our_own_sound_is_taken_out(canceller: Canceller) -> None:
    played = sound(250, 1)
    heard = late(played, 960)
    clean = np.stack([canceller.process(h, p) for h, p in zip(heard, played, strict=True)])
    assert rms(clean[200:]) < rms(heard[200:]) * 10 ** (-20 / 20)
    assert rms(clean[:10]) > rms(heard[:10]) / 2  # until it is aligned, as it was heard


class Recorder:
    """A module that takes nothing out and remembers what it was given."""

    def __init__(self) -> None:
        self.reference, self.heard = bytearray(), bytearray()

    def process_reverse_stream(self, frame: Any) -> None:
        self.reference += frame.data

    def process_stream(self, frame: Any) -> None:
        self.heard += frame.data


def test_the_module_hears_each_answer_s_echo_as_late_as_the_first_one_s(
    canceller: Canceller,
) -> None:
    lags = []
    for seed, delay in ((1, 960), (2, 1010), (3, 930)):
        canceller._module = module = Recorder()
        played = sound(60, seed)
        for heard, emitted in zip(late(played, delay), played, strict=True):
            canceller.process(heard, emitted)
        assert len(module.heard) == 2 * played.size  # from the first block on
        spectrum = np.fft.rfft(np.frombuffer(module.heard, np.int16), 1 << 16)
        spectrum *= np.fft.rfft(np.frombuffer(module.reference, np.int16), 1 << 16).conj()
        lags.append(int(np.argmax(np.fft.irfft(spectrum))))
        for _ in range(60):
            canceller.process(np.zeros(BLOCK_FRAMES, np.int16), None)
    assert lags == [lags[0]] * 3
    assert lags[0] >= 120  # AEC3 wants to have the reference 5 ms before


def test_without_our_own_sound_everything_passes_unchanged_and_as_late_as_it_says(
    canceller: Canceller,
) -> None:
    heard = sound(20, 3)
    clean = np.concatenate([canceller.process(block, None) for block in heard])
    assert np.array_equal(clean[DELAY:], heard.ravel()[:-DELAY])
    assert not clean[:DELAY].any()
    assert canceller.delay_ms == pytest.approx(1000 * DELAY / WIRE_RATE)


def test_in_use_it_is_as_late_as_at_rest(canceller: Canceller) -> None:
    """Somebody speaks after an answer: no syllable twice, and none lost, when it goes to rest."""
    for block in sound(60, 4):
        canceller.process(np.zeros(BLOCK_FRAMES, np.int16), block)
    heard = sound(40, 5)
    clean = np.concatenate([canceller.process(block, None) for block in heard]).astype(float)
    spectrum = np.fft.rfft(clean, 1 << 16) * np.fft.rfft(heard.ravel(), 1 << 16).conj()
    spectrum[: round(500 * (1 << 16) / WIRE_RATE)] = 0  # below that it is later
    assert abs(int(np.argmax(np.fft.irfft(spectrum))) - DELAY) <= 2
    # It takes away what lies above 10 kHz, a sixth of white noise.
    assert rms(clean[2_000:]) == pytest.approx(rms(heard.ravel()[2_000:]), rel=0.25)


def test_silence_stays_silence(canceller: Canceller) -> None:
    silence = np.zeros(BLOCK_FRAMES, np.int16)
    for played in [None] * 5 + [silence] * 60 + [None] * 60:
        assert not canceller.process(silence, played).any()


def flags(canceller: Canceller, played: Samples | None, blocks: int = 1) -> list[bool]:
    """`aligning` after each of so many blocks, `played` over and over."""
    told = []
    for i in range(blocks):
        block = None if played is None else played[i % len(played)]
        canceller.process(np.zeros(BLOCK_FRAMES, np.int16), block)
        told.append(canceller.aligning)
    return told


def test_it_says_when_our_sound_is_in_what_it_gives(canceller: Canceller) -> None:
    def takes_out(delay: int, seed: int) -> list[bool]:
        """Whether each block of a run was given as it was heard, as `aligning` says it."""
        played = sound(60, seed)
        told, before = [], np.zeros(BLOCK_FRAMES + DELAY, np.int16)
        for heard, block in zip(late(played, delay), played, strict=True):
            before = np.concatenate((before[-DELAY:], heard))
            clean = canceller.process(heard, block)
            beginning = slice(0, DELAY)  # of the block in which it is found, this much
            as_heard = np.array_equal(clean[beginning], before[:BLOCK_FRAMES][beginning])
            assert as_heard == canceller.aligning
            told.append(canceller.aligning)
        assert flags(canceller, None, 60)[-1] is False
        return told

    assert takes_out(960, 30) == [True] * 25 + [False] * 35
    assert takes_out(1_000, 31) == [True] * 15 + [False] * 45


def test_without_our_sound_it_has_nothing_to_align(canceller: Canceller) -> None:
    assert not any(flags(canceller, None, 60))


def test_a_run_too_short_to_be_found_stays_in_what_it_gives_until_its_echo_is_gone(
    canceller: Canceller,
) -> None:
    assert all(flags(canceller, sound(10, 32)))
    hole = flags(canceller, None, 60)
    assert all(hole[:13])  # 200 ms on the way, and what the room adds
    assert not any(hole[50:])


def test_a_hole_in_an_aligned_run_is_aligned_and_the_run_after_it_is_anew(
    canceller: Canceller,
) -> None:
    assert not flags(canceller, sound(40, 33), 40)[-1]
    assert not any(flags(canceller, None, 5))
    assert flags(canceller, sound(40, 34), 10) == [True] * 10


def test_what_can_not_be_aligned_is_taken_out_as_it_was(canceller: Canceller) -> None:
    assert flags(canceller, sound(60, 35, rms=5.0), 60) == [True] * 50 + [False] * 10


class Broken:
    def process_reverse_stream(self, frame: Any) -> None:
        raise RuntimeError("bad handle")


def test_a_failing_module_gives_silence_is_counted_and_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pytest.importorskip("livekit.rtc.apm")
    canceller = Canceller()
    canceller._module = Broken()
    played = sound(40, 7)
    with caplog.at_level(logging.INFO):
        clean = [canceller.process(block, block) for block in played]
    assert not clean[-1].any()
    assert canceller.failures >= 2
    assert len(caplog.records) == 1
    for _ in range(60):
        canceller.process(played[0], None)
    assert canceller.process(played[0], None).any()  # our sound is gone: heard again


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("livekit"):
            raise ModuleNotFoundError(f"No module named {name!r}")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(CancellerMissing, match="No module named 'livekit"):
        Canceller()


def test_who_does_not_cancel_does_not_load_it() -> None:
    code = "import sys, voiced.edge.echo; sys.exit('livekit' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_loading_using_and_leaving_it_is_quiet() -> None:
    pytest.importorskip("livekit.rtc.apm")
    code = (
        "import numpy as np; from voiced.edge.echo import Canceller; c = Canceller(); "
        "b = np.ones(480, np.int16); [c.process(b, b) for _ in range(60)]"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], check=False, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("moved", [-100, -3, 0, 41, 130])
def test_a_room_is_found_again_to_the_sample(moved: int) -> None:
    alignment = Alignment()
    first, second = sound(25, 8), sound(15, 9)
    assert alignment.find(list(zip(late(first, 2_000), first, strict=True)))
    before = alignment.shift
    assert alignment.find(list(zip(late(second, 2_000 + moved), second, strict=True)))
    assert alignment.shift - before == moved


def test_a_slow_drift_is_followed() -> None:
    alignment = Alignment()
    first = sound(25, 10)
    assert alignment.find(list(zip(late(first, 2_000), first, strict=True)))
    before = alignment.shift
    for i in range(6):
        more = sound(25, 11 + i)
        for heard, played in zip(late(more, 2_001 + i), more, strict=True):
            alignment.listen(heard, played)
    assert alignment.shift - before == 6


def test_too_little_sound_is_waited_for_but_not_for_ever() -> None:
    alignment = Alignment()
    faint = sound(60, 12, rms=5.0)
    run = list(zip(faint, faint, strict=True))
    assert not alignment.find(run[:49])
    assert alignment.find(run[:50])
    assert alignment.shift == 0
