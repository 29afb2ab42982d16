from collections.abc import Iterator

import pytest

from voiced.sim.rig import Rig
from voiced.sim.streams import Ear


@pytest.fixture
def ear(rig: Rig) -> Iterator[Ear]:
    with Ear(rig) as ear:
        yield ear


@pytest.fixture
def tap(rig: Rig) -> Iterator[Ear]:
    with Ear(rig, rig.mic_tap) as tap:
        yield tap
