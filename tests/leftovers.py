"""What a test run that was killed left behind: mounts and loop devices, over servers that are gone.

They would make a later run fail for no reason of its own: mkfs.btrfs, for one, looks at every loop device there is, and
ends when the file behind one of them does not answer.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def sweep(base: Path) -> list[str]:
    """Take down what is left in the folders of test runs that are no more; what was taken down.

    base: the folder in which pytest makes a folder a run, with a file .lock that holds the process while it lives.
    """
    dead = [str(folder) + "/" for folder in base.glob("pytest-*") if not folder.is_symlink() and not _in_use(folder)]
    mounts = [(line["target"], line["source"]) for line in _listed("findmnt", "--list", "--output=TARGET,SOURCE")]
    mounts = [(target, source) for target, source in mounts if target.startswith(tuple(dead))]
    devices = {source for _, source in mounts if source.startswith("/dev/loop")}
    for line in _listed("losetup", "--list", "--output=NAME,BACK-FILE"):
        if (line["back-file"] or "").startswith(tuple(dead)):
            devices.add(line["name"])

    for target, _ in reversed(mounts):  # lazily: nobody answers for what is below
        _run("umount", "--lazy", target)
    for device in devices:
        _run("losetup", "--detach", device)
    return [target for target, _ in mounts] + sorted(devices)


def _in_use(folder: Path) -> bool:
    try:
        process = int((folder / ".lock").read_text())
        return b"pytest" in Path(f"/proc/{process}/cmdline").read_bytes()
    except (OSError, ValueError):
        return False


def _listed(*command: str) -> Iterator[dict[str, Any]]:
    out = _run(*command, "--json")
    return iter(next(iter(json.loads(out).values())) if out.strip() else [])


def _run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False).stdout
