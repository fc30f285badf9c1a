"""Standard error for a program whose exit code is its answer."""

from __future__ import annotations

import os
import sys
from contextlib import suppress


def tell(text: str) -> None:
    """Write to stderr when anybody reads it; when nobody does, or its disk is full, the text is lost and nothing else.

    Past Python's buffer: the interpreter tries what is left in it once more at exit, and would end with 120, not with
    our exit code.
    """
    if sys.stderr is None:  # closed before we were started
        return
    try:
        fd = sys.stderr.fileno()
    except (OSError, ValueError):  # a stand-in, without a descriptor
        sys.stderr.write(text)
        return
    rest = text.encode(errors="backslashreplace")
    with suppress(OSError):
        while rest:
            rest = rest[os.write(fd, rest) :]


def print_line(text: str) -> None:
    """Print a line on stdout, now. Raises OSError when nobody takes it.

    Then nobody will: the interpreter must not try what is left in its buffer once more at exit, and end with 120.
    """
    try:
        print(text, flush=True)
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        os.dup2(null, 1)
        os.close(null)
        raise


def columns_of(fd: int) -> int:
    """The width of the terminal that `fd` is; 80 where it is none."""
    try:
        return os.get_terminal_size(fd).columns or 80
    except OSError:
        return 80
