"""The arithmetic behind the benches' tables."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from bench.copy.sources import make_source, name_of, size_of
from bench.measure import (
    Contender,
    Sample,
    alternate,
    as_document,
    as_json,
    best,
    busy_seconds,
    ratio,
    rotated,
    run_once,
    table,
)

GIB = 1 << 30


def made(name: str, *walls: float, cpu: float = 1.0) -> Contender:
    return Contender(name, ["true"], samples=[Sample(wall, cpu, 10 << 20) for wall in walls])


def test_ratios_are_taken_round_by_round() -> None:
    # The machine is three times slower in the second round; of that nothing shows in the ratio.
    ours, theirs = made("ours", 1, 3, 1), made("theirs", 2, 6, 2)
    assert ratio(ours, theirs) == 2
    assert ratio(theirs, ours) == 0.5
    assert ratio(ours, made("odd", 2, 30, 4)) == 4
    with pytest.raises(ValueError):
        ratio(ours, made("short", 1))


def test_medians_spread_and_best() -> None:
    row = made("row", 1, 10, 2, 4)
    assert row.median("wall") == 3
    assert row.spread() == pytest.approx((10 - 1) / 3)
    assert best([made("a", 3, 1, 9), made("b", 2, 2, 2), row]).name == "b"


def test_every_contender_is_first_in_turn() -> None:
    rows = [made(name) for name in "abc"]
    assert ["".join(row.name for row in rotated(rows, number)) for number in range(4)] == ["abc", "bca", "cab", "abc"]


def test_the_table_and_the_document() -> None:
    ours, theirs = made("ours", 1, 1, cpu=0.5), made("theirs", 2, 4)
    lines = table([ours, theirs], ours, 2 * GIB).splitlines()
    assert lines[1].split() == ["ours", "1.00", "2.15", "0.250", "10", "1.00", "0%"]
    assert lines[2].split() == ["theirs", "3.00", "0.72", "0.500", "10", "3.00", "67%"]
    document = as_document([ours, theirs], ours, 2 * GIB)
    assert json.loads(as_json([ours, theirs], ours, 2 * GIB)) == document
    assert [row["ratio"] for row in document["contenders"]] == [1, 3]
    assert document["contenders"][1]["samples"][1] == {"wall": 4, "cpu": 1.0, "peak": 10 << 20}


def test_cpu_of_the_machine_leaves_idle_time_out() -> None:
    stat = "cpu  100 20 300 99999 88888 4 6 7 50 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n"
    assert busy_seconds(stat, 100) == 4.3


def test_a_command_is_measured() -> None:
    code = "import os, time; x = bytearray(64 << 20); x[::4096] = x[::4096]; time.sleep(0.3)"
    code += "; assert os.environ['WORD'] == 'yes'"
    for system_cpu in (False, True):
        sample = run_once([sys.executable, "-c", code], {"WORD": "yes"}, system_cpu=system_cpu)
        assert sample.wall >= 0.3 and sample.cpu > 0 and sample.peak >= 64 << 20


def test_a_round_runs_each_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.measure.drop_caches", lambda: None)
    log = tmp_path / "log"
    rows = [Contender(name, ["sh", "-c", f"echo {name} >> {log}"], before=lambda: None) for name in "ab"]
    alternate(rows, 2)
    assert log.read_text().split() == ["a", "b", "b", "a"]
    assert [len(row.samples) for row in rows] == [2, 2]


@pytest.mark.parametrize("holes", [True, False])
def test_half_empty_sources(tmp_path: Path, holes: bool) -> None:
    size = (1 << 20) + 5000
    path = make_source(tmp_path / "source", size, empty=64 << 10, holes=holes)
    data = path.read_bytes()
    assert len(data) == size
    for number, at in enumerate(range(0, size, 64 << 10)):
        piece = data[at : at + (64 << 10)]
        assert any(piece) == (number % 2 == 0)
        assert number % 2 != 0 or 0 < piece.count(0) < len(piece) // 8
    full = make_source(tmp_path / "full", size)
    assert full.read_bytes()[: 64 << 10] == data[: 64 << 10]
    if holes:
        assert path.stat().st_blocks < full.stat().st_blocks


def test_sizes() -> None:
    for text in ("64K", "1M", "8G", "4095"):
        assert name_of(size_of(text)) == text
