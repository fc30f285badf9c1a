"""A killed test run must not make the next one fail."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.conftest import run
from tests.leftovers import sweep


def _left_by_a_run(folder: Path) -> Path:
    """A file system on a loop device in the folder of a run."""
    image = folder / "test" / "image"
    image.parent.mkdir(parents=True)
    with image.open("wb") as file:
        file.truncate(16 << 20)
    run("mkfs.ext4", "-q", image)
    device = Path(run("losetup", "--find", "--show", image).strip())
    (folder / "test" / "mount").mkdir()
    run("mount", device, folder / "test" / "mount")
    return device


def _is_there(device: Path, folder: Path) -> bool:
    return str(folder) in Path("/proc/self/mounts").read_text() or str(folder) in run("losetup", "--list", device)


def test_a_killed_runs_mounts_and_devices_are_taken_down(root: None, tmp_path: Path) -> None:
    folder = tmp_path / "pytest-1"
    device = _left_by_a_run(folder)
    gone = subprocess.Popen(["true"])
    gone.wait()
    (folder / ".lock").write_text(str(gone.pid))

    assert sweep(tmp_path) == [str(folder / "test" / "mount"), str(device)]

    assert not _is_there(device, folder)


def test_those_of_a_run_that_lives_are_left_alone(
    root: None, tmp_path: Path, loop: Callable[..., Path], mount: Callable[..., Path]
) -> None:
    folder = tmp_path / "pytest-1"
    image = folder / "image"
    folder.mkdir()
    with image.open("wb") as file:
        file.truncate(16 << 20)
    run("mkfs.ext4", "-q", image)
    device = loop(image)
    mount(device, folder / "mount")
    (folder / ".lock").write_text(str(os.getpid()))

    assert sweep(tmp_path) == []

    assert _is_there(device, folder)
