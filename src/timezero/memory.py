"""How much memory this process takes, as the kernel counts it. What bounds it: docs/memory.md."""

from __future__ import annotations


def resident() -> int:
    """Bytes that are in memory now, those that it shares with others included."""
    return _status(b"VmRSS:")


def peak() -> int:
    """Bytes that were in memory at its worst moment."""
    return _status(b"VmHWM:")


def held() -> int:
    """Bytes in memory that the kernel cannot take back: without mapped files, which it can read again."""
    return _status(b"RssAnon:") + _status(b"RssShmem:")


def _status(key: bytes) -> int:
    with open("/proc/self/status", "rb") as file:
        return next((int(line.split()[1]) * 1024 for line in file if line.startswith(key)), 0)
