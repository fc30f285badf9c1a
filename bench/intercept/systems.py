"""What serves the volume and backs it up: timezero, and qemu-storage-daemon with its backup job.

Each is a context manager around one server of one volume, whose NBD socket is `socket`; `backup` makes a full backup
to a fresh raw file and returns when it is whole. timezero's time includes the start of its command and the target's
fsync, qemu's neither.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from proof.served import wait_ready

TIMEOUT = 300.0  # seconds
EXPORT = "volume"
PUNCTURED = 5  # exit code


class Punctured(RuntimeError):
    """The sidefile did not hold what was overwritten before it was copied: there is no backup, and that is a result."""


class Server:
    """A server process and its socket; ended by its process id."""

    def __init__(self, command: Sequence[str], folder: Path) -> None:
        self.folder = folder
        self.socket = folder / "nbd.sock"
        self._log = (folder / "server.log").open("w")
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self._log, text=True
        )

    @property
    def uri(self) -> str:
        return f"nbd+unix:///{EXPORT}?socket={self.socket}"

    def _fail(self, what: str) -> RuntimeError:
        return RuntimeError(f"{what}: {(self.folder / 'server.log').read_text().strip()}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._log.close()
        assert self.process.stdout is not None
        self.process.stdout.close()
        for name in ("nbd.sock", "control.sock", "qmp.sock"):
            (self.folder / name).unlink(missing_ok=True)


class Timezero(Server):
    """timezero serve, and timezero copy with the settings of a point."""

    def __init__(self, volume: Path, folder: Path, serve: Sequence[str] = ()) -> None:
        self._control = folder / "control.sock"
        super().__init__(
            [sys.executable, "-m", "timezero", "serve", "--volume", f"{EXPORT}={volume}", "--control",
             str(self._control), "--nbd", f"nbd+unix:///?socket={folder / 'nbd.sock'}", *serve],
            folder,
        )  # fmt: skip
        if not wait_ready(self.process):
            error = self._fail("timezero serve was not ready")
            self.__exit__(None, None, None)
            raise error

    def _copy(self, target: Path, settings: Sequence[str]) -> list[str]:
        command = [sys.executable, "-m", "timezero", "copy", EXPORT, str(target), "--control", str(self._control)]
        return [*command, "--json", "--force", *settings]

    def start(self, target: Path, settings: Sequence[str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(self._copy(target, settings), stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def backup(self, target: Path, settings: Sequence[str]) -> dict[str, Any]:
        done = subprocess.run(self._copy(target, settings), capture_output=True, timeout=TIMEOUT)
        if done.returncode:
            kind = Punctured if done.returncode == PUNCTURED else RuntimeError
            raise kind(f"timezero copy ended with {done.returncode}: {done.stderr.decode(errors='replace')}")
        document: dict[str, Any] = json.loads(done.stdout)
        return {"mover_seconds": document["seconds"], "session": document["session"], "counts": document["counts"]}


class Qemu(Server):
    """qemu-storage-daemon: direct, io_uring; blockdev-backup over QMP with the x-perf settings of a point."""

    def __init__(self, volume: Path, folder: Path, serve: Sequence[str] = ()) -> None:
        super().__init__(
            ["qemu-storage-daemon",
             "--chardev", f"socket,id=qmp,path={folder / 'qmp.sock'},server=on,wait=off", "--monitor", "chardev=qmp",
             "--blockdev", json.dumps({"driver": "raw", "node-name": "disk", "file": self._file(volume)}),
             "--nbd-server", f"addr.type=unix,addr.path={folder / 'nbd.sock'}",
             "--export", f"type=nbd,id=export,node-name=disk,name={EXPORT},writable=on", *serve],
            folder,
        )  # fmt: skip
        try:
            self._qmp = self._connect(folder / "qmp.sock")
            self.command("qmp_capabilities")
        except BaseException:
            self.__exit__(None, None, None)
            raise

    @staticmethod
    def _file(path: Path) -> dict[str, Any]:
        driver = "host_device" if path.is_block_device() else "file"
        return {"driver": driver, "filename": str(path), "cache": {"direct": True}, "aio": "io_uring"}

    def _connect(self, path: Path) -> Any:
        end = time.monotonic() + 30
        while True:
            connection = socket.socket(socket.AF_UNIX)
            connection.settimeout(TIMEOUT)
            try:
                connection.connect(str(path))
                break
            except OSError:
                connection.close()
                if self.process.poll() is not None or time.monotonic() > end:
                    raise self._fail("qemu-storage-daemon was not ready") from None
                time.sleep(0.02)
        stream = connection.makefile("rw")
        connection.close()  # the stream keeps it
        stream.readline()  # the greeting
        return stream

    def command(self, name: str, **arguments: Any) -> Any:
        """One QMP command. Raises RuntimeError with its error."""
        self._qmp.write(json.dumps({"execute": name, "arguments": arguments}) + "\n")
        self._qmp.flush()
        while True:
            answer = json.loads(self._qmp.readline())
            if "return" in answer:
                return answer["return"]
            if "error" in answer:
                raise RuntimeError(f"{name}: {answer['error']['desc']}")

    def backup(self, target: Path, settings: Mapping[str, int]) -> dict[str, Any]:
        if not target.is_block_device():
            with target.open("wb") as file:
                file.truncate(self.command("query-named-block-nodes")[0]["image"]["virtual-size"])
        self.command("blockdev-add", **{"driver": "raw", "node-name": "target", "file": self._file(target)})
        self.command(
            "blockdev-backup", **{"job-id": "backup", "device": "disk", "target": "target", "sync": "full",
                                  "auto-dismiss": False, "x-perf": dict(settings)},
        )  # fmt: skip
        end = time.monotonic() + TIMEOUT
        while (job := self.command("query-jobs")[0])["status"] != "concluded":
            if time.monotonic() > end:
                raise RuntimeError("the backup job does not end")
            time.sleep(0.01)
        if "error" in job:
            raise RuntimeError(f"the backup job failed: {job['error']}")
        concluded = time.time()
        self.command("job-dismiss", id="backup")
        self.command("blockdev-del", **{"node-name": "target"})
        return {"concluded": concluded}


def drop(path: Path) -> None:
    """A fresh target for the next backup; what was written is on the disk before anything is timed."""
    if not path.is_block_device():
        path.unlink(missing_ok=True)
    os.sync()
