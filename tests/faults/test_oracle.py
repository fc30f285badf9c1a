"""The T0 oracle under faults (proof/faulted.py): seeds that went wrong once, and some that draw every kind of fault."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from proof.faulted import Runner, kept_seeds
from proof.faultplan import DRAWS, draw
from proof.faultrun import Server

#: The first ones, and the first of those that draw what they do not: update-slow, tier-error, copy-error, target-error.
SEEDS = (*range(1, 32), 35, 46, 50)

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    with Runner(tmp_path_factory.mktemp("faulted")) as runner:
        yield runner


def test_every_kind_of_fault_is_drawn() -> None:
    """Another draw may need other seeds."""
    drawn = {name for seed in SEEDS for name in draw(seed).names}
    assert drawn - {"overflow"} == set(DRAWS), set(DRAWS) - drawn


@pytest.mark.parametrize("seed", [*SEEDS, *kept_seeds()])
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
