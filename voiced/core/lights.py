"""What the light shows: one total function of the device's state.

Dark means that no audio leaves the device. So every state of a turn lights up, and in IDLE,
where nothing can leave, only a fault, mute or a refused press do.
"""

from __future__ import annotations

from voiced.core.faults import Blink
from voiced.core.link import LinkState
from voiced.core.turn import TurnState
from voiced.events import Pattern

_OFF = (0.0, 0.0, 0.0)
_WHITE = (0.6, 0.6, 0.6)
_BLUE = (0.0, 0.2, 1.0)
_GREEN = (0.0, 0.9, 0.2)
_AMBER = (1.0, 0.5, 0.0)
_RED = (1.0, 0.0, 0.0)

DARK = Pattern("dark", ((_OFF, 1000),))
LISTENING = Pattern("listening", ((_BLUE, 1000),))
CONNECTING = Pattern("connecting", ((_BLUE, 250), ((0.0, 0.05, 0.25), 250)))
HEARING = Pattern("hearing", ((_WHITE, 1000),))
THINKING = Pattern("thinking", ((_AMBER, 400), ((0.45, 0.22, 0.0), 400)))
SPEAKING = Pattern("speaking", ((_GREEN, 1000),))
MUTED = Pattern("muted", ((_RED, 60), (_OFF, 2940)))
FAULTS = {
    blink: Pattern(
        f"fault-{blink.name.lower()}",
        (*((_RED, 150), (_OFF, 250)) * (blink - 1), (_RED, 150), (_OFF, 1350)),
    )
    for blink in Blink
}
"""As many flashes as the fault's `Blink` says: slow enough to be counted."""
REFUSED = Pattern("refused", ((_RED, 80), (_OFF, 80)))

REFUSED_S = 1.2
"""How long a refused press blinks: about seven flashes, too quick to be counted."""


def pattern(
    turn: TurnState, link: LinkState, *, fault: Blink | None, muted: bool, refused: bool
) -> Pattern:
    """The pattern for this state. `fault`: what is wrong, if anything is; `refused`: a press was
    turned away a moment ago."""
    if refused and turn in (TurnState.IDLE, TurnState.LISTENING):
        return REFUSED
    if turn is TurnState.IDLE:
        if muted:
            return MUTED
        return DARK if fault is None else FAULTS[fault]
    if turn in (TurnState.LISTENING, TurnState.THINKING) and link is not LinkState.UP:
        return CONNECTING
    return {
        TurnState.LISTENING: LISTENING,
        TurnState.HEARING: HEARING,
        TurnState.THINKING: THINKING,
        TurnState.SPEAKING: SPEAKING,
    }[turn]
