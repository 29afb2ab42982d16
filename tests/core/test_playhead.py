from hypothesis import given
from hypothesis import strategies as st

from voiced.core.playhead import Heard, Playhead

MS = 24  # frames
KEYS = st.tuples(st.sampled_from(["item_a", "item_b", "item_c"]), st.integers(0, 1))
QUEUED = st.lists(st.tuples(KEYS, st.integers(0, 3_000)), max_size=30)


def playhead(*pieces: tuple[str, int]) -> Playhead:
    """One with these (item, frames) queued."""
    head = Playhead()
    for item, frames in pieces:
        head.queue(item, 0, frames)
    return head


def heard_ms(head: Playhead, frames: int) -> dict[str, int]:
    return {part.item_id: part.heard_ms for part in head.heard(frames)}


def test_of_nothing_nothing_is_heard() -> None:
    head = Playhead()
    assert head.heard(48_000) == []
    assert head.frames == 0


def test_items_are_heard_one_after_the_other() -> None:
    head = playhead(("a", 100 * MS), ("b", 50 * MS), ("c", 10 * MS))
    assert heard_ms(head, 0) == {"a": 0, "b": 0, "c": 0}
    assert heard_ms(head, 99 * MS) == {"a": 99, "b": 0, "c": 0}
    assert heard_ms(head, 100 * MS) == {"a": 100, "b": 0, "c": 0}
    assert heard_ms(head, 101 * MS) == {"a": 100, "b": 1, "c": 0}
    assert heard_ms(head, 160 * MS) == {"a": 100, "b": 50, "c": 10}


def test_what_was_begun_counts_as_unheard_until_its_millisecond_is_full() -> None:
    head = playhead(("a", 2 * MS))
    assert heard_ms(head, MS - 1) == {"a": 0}
    assert heard_ms(head, MS) == {"a": 1}


def test_more_frames_than_there_were_do_no_harm() -> None:
    assert heard_ms(playhead(("a", 10 * MS)), 10**9) == {"a": 10}


def test_an_item_that_comes_in_pieces_around_another_is_added_up() -> None:
    head = playhead(("a", 10 * MS), ("b", 10 * MS), ("a", 10 * MS))
    assert heard_ms(head, 15 * MS) == {"a": 10, "b": 5}
    assert heard_ms(head, 25 * MS) == {"a": 15, "b": 10}


def test_complete_means_heard_to_the_last_frame_of_all_there_is() -> None:
    head = playhead(("a", 10 * MS + 1))
    assert head.heard(10 * MS + 1) == [Heard("a", 0, 10, 10, complete=False)]
    head.finish("a", 0)
    assert head.heard(10 * MS) == [Heard("a", 0, 10, 10, complete=False)]
    assert head.heard(10 * MS + 1) == [Heard("a", 0, 10, 10, complete=True)]


def test_finishing_what_never_sounded_is_no_harm() -> None:
    head = playhead(("a", MS))
    head.finish("b", 0)
    head.finish("a", 1)
    assert heard_ms(head, MS) == {"a": 1}


@given(QUEUED, st.integers(0, 100_000))
def test_nothing_is_heard_that_was_not_received(
    queued: list[tuple[tuple[str, int], int]], frames: int
) -> None:
    head = Playhead()
    for (item, index), size in queued:
        head.queue(item, index, size)
    parts = head.heard(frames)
    for part in parts:
        own = sum(n for key, n in queued if key == (part.item_id, part.content_index))
        assert 0 <= part.heard_ms <= part.received_ms == own // MS
        assert not part.complete
    total_ms = min(frames, head.frames) / MS
    assert total_ms - len(parts) < sum(part.heard_ms for part in parts) + 1e-9 or not parts
    assert sum(part.heard_ms for part in parts) <= total_ms


@given(QUEUED, st.integers(0, 100_000), st.integers(0, 5_000))
def test_what_was_heard_is_never_taken_back(
    queued: list[tuple[tuple[str, int], int]], frames: int, more: int
) -> None:
    head = Playhead()
    for (item, index), size in queued:
        head.queue(item, index, size)
    for before, after in zip(head.heard(frames), head.heard(frames + more), strict=True):
        assert before.heard_ms <= after.heard_ms


@given(QUEUED)
def test_all_of_it_is_heard_when_all_frames_left(
    queued: list[tuple[tuple[str, int], int]],
) -> None:
    head = Playhead()
    for (item, index), size in queued:
        head.queue(item, index, size)
        head.finish(item, index)
    assert head.frames == sum(size for _, size in queued)
    for part in head.heard(head.frames):
        assert part.complete
        assert part.heard_ms == part.received_ms
