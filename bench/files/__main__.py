"""Datasets that are files on a served volume, whole commands: many small ones, and one large one in fragments.

    python -m bench.files [--files 10000] [--extents 100000] [--rounds 3] [--directory DIR] [--json FILE]

The volume is a sparse file, its file system ext4 over nbdfuse and a loop device (root). `small`: files of 4 KiB;
`large`: a file of 100 GiB that begins with so many extents of 4 KiB and holes between them, and is a hole from there on
(a chunk with any data is stored whole). Beside them tar and cp of the same
mount, which are durable at the end and copy what each file is when they come to it, not what it was at one instant.
`frozen`: how long the file system was frozen, of which `map` was for the concordance; milliseconds, medians.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench.measure import Contender, alternate, table
from proof.served import Serving
from proof.stack import mounted_export

TIMEZERO = str(Path(sys.executable).with_name("timezero"))
GIB = 1 << 30
BLOCK = 4096


def make_small(root: Path, count: int) -> int:
    """Files of one block, a hundred a directory; their bytes."""
    for number in range(count):
        if number % 100 == 0:
            (root / f"{number // 100:04}").mkdir(parents=True)
        (root / f"{number // 100:04}" / f"{number:06}").write_bytes(os.urandom(BLOCK))
    os.sync()
    return count * BLOCK


def make_large(root: Path, extents: int) -> int:
    """A file of 100 GiB with blocks that lie apart; their bytes."""
    root.mkdir()
    with (root / "large").open("wb") as file:
        for number in range(extents):
            os.pwrite(file.fileno(), os.urandom(BLOCK), number * 2 * BLOCK)
        os.truncate(file.fileno(), 100 * GIB)
    os.sync()
    return extents * BLOCK


class Backups:
    """Runs of `timezero backup`: each goes to a repository of its own, and says how long it froze."""

    def __init__(self, folder: Path, control: Path, selection: str) -> None:
        self.repo, self.out = folder / "repository", folder / "backup.json"
        words = [
            TIMEZERO,
            "backup",
            "--repo",
            str(self.repo),
            "--control",
            str(control),
            "--deadline",
            "20s",
            selection,
        ]
        self.row = Contender(
            "timezero backup", ["sh", "-c", 'exec "$@" --json >"$0"', str(self.out), *words], self.fresh
        )
        self.frozen: list[tuple[float, float]] = []

    def fresh(self) -> None:
        self.collect()
        shutil.rmtree(self.repo, ignore_errors=True)

    def collect(self) -> None:
        if self.out.exists():
            times = json.loads(self.out.read_text())["suspension"]
            self.frozen.append((times["frozen_us"] / 1e3, times["map_us"] / 1e3))
            self.out.unlink()


def measure(folder: Path, control: Path, root: Path, size: int, rounds: int) -> tuple[str, list[Contender]]:
    target = folder / "target"

    def fresh() -> None:
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()

    backups = Backups(folder, control, f"data:{root}")
    shell = {
        "tar": f"tar -C {root} --sparse -cf {target}/tar . && sync -d {target}/tar",
        "cp -a --sparse=always": f"cp -a --sparse=always {root} {target} && sync -f {target}",
    }
    rows = [backups.row, *(Contender(name, ["sh", "-c", command], fresh) for name, command in shell.items())]
    for row in rows:
        row.system_cpu = True
    alternate(rows, rounds)
    backups.collect()
    frozen, mapped = (statistics.median(column) for column in zip(*backups.frozen, strict=True))
    return f"{table(rows, backups.row, size)}\nfrozen {frozen:.0f} ms, map {mapped:.0f} ms", rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", default=10_000, type=int)
    parser.add_argument("--extents", default=100_000, type=int)
    parser.add_argument("--rounds", default=3, type=int)
    parser.add_argument("--directory", default=".")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("mounts need root")
    document: dict[str, Any] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="timezero-bench-", dir=options.directory)))
        folder = folder.resolve()
        volume, control, nbd = folder / "volume", folder / "control", folder / "nbd"
        volume.touch()
        os.truncate(volume, 128 * GIB)
        words = ["--volume", f"data={volume}", "--control", control, "--quiet", "--nbd", f"nbd+unix:///?socket={nbd}"]
        stack.enter_context(Serving(words, folder / "serve.log", command=[TIMEZERO, "serve"]))
        make = ["mkfs.ext4", "-q", "-E", "lazy_itable_init=1,nodiscard"]
        root = stack.enter_context(mounted_export(f"nbd+unix:///data?socket={nbd}", folder / "mount", make))
        for name, size in (
            ("small", make_small(root / "small", options.files)),
            ("large", make_large(root / "large", options.extents)),
        ):
            try:
                text, rows = measure(folder, control, root / name, size, options.rounds)
            except subprocess.CalledProcessError as error:
                print(f"bench.files: {name}: {error}: {(error.stderr or '').strip()[-1000:]}", file=sys.stderr)
                return 1
            print(
                f"{name}: {options.files if name == 'small' else 1} files, {size / (1 << 20):.0f} MiB of data\n{text}\n"
            )
            document[name] = {row.name: [vars(sample) for sample in row.samples] for row in rows}
    if options.json:
        options.json.write_text(json.dumps(document, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
