"""Arguments of the command line. Errors are one line and exit code 2, argparse's own."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

from timezero._version import __version__
from timezero.errors import UsageError
from timezero.streams import columns_of, tell
from timezero.units import parse_duration_us, parse_latency_target, parse_size

_T = TypeVar("_T")
_EXIT_CODES = """exit codes: 0 done; 1 failed; 2 usage; 3 some datasets failed; 4 suspension deadline passed,
application resumed; 5 session punctured; 6 verification failed; 10 no repository; 11 locked; 130 interrupted"""


class _Formatter(argparse.HelpFormatter):
    """As wide as the terminal, without the module that argparse would ask, which brings all compressors along."""

    def __init__(self, prog: str) -> None:
        wish = os.environ.get("COLUMNS", "")
        super().__init__(prog, width=(int(wish) if wish.isdecimal() and int(wish) else columns_of(1)) - 2)


class _Parser(argparse.ArgumentParser):
    def __init__(self, **options: Any) -> None:
        super().__init__(**{"formatter_class": _Formatter, **options})

    def error(self, message: str) -> NoReturn:
        """One line, not the whole usage."""
        from timezero.cli.output import plain

        tell(f"timezero: {plain(message)}: see `{self.prog} --help`\n")
        sys.exit(UsageError.exit_code)


def _converted(convert: Callable[[str], _T], what: str) -> Callable[[str], _T]:
    def read(text: str) -> _T:
        try:
            return convert(text)
        except UsageError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    read.__name__ = what
    return read


def _checked_hook(text: str) -> str:
    from timezero import quiesce

    return quiesce.parse(text).text


def _checked_latency(text: str) -> str:
    parse_latency_target(text)
    return text


def _checked_window(text: str) -> str:
    from timezero.jobs.windows import parse_windows

    parse_windows([text])
    return text


_size = _converted(parse_size, "size")
_latency = _converted(_checked_latency, "target")
_window = _converted(_checked_window, "window")
_duration = _converted(parse_duration_us, "duration")
_hook = _converted(_checked_hook, "hook")


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number")
    return int(text)


def _percent(text: str) -> float:
    number = text.removesuffix("%")
    value = float(number) if number.replace(".", "", 1).isdecimal() and number.isascii() else 0.0
    if not 0 < value <= 100:
        raise argparse.ArgumentTypeError(f"{text!r} is not a percentage: write 5%, 0.1% or 100%")
    return value


def build(command: str = "") -> argparse.ArgumentParser:
    """The parser of a command, or of what is not specific to one: each command takes argparse milliseconds."""
    parser = _Parser(
        prog="timezero", description="Point-in-time backups of live volumes at device speed.", epilog=_EXIT_CODES
    )
    parser.add_argument("--version", action="version", version=f"timezero {__version__}")
    commands = parser.add_subparsers(
        dest="command", metavar="COMMAND", required=True, parser_class=_Parser, prog=parser.prog
    )
    for name in [command] if command in _COMMANDS else _COMMANDS:
        text, fill = _COMMANDS[name]
        made = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        if name == command:
            made.add_argument("--json", action="store_true", help="one machine-readable document on standard output")
            fill(made)
    return parser


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse; SystemExit(2) after one line on stderr when they make no sense."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    return build(*arguments[:1]).parse_args(arguments)


def _repository(parser: argparse.ArgumentParser) -> None:
    default = os.environ.get("TIMEZERO_REPO") or None
    parser.add_argument(
        "--repo",
        metavar="DIR",
        default=default,
        required=default is None,
        help="the repository (default: TIMEZERO_REPO)",
    )


def _mover(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("data mover")
    group.add_argument(
        "--buffer", type=_size, default="32M", metavar="SIZE", help="buffer space (default: %(default)s)"
    )
    group.add_argument(
        "--depth",
        type=_count,
        default=0,
        metavar="N",
        help="chunks in flight a worker (default: 8, and up to 32 where more pay)",
    )
    group.add_argument("--workers", type=_count, default=0, metavar="N", help="threads")
    group.add_argument(
        "--rate", type=_size, default=0, metavar="SIZE", help="bytes a second at most (default: no limit)"
    )
    group.add_argument(
        "--device-deadline", type=_duration, default="60s", metavar="TIME",
        help="longest wait for a device to answer one request (default: %(default)s)",
    )  # fmt: skip


def _yielding(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("when and how fast")
    group.add_argument(
        "--mode", choices=("opportunistic", "full", "fixed"), default="opportunistic", metavar="MODE",
        help="opportunistic: give way to the application's load (default); full: do not (fixed is an older name of it)",
    )  # fmt: skip
    group.add_argument(
        "--latency-target", type=_latency, default="1.25x", metavar="TARGET",
        help="what the application's p99 latency may be in opportunistic mode: 2ms, or 1.25x of what it is without "
        "copying (default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--window", type=_window, action="append", default=[], metavar="HH:MM-HH:MM",
        help="copy in these hours only, local time, over midnight too; may be repeated. T0 is now and stays protected",
    )  # fmt: skip


def _session(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("session, for served volumes")
    group.add_argument(
        "--control",
        action="append",
        metavar="SOCKET",
        help="control socket (default: TIMEZERO_CONTROL); several for a group over several servers",
    )
    group.add_argument(
        "--deadline",
        type=_duration,
        default="1s",
        metavar="TIME",
        help="longest suspension of the application (default: %(default)s)",
    )
    group.add_argument(
        "--track-size", type=_size, metavar="SIZE", help="grain of interception (default: the subsystem's)"
    )
    group.add_argument(
        "--sidefile-memory", type=_size, metavar="SIZE", help="cap of the sidefile's memory tier, a volume"
    )
    group.add_argument("--sidefile-file", type=_size, metavar="SIZE", help="cap of the sidefile's file tier, a volume")
    group = parser.add_argument_group("hooks around the suspension, for served volumes")
    group.add_argument(
        "--quiesce", type=_hook, action="append", default=[], metavar="HOOK",
        help="fsfreeze:PATH, exec:pre=CMD,post=CMD or qga:SOCKET; may be repeated: pre steps run in order, post "
        "steps in reverse, always",
    )  # fmt: skip
    group.add_argument(
        "--quiesce-deadline", type=_duration, default="10s", metavar="TIME",
        help="longest time for each of their steps (default: %(default)s)",
    )  # fmt: skip


def _source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--fuzzy", action="store_true", help="take a source at rest that changes meanwhile, and record it"
    )
    parser.add_argument(
        "--chunk-size", type=_size, metavar="SIZE", help="grain of copying (default: 1M, or the repository's)"
    )


def _serve(parser: argparse.ArgumentParser) -> None:
    from timezero import subsystem

    subsystem.add_arguments(parser)
    parser.set_defaults(parser=parser)


def _files(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("files on served volumes")
    group.add_argument(
        "--mount",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="where the file system of a volume is mounted (default: it is looked for)",
    )
    group.add_argument(
        "--read-through",
        action="store_true",
        help="copy files that cannot be read from their volume through the file system, after T0, and record it",
    )


def _backup(parser: argparse.ArgumentParser) -> None:
    _repository(parser)
    parser.add_argument(
        "datasets",
        nargs="+",
        metavar="DATASET",
        help="NAME of a served volume; files on it, NAME:/PATH or NAME:/PATTERN; PATH of a file or device; NAME=PATH",
    )
    _source(parser)
    _session(parser)
    _files(parser)
    _mover(parser)
    _yielding(parser)


def _copy(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="NAME of a served volume, or PATH of a file or device")
    parser.add_argument("target", metavar="TARGET", help="file, block device, or - for standard output")
    parser.add_argument("--force", action="store_true", help="replace a file, overwrite a device that is in use")
    _source(parser)
    _session(parser)
    _mover(parser)
    _yielding(parser)


def _list(parser: argparse.ArgumentParser) -> None:
    _repository(parser)


def _show(parser: argparse.ArgumentParser) -> None:
    _repository(parser)
    parser.add_argument(
        "point", metavar="POINT", nargs="?", default="latest", help="id, unique prefix of one, or latest"
    )


def _verify(parser: argparse.ArgumentParser) -> None:
    _repository(parser)
    parser.add_argument("points", metavar="POINT", nargs="*", help="id, unique prefix of one, or latest (default: all)")
    parser.add_argument(
        "--sample", type=_percent, metavar="N%", help="read so many percent of the stored chunks, chosen at random"
    )
    parser.add_argument(
        "--seed", type=_count, metavar="N", help="of that choice (default: another one each time; it is told)"
    )
    _mover(parser)


def _restore(parser: argparse.ArgumentParser) -> None:
    _repository(parser)
    parser.add_argument(
        "point",
        metavar="POINT[/DATASET]",
        help="id, unique prefix of one, or latest; and one of its datasets, a directory of files or a glob",
    )
    parser.add_argument(
        "target", metavar="TARGET", nargs="?", help="file, block device, directory, or - for standard output"
    )
    parser.add_argument("--in-place", action="store_true", help="instead of TARGET: files go where they came from")
    parser.add_argument("--force", action="store_true", help="replace files, overwrite a device that is in use")
    parser.add_argument(
        "--salvage",
        action="store_true",
        help="of damaged data restore what is sound, with zeros for the rest (exit code 6)",
    )
    parser.add_argument(
        "--map", metavar="FILE", help="with --salvage: write what is sound and what is not, as ddrescue does"
    )
    parser.add_argument(
        "--delta", action="store_true", help="change a device or image in place: write only what differs"
    )
    parser.add_argument(
        "--resume", action="store_true", help="keep what is restored when interrupted, and go on with what was kept"
    )
    _mover(parser)


def _prune(parser: argparse.ArgumentParser) -> None:
    _repository(parser)
    parser.add_argument("--keep", type=_count, metavar="N", help="keep the N newest recovery points")
    parser.add_argument(
        "--point", action="append", default=[], metavar="POINT", help="remove this one (may be repeated)"
    )


def _control(parser: argparse.ArgumentParser) -> None:
    default = os.environ.get("TIMEZERO_CONTROL") or None
    parser.add_argument(
        "--control", metavar="SOCKET", default=default, help="control socket (default: TIMEZERO_CONTROL)"
    )


def _attach(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="of a served volume")
    parser.add_argument("--read-only", action="store_true", help="a device that cannot be written to")
    _control(parser)


def _detach(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="of a volume")
    _control(parser)


def _doctor(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", nargs="?", metavar="PATH", help="where to try direct I/O (default: this directory)")


def _bench(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", nargs="?", help="PATH of a file or device at rest")
    parser.add_argument("target", metavar="TARGET", nargs="?", help="file, removed afterwards, or block device")
    parser.add_argument(
        "--serve",
        metavar="PATH",
        help="instead: serve a file made in the directory PATH, or the file or device PATH read-only; with fio",
    )
    parser.add_argument(
        "--size", type=_size, default="1G", metavar="SIZE", help="of the file made by --serve (default: %(default)s)"
    )
    parser.add_argument("--rounds", type=_count, default=3, metavar="N", help="of all commands (default: %(default)s)")
    parser.add_argument(
        "--force", action="store_true", help="TARGET exists, and may be lost: the file, or what the device holds"
    )


#: {command: what it does, how its arguments are added}
_COMMANDS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None]]] = {
    "serve": ("serve volumes over NBD and intercept updates for sessions", _serve),
    "backup": ("back up datasets with one T0 to a repository", _backup),
    "copy": ("copy the T0 image of one dataset", _copy),
    "list": ("list the recovery points of a repository", _list),
    "show": ("show a recovery point", _show),
    "verify": ("read every chunk of recovery points and check it against its digest", _verify),
    "restore": ("restore datasets of a recovery point", _restore),
    "prune": ("remove recovery points, and what killed backups left behind", _prune),
    "attach": ("make a served volume a block device of this machine, and print its path", _attach),
    "detach": ("take down the block device that attach made", _detach),
    "status": ("show what a storage subsystem serves", _control),
    "doctor": ("tell what was built and what this kernel allows", _doctor),
    "bench": (
        "measure copy beside dd, or the NBD data plane beside other servers; cold, in alternating rounds",
        _bench,
    ),
}
