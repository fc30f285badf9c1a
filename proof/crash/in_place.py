"""What the sweep does at a step of a restore that changes what is there: with --delta, and with --resume.

Whatever was left, the same command comes to a whole image, and what was written before the death is not written again.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from proof.crash.case import die
from proof.crash.kinds import OLD, judge_image
from proof.crash.steps import Step
from proof.crash.world import SIZE, World, expect

CHUNK = 64 << 10
BLOCK = 4096
#: Of the image that is there: shorter, and not a multiple of what direct I/O wants.
OLD_SIZE = SIZE - 1000


def delta(world: World, step: Step, who: str) -> str:
    """An image of other content is changed into that of the recovery point."""
    target = world.folder / "copy.img"
    target.write_bytes(b"o" * OLD_SIZE)
    words, new = _prepare(world, "--delta", target)
    die(world, world.start(*words, point=step.name), step, who)
    there = _written(target.read_bytes(), new)
    least = (step.passes - 1) * CHUNK if step.point == "target.stored" else SIZE if step.stays else 0
    expect(there >= least, f"{there} bytes are new, and {least} were written")
    expect((there == SIZE) == (who in step.stays), f"{there} bytes are new")
    _go_on(world, words, target, new, least)
    return "whole image" if there == SIZE else "mixture, went on"


def resume(world: World, step: Step, who: str) -> str:
    """An image in the place of another one, which is there until the new one is whole."""
    target = world.folder / "copy.img"
    partial = target.with_name(f".timezero-{target.name}.partial")
    target.write_bytes(OLD)
    words, new = _prepare(world, "--resume", target)
    before = time.monotonic_ns()
    die(world, world.start(*words, point=step.name), step, who)
    is_new = judge_image(world, target, who in step.stays, (0, before))
    expect(partial.exists() != is_new, f"{partial.name} is {'there still' if is_new else 'gone'}")
    all_there = 0 if is_new else SIZE
    least = (step.passes - 1) * CHUNK if step.point == "target.stored" else all_there
    _go_on(world, words, target, new, least)
    return "whole image" if is_new else "old image, went on"


def _prepare(world: World, option: str, target: Path) -> tuple[list[object], bytes]:
    """A recovery point; the command that restores it, and the image that it should give."""
    world.succeed("backup", "--repo", world.repository, "--chunk-size", CHUNK, f"data={world.image}")
    words = ["restore", "--repo", world.repository, "--force", option, "latest/data", target]
    return words, world.image.read_bytes()


def _written(content: bytes, new: bytes) -> int:
    """How many bytes are those of the new image; the others have to be those that were there."""
    old = (b"o" * OLD_SIZE).ljust(SIZE, b"\0")
    content, count = content.ljust(SIZE, b"\0"), 0
    expect(len(content) == SIZE, f"the image has {len(content)} bytes")
    for at in range(0, SIZE, BLOCK):
        block = content[at : at + BLOCK]
        is_new = block == new[at : at + BLOCK]
        expect(is_new or block == old[at : at + BLOCK], f"block {at // BLOCK} is neither the old nor the new one")
        count += BLOCK * is_new
    return count


def _go_on(world: World, words: list[object], target: Path, new: bytes, least: int) -> None:
    """The same command again."""
    world.prune()  # it is not locked by the dead
    result = json.loads(world.succeed(*words, "--json"))
    expect(target.read_bytes() == new, "what goes on does not come to a whole image")
    expect(result["kept"] >= least, f"{result['kept']} bytes are kept, and {least} were there")
