"""The kernels' benches: cost per element, beside a peer measured in the same run.

pytest-benchmark measures; this adds the one table that answers the question, and its figures to the JSON (extra_info).
Medians: a shared machine has outliers upwards only.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest


class Figure(NamedTuple):
    who: str
    seconds: float  # a call, median
    count: int  # elements a call
    unit: str  # "ns" an element, or "GB/s" when an element is a byte


FIGURES: dict[str, list[Figure]] = defaultdict(list)


def cost(figure: Figure) -> float:
    each = figure.seconds / figure.count
    return 1e-9 / each if figure.unit == "GB/s" else each * 1e9


@pytest.fixture
def kernel(benchmark: Any) -> Callable[..., Any]:
    """kernel(topic, who, function, *args, count=, unit="ns", setup=None): measure; a line in the topic's table.

    The first one measured in a topic is the peer that the others are compared with. setup runs before each call,
    untimed.
    """

    def measure(
        topic: str,
        who: str,
        function: Callable[..., Any],
        *args: Any,
        count: int,
        unit: str = "ns",
        setup: Callable[[], None] | None = None,
    ) -> Any:
        benchmark.group = topic
        if setup is None:
            result = benchmark(function, *args)
        else:
            result = benchmark.pedantic(function, args=args, setup=setup, rounds=15, warmup_rounds=2)
        if benchmark.stats is not None:  # --benchmark-disable: the code runs, nothing is measured
            figure = Figure(who, benchmark.stats.stats.median, count, unit)
            benchmark.extra_info[f"{unit} an element" if unit == "ns" else unit] = round(cost(figure), 3)
            FIGURES[topic].append(figure)
        return result

    return measure


@pytest.fixture
def figure() -> Callable[[str, str, float], None]:
    """figure(topic, who, ns): a line of the table, from what another program measured."""
    return lambda topic, who, ns: FIGURES[topic].append(Figure(who, ns * 1e-9, 1, "ns"))


def lines() -> Iterator[str]:
    for topic, figures in FIGURES.items():
        yield topic
        for figure in figures:
            times = figures[0].seconds / figures[0].count / (figure.seconds / figure.count)
            versus = "" if figure is figures[0] else f"{times:8.2f} x"
            yield f"  {figure.who:<34}{cost(figure):10.2f} {figure.unit:<5}{versus}"


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if FIGURES:
        terminalreporter.section("kernels: cost per element, and how many times faster than the first line")
        for line in lines():
            terminalreporter.write_line(line)
