"""A bare capture and playback loop, the least that any audio program costs: what the daemon's own
CPU time is compared with. `python -m tests.bench.bare_loop MICROPHONE SPEAKER SECONDS [silent]`
prints its CPU seconds."""

from __future__ import annotations

import sys
import threading
import time

import alsaaudio


def main() -> None:
    microphone, speaker, seconds, *silent = sys.argv[1:]
    capture, playback = (
        alsaaudio.PCM(
            kind,
            alsaaudio.PCM_NORMAL,
            device=device,
            rate=48_000,
            channels=1,
            format=alsaaudio.PCM_FORMAT_S16_LE,
            periodsize=960,
            periods=periods,
        )
        for kind, device, periods in (
            (alsaaudio.PCM_CAPTURE, microphone, 10),
            (alsaaudio.PCM_PLAYBACK, speaker, 6),
        )
    )
    end = time.monotonic() + float(seconds)

    def play() -> None:
        while time.monotonic() < end:
            playback.write(bytes(2 * 960))

    if not silent:
        threading.Thread(target=play, daemon=True).start()
    before = time.process_time()
    while time.monotonic() < end:
        capture.read()
    print(time.process_time() - before)


if __name__ == "__main__":
    main()
