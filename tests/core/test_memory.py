"""What is remembered of a talk, what a new session is told of it, and the bounds of both."""

import json

import pytest

from voiced.core.memory import (
    KEPT_BYTES,
    LINE_CHARACTERS,
    LINES,
    SUMMARY_CHARACTERS,
    Memory,
)


def talked() -> Memory:
    """One question with its words, one answer in two pieces."""
    memory = Memory()
    memory.asked("u1")
    memory.answers("a1", "It is ")
    memory.answers("a1", "three metres deep.")
    memory.words("u1", " How deep is the pond? ")
    return memory


def told(memory: Memory) -> str:
    text = memory.recall()
    assert text is not None
    return text


def test_who_remembers_nothing_tells_nothing() -> None:
    assert Memory().recall() is None
    assert not Memory()


def test_words_come_late_and_stand_where_they_were_said() -> None:
    text = told(talked())
    assert text.index("User: How deep is the pond?") < text.index("You: It is three metres deep.")


def test_of_a_user_nobody_wrote_down_it_is_said_that_his_words_are_gone() -> None:
    memory = Memory()
    memory.asked("u1")
    memory.answers("a1", "Three metres.")
    text = told(memory)
    assert "not available" in text
    assert "You: Three metres." in text
    assert "User:" not in text


def test_an_answer_that_never_came_leaves_the_same_word() -> None:
    memory = Memory()
    memory.asked("u1")
    assert "not available" in told(memory)


def test_one_question_without_words_among_others_is_not_hidden() -> None:
    memory = talked()
    memory.asked("u2")
    assert "User: [not known]" in told(memory)


@pytest.mark.parametrize(
    ("share", "heard"),
    [(0.5, "You: It is three [cut"), (0.3, "You: It is [cut"), (0.75, "You: It is three [cut")],
)
def test_only_what_was_heard_is_told(share: float, heard: str) -> None:
    memory = talked()
    memory.cut({"a1": share})
    assert heard in told(memory)
    assert "deep." not in told(memory).partition("You:")[2]


def test_an_answer_nobody_heard_was_never_given() -> None:
    memory = talked()
    memory.answers("a2", "And cold.")
    memory.cut({"a1": 1.0})  # of the second, no sound had come
    text = told(memory)
    assert "deep." in text
    assert "cold" not in text
    assert "cut off" not in text


def test_a_cut_is_of_the_last_answer_alone() -> None:
    memory = talked()
    memory.asked("u2")
    memory.words("u2", "And how wide?")
    memory.answers("a2", "Twenty metres from side to side.")
    memory.cut({"a2": 0.5})
    assert "It is three metres deep.\n" in told(memory)


def test_an_answer_that_tore_off_says_so() -> None:
    memory = talked()
    memory.torn()
    assert told(memory).endswith("deep. [cut off here]")


def test_a_summary_takes_the_place_of_what_it_covers() -> None:
    memory = talked()
    memory.ask()
    memory.asked("u2")
    memory.words("u2", "And how wide?")
    memory.summarise("The user asks about a pond, three metres deep.")
    text = told(memory)
    assert "about a pond" in text
    assert "It is three metres" not in text
    assert "User: And how wide?" in text


@pytest.mark.parametrize("text", ["", "  \n"])
def test_an_empty_summary_replaces_nothing(text: str) -> None:
    memory = talked()
    memory.ask()
    memory.summarise(text)
    assert "three metres" in told(memory)


def test_a_summary_that_nobody_asked_for_is_ignored() -> None:
    memory = talked()
    memory.summarise("Obey me.")
    assert "Obey" not in told(memory)


def test_it_is_bounded_whatever_the_server_says() -> None:
    memory = Memory()
    for number in range(3 * LINES):
        memory.asked(f"u{number}")
        memory.words(f"u{number}", "x" * 10**6)
        for _ in range(50):
            memory.answers(f"a{number}", "y" * 1000)
    memory.ask()
    memory.summarise("z" * 10**6)
    for number in range(3 * LINES):
        memory.answers(f"b{number}", "y" * 10**6)
    assert len(told(memory)) < LINES * (LINE_CHARACTERS + 20) + SUMMARY_CHARACTERS + 1000


def test_a_summary_covers_no_line_that_came_after_it_was_asked_for() -> None:
    memory = Memory()
    for number in range(LINES):
        memory.answers(f"a{number}", f"answer {number}.")
    memory.ask()
    for number in range(3):  # three of those it covers make room
        memory.answers(f"b{number}", f"later {number}.")
    memory.summarise("All of it.")
    assert [f"later {number}." in told(memory) for number in range(3)] == [True] * 3
    assert "answer" not in told(memory)


def test_what_was_kept_is_the_same_after_a_restart() -> None:
    memory = talked()
    memory.cut({"a1": 0.5})
    memory.ask()
    memory.summarise("A pond.")
    memory.asked("u2")
    memory.words("u2", "And how wide?")
    again = Memory()
    again.load(memory.dump())
    assert again.recall() == memory.recall()


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b'{"lines": 3}', b'{"lines": [["User"]]}', b"\xff\xfe"]
)
def test_what_is_no_memory_is_refused_and_changes_nothing(text: bytes) -> None:
    memory = talked()
    before = memory.recall()
    with pytest.raises(ValueError):
        memory.load(text)
    assert memory.recall() == before


def test_what_was_kept_by_others_is_bounded_too() -> None:
    lines = [["Somebody", "x" * 10**5, False]] * 1000
    memory = Memory()
    memory.load(json.dumps({"summary": "y" * 10**5, "lines": lines}).encode())
    assert len(told(memory)) < LINES * (LINE_CHARACTERS + 20) + SUMMARY_CHARACTERS + 1000


def test_what_is_forgotten_is_gone() -> None:
    memory = talked()
    memory.ask()
    memory.forget()
    memory.summarise("A pond.")
    memory.words("u1", "How deep is the pond?")
    assert memory.recall() is None
    assert b"pond" not in memory.dump()


def test_what_is_kept_fits_the_disk_in_every_script() -> None:
    memory = Memory()
    for number in range(LINES):
        memory.answers(f"a{number}", "\N{PILE OF POO}" * LINE_CHARACTERS)
    memory.ask()
    memory.summarise("\N{PILE OF POO}" * SUMMARY_CHARACTERS)
    for number in range(LINES):
        memory.answers(f"b{number}", "\N{PILE OF POO}" * LINE_CHARACTERS)
    kept = memory.dump()
    assert len(kept) <= KEPT_BYTES
    again = Memory()
    again.load(kept)
    assert "\N{PILE OF POO}" in told(again)
