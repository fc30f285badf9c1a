"""Runs `blockload`: builds it when needed, starts one process a connection, stops it, collects logs and latencies."""

from __future__ import annotations

import json
import signal
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from proof.compiled import compiled
from proof.served import wait_word

SOURCE = Path(__file__).with_name("blockload.c")
CONNECT_TIMEOUT = 60.0
STOP_TIMEOUT = 60.0


def build(directory: Path) -> Path:
    """The compiled load generator in `directory`; compiled again when its source is newer."""
    return compiled(SOURCE, directory / "blockload", "-O2")


def fill(binary: Path, image: Path, volume: int, start: int, end: int) -> None:
    """Stamps the bytes start..end of a file with cells that name no connection."""
    subprocess.run(
        [binary, "--fill", image, "--volume", str(volume), "--from", str(start), "--to", str(end)], check=True
    )


@dataclass
class Load:
    """Connections that write to one served volume, each to a region of its own.

    patience_s: for each handshake.
    options: further blockload options, e.g. {"min": 512, "max": 65536, "grain": 512, "zero": 5, "rate": 500}.
    """

    binary: Path
    socket: Path
    export: str
    volume: int
    size: int
    directory: Path
    connections: int = 2
    depth: int = 8
    seconds: float = 60.0
    patience_s: float = CONNECT_TIMEOUT
    options: dict[str, int] = field(default_factory=dict)
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def logs(self) -> list[Path]:
        return [self.directory / f"{self.export}-{c}.log" for c in range(self.connections)]

    def start(self) -> Load:
        """Starts all connections, and returns when each is through its handshake.

        Raises RuntimeError when one is not; then none is left.
        """
        share = self.size // self.connections // 4096 * 4096
        for c in range(self.connections):
            arguments = {
                "socket": self.socket, "export": self.export, "volume": self.volume, "connection": c,
                "from": c * share, "to": self.size // 512 * 512 if c == self.connections - 1 else (c + 1) * share,
                "depth": self.depth, "seconds": self.seconds, "seed": 1000 * self.volume + c, "log": self.logs[c],
            }  # fmt: skip
            command = [str(self.binary)]
            for name, value in {**arguments, **self.options}.items():
                command += [f"--{name}", str(value)]
            self.processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        for process in self.processes:
            if not wait_word(process, "connected", self.patience_s):
                process.kill()
                said = process.communicate(timeout=STOP_TIMEOUT)[1].strip()
                self.kill()
                raise RuntimeError(f"blockload did not connect: {said or 'the server says nothing'}")
        return self

    def stop(self) -> list[dict[str, float]]:
        """Lets the updates under way end; the summary of each connection. Raises when an update failed."""
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        summaries = []
        for process in self.processes:
            out, err = process.communicate(timeout=STOP_TIMEOUT)
            if process.returncode != 0:
                raise RuntimeError(f"blockload ended with {process.returncode}: {err.strip()} {out.strip()}")
            summaries.append(json.loads(out))
        return summaries

    def kill(self) -> None:
        """Ends what is still running, for clean-up."""
        for process in self.processes:
            if process.poll() is None:
                process.kill()
                process.communicate(timeout=STOP_TIMEOUT)
