"""A command imports what it uses. What these modules take shows in bench/start: most of a short command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

#: Tens of milliseconds, all in all: what uses one of them imports it where it is used.
HEAVY = {
    "asyncio", "bz2", "cffi", "ctypes", "dataclasses", "email", "importlib.metadata", "inspect", "logging", "lzma",
    "multiprocessing", "numpy", "pathlib", "platform", "random", "shutil", "subprocess", "tempfile",
    "timezero._linux.calls", "timezero.config", "timezero.doctor", "timezero.subsystem", "tomllib", "unittest",
    "urllib.parse", "uuid",
}  # fmt: skip
_NO_REPOSITORY = {"hashlib", "json", "socket", "timezero.repository.manifest"}
_NO_JOB = {"timezero._native.mover", "timezero.jobs"}
_PROGRAM = """
import sys
from timezero.cli import main
try:
    code = main(sys.argv[1:])
except SystemExit as end:
    code = end.code
print(*sys.modules, file=sys.stderr)
sys.exit(code)
"""


def loaded(*words: object, code: int = 0) -> set[str]:
    """The modules there are when a command has ended."""
    command = [sys.executable, "-c", _PROGRAM, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code, done.stderr
    return set(done.stderr.splitlines()[-1].split())


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(bytes(range(256)) * 4096)
    return path


def test_help_and_version_import_nothing_else() -> None:
    for words in (["--help"], ["--version"], ["copy", "--help"]):
        assert loaded(*words) & (HEAVY | _NO_REPOSITORY | _NO_JOB) == set()


def test_a_copy_imports_no_repository(source: Path) -> None:
    assert loaded("copy", source, f"{source}.copy") & (HEAVY | _NO_REPOSITORY) == set()


def test_backup_list_and_restore(source: Path, tmp_path: Path) -> None:
    repo = tmp_path / "repo"
    assert loaded("backup", "--repo", repo, source) & (HEAVY | {"socket"}) == set()
    assert loaded("list", "--repo", repo) & (HEAVY | _NO_JOB | {"socket"}) == set()
    assert loaded("restore", "--repo", repo, "latest", tmp_path / "target") & (HEAVY | {"socket"}) == set()


def test_status(tmp_path: Path) -> None:
    assert loaded("status", "--control", tmp_path / "none", code=1) & (HEAVY | _NO_JOB) == set()


def test_the_parser_of_one_command_knows_of_the_others_when_none_is_named() -> None:
    for words, code in ((["--help", "copy"], 0), (["nothing"], 2)):
        done = subprocess.run([sys.executable, "-m", "timezero", *words], capture_output=True, text=True, check=False)
        assert done.returncode == code
        assert "serve" in done.stdout + done.stderr and "verify" in done.stdout + done.stderr
