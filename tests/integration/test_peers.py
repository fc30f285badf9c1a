"""Real NBD clients against `timezero serve`. The bytes of the file below are the judge, never what the server says.

A peer that is missing fails its test: nothing is skipped.
"""

from __future__ import annotations

import contextlib
import filecmp
import json
import os
import random
import shutil
import subprocess
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from timezero._native.engine import probe_uring

MIB = 1 << 20
TIMEOUT = 60.0  # seconds any single command may take
PATH = os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/sbin:/sbin"

pytestmark = pytest.mark.timeout(240)


def _which(name: str) -> str:
    found = shutil.which(name, path=PATH)
    if found is None:
        pytest.fail(f"the peer {name} is not installed: make test installs it (scripts/bootstrap.sh all)")
    return found


def _run(*argv: str | Path, timeout: float = TIMEOUT, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; its output is text. A failure says what it printed."""
    command = [_which(str(argv[0])), *map(str, argv[1:])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL)
    if check and done.returncode != 0:
        pytest.fail(f"{' '.join(command)}: status {done.returncode}\n{done.stdout}{done.stderr}")
    return done


def _until(what: str, condition: Callable[[], bool], timeout: float = TIMEOUT) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"{what}: not within {timeout:g} s")
        time.sleep(0.01)


def _stop(process: subprocess.Popen[str], timeout: float = TIMEOUT) -> int:
    """SIGTERM, and SIGKILL for what does not listen; its status."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(timeout)
    return process.returncode


@pytest.fixture
def run() -> Callable[..., subprocess.CompletedProcess[str]]:
    """run(*argv, timeout=60, check=True): a command, to its end."""
    return _run


@pytest.fixture(params=["uring", "threads"])
def engine(request: pytest.FixtureRequest) -> str:
    """Each I/O engine in turn; io_uring where the kernel lets us have it."""
    available, reason = probe_uring()
    if request.param == "uring" and not available:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"no io_uring here: {reason}")
    return str(request.param)


def _sparse_random(path: Path, size: int, seed: int) -> bytes:
    """Fill a file with runs of data and holes; its content."""
    generator = random.Random(seed)
    content = bytearray(size)
    with path.open("wb") as file:
        file.truncate(size)
        at = 0
        while at < size:
            run = min(generator.choice((4096, 65536, 300_000, 1_000_000)), size - at)
            if generator.random() < 0.6:
                content[at : at + run] = generator.randbytes(run)
                file.seek(at)
                file.write(content[at : at + run])
            at += run
    return bytes(content)


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """An empty volume of 32 MiB."""
    path = tmp_path / "volume.img"
    with path.open("wb") as file:
        file.truncate(32 * MIB)
    return path


def test_nbdinfo_learns_what_is_offered(serve, run, volume: Path, tmp_path: Path) -> None:
    _sparse_random(volume, 32 * MIB, 1)
    odd = tmp_path / "odd.img"
    odd.write_bytes(b"x" * 12345)
    server = serve({"disk": volume, "odd": odd})

    (export,) = json.loads(run("nbdinfo", "--json", server.nbd_uri("disk")).stdout)["exports"]
    assert export["export-size"] == 32 * MIB
    assert not export["is_read_only"]
    for ability in ("flush", "fua", "trim", "zero", "fast_zero", "multi_conn", "cache", "df"):
        assert export[f"can_{ability}"] is True, ability
    assert "base:allocation" in export["contexts"]
    assert run("nbdinfo", "--size", server.nbd_uri("odd")).stdout.strip() == "12345"

    listed = json.loads(run("nbdinfo", "--list", "--json", f"nbd+unix:///?socket={server.nbd_socket}").stdout)
    assert sorted(entry["export-name"] for entry in listed["exports"]) == ["disk", "odd"]
    assert run("nbdinfo", server.nbd_uri("no-such-volume"), check=False).returncode != 0


def test_nbdinfo_map_never_calls_data_a_hole(serve, run, volume: Path) -> None:
    content = _sparse_random(volume, 32 * MIB, 2)
    server = serve({"disk": volume})
    extents = json.loads(run("nbdinfo", "--map", "--json", server.nbd_uri("disk")).stdout)
    at = 0
    for extent in extents:
        assert extent["offset"] == at
        at += extent["length"]
        if extent["type"] & 2:
            assert not any(content[extent["offset"] : at])
    assert at == len(content)
    assert any(extent["type"] == 3 for extent in extents), "no hole was reported"
    assert any(extent["type"] == 0 for extent in extents)


def test_nbdcopy_both_ways(serve, run, volume: Path, tmp_path: Path, engine: str) -> None:
    source, back = tmp_path / "source.img", tmp_path / "back.img"
    content = _sparse_random(source, 32 * MIB, 3)
    server = serve({"disk": volume}, engine=engine)
    run("nbdcopy", "--connections=4", "--flush", source, server.nbd_uri("disk"))
    run("nbdcopy", "--connections=4", server.nbd_uri("disk"), back)
    assert back.read_bytes() == content
    server.stop()
    assert volume.read_bytes() == content


def test_qemu_img_convert_and_compare(serve, run, volume: Path, tmp_path: Path, engine: str) -> None:
    source, back = tmp_path / "source.img", tmp_path / "back.qcow2"
    content = _sparse_random(source, 32 * MIB, 4)
    server = serve({"disk": volume}, engine=engine)
    uri = server.nbd_uri("disk")
    run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", source, uri)
    run("qemu-img", "compare", "-f", "raw", "-F", "raw", source, uri)
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", uri, back)
    run("qemu-img", "compare", "-f", "qcow2", "-F", "raw", back, source)
    server.stop()
    assert volume.read_bytes() == content


def test_qemu_io_patterns_aligned_and_not(serve, run, volume: Path, engine: str) -> None:
    server = serve({"disk": volume}, engine=engine)
    commands = (
        "write -P 0xa5 0 1M",
        "write -P 0x11 511 1026",
        "write -P 0x22 -f 70001 4095",
        "aio_write -P 0x33 2M 64k",
        "aio_write -P 0x44 2162688 1M",
        "aio_flush",
        "write -z 4096 8192",
        "write -z -u 300000 100000",
        "write -P 0x66 33554431 1",
        "discard 512k 64k",
        "flush",
        "read -P 0xa5 0 511",
        "read -P 0x11 511 1026",
        "read -P 0xa5 1537 2559",
        "read -P 0 4096 8192",
        "read -P 0x22 70001 4095",
        "read -P 0 300000 100000",
        "read -P 0x33 2M 64k",
        "read -P 0x44 2162688 1M",
        "read -P 0x66 33554431 1",
    )
    argv = [part for command in commands for part in ("-c", command)]
    done = run("qemu-io", "-f", "raw", "-t", "writeback", *argv, server.nbd_uri("disk"))
    assert "failed" not in done.stdout + done.stderr
    server.stop()

    with volume.open("rb") as file:
        data = file.read()
    assert len(data) == 32 * MIB
    assert data[:511] == b"\xa5" * 511 and data[511:1537] == b"\x11" * 1026 and data[1537:4096] == b"\xa5" * 2559
    assert not any(data[4096:12288]) and data[12288:70001] == b"\xa5" * (70001 - 12288)
    assert data[70001:74096] == b"\x22" * 4095 and data[74096:300000] == b"\xa5" * (300000 - 74096)
    assert not any(data[300000:400000]) and data[400000:524288] == b"\xa5" * (524288 - 400000)
    assert data[2 * MIB : 2162688] == b"\x33" * 65536 and data[2162688 : 2162688 + MIB] == b"\x44" * MIB
    assert data[-1] == 0x66 and data[-2] == 0


def test_requests_out_of_range_leave_the_server_standing(serve, run, volume: Path) -> None:
    server = serve({"disk": volume})
    bad = run("qemu-io", "-f", "raw", "-c", "read 33M 4k", server.nbd_uri("disk"), check=False)
    assert bad.returncode != 0
    assert server.process.poll() is None
    run("qemu-io", "-f", "raw", "-c", "write -P 1 0 4k", "-c", "read -P 1 0 4k", server.nbd_uri("disk"))


def test_a_read_only_volume_is_not_written(serve, run, volume: Path) -> None:
    volume.write_bytes(b"\x77" * MIB)
    server = serve({"disk": volume}, read_only="disk")
    (export,) = json.loads(run("nbdinfo", "--json", server.nbd_uri("disk")).stdout)["exports"]
    assert export["is_read_only"]
    run("qemu-io", "-r", "-f", "raw", "-c", "read -P 0x77 0 1M", server.nbd_uri("disk"))
    assert run("qemu-io", "-f", "raw", "-c", "write -P 1 0 4k", server.nbd_uri("disk"), check=False).returncode != 0
    server.stop()
    assert volume.read_bytes() == b"\x77" * MIB


def _fio(uri: str, name: str, *options: str) -> list[str]:
    """One process, so that killing it is killing the client."""
    return [
        "fio", "--thread", f"--name={name}", "--ioengine=nbd", f"--uri={uri}", "--rw=randwrite", "--iodepth=16",
        "--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--serialize_overlap=1", *options,
    ]  # fmt: skip


def test_fio_verifies_what_it_wrote(serve, run, volume: Path, tmp_path: Path, engine: str) -> None:
    server = serve({"disk": volume}, engine=engine)
    job = _fio(server.nbd_uri("disk"), "verify", "--bsrange=4k-64k", "--size=16M", f"--aux-path={tmp_path}")
    run(*job, timeout=120)
    unaligned = _fio(
        server.nbd_uri("disk"), "odd", "--bssplit=1536/50:512/50", "--blockalign=512", "--size=1M", "--offset=16M",
        f"--aux-path={tmp_path}",
    )  # fmt: skip
    run(*unaligned, timeout=120)


def test_two_clients_at_once(serve, run, volume: Path, tmp_path: Path, engine: str) -> None:
    server = serve({"disk": volume}, engine=engine)
    uri = server.nbd_uri("disk")
    jobs = [
        subprocess.Popen(
            _fio(uri, f"half{half}", "--bs=4k", "--size=8M", f"--offset={half * 16}M", f"--aux-path={tmp_path}"),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for half in range(2)
    ]  # fmt: skip
    try:
        for job in jobs:
            output, _ = job.communicate(timeout=120)
            assert job.returncode == 0, output
    finally:
        for job in jobs:
            job.kill()
            job.wait()
    assert server.process.poll() is None
    # What one client was told is written, another reads.
    run("qemu-io", "-f", "raw", "-c", "write -P 0x5c 12M 64k", uri)
    run("qemu-io", "-f", "raw", "-c", "read -P 0x5c 12M 64k", uri)


def test_a_client_killed_in_the_middle_harms_nobody(serve, run, volume: Path, tmp_path: Path) -> None:
    server = serve({"disk": volume})
    argv = _fio(
        server.nbd_uri("disk"),
        "victim",
        "--bs=64k",
        "--size=16M",
        "--time_based",
        "--runtime=60",
        f"--aux-path={tmp_path}",
    )
    victim = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while volume.stat().st_blocks == 0:
            assert time.monotonic() < deadline, "the client wrote nothing"
            time.sleep(0.05)
    finally:
        victim.kill()
        victim.wait()
    run("qemu-io", "-f", "raw", "-c", "write -P 9 20M 1M", "-c", "read -P 9 20M 1M", server.nbd_uri("disk"))
    assert server.process.poll() is None


# ---- file systems ----


@contextlib.contextmanager
def _nbdfuse(uri: str, directory: Path) -> Iterator[Path]:
    """A volume as a file, without a kernel NBD client."""
    directory.mkdir(exist_ok=True)
    file = directory / "disk"
    process = subprocess.Popen([_which("nbdfuse"), str(file), uri], stdin=subprocess.DEVNULL)
    try:
        _until("nbdfuse", lambda: file.exists() or process.poll() is not None)
        assert process.poll() is None, "nbdfuse ended"
        yield file
        # A loop device lets go of its file a moment after it was detached.
        _until("umount", lambda: _run("umount", directory, check=False).returncode == 0)
        assert process.wait(TIMEOUT) == 0
    finally:
        if directory.is_mount():
            _run("umount", "--lazy", directory, check=False)
        _stop(process)


def _tree(into: Path) -> Path:
    """Copy a tree of real files, sizes and names: a part of the standard library. What was copied."""
    library = Path(sysconfig.get_path("stdlib"))
    for name in ("asyncio", "ctypes", "email", "encodings", "json", "multiprocessing", "unittest", "xml"):
        subprocess.run(["cp", "-a", str(library / name), str(into)], check=True, timeout=60)
    (into / "empty").touch()
    (into / "link").symlink_to("json/decoder.py")
    os.link(into / "json" / "encoder.py", into / "hard")
    return library


def _assert_same(copied: Path, library: Path) -> None:
    files = 0
    for path in copied.rglob("*"):
        original = library / path.relative_to(copied)
        if path.is_file() and not path.is_symlink() and original.is_file():
            assert filecmp.cmp(path, original, shallow=False), path
            files += 1
    assert files > 200
    assert (copied / "link").read_bytes() == (library / "json" / "decoder.py").read_bytes()
    assert (copied / "hard").read_bytes() == (library / "json" / "encoder.py").read_bytes()


@pytest.mark.parametrize(
    ("mkfs", "size", "check"),
    [
        (("mkfs.ext4", "-q"), 96 * MIB, ("e2fsck", "-f", "-n")),
        (("mkfs.xfs", "-q"), 320 * MIB, ("xfs_repair", "-n")),
    ],
    ids=["ext4", "xfs"],
)
def test_a_file_system_lives_on_it(
    serve, stack, loop, mount, run, tmp_path: Path, mkfs: tuple[str, ...], size: int, check: tuple[str, ...]
) -> None:
    image, fuse, point = tmp_path / "volume.img", tmp_path / "fuse", tmp_path / "mounted"
    with image.open("wb") as file:
        file.truncate(size)
    server = serve({"disk": image})

    device = loop(stack.enter_context(_nbdfuse(server.nbd_uri("disk"), fuse)))
    run(*mkfs, device)
    mount(device, point)
    library = _tree(point)
    stack.close()

    device = loop(stack.enter_context(_nbdfuse(server.nbd_uri("disk"), fuse)))
    run(*check, device)
    mount(device, point, "-o", "ro")
    _assert_same(point, library)
    stack.close()

    # And once more without us: the file below, as it lies there after the server has ended.
    assert server.stop() == 0
    device = loop(image)
    run(*check, device)
    mount(device, point, "-o", "ro")
    _assert_same(point, library)
