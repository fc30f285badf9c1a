"""C programs of the proofs, compiled when they are needed."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path


def compiled(source: Path, binary: Path, *options: str) -> Path:
    """`binary`, compiled from a C source with these options, libraries among them; again when the source is newer."""
    binary.parent.mkdir(parents=True, exist_ok=True)
    if not binary.exists() or binary.stat().st_mtime < source.stat().st_mtime:
        compiler = os.environ.get("CC") or shutil.which("cc") or "gcc"
        fresh = binary.with_name(f"{binary.stem}.{os.getpid()}")
        subprocess.run([compiler, "-o", fresh, source, *options], check=True)
        fresh.rename(binary)
    return binary
