"""A recovery point that is interrupted while it is begun leaves nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from timezero.repository import Repository


def test_an_interrupt_while_the_directory_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = Repository.open_or_create(str(tmp_path / "repo"))
    make = os.mkdir

    def interrupted(path: str, mode: int) -> None:
        make(path, mode)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "mkdir", interrupted)
    with pytest.raises(KeyboardInterrupt):
        repository.begin()
    assert os.listdir(repository.points_path) == []
