"""The buffer space against a plain model: quotas, the line, frames, and who is told when."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from timezero._native.areas import Area, AreaSpace

FRAME = 4096


@dataclass
class Model:
    """One area as the header describes it."""

    area: Area
    useful: int
    need: int
    granted: bool = False
    held: list[int] = field(default_factory=list)
    refused: bool = False  # a take gave None since it was last told
    told: int = 0


def fair_quotas(frames: int, useful: list[int]) -> list[int]:
    """Water-filling by its definition: one frame at a time to who has least and can use more, the earliest first."""
    quotas = [0] * len(useful)
    for _ in range(min(frames, sum(useful))):
        wanting = [i for i, most in enumerate(useful) if quotas[i] < most]
        quotas[min(wanting, key=lambda i: (quotas[i], i))] += 1
    return quotas


class BufferSpaceMachine(RuleBasedStateMachine):
    @initialize(frames=st.integers(1, 24), data=st.data())
    def make(self, frames: int, data: st.DataObject) -> None:
        self.frames = frames
        self.minimum = data.draw(st.integers(1, frames))
        self.space = AreaSpace(FRAME, frames, minimum=self.minimum)
        self.granted: list[Model] = []
        self.line: list[Model] = []
        self.started = self.peak = 0

    def everyone(self) -> list[Model]:
        return self.granted + self.line

    def quotas(self) -> list[int]:
        return fair_quotas(self.frames, [model.useful for model in self.granted])

    def free(self) -> int:
        return self.frames - sum(len(model.held) for model in self.granted)

    def may_take(self, model: Model) -> bool:
        if not model.granted or self.free() == 0:
            return False
        return len(model.held) < self.quotas()[self.granted.index(model)]

    def tell(self) -> None:
        """Whoever was refused, and would no longer be, is told once."""
        for model in self.granted:
            if model.refused and self.may_take(model):
                model.refused = False
                model.told += 1

    def admit(self, tell: bool) -> None:
        while self.line and sum(m.need for m in self.granted) + self.line[0].need <= self.frames:
            model = self.line.pop(0)
            model.granted = True
            if tell:
                model.told += 1
                model.refused = False
            self.granted.append(model)
            self.started += 1

    @precondition(lambda self: len(self.everyone()) < 12)
    @rule(useful=st.integers(1, 30))
    def request(self, useful: int) -> None:
        self.line.append(Model(self.space.request(useful), useful, min(useful, self.minimum)))
        self.admit(tell=False)

    @precondition(lambda self: self.everyone())
    @rule(data=st.data(), most=st.integers(1, 8))
    def take(self, data: st.DataObject, most: int) -> None:
        model = data.draw(st.sampled_from(self.everyone()))
        for _ in range(most):
            may = self.may_take(model)
            frame = model.area.take()
            assert (frame is not None) == may
            if frame is None:
                model.refused = True
                return
            assert 0 <= frame < self.frames
            assert all(frame not in other.held for other in self.granted), "a frame has one owner"
            model.held.append(frame)
            self.peak = max(self.peak, self.frames - self.free())

    @precondition(lambda self: any(model.held for model in self.granted))
    @rule(data=st.data(), most=st.integers(1, 8))
    def give(self, data: st.DataObject, most: int) -> None:
        model = data.draw(st.sampled_from([model for model in self.granted if model.held]))
        for _ in range(min(most, len(model.held))):
            model.area.give(model.held.pop(data.draw(st.integers(0, len(model.held) - 1))))
            self.tell()

    @precondition(lambda self: any(not model.held for model in self.everyone()))
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        model = data.draw(st.sampled_from([model for model in self.everyone() if not model.held]))
        model.area.release()
        (self.granted if model.granted else self.line).remove(model)
        self.admit(tell=True)
        self.tell()

    @invariant()
    def as_the_model_says(self) -> None:
        quotas = self.quotas()
        assert sum(quotas) <= self.frames
        for model, quota in zip(self.granted, quotas, strict=True):
            assert model.area.granted and model.area.quota == quota >= model.need
        for model in self.line:
            assert not model.area.granted and model.area.quota == 0
        for model in self.everyone():
            assert model.area.told == model.told

    @invariant()
    def nobody_sleeps_through_a_frame(self) -> None:
        assert not any(model.refused and self.may_take(model) for model in self.granted)

    @invariant()
    def counted(self) -> None:
        stats = self.space.stats()
        assert stats["frames_taken"] == self.frames - self.free()
        assert stats["frames_peak"] == self.peak
        assert stats["areas"] == len(self.granted)
        assert stats["areas_waiting"] == len(self.line)
        assert stats["areas_total"] == self.started

    def teardown(self) -> None:
        """Everyone who can be let in can, with all surplus given back, take its whole quota; then all is released."""
        for model in getattr(self, "granted", []):
            while model.held:
                model.area.give(model.held.pop())
        for model in getattr(self, "granted", []):
            model.held = list(iter(model.area.take, None))
        if hasattr(self, "space"):
            assert [len(model.held) for model in self.granted] == self.quotas()
            for model in self.everyone():
                while model.held:
                    model.area.give(model.held.pop())
                model.area.release()
            assert self.space.stats()["frames_taken"] == self.space.stats()["areas"] == 0


BufferSpaceMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestBufferSpace = BufferSpaceMachine.TestCase
