import time
from collections.abc import Iterator

import pytest
from gpiozero import Device
from gpiozero.pins.mock import MockFactory

from voiced.edge.gpio import Button
from voiced.edge.pcm import DeviceError
from voiced.events import ButtonEdge

PIN = 17


@pytest.fixture
def pins(monkeypatch: pytest.MonkeyPatch) -> Iterator[MockFactory]:
    factory = MockFactory()
    monkeypatch.setattr(Device, "pin_factory", factory)
    yield factory
    factory.reset()


def test_each_edge_of_the_contact_comes_with_its_time(pins: MockFactory) -> None:
    edges: list[ButtonEdge] = []
    button = Button(PIN, edges.append)
    before = time.monotonic()
    pins.pin(PIN).drive_low()
    between = time.monotonic()
    pins.pin(PIN).drive_high()
    after = time.monotonic()
    button.close()
    assert [edge.down for edge in edges] == [True, False]
    assert before <= edges[0].at <= between <= edges[1].at <= after
    assert [edge.who for edge in edges] == [None, None]


def test_a_bouncing_contact_loses_no_edge(pins: MockFactory) -> None:
    edges: list[ButtonEdge] = []
    button = Button(PIN, edges.append)
    for _ in range(20):
        pins.pin(PIN).drive_low()
        pins.pin(PIN).drive_high()
    button.close()
    assert [edge.down for edge in edges] == [True, False] * 20


def test_the_board_pulls_the_open_contact_up(pins: MockFactory) -> None:
    button = Button(PIN, lambda _: None)
    assert pins.pin(PIN).pull == "up"
    button.close()


def test_closing_twice_is_no_harm_and_nothing_comes_after_it(pins: MockFactory) -> None:
    edges: list[ButtonEdge] = []
    button = Button(PIN, edges.append)
    button.close()
    button.close()
    pins.pin(PIN).drive_low()
    assert edges == []


def test_a_closed_pin_can_be_had_again(pins: MockFactory) -> None:
    Button(PIN, lambda _: None).close()
    Button(PIN, lambda _: None).close()


def test_a_pin_that_is_in_use_is_a_fault_that_names_it(pins: MockFactory) -> None:
    button = Button(PIN, lambda _: None)
    with pytest.raises(DeviceError, match="GPIO17") as error:
        Button(PIN, lambda _: None)
    assert error.value.fault == "button-lost"
    button.close()


def test_a_pin_the_board_does_not_have_is_a_fault(pins: MockFactory) -> None:
    with pytest.raises(DeviceError, match="GPIO57"):
        Button(57, lambda _: None)
