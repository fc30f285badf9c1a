"""exec:pre=CMD,post=CMD: commands, by /bin/sh.

A command runs in a process group of its own, with nothing on its standard input. It has to end by itself: at its
deadline, or when the job is interrupted, its whole group is killed. What it leaves in the background goes on, and
should have its output redirected: the pipe that it inherits is closed when the command ends.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal

from timezero.errors import TimezeroError
from timezero.quiesce.hooks import Context, Hook
from timezero.quiesce.patience import Patience

_OUTPUT_MAX = 4096  # bytes kept, the last ones: errors come at the end
_SAID_MAX = 200  # characters of it in an error
_KILL_S = 1.0  # how long to wait for a killed command: one that waits for a frozen file system does not go at all


class ExecHook(Hook):
    """A command before, one after, or both."""

    def __init__(self, text: str, pre: str | None, post: str | None) -> None:
        super().__init__(text)
        self.pre_command = pre
        self.post_command = post

    def pre(self, context: Context, patience: Patience) -> None:
        """Run the command, if there is one."""
        if self.pre_command is not None:
            run(self.pre_command, context, patience)

    def post(self, context: Context, patience: Patience) -> None:
        """Run the command, if there is one."""
        if self.post_command is not None:
            run(self.post_command, context, patience)


def run(command: str, context: Context, patience: Patience) -> None:
    """Run a command to its end. Raises TimezeroError unless it ended with 0, TimeoutError, Interrupted, OSError."""
    output, write_end = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(output, False)
    try:
        pid = _spawn(command, context, write_end)
        os.close(write_end)
        write_end = -1
        said = _wait(pid, output, patience)
    finally:
        os.close(output)
        if write_end >= 0:
            os.close(write_end)
    if said is not None:
        raise TimezeroError(said)


def _spawn(command: str, context: Context, output: int) -> int:
    environment = {
        **os.environ,
        "TIMEZERO_VOLUMES": " ".join(context.volumes),
        "TIMEZERO_SESSION": context.session,
    }
    return os.posix_spawn(
        "/bin/sh",
        ["sh", "-c", command],
        environment,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, output, 1),
            (os.POSIX_SPAWN_DUP2, output, 2),
        ],
        setpgroup=0,
        setsigmask=[],
        setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],  # which Python ignores, and a shell must not
    )


def _wait(pid: int, output: int, patience: Patience) -> str | None:
    """None when it ended well, else why not."""
    said = b""
    pidfd = os.pidfd_open(pid)
    try:
        wanted = [(pidfd, select.POLLIN), (output, select.POLLIN)]
        ended = False
        while not ended:
            happened = patience.wait(*wanted)
            ended = pidfd in happened
            # The end of output is not the end of the command, nor the other way round.
            said, is_closed = _drain(output, said)
            if is_closed:
                wanted = wanted[:1]
    except BaseException:
        _kill(pid, pidfd)
        raise
    finally:
        os.close(pidfd)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return None if status == 0 else _why(status, said)


def _drain(output: int, said: bytes) -> tuple[bytes, bool]:
    """The last of what was said so far, and whether nothing more can come. Takes what one turn offers, not all."""
    for _ in range(16):
        try:
            data = os.read(output, 65536)
        except BlockingIOError:
            return said, False
        if not data:
            return said, True
        said = (said + data)[-_OUTPUT_MAX:]
    return said, False


def _kill(pid: int, pidfd: int) -> None:
    """The group, which cannot have been taken by others as long as its leader was not waited for."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    if poll.poll(int(_KILL_S * 1000)):
        os.waitpid(pid, 0)


def _why(status: int, said: bytes) -> str:
    how = f"ended with {status}" if status > 0 else f"was ended by {_signal_name(-status)}"
    lines = said.decode(errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return f"the command {how}: {last[:_SAID_MAX]}" if last else f"the command {how}, and said nothing"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
