"""What a case of the sweep is made of: a served volume with applications, a repository, commands, and what is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from proof.crash.application import Application, explain
from proof.crash.package import environment
from proof.nbd import Nbd
from proof.served import wait_ready

MIB = 1 << 20
SIZE = 8 * MIB
TIMEOUT = 30.0  # seconds, of anything
PIECE = MIB


class WrongError(Exception):
    """Something is not as promised."""


def expect(condition: object, otherwise: str) -> None:
    """Raise WrongError unless it is so."""
    if not condition:
        raise WrongError(otherwise)


def wait_for(what: Callable[[], object], otherwise: str, seconds: float = TIMEOUT) -> None:
    """Raise WrongError unless it comes true in time."""
    until = time.monotonic() + seconds
    while not what():
        expect(time.monotonic() < until, otherwise)
        time.sleep(0.003)


def is_stopped(process: subprocess.Popen[str]) -> bool:
    """By SIGSTOP."""
    try:
        return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] in "Tt"
    except (OSError, IndexError):
        return False


class World:
    """A folder of a case, what runs in it, and how it is left. A context manager: everything of it is ended.

    engine: for the I/O of all that runs. volumes: their names; each has an application. image: of the first.
    """

    def __init__(
        self, folder: Path, package: Path, *, engine: str = "auto", volumes: Sequence[str] = ("data",)
    ) -> None:
        self.folder = folder
        self.package = package
        self.engine = engine
        self.applications = {name: Application(SIZE, first=2 * number) for number, name in enumerate(volumes)}
        self.images = {name: folder / f"{name}.img" for name in volumes}
        self.image = self.images[volumes[0]]
        self.repository = folder / "repository"
        self.nbd, self.control = str(folder / "n.sock"), str(folder / "c.sock")
        self.server: subprocess.Popen[str] | None = None
        self._jobs: list[subprocess.Popen[str]] = []
        (folder / "sidefile").mkdir()
        for name, application in self.applications.items():
            self.images[name].write_bytes(application.content())

    # ---- processes ----

    def start(self, *words: object, point: str = "", stop: bool = False) -> subprocess.Popen[str]:
        """A command of the package, that dies (or stops) at a crash point."""
        process = subprocess.Popen(
            [sys.executable, "-m", "timezero", *map(str, words)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=environment(self.package, point, stop=stop, engine=self.engine),
        )  # fmt: skip
        self._jobs.append(process)
        return process

    def run(self, *words: object) -> tuple[int, str, str]:
        """A command to its end: exit code, output, errors."""
        process = self.start(*words)
        out, err = process.communicate(timeout=TIMEOUT)
        return process.returncode, out, err

    def succeed(self, *words: object) -> str:
        """A command that has to succeed; its output."""
        code, out, err = self.run(*words)
        expect(code == 0, f"{words[0]} ends with {code}: {err.strip()}")
        return out

    def serve(self, point: str = "", *, stop: bool = False, sidefile: str = "16M") -> None:
        """Serve the volumes; ready when this returns. sidefile: what its file tier may take."""
        volumes = [word for name, image in self.images.items() for word in ("--volume", f"{name}={image}")]
        self.server = self.start(
            "serve", "--quiet", *volumes, "--nbd", f"nbd+unix:///?socket={self.nbd}",
            "--control", self.control, "--sidefile-memory", "256K", "--sidefile-path", self.folder / "sidefile",
            "--sidefile-file", sidefile, point=point, stop=stop,
        )  # fmt: skip
        if not wait_ready(self.server, TIMEOUT):
            self.server.kill()
            raise WrongError(f"the server does not start: {self.server.communicate()[1].strip()}")

    @property
    def is_served(self) -> bool:
        """Is there a server that was not killed?"""
        return self.server is not None and self.server.poll() is None

    def kill_server(self) -> None:
        """SIGKILL, and its end."""
        assert self.server
        self.server.kill()
        self.server.wait(TIMEOUT)

    def stop_server(self) -> None:
        """SIGTERM: a clean end, and nothing left of it."""
        assert self.server
        self.server.terminate()
        _, err = self.server.communicate(timeout=TIMEOUT)
        expect(self.server.returncode == 0, f"the server ends with {self.server.returncode}: {err.strip()}")
        for path in (self.nbd, self.control):
            expect(not os.path.lexists(path), f"{path} is left")

    def backup(self, *options: object, **crash: object) -> subprocess.Popen[str]:
        """Start a backup of the served volumes that takes a quarter of a second."""
        words = ["backup", "--repo", self.repository, "--control", self.control, "--chunk-size", "64K", *options]
        return self.start(*words, *self.images, **crash)  # type: ignore[arg-type]

    def volume(self, name: str) -> bytes:
        """The content of a served volume, as an application reads it."""
        with Nbd.connect(self.nbd, name) as connection:
            return b"".join(connection.read(at, PIECE) for at in range(0, SIZE, PIECE))

    def sessions(self) -> list[object]:
        """Of the server."""
        return list(json.loads(self.succeed("status", "--control", self.control, "--json"))["sessions"])

    # ---- the applications ----

    def write(self) -> None:
        """Let them write, each to its volume, going on where it was stopped."""
        for name, application in self.applications.items():
            application.start(self.nbd, name)

    def rest(self) -> None:
        """Stop them, after the updates under way. Safe to repeat."""
        for application in self.applications.values():
            application.stop()

    @property
    def writes(self) -> bool:
        """Is nobody hung up on?"""
        return all(application.alive for application in self.applications.values())

    def settle(self) -> None:
        """What was acknowledged to those that rest is on the served volumes. Raises ValueError."""
        for name, application in self.applications.items():
            application.settle(self.volume(name))

    def explain(self, images: Mapping[str, bytes], window: tuple[int, int]) -> None:
        """Are the images, by volume, of one instant within the window? Raises ValueError."""
        explain(((self.applications[name], image) for name, image in images.items()), window)

    # ---- the repository ----

    def listed(self) -> list[str]:
        """Ids of the recovery points; no repository has none. Raises WrongError when one of them is damaged."""
        code, out, err = self.run("list", "--repo", self.repository, "--json")
        if code == 10:
            return []
        expect(code == 0, f"list ends with {code}: {err.strip()}")
        return [point["id"] for point in json.loads(out)["points"]]

    def verify(self) -> None:
        """All recovery points."""
        self.succeed("verify", "--repo", self.repository)

    def restore(self, point: str) -> dict[str, bytes]:
        """The volumes of a recovery point."""
        target, found = self.folder / "restored.img", {}
        for name in self.images:
            self.succeed("restore", "--repo", self.repository, "--force", f"{point}/{name}", target)
            found[name] = target.read_bytes()
            target.unlink()
        return found

    def prune(self, *options: object) -> None:
        """Prune, and compare the tree with what the manifests say."""
        self.succeed("prune", "--repo", self.repository, *options)
        needed = {"repository.json", "recovery-points", "packs"}
        for manifest in self.repository.glob("recovery-points/*/manifest.json"):
            document, point = json.loads(manifest.read_text()), f"recovery-points/{manifest.parent.name}"
            needed |= {point, f"{point}/manifest.json", f"{point}/lock"}
            needed |= {f"{point}/{dataset['file']}" for dataset in document["datasets"]}
            needed |= {f"packs/{pack['name']}" for pack in document["packs"]}
        found = {str(path.relative_to(self.repository)) for path in self.repository.rglob("*")}
        expect(not found - needed, f"prune leaves {', '.join(sorted(found - needed))}")
        missing = needed - found - {"recovery-points", "packs"}
        expect(not missing, f"prune took {', '.join(sorted(missing))}")

    # ---- the end ----

    def expect_nothing_left(self) -> None:
        """No process, no listener, no mount, nothing in the sidefile's folder, no unfinished image."""
        own = str(self.folder).encode()
        processes = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                if own in path.read_bytes():
                    processes.append(path.parent.name)
            except OSError:
                continue
        expect(not processes, f"processes are left: {', '.join(processes)}")
        expect(own not in Path("/proc/net/unix").read_bytes(), "somebody listens")
        mounts = [line for line in Path("/proc/self/mounts").read_text().splitlines() if str(self.folder) in line]
        expect(not mounts, f"mounted is {', '.join(mounts)}")
        left = [*(self.folder / "sidefile").iterdir(), *self.folder.glob(".timezero-*")]
        expect(not left, f"files are left: {', '.join(path.name for path in left)}")

    def __enter__(self) -> World:
        return self

    def __exit__(self, *_: object) -> None:
        self.rest()
        for process in self._jobs:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            process.communicate(timeout=TIMEOUT)
