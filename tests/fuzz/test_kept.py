"""Readers of what others wrote: the inputs that fuzzing kept, and some thousand new ones (make fuzz has more)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz import engine
from tests.fuzz.targets import TARGETS, kept

#: Mutated inputs a target, and so about two seconds each.
COUNTS = {
    "repository": 40,
    "control-client": 150,
    "control-server": 150,
    "handshake": 300,
    "document": 500,
    "text": 1000,
}


@pytest.mark.parametrize("path", [path for target in TARGETS.values() for path in kept(target)], ids=lambda p: p.name)
def test_kept_inputs(path: Path) -> None:
    TARGETS[path.parent.name].run(path.read_bytes())


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_new_inputs(name: str) -> None:
    target = TARGETS[name]
    seeds = [*target.seeds().values()]
    done, _ = engine.fuzz(target.run, seeds, seed=1, count=COUNTS[name])
    assert done == COUNTS[name]


def test_the_engine_finds() -> None:
    """What is behind two conditions that coverage alone leads to."""

    def call(data: bytes) -> None:
        from timezero.nbd import uri

        try:
            found = uri.parse(data.decode("latin-1"))
        except Exception:
            return
        assert not found.name, "a name"

    with pytest.raises(engine.Finding):
        engine.fuzz(call, [b"nbd://localhost/"], seed=1, count=2000)
