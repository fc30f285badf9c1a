"""nbdfuse and a loop device."""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import Iterator
from dataclasses import dataclass

from timezero import _linux
from timezero.attach import devices, tools
from timezero.attach.place import Place
from timezero.errors import LockedError, TimezeroError

METHOD = "nbdfuse"
_READY_S = 30.0  # for the file to appear
_GONE_S = 10.0  # for nbdfuse to end by itself after unmounting: it flushes
_OOM_NEVER = "-1000"


@dataclass(frozen=True)
class Found:
    """The pieces there are: nbdfuse's processes, mounts over one another, loop devices."""

    processes: tuple[int, ...]
    mounts: int
    loops: tuple[str, ...]

    @property
    def any(self) -> bool:
        """Is anything there?"""
        return bool(self.processes or self.mounts or self.loops)


class FuseLoop:
    """A volume by nbdfuse and a loop device. Hold the place's lock."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self.warnings: list[str] = []

    def find(self) -> Found:
        """What there is, whole or not."""
        found = (pid for pid, words in tools.processes() if self._is_ours(pid, words))
        mounts = tools.mounts_on(self._place.mount_point)
        return Found(tuple(found), mounts, tuple(tools.loops_on(self._place.file)))

    def _is_ours(self, pid: int, words: list[str]) -> bool:
        return str(self._place.file) in words and tools.program(pid) == "nbdfuse"

    def device(self, uri: str, size: int, sector: int) -> str | None:
        """The device, when all of it is there, serves this export, and answers."""
        found = self.find()
        if len(found.processes) != 1 or found.mounts != 1 or len(found.loops) != 1:
            return None
        words = dict(tools.processes()).get(found.processes[0], [])
        device = found.loops[0]
        whole = uri in words and devices.size_of(device) == size // sector * sector
        return device if whole and devices.is_readable(device) else None

    def make(self, uri: str, sector: int, *, read_only: bool) -> str:
        """Attach; the device. What was begun is taken down again on failure."""
        nbdfuse = tools.need("nbdfuse", "libnbd-bin")
        losetup = tools.need("losetup", "mount")
        try:
            self._place.mount_point.mkdir(mode=0o700, exist_ok=True)
            self._start([nbdfuse, *(["-r"] if read_only else []), str(self._place.file), uri])
            return self._loop(losetup, sector, read_only)
        except BaseException:
            with contextlib.suppress(TimezeroError, OSError):
                self.take_down()
            raise

    def _start(self, command: list[str]) -> None:
        """nbdfuse, in a session of its own, until its file is there."""
        errors, write_end = os.pipe2(os.O_CLOEXEC)
        try:
            with self._io_flusher():
                # By a shell, for its directory: ours may be on a file system that somebody wants to unmount.
                pid = os.posix_spawn(
                    "/bin/sh",
                    ["sh", "-c", 'cd / && exec "$0" "$@"', *command],
                    os.environ,
                    file_actions=[
                        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                        (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                        (os.POSIX_SPAWN_DUP2, write_end, 2),
                    ],
                    setsid=True,
                    setsigmask=[],
                )
            os.close(write_end)
            write_end = -1
            self._survive_oom(pid)
            self._wait_ready(pid, errors)
        finally:
            os.close(errors)
            if write_end >= 0:
                os.close(write_end)

    def _wait_ready(self, pid: int, errors: int) -> None:
        pidfd = os.pidfd_open(pid)
        try:
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            ready = tools.wait_for(lambda: bool(poll.poll(0)) or self._place.file.exists(), _READY_S)
            ended = bool(poll.poll(0))
        finally:
            os.close(pidfd)
        if ended:
            os.waitpid(pid, 0)
            said = tools.last_words(os.read(errors, 65536).decode(errors="replace"))
            raise TimezeroError(f"{self._place.name}: nbdfuse ended: {said}")
        if not ready:
            raise TimezeroError(f"{self._place.name}: nbdfuse shows no file within {_READY_S:g} s")

    @contextlib.contextmanager
    def _io_flusher(self) -> Iterator[None]:
        """What is started meanwhile serves a disk: it must not get memory by writing to that disk."""
        try:
            _linux.io_flusher(True)
        except OSError as error:
            self.warnings.append(
                f"nbdfuse is not protected from memory reclaim on its own device ({error.strerror}): needs "
                "CAP_SYS_RESOURCE"
            )
            yield
            return
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                _linux.io_flusher(False)

    def _survive_oom(self, pid: int) -> None:
        try:
            (tools.PROC / str(pid) / "oom_score_adj").write_text(_OOM_NEVER)
        except OSError as error:
            self.warnings.append(f"nbdfuse may be killed when memory runs out ({error.strerror})")

    def _loop(self, losetup: str, sector: int, read_only: bool) -> str:
        """Direct, so that nothing is cached twice and nothing old is read; where the kernel cannot, it is not direct.

        With partitions, as of any disk.
        """
        options = ["--direct-io=on", "--partscan", *(["--read-only"] if read_only else [])]
        if sector != devices.SECTOR:
            options += ["--sector-size", str(sector)]
        return tools.run(self._place.name, [losetup, "--find", "--show", *options, self._place.file])

    def take_down(self) -> bool:
        """Everything there is, in reverse; false when there was nothing. Safe to repeat.

        Raises LockedError when it is in use; then nothing was touched.
        """
        found = self.find()
        for device in found.loops:
            devices.refuse_in_use(self._place.name, device)
        for device in found.loops:
            self._detach(device)
        self._unmount_all()
        for pid in found.processes:
            # One that was not mounted yet has nothing to flush, and no reason to go.
            self._end(pid, _GONE_S if found.mounts else 0.0)
        self._unmount_all()  # it may have mounted just before it went
        with contextlib.suppress(OSError):
            self._place.mount_point.rmdir()
        return found.any

    def _detach(self, device: str) -> None:
        if not devices.flush(device):
            self.warnings.append(f"{device}: what was written last could not be flushed, and may be lost")
        tools.run(self._place.name, [tools.need("losetup", "mount"), "--detach", device])
        # Somebody may have opened it just now: then the kernel detaches it later, and it still needs its file.
        if not tools.wait_for(lambda: device not in tools.loops_on(self._place.file), _GONE_S):
            raise LockedError(f"{self._place.name}: {device} is still open: close it and detach again")

    def _unmount_all(self) -> None:
        for _ in range(tools.mounts_on(self._place.mount_point)):
            self._unmount()

    def _unmount(self) -> None:
        point = self._place.mount_point
        if os.geteuid() == 0:
            command = [tools.need("umount", "mount"), str(point)]
        else:
            command = [tools.need("fusermount3", "fuse3"), "-u", str(point)]
        failed: TimezeroError | None = None

        def is_done() -> bool:
            nonlocal failed
            try:
                tools.run(self._place.name, command)
            except TimezeroError as error:
                failed = error
                return False
            return True

        # The loop device's last reference goes a moment after the device.
        if not tools.wait_for(is_done, _GONE_S) and failed:
            raise failed

    def _end(self, pid: int, patience_s: float) -> None:
        """An nbdfuse ends when it is unmounted. One that does not, or was never mounted, is ended: it alone."""
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        try:
            words = dict(tools.processes()).get(pid)
            if words is None or not self._is_ours(pid, words):
                return  # the number is another process's by now
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            for patience, sign in ((patience_s, signal.SIGTERM), (2.0, signal.SIGKILL), (2.0, None)):
                if poll.poll(int(patience * 1000)):
                    break
                if sign is not None:
                    signal.pidfd_send_signal(pidfd, sign)
        finally:
            os.close(pidfd)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)  # when this very program had started it
