"""python -m proof.soak [--minutes N]: backups in a row on volumes under load, and what must stay flat meanwhile.

Two volumes of one `timezero serve` are written to all the time. This process backs them up again and again, verifies
each recovery point, prunes the old ones, and now and then runs a session into its sidefile's cap, which has to fail as
it should. After every round it looks at memory, descriptors, threads and temporary files of the server and of itself.

What is flat: no descriptor, thread or temporary file more at the end than after the warm-up, and memory that does not
grow by more than GROWTH_MAX from the first third of the rounds after it to the last. Prints one JSON document; the exit
code is 1 when something is not as it should be.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from proof.load import Load, build, fill
from proof.served import Serving
from timezero.errors import PunctureError
from timezero.jobs.backup import backup
from timezero.jobs.options import MoverOptions, SessionOptions
from timezero.jobs.verify import verify
from timezero.repository import Repository

MIB = 1 << 20
VOLUMES = ("left", "right")
#: Bytes of memory: allocators keep what was used at the worst moment, and moments differ.
GROWTH_MAX = 4 * MIB
#: Rounds after which everything has been used once: punctures too.
WARM_UP = 3


def sample(process: int, folders: list[Path]) -> dict[str, int]:
    """Of a process: resident memory that is its own in bytes, descriptors, threads; and files in `folders`."""
    status = dict(
        line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines() if ":" in line
    )
    return {
        "memory": int(status["RssAnon"].split()[0]) * 1024,
        "descriptors": len(os.listdir(f"/proc/{process}/fd")),
        "threads": int(status["Threads"]),
        "files": sum(len(list(folder.rglob("*"))) for folder in folders),
    }


def slope(values: list[int], seconds: list[float]) -> float:
    """An hour's growth, by least squares."""
    if len(values) < 3:
        return 0.0
    return statistics.linear_regression(seconds, values).slope * 3600


def judge(samples: list[dict[str, int]], seconds: list[float]) -> dict[str, Any]:
    """Slopes an hour, what was there in the first and last third, and what is not flat."""
    samples, seconds = samples[WARM_UP:], seconds[WARM_UP:]
    third = max(1, len(samples) // 3)
    found: dict[str, Any] = {"wrong": []}
    for key in samples[0]:
        values = [s[key] for s in samples]
        first, last = statistics.median(values[:third]), statistics.median(values[-third:])
        found[key] = {
            "first": first,
            "last": last,
            "most": max(values),
            "slope_an_hour": round(slope(values, seconds), 2),
        }
        if last - first > (GROWTH_MAX if key == "memory" else 0):
            found["wrong"].append(f"{key}: from {first:g} to {last:g}")
    return found


class Soak:
    """Server, load and rounds; everything below `folder`, and ended with `stack`."""

    def __init__(self, stack: ExitStack, folder: Path, size: int, rate: int) -> None:
        self._folder = folder
        self._sockets = [folder / name for name in ("nbd", "control")]
        self._tiers = folder / "tiers"
        self._temporary = folder / "tmp"
        self._repo = folder / "repo"
        for made in (self._tiers, self._temporary):
            made.mkdir()
        binary = build(folder)
        images = {name: folder / f"{name}.img" for name in VOLUMES}
        for number, image in enumerate(images.values()):
            with image.open("wb") as file:
                file.truncate(size)
            fill(binary, image, number, 0, size // 2)
        self.server = self._serve(stack, images)
        self._loads = [
            Load(binary, self._sockets[0], name, number, size, folder, connections=1, depth=4, seconds=1e6)
            for number, name in enumerate(VOLUMES)
        ]
        for load in self._loads:
            load.options = {"min": 512, "max": 65536, "grain": 512, "zero": 4, "trim": 4, "fua": 1, "rate": rate}
            load.start()
            stack.callback(load.kill)

    def _serve(self, stack: ExitStack, images: dict[str, Path]) -> Serving:
        nbd, control = self._sockets
        words: list[object] = ["--nbd", f"nbd+unix:///?socket={nbd}", "--control", control]
        words += ["--sidefile-path", self._tiers, "--sidefile-file", "64M", "--sidefile-memory", "16M"]
        for name, image in images.items():
            words += ["--volume", f"{name}={image}"]
        server = Serving(words, self._folder / "serve.log", env={"TMPDIR": str(self._temporary)})
        return stack.enter_context(server)

    def round(self, *, puncture: bool, keep: int) -> int:
        """A backup, verified; old ones pruned. How many chunks came from a sidefile. puncture: one that must fail."""
        session = SessionOptions(control=str(self._sockets[1]))
        if puncture:
            self._puncture(session)
        result = backup(str(self._repo), VOLUMES, session=session, mover=MoverOptions(buffer_bytes=16 * MIB))
        verify(str(self._repo), [result.id]).raise_for_damage()
        repository = Repository(str(self._repo))
        repository.prune(keep=keep)
        left = repository.ids()
        if left[-1] != result.id or len(left) > keep or len(left) != len(repository.directories()):
            raise RuntimeError(f"after a prune there are {left}, and directories {repository.directories()}")
        return sum(d.counts["chunks_sidefile"] + d.counts["chunks_mixed"] for d in result.manifest.datasets)

    def _puncture(self, session: SessionOptions) -> None:
        """A session with next to no sidefile, copied slowly."""
        small = session._replace(memory_bytes=256 << 10, file_bytes=0)
        try:
            backup(str(self._repo), VOLUMES, session=small, mover=MoverOptions(buffer_bytes=4 * MIB, rate=20 * MIB))
        except PunctureError:
            return
        raise RuntimeError("a session without a sidefile was not punctured: is there a load?")

    def samples(self) -> tuple[dict[str, int], dict[str, int]]:
        """Of the server and of us."""
        gc.collect()  # what waits for it is not lost
        return sample(self.server.pid, [self._tiers, self._temporary]), sample(os.getpid(), [])

    def finish(self) -> int:
        """End the load; updates that it made. Every recovery point that is left is verified once more."""
        updates = sum(int(summary["updates"]) for load in self._loads for summary in load.stop())
        verify(str(self._repo)).raise_for_damage()
        return updates


def soak(
    seconds: float, *, size: int = 128 * MIB, rate: int = 500, keep: int = 3, puncture_every: int = 5
) -> dict[str, Any]:
    """Run it; the report. size: bytes of a volume; rate: updates a second of each."""
    begin = time.monotonic()
    ours: list[dict[str, int]] = []
    servers: list[dict[str, int]] = []
    at: list[float] = []
    from_sidefile = punctures = 0
    with tempfile.TemporaryDirectory(prefix="timezero-soak-", dir="/var/tmp") as folder, ExitStack() as stack:
        run = Soak(stack, Path(folder), size, rate)
        while time.monotonic() - begin < seconds or len(at) < WARM_UP + 3:
            puncture = len(at) % puncture_every == 1
            from_sidefile += run.round(puncture=puncture, keep=keep)
            punctures += puncture
            server, client = run.samples()
            servers.append(server)
            ours.append(client)
            at.append(time.monotonic() - begin)
            if len(at) % 50 == 0:
                print(f"{at[-1]:.0f} s, {len(at)} rounds: server {server}, client {client}", file=sys.stderr)
        updates = run.finish()
    report = {
        "seconds": round(at[-1]),
        "backups": len(at),
        "punctured": punctures,
        "updates": updates,
        "chunks_from_sidefile": from_sidefile,
        "server": judge(servers, at),
        "client": judge(ours, at),
    }
    report["ok"] = not report["server"]["wrong"] and not report["client"]["wrong"] and from_sidefile > 0
    return report


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m proof.soak", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--size", type=int, default=128, help="MiB of each volume")
    parser.add_argument("--rate", type=int, default=500, help="updates a second of each volume")
    options = parser.parse_args()
    report = soak(options.minutes * 60, size=options.size * MIB, rate=options.rate)
    print(json.dumps(report, indent=1))
    return 0 if report["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
