"""The status light: one LED, a dimming one, or an RGB one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import gpiozero

from voiced import config
from voiced.edge.pcm import DeviceError
from voiced.events import LED_BAR, Pattern

Colour = tuple[float, float, float]


class Lights:
    """Shows patterns on the configured pins; with `kind = "none"`, on nothing.

    `failed` is called if a later step of a pattern can't be shown.

    Raises:
        DeviceError: the pins can't be used; also from `show`.
    """

    def __init__(self, settings: config.Lights, failed: Callable[[DeviceError], None]) -> None:
        self._failed = failed
        self._kind = settings.kind
        self._pins = settings.pins
        self._later: asyncio.TimerHandle | None = None
        try:
            self._device: Any = _open(settings)
        except (gpiozero.GPIOZeroError, OSError, ImportError) as exc:
            raise DeviceError("lights-lost", f"GPIO{settings.pins}: {exc}") from exc

    def show(self, pattern: Pattern) -> None:
        """Set the pattern's first step at once; the loop's timers do the others."""
        self._cancel()
        if self._device is not None:
            self._step(pattern, 0)

    def close(self) -> None:
        """Dark, then let go of the pins. Safe twice."""
        self._cancel()
        if self._device is not None:
            self._device.close()
            self._device = None

    def _cancel(self) -> None:
        if self._later:
            self._later.cancel()
            self._later = None

    def _step(self, pattern: Pattern, index: int) -> None:
        colour, duration_ms = pattern.steps[index]
        try:
            self._device.value = self._value(colour)
        except (gpiozero.GPIOZeroError, OSError) as exc:
            raise DeviceError("lights-lost", f"GPIO{self._pins}: {exc}") from exc
        if len(pattern.steps) > 1:
            following = (index + 1) % len(pattern.steps)
            loop = asyncio.get_running_loop()
            self._later = loop.call_later(duration_ms / 1000, self._go_on, pattern, following)

    def _go_on(self, pattern: Pattern, index: int) -> None:
        try:
            self._step(pattern, index)
        except DeviceError as exc:
            self._failed(exc)

    def _value(self, colour: Colour) -> float | Colour:
        if self._kind == "rgb":
            return colour
        brightness = max(colour)
        return float(brightness > LED_BAR) if self._kind == "led" else brightness


def _open(settings: config.Lights) -> Any:
    if settings.kind == "led":
        return gpiozero.LED(*settings.pins)
    if settings.kind == "pwm":
        return gpiozero.PWMLED(*settings.pins)
    if settings.kind == "rgb":
        return gpiozero.RGBLED(*settings.pins)
    return None
