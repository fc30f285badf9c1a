"""`timezero serve`: command line and configuration file to a running subsystem, and to its clean end."""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import signal
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from timezero.config import (
    WHEN_FULL,
    Limits,
    ServeConfig,
    SidefileConfig,
    VolumeConfig,
    check_name,
    load,
    size,
)
from timezero.descriptors import raise_limit
from timezero.errors import TimezeroError, UsageError
from timezero.streams import print_line, tell

_T = TypeVar("_T", ServeConfig, SidefileConfig, Limits)
_OOM_SCORE = Path("/proc/self/oom_score_adj")
_OOM_LAST = -999  # not -1000: a control group of which nobody may be killed hangs
_SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--config", metavar="FILE", help="TOML file; the command line adds to it and overrides it")
    add("--volume", metavar="NAME=PATH", action="append", default=[], help="serve a file or block device (repeatable)")
    add("--read-only", metavar="NAME", action="append", default=[], help="serve this volume read-only (repeatable)")
    add("--buffered", metavar="NAME", action="append", default=[], help="no O_DIRECT on this volume (repeatable)")
    add(
        "--exempt-from-delay",
        metavar="NAME",
        action="append",
        default=[],
        help="never delay writers of this volume, however full a sidefile is (repeatable)",
    )
    add(
        "--nbd",
        metavar="URI",
        action="append",
        default=[],
        help="nbd+unix:///?socket=PATH or nbd://HOST:PORT (repeatable)",
    )
    add("--allow-remote", action="store_true", help="let nbd:// listen beyond loopback; there is no TLS yet")
    add("--control", metavar="SOCKET", help="control socket (default: $TIMEZERO_CONTROL or the runtime directory's)")
    add("--sidefile-memory", metavar="SIZE", help="memory tier of a session's sidefile, a volume (default 128M)")
    add("--sidefile-path", metavar="DIR", help="directory of the file tier; not on a served volume")
    add("--sidefile-file", metavar="SIZE", help="file tier of a session's sidefile, a volume (default none)")
    add("--track", metavar="SIZE", help="grain of interception, 4K to 1M (default 4K, coarser for large volumes)")
    add("--max-sessions", metavar="N", type=int, help="sessions on one volume at the same time (default 16)")
    add("--max-session-memory", metavar="SIZE", help="memory of all sessions together (default 2G)")
    add(
        "--when-full",
        choices=WHEN_FULL,
        help="a session that does not fit is refused, or larger ones that run give way (default refuse-newest)",
    )
    add("--reactors", metavar="N", type=int, help="threads that serve volumes (default 1)")
    add("--engine", choices=("auto", "uring", "threads"), help="I/O engine (default: $TIMEZERO_IO or auto)")
    add("--poll-us", metavar="N", type=int, help="look this long for work before sleeping, where it pays (default 50)")
    add("--quiet", action="store_true", help="no log lines about sessions")


def configuration(args: argparse.Namespace) -> ServeConfig:
    """What file, environment and command line ask for, together. Raises UsageError."""
    config = load(args.config) if args.config else ServeConfig()
    volumes = dict(config.volumes)
    for text in args.volume:
        name, equals, path = text.partition("=")
        if not equals or not path:
            raise UsageError(f"--volume {text}: write NAME=PATH")
        if check_name(name) in volumes:
            raise UsageError(f"--volume {text}: there is a volume {name} already")
        volumes[name] = VolumeConfig(str(Path(path).absolute()))
    for name in [*args.read_only, *args.buffered, *args.exempt_from_delay]:
        if name not in volumes:
            raise UsageError(
                f"volume {name}: --read-only, --buffered or --exempt-from-delay names it, but it is not served"
            )
    for name, volume in volumes.items():
        volumes[name] = replace(
            volume,
            read_only=volume.read_only or name in args.read_only,
            buffered=volume.buffered or name in args.buffered,
            exempt_from_delay=volume.exempt_from_delay or name in args.exempt_from_delay,
        )
    memory = _size(args.max_session_memory, "--max-session-memory")
    limits = _overlay(config.limits, sessions=args.max_sessions, memory=memory, when_full=args.when_full)
    engine = args.engine or os.environ.get("TIMEZERO_IO") or None
    nbd = tuple(args.nbd) or None
    threads = {"reactors": args.reactors, "engine": engine, "poll_us": args.poll_us}
    top = _overlay(config, control=args.control, nbd=nbd, **threads)
    return replace(
        top,
        volumes=volumes,
        allow_remote=top.allow_remote or args.allow_remote,
        quiet=top.quiet or args.quiet,
        sidefile=_sidefile(config.sidefile, args),
        limits=limits,
    ).checked()


def _sidefile(config: SidefileConfig, args: argparse.Namespace) -> SidefileConfig:
    return _overlay(
        config,
        memory=_size(args.sidefile_memory, "--sidefile-memory"),
        path=str(Path(args.sidefile_path).absolute()) if args.sidefile_path else None,
        file=_size(args.sidefile_file, "--sidefile-file"),
        track=_size(args.track, "--track"),
    )


def _size(text: str | None, option: str) -> int | None:
    return None if text is None else size(text, option)


def _overlay(config: _T, **values: Any) -> _T:
    """The configuration with those values that were given."""
    return replace(config, **{key: value for key, value in values.items() if value is not None})


def main(args: argparse.Namespace) -> int:
    config = configuration(args)
    raise_limit()
    # Blocked before any thread begins: the signals are the main thread's, and start-up is not torn.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        return _serve(config)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(config: ServeConfig) -> int:
    from timezero.subsystem.server import STOP_TIMEOUT, Subsystem

    _survive_oom()
    log = _silent if config.quiet else _log
    subsystem = Subsystem(config, log)
    try:
        for endpoint in subsystem.nbd:
            log(f"serving {', '.join(config.volumes)} on {endpoint}")
        log(f"control socket {subsystem.control}")
        print_line("ready")
        _notify("READY=1")
        with _ending() as asked:
            poll = select.poll()  # select() takes no descriptor beyond 1023
            poll.register(asked, select.POLLIN)
            while not poll.poll(1000):
                subsystem.tick()
        _notify("STOPPING=1")
    finally:
        if not subsystem.stop():
            _log(f"requests did not complete within {STOP_TIMEOUT:g} s; giving up on them")
            os._exit(TimezeroError.exit_code)  # their memory is still the kernel's to write: nothing may be freed
    return 0


def _survive_oom() -> None:
    """Every application loses its disk with this process: it is killed last when memory runs out, if we may say so.

    Unless somebody has said something else.
    """
    with contextlib.suppress(OSError, ValueError):
        if int(_OOM_SCORE.read_text()) == 0:
            _OOM_SCORE.write_text(str(_OOM_LAST))


@contextlib.contextmanager
def _ending() -> Iterator[socket.socket]:
    """A socket that can be read from when one of the signals has come; those ignored from the start (nohup) stay so.

    Not sigtimedwait: after SIGSTOP and SIGCONT, if its time has run out meanwhile, CPython's returns as if one had.
    """
    asked, teller = socket.socketpair()
    with asked, teller:
        teller.setblocking(False)
        heeded = [number for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        handlers = {number: signal.signal(number, lambda *_: None) for number in heeded}
        descriptor = signal.set_wakeup_fd(teller.fileno(), warn_on_full_buffer=False)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        try:
            yield asked
        finally:
            signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
            signal.set_wakeup_fd(descriptor)
            for number, handler in handlers.items():
                signal.signal(number, handler)


def _notify(state: str) -> None:
    """Tell systemd, when it started us (sd_notify's protocol: a datagram to $NOTIFY_SOCKET)."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.connect(address.replace("@", "\0", 1) if address[0] == "@" else address)
            sock.sendall(state.encode())
    except OSError as error:
        _log(f"NOTIFY_SOCKET {address}: {error.strerror}")


def _log(line: str) -> None:
    tell(f"timezero serve: {line}\n")


def _silent(line: str) -> None:
    pass
