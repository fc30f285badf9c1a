"""What is measured, a function a topic. Each makes what it needs in a folder of its own and leaves nothing behind."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench.copy import peers
from bench.copy.sources import make_source, name_of
from bench.measure import Contender, alternate, best, ratio, table
from proof.stack import fuse_file, loop_device

GIB = 1 << 30
MEMORY = "/dev/shm"


@dataclass(frozen=True)
class Settings:
    """size: bytes of the source. rounds: alternating. directory: where files on disk lie. quick: fewer rows."""

    size: int
    rounds: int
    directory: Path
    quick: bool


@dataclass
class Result:
    """One table."""

    title: str
    size: int
    rows: list[Contender]
    notes: list[str] = field(default_factory=list)
    ours: Contender | None = None

    def text(self) -> str:
        lines = [self.title, table(self.rows, self.ours or self.rows[0], self.size), *self.notes]
        return "\n".join(lines) + "\n"


@contextmanager
def folder(where: Path | str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="timezero-bench-", dir=where) as path:
        yield Path(path)


def blocks(settings: Settings) -> tuple[str, ...]:
    return ("1M", "4M") if settings.quick else peers.BLOCKS


def against_dd(ours: Contender, rows: list[Contender], size: int) -> str:
    """Ours beside the best dd, and the CPU that it costs more than dd at 1 MiB."""
    dds = [row for row in rows if row.name.startswith("dd ")]
    first, at_1m = best(dds), next(row for row in dds if row.name == "dd bs=1M")
    more = (ours.median("cpu") - at_1m.median("cpu")) / (size / GIB)
    return f"best dd: {first.name}, {ratio(ours, first):.2f}; CPU beyond dd bs=1M: {more:+.3f} s/GiB"


def disk(settings: Settings) -> list[Result]:
    """A file on disk to a new one."""
    with folder(settings.directory) as here:
        source, target = make_source(here / "source", settings.size), here / "target"

        def fresh() -> None:
            target.unlink(missing_ok=True)

        rows = [
            *peers.copies(source, target, fresh),
            *peers.dds(source, target, fresh, blocks(settings)),
            peers.qemu_img(source, target, fresh),
            peers.nbdcopy(source, target, fresh),
        ]
        alternate(rows, settings.rounds)
    title = f"copy: {settings.size / GIB:g} GiB, file on disk to a new file, cold, direct, durable"
    return [Result(title, settings.size, rows, [against_dd(rows[0], rows, settings.size)])]


def loop(settings: Settings) -> list[Result]:
    """Block device to block device, both loop devices over memory."""
    with ExitStack() as stack:
        here = stack.enter_context(folder(MEMORY))
        source = stack.enter_context(loop_device(make_source(here / "source", settings.size)))
        # All of its memory is there before the first round: first touch is slow.
        target = stack.enter_context(loop_device(make_source(here / "target", settings.size)))
        rows = [
            *peers.copies(source, target, peers.nothing),
            *peers.dds(source, target, peers.nothing, blocks(settings)),
            peers.qemu_img(source, target, peers.nothing, device=True),
            peers.nbdcopy(source, target, peers.nothing),
        ]
        for row in rows:
            row.system_cpu = True
        alternate(rows, settings.rounds)
    title = f"copy: {settings.size / GIB:g} GiB, loop device over memory to another; CPU of the whole machine"
    return [Result(title, settings.size, rows, [against_dd(rows[0], rows, settings.size)])]


def latency(settings: Settings) -> list[Result]:
    """A source that takes a millisecond longer for each request: nbdkit's delay filter, as a file through nbdfuse."""
    size = settings.size
    with ExitStack() as stack:
        here = stack.enter_context(folder(settings.directory))
        target = here / "target"
        uri = stack.enter_context(_slow_export(make_source(here / "source", size), here / "socket"))
        source = stack.enter_context(fuse_file(uri, here / "fuse"))

        def fresh() -> None:
            target.unlink(missing_ok=True)

        rows = [
            *peers.copies(source, target, fresh),
            *peers.dds(source, target, fresh, ("1M",) if settings.quick else ("1M", "16M")),
            peers.qemu_img(source, target, fresh),
        ]
        for row in rows:
            row.system_cpu = True
        alternate(rows, settings.rounds)
    title = f"copy: {size / GIB:g} GiB, source with 1 ms latency a request; CPU of the whole machine"
    return [Result(title, size, rows)]


@contextmanager
def _slow_export(file: Path, socket: Path) -> Iterator[str]:
    command = ["nbdkit", "-f", "-U", str(socket), "--filter=delay", "file", str(file), "delay-read=1ms"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        while not socket.exists():
            if process.poll() is not None:
                raise RuntimeError(f"nbdkit: {process.communicate()[1].strip()}")
        yield f"nbd+unix:///?socket={socket}"
    finally:
        process.terminate()
        process.communicate(timeout=60)


def sparse(settings: Settings) -> list[Result]:
    """Half-empty files, the empty half in stretches of 64 KiB to 1 MiB, as holes and as written zeros."""
    results = []
    grains = (64 << 10,) if settings.quick else (64 << 10, 256 << 10, 1 << 20)
    for holes in (True, False):
        for grain in grains:
            with folder(settings.directory) as here:
                source, target = here / "source", here / "target"
                make_source(source, settings.size, empty=grain, holes=holes)

                def fresh(target: Path = target) -> None:
                    target.unlink(missing_ok=True)

                rows = peers.copies(source, target, fresh, threads=not settings.quick)
                rows += peers.sparse_copies(source, target, fresh)
                alternate(rows, settings.rounds)
            kind = "holes" if holes else "written zeros"
            title = f"copy: {settings.size / GIB:g} GiB half empty, {kind} of {name_of(grain)}iB, to a new file"
            results.append(Result(title, settings.size, rows))
    return results


def repository(settings: Settings) -> list[Result]:
    """Backup beside copy; verify beside dd reading; restore beside copy."""
    with folder(settings.directory) as here:
        source, target, fixed, new = (here / name for name in ("source", "target", "repository", "new"))
        make_source(source, settings.size)
        subprocess.run([peers.TIMEZERO, "backup", "--repo", fixed, source], check=True, stdout=subprocess.DEVNULL)

        def fresh() -> None:
            target.unlink(missing_ok=True)
            shutil.rmtree(new, ignore_errors=True)

        def restore(before: Callable[[], None]) -> Contender:
            command = [peers.TIMEZERO, "restore", "--repo", str(fixed), "latest/source", str(target)]
            return Contender("timezero restore", command, before)

        copying = [
            Contender("timezero backup", [peers.TIMEZERO, "backup", "--repo", str(new), str(source)], fresh),
            restore(fresh),
            *peers.copies(source, target, fresh, threads=False),
            *peers.dds(source, target, fresh, ("1M",)),
        ]
        reading = [Contender("timezero verify", [peers.TIMEZERO, "verify", "--repo", str(fixed)])]
        reading += [
            Contender(f"dd bs={bs}", ["dd", f"if={source}", "of=/dev/null", f"bs={bs}", "iflag=direct", "status=none"])
            for bs in (("1M", "4M") if settings.quick else peers.BLOCKS)
        ]
        alternate(copying, settings.rounds)
        alternate(reading, settings.rounds)
    gib = f"{settings.size / GIB:g} GiB"
    return [
        Result(f"repository: backup and restore of {gib} beside copy (ratio: copy's lead)", settings.size, copying,
               ours=copying[2]),
        Result(f"repository: verify of {gib} beside dd that only reads", settings.size, reading,
               [f"best dd: {ratio(reading[0], best(reading[1:])):.2f}"]),
    ]  # fmt: skip


TOPICS: dict[str, Callable[[Settings], list[Result]]] = {
    "disk": disk,
    "loop": loop,
    "latency": latency,
    "sparse": sparse,
    "repository": repository,
}
