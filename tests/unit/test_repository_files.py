"""Datasets that are files in a repository: their documents, gathered indexes, patterns; hostile ones refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.unit.test_repository import CHUNK, entries, manifest, rewritten
from timezero.concordance.metadata import Metadata
from timezero.errors import TimezeroError, UsageError, VerificationError
from timezero.repository import DatasetRecord, FileRecord, IndexHeader, Repository, documents, names
from timezero.repository.files import path_problem
from timezero.repository.patterns import compile_pattern

METADATA = Metadata(0o4750, 1000, 1001, -1, 5, {"user.a": b"\0\xff", "user.\udce4": b""})
NAMES = ("data:/srv/db/a.ibd", "data:/srv/db/b/\udcff\n", "data:/srv/.hidden", "logs:/x")


def commit(repository: Repository, *dataset_names: str, gather: bool = True, method: str = "session") -> str:
    with repository.writer() as writer:
        Path(writer.packs_path, names.pack_name(writer.id, 0)).write_bytes(b"x" * CHUNK)
        header, index = IndexHeader(CHUNK, 5), entries((0, 0, 5))
        records = []
        for number, name in enumerate(dataset_names):
            offset, digest = (
                writer.gather_index(header, index) if gather else (None, writer.add_index(name, header, index))
            )
            record = DatasetRecord(
                name=name,
                source="/dev/x",
                method_requested="session",
                method_used=method,
                size=5,
                chunk_size=CHUNK,
                digest=digest,
                inode=FileRecord(name.split(":")[0], number, METADATA),
                index_offset=offset,
            )
            records.append(record)
        writer.commit(manifest(repository, writer.id, writer.pack_records([CHUNK]), tuple(records)))
        return writer.id


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository.open_or_create(str(tmp_path / "repo"))


@pytest.mark.parametrize("gather", [True, False])
def test_round_trip(repository: Repository, gather: bool) -> None:
    point_id = commit(repository, *NAMES, gather=gather)
    point = repository.point(point_id)
    assert [record.name for record in point.datasets] == list(NAMES)
    for number, record in enumerate(point.datasets):
        assert record.inode == FileRecord(record.name.split(":")[0], number, METADATA)
        assert record.path == record.name.partition(":")[2]
        assert point.entries(record) == entries((0, 0, 5))
    there = os.listdir(Path(repository.points_path, point_id))
    assert (names.GATHERED_FILE in there) is gather
    assert len(there) == (3 if gather else 2 + len(NAMES))


def test_the_format_is_the_lowest_that_says_it_all(repository: Repository) -> None:
    """A reader of format 1 must refuse what it would not find, and may read what it would."""
    formats = []
    for gather, method in ((False, "session"), (True, "session"), (False, "read-through")):
        path = Path(repository.points_path, commit(repository, *NAMES, gather=gather, method=method), "manifest.json")
        formats.append(json.loads(path.read_text())["format"])
    assert formats == [1, 2, 2]
    with pytest.raises(TimezeroError, match="newer"):
        rewritten(repository, repository.ids()[0], {"format": 3})
        repository.point(repository.ids()[0])


def test_the_weakest_method_is_the_point_s(repository: Repository) -> None:
    assert repository.point(commit(repository, *NAMES, method="read-through")).manifest.method == "read-through"


def inode(**change: object) -> dict[str, object]:
    return {"volume": "data", "data_size": 0, **METADATA.to_json(), **change}


@pytest.mark.parametrize(
    "change",
    [
        {"datasets.inode": 1},
        {"datasets.inode": {}},
        {"datasets.inode": inode(volume="dat")},
        {"datasets.inode": inode(volume="")},
        {"datasets.inode": inode(volume="data:/srv")},
        {"datasets.inode": inode(data_size=-1)},
        {"datasets.inode": inode(mode=0o10000)},
        {"datasets.inode": inode(uid=-1)},
        {"datasets.inode": inode(mtime_ns=2**63)},
        {"datasets.inode": inode(xattrs=[])},
        {"datasets.inode": inode(xattrs={"user.a": "*"})},
        {"datasets.inode": inode(xattrs={"user.\ud800": ""})},
        {"datasets.index_offset": -1},
        {"datasets.index_offset": None},
        {"datasets.name": "data:srv"},
        {"datasets.name": "data:/srv/../../etc/passwd"},
        {"datasets.name": "data:/srv/./a"},
        {"datasets.name": "data:/srv//a"},
        {"datasets.name": "data:/srv/"},
        {"datasets.name": "data:/"},
        {"datasets.name": "data:/" + "a" * 256},
    ],
    ids=str,
)
def test_hostile_manifests_are_refused(repository: Repository, change: dict[str, object]) -> None:
    point_id = commit(repository, *NAMES)
    rewritten(repository, point_id, change)
    with pytest.raises(VerificationError, match="altered or truncated"):
        repository.point(point_id)


@pytest.mark.parametrize("damage", ["missing", "short", "flipped", "link", "elsewhere"])
def test_damaged_gathered_indexes_are_told(repository: Repository, damage: str) -> None:
    point_id = commit(repository, *NAMES)
    path = Path(repository.points_path, point_id, names.GATHERED_FILE)
    content = path.read_bytes()
    path.unlink()
    if damage == "short":
        path.write_bytes(content[:-1])
    elif damage == "flipped":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "link":
        path.symlink_to("/dev/null")
    elif damage == "elsewhere":
        path.write_bytes(content)
        rewritten(repository, point_id, {"datasets.index_offset": 2**62})
    point = repository.point(point_id)
    with pytest.raises(TimezeroError):
        [point.entries(record) for record in point.datasets]
    if damage in ("short", "flipped"):
        assert point.entries(point.datasets[0])  # the others are not concerned


def test_gathered_indexes_are_durable_before_the_manifest(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    real = os.fsync

    def fsync(fd: int) -> None:
        seen.append(os.path.basename(os.readlink(f"/proc/self/fd/{fd}")))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    commit(repository, *NAMES)
    assert seen.count(names.GATHERED_FILE) == 1
    assert seen.index(names.GATHERED_FILE) < next(n for n, name in enumerate(seen) if names.is_temporary(name))


def test_a_failing_fsync_of_gathered_indexes_is_final(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(fd: int) -> None:
        if os.readlink(f"/proc/self/fd/{fd}").endswith(names.GATHERED_FILE):
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="Input/output"):
        commit(repository, *NAMES)
    assert repository.directories() == []


def test_a_manifest_that_could_not_be_read_is_not_committed(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "DOCUMENT_MAX_BYTES", 2000)
    with pytest.raises(TimezeroError, match="too many for one recovery point"):
        commit(repository, *NAMES)
    assert repository.directories() == []


def test_prune_takes_gathered_indexes_too(repository: Repository) -> None:
    commit(repository, *NAMES)
    second = commit(repository, *NAMES)
    repository.prune(keep=1)
    assert repository.directories() == [second]


def test_ten_thousand_datasets_are_a_line_each(repository: Repository) -> None:
    many = [f"data:/d/{number}" for number in range(10_000)]
    point = repository.point(commit(repository, *many))
    assert point.dataset(many[-1]).index_offset == 112 * 9999
    content = Path(repository.points_path, point.id, "manifest.json").read_text()
    assert 10_000 < content.count("\n") < 10_050
    with pytest.raises(UsageError) as caught:
        point.dataset("nothing")
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        ("data:/srv/db", ["data:/srv/db", "data:/srv/db/a", "data:/srv/db/a/b"], ["data:/srv/dbx", "xdata:/srv/db"]),
        ("data:/srv/db/", ["data:/srv/db/a"], ["data:/srv/dbx"]),
        ("data:", ["data:/a", "data:/a/b"], ["data2:/a"]),
        ("data:/", ["data:/a/b"], ["logs:/a"]),
        ("data:/*.ibd", ["data:/a.ibd", "data:/.ibd", "data:/a.ibd/below"], ["data:/a/b.ibd", "data:/a.ibdx"]),
        ("data:/**/*.ibd", ["data:/a.ibd", "data:/a/b/c.ibd"], ["data:/a/b.txt"]),
        ("data:/**", ["data:/a", "data:/a/b"], ["logs:/a"]),
        ("**.ibd", ["data:/a/b.ibd"], ["data:/a"]),
        ("**/***.ibd", ["data:/a/b.ibd", ".ibd"], ["data:/a"]),
        ("a**/**/b", ["ab", "a/b", "a/c/b", "ac/d/b"], ["b", "ac"]),
        ("*:/a", ["data:/a", "logs:/a"], ["data:/b/a"]),
        ("d?", ["d1", "d\n"], ["d/", "d12"]),
        ("[a-c]x", ["ax", "cx"], ["dx", "/x"]),
        ("[!a]x", ["bx"], ["ax", "/x"]),
        ("[]^]x", ["]x", "^x"], ["ax"]),
        ("[a", ["[a"], ["a"]),
        ("a\\*", ["a*"], ["ab"]),
        ("a+(b)|c.", ["a+(b)|c."], ["aa"]),
    ],
)
def test_patterns(pattern: str, matching: list[str], others: list[str]) -> None:
    compiled = compile_pattern(pattern)
    assert [name for name in matching if not compiled.fullmatch(name)] == []
    assert [name for name in others if compiled.fullmatch(name)] == []


def test_stars_that_add_nothing_cost_nothing() -> None:
    """Each pair of them would double the time to see that a name does not match: forty are more than a life."""
    assert compile_pattern("**/***/" * 20 + "b").pattern == compile_pattern("**/" * 3 + "***/" * 20 + "b").pattern
    assert not compile_pattern("**/**/***/" * 3 + "b").fullmatch("a/" * 40 + "c")


def test_no_pattern() -> None:
    with pytest.raises(UsageError, match="no pattern"):
        compile_pattern("[z-a]")


def test_a_name_comes_before_the_pattern_that_it_looks_like(repository: Repository) -> None:
    point = repository.point(commit(repository, "data:/[ab]", "data:/a", "data:/b"))
    assert [record.name for record in point.choose("data:/[ab]")] == ["data:/[ab]"]
    assert [record.name for record in point.choose("data:/[a]")] == ["data:/a"]
    with pytest.raises(UsageError, match="no dataset is or matches"):
        point.choose("data:/c*")


def test_paths() -> None:
    assert path_problem("/a/...b/\udcff") is None
    for bad in ("", "a", "/", "//a", "/a/", "/a/..", "/./a", "/" + "ä" * 128):
        assert path_problem(bad), bad
