"""The soak's own instruments, each shown something good and something broken."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import random
import signal
import time
from collections.abc import Awaitable, Callable
from types import SimpleNamespace as Namespace
from typing import Any

import alsaaudio
import numpy as np
import pytest

from tests.app.test_first_word import words
from tests.bench.figures import APPEND, DELTA, Samples
from tests.soak import judge, pairs, sabotage
from tests.soak.judge import Due, Frame
from tests.soak.proxy import Proxy
from tests.soak.scenes import SCENES
from tests.soak.table import FaultRow, Invariant, as_json, table
from tests.soak.unit import Lights, growth
from tests.systemd.inject import sitecustomize as inject
from voiced.core import channels
from voiced.core.faults import FAULTS
from voiced.edge import pcm
from voiced.edge.pcm import DeviceError
from voiced.sim.stand import LIGHT_PINS
from voiced.sim.wav import to_rate

RATE, WIRE = 48_000, 24_000


class Recording:
    """An ear that recorded this from time 0 on."""

    def __init__(self, samples: Samples) -> None:
        self._samples = samples
        self.gaps: list[tuple[int, float]] = []
        self.outages: list[tuple[int, int]] = []

    def index_at(self, at: float) -> int:
        return max(0, round(at * RATE))

    def snapshot(self, start: int = 0, stop: int | None = None) -> Samples:
        return self._samples[start:stop]


def room(seconds: float) -> Samples:
    noise = 58 * np.random.default_rng(3).standard_normal(round(seconds * RATE))
    return np.rint(noise).astype(np.int16)


def at_second(sound: Samples, seconds: float, whole_s: float) -> Samples:
    mixed = np.zeros(round(whole_s * RATE), np.int16)
    start = round(seconds * RATE)
    mixed[start : start + len(sound)] = sound
    return mixed


# --- words ---------------------------------------------------------------------------------


def sent_of(recording: Samples) -> Samples:
    return to_rate(recording, RATE, WIRE)


BROKEN: dict[str, Callable[[Samples], Samples]] = {
    "a gap": lambda sent: np.delete(sent, slice(40_000, 42_000)),
    "the first words": lambda sent: sent[36_000:],
    "everything": lambda sent: sent[:0],
    "sent twice": lambda sent: np.concatenate((sent, sent[24_000:])),
    "old blocks in the middle": lambda sent: np.insert(sent, 40_000, sent[26_000:28_000]),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_words_lost_or_doubled_are_seen(broken: str) -> None:
    recording = room(4.0) + at_second(words(2.0, 5), 1.0, 4.0)
    tap: Any = Recording(recording)
    sent = sent_of(recording[: 7 * RATE // 2])
    assert judge.compare(sent, tap, 1.0, 3.0) == judge.Words(0.0, 0.0)
    found = judge.compare(BROKEN[broken](sent), tap, 1.0, 3.0)
    assert found
    assert found.lost_ms > 30 or found.doubled_ms > 0


@pytest.mark.parametrize("early_ms", [0.3, 0.5, 1.0, 2.0, 5.0, 10.0])
def test_the_last_milliseconds_of_words_that_are_dated_early_are_not_doubled(
    early_ms: float,
) -> None:
    for seed in range(8):
        recording = room(6.0)
        recording[RATE : 3 * RATE] += words(2.0, seed)
        tap: Any = Recording(recording)
        found = judge.compare(sent_of(recording), tap, 1.0, 3.0 - early_ms / 1000)
        assert found == judge.Words(0.0, 0.0)


def test_a_recording_with_a_gap_judges_nothing() -> None:
    tap: Any = Recording(room(4.0))
    tap.gaps.append((RATE, 0.1))
    assert judge.compare(sent_of(room(4.0)), tap, 1.0, 3.0) is None


def test_words_that_were_spoken_with_a_hole_judge_nothing() -> None:
    recording = room(4.0)
    recording[2 * RATE : 2 * RATE + RATE // 50] = 0
    tap: Any = Recording(recording)
    assert judge.compare(sent_of(recording), tap, 1.0, 3.0) is None


# --- sound ---------------------------------------------------------------------------------


def answer_frames(
    answer: Samples, number: str = "r", created_at: float = 0.9, sent_at: float = 0.95
) -> list[Frame]:
    delta = base64.b64encode(answer.tobytes()).decode()
    event = {"type": DELTA, "response_id": number, "delta": delta}
    created = {"type": "response.created", "response": {"id": number}}
    return [Frame(created_at, "server", created, 1), Frame(sent_at, "server", event, 1)]


def test_sound_outside_of_an_answer_is_not_due_and_another_answer_is_strange() -> None:
    mine, other = to_rate(words(1.0, 7), RATE, WIRE), words(1.0, 8)
    frames, spans = answer_frames(mine), [Due(0.0, 1.0, 2.0)]

    def judged(sound: Samples) -> tuple[float, float]:
        ear: Any = Recording(sound)
        return judge.stale_ms(ear, frames, spans, 0.0, 4.0)

    right = at_second(to_rate(mine, WIRE, RATE), 1.0, 4.0)
    assert judged(right) == (0.0, 0.0)
    begin, end = round(1.21 * RATE), round(1.41 * RATE)
    for shift in range(0, RATE // 5, RATE // 50):
        holed = right.copy()
        holed[begin + shift : end + shift] = 0
        assert judged(holed) == (0.0, 0.0)
    late, _ = judged(right + at_second(other[: RATE // 10], 2.5, 4.0))
    assert late == pytest.approx(100, abs=5)
    _, strange = judged(at_second(other, 1.0, 4.0))
    assert strange >= 600


def test_the_rest_of_an_answer_that_is_over_is_strange() -> None:
    dead, mine = (to_rate(words(1.0, seed), RATE, WIRE) for seed in (7, 8))
    frames = [*answer_frames(dead, "dead", 0.2, 2.0), *answer_frames(mine, "mine", 1.9, 2.1)]
    both = to_rate(np.concatenate((dead, mine)), WIRE, RATE)

    def strange_ms(sound: Samples) -> float:
        ear: Any = Recording(at_second(sound, 2.0, 5.0))
        spans = [Due(1.5, 2.0, 2.0 + len(sound) / RATE)]
        return judge.stale_ms(ear, frames, spans, 1.5, 5.0)[1]

    assert strange_ms(to_rate(mine, WIRE, RATE)) == 0
    assert strange_ms(both) >= 600


@pytest.mark.parametrize("pause_ms", [5, 20, 60, 200])
def test_an_answer_with_a_pause_is_not_another_one(pause_ms: int) -> None:
    mine, other = (to_rate(words(2.0, seed), RATE, WIRE) for seed in (8, 9))
    pause = np.zeros(RATE * pause_ms // 1000, np.int16)
    for at in range(RATE // 4, RATE, RATE // 20):
        for answer, strange in ((mine, False), (other, True)):
            heard = np.insert(to_rate(answer, WIRE, RATE), at, pause)
            ear: Any = Recording(at_second(heard, 2.0, 6.0))
            spans = [Due(1.5, 2.0, 2.0 + len(heard) / RATE)]
            _, found_ms = judge.stale_ms(
                ear, answer_frames(mine, "mine", 1.9, 2.1), spans, 1.5, 6.0
            )
            assert (found_ms > 1000) == strange
            assert strange or found_ms == 0


def test_an_answer_whose_recording_has_a_gap_is_not_judged() -> None:
    mine, other = to_rate(words(1.0, 7), RATE, WIRE), words(1.0, 8)
    ear: Any = Recording(at_second(other, 1.0, 4.0))
    ear.gaps.append((round(1.5 * RATE), 0.1))
    assert judge.stale_ms(ear, answer_frames(mine), [Due(0.0, 1.0, 2.0)], 0.0, 4.0)[1] == 0


def test_answers_that_sound_are_counted() -> None:
    sound = to_rate(words(0.2, 7), RATE, WIRE)
    old, one, other = (answer_frames(sound, f"at {at}", at, at + 1) for at in (0.5, 1.5, 3.0))
    silent = answer_frames(sound, "silent", 2.0)[:1]  # failed, and asked for anew
    assert judge.count_answers([*old, *silent, *one], since=1.0) == 1
    assert judge.count_answers([*old, *one, *other], since=1.0) == 2
    assert judge.count_answers(old, since=1.0) == 0


def test_spans_follow_the_daemons_events() -> None:
    def turn(at: float, before: str, now: str) -> dict[str, Any]:
        return {"event": "turn", "t": at, "before": before, "turn": now}

    notes = [
        turn(1.0, "thinking", "speaking"),
        {"event": "flushed", "t": 2.1, "dropped_at": 2.0},
        turn(2.1, "speaking", "listening"),
        turn(3.0, "thinking", "speaking"),
    ]
    assert judge.due(notes, 0.5, 9.0) == [Due(0.5, 1.0, 2.0), Due(2.0, 3.0, 9.0)]


# --- light -----------------------------------------------------------------------------------


def test_audio_in_the_dark_is_seen() -> None:
    lights = Lights()
    lights.pin(LIGHT_PINS[0], 1.0, 10.0)
    lights.pin(LIGHT_PINS[0], 0.0, 20.0)

    def append(at: float, level: int) -> Frame:
        audio = base64.b64encode(np.full(480, level, "<i2").tobytes()).decode()
        return Frame(at, "client", {"type": APPEND, "audio": audio}, 1)

    lit, dark, zeros = append(15.0, 5), append(21.0, 5), append(21.0, 0)
    assert judge.dark_appends([lit, zeros, append(20.1, 5)], lights) == 0
    assert judge.dark_appends([lit, dark, zeros], lights) == 1


# --- growth, table -------------------------------------------------------------------------


def test_growth_is_told_from_the_quarters_of_a_life() -> None:
    warming_up = [float(n) for n in range(30)]
    assert growth(warming_up + [30.0] * 90) == 0
    assert growth(warming_up + [30.0] * 60 + [35.0] * 30) == 5
    assert growth(warming_up[:19]) is None


def test_what_is_late_lost_or_complained_of_is_red() -> None:
    good = FaultRow("good", 3.0, 2, 2, {"no-dns"}, 2.9)
    bad = [
        FaultRow("late", 3.0, 1, 1, worst_s=3.1),
        FaultRow("lost", 3.0, 2, 1, worst_s=1.0),
        FaultRow("told", 3.0, 1, 1, worst_s=1.0, complaints=["it broke"]),
    ]
    over, unjudged = Invariant("over", 1.0, 0.0), Invariant("unjudged", None, 0.0)
    assert good.ok
    assert not any(row.ok for row in (*bad, over, unjudged))
    lines = table([good, *bad], [over, unjudged]).splitlines()
    assert [line.split()[0] for line in lines if "!!" in line] == [
        *("late", "lost", "told"),
        *("over", "unjudged"),
    ]
    told = json.loads(as_json([good], [over], seed=1))
    assert told["version"] == 1
    assert told["faults"][0]["states"] == ["no-dns"]


def test_names_are_one_of_a_kind_and_sabotages_name_what_there_is() -> None:
    names = [scene.name for scene in SCENES]
    assert len(set(names)) == len(names)
    assert not any("," in name for name in names)
    for each in sabotage.SABOTAGES.values():
        assert set(each.scenes) <= set(names)


def test_faults_from_within_have_a_signal_each() -> None:
    numbers = [sabotage.signal_of(fault) for fault in sabotage.WITHIN]
    assert len(set(numbers)) == len(numbers)
    assert all(signal.SIGRTMIN < number <= signal.SIGRTMAX for number in numbers)
    for fault, name in zip(inject.SABOTAGE, sabotage.WITHIN, strict=False):
        assert name is fault  # these have the container's numbers


def test_a_bad_card_is_bad_until_there_is_a_good_one(monkeypatch: pytest.MonkeyPatch) -> None:
    capture = Namespace(_open_pcm=pcm.open_capture)
    monkeypatch.setattr(inject, "_the", lambda name: capture)
    monkeypatch.setattr(inject, "_raise_in", lambda name, exception: None)
    monkeypatch.setattr(channels, "SILENT_S", channels.SILENT_S)
    monkeypatch.setattr(inject._Card, "read", inject._Card.read)
    for begin in (sabotage.silence_the_card, sabotage.halve_the_cards_rate):
        begin()
        card: Any = capture._open_pcm("card", 8_000, 1, "S16_LE")
        assert card.read()[0] == 160
        sabotage.give_a_good_card()
        assert capture._open_pcm is pcm.open_capture
        with pytest.raises(alsaaudio.ALSAAudioError):
            card.read()
    sabotage.hold_the_card()
    with pytest.raises(DeviceError) as refused:
        capture._open_pcm("card", 8_000, 1, "S16_LE")
    assert refused.value.fault == "microphone-busy"


def halves_of(seed: int, *, of_link: bool, lacking: str = "") -> list[pairs.Half]:
    stage: Any = Namespace(rng=random.Random(seed), lacks=lambda needs: needs and needs == lacking)
    return pairs._choose(stage, of_link=of_link)


def test_pairs_are_of_two_things_and_the_links_half_begins_first() -> None:
    for seed in range(200):
        one, other = halves_of(seed, of_link=True)
        assert one.of in ("link", "server")
        assert other.of not in ("link", "server")
        both = halves_of(seed, of_link=False, lacking="disk")
        assert both[0].of != both[1].of
        assert not {"link", "server", "disk"} & {half.of for half in both}
    assert {str(half) for half in pairs.HALVES} - {"server", "socket"} <= set(FAULTS)


# --- the proxy -------------------------------------------------------------------------------


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(4096):
            writer.write(data)
            await writer.drain()
    writer.close()


def through_proxy(check: Callable[[Proxy], Awaitable[None]]) -> None:
    async def play() -> None:
        server = await asyncio.start_server(_echo, "127.0.0.1")
        proxy = Proxy("127.0.0.1", server.sockets[0].getsockname()[:2])
        await proxy.start()
        try:
            async with asyncio.timeout(10):
                await check(proxy)
        finally:
            await proxy.close()
            server.close()
            await asyncio.sleep(0.05)  # the ends of connections that were broken off

    asyncio.run(play())


async def _dial(proxy: Proxy) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", proxy.port)


async def _said_back(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    writer.write(b"hello")
    try:
        return await asyncio.wait_for(reader.readexactly(5), 0.3) == b"hello"
    except TimeoutError:
        return False


def test_the_proxy_forwards_and_delays() -> None:
    async def check(proxy: Proxy) -> None:
        reader, writer = await _dial(proxy)
        assert await _said_back(reader, writer)
        proxy.weather.delay_s = 0.1
        began = time.monotonic()
        assert await _said_back(reader, writer)
        assert time.monotonic() - began >= 0.2
        writer.close()

    through_proxy(check)


def test_the_proxy_resets_and_refuses_and_comes_back() -> None:
    async def check(proxy: Proxy) -> None:
        reader, writer = await _dial(proxy)
        assert await _said_back(reader, writer)
        proxy.reset()
        with pytest.raises(ConnectionResetError):
            await reader.readexactly(1)
        writer.transport.abort()
        await proxy.refuse()
        with pytest.raises(ConnectionRefusedError):
            await _dial(proxy)
        await proxy.start()
        reader, writer = await _dial(proxy)
        assert await _said_back(reader, writer)
        writer.close()

    through_proxy(check)


@pytest.mark.parametrize("trouble", ["vanish", "swallow", "unanswered"])
def test_what_the_proxy_holds_back_does_not_arrive(trouble: str) -> None:
    async def check(proxy: Proxy) -> None:
        proxy.unanswered = trouble == "unanswered"
        reader, writer = await _dial(proxy)
        if trouble != "unanswered":
            assert await _said_back(reader, writer)
        if trouble == "vanish":
            proxy.vanish()
        if trouble == "swallow":
            proxy.swallow()
        assert not await _said_back(reader, writer)
        writer.transport.abort()
        proxy.clear()
        reader, writer = await _dial(proxy)
        assert await _said_back(reader, writer)
        writer.close()

    through_proxy(check)
