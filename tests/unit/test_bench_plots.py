"""bench/plots: which points make up the curve."""

from bench.plots import front

ROWS = [(1.0, 100.0, 9.0, "a"), (2.0, 90.0, 8.0, "b"), (3.0, 200.0, 8.5, "c"), (4.0, 150.0, 2.0, "d")]


def test_the_curve_has_no_point_that_a_quicker_one_beats():
    assert [row[3] for row in front(ROWS, 1, most=True)] == ["a", "c"]
    assert [row[3] for row in front(ROWS, 2, most=False)] == ["a", "b", "d"]
    assert front([], 1, most=True) == []
