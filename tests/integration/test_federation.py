"""A group over several storage subsystems: one T0 or none, and every gate opens whoever does not answer."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from proof import load
from proof.words import after_the_estimate
from tests.command import digest, image, succeed, timezero
from tests.watching import sessions, until
from timezero import session
from timezero.errors import DeadlineError, PunctureError, UsageError

MIB = 1 << 20
SIZE = 8 * MIB
DEADLINE_US = 1_000_000


@pytest.fixture
def servers(serve, tmp_path):
    """Two subsystems with a volume each, and their images."""
    images = {name: image(tmp_path / f"{name}.img", SIZE, seed=number) for number, name in enumerate(("db", "log"))}
    return [serve({name: path}) for name, path in images.items()], images


def controls(servers):
    return [server.control for server in servers]


def until_idle(server):
    until(lambda: not sessions(server), "the session stays")


def test_a_backup_of_volumes_of_two_servers(servers, tmp_path):
    (left, right), images = servers
    repo = tmp_path / "repo"
    document = succeed(
        "backup",
        "--repo",
        repo,
        "--control",
        left.control,
        "--control",
        right.control,
        "db",
        "log",
        "--deadline",
        "10s",
    )
    assert [dataset["method_used"] for dataset in document["datasets"]] == ["session", "session"]
    assert document["suspension"]["total_us"] > 0
    for name, path in images.items():
        succeed("restore", "--repo", repo, f"latest/{name}", tmp_path / f"back-{name}")
        assert digest(tmp_path / f"back-{name}") == digest(path)
    assert not sessions(left) and not sessions(right)


def test_order_of_volumes_does_not_matter(servers):
    group = session.prepare_all(controls(servers[0]), ["log", "db"])
    with group:
        assert {part.volume for part in group.parts} == {"db", "log"}
        times = group.suspend(10 * DEADLINE_US)
        assert times["total_ns"] >= max(times["drain_ns"], times["open_ns"])
        assert {part["state"] for part in group.report()} == {"active"}
        assert {part["state"] for part in group.end()} == {"ended"}


def test_one_that_does_not_answer_stops_the_whole(servers, tmp_path, tmp_path_factory):
    """Stopped, it cannot open its gate at the deadline; the other one's opens, and nobody has a T0."""
    (left, right), _ = servers
    blockload = load.build(tmp_path_factory.mktemp("blockload"))
    writer = load.Load(blockload, Path(left.nbd_socket), "db", 0, SIZE, tmp_path, seconds=60).start()
    try:
        with session.prepare_all(controls(servers[0]), ["db", "log"]) as group:
            right.process.send_signal(signal.SIGSTOP)
            began = time.monotonic()
            with pytest.raises(DeadlineError):
                group.suspend(DEADLINE_US)
            assert time.monotonic() - began < 10
            before = session.status(left.control)["volumes"][0]["writes"]
            end = time.monotonic() + 30
            while session.status(left.control)["volumes"][0]["writes"] <= before + 10:
                assert time.monotonic() < end, "writes do not go on"
        until_idle(left)
    finally:
        right.process.send_signal(signal.SIGCONT)
        writer.stop()
    until_idle(right)


def test_one_that_dies_before_t0_stops_the_whole(servers):
    (left, right), _ = servers
    with session.prepare_all(controls(servers[0]), ["db", "log"]) as group:
        right.process.kill()
        right.process.wait(30)
        with pytest.raises(DeadlineError):
            group.suspend(DEADLINE_US)
    until_idle(left)


def test_one_that_dies_after_t0_punctures_the_whole(servers, tmp_path):
    (left, right), _ = servers
    with session.prepare_all(controls(servers[0]), ["db", "log"]) as group:
        group.suspend(10 * DEADLINE_US)
        right.process.kill()
        right.process.wait(30)
        with pytest.raises(PunctureError):
            group.report()
        with pytest.raises(PunctureError):
            group.end()
    until_idle(left)


def test_the_command_says_that_t0_was_not_reached(servers, tmp_path):
    (left, right), _ = servers
    repo = tmp_path / "repo"
    blocked = session.prepare(right.control, ["log"])
    try:
        blocked.post("close", deadline_us=20_000_000)  # another coordinator holds the gate of one
        blocked.answer(20)
        outcome = timezero(
            "backup",
            "--repo",
            repo,
            "--control",
            left.control,
            "--control",
            right.control,
            "db",
            "log",
            "--deadline",
            "1s",
        )
        assert outcome.code == 11, outcome.err  # busy with another suspension
        assert outcome.err.startswith("timezero: estimate: ")
        assert after_the_estimate(outcome.err).count("\n") == 1, outcome.err
        assert list((repo / "recovery-points").iterdir()) == [] and list((repo / "packs").iterdir()) == []
    finally:
        blocked.close()


def test_volumes_that_are_nowhere_or_twice(servers, serve, tmp_path):
    (left, right), _ = servers
    with pytest.raises(UsageError, match="none of"):
        session.prepare_all(controls(servers[0]), ["db", "nowhere"])
    other = image(tmp_path / "other.img", MIB)
    third = serve({"db": other})
    with pytest.raises(UsageError, match="--control"):
        session.prepare_all([*controls(servers[0]), third.control], ["db"])
    assert not sessions(left) and not sessions(right) and not sessions(third)
    assert len(os.listdir("/proc/self/fd")) < 64


def test_a_volume_of_the_second_alone_needs_no_federation(servers):
    with session.prepare_all(controls(servers[0]), ["log"]) as group:
        assert isinstance(group, session.Group)
        group.suspend(10 * DEADLINE_US)
        group.end()
