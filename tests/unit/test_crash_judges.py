"""What judges the crash sweep and the loss of power can say no."""

from __future__ import annotations

from pathlib import Path

import pytest

from proof.crash.application import BLOCK, Application, stamp
from proof.crash.world import World, WrongError
from proof.power import Flush, Mark, States, Write

SIZE = 16 * BLOCK


@pytest.fixture
def application() -> Application:
    """Two writers of eight blocks each. One made three updates, acknowledged at 10, 20, 30; the other one, at 15."""
    made = Application(SIZE)
    first, second = made.writers
    first.blocks, first.started, first.acknowledged = [1, 2, 1], [9, 19, 29], [10, 20, 30]
    second.blocks, second.started, second.acknowledged = [9], [14], [15]
    return made


def volume(application: Application, first: int, second: int) -> bytearray:
    """After so many updates of each."""
    content = bytearray(application.content())
    for writer, count in zip(application.writers, (first, second), strict=True):
        for number, block in enumerate(writer.blocks[:count], 1):
            content[block * BLOCK : (block + 1) * BLOCK] = stamp(writer.number, number, block)
    return content


def test_what_was_acknowledged_is_there(application: Application) -> None:
    application.settle(bytes(volume(application, 3, 1)))


def test_an_acknowledged_update_that_is_lost(application: Application) -> None:
    with pytest.raises(ValueError, match="3 updates were acknowledged"):
        application.settle(bytes(volume(application, 2, 1)))


def test_an_older_update_that_is_lost(application: Application) -> None:
    content = volume(application, 3, 1)
    content[2 * BLOCK : 3 * BLOCK] = stamp(0, 0, 2)
    with pytest.raises(ValueError, match="one is missing"):
        application.settle(bytes(content))


def test_an_update_that_was_not_acknowledged_may_be_there_or_not(application: Application) -> None:
    first = application.writers[0]
    first.blocks.append(5)
    first.started.append(39)
    content = volume(application, 4, 1)
    application.settle(bytes(content))
    assert len(first.acknowledged) == 4
    del first.acknowledged[3:]
    application.settle(bytes(volume(application, 3, 1)))
    assert len(first.blocks) == 3


@pytest.mark.parametrize(
    ("offset", "match"), [(BLOCK + 512, "torn"), (BLOCK, "another place")], ids=["half a block", "a block elsewhere"]
)
def test_content_that_nobody_wrote(application: Application, offset: int, match: str) -> None:
    content = volume(application, 3, 1)
    foreign = stamp(0, 2, 2)
    content[offset : 2 * BLOCK] = foreign[: 2 * BLOCK - offset]
    with pytest.raises(ValueError, match=match):
        application.settle(bytes(content))


def test_an_update_that_nobody_issued(application: Application) -> None:
    content = volume(application, 3, 1)
    content[3 * BLOCK : 4 * BLOCK] = stamp(0, 9, 3)
    with pytest.raises(ValueError, match="missing"):
        application.settle(bytes(content))


def test_one_instant_explains(application: Application) -> None:
    application.explain(bytes(volume(application, 1, 1)), (0, 100))
    application.explain(bytes(volume(application, 1, 0)), (0, 100))  # the other one began at 14, and came at 15 perhaps


def test_two_instants_do_not(application: Application) -> None:
    with pytest.raises(ValueError, match="no instant"):
        application.explain(bytes(volume(application, 3, 0)), (0, 100))  # 29 at least, and 15 at most
    with pytest.raises(ValueError, match="no instant"):
        application.explain(bytes(volume(application, 1, 1)), (50, 100))  # not in the window


def test_leavings_are_seen(tmp_path: Path) -> None:
    with World(tmp_path, Path("/nowhere")) as world:
        world.succeed = lambda *words: ""  # type: ignore[method-assign]
        (world.repository / "packs").mkdir(parents=True)
        (world.repository / "repository.json").touch()
        world.prune()
        (world.repository / "packs" / "20260101T000000Z-00000000-0000.pack").touch()
        with pytest.raises(WrongError, match="prune leaves"):
            world.prune()
        (tmp_path / "sidefile" / "left").touch()
        with pytest.raises(WrongError, match="files are left: left"):
            world.expect_nothing_left()


# ---- power ----


EVENTS = [Write(0, b"a" * 512), Flush(), Mark("a"), Write(0, b"b" * 512), Write(512, b"c" * 512), Flush(), Mark("c")]


def test_states_after_flushes() -> None:
    base = bytes(1024)
    found = [(state.content, state.told) for state in States(base, EVENTS).after_each_flush()]
    assert found == [(b"a" * 512 + bytes(512), ("a",)), (b"b" * 512 + b"c" * 512, ("a", "c"))]


def test_states_in_between_have_what_was_flushed_and_any_part_of_the_rest() -> None:
    states = list(States(bytes(1024), EVENTS).in_between(200, seed=1))
    contents = {state.content for state in states if state.told == ("a",)}
    assert contents == {a * 512 + c * 512 for a in (b"a", b"b") for c in (b"\0", b"c")}
    for state in states:
        if "c" in state.told:
            assert state.content == b"b" * 512 + b"c" * 512
