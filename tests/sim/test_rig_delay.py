import time

import pytest

from tests.sim.sounds import speaker
from voiced.sim.rig import Rig, RigError
from voiced.sim.rig_delay import calibrate
from voiced.sim.streams import Ear


def test_calibration_is_a_few_milliseconds_and_leaves_the_speaker_free(rig: Rig, ear: Ear) -> None:
    found = calibrate(rig, ear, n=3)
    assert 0 < found.delay_ms < 25
    assert -5 < found.drop_ms < 25
    assert 0 <= found.spread_ms < 40
    end = time.monotonic()
    ear.wait_until(end + 0.1, timeout_s=5)
    assert not ear.snapshot(ear.index_at(end)).any()
    speaker(rig, 1).close()


def test_calibration_complains_when_nothing_is_heard(rig: Rig, tap: Ear) -> None:
    with pytest.raises(RigError, match="did not hear"):
        calibrate(rig, tap, n=1)
