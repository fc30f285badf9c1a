"""Windows of the day: what they hold, when they open, how they are written."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from timezero.errors import UsageError
from timezero.jobs.windows import ALWAYS, DAY_S, Hours, Schedule, Window, parse_window, parse_windows


def at(hour: int, minute: int = 0, second: int = 0) -> int:
    return hour * 3600 + minute * 60 + second


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("01:00-05:00", [at(1), at(3), at(4, 59, 59)], [at(0, 59, 59), at(5), at(12)]),
        ("22:30-04:00", [at(22, 30), at(23, 59, 59), at(0), at(3, 59, 59)], [at(4), at(12), at(22, 29, 59)]),
        ("1:00-24:00", [at(1), at(23, 59, 59)], [at(0), at(0, 59)]),
        ("00:00-24:00", [at(0), at(12), at(23, 59, 59)], []),
        ("22:00-0:00", [at(22), at(23, 59, 59)], [at(0), at(21, 59)]),
    ],
)
def test_a_window_holds_its_hours(text: str, inside: list[int], outside: list[int]) -> None:
    for second in inside:
        assert Schedule([parse_window(text)], lambda now=second: now).is_open(), second
    for second in outside:
        assert not Schedule([parse_window(text)], lambda now=second: now).is_open(), second


@pytest.mark.parametrize(
    "text",
    ["", "1-5", "01:00", "01:00-", "01:00-01:00", "25:00-26:00", "24:00-05:00", "01:60-05:00", "01:00-24:01",
     "01:00-05:00-06:00", "-1:00-05:00", "٠١:00-05:00"],
)  # fmt: skip
def test_what_is_no_window_is_told_in_a_line(text: str) -> None:
    with pytest.raises(UsageError, match="is not a window"):
        parse_window(text)


def test_several_windows() -> None:
    windows = parse_windows(["01:00-05:00,12:00-13:00", "22:00-23:00"])
    assert [str(window) for window in windows] == ["01:00-05:00", "12:00-13:00", "22:00-23:00"]
    now = [at(11)]
    schedule = Schedule(windows, lambda: now[0])
    assert (schedule.is_open(), schedule.opens(), schedule.hours().waits_s) == (False, "12:00", 3600)
    now[0] = at(12, 30)
    assert (schedule.is_open(), schedule.opens(), schedule.hours().waits_s) == (True, "", 0)
    now[0] = at(23, 30)
    assert (schedule.is_open(), schedule.opens(), schedule.hours().waits_s) == (False, "01:00", 5400)


def test_without_windows_it_is_always_open() -> None:
    assert Schedule([], lambda: 0).is_open()
    assert Schedule([], lambda: 0).hours() == ALWAYS
    assert Schedule([]).is_open()


@pytest.mark.parametrize(
    ("texts", "now", "stretches"),
    [
        ("01:00-05:00", at(12), [(13 * 3600, 4 * 3600)]),
        ("01:00-05:00", at(4, 59, 59), [(0, 1), (20 * 3600 + 1, 4 * 3600 - 1)]),
        ("22:00-04:00", at(23), [(0, 5 * 3600), (23 * 3600, 3600)]),
        ("00:00-24:00", at(7), [(0, DAY_S)]),
        ("22:00-24:00,00:00-04:00", at(21), [(3600, 6 * 3600)]),
        ("01:00-05:00,02:00-03:00,12:00-13:00", at(0), [(3600, 4 * 3600), (12 * 3600, 3600)]),
    ],
)
def test_hours_from_now_on(texts: str, now: int, stretches: list[tuple[float, float]]) -> None:
    assert Schedule(parse_windows([texts]), lambda: now).hours().stretches == tuple(stretches)


def test_how_long_a_copy_takes_in_its_hours() -> None:
    hours = Hours(((3600.0, 100.0), (7200.0, 50.0)))
    assert [hours.passed(copied) for copied in (0, 1, 100, 101, 150, 151, 250.5, 1501)] == [
        3600, 3601, 3700, 7201, 7250, DAY_S + 3601, DAY_S + 7200.5, 10 * DAY_S + 3601,
    ]  # fmt: skip
    assert ALWAYS.passed(10.0 * DAY_S + 1) == 10 * DAY_S + 1


@given(
    st.lists(st.tuples(st.integers(0, 1439), st.integers(0, 1439)).filter(lambda pair: pair[0] != pair[1]), min_size=1),
    st.integers(0, DAY_S - 1),
)
def test_hours_say_what_a_schedule_does(pairs: list[tuple[int, int]], now: int) -> None:
    """Looked at from every window's ends, before and at them."""
    windows = [Window(*pair) for pair in pairs]
    stretches = Schedule(windows, lambda: now).hours().stretches
    for edge in {minute * 60 for pair in pairs for minute in pair} | {now}:
        for second in (edge - 1, edge):
            from_now = (second - now) % DAY_S
            inside = any(begin <= from_now < begin + length for begin, length in stretches)
            assert inside == Schedule(windows, lambda moment=second % DAY_S: moment).is_open()
    for (begin, length), (following, _) in itertools.pairwise(stretches):
        assert length > 0 and begin + length < following
    assert stretches[-1][0] + stretches[-1][1] <= DAY_S


@given(st.integers(0, 1439), st.integers(0, 1439), st.integers(0, DAY_S - 1))
def test_a_window_and_its_opposite_share_out_the_day(begin: int, end: int, second: int) -> None:
    if begin == end:
        return
    window, opposite = Window(begin, end), Window(end, begin)
    assert window.holds(second) != opposite.holds(second)
    assert parse_window(str(window)) == window
    opens = Schedule([window], lambda: second).opens()
    assert opens == ("" if window.holds(second) else str(window)[:5])
