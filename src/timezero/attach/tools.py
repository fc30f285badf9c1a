"""Programs that attach and detach are made of, and what the kernel shows of them."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from timezero._linux.escapes import unescape
from timezero.errors import TimezeroError

_TIMEOUT_S = 60.0
_SAID_MAX = 200
_PATH = os.pathsep.join(("/usr/local/sbin", "/usr/sbin", "/sbin"))  # often not in the PATH of who is not root

PROC = Path("/proc")
SYSFS = Path("/sys")


def find(tool: str) -> str | None:
    """The path of a program."""
    return shutil.which(tool, path=os.environ.get("PATH", os.defpath) + os.pathsep + _PATH)


def need(tool: str, package: str) -> str:
    """The path of a program. Raises TimezeroError."""
    if (path := find(tool)) is None:
        raise TimezeroError(f"{tool} is missing: install it (Debian: {package})")
    return path


def run(what: str, command: Sequence[str | Path]) -> str:
    """Run a program to its end; what it printed. Raises TimezeroError with its last words, after `what`."""
    words = [os.fspath(word) for word in command]
    try:
        done = subprocess.run(
            words, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        raise TimezeroError(f"{what}: {words[0]} did not end within {_TIMEOUT_S:g} s") from None
    if done.returncode:
        raise TimezeroError(f"{what}: {words[0]}: {last_words(done.stderr or done.stdout)}")
    return done.stdout.strip()


def last_words(text: str) -> str:
    """The last line that says something."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:_SAID_MAX] if lines else "it said nothing"


def wait_for(condition: Callable[[], bool], seconds: float) -> bool:
    """Look again and again; did it come true in time?"""
    end = time.monotonic() + seconds
    pause = 0.002
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(pause)
        pause = min(pause * 2, 0.1)
    return True


def processes() -> Iterator[tuple[int, list[str]]]:
    """Our user's processes: number and arguments."""
    for entry in PROC.iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if entry.stat().st_uid == os.geteuid():
                words = (entry / "cmdline").read_bytes().split(b"\0")
                yield int(entry.name), [os.fsdecode(word) for word in words[:-1]]
        except OSError:
            continue  # it ended meanwhile


def program(pid: int) -> str:
    """The name of the program that a process runs, which its arguments may lie about; empty when it has ended."""
    try:
        return os.path.basename(os.readlink(PROC / str(pid) / "exe")).removesuffix(" (deleted)")
    except OSError:
        return ""


def mounts_on(point: Path) -> int:
    """How many file systems are mounted on a path, one over the other. Works for those whose server is dead."""
    table = (PROC / "self" / "mountinfo").read_text(errors="surrogateescape")
    return sum(unescape(line.split()[4]) == str(point) for line in table.splitlines())


def loops_on(file: Path) -> list[str]:
    """The loop devices over a file, by its path: /dev/loop0. Works when the file cannot be looked at any more."""
    found = []
    for backing in sorted(SYSFS.glob("block/loop*/loop/backing_file")):
        try:
            if backing.read_text(errors="surrogateescape").rstrip("\n").removesuffix(" (deleted)") == str(file):
                found.append(f"/dev/{backing.parent.parent.name}")
        except OSError:
            continue  # detached meanwhile
    return found
