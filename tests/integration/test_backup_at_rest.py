"""backup, verify and restore of sources at rest: bit for bit; whatever ends a backup early leaves nothing that
looks like one.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import timezero as api
from tests.command import COMMAND, MIB, digest, environment, image, snapshot, succeed, timezero


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    return tmp_path / "repo"


def started(repo: Path, *words: object) -> subprocess.Popen[bytes]:
    """A slow backup, under way."""
    command = [*COMMAND, "backup", "--repo", str(repo), "--rate", "2M", "--json", *map(str, words)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment())
    assert process.stderr
    assert b"progress" in process.stderr.readline()
    return process


@pytest.mark.parametrize("engine", ["uring", "threads"])
@pytest.mark.parametrize("chunk", ["64K", "1M", "4M"])
def test_round_trip(tmp_path: Path, repo: Path, engine: str, chunk: str) -> None:
    names = {"a": 0, "b": 1, "c": 5 * MIB + 4095, "d": 12 * MIB}
    for seed, (name, size) in enumerate(names.items()):
        image(tmp_path / name, size, seed=seed)
    env = {"TIMEZERO_IO": engine, "TIMEZERO_REPO": str(repo)}
    document = succeed("backup", "--chunk-size", chunk, *(tmp_path / name for name in names), env=env)
    assert [dataset["name"] for dataset in document["datasets"]] == list(names)
    assert {dataset["method_used"] for dataset in document["datasets"]} == {"at-rest"}
    assert document["engine"] == engine
    assert succeed("verify", env=env)["intact"]
    restored = succeed("restore", "latest", tmp_path / "out", env=env)
    assert sorted(os.listdir(tmp_path / "out")) == sorted(names)
    assert restored["size"] == sum(names.values())
    for name in names:
        assert digest(tmp_path / "out" / name) == digest(tmp_path / name)
        outcome = timezero("restore", f"{document['id']}/{name}", "-", env=env)
        assert outcome.code == 0, outcome.err
        assert outcome.out == (tmp_path / name).read_bytes()


def test_zeros_and_holes_take_no_space(tmp_path: Path, repo: Path) -> None:
    source = image(tmp_path / "a", 8 * MIB)
    document = succeed("backup", "--repo", repo, source)
    assert document["datasets"][0]["counts"]["chunks_zero"] == 4
    assert sum(pack["bytes"] for pack in document["packs"]) == 4 * MIB
    listed = succeed("list", "--repo", repo)["points"][0]
    assert (listed["size"], listed["stored"]) == (8 * MIB, 4 * MIB)


def test_any_name_can_be_backed_up(tmp_path: Path, repo: Path) -> None:
    source = image(tmp_path / "x", MIB)
    names = ["%41", "ü ö", "a\nb", "..a", "a" * 255, "=", os.fsdecode(b"\xff\xfe")]
    for name in names:
        os.link(source, tmp_path / "x" if name == "x" else tmp_path / name)
        succeed("backup", "--repo", repo, tmp_path / name)
    for point, name in zip(succeed("list", "--repo", repo)["points"], names, strict=True):
        assert point["datasets"] == [name]
        target = tmp_path / "out" / point["id"]
        target.mkdir(parents=True)
        succeed("restore", "--repo", repo, point["id"], target)
        assert len(os.listdir(target)) == 1
    assert timezero("list", "--repo", repo).code == 0
    assert timezero("show", "--repo", repo).code == 0


def test_named_paths(tmp_path: Path, repo: Path) -> None:
    (tmp_path / "one").mkdir()
    first, second = image(tmp_path / "disk", MIB), image(tmp_path / "one" / "disk", MIB, seed=2)
    document = succeed("backup", "--repo", repo, f"first={first}", f"second={second}")
    assert [dataset["source"] for dataset in document["datasets"]] == [str(first), str(second)]
    succeed("restore", "--repo", repo, "latest/second", tmp_path / "out")
    assert digest(tmp_path / "out") == digest(second)


def test_restore_to_a_device(tmp_path: Path, repo: Path, loop: Callable[..., Path]) -> None:
    source = image(tmp_path / "a", 8 * MIB)
    succeed("backup", "--repo", repo, source)
    (tmp_path / "disk").write_bytes(b"\xff" * 8 * MIB)
    device = loop(tmp_path / "disk")
    succeed("restore", "--repo", repo, "latest", device)
    assert digest(tmp_path / "disk") == digest(source)
    (tmp_path / "small").write_bytes(b"\xff" * 7 * MIB)
    small = loop(tmp_path / "small")
    outcome = timezero("restore", "--repo", repo, "latest", small)
    assert (outcome.code, "too small" in outcome.err) == (1, True)
    assert (tmp_path / "small").read_bytes() == b"\xff" * 7 * MIB


def test_restore_to_a_mounted_device(
    tmp_path: Path, repo: Path, loop: Callable[..., Path], mount: Callable[..., Path]
) -> None:
    succeed("backup", "--repo", repo, image(tmp_path / "a", MIB))
    (tmp_path / "disk").touch()
    os.truncate(tmp_path / "disk", 16 * MIB)
    device = loop(tmp_path / "disk")
    subprocess.run(["mkfs.ext4", "-q", device], check=True)
    point = mount(device, tmp_path / "mnt")
    outcome = timezero("restore", "--repo", repo, "latest", device)
    assert (outcome.code, f"mounted on {point}" in outcome.err) == (1, True)
    assert "--force" in outcome.err


def test_damage_of_one_dataset_restores_none_of_a_group(tmp_path: Path, repo: Path) -> None:
    first, second = image(tmp_path / "a", 2 * MIB), image(tmp_path / "b", 2 * MIB, seed=2)
    succeed("backup", "--repo", repo, first, second)
    for pack in (repo / "packs").iterdir():
        content = bytearray(pack.read_bytes())
        at = content.find(second.read_bytes()[MIB : MIB + 64])
        assert at >= 0
        content[at + 5] ^= 1
        pack.write_bytes(content)
    outcome = timezero("restore", "--repo", repo, "latest", tmp_path / "out")
    assert outcome.code == 6
    assert f"b: damaged at byte {MIB}" in outcome.err
    assert not (tmp_path / "out").exists()
    succeed("restore", "--repo", repo, "latest/a", tmp_path / "out")
    assert digest(tmp_path / "out") == digest(first)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(tmp_path: Path, repo: Path, number: signal.Signals) -> None:
    small, large = image(tmp_path / "small", MIB), image(tmp_path / "large", 32 * MIB)
    succeed("backup", "--repo", repo, small)
    before = snapshot(repo)
    process = started(repo, large)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert b"Traceback" not in err
    assert snapshot(repo) == before


def test_killed(tmp_path: Path, repo: Path) -> None:
    small, large = image(tmp_path / "small", MIB), image(tmp_path / "large", 32 * MIB)
    first = succeed("backup", "--repo", repo, small)["id"]
    process = started(repo, large)
    left = [entry.name for entry in (repo / "recovery-points").iterdir() if entry.name != first]
    assert len(left) == 1
    running = succeed("prune", "--repo", repo)
    assert (running["running"], running["swept"]) == (left, [])
    process.kill()
    process.communicate(timeout=30)
    assert (repo / "recovery-points" / left[0]).exists()
    assert [point["id"] for point in succeed("list", "--repo", repo)["points"]] == [first]
    for words in (["restore", left[0], tmp_path / "out"], ["show", left[0]], ["verify", left[0]]):
        outcome = timezero(words[0], "--repo", repo, *words[1:])
        assert (outcome.code, "no recovery point" in outcome.err) == (2, True)
    second = succeed("backup", "--repo", repo, small)["id"]
    report = succeed("prune", "--repo", repo)
    assert (report["swept"], report["kept"]) == (left, [first, second])
    assert succeed("verify", "--repo", repo)["intact"]
    assert len(os.listdir(repo / "packs")) == 2


def test_first_backup_killed_at_any_moment(tmp_path: Path, repo: Path) -> None:
    """From the first system call to the last: what is there afterwards is no repository, an empty one, or one whole
    point.
    """
    source = image(tmp_path / "a", 4 * MIB)
    for delay in (0.05, 0.08, 0.1, 0.12, 0.15, 0.2, 0.3):
        process = subprocess.Popen(
            [*COMMAND, "backup", "--repo", str(repo), str(source)], stdout=subprocess.DEVNULL, env=environment()
        )
        time.sleep(delay)
        process.kill()
        process.wait(30)
    points = succeed("backup", "--repo", repo, source)["id"]
    listed = [point["id"] for point in succeed("list", "--repo", repo)["points"]]
    assert points in listed
    assert succeed("verify", "--repo", repo)["intact"]
    succeed("prune", "--repo", repo, "--keep", 1)
    assert len(os.listdir(repo / "recovery-points")) == len(os.listdir(repo / "packs")) == 1


def test_interrupted_at_any_moment(tmp_path: Path, repo: Path) -> None:
    source = image(tmp_path / "a", 4 * MIB)
    expected = 0
    for step in range(14):
        command = [*COMMAND, "backup", "--repo", str(repo), str(source), "--rate", "32M"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment())
        time.sleep(0.06 + 0.03 * step)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=30)
        # -SIGTERM: it came before Python was up. -SIGINT: while a module was imported that runs a string (dataclasses):
        # `python -m`, not the timezero script, then ends itself by SIGINT, which a shell shows as 130 too.
        assert process.returncode in (0, 130, -signal.SIGTERM, -signal.SIGINT), err
        assert b"Traceback" not in err
        expected += process.returncode == 0
    succeed("backup", "--repo", repo, source)
    points = [point["id"] for point in succeed("list", "--repo", repo)["points"]]
    # One whose interrupt came between its commit and its end is there as well: whole.
    assert len(points) >= expected + 1
    assert succeed("verify", "--repo", repo)["intact"]
    assert sorted(os.listdir(repo / "recovery-points")) == points
    assert len(os.listdir(repo / "packs")) == len(points)


def test_a_part_that_fails_is_recorded(tmp_path: Path, repo: Path) -> None:
    good, bad = image(tmp_path / "good", 4 * MIB), image(tmp_path / "bad", 4 * MIB, seed=2)
    process = started(repo, good, bad)
    with open(bad, "rb+") as file:
        file.write(b"new")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 3, err
    assert b"bad: somebody opened it for writing" in err
    shown = succeed("show", "--repo", repo)
    assert [dataset["name"] for dataset in shown["datasets"]] == ["good"]
    assert [failure["name"] for failure in shown["failed"]] == ["bad"]
    succeed("restore", "--repo", repo, "latest", tmp_path / "out")
    assert digest(tmp_path / "out") == digest(good)
    assert succeed("verify", "--repo", repo)["intact"]


def test_when_all_parts_fail_nothing_is_committed(tmp_path: Path, repo: Path) -> None:
    source = image(tmp_path / "a", 16 * MIB)
    succeed("backup", "--repo", repo, image(tmp_path / "b", MIB))
    before = snapshot(repo)
    process = started(repo, source)
    with open(source, "rb+") as file:
        file.write(b"new")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1, err
    assert snapshot(repo) == before


def test_a_full_repository_commits_nothing(tmp_path: Path, root: None) -> None:
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", place], check=True)
    try:
        succeed("backup", "--repo", place / "repo", image(tmp_path / "a", MIB))
        before = snapshot(place)
        outcome = timezero("backup", "--repo", place / "repo", image(tmp_path / "b", 64 * MIB))
        assert outcome.code == 1
        assert "No space left" in outcome.err
        assert snapshot(place) == before
    finally:
        subprocess.run(["umount", place], check=True)


def test_two_backups_at_once(tmp_path: Path, repo: Path) -> None:
    sources = [image(tmp_path / name, 6 * MIB, seed=seed) for seed, name in enumerate("abc")]
    command = [*COMMAND, "backup", "--repo", str(repo)]
    processes = [
        subprocess.Popen([*command, str(source)], stdout=subprocess.DEVNULL, env=environment()) for source in sources
    ]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    points = succeed("list", "--repo", repo)["points"]
    assert sorted(point["datasets"][0] for point in points) == ["a", "b", "c"]
    for point in points:
        succeed("restore", "--repo", repo, point["id"], tmp_path / point["id"])
        assert digest(tmp_path / point["id"]) == digest(tmp_path / point["datasets"][0])


def test_the_python_api(tmp_path: Path, repo: Path) -> None:
    source = image(tmp_path / "a", 8 * MIB)
    seen: list[api.Progress] = []
    result = api.backup(str(repo), [str(source)], progress=seen.append)
    assert seen[-1].phase == "finishing"
    assert seen[-1].done == seen[-1].total == 8 * MIB
    assert api.Repository(str(repo)).point("latest").id == result.id
    verified = api.verify(str(repo))
    assert (verified.points, verified.damage, verified.bytes_read) == ([result.id], [], 4 * MIB)
    restored = api.restore(str(repo), "latest", str(tmp_path / "out"), dataset="a")
    assert restored.targets == {"a": str(tmp_path / "out")}
    assert digest(tmp_path / "out") == digest(source)
    assert api.copy(str(source), str(tmp_path / "copy")).size == 8 * MIB
    with pytest.raises(api.NoRepositoryError):
        api.verify(str(tmp_path / "nothing"))
    assert set(api.__all__) <= set(dir(api))
    for name in api.__all__:
        assert getattr(api, name) is not None


def test_text_for_people(tmp_path: Path, repo: Path) -> None:
    source = image(tmp_path / "a", 8 * MIB)
    backed_up = timezero("backup", "--repo", repo, source)
    assert b"at-rest" in backed_up.out and b"8.00 MiB" in backed_up.out
    listed = timezero("list", "--repo", repo).out.decode().splitlines()
    assert listed[0].split() == ["ID", "T0", "METHOD", "DATASETS", "SIZE", "STORED", "NAMES"]
    assert listed[1].split()[-1] == "a"
    assert b"1 recovery points, 1 datasets" in timezero("verify", "--repo", repo).out
    assert b"a -> " in timezero("restore", "--repo", repo, "latest", tmp_path / "out").out
    assert b"1 kept" in timezero("prune", "--repo", repo).out


def test_progress_on_a_terminal(tmp_path: Path, repo: Path) -> None:
    import pty

    source = image(tmp_path / "a", 4 * MIB)
    controller, terminal = pty.openpty()
    command = [*COMMAND, "backup", "--repo", str(repo), "--rate", "4M", str(source)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=terminal, env=environment())
    os.close(terminal)
    shown = b""
    try:
        while block := os.read(controller, 4096):
            shown += block
    except OSError:
        pass  # the terminal's other end is closed
    finally:
        os.close(controller)
    assert process.wait(30) == 0
    assert b"[#" in shown and b"of 4.00 MiB" in shown
    assert shown.rstrip().endswith(b"\x1b[K")
