"""Single calls of the bitmap, from C, where the gate and the mover make them: bits.c, built against csrc/data."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def build(directory: Path) -> Path:
    """The flags of setup.py, asserts included; two sources, so that calls stay calls."""
    binary = directory / "bits"
    compiler = os.environ.get("CC") or shutil.which("cc") or "gcc"
    flags = ["-std=gnu11", "-D_GNU_SOURCE", "-O2", "-I", ROOT / "csrc/include"]
    sources = [Path(__file__).with_name("bits.c"), ROOT / "csrc/data/bitmap.c"]
    subprocess.run([compiler, *flags, "-o", binary, *sources], check=True)
    return binary


def test_calls(benchmark: Any, figure: Callable[[str, str, float], None], tmp_path: Path) -> None:
    binary = build(tmp_path)
    printed = benchmark.pedantic(lambda: subprocess.run([binary], check=True, capture_output=True).stdout, rounds=1)
    rows = json.loads(printed)
    for topic, who, each in rows:
        benchmark.extra_info[f"{topic}: {who}"] = each
        figure(topic, who, each)
    assert len(rows) == 15
