"""A microphone and a speaker without hardware: null sinks of a private PulseAudio.

The daemon opens `Rig.microphone` and `Rig.speaker` through the real libasound; what speaks
into the one and records the other is in `streams`.

What the rig can't show: a capture overrun is never reported (the server drops data silently;
`streams.Ear` finds it by the clock), and an unplugged card is seen as "Input/output error", then as
"Connection refused", not as "No such device".
"""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Literal, NamedTuple, Self

SERVER_START_S = 10.0  # takes 0.04 s on a quiet machine; a small board from a cold disk, seconds
SERVER_STOP_S = 2.0  # killed, it is gone in milliseconds

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

    def __exit__(self, *_: object) -> None:
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
            self._server.wait(timeout=SERVER_STOP_S)
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
