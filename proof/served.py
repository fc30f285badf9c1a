"""A `timezero serve` of our own: started, waited for with a deadline, ended by its process id.

with Serving(["--volume", f"data={image}", "--control", control], folder / "serve.log"):
    ...
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

TIMEZERO = (sys.executable, "-m", "timezero")
READY_S = 60.0  # seconds for it to get ready
STOP_S = 60.0  # seconds for it to end


def wait_ready(process: subprocess.Popen[Any], patience_s: float = READY_S) -> bool:
    """Has it said `ready`? As wait_word()."""
    return wait_word(process, "ready", patience_s)


def wait_word(process: subprocess.Popen[Any], word: str, patience_s: float) -> bool:
    """Is the first line it says `word`? False: it said something else, ended, or did not say a line in that time.

    Its standard output is a pipe that nobody has read from yet.
    """
    assert process.stdout is not None
    until, said = time.monotonic() + patience_s, b""
    while not said.endswith(b"\n"):  # a piece of a line must not keep us any longer than none
        left = max(until - time.monotonic(), 0.0)
        if not select.select([process.stdout], [], [], left)[0]:
            return False
        piece = os.read(process.stdout.fileno(), 256)
        if not piece:
            return False
        said += piece
    return said == f"{word}\n".encode()


class Serving:
    """A server that is ready. Leaving the context ends it; then it has to end well, unless something failed already."""

    def __init__(
        self,
        words: Sequence[object],
        log: Path,
        *,
        env: Mapping[str, str] | None = None,
        command: Sequence[str] = (*TIMEZERO, "serve"),
        patience_s: float = READY_S,
    ) -> None:
        """words: of its command line. log: a file that its stderr is appended to. env: added to ours.

        Raises RuntimeError with what it said on stderr when it does not get ready; then it is gone.
        """
        self._log = log
        self._from = log.stat().st_size if log.exists() else 0
        with log.open("a") as errors:
            self.process = subprocess.Popen(
                [*command, *map(str, words)], env=os.environ | (env or {}), stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=errors,
            )  # fmt: skip
        try:
            if not wait_ready(self.process, patience_s):
                raise RuntimeError(f"timezero serve did not get ready: {self.errors() or 'it says nothing'}")
        except BaseException:
            self.stop(signal.SIGKILL)
            raise

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def is_running(self) -> bool:
        return self.process.poll() is None

    def errors(self) -> str:
        """What it has said on stderr so far."""
        return self._log.read_bytes()[self._from :].decode(errors="replace").strip()

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """End it; its exit code. Safe to repeat. Raises TimeoutExpired when it had to be killed."""
        assert self.process.stdout is not None
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(STOP_S)
        except BaseException:  # it did not end, or we are to
            self.process.kill()
            self.process.wait(STOP_S)
            raise
        finally:
            self.process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        code = self.stop()
        if code and error is None:
            raise RuntimeError(f"timezero serve ended with {code}: {self.errors()}")
