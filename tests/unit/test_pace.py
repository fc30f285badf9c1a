"""What a copy says of the speed of its devices, and what it does not."""

import pytest

from timezero.jobs.pace import Pace

MIB = 1 << 20


def paced(*looks, rate=0):
    """looks: (seconds since the one before, bytes done, does it rest from here on)."""
    now = 100.0
    pace = Pace(rate, clock=lambda: now)
    for seconds, done, resting in looks:
        now += seconds
        pace.look(done, resting=resting)
    return pace.bytes_s()


def test_bytes_over_seconds():
    assert paced((0, 0, False), (1, 30 * MIB, False), (1, 40 * MIB, False)) == 20 * MIB


def test_hours_in_which_it_rests_do_not_count():
    """Nor does what it copies meanwhile, to make room in a sidefile."""
    looks = [(0, 0, True), (3600, 5 * MIB, False), (2, 25 * MIB, True), (7200, 30 * MIB, False), (2, 50 * MIB, False)]
    assert paced(*looks) == 10 * MIB


@pytest.mark.parametrize("looks", [[], [(5, 0, False)], [(0, 0, False), (0.9, MIB, False)]])
def test_what_takes_no_time_says_nothing(looks):
    assert paced(*looks) is None


def test_what_copied_nothing_says_nothing():
    assert paced((0, 0, False), (9, 0, False)) is None
    assert paced((0, 0, True), (9, MIB, True), (9, 2 * MIB, False)) is None


def test_a_rate_that_held_it_back_is_not_its_speed():
    looks = [(0, 0, False), (10, 100 * MIB, False)]
    assert paced(*looks, rate=10 * MIB) is None
    assert paced(*looks, rate=11 * MIB) is None  # not all of the time, but most of it
    assert paced(*looks, rate=20 * MIB) == 10 * MIB  # a device that does not even reach it
    assert paced(*looks, rate=5 * MIB) is None  # holes cost nothing
