"""timezero copy and its kin beside what people use today: dd, qemu-img convert, nbdcopy, cp.

    python -m bench.copy [--topic disk|loop|latency|sparse|repository|sweep]... [--quick] [--size 8G] [--rounds 3]
                         [--directory DIR] [--json FILE]

Everything is cold, direct where the tool can, and durable at the end; digests are on. Needs root, for loop devices and
cold caches. `ratio`: how many times faster timezero is than the row, the median of the ratios round by round.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

from bench.copy.sources import size_of
from bench.copy.sweep import sweep
from bench.copy.topics import TOPICS, Result, Settings
from bench.measure import as_document

#: Bytes of a quick run: all topics in about two minutes on an idle machine. In full, loop devices must fit into memory.
_QUICK = {"disk": 2 << 30, "loop": 1 << 30, "latency": 1 << 29, "sparse": 1 << 30, "repository": 1 << 30}
_FULL = {"disk": 8 << 30, "loop": 4 << 30, "latency": 4 << 30, "sparse": 4 << 30, "repository": 8 << 30}
_TOOLS = ("dd", "cp", "qemu-img", "nbdcopy", "nbdkit", "nbdfuse", "losetup")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topic", action="append", choices=[*TOPICS, "sweep"], help="default: all but the sweep")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--size", type=size_of, help="of the source")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--directory", default=Path.cwd(), type=Path, help="where the files lie (in a new folder)")
    parser.add_argument("--json", type=Path, help="results go there too")
    options = parser.parse_args()
    missing = [tool for tool in _TOOLS if not shutil.which(tool)]
    if missing:
        parser.error(f"not installed: {', '.join(missing)}: run scripts/bootstrap.sh all")
    results: dict[str, list[Result]] = {}
    for topic in options.topic or TOPICS:
        sizes = _QUICK if options.quick else _FULL
        size = options.size or sizes.get(topic, 1 << 30)
        settings = Settings(size, options.rounds or (2 if options.quick else 3), options.directory, options.quick)
        try:
            results[topic] = (sweep if topic == "sweep" else TOPICS[topic])(settings)
        except subprocess.CalledProcessError as error:
            print(f"bench.copy: {topic}: {error}: {(error.stderr or '').strip()}", file=sys.stderr)
            return 1
        print("\n".join(result.text() for result in results[topic]), flush=True)
    if options.json:
        documents = {
            topic: [{"title": r.title, **as_document(r.rows, r.ours or r.rows[0], r.size)} for r in tables]
            for topic, tables in results.items()
        }
        options.json.write_text(json.dumps(documents, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
