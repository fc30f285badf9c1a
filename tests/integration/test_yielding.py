"""Giving way over a real `timezero serve`: to writers and readers, and to the hours of the day; told by state.

What is left to the command line is asked for there: its words to what the mover does.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import timezero as api
from proof import load
from tests.watching import TIMEOUT, until, volume
from timezero import session
from timezero.cli import main
from timezero.jobs.moving import Moving
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
    """writer(server, size=bytes, **options): a started load on the first `size` of `db`."""
    started: list[load.Load] = []
    binary = load.build(tmp_path / "bin")

    def start(server, size: int = SIZE, **options: int) -> load.Load:
        options = {"min": 4096, "max": 4096, "grain": 4096, **options}
        place = tmp_path / f"load-{len(started)}"
        place.mkdir()
        item = load.Load(binary, Path(server.nbd_socket), "db", 1, size, place, 1, seconds=120, options=options)
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


def run_command(capsys: pytest.CaptureFixture[str], *words: str) -> list[dict[str, Any]]:
    """A command with --json, in this process; the lines that it told on stderr."""
    code = main([*words, "--json"])
    told = capsys.readouterr().err
    assert code == 0, told
    return [json.loads(line) for line in told.splitlines()]


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Moving, dict[str, Any]], object]], None]:
    """looks(watch): `watch` is told at each look of a job, several a second: how the mover goes."""
    keep_hours = Moving._keep_hours

    def begin(watch: Callable[[Moving, dict[str, Any]], object]) -> None:
        def look(self: Moving) -> None:
            keep_hours(self)
            watch(self, self._mover.speed())

        monkeypatch.setattr(Moving, "_keep_hours", look)

    return begin


FLOOR = 8 * MIB  # bytes a second, read and written: csrc/mover/controller.c. Less while it listens; 0: no limit


def is_paced(speed: dict[str, Any]) -> bool:
    """Less than one small request after the other."""
    return speed["rate"] >= FLOOR


def is_listening(speed: dict[str, Any]) -> bool:
    return 0 < speed["rate"] < FLOOR


def run_with_target(capsys, server, target: str, path: Path) -> None:
    run_command(
        capsys, "copy", "db", str(path),
        "--control", server.control, "--rate", "4M", "--latency-target", target,
    )  # fmt: skip


def test_an_absolute_latency_target_of_the_command_line(serve, image, writer, looks, tmp_path, capsys):
    """Nobody keeps 10 us over a socket: that is the floor."""
    server = serve({"db": image})
    writer(server, rate=300)
    seen: list[dict[str, Any]] = []
    looks(lambda _, speed: seen.append(speed))
    run_with_target(capsys, server, "10us", tmp_path / "target")
    at_the_floor = [speed["rate"] == FLOOR for speed in seen]
    assert any(at_the_floor)
    later = at_the_floor[at_the_floor.index(True) :]
    assert sum(later) > len(later) / 2
    assert not any(map(is_listening, seen))  # the user's word is in no need of it


def test_a_relative_latency_target_of_the_command_line(serve, image, writer, looks, tmp_path, capsys):
    """A thousand times what is usual is nothing to slow down for.

    Once that was heard of a few small updates, large ones come, for which 1.25x would not do.
    """
    server = serve({"db": image})
    loads = [writer(server, rate=300)]
    seen: list[dict[str, Any]] = []

    def watch(_: Moving, speed: dict[str, Any]) -> None:
        seen.append(speed)
        if len(loads) == 1 and any(map(is_listening, seen)) and not is_listening(speed):
            seen.clear()
            # To a small part: a rate does not count what comes from the sidefile.
            loads.append(writer(server, size=4 * MIB, min=MIB, max=MIB))

    looks(watch)
    run_with_target(capsys, server, "1000x", tmp_path / "target")
    assert len(loads) == 2 and len(seen) > 10
    assert sum(map(is_paced, seen)) < len(seen) / 4


@pytest.mark.parametrize("mode", ["opportunistic", "full"])
def test_hours_of_the_command_line_that_end_in_mid_copy(
    serve, image, writer, looks, tmp_path, capsys, monkeypatch, mode
):
    content = image.read_bytes()
    server = serve({"db": image})
    now = [4, 59, 50]
    monkeypatch.setattr(
        "timezero.jobs.windows.time.localtime",
        lambda *_: time.struct_time((2026, 11, 23, *now, 0, 1, 0)),
    )
    loads: list[load.Load] = []
    open_looks: list[bool] = []
    held: list[int] = []
    deadline = time.monotonic() + TIMEOUT

    def watch(machine: Moving, speed: dict[str, Any]) -> None:
        assert time.monotonic() < deadline, (now, held)
        if not loads:
            loads.append(writer(server, rate=200))  # T0 was before that
        done = machine.bytes_done()
        if now == [4, 59, 50]:
            open_looks.append(speed["yields"])
            if done >= 4 * MIB:
                now[:] = [5, 0, 0]
        elif now == [5, 0, 0] and machine.waits_until:
            assert machine.waits_until == "01:00" and speed["rests"]
            # What was under way ends; and then nothing does, for a time in which it copied a good part before.
            if held and held[-1] != done:
                held.clear()
            held.append(done)
            if len(held) > 15:
                loads[0].stop()
                now[:] = [1, 0, 0]

    looks(watch)
    told = run_command(
        capsys, "copy", "db", str(tmp_path / "target"),
        "--control", server.control, "--rate", "3M", "--mode", mode, "--window", "01:00-05:00",
    )  # fmt: skip
    assert now == [1, 0, 0]
    assert 0 < held[-1] < SIZE / 2
    assert any(open_looks) == (mode == "opportunistic")
    phases = [line["progress"]["phase"] for line in told if "progress" in line]
    assert [phase for phase, _ in itertools.groupby(phases)] == ["moving", "waiting", "moving", "finishing"]
    [estimate] = [line["estimate"] for line in told if "estimate" in line]
    assert "will probably end before the copying does" in estimate["late"]
    assert estimate["ends_s"] > 20 * 3600
    assert (tmp_path / "target").read_bytes() == content


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
