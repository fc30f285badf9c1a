"""Whatever happens to a backup, the application's writes go on, and nothing half-written is listed or restorable."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from proof.explain import NEVER, RECORD, explain
from proof.load import Load, build, fill

MIB = 1 << 20
SIZE = 64 * MIB
TIMEOUT = 60.0


class World:
    """A served volume `data` under load, a repository to be, and the command line."""

    def __init__(self, folder: Path, served, load: Load) -> None:
        self.folder, self.served, self.load = folder, served, load
        self.repo = folder / "repository"

    def start(self, *words: object) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "timezero", *map(str, words)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def run(self, *words: object) -> tuple[int, str, str]:
        process = self.start(*words)
        out, err = process.communicate(timeout=TIMEOUT)
        return process.returncode, out, err

    def backup(self, rate: str) -> subprocess.Popen[str]:
        """Starts a backup and returns when some of its data has reached the repository."""
        process = self.start("backup", "--repo", self.repo, "--control", self.served.control, "--rate", rate, "data")
        until = time.monotonic() + TIMEOUT
        while not any(path.stat().st_size for path in self.repo.glob("packs/*")):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < until, "no data arrives"
            time.sleep(0.01)
        return process

    def sessions(self) -> int:
        code, out, err = self.run("status", "--control", self.served.control, "--json")
        assert code == 0, err
        return len(json.loads(out)["sessions"])

    def wait_for_no_session(self) -> None:
        until = time.monotonic() + TIMEOUT
        while self.sessions():
            assert time.monotonic() < until, "the subsystem keeps the session"
            time.sleep(0.05)

    def listed(self) -> list[dict]:
        code, out, err = self.run("list", "--repo", self.repo, "--json")
        assert code == 0, err
        return json.loads(out)["points"]

    def prove_next_backup(self) -> None:
        """A backup now succeeds, is listed alone, and holds one instant. Ends the load."""
        before = time.monotonic_ns()
        code, out, err = self.run("backup", "--repo", self.repo, "--control", self.served.control, "data", "--json")
        window = (before, time.monotonic_ns())
        assert code == 0, err
        assert [point["id"] for point in self.listed()] == [json.loads(out)["id"]]
        self.load.stop()
        code, _, err = self.run("restore", "--repo", self.repo, "latest/data", self.folder / "restored.img")
        assert code == 0, err
        verdict = explain([(self.folder / "restored.img", 1, self.load.logs)], window)
        assert verdict.explained, verdict.faults

    def acknowledged(self, begin: int, end: int) -> int:
        """Updates that were acknowledged in an interval; after the load was stopped."""
        log = np.concatenate([np.fromfile(path, dtype=RECORD) for path in self.load.logs])
        ack = log["acknowledged"]
        return int(((ack != NEVER) & (ack >= begin) & (ack < end)).sum())


@pytest.fixture
def world(serve: Callable, tmp_path: Path) -> Iterator[Callable[..., World]]:
    loads: list[Load] = []

    def start(rate: int = 1000, **serving: object) -> World:
        image = tmp_path / "data.img"
        image.touch()
        os.truncate(image, SIZE)
        binary = build(tmp_path)
        fill(binary, image, 1, 0, SIZE)
        served = serve({"data": image}, **serving)
        load = Load(binary, Path(served.nbd_socket), "data", 1, SIZE, tmp_path, depth=4, seconds=120)
        load.options = {"min": 4096, "max": 16384, "rate": rate}
        loads.append(load)
        load.start()
        return World(tmp_path, served, load)

    yield start
    for load in loads:
        load.kill()


def test_a_mover_that_is_killed(world):
    w = world()
    process = w.backup("8M")
    process.kill()
    process.communicate(timeout=TIMEOUT)
    w.wait_for_no_session()
    begin = time.monotonic_ns()
    time.sleep(0.5)
    end = time.monotonic_ns()
    assert w.listed() == []
    w.prove_next_backup()
    assert w.acknowledged(begin, end) > 200


def test_a_mover_that_is_stuck_costs_the_application_nothing(world):
    w = world(sidefile_memory="128M")
    process = w.backup("16M")
    process.send_signal(signal.SIGSTOP)
    begin = time.monotonic_ns()
    time.sleep(2.0)
    end = time.monotonic_ns()
    process.send_signal(signal.SIGCONT)
    _, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0, err
    w.load.stop()
    assert w.acknowledged(begin, end) > 1500  # of 2 connections x 1000 a second x 2 s, however noisy the machine


def test_an_interrupt_leaves_nothing_behind(world):
    w = world()
    process = w.backup("8M")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    w.wait_for_no_session()
    assert w.listed() == []
    w.prove_next_backup()


def test_a_sidefile_at_its_cap_sacrifices_the_backup_alone(world):
    w = world(rate=4000, sidefile_memory="2M")
    # Not w.backup(): the cap may be reached before the first data arrives.
    process = w.start("backup", "--repo", w.repo, "--control", w.served.control, "--rate", "2M", "data")
    _, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 5, err
    assert len(err.strip().splitlines()) >= 1 and "Traceback" not in err
    w.wait_for_no_session()
    assert w.listed() == []
    w.load.stop()  # raises when an update failed


def test_a_subsystem_that_dies_takes_t0_with_it(world):
    w = world()
    process = w.backup("8M")
    w.served.process.kill()
    _, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 5, err
    assert "Traceback" not in err
    assert w.listed() == []
