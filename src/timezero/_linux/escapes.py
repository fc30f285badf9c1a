"""What the kernel has escaped in its tables: mounts, swap. Imports next to nothing: every command comes by here."""

from __future__ import annotations

import re


def unescape(field: str) -> str:
    """The kernel writes space, tab, newline and backslash as three octal digits."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)
