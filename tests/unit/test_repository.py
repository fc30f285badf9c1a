"""The repository's format: round trips, and every kind of damage told for what it is."""

from __future__ import annotations

import json
import os
import re
import struct
from pathlib import Path

import pytest

from timezero.config import TRACK_USUAL
from timezero.errors import LockedError, NoRepositoryError, TimezeroError, UsageError, VerificationError
from timezero.repository import (
    DatasetRecord,
    FailureRecord,
    IndexHeader,
    Manifest,
    PackRecord,
    Repository,
    documents,
    durable,
    names,
    opened,
)
from timezero.repository import prune as prune_module
from timezero.repository.locks import FileLock

CHUNK = 1 << 20


def entries(*chunks: tuple[int, int, int]) -> bytes:
    """Index entries as tz_index_entry lies on disk: (pack, offset, stored length), 0 length for zero chunks."""
    return b"".join(
        struct.pack("<QIIBB6x16s8x", offset, pack, length, 0 if length else 1, 0, bytes([n + 1] * 16))
        for n, (pack, offset, length) in enumerate(chunks)
    )


def commit(repository: Repository, *dataset_names: str, packs: tuple[PackRecord, ...] = (), pack: bool = True) -> str:
    """A recovery point made by hand, with one pack of its own and what `packs` adds."""
    with repository.writer() as writer:
        if pack:
            Path(writer.packs_path, names.pack_name(writer.id, 0)).write_bytes(b"x" * CHUNK)
            packs = (*writer.pack_records([CHUNK]), *packs)
        header = IndexHeader(CHUNK, 2 * CHUNK + 5)
        records = tuple(
            DatasetRecord(
                name=name,
                source=f"/somewhere/{name}",
                method_requested="at-rest",
                method_used="at-rest",
                size=header.size,
                chunk_size=CHUNK,
                digest=writer.add_index(name, header, entries((0, 0, CHUNK), (0, 0, 0), (0, 0, 0))),
                intercepted=0,
                sidefile_high_water_bytes=0,
                counts={"chunks": 3},
                session=None,
            )
            for name in dataset_names
        )
        writer.commit(manifest(repository, writer.id, packs, records))
        return writer.id


def manifest(
    repository: Repository, point_id: str, packs: tuple[PackRecord, ...], records: tuple[DatasetRecord, ...]
) -> Manifest:
    return Manifest(
        id=point_id,
        repository=repository.info.id,
        timezero="0",
        host="here",
        t0_ns=1,
        started_ns=0,
        completed_ns=2,
        track_size=65536,
        suspension={"total_us": 5},
        packs=packs,
        datasets=records,
        failed=(FailureRecord("gone", "gone: was not there"),),
    )


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository.open_or_create(str(tmp_path / "repo"))


def files(repository: Repository) -> list[str]:
    root = Path(repository.path)
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def test_round_trip(repository: Repository) -> None:
    point_id = commit(repository, "a", "ü/../b\n")
    point = Repository(repository.path).point("latest")
    assert point.id == point_id
    assert [record.name for record in point.datasets] == ["a", "ü/../b\n"]
    assert point.manifest.failed[0].name == "gone"
    assert point.manifest.suspension == {"total_us": 5}
    assert point.manifest.stored == CHUNK
    for record in point.datasets:
        assert point.entries(record) == entries((0, 0, CHUNK), (0, 0, 0), (0, 0, 0))
    with point.open_packs() as packs:
        assert os.pread(packs[0], 3, 0) == b"xxx"
    with pytest.raises(UsageError, match="has no dataset 'c'"):
        point.dataset("c")


def test_a_document_can_be_checked_without_timezero(repository: Repository) -> None:
    import subprocess

    commit(repository, "a")
    path = Path(repository.points_path, repository.ids()[0], "manifest.json")
    out = subprocess.run(
        f"head -n -2 '{path}' | sha256sum", shell=True, capture_output=True, text=True, check=True
    ).stdout
    assert json.loads(path.read_text())["digest"] == f"sha256:{out.split()[0]}"


def test_first_use(tmp_path: Path) -> None:
    (tmp_path / "lost+found").mkdir()
    (tmp_path / names.temporary_name()).write_text("left by one that was killed")
    made = Repository.open_or_create(str(tmp_path), chunk_size=1 << 16)
    assert (made.info.chunk_size, made.info.track_size) == (1 << 16, TRACK_USUAL)
    again = Repository.open_or_create(str(tmp_path), chunk_size=1 << 20)
    assert again.info == made.info
    assert again.ids() == []


@pytest.mark.parametrize("content", ["foreign", "recovery-points"])
def test_a_directory_with_something_else_in_it_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / content).mkdir()
    expected = VerificationError if content == "recovery-points" else NoRepositoryError
    with pytest.raises(expected):
        Repository.open_or_create(str(tmp_path))
    assert os.listdir(tmp_path) == [content]


@pytest.mark.parametrize("place", ["missing", "missing/deeper", "file", "empty"])
def test_no_repository(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    with pytest.raises(NoRepositoryError):
        Repository(str(tmp_path / place))
    assert sorted(os.listdir(tmp_path)) == ["empty", "file"]


def test_newer_format_is_told(repository: Repository) -> None:
    path = Path(repository.path, "repository.json")
    fields = json.loads(path.read_text())
    del fields["digest"]
    path.write_bytes(documents.render({**fields, "format": 2}))
    with pytest.raises(TimezeroError, match=r"format 2.*newer timezero") as caught:
        Repository(repository.path)
    assert caught.value.exit_code == 1


def test_points_are_named_by_prefix_and_latest(repository: Repository) -> None:
    first, second = commit(repository, "a"), commit(repository, "a")
    assert first < second
    assert repository.resolve("latest") == second
    assert repository.resolve(first) == first
    shared = next(n for n, (a, b) in enumerate(zip(first, second, strict=True)) if a != b)
    assert repository.resolve(second[: shared + 1]) == second
    for bad in (first[:shared], "", "2", "nonsense", "../" + first):
        with pytest.raises(UsageError):
            repository.resolve(bad)


def damaged_copies(content: bytes) -> list[bytes]:
    middle = len(content) // 2
    flipped = [content[:i] + bytes([content[i] ^ 1]) + content[i + 1 :] for i in (0, middle, len(content) - 1)]
    return [b"", content[:middle], content[:-1], content + b"\n", *flipped]


@pytest.mark.parametrize("damage", range(7))
@pytest.mark.parametrize("which", ["manifest.json", "a.idx", "repository.json"])
def test_damage_is_told(repository: Repository, which: str, damage: int) -> None:
    point_id = commit(repository, "a")
    path = Path(repository.path, which)
    if which != "repository.json":
        path = Path(repository.points_path, point_id, which)
    path.write_bytes(damaged_copies(path.read_bytes())[damage])
    with pytest.raises(VerificationError, match=re.escape(str(path))):
        point = Repository(repository.path).point("latest")
        point.entries(point.dataset("a"))


def rewritten(repository: Repository, point_id: str, change: dict[str, object]) -> None:
    """Alter a manifest and give it a digest that fits: what is left are the checks of types and ranges."""
    path = Path(repository.points_path, point_id, "manifest.json")
    fields = json.loads(path.read_text())
    del fields["digest"]
    for key, value in change.items():
        target, _, member = key.rpartition(".")
        (fields[target][0] if target else fields)[member] = value
    path.write_bytes(documents.render(fields))


@pytest.mark.parametrize(
    "change",
    [
        {"id": "20200101T000000Z-00000000"},
        {"repository": "0" * 32},
        {"t0_ns": "1"},
        {"t0_ns": True},
        {"t0_ns": -1},
        {"t0_ns": 2**80},
        {"track_size": 5000},
        {"packs": {}},
        {"packs.name": "../../etc/passwd"},
        {"packs.bytes": None},
        {"datasets": []},
        {"datasets": [1]},
        {"datasets.file": "../b.idx"},
        {"datasets.name": ""},
        {"datasets.size": 2**60},
        {"datasets.chunk_size": 0},
        {"datasets.method_used": "magic"},
        {"datasets.counts": {"chunks": -1}},
        {"datasets.intercepted": None},
        {"datasets.digest": "0" * 63},
        {"failed": None},
        {"suspension": 1},
    ],
    ids=str,
)
def test_impossible_manifests_are_refused(repository: Repository, change: dict[str, object]) -> None:
    point_id = commit(repository, "a")
    rewritten(repository, point_id, change)
    with pytest.raises(VerificationError, match=r"altered or truncated"):
        repository.point(point_id)
    good, damaged = repository.points()
    assert not good
    assert list(damaged) == [point_id]


def test_index_of_another_shape_is_refused(repository: Repository) -> None:
    point_id = commit(repository, "a")
    rewritten(repository, point_id, {"datasets.size": CHUNK})
    point = repository.point(point_id)
    with pytest.raises(VerificationError, match="instead of 112"):
        point.entries(point.dataset("a"))


def test_a_huge_file_in_place_of_a_manifest_is_not_read(repository: Repository) -> None:
    path = Path(repository.points_path, commit(repository, "a"), "manifest.json")
    os.truncate(path, 1 << 40)
    with pytest.raises(VerificationError, match="more than"):
        repository.point("latest")


@pytest.mark.parametrize("damage", ["missing", "short", "long", "link"])
def test_damaged_packs_are_told(repository: Repository, damage: str) -> None:
    point_id = commit(repository, "a")
    path = Path(repository.packs_path, names.pack_name(point_id, 0))
    if damage == "missing":
        path.unlink()
    elif damage == "link":
        path.rename(path.with_suffix(".real"))
        path.symlink_to(path.with_suffix(".real"))
    else:
        os.truncate(path, CHUNK - 1 if damage == "short" else CHUNK + 1)
    with pytest.raises(TimezeroError, match=re.escape(str(path))), repository.point("latest").open_packs():
        pass


def test_leaving_without_commit_leaves_nothing(repository: Repository) -> None:
    before = files(repository)
    with pytest.raises(KeyboardInterrupt), repository.writer() as writer:
        Path(writer.packs_path, names.pack_name(writer.id, 0)).write_bytes(b"x")
        writer.add_index("a", IndexHeader(CHUNK, 0), b"")
        raise KeyboardInterrupt
    assert files(repository) == before
    assert repository.directories() == []


def test_a_pack_that_went_away_is_noticed_before_publishing(repository: Repository) -> None:
    first = commit(repository, "a")
    borrowed = PackRecord(7, names.pack_name(first, 0), CHUNK)
    second = commit(repository, "b", packs=(borrowed,), pack=False)
    assert repository.point(second).manifest.stored == 0
    Path(repository.packs_path, borrowed.name).unlink()
    with pytest.raises(TimezeroError, match="went away"):
        commit(repository, "c", packs=(borrowed,), pack=False)
    assert repository.ids() == [first, second]


def test_a_failing_fsync_is_final(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    commit(repository, "a")
    before = files(repository)
    calls = {"left": 10**6}
    real = os.fsync

    def failing(fd: int) -> None:
        calls["left"] -= 1
        if calls["left"] == 0:
            raise OSError(5, "Input/output error")
        real(fd)

    monkeypatch.setattr(os, "fsync", failing)
    commit(repository, "counted")
    used = 10**6 - calls["left"]
    assert used >= 8
    repository.prune(keep=1)
    for at in range(1, used + 1):
        calls["left"] = at
        with pytest.raises((OSError, TimezeroError)):
            commit(repository, "a")
        assert len(repository.ids()) == 1, f"fsync {at} of {used} failed, and the recovery point exists"
    assert len(before) == len(files(repository))


def test_prune_keeps_and_removes(repository: Repository) -> None:
    ids = [commit(repository, "a") for _ in range(4)]
    report = repository.prune(keep=3)
    assert (report.removed, report.kept, report.packs_removed, report.bytes_freed) == (ids[:1], ids[1:], 1, CHUNK)
    report = repository.prune(points=(ids[2],))
    assert report.removed == [ids[2]]
    assert repository.ids() == [ids[1], ids[3]]
    assert len(os.listdir(repository.packs_path)) == 2
    assert repository.directories() == repository.ids()
    assert repository.prune().removed == []
    for keep in (0, -1):
        with pytest.raises(UsageError):
            repository.prune(keep=keep)


def test_prune_never_takes_a_pack_that_others_need(repository: Repository) -> None:
    first = commit(repository, "a")
    second = commit(repository, "b", packs=(PackRecord(7, names.pack_name(first, 0), CHUNK),))
    repository.prune(points=(first,))
    with repository.point(second).open_packs() as packs:
        assert sorted(packs) == [0, 7]
    repository.prune(points=(second,))
    assert os.listdir(repository.packs_path) == []


def test_prune_sweeps_what_a_killed_backup_left(repository: Repository) -> None:
    kept = commit(repository, "a")
    left = "20200101T000000Z-0123abcd"
    Path(repository.points_path, left).mkdir()
    Path(repository.points_path, left, "a.idx").write_bytes(b"x")
    Path(repository.packs_path, names.pack_name(left, 0)).write_bytes(b"y" * 10)
    Path(repository.packs_path, names.pack_name("20200101T000000Z-11111111", 3)).write_bytes(b"z" * 10)
    Path(repository.packs_path, "notes.txt").write_text("not ours")
    Path(repository.points_path, kept, names.temporary_name()).write_text("")
    Path(repository.path, names.temporary_name()).write_text("")
    assert repository.ids() == [kept]
    report = repository.prune()
    assert (report.swept, report.packs_removed, report.bytes_freed) == ([left], 2, 20)
    assert sorted(os.listdir(repository.packs_path)) == sorted([names.pack_name(kept, 0), "notes.txt"])
    assert not [name for name in files(repository) if names.is_temporary(os.path.basename(name))]
    repository.point(kept)


def test_prune_leaves_a_running_backup_alone(repository: Repository) -> None:
    with repository.writer() as writer:
        pack = Path(writer.packs_path, names.pack_name(writer.id, 0))
        pack.write_bytes(b"x")
        report = repository.prune()
        assert (report.running, report.swept) == ([writer.id], [])
        assert pack.exists()
        with pytest.raises(UsageError):
            repository.prune(points=(writer.id,))  # it is no recovery point yet


def test_everything_is_durable_before_the_manifest_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also the name of a repository whose maker was killed before he came to that."""
    path = tmp_path / "repo"
    events: list[str] = []
    fsync, link = os.fsync, os.link

    def killed(directory: str) -> None:
        if directory == str(tmp_path):
            raise KeyboardInterrupt
        sync_directory(directory)

    sync_directory = durable.sync_directory
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(durable, "sync_directory", killed)
        Repository.open_or_create(str(path))
    repository = Repository.open_or_create(str(path))

    def record_fsync(fd: int) -> None:
        events.append(os.readlink(f"/proc/self/fd/{fd}"))
        fsync(fd)

    def record_link(source: str, target: str) -> None:
        events.append(f"name {target}")
        link(source, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "link", record_link)
    point = str(Path(repository.points_path, commit(repository, "a")))
    at = events.index(f"name {point}/manifest.json")
    before, after = events[:at], events[at + 1 :]
    for directory in (repository.packs_path, point, repository.points_path, str(path), str(tmp_path)):
        assert before.index(f"{point}/a.idx") < len(before) - 1 - before[::-1].index(directory), directory
    assert ".timezero-" in before[-1]  # the manifest's content
    assert after == [point]


@pytest.mark.parametrize("moment", ["before its lock", "after its lock"])
def test_prune_meets_a_backup_that_removes_itself(
    repository: Repository, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """A backup that fails sweeps what is its own while a prune runs; neither is an error of the prune."""
    victim, kept = commit(repository, "a"), commit(repository, "a")
    failing = repository.writer()
    failing.begin()
    lock = prune_module._lock

    def lock_late(at: Repository, point_id: str) -> FileLock:
        if point_id != failing.id:
            return lock(at, point_id)
        if moment == "before its lock":
            failing.abort()
            return lock(at, point_id)
        failing._release()
        held = lock(at, point_id)
        failing.abort()
        return held

    monkeypatch.setattr(prune_module, "_lock", lock_late)
    report = repository.prune(keep=1)
    assert report.removed == [victim] and report.kept == [kept]
    assert repository.directories() == [kept]
    assert [names.pack_owner(name) for name in os.listdir(repository.packs_path)] == [kept]


def test_prune_stops_at_a_manifest_it_cannot_read(repository: Repository) -> None:
    first, second, third = (commit(repository, "a") for _ in range(3))
    Path(repository.points_path, second, "manifest.json").write_text("{}")
    before = files(repository)
    with pytest.raises(VerificationError, match=rf"--point {second}"):
        repository.prune(keep=1, points=(third,))
    assert files(repository) == before
    assert repository.prune(points=(second,)).removed == [second]
    assert repository.ids() == [first, third]


def test_locks(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opened, "_PATIENCE_S", 0.0)
    point_id = commit(repository, "a")
    with repository.lock_exclusive(), pytest.raises(LockedError) as caught:
        FileLock(os.path.join(repository.path, "repository.json"), shared=True, what="x", patience=0)
    assert caught.value.exit_code == 11
    lock = os.path.join(repository.points_path, point_id, "lock")
    with FileLock(lock, shared=False, what="held"), pytest.raises(LockedError, match="running backup"):
        repository.prune(points=(point_id,))
    assert repository.ids() == [point_id]


def test_names_are_safe_and_distinct() -> None:
    tricky = [
        "a",
        "A",
        ".",
        "..",
        ".hidden",
        "a/b",
        "a%2Fb",
        "",
        "x" * 300,
        "x" * 301,
        "ü",
        "\udcff",
        "a\n",
        "~",
        "a~b",
    ]
    encoded = [names.encode_component(name) for name in tricky if name]
    assert len(set(encoded)) == len(encoded)
    for text in encoded:
        assert re.fullmatch(r"[A-Za-z0-9_+=,%~-][A-Za-z0-9_+=,.%~-]*", text)
        assert len(text) <= 210
    assert (
        names.dataset_name_problem("") and names.dataset_name_problem("a\0b") and names.dataset_name_problem("x" * 5000)
    )
    assert names.dataset_name_problem("a/b\n") is None


def test_ids_sort_by_time() -> None:
    ids = [names.new_id() for _ in range(100)]
    assert all(names.is_id(name) for name in ids)
    assert [name[:21] for name in ids] == sorted(name[:21] for name in ids)
