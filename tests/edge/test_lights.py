import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from gpiozero import Device
from gpiozero.pins.mock import MockFactory, MockPWMPin

from voiced import config
from voiced.edge.lights import Lights
from voiced.edge.pcm import DeviceError
from voiced.events import Pattern

OFF, RED, BLUE = (0.0, 0.0, 0.0), (1.0, 0.0, 0.0), (0.0, 0.2, 1.0)
STEADY = Pattern("steady", ((BLUE, 1000),))
BLINK = Pattern("blink", ((RED, 60), (OFF, 2940)))


class FakeLoop:
    """A clock that `pass_ms` moves, and the timers on it."""

    def __init__(self) -> None:
        self._now = 0.0
        self._timers: list[_Timer] = []

    def call_later(self, delay_s: float, callback: Callable[..., None], *args: Any) -> "_Timer":
        timer = _Timer(self._now + delay_s, callback, args)
        self._timers.append(timer)
        return timer

    def pass_ms(self, ms: float) -> None:
        end = self._now + ms / 1000 + 1e-9
        while due := min((t for t in self.pending if t.at <= end), default=None, key=_at):
            self._now = due.at
            self._timers.remove(due)
            due.callback(*due.args)
        self._now = end

    @property
    def pending(self) -> list["_Timer"]:
        return [timer for timer in self._timers if not timer.cancelled]


class _Timer:
    def __init__(self, at: float, callback: Callable[..., None], args: tuple[Any, ...]) -> None:
        self.at, self.callback, self.args = at, callback, args
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


def _at(timer: _Timer) -> float:
    return timer.at


@pytest.fixture
def pins(monkeypatch: pytest.MonkeyPatch) -> Iterator[MockFactory]:
    factory = MockFactory(pin_class=MockPWMPin)
    monkeypatch.setattr(Device, "pin_factory", factory)
    yield factory
    factory.reset()


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> FakeLoop:
    loop = FakeLoop()
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: loop)
    return loop


failures: list[DeviceError] = []


def lights(kind: Any, *pins: int) -> Lights:
    return Lights(config.Lights(kind=kind, pins=list(pins)), failures.append)


def states(pins: MockFactory, *numbers: int) -> list[float]:
    return [round(float(pins.pin(number).state), 2) for number in numbers]


def test_an_led_is_on_for_bright_and_off_for_dim(pins: MockFactory) -> None:
    led = lights("led", 27)
    for colour, lit in ((BLUE, 1), ((0.6, 0.6, 0.6), 1), ((0.0, 0.05, 0.25), 0), (OFF, 0)):
        led.show(Pattern("x", ((colour, 1000),)))
        assert states(pins, 27) == [lit]
    led.close()


def test_a_dimming_led_shows_the_brightest_colour(pins: MockFactory) -> None:
    led = lights("pwm", 18)
    led.show(Pattern("x", (((0.3, 0.15, 0.0), 1000),)))
    assert states(pins, 18) == [0.3]
    led.close()


def test_an_rgb_led_shows_the_colour(pins: MockFactory) -> None:
    led = lights("rgb", 22, 23, 24)
    led.show(STEADY)
    assert states(pins, 22, 23, 24) == list(BLUE)
    led.close()


def test_no_lights_take_every_pattern(pins: MockFactory) -> None:
    none = lights("none")
    none.show(BLINK)
    none.close()
    none.close()


def test_a_pattern_steps_over_and_over_in_its_own_time(pins: MockFactory, loop: FakeLoop) -> None:
    led = lights("rgb", 22, 23, 24)
    led.show(BLINK)
    for _ in range(3):
        assert states(pins, 22) == [1]
        loop.pass_ms(59)
        assert states(pins, 22) == [1]
        loop.pass_ms(1)
        assert states(pins, 22) == [0]
        loop.pass_ms(2939)
        assert states(pins, 22) == [0]
        loop.pass_ms(1)
    led.close()


def test_the_next_pattern_is_shown_at_once_and_the_last_one_stops(
    pins: MockFactory, loop: FakeLoop
) -> None:
    led = lights("rgb", 22, 23, 24)
    led.show(BLINK)
    loop.pass_ms(30)
    led.show(STEADY)
    assert states(pins, 22, 23, 24) == list(BLUE)
    loop.pass_ms(10_000)
    assert states(pins, 22, 23, 24) == list(BLUE)
    assert loop.pending == []
    led.close()


def test_closing_makes_it_dark_and_lets_go_of_the_pins_also_twice(
    pins: MockFactory, loop: FakeLoop
) -> None:
    led = lights("rgb", 22, 23, 24)
    led.show(BLINK)
    led.close()
    led.close()
    assert states(pins, 22, 23, 24) == [0, 0, 0]
    assert loop.pending == []
    led.show(STEADY)  # late: nothing is left to show it on
    assert states(pins, 22, 23, 24) == [0, 0, 0]
    lights("rgb", 22, 23, 24).close()


@pytest.mark.parametrize(("kind", "numbers"), [("led", [57]), ("pwm", [57]), ("rgb", [22, 23, 57])])
def test_pins_the_board_does_not_have_are_a_fault_that_names_them(
    pins: MockFactory, kind: str, numbers: list[int]
) -> None:
    with pytest.raises(DeviceError, match="GPIO.*57") as error:
        lights(kind, *numbers)
    assert error.value.fault == "lights-lost"


def test_pins_in_use_are_a_fault(pins: MockFactory) -> None:
    led = lights("led", 27)
    with pytest.raises(DeviceError, match="GPIO.*27"):
        lights("led", 27)
    led.close()


def test_pins_that_can_not_dim_are_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    factory = MockFactory()
    monkeypatch.setattr(Device, "pin_factory", factory)
    with pytest.raises(DeviceError, match="GPIO.*18"):
        lights("pwm", 18)
    factory.reset()


def test_pins_that_fail_later_are_a_fault_of_show(pins: MockFactory) -> None:
    led = lights("led", 27)
    led._device.close()  # each write raises from now on
    with pytest.raises(DeviceError, match="GPIO.*27") as error:
        led.show(STEADY)
    assert error.value.fault == "lights-lost"
    led.close()


def test_a_step_that_fails_later_is_told(loop: FakeLoop, pins: MockFactory) -> None:
    failures.clear()
    led = lights("led", 27)
    led.show(BLINK)
    led._device.close()
    loop.pass_ms(61)
    assert [failure.fault for failure in failures] == ["lights-lost"]
