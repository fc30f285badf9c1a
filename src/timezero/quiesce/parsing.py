"""Hooks from what the user wrote."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from timezero.errors import UsageError
from timezero.quiesce.agent import AgentHook
from timezero.quiesce.command import ExecHook
from timezero.quiesce.fsfreeze import FsfreezeHook, MakeFreezer, watchdog
from timezero.quiesce.hooks import Hook

_FORMS = "fsfreeze:PATH, exec:pre=CMD,post=CMD or qga:SOCKET"
_SPLIT = re.compile(r"(?<!\\),(?=(?:pre|post)=)")
_ESCAPED = re.compile(r"\\(?=,(?:pre|post)=)")


def parse(text: str, *, make_freezer: MakeFreezer = watchdog) -> Hook:
    """One hook. Raises UsageError.

    In exec, a comma that `post=` follows directly begins the other command; every other comma belongs to the command,
    and so does one with a backslash before it, which is taken away: `exec:pre=a\\,post=b` is one command, `a,post=b`.
    """
    kind, colon, rest = text.partition(":")
    if not colon or kind not in ("fsfreeze", "exec", "qga"):
        raise UsageError(f"quiesce {text!r}: is no hook: write {_FORMS}")
    if not rest or "\0" in rest:
        raise UsageError(f"quiesce {text!r}: {'holds a NUL' if rest else 'says not what'}: write {_FORMS}")
    if kind == "fsfreeze":
        return FsfreezeHook(text, os.path.abspath(rest), make_freezer)
    if kind == "qga":
        return AgentHook(text, os.path.abspath(rest))
    return _parse_exec(text, rest)


def _parse_exec(text: str, rest: str) -> ExecHook:
    commands: dict[str, str] = {}
    for piece in _SPLIT.split(rest):
        key, equals, command = piece.partition("=")
        if not equals or key not in ("pre", "post"):
            raise UsageError(f"quiesce {text!r}: write exec:pre=CMD,post=CMD, or one of the two")
        if key in commands or (key == "pre" and commands):
            raise UsageError(
                f"quiesce {text!r}: one pre=, then one post=; within a command, a comma before those words is \\,"
            )
        if not command.strip():
            raise UsageError(f"quiesce {text!r}: {key}= is empty: leave it out")
        commands[key] = _ESCAPED.sub("", command)
    return ExecHook(text, commands.get("pre"), commands.get("post"))


def parse_all(texts: Sequence[str], *, make_freezer: MakeFreezer = watchdog) -> list[Hook]:
    """All hooks of a job, each once, each looked at. Raises UsageError."""
    hooks = [parse(text, make_freezer=make_freezer) for text in texts]
    for text in texts:
        if texts.count(text) > 1:
            raise UsageError(f"quiesce {text!r}: is given twice")
    for hook in hooks:
        hook.check()
    return hooks
