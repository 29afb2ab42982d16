from collections.abc import Iterator

import pytest

from voiced.sim.rig import Rig


@pytest.fixture(scope="session")
def rig() -> Iterator[Rig]:
    """One microphone (mono) and one speaker at 48 kHz for all tests; unplug it, but replug it."""
    with Rig() as rig:
        rig.apply()
        yield rig
