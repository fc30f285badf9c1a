"""The T0 oracle under faults (proof/faulted.py): seeds that went wrong once, and some that never did."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from proof.faulted import Runner, kept_seeds
from proof.faultrun import Server

SEEDS = 30

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    with Runner(tmp_path_factory.mktemp("faulted")) as runner:
        yield runner


@pytest.mark.parametrize("seed", [*range(1, SEEDS + 1), *kept_seeds()])
def test_exactly_t0_or_nothing(runner: Runner, seed: int) -> None:
    report = runner.run(seed)
    assert not report.wrong, report


def test_a_server_that_does_not_end_keeps_none_of_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped = []

    def stop(server: Server) -> int:
        stopped.append(server)
        raise subprocess.TimeoutExpired("timezero serve", 60)

    monkeypatch.setattr(Server, "stop", stop)
    with pytest.raises(subprocess.TimeoutExpired), Runner(tmp_path) as runner:
        places = [runner._server("threads", in_memory) for in_memory in (False, True)]
    assert set(stopped) == set(places)
    assert not places[1].image.parent.exists()  # what lay in memory is gone
