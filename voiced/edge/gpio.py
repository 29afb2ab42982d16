"""The button on a GPIO pin: raw edges out, nothing decided."""

from __future__ import annotations

import time
from collections.abc import Callable

import gpiozero

from voiced.edge.pcm import DeviceError
from voiced.events import ButtonEdge


class Button:
    """A button between `pin` (BCM) and ground, with the board's pull-up.

    `post` is called from gpiozero's thread. gpiozero's own debounce is off: it drops edges.

    Raises:
        DeviceError: the pin can't be used.
    """

    def __init__(self, pin: int, post: Callable[[ButtonEdge], None]) -> None:
        try:
            self._device = gpiozero.DigitalInputDevice(pin, pull_up=True, bounce_time=None)
        except (gpiozero.GPIOZeroError, OSError, ImportError) as exc:
            raise DeviceError("button-lost", f"GPIO{pin}: {exc}") from exc
        self._device.when_activated = lambda: post(ButtonEdge(True, time.monotonic()))
        self._device.when_deactivated = lambda: post(ButtonEdge(False, time.monotonic()))

    def close(self) -> None:
        """Let go of the pin. Safe twice."""
        self._device.close()
