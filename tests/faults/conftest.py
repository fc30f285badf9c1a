"""The integration tests' server, and devices and calls that fail, for tests that break things."""

from __future__ import annotations

import errno
import itertools
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from proof.shim import SYNC, Shim
from proof.words import after_the_estimate
from tests.integration.conftest import serve
from tests.watching import until

__all__ = ["serve"]

TIMEOUT = 60.0


def told(err: str, *words: str) -> None:
    """One line for the user, and what it has to say."""
    err = after_the_estimate(err)
    assert err.startswith("timezero: ") and err.endswith("\n") and err.count("\n") == 1, err
    for word in words:
        assert word in err, err


def descriptors(process: int) -> int:
    """Descriptors that a process has open."""
    return len(os.listdir(f"/proc/{process}/fd"))


def threads(process: int) -> int:
    """Threads that a process has."""
    return len(os.listdir(f"/proc/{process}/task"))


def settled(process: int) -> int:
    """Descriptors of a server that has just become ready, and has a few more a moment later."""
    time.sleep(0.2)
    return descriptors(process)


@pytest.fixture(scope="session")
def shims(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Shim]:
    """shims(name): rules for a program to be started with its `environment`. The library is compiled once."""
    folder, numbers = tmp_path_factory.mktemp("shim"), itertools.count()
    return lambda name: Shim(folder, f"{name}-{next(numbers)}")


@dataclass
class Device:
    """A file that is a device: real errors, real silence. nbdfuse over nbdkit's error filter over `image`.

    The filter knows no flush: its fdatasync of `image` is made to fail.
    """

    path: Path
    image: Path
    process: subprocess.Popen[bytes]
    triggers: dict[str, Path]
    shim: Shim

    def fail(self, *requests: str) -> None:
        """Requests (pread, pwrite, zero, trim, flush) that get EIO from now on."""
        assert set(requests) <= {*self.triggers, "flush"}
        self.shim.rule(0, SYNC if "flush" in requests else 0, self.image, error=errno.EIO, per_million=1_000_000)
        for name, trigger in self.triggers.items():
            trigger.touch() if name in requests else trigger.unlink(missing_ok=True)

    @property
    def server(self) -> int:
        """nbdkit's process."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(children[0])

    def silence(self) -> None:
        """It takes requests, and does not answer."""
        os.kill(self.server, signal.SIGSTOP)

    def answer(self) -> None:
        """It goes on."""
        with suppress(ProcessLookupError, IndexError):
            os.kill(self.server, signal.SIGCONT)

    def vanish(self) -> None:
        """It is pulled out."""
        os.kill(self.server, signal.SIGKILL)


@pytest.fixture
def device(root: None, tmp_path: Path, shims: Callable[[str], Shim]) -> Iterator[Callable[..., Device]]:
    """device(name, size) -> Device, all zeros."""
    made: list[Device] = []

    def make(name: str, size: int) -> Device:
        folder = tmp_path / f"device-{name}"
        folder.mkdir()
        image, path = folder / "image", folder / "disk"
        with image.open("wb") as file:
            file.truncate(size)
        path.touch()
        triggers = {request: folder / f"fail-{request}" for request in ("pread", "pwrite", "zero", "trim")}
        command = ["nbdfuse", path, "--command", "nbdkit", "-s", "--exit-with-parent", "--filter=error", "file", image]
        for request, trigger in triggers.items():
            command += [f"error-{request}=EIO", f"error-{request}-rate=100%", f"error-{request}-file={trigger}"]
        shim = shims(f"device-{name}")
        process = subprocess.Popen(
            command, env=os.environ | shim.environment, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        made.append(Device(path, image, process, triggers, shim))
        until(lambda: path.stat().st_size == size or process.poll() is not None, f"nbdfuse does not serve {path}")
        assert process.poll() is None, "nbdfuse ended"
        return made[-1]

    yield make
    for item in made:
        item.answer()
        if item.process.poll() is None:
            item.process.send_signal(signal.SIGTERM)  # it takes its mount away
            try:
                item.process.wait(TIMEOUT)
            except subprocess.TimeoutExpired:
                item.process.kill()
                item.process.wait(TIMEOUT)
        subprocess.run(["umount", "--lazy", item.path], stderr=subprocess.DEVNULL, check=False)
