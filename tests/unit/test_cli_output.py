"""What the command line shows."""

from __future__ import annotations

import pytest

from timezero.cli.output import plain, render_bar, render_line, table
from timezero.jobs.progress import Meter, Progress

HALF = Progress("moving", 1 << 30, 2 << 30, 10.0, 100 << 20, 10.24, 3 << 20, 7)


def test_a_line_of_progress() -> None:
    assert render_line(HALF) == " 50 %, 1.00 GiB of 2.00 GiB, 100 MiB/s, 10 s left, sidefile 3.00 MiB, 7 intercepted"
    nothing = Progress("finishing", 0, 0, 0.0, 0.0, None)
    assert render_line(nothing) == "100 %, 0 B of 0 B, making it durable"


@pytest.mark.parametrize("columns", [10, 40, 80, 100, 120, 200])
def test_a_bar_fits_its_terminal(columns: int) -> None:
    bar = render_bar(HALF, columns)
    assert len(bar) < columns
    if columns >= 100:
        inside = bar[1 : bar.index("]")]
        assert inside.count("#") == len(inside) // 2 and set(inside) == {"#", "."}


def test_tables_and_names() -> None:
    text = table(("NAME", "SIZE "), [("a", "1"), ("\x1b[31mred\n", "1000")])
    assert text.splitlines() == ["NAME           SIZE", "a                 1", "\\x1b[31mred\\n  1000"]
    assert plain("ü 中") == "ü 中"
    assert plain("\udcff\u202e\t") == "\\udcff\\u202e\\t"


def test_a_meter_knows_rate_and_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("timezero.jobs.progress.time.monotonic", lambda: now[0])
    seen: list[Progress] = []
    meter = Meter(seen.append, 1000)
    for second in range(1, 9):
        now[0] += 1
        meter.update(100 if second < 5 else 100 * (second - 3))
    assert seen[0].rate == pytest.approx(100)
    # The rate is that of the last seconds, not that of the whole time.
    assert seen[-1].rate == pytest.approx(80)
    assert seen[-1].remaining_s == pytest.approx((1000 - 500) / 80)
    meter.finishing()
    assert (seen[-1].phase, seen[-1].done, seen[-1].elapsed_s) == ("finishing", 1000, 8.0)
