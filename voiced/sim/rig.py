"""A microphone and a speaker without hardware: null sinks of a private PulseAudio.

The daemon opens `Rig.microphone` and `Rig.speaker` through the real libasound. `Mouth` speaks into
the microphone, `Ear` records what left the speaker (or what reached the microphone), and both date
their samples by CLOCK_MONOTONIC (`time.monotonic()`).

What the rig can't show: a capture overrun is never reported (the server drops data silently; `Ear`
finds it by the clock), and an unplugged card is seen as "Input/output error", then as
"Connection refused", not as "No such device".
"""

import contextlib
import logging
import math
import os
import shutil
import socket
import statistics
import subprocess
import tempfile
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self

import alsaaudio
import numpy as np

from voiced.sim.wav import Samples, write_wav

log = logging.getLogger(__name__)

SERVER_START_S = 10.0  # takes 0.04 s on a quiet machine; a small board from a cold disk, seconds
STREAM_START_S = 5.0  # the first samples come 5-43 ms after opening
THREAD_STOP_S = 2.0  # threads look up every period (≤ 10 ms) and every retry (50 ms)
THREAD_NICE = -10
RETRY_S = 0.05  # how often mouth and ear look for a server that went away

EAR_PERIOD_S = 0.005  # the smallest in which data still arrives evenly: it sets the dating's grain
EAR_BUFFER_S = 5.0  # 1024 periods is the most that is granted; 21.8 s in all survived a stall
EAR_LONGEST_S = 30 * 60  # 173 MB at 48 kHz
MOUTH_PERIOD_S = 0.010
MOUTH_PERIODS = 8  # 40 ms ran dry beside two busy loops; dates don't suffer from a longer buffer
MOUTH_QUEUE = 64  # utterances said but not yet over
UTTERANCE_LONGEST_S = 600

GAP_S = 0.015  # the server's block changes with its clients by less; losing a period is more
GAP_PROOF_S = 0.5  # a late reader catches up in less, lost samples never come back
WINDOW_S = 1.0  # in a second even a loaded machine reads on time once
ANCHORS = 4096  # over an hour of windows; older ones are forgotten

_CHANNEL_MAPS = {  # ALSA's channel order, so that channel 3 of a tone is channel 3 of the capture
    1: "mono",
    2: "front-left,front-right",
    6: "front-left,front-right,rear-left,rear-right,front-center,lfe",
}
_PLUGIN = "libasound_module_pcm_pulse.so"
_PLUGIN_DIRS = ("/usr/lib/*/alsa-lib", "/usr/lib/alsa-lib", "/usr/lib64/alsa-lib")


class RigError(RuntimeError):
    """The rig can't be had or doesn't work; the message says why and what to do."""


class Format(NamedTuple):
    """What a PCM of the rig runs at without conversion."""

    rate: int
    channels: int


class Rig:
    """A private sound server in a directory of its own; works as root and as a user.

    Use as a context manager, or `start()` and `close()`. Processes that are to see its PCMs are
    started with `{**os.environ, **rig.env}`; this process joins by `apply()`, before libasound is
    used in it. Raises RigError when the server or ALSA's plugin is missing or won't start.
    """

    microphone = "rig_mic"  # ALSA PCM names: the daemon's microphone,
    speaker = "rig_spk"  # the daemon's speaker,
    mouth = "rig_mouth"  # playback into the microphone,
    mic_tap = "rig_mic_tap"  # a second capture of the microphone,
    ear = "rig_ear"  # capture of what left the speaker

    def __init__(
        self,
        mic_channels: Literal[1, 2, 6] = 1,
        mic_rate: int = 48_000,
        speaker_rate: int = 48_000,
    ) -> None:
        self.env: dict[str, str] = {}
        self.plugged = False
        mic, speaker = Format(mic_rate, mic_channels), Format(speaker_rate, 2)
        self.formats = {
            self.microphone: mic,
            self.mouth: mic,
            self.mic_tap: mic,
            self.speaker: speaker,
            self.ear: speaker,
        }
        self._dir: Path | None = None
        self._server: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "plugged" if self.plugged else "unplugged" if self._dir else "closed"
        return f"<Rig {state} {self._dir or ''}>"

    def start(self) -> None:
        """Start the server and return when it answers."""
        _require_packages()
        self._dir = Path(tempfile.mkdtemp(prefix="voiced-rig-"))
        try:
            self._configure(self._dir)
            self.replug()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Kill the server and remove its directory."""
        self.unplug()
        if self._dir is not None:
            shutil.rmtree(self._dir, ignore_errors=True)
            self._dir = None

    def apply(self) -> None:
        """Put `env` into this process's environment, for PCMs opened in it from now on."""
        os.environ.update(self.env)

    def unplug(self) -> None:
        """Kill the server: open PCMs fail with "Input/output error" within milliseconds."""
        self.plugged = False
        if self._server is not None:
            self._server.kill()
            self._server.wait(timeout=THREAD_STOP_S)
            self._server = None

    def replug(self) -> None:
        """Start the server again under the same names."""
        if self._server is not None:
            return
        if self._dir is None:
            raise RigError("the rig is closed; start a new one")
        with (self._dir / "server.log").open("ab") as output:
            self._server = subprocess.Popen(
                _server_command(self._dir),
                env={**os.environ, **self.env, "XDG_RUNTIME_DIR": str(self._dir)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C is for the daemon; the sound stays until close()
            )
        self._wait_for_server(self._dir, self._server)
        self.plugged = True

    def _configure(self, folder: Path) -> None:
        for name in ("runtime", "state", "config"):
            (folder / name).mkdir(mode=0o700)
        (folder / "server.pa").write_text(self._server_script(folder))
        (folder / "asound.conf").write_text(_asound_conf(folder))
        # Shared memory would leave segments behind at every kill and be too small in containers.
        (folder / "client.conf").write_text(
            f"autospawn = no\nenable-shm = no\ncookie-file = {folder}/cookie\n"
        )
        self.env = {
            "ALSA_CONFIG_PATH": f"{folder}/asound.conf",
            "PULSE_SERVER": f"unix:{_socket_path(folder)}",
            "PULSE_CLIENTCONFIG": f"{folder}/client.conf",
            "PULSE_RUNTIME_PATH": f"{folder}/runtime",
            "PULSE_STATE_PATH": f"{folder}/state",
            "PULSE_CONFIG_PATH": f"{folder}/config",
        }

    def _server_script(self, folder: Path) -> str:
        # The socket comes last: a server that can be reached has its sinks. Without norewinds an
        # idle sink renders 2 s ahead and the next capture stays empty as long.
        return "\n".join(
            [
                ".fail",
                _null_sink("speaker", self.formats[self.speaker]),
                _null_sink("mic", self.formats[self.microphone]),
                "set-default-sink speaker",
                "set-default-source mic.monitor",
                "load-module module-native-protocol-unix auth-anonymous=1 auth-cookie-enabled=0 "
                f"socket={_socket_path(folder)}",
                "",
            ]
        )

    def _wait_for_server(self, folder: Path, server: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + SERVER_START_S
        while not _answers(_socket_path(folder)):
            if server.poll() is not None or time.monotonic() > deadline:
                said = (folder / "server.log").read_text(errors="replace")[-800:]
                self.unplug()
                raise RigError(f"pulseaudio did not start; it said:\n{said}")
            time.sleep(0.01)


def _require_packages() -> None:
    if shutil.which("pulseaudio") is None:
        raise RigError("no pulseaudio: install it with: apt-get install pulseaudio")
    folders = [folder for pattern in _PLUGIN_DIRS for folder in Path("/").glob(pattern[1:])]
    if not any((folder / _PLUGIN).exists() for folder in folders):
        raise RigError(
            "ALSA has no pulse plugin: install it with: apt-get install libasound2-plugins"
        )


def _server_command(folder: Path) -> list[str]:
    return [
        "pulseaudio",
        "-n",
        f"--file={folder}/server.pa",
        "--daemonize=no",
        "--exit-idle-time=-1",
        "--use-pid-file=no",
        "--disallow-exit=yes",
        "--disable-shm=yes",
        "--realtime=yes",  # sound hardware is never late; without the right to it, it tries
        "--high-priority=yes",
        "--log-target=stderr",
    ]


def _null_sink(name: str, form: Format) -> str:
    return (
        f"load-module module-null-sink sink_name={name} rate={form.rate} channels={form.channels} "
        f"channel_map={_CHANNEL_MAPS[form.channels]} format=s16le norewinds=1"
    )


def _asound_conf(folder: Path) -> str:
    devices = {
        Rig.microphone: "mic.monitor",
        Rig.mic_tap: "mic.monitor",
        Rig.mouth: "mic",
        Rig.speaker: "speaker",
        Rig.ear: "speaker.monitor",
    }
    lines = ["</usr/share/alsa/alsa.conf>"]
    lines += [
        f'pcm.{name} {{ type pulse server "unix:{_socket_path(folder)}" device "{device}" }}'
        for name, device in devices.items()
    ]
    return "\n".join([*lines, ""])


def _socket_path(folder: Path) -> Path:
    return folder / "runtime" / "native"


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True


class _Lateness(NamedTuple):
    """A run of late observations: where and when it began, how late then, how late at best."""

    first: int
    at: float
    offset_s: float
    least_s: float


class Timeline:
    """The dates of a steady stream's samples, from observations "at this time, so many had passed".

    An observation can be late but never early, so of a second's observations the earliest is
    right. When they stay late by more than GAP_S for GAP_PROOF_S, samples have been lost: that
    is counted in `gaps` (index, seconds) and later samples are dated anew. Thread-safe.
    """

    def __init__(self, rate: int) -> None:
        self.rate = rate
        self.gaps: list[tuple[int, float]] = []  # at most one per GAP_PROOF_S
        self._lock = threading.Lock()
        self._indices: list[int] = []  # anchors: this index passed at this time
        self._times: list[float] = []
        self._settled_at = 0  # from this index on the last anchor is no longer corrected
        self._window_end = 0
        self._window_best = math.inf
        self._late: _Lateness | None = None
        self._fresh = True

    def __bool__(self) -> bool:
        """Whether there is anything to date by."""
        return bool(self._indices)

    def restart(self) -> None:
        """Expect the stream to go on after a pause of unknown length."""
        with self._lock:
            self._fresh = True

    def observe(self, at: float, index: int) -> None:
        """At monotonic time `at`, sample `index` had passed or was just passing."""
        offset = at - index / self.rate
        with self._lock:
            if self._fresh:
                self._begin(index, offset)
            elif offset > self._floor() + GAP_S:
                self._note_late(at, index, offset)
            else:
                self._late = None
                self._note_timely(index, offset)

    def time_at(self, index: float) -> float:
        """The monotonic time at which sample `index` passed. Raises LookupError when unknown."""
        with self._lock:
            return _interpolate(index, self._indices, self._times, 1 / self.rate)

    def index_at(self, at: float) -> int:
        """The sample that passed at monotonic time `at`. Raises LookupError when unknown."""
        with self._lock:
            return round(_interpolate(at, self._times, self._indices, self.rate))

    def _floor(self) -> float:
        return self._times[-1] - self._indices[-1] / self.rate

    def _begin(self, index: int, offset: float) -> None:
        self._fresh = False
        self._late = None
        self._anchor(index, offset)
        self._settled_at = index + round(WINDOW_S * self.rate)
        self._window_end = self._settled_at + round(WINDOW_S * self.rate)
        self._window_best = math.inf

    def _note_timely(self, index: int, offset: float) -> None:
        if index < self._settled_at:
            begun = self._indices[-1] / self.rate
            self._times[-1] = min(self._times[-1], begun + offset)
            return
        self._window_best = min(self._window_best, offset)
        if index >= self._window_end:
            self._anchor(index, self._window_best)
            self._window_end = index + round(WINDOW_S * self.rate)
            self._window_best = math.inf

    def _note_late(self, at: float, index: int, offset: float) -> None:
        late = self._late
        if late is None or offset < late.offset_s - GAP_S:  # a stalled reader is catching up
            late = _Lateness(index, at, offset, offset)
        self._late = late = late._replace(least_s=min(late.least_s, offset))
        if at - late.at < GAP_PROOF_S:
            return
        lost_s = late.least_s - self._floor()
        first = max(late.first, self._indices[-1] + 2)
        self.gaps.append((first, lost_s))
        self._anchor(first - 1, self._floor())
        self._begin(first, late.least_s)

    def _anchor(self, index: int, offset: float) -> None:
        self._indices.append(index)
        self._times.append(index / self.rate + offset)
        del self._indices[:-ANCHORS], self._times[:-ANCHORS]


def _interpolate(x: float, xs: list[Any], ys: list[Any], slope: float) -> float:
    """Straight between the points, along `slope` outside them."""
    if not xs:
        raise LookupError("nothing has been observed yet; start the stream and wait for it")
    after = bisect_right(xs, x)
    if after == 0:
        return float(ys[0] + (x - xs[0]) * slope)
    if after == len(xs):
        return float(ys[-1] + (x - xs[-1]) * slope)
    share = (x - xs[after - 1]) / (xs[after] - xs[after - 1])
    return float(ys[after - 1] + share * (ys[after] - ys[after - 1]))


class Stream:
    """A thread that keeps one PCM open: it opens it again whenever the server goes and comes."""

    def __init__(self, rig: Rig, name: str) -> None:
        self.reconnects = 0
        self._rig = rig
        self._failure = "nothing was read or written"
        self._stop = threading.Event()
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def start(self) -> None:
        """Start and return when sound flows. Raises RigError if it doesn't in STREAM_START_S."""
        self._thread.start()
        try:
            self._wait(self._flowing, STREAM_START_S, "no sound flows")
        except TimeoutError as error:
            self.close()
            raise RigError(f"{error}: {self._failure}; was the rig applied first?") from error

    def close(self) -> None:
        """Stop the thread; it closes its PCM itself, for closing under a read crashes Python."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(THREAD_STOP_S)

    def _wait(self, done: Callable[[], bool], timeout_s: float, complaint: str) -> None:
        with self._changed:
            if not self._changed.wait_for(done, timeout_s):
                raise TimeoutError(f"{complaint} (waited {timeout_s:.1f} s)")

    def _run(self) -> None:
        with contextlib.suppress(OSError):  # only root may: a room and its air are never late
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), THREAD_NICE)
        while not self._stop.is_set():
            try:
                self._flow()
            except (alsaaudio.ALSAAudioError, RigError) as error:
                self._failure = str(error)
                self._interrupted()
                self._stop.wait(RETRY_S)
            while not self._rig.plugged and not self._stop.is_set():
                self._stop.wait(RETRY_S)  # each vain attempt to open prints a line on stderr

    def _flowing(self) -> bool:
        raise NotImplementedError

    def _flow(self) -> None:
        """Open the PCM and work it until stopped."""
        raise NotImplementedError

    def _interrupted(self) -> None:
        """The PCM failed or could not be opened."""
        raise NotImplementedError


@contextlib.contextmanager
def opened(kind: int, device: str, form: Format, period: int, periods: int) -> Iterator[Any]:
    """A PCM of exactly this format; ALSA changes silently what it can't grant, so compare."""
    pcm = alsaaudio.PCM(
        kind,
        alsaaudio.PCM_NORMAL,
        rate=form.rate,
        channels=form.channels,
        format=alsaaudio.PCM_FORMAT_S16_LE,
        periodsize=period,
        periods=periods,
        device=device,
    )
    try:
        info = pcm.info()
        if (info["rate"], info["channels"]) != form:
            raise RigError(f"{device} gave {info['rate']} Hz x {info['channels']}, not {form}")
        yield pcm
    finally:
        with contextlib.suppress(alsaaudio.ALSAAudioError):
            pcm.drop()  # close() alone would play the buffer out first
        pcm.close()


class Utterance:
    """Something said into the microphone. Times are monotonic, None until it came to pass."""

    def __init__(self, mouth: "Mouth", samples: Samples, at: float | None) -> None:
        self.started: float | None = None  # its first sample was at the microphone
        self.ended: float | None = None  # its last one was
        self.cut = False  # the server went away under it: the rest was never said
        self._mouth = mouth
        self._samples = samples  # (n, channels of the microphone)
        self._at = at
        self._first: int | None = None  # index of its first frame in the mouth's stream

    def __repr__(self) -> str:
        return f"<Utterance {len(self._samples)} frames {self.started} to {self.ended}>"

    def wait_started(self, timeout_s: float) -> float:
        """Return `started`. Raises TimeoutError."""
        self._mouth._wait(lambda: self.started is not None, timeout_s, "it has not begun")
        assert self.started is not None
        return self.started

    def wait_ended(self, timeout_s: float) -> float:
        """Return `ended`. Raises TimeoutError."""
        self._mouth._wait(lambda: self.ended is not None, timeout_s, "it is not over")
        assert self.ended is not None
        return self.ended


class Mouth(Stream):
    """Speaks into the rig's microphone, over a bed of room noise, in real time.

    `noise_dbfs` is the bed's RMS over full scale (32768), white, independent in each channel and
    the same for the same seed; None is digital silence. Starts as a context manager or by start().
    """

    def __init__(self, rig: Rig, noise_dbfs: float | None = -45.0, seed: int = 0) -> None:
        super().__init__(rig, "mouth")
        self.form = rig.formats[rig.mouth]
        self._period = round(MOUTH_PERIOD_S * self.form.rate)
        self._noise_rms = 0.0 if noise_dbfs is None else 32768 * 10 ** (noise_dbfs / 20)
        self._random = np.random.default_rng(seed)
        self._utterances: list[Utterance] = []  # under _changed
        self._timeline = Timeline(self.form.rate)
        self._gaps_before = 0

    @property
    def gaps(self) -> int:
        """Holes in what was said: this thread was too late for the device."""
        return self._gaps_before + len(self._timeline.gaps)

    def say(self, samples: Samples, at: float | None = None) -> Utterance:
        """Mix int16 `samples` in, at the microphone's rate, from monotonic time `at` on.

        Shape (n,) goes to every channel, (n, channels) as it is. None, or a time that can't be
        reached any more, is as soon as possible (some 90 ms); utterances that overlap add up.
        Raises ValueError for another shape or type and RigError when MOUTH_QUEUE are waiting.
        """
        longest = UTTERANCE_LONGEST_S * self.form.rate
        if samples.dtype != np.int16 or not 0 < len(samples) <= longest:
            raise ValueError(f"say 1 sample to {UTTERANCE_LONGEST_S} s of int16")
        if samples.ndim == 1:
            samples = np.repeat(samples[:, np.newaxis], self.form.channels, axis=1)
        if samples.shape[1:] != (self.form.channels,):
            raise ValueError(f"{samples.shape} is not (n,) or (n, {self.form.channels})")
        utterance = Utterance(self, samples, at)
        with self._changed:
            if len(self._utterances) >= MOUTH_QUEUE:
                raise RigError(f"{MOUTH_QUEUE} utterances are waiting; wait for one to end")
            self._utterances.append(utterance)
        return utterance

    def _flowing(self) -> bool:
        return bool(self._timeline)

    def _flow(self) -> None:
        with opened(
            alsaaudio.PCM_PLAYBACK, Rig.mouth, self.form, self._period, MOUTH_PERIODS
        ) as pcm:
            self._gaps_before += len(self._timeline.gaps)
            self._timeline = Timeline(self.form.rate)
            written = 0
            while not self._stop.is_set():
                self._note_heard(written - queued(pcm))
                # It starts with the first write, so that one is long. Not the whole buffer: ALSA's
                # pulse plugin would then take full for empty, and avail() stays wrong for good.
                frames = self._period if written else self._period * (MOUTH_PERIODS - 1)
                sound = self._mix(written, frames)
                written += max(0, pcm.write(sound.tobytes()))  # < 0: underrun, again

    def _interrupted(self) -> None:
        """What was being said is lost, what is still to be said waits."""
        now = time.monotonic()
        with self._changed:
            if self._flowing():
                self.reconnects += 1
                self._timeline = Timeline(self.form.rate)
            for utterance in [u for u in self._utterances if u._first is not None]:
                utterance.started = utterance.started or now
                utterance.ended = now
                utterance.cut = True
                self._utterances.remove(utterance)
            self._changed.notify_all()

    def _note_heard(self, heard: int) -> None:
        """Date what has reached the microphone by now: `heard` frames."""
        if heard <= 0:
            return  # nothing dates the first frame before it is taken from the buffer
        self._timeline.observe(time.monotonic(), heard)
        with self._changed:
            for utterance in [u for u in self._utterances if u._first is not None]:
                self._date(utterance, heard)
            self._changed.notify_all()

    def _date(self, utterance: Utterance, heard: int) -> None:
        first = utterance._first
        assert first is not None
        if utterance.started is None and heard > first:
            utterance.started = self._timeline.time_at(first)
        last = first + len(utterance._samples) - 1
        if heard > last:
            utterance.ended = self._timeline.time_at(last)
            self._utterances.remove(utterance)

    def _mix(self, index: int, frames: int) -> Samples:
        """What is to be written from stream index `index` on, shape (frames, channels)."""
        sound = self._random.standard_normal((frames, self.form.channels)) * self._noise_rms
        with self._changed:
            for utterance in self._utterances:
                if utterance._first is None:
                    utterance._first = self._first_frame(utterance, index)
                if utterance._first is not None:
                    _add(sound, index, utterance._samples, utterance._first)
        mixed: Samples = np.clip(np.rint(sound), -32768, 32767).astype(np.int16)
        return mixed

    def _first_frame(self, utterance: Utterance, index: int) -> int | None:
        """Where it begins if that is within the period from `index` on, else None."""
        if not self._timeline:
            return None  # sound does not flow yet: nothing can be dated
        if utterance._at is None:
            return index
        first = self._timeline.index_at(utterance._at)
        return max(index, first) if first < index + self._period else None


def queued(pcm: Any) -> int:
    """Frames written but not yet taken by the server; all of them while that can't be known."""
    size: int = pcm.info()["buffer_size"]
    available: int = pcm.avail()
    return size - min(available, size) if available >= 0 else size


def _add(sound: Any, index: int, samples: Samples, first: int) -> None:
    """Add the part of `samples` (begun at stream index `first`) that lies in `sound`, in place."""
    begin = max(index, first)
    end = min(index + len(sound), first + len(samples))
    if begin < end:
        sound[begin - index : end - index] += samples[begin - first : end - first]


class Ear(Stream):
    """Records what left the speaker (or another capture PCM of the rig) from its start.

    Kept in memory: one channel, int16, at the sink's own rate, so bit-exact. After EAR_LONGEST_S
    it stops, sets `full` and logs it. While the server is away silence is recorded (`outages`
    lists index and frames of it), so that the recording keeps time; samples lost otherwise are
    listed in `gaps` (index, seconds).
    """

    def __init__(self, rig: Rig, device: str = Rig.ear, channel: int = 0) -> None:
        super().__init__(rig, f"ear {device}")
        self.device = device
        self.form = rig.formats[device]
        self.rate = self.form.rate
        self.full = False
        self.outages: list[tuple[int, int]] = []  # bounded by EAR_LONGEST_S / RETRY_S
        # The server renders a block as a whole: a speaker plays it after that, a microphone has
        # heard it before. The timeline dates the block's last sample by the moment of rendering.
        self._shift_s = EAR_PERIOD_S if device == rig.ear else 0.0
        self._channel = channel
        self._recording = bytearray()  # under _changed
        self._timeline = Timeline(self.rate)
        self._resuming = False

    @property
    def gaps(self) -> list[tuple[int, float]]:
        """Samples the server dropped silently: where (index), how much (seconds)."""
        return list(self._timeline.gaps)

    @property
    def length(self) -> int:
        """Samples recorded so far."""
        return len(self._recording) // 2

    def snapshot(self, start: int = 0, stop: int | None = None) -> Samples:
        """A copy of the recording from index `start` to `stop` or the end, shape (n,)."""
        with self._changed:
            end = self.length if stop is None else stop
            return np.frombuffer(bytes(self._recording[2 * start : 2 * end]), np.int16)

    def time_at(self, index: float) -> float:
        """The monotonic time of sample `index`, to about EAR_PERIOD_S.

        When it left the speaker or was at the microphone. Raises LookupError before start().
        """
        return self._timeline.time_at(index) + self._shift_s

    def index_at(self, at: float) -> int:
        """The sample of monotonic time `at`, the inverse of `time_at`.

        May be yet to come; 0 for a time before the recording. Raises LookupError before start().
        """
        return max(0, self._timeline.index_at(at - self._shift_s))

    def wait_until(self, at: float, timeout_s: float) -> None:
        """Return when the recording holds the sample of monotonic time `at`. TimeoutError."""
        self._wait(
            lambda: self.length > self.index_at(at), timeout_s, "the recording is not there yet"
        )

    def save(self, path: str | Path) -> None:
        """Write the recording so far as a WAV file."""
        write_wav(path, self.snapshot(), self.rate)

    def _flowing(self) -> bool:
        return bool(self._timeline)

    def _flow(self) -> None:
        period = round(EAR_PERIOD_S * self.rate)
        periods = round(EAR_BUFFER_S / EAR_PERIOD_S)
        with opened(alsaaudio.PCM_CAPTURE, self.device, self.form, period, periods) as pcm:
            while not self._stop.is_set():
                frames, data = pcm.read()
                waiting = max(0, pcm.avail())
                if frames > 0:  # else an overrun: what it lost shows in the timeline
                    self._note(data, waiting, time.monotonic())

    def _interrupted(self) -> None:
        if self._flowing() and not self._resuming:
            self._resuming = True
            self.reconnects += 1

    def _note(self, data: bytes, waiting: int, now: float) -> None:
        """Keep what was read; `waiting` more frames exist already."""
        frames = np.frombuffer(data, "<i2").reshape(-1, self.form.channels)
        with self._changed:
            if self._resuming:
                self._fill(self._timeline.index_at(now) - len(frames) - waiting - self.length)
            self._recording += np.ascontiguousarray(frames[:, self._channel]).tobytes()
            self._timeline.observe(now, self.length + waiting)
            self._changed.notify_all()
        if self.length >= EAR_LONGEST_S * self.rate:
            self.full = True
            self._stop.set()
            log.warning("%s stops: it holds its %d s", self._thread.name, EAR_LONGEST_S)

    def _fill(self, frames: int) -> None:
        """Put silence in for the time the server was away."""
        self._resuming = False
        frames = max(0, min(frames, EAR_LONGEST_S * self.rate - self.length))
        self.outages.append((self.length, frames))
        self._recording += bytes(2 * frames)
        self._timeline.restart()


@dataclass(frozen=True)
class Calibration:
    """What the rig itself adds to a measurement, medians in ms."""

    delay_ms: float  # write() called on a prepared device → first non-zero sample recorded
    spread_ms: float  # longest less shortest of these delays
    drop_ms: float  # drop() returned → last non-zero sample recorded


def calibrate(rig: Rig, ear: Ear, n: int = 10, channels: int = 1) -> Calibration:
    """Measure the rig's own delays with the speaker opened as the daemon does; takes 0.4 s each.

    The speaker must be free and silent, `ear` recording it. Leaves it closed and silent.
    Raises RigError when a burst isn't heard.
    """
    form = Format(rig.formats[rig.speaker].rate, channels)
    period = form.rate // 50
    random = np.random.default_rng(n)
    delays_ms, drops_ms = [], []
    with opened(alsaaudio.PCM_PLAYBACK, rig.speaker, form, period, 6) as pcm:
        for _ in range(n):
            time.sleep(random.uniform(0, 0.02))  # or the bursts fall in step with the server
            asked, dropped = _play_and_drop(pcm, period * channels)
            first, last = _heard(ear, asked, dropped)
            delays_ms.append((first - asked) * 1e3)
            drops_ms.append((last - dropped) * 1e3)
    return Calibration(
        statistics.median(delays_ms),
        max(delays_ms) - min(delays_ms),
        statistics.median(drops_ms),
    )


def _play_and_drop(pcm: Any, period_samples: int) -> tuple[float, float]:
    """Play a tone without a zero in it, drop it; the times of the first write and of the end."""
    tone = np.where(np.arange(period_samples) % 96 < 48, 8000, -8000).astype("<i2").tobytes()
    asked = time.monotonic()
    pcm.write(tone * 2)
    for _ in range(10):
        pcm.write(tone)
    pcm.drop()
    return asked, time.monotonic()


def _heard(ear: Ear, asked: float, dropped: float) -> tuple[float, float]:
    """The times of the first and the last non-zero sample of a burst."""
    silence_s = 0.1
    ear.wait_until(dropped + silence_s, timeout_s=STREAM_START_S)
    start = ear.index_at(asked - silence_s / 2)
    sounding = np.flatnonzero(ear.snapshot(start, ear.index_at(dropped + silence_s)))
    if not len(sounding):
        raise RigError("the ear did not hear the speaker; does something else hold it?")
    return ear.time_at(start + int(sounding[0])), ear.time_at(start + int(sounding[-1]))
