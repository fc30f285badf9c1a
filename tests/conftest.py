"""Fixtures that several kinds of tests share: block devices and file systems that are real."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from getpass import getuser
from pathlib import Path
from tempfile import gettempdir

import pytest
from hypothesis import HealthCheck, settings

from tests.leftovers import sweep

# How long an example takes says something about the machine and what else runs on it, not about what is tested.
settings.register_profile("timezero", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("timezero")

# A job in the background, or under nohup, is started with these ignored, and so would be what we interrupt.
for _number, _handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(_number) == signal.SIG_IGN:
        signal.signal(_number, _handler)


def pytest_sessionstart() -> None:
    if os.geteuid() == 0:
        sweep(Path(gettempdir()) / f"pytest-of-{getuser()}")


def run(*command: str | Path, timeout: float = 60) -> str:
    """Run a tool to its end; its output. A failure shows what it said."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, f"{' '.join(done.args)}: {done.stderr or done.stdout}"
    return done.stdout


@contextmanager
def _loop(file: Path, *options: str) -> Iterator[Path]:
    device = Path(run("losetup", "--find", "--show", *options, file).strip())
    _forget_partitions(device)
    try:
        yield device
    finally:
        _forget_partitions(device)
        run("losetup", "--detach", device)


def _forget_partitions(device: Path) -> None:
    """A loop device that is detached keeps the partitions that were added to it, for whoever gets it next."""
    for entry in Path("/sys/block", device.name).glob("*/partition"):
        run("delpart", device, entry.read_text().strip())


@contextmanager
def _mount(device: Path, point: Path, *options: str) -> Iterator[Path]:
    point.mkdir(parents=True, exist_ok=True)
    run("mount", *options, device, point)
    try:
        yield point
    finally:
        run("umount", point)


@pytest.fixture(scope="session")
def root() -> None:
    """For tests of what only root may do. Others are told what was left out; in CI nothing may be left out."""
    if os.geteuid() != 0:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("needs root: loop devices, mounts, freezing")


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Things to be undone at the end of the test, the last one first."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def loop(root: None, stack: ExitStack) -> Callable[..., Path]:
    """loop(file, *losetup_options) attaches a file to a loop device; its path."""
    return lambda file, *options: stack.enter_context(_loop(file, *options))


@pytest.fixture
def mount(root: None, stack: ExitStack) -> Callable[..., Path]:
    """mount(device, point, *mount_options) mounts a file system; the mount point."""
    return lambda device, point, *options: stack.enter_context(_mount(device, point, *options))
