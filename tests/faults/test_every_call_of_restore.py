"""Each call that a restore makes on its target fails, one after the other, whichever way it is restored.

What has a name is whole; what is written in place is whole, or as it was, or blanked at both ends, which is said; and
the same command goes on where it is one that does.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from proof.shim import MAKING, READ, Shim
from tests.command import Outcome, digest, image, timezero
from tests.damage import Stored, without
from tests.faults.sweep import MAY_FAIL, TEMPORARY, THREADS, sweep
from tests.file_points import commit_files
from timezero.jobs.backup import backup

MIB = 1 << 20
SIZE = 3 * MIB + 512
BOTH = (errno.EIO, errno.ENOSPC)
MIXTURE = "now holds a mixture of old and new data and is blanked at both ends"

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def shim(shims: Callable[[str], Shim]) -> Shim:
    return shims("job")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return image(tmp_path / "source.img", SIZE)


@pytest.fixture
def repo(tmp_path: Path, source: Path) -> Path:
    backup(str(tmp_path / "repo"), [str(source)])
    return tmp_path / "repo"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "target").mkdir()
    return tmp_path / "target"


def restore(shim: Shim, repo: Path, *words: object) -> Outcome:
    return timezero("restore", "--repo", repo, *words, env=shim.environment | THREADS)


@pytest.mark.parametrize("replace", [False, True], ids=["new", "replaced"])
def test_to_a_file(folder: Path, source: Path, repo: Path, shim: Shim, replace: bool) -> None:
    target = folder / "restored.img"

    def run(n: int) -> Outcome:
        target.unlink(missing_ok=True)
        if replace:
            target.write_bytes(b"old")
        outcome = restore(shim, repo, "latest/source.img", target, *(["--force"] if replace else []))
        assert list(folder.glob(TEMPORARY)) == []
        is_new = target.exists() and target.read_bytes() != b"old"
        if outcome.code == 0 or is_new:
            assert digest(target) == digest(source)
        if outcome.code and is_new:
            assert "is there" in outcome.err, outcome.err
        return outcome

    # Where what a killed one left cannot be opened, another temporary name is taken.
    assert sweep(shim, folder, MAKING, BOTH, run) <= MAY_FAIL | ({"open"} if replace else set())


@pytest.mark.parametrize("begun", [False, True], ids=["new", "gone on with"])
def test_with_resume(folder: Path, source: Path, repo: Path, shim: Shim, begun: bool) -> None:
    """What is kept is not called the dataset, and the same command makes it so."""
    target, partial = folder / "restored.img", folder / ".timezero-restored.img.partial"

    def run(n: int) -> Outcome:
        target.unlink(missing_ok=True)
        partial.unlink(missing_ok=True)
        if begun:
            partial.write_bytes(source.read_bytes()[:MIB] + b"\xee" * MIB)
            partial.chmod(0o600)
        words = ("latest/source.img", target, "--resume")
        outcome = restore(shim, repo, *words)
        assert set(folder.glob(TEMPORARY)) <= {partial}
        if outcome.code and not target.exists():
            # What is not kept anyhow may be gone, and what is kept is told of, but for one that never got to it.
            assert not partial.exists() or str(partial) in outcome.err or begun, outcome.err
            shim.rule(0, 0, folder)
            again = timezero("restore", "--repo", repo, *words)
            assert again.code == 0, again.err
        assert digest(target) == digest(source)
        assert list(folder.glob(TEMPORARY)) == []
        return outcome

    # A chunk that cannot be looked at is written.
    calls = MAKING | READ if begun else MAKING
    assert sweep(shim, folder, calls, BOTH, run) <= MAY_FAIL | ({"read"} if begun else set())


def in_place(shim: Shim, repo: Path, source: Path, target: Path, before: bytes, *words: str) -> set[str]:
    """Sweep a restore onto `target`, which holds `before`."""
    wanted = source.read_bytes()

    def run(n: int) -> Outcome:
        target.write_bytes(before)
        if target.is_file():
            assert target.stat().st_size == len(before)
        outcome = restore(shim, repo, "latest/source.img", target, *words)
        found = target.read_bytes()
        if outcome.code == 0:
            assert found[:SIZE] == wanted
        elif MIXTURE in outcome.err:
            assert found[:MIB] == bytes(MIB) and found[SIZE - MIB : SIZE] == bytes(MIB)
        else:
            assert found == before, outcome.err
        return outcome

    return sweep(shim, target, MAKING | READ, BOTH, run)


def older(source: Path) -> bytes:
    """What it may have been before: another second chunk."""
    content = source.read_bytes()
    return content[:MIB] + b"\xee" * MIB + content[2 * MIB :]


def test_a_delta_to_a_file(tmp_path: Path, source: Path, repo: Path, shim: Shim) -> None:
    well = in_place(shim, repo, source, tmp_path / "image", older(source), "--delta", "--force")
    assert well <= MAY_FAIL | {"read"}


@pytest.mark.parametrize("words", [[], ["--delta"], ["--resume"]], ids=["whole", "delta", "resume"])
def test_to_a_device(
    tmp_path: Path, source: Path, repo: Path, shim: Shim, loop: Callable[..., Path], words: list[str]
) -> None:
    before = older(source) + bytes(MIB - SIZE % MIB)
    (tmp_path / "backing").write_bytes(before)
    well = in_place(shim, repo, source, loop(tmp_path / "backing"), before, *words)
    assert well <= MAY_FAIL | {"read"}


@pytest.mark.parametrize("is_whole", [True, False], ids=["tree", "in place"])
def test_files(tmp_path: Path, folder: Path, shim: Shim, is_whole: bool) -> None:
    """Each is whole or as it was; those that are not are told, with the code for some of them."""
    names = ("db/a", "db/b", "log/c")
    sources = {name: image(tmp_path / name.replace("/", "-"), MIB + 512, seed=seed) for seed, name in enumerate(names)}
    repo = tmp_path / "repo"
    commit_files(repo, {f"{folder}/{name}": path for name, path in sources.items()})
    root = Path(f"{folder}/new{folder}") if is_whole else folder

    def run(n: int) -> Outcome:
        shutil.rmtree(folder)
        folder.mkdir()
        if is_whole:
            outcome = restore(shim, repo, "latest", folder / "new")
        else:
            (folder / "db").mkdir()
            (folder / "db/a").write_bytes(b"old")
            outcome = restore(shim, repo, "latest", "--in-place", "--force")
        assert list(folder.rglob(TEMPORARY)) == []
        whole = [name for name in names if (root / name).exists() and (root / name).read_bytes() != b"old"]
        assert all(digest(root / name) == digest(sources[name]) for name in whole)
        assert len(whole) == len(names) or outcome.code in (1, 3)
        assert outcome.code != 3 or whole
        return outcome

    assert sweep(shim, folder, MAKING, BOTH, run, failed=(1, 3)) <= MAY_FAIL | (set() if is_whole else {"open"})


def test_volumes_to_a_directory(tmp_path: Path, folder: Path, source: Path, shim: Shim) -> None:
    """All of them, or those whose names came before the fault."""
    other = image(tmp_path / "other.img", MIB, seed=2)
    repo = tmp_path / "repo"
    backup(str(repo), [str(source), str(other)])

    def run(n: int) -> Outcome:
        shutil.rmtree(folder)
        folder.mkdir()
        outcome = restore(shim, repo, "latest", folder / "new")
        assert list(folder.rglob(TEMPORARY)) == []
        there = list((folder / "new").iterdir()) if (folder / "new").exists() else []
        assert all(digest(path) == digest(tmp_path / path.name) for path in there)
        assert len(there) == 2 or outcome.code == 1
        return outcome

    assert sweep(shim, folder, MAKING, BOTH, run) <= MAY_FAIL


def test_a_salvage(folder: Path, source: Path, repo: Path, shim: Shim) -> None:
    """What is not whole never has the name of what is; its map is of no other one."""
    stored = Stored(repo)
    stored.flip(1)
    left = without(source.read_bytes(), stored.lost([1]))
    target, mapped = folder / "restored.img", folder / "map"

    def run(n: int) -> Outcome:
        for path in folder.iterdir():
            path.unlink()
        outcome = restore(shim, repo, "latest/source.img", target, "--salvage", "--map", mapped)
        damaged = folder / "restored.img.damaged"
        assert {path.name for path in folder.iterdir()} <= {damaged.name, mapped.name}
        assert not damaged.exists() or damaged.read_bytes() == left
        assert outcome.code != 6 or (damaged.exists() and mapped.exists())
        return outcome

    assert sweep(shim, folder, MAKING, BOTH, run, well=6) <= MAY_FAIL
