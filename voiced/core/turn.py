"""The conversation's state table. Every rule for who may follow whom stands here and nowhere else.

A turn machine knows states and causes. What a cause means in bytes, and what each action does,
is `talk.py`'s; what is not in the table does not happen: an unlisted cause that comes
from the server is late or new and changes nothing, an unlisted local one is our own bug.
`docs/architecture.md` is drawn from this table by a test.
"""

from __future__ import annotations

from enum import Enum


class TurnState(Enum):
    """What the device is doing, as a person would say it."""

    IDLE = "idle"
    LISTENING = "listening"
    HEARING = "hearing"
    THINKING = "thinking"
    SPEAKING = "speaking"


class Cause(Enum):
    """Why a state is left (or pointedly not left)."""

    PRESS = "press"
    TAP = "tap"
    TAP_AGAIN = "tap again"
    HOLD = "hold"
    RELEASE = "release"
    INTERRUPT = "interrupt"
    HANG_UP = "hang up"
    MUTE = "mute"
    SPEECH = "speech"
    SPEECH_OVER = "speech over the answer"
    PAUSE = "pause"
    END = "end of speech"
    FULL = "longest turn"
    UNHEARD = "server heard nothing"
    NOTHING = "nothing said"
    DRAINED = "played out"
    TIMEOUT = "timeout"
    LINK_LOST = "link lost"
    REFUSED = "refused"
    DEVICE_LOST = "device lost"
    # From the server, which may be late or wrong:
    HEARD = "server hears speech"
    ENDED = "server ends the turn"
    ANSWER = "first audio"
    NO_ANSWER = "answer without audio"
    FAILED = "answer failed"


FROM_SERVER = frozenset({Cause.HEARD, Cause.ENDED, Cause.ANSWER, Cause.NO_ANSWER, Cause.FAILED})


class Action(Enum):
    """What is done on the way into the next state."""

    STAY = "nothing"
    OPEN = "open a turn, dial"
    AWAIT_FINGER = "a tap will hang up, a hold will talk"
    HANDS_FREE = "listen until silence ends it"
    HELD = "send all from before the press"
    COLLECT = "send from before the onset"
    AWAIT_END = "wait for the server, help with zeros"
    END_TURN = "end the turn"
    GO_ON = "take the answer back, hear on"
    ABANDON = "throw the turn away"
    RETRY_TURN = "throw away, listen on"
    AWAIT_ANSWER = "wait for the answer"
    PLAY = "play"
    CUT = "flush, truncate, cancel"
    CUT_AND_OPEN = "flush, truncate, cancel, open a turn"
    CUT_AND_HEAR = "flush, truncate, cancel, send from before the onset"
    FOLLOW_UP = "listen on"
    REPLAY = "keep what was said for the next session"
    LEAVE = "end the conversation"
    CLOSE = "end the conversation, close the link"


_S, _C, _A = TurnState, Cause, Action

TABLE: dict[TurnState, dict[Cause, tuple[TurnState, Action]]] = {
    _S.IDLE: {
        _C.PRESS: (_S.LISTENING, _A.OPEN),
        _C.HANG_UP: (_S.IDLE, _A.CLOSE),
        _C.TAP: (_S.IDLE, _A.STAY),  # of a press that hung up or was refused
        _C.TAP_AGAIN: (_S.IDLE, _A.STAY),
        _C.HOLD: (_S.IDLE, _A.STAY),
        _C.RELEASE: (_S.IDLE, _A.STAY),
        _C.MUTE: (_S.IDLE, _A.STAY),
        _C.LINK_LOST: (_S.IDLE, _A.STAY),
        _C.REFUSED: (_S.IDLE, _A.STAY),
        _C.DEVICE_LOST: (_S.IDLE, _A.STAY),
    },
    _S.LISTENING: {
        _C.PRESS: (_S.LISTENING, _A.AWAIT_FINGER),
        _C.TAP: (_S.LISTENING, _A.HANDS_FREE),
        _C.TAP_AGAIN: (_S.IDLE, _A.LEAVE),
        _C.HOLD: (_S.HEARING, _A.HELD),
        _C.RELEASE: (_S.LISTENING, _A.STAY),  # of a hold that an unheard turn outlived
        _C.SPEECH: (_S.HEARING, _A.COLLECT),
        _C.HANG_UP: (_S.IDLE, _A.CLOSE),
        _C.MUTE: (_S.IDLE, _A.ABANDON),
        _C.TIMEOUT: (_S.IDLE, _A.LEAVE),
        _C.LINK_LOST: (_S.LISTENING, _A.STAY),
        _C.REFUSED: (_S.IDLE, _A.ABANDON),
        _C.DEVICE_LOST: (_S.IDLE, _A.ABANDON),
    },
    _S.HEARING: {
        _C.SPEECH: (_S.HEARING, _A.COLLECT),
        _C.PAUSE: (_S.HEARING, _A.AWAIT_END),
        _C.HEARD: (_S.HEARING, _A.STAY),
        _C.END: (_S.THINKING, _A.END_TURN),
        _C.ENDED: (_S.THINKING, _A.AWAIT_ANSWER),
        _C.PRESS: (_S.THINKING, _A.END_TURN),
        _C.TAP: (_S.HEARING, _A.STAY),
        _C.TAP_AGAIN: (_S.HEARING, _A.STAY),
        _C.HOLD: (_S.HEARING, _A.HELD),  # of a press that came with the first word
        _C.RELEASE: (_S.THINKING, _A.END_TURN),
        _C.FULL: (_S.THINKING, _A.END_TURN),
        _C.UNHEARD: (_S.LISTENING, _A.RETRY_TURN),
        _C.HANG_UP: (_S.IDLE, _A.CLOSE),
        _C.MUTE: (_S.IDLE, _A.ABANDON),
        _C.TIMEOUT: (_S.IDLE, _A.ABANDON),
        _C.LINK_LOST: (_S.HEARING, _A.REPLAY),
        _C.REFUSED: (_S.IDLE, _A.ABANDON),
        _C.DEVICE_LOST: (_S.IDLE, _A.ABANDON),
    },
    _S.THINKING: {
        _C.PRESS: (_S.LISTENING, _A.CUT_AND_OPEN),
        _C.TAP: (_S.THINKING, _A.STAY),  # of the press that ended the turn
        _C.TAP_AGAIN: (_S.THINKING, _A.STAY),
        _C.HOLD: (_S.THINKING, _A.STAY),
        _C.RELEASE: (_S.THINKING, _A.STAY),
        _C.SPEECH: (_S.THINKING, _A.COLLECT),  # the server decides whether it is speech
        _C.HEARD: (_S.HEARING, _A.GO_ON),
        _C.ENDED: (_S.THINKING, _A.AWAIT_ANSWER),
        _C.ANSWER: (_S.SPEAKING, _A.PLAY),
        _C.NO_ANSWER: (_S.LISTENING, _A.FOLLOW_UP),
        _C.FAILED: (_S.LISTENING, _A.FOLLOW_UP),
        _C.UNHEARD: (_S.LISTENING, _A.RETRY_TURN),
        _C.NOTHING: (_S.IDLE, _A.ABANDON),  # a finger held, and not a word
        _C.INTERRUPT: (_S.LISTENING, _A.CUT),
        _C.HANG_UP: (_S.IDLE, _A.CLOSE),
        _C.MUTE: (_S.THINKING, _A.STAY),
        _C.TIMEOUT: (_S.LISTENING, _A.CUT),
        _C.LINK_LOST: (_S.THINKING, _A.REPLAY),
        _C.REFUSED: (_S.IDLE, _A.ABANDON),
        _C.DEVICE_LOST: (_S.IDLE, _A.ABANDON),
    },
    _S.SPEAKING: {
        _C.PRESS: (_S.LISTENING, _A.CUT_AND_OPEN),
        _C.TAP: (_S.SPEAKING, _A.STAY),
        _C.TAP_AGAIN: (_S.SPEAKING, _A.STAY),
        _C.HOLD: (_S.SPEAKING, _A.STAY),
        _C.RELEASE: (_S.SPEAKING, _A.STAY),
        _C.ANSWER: (_S.SPEAKING, _A.STAY),
        _C.SPEECH_OVER: (_S.HEARING, _A.CUT_AND_HEAR),
        _C.DRAINED: (_S.LISTENING, _A.FOLLOW_UP),
        _C.INTERRUPT: (_S.LISTENING, _A.CUT),
        _C.HANG_UP: (_S.IDLE, _A.CLOSE),
        _C.MUTE: (_S.SPEAKING, _A.STAY),
        _C.FAILED: (_S.SPEAKING, _A.STAY),  # what came is played
        _C.NO_ANSWER: (_S.SPEAKING, _A.STAY),
        _C.TIMEOUT: (_S.LISTENING, _A.CUT),
        _C.LINK_LOST: (_S.SPEAKING, _A.STAY),  # what came is played
        _C.REFUSED: (_S.SPEAKING, _A.STAY),
        _C.DEVICE_LOST: (_S.IDLE, _A.ABANDON),
    },
}


class UnlistedCause(RuntimeError):
    """A local cause in a state that does not list it: our own bug."""


def follow(state: TurnState, cause: Cause) -> tuple[TurnState, Action] | None:
    """Where `cause` leads from `state`, and what is to be done.

    None for a cause from the server that this state does not list.

    Raises:
        UnlistedCause: the same of a local cause.
    """
    row = TABLE[state].get(cause)
    if row is None and cause not in FROM_SERVER:
        raise UnlistedCause(f"{cause.name} in {state.name}")
    return row
