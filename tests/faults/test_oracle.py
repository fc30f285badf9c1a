"""The T0 oracle under faults (proof/faulted.py): seeds that went wrong once, and some that never did."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from proof.faulted import Runner, kept_seeds

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
