"""The bench of the data plane does what it says: fio and the peers are real, the runs are short."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.command import image, snapshot, timezero
from timezero.errors import TimezeroError, UsageError
from timezero.jobs import bench_serve
from timezero.jobs.bench_serve import LOADS, Contender, Figures, Load, measure, peers, run

MIB = 1 << 20


def test_a_directory_is_left_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_serve, "peers", list)
    heard: list[str] = []
    result = run(tmp_path, size=4 * MIB, seconds=0.1, rounds=1, say=heard.append)
    assert not list(tmp_path.iterdir())
    assert len(heard) == len(LOADS)
    rows = result.to_json()["results"]
    assert [row["load"] for row in rows] == [load.name for load in LOADS]
    for row in rows:
        (figures,) = row["runs"]
        assert figures["iops"] > 0 and figures["memory"] > MIB and row["ratio"] == 1
        assert 0 < figures["p50_us"] <= figures["p99_us"] <= figures["p999_us"]
    assert all(load.name in result.text() for load in LOADS)


def test_a_file_is_only_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_serve, "peers", list)
    image(tmp_path / "volume", 4 * MIB)
    before = snapshot(tmp_path)
    result = run(tmp_path / "volume", seconds=0.1, rounds=1)
    assert snapshot(tmp_path) == before
    assert result.size == 4 * MIB
    assert {load.rw for load in result.loads} == {"read", "randread"}


@pytest.mark.parametrize("peer", ["qemu-nbd", "qemu-storage-daemon", "nbdkit file"])
def test_peers_are_measured_alike(peer: str, tmp_path: Path) -> None:
    (contender,) = (c for c in peers() if c.name == peer)
    volume = image(tmp_path / "volume, with a comma", 4 * MIB)
    sockets = tmp_path / "sockets"
    sockets.mkdir()
    figures = measure(contender, volume, sockets, Load("write", "randwrite", 4096, 4), 0.1, apart=True)
    assert figures.iops > 0 and figures.memory > 0


def test_a_server_that_does_not_start_is_named(tmp_path: Path) -> None:
    broken = Contender("broken", lambda volume, at, read_only: ["sh", "-c", "echo out of luck >&2; exit 3"])
    image(tmp_path / "volume", MIB)
    with pytest.raises(TimezeroError, match=r"broken cannot serve .*: out of luck"):
        measure(broken, tmp_path / "volume", tmp_path, LOADS[0], 0.1)


def test_rounds_alternate_and_ratios_are_taken_round_by_round() -> None:
    rates = {"a": iter([100.0, 10.0, 1000.0]), "b": iter([50.0, 2.0, 400.0])}
    a, b = (Contender(name, lambda volume, at, read_only: []) for name in rates)
    order: list[str] = []

    def once(contender: Contender, load: Load) -> Figures:
        order.append(contender.name)
        return Figures(next(rates[contender.name]), 1, 1, 1, 1, 1)

    bench_serve.alternate([a, b], LOADS[:1], 3, once, lambda line: None)
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert bench_serve.ratio(a, b, LOADS[0]) == 2.5
    assert bench_serve.spread(a, LOADS[0]) == 9.9


def test_nonsense_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        run(tmp_path / "missing")
    with pytest.raises(UsageError):
        run(tmp_path, rounds=0)
    with pytest.raises(UsageError):
        run(image(tmp_path / "small", MIB // 2))
    for words in (["bench"], ["bench", "a"], ["bench", "a", "b", "--serve", str(tmp_path)]):
        outcome = timezero(*words)
        assert outcome.code == 2 and "--serve" in outcome.err
