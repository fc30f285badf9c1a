"""A recovery point that is interrupted while it is begun leaves nothing."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

import pytest

from timezero.repository import Repository


def test_an_interrupt_while_the_directory_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = Repository.open_or_create(str(tmp_path / "repo"))
    make = os.mkdir

    def interrupted(path: str, mode: int) -> None:
        make(path, mode)
        if os.path.dirname(path) == repository.points_path:
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "mkdir", interrupted)
    with pytest.raises(KeyboardInterrupt), repository.writer():
        pass
    assert os.listdir(repository.points_path) == []


def test_on_a_stack_nothing_is_made_before_it_is_armed(tmp_path: Path) -> None:
    """A backup pushes its writer on a stack and then begins it: whenever the interrupt comes, the stack knows."""
    repository = Repository.open_or_create(str(tmp_path / "repo"))
    with pytest.raises(KeyboardInterrupt), ExitStack() as stack:
        writer = repository.writer()
        assert not os.path.exists(repository.points_path) or os.listdir(repository.points_path) == []
        stack.push(writer)
        writer.begin()
        assert os.listdir(repository.points_path) == [writer.id]
        raise KeyboardInterrupt
    assert os.listdir(repository.points_path) == []


def test_leaving_one_that_has_not_begun_touches_nothing(tmp_path: Path) -> None:
    repository = Repository.open_or_create(str(tmp_path / "repo"))
    repository.writer().abort()
    with repository.writer() as writer:
        pass
    writer.abort()
    assert os.listdir(repository.points_path) == []
