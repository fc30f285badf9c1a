"""copy of sources that no one serves: bit for bit, and never of a source that changes."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import timezero as api
from tests.command import COMMAND, MIB, digest, environment, image, snapshot, succeed, timezero


@pytest.mark.parametrize("engine", ["uring", "threads"])
@pytest.mark.parametrize("size", [0, 1, 4095, 4096, MIB, MIB + 1, 9 * MIB + 512])
def test_files(tmp_path: Path, size: int, engine: str) -> None:
    source = image(tmp_path / "source", size)
    document = succeed("copy", source, tmp_path / "target", env={"TIMEZERO_IO": engine})
    assert digest(tmp_path / "target") == digest(source)
    assert (tmp_path / "target").stat().st_size == size
    assert stat.S_IMODE((tmp_path / "target").stat().st_mode) == 0o600
    assert document["engine"] == engine
    assert document["method"] == "at-rest"
    assert document["counts"]["chunks"] == -(-size // MIB)
    assert sorted(os.listdir(tmp_path)) == ["source", "target"]


def test_to_standard_output(tmp_path: Path) -> None:
    source = image(tmp_path / "source", 5 * MIB + 3)
    outcome = timezero("copy", source, "-", "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.out == source.read_bytes()
    assert '"method": "at-rest"' in outcome.err


def test_standard_output_that_goes_away(tmp_path: Path) -> None:
    source = image(tmp_path / "source", 64 * MIB)
    with subprocess.Popen([*COMMAND, "copy", source, "-"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout and process.stderr
        process.stdout.read(10)
        process.stdout.close()
        assert process.wait(30) == 1
        assert b"Broken pipe" in process.stderr.read()


def test_force_replaces_a_file_and_keeps_its_mode(tmp_path: Path) -> None:
    source, target = image(tmp_path / "source", MIB), tmp_path / "target"
    target.write_text("old")
    target.chmod(0o640)
    link = tmp_path / "link"
    link.symlink_to("target")
    succeed("copy", source, link, "--force")
    assert link.is_symlink()
    assert digest(target) == digest(source)
    assert stat.S_IMODE(target.stat().st_mode) == 0o640


def test_sparse_stays_sparse(tmp_path: Path) -> None:
    source = tmp_path / "source"
    with open(source, "wb") as file:
        file.truncate(256 * MIB)
        file.seek(100 * MIB)
        file.write(b"data")
    document = succeed("copy", source, tmp_path / "target")
    assert digest(tmp_path / "target") == digest(source)
    assert (tmp_path / "target").stat().st_blocks * 512 <= 2 * MIB
    assert document["counts"]["chunks_zero"] == 255


def test_a_file_that_is_open_for_writing(tmp_path: Path) -> None:
    source = image(tmp_path / "source", MIB)
    with open(source, "rb+"):
        before = snapshot(tmp_path)
        outcome = timezero("copy", source, tmp_path / "target")
        assert outcome.code == 1
        assert "open for writing" in outcome.err and "--fuzzy" in outcome.err
        assert snapshot(tmp_path) == before
        document = succeed("copy", source, tmp_path / "target", "--fuzzy")
    assert document["method"] == "fuzzy"
    assert document["doubts"] == ["somebody has it open for writing"]
    assert digest(tmp_path / "target") == digest(source)
    assert succeed("copy", source, tmp_path / "again", "--fuzzy")["method"] == "at-rest"


def slow_copy(source: Path, target: object, *words: str) -> subprocess.Popen[bytes]:
    """A copy that takes a long time, started and under way."""
    command = [*COMMAND, "copy", str(source), str(target), "--rate", "1M", "--json", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment())
    assert process.stderr
    assert b"progress" in process.stderr.readline()
    return process


def finish(process: subprocess.Popen[bytes]) -> tuple[int, bytes]:
    _, err = process.communicate(timeout=30)
    return process.returncode, err


def test_a_writer_that_comes_ends_the_copy_and_hardly_waits(tmp_path: Path) -> None:
    source = image(tmp_path / "source", 32 * MIB)
    process = slow_copy(source, tmp_path / "target")
    begin = time.monotonic()
    with open(source, "rb+") as file:
        waited = time.monotonic() - begin
        file.write(b"new")
    code, err = finish(process)
    assert code == 1
    assert b"opened it for writing" in err
    assert waited < 20  # the kernel would let it wait for 45 s
    assert os.listdir(tmp_path) == ["source"]


def test_a_writer_that_comes_makes_a_fuzzy_copy_fuzzy(tmp_path: Path) -> None:
    source = image(tmp_path / "source", 4 * MIB)
    process = slow_copy(source, tmp_path / "target", "--fuzzy")
    with open(source, "rb+") as file:
        file.write(b"new")
    code, err = finish(process)
    assert code == 0, err
    assert b"fuzzy: somebody opened it for writing" in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupted(tmp_path: Path, number: signal.Signals) -> None:
    source = image(tmp_path / "source", 32 * MIB)
    (tmp_path / "target").write_text("old")
    process = slow_copy(source, tmp_path / "target", "--force")
    process.send_signal(number)
    process.send_signal(number)
    code, err = finish(process)
    assert code == 130
    assert b"interrupted" in err and b"Traceback" not in err
    assert sorted(os.listdir(tmp_path)) == ["source", "target"]
    assert (tmp_path / "target").read_text() == "old"


def test_killed(tmp_path: Path) -> None:
    source = image(tmp_path / "source", 32 * MIB)
    process = slow_copy(source, tmp_path / "target")
    process.kill()
    finish(process)
    assert os.listdir(tmp_path) == ["source"]


@pytest.mark.parametrize("force", [False, True])
def test_file_systems_without_nameless_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, force: bool) -> None:
    real = os.open

    def refuse(path: str, flags: int, *rest: object, **more: object) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")
        return real(path, flags, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", refuse)
    source, target = image(tmp_path / "source", 3 * MIB), tmp_path / "target"
    if force:
        target.write_text("old")
    api.copy(str(source), str(target), force=force)
    assert digest(target) == digest(source)
    assert sorted(os.listdir(tmp_path)) == ["source", "target"]

    def interrupt(progress: api.Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        api.copy(str(source), str(tmp_path / "other"), progress=interrupt)
    assert sorted(os.listdir(tmp_path)) == ["source", "target"]


def test_devices(tmp_path: Path, loop: Callable[..., Path]) -> None:
    source = loop(image(tmp_path / "source", 8 * MIB))
    (tmp_path / "target").write_bytes(b"\xff" * (9 * MIB))
    target = loop(tmp_path / "target")
    document = succeed("copy", source, target)
    assert document["size"] == 8 * MIB
    assert (tmp_path / "target").read_bytes() == (tmp_path / "source").read_bytes() + b"\xff" * MIB
    for words, code, message in (
        ([target, source], 1, "too small"),
        ([source, source], 2, "same as the source"),
        ([source, tmp_path / "source", "--force"], 2, "stands on"),
        ([tmp_path / "source", source, "--fuzzy"], 2, "stands on"),
    ):
        before = snapshot(tmp_path)
        outcome = timezero("copy", *words)
        assert (outcome.code, message in outcome.err) == (code, True), outcome.err
        assert snapshot(tmp_path) == before


def test_a_device_that_fails_does_not_look_whole(tmp_path: Path, loop: Callable[..., Path]) -> None:
    source = image(tmp_path / "source", 32 * MIB)
    (tmp_path / "target").write_bytes(b"\xff" * (33 * MIB))
    target = loop(tmp_path / "target")
    process = slow_copy(source, target)
    process.send_signal(signal.SIGINT)
    assert finish(process)[0] == 130
    content = (tmp_path / "target").read_bytes()
    assert content[:MIB] == bytes(MIB)
    assert content[31 * MIB : 32 * MIB] == bytes(MIB)
    assert content[32 * MIB :] == b"\xff" * MIB


def test_mounted_devices(tmp_path: Path, loop: Callable[..., Path], mount: Callable[..., Path]) -> None:
    small = image(tmp_path / "small", MIB)
    (tmp_path / "disk").touch()
    os.truncate(tmp_path / "disk", 64 * MIB)
    device = loop(tmp_path / "disk")
    subprocess.run(["mkfs.ext4", "-q", device], check=True)
    point = mount(device, tmp_path / "mnt")
    (point / "file").write_text("here")
    os.sync()
    for words, code, message in (
        (["copy", small, device], 1, f"mounted on {point}"),
        (["copy", device, tmp_path / "copy"], 1, f"mounted on {point}"),
        (["copy", device, point / "copy", "--fuzzy"], 2, "stands on"),
        (["copy", point / "file", device, "--force"], 2, "stands on"),
        (["backup", "--repo", point / "repo", device, "--fuzzy"], 2, "stands on"),
    ):
        outcome = timezero(*words)
        assert (outcome.code, message in outcome.err) == (code, True), outcome.err
    assert sorted(os.listdir(point)) == ["file", "lost+found"]
    document = succeed("copy", device, tmp_path / "copy", "--fuzzy")
    assert document["method"] == "fuzzy"
    subprocess.run(["mount", "-o", "remount,ro", point], check=True)
    assert succeed("copy", device, tmp_path / "copy", "--force")["method"] == "at-rest"
    assert digest(tmp_path / "copy") == digest(device)


def test_a_device_that_is_written_meanwhile(tmp_path: Path, loop: Callable[..., Path]) -> None:
    device = loop(image(tmp_path / "source", 4 * MIB))
    process = slow_copy(device, tmp_path / "target")
    with open(device, "rb+") as file:
        file.seek(3 * MIB)
        file.write(b"x" * 4096)
        file.flush()
        os.fsync(file.fileno())
    code, err = finish(process)
    assert code == 1
    assert b"changed while it was read" in err
    assert not (tmp_path / "target").exists()


def test_unreadable_content(tmp_path: Path, loop: Callable[..., Path], stack: object) -> None:
    """A source smaller than it claims: the device says 8 MiB, the file under it is cut to 4."""
    source = image(tmp_path / "source", 8 * MIB)
    device = loop(source)
    os.truncate(source, 4 * MIB)
    outcome = timezero("copy", device, tmp_path / "target")
    assert outcome.code == 1
    assert "cannot be read at byte" in outcome.err
    assert not (tmp_path / "target").exists()
