"""The sidefile's policy over a real `timezero serve`: who is refused, gives way, is delayed, and what is foreseen."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from proof.load import Load, build
from tests.command import COMMAND, MIB, environment, image, succeed, timezero
from tests.watching import TIMEOUT, until, volume
from timezero import session
from timezero.control import ControlError
from timezero.errors import PunctureError
from timezero.jobs.options import SessionOptions
from timezero.jobs.serving import Served
from timezero.jobs.windows import Hours

SIZE = 16 * MIB
DEADLINE_US = 20_000_000

PUNCTURE = 'when_full = "puncture-largest"'


@pytest.fixture(scope="module")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("blockload"))


@pytest.fixture
def start(serve: Callable, tmp_path: Path) -> Callable:
    """start(text of a configuration, **options of serve): volumes db and log, every block of them not zero."""

    def run(text: str, **options: Any) -> Any:
        config = tmp_path / "timezero.toml"
        config.write_text(text)
        paths = {name: tmp_path / f"{name}.img" for name in ("db", "log")}
        for path in paths.values():
            path.write_bytes(os.urandom(MIB) * (SIZE // MIB))
        return serve(paths, config=config, **options)

    return run


@pytest.fixture
def write(binary: Path, tmp_path: Path) -> Iterator[Callable]:
    loads: list[Load] = []

    def run(server: Any, name: str, **options: int) -> Load:
        load = Load(binary, Path(server.nbd_socket), name, len(loads), SIZE, tmp_path, seconds=120)
        load.options = {"min": 4096, "max": 4096, "grain": 4096, **options}
        loads.append(load)
        return load.start()

    yield run
    for load in loads:
        load.kill()


def writes_go_on(server: Any, name: str = "db") -> None:
    before = volume(server, name)["writes"]
    until(lambda: volume(server, name)["writes"] > before + 100, "writes do not go on")


# ---- admission ----


def test_whoever_is_refused_touches_nobody(start: Callable, write: Callable, tmp_path: Path) -> None:
    (tmp_path / "spill").mkdir()
    server = start('[limits]\nmemory = "40M"\nfile = "100T"\n', sidefile_path=tmp_path / "spill", sidefile_file="1M")
    load = write(server, "db", rate=2000)
    with session.prepare(server.control, ["db"], memory_bytes=8 * MIB) as group:
        group.suspend(DEADLINE_US)
        free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
        for wish, says in [
            ({"memory_bytes": 40 * MIB}, r"limits\.memory"),
            ({"memory_bytes": 8 * MIB, "file_bytes": free, "track_size": MIB}, "spill has"),  # twice
            (
                {"memory_bytes": 2 * MIB, "file_bytes": 1 << 30, "track_size": 4096},
                "no room for a sidefile",
            ),  # its tables
        ]:
            with pytest.raises(ControlError, match=says) as error:
                session.prepare(server.control, ["db", "log"], **wish)
            assert error.value.code == "limit"
            assert "\n" not in str(error.value)
        writes_go_on(server)
        assert group.report()[0]["intercepted"] > 0
        assert {report["state"] for report in group.end()} == {"ended"}
    load.stop()
    assert "punctured" not in server.stderr()


def test_memory_that_is_not_there(start: Callable) -> None:
    server = start(f'[limits]\nmemory = "{1 << 50}"\n')
    with pytest.raises(ControlError, match="this machine can spare") as error:
        session.prepare(server.control, ["db"], memory_bytes=1 << 45)
    assert error.value.code == "limit"
    with session.prepare(server.control, ["db"], memory_bytes=MIB):
        pass


def test_the_largest_gives_way_to_the_newest(start: Callable, write: Callable) -> None:
    server = start(f'[limits]\nmemory = "12M"\n{PUNCTURE}\n')
    loads = [write(server, "db", rate=2000), write(server, "log", rate=2000)]
    with (
        session.prepare(server.control, ["db"], memory_bytes=2 * MIB) as small,
        session.prepare(server.control, ["db", "log"], memory_bytes=4 * MIB) as large,
    ):
        small.suspend(DEADLINE_US)
        large.suspend(DEADLINE_US)
        until(lambda: all(part["intercepted"] for part in large.report()), "nothing was intercepted")
        with session.prepare(server.control, ["log"], memory_bytes=6 * MIB) as new:
            new.suspend(DEADLINE_US)
            assert {(part["state"], part["puncture"]) for part in large.report()} == {("punctured", "admission")}
            with pytest.raises(
                PunctureError, match=r"db \(admission\), log \(admission\).*gave way to a newer session"
            ):
                large.end()
            writes_go_on(server, "db")
            writes_go_on(server, "log")
            assert {report["state"] for report in new.end()} == {"ended"}
        assert small.report()[0]["state"] in ("active", "punctured")  # by its own small cap only
        assert small.report()[0]["puncture"] in ("none", "cap")
        with pytest.raises(ControlError, match=r"limits\.memory"):  # larger than who runs
            session.prepare(server.control, ["log"], memory_bytes=11 * MIB)
    for load in loads:
        load.stop()
    assert f"session {large.name}: gives way to session {new.name} (limits.when_full)" in server.stderr()


def test_nobody_gives_way_to_one_that_cannot_be_made(start: Callable, tmp_path: Path) -> None:
    (tmp_path / "spill").mkdir()
    server = start(
        f'[limits]\nmemory = "4M"\n{PUNCTURE}\n',
        sidefile_path=tmp_path / "spill", sidefile_file="1M", sidefile_memory="3M",
    )  # fmt: skip
    with session.prepare(server.control, ["db"]) as group:
        group.suspend(DEADLINE_US)
        with pytest.raises(ControlError, match="no room for a sidefile"):
            session.prepare(server.control, ["db"], memory_bytes=2 * MIB, file_bytes=1 << 30, track_size=4096)
        assert group.end()[0]["state"] == "ended"


def test_a_backup_that_gives_way_says_so(start: Callable, write: Callable, tmp_path: Path) -> None:
    server = start(f'[limits]\nmemory = "12M"\n{PUNCTURE}\n')
    load = write(server, "db", rate=500)
    env = {"TIMEZERO_CONTROL": server.control, "TIMEZERO_REPO": str(tmp_path / "repo")}
    words = ["backup", "db", "--rate", "1M", "--sidefile-memory", "10M"]
    slow = subprocess.Popen([*COMMAND, *words], stderr=subprocess.PIPE, text=True, env=environment(**env))
    try:
        until(lambda: volume(server)["sessions"], "no session")
        succeed("copy", "log", tmp_path / "out", "--sidefile-memory", "5M", env=env)
        error = slow.communicate(timeout=TIMEOUT)[1]
    finally:
        slow.kill()
        slow.wait()
    assert slow.returncode == 5, error
    last = error.splitlines()[-1]
    assert "db (admission)" in last
    assert "gave way to a newer session" in last
    assert succeed("list", env=env)["points"] == []
    load.stop()


# ---- the high mark ----


@pytest.mark.parametrize("exempt", [False, True])
def test_writers_past_the_high_mark_are_delayed_unless_exempt(start: Callable, write: Callable, exempt: bool) -> None:
    marks = '[sidefile]\nmemory = "4M"\nlow_percent = 1\nhigh_percent = 5\nmax_delay = "50ms"\n'
    server = start(marks, **({"exempt_from_delay": "db"} if exempt else {}))
    with session.prepare(server.control, ["db"]) as group:
        group.suspend(DEADLINE_US)
        load = write(server, "db", rate=200)
        report = until(
            lambda: next((r for r in group.report() if r["used_slots"] > r["slots"] // 4), None),
            "the sidefile stays empty",
        )
        assert (report["delayed"] > 0) != exempt
        assert report["held_max_ns"] < 30 * 10**9
        load.stop()


# ---- what is foreseen ----


def told(text: str) -> dict[str, Any]:
    [line] = [line for line in text.splitlines() if '"estimate"' in line]
    return json.loads(line)["estimate"]


def test_the_estimate_before_a_backup(start: Callable, write: Callable, tmp_path: Path) -> None:
    server = start('[sidefile]\nmemory = "32M"\n')
    load = write(server, "db", rate=1000)
    until(lambda: volume(server)["recent_writes"]["blocks"] > 500, "no writes are seen")
    seen = volume(server)["recent_writes"]
    assert seen["bytes"] == seen["updates"] * 4096
    assert seen["blocks"] <= min(seen["updates"], SIZE // 4096) * 1.1
    until(lambda: volume(server)["recent_writes"]["ns"] > 3e9, "time stands still")
    env = {"TIMEZERO_CONTROL": server.control, "TIMEZERO_REPO": str(tmp_path / "repo")}
    outcome = timezero("backup", "db", "--rate", "8M", "--json", env=env)
    assert outcome.code == 0, outcome.err
    estimate = told(outcome.err)
    assert estimate["speed"] == {"bytes_s": 8 * MIB, "source": "asked"}
    assert (estimate["size"], estimate["seconds"], estimate["verdict"]) == (SIZE, 2.0, "fits")
    [part] = estimate["volumes"]
    assert (part["volume"], part["track_size"], part["basis"]) == ("db", 4096, "observed")
    assert outcome.document["estimate"] == estimate
    [dataset] = outcome.document["datasets"]
    assert part["images"] > 0
    assert part["images"] / 4 < dataset["session"]["images"] + dataset["session"]["zero_images"] < part["images"] * 4
    load.stop()


def test_the_next_estimate_knows_how_fast_a_copy_was_that_nothing_held_back(start: Callable, tmp_path: Path) -> None:
    server = start("")
    env = {"TIMEZERO_CONTROL": server.control}

    def copied(name: str, *options: str) -> dict[str, Any]:
        outcome = timezero("copy", "db", tmp_path / name, "--json", *options, env=env)
        assert outcome.code == 0, outcome.err
        return told(outcome.err)["speed"]

    copied("rate", "--rate", "8M")  # two seconds, in which it waited
    assert volume(server)["copy_bytes_s"] is None
    with session.prepare(server.control, ["db"]) as group:
        group.suspend()
        group.end(copy_bytes_s=12345678)
    assert volume(server)["copy_bytes_s"] == 12345678
    assert copied("next") == {"bytes_s": 12345678, "source": "observed"}
    assert copied("slower", "--rate", "8M") == {"bytes_s": 8 * MIB, "source": "asked"}
    assert volume(server)["copy_bytes_s"] == 12345678
    with session.prepare(server.control, ["db"]) as group, pytest.raises(ControlError, match="copy_bytes_s"):
        group.suspend()
        group.end(copy_bytes_s=-1)


def test_a_backup_that_will_not_fit_is_warned_of_before_it_starts(
    start: Callable, write: Callable, tmp_path: Path
) -> None:
    server = start("")
    load = write(server, "db")
    until(lambda: volume(server)["recent_writes"]["ns"] > 3e9, "time stands still")
    env = {"TIMEZERO_CONTROL": server.control, "TIMEZERO_REPO": str(tmp_path / "repo")}
    outcome = timezero("backup", "db", "--rate", "4M", "--sidefile-memory", "1M", env=env)
    first, second, *_, last = outcome.err.splitlines()
    assert first.startswith("timezero: estimate: 16.0 MiB in about 4 s (4.00 MiB/s asked); ")
    assert first.endswith(": overflows")
    assert second.startswith("timezero: warning: volume db: the sidefile will probably be full after ")
    assert outcome.code == 5
    assert "db (cap)" in last
    load.stop()


def test_an_estimate_goes_by_the_low_mark_of_the_server(start: Callable, write: Callable) -> None:
    """Until its hours begin, a copy of what is written over and over has as much in its sidefile as that says."""
    server = start("[sidefile]\nlow_percent = 10\n")
    load = write(server, "db", rate=2000)
    until(lambda: volume(server)["recent_writes"]["ns"] > 3e9, "time stands still")
    load.stop()
    later = Hours(((3600.0, 3600.0),))
    with Served(["db"], SessionOptions(control=server.control, memory_bytes=MIB)) as served:
        [part] = served._group.report()
        assert part["low_mark"] == part["slots"] * 10 // 100
        [expected] = served.foresee(SIZE, hours=later).volumes
        assert (expected.basis, expected.room) == ("observed", part["slots"])
        assert expected.peak == pytest.approx(part["low_mark"], rel=0.3)


def test_an_idle_volume_and_one_at_rest(start: Callable, tmp_path: Path) -> None:
    server = start("")
    until(lambda: volume(server)["recent_writes"]["ns"] > 2.5e9, "time stands still")
    env = {"TIMEZERO_CONTROL": server.control, "TIMEZERO_REPO": str(tmp_path / "repo")}
    outcome = timezero("backup", "db", "log", env=env)
    assert outcome.code == 0, outcome.err
    assert outcome.err.count("estimate: 32.0 MiB in about ") == 1
    assert "0 before-images" in outcome.err
    assert "warning" not in outcome.err
    outcome = timezero("backup", image(tmp_path / "file", MIB), "--json", env=env)
    assert outcome.code == 0, outcome.err
    assert "estimate" not in outcome.err
    assert outcome.document["estimate"] is None
