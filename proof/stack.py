"""A real file system on a served volume without a kernel NBD client: nbdfuse gives a file, a loop device a disk.

Needs root. Everything is taken down again in reverse order, also after a failure.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

TIMEOUT = 60.0


def _run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout.strip()


def _retry(*command: str | Path) -> None:
    """A device may be busy for a moment longer than the last user of it."""
    end = time.monotonic() + 15
    while True:
        try:
            _run(*command)
            return
        except RuntimeError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)


@contextmanager
def fuse_file(uri: str, folder: Path) -> Iterator[Path]:
    """An NBD export as a file in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    process = subprocess.Popen(
        ["nbdfuse", folder / "volume", uri], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        end = time.monotonic() + TIMEOUT
        while not (folder / "volume").exists():
            if process.poll() is not None or time.monotonic() > end:
                why = "no file" if process.poll() is None else process.communicate()[1]
                raise RuntimeError(f"nbdfuse {uri}: {why}")
            time.sleep(0.02)
        yield folder / "volume"
    finally:
        try:
            if process.poll() is None or f" {folder} " in Path("/proc/self/mounts").read_text():
                _retry("umount", folder)  # what is mounted stays so when its server has died
            process.communicate(timeout=TIMEOUT)
        finally:
            if process.poll() is None:
                process.kill()
                process.communicate(timeout=TIMEOUT)


@contextmanager
def loop_device(file: Path, *, read_only: bool = False) -> Iterator[Path]:
    device = Path(_run("losetup", "--find", "--show", *(["--read-only"] if read_only else []), file))
    try:
        yield device
    finally:
        _retry("losetup", "--detach", device)


@contextmanager
def mounted(device: Path, folder: Path, options: str = "") -> Iterator[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    _run("mount", *(["-o", options] if options else []), device, folder)
    try:
        yield folder
    finally:
        _retry("umount", folder)


@contextmanager
def mounted_export(uri: str, folder: Path, make: list[str] | None = None) -> Iterator[Path]:
    """The file system of an NBD export, mounted; `make` is the mkfs command to run on its device first."""
    with ExitStack() as stack:
        file = stack.enter_context(fuse_file(uri, folder / "fuse"))
        device = stack.enter_context(loop_device(file))
        if make:
            _run(*make, device)
        yield stack.enter_context(mounted(device, folder / "mount"))


@contextmanager
def mounted_image(image: Path, folder: Path, options: str = "ro") -> Iterator[Path]:
    with loop_device(image) as device, mounted(device, folder, options) as root:
        yield root
