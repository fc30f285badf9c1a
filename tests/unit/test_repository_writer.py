"""A recovery point that is interrupted while it is begun leaves nothing."""

from __future__ import annotations

import os

import pytest

from timezero.repository import Repository


def test_an_interrupt_while_the_directory_is_made(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    make = os.mkdir

    def interrupted(path: str, mode: int) -> None:
        make(path, mode)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "mkdir", interrupted)
    with pytest.raises(KeyboardInterrupt):
        repository.begin()
    assert os.listdir(repository.points_path) == []
