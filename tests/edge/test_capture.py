"""The microphone's thread, and the whole way through libasound."""

import threading
import time
from collections.abc import Callable
from typing import Any

import alsaaudio
import numpy as np

from voiced.config import Microphone
from voiced.edge.capture import HANDOFF_BLOCKS, LEISURELY_BLOCKS, Capture
from voiced.edge.pcm import DeviceError
from voiced.events import BLOCK_FRAMES, DeviceBack, DeviceFault, MicrophoneBlock
from voiced.sim.rig import Mouth, Rig

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
    """A capture PCM that returns what a list says: bytes, or an exception to raise."""

    def __init__(self, reads: list[Any]) -> None:
        self.reads = reads
        self.closed = False

    def read(self) -> tuple[int, bytes]:
        if not self.reads:
            threading.Event().wait(0.005)
            return 0, b""
        each = self.reads.pop(0)
        if isinstance(each, Exception):
            raise each
        return (each, b"") if isinstance(each, int) else (len(each) // 2, each)

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


def test_muted_nothing_but_zeros_leaves_the_thread() -> None:
    made, _ = capture(muted=True)
    made.accept(pcm16(ramp(1, 5)), 0.0)
    (block,) = made.take()
    assert block.muted
    assert not block.samples.any()


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


def test_close_is_safe_early_and_twice() -> None:
    made, _ = capture(open_pcm=lambda *_: Script([]))
    made.close()
    made.close()


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
