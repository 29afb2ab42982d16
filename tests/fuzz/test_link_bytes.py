"""The WebSocket under attack: whatever bytes come, the link is up or it is closed, said once, and
the next dial connects."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.asyncio.server import ServerConnection

from tests.edge.test_link import linked, peer, settings
from tests.fuzz import examples, patient
from voiced.edge import link as links
from voiced.events import LinkClosed, LinkFrame, LinkOpened

MAX_FRAME_BYTES = 4_000


def text(payload: bytes, *, first: int = 0x81) -> bytes:
    """A frame of less than 64 kB, as a server sends it."""
    if len(payload) < 126:
        return bytes([first, len(payload)]) + payload
    return bytes([first, 126]) + len(payload).to_bytes(2, "big") + payload


def attack(raw: bytes, *, then_close: bool = False) -> tuple[list[LinkFrame], int | None]:
    """Dial, get `raw` from the server, dial again. What came of it, and the code we closed with."""

    async def run() -> tuple[list[LinkFrame], int | None]:
        dials = 0

        async def talk(ws: ServerConnection) -> None:
            nonlocal dials
            dials += 1
            if dials == 1:
                ws.transport.write(raw)
                if then_close:
                    ws.transport.close()
            else:
                await ws.send("hello")

        async with peer(talk) as server, linked() as (link, heard):
            link.dial(1, settings(server.url), None)
            await heard.next(LinkClosed)
            code = None if then_close else await server.closed.get()
            link.dial(2, settings(server.url), None)
            await heard.until(lambda: any(f.text == "hello" for f in heard.of(LinkFrame)))
            assert [closed.dial for closed in heard.of(LinkClosed)] == [1]
            assert [opened.dial for opened in heard.of(LinkOpened)] == [1, 2]
            return [frame for frame in heard.of(LinkFrame) if frame.dial == 1], code

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(links, "MAX_FRAME_BYTES", MAX_FRAME_BYTES)
        return asyncio.run(run())


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (text(b"x", first=0xC1), 1002),  # compressed, which we never agreed to
        (b"\x81\x81abcd!", 1002),  # masked
        (text(b"x", first=0x83), 1002),  # an opcode of the future
        (text(b"x", first=0x80), 1002),  # the end of a message that never began
        (text(b"x" * 200, first=0x89), 1002),  # a ping longer than pings may be
        (b"\x81\xff" + b"\xff" * 8, 1002),
        (b"\x81\x7f" + (2**62).to_bytes(8, "big"), 1009),  # only announced
        (text(b"x", first=0x01) + text(b"x" * 999, first=0x00) * 5, 1009),  # in fragments
        (text(b"\xff"), 1007),
    ],
)
def test_what_breaks_the_protocol_ends_the_connection(raw: bytes, code: int) -> None:
    frames, closed_with = attack(raw)
    assert not frames
    assert closed_with == code


_frames = st.builds(
    lambda first, payload: text(payload, first=first),
    st.sampled_from([0x81, 0x82, 0x01, 0x00, 0x80, 0x89, 0x8A, 0xC1]) | st.integers(0, 255),
    st.binary(max_size=200) | st.just(b'{"type":"error"}'),
)


@patient
@examples(60)
@given(st.lists(_frames | st.binary(max_size=20), max_size=8).map(b"".join))
def test_any_bytes_are_frames_or_an_end_and_the_next_dial_connects(raw: bytes) -> None:
    frames, _ = attack(raw, then_close=True)
    assert sum(len(frame.text) for frame in frames) <= len(raw)


def test_between_fragments_and_pings_what_is_said_still_comes() -> None:
    pings = text(b"x" * 100, first=0x89) * 1_000
    whole = text(b"a", first=0x01) + pings + text(b"b", first=0x00) * 1_000 + text(b"c", first=0x80)
    frames, _ = attack(whole + text(b"\xff"))
    assert [frame.text for frame in frames] == ["a" + 1_000 * "b" + "c"]


def test_in_a_flood_of_frames_everybody_else_has_his_turn() -> None:
    flood = 1_000

    async def run() -> None:
        rounds, seen = 0, list[int]()

        def turn() -> None:
            nonlocal rounds
            rounds += 1
            asyncio.get_running_loop().call_soon(turn)

        async def talk(ws: ServerConnection) -> None:
            ws.transport.write(text(b"x") * flood)

        def post(event: object) -> None:
            if isinstance(event, LinkFrame):
                seen.append(rounds)
            heard(event)  # type: ignore[arg-type]

        async with peer(talk) as server, linked() as (link, heard):
            link._post = post
            turn()
            link.dial(1, settings(server.url), None)
            await heard.next(LinkFrame, flood)
            assert max(Counter(seen).values()) <= links.FRAMES_AT_ONCE

    asyncio.run(run())
