"""The storage subsystem: `timezero serve`. The data plane is C; here are names, sockets, sessions and limits."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `timezero serve`."""
    from timezero.subsystem.serve import add_arguments as add

    add(parser)


def main(args: argparse.Namespace) -> int:
    """`timezero serve`: serves until SIGTERM or SIGINT; the exit code. Raises TimezeroError."""
    from timezero.subsystem.serve import main as run

    return run(args)
