"""attach and detach with a real server, nbdfuse and loop devices."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.command import COMMAND, MIB, Outcome, environment, image, succeed, timezero
from timezero.attach import attach, detach, devices, tools
from timezero.attach.fuse import FuseLoop
from timezero.attach.kernel import KernelNbd
from timezero.attach.place import Place
from timezero.errors import LockedError, UsageError

pytestmark = pytest.mark.usefixtures("root")


@pytest.fixture(autouse=True)
def no_kernel_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with nbd-client would take the other way; children find it by PATH."""
    monkeypatch.setattr(KernelNbd, "is_available", staticmethod(lambda: False))


class Volume:
    """One served volume and what the tests do to it."""

    def __init__(self, served: object, path: Path) -> None:
        self.served = served
        self.control = str(served.control)  # type: ignore[attr-defined]
        self.path = path
        self.env = environment(TIMEZERO_CONTROL=self.control)
        self.place = Place("disk", self.control)

    def run(self, *words: object) -> Outcome:
        return timezero(*words, env=self.env)

    def attach(self, *words: object) -> Path:
        outcome = self.run("attach", "disk", *words)
        assert outcome.code == 0, outcome.err
        (line,) = outcome.out.decode().splitlines()
        return Path(line)

    def nbdfuse(self) -> int:
        (pid,) = FuseLoop(self.place).find().processes
        return pid

    def is_gone(self) -> bool:
        return not FuseLoop(self.place).find().any and not self.place.mount_point.exists()


@pytest.fixture
def volume(serve: Callable, tmp_path: Path) -> Iterator[Volume]:
    made = Volume(serve({"disk": image(tmp_path / "volume", 32 * MIB)}), tmp_path / "volume")
    yield made
    detach("disk", made.control)
    assert made.is_gone() and not [*made.place.parent.glob(f"{made.place.mount_point.stem}*")]


def test_a_file_system_on_an_attached_device(tmp_path: Path, volume: Volume, mount: Callable) -> None:
    device = volume.attach()
    assert device.is_block_device() and device.name.startswith("loop")
    assert volume.attach() == device  # and again
    document = succeed("attach", "disk", env=volume.env)
    assert document == {
        "name": "disk", "device": str(device), "method": "nbdfuse", "size": 32 * MIB, "volume_size": 32 * MIB,
        "sector_size": 512, "read_only": False, "is_new": False, "warnings": [],
    }  # fmt: skip
    subprocess.run(["mkfs.ext4", "-q", device], check=True)
    point = mount(device, tmp_path / "mnt")
    (point / "file").write_text("T0")
    refused = volume.run("detach", "disk")
    assert refused.code == 11 and f"{device} is mounted on {point}: unmount it first" in refused.err
    assert (point / "file").read_text() == "T0" and volume.attach() == device
    subprocess.run(["umount", point], check=True)
    assert volume.run("detach", "disk").out == b"disk: detached\n"
    again = volume.run("detach", "disk")
    assert (again.code, again.out, again.err) == (0, b"disk: is not attached\n", "")
    # All of it has reached the volume.
    read = subprocess.run(["debugfs", "-R", "cat /file", volume.path], capture_output=True, text=True, check=True)
    assert read.stdout == "T0"
    device = volume.attach()
    subprocess.run(["mount", device, point], check=True)
    assert (point / "file").read_text() == "T0"  # unmounted by the fixture


def test_read_only(volume: Volume) -> None:
    device = volume.attach("--read-only")
    with pytest.raises(OSError, match=r"not permitted|Read-only"), open(device, "r+b") as file:
        file.write(b"x")
        file.flush()
    assert volume.attach("--read-only") == device
    other = volume.run("attach", "disk")
    assert other.code == 11 and f"attached read-only as {device}: detach it first" in other.err
    volume.run("detach", "disk")
    volume.attach()
    assert "attached for writing" in volume.run("attach", "disk", "--read-only").err


def test_what_is_served_read_only_is_attached_read_only(serve: Callable, tmp_path: Path) -> None:
    image(tmp_path / "volume", MIB)
    (tmp_path / "toml").write_text(f'[volumes.disk]\npath = "{tmp_path}/volume"\nread_only = true\n')
    served = serve({}, config=tmp_path / "toml")
    try:
        assert attach("disk", served.control).read_only
    finally:
        detach("disk", served.control)


@pytest.mark.parametrize("more", [0, 1, 511, 512, 1000])
def test_sizes(serve: Callable, tmp_path: Path, more: int) -> None:
    size = MIB + more
    served = serve({"disk": image(tmp_path / "volume", size)})
    try:
        attached = attach("disk", served.control)
        assert attached.size == size // 512 * 512 and attached.volume_size == size
        assert any("no whole sector" in warning for warning in attached.warnings) == (size % 512 != 0)
        with open(attached.device, "rb") as device, open(tmp_path / "volume", "rb") as file:
            assert device.read() == file.read()[: size // 512 * 512]
        assert not attach("disk", served.control).is_new
    finally:
        detach("disk", served.control)


def test_too_small(serve: Callable, tmp_path: Path) -> None:
    served = serve({"disk": image(tmp_path / "volume", 511)})
    with pytest.raises(UsageError, match="too small for a block device"):
        attach("disk", served.control)


def test_a_disk_of_large_sectors_keeps_them(serve: Callable, tmp_path: Path, loop: Callable) -> None:
    """Its partition table counts in them."""
    disk = loop(image(tmp_path / "disk", 4 * MIB), "--sector-size", "4096")
    served = serve({"disk": disk})
    try:
        attached = attach("disk", served.control)
        assert attached.sector_size == 4096
        queue = Path("/sys/block", Path(attached.device).name, "queue")
        assert (queue / "logical_block_size").read_text() == "4096\n"
    finally:
        detach("disk", served.control)
        served.stop()


def test_partitions(volume: Volume, tmp_path: Path, mount: Callable) -> None:
    """Added by hand: not every kernel that tests run on can read partition tables."""
    device = volume.attach()
    subprocess.run(["addpart", device, "1", "2048", "32768"], check=True)
    part = Path(f"{device}p1")
    subprocess.run(["mkfs.ext4", "-q", part], check=True)
    point = mount(part, tmp_path / "mnt")
    refused = volume.run("detach", "disk")
    assert refused.code == 11 and f"is mounted on {point}" in refused.err
    subprocess.run(["umount", point], check=True)
    assert volume.run("detach", "disk").code == 0
    # Whoever gets the loop device next must not find our partitions on it.
    assert not part.exists()
    again = volume.attach()
    subprocess.run(["mount", "-o", "offset=1048576", again, point], check=True)  # unmounted by the fixture


def test_a_device_that_is_open_is_not_detached(volume: Volume) -> None:
    device = volume.attach()
    with open(device, "rb"):
        refused = volume.run("detach", "disk")
    assert refused.code == 11 and f"(process {os.getpid()}): end that first" in refused.err
    assert volume.attach() == device


def test_names_and_servers(serve: Callable, tmp_path: Path) -> None:
    """The same name of two servers is two volumes."""
    first, second = (serve({"disk": image(tmp_path / name, MIB, seed=n)}) for n, name in enumerate("ab"))
    try:
        devices = [attach("disk", served.control).device for served in (first, second)]
        assert len(set(devices)) == 2
        for device, name in zip(devices, "ab", strict=True):
            assert Path(device).read_bytes() == (tmp_path / name).read_bytes()
        with pytest.raises(UsageError, match="no such volume; served are disk"):
            attach("other", first.control)
        with pytest.raises(UsageError, match="volume name"):
            attach("../disk", first.control)
    finally:
        assert detach("disk", first.control).was_attached
        assert detach("disk", second.control).was_attached


def test_nbdfuse_was_killed(tmp_path: Path, volume: Volume, mount: Callable) -> None:
    device = volume.attach()
    os.kill(volume.nbdfuse(), signal.SIGKILL)
    with pytest.raises(OSError, match="Input/output"), open(device, "rb", buffering=0) as file:
        file.read(4096)
    again = volume.attach()
    assert again.read_bytes() == volume.path.read_bytes()
    # Under a mounted file system nothing can be made whole: it has to be unmounted first, and we say so.
    subprocess.run(["mkfs.ext4", "-q", again], check=True)
    point = mount(again, tmp_path / "mnt")
    os.kill(volume.nbdfuse(), signal.SIGKILL)
    refused = volume.run("attach", "disk")
    assert refused.code == 11 and "it does not answer any more" in refused.err
    assert volume.run("detach", "disk").code == 11
    subprocess.run(["umount", point], check=True)
    gone = volume.run("detach", "disk")
    assert gone.code == 0 and gone.out == b"disk: detached\n"
    subprocess.run(["mount", volume.attach(), point], check=True)  # unmounted by the fixture


def test_the_server_was_restarted(volume: Volume, serve: Callable) -> None:
    volume.attach()
    volume.served.stop()  # type: ignore[attr-defined]
    gone = volume.run("attach", "disk")
    assert gone.code == 1 and "nobody serves it" in gone.err
    serve({"disk": volume.path}, at=volume.served)
    assert volume.attach().read_bytes() == volume.path.read_bytes()
    # Detaching needs no server.
    volume.attach()


def test_detach_without_a_server(volume: Volume) -> None:
    volume.attach()
    volume.served.stop()  # type: ignore[attr-defined]
    assert volume.run("detach", "disk").code == 0
    assert volume.is_gone()


def test_attach_is_killed_at_any_moment(volume: Volume) -> None:
    began = time.monotonic()
    volume.attach()
    usual = time.monotonic() - began
    volume.run("detach", "disk")
    for attempt in range(16):
        child = subprocess.Popen(
            [*COMMAND, "attach", "disk"], env=volume.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(usual * (0.4 + attempt / 20))
        child.kill()
        child.wait()
        if attempt % 2:
            volume.run("detach", "disk")
            assert volume.is_gone()
        else:
            device = volume.attach()
            found = FuseLoop(volume.place).find()
            assert len(found.processes) == found.mounts == 1 and found.loops == (str(device),)
            volume.run("detach", "disk")


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_attach_leaves_nothing(volume: Volume, sign: int) -> None:
    child = subprocess.Popen(
        [*COMMAND, "attach", "disk"], env=volume.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while child.poll() is None and not volume.place.mount_point.exists():
        time.sleep(0.0005)
    with suppress(ProcessLookupError):
        child.send_signal(sign)
    code = child.wait(20)
    assert code in (0, 130)
    assert (code == 0) != volume.is_gone()


def test_many_at_once_get_one_device(volume: Volume) -> None:
    command = [*COMMAND, "attach", "disk"]
    children = [subprocess.Popen(command, env=volume.env, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    lines = {child.communicate(timeout=60)[0] for child in children}
    assert len(lines) == 1 and lines.pop().startswith("/dev/")


def test_nothing_that_lies_about_itself_is_believed(volume: Volume, tmp_path: Path) -> None:
    """A process with nbdfuse's arguments that is none, and files that say anything: neither is trusted, or ended."""
    liar = subprocess.Popen(["sleep", "60"], executable="/bin/sleep")
    fake = subprocess.Popen(["nbdfuse", str(volume.place.file), "60"], executable="/bin/cat", stdin=subprocess.PIPE)
    try:
        volume.place.parent.mkdir(parents=True, exist_ok=True)
        volume.place.beside("nbd").write_text('{"device": "nbd0", "boot": "another"}')
        volume.place.beside("nbd-pid").write_text(str(liar.pid))
        volume.attach()
        volume.run("detach", "disk")
        assert volume.is_gone() and liar.poll() is None
        assert not volume.place.beside("nbd").exists()
    finally:
        for process in (liar, fake):
            process.kill()
            process.communicate()


def test_nbdfuse_is_a_daemon(volume: Volume) -> None:
    volume.attach()
    pid = volume.nbdfuse()
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    assert int(fields[3]) == pid  # its own session: no terminal takes it along
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    assert os.readlink(f"/proc/{pid}/fd/0") == "/dev/null"


def test_a_lock_that_somebody_holds(volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("timezero.attach.place._LOCK_WAIT_S", 0.1)
    with Place("disk", volume.control), pytest.raises(LockedError, match="by somebody else"):
        attach("disk", volume.control)


def test_what_the_kernel_shows(tmp_path: Path) -> None:
    assert tools.mounts_on(Path("/proc")) >= 1 and tools.mounts_on(tmp_path) == 0
    assert tools.loops_on(tmp_path / "none") == []
    assert devices.sector_of(str(tmp_path)) == 512
    assert not devices.is_readable(str(tmp_path / "none"))
