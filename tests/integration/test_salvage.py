"""Damage of every kind in a repository: what is told of it, and what is restored all the same."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from proof.shim import READ, Shim
from tests.command import COMMAND, MIB, environment, image, snapshot, succeed, timezero
from tests.damage import Stored, flip, without
from tests.file_points import commit_files

SIZE = 24 * MIB + 5000


def verified(stored: Stored, *options: object) -> dict[str, object]:
    outcome = timezero("verify", "--repo", stored.repo, "--json", *options)
    assert outcome.code == 6, outcome.err
    found: dict[str, object] = outcome.document
    return found


def salvaged(stored: Stored, target: object, *options: object) -> dict[str, object]:
    outcome = timezero("restore", "--repo", stored.repo, "latest", target, "--salvage", "--json", *options)
    assert outcome.code == 6, outcome.err
    assert outcome.document["exit_code"] == 6
    result: dict[str, object] = outcome.document["result"]
    return result


def test_flipped_bits_are_listed_chunk_by_chunk(stored: Stored) -> None:
    numbers = [stored.stored[0], stored.stored[5], stored.stored[-1]]
    for number in numbers:
        stored.flip(number, at=77)
    found = verified(stored)
    damage = found["damage"]
    assert isinstance(damage, list)
    assert [(each["dataset"], each["offset"]) for each in damage] == [("disk", n * stored.chunk) for n in numbers]
    for each, number in zip(damage, numbers, strict=True):
        path, offset = stored.place(number)
        assert (each["pack"], each["pack_offset"]) == (path.name, offset)
        assert each["length"] == min(stored.chunk, SIZE - number * stored.chunk)
        assert "does not match its digest" in each["problem"]
    lost = stored.lost(numbers)
    (loss,) = found["losses"]  # type: ignore[misc]
    assert (loss["lost"], loss["chunks"]) == (lost, 3)
    assert loss["restorable"] == SIZE - sum(each["length"] for each in lost)


def test_people_are_told_of_much_damage_in_few_lines(tmp_path: Path, original: Path) -> None:
    succeed("backup", "--repo", tmp_path / "repo", original, "--chunk-size", "64K")
    stored = Stored(tmp_path / "repo")
    for number in stored.stored:
        stored.flip(number)
    outcome = timezero("verify", "--repo", stored.repo)
    assert outcome.code == 6
    assert len(outcome.err.splitlines()) < 30
    assert f"DAMAGED in {len(stored.stored)} places" in outcome.out.decode()
    assert f"{len(stored.stored) - 20} more places are damaged" in outcome.err
    assert len(verified(stored)["damage"]) == len(stored.stored)  # type: ignore[arg-type]


def test_without_salvage_nothing_gets_the_name(tmp_path: Path, stored: Stored) -> None:
    stored.flip(stored.stored[3])
    before = snapshot(tmp_path)
    for target in ("out", tmp_path / "there"):
        outcome = timezero("restore", "--repo", stored.repo, "latest", tmp_path / target)
        assert outcome.code == 6
        assert "--salvage" in outcome.err
    assert snapshot(tmp_path) == before


def test_what_is_sound_is_salvaged_under_another_name(tmp_path: Path, original: Path, stored: Stored) -> None:
    numbers = [stored.stored[1], stored.stored[-1]]
    for number in numbers:
        stored.flip(number)
    lost = stored.lost(numbers)
    result = salvaged(stored, tmp_path / "out", "--map", tmp_path / "map")
    assert result["targets"] == {"disk": str(tmp_path / "out.damaged")}
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "out.damaged").read_bytes() == without(original.read_bytes(), lost)
    assert result["losses"][0]["lost"] == lost  # type: ignore[index]
    marks = [line.split() for line in (tmp_path / "map").read_text().splitlines() if not line.startswith("#")][1:]
    assert [(int(m[0], 16), int(m[1], 16)) for m in marks if m[2] == "-"] == [
        (each["offset"], each["length"]) for each in lost
    ]
    assert sum(int(m[1], 16) for m in marks) == SIZE
    # It is not overwritten, and neither is the map.
    again = timezero("restore", "--repo", stored.repo, "latest", tmp_path / "out", "--salvage")
    assert (again.code, "out.damaged: exists already" in again.err) == (1, True)


def test_what_is_whole_has_its_name_and_no_complaint(tmp_path: Path, original: Path, stored: Stored) -> None:
    found = succeed("restore", "--repo", stored.repo, "latest", tmp_path / "out", "--salvage")
    assert found["losses"] == []
    assert (tmp_path / "out").read_bytes() == original.read_bytes()


@pytest.mark.parametrize("kind", ["truncated", "missing"])
def test_packs(tmp_path: Path, original: Path, stored: Stored, kind: str) -> None:
    last = max(stored.stored, key=lambda number: stored.place(number)[1])
    path, offset = stored.place(last)
    if kind == "truncated":
        os.truncate(path, offset + 100)
        numbers = [last]
    else:
        path.unlink()
        numbers = stored.stored
    found = verified(stored)
    damage = found["damage"]
    assert isinstance(damage, list)
    assert damage[0]["dataset"] is None
    assert path.name in damage[0]["problem"]
    assert [each["offset"] for each in damage[1:]] == [number * stored.chunk for number in numbers]
    word = {"truncated": "ends before it", "missing": "is missing"}[kind]
    assert all(word in each["problem"] for each in damage[1:])
    assert timezero("restore", "--repo", stored.repo, "latest", tmp_path / "out").code == 6
    salvaged(stored, tmp_path / "out")
    lost = [{"offset": n * stored.chunk, "length": min(stored.chunk, SIZE - n * stored.chunk)} for n in numbers]
    assert (tmp_path / "out.damaged").read_bytes() == without(original.read_bytes(), lost)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["digest of a chunk", "impossible", "place", "truncated", "header"])
def test_a_damaged_index(tmp_path: Path, original: Path, stored: Stored, kind: str) -> None:
    number, other = stored.stored[2], stored.stored[4]
    at = 64 + 48 * number
    lost = [number]
    content = bytearray(stored.index.read_bytes())
    if kind == "digest of a chunk":
        content[at + 30] ^= 1
    elif kind == "impossible":
        content[at + 16] = 9
    elif kind == "place":  # the entry of another chunk: all of it fits, but it belongs elsewhere
        content[at : at + 48] = content[64 + 48 * other : 64 + 48 * other + 48]
        lost = [number, other]
    elif kind == "truncated":
        del content[-48:]
        lost = [stored.record.header.chunks - 1]
    else:
        content[3] ^= 1
        lost = []
    stored.index.write_bytes(content)
    found = verified(stored)
    (loss,) = found["losses"]  # type: ignore[misc]
    assert "altered or truncated" in loss["index_problem"]
    assert loss["lost"] == stored.lost(lost)
    assert timezero("restore", "--repo", stored.repo, "latest", tmp_path / "out").code == 6
    result = salvaged(stored, tmp_path / "out")
    assert result["targets"] == {"disk": str(tmp_path / "out.damaged")}
    assert (tmp_path / "out.damaged").read_bytes() == without(original.read_bytes(), stored.lost(lost))


def test_a_missing_index_leaves_nothing(tmp_path: Path, stored: Stored) -> None:
    stored.index.unlink()
    (loss,) = verified(stored)["losses"]  # type: ignore[misc]
    assert loss["restorable"] == 0
    outcome = timezero("restore", "--repo", stored.repo, "latest", tmp_path / "out", "--salvage")
    assert (outcome.code, "nothing can be salvaged" in outcome.err) == (6, True)
    assert not list(tmp_path.glob("out*"))


def test_a_stream_goes_on_over_damage(original: Path, stored: Stored) -> None:
    stored.flip(stored.stored[1])
    outcome = timezero("restore", "--repo", stored.repo, "latest", "-", "--salvage")
    assert outcome.code == 6
    assert outcome.out == without(original.read_bytes(), stored.lost([stored.stored[1]]))
    assert f"bytes {stored.stored[1] * stored.chunk} to" in outcome.err


def test_files_in_place_stay_beside_what_was_salvaged(tmp_path: Path) -> None:
    place = tmp_path / "srv"
    place.mkdir()
    for name in ("a", "b", "c"):
        (place / name).write_bytes(os.urandom(3 * MIB))
    before = {name: (place / name).read_bytes() for name in ("a", "b", "c")}
    point = commit_files(tmp_path / "repo", {str(place / name): place / name for name in before})
    flip(next((tmp_path / "repo/packs").iterdir()), 4 * MIB)
    for name in before:
        (place / name).write_bytes(b"newer")
    outcome = timezero("restore", "--repo", tmp_path / "repo", point, "--in-place", "--force", "--salvage", "--json")
    assert outcome.code == 6
    targets = outcome.document["result"]["targets"]
    (damaged,) = [path for path in targets.values() if path.endswith(".damaged")]
    name = Path(damaged).name.removesuffix(".damaged")
    assert (place / name).read_bytes() == b"newer"
    (loss,) = outcome.document["result"]["losses"]
    assert (place / f"{name}.damaged").read_bytes() == without(before[name], loss["lost"])
    for other in before.keys() - {name}:
        assert (place / other).read_bytes() == before[other]
        assert not (place / f"{other}.damaged").exists()


def test_a_device_that_fails_is_called_a_mixture(
    tmp_path: Path, original: Path, stored: Stored, loop: Callable[..., Path]
) -> None:
    backing = tmp_path / "backing"
    backing.write_bytes(b"\xee" * (SIZE // 4096 + 1) * 4096)
    device = loop(backing)
    stored.flip(stored.stored[-1])
    outcome = timezero("restore", "--repo", stored.repo, "latest", device)
    assert outcome.code == 6
    assert "now holds a mixture" in outcome.err
    with device.open("rb") as file:
        assert file.read(MIB) == bytes(MIB)
    result = salvaged(stored, device)
    assert result["targets"] == {"disk": str(device)}
    with device.open("rb") as file:
        assert file.read(SIZE) == without(original.read_bytes(), stored.lost([stored.stored[-1]]))


def test_verify_looks_at_the_disk_and_not_at_the_cache(
    tmp_path: Path, original: Path, loop: Callable[..., Path], mount: Callable[..., Path]
) -> None:
    """Pages in the cache are sound while the device below them is not: damage of packs and of indexes is noticed."""
    backing = tmp_path / "backing"
    with backing.open("wb") as file:
        file.truncate(128 * MIB)
    subprocess.run(["mkfs.ext4", "-q", backing], check=True, timeout=60)
    point = mount(loop(backing), tmp_path / "mounted")
    succeed("backup", "--repo", point / "repo", original)
    stored = Stored(point / "repo")
    os.sync()
    pack, offset = stored.place(stored.stored[2])
    clean = pack.read_bytes()  # and it is in the cache from now on
    assert not succeed("verify", "--repo", stored.repo)["damage"]
    place = backing.read_bytes().find(clean[offset : offset + 4096])
    assert place > 0
    pack.read_bytes()
    flip(backing, place + 5)
    assert pack.read_bytes() == clean, "the page cache was dropped: this proves nothing"
    damage = verified(stored)["damage"]
    assert [each["offset"] for each in damage] == [stored.stored[2] * stored.chunk]  # type: ignore[attr-defined, index]
    flip(backing, place + 5)
    index = stored.index.read_bytes()
    place = backing.read_bytes().find(index[: min(len(index), 512)])
    assert place > 0
    assert not succeed("verify", "--repo", stored.repo)["damage"]
    assert stored.index.read_bytes() == index
    flip(backing, place + 70)
    assert stored.index.read_bytes() == index, "the page cache was dropped: this proves nothing"
    assert "index" in str(verified(stored)["losses"])


def test_a_file_system_without_direct_reads_is_told(original: Path) -> None:
    repo = Path("/dev/shm") / f"timezero-test-{os.getpid()}"
    try:
        succeed("backup", "--repo", repo, original)
        outcome = timezero("verify", "--repo", repo)
        assert outcome.code == 0
        assert succeed("verify", "--repo", repo)["cached"] == ("page cache" in outcome.err)
    finally:
        shutil.rmtree(repo)


def test_packs_are_read_past_the_cache(stored: Stored) -> None:
    """A slow verification, looked at while it runs: its packs are open with O_DIRECT."""
    assert succeed("verify", "--repo", stored.repo)["cached"] is False
    command = [*COMMAND, "verify", "--repo", str(stored.repo), "--rate", "2M"]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL) as process:
        try:
            assert _wait_for_direct(process, stored), "no pack was open with O_DIRECT"
        finally:
            process.terminate()


def _wait_for_direct(process: subprocess.Popen[bytes], stored: Stored) -> bool:
    packs = {str(stored.place(number)[0]) for number in stored.stored}
    while process.poll() is None:
        for fd in Path(f"/proc/{process.pid}/fd").iterdir():
            try:
                flags = (Path(f"/proc/{process.pid}/fdinfo") / fd.name).read_text().split("flags:")[1].split()[0]
                if str(fd.readlink()) in packs and int(flags, 8) & os.O_DIRECT:
                    return True
            except OSError:
                continue
    return False


def test_a_sample(tmp_path: Path, original: Path) -> None:
    succeed("backup", "--repo", tmp_path / "repo", original, "--chunk-size", "4K")
    stored = Stored(tmp_path / "repo")
    count = len(stored.stored)
    found = succeed("verify", "--repo", stored.repo, "--sample", "10%", "--seed", 7)
    sample = found["sample"]
    assert (sample["percent"], sample["seed"], sample["stored"]) == (10.0, 7, count)
    assert abs(sample["read"] - count / 10) <= 1
    assert found["bytes_read"] == pytest.approx(SIZE / 20, rel=0.1)
    assert 0.95 < sample["notices"] < 1
    # Half of it damaged: seen, wherever it is, and always the same with one seed.
    for number in stored.stored[::2]:
        stored.flip(number)
    runs = [verified(stored, "--sample", "2", "--seed", seed)["damage"] for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]
    assert {each["offset"] // stored.chunk for each in runs[0]} <= set(stored.stored[::2])  # type: ignore[attr-defined]
    outcome = timezero("verify", "--repo", stored.repo, "--sample", "100%")
    assert outcome.code == 6
    assert f"{count} of {count} stored chunks" in outcome.out.decode()
    for wrong in ("0", "101%", "x", "-1"):
        assert timezero("verify", "--repo", stored.repo, "--sample", wrong).code == 2
    assert timezero("verify", "--repo", stored.repo, "--seed", 3).code == 2


def test_a_damaged_manifest(tmp_path: Path, original: Path, stored: Stored) -> None:
    """Volumes are found by their indexes, which say so; files are not, and that is said as well."""
    flip(stored.manifest, 200)
    stored.flip(stored.stored[1])
    found = verified(stored)
    assert "manifest.json: altered" in str(found["damage"])
    (loss,) = found["losses"]  # type: ignore[misc]
    assert loss["lost"] == stored.lost([stored.stored[1]])
    assert timezero("restore", "--repo", stored.repo, "latest", tmp_path / "out").code == 6
    result = salvaged(stored, tmp_path / "out")
    assert "lost with the manifest" in str(result["losses"])
    assert (tmp_path / "out.damaged").read_bytes() == without(original.read_bytes(), stored.lost([stored.stored[1]]))
    commit_files(tmp_path / "files", {"/srv/disk": original})
    flip(next((tmp_path / "files/recovery-points").rglob("manifest.json")), 200)
    outcome = timezero("restore", "--repo", tmp_path / "files", "latest", tmp_path / "there", "--salvage")
    assert (outcome.code, "no index is left that tells whose it is" in outcome.err) == (6, True)
    assert not list(tmp_path.glob("there*"))


@pytest.mark.parametrize(
    "way", ["image", "directory", "stream", "device", "file", "tree", "in place", "delta", "resume"]
)
def test_no_way_takes_what_does_not_match(
    tmp_path: Path, original: Path, stored: Stored, request: pytest.FixtureRequest, way: str
) -> None:
    """A chunk with a flipped bit gets to no target by any way, and none of them ends well."""
    repo, options, target = stored.repo, [], tmp_path / "out"
    if way in ("file", "tree", "in place"):
        repo = tmp_path / "files"
        (tmp_path / "srv").mkdir()
        path = image(tmp_path / "srv/disk", SIZE)
        commit_files(repo, {str(path): path}, gather=False)
    altered = Stored(repo)
    number = altered.stored[2]
    altered.flip(number, at=5)
    pack, offset = altered.place(number)
    bad = pack.read_bytes()[offset : offset + 512]
    arguments: list[object] = [target]
    if way in ("directory", "tree"):
        target.mkdir()
    elif way == "stream":
        arguments = ["-"]
    elif way == "device":
        target.write_bytes(b"\xee" * (SIZE // 4096 + 1) * 4096)
        arguments = [request.getfixturevalue("loop")(target)]
    elif way == "in place":
        arguments, options = [], ["--in-place", "--force"]
    elif way == "delta":
        target.write_bytes(b"\xee" * SIZE)
        options = ["--delta", "--force"]
    elif way == "resume":
        options = ["--resume"]
    point = f"latest/{altered.record.name}" if way in ("file", "in place") else "latest"
    outcome = timezero("restore", "--repo", repo, point, *arguments, *options)
    assert outcome.code == 6, outcome.err
    os.sync()
    assert bad not in outcome.out
    for place in [tmp_path / "srv", target, *tmp_path.glob(".timezero*"), *tmp_path.glob("out/**/*")]:
        assert not place.is_file() or bad not in place.read_bytes()


def test_a_manifest_on_a_bad_sector(tmp_path: Path, original: Path, stored: Stored) -> None:
    """It cannot be read, which is no more than damage: the rest is looked at, and salvaged."""
    succeed("backup", "--repo", stored.repo, original)
    shim = Shim(tmp_path / "shim", "job")
    shim.rule(0, READ, stored.manifest, error=errno.EIO, per_million=1_000_000)
    outcome = timezero("verify", "--repo", stored.repo, "--json", env=shim.environment)
    assert outcome.code == 6, outcome.err
    assert "manifest.json: cannot be read: Input/output error" in str(outcome.document["damage"])
    assert len(outcome.document["points"]) == outcome.document["datasets"] == 2
    out = tmp_path / "out"
    outcome = timezero("restore", "--repo", stored.repo, stored.point.id, out, "--salvage", env=shim.environment)
    assert outcome.code == 6, outcome.err
    assert shim.hits(0) >= 2
    assert (tmp_path / "out.damaged").read_bytes() == original.read_bytes()


def test_indexes_of_files_on_a_bad_sector(tmp_path: Path, original: Path) -> None:
    commit_files(tmp_path / "repo", {"/srv/disk": original})
    shim = Shim(tmp_path / "shim", "job")
    (indexes,) = (tmp_path / "repo/recovery-points").glob("*/indexes")
    shim.rule(0, READ, indexes, error=errno.EIO, per_million=1_000_000)
    outcome = timezero("restore", "--repo", tmp_path / "repo", "latest", tmp_path / "out", env=shim.environment)
    assert (outcome.code, "Input/output error" in outcome.err) == (6, True)


def test_a_damaged_manifest_without_any_packs(tmp_path: Path, stored: Stored) -> None:
    flip(stored.manifest, 200)
    shutil.rmtree(stored.repo / "packs")
    loss = salvaged(stored, tmp_path / "out")["losses"][0]  # type: ignore[index]
    assert loss["chunks"] == len(stored.stored)


def test_a_map_is_a_file_of_its_own(tmp_path: Path, stored: Stored) -> None:
    stored.flip(stored.stored[1])
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "directory").mkdir()
    before = snapshot(tmp_path)
    for path in ("out", "out.damaged", "directory/../out", "link", "directory", "repo/map", "repo/repository.json"):
        words = ["restore", "--repo", stored.repo, "latest", tmp_path / "out", "--salvage", "--force"]
        outcome = timezero(*words, "--map", tmp_path / path)
        assert (outcome.code, str(tmp_path / path) in outcome.err) == (2, True), outcome.err
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("way", ["tree", "in place"])
def test_what_would_be_called_as_another_one_is_refused(tmp_path: Path, way: str) -> None:
    """Were `a` damaged, it would get the name of the whole `a.damaged`."""
    place = tmp_path / "srv"
    place.mkdir()
    for name in ("a", "a.damaged"):
        (place / name).write_bytes(os.urandom(MIB))
    point = commit_files(tmp_path / "repo", {str(path): path for path in (place / "a", place / "a.damaged")})
    target = "--in-place" if way == "in place" else tmp_path / "tree"
    words = ["restore", "--repo", tmp_path / "repo", point, target]
    outcome = timezero(*words, "--force", "--salvage")
    assert (outcome.code, "would go to one place" in outcome.err) == (2, True), outcome.err
    assert timezero(*words, "--force").code == 0


def test_what_is_left_off_is_said(tmp_path: Path, stored: Stored) -> None:
    """Of more damage than is told one by one: how much more there is, and where all of it is to be had."""
    damaged = stored.stored[::2]
    for number in damaged:
        stored.flip(number)
    few = "from timezero.jobs import damage, verify; verify._Room.chunks = damage.DAMAGE_LIMIT = 2; "
    main = "import sys; from timezero.cli import main; sys.exit(main())"

    def run(*words: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", few + main, *map(str, words)]
        return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=60, check=False)

    done = run("verify", "--repo", stored.repo)
    assert (done.returncode, "--json has no more than 2 of them" in done.stderr) == (6, True), done.stderr
    assert f"DAMAGED in {len(damaged)} places" in done.stdout
    words = ("restore", "--repo", stored.repo, "latest", tmp_path / "out", "--salvage", "--map", tmp_path / "map")
    done = run(*words, "--json")
    (loss,) = json.loads(done.stdout)["result"]["losses"]
    assert (len(loss["lost"]), loss["lost_left_off"], loss["chunks"]) == (2, len(damaged) - 2, len(damaged))
    assert "--json has no more than 2 of them either; --map" in done.stderr
    assert sum(line.endswith("-") for line in (tmp_path / "map").read_text().splitlines()) == len(damaged)
