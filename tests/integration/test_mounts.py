"""Mounts of volumes of a real `timezero serve`, through nbdfuse and loop devices."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from proof.stack import fuse_file, loop_device, mounted
from tests.integration.conftest import Serve, Served
from tests.integration.filesystems import MIB, run
from timezero import control
from timezero.concordance import mounts
from timezero.concordance.freezer import Freezer
from timezero.concordance.mapping import map_files
from timezero.concordance.selection import Selection, resolve
from timezero.errors import UsageError

SIZE = 128 * MIB


def status(served: Served) -> mounts.Served:
    with control.Client(served.control) as client:
        return mounts.Served.of(client.call("status"))


def volume(path: Path) -> Path:
    with path.open("wb") as file:
        file.truncate(SIZE)
    return path


def reader(path: Path) -> Callable[[int, int], bytes]:
    """As the server has it: the volume's own file."""

    def read(offset: int, length: int) -> bytes:
        with path.open("rb") as file:
            return os.pread(file.fileno(), length, offset)

    return read


@contextmanager
def partition(disk: Path, folder: Path, start: int, size: int) -> Iterator[Path]:
    """In the kernel's table alone; its node is made here, where the kernel's name for it would be."""
    run("addpart", disk, "1", str(start // 512), str(size // 512))
    node = Path(f"{disk}p1")
    made = not node.exists()
    try:
        major, minor = Path(f"/sys/block/{disk.name}/{disk.name}p1/dev").read_text().split(":")
        if made:
            os.mknod(node, stat.S_IFBLK | 0o600, os.makedev(int(major), int(minor)))
        yield node
    finally:
        if made and node.exists():
            node.unlink()
        run("delpart", disk, "1")


def test_mounts_of_served_volumes_are_found(root: None, serve: Serve, tmp_path: Path) -> None:
    images = {name: volume(tmp_path / name) for name in ("data", "logs", "idle")}
    served = serve(images)
    with ExitStack() as stack:
        points = {}
        for name, kind in (("data", "ext4"), ("logs", "ext4")):
            file = stack.enter_context(fuse_file(served.nbd_uri(name), tmp_path / f"fuse-{name}"))
            device = stack.enter_context(loop_device(file))
            if name == "logs":
                device = stack.enter_context(partition(device, tmp_path, 8 * MIB, 64 * MIB))
            run(f"mkfs.{kind}", "-q", device)
            points[name] = stack.enter_context(mounted(device, tmp_path / f"mount-{name}"))
        bound = tmp_path / "bound"
        bound.mkdir()
        (points["data"] / "inner").mkdir()
        run("mount", "--bind", points["data"] / "inner", bound)
        stack.callback(run, "umount", bound)

        servers = status(served)
        found = {mount.volume: mount for mount in mounts.find(servers)}
        assert set(found) == {"data", "logs"}
        for name, offset in (("data", 0), ("logs", 8 * MIB)):
            mount = found[name]
            assert (mount.point, mount.offset) == (str(points[name]), offset)
            assert mount.device == os.stat(points[name]).st_dev
            assert (mount.fs_type, mount.block_size, mount.read_only) == (
                "ext4",
                os.statvfs(points[name]).f_bsize,
                False,
            )
            assert mounts.given(f"{name}={points[name]}", servers) == mount
            mounts.verify(mount, reader(images[name]), SIZE)
        assert [mount.volume for mount in mounts.find(servers, ["logs"])] == ["logs"]
        assert mounts.given(f"data={bound}", servers) == found["data"]
        with pytest.raises(UsageError, match="lives on volume data, not on logs"):
            mounts.given(f"logs={points['data']}", servers)
        with pytest.raises(UsageError, match=r"no NBD device|not the file of an nbdfuse|block device"):
            mounts.given(f"data={tmp_path}", servers)

        # Another volume, another offset, a volume that is too small: none of them is where the mount lives.
        with pytest.raises(UsageError, match="does not live on volume data"):
            mounts.verify(found["data"], reader(images["logs"]), SIZE)
        with pytest.raises(UsageError, match="does not live on volume logs at byte 8388608"):
            mounts.verify(found["logs"], reader(images["data"]), SIZE)
        with pytest.raises(UsageError, match="more than volume logs"):
            mounts.verify(found["logs"], reader(images["logs"]), 32 * MIB)

        # Files of both, by what the volumes' own files hold while frozen.
        contents = {name: os.urandom(100_000) for name in points}
        for name, content in contents.items():
            (points[name] / "file").write_bytes(content)
        selections = [Selection(name, f"{point}/file") for name, point in points.items()]
        with resolve(selections, found.values()) as designated, Freezer(points.values()) as freezer:
            freezer.sync()
            freezer.freeze(30)
            for file in map_files(designated):
                read = reader(images[file.dataset.volume])
                held = b"".join(read(int(p), int(n)) for p, n in zip(file.physical, file.length, strict=True))
                assert held[: file.size] == contents[file.dataset.volume]
            freezer.thaw()


def test_a_mount_of_another_server_is_not_ours(root: None, serve: Serve, tmp_path: Path) -> None:
    """Two servers with a volume of the same name: what counts is where its client is connected."""
    images = [volume(tmp_path / name) for name in ("one", "two")]
    one, two = (serve({"data": image}) for image in images)
    with ExitStack() as stack:
        file = stack.enter_context(fuse_file(one.nbd_uri("data"), tmp_path / "fuse"))
        device = stack.enter_context(loop_device(file))
        run("mkfs.ext4", "-q", device)
        point = stack.enter_context(mounted(device, tmp_path / "mount"))
        assert [mount.point for mount in mounts.find(status(one))] == [str(point)]
        assert mounts.find(status(two)) == []
        assert [mount.point for mount in mounts.find([status(two), status(one)])] == [str(point)]
        with pytest.raises(UsageError, match="which is not served here"):
            mounts.given(f"data={point}", status(two))


def test_a_read_only_mount_and_a_hidden_one(root: None, serve: Serve, tmp_path: Path) -> None:
    image = volume(tmp_path / "image")
    served = serve({"data": image})
    with ExitStack() as stack:
        file = stack.enter_context(fuse_file(served.nbd_uri("data"), tmp_path / "fuse"))
        device = stack.enter_context(loop_device(file))
        run("mkfs.ext4", "-q", device)
        first = stack.enter_context(mounted(device, tmp_path / "first", "ro"))
        [mount] = mounts.find(status(served))
        assert mount.read_only
        with Freezer([mount.point]) as freezer:
            freezer.freeze(30)
            freezer.thaw()
        second = stack.enter_context(mounted(device, tmp_path / "second", "ro"))
        run("mount", "-t", "tmpfs", "tmpfs", first)
        stack.callback(run, "umount", first)
        [mount] = mounts.find(status(served))
        assert mount.point == str(second)
