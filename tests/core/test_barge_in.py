import numpy as np
import pytest

from voiced.core import barge_in
from voiced.core.barge_in import BargeIn, Sign
from voiced.events import BLOCK_FRAMES, Samples

SETTLED = 300  # blocks of our sound after which a canceller is trusted


def noise(dbfs: float, seed: int = 0) -> Samples:
    """A block of that RMS."""
    sound = np.random.default_rng(seed).standard_normal(BLOCK_FRAMES)
    scaled = sound / np.sqrt(np.mean(sound**2)) * 32768 * 10 ** (dbfs / 20)
    return np.clip(np.rint(scaled), -32768, 32767).astype(np.int16)


ROOM, SOUND = noise(-70.0), noise(-20.0)


def settled(mode: str = "cancel") -> BargeIn:
    """A detector that has heard our sound, and nobody over it."""
    detector = BargeIn(mode)  # type: ignore[arg-type]
    for _ in range(SETTLED):
        assert detector.push(ROOM, SOUND) is Sign.NONE
    return detector


def blocks_to(wanted: Sign, detector: BargeIn, heard: Samples, most: int = 30) -> int | None:
    for i in range(1, most + 1):
        if detector.push(heard, SOUND) is wanted:
            return i
    return None


@pytest.mark.parametrize("mode", ["cancel", "hardware"])
def test_a_voice_is_a_sign_after_40_ms_and_confirmed_within_120(mode: str) -> None:
    assert blocks_to(Sign.POSSIBLE, settled(mode), noise(-25.0)) == 2
    assert (blocks_to(Sign.CONFIRMED, settled(mode), noise(-25.0)) or 99) <= 6


def test_the_onset_is_where_the_voice_began() -> None:
    detector = settled()
    blocks = blocks_to(Sign.CONFIRMED, detector, noise(-25.0))
    assert blocks
    assert detector.onset_blocks == blocks - 1


def test_a_faint_voice_takes_longer() -> None:
    loud = blocks_to(Sign.CONFIRMED, settled(), noise(-20.0))
    faint = blocks_to(Sign.CONFIRMED, settled(), noise(-44.0))
    assert loud
    assert faint
    assert loud < faint <= 12


@pytest.mark.parametrize("blocks", [1, 2])
def test_a_click_is_not_a_voice(blocks: int) -> None:
    detector = settled()
    signs = [detector.push(noise(-6.0), SOUND) for _ in range(blocks)]
    signs += [detector.push(ROOM, SOUND) for _ in range(60)]
    assert Sign.CONFIRMED not in signs
    assert signs[-1] is Sign.NONE


def test_a_sign_lasts_until_ducking_was_heard_and_ends() -> None:
    detector = settled()
    for _ in range(2):
        assert detector.push(noise(-30.0), SOUND) in (Sign.NONE, Sign.POSSIBLE)
    held = [detector.push(ROOM, SOUND) for _ in range(60)]
    assert 15 <= held.count(Sign.POSSIBLE) <= 25  # 120 ms of the device, and 200 of the echo
    assert held[-1] is Sign.NONE


def test_a_noisy_room_is_not_a_voice() -> None:
    detector = settled()
    signs = [detector.push(noise(-35.0, seed), SOUND) for seed in range(SETTLED)]
    assert Sign.NONE in signs[-50:]
    assert Sign.CONFIRMED not in signs[-50:]


def test_what_leaks_from_an_unsettled_canceller_interrupts_nothing() -> None:
    detector = BargeIn("cancel")
    rng = np.random.default_rng(1)
    for _ in range(250):
        at_dbfs = float(rng.uniform(-26, -14))
        assert detector.push(noise(at_dbfs), noise(at_dbfs)) is not Sign.CONFIRMED


def test_a_leak_goes_down_with_our_sound_and_a_voice_does_not() -> None:
    def asked(voice_dbfs: float) -> set[Sign]:
        detector = BargeIn("cancel")
        for _ in range(60):
            detector.push(ROOM, SOUND)
        for _ in range(10):
            detector.push(noise(-24.0), SOUND)
        return {detector.push(noise(voice_dbfs), noise(-34.0)) for _ in range(30)}

    assert Sign.CONFIRMED in asked(-24.0)
    assert Sign.CONFIRMED not in asked(-38.0)


def test_each_run_of_our_sound_is_doubted_anew() -> None:
    detector = settled()
    detector.reset()
    assert blocks_to(Sign.CONFIRMED, detector, noise(-20.0), 25) is None
    detector = settled()
    detector.push(ROOM, None)  # the device stopped, and starts again within an answer
    assert blocks_to(Sign.CONFIRMED, detector, noise(-20.0), 25) is None


def test_what_the_canceller_does_not_take_out_yet_is_nobody_s_voice() -> None:
    detector = BargeIn("cancel")
    for _ in range(20):
        assert detector.push(SOUND, SOUND, aligning=True) is Sign.NONE
    for _ in range(20):  # a hole in the answer: its echo is still in the room
        assert detector.push(SOUND, None, aligning=True) is Sign.NONE


def test_who_speaks_is_heard_as_soon_as_the_canceller_takes_our_sound_out() -> None:
    detector = BargeIn("cancel")
    for _ in range(10):
        detector.push(ROOM, SOUND, aligning=True)
    soft = noise(-34.0)
    assert {detector.push(noise(-14.0), soft, aligning=True) for _ in range(30)} == {Sign.NONE}
    signs = [detector.push(noise(-14.0), soft) for _ in range(40)]
    assert Sign.POSSIBLE in signs[:6]


def test_only_our_own_sound_proves_a_canceller() -> None:
    detector = BargeIn("cancel")
    for _ in range(SETTLED):
        detector.push(ROOM, ROOM)  # too faint for an echo
    for _ in range(60):
        detector.push(ROOM, SOUND)
    assert blocks_to(Sign.CONFIRMED, detector, noise(-20.0), 25) is None


def test_an_array_keeps_what_it_has_learnt() -> None:
    detector = settled("hardware")
    detector.reset()
    assert (blocks_to(Sign.CONFIRMED, detector, noise(-20.0)) or 99) <= 6


def test_an_array_that_has_learnt_nothing_yet_is_not_trusted() -> None:
    assert blocks_to(Sign.CONFIRMED, BargeIn("hardware"), noise(-20.0), 15) is None


def test_without_a_canceller_the_bar_follows_what_plays() -> None:
    detector = BargeIn("gate")
    for _ in range(200):
        detector.push(noise(-55.0), noise(-20.0))
    assert detector.usable
    louder = [detector.push(noise(-41.0), noise(-10.0)) for _ in range(30)]
    assert set(louder) == {Sign.NONE}
    softer = [detector.push(noise(-41.0), noise(-35.0)) for _ in range(60)]
    assert Sign.CONFIRMED in softer


def test_an_echo_near_a_talker_s_level_makes_it_half_duplex_and_it_says_so() -> None:
    detector = BargeIn("gate")
    for _ in range(200):
        assert detector.push(noise(-30.0), noise(-20.0)) is not Sign.CONFIRMED
    assert not detector.usable
    assert "-30" in detector.why
    assert "-35" in detector.why
    assert "assumed" in detector.why
    for _ in range(100):
        detector.talker(-12.0)
    for _ in range(50):
        detector.push(noise(-30.0), noise(-20.0))
    assert detector.usable
    assert detector.why == ""


def test_until_the_coupling_is_known_our_own_sound_is_nobody_s_voice() -> None:
    detector = BargeIn("gate")
    signs = {detector.push(noise(-14.0), noise(-20.0)) for _ in range(70)}
    assert signs == {Sign.NONE}  # a gain of 6 dB


def test_a_constant_offset_is_no_sound() -> None:
    detector = settled()
    offset = np.full(BLOCK_FRAMES, 8_000, np.int16)
    assert {detector.push(offset, SOUND) for _ in range(20)} == {Sign.NONE}


def test_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(480,\)"):
        BargeIn("cancel").push(np.zeros(240, np.int16), None)


def test_silence_is_a_level() -> None:
    assert barge_in._level_dbfs(np.zeros(BLOCK_FRAMES, np.int16)) == -120.0
    assert barge_in._level_dbfs(noise(-30.0)) == pytest.approx(-30.0, abs=0.3)
