"""What the documents say of the command line, and what it has."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from timezero.cli import parser

DOCS = Path(__file__).parents[2] / "docs"


def _options(command: str) -> set[str]:
    (commands,) = (a for a in parser.build(command)._actions if isinstance(a, argparse._SubParsersAction))
    return {name for action in commands.choices[command]._actions for name in action.option_strings} - {"-h", "--help"}


@pytest.mark.parametrize("command", ["backup", "copy", "restore", "verify", "list", "show", "prune", "status", "bench"])
def test_every_option_is_documented(command: str) -> None:
    text = "".join(path.read_text() for path in DOCS.glob("*.md"))
    assert {name for name in _options(command) if f"{name}" not in text} == set()
