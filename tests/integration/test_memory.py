"""Bounded memory (docs/memory.md): a volume of 16 TiB, nearly all of it holes, within the bounds that are stated; and a
server in a control group, which admits no session that it would have to be killed for.
"""

from __future__ import annotations

import os
import re
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from proof.nbd import Nbd
from proof.stack import mounted_export
from tests.command import COMMAND, environment, succeed, timezero
from tests.conftest import run
from tests.faults.conftest import told
from tests.integration.conftest import Serve
from tests.integration.limits import memory_controller, memory_limit
from tests.sanitized import not_with_asan
from tests.watching import until
from timezero import session
from timezero.control.client import ControlError

MIB, TIB = 1 << 20, 1 << 40
SIZE = 16 * TIB
ENTRY, BASE = 48, 64 * MIB  # bytes of an index entry; of everything that does not grow (docs/memory.md)
VOLUME, REACTOR, CONNECTION, CONTROL = MIB, 64 * MIB, 64 * MIB + 512 * 1024, 2 * MIB  # of the subsystem
EXTENT, SHARED = 104, 96  # bytes of a file's extent; of a track that several chunks need
BUFFER, CHUNK = 64 * MIB, 16 * MIB
INDEX = SIZE // CHUNK * ENTRY
DATA = os.urandom(MIB)
PLACES = (0, 3 * TIB + 4096, SIZE - MIB)
pytestmark = not_with_asan("it takes memory of its own")
OPTIONS = ("--buffer", BUFFER, "--chunk-size", CHUNK)
Limit = Callable[[int], Callable[[], None]]


@pytest.fixture
def limit(root: None) -> Iterator[Limit]:
    """limit(bytes) -> what a child calls to be in a group with this limit. Ask for it before `serve`: it ends last."""
    with ExitStack() as groups:
        yield lambda most: groups.enter_context(memory_limit(most))[0]


@pytest.fixture
def group(limit: Limit) -> Limit:
    """As `limit`, of tests that are about groups."""
    if memory_controller() is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("needs a memory controller to make control groups with")
    return limit


@pytest.fixture
def big(loop: Callable[..., Path], mount: Callable[..., Path], tmp_path: Path) -> Path:
    """A file of 16 TiB with three MiB of data, where a file system has room for such a size."""
    disk = tmp_path / "xfs"
    with disk.open("wb") as file:
        file.truncate(400 * MIB)
    run("mkfs.xfs", "-q", disk)
    path = mount(loop(disk), tmp_path / "xfs.mounted") / "big"
    with path.open("wb") as file:
        for place in PLACES:
            os.pwrite(file.fileno(), DATA, place)
        file.truncate(SIZE)
    return path


def limited(limit: int, *words: object) -> None:
    """Run a command to its end within a limit of memory."""
    with memory_limit(limit) as (enter, how):
        began = time.monotonic()
        command = [*COMMAND, *map(str, words)]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=200, env=environment(), preexec_fn=enter, check=False
        )
        assert done.returncode == 0, f"{how}: {done.stderr}"
        assert time.monotonic() - began < 60


def test_jobs_at_rest(big: Path, tmp_path: Path) -> None:
    """Backup, verify and restore, each within its bound; what is restored is what was there."""
    repo, restored = tmp_path / "repo", big.with_name("restored")
    limited(BASE + BUFFER + INDEX, "backup", "--repo", repo, *OPTIONS, f"big={big}")
    limited(BASE + BUFFER + 2 * INDEX, "verify", "--repo", repo, "--buffer", BUFFER)
    limited(BASE + BUFFER + 2 * INDEX, "restore", "--repo", repo, "--buffer", BUFFER, "latest/big", restored)
    assert restored.stat().st_size == SIZE
    with restored.open("rb") as file:
        assert all(os.pread(file.fileno(), MIB, place) == DATA for place in PLACES)
        assert os.lseek(file.fileno(), 5 * TIB, os.SEEK_DATA) == PLACES[2]


@pytest.mark.parametrize("most", [BASE // 4 + INDEX // 2, BUFFER + INDEX], ids=["buffers", "indexes"])
def test_a_backup_with_too_little_memory_says_so(limit: Limit, big: Path, tmp_path: Path, most: int) -> None:
    """The bound is one: with less than buffers, or these and indexes, need, it is refused, not killed."""
    outcome = timezero("backup", "--repo", tmp_path / "repo", *OPTIONS, f"big={big}", preexec_fn=limit(most))
    assert outcome.code == 1, outcome
    told(outcome.err, "memory")
    assert not list(tmp_path.glob("repo/recovery-points/*")) and not list(tmp_path.glob("repo/packs/*"))


def resident(process: int) -> int:
    status = Path(f"/proc/{process}/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))


def test_a_served_volume(limit: Limit, big: Path, tmp_path: Path, serve: Serve) -> None:
    """Subsystem and mover within their bounds; the backup is T0, in seconds, though the application writes."""
    cap = 96 * MIB
    most = BASE + VOLUME + cap + REACTOR + CONNECTION + 2 * CONTROL
    served = serve({"big": big}, sidefile_memory=cap, enter=limit(most))
    began = time.monotonic()
    command = [*COMMAND, "backup", "--repo", tmp_path / "repo", *OPTIONS, "--control", served.control, "big", "--json"]
    backup = subprocess.Popen(
        list(map(str, command)),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment(),
        preexec_fn=limit(BASE + BUFFER + INDEX),
    )
    with Nbd.connect(served.nbd_socket, "big") as application:
        end = time.monotonic() + 60
        status = succeed("status", "--control", served.control)
        while [part["state"] for part in status["sessions"]] != ["active"]:
            assert backup.poll() is None and time.monotonic() < end, "there is no T0"
            time.sleep(0.02)
            status = succeed("status", "--control", served.control)
        assert status["memory"]["sessions_bytes"] == cap
        for place in PLACES:
            application.write(place, bytes(MIB))
            application.write(7 * TIB + place // 4, DATA)
    out, _ = backup.communicate(timeout=200)
    assert backup.returncode == 0, out
    assert time.monotonic() - began < 60
    memory = succeed("status", "--control", served.control)["memory"]
    assert memory["peak_bytes"] == resident(served.process.pid) <= BASE + cap + CONNECTION
    restored = big.with_name("restored")
    succeed("restore", "--repo", tmp_path / "repo", "--buffer", BUFFER, "latest/big", restored)
    with restored.open("rb") as file:
        for place in PLACES:  # T0 was there before the first of these updates
            assert os.pread(file.fileno(), MIB, 7 * TIB + place // 4) == bytes(MIB)
            assert os.pread(file.fileno(), MIB, place) == DATA


def test_files_on_a_served_volume(big: Path, tmp_path: Path, serve: Serve) -> None:
    """What a backup of files says it took is within what is stated for the volume, its session, and the files."""
    cap, count = 128 * MIB, 512
    run("mkfs.xfs", "-q", "-f", "-l", "size=64m", big)
    served = serve({"big": big}, sidefile_memory=cap)
    with mounted_export(served.nbd_uri("big"), tmp_path / "export") as point:
        for number in range(count):  # directories lie in allocation groups in turn: all over the volume
            path = point / "tree" / str(number % 32) / str(number)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(DATA[:4096])
        words = ("--control", served.control, "--buffer", BUFFER, f"big:{point}/tree")
        done = succeed("backup", "--repo", tmp_path / "repo", *words)
    point_id = succeed("list", "--repo", tmp_path / "repo")["points"][0]["id"]
    found = succeed("show", "--repo", tmp_path / "repo", point_id)
    assert len(found["datasets"]) == count
    tracks = SIZE // found["track_size"]
    assert tracks >= 1 << 24, "a volume so large that bits a track are many"
    # An extent and a chunk each, no more tracks than files that several share; and some KiB of names and metadata.
    files = count * (EXTENT + ENTRY + SHARED + 8192)
    assert BUFFER // 64 < done["memory"]["peak_bytes"] <= BASE + BUFFER + cap + tracks // 4 + files


# ---- a server in a control group ----


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.write_bytes(DATA)
    return path


def test_a_session_that_the_group_has_no_room_for(group: Limit, serve: Serve, disk: Path, tmp_path: Path) -> None:
    """It is refused: the server would be killed while it prepares it, and every application would lose its disk."""
    served = serve({"data": disk}, enter=group(150 * MIB))
    where = ("--repo", tmp_path / "repo", "--control", served.control)
    outcome = timezero("backup", *where, "--sidefile-memory", "256M", "data")
    assert (outcome.code, served.process.poll()) == (1, None), outcome.err
    assert "this machine can spare" in outcome.err
    assert refusal(served.control, 256 * MIB).code == "limit"
    with Nbd.connect(served.nbd_socket, "data") as application:
        application.write(0, bytes(MIB))
        assert application.read(0, MIB) == bytes(MIB)
    succeed("backup", *where, "--sidefile-memory", "16M", "data")


def refusal(control: str, memory: int) -> ControlError:
    """Of a session of `memory` bytes over the volume data."""
    with pytest.raises(ControlError) as error, session.prepare(control, ["data"], memory_bytes=memory):
        pass
    return error.value


def test_the_largest_session_of_a_small_machine_leaves_its_clients_what_they_need(
    group: Limit, serve: Serve, disk: Path
) -> None:
    """A client at its busiest, in a group of 256 MiB that has given a session all that it gives sessions."""
    served = serve({"data": disk}, enter=group(256 * MIB))
    spare = re.search(r"can spare (\d+)", str(refusal(served.control, 1 << 30)))
    assert spare is not None
    largest = int(spare[1]) - MIB  # the server grows a little meanwhile
    assert 64 * MIB < largest < 128 * MIB
    with session.prepare(served.control, ["data"], memory_bytes=largest):
        assert refusal(served.control, 8 * MIB).code == "limit"  # no other session gets what is kept for clients
        before = session.status(served.control)["memory"]["resident_bytes"]
        with Nbd.connect(served.nbd_socket, "data") as application:
            ask_for_much(application)
            until(lambda: taken(served.control) > before + 60 * MIB, "the client is not at its busiest")
        with Nbd.connect(served.nbd_socket, "data") as application:
            assert application.read(0, MIB) == DATA
    assert served.process.poll() is None


def taken(control: str) -> int:
    bytes_: int = session.status(control)["memory"]["resident_bytes"]
    return bytes_


def ask_for_much(client: Nbd) -> None:
    """64 MiB in flight: 128 reads of 512 KiB, of whose replies nobody takes any."""
    reads = [struct.pack(">IHHQQI", 0x25609513, 0, 0, number, 0, 512 * 1024) for number in range(128)]
    client._socket.sendall(b"".join(reads))


def test_jobs_tell_what_they_took(tmp_path: Path) -> None:
    """--json of whatever moves data."""
    (tmp_path / "a").write_bytes(DATA)
    for words in (
        ("backup", "--repo", tmp_path / "r", f"a={tmp_path / 'a'}"),
        ("verify", "--repo", tmp_path / "r"),
        ("restore", "--repo", tmp_path / "r", "latest/a", tmp_path / "b"),
        ("copy", tmp_path / "a", tmp_path / "c"),
    ):
        memory = succeed(*words, "--buffer", "8M")["memory"]
        assert memory["buffer_bytes"] == 8 * MIB
        assert 8 * MIB < memory["peak_bytes"] < BASE + 8 * MIB
