"""A recovery point that is interrupted while it is begun leaves nothing."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import timezero.jobs.backup as backup_module
import timezero.repository.writer as writer_module
from timezero.repository import Repository, names

TraceFunction = Callable[[FrameType, str, Any], Any]
LINES = 45  # enough to come to what follows the recovery point's beginning


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


def test_an_interrupt_at_each_line_of_a_backup_that_begins(tmp_path: Path) -> None:
    """Line by line, from the first of the backup's run to some after its recovery point has begun."""
    repository, source = tmp_path / "repo", tmp_path / "image"
    source.write_bytes(b"x" * 4096)
    hit: list[str] = []
    for number in range(1, LINES + 1):
        with pytest.raises(KeyboardInterrupt), _interrupted_at(number, hit):
            backup_module.backup(str(repository), [str(source)])
        assert list(repository.glob("recovery-points/*")) == [], f"{hit[-1]}, line event {number}"
    assert {"begin", "_make_directory", "_take_lock"} <= set(hit)
    assert hit[0] == hit[-1] == "run"


@contextmanager
def _interrupted_at(number: int, hit: list[str]) -> Iterator[None]:
    """Interrupts the nth line of the backup's run and of the writer, as they come; hit: the functions it was in."""
    left = number

    def each(frame: FrameType, event: str, _: object) -> TraceFunction | None:
        nonlocal left
        code = frame.f_code
        if code.co_filename != writer_module.__file__ and code is not backup_module._Backup.run.__code__:
            return None
        left -= event == "line"
        if left == 0:
            hit.append(code.co_name)
            raise KeyboardInterrupt
        return each

    before = sys.gettrace()
    sys.settrace(each)
    try:
        yield
    finally:
        sys.settrace(before)


def test_an_interrupt_after_another_backups_id_leaves_that_backup_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = Repository.open_or_create(str(tmp_path / "repo"))
    with repository.writer() as other:
        pack = Path(other.packs_path, names.pack_name(other.id, 0))
        pack.write_bytes(b"x")
        ids = iter([other.id])

        def taken_then_interrupted() -> str:
            for point_id in ids:
                return point_id
            raise KeyboardInterrupt

        monkeypatch.setattr(names, "new_id", taken_then_interrupted)
        with pytest.raises(KeyboardInterrupt), repository.writer():
            pass
        assert pack.exists()
        assert os.listdir(repository.points_path) == [other.id]


def test_leaving_one_that_has_not_begun_touches_nothing(tmp_path: Path) -> None:
    repository = Repository.open_or_create(str(tmp_path / "repo"))
    repository.writer().abort()
    with repository.writer() as writer:
        pass
    writer.abort()
    assert os.listdir(repository.points_path) == []
