"""Each call that a job makes on its target fails, one after the other: no run may leave anything that looks whole and
is not, nor anything at all that it could have removed.

A run whose n-th call fails ends with an exit code other than 0 and one line; or, where the call was one that may fail,
with a result that is right. Restores, of which there are many ways: test_every_call_of_restore.py.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from proof.shim import MAKING, UNLINK, Shim
from tests.command import Outcome, digest, image, timezero
from tests.faults.sweep import MAY_FAIL, TEMPORARY, THREADS, sweep
from timezero.jobs.backup import backup
from timezero.jobs.restore import restore
from timezero.repository import Repository

MIB = 1 << 20
BOTH = (errno.EIO, errno.ENOSPC)

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return image(tmp_path / "source.img", 3 * MIB + 512)


@pytest.fixture
def shim(shims: Callable[[str], Shim]) -> Shim:
    return shims("job")


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC], ids=["EIO", "ENOSPC"])
def test_backup(tmp_path: Path, source: Path, shim: Shim, error: int) -> None:
    """To a repository that has to be made."""

    def run(n: int) -> Outcome:
        repo = tmp_path / f"repo{n}"
        outcome = timezero("backup", "--repo", repo, source, env=shim.environment | THREADS)
        names = [path.name for path in repo.rglob("*")] if repo.exists() else []
        if outcome.code:
            assert not [name for name in names if name.endswith((".json", ".idx", ".pack", ".tmp"))
                        and name != "repository.json"], names  # fmt: skip
        result = backup(str(repo), [str(source)])
        ids = Repository(str(repo)).ids()
        assert ids == [result.id] if outcome.code else ids[1:] == [result.id]
        for point in ids:
            restore(str(repo), point, str(tmp_path / "restored.img"), dataset=source.name, force=True)
            assert digest(tmp_path / "restored.img") == digest(source)
        assert Repository(str(repo)).prune().swept == []
        return outcome

    assert sweep(shim, tmp_path / "repo", MAKING, [error], run) <= MAY_FAIL


def test_backup_whose_leavings_cannot_be_removed(tmp_path: Path, source: Path, shim: Shim) -> None:
    """Every removal fails as well: what stays is not listed, and prune sweeps it."""
    repo = tmp_path / "repo"
    backup(str(repo), [str(source)])

    def run(n: int) -> Outcome:
        before = Repository(str(repo)).ids()
        shim.rule(1, UNLINK if n else 0, repo, error=errno.EIO, per_million=1_000_000)
        outcome = timezero("backup", "--repo", repo, source, env=shim.environment | THREADS)
        for point in Repository(str(repo)).ids():
            restore(str(repo), point, str(tmp_path / "restored.img"), dataset=source.name, force=True)
            assert digest(tmp_path / "restored.img") == digest(source)
        shim.rule(1, 0, repo)
        new = set(Repository(str(repo)).ids()) - set(before)
        Repository(str(repo)).prune(points=tuple(new))
        assert Repository(str(repo)).directories() == before
        assert len(list((repo / "packs").iterdir())) == len(before)
        return outcome

    assert sweep(shim, repo, MAKING, [errno.EIO], run) <= MAY_FAIL


@pytest.mark.parametrize("replace", [False, True], ids=["new", "replaced"])
def test_copy(tmp_path: Path, source: Path, shim: Shim, replace: bool) -> None:
    folder = tmp_path / "target"
    folder.mkdir()

    def run(n: int) -> Outcome:
        target = folder / "copy.img"
        target.unlink(missing_ok=True)
        if replace:
            target.write_bytes(b"old")
        words = ["copy", source, target, *(["--force"] if replace else [])]
        outcome = timezero(*words, env=shim.environment | THREADS)
        assert list(folder.glob(TEMPORARY)) == []
        if outcome.code == 0 or (target.exists() and target.read_bytes() != b"old"):
            assert digest(target) == digest(source)
        if outcome.code and target.exists() and target.read_bytes() != b"old":
            assert "is there" in outcome.err, outcome.err  # it says that the name is there, perhaps not durably
        return outcome

    well = sweep(shim, folder, MAKING, BOTH, run)
    # Where what a killed one left cannot be opened, another temporary name is taken.
    assert well <= MAY_FAIL | ({"open"} if replace else set())


def test_prune(tmp_path: Path, source: Path, shim: Shim) -> None:
    """What is to stay stays and is whole, whatever fails; the next prune does the rest."""
    repo = tmp_path / "repo"

    def run(n: int) -> Outcome:
        while len(ids := Repository(str(repo)).ids() if repo.exists() else []) < 2:
            backup(str(repo), [str(source)])
        outcome = timezero("prune", "--repo", repo, "--keep", 1, env=shim.environment)
        kept = Repository(str(repo)).ids()
        assert ids[-1] in kept
        restore(str(repo), ids[-1], str(tmp_path / "restored.img"), dataset=source.name, force=True)
        assert digest(tmp_path / "restored.img") == digest(source)
        Repository(str(repo)).prune(keep=1)
        assert Repository(str(repo)).directories() == ids[-1:]
        assert len(list((repo / "packs").iterdir())) == 1
        return outcome

    assert sweep(shim, repo, MAKING | UNLINK, BOTH, run) == set()
