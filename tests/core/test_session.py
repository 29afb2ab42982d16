import pytest

from voiced.core.session import Asked, Session


def test_a_new_session_has_agreed_to_nothing() -> None:
    session = Session()
    assert (session.created, session.configured, session.reduced) == (False, False, False)
    assert session.server_ends is None
    assert session.asked is None
    assert session.frames_in_flight == 0


@pytest.mark.parametrize("server_ends", [False, True])
def test_a_confirmation_is_of_what_was_asked(server_ends: bool) -> None:
    session = Session(asked=Asked("cfg-1", server_ends))
    session.confirm()
    assert session.configured
    assert session.server_ends is server_ends
    assert session.asked is None


def test_a_confirmation_of_nothing_confirms_nothing() -> None:
    session = Session()
    session.confirm()
    assert not session.configured
    assert session.server_ends is None


def test_a_first_update_that_is_rejected_is_tried_with_less() -> None:
    session = Session(asked=Asked("cfg-1", True))
    session.reject()
    assert (session.asked, session.configured, session.reduced) == (None, False, True)


def test_a_mode_that_is_rejected_leaves_the_confirmed_one() -> None:
    session = Session(configured=True, server_ends=True, asked=Asked("cfg-2", False))
    session.reject()
    assert session.server_ends is True
    assert session.asked is None
    assert (session.configured, session.reduced) == (True, False)
