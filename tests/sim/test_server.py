"""The shell of the built-in server, met by a plain websockets client: pace, doors, faults."""

from __future__ import annotations

import array
import asyncio
import base64
import fcntl
import json
import signal
import ssl
import subprocess
import sys
import termios
import time
import wave
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import (
    ConnectionClosed,
    ConnectionClosedError,
    InvalidMessage,
    InvalidStatus,
)

from tests.certificate import self_signed
from voiced.sim.answer import AnswerError, load_answer
from voiced.sim.faults import GARBAGE, Fault, FaultError, parse_fault
from voiced.sim.server import SimOptions, SimServer
from voiced.sim.vad import Samples

DEADLINE_S = 20  # for what takes milliseconds on an idle machine
MANUAL = {"type": "realtime", "audio": {"input": {"turn_detection": None}}}


def speech(ms: int) -> Samples:
    rng = np.random.default_rng(7)
    return rng.integers(-9000, 9000, ms * 24).astype(np.int16)


def dial(server: SimServer, **options: Any) -> connect:
    return connect(
        f"{server.url}?model=gpt-realtime-2.1",
        max_size=None,
        compression=None,
        **{"proxy": None, **options},
    )


async def receive(ws: ClientConnection) -> dict[str, Any]:
    async with asyncio.timeout(DEADLINE_S):
        event: dict[str, Any] = json.loads(await ws.recv())
    return event


async def until(ws: ClientConnection, event_type: str) -> list[dict[str, Any]]:
    events = [await receive(ws)]
    while events[-1]["type"] != event_type:
        events.append(await receive(ws))
    return events


async def send(ws: ClientConnection, event_type: str, **fields: Any) -> None:
    await ws.send(json.dumps({"type": event_type, **fields}))


async def configured(ws: ClientConnection) -> None:
    await until(ws, "session.created")
    await send(ws, "session.update", session=MANUAL)
    await until(ws, "session.updated")


async def ask(ws: ClientConnection, samples: Samples) -> None:
    for start in range(0, len(samples), 2400):
        pcm = samples[start : start + 2400].tobytes()
        await send(ws, "input_audio_buffer.append", audio=base64.b64encode(pcm).decode())
    await send(ws, "input_audio_buffer.commit")
    await send(ws, "response.create")


def serving(
    test: Callable[[SimServer], Awaitable[None]], options: SimOptions | None = None
) -> SimServer:
    """Run one test coroutine against a server; gives the server back, closed."""
    server = SimServer(options)

    async def run() -> None:
        async with server:
            await test(server)

    asyncio.run(run())
    return server


def fast(**options: Any) -> SimOptions:
    return SimOptions(**{"think_ms": 0, "pace": 0, **options})


# --- turns --------------------------------------------------------------------------------------


def test_a_turn_comes_back_over_the_socket_bit_exact() -> None:
    said = speech(700)

    async def test(server: SimServer) -> None:
        async with dial(server) as ws:
            await configured(ws)
            await ask(ws, said)
            events = await until(ws, "response.done")
        pcm = [
            base64.b64decode(event["delta"])
            for event in events
            if event["type"] == "response.output_audio.delta"
        ]
        np.testing.assert_array_equal(np.frombuffer(b"".join(pcm), "<i2"), said)
        session = server.current
        np.testing.assert_array_equal(session.received_audio(), said)
        np.testing.assert_array_equal(session.user_items[0].audio, said)
        assert len(session.received("input_audio_buffer.append")) == 7
        assert server.violations == []

    serving(test, fast())


def test_deltas_are_paced_by_the_clock() -> None:
    async def test(server: SimServer) -> None:
        async with dial(server) as ws:
            await configured(ws)
            await ask(ws, speech(1000))
            await until(ws, "response.output_audio.delta")
            began_s = time.monotonic()
            await until(ws, "response.done")
        assert time.monotonic() - began_s > 0.35  # 4 more deltas, each 100 ms after the last

    serving(test, SimOptions(think_ms=0, pace=2))


def test_violations_are_collected_over_sessions() -> None:
    async def test(server: SimServer) -> None:
        for _ in range(2):
            async with dial(server) as ws:
                await until(ws, "session.created")
                await send(ws, "input_audio_buffer.append", audio="AAA=")
                await ws.send(b"binary")
                await until(ws, "error")
        texts = [each["text"] for each in server.violations]
        assert len(texts) == 4
        assert server.violations[0]["type"] == "input_audio_buffer.append"

    serving(test)


def test_injected_events_arrive_as_they_are() -> None:
    async def test(server: SimServer) -> None:
        async with dial(server) as ws:
            await until(ws, "session.created")
            server.send_raw({"type": "something.new", "n": 1})
            assert await receive(ws) == {"type": "something.new", "n": 1}
            server.send_raw("no json")
            assert await ws.recv() == "no json"

    serving(test)


# --- who may come in ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "headers", "options", "code", "reason"),
    [
        (
            "?model=gpt-realtime",
            {"Authorization": "Bearer wrong"},
            {"keys": frozenset({"right"})},
            3000,
            "invalid_request_error.invalid_api_key",
        ),
        (
            "?model=gpt-realtime",
            {},
            {"keys": frozenset({"right"})},
            3000,
            "invalid_request_error.invalid_api_key",
        ),
        (
            "?model=gpt-realtime",
            {"OpenAI-Beta": "realtime=v1"},
            {},
            4000,
            "invalid_request_error.beta_api_shape_disabled",
        ),
        ("", {}, {}, 4000, "invalid_request_error.missing_model"),
        ("?model=hal-9000", {}, {}, 4004, "invalid_request_error.model_not_found"),
        (
            "?model=gpt-realtime",
            {},
            {"has_quota": False},
            1013,
            "insufficient_quota.insufficient_quota",
        ),
    ],
)
def test_a_refusal_comes_after_the_upgrade(
    query: str, headers: dict[str, str], options: dict[str, Any], code: int, reason: str
) -> None:
    async def test(server: SimServer) -> None:
        async with connect(server.url + query, additional_headers=headers, proxy=None) as ws:
            error = (await receive(ws))["error"]
            assert f"{error['type']}.{error['code']}" == reason
            with pytest.raises(ConnectionClosed):
                await ws.recv()
            assert (ws.close_code, ws.close_reason) == (code, reason)
        assert server.current.refusal is not None

    serving(test, SimOptions(**options))


def test_the_right_key_opens() -> None:
    async def test(server: SimServer) -> None:
        async with dial(server, additional_headers={"Authorization": "Bearer right"}) as ws:
            await until(ws, "session.created")

    serving(test, SimOptions(keys=frozenset({"right"})))


def test_a_gateway_refuses_before_the_upgrade() -> None:
    async def test(server: SimServer) -> None:
        with pytest.raises(InvalidStatus) as caught:
            async with dial(server):
                pass
        assert caught.value.response.status_code == 401
        assert (server.dials, len(server.sessions)) == (1, 0)

    serving(test, SimOptions(http_status=401))


def test_another_path_is_not_found() -> None:
    async def test(server: SimServer) -> None:
        with pytest.raises(InvalidStatus) as caught:
            async with connect(server.url + "/translations?model=x", proxy=None):
                pass
        assert caught.value.response.status_code == 404

    serving(test)


def test_the_upgrade_can_be_late() -> None:
    async def test(server: SimServer) -> None:
        began_s = time.monotonic()
        async with dial(server) as ws:
            await until(ws, "session.created")
        assert time.monotonic() - began_s >= 0.2

    serving(test, SimOptions(dial_delay_s=0.2))


def test_wss_and_a_reset_under_tls(tmp_path: Path) -> None:
    cert_file, key_file = self_signed(tmp_path, "127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert_file, key_file)
    trust = ssl.create_default_context(cafile=str(cert_file))

    async def test(server: SimServer) -> None:
        assert server.url.startswith("wss://127.0.0.1:")
        async with dial(server, ssl=trust) as ws:
            await configured(ws)
            server.current.reset()
            with pytest.raises(ConnectionClosedError):
                await until(ws, "never")

    serving(test, SimOptions(ssl=context))


# --- faults -------------------------------------------------------------------------------------


def test_the_session_limit_ends_with_1001() -> None:
    async def test(server: SimServer) -> None:
        async with dial(server) as ws:
            events = await until(ws, "error")
            assert events[-1]["error"]["code"] == "session_expired"
            async for _ in ws:  # a clean end, as the library sees it
                pass
            assert ws.close_code == 1001
            assert ws.close_reason is not None
            assert "60 minutes" in ws.close_reason

    serving(test, SimOptions(max_session_s=0.2))


def test_a_close_code_on_command() -> None:
    async def test(server: SimServer) -> None:
        async with dial(server) as ws:
            await until(ws, "session.created")
            await server.fault("close:1012")
            with pytest.raises(ConnectionClosed):
                await ws.recv()
            assert ws.close_code == 1012
            await server.current.close()
            await server.wait_for(lambda: not server.current.is_open, DEADLINE_S)
        assert server.current.close_code == 1012

    serving(test)


def test_a_reset_is_a_reset() -> None:
    async def test(server: SimServer) -> None:
        async with dial(server) as ws:
            await until(ws, "session.created")
            await server.fault("reset")
            with pytest.raises(ConnectionClosedError) as caught:
                await ws.recv()
            assert isinstance(caught.value.__cause__, ConnectionResetError)

    serving(test)


def unacknowledged_bytes(ws: ClientConnection) -> int:
    count = array.array("i", [0])
    fcntl.ioctl(ws.transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, count)
    return count[0]


def test_a_half_open_link_acknowledges_nothing() -> None:
    async def test(server: SimServer) -> None:
        async with dial(server, ping_interval=None, close_timeout=0.1) as ws:
            await configured(ws)
            await server.fault("half-open")
            await send(ws, "input_audio_buffer.clear")
            pong = await ws.ping()
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(pong, 0.3)
            assert unacknowledged_bytes(ws) > 0
            assert server.current.received("input_audio_buffer.clear") == []
            assert server.current.is_open
        assert server.current.is_open  # even the client's going does not reach it

    server = serving(test)
    assert not server.current.is_open


def test_a_muted_server_hears_and_says_nothing() -> None:
    async def test(server: SimServer) -> None:
        async with dial(server) as ws:
            await configured(ws)
            await server.fault("mute")
            await send(ws, "input_audio_buffer.clear")
            await server.wait_for(
                lambda: server.current.received("input_audio_buffer.clear"), DEADLINE_S
            )
            await asyncio.wait_for(await ws.ping(), DEADLINE_S)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(ws.recv(), 0.2)

    serving(test)


def test_a_stall_only_delays() -> None:
    async def test(server: SimServer) -> None:
        async with dial(server) as ws:
            await configured(ws)
            began_s = time.monotonic()
            await server.fault("stall:0.3")
            await send(ws, "input_audio_buffer.clear")
            await until(ws, "input_audio_buffer.cleared")
            assert time.monotonic() - began_s >= 0.29

    serving(test)


async def flood(ws: ClientConnection) -> None:
    audio = base64.b64encode(bytes(48_000)).decode()
    for _ in range(1000):  # 64 MB, far more than any socket buffer takes
        await send(ws, "input_audio_buffer.append", audio=audio)


def test_a_slow_server_pushes_back() -> None:
    async def test(server: SimServer) -> None:
        async with dial(server) as ws:
            await configured(ws)
            await server.fault("slow:10000")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(flood(ws), 1)
            assert len(server.current.received("input_audio_buffer.append")) < 5
            ws.transport.abort()  # the library's close would wait behind the flood

    serving(test)


def test_garbage_arrives_whole_and_the_session_goes_on() -> None:
    async def test(server: SimServer) -> None:
        async with dial(server) as ws:
            await configured(ws)
            await server.fault("garbage")
            async with asyncio.timeout(DEADLINE_S):
                assert [await ws.recv() for _ in GARBAGE] == list(GARBAGE)
            await send(ws, "input_audio_buffer.clear")
            await until(ws, "input_audio_buffer.cleared")

    serving(test)


def test_a_refusing_server_comes_back_on_its_port() -> None:
    async def test(server: SimServer) -> None:
        async with dial(server) as ws:
            await until(ws, "session.created")
            await server.fault("refuse:0.3")
            with pytest.raises(ConnectionRefusedError):
                async with dial(server):
                    pass
            await send(ws, "input_audio_buffer.clear")
            await until(ws, "input_audio_buffer.cleared")
            await server.wait_for(lambda: server.is_listening, DEADLINE_S)
            async with dial(server) as again:
                await until(again, "session.created")

    serving(test)


def test_scheduled_faults_happen_once_each_in_the_session_old_enough() -> None:
    async def test(server: SimServer) -> None:
        for code in (1011, 1012):
            async with dial(server) as ws:
                with pytest.raises(ConnectionClosed):
                    await until(ws, "never")
                assert ws.close_code == code
        async with dial(server) as ws:
            await configured(ws)

    faults = (parse_fault("close:1011@0.05"), parse_fault("close:1012@0.05"))
    serving(test, SimOptions(faults=faults))


@pytest.mark.parametrize("on", ["input_audio_buffer.commit", "input_audio_buffer.committed"])
def test_a_fault_on_an_event_comes_right_then_and_once(on: str) -> None:
    """Before what the client sent is answered, after what the server sent has gone out."""

    async def test(server: SimServer) -> None:
        async with dial(server) as ws:
            await configured(ws)
            await ask(ws, speech(200))
            if on.endswith("committed"):
                assert (await receive(ws))["type"] == on
            with pytest.raises(ConnectionClosedError):
                await receive(ws)
        async with dial(server) as ws:
            await configured(ws)
            await ask(ws, speech(200))
            await until(ws, "response.done")

    serving(test, fast(faults=(parse_fault(f"reset@{on}"),)))


def test_the_first_dials_are_broken_off_and_later_ones_taken() -> None:
    async def test(server: SimServer) -> None:
        for _ in range(2):
            with pytest.raises(InvalidMessage):  # nothing came
                async with dial(server):
                    pass
        async with dial(server) as ws:
            await configured(ws)
        assert (server.dials, server.session_count) == (3, 1)

    serving(test, SimOptions(reset_dials=2))


def test_faults_are_read_from_text() -> None:
    assert parse_fault("close:1001@response.create") == Fault("close", 1001, on="response.create")
    assert parse_fault("slow:8000@1.5") == Fault("slow", 8000, 1.5)
    assert parse_fault("reset@2") == Fault("reset", 0, 2)
    for text in (
        "burn@1",
        "close@1",
        "reset:4@1",
        "stall:x@1",
        "stall:1@-2",
        "slow:0@1",
        "mute@soon",
    ):
        with pytest.raises(FaultError, match=text.split("@")[0]):
            parse_fault(text)


# --- log, life, answers -------------------------------------------------------------------------


def test_the_frame_log_tells_who_said_what_when(tmp_path: Path) -> None:
    frames = tmp_path / "frames.jsonl"
    before_s = time.monotonic()

    async def test(server: SimServer) -> None:
        headers = {"Authorization": "Bearer sk-very-secret", "X-Device": "hall"}
        async with dial(server, additional_headers=headers) as ws:
            await configured(ws)
            await ask(ws, speech(200))
            await until(ws, "response.done")
            await ws.send("{ no json")
            await until(ws, "error")

    serving(test, fast(frames=frames))
    lines = [json.loads(line) for line in frames.read_text().splitlines()]
    assert "sk-very-secret" not in frames.read_text()
    assert lines[0]["event"]["authorization"] is True
    assert lines[0]["event"]["headers"]["x-device"] == "hall"
    assert (lines[-1]["from"], lines[-1]["event"]["code"]) == ("link", 1000)
    times = [line["t"] for line in lines]
    assert times == sorted(times)
    assert before_s < times[0] < times[-1] < time.monotonic()
    assert {line["session"] for line in lines} == {1}
    client = [line["event"] for line in lines if line["from"] == "client"]
    sent = b"".join(base64.b64decode(each["audio"]) for each in client if "audio" in each)
    assert sent == speech(200).tobytes()
    assert client[-1] == {"raw": "{ no json"}
    kinds = [line["event"]["type"] for line in lines if line["from"] == "server"]
    assert kinds[0] == "session.created"
    assert kinds.index("response.created") < kinds.index("response.done")


def test_closing_twice_or_early_does_no_harm() -> None:
    async def run() -> None:
        server = SimServer()
        await server.close()
        await server.start()
        async with dial(server) as ws:
            await until(ws, "session.created")
            await server.close()
            await server.close()
            await ws.wait_closed()
            assert ws.close_code == 1001

    asyncio.run(run())


def test_waiting_for_what_never_comes_has_a_deadline() -> None:
    async def test(server: SimServer) -> None:
        with pytest.raises(TimeoutError, match=r"not within 0.05 s"):
            await server.wait_for(lambda: False, 0.05)
        with pytest.raises(LookupError):
            server.send_raw("x")

    serving(test)


def write_wav(path: Path, samples: Samples, rate_hz: int, channels: int) -> None:
    with wave.open(str(path), "wb") as file:
        file.setparams((channels, 2, rate_hz, 0, "NONE", ""))
        file.writeframes(samples.astype("<i2").tobytes())


@pytest.mark.parametrize("rate_hz", [8000, 44_100, 48_000, 96_000])
@pytest.mark.parametrize("channels", [1, 2])
def test_an_answer_of_any_rate_becomes_24_khz_mono(
    tmp_path: Path, rate_hz: int, channels: int
) -> None:
    tone = 10_000 * np.sin(2 * np.pi * 400 * np.arange(rate_hz) / rate_hz)
    write_wav(tmp_path / "a.wav", np.repeat(tone, channels).astype(np.int16), rate_hz, channels)
    answer = load_answer(tmp_path / "a.wav")
    assert answer.dtype == np.int16
    assert abs(len(answer) - 24_000) <= 1
    middle = answer[6000:18_000].astype(float)
    wanted = 10_000 * np.sin(2 * np.pi * 400 * np.arange(6000, 18_000) / 24_000)
    assert np.max(np.abs(middle - wanted)) < 100


def test_an_answer_at_24_khz_stays_as_it_is(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", speech(100), 24_000, 1)
    np.testing.assert_array_equal(load_answer(tmp_path / "a.wav"), speech(100))


def test_what_is_no_answer_is_named(tmp_path: Path) -> None:
    (tmp_path / "text.wav").write_text("hello")
    write_wav(tmp_path / "slow.wav", speech(10), 4000, 1)
    for name in ("text.wav", "slow.wav", "missing.wav"):
        with pytest.raises(AnswerError, match=name):
            load_answer(tmp_path / name)


def test_the_program_serves_and_reports_when_told_to_stop(tmp_path: Path) -> None:
    cert_file, key_file = self_signed(tmp_path, "127.0.0.1")
    trust = ssl.create_default_context(cafile=str(cert_file))
    arguments = ["--tls-cert", str(cert_file), "--tls-key", str(key_file), "--think-ms", "0"]
    with subprocess.Popen(
        [sys.executable, "-m", "voiced.sim", *arguments], stdout=subprocess.PIPE, text=True
    ) as program:
        assert program.stdout is not None
        url = json.loads(program.stdout.readline())["url"]
        assert url.startswith("wss://")

        async def talk() -> None:
            async with connect(f"{url}?model=gpt-realtime", ssl=trust, proxy=None) as ws:
                await configured(ws)
                await send(ws, "response.cancel")
                await send(ws, "response.make")
                await until(ws, "error")
                await until(ws, "error")

        asyncio.run(talk())
        program.send_signal(signal.SIGTERM)
        report = json.loads(program.stdout.readline())
        assert program.wait(DEADLINE_S) == 0
    assert (report["sessions"], report["races"], len(report["violations"])) == (1, 1, 1)
