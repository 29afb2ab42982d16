import random

import pytest

from voiced.core.faults import FAULTS, Fault, Retry
from voiced.core.link import OPEN_S, SLOW_RETRY_S, Link, LinkState

SOON, QUOTA, KEY = FAULTS["link-lost"], FAULTS["quota"], FAULTS["key-refused"]


def link_in(state: LinkState) -> Link:
    """A link in this state at time 0."""
    link = Link(random.Random(1))
    if state is LinkState.REFUSED:
        link.refuse(KEY)
    elif state is not LinkState.DOWN:
        link.want(0.0)
    if state is LinkState.UP:
        link.up()
    elif state is LinkState.WAITING:
        link.lost(SOON, 0.0, wanted=True)
        link.want(0.0)
        link.lost(SOON, 0.0, wanted=True)
    assert link.state is state
    return link


def test_it_is_born_down_and_at_rest() -> None:
    link = link_in(LinkState.DOWN)
    assert (link.due, link.fault) == (None, None)
    assert not link.tick(1e9)


@pytest.mark.parametrize("state", [LinkState.DOWN, LinkState.WAITING])
def test_wanting_it_dials_now_with_a_new_serial(state: LinkState) -> None:
    link = link_in(state)
    before = link.dial
    assert link.want(1.0)
    assert link.state is LinkState.DIALLING
    assert link.dial == before + 1
    assert link.due == 1.0 + OPEN_S


@pytest.mark.parametrize("state", [LinkState.DIALLING, LinkState.UP, LinkState.REFUSED])
def test_wanting_it_does_nothing_where_dialling_is_done_or_useless(state: LinkState) -> None:
    link = link_in(state)
    before = link.dial
    assert not link.want(1e6)
    assert (link.state, link.dial) == (state, before)


def test_up_has_no_deadline_and_no_fault() -> None:
    link = link_in(LinkState.WAITING)
    link.want(1.0)
    link.up()
    assert (link.state, link.due, link.fault) == (LinkState.UP, None, None)


def test_only_a_server_that_answers_is_a_success() -> None:
    """One that accepts us and closes at once must not be dialled without a pause for ever."""
    link = link_in(LinkState.WAITING)
    link.want(1.0)
    link.up()
    failures = link.failures
    assert failures
    link.worked()
    assert link.failures == 0


def test_a_dial_is_overdue_at_its_deadline_and_only_a_dial() -> None:
    link = link_in(LinkState.DIALLING)
    assert not link.overdue(OPEN_S - 0.001)
    assert link.overdue(OPEN_S)
    for state in set(LinkState) - {LinkState.DIALLING}:
        assert not link_in(state).overdue(1e9)


@pytest.mark.parametrize("state", [LinkState.DIALLING, LinkState.UP])
def test_the_first_retry_comes_at_once_and_the_others_later(state: LinkState) -> None:
    link = link_in(state)
    dials = link.dial
    link.lost(SOON, 5.0, wanted=True)
    assert (link.state, link.due, link.fault) == (LinkState.WAITING, 5.0, SOON)
    assert link.tick(5.0)
    assert link.dial == dials + 1
    link.lost(SOON, 6.0, wanted=True)
    assert link.due is not None
    assert 6.375 <= link.due <= 6.5
    assert not link.tick(6.374)
    assert link.tick(6.5)


def test_retries_are_never_more_than_the_cap_apart() -> None:
    link, now = link_in(LinkState.UP), 0.0
    for _ in range(50):
        link.lost(SOON, now, wanted=True)
        assert link.due is not None
        assert now <= link.due <= now + 15
        now = link.due
        assert link.tick(now)


def test_nobody_waits_for_a_link_that_nobody_wants() -> None:
    link = link_in(LinkState.UP)
    link.lost(SOON, 5.0, wanted=False)
    assert (link.state, link.due) == (LinkState.DOWN, None)
    assert not link.tick(1e9)


@pytest.mark.parametrize("wanted", [False, True])
@pytest.mark.parametrize("fault", [row for row in FAULTS.values() if row.retry is Retry.NEVER])
def test_what_a_person_must_mend_is_refused_until_forgiven(fault: Fault, wanted: bool) -> None:
    link = link_in(LinkState.DIALLING)
    link.lost(fault, 5.0, wanted=wanted)
    assert (link.state, link.due, link.fault) == (LinkState.REFUSED, None, fault)
    assert not link.want(1e9)
    assert not link.tick(1e9)
    link.down()
    assert link.state is LinkState.REFUSED
    link.forgive()
    assert (link.state, link.due, link.fault) == (LinkState.DOWN, None, None)
    assert link.want(6.0)


def test_without_credit_it_dials_only_when_wanted_and_after_ten_minutes() -> None:
    link = link_in(LinkState.DIALLING)
    link.lost(QUOTA, 5.0, wanted=True)
    assert link.state is LinkState.REFUSED
    assert not link.want(5.0 + SLOW_RETRY_S - 1)
    assert not link.tick(5.0 + SLOW_RETRY_S)
    assert link.want(5.0 + SLOW_RETRY_S)
    assert link.dial == 2


@pytest.mark.parametrize("state", [LinkState.DIALLING, LinkState.UP, LinkState.WAITING])
def test_down_ends_what_was_going_on(state: LinkState) -> None:
    link = link_in(state)
    link.down()
    assert (link.state, link.due) == (LinkState.DOWN, None)


@pytest.mark.parametrize("state", set(LinkState) - {LinkState.REFUSED})
def test_there_is_nothing_to_forgive_where_nothing_is_refused(state: LinkState) -> None:
    link = link_in(state)
    before = (link.state, link.due, link.fault)
    link.forgive()
    assert (link.state, link.due, link.fault) == before


@pytest.mark.parametrize("state", LinkState)
def test_what_is_known_not_to_work_is_not_dialled(state: LinkState) -> None:
    link = link_in(state)
    link.refuse(FAULTS["key-missing"])
    assert link.state is LinkState.REFUSED
    assert link.fault is FAULTS["key-missing"]
    assert not link.want(1e9)


@pytest.mark.parametrize(
    ("state", "is_back", "dials"),
    [
        (LinkState.WAITING, False, False),  # another network: the wait is short now
        (LinkState.WAITING, True, True),
        (LinkState.DIALLING, True, True),  # that dial went into nothing
        (LinkState.DIALLING, False, False),
        (LinkState.UP, True, False),  # the edge looks whether its address is still there
        (LinkState.DOWN, True, False),
        (LinkState.REFUSED, True, False),
    ],
)
def test_a_network_that_comes_is_used_where_somebody_waits_for_it(
    state: LinkState, is_back: bool, dials: bool
) -> None:
    link = link_in(state)
    before = link.dial
    assert link.network(200.0, is_back=is_back) is dials
    assert link.dial == before + dials
    assert (link.state is LinkState.DIALLING) == (dials or state is LinkState.DIALLING)


def test_who_tells_of_each_change_in_the_network_has_it_dialled_twice_a_second_at_most() -> None:
    link = Link(random.Random(1))
    link.want(100.0)
    dialled = 0
    for tenth in range(1, 200):
        now = 100.0 + tenth / 10
        if link.state is LinkState.DIALLING:
            link.lost(FAULTS["no-route"], now, wanted=True)
        dialled += link.network(now, is_back=False) or link.tick(now)
    assert 10 < dialled <= 42


def test_what_one_talk_has_failed_at_does_not_keep_the_next_waiting() -> None:
    link = Link(random.Random(1))
    for _ in range(40):
        link.want(100.0)
        link.lost(FAULTS["no-route"], 100.0, wanted=True)
    link.down()
    assert link.want(4000.0)
    link.lost(FAULTS["no-route"], 4000.1, wanted=True)
    assert link.due == 4000.1
