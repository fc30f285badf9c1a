"""Running the command line as a user does, and looking at what it left behind."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COMMAND = [sys.executable, "-m", "timezero"]
MIB = 1 << 20


@dataclass
class Outcome:
    """How a command ended."""

    code: int
    out: bytes
    err: str

    @property
    def document(self) -> Any:
        """What --json printed."""
        return json.loads(self.out)


def environment(**extra: str) -> dict[str, str]:
    """Ours, without what would change the command's defaults."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("TIMEZERO_")}
    return kept | extra


def timezero(*words: object, timeout: float = 60, env: Mapping[str, str] | None = None, **options: Any) -> Outcome:
    """Run a command to its end."""
    command = [*COMMAND, *map(str, words)]
    env = environment(**(env or {}))
    done = subprocess.run(command, capture_output=True, timeout=timeout, env=env, check=False, **options)
    return Outcome(done.returncode, done.stdout, done.stderr.decode(errors="replace"))


def succeed(*words: object, **options: Any) -> Any:
    """Run a command that has to succeed; its document."""
    outcome = timezero(*words, "--json", **options)
    assert outcome.code == 0, outcome.err
    return outcome.document


def snapshot(root: Path) -> dict[str, str]:
    """Every name under a directory, with what it is."""
    return {str(path.relative_to(root)): _content(path) for path in sorted(root.rglob("*"))}


def _content(path: Path) -> str:
    if path.is_symlink():
        return f"link to {path.readlink()}"
    if path.is_file():
        return f"{path.stat().st_size} {digest(path)}"
    return "directory" if path.is_dir() else "other"


def digest(path: Path) -> str:
    """SHA-256 of a file or device."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def image(path: Path, size: int, *, seed: int = 1) -> Path:
    """A file of `size` bytes: data that does not repeat, zeros, and a hole."""
    with open(path, "wb") as file:
        for number, offset in enumerate(range(0, size, MIB)):
            length = min(MIB, size - offset)
            if number % 4 == 2:
                file.write(bytes(length))
            elif number % 4 == 3:
                file.seek(length, os.SEEK_CUR)
            else:
                file.write(hashlib.shake_128(f"{seed} {number}".encode()).digest(length))
        file.truncate(size)
    return path
