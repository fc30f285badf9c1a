"""The command line, thin over the Python API.

Exit codes are those of timezero.errors; 2 for usage, 130 when interrupted.
"""

from __future__ import annotations

import atexit
import gc
import signal
import sys
from collections.abc import Sequence

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit code."""
    # What lives when a command ends goes with the process: to search it for garbage once more takes a tenth of a short
    # command. Nothing waits for its finalizer: files and descriptors are closed where they are used.
    atexit.register(gc.freeze)
    _catch_signals()
    try:
        return _run(arguments)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED  # before there was anything to say
    except BrokenPipeError:
        return EXIT_FAILED  # whoever read our output has gone; there is nobody to tell


def _run(arguments: Sequence[str] | None) -> int:
    from timezero.cli import parser
    from timezero.cli.commands import run
    from timezero.cli.output import Output
    from timezero.errors import TimezeroError

    options = parser.parse(arguments)
    output = Output(json=options.json)
    try:
        return run(options, output)
    except TimezeroError as error:
        output.failed(str(error), error.exit_code, getattr(error, "result", None))
        return error.exit_code
    except KeyboardInterrupt as stop:
        nothing = "interrupted: nothing half-written was left to be listed or restored"
        output.failed(str(stop) or nothing, EXIT_INTERRUPTED)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        raise
    except (OSError, MemoryError) as error:
        output.failed(_describe(error), EXIT_FAILED)
        return EXIT_FAILED


def _describe(error: OSError | MemoryError) -> str:
    if isinstance(error, MemoryError):
        return "out of memory: try a smaller --buffer"
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}"


def _catch_signals() -> None:
    """SIGINT, SIGTERM and SIGHUP interrupt once; while we clean up, more of them change nothing.

    `serve` puts its own in their place. A signal that was ignored when we were started (nohup, a job in the
    background) stays ignored.
    """
    caught = [
        number
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) != signal.SIG_IGN
    ]

    interrupted = False

    def interrupt(*_: object) -> None:
        # Not SIG_IGN: the interpreter complains, with a traceback, of one that had come when it was set.
        nonlocal interrupted
        if not interrupted:
            interrupted = True
            raise KeyboardInterrupt

    for number in caught:
        signal.signal(number, interrupt)


if __name__ == "__main__":
    sys.exit(main())
