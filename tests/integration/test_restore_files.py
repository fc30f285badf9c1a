"""Restoring datasets that are files: to a tree, to a file, in place; whole or not at all, and never out of the tree."""

from __future__ import annotations

import os
import resource
import stat
import struct
from pathlib import Path

import pytest

from tests.command import MIB, digest, image, snapshot, succeed, timezero
from tests.file_points import CHUNK, commit_files
from timezero.errors import TimezeroError, UsageError, VerificationError
from timezero.jobs import restore_files, trees
from timezero.jobs.newfile import NewFile
from timezero.jobs.restore import PartialRestoreError, restore
from timezero.jobs.verify import verify
from timezero.repository import Repository, names

#: What `setfacl -m u:777:rw` makes of mode 0751: version 2, then (tag, permissions, id), posix_acl_xattr.h.
ACL = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", *entry)
    for entry in ((1, 7, 2**32 - 1), (2, 6, 777), (4, 5, 2**32 - 1), (16, 7, 2**32 - 1), (32, 1, 2**32 - 1))
)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Files as backups meet them."""
    root = tmp_path / "source"
    for directory in ("db/deep", "log"):
        (root / directory).mkdir(parents=True)
    image(root / "db/a.ibd", 3 * MIB + 5)
    (root / "db/deep/b.ibd").write_bytes(b"b" * 5000)
    (root / "db/empty").write_bytes(b"")
    (root / "log/.hidden \udcff\n").write_bytes(b"h")
    os.chmod(root / "db/a.ibd", 0o640)
    os.setxattr(root / "db/a.ibd", "user.origin", b"\0\xff")
    os.utime(root / "db/a.ibd", ns=(1_000_000_001, 2_000_000_002))
    return root


@pytest.fixture
def repo(tmp_path: Path, source: Path) -> Path:
    commit(tmp_path / "repo", source)
    return tmp_path / "repo"


def commit(repo: Path, source: Path, at: str = "/srv") -> str:
    """A recovery point of all files of a directory, as if it had been at `at`."""
    found = [path for path in sorted(source.rglob("*")) if path.is_file() and not path.is_symlink()]
    return commit_files(repo, {f"{at}/{path.relative_to(source)}": path for path in found})


def damage(repo: Path, byte: int) -> None:
    """Change a byte of the pack."""
    (pack,) = (repo / "packs").iterdir()
    with open(pack, "r+b") as file:
        file.seek(byte)
        old = file.read(1)[0]
        file.seek(byte)
        file.write(bytes([old ^ 1]))


def same(one: Path, other: Path) -> None:
    assert digest(one) == digest(other)
    a, b = one.stat(), other.stat()
    assert (a.st_mode, a.st_uid, a.st_gid, a.st_mtime_ns) == (b.st_mode, b.st_uid, b.st_gid, b.st_mtime_ns)
    assert {n: os.getxattr(one, n) for n in os.listxattr(one)} == {
        n: os.getxattr(other, n) for n in os.listxattr(other)
    }


def test_everything_to_a_directory_is_there_under_its_whole_path(tmp_path: Path, repo: Path, source: Path) -> None:
    out = tmp_path / "out"
    result = restore(str(repo), "latest", str(out))
    assert snapshot(out / "srv") == snapshot(source)
    for path in source.rglob("*"):
        if path.is_file():
            same(out / "srv" / path.relative_to(source), path)
    assert result.targets["data:/srv/db/a.ibd"] == str(out / "srv/db/a.ibd")
    assert not result.failed
    assert (out / "srv/db/a.ibd").stat().st_blocks * 512 < 3 * MIB  # the holes and zeros of image() are holes


def test_one_file_to_a_file(tmp_path: Path, repo: Path, source: Path) -> None:
    document = succeed("restore", "--repo", repo, "latest/data:/srv/db/a.ibd", tmp_path / "x")
    assert document["targets"] == {"data:/srv/db/a.ibd": str(tmp_path / "x")}
    same(tmp_path / "x", source / "db/a.ibd")


@pytest.mark.parametrize("chosen", ["data:/srv/db/*.ibd", "data:/**/*.ibd", "data:/srv/db/[ab]*"])
def test_globs(tmp_path: Path, repo: Path, chosen: str) -> None:
    found = restore(str(repo), "latest", str(tmp_path / "out"), dataset=chosen).targets
    assert ("data:/srv/db/deep/b.ibd" in found) is ("**" in chosen)
    assert "data:/srv/db/a.ibd" in found
    assert "data:/srv/db/empty" not in found


def test_a_glob_goes_to_a_directory_however_many_it_matches(tmp_path: Path, repo: Path) -> None:
    restore(str(repo), "latest", str(tmp_path / "out"), dataset="data:/srv/db/a.*")
    assert (tmp_path / "out/srv/db/a.ibd").is_file()
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UsageError, match="is no directory"):
        restore(str(repo), "latest", str(tmp_path / "file"), dataset="data:/srv/db/a.*", force=True)


def test_in_place(tmp_path: Path, source: Path) -> None:
    repo, before = tmp_path / "repo", snapshot(source)
    commit(repo, source, str(source))
    (source / "db/a.ibd").write_bytes(b"changed")
    os.link(source / "db/a.ibd", tmp_path / "old")
    with pytest.raises(TimezeroError, match=r"exists already.*--force"):
        restore(str(repo), "latest", None, in_place=True)
    assert (source / "db/a.ibd").read_bytes() == b"changed"
    (source / "db/deep/b.ibd").unlink()
    (source / "db/deep").rmdir()
    outcome = timezero("restore", "--repo", repo, "latest", "--in-place", "--force")
    assert outcome.code == 0, outcome.err
    assert snapshot(source) == before
    assert (tmp_path / "old").read_bytes() == b"changed"  # replaced, not overwritten


def test_in_place_and_a_target_exclude_each_other(tmp_path: Path, repo: Path) -> None:
    for target, in_place in ((str(tmp_path), True), (None, False)):
        with pytest.raises(UsageError):
            restore(str(repo), "latest", target, in_place=in_place)


def test_what_exists_is_left_alone_without_force(tmp_path: Path, repo: Path) -> None:
    there = tmp_path / "out/srv/db/empty"
    there.parent.mkdir(parents=True)
    there.write_bytes(b"mine")
    with pytest.raises(TimezeroError, match="exists already"):
        restore(str(repo), "latest", str(tmp_path / "out"))
    assert snapshot(tmp_path / "out").keys() == {"srv", "srv/db", "srv/db/empty"}
    restore(str(repo), "latest", str(tmp_path / "out"), force=True)
    assert there.read_bytes() == b""


@pytest.mark.parametrize("where", ["srv", "srv/db", "srv/db/deep"])
def test_no_link_is_followed(tmp_path: Path, repo: Path, where: str) -> None:
    """Whoever may write to the target cannot lead a restore to another place."""
    elsewhere, out = tmp_path / "elsewhere", tmp_path / "out"
    elsewhere.mkdir()
    (out / where).parent.mkdir(parents=True)
    (out / where).symlink_to(elsewhere)
    with pytest.raises((PartialRestoreError, TimezeroError), match="no link is followed") as caught:
        restore(str(repo), "latest", str(out), force=True)
    assert list(elsewhere.iterdir()) == []
    if where == "srv/db/deep":
        result = caught.value.result  # type: ignore[attr-defined]
        assert list(result.failed) == ["data:/srv/db/deep/b.ibd"]
        assert len(result.targets) == 3


def test_a_link_in_place_of_the_file_is_replaced(tmp_path: Path, repo: Path) -> None:
    victim, out = tmp_path / "victim", tmp_path / "out"
    victim.write_bytes(b"untouched")
    (out / "srv/db").mkdir(parents=True)
    (out / "srv/db/a.ibd").symlink_to(victim)
    restore(str(repo), "latest", str(out), force=True)
    assert victim.read_bytes() == b"untouched"
    assert stat.S_ISREG((out / "srv/db/a.ibd").lstat().st_mode)


def test_damage_of_one_file_leaves_it_as_it_was_and_restores_the_others(tmp_path: Path, repo: Path) -> None:
    point = Repository(str(repo)).point("latest")
    # Which file lies where in the pack is nobody's to say: the first to be read is the first to be written.
    damage(repo, int.from_bytes(point.entries(point.dataset("data:/srv/db/a.ibd"))[:8], "little") + 100)
    out = tmp_path / "out"
    (out / "srv/db").mkdir(parents=True)
    (out / "srv/db/a.ibd").write_bytes(b"old")
    outcome = timezero("restore", "--repo", repo, "latest", out, "--force", "--json")
    assert outcome.code == 3
    assert list(outcome.document["result"]["failed"]) == ["data:/srv/db/a.ibd"]
    assert len(outcome.document["result"]["targets"]) == 3
    assert (out / "srv/db/a.ibd").read_bytes() == b"old"
    assert not [path for path in out.rglob("*") if names.is_temporary(path.name)]
    with pytest.raises(VerificationError):
        restore(str(repo), "latest", str(tmp_path / "alone"), dataset="data:/srv/db/a.ibd")
    assert not (tmp_path / "alone").exists()
    damaged = verify(str(repo)).damage
    assert [(each.dataset, each.offset) for each in damaged] == [("data:/srv/db/a.ibd", 0)]


def test_verify_finds_all_damage_of_many(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for number in range(700):
        (source / f"{number:03}").write_bytes(os.urandom(4096))
    commit(tmp_path / "repo", source)
    assert not verify(str(tmp_path / "repo")).damage
    for number in (0, 511, 699):
        damage(tmp_path / "repo", number * 4096)
    result = verify(str(tmp_path / "repo"))
    assert len(result.damage) == 3
    assert result.datasets == 700
    assert {each.offset for each in result.damage} == {0}


def test_few_descriptors_are_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for number in range(300):
        (source / f"{number:03}").write_bytes(os.urandom(5000))
    commit(tmp_path / "repo", source)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (150, hard))
    try:
        restore(str(tmp_path / "repo"), "latest", str(tmp_path / "out"))
        assert not verify(str(tmp_path / "repo")).damage
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert snapshot(tmp_path / "out/srv") == snapshot(source)


@pytest.mark.parametrize("whole", [True, False])
def test_names_come_after_durability(tmp_path: Path, repo: Path, monkeypatch: pytest.MonkeyPatch, whole: bool) -> None:
    """No file has its name before it is on the disk, however that is done."""
    events: list[str] = []
    publish, fsync, syncfs = NewFile.publish, os.fsync, restore_files._linux.syncfs
    monkeypatch.setattr(restore_files, "SYNC_EACH_MAX", 1 if whole else 1000)
    monkeypatch.setattr(trees, "SYNC_EACH_MAX", 1 if whole else 1000)
    monkeypatch.setattr(NewFile, "publish", lambda self, **how: (events.append("name"), publish(self, **how))[1])
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append("sync"), fsync(fd))[1])
    monkeypatch.setattr(restore_files._linux, "syncfs", lambda fd: (events.append("syncfs"), syncfs(fd))[1])
    restore(str(repo), "latest", str(tmp_path / "out"))
    syncs = 1 if whole else 4
    assert events[:syncs] == ["syncfs" if whole else "sync"] * syncs
    assert events[syncs : syncs + 4] == ["name"] * 4
    assert set(events[syncs + 4 :]) == {"syncfs" if whole else "sync"}  # the directories


def test_a_failing_sync_names_nothing(tmp_path: Path, repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(fd: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(TimezeroError, match="cannot be made durable"):
        restore(str(repo), "latest", str(tmp_path / "out"))
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


@pytest.mark.parametrize("force", [True, False])
def test_interrupted_it_leaves_whole_files_only(
    tmp_path: Path, repo: Path, source: Path, monkeypatch: pytest.MonkeyPatch, force: bool
) -> None:
    link, calls = os.link, []

    def interrupt(*words: object, **options: object) -> None:
        link(*words, **options)  # type: ignore[arg-type]
        calls.append(words)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "link", interrupt)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        restore(str(repo), "latest", str(out), force=force)
    left = [path for path in out.rglob("*") if path.is_file()]
    assert len(left) == (1 if force else 2)
    for path in left:
        same(path, source / path.relative_to(out / "srv"))


def test_without_unnamed_files(tmp_path: Path, repo: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the file system has none, a temporary name does."""
    real = os.open

    def refuse(path: object, flags: int, *rest: object, **options: object) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(95, "Operation not supported")
        return real(path, flags, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", refuse)
    for force in (False, True):
        restore(str(repo), "latest", str(tmp_path / "out"), force=force)
        assert snapshot(tmp_path / "out/srv") == snapshot(source)


def test_two_datasets_for_one_place_are_refused(tmp_path: Path, source: Path) -> None:
    repo = tmp_path / "repo"
    commit_files(repo, {"/a": source / "db/empty", "/a/b": source / "db/empty"})
    with pytest.raises(UsageError, match="in the way"):
        restore(str(repo), "latest", str(tmp_path / "out"))


def test_list_and_show_stay_short(repo: Path) -> None:
    assert timezero("list", "--repo", repo).out.decode().count("\n") == 2
    assert b"data: 4 files" in timezero("list", "--repo", repo).out
    assert succeed("list", "--repo", repo)["points"][0]["files"] == {"data": 4}
    assert b"4 files (data: 4)" in timezero("show", "--repo", repo).out
    assert succeed("show", "--repo", repo)["datasets"][0]["inode"]["volume"] == "data"


def test_the_target_lies_in_the_repository(repo: Path) -> None:
    with pytest.raises(UsageError, match="lies in the repository"):
        restore(str(repo), "latest", str(repo / "packs"), force=True)


def test_owner_attributes_and_acl(tmp_path: Path, root: None) -> None:
    file = tmp_path / "source/f"
    file.parent.mkdir()
    file.write_bytes(b"x" * (CHUNK + 1))
    os.chown(file, 12345, 54321)
    os.chmod(file, 0o4751)
    os.setxattr(file, "security.test", b"1")
    os.setxattr(file, "system.posix_acl_access", ACL)
    os.utime(file, ns=(5, 7))
    commit(tmp_path / "repo", file.parent)
    result = restore(str(tmp_path / "repo"), "latest", str(tmp_path / "out"))
    assert not result.notes
    same(tmp_path / "out/srv/f", file)
    assert "system.posix_acl_access" in os.listxattr(tmp_path / "out/srv/f")
    assert (tmp_path / "out/srv/f").stat().st_mode & 0o7777 == file.stat().st_mode & 0o7777
