"""File systems on loop devices, for tests of the concordance."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from proof.stack import loop_device, mounted
from timezero.concordance.mounts import Mount

MIB = 1 << 20
#: Those whose files can be read from their volume.
KINDS = ("ext4", "xfs")


def run(*command: str | Path) -> str:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{' '.join(done.args)}: {done.stderr or done.stdout}"
    return done.stdout


@dataclass
class FileSystem:
    """Mounted at `point`, on `device`, over the file `image`."""

    point: Path
    device: Path
    image: Path
    kind: str
    start: int = 0  # bytes: where the device begins in the image

    def mount(self, volume: str = "data") -> Mount:
        status = os.stat(self.point)
        block = os.statvfs(self.point).f_bsize
        return Mount(volume, str(self.point), status.st_dev, self.kind, self.start, block, False)


@contextmanager
def file_system(kind: str, folder: Path, *options: str, size: int = 512 * MIB, name: str = "") -> Iterator[FileSystem]:
    """A new one. options: of mkfs."""
    name = name or kind
    image = folder / f"{name}.image"
    with image.open("wb") as file:
        file.truncate(size)
    quiet = [] if kind == "btrfs" else ["-q"]
    run(f"mkfs.{kind}", *quiet, *options, image)
    with ExitStack() as stack:
        device = stack.enter_context(loop_device(image))
        point = stack.enter_context(mounted(device, folder / f"{name} mounted"))
        yield FileSystem(point, device, image, kind)
    image.unlink()


def is_frozen(point: Path) -> bool:
    """Does somebody who writes there have to wait? Asked in a way that waits for nobody: freezing it once more."""
    from timezero import _linux

    descriptor = os.open(point, os.O_RDONLY)
    try:
        _linux.freeze(descriptor)
    except OSError:
        return True
    else:
        _linux.thaw(descriptor)
        return False
    finally:
        os.close(descriptor)
