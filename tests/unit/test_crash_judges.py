"""What judges the crash sweep and the loss of power can say no."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from proof.crash import in_place
from proof.crash.application import BLOCK, Application, explain, stamp
from proof.crash.world import SIZE as WHOLE
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


def test_one_instant_of_two_volumes(application: Application) -> None:
    """Each of them has one of its own; that it is the same is another matter."""
    other = Application(SIZE, first=2)
    for writer in other.writers:
        writer.blocks, writer.started, writer.acknowledged = [writer.first], [60], [61]
    early, late = bytes(volume(application, 1, 1)), bytes(volume(application, 3, 1))
    before, after = bytes(volume(other, 0, 0)), bytes(volume(other, 1, 1))
    explain([(application, early), (other, before)], (0, 100))
    explain([(application, late), (other, after)], (0, 100))
    application.explain(early, (0, 100))
    other.explain(after, (0, 100))
    with pytest.raises(ValueError, match="no instant"):
        explain([(application, early), (other, after)], (0, 100))
    with pytest.raises(ValueError, match="another place"):
        other.explain(early, (0, 100))


def test_a_mixture_is_of_old_and_new_blocks() -> None:
    new = os.urandom(WHOLE)
    old = b"o" * in_place.OLD_SIZE
    assert in_place._written(old, new) == 0
    assert in_place._written(new, new) == WHOLE
    assert in_place._written(new[: 3 * BLOCK] + old[3 * BLOCK :], new) == 3 * BLOCK
    for wrong in (new[:512] + old[512:], bytes(BLOCK) + new[BLOCK:], new + bytes(1)):
        with pytest.raises(WrongError):
            in_place._written(wrong, new)


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
