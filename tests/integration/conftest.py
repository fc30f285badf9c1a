"""Real processes and file systems for integration tests: `serve` starts `timezero serve` and ends it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest

from proof.served import wait_ready
from tests.command import image, succeed
from tests.damage import Stored
from tests.integration.filesystems import KINDS, FileSystem, file_system, run

START_TIMEOUT = 30.0  # seconds
STOP_TIMEOUT = 60.0


@dataclass
class Served:
    """A running `timezero serve`."""

    process: subprocess.Popen[str]
    nbd_socket: str
    control: str
    log: Path  # its stderr

    def nbd_uri(self, name: str) -> str:
        """The NBD URI of a volume."""
        return f"nbd+unix:///{quote(name)}?socket={self.nbd_socket}"

    def stop(self, sign: signal.Signals = signal.SIGTERM) -> int:
        """End it; the exit code. Safe to repeat."""
        if self.process.poll() is None:
            self.process.send_signal(sign)
        return self.process.wait(STOP_TIMEOUT)

    def stderr(self) -> str:
        return self.log.read_text()


Serve = Callable[..., Served]


def serve_command(
    volumes: Mapping[str, os.PathLike[str] | str], nbd_socket: str, control: str, **opts: object
) -> list[str]:
    """The command line. opts: option names with underscores; True for a flag, a list to repeat, else the value."""
    command = [sys.executable, "-m", "timezero", "serve", "--nbd", f"nbd+unix:///?socket={nbd_socket}"]
    command += ["--control", control]
    for name, path in volumes.items():
        command += ["--volume", f"{name}={os.fspath(path)}"]
    for option, value in opts.items():
        flag = "--" + option.replace("_", "-")
        for item in value if isinstance(value, list | tuple) else [value]:
            command += [flag] if item is True else [flag, str(item)]
    return command


@pytest.fixture
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """serve(volumes: {name: path}, env={...}, at=served, enter=f, **opts) -> Served. Ended with the test, by id.

    at: use the sockets of a server that is gone. enter: what its process calls first. opts: see serve_command.
    """
    running: list[Served] = []

    def start(
        volumes: Mapping[str, os.PathLike[str] | str],
        *,
        env: Mapping[str, str] | None = None,
        at: Served | None = None,
        enter: Callable[[], object] | None = None,
        **opts: object,
    ) -> Served:
        directory = at.log.parent if at else tmp_path_factory.mktemp("serve")
        nbd_socket, control, log = str(directory / "nbd.sock"), str(directory / "control.sock"), directory / "stderr"
        with log.open("w") as stderr:
            process = subprocess.Popen(
                serve_command(volumes, nbd_socket, control, **opts),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env={**os.environ, **(env or {})},
                preexec_fn=enter,
            )
        served = Served(process, nbd_socket, control, log)
        running.append(served)
        if not wait_ready(process, START_TIMEOUT):
            pytest.fail(f"timezero serve did not get ready and ended with {served.stop()}: {served.stderr()}")
        return served

    yield start
    for served in running:
        try:
            code = served.stop()
        except subprocess.TimeoutExpired:
            served.process.kill()
            code = served.process.wait(STOP_TIMEOUT)
        finally:
            assert served.process.stdout is not None
            served.process.stdout.close()
            print(f"--- timezero serve ({served.control}):\n{served.stderr()}", file=sys.stderr)
        assert code in (0, -signal.SIGKILL), f"timezero serve ended with {code}"


@pytest.fixture(scope="module", params=KINDS)
def system(
    root: None, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[FileSystem]:
    """A file system of each kind whose files can be mapped, on a loop device."""
    with file_system(request.param, tmp_path_factory.mktemp(request.param)) as system:
        yield system


@pytest.fixture
def place(system: FileSystem, request: pytest.FixtureRequest) -> Iterator[Path]:
    """An empty directory of `system` for a test."""
    place = system.point / request.node.originalname
    place.mkdir()
    yield place
    run("rm", "-rf", place)


@pytest.fixture
def original(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A file `disk` of as many bytes as the test's module says in SIZE."""
    size: int = request.module.SIZE
    return image(tmp_path / "disk", size)


@pytest.fixture
def stored(tmp_path: Path, original: Path) -> Stored:
    """The recovery point of `original` in a repository `repo`."""
    succeed("backup", "--repo", tmp_path / "repo", original)
    return Stored(tmp_path / "repo")
