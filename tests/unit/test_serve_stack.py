"""What stands on what, read from a made-up sysfs and mount table."""

import os
from pathlib import Path

import pytest

from timezero._linux import stack
from timezero.config import VolumeConfig
from timezero.errors import UsageError
from timezero.subsystem.sidefile import check_directory
from timezero.subsystem.volumes import check_overlaps

DISK, PARTITION, MIRROR, LOGICAL, LOOP = (os.makedev(*pair) for pair in ((8, 0), (8, 1), (9, 0), (253, 0), (7, 0)))


@pytest.fixture
def sysfs(tmp_path, monkeypatch):
    """sda > sda1 > md0 > dm-0, and loop0 on a file."""
    block, devices = tmp_path / "block", tmp_path / "devices"
    (devices / "sda/sda1").mkdir(parents=True)
    (devices / "sda/dev").write_text("8:0\n")
    (devices / "sda/sda1/partition").write_text("1\n")
    (devices / "sda/sda1/dev").write_text("8:1\n")
    (devices / "md0/slaves").mkdir(parents=True)
    (devices / "md0/dev").write_text("9:0\n")
    (devices / "md0/slaves/sda1").symlink_to(devices / "sda/sda1")
    (devices / "dm-0/slaves").mkdir(parents=True)
    (devices / "dm-0/dev").write_text("253:0\n")
    (devices / "dm-0/slaves/md0").symlink_to(devices / "md0")
    (devices / "loop0/loop").mkdir(parents=True)
    (devices / "loop0/loop/backing_file").write_text(f"{tmp_path / 'image file'}\n")
    (tmp_path / "image file").touch()
    block.mkdir()
    for number, place in (("8:0", "sda"), ("8:1", "sda/sda1"), ("9:0", "md0"), ("253:0", "dm-0"), ("7:0", "loop0")):
        (block / number).symlink_to(devices / place)
    monkeypatch.setattr(stack, "_SYSFS", block)
    return tmp_path


def below(device):
    seen = set()
    stack._descend_device(device, seen)
    return seen


def test_down_through_mapper_mirror_and_partition(sysfs):
    chain = [LOGICAL, MIRROR, PARTITION, DISK]
    for place, device in enumerate(chain):
        assert below(device) == {(number, 0) for number in chain[place:]}


def test_a_loop_device_stands_on_its_file_and_that_files_filesystem(sysfs):
    file = (sysfs / "image file").stat()
    assert {(LOOP, 0), (file.st_dev, file.st_ino)} <= below(LOOP)


def test_a_circle_ends(sysfs):
    (sysfs / "devices/sda/slaves").mkdir()
    (sysfs / "devices/sda/slaves/dm-0").symlink_to(sysfs / "devices/dm-0")
    assert below(DISK) == below(LOGICAL)


def test_a_filesystem_with_an_anonymous_device_is_found_in_the_mount_table(tmp_path, monkeypatch):
    descriptor = os.open(tmp_path, os.O_PATH)
    lines = Path(f"/proc/self/fdinfo/{descriptor}").read_text().splitlines()
    os.close(descriptor)
    mount = next(line.split()[1] for line in lines if line.startswith("mnt_id:"))
    table = tmp_path / "mountinfo"
    monkeypatch.setattr(stack, "_MOUNTINFO", table)
    anonymous = os.makedev(0, 99)
    upper = tmp_path / "upper dir"
    upper.mkdir()
    for text, found in [
        (f"{mount} 1 0:99 / / rw - overlay x rw,lowerdir=/l,upperdir={tmp_path}/upper\\040dir", [str(upper)]),
        (f"{mount} 1 0:99 / / rw shared:1 - btrfs /dev/null rw", []),  # not a block device
        (f"{mount} 1 0:99 / / rw - tmpfs tmpfs rw", []),
        (f"{mount}9 1 0:99 / / rw - overlay overlay rw,upperdir=/", []),  # another mount
    ]:  # fmt: skip
        table.write_text(text + "\n")
        assert list(stack._filesystem_stands_on(str(tmp_path), anonymous)) == found


def test_a_file_on_a_served_volume_and_two_apart(tmp_path, monkeypatch):
    """The device of this directory's filesystem, taken for a served volume."""
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(bytes(4096))
    volumes = {name: VolumeConfig(str(tmp_path / name)) for name in ("a", "b")}
    check_overlaps(volumes)
    check_directory(str(tmp_path), {"a": stack.identity_of((tmp_path / "a").stat())})
    device = (tmp_path.stat().st_dev, 0)
    monkeypatch.setattr(stack, "_filesystem_stands_on", lambda path, number: iter([number]))
    with pytest.raises(UsageError, match="stands on volume disk"):
        check_directory(str(tmp_path), {"disk": device})
