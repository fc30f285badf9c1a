"""The commands that people use today, each with the options that suit it best here, and ours."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from shlex import quote

from bench.measure import Contender

BLOCKS = ("64K", "256K", "1M", "4M", "16M")
TIMEZERO = str(Path(sys.executable).with_name("timezero"))


def nothing() -> None:
    """Before a run that needs no preparation."""


def copies(source: Path, target: Path, before: Callable[[], None], *, threads: bool = True) -> list[Contender]:
    """timezero copy; as a row of its own its thread engine."""
    command = [TIMEZERO, "copy", str(source), str(target)]
    rows = [Contender("timezero copy", command, before)]
    if threads:
        rows.append(Contender("timezero copy, threads", command, before, {"TIMEZERO_IO": "threads"}))
    return rows


def dds(source: Path, target: Path, before: Callable[[], None], blocks: Sequence[str] = BLOCKS) -> list[Contender]:
    """dd, direct, durable at the end."""
    return [
        Contender(
            f"dd bs={bs}",
            ["dd", f"if={source}", f"of={target}", f"bs={bs}", "iflag=direct", "oflag=direct", "conv=fsync,notrunc",
             "status=none"],
            before,
        )
        for bs in blocks
    ]  # fmt: skip


def qemu_img(
    source: Path, target: Path, before: Callable[[], None], *, sparse: str = "0", device: bool = False
) -> Contender:
    """qemu-img convert with 16 coroutines, direct, durable at the end. sparse: its -S."""
    s, t = quote(str(source)), quote(str(target))
    convert = f"qemu-img convert -f raw -O raw -t none -T none -W -m 16 -S {sparse} {'-n ' if device else ''}{s} {t}"
    return Contender("qemu-img convert -m 16", ["sh", "-c", f"{convert} && sync -d {t}"], before)


def nbdcopy(source: Path, target: Path, before: Callable[[], None]) -> Contender:
    """nbdcopy reading through nbdkit's file plugin: from a file it reads one request at a time."""
    s, t = quote(str(source)), quote(str(target))
    command = f"exec nbdcopy --flush -- [ nbdkit --exit-with-parent file {s} ] {t}"
    return Contender("nbdcopy", ["sh", "-c", command], before)


def sparse_copies(source: Path, target: Path, before: Callable[[], None]) -> list[Contender]:
    """What makes sparse files of sparse files: durable at the end; cp has no direct mode."""
    s, t = quote(str(source)), quote(str(target))
    dd = f"dd if={s} of={t} bs=64K iflag=direct oflag=direct conv=sparse,fsync status=none"
    return [
        qemu_img(source, target, before, sparse="4k"),
        Contender("cp --sparse=always", ["sh", "-c", f"cp --sparse=always {s} {t} && sync -d {t}"], before),
        Contender("dd bs=64K conv=sparse", ["sh", "-c", dd], before),
        nbdcopy(source, target, before),
    ]
