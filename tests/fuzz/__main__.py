"""python -m tests.fuzz [--seconds N] [--target NAME]... [--found DIR] [--keep]: fuzz the readers that are Python.

Each target runs for so long in a process of its own, under atheris where it is installed, else under the engine beside
this. What breaks one is written to --found, and the exit code is 1. --keep: what reaches new lines goes to corpus/.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import subprocess
import sys
import time
import traceback
from pathlib import Path

from tests.fuzz import engine
from tests.fuzz.base import INPUT_MAX, Target
from tests.fuzz.targets import CORPUS, TARGETS, kept

#: Larger ones are not worth their place.
_KEEP_MAX = 4096


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--target", action="append", choices=sorted(TARGETS), default=[])
    parser.add_argument("--found", type=Path, default=Path("build/fuzz/found"))
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--engine", choices=("auto", "own", "atheris"), default="auto")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    names = options.target or sorted(TARGETS)
    options.found.mkdir(parents=True, exist_ok=True)
    if not options.alone:
        return max(_apart(name) for name in names)
    target = TARGETS[names[0]]
    if options.engine == "atheris" or (options.engine == "auto" and _has_atheris()):
        _atheris(target, options.seconds, options.found)
    return _own(target, options)


def _apart(name: str) -> int:
    """In a process of its own, so that what one leaves behind is not the next one's."""
    command = [sys.executable, "-m", "tests.fuzz", *sys.argv[1:], "--target", name, "--alone"]
    words = [word for i, word in enumerate(command) if not (word == "--target" or command[i - 1] == "--target")]
    return subprocess.run([*words, "--target", name], check=False).returncode


def _has_atheris() -> bool:
    try:
        import atheris  # noqa: F401
    except ImportError:
        return False
    return True


def _first(target: Target) -> list[bytes]:
    return [*target.seeds().values(), *(path.read_bytes() for path in kept(target))]


def _own(target: Target, options: argparse.Namespace) -> int:
    seed = int(time.time()) if options.seed is None else options.seed
    try:
        done, new = engine.fuzz(target.run, _first(target), seed=seed, seconds=options.seconds)
    except engine.Finding as finding:
        path = options.found / f"{target.name}-{hashlib.sha1(finding.data).hexdigest()[:12]}"
        path.write_bytes(finding.data)
        traceback.print_exception(finding.__cause__)
        print(f"{target.name}: broken by {path}", file=sys.stderr)
        return 1
    print(f"{target.name}: {done} inputs in {options.seconds:g} s, {len(new)} of them reach new lines (seed {seed})")
    if options.keep:
        (CORPUS / target.name).mkdir(parents=True, exist_ok=True)
        for data in new:
            if len(data) <= _KEEP_MAX:
                (CORPUS / target.name / hashlib.sha1(data).hexdigest()[:12]).write_bytes(data)
    return 0


def _atheris(target: Target, seconds: float, found: Path) -> None:
    """Does not return."""
    import atheris

    corpus = found.parent / "corpus" / target.name
    corpus.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(_first(target)):
        (corpus / f"first-{number}").write_bytes(data)
    others = _first(target)

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        if seed % 2:
            return bytes(atheris.Mutate(data, most))
        return engine.mutate(bytes(data), random.Random(seed), others)[:most]

    words = [sys.argv[0], str(corpus), f"-max_total_time={seconds:g}", f"-max_len={INPUT_MAX}", "-timeout=30"]
    atheris.instrument_all()
    atheris.Setup(
        [*words, f"-artifact_prefix={found}/{target.name}-", "-verbosity=1"], target.run, custom_mutator=mutate
    )
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
