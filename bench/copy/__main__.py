"""timezero copy beside dd, qemu-img convert and nbdcopy: one file, cold, direct, durable at the end.

    python -m bench.copy [--size 8G] [--rounds 3] [--directory DIR] [--json FILE]

dd at block sizes of 64 KiB to 16 MiB, and the best of them; qemu-img with 16 coroutines; nbdcopy reading through
nbdkit's file plugin. Every target is a new file. timezero computes and keeps nothing less than usual: digests are on.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np

from bench.measure import Contender, alternate, as_json, ratio, table

BLOCKS = ("64K", "256K", "1M", "4M", "16M")


def size_of(text: str) -> int:
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    return int(text[:-1]) * units[text[-1]] if text[-1] in units else int(text)


def make_source(path: Path, size: int) -> None:
    """Incompressible content without two equal chunks: a block of random bytes, stamped anew each time it is used."""
    block = np.random.default_rng(1).integers(0, 1 << 63, size=(16 << 20) // 8, dtype=np.uint64)
    with path.open("wb") as out:
        for number in range(0, size, block.nbytes):
            block[:: 1 << 9] += np.uint64(number + 1)
            out.write(block[: (size - number) // 8].tobytes() if size - number < block.nbytes else block.data)


def contenders_for(source: Path, target: Path, timezero: str) -> list[Contender]:
    def fresh() -> None:
        target.unlink(missing_ok=True)

    s, t = str(source), str(target)
    rows = [Contender("timezero copy", [timezero, "copy", s, t], fresh)]
    for bs in BLOCKS:
        command = ["dd", f"if={s}", f"of={t}", f"bs={bs}", "iflag=direct", "oflag=direct", "conv=fsync", "status=none"]
        rows.append(Contender(f"dd bs={bs}", command, fresh))
    if shutil.which("qemu-img"):
        convert = f"qemu-img convert -f raw -O raw -t none -T none -W -m 16 -S 0 '{s}' '{t}' && sync -d '{t}'"
        rows.append(Contender("qemu-img convert -m 16", ["sh", "-c", convert], fresh))
    if shutil.which("nbdcopy") and shutil.which("nbdkit"):
        copy = f"exec nbdcopy --flush -- [ nbdkit --exit-with-parent file '{s}' ] '{t}'"
        rows.append(Contender("nbdcopy", ["sh", "-c", copy], fresh))
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="8G", type=size_of)
    parser.add_argument("--rounds", default=3, type=int)
    parser.add_argument("--directory", default=None, help="where the files lie while it runs (a new folder in it)")
    parser.add_argument("--timezero", default=str(Path(sys.executable).with_name("timezero")))
    parser.add_argument("--json", default=None)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="timezero-bench-", dir=options.directory or Path.cwd()) as folder:
        source, target = Path(folder) / "source", Path(folder) / "target"
        make_source(source, options.size)
        rows = contenders_for(source, target, options.timezero)
        alternate(rows, options.rounds)
    ours, dds = rows[0], [r for r in rows if r.name.startswith("dd ")]
    best = min(dds, key=lambda r: r.median("wall"))
    at_1m = next(r for r in dds if r.name == "dd bs=1M")
    print(f"copy of {options.size / (1 << 30):g} GiB, {options.rounds} rounds, medians")
    print(table(rows, ours, options.size))
    print(f"best dd: {best.name}, timezero is {ratio(ours, best):.2f} times as fast; CPU against dd bs=1M: "
          f"{(ours.median('cpu') - at_1m.median('cpu')) / (options.size / (1 << 30)):+.3f} s/GiB")  # fmt: skip
    missing = [p for p in ("qemu-img", "nbdcopy", "nbdkit") if not shutil.which(p)]
    if missing:
        print(f"not measured, not installed: {', '.join(missing)}", file=sys.stderr)
    if options.json:
        Path(options.json).write_text(as_json(rows, ours, options.size))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
