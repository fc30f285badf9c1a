"""`timezero bench`: what it measures, what it refuses, and that it leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from proof.stack import loop_device
from tests.command import COMMAND, MIB, digest, environment, image, snapshot, succeed, timezero

BLOCKS = ["dd bs=64K", "dd bs=256K", "dd bs=1M", "dd bs=4M", "dd bs=16M"]


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    return image(tmp_path / "disk", 2 * MIB + 700)


@pytest.fixture
def device(root: None, tmp_path: Path) -> Iterator[Path]:
    with loop_device(image(tmp_path / "backing", 4 * MIB, seed=2)) as path:
        yield path


def test_rounds_rows_and_ratios(disk: Path, tmp_path: Path) -> None:
    before = snapshot(tmp_path)
    document = succeed("bench", disk, tmp_path / "target", "--rounds", "2")
    assert snapshot(tmp_path) == before
    assert document["size"] == disk.stat().st_size
    rows = {row["name"]: row for row in document["rows"]}
    assert list(rows) == ["timezero copy", *BLOCKS]
    ours = rows["timezero copy"]["runs"]
    for row in rows.values():
        ratios = sorted(theirs["seconds"] / our["seconds"] for theirs, our in zip(row["runs"], ours, strict=True))
        assert len(ratios) == 2 and row["ratio"] == pytest.approx(sum(ratios) / 2)
        assert all(run["seconds"] > 0 and run["cpu_seconds"] >= 0 for run in row["runs"])
    best = document["best_dd"]
    assert best["ratio"] == rows[best["name"]]["ratio"] and best["name"] in BLOCKS


def test_the_table(disk: Path, tmp_path: Path) -> None:
    outcome = timezero("bench", disk, tmp_path / "target", "--rounds", "1")
    assert outcome.code == 0, outcome.err
    lines = outcome.out.decode().splitlines()
    assert len(lines) == len(BLOCKS) + 3
    assert lines[1].startswith("timezero copy") and lines[1].endswith(" 1.00")
    assert "times as fast as the best dd" in lines[-1]


def test_what_exists_is_kept_without_force(disk: Path, device: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_text("precious")
    held = digest(device)
    for target in (kept, device):
        outcome = timezero("bench", disk, target, "--rounds", "1")
        assert outcome.code == 1 and "--force" in outcome.err
    assert kept.read_text() == "precious" and digest(device) == held


def test_force_takes_a_file_and_a_free_device(disk: Path, device: Path, tmp_path: Path) -> None:
    (tmp_path / "old").write_text("may go")
    succeed("bench", disk, tmp_path / "old", "--rounds", "1", "--force")
    assert not (tmp_path / "old").exists()
    succeed("bench", disk, device, "--rounds", "1", "--force")
    assert device.read_bytes()[: disk.stat().st_size] == disk.read_bytes()
    # Somebody claims the device, as a mount would: force is not for that.
    held = os.open(device, os.O_RDONLY | os.O_EXCL)
    try:
        outcome = timezero("bench", disk, device, "--rounds", "1", "--force")
    finally:
        os.close(held)
    assert outcome.code == 1 and "free it first" in outcome.err


def test_what_makes_no_sense_is_refused(disk: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    before = snapshot(tmp_path)
    for words, code in (
        (("served-name", tmp_path / "target"), 2),
        ((tmp_path / "empty", tmp_path / "target"), 2),
        ((disk, "-"), 2),
        ((disk, disk, "--force"), 2),
        ((disk, tmp_path / "target", "--rounds", "0"), 2),
        ((tmp_path / "missing" / "disk", tmp_path / "target"), 1),
        ((disk, tmp_path / "missing" / "target"), 1),
    ):
        outcome = timezero("bench", *words)
        assert (outcome.code, outcome.err.count("\n")) == (code, 1), outcome.err
    assert snapshot(tmp_path) == before


def test_a_failing_command_is_reported(disk: Path, tmp_path: Path) -> None:
    """dd finds no room, say: here, a dd that fails after it has begun."""
    fake = tmp_path / "bin" / "dd"
    fake.parent.mkdir()
    begun = "for word; do case $word in of=*) : > ${word#of=};; esac; done"
    fake.write_text(f"#!/bin/sh\n{begun}\necho no luck >&2\nexit 1\n")
    fake.chmod(0o755)
    before = snapshot(tmp_path)
    env = {"PATH": f"{fake.parent}:{os.environ['PATH']}"}
    outcome = timezero("bench", disk, tmp_path / "target", "--rounds", "1", env=env)
    assert outcome.code == 1 and outcome.err.splitlines()[-1] == "timezero: no luck"
    assert snapshot(tmp_path) == before


def test_an_interrupt_leaves_nothing(disk: Path, tmp_path: Path) -> None:
    before = snapshot(tmp_path)
    command = [*COMMAND, "bench", str(disk), str(tmp_path / "target"), "--rounds", "500"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment())
    assert process.stderr is not None
    try:
        while "dd bs=" not in process.stderr.readline():
            assert process.poll() is None
        time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert snapshot(tmp_path) == before
