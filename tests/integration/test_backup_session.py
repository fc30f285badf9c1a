"""backup and copy of served volumes by the command line: one instant for the group, and an application that goes on."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from proof.explain import explain
from proof.load import Load, build, fill
from proof.words import after_the_estimate
from tests.command import MIB, digest, image, snapshot, succeed, timezero
from timezero import cli
from timezero.session import Group

SIZE = 32 * MIB


@pytest.fixture
def busy(serve: Callable, tmp_path: Path) -> Iterator[Callable]:
    """busy(*names) -> (control socket, {name: load}): served volumes of self-describing blocks, written to at depth."""
    loads: dict[str, Load] = {}

    def start(*names: str) -> tuple[str, dict[str, Load]]:
        binary = build(tmp_path)
        paths = {name: tmp_path / f"{name}.volume" for name in names}
        for number, path in enumerate(paths.values()):
            with open(path, "wb") as file:
                file.truncate(SIZE)
            fill(binary, path, number, 0, SIZE)
        served = serve(paths, sidefile_memory="80M")
        for number, name in enumerate(names):
            load = Load(binary, Path(served.nbd_socket), name, number, SIZE, tmp_path, depth=4, seconds=60)
            load.options = {"min": 4096, "max": 65536, "grain": 512, "rate": 2000}
            loads[name] = load
            load.start()
        time.sleep(0.2)
        return served.control, loads

    yield start
    for load in loads.values():
        load.kill()


def test_a_group_through_the_repository(tmp_path: Path, busy: Callable) -> None:
    control, loads = busy("left", "right")
    at_rest = image(tmp_path / "at-rest", MIB)
    env = {"TIMEZERO_CONTROL": control, "TIMEZERO_REPO": str(tmp_path / "repo")}
    before = time.monotonic_ns()
    document = succeed("backup", "left", "right", at_rest, "--rate", "24M", env=env)
    window = (before, time.monotonic_ns())
    for load in loads.values():
        load.stop()
    by_name = {dataset["name"]: dataset for dataset in document["datasets"]}
    assert [by_name[name]["method_used"] for name in ("left", "right", "at-rest")] == ["session", "session", "at-rest"]
    for name in loads:
        assert by_name[name]["intercepted"] > 50
        assert by_name[name]["sidefile_high_water_bytes"] > 0
        assert by_name[name]["counts"]["chunks_sidefile"] + by_name[name]["counts"]["chunks_mixed"] > 0
        assert by_name[name]["source"] == str(tmp_path / f"{name}.volume")
    assert {"drain_us", "map_us", "install_us", "total_us"} <= set(document["suspension"])
    assert succeed("verify", env=env)["intact"]
    succeed("restore", "latest", tmp_path / "out", env=env)
    assert digest(tmp_path / "out" / "at-rest") == digest(at_rest)
    verdict = explain([(tmp_path / "out" / name, load.volume, load.logs) for name, load in loads.items()], window)
    assert verdict.explained, verdict.faults
    shown = timezero("show", env=env).out.decode()
    assert "suspended" in shown and "session" in shown
    assert succeed("status", env=env)["sessions"] == []


@pytest.mark.parametrize("target", ["file", "-"])
def test_copy_of_a_served_volume(tmp_path: Path, busy: Callable, target: str) -> None:
    control, loads = busy("disk")
    path = tmp_path / "image"
    before = time.monotonic_ns()
    outcome = timezero("copy", "disk", path if target == "file" else "-", "--control", control, "--rate", "16M")
    window = (before, time.monotonic_ns())
    assert outcome.code == 0, outcome.err
    loads["disk"].stop()
    if target == "-":
        path.write_bytes(outcome.out)
    verdict = explain([(path, loads["disk"].volume, loads["disk"].logs)], window)
    assert verdict.explained, verdict.faults


def test_tracks_and_chunks_of_other_sizes(tmp_path: Path, serve: Callable) -> None:
    volume = image(tmp_path / "volume", 4 * MIB + 512)
    served = serve({"disk": volume}, track="128K")
    env = {"TIMEZERO_CONTROL": served.control, "TIMEZERO_REPO": str(tmp_path / "repo")}
    assert succeed("backup", "disk", env=env)["track_size"] == 128 << 10
    before = snapshot(tmp_path)
    outcome = timezero("backup", "disk", "--chunk-size", "64K", env=env)
    assert (outcome.code, "track size" in outcome.err) == (2, True), outcome.err
    assert snapshot(tmp_path) == before
    document = succeed("backup", "disk", "--track-size", "4K", "--chunk-size", "64K", env=env)
    assert (document["track_size"], document["datasets"][0]["chunk_size"]) == (4096, 64 << 10)
    succeed("restore", "latest", tmp_path / "out", env=env)
    assert digest(tmp_path / "out") == digest(volume)


def test_unknown_volumes_change_nothing(tmp_path: Path, serve: Callable) -> None:
    served = serve({"disk": image(tmp_path / "volume", MIB)})
    before = snapshot(tmp_path)
    for words in (["backup", "--repo", tmp_path / "repo", "disk", "dusk"], ["copy", "dusk", tmp_path / "out"]):
        outcome = timezero(*words, "--control", served.control)
        assert (outcome.code, "dusk" in outcome.err, outcome.err.count("\n")) == (2, True, 1), outcome.err
        assert snapshot(tmp_path) == before
    assert succeed("status", "--control", served.control)["sessions"] == []


def test_a_repository_on_a_volume_of_the_group_is_refused(
    tmp_path: Path, serve: Callable, loop: Callable[..., Path], mount: Callable[..., Path]
) -> None:
    with open(tmp_path / "disk", "wb") as file:
        file.truncate(32 * MIB)
    subprocess.run(["mkfs.ext4", "-q", tmp_path / "disk"], check=True)
    served = serve({"disk": tmp_path / "disk"}, read_only="disk")
    point = mount(loop(tmp_path / "disk", "--read-only"), tmp_path / "mnt", "-o", "ro,noload")
    outcome = timezero("backup", "--repo", point / "repo", "disk", "--control", served.control)
    assert (outcome.code, "stands on the source disk" in outcome.err) == (2, True), outcome.err


def test_a_deadline_that_passes(
    tmp_path: Path, serve: Callable, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The subsystem's own timer reopens the gates; the steps of the suspension are taken one by one, and too slowly."""

    def suspend(group: Group, deadline_us: int) -> None:
        group._client.call("close", session=group.name, deadline_us=1000)
        time.sleep(0.1)
        group._client.call("install", session=group.name)

    monkeypatch.setattr(Group, "suspend", suspend)
    monkeypatch.setattr(cli, "_catch_signals", lambda: None)
    served = serve({"disk": image(tmp_path / "volume", MIB)})
    repo, image_file = tmp_path / "repo", tmp_path / "image"
    for words in (["backup", "--repo", str(repo), "disk"], ["copy", "disk", str(image_file)]):
        assert cli.main([*words, "--control", served.control]) == 4
        out, err = capfd.readouterr()
        assert out == "" and err.startswith("timezero: estimate: ")
        assert after_the_estimate(err).count("\n") == 1, err
    assert succeed("list", "--repo", repo)["points"] == []
    assert list((repo / "recovery-points").iterdir()) == list((repo / "packs").iterdir()) == []
    assert not image_file.exists()
    assert succeed("status", "--control", served.control)["sessions"] == []
    monkeypatch.undo()
    succeed("backup", "--repo", repo, "disk", "--control", served.control)
