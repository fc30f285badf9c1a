"""Datasets that are files: on busy file systems of served volumes, all at one T0, and equal to what they were then.

The reference is read through the file system while it is frozen for T0, by the test itself: nothing of how timezero
finds and reads the data takes part in it.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from proof.stack import mounted_export
from tests.command import succeed, timezero
from timezero.jobs import files as files_job
from timezero.jobs.backup import backup
from timezero.jobs.options import FileOptions, SessionOptions

MIB = 1 << 20
SIZE = 384 * MIB
MAKE = {"ext4": ["mkfs.ext4", "-q"], "xfs": ["mkfs.xfs", "-q"]}


class World:
    """Served volumes with file systems on them. roots: {volume: mount point}."""

    def __init__(self, serve, folder: Path, stack: ExitStack, kinds: dict[str, str], **serving: object) -> None:
        self.folder = folder
        images = {name: folder / f"{name}.img" for name in kinds}
        for image in images.values():
            image.touch()
            os.truncate(image, SIZE)
        self.server = serve(images, **serving)
        self.roots = {
            name: stack.enter_context(mounted_export(self.server.nbd_uri(name), folder / name, MAKE[kind]))
            for name, kind in kinds.items()
        }
        self.repo = folder / "repository"

    def backup(self, *datasets: str, **options: object) -> dict:
        words = [word for key, value in options.items() for word in (f"--{key.replace('_', '-')}", value)]
        return succeed(
            "backup", "--repo", self.repo, "--control", self.server.control, "--deadline", "20s", *words, *datasets
        )

    def restore(self, *words: object) -> Path:
        target = self.folder / f"restored{len(list(self.folder.glob('restored*')))}"
        succeed("restore", "--repo", self.repo, *(words or ["latest"]), target)
        return target


@pytest.fixture
def world(root, serve, tmp_path) -> Iterator:
    """world({volume: kind of file system}, folder, **serve options) -> World."""
    with ExitStack() as stack:
        yield lambda kinds, folder=tmp_path, **serving: World(serve, folder, stack, kinds, **serving)


def digests(root: Path) -> dict[str, str]:
    """{name: digest} of all regular files below a directory, by name alone: names are unique here."""
    return {path.name: digest(path) for path in root.rglob("*") if path.is_file() and not path.is_symlink()}


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def populate(directory: Path, count: int = 40) -> None:
    directory.mkdir()
    for number in range(count):
        data = hashlib.shake_128(str(number).encode()).digest(1 + number * number * 97)
        (directory / f"file{number:03}").write_bytes(data)
    (directory / "large").write_bytes(hashlib.shake_128(b"large").digest(12 * MIB))
    with (directory / "sparse").open("wb") as file:
        file.seek(20 * MIB)
        file.write(b"data behind a hole" * 1000)
        file.truncate(31 * MIB + 17)
    (directory / "empty").touch()


#: What files have to endure, as fast as it goes: overwritten in place, appended to, truncated, renamed, replaced,
#: deleted, made anew.
ACTIVITY = """
import os, random, sys
root, seed = sys.argv[1], int(sys.argv[2])
rng = random.Random(seed)
print("busy", flush=True)
number = 0
while True:
    number += 1
    names = [name for name in os.listdir(root) if not name.startswith("keep")]
    path = os.path.join(root, rng.choice(names))
    data = rng.randbytes(rng.randint(1, 100_000))
    try:
        match rng.randrange(40):
            case n if n < 20:
                with open(path, "r+b") as file:
                    file.seek(rng.randrange(max(1, os.path.getsize(path))))
                    file.write(data)
                    if rng.random() < 0.3:
                        os.fsync(file.fileno())
            case n if n < 30:
                with open(path, "ab") as file:
                    file.write(data)
            case n if n < 36:
                os.truncate(path, rng.randrange(1 + os.path.getsize(path)))
            case 36 if len(names) > 30:
                os.rename(path, os.path.join(root, rng.choice(names)))
            case 37 | 38:
                with open(path + ".new", "wb") as file:
                    file.write(data)
                os.replace(path + ".new", path)
            case _:
                if len(names) > 40:
                    os.unlink(path)
                with open(os.path.join(root, f"made{seed}.{number}"), "wb") as file:
                    file.write(data)
    except FileNotFoundError:
        pass
"""


@pytest.fixture
def busy() -> Iterator:
    """busy(directory): processes that change files in it, until the test ends."""
    running: list[subprocess.Popen[str]] = []

    def start(directory: Path, processes: int = 2) -> None:
        for seed in range(processes):
            command = [sys.executable, "-c", ACTIVITY, str(directory), str(seed)]
            running.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
            assert running[-1].stdout.readline() == "busy\n"

    def stop() -> None:
        for process in running:
            process.kill()
            process.wait(60)
            process.stdout.close()
        running.clear()

    start.stop = stop
    yield start
    stop()


@pytest.fixture
def reference(monkeypatch) -> dict[str, str]:
    """{dataset: digest} of every file, read through its file system while that is frozen: filled by a backup."""
    read: dict[str, str] = {}
    form = files_job.Files._form

    def form_and_read(self, served) -> None:
        form(self, served)
        for found in self._maps:
            read[found.dataset.name] = digest(Path(found.dataset.path))

    monkeypatch.setattr(files_job.Files, "_form", form_and_read)
    return read


@pytest.mark.parametrize("engine", ["uring", "threads"])
@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_busy_files_are_what_they_were_at_t0(world, busy, reference, kind, engine, monkeypatch):
    monkeypatch.setenv("TIMEZERO_IO", engine)
    here = world({"data": kind}, engine=engine)
    root = here.roots["data"]
    populate(root / "d")
    busy(root / "d")
    time.sleep(0.5)
    session = SessionOptions(control=here.server.control, deadline_us=20_000_000, track_size=16384)
    result = backup(str(here.repo), [f"data:{root}/d"], session=session)
    busy.stop()
    datasets = {dataset.name: dataset for dataset in result.manifest.datasets}
    assert set(datasets) == set(reference) and len(datasets) > 20
    assert {dataset.method_used for dataset in datasets.values()} == {"session"}
    restored = digests(here.restore())
    assert {name.rsplit("/", 1)[1]: value for name, value in reference.items()} == restored
    assert result.manifest.suspension["frozen_us"] > 0
    assert not [name for name in result.gone if name in datasets]


def test_before_images_make_files_whole_again(world, busy, reference):
    """A mover slow enough that much of the data is overwritten before it is read, and tracks shared by many files."""
    here = world({"data": "ext4"}, track="64K", sidefile_memory="96M")
    root = here.roots["data"]
    populate(root / "d", 120)
    busy(root / "d", 3)
    time.sleep(0.5)
    from timezero.jobs.options import MoverOptions

    session = SessionOptions(control=here.server.control, deadline_us=20_000_000)
    result = backup(
        str(here.repo), [f"data:{root}/d"], session=session, mover=MoverOptions(rate=12 * MIB, mode="fixed")
    )
    busy.stop()
    taken = sum(dataset.counts["tracks_from_sidefile"] for dataset in result.manifest.datasets)
    assert taken > 20, "nothing was overwritten before it was read: the test proves nothing"
    restored = digests(here.restore())
    assert {name.rsplit("/", 1)[1]: value for name, value in reference.items()} == restored


def test_servers_with_tracks_of_their_own(world, busy, reference, tmp_path):
    """Nobody names a track size, and each server has its own: the domains are each in its own tracks."""
    from timezero.jobs.options import MoverOptions

    (tmp_path / "second").mkdir()
    here = [
        world({"fine": "ext4"}, track="4K"),
        world({"coarse": "ext4"}, tmp_path / "second", track="64K", sidefile_memory="96M"),
    ]
    roots = {name: root for each in here for name, root in each.roots.items()}
    for name, root in roots.items():
        populate(root / name, 60)
        busy(root / name)
    time.sleep(0.5)
    session = SessionOptions(control=[each.server.control for each in here], deadline_us=20_000_000)
    selections = [f"{name}:{root}/{name}" for name, root in roots.items()]
    result = backup(str(here[0].repo), selections, session=session, mover=MoverOptions(rate=16 * MIB, mode="fixed"))
    busy.stop()
    taken = dict.fromkeys(roots, 0)
    for dataset in result.manifest.datasets:
        taken[dataset.name.partition(":")[0]] += dataset.counts["tracks_from_sidefile"]
    assert min(taken.values()) > 5, "nothing was overwritten before it was read: the test proves nothing"
    target = here[0].restore()
    for name, value in reference.items():
        assert digest(Path(f"{target}{name.partition(':')[2]}")) == value, name


WRITER = """
import sqlite3, sys, time
base = sqlite3.connect(sys.argv[1], timeout=60, isolation_level=None)
base.execute("PRAGMA journal_mode = WAL")
base.execute("PRAGMA synchronous = FULL")
print("busy", flush=True)
while True:
    base.execute("BEGIN IMMEDIATE")
    try:
        number = base.execute("SELECT coalesce(max(n), 0) + 1 FROM a").fetchone()[0]
        base.execute("INSERT INTO a VALUES (?, ?)", (number, "x" * (number % 3000)))
        base.execute("INSERT INTO b VALUES (?, ?)", (number, "y" * (number % 700)))
        base.execute("COMMIT")
        print(number, time.time_ns(), flush=True)
    except sqlite3.OperationalError:
        base.execute("ROLLBACK")
        raise
"""


def test_a_sqlite_database_is_one_committed_state(world, tmp_path):
    here = world({"data": "xfs"})
    path = here.roots["data"] / "base.db"
    with sqlite3.connect(path) as base:
        base.execute("PRAGMA journal_mode = WAL")
        base.execute("CREATE TABLE a (n INTEGER PRIMARY KEY, t TEXT)")
        base.execute("CREATE TABLE b (n INTEGER PRIMARY KEY, t TEXT)")
    base.close()
    logs = [tmp_path / f"writer{number}" for number in range(3)]
    writers = []
    try:
        for log in logs:
            with log.open("w") as out:
                writers.append(subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=out))
        time.sleep(1.5)
        document = here.backup(f"data:{path}*")
        time.sleep(0.5)
    finally:
        for writer in writers:
            writer.send_signal(signal.SIGKILL)
            writer.wait(60)
    names = {dataset["name"].rsplit("/", 1)[1] for dataset in document["datasets"]}
    assert {"base.db", "base.db-wal"} <= names
    restored = here.restore()
    acknowledged = [
        int(number)
        for log in logs
        for number, instant in (line.split() for line in log.read_text().splitlines()[1:] if line.count(" ") == 1)
        if int(instant) < document["t0_ns"]
    ]
    copy = next(restored.rglob("base.db"))
    for name in ("base.db-shm",):  # a cache of the log, made anew
        (copy.parent / name).unlink(missing_ok=True)
    base = sqlite3.connect(copy)
    assert base.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    a, b = (base.execute(f"SELECT n, length(t) FROM {table} ORDER BY n").fetchall() for table in "ab")
    base.close()
    numbers = [number for number, _ in a]
    assert numbers == [number for number, _ in b] == list(range(1, len(a) + 1))
    assert [length for _, length in a] == [number % 3000 for number in numbers]
    assert len(acknowledged) > 10 and set(acknowledged) <= set(numbers)


def test_files_and_volumes_of_two_file_systems_share_t0(world, reference):
    here = world({"data": "ext4", "logs": "xfs"})
    for name, root in here.roots.items():
        populate(root / name, 10)
    data, logs = here.roots["data"], here.roots["logs"]
    document = here.backup(f"data:{data}/data/file*", f"logs:{logs}/logs")
    names = [dataset["name"] for dataset in document["datasets"]]
    assert len(names) == 10 + 13
    assert f"data:{data}/data/file003" in names and f"logs:{logs}/logs/sparse" in names
    restored = here.restore()
    for name, root in here.roots.items():
        for path in (root / name).iterdir():
            if name == "logs" or path.name.startswith("file"):
                [copy] = [each for each in restored.rglob(path.name) if f"/{name}/" in str(each)]
                assert digest(copy) == digest(path)
                assert copy.stat().st_size == path.stat().st_size
    sparse = next(restored.rglob("sparse"))
    assert sparse.stat().st_blocks * 512 < 8 * MIB


def test_metadata_comes_back(world):
    here = world({"data": "ext4"})
    root = here.roots["data"]
    file = root / "f"
    file.write_bytes(b"content")
    os.chown(file, 1234, 2345)
    file.chmod(0o640)
    os.setxattr(file, "user.comment", b"\x00\xffbytes")
    os.utime(file, ns=(1_600_000_000_123_456_789, 1_500_000_000_987_654_321))
    here.backup(f"data:{file}")
    shown = timezero("show", "--repo", here.repo, "latest")
    assert b"files frozen" in shown.out and str(file).encode() in shown.out
    copy = here.folder / "copy"
    succeed("restore", "--repo", here.repo, f"latest/data:{file}", copy)
    status = copy.stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o7777) == (1234, 2345, 0o640)
    assert status.st_mtime_ns == 1_500_000_000_987_654_321
    assert os.getxattr(copy, "user.comment") == b"\x00\xffbytes"


def test_what_a_file_dataset_refuses(world, tmp_path):
    here = world({"data": "ext4"})
    root = here.roots["data"]
    populate(root / "d", 3)
    control = ["--control", here.server.control]

    def refused(*datasets: str, code: int = 2) -> str:
        outcome = timezero("backup", "--repo", here.repo, *control, *datasets)
        assert outcome.code == code, outcome.err
        assert outcome.err.count("\n") == 1, outcome.err
        return outcome.err

    assert "nothing" in refused(f"data:{root}/nothing*")
    assert "data" in refused("data", f"data:{root}/d")  # the volume whole, and a part of it
    assert "other" in refused(f"other:{root}/d")
    assert refused("data:/etc/passwd")  # not on the volume
    inside = root / "repository"
    outcome = timezero("backup", "--repo", inside, *control, f"data:{root}/d")
    assert outcome.code == 2 and "repository" in outcome.err
    assert not here.repo.exists() or not list((here.repo / "recovery-points").iterdir())
    (root / "d" / "after").write_bytes(b"not frozen")
    os.sync()


def test_a_sidefile_that_would_be_frozen_is_refused(world, tmp_path):
    """Its file tier lies on the file system that other files of the group are on: thawing would wait for itself."""
    data = world({"data": "ext4"})
    root = data.roots["data"]
    (root / "tier").mkdir()
    (tmp_path / "second").mkdir()
    logs = world({"logs": "ext4"}, tmp_path / "second", sidefile_path=root / "tier", sidefile_file="16M")
    for here in (root, logs.roots["logs"]):
        (here / "f").write_bytes(b"f" * 5000)
    controls = ["--control", data.server.control, "--control", logs.server.control]
    outcome = timezero("backup", "--repo", data.repo, *controls, f"data:{root}/f", f"logs:{logs.roots['logs']}/f")
    assert outcome.code == 2 and "sidefile of volume logs" in outcome.err, outcome.err
    succeed(
        "backup",
        "--repo",
        data.repo,
        "--control",
        logs.server.control,
        "--deadline",
        "20s",
        f"logs:{logs.roots['logs']}/f",
    )


def test_a_killed_backup_leaves_nothing_frozen(world, busy):
    here = world({"data": "ext4"})
    root = here.roots["data"]
    populate(root / "d", 30)
    busy(root / "d")
    for pause in (0.05, 0.12, 0.2, 0.35, 0.5):
        process = subprocess.Popen(
            [sys.executable, "-m", "timezero", "backup", "--repo", str(here.repo), "--control", here.server.control,
             f"data:{root}/d"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        time.sleep(pause)
        process.kill()
        process.wait(60)
        probe = subprocess.run(["dd", "if=/dev/zero", f"of={root}/keep", "bs=4k", "count=1", "conv=fsync"],
                               capture_output=True, timeout=30)  # fmt: skip
        assert probe.returncode == 0
    busy.stop()
    document = here.backup(f"data:{root}/d")
    assert len(document["datasets"]) > 20


def test_a_copy_of_what_cannot_be_mapped_says_what_it_is(world, tmp_path):
    here = world({"data": "ext4"})
    root = here.roots["data"]
    (root / "mapped").write_bytes(b"m" * 5000)
    outside = tmp_path / "outside"
    outside.write_bytes(b"elsewhere" * 1000)
    outcome = timezero("backup", "--repo", here.repo, "--control", here.server.control, f"data:{outside}")
    assert outcome.code == 2 and str(outside) in outcome.err
    words = ["backup", "--repo", here.repo, "--control", here.server.control, "--read-through"]
    document = succeed(*words, f"data:{root}/mapped", f"data:{outside}")
    hooks = timezero(*words, "--quiesce", "exec:pre=true", f"data:{outside}")
    assert hooks.code == 2 and "quiesce" in hooks.err  # nothing is suspended, so no hook would run
    methods = {dataset["name"]: dataset["method_used"] for dataset in document["datasets"]}
    assert methods == {f"data:{root}/mapped": "session", f"data:{outside}": "read-through"}


def test_what_was_left_out_is_told(world, monkeypatch):
    """Links and special files that a directory meets, other names of a file, and what had gone by T0."""
    here = world({"data": "ext4"})
    root = here.roots["data"] / "d"
    root.mkdir()
    for name in ("a", "goes"):
        (root / name).write_bytes(name.encode() * 3000)
    (root / "b").hardlink_to(root / "a")
    (root / "link").symlink_to("a")
    os.mkfifo(root / "pipe")
    ready = files_job.Files.get_ready

    def remove_and_get_ready(self) -> None:
        (root / "goes").unlink()
        ready(self)

    monkeypatch.setattr(files_job.Files, "get_ready", remove_and_get_ready)
    session = SessionOptions(control=here.server.control, deadline_us=20_000_000)
    document = backup(str(here.repo), [f"data:{root}"], session=session).to_json()
    assert [dataset["name"] for dataset in document["datasets"]] == [f"data:{root}/a"]
    assert document["gone"] == [f"data:{root}/goes"]
    assert document["aliases"] == {f"data:{root}/b": f"data:{root}/a"}
    assert set(document["skipped"]) == {f"data:{root}/link", f"data:{root}/pipe"}


def test_the_mount_can_be_named(world):
    here = world({"data": "xfs"})
    root = here.roots["data"]
    (root / "f").write_bytes(b"f" * 70_000)
    result = backup(
        str(here.repo), [f"data:{root}/f"],
        session=SessionOptions(control=here.server.control, deadline_us=20_000_000),
        files=FileOptions(mounts=(f"data={root}",)),
    )  # fmt: skip
    assert [dataset.name for dataset in result.manifest.datasets] == [f"data:{root}/f"]
