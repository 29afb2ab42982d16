"""The microphone's thread, and the whole way through libasound."""

import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import alsaaudio
import numpy as np
import pytest

from voiced.config import Microphone
from voiced.edge import capture as captures
from voiced.edge import pcm as pcms
from voiced.edge.capture import HANDOFF_BLOCKS, LEISURELY_BLOCKS, Capture
from voiced.edge.pcm import DeviceError
from voiced.edge.resample import SampleFormat, decode
from voiced.events import (
    BLOCK_FRAMES,
    WIRE_RATE,
    ChannelLevel,
    ChannelLevels,
    DeviceBack,
    DeviceFault,
    MicrophoneBlock,
    Samples,
)
from voiced.sim.rig import Rig
from voiced.sim.streams import Mouth

NATIVE = Microphone(device="hw:1", rate=24_000)


def until(condition: Callable[[], object], timeout_s: float = 5.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it never came to that"
        threading.Event().wait(0.002)


def pcm16(values: np.ndarray) -> bytes:
    return values.astype("<i2").tobytes()


def ramp(blocks: int, start: int = 0) -> np.ndarray:
    return np.arange(start * BLOCK_FRAMES, (start + blocks) * BLOCK_FRAMES)


class Script:
    """A capture PCM that returns what a list says: bytes, an error's number, an exception to raise;
    what can be called is called on the way."""

    def __init__(self, reads: list[Any], waiting: int = 0) -> None:
        self.reads = reads
        self.waiting = waiting
        self.closed = False

    def read(self) -> tuple[int, bytes]:
        if not self.reads:
            threading.Event().wait(0.005)
            return 0, b""
        each = self.reads.pop(0)
        if callable(each):
            each()
            return self.read()
        if isinstance(each, Exception):
            raise each
        return (each, b"") if isinstance(each, int) else (len(each) // 2, each)

    def avail(self) -> int:
        return self.waiting

    def drop(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True


def capture(settings: Microphone = NATIVE, **more: Any) -> tuple[Capture, list[Any]]:
    posted: list[Any] = []
    made = Capture(settings, lambda: None, posted.append, muted=more.pop("muted", False), **more)
    made.urgent = True
    return made, posted


def blocks(of: Capture) -> np.ndarray:
    return np.concatenate([np.empty(0, np.int16), *(block.samples for block in of.take())])


def test_reads_of_any_size_become_whole_blocks_in_order() -> None:
    made, _ = capture()
    samples = ramp(5)
    for start in range(0, len(samples), 700):
        made.accept(pcm16(samples[start : start + 700]), 0.0)
    assert np.array_equal(blocks(made), samples)


def test_each_block_is_dated_by_its_own_last_sample() -> None:
    made, _ = capture()
    made.accept(pcm16(ramp(3)), 10.0)
    assert [round(block.at, 3) for block in made.take()] == [9.96, 9.98, 10.0]


def test_the_chosen_channel_arrives_and_a_list_is_mixed() -> None:
    frames = np.stack([np.full(BLOCK_FRAMES, 100 * (c + 1)) for c in range(4)], axis=1)
    one, _ = capture(Microphone(rate=24_000, channels=4, use=2))
    two, _ = capture(Microphone(rate=24_000, channels=4, use=[0, 2]))
    one.accept(pcm16(frames), 0.0)
    two.accept(pcm16(frames), 0.0)
    assert set(blocks(one)) == {300}
    assert set(blocks(two)) == {200}


def test_the_gain_takes_bits_from_a_wide_format() -> None:
    quiet = np.arange(BLOCK_FRAMES, dtype="<i4") << 12  # sixteenths of a step of 16 bits
    made, _ = capture(Microphone(rate=24_000, format="S32_LE", gain_db=20.0))
    made.accept(quiet.tobytes(), 0.0)
    assert np.abs(blocks(made) - np.arange(BLOCK_FRAMES) * 10 / 16).max() <= 0.5


def test_muted_nothing_but_zeros_leaves_the_thread() -> None:
    made, _ = capture(muted=True)
    made.accept(pcm16(ramp(1, 5)), 0.0)
    (block,) = made.take()
    assert block.muted
    assert not block.samples.any()


def test_muted_what_a_filter_still_holds_does_not_leave_either() -> None:
    made, _ = capture(Microphone(rate=44_100))
    made.accept(pcm16(np.full(882 * 4, 9_000)), 0.0)
    made.set_muted(True)
    made.accept(pcm16(np.zeros(882 * 4)), 0.1)
    assert not blocks(made).any()


def test_mute_wipes_what_waits_and_unmute_brings_nothing_back() -> None:
    made, _ = capture()
    made.accept(pcm16(ramp(2, 5)), 0.0)
    made.set_muted(True)
    assert made.take() == []
    made.accept(pcm16(ramp(1, 5)), 0.0)
    made.set_muted(False)
    assert not blocks(made).any()


def test_what_was_read_while_muted_stays_silent_in_a_batch() -> None:
    """A batch may begin muted and end unmuted: its first part was never to be heard."""
    reads: list[Any] = [pcm16(np.full(BLOCK_FRAMES, 77)) for _ in range(LEISURELY_BLOCKS)]
    script = Script(reads)
    made, _ = capture(muted=True, open_pcm=lambda *_: script)
    made.urgent = False
    read = script.read

    def unmute_halfway() -> tuple[int, bytes]:
        if len(script.reads) == LEISURELY_BLOCKS // 2:
            made.set_muted(False)
        return read()

    script.read = unmute_halfway  # type: ignore[method-assign]
    taken: list[MicrophoneBlock] = []
    made.start()
    until(lambda: taken.extend(made.take()) or len(taken) == LEISURELY_BLOCKS)
    made.close()
    heard = [bool(block.samples.any()) for block in taken]
    half = LEISURELY_BLOCKS // 2
    assert heard == [False] * (LEISURELY_BLOCKS - half) + [True] * half


def test_a_loop_that_stalls_loses_the_oldest_and_it_is_counted() -> None:
    made, _ = capture()
    made.accept(pcm16(np.repeat(np.arange(HANDOFF_BLOCKS + 3), BLOCK_FRAMES)), 0.0)
    samples = blocks(made)
    assert made.dropped_blocks == 3
    assert samples[0] == 3
    assert samples[-1] == HANDOFF_BLOCKS + 2


def test_a_lost_card_is_a_fault_and_opened_again() -> None:
    opened: list[Script] = []
    plugged = threading.Event()

    def open_pcm(*_: Any) -> Script:
        if opened and not plugged.is_set():
            raise DeviceError("microphone-lost", "hw:1: No such device")
        gone = alsaaudio.ALSAAudioError("No such device [hw:1]")
        opened.append(Script([pcm16(ramp(1)), -32, gone] if not opened else [pcm16(ramp(1))]))
        return opened[-1]

    made, posted = capture(open_pcm=open_pcm)
    made.start()
    until(lambda: any(isinstance(e, DeviceFault) for e in posted))
    assert made.xruns == 1
    assert opened[0].closed
    plugged.set()
    until(lambda: sum(isinstance(e, DeviceBack) for e in posted) == 2)
    made.close()
    assert opened[1].closed


@pytest.fixture
def reopens_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("voiced.edge.capture.REOPEN_S", 0.001)


class Sequence:
    """Opens these PCMs one after the other, and the last of them again and again; an exception is
    raised instead."""

    def __init__(self, *pcms: Any) -> None:
        self._left = list(pcms)
        self.names: list[str] = []

    def __call__(self, device: str, *_: Any) -> Any:
        self.names.append(device)
        each = self._left.pop(0) if len(self._left) > 1 else self._left[0]
        if isinstance(each, Exception):
            raise each
        return each


def faults(posted: list[Any]) -> list[str]:
    """What was told of the device, in order: names of faults, and "back"."""
    told = [e for e in posted if isinstance(e, DeviceBack | DeviceFault)]
    return [e.fault if isinstance(e, DeviceFault) else "back" for e in told]


class Paced:
    """A card with this share of its rate, in time that passes only in its reads."""

    now = 100.0
    waiting = 0

    def __init__(self, share: float, seconds: float = 1e9) -> None:
        self._took_s = 0.02 / share
        self._left = seconds / self._took_s

    def read(self) -> tuple[int, bytes]:
        self._left -= 1
        if self._left < 0:
            threading.Event().wait(0.002)
            return 0, b""
        Paced.now += self._took_s
        return BLOCK_FRAMES, bytes(2 * BLOCK_FRAMES)

    def avail(self) -> int:
        return self.waiting

    def drop(self) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.mark.usefixtures("reopens_at_once")
@pytest.mark.parametrize("share", [0.05, 0.5, 0.89])
def test_a_slow_card_is_one_fault_until_it_has_kept_its_rate(share: float) -> None:
    shares = [share, share * 0.99, share * 0.98, share]  # no two measurements are the same
    opening = Sequence(*map(Paced, shares), Paced(1.0, 12.0))
    made, posted = capture(open_pcm=opening, clock=lambda: Paced.now)
    begin = Paced.now
    made.start()
    until(lambda: len(faults(posted)) == 3)
    made.close()
    assert faults(posted) == ["back", "microphone-slow", "back"]
    slow = next(e for e in posted if isinstance(e, DeviceFault))
    assert len(opening.names) == 5
    if share > 0.05:  # below, each read is a gap
        assert slow.at - begin == pytest.approx(5.0, abs=0.2)
        assert f"{share * 24_000:.0f} frames a second, not 24000" in slow.detail
    assert posted[-1].at - slow.at > 5.0


@pytest.mark.usefixtures("reopens_at_once")
def test_a_card_that_opens_and_gives_nothing_is_one_fault_until_it_gives_something() -> None:
    fails = [Script([alsaaudio.ALSAAudioError("Input/output error [hw:1]")]) for _ in range(20)]
    opening = Sequence(Script([pcm16(ramp(1)), *fails[0].reads]), *fails, Script([pcm16(ramp(1))]))
    made, posted = capture(open_pcm=opening)
    made.start()
    until(lambda: len(faults(posted)) == 3)
    made.close()
    assert faults(posted) == ["back", "microphone-lost", "back"]
    assert len(opening.names) == 22


@pytest.mark.usefixtures("reopens_at_once")
def test_a_card_is_opened_by_its_name_each_time_and_a_busy_one_told_apart() -> None:
    name = "plughw:CARD=Array,DEV=0"
    gone = alsaaudio.ALSAAudioError(f"No such device [{name}]")
    absent = DeviceError("microphone-lost", f"{name}: No such device")
    busy = DeviceError("microphone-busy", f"{name}: Device or resource busy")
    opening = Sequence(
        Script([pcm16(ramp(1)), gone]), absent, absent, busy, busy, Script([pcm16(ramp(1))])
    )
    made, posted = capture(Microphone(device=name, rate=24_000), open_pcm=opening)
    made.start()
    until(lambda: faults(posted)[-2:] == ["microphone-busy", "back"])
    made.close()
    assert set(opening.names) == {name}
    assert faults(posted)[1:-2] == ["microphone-lost", "microphone-lost"]  # in two words


def test_a_card_that_hears_nothing_at_all_is_opened_anew_and_nobody_need_know(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(captures, "CONSTANT_S", 3)
    zeros, second = bytes(2 * BLOCK_FRAMES), 50
    deaf = Script([zeros] * second * 5)
    hears = Script([pcm16(ramp(1, index)) for index in range(second)])
    opening = Sequence(deaf, hears)
    made, posted = capture(open_pcm=opening)
    made.urgent = False
    made.start()
    until(lambda: not hears.reads)
    made.close()
    assert len(deaf.reads) == second * 2  # the last second of the three was enough
    assert faults(posted) == ["back"]


def test_a_card_that_hears_nothing_is_left_alone_while_somebody_is_to_be_heard(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(captures, "CONSTANT_S", 1)
    deaf = Script([bytes(2 * BLOCK_FRAMES)] * 200)
    made, _ = capture(open_pcm=Sequence(deaf))
    made.start()
    until(lambda: not deaf.reads)
    made.close()
    assert not deaf.reads


def test_what_was_lost_in_overruns_makes_no_slow_card() -> None:
    def away() -> None:
        Paced.now += 2.0

    card = Paced(1.0)
    reads: list[Any] = [*[lambda: None] * 50, away] * 20

    class Overrun(Paced):
        def read(self) -> tuple[int, bytes]:
            if not reads:
                return super().read()
            (step := reads.pop(0))()
            return (-32, b"") if step is away else card.read()

    made, posted = capture(open_pcm=lambda *_: Overrun(1.0, 0.0), clock=lambda: Paced.now)
    made.start()
    until(lambda: made.xruns == 20)
    made.close()
    assert faults(posted) == ["back"]


@pytest.mark.usefixtures("reopens_at_once")
def test_a_card_that_overruns_for_ever_is_lost_and_a_few_overruns_are_not() -> None:
    few = [-32, -32, pcm16(ramp(1))] * 20
    made, posted = capture(open_pcm=Sequence(Script([*few, *[-32] * 10]), Script([])))
    made.start()
    until(lambda: "microphone-lost" in faults(posted))
    made.close()
    assert made.xruns == 50
    assert len(blocks(made)) == 20 * BLOCK_FRAMES


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_ends_by_itself_has_died_and_one_that_was_closed_has_not() -> None:
    def end(*_: Any) -> None:
        raise SystemExit

    dead, _ = capture(open_pcm=end)
    closed, _ = capture(open_pcm=lambda *_: Script([]))
    assert not dead.has_died
    dead.start()
    closed.start()
    until(lambda: dead.has_died)
    assert not closed.has_died
    closed.close()
    assert not closed.has_died


def test_a_successor_opens_when_its_predecessor_has_closed_and_does_not_step_before() -> None:
    hangs, order = threading.Event(), []

    class Old(Script):
        def read(self) -> tuple[int, bytes]:
            hangs.wait(5)
            return 0, b""

        def close(self) -> None:
            order.append("closed")

    old, _ = capture(open_pcm=lambda *_: Old([]))
    new, _ = capture(open_pcm=lambda *_: order.append("opened") or Script([pcm16(ramp(1))]))
    old.start()
    new.start(after=old)
    stepped_at = new.stepped_at
    until(lambda: old._stopping.is_set())
    assert (order, new.stepped_at) == ([], stepped_at)
    hangs.set()
    until(lambda: len(order) == 2)
    new.close()
    assert order == ["closed", "opened"]


def test_close_is_safe_early_and_twice() -> None:
    made, _ = capture(open_pcm=lambda *_: Script([]))
    made.close()
    made.close()


# --- our own sound ---------------------------------------------------------------------------


class Spoke:
    """What our speaker emitted: a value from one time to another, nothing else."""

    def __init__(self, begin: float, end: float, value: int = 1_000) -> None:
        self.begin, self.end, self.value = begin, end, value

    def take(self, frames: int, at: float) -> Samples | None:
        return np.full(frames, self.value, np.int16) if self.begin < at <= self.end else None


class Subtracts:
    """A canceller as simple as can be: 10 ms late, it takes what was played away."""

    delay_ms = 10.0
    aligning = False

    def __init__(self) -> None:
        self.held = np.zeros(240, np.int16)
        self.fed: list[tuple[Samples, Samples | None]] = []

    def process(self, samples: Samples, played: Samples | None) -> Samples:
        self.fed.append((samples, played))
        rest = samples if played is None else samples - played
        both = np.concatenate((self.held, rest))
        self.held = both[BLOCK_FRAMES:]
        return both[:BLOCK_FRAMES]


def test_each_block_carries_what_we_played_in_its_own_time() -> None:
    made, _ = capture(played=Spoke(9.95, 9.985))
    made.accept(pcm16(ramp(4)), 10.0)
    carried = [None if b.played is None else set(b.played) for b in made.take()]
    assert carried == [None, {1_000}, {1_000}, None]


def test_the_canceller_gets_every_block_and_its_delay_is_in_the_date() -> None:
    canceller = Subtracts()
    made, _ = capture(played=Spoke(9.985, 10.0), canceller=canceller)
    heard = ramp(3)
    heard[BLOCK_FRAMES * 2 :] += 1_000
    made.accept(pcm16(heard), 10.0)
    taken = made.take()
    assert [round(block.at, 3) for block in taken] == [9.95, 9.97, 9.99]
    expected = np.concatenate((np.zeros(240), ramp(3)[:-240]))
    assert np.array_equal(np.concatenate([block.samples for block in taken]), expected)
    assert [played is None for _, played in canceller.fed] == [True, True, False]
    assert not any(block.aligning for block in taken)
    canceller.aligning = True
    made.accept(pcm16(ramp(1)), 10.02)
    assert [block.aligning for block in made.take()] == [True]


def test_muted_the_canceller_is_emptied_and_what_we_played_is_told() -> None:
    canceller = Subtracts()
    made, _ = capture(played=Spoke(0.0, 20.0), canceller=canceller)
    made.accept(pcm16(np.full(BLOCK_FRAMES, 9_000)), 10.0)
    made.set_muted(True)
    made.accept(pcm16(np.full(2 * BLOCK_FRAMES, 9_000)), 10.04)
    muted = made.take()
    assert len(muted) == 2
    assert not any(block.samples.any() for block in muted)
    assert all(block.muted and block.played is not None for block in muted)
    assert all(not samples.any() and played is None for samples, played in canceller.fed[1:])
    made.set_muted(False)
    made.accept(pcm16(np.full(BLOCK_FRAMES, 7_000)), 10.06)
    assert set(blocks(made)) == {0, 6_000}  # nothing from before


def test_in_a_batch_each_block_meets_what_was_played_then() -> None:
    canceller = Subtracts()
    reads = [pcm16(np.full(BLOCK_FRAMES, 1_000)) for _ in range(LEISURELY_BLOCKS)]
    made, _ = capture(
        open_pcm=lambda *_: Script(list(reads)),
        played=Spoke(99.4, 100.0),
        canceller=canceller,
        clock=lambda: 100.0,
    )
    made.urgent = False
    made.start()
    until(lambda: len(canceller.fed) == LEISURELY_BLOCKS)
    made.close()
    assert [p is None for _, p in canceller.fed] == [True] * 20 + [False] * 30


# --- levels ----------------------------------------------------------------------------------


def levels_of(
    reads: list[Any], settings: Microphone = NATIVE, number: int = 1, **more: Any
) -> list[ChannelLevels]:
    """What is posted of the levels while these are read."""
    urgent = more.pop("urgent", True)
    made, posted = capture(settings, open_pcm=lambda *_: Script(reads), **more)
    made.urgent = urgent
    for place, each in enumerate(reads):
        if isinstance(each, bool):
            reads[place] = lambda muted=each: made.set_muted(muted)
    made.start()
    until(lambda: not reads)
    until(lambda: sum(isinstance(e, ChannelLevels) for e in posted) >= number)
    made.close()
    return [event for event in posted if isinstance(event, ChannelLevels)]


def second(frames: np.ndarray, rate: int = 24_000) -> list[Any]:
    """Reads of 20 ms that are a second of these frames, over and over."""
    period = rate // 50
    whole = np.resize(frames, (rate, *frames.shape[1:]))
    return [pcm16(whole[at : at + period]) for at in range(0, rate, period)]


def sine(dbfs: float, frames: int = 24_000, offset: int = 0) -> np.ndarray:
    """Of a level in RMS, as int16 values."""
    amplitude = 32_768 * np.sqrt(2) * 10 ** (dbfs / 20)
    return np.rint(amplitude * np.sin(2 * np.pi * 500 * np.arange(frames) / 24_000)) + offset


@pytest.mark.parametrize("urgent", [True, False])
def test_once_a_second_the_levels_of_all_channels_are_told(urgent: bool) -> None:
    channels = [sine(-20.0), sine(-60.0), np.zeros(24_000), np.full(24_000, 77)]
    reads = second(np.stack(channels, axis=1)) * 3
    told = levels_of(reads, Microphone(rate=24_000, channels=4), 3, urgent=urgent)
    assert len(told) == 3
    tone, faint, silent, stuck = told[1].levels
    assert tone.rms_dbfs == pytest.approx(-20.0, abs=0.1)
    assert tone.peak_dbfs == pytest.approx(-17.0, abs=0.1)
    assert faint.rms_dbfs == pytest.approx(-60.0, abs=0.1)
    assert not tone.constant
    assert silent == ChannelLevel(-120.0, -120.0, 0, True)
    assert stuck.constant
    assert stuck.rms_dbfs == -120.0  # an offset is no sound
    assert stuck.peak_dbfs == pytest.approx(-52.6, abs=0.1)


def test_levels_are_of_the_card_before_gain_and_without_its_offset() -> None:
    settings = Microphone(rate=24_000, gain_db=20.0)
    (told,) = levels_of(second(sine(-50.0, offset=900)), settings)
    assert told.levels[0].rms_dbfs == pytest.approx(-50.0, abs=0.1)


@pytest.mark.parametrize("sample_format", pcms.FORMATS)
def test_full_scale_is_counted_in_every_format(sample_format: str) -> None:
    width = {"S16_LE": 2, "S24_LE": 4, "S24_3LE": 3, "S32_LE": 4}[sample_format]
    bits = {"S16_LE": 16, "S24_LE": 24, "S24_3LE": 24, "S32_LE": 32}[sample_format]
    top = 2 ** (bits - 1) - 1
    values = [0] * 476 + [top, -top - 1, -top, top // 2]
    read = b"".join(v.to_bytes(4, "little", signed=True)[:width] for v in values)
    settings = Microphone(rate=24_000, format=sample_format)  # type: ignore[arg-type]
    (told,) = levels_of([read] * 50, settings)
    (level,) = told.levels
    assert level.clipped == 3 * 49  # a second, but for a period
    assert level.peak_dbfs == pytest.approx(0.0, abs=0.01)


@pytest.mark.parametrize("urgent", [True, False])
def test_no_levels_while_muted_nor_of_a_second_that_was_muted_in_part(urgent: bool) -> None:
    loud, even = second(sine(-10.0)), second(np.full(24_000, 77))
    reads = [*loud[:30], True, *loud[:70], False, *even, *even]
    told = levels_of(reads, urgent=urgent)
    assert all(each.levels[0].constant for each in told)
    assert len(told) <= 2


@pytest.mark.parametrize(("begin", "expected"), [(99.5, True), (100.5, False)])
def test_levels_tell_whether_we_played_meanwhile(begin: float, expected: bool) -> None:
    more: dict[str, Any] = {"played": Spoke(begin, 101.0), "clock": lambda: 100.0}
    (told,) = levels_of(second(sine(-20.0)), **more)
    assert told.own_sound is expected
    assert told.at == 100.0


# --- through libasound -----------------------------------------------------------------------


@pytest.fixture
def tape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What is in this file, ALSA's device "tape" gives, byte by byte."""
    config = tmp_path / "asound.conf"
    config.write_text(
        "</usr/share/alsa/alsa.conf>\n"
        f'pcm.tape {{ type file slave.pcm "null" file "/dev/null" infile "{tmp_path}/tape" '
        "format raw }\n"
    )
    monkeypatch.setenv("ALSA_CONFIG_PATH", str(config))
    return tmp_path / "tape"


@pytest.mark.parametrize("sample_format", pcms.FORMATS)
def test_every_format_comes_through_libasound_bit_by_bit(
    tape: Path, sample_format: SampleFormat
) -> None:
    width = {"S16_LE": 2, "S24_LE": 4, "S24_3LE": 3, "S32_LE": 4}[sample_format]
    data = np.random.default_rng(3).integers(0, 256, 320 * 16 * width).astype(np.uint8).tobytes()
    tape.write_bytes(data * 2)
    pcm = pcms.open_capture("tape", 16_000, 16, sample_format)
    try:
        frames, read = pcm.read()
    finally:
        pcms.close(pcm)
    assert frames == 320
    assert read == data
    got = decode(read, 16, sample_format).ravel().tolist()
    shift = {"S16_LE": 0, "S24_LE": 8, "S24_3LE": 8, "S32_LE": 0}[sample_format]
    for n, value in enumerate(got):
        each = data[n * width : (n + 1) * width][: 3 if shift else width]
        assert value == int.from_bytes(each, "little", signed=True) << shift


@pytest.mark.parametrize("sample_format", pcms.FORMATS)
def test_the_channel_of_an_array_arrives_at_its_own_pitch(
    rig: Rig, sample_format: SampleFormat
) -> None:
    tones_hz = [300, 500, 700, 900, 1_100, 1_300]
    t = np.arange(8_000)[:, np.newaxis] / 16_000
    said = (8_000 * np.sin(2 * np.pi * np.array(tones_hz) * t)).astype(np.int16)
    uses: list[int | list[int]] = [4, [1, 2]]
    with Rig(mic_channels=6, mic_rate=16_000) as array:
        array.apply()
        made = []
        try:
            for use in uses:
                settings = Microphone(
                    device=array.microphone,
                    rate=16_000,
                    channels=6,
                    use=use,
                    format=sample_format,
                    gain_db=-6.0,
                )
                made.append(capture(settings))
                made[-1][0].start()
            for _, posted in made:
                until(lambda posted=posted: any(isinstance(e, DeviceBack) for e in posted))
            with Mouth(array, noise_dbfs=None) as mouth:
                ended = mouth.say(said).wait_ended(5)
                heard: list[list[MicrophoneBlock]] = [[], []]
                for (each, _), into in zip(made, heard, strict=True):
                    until(
                        lambda each=each, into=into: (
                            into.extend(each.take()) or (into and into[-1].at > ended)
                        )
                    )
        finally:
            rig.apply()
            for each, _ in made:
                each.close()
    for into, expected_hz in zip(heard, [[1_100], [500, 700]], strict=True):
        inner = [b.samples for b in into if ended - 0.4 < b.at < ended - 0.1]
        samples = np.concatenate(inner).astype(float)
        level = np.abs(np.fft.rfft(samples * np.hanning(len(samples)))) * 4 / len(samples)
        hz = np.fft.rfftfreq(len(samples), 1 / 24_000)
        for tone_hz in tones_hz:
            there = level[np.abs(hz - tone_hz) < 20].max()
            alone = 8_000 * 10 ** (-6 / 20) / len(expected_hz)
            assert there == pytest.approx(alone if tone_hz in expected_hz else 0, abs=alone / 20)


def test_what_is_said_arrives_through_libasound_sample_by_sample(rig: Rig) -> None:
    made, posted = capture(Microphone(device=rig.microphone, rate=48_000))
    made.start()
    heard: list[MicrophoneBlock] = []
    t = np.arange(48_000) / 48_000
    said = (9000 * np.sin(2 * np.pi * 500 * t) * np.hanning(48_000)).astype(np.int16)
    with Mouth(rig, noise_dbfs=None) as mouth:
        until(lambda: any(isinstance(e, DeviceBack) for e in posted))
        utterance = mouth.say(said)
        utterance.wait_ended(5)
        ended = utterance.ended
        assert ended
        until(lambda: heard.extend(made.take()) or (heard and heard[-1].at > ended + 0.1))
    made.close()
    samples = np.concatenate([block.samples for block in heard]).astype(float)
    expected = said[1::2].astype(float)  # the filter's delay is odd, counted in samples of 48 kHz
    match = np.correlate(samples, expected, "valid")
    place = int(np.argmax(match))
    assert np.abs(samples[place : place + len(expected)] - expected).max() < 20
    began = heard[0].at - 0.02 + place / 24_000
    assert utterance.started
    assert abs(began - utterance.started) < 0.06


@pytest.mark.parametrize(("waiting", "late_s"), [(0, 0.0), (2_400, 0.1), (-32, 0.0)])
def test_what_is_read_late_is_dated_when_it_was_captured(waiting: int, late_s: float) -> None:
    """The pre-roll is counted from the press: sound of before it must not pass for newer."""
    card = Script([pcm16(ramp(1))], waiting)
    made, _ = capture(open_pcm=lambda *_: card, clock=lambda: 100.0)
    made.urgent = True
    made.start()
    until(lambda: not card.reads)
    made.close()
    (block,) = made.take()
    assert block.at == pytest.approx(100.0 - late_s)


class Preempted:
    """A card in simulated time that captures at its rate all the while, and whose reader is kept
    away for 80 ms when it looks how much is left, each time that `looks` says so."""

    def __init__(self, looks: list[bool]) -> None:
        self.now = 100.0
        self.read_until = 100.0  # what was captured up to here has been read
        self.truth: list[float] = []
        self._looks = looks

    def read(self) -> tuple[int, bytes]:
        if len(self.truth) == 12:
            threading.Event().wait(0.002)
            return 0, b""
        self.read_until += 0.02
        self.now = max(self.now, self.read_until)
        self.truth.append(self.read_until)
        return BLOCK_FRAMES, pcm16(ramp(1))

    def avail(self) -> int:
        if self._looks and self._looks.pop(0):
            self.now += 0.08
        return int(round((self.now - self.read_until) * WIRE_RATE))

    def drop(self) -> None:
        pass

    def close(self) -> None:
        pass


def dates_from(card: Preempted) -> list[float]:
    made, _ = capture(open_pcm=lambda *_: card, clock=lambda: card.now)
    made.start()
    until(lambda: len(card.truth) == 12)
    made.close()
    return [block.at for block in made.take()]


def test_a_thread_that_was_kept_away_while_it_dated_a_block_dates_it_right_all_the_same() -> None:
    """Blocks dated too early would pass for some that were collected already."""
    card = Preempted([False] * 3 + [True, False] * 3)
    assert dates_from(card) == pytest.approx(card.truth, abs=1e-4)


def test_blocks_are_in_the_order_of_their_dates_however_often_a_thread_is_kept_away() -> None:
    dates = dates_from(Preempted([False] * 3 + [True] * 20))
    assert len(dates) == 12
    assert all(earlier < later for earlier, later in pairwise(dates))
