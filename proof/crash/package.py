"""The package as the sweep needs it: with crash points, in a folder of its own.

It is used by being first in PYTHONPATH, so that it needs no environment of its own: an interpreter that finds it there
runs it instead of the one that is installed. Objects are kept apart by their flags (setup.py), and a second build takes
seconds.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "build" / "crash-package"


def build() -> Path:
    """The folder that the package is in, made or brought up to date."""
    PACKAGE.mkdir(parents=True, exist_ok=True)
    environment = {key: value for key, value in os.environ.items() if key != "TIMEZERO_SANITIZE"}
    environment["TIMEZERO_CRASH_POINTS"] = "1"
    with (PACKAGE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for source in PACKAGE.rglob("*.py"):  # what was removed must not stay
            source.unlink()
        done = subprocess.run(
            [sys.executable, "setup.py", "-q", "build", "--build-lib", PACKAGE],
            cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"the package with crash points cannot be built: {done.stdout}{done.stderr}")
        shutil.copyfile(Path(__file__).with_name("points.py"), PACKAGE / "timezero" / "_crash.py")
    return PACKAGE


def environment(package: Path, point: str = "", *, stop: bool = False, engine: str = "auto") -> dict[str, str]:
    """Of a process that runs the package, and dies (or stops) at `point`, which may be NAME:N. engine: for its I/O."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("TIMEZERO_")}
    crash = {"TIMEZERO_CRASH_AT": point, "TIMEZERO_CRASH_HOW": "stop" if stop else "kill"} if point else {}
    return kept | {"PYTHONPATH": str(package), "TIMEZERO_IO": engine} | crash
