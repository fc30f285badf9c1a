"""What a file is besides its content: mode, owner, times and extended attributes, ACLs and capabilities among them."""

from __future__ import annotations

import base64
import binascii
import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

_NUMBERS = {"mode": (0, 0o7777), "uid": (0, 2**32 - 2), "gid": (0, 2**32 - 2)}
_TIMES = ("mtime_ns", "atime_ns")

#: xfs shows its ACLs twice: like this, and as system.posix_acl_*, as other file systems do and take them.
_TWICE = frozenset(("trusted.SGI_ACL_FILE", "trusted.SGI_ACL_DEFAULT"))


@dataclass(frozen=True)
class Metadata:
    """`mode`: permission bits, without the type of the file. Times are nanoseconds since 1970.

    Extended attributes are kept as the kernel gives them: system.posix_acl_access and security.* are opaque bytes.
    """

    mode: int
    uid: int
    gid: int
    mtime_ns: int
    atime_ns: int
    xattrs: Mapping[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        kept = {name: value for name, value in self.xattrs.items() if name not in _TWICE}
        object.__setattr__(self, "xattrs", kept)

    def to_json(self) -> dict[str, Any]:
        """For a manifest: numbers, and attributes in base64. Names that are no UTF-8 have surrogate escapes."""
        attributes = {name: base64.b64encode(value).decode("ascii") for name, value in sorted(self.xattrs.items())}
        numbers = {name: getattr(self, name) for name in (*_NUMBERS, *_TIMES)}
        return {**numbers, "xattrs": attributes}

    @classmethod
    def from_json(cls, document: object) -> Metadata:
        """The opposite of to_json. Raises ValueError for anything else, such as a manifest that was tampered with."""
        if not isinstance(document, dict):
            raise ValueError("metadata: not an object")
        numbers = {name: _number(document, name, *bounds) for name, bounds in _NUMBERS.items()}
        times = {name: _number(document, name, -(2**63), 2**63 - 1) for name in _TIMES}
        attributes = document.get("xattrs")
        if not isinstance(attributes, dict):
            raise ValueError("metadata: xattrs: not an object")
        return cls(**numbers, **times, xattrs={name: _value(name, value) for name, value in attributes.items()})

    @classmethod
    def of(cls, descriptor: int) -> Metadata:
        """Of an open file. Raises OSError."""
        status = os.fstat(descriptor)
        attributes = {name: os.getxattr(descriptor, name) for name in os.listxattr(descriptor)}
        return cls(
            stat.S_IMODE(status.st_mode),
            status.st_uid,
            status.st_gid,
            status.st_mtime_ns,
            status.st_atime_ns,
            attributes,
        )

    def apply(self, descriptor: int) -> list[str]:
        """Give it to an open file that has its content already; what could not be applied, and why, a line each.

        Owner first: changing it takes setuid and capabilities away. Then attributes, while the file is sure to be
        writable by who restores it; then the mode, which an ACL would change; times last, since all else changes them.
        Where the owner could not be applied, setuid and setgid are left out: they would be somebody else's.
        """
        problems: list[str] = []
        mode = self.mode
        if not _try(problems, f"owner {self.uid}:{self.gid}", lambda: os.fchown(descriptor, self.uid, self.gid)):
            if mode & (stat.S_ISUID | stat.S_ISGID):
                problems.append("setuid and setgid: left out, because the owner is another")
            mode &= ~(stat.S_ISUID | stat.S_ISGID)
        for name, value in self.xattrs.items():
            _try(problems, f"attribute {name}", partial(os.setxattr, descriptor, name, value))
        _try(problems, f"mode {mode:04o}", lambda: os.fchmod(descriptor, mode))
        _try(problems, "times", lambda: os.utime(descriptor, ns=(self.atime_ns, self.mtime_ns)))
        return problems


def _try(problems: list[str], what: str, apply: Callable[[], None]) -> bool:
    try:
        apply()
    except OSError as error:
        problems.append(f"{what}: {error.strerror}")
        return False
    return True


def _number(document: Mapping[str, object], name: str, least: int, most: int) -> int:
    value = document.get(name)
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"metadata: {name}: must be a number from {least} to {most}")
    return value


def _value(name: str, value: object) -> bytes:
    if not isinstance(value, str) or not name or "\0" in name:
        raise ValueError(f"metadata: xattrs: {name!r}: must be a name with a base64 text")
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(f"metadata: xattrs: {name}: is not base64") from None
