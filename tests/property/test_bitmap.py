"""The bitmap against a Python set of bit numbers."""

from __future__ import annotations

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from timezero._native.bitmap import Bitmap


class BitmapMachine(RuleBasedStateMachine):
    """Over memory full of ones, so that bits past the end would show if they were looked at."""

    @initialize(bits=st.integers(0, 300), own=st.booleans())
    def make(self, bits: int, own: bool) -> None:
        self.bits = bits
        self.memory = np.full(bits // 64 + 2, 2**64 - 1, dtype=np.uint64)
        self.bitmap = Bitmap(bits) if own else Bitmap(bits, self.memory)
        self.model: set[int] = set() if own else set(range(bits))

    def a_range(self, data: st.DataObject) -> tuple[int, int]:
        start = data.draw(st.integers(0, self.bits))
        return start, data.draw(st.integers(0, self.bits - start))

    def a_batch(self, data: st.DataObject) -> np.ndarray:
        some = st.lists(st.integers(0, self.bits - 1), max_size=70) if self.bits else st.just([])
        return np.array(data.draw(some), dtype=np.uint64)

    @rule(data=st.data())
    def set_range(self, data: st.DataObject) -> None:
        start, count = self.a_range(data)
        wanted = set(range(start, start + count))
        assert self.bitmap.set_range(start, count) == len(wanted - self.model)
        self.model |= wanted

    @rule(data=st.data())
    def clear_range(self, data: st.DataObject) -> None:
        start, count = self.a_range(data)
        wanted = set(range(start, start + count))
        assert self.bitmap.clear_range(start, count) == len(wanted & self.model)
        self.model -= wanted

    @rule(data=st.data())
    def claim_batch(self, data: st.DataObject) -> None:
        bits = self.a_batch(data)
        won = []
        for bit in bits.tolist():
            won.append(bit not in self.model)
            self.model.add(bit)
        assert self.bitmap.claim_batch(bits).tolist() == won

    @rule(data=st.data(), one_by_one=st.booleans())
    def set_and_clear(self, data: st.DataObject, one_by_one: bool) -> None:
        bits = self.a_batch(data)
        wanted = set(bits.tolist())
        new = len(wanted - self.model)
        if one_by_one:
            assert sum(self.bitmap.claim(bit) for bit in bits.tolist()) == new
            assert sum(self.bitmap.unclaim(bit) for bit in bits.tolist()) == len(wanted)
        else:
            assert self.bitmap.set_batch(bits) == new
            assert self.bitmap.clear_batch(bits) == len(wanted)
        self.model -= wanted

    @rule(data=st.data())
    def ask(self, data: st.DataObject) -> None:
        start, count = self.a_range(data)
        inside = sorted(bit for bit in self.model if start <= bit < start + count)
        assert self.bitmap.count(start, count) == len(inside)
        assert self.bitmap.any(start, count) == bool(inside)
        assert self.bitmap.all(start, count) == (len(inside) == count)
        assert self.bitmap.positions(start, count).tolist() == inside
        assert self.bitmap.next_set(start) == min((bit for bit in self.model if bit >= start), default=None)
        clear = (bit for bit in range(start, self.bits) if bit not in self.model)
        assert self.bitmap.next_clear(start) == next(clear, None)
        bits = self.a_batch(data)
        assert self.bitmap.test_batch(bits).tolist() == [bit in self.model for bit in bits.tolist()]

    @invariant()
    def same_bits(self) -> None:
        assert {bit for bit in range(self.bits) if self.bitmap[bit]} == self.model


BitmapMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
TestBitmap = BitmapMachine.TestCase
