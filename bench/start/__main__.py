"""What a command costs that has next to nothing to do, from exec to exit, beside its peers and a bare Python.

    python -m bench.start [--rounds 15] [--cold] [--directory DIR] [--json FILE]

A file of 1 MiB is copied, backed up, restored and listed. Programs are warm, as they are for a script that calls them
again and again; with --cold all caches are dropped before each run (needs root), as they are once after boot.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from shlex import quote

from bench.copy import peers
from bench.copy.sources import make_source
from bench.measure import Contender, alternate, as_document, ratio

SIZE = 1 << 20


def contenders(here: Path) -> list[Contender]:
    """The commands, with a source and a repository made in `here`."""
    source, target, fixed, new = (here / name for name in ("source", "target", "repository", "new"))
    make_source(source, SIZE)
    subprocess.run([peers.TIMEZERO, "backup", "--repo", fixed, source], check=True, stdout=subprocess.DEVNULL)

    def fresh() -> None:
        target.unlink(missing_ok=True)
        shutil.rmtree(new, ignore_errors=True)

    s, t = quote(str(source)), quote(str(target))
    convert = f"exec qemu-img convert -f raw -O raw -t none -T none {s} {t}"
    return [
        Contender("timezero copy", [peers.TIMEZERO, "copy", str(source), str(target)], fresh),
        Contender("timezero backup", [peers.TIMEZERO, "backup", "--repo", str(new), str(source)], fresh),
        Contender(
            "timezero restore", [peers.TIMEZERO, "restore", "--repo", str(fixed), "latest/source", str(target)], fresh
        ),
        Contender("timezero list", [peers.TIMEZERO, "list", "--repo", str(fixed)], fresh),
        Contender("timezero --help", [peers.TIMEZERO, "--help"], fresh),
        Contender("python -c pass", [sys.executable, "-c", "pass"], fresh),
        *peers.dds(source, target, fresh, ("1M",)),
        Contender("qemu-img convert", ["sh", "-c", convert], fresh),
        Contender("qemu-img --help", ["qemu-img", "--help"], fresh),
        peers.nbdcopy(source, target, fresh),
    ]


def table(rows: Sequence[Contender]) -> str:
    """Medians; `python`: how many times a bare Python the row takes."""
    floor = next(row for row in rows if row.name == "python -c pass")
    lines = [f"{'':<28}{'wall ms':>9}{'CPU ms':>9}{'peak MiB':>10}{'python':>8}{'noise':>8}"]
    for row in rows:
        wall, cpu, peak = row.median("wall") * 1e3, row.median("cpu") * 1e3, row.median("peak") / (1 << 20)
        lines.append(f"{row.name:<28}{wall:>9.1f}{cpu:>9.1f}{peak:>10.0f}{ratio(floor, row):>8.2f}{row.spread():>8.0%}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--directory", default=Path.cwd(), type=Path, help="where the files lie (in a new folder)")
    parser.add_argument("--json", type=Path, help="results go there too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="timezero-bench-", dir=options.directory) as folder:
        rows = contenders(Path(folder))
        # The first round is untimed: it brings programs into the cache, and their bytecode to the disk.
        alternate(rows, 1, cold=options.cold)
        for row in rows:
            row.samples.clear()
        alternate(rows, options.rounds, cold=options.cold)
    print(f"start: commands with 1 MiB to move, {'cold' if options.cold else 'warm'}; from exec to exit")
    print(table(rows))
    if options.json:
        options.json.write_text(json.dumps(as_document(rows, rows[0], SIZE), indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
