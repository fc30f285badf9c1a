"""Which files a selection means, on real file systems: patterns, links, mounts, names."""

from __future__ import annotations

import errno
import os
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.integration.concordance import Frozen, content, designate
from tests.integration.filesystems import FileSystem, run
from timezero.concordance.selection import Selection, parse, resolve
from timezero.errors import UsageError


def names(system: FileSystem, place: Path, *patterns: str) -> list[str]:
    with designate(system, *(place / pattern for pattern in patterns)) as designated:
        return [str(Path(dataset.path).relative_to(place)) for dataset in designated]


@pytest.fixture
def tree(place: Path) -> Path:
    for path in ("a.ibd", ".hidden.ibd", "b.txt", "d/c.ibd", "d/e/f.ibd", "d/e/.g", "[x].ibd", "x.ibd"):
        (place / path).parent.mkdir(parents=True, exist_ok=True)
        (place / path).write_text(path)
    return place


def test_patterns(system: FileSystem, tree: Path) -> None:
    everything = sorted(["a.ibd", ".hidden.ibd", "b.txt", "d/c.ibd", "d/e/f.ibd", "d/e/.g", "[x].ibd", "x.ibd"])
    assert names(system, tree, "a.ibd") == ["a.ibd"]
    assert names(system, tree, "*.ibd") == [".hidden.ibd", "[x].ibd", "a.ibd", "x.ibd"]
    assert names(system, tree, "?.ibd") == ["a.ibd", "x.ibd"]
    assert names(system, tree, "[ab].*") == ["a.ibd", "b.txt"]
    assert names(system, tree, "[x].ibd") == ["[x].ibd", "x.ibd"]
    assert names(system, tree, "**/*.ibd") == [".hidden.ibd", "[x].ibd", "a.ibd", "d/c.ibd", "d/e/f.ibd", "x.ibd"]
    assert names(system, tree, "d/**/e/*") == ["d/e/.g", "d/e/f.ibd"]
    assert names(system, tree, "d*") == ["d/c.ibd", "d/e/.g", "d/e/f.ibd"]
    assert names(system, tree, "") == names(system, tree, "**") == names(system, tree, "*") == everything
    assert names(system, tree, "d", "d/c.ibd", "a.ibd") == ["a.ibd", "d/c.ibd", "d/e/.g", "d/e/f.ibd"]
    for nothing in ("nothing", "*.none", "d/**/none"):
        with pytest.raises(UsageError, match="nothing is there"):
            names(system, tree, "a.ibd", nothing)


def test_links_are_taken_when_named_and_skipped_when_met(system: FileSystem, tree: Path) -> None:
    (tree / "link").symlink_to("a.ibd")
    (tree / "d" / "inner").symlink_to("c.ibd")
    (tree / "directory").symlink_to("d")
    (tree / "dangling").symlink_to("nothing")
    (tree / "outside").symlink_to("/etc/hostname")
    assert names(system, tree, "link") == ["a.ibd"]
    assert names(system, tree, "directory") == names(system, tree, "d")
    assert names(system, tree, "directory/*.ibd") == ["d/c.ibd"]
    with designate(system, tree / "d") as designated:
        assert designated.skipped == {f"data:{tree}/d/inner": "a symbolic link"}
    with designate(system, tree / "*") as designated:
        assert len(designated) == 8
        assert {name.rpartition("/")[2]: why.partition(" that")[0] for name, why in designated.skipped.items()} == {
            "dangling": os.strerror(errno.ENOENT),
            "directory": "a symbolic link to a directory",
            "inner": "a symbolic link",
            "outside": "it is not on the file system",
        }
    with designate(system, tree / "l*") as designated:
        assert [dataset.name for dataset in designated] == [f"data:{tree}/a.ibd"]
    with pytest.raises(UsageError, match="outside: it is not on the file system that is mounted at"):
        designate(system, tree / "outside")
    with pytest.raises(UsageError, match=os.strerror(errno.ENOENT)):
        designate(system, tree / "dangling")
    with pytest.raises(UsageError, match="nothing but what is skipped"):
        designate(system, tree / "outsid*")


def test_special_files_and_other_file_systems_are_not_entered(system: FileSystem, tree: Path, tmp_path: Path) -> None:
    os.mkfifo(tree / "d" / "pipe")
    (tree / "d" / "mounted").mkdir()
    with ExitStack() as stack:
        run("mount", "-t", "tmpfs", "tmpfs", tree / "d" / "mounted")
        stack.callback(run, "umount", tree / "d" / "mounted")
        (tree / "d" / "mounted" / "file").touch()
        with designate(system, tree / "d") as designated:
            assert len(designated) == 3
            assert designated.skipped == {
                f"data:{tree}/d/mounted": "another file system",
                f"data:{tree}/d/pipe": "neither a regular file nor a directory",
            }
        with pytest.raises(UsageError, match="not on the file system"):
            designate(system, tree / "d" / "mounted" / "file")
        with designate(system, tree / "d" / "mounted" / "file", read_through=True) as designated:
            assert designated[0].problem == "it is on another file system than its volume's"
    with pytest.raises(UsageError, match="neither a regular file"):
        designate(system, tree / "d" / "pipe")


def test_hard_links_are_one_dataset(system: FileSystem, tree: Path) -> None:
    os.link(tree / "x.ibd", tree / "d" / "same")
    with designate(system, tree) as designated:
        assert f"data:{tree}/d/same" in [dataset.name for dataset in designated]
        assert designated.aliases == {f"data:{tree}/x.ibd": f"data:{tree}/d/same"}


def test_a_bind_mount_shows_the_same_files(system: FileSystem, tree: Path, tmp_path: Path) -> None:
    (tmp_path / "bound").mkdir()
    run("mount", "--bind", tree / "d", tmp_path / "bound")
    try:
        with designate(system, tmp_path / "bound") as designated:
            assert len(designated) == 3
        with designate(system, tmp_path / "bound", tree / "d") as designated:
            assert len(designated) == 3
            assert len(designated.aliases) == 3
    finally:
        run("umount", tmp_path / "bound")


def test_names_that_are_no_text(system: FileSystem, place: Path) -> None:
    raw = os.fsencode(place) + b"/\xff\xfe name\n"
    with open(raw, "wb") as file:
        file.write(b"x")
    with designate(system, place) as designated:
        assert [os.fsencode(dataset.name) for dataset in designated] == [b"data:" + raw]
        assert Frozen(system, designated).files == {os.fsdecode(raw): b"x"}


def test_descriptors_are_closed_when_files_are_refused(system: FileSystem, tree: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(UsageError):
        designate(system, tree / "d", tree / "nothing")
    assert len(os.listdir("/proc/self/fd")) == before


def test_selections_are_parsed() -> None:
    assert parse("data:/srv/db/*.ibd") == Selection("data", "/srv/db/*.ibd")
    for text in ("data", "data:relative", ":/path", "da ta:/x", "data:/a/../b", "data:/nul\0"):
        with pytest.raises(UsageError):
            parse(text)
    with pytest.raises(UsageError, match="--mount other=PATH"):
        resolve([Selection("other", "/x")], [])


def test_access_times_are_left_alone(system: FileSystem, tree: Path) -> None:
    os.utime(tree / "a.ibd", ns=(1, 10**18))
    with designate(system, tree / "a.ibd") as designated:
        Frozen(system, designated)
    assert (tree / "a.ibd").stat().st_atime_ns == 1


def test_an_immutable_file(system: FileSystem, place: Path) -> None:
    (place / "immutable").write_bytes(content("immutable", 5000))
    run("chattr", "+i", place / "immutable")
    try:
        with designate(system, place) as designated:
            assert Frozen(system, designated).files == {str(place / "immutable"): content("immutable", 5000)}
    finally:
        run("chattr", "-i", place / "immutable")
