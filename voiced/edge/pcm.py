"""Opening ALSA devices and refusing what they can't do.

pyalsaaudio takes the nearest that a card offers and says nothing: who wanted six channels at
16 kHz may sit there with two at 48, who wanted 16 bits with 32. So what was granted is looked at,
and other than asked is a fault with the setting that fits.

A card's name is looked up at each opening, so a card that comes back has whatever number it likes.
Only `read`, `write` and `drain` let go of the interpreter lock while they wait (pyalsaaudio 0.11):
a sound server that hangs in opening, `drop` or `avail` stops all of Python, and systemd ends it.
"""

from __future__ import annotations

import ctypes
from typing import Any

import alsaaudio

PERIOD_MS = 20
"""Of the microphone: one block of the core. Shorter ones cost wake-ups, longer ones
delay the first word."""

PLAYBACK_PERIOD_MS = 5
"""How finely a device tells its position: with periods of 20 ms what was heard of a cut answer was
known to 20 ms on PulseAudio's plugin."""

PLAYBACK_PERIODS = 24
"""120 ms. With 80 there were underruns beside other threads of the interpreter."""

CAPTURE_PERIODS = 50
"""1 s: how long the capture thread may be kept from running before the card drops samples. It
costs no delay. With 200 ms a machine 25 times slower than a desktop lost some at every start, and
whenever it was busy."""

FORMATS = {
    "S16_LE": alsaaudio.PCM_FORMAT_S16_LE,
    "S24_LE": alsaaudio.PCM_FORMAT_S24_LE,
    "S24_3LE": alsaaudio.PCM_FORMAT_S24_3LE,
    "S32_LE": alsaaudio.PCM_FORMAT_S32_LE,
}
"""What a microphone's samples may look like, by ALSA's name."""

BUSY = "Device or resource busy"


# ALSA's library prints a line or more to stderr at every try to open what is not there, twice a
# second for as long as it is away. The error it returns says the same.
_ErrorHandler = ctypes.CFUNCTYPE(  # file, line, function, errno, format, ...
    None, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p
)
_say_nothing = _ErrorHandler(lambda *_: None)  # kept: the library holds no reference
_asound = ctypes.CDLL("libasound.so.2")
_asound.snd_lib_error_set_handler(_say_nothing)


class DeviceError(OSError):
    """A device can't be used. `fault` names the row of `core.faults`; the text has the remedy."""

    def __init__(self, fault: str, text: str) -> None:
        super().__init__(text)
        self.fault = fault


def open_capture(device: str, rate: int, channels: int, sample_format: str = "S16_LE") -> Any:
    """A blocking capture PCM with periods of `PERIOD_MS`; the format is one of `FORMATS`.

    Raises DeviceError if the card does not grant exactly this.
    """
    kind, mode = alsaaudio.PCM_CAPTURE, alsaaudio.PCM_NORMAL
    return _open(kind, mode, device, rate, channels, sample_format)


def open_playback(device: str, rate: int) -> tuple[Any, int]:
    """A non-blocking S16_LE playback PCM of 120 ms, and its number of channels, 1 or 2. Raises
    DeviceError.

    Mono is asked for; a card that only does stereo gives that.
    """
    pcm = _open(alsaaudio.PCM_PLAYBACK, alsaaudio.PCM_NONBLOCK, device, rate, None, "S16_LE")
    return pcm, int(pcm.info()["channels"])


def _open(
    kind: int, mode: int, device: str, rate: int, channels: int | None, sample_format: str
) -> Any:
    name = "microphone" if kind == alsaaudio.PCM_CAPTURE else "speaker"
    capture = kind == alsaaudio.PCM_CAPTURE
    periods = CAPTURE_PERIODS if capture else PLAYBACK_PERIODS
    period_ms = PERIOD_MS if capture else PLAYBACK_PERIOD_MS
    try:
        pcm = alsaaudio.PCM(
            kind,
            mode,
            device=device,
            rate=rate,
            channels=channels or 1,
            format=FORMATS[sample_format],
            periodsize=rate * period_ms // 1000,
            periods=periods,
        )
    except (alsaaudio.ALSAAudioError, ValueError, TypeError) as exc:
        # Read anew at the next try, in 1 to 8 ms: names that came with a card or with asound.conf.
        _asound.snd_config_update_free_global()
        raise _explain(name, device, str(exc)) from exc
    problem = _refusal(name, pcm.info(), rate, channels, sample_format)
    if problem:
        close(pcm)
        raise DeviceError(f"{name}-wrong", f"{device}: {problem}")
    return pcm


def _refusal(
    name: str, granted: dict[str, Any], rate: int, channels: int | None, sample_format: str
) -> str | None:
    """What the card gave instead of what was asked, with the setting that fits; or None."""
    if granted["rate"] != rate:
        return (
            f"does {granted['rate']} Hz, not {rate}. "
            f"Set {name}.rate = {granted['rate']}, or use plughw: instead of hw:"
        )
    has = granted["channels"]
    if channels is not None and has != channels:
        return f"has {has} channel(s), not {channels}. Set {name}.channels = {has}"
    if channels is None and has not in (1, 2):
        return f"wants {has} channels. Use plughw: instead of hw:"
    does = granted["format_name"]
    if does != sample_format:
        has_key = name == "microphone" and does in FORMATS
        use = f'Set {name}.format = "{does}", or use' if has_key else "Use"
        return f"does {does}, not {sample_format}. {use} plughw: instead of hw:"
    return None


def _explain(name: str, device: str, text: str) -> DeviceError:
    """pyalsaaudio's errors carry no number, only the text of one: "<text> [<device>]"."""
    cause = text.partition(" [")[0]
    lists = "arecord -l" if name == "microphone" else "aplay -l"
    remedy = {
        BUSY: f"another program holds it: fuser -v /dev/snd/*, or {lists}",
        "Permission denied": "the user must be in the group audio",
    }.get(cause, f"is it plugged in? `{lists}` shows what there is; see {name}.device")
    fault = f"{name}-busy" if cause == BUSY else f"{name}-lost"
    return DeviceError(fault, f"{device}: {cause}: {remedy}")


def close(pcm: Any) -> None:
    """Close without a sound: a playback PCM would first play out what it holds."""
    for step in (pcm.drop, pcm.close):
        try:
            step()
        except alsaaudio.ALSAAudioError:
            pass  # gone already: that is what was wanted
