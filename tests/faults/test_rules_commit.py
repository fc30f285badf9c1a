"""Rule 1's last word: all data has arrived, and only then T0 is lost. What was moved must not become a backup."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from timezero.control.client import Client
from timezero.errors import PunctureError
from timezero.jobs.backup import backup
from timezero.jobs.copy import copy
from timezero.jobs.moving import Moving
from timezero.jobs.options import SessionOptions
from timezero.repository import Repository

SIZE = 4 << 20

Job = Callable[[str], None]


@pytest.fixture(params=["backup", "copy"])
def job(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Job, Callable[[], bool]]:
    """(a job on the volume `data`, by its control socket; whether anything came of it)."""
    repository, image = tmp_path / "repository", tmp_path / "copy.img"
    if request.param == "backup":
        return (
            lambda control: backup(str(repository), ["data"], session=SessionOptions(control=control)),
            lambda: bool(Repository(str(repository)).ids()),
        )
    return (
        lambda control: copy("data", str(image), session=SessionOptions(control=control)),
        lambda: bool(list(tmp_path.glob("*copy.img")) or list(tmp_path.glob(".timezero-*"))),
    )


@pytest.fixture
def served(serve: Callable, tmp_path: Path):
    image = tmp_path / "data.img"
    image.write_bytes(os.urandom(SIZE))
    return serve({"data": image})


def after_the_last_chunk(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    run = Moving.run

    def run_and_act(self: Moving, watch: Callable[[int], None]) -> None:
        run(self, watch)
        assert self.bytes_done() == SIZE
        act()

    monkeypatch.setattr(Moving, "run", run_and_act)


def test_intact_is_committed(served, job):
    start, came_of_it = job
    start(served.control)
    assert came_of_it()


def test_a_puncture_after_the_last_chunk(served, job, monkeypatch):
    start, came_of_it = job
    call = Client.call

    def punctured(self: Client, op: str, **fields: object) -> object:
        return call(self, op, **fields | ({"cancel": True} if op == "end" else {}))

    after_the_last_chunk(monkeypatch, lambda: monkeypatch.setattr(Client, "call", punctured))
    with pytest.raises(PunctureError):
        start(served.control)
    assert not came_of_it()


def test_a_subsystem_that_dies_after_the_last_chunk(served, job, monkeypatch):
    start, came_of_it = job
    after_the_last_chunk(monkeypatch, lambda: served.stop(signal.SIGKILL))
    with pytest.raises(PunctureError):
        start(served.control)
    assert not came_of_it()
