"""Restores onto what is there already: interrupted ones that are gone on with, and deltas."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.command import COMMAND, MIB, digest, environment, image, snapshot, succeed, timezero
from tests.damage import Stored, without
from tests.file_points import commit_files
from timezero._native import mover
from timezero.errors import TimezeroError
from timezero.jobs.copy import copy
from timezero.jobs.newfile import NewFile
from timezero.jobs.restore import restore

SIZE = 48 * MIB + 5000


def interrupted(stored: Stored, target: Path, *options: object, sign: int, blocks: int = 8 * MIB // 512) -> str:
    """A restore that gets a signal when it is on its way; what it said."""
    command = [*COMMAND, "restore", "--repo", stored.repo, "latest", target, "--rate", "16M", *options]
    words = [str(word) for word in command]
    with subprocess.Popen(
        words, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        deadline = time.monotonic() + 30
        begin = blocks_beside(target)
        while blocks_beside(target) < begin + blocks:
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(sign)
        told = process.communicate(timeout=30)[1]
        assert process.returncode == (130 if sign == signal.SIGINT else -sign), told
        return told


def blocks_beside(target: Path) -> int:
    """Of 512 bytes: of the partial file, or of what is written in place."""
    partial = target.with_name(f".timezero-{target.name}.partial")
    for path in (partial, target):
        if path.is_file():
            return path.stat().st_blocks
    return 0


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_restore_is_gone_on_with(
    tmp_path: Path, original: Path, stored: Stored, sign: signal.Signals
) -> None:
    target = tmp_path / "out"
    partial = tmp_path / ".timezero-out.partial"
    told = interrupted(stored, target, "--resume", sign=sign)
    assert not target.exists()
    assert partial.stat().st_blocks * 512 >= 8 * MIB
    if sign == signal.SIGINT:
        assert str(partial) in told
    found = succeed("restore", "--repo", stored.repo, "latest", target, "--resume")
    assert target.read_bytes() == original.read_bytes()
    assert target.stat().st_mode & 0o777 == 0o600
    assert found["kept"] >= 6 * MIB
    assert found["written"] <= SIZE - 6 * MIB
    assert not partial.exists()


def test_volumes_to_a_directory_are_gone_on_with(tmp_path: Path, original: Path) -> None:
    other = image(tmp_path / "other", SIZE, seed=2)
    repo, out = tmp_path / "repo", tmp_path / "out"
    succeed("backup", "--repo", repo, original, other)
    command = [*COMMAND, "restore", "--repo", repo, "latest", out, "--resume", "--rate", "16M"]
    partials = [out / f".timezero-{name}.partial" for name in ("disk", "other")]
    with subprocess.Popen([str(word) for word in command], env=environment(), stderr=subprocess.PIPE) as process:
        while not all(path.exists() and path.stat().st_blocks * 512 > 4 * MIB for path in partials):
            assert process.poll() is None
            time.sleep(0.01)
        process.terminate()
        told = process.communicate(timeout=30)[1].decode()
    assert "and 1 more likewise" in told
    assert sorted(out.iterdir()) == sorted(partials)
    found = succeed("restore", "--repo", repo, "latest", out, "--resume")
    assert found["kept"] > 6 * MIB
    assert snapshot(out) == {name: f"{SIZE} {digest(tmp_path / name)}" for name in ("disk", "other")}


def test_what_is_there_counts_only_when_it_matches(tmp_path: Path, original: Path, stored: Stored) -> None:
    """Whatever happened to the partial file meanwhile: garbage, a hole, a tail, an older dataset."""
    interrupted(stored, tmp_path / "out", "--resume", sign=signal.SIGKILL)
    with (tmp_path / ".timezero-out.partial").open("r+b") as file:
        file.seek(100)
        file.write(b"garbage")
        file.seek(2 * MIB + 17)
        file.write(os.urandom(MIB))
        file.truncate(SIZE + 12345)
    succeed("restore", "--repo", stored.repo, "latest", tmp_path / "out", "--resume")
    assert (tmp_path / "out").read_bytes() == original.read_bytes()


def test_a_resume_with_nothing_there_is_a_restore(tmp_path: Path, original: Path, stored: Stored) -> None:
    found = succeed("restore", "--repo", stored.repo, "latest", tmp_path / "out", "--resume")
    assert digest(tmp_path / "out") == digest(original)
    assert found["kept"] == 0
    refused = timezero("restore", "--repo", stored.repo, "latest", tmp_path / "out", "--resume")
    assert (refused.code, "exists already" in refused.err) == (1, True)


def test_partial_files_of_others_are_left_alone(tmp_path: Path, stored: Stored) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious" * 1000)
    partial = tmp_path / ".timezero-out.partial"
    for make in (lambda: partial.symlink_to(victim), lambda: os.link(victim, partial), lambda: os.mkfifo(partial)):
        make()
        before = snapshot(tmp_path)
        outcome = timezero("restore", "--repo", stored.repo, "latest", tmp_path / "out", "--resume")
        assert outcome.code == 1, outcome.err
        assert snapshot(tmp_path) == before
        partial.unlink()


def test_two_at_once_do_not_write_one_file(tmp_path: Path, stored: Stored) -> None:
    command = [*COMMAND, "restore", "--repo", stored.repo, "latest", tmp_path / "out", "--resume", "--rate", "8M"]
    with subprocess.Popen([str(word) for word in command], env=environment(), stderr=subprocess.DEVNULL) as process:
        while not blocks_beside(tmp_path / "out"):
            assert process.poll() is None
            time.sleep(0.01)
        other = timezero("restore", "--repo", stored.repo, "latest", tmp_path / "out", "--resume")
        assert (other.code, "another timezero" in other.err) == (11, True)
        process.terminate()


def test_a_failure_before_the_first_byte_leaves_nothing(tmp_path: Path, stored: Stored) -> None:
    stored.place(stored.stored[0])[0].unlink()
    before = snapshot(tmp_path)
    assert timezero("restore", "--repo", stored.repo, "latest", tmp_path / "out", "--resume").code == 6
    assert snapshot(tmp_path) == before


def change(path: Path, offsets: list[int]) -> None:
    with path.open("r+b") as file:
        for offset in offsets:
            file.seek(offset)
            byte = file.read(1)[0]
            file.seek(offset)
            file.write(bytes([byte ^ 0x5A]))


def test_a_delta_writes_what_differs_in_a_file(tmp_path: Path, original: Path, stored: Stored) -> None:
    target = tmp_path / "target"
    succeed("restore", "--repo", stored.repo, "latest", target)
    zero = next(n for n in range(SIZE // MIB) if n not in stored.stored)
    change(target, [stored.stored[1] * MIB + 3, zero * MIB, SIZE - 1])
    inode = target.stat().st_ino
    assert timezero("restore", "--repo", stored.repo, "latest", target, "--delta").code == 1  # it is there: --force
    found = succeed("restore", "--repo", stored.repo, "latest", target, "--delta", "--force")
    assert target.read_bytes() == original.read_bytes()
    assert target.stat().st_ino == inode
    assert found["written"] == MIB + SIZE % MIB
    assert found["kept"] == SIZE - 2 * MIB - SIZE % MIB
    again = succeed("restore", "--repo", stored.repo, "latest", target, "--delta", "--force")
    assert (again["written"], again["kept"]) == (0, SIZE)


@pytest.mark.parametrize("size", [0, MIB + 1, SIZE - 1, SIZE + 100 * MIB + 1])
def test_a_delta_over_another_size(tmp_path: Path, original: Path, stored: Stored, size: int) -> None:
    target = tmp_path / "target"
    target.write_bytes((original.read_bytes() + os.urandom(SIZE))[:size])
    with target.open("r+b") as file:
        file.truncate(size)
    succeed("restore", "--repo", stored.repo, "latest", target, "--delta", "--force")
    assert target.read_bytes() == original.read_bytes()


def test_a_delta_over_a_device(tmp_path: Path, original: Path, stored: Stored, loop: Callable[..., Path]) -> None:
    backing = tmp_path / "backing"
    backing.write_bytes(b"\xee" * (SIZE // 4096 + 9) * 4096)
    device = loop(backing)
    first = succeed("restore", "--repo", stored.repo, "latest", device, "--delta")
    assert first["kept"] == 0
    with device.open("rb") as file:
        assert file.read(SIZE) == original.read_bytes()
        assert set(file.read()) == {0xEE}
    change(device, [5 * MIB])
    found = succeed("restore", "--repo", stored.repo, "latest", device, "--delta")
    assert found["kept"] == SIZE - MIB
    with device.open("rb") as file:
        assert file.read(SIZE) == original.read_bytes()


@pytest.mark.parametrize("options", [["--delta", "--force"], ["--resume"]])
def test_an_interrupted_one_in_place_is_a_mixture(
    tmp_path: Path, original: Path, stored: Stored, loop: Callable[..., Path], options: list[str]
) -> None:
    backing = tmp_path / "backing"
    backing.write_bytes(b"\xee" * (SIZE // 4096 + 1) * 4096)
    target = loop(backing) if options == ["--resume"] else backing
    told = _interrupt_soon(stored, target, *options)
    assert f"{target} now holds a mixture" in told
    with target.open("rb") as file:
        assert file.read(MIB) == bytes(MIB)
    found = succeed("restore", "--repo", stored.repo, "latest", target, *options)
    assert found["kept"] > 2 * MIB
    with target.open("rb") as file:
        assert file.read(SIZE) == original.read_bytes()


def _interrupt_soon(stored: Stored, target: Path, *options: str) -> str:
    command = [*COMMAND, "restore", "--repo", stored.repo, "latest", target, "--rate", "16M", *options]
    words = [str(word) for word in command]
    with subprocess.Popen(words, env=environment(), stderr=subprocess.PIPE, text=True) as process:
        time.sleep(1.5)
        process.send_signal(signal.SIGINT)
        told = process.communicate(timeout=30)[1]
        assert process.returncode == 130, told
        return told


def test_a_delta_heals_what_the_repository_has_lost(tmp_path: Path, original: Path, stored: Stored) -> None:
    """A copy that is sound where the packs are not stays sound, and a salvage leaves alone what it cannot know."""
    target = tmp_path / "target"
    succeed("restore", "--repo", stored.repo, "latest", target)
    for number in (stored.stored[2], stored.stored[7]):
        stored.flip(number)
    found = succeed("restore", "--repo", stored.repo, "latest", target, "--delta", "--force", "--salvage")
    assert (found["written"], found["losses"]) == (0, [])
    change(target, [stored.stored[2] * MIB])
    outcome = timezero("restore", "--repo", stored.repo, "latest", target, "--delta", "--force", "--salvage", "--json")
    assert outcome.code == 6
    assert outcome.document["result"]["losses"][0]["lost"] == stored.lost([stored.stored[2]])
    assert outcome.document["result"]["targets"] == {"disk": str(target)}
    assert "left as it was" in outcome.err
    changed = bytearray(original.read_bytes())
    changed[stored.stored[2] * MIB] ^= 0x5A
    assert target.read_bytes() == changed


def test_a_salvage_is_completed_when_the_pack_is_back(tmp_path: Path, original: Path, stored: Stored) -> None:
    number = stored.stored[2]
    stored.flip(number)
    assert timezero("restore", "--repo", stored.repo, "latest", tmp_path / "out", "--salvage", "--resume").code == 6
    damaged = tmp_path / "out.damaged"
    assert damaged.read_bytes() == without(original.read_bytes(), stored.lost([number]))
    stored.flip(number)
    found: Any = succeed("restore", "--repo", stored.repo, "latest", damaged, "--delta", "--force")
    assert found["written"] == MIB
    assert damaged.read_bytes() == original.read_bytes()


def test_what_makes_no_sense_is_refused(tmp_path: Path, stored: Stored) -> None:
    before = snapshot(tmp_path)
    for options in (
        [tmp_path / "out", "--delta", "--resume"],
        [tmp_path / "out", "--map", tmp_path / "map"],
        ["-", "--resume"],
        ["-", "--delta"],
    ):
        outcome = timezero("restore", "--repo", stored.repo, "latest", *options)
        assert outcome.code == 2, outcome.err
    assert snapshot(tmp_path) == before


def test_files_in_trees_are_whole_or_not_there(tmp_path: Path, original: Path) -> None:
    commit_files(tmp_path / "files", {"/srv/disk": original})
    (tmp_path / "tree").mkdir()
    for option in (["--delta"], ["--resume"], ["--salvage", "--map", tmp_path / "map"]):
        outcome = timezero("restore", "--repo", tmp_path / "files", "latest", tmp_path / "tree", *option)
        assert (outcome.code, "as a whole or not at all" in outcome.err) == (2, True)
    assert not list((tmp_path / "tree").iterdir())


def test_a_delta_that_cannot_begin_changes_nothing(tmp_path: Path, stored: Stored) -> None:
    """Damage in the one chunk that differs: nothing was written, so nothing is blanked, and the length is as it was."""
    target = tmp_path / "target"
    succeed("restore", "--repo", stored.repo, "latest", target)
    change(target, [stored.stored[2] * MIB])
    os.truncate(target, SIZE + 100)
    stored.flip(stored.stored[2])
    before = snapshot(tmp_path)
    outcome = timezero("restore", "--repo", stored.repo, "latest", target, "--delta", "--force")
    assert outcome.code == 6
    assert "mixture" not in outcome.err
    assert snapshot(tmp_path) == before


def test_a_delta_that_meets_damage_says_what_goes_on(tmp_path: Path, original: Path, stored: Stored) -> None:
    target = tmp_path / "target"
    succeed("restore", "--repo", stored.repo, "latest", target)
    change(target, [stored.stored[0] * MIB, stored.stored[-1] * MIB])
    stored.flip(stored.stored[-1])
    outcome = timezero("restore", "--repo", stored.repo, "latest", target, "--delta", "--force")
    assert outcome.code == 6
    assert "blanked at both ends: --salvage goes on from here" in outcome.err
    assert target.read_bytes()[:MIB] == bytes(MIB)


@pytest.mark.parametrize("job", ["restore", "delta", "copy"])
def test_a_mover_that_does_not_start_has_changed_nothing(
    tmp_path: Path,
    original: Path,
    stored: Stored,
    loop: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    job: str,
) -> None:
    class Idle(mover.Mover):
        def start(self) -> None:
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    backing = tmp_path / "backing"
    backing.write_bytes(b"\xee" * (SIZE // 4096 + 1) * 4096)
    target = str(backing) if job == "delta" else str(loop(backing))
    monkeypatch.setattr(mover, "Mover", Idle)
    with pytest.raises(TimezeroError, match="cannot start") as caught:
        if job == "copy":
            copy(str(original), target)
        else:
            restore(str(stored.repo), "latest", target, delta=job == "delta", force=job == "delta")
    assert "mixture" not in str(caught.value)
    monkeypatch.undo()
    os.sync()
    assert set(backing.read_bytes()) == {0xEE}
    assert backing.stat().st_size == (SIZE // 4096 + 1) * 4096


def test_an_interrupted_last_step_is_gone_on_with(tmp_path: Path, root: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file has its owner already when it is about to get its name."""
    file = image(tmp_path / "file", 3 * MIB)
    os.chown(file, 12345, 54321)
    commit_files(tmp_path / "files", {"/srv/file": file})

    def interrupt(self: NewFile, **how: bool) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(NewFile, "publish", interrupt)
        restore(str(tmp_path / "files"), "latest", str(tmp_path / "out"), dataset="data:/srv/file", resume=True)
    assert (tmp_path / ".timezero-out.partial").stat().st_uid == 12345
    again = restore(str(tmp_path / "files"), "latest", str(tmp_path / "out"), dataset="data:/srv/file", resume=True)
    assert again.written == 0
    assert (tmp_path / "out").read_bytes() == file.read_bytes()
    assert (tmp_path / "out").stat().st_uid == 12345
