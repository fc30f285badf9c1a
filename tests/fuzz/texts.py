"""Texts that a user, a script or another program hands over: URIs, patterns, sizes, hooks, configuration files."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.fuzz.base import Input, Target
from timezero import config, quiesce, units
from timezero.errors import TimezeroError
from timezero.nbd import uri
from timezero.repository import files, names
from timezero.repository.patterns import compile_pattern

_NAMES = ["disk", "data:/etc/hosts", "data:/" + "a/" * 60 + "b", "x" * 200, "\u00fc\n"]


def _uri(text: str) -> None:
    endpoint = uri.parse(text)
    assert uri.parse(endpoint.uri()) == endpoint


def _pattern(text: str) -> None:
    matches = compile_pattern(text).fullmatch
    # The time taken grows with each further star as a power of the name's length, and the stars are the user's own.
    for name in _NAMES if text.replace("**/", "").count("*") <= 3 else _NAMES[:1]:
        matches(name)


def _name(text: str) -> None:
    if names.dataset_name_problem(text) is None:
        component = names.encode_component(text)
        assert "/" not in component and not component.startswith(".") and len(os.fsencode(component)) <= 200
    files.path_problem(text)


def _config(text: str) -> None:
    with tempfile.NamedTemporaryFile(prefix="timezero-fuzz-") as file:
        Path(file.name).write_text(text, encoding="utf-8", errors="surrogateescape")
        config.load(Path(file.name))


_READERS: tuple[Callable[[str], object], ...] = (
    _uri,
    _pattern,
    _name,
    _config,
    units.parse_size,
    lambda text: quiesce.parse_all([text]),
)


def text(data: bytes) -> None:
    """TimezeroError or a result. The first byte says which reader."""
    given = Input(data)
    read = _READERS[given.byte() % len(_READERS)]
    with contextlib.suppress(TimezeroError):
        read(os.fsdecode(given.rest()[:2000]))


def text_seeds() -> Mapping[str, bytes]:
    """Good ones."""
    serve = '[volumes.disk]\npath = "/dev/null"\nread_only = true\n[sidefile]\nmemory = "64M"\ntrack = "4K"\n'
    return {
        "uri-unix": b"\0nbd+unix:///disk?socket=/run/x",
        "uri-tcp": b"\0nbd://[::1]:10809/disk",
        "pattern": b"\1" + rb"data:/**/[!a-z]*.\?" + b"[]x]",
        "stars": b"\1" + b"**/" * 8 + b"*a*b*",
        "name": "\2data:/etc/\u00fc".encode(),
        "config": b"\3" + serve.encode(),
        "size": b"\x041.5G",
        "hook": b"\5exec:pre=/bin/true,post=/bin/false",
        "agent": b"\5qga:/run/agent.sock",
    }


TARGETS = (Target("text", text, text_seeds),)
