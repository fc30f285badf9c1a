"""Descriptors, memory, threads and file sizes that run out: one clear line for who asked, and the server lives on."""

from __future__ import annotations

import os
import resource
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from proof.nbd import Nbd
from tests.command import COMMAND, Outcome, environment, timezero
from tests.faults.conftest import descriptors, settled, told
from tests.integration.conftest import serve_command
from tests.sanitized import not_with_asan
from tests.watching import until
from timezero import session
from timezero.repository import Repository

MIB = 1 << 20
SIZE = 4 * MIB

pytestmark = pytest.mark.timeout(120)
#: Its shadow takes terabytes of address space, and it ends the process when its own allocations fail.
limits_address_space = not_with_asan("it cannot live within a limit of address space")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.img"
    path.write_bytes(os.urandom(SIZE))
    return path


def limited(kind: int, most: int, *words: object, **variables: str) -> Outcome:
    """A command under a resource limit."""
    done = subprocess.run(
        [*COMMAND, *map(str, words)], capture_output=True, env=environment(**variables), timeout=60, check=False,
        preexec_fn=lambda: resource.setrlimit(kind, (most, most)),
    )  # fmt: skip
    return Outcome(done.returncode, done.stdout, done.stderr.decode())


def test_a_server_out_of_descriptors(serve: Callable, source: Path, tmp_path: Path) -> None:
    served = serve({"data": source})
    pid = served.process.pid
    before = settled(pid)
    control = session.prepare(served.control, ["data"], memory_bytes=MIB)  # its connection is there already
    held = 1 + max(map(int, os.listdir(f"/proc/{pid}/fd")))  # the limit is one of numbers
    _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (held + 6, hard))
    with ExitStack() as stack, control:
        clients = []
        for _ in range(40):
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.settimeout(5)
            client.connect(served.nbd_socket)
            clients.append(client)
        # Who waits in accept() has a number in reserve that no one sees.
        until(lambda: descriptors(pid) >= held + 4, "it is not at its limit")
        first = control.report()  # who is there is served
        assert first[0]["state"] == "prepared"
        for client in clients:
            client.close()
        until(lambda: descriptors(pid) <= held, "descriptors of clients that have gone stay")
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (held + 3, hard))
        outcome = timezero("backup", "--repo", tmp_path / "repo", "--control", served.control, "data")
        assert outcome.code == 1
        told(outcome.err, "open files")
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (hard, hard))
    until(lambda: descriptors(pid) <= before, "descriptors stay")
    outcome = timezero("backup", "--repo", tmp_path / "repo", "--control", served.control, "data")
    assert outcome.code == 0, outcome.err
    with Nbd.connect(served.nbd_socket, "data") as client:
        client.write(0, b"x" * 4096)


@limits_address_space
def test_a_server_out_of_memory(serve: Callable, source: Path, tmp_path: Path) -> None:
    """No thread can be started for a new client, no memory be had for a session: they are refused, and it goes on."""
    served = serve({"data": source})
    pid = served.process.pid
    with Nbd.connect(served.nbd_socket, "data") as good:
        size = int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * 4096
        before = resource.prlimit(pid, resource.RLIMIT_AS)
        resource.prlimit(pid, resource.RLIMIT_AS, (size + MIB, before[1]))
        for path in (served.nbd_socket, served.control):
            for _ in range(5):
                with socket.socket(socket.AF_UNIX) as client:
                    client.settimeout(10)
                    client.connect(path)
                    with suppress(BrokenPipeError):
                        client.sendall(b"\n")  # to be answered, by one of the two
                    with suppress(ConnectionResetError, TimeoutError):  # its thread may have died as it was born
                        assert client.recv(100)[:1] in (b"", b"N", b"{")
        good.write(0, b"x" * 4096)
        outcome = timezero("status", "--control", served.control)
        if outcome.code:
            told(outcome.err, served.control)
        resource.prlimit(pid, resource.RLIMIT_AS, (size + 64 * MIB, before[1]))
        outcome = timezero(
            "backup", "--repo", tmp_path / "repo", "--control", served.control, "--sidefile-memory", "512M", "data"
        )  # fmt: skip
        assert outcome.code == 1
        told(outcome.err)  # a thread that dies as it is born cannot even answer
        resource.prlimit(pid, resource.RLIMIT_AS, before)
        assert session.status(served.control)["sessions"] == []
        assert good.read(0, 4096) == b"x" * 4096
    assert "Traceback" not in served.stderr()
    outcome = timezero("backup", "--repo", tmp_path / "repo", "--control", served.control, "data")
    assert outcome.code == 0, outcome.err


@limits_address_space
def test_updates_of_a_server_out_of_memory(serve: Callable, source: Path) -> None:
    """What there is no memory for waits until there is, and has no error that is not its device's."""
    updates = 8
    served = serve({"data": source})
    pid = served.process.pid
    with Nbd.connect(served.nbd_socket, "data") as small, Nbd.connect(served.nbd_socket, "data") as large:
        for client in (small, large):
            client._socket.settimeout(60)
        small.write(0, b"a" * 4096)
        status = Path(f"/proc/{pid}/status").read_text().splitlines()
        [data] = [int(line.split()[1]) * 1024 for line in status if line.startswith("VmData:")]
        before = resource.prlimit(pid, resource.RLIMIT_DATA)
        resource.prlimit(pid, resource.RLIMIT_DATA, (data, before[1]))
        written = [os.urandom(MIB) for _ in range(updates)]
        sent = [
            struct.pack(">IHHQQI", 0x25609513, 0, 1, number, number % 4 * MIB, MIB) + data
            for number, data in enumerate(written)
        ]
        with ThreadPoolExecutor(1) as pool:
            sending = pool.submit(large._socket.sendall, b"".join(sent))
            for _ in range(50):  # half a second and more: who is content with 4 KiB is served
                small.write(0, b"b" * 4096)
                time.sleep(0.01)
            assert not sending.done(), "there was memory"
            resource.prlimit(pid, resource.RLIMIT_DATA, before)
            replies = [struct.unpack(">IIQ", large._receive(16)) for _ in range(updates)]
            sending.result(60)
        assert sorted(replies) == [(0x67446698, 0, number) for number in range(updates)]
        for number in range(1, 4):
            assert large.read(number * MIB, MIB) in (written[number], written[number + 4])
    assert "Traceback" not in served.stderr()


@limits_address_space
@pytest.mark.parametrize("most", [64, 128, 200, 300])
def test_a_mover_out_of_memory(serve: Callable, source: Path, tmp_path: Path, most: int) -> None:
    """Wherever it runs out: one line, nothing left, and the session is over."""
    served = serve({"data": source})
    outcome = limited(
        resource.RLIMIT_AS, most * MIB, "backup", "--repo", tmp_path / "repo", "--control", served.control,
        "--buffer", "1G", "--chunk-size", "16M", "data",
    )  # fmt: skip
    assert outcome.code in (0, 1) and (outcome.code == 1 or most > 128), outcome.err
    if outcome.code:
        told(outcome.err)
        assert not list(tmp_path.glob("repo/recovery-points/*"))
    until(lambda: session.status(served.control)["sessions"] == [], "the session stays")


@pytest.mark.parametrize("most", [6, 8, 10, 12, 14, 16, 18, 20, 24])
def test_a_mover_out_of_descriptors(serve: Callable, source: Path, tmp_path: Path, most: int) -> None:
    served = serve({"data": source})
    before = settled(served.process.pid)
    outcome = limited(
        resource.RLIMIT_NOFILE, most, "backup", "--repo", tmp_path / "repo", "--control", served.control, "data"
    )
    assert outcome.code in (0, 1), outcome.err
    assert outcome.code == 1 or most > 10
    if outcome.code:
        told(outcome.err)
    if (tmp_path / "repo" / "repository.json").exists():
        assert len(Repository(str(tmp_path / "repo")).ids()) == (outcome.code == 0)
    until(lambda: descriptors(served.process.pid) <= before, "descriptors of the server stay")


@pytest.mark.parametrize("engine", ["uring", "threads"])
def test_a_file_that_may_not_grow(source: Path, tmp_path: Path, engine: str) -> None:
    """RLIMIT_FSIZE: EFBIG, and not the signal that ends a process."""
    for words in (["backup", "--repo", tmp_path / "repo", source], ["copy", source, tmp_path / "copy.img"]):
        outcome = limited(resource.RLIMIT_FSIZE, 2 * MIB, *words, TIMEZERO_IO=engine)
        assert outcome.code == 1, outcome
        told(outcome.err, "File too large")
    assert Repository(str(tmp_path / "repo")).ids() == []
    assert not (tmp_path / "copy.img").exists()


# ---- standard output ----


def test_a_reader_that_goes_away(source: Path) -> None:
    process = subprocess.Popen(
        [*COMMAND, "copy", str(source), "-"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
    )
    assert process.stdout and process.stderr
    process.stdout.read(100)
    process.stdout.close()
    err = process.stderr.read().decode()
    assert process.wait(60) == 1
    told(err, "standard output: cannot be written", "Broken pipe")


def test_a_reader_that_does_not_read(serve: Callable, source: Path, tmp_path: Path) -> None:
    """It holds up the job, which can be interrupted, and nobody else."""
    served = serve({"data": source})
    process = subprocess.Popen(
        [*COMMAND, "copy", "--control", served.control, "data", "-"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=environment(),
    )  # fmt: skip
    until(lambda: session.status(served.control)["sessions"], "no session")
    with Nbd.connect(served.nbd_socket, "data") as client:
        client._socket.settimeout(10)
        for at in range(0, SIZE, 65536):
            client.write(at, b"x" * 4096)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    assert process.stderr and process.stdout
    err = process.stderr.read().decode()
    assert process.wait(60) == 130
    told(err, "interrupted")
    process.stdout.close()
    until(lambda: session.status(served.control)["sessions"] == [], "the session stays")


def test_a_full_disk_for_the_answer(source: Path, tmp_path: Path) -> None:
    """The backup is there; that it cannot be told is told."""
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*COMMAND, "backup", "--repo", str(tmp_path / "repo"), str(source)], stdout=full, stderr=subprocess.PIPE,
            text=True, env=environment(), timeout=60, check=False,
        )  # fmt: skip
    assert done.returncode == 1
    told(done.stderr, "No space left on device")
    assert len(Repository(str(tmp_path / "repo")).ids()) == 1


def test_a_server_that_cannot_say_ready(source: Path, tmp_path: Path) -> None:
    """Nobody would know that it serves: it ends, with a line and an exit code of its own."""
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            serve_command({"data": source}, str(tmp_path / "nbd"), str(tmp_path / "control"), quiet=True), stdout=full,
            stderr=subprocess.PIPE, text=True, env=environment(), timeout=60, check=False,
        )  # fmt: skip
    assert done.returncode == 1
    told(done.stderr, "No space left on device")
    assert not (tmp_path / "nbd").exists() and not (tmp_path / "control").exists()
