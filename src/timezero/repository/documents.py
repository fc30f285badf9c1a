"""JSON documents that carry their own digest, and the checks of what is in them.

A document is a JSON object whose last member is "digest": SHA-256 over the bytes of the file before that member's line.
So every byte of the file counts, and `head -n -2 FILE | sha256sum` checks one without timezero.

Errors: VerificationError, which says what is wrong with which file; TimezeroError when it cannot be opened.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from timezero.errors import TimezeroError, VerificationError

_T = TypeVar("_T")
_TRAILER = re.compile(rb' "digest": "sha256:([0-9a-f]{64})"\n}\n')
_TRAILER_BYTES = len(b' "digest": "sha256:"\n}\n') + 64
#: A manifest has less than a KiB a dataset: room for some two hundred thousand.
DOCUMENT_MAX_BYTES = 128 << 20
#: What a bad sector, or metadata of a file system that does not match its checksum, comes to.
LOST = {errno.EIO, errno.EUCLEAN, errno.EBADMSG}


def render(fields: Mapping[str, Any]) -> bytes:
    """The file content of a document with these members (none of them "digest").

    A line a member, and one an object in a list: to be read by people, and written by json's C encoder, which knows no
    indentation.
    """
    lines = [f" {json.dumps(key)}: {_member(value)},\n" for key, value in fields.items()]
    head = "".join(("{\n", *lines)).encode("ascii")
    return head + b' "digest": "sha256:%s"\n}\n' % hashlib.sha256(head).hexdigest().encode()


def _member(value: Any) -> str:
    if isinstance(value, (list, tuple)) and value and isinstance(value[0], dict):
        objects = ",\n  ".join(map(json.dumps, value))
        return f"[\n  {objects}\n ]"
    return json.dumps(value)


def parse(content: bytes, where: str) -> Fields:
    """The members of a document, its digest checked. `where` names it in errors."""
    trailer = _TRAILER.fullmatch(content[-_TRAILER_BYTES:])
    if not trailer:
        raise VerificationError(f"{where}: altered or truncated: it does not end in its digest")
    if hashlib.sha256(content[:-_TRAILER_BYTES]).hexdigest().encode() != trailer[1]:
        raise VerificationError(f"{where}: altered or truncated: it does not match its digest")
    try:
        value = json.loads(content, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise VerificationError(f"{where}: altered or truncated: {error}") from None
    return Fields(value, where)


def load(path: str) -> Fields:
    """Read and parse a document. FileNotFoundError when it is not there."""
    return parse(read_limited(path, DOCUMENT_MAX_BYTES), path)


def read_limited(path: str, limit: int, most: int | None = None) -> bytes:
    """The content of a regular file that must not be larger than `limit` bytes; no more than `most` of it."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise unreadable(path, error) from error
    with open(fd, "rb") as file:
        size = os.fstat(fd).st_size
        if size > limit:
            raise VerificationError(f"{path}: altered: {size} bytes are more than the {limit} it can have")
        try:
            return file.read(limit + 1 if most is None else most)
        except OSError as error:
            raise unreadable(path, error) from error


def unreadable(path: str, error: OSError) -> TimezeroError:
    """Why a file cannot be read: VerificationError when its disk or file system has lost it."""
    kind = VerificationError if error.errno in LOST else TimezeroError
    return kind(f"{path}: cannot be read: {error.strerror}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member is there twice")
    return members


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is no number")


class Fields:
    """The members of a JSON object, taken with their type and range checked. Members nobody asks for are left alone."""

    def __init__(self, value: Any, where: str) -> None:
        self._where = where
        if not isinstance(value, dict):
            self.fail("an object is expected")
        self._members: dict[str, Any] = value

    def fail(self, problem: str) -> Any:
        """Raise VerificationError for this document."""
        raise VerificationError(f"{self._where}: altered or truncated: {problem}")

    def __contains__(self, key: str) -> bool:
        return key in self._members

    def raw(self) -> dict[str, Any]:
        """The members as they are, for a reader with checks of its own."""
        return self._members

    def _get(self, key: str) -> Any:
        if key not in self._members:
            self.fail(f"{key!r} is missing")
        return self._members[key]

    def integer(self, key: str, low: int = 0, high: int = 2**63 - 1) -> int:
        """An integer in [low, high]."""
        value = self._get(key)
        if type(value) is not int or not low <= value <= high:
            self.fail(f"{key!r} is not an integer from {low} to {high}")
        return int(value)

    def power_of_two(self, key: str, low: int, high: int) -> int:
        """A power of two in [low, high]."""
        value = self.integer(key, low, high)
        if value & (value - 1):
            self.fail(f"{key!r} is not a power of two")
        return value

    def text(self, key: str, limit: int = 4096, pattern: str | None = None) -> str:
        """A string of at most `limit` characters that matches `pattern` entirely."""
        value = self._get(key)
        if not isinstance(value, str) or len(value) > limit or (pattern and not re.fullmatch(pattern, value, re.ASCII)):
            self.fail(f"{key!r} is not the text that belongs there")
        return str(value)

    def flag(self, key: str) -> bool:
        """true or false."""
        value = self._get(key)
        if type(value) is not bool:
            self.fail(f"{key!r} is neither true nor false")
        return bool(value)

    def numbers(self, key: str) -> dict[str, int]:
        """An object of non-negative integers."""
        found = self._get(key)
        if not isinstance(found, dict):
            self.fail(f"{key!r} is not an object")
        for name, value in found.items():
            if type(value) is not int or not 0 <= value < 2**64:
                self.fail(f"{key!r}: {name!r} is not an integer from 0 to {2**64 - 1}")
        return dict(found)

    def object(self, key: str) -> Fields | None:
        """An object, or None for null."""
        value = self._get(key)
        return None if value is None else Fields(value, f"{self._where}: {key}")

    def each(self, key: str, build: Callable[[Fields], _T], limit: int = 1 << 20) -> tuple[_T, ...]:
        """A list of objects, each built by `build`."""
        value = self._get(key)
        if not isinstance(value, list) or len(value) > limit:
            self.fail(f"{key!r} is not a list of at most {limit}")
        return tuple(build(entry) for entry in self._entries(key, value))

    def _entries(self, key: str, values: list[Any]) -> Iterator[Fields]:
        for number, value in enumerate(values):
            yield Fields(value, f"{self._where}: {key}[{number}]")
