"""Which datasets a user means: a name, a directory of files, or a glob.

    *  ?  [abc]  [!a-z]     within a component of the path; a leading dot is nothing special
    **                      anything, `/` too; `**/` also nothing
    \\x                      x itself

A pattern that matches a directory means everything below it.
"""

from __future__ import annotations

import re

from timezero.errors import UsageError

_ANYTHING = ".*"
_ANY_DIRECTORIES = "(?:.*/)?"


def compile_pattern(text: str) -> re.Pattern[str]:
    """What matches the names that `text` means. Raises UsageError."""
    try:
        return re.compile(f"{_expression(text.rstrip('/'))}(?:/.*)?", re.DOTALL)
    except re.error as error:
        raise UsageError(f"{text!r} is no pattern: {error}") from None


def _expression(rest: str) -> str:
    """The regular expression of a pattern, without what adds nothing: each would double the time matching takes."""
    parts: list[str] = []
    while rest:
        part, rest = _next(rest)
        if part == _ANY_DIRECTORIES and (parts[-1:] == [part] or parts[-2:] == [_ANYTHING, "/"]):
            continue
        if part == _ANYTHING and parts[-1:] == [_ANY_DIRECTORIES]:
            parts.pop()
        parts.append(part)
    return "".join(parts)


def _next(rest: str) -> tuple[str, str]:
    """The regular expression of the first element of a pattern, and what follows."""
    if rest.startswith("**/"):
        return _ANY_DIRECTORIES, rest[3:]
    if rest.startswith("**"):
        return _ANYTHING, rest.lstrip("*")
    if rest[0] == "*":
        return "[^/]*", rest[1:]
    if rest[0] == "?":
        return "[^/]", rest[1:]
    if rest[0] == "\\" and len(rest) > 1:
        return re.escape(rest[1]), rest[2:]
    if rest[0] == "[":
        negated = rest[1:2] in ("!", "^")
        first = 2 if negated else 1
        end = rest.find("]", first + 1)  # a bracket that comes first is one of the characters
        if end > 0:
            characters = re.sub(r"([\\\[\]&~|^])", r"\\\1", rest[first:end])
            return f"(?!/)[{'^' if negated else ''}{characters}]", rest[end + 1 :]
    return re.escape(rest[0]), rest[1:]
