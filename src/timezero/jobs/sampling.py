"""Which chunks a verification looks at when it shall not look at all, and what that proves.

Every stored chunk is chosen with the same chance, whatever dataset it is in. Chunks of zeros are not counted: they are
nowhere, and the digest of the index covers them.
"""

from __future__ import annotations

import math
import random
from array import array
from collections.abc import Iterable
from typing import NamedTuple

#: The damage whose chance of being noticed is told: this part of all stored chunks.
SHARE = 0.01


class Sample(NamedTuple):
    """What was looked at. stored, read: chunks in packs, and those of them that were read.

    notices: the chance that damage of 1 % of the stored chunks, wherever it is, would have been noticed.
    """

    percent: float
    seed: int
    stored: int
    read: int
    notices: float


class Sampler:
    """Chooses chunks, dataset by dataset. The same seed, percentage and datasets give the same choice."""

    def __init__(self, percent: float, seed: int) -> None:
        self._percent = percent
        self._seed = seed
        self._random = random.Random(seed)
        # Where in the row of all chunks, one every 100 / percent, the first one falls: so that each has its chance.
        self._begin = self._random.random()
        self._stored = self._read = 0

    def choose(self, stored: Iterable[int], total: int) -> array[int]:
        """Of the `total` numbers of a dataset's stored chunks, those to be read, in their order.

        The first choice is never empty. Memory: 8 bytes for each that is chosen.
        """
        part = self._percent / 100
        before = math.floor(self._stored * part + self._begin)
        count = math.floor((self._stored + total) * part + self._begin) - before
        if total and self._read == 0:
            count = max(count, 1)
        chosen = self._pick(stored, total, min(count, total))
        self._stored += total
        self._read += len(chosen)
        return chosen

    def _pick(self, stored: Iterable[int], total: int, count: int) -> array[int]:
        """`count` of `total` numbers, every choice as likely as any other (Knuth, 3.4.2, algorithm S)."""
        chosen = array("Q", bytes(8 * count))
        place, left, chance_of = 0, total, self._random.random
        for number in stored:
            if place == count:
                break
            if chance_of() * left <= count - place:  # `<=`: when all that are left are wanted, none may be missed
                chosen[place] = number
                place += 1
            left -= 1
        return chosen

    def result(self) -> Sample:
        """What was chosen altogether."""
        return Sample(self._percent, self._seed, self._stored, self._read, chance(self._stored, self._read))


def chance(stored: int, read: int) -> float:
    """The chance that `read` of `stored` chunks, chosen at random, meet damage of SHARE of them, at least one."""
    damaged = math.ceil(stored * SHARE)
    if read == 0 or damaged == 0:
        return 0.0 if stored else 1.0
    if read > stored - damaged:
        return 1.0
    misses = _log_choices(stored - damaged, read) - _log_choices(stored, read)
    return -math.expm1(misses)


def _log_choices(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
