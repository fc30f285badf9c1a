"""A target that takes so many bytes a second: a block device over nbdfuse over nbdkit's rate filter. Needs root."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from proof.stack import fuse_file

TIMEOUT = 30.0  # seconds


@contextmanager
def slow_device(folder: Path, size: int, rate: int) -> Iterator[Path]:
    """A device of `size` bytes that takes and gives `rate` bytes a second, in memory below, with direct I/O above."""
    socket = folder / "slow.sock"
    process = subprocess.Popen(
        ["nbdkit", "--foreground", "--exit-with-parent", "--unix", socket, "--filter=rate", "memory", str(size),
         f"rate={rate * 8}", "burstiness=0.2"],
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        end = time.monotonic() + TIMEOUT
        while not socket.exists():
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"nbdkit was not ready (exit code {process.poll()})")
            time.sleep(0.02)
        with fuse_file(f"nbd+unix:///?socket={socket}", folder / "slow") as file, _loop(file) as device:
            yield device
    finally:
        process.terminate()
        process.wait(TIMEOUT)
        socket.unlink(missing_ok=True)


@contextmanager
def _loop(file: Path) -> Iterator[Path]:
    made = subprocess.run(
        ["losetup", "--find", "--show", "--direct-io=on", file], check=True, capture_output=True, text=True
    )
    device = made.stdout.strip()
    try:
        yield Path(device)
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)
