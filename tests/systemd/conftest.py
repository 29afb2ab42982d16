from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.appliance import tree
from tests.systemd.stage import KEY, Device, tone
from voiced.sim.rig import Rig
from voiced.sim.stand import Server
from voiced.sim.streams import Ear, Mouth
from voiced.sim.wav import write_wav

NOISE_DBFS = -60.0  # below the built-in server's bar for speech
LONG_S = 20.0  # nobody waits for its end


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The limit is for the tests: building the trees for the first time takes minutes."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.timeout(60, func_only=True))


@pytest.fixture(scope="session")
def layers() -> Iterator[list[Path]]:
    """Debian with the product. Skips where that can't be had; a CI that skips proves nothing."""
    if why := tree.missing():
        (pytest.fail if "CI" in os.environ else pytest.skip)(why)
    # As Ctrl-C: pytest then leaves no container and no mount behind.
    stops = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, signal.default_int_handler) for number in stops]
    yield tree.product(tree.native())
    for number, handler in zip(stops, before, strict=True):
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def parrot(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that says back what it hears; its URL."""
    folder = tmp_path_factory.mktemp("parrot")
    with Server(folder, ["--key", KEY]) as server:
        yield server.url


@pytest.fixture(scope="session")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that answers for LONG_S; its URL."""
    folder = tmp_path_factory.mktemp("talker")
    write_wav(folder / "answer.wav", tone(LONG_S), 24_000)
    with Server(folder, ["--key", KEY, "--answer", str(folder / "answer.wav")]) as server:
        yield server.url


@pytest.fixture
def device(layers: list[Path], rig: Rig, parrot: str) -> Iterator[Device]:
    """All there, and the unit not started."""
    with Device(layers, rig, parrot) as device:
        yield device


@pytest.fixture
def mouth(rig: Rig) -> Iterator[Mouth]:
    with Mouth(rig, NOISE_DBFS) as mouth:
        yield mouth


@pytest.fixture
def ear(rig: Rig) -> Iterator[Ear]:
    with Ear(rig) as ear:
        yield ear
