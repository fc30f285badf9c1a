"""Which chunks a sample holds: each with the same chance, as many as asked for; and what it proves."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from timezero.jobs.sampling import Sampler, chance


def test_the_share_is_kept_over_many_small_datasets() -> None:
    sampler = Sampler(5, seed=1)
    datasets = [list(range(random.Random(n).randrange(4))) for n in range(10_000)]
    chosen = [list(sampler.choose(dataset, len(dataset))) for dataset in datasets]
    found = sampler.result()
    assert found.stored == sum(map(len, datasets))
    assert abs(found.read - found.stored * 0.05) <= 1
    assert all(
        set(some) <= set(dataset) and some == sorted(some) for some, dataset in zip(chosen, datasets, strict=True)
    )


def test_every_chunk_has_its_chance() -> None:
    hits = [0] * 40
    for seed in range(4000):
        sampler = Sampler(10, seed)
        for begin in (0, 13, 20):
            end = {0: 13, 13: 20, 20: 40}[begin]
            for number in sampler.choose(range(begin, end), end - begin):
                hits[number] += 1
    # 4000 x 10 %; the first dataset has a little more, because it is never left without a chunk.
    assert all(300 <= count <= 560 for count in hits), hits
    assert all(330 <= count <= 470 for count in hits[13:]), hits


def test_every_choice_of_a_dataset_is_as_likely() -> None:
    """Not only every chunk: which ones are chosen together follows no pattern."""
    found = Counter(tuple(Sampler(40, seed).choose(range(5), 5)) for seed in range(6000))
    pairs = [(a, b) for a in range(5) for b in range(a + 1, 5)]
    assert sorted(found) == pairs
    assert all(500 <= found[pair] <= 700 for pair in pairs), found  # 6000 / 10, and four deviations


def test_all_and_none() -> None:
    sampler = Sampler(100, 3)
    assert list(sampler.choose([4, 7, 9], 3)) == [4, 7, 9]
    assert list(sampler.choose([], 0)) == []
    assert sampler.result().notices == 1.0
    sampler = Sampler(0.001, 3)
    assert len(sampler.choose(range(10), 10)) == 1
    assert Sampler(5, 1).result().notices == 1.0  # nothing is stored, and nothing of it damaged


@pytest.mark.parametrize(("stored", "read"), [(100, 1), (100, 30), (1000, 100), (2500, 40), (50, 25)])
def test_the_chance_is_that_of_trying(stored: int, read: int) -> None:
    source = random.Random(stored)
    damaged = -(-stored // 100)
    tries = 4000
    noticed = sum(min(source.sample(range(stored), read)) < damaged for _ in range(tries))
    assert chance(stored, read) == pytest.approx(noticed / tries, abs=0.03)


def test_the_chance_at_the_ends() -> None:
    assert chance(1000, 0) == 0.0
    assert chance(1000, 1000) == 1.0
    assert chance(10**9, 1000) == pytest.approx(1 - 0.99**1000, rel=1e-3)
