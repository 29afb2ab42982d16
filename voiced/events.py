"""The words that core and edges have in common: events come in, effects go out.

Edges turn the outside world into events; the core answers each event with effects; edges carry
them out. Every time is CLOCK_MONOTONIC in seconds. Audio is mono int16 at `WIRE_RATE`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from voiced.config import Config

Samples = NDArray[np.int16]

WIRE_RATE = 24_000
"""Hz. The only PCM rate of the Realtime API, and so the rate of everything inside the core."""

BLOCK_MS = 20
BLOCK_FRAMES = WIRE_RATE * BLOCK_MS // 1000
"""The microphone arrives in blocks of this many frames, always."""

SILENCE_DBFS = -120.0
"""What digital silence is said to be, instead of minus infinity."""

LED_BAR = 0.4
"""A plain LED, which can't dim, is on for colours brighter than this."""

Device = Literal[
    "microphone",
    "canceller",
    "speaker",
    "button",
    "lights",
    "state",
    "mute",
    "conversation",
    "config",
]


@dataclass(frozen=True, slots=True)
class Pattern:
    """What the light does: steps of (red, green, blue) in 0..1 and a duration, over and over.

    One step is a steady light; its duration means nothing then.
    """

    name: str
    steps: tuple[tuple[tuple[float, float, float], int], ...]

    @property
    def lit(self) -> bool:
        """True if a plain LED is on in every step: what must be shown while sound leaves."""
        return all(max(colour) > LED_BAR for colour, _ in self.steps)


# --- What happened -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ButtonEdge:
    """A raw edge, bouncing or not, from the pin or from `voicectl press`."""

    down: bool
    at: float
    who: str | None = None
    """Set for `voicectl`, which waits for a `Reply`."""


@dataclass(frozen=True, slots=True)
class Command:
    """`interrupt`, `hangup`, `forget`, `mute` or `unmute`, asked by `who` ("uid 1000, pid 77")."""

    name: str
    who: str
    at: float


@dataclass(frozen=True, slots=True)
class MicrophoneBlock:
    """`BLOCK_FRAMES` samples; the last of them was captured at `at`, within some milliseconds, and
    always later than the last of the block before. Zeros while muted.

    `played` is what left our own speaker in that time, as many samples; None if nothing did.
    With `microphone.echo = "cancel"` its echo has been taken out of `samples`, unless `aligning`:
    the canceller does not yet take our own sound out.
    """

    samples: Samples
    at: float
    muted: bool = False
    played: Samples | None = None
    aligning: bool = False


@dataclass(frozen=True, slots=True)
class ChannelLevel:
    """A second of one channel of the microphone as the card gave it, 0 dBFS = full scale.

    `clipped` counts samples at full scale; `constant`: no two samples differed.
    """

    rms_dbfs: float
    peak_dbfs: float
    clipped: int
    constant: bool


@dataclass(frozen=True, slots=True)
class ChannelLevels:
    """About once a second, one for each channel of the card; `own_sound`: we played meanwhile."""

    levels: tuple[ChannelLevel, ...]
    own_sound: bool
    at: float


@dataclass(frozen=True, slots=True)
class LinkOpened:
    """The WebSocket upgrade succeeded. Nothing is judged yet: key and model come after it.

    `server_time` is the server's clock at that moment, Unix seconds; None if it did not tell.
    """

    at: float
    dial: int
    server_time: float | None = None


@dataclass(frozen=True, slots=True)
class LinkClosed:
    """The connection is gone or never was.

    `code` is the WebSocket close code; None where there was no close frame or no connection.
    `http_status` is set if the upgrade was answered with one.
    """

    at: float
    dial: int
    code: int | None = None
    reason: str = ""
    http_status: int | None = None
    fault: str | None = None


@dataclass(frozen=True, slots=True)
class LinkFrame:
    """One text frame from the server, as it came."""

    text: str | bytes
    at: float
    dial: int


@dataclass(frozen=True, slots=True)
class NetworkChanged:
    """An address or a route came or went. `has_route`: there is a way out of this machine."""

    has_route: bool
    at: float


@dataclass(frozen=True, slots=True)
class AudioSent:
    """The socket took `frames` of appended audio."""

    frames: int
    at: float
    dial: int


@dataclass(frozen=True, slots=True)
class PlaybackStarted:
    """The first sample since silence was handed to the device."""

    at: float


@dataclass(frozen=True, slots=True)
class PlaybackDrained:
    """All that was to be played has left the device; `epoch` as in `Flushed`."""

    at: float
    epoch: int


@dataclass(frozen=True, slots=True)
class Flushed:
    """The speaker is silent. `frames_heard` counts from the epoch's first frame, at `WIRE_RATE`."""

    at: float
    frames_heard: int
    cause_at: float


@dataclass(frozen=True, slots=True)
class LightShown:
    """The lights took this pattern (or there are none)."""

    pattern: Pattern
    at: float


@dataclass(frozen=True, slots=True)
class DeviceFault:
    """A device is missing, lost or wrong. `fault` names a row of `core.faults`."""

    device: Device
    fault: str
    detail: str
    at: float


@dataclass(frozen=True, slots=True)
class DeviceBack:
    """A device is held and works."""

    device: Device
    at: float
    detail: str = ""


@dataclass(frozen=True, slots=True)
class KeyState:
    """The API key as it stands: `fault` is None if there is one or none is needed."""

    fault: str | None
    at: float
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Reconfigured:
    """A valid new configuration is to be used from now on."""

    config: Config
    at: float


@dataclass(frozen=True, slots=True)
class MemoryUsed:
    """What this process holds of the machine's memory, and what the unit allows it."""

    used_mb: float
    limit_mb: float
    at: float


@dataclass(frozen=True, slots=True)
class Tick:
    """Some deadline of the core has passed."""

    at: float


Event = (
    ButtonEdge
    | Command
    | MicrophoneBlock
    | ChannelLevels
    | LinkOpened
    | LinkClosed
    | LinkFrame
    | NetworkChanged
    | AudioSent
    | PlaybackStarted
    | PlaybackDrained
    | Flushed
    | LightShown
    | DeviceFault
    | DeviceBack
    | KeyState
    | Reconfigured
    | MemoryUsed
    | Tick
)


# --- What to do ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Dial:
    """Connect; answers carry the serial `dial`, so that those of an older socket are known."""

    dial: int


@dataclass(frozen=True, slots=True)
class CloseLink:
    """Close the socket, drop what is queued for it."""


@dataclass(frozen=True, slots=True)
class Send:
    """One text frame; `audio_frames` of appended audio are in it."""

    text: bytes
    audio_frames: int = 0


@dataclass(frozen=True, slots=True)
class DropUnsent:
    """Forget appends that the socket has not taken yet (mute)."""


@dataclass(frozen=True, slots=True)
class Play:
    """Queue samples for the speaker, in the playback epoch `epoch`."""

    samples: Samples
    epoch: int


@dataclass(frozen=True, slots=True)
class EndPlay:
    """Nothing more comes: play out, then report `PlaybackDrained`."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Flush:
    """Be silent now and answer `Flushed` before any other event. A new epoch begins."""

    epoch: int
    cause_at: float


@dataclass(frozen=True, slots=True)
class Duck:
    """Play on at a fifth of the amplitude (`on`), or as before; both glide."""

    on: bool


@dataclass(frozen=True, slots=True)
class Chime:
    """Play the earcon (`core.earcons`) or the spoken clip (a fault's) of this name if nothing
    sounds; it delays no answer."""

    name: str


@dataclass(frozen=True, slots=True)
class Hush:
    """Break off an earcon or a clip that sounds: somebody begins to talk."""


@dataclass(frozen=True, slots=True)
class Show:
    """Set the lights and answer `LightShown` or `DeviceFault` before any other event."""

    pattern: Pattern


@dataclass(frozen=True, slots=True)
class SetMuted:
    """Mute or unmute the capture thread and keep the choice over restarts."""

    muted: bool


@dataclass(frozen=True, slots=True)
class KeepConversation:
    """Keep what was said over restarts, instead of what was kept before; None: keep nothing."""

    text: bytes | None


@dataclass(frozen=True, slots=True)
class Restart:
    """End the process with this exit code; systemd starts it anew."""

    exit_code: int


@dataclass(frozen=True, slots=True)
class Status:
    """The one line for `systemctl status`."""

    text: str


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to the command being handled."""

    ok: bool
    text: str


@dataclass(frozen=True, slots=True)
class Note:
    """Something worth telling the journal and whoever watches. `level` is of `logging`."""

    name: str
    at: float
    text: str
    level: int
    fields: dict[str, Any] = field(default_factory=dict)


Effect = (
    Dial
    | CloseLink
    | Send
    | DropUnsent
    | Play
    | EndPlay
    | Flush
    | Duck
    | Chime
    | Hush
    | Show
    | SetMuted
    | KeepConversation
    | Restart
    | Status
    | Reply
    | Note
)
