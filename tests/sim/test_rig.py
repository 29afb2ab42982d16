import os
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

from tests.sim.sounds import RATE, noise, sounding, speaker
from voiced.sim import rig as rig_module
from voiced.sim.rig import Rig, RigError
from voiced.sim.streams import Ear, Mouth


@pytest.mark.parametrize("channels", [1, 2])
def test_what_is_written_to_the_speaker_is_heard_bit_for_bit(
    rig: Rig, ear: Ear, channels: int
) -> None:
    said = noise(RATE // 2)
    pcm = speaker(rig, channels)
    asked = time.monotonic()
    pcm.write(np.repeat(said, channels).tobytes())
    pcm.drain()
    ear.wait_until(time.monotonic() + 0.05, timeout_s=5)
    pcm.drop()
    pcm.close()
    start = ear.index_at(asked - 0.1)
    first, sound = sounding(ear.snapshot(start))
    assert np.array_equal(sound, said)
    assert abs(ear.time_at(start + first) - asked) < 0.04


def test_drop_leaves_exact_silence(rig: Rig, ear: Ear) -> None:
    pcm = speaker(rig, 1)
    for _ in range(10):
        pcm.write(noise(960).tobytes())
    pcm.drop()
    dropped = time.monotonic()
    ear.wait_until(dropped + 0.3, timeout_s=5)
    pcm.close()
    after = ear.snapshot(ear.index_at(dropped + 0.03))
    assert len(after) > 0.25 * RATE
    assert not after.any()
    assert ear.snapshot(ear.index_at(dropped - 0.1), ear.index_at(dropped - 0.05)).any()


def test_six_microphones_keep_their_order(rig: Rig) -> None:
    rate = 16_000
    tones_hz = [300, 500, 700, 900, 1100, 1300]
    time_s = np.arange(rate // 2)[:, np.newaxis] / rate
    said = (8000 * np.sin(2 * np.pi * np.array(tones_hz) * time_s)).astype(np.int16)
    with Rig(mic_channels=6, mic_rate=rate) as array:
        array.apply()
        try:
            ears = [Ear(array, array.mic_tap, channel) for channel in range(6)]
            for ear in ears:
                ear.start()
            with Mouth(array, noise_dbfs=None) as mouth:
                ended = mouth.say(said).wait_ended(5)
                for ear in ears:
                    ear.wait_until(ended, timeout_s=5)
        finally:
            rig.apply()
            for ear in ears:
                ear.close()
    for ear, tone_hz in zip(ears, tones_hz, strict=True):
        heard = ear.snapshot(ear.index_at(ended - 0.4), ear.index_at(ended - 0.2))
        spectrum = np.abs(np.fft.rfft(heard))
        assert np.argmax(spectrum) * rate / len(heard) == pytest.approx(tone_hz, abs=5)
        assert heard.max() == pytest.approx(8000, abs=50)


def test_the_server_and_its_directory_are_gone_after_close() -> None:
    rig = Rig()
    rig.start()
    folder = Path(rig.env["ALSA_CONFIG_PATH"]).parent
    server = rig._server
    assert server is not None
    assert folder.exists()
    rig.close()
    rig.close()
    assert server.returncode is not None
    assert not folder.exists()
    with pytest.raises(RigError, match="closed"):
        rig.replug()


def test_a_rig_that_was_never_started_closes() -> None:
    Rig().close()


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(rig_module, "_PLUGIN_DIRS", ())
        with pytest.raises(RigError, match="libasound2-plugins"):
            Rig().start()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RigError, match="apt-get install pulseaudio"):
        Rig().start()


def test_a_server_that_dies_leaves_its_last_words_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = tmp_path / "pulseaudio"
    server.write_text("#!/bin/sh\necho no such luck >&2\nexit 1\n")
    server.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(RigError, match="no such luck"):
        Rig().start()
    assert list(tmp_path.iterdir()) == [server]
