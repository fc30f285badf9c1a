"""Giving way over a real `timezero serve`: to writers and readers, and to the hours of the day; told by state."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import timezero as api
from proof import load
from tests.watching import TIMEOUT, until, volume
from timezero import session
from timezero.jobs.options import MoverOptions, SessionOptions
from timezero.jobs.pace import Pace

MIB = 1 << 20
SIZE = 32 * MIB


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "db.img"
    path.write_bytes(os.urandom(MIB) * (SIZE // MIB))
    return path


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[Callable[..., load.Load]]:
    """writer(server, **options): a started load on `db`."""
    started: list[load.Load] = []
    binary = load.build(tmp_path / "bin")

    def start(server, **options: int) -> load.Load:
        options = {"min": 4096, "max": 4096, "grain": 4096, **options}
        item = load.Load(binary, Path(server.nbd_socket), "db", 1, SIZE, tmp_path, 1, seconds=120, options=options)
        started.append(item.start())
        return item

    yield start
    for item in started:
        item.kill()


class Script:
    """A progress callback that waits for one condition after the other, and does something when it holds."""

    def __init__(self, *steps: tuple[Callable[[api.Progress], bool], Callable[[], object]]) -> None:
        self._steps = list(steps)
        self._deadline = time.monotonic() + TIMEOUT

    def __call__(self, progress: api.Progress) -> None:
        assert not self._steps or time.monotonic() < self._deadline, f"{len(self._steps)} steps are left: {progress}"
        if self._steps and self._steps[0][0](progress):
            self._steps.pop(0)[1]()

    @property
    def done(self) -> bool:
        return not self._steps


def test_a_writer_is_given_way_to_and_only_while_it_is_there(serve, image, writer, tmp_path):
    server = serve({"db": image})
    loads = [writer(server, rate=200)]
    script = Script(
        (lambda p: p.yields, lambda: loads[0].stop()),
        (lambda p: not p.yields, lambda: loads.append(writer(server, rate=200))),
        (lambda p: p.yields, lambda: loads[1].stop()),
    )
    api.copy(
        "db",
        str(tmp_path / "target"),
        session=SessionOptions(control=server.control),
        mover=MoverOptions(rate=4 * MIB),  # so that it lasts
        progress=script,
    )
    assert script.done


def test_full_mode_gives_way_to_nobody(serve, image, writer, tmp_path):
    server = serve({"db": image})
    item = writer(server, rate=200)
    seen: list[bool] = []
    for mode in ("full", "fixed"):
        api.copy(
            "db",
            str(tmp_path / mode),
            session=SessionOptions(control=server.control),
            mover=MoverOptions(rate=32 * MIB, mode=mode),
            progress=lambda progress: seen.append(progress.yields),
        )
    item.stop()
    assert seen and not any(seen)


def test_reads_are_an_application_too(serve, image, tmp_path):
    server = serve({"db": image})
    reader = subprocess.Popen(
        ["fio", "--name=r", "--ioengine=nbd", f"--uri={server.nbd_uri('db')}", "--rw=randread", "--bs=4k",
         "--iodepth=1", "--rate_iops=200", "--time_based", "--runtime=60", f"--size={SIZE}", "--output=/dev/null"],
        cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        until(lambda: volume(server)["reads"] > 0, "nobody reads")
        found: list[dict[str, int]] = []
        script = Script(
            (lambda p: p.yields, lambda: found.extend(session.status(server.control)["sessions"])),
            (lambda p: True, reader.terminate),
            (lambda p: not p.yields, lambda: None),
        )
        api.copy(
            "db",
            str(tmp_path / "target"),
            session=SessionOptions(control=server.control),
            mover=MoverOptions(rate=4 * MIB),
            progress=script,
        )
        assert script.done
        assert found[0]["reads"] > 0 and found[0]["read_p99_ns"] >= found[0]["read_p50_ns"] > 0
        assert found[0]["updates"] == 0
    finally:
        reader.kill()
        reader.wait()


def test_outside_of_its_hours_t0_is_kept_and_the_sidefile_drained(serve, image, writer, tmp_path, monkeypatch):
    content = image.read_bytes()
    server = serve({"db": image}, sidefile_memory="4M")
    hour = [12]
    real = time.localtime
    monkeypatch.setattr(
        "timezero.jobs.windows.time.localtime",
        lambda *given: time.struct_time((*real(*given)[:3], hour[0], *real()[4:])),
    )
    loads: list[load.Load] = []
    phases: list[str] = []

    def begin_writing() -> None:
        loads.append(writer(server, rate=500))

    def open_window() -> None:
        loads[0].stop()
        hour[0] = 1

    script = Script(
        (
            lambda p: p.phase == "waiting" and p.waits_until == "22:00" and p.elapsed_s > 0.5 and p.done == 0,
            begin_writing,
        ),
        # Past the low mark, chunks are copied for the sidefile's sake alone.
        (lambda p: p.phase == "waiting" and p.done > 0, open_window),
        (lambda p: p.phase in ("moving", "finishing"), lambda: None),
    )

    def watch(progress: api.Progress) -> None:
        phases.append(progress.phase)
        script(progress)

    result = api.copy(
        "db",
        str(tmp_path / "target"),
        session=SessionOptions(control=server.control),
        mover=MoverOptions(window=("22:00-22:30", "01:00-05:00")),
        progress=watch,
    )
    assert script.done
    assert phases[0] == "waiting" and phases[-1] == "finishing"
    assert result.session and result.session["intercepted"] > 0
    assert result.estimate and 9 * 3600 <= result.estimate.waits_s <= 10 * 3600
    assert (tmp_path / "target").read_bytes() == content


def test_without_a_session_it_only_waits(image, tmp_path, monkeypatch):
    looks: list[tuple[int, bool]] = []

    class Told(Pace):
        def look(self, done: int, *, resting: bool) -> None:
            looks.append((done, resting))
            super().look(done, resting=resting)

    monkeypatch.setattr("timezero.jobs.moving.Pace", Told)
    hour = [12]
    real = time.localtime
    monkeypatch.setattr(
        "timezero.jobs.windows.time.localtime",
        lambda *given: time.struct_time((*real(*given)[:3], hour[0], *real()[4:])),
    )

    def watch(progress: api.Progress) -> None:
        if progress.phase == "waiting" and progress.elapsed_s > 0.5:
            assert progress.done == 0
            hour[0] = 23

    api.copy(str(image), str(tmp_path / "target"), mover=MoverOptions(window=("23:00-02:00",)), progress=watch)
    assert hour[0] == 23
    assert looks[:3] == [(0, True)] * 3 and looks[-1] == (image.stat().st_size, False)
    assert (tmp_path / "target").read_bytes() == image.read_bytes()
