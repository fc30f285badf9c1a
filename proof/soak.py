"""python -m proof.soak [--minutes N]: backups in a row on volumes under load, and what must stay flat meanwhile.

Two volumes of one `timezero serve` are written to all the time. This process backs them up again and again, verifies
each recovery point, prunes the old ones, and now and then runs a session into its sidefile's cap, which has to fail as
it should. After every round it looks at memory, descriptors, threads and files: of the server (its sidefiles, what it
has in TMPDIR), and of the client (the repository, and its own TMPDIR). The client is this process itself: what the
package does inside of one that makes backup after backup. So nothing is kept here that grows: samples go to a file.

The rule, of the rounds after the warm-up, in thirds, by their medians. Not flat is

    descriptors, threads, files    when there are more in the last third than in the first
    memory, kernel_workers         when they have grown from the first third to the second and from that to the third,
                                   each time by more than STEP_MAX: what settles, settles

kernel_workers are the threads that io_uring makes in our name. The kernel makes one whenever more requests wait at once
than have done so before, which can be late; and a request that never ends keeps one, which adds up from round to round.

Prints one JSON document with the verdict; the exit code is 1 when something is not flat, or not as it should be.
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
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
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
#: What is kept of the worst moment, and moments differ. Bytes of memory: in an hour, with a round in two seconds, this
#: is 440 bytes a round. Workers of the kernel: the loads have eight requests under way, so three more and then three
#: more again is all but what they can have; an hour tells well what is kept for ever, fifteen seconds hardly.
STEP_MAX = {"memory": 256 << 10, "kernel_workers": 2}
#: Rounds after which everything has been used once: punctures too.
WARM_UP = 3


def sample(process: int, folders: list[Path]) -> dict[str, int]:
    """Of a process: resident memory that is its own in bytes, descriptors, threads (its own, and those that the kernel
    made for its rings); and files in `folders`."""
    status = dict(
        line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines() if ":" in line
    )
    threads = _thread_names(process)
    workers = sum(name.startswith("iou-wrk-") for name in threads)
    return {
        "memory": int(status["RssAnon"].split()[0]) * 1024,
        "descriptors": len(os.listdir(f"/proc/{process}/fd")),
        "threads": len(threads) - workers,
        "kernel_workers": workers,
        "files": sum(len(list(folder.rglob("*"))) for folder in folders),
    }


def _thread_names(process: int) -> list[str]:
    """Of those that are there while we look: workers of the kernel come and go."""
    names = []
    for task in Path(f"/proc/{process}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):
            names.append((task / "comm").read_text())
    return names


def slope(values: list[int], seconds: list[float]) -> float:
    """An hour's growth, by least squares."""
    if len(values) < 3:
        return 0.0
    return statistics.linear_regression(seconds, values).slope * 3600


def judge(samples: list[dict[str, int]], seconds: list[float]) -> dict[str, Any]:
    """Slopes an hour, the medians of the thirds, and what is not flat."""
    samples, seconds = samples[WARM_UP:], seconds[WARM_UP:]
    third = max(1, len(samples) // 3)
    found: dict[str, Any] = {"not_flat": []}
    for key in samples[0]:
        values = [s[key] for s in samples]
        parts = values[:third], values[third:-third] or values[-third:], values[-third:]
        first, middle, last = (round(statistics.median(part)) for part in parts)
        found[key] = {
            "thirds": [first, middle, last],
            "most": max(values),
            "slope_an_hour": round(slope(values, seconds), 2),
        }
        steps = middle - first, last - middle
        if min(steps) > STEP_MAX[key] if key in STEP_MAX else sum(steps) > 0:
            found["not_flat"].append(f"{key}: {first}, then {middle}, then {last}")
    return found


class Samples:
    """Of server and client, a line a round, in a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.count = 0
        path.touch()

    def add(self, seconds: float, server: dict[str, int], client: dict[str, int]) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps({"seconds": seconds, "server": server, "client": client}) + "\n")
        self.count += 1

    def judged(self, who: str) -> dict[str, Any]:
        lines = [json.loads(line) for line in self._path.read_text().splitlines()]
        return judge([line[who] for line in lines], [line["seconds"] for line in lines])


class Soak:
    """Server, load and rounds; everything below `folder`, and ended with `stack`."""

    def __init__(self, stack: ExitStack, folder: Path, size: int, rate: int) -> None:
        self._folder = folder
        self._sockets = [folder / name for name in ("nbd", "control")]
        self._tiers = folder / "tiers"
        self._temporary, self._ours = folder / "tmp", folder / "tmp-client"
        self._repo = folder / "repo"
        for made in (self._tiers, self._temporary, self._ours):
            made.mkdir()
        stack.enter_context(_temporaries_in(self._ours))
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
            stack.callback(load.kill)
            load.start()

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
        server = sample(self.server.pid, [self._tiers, self._temporary])
        return server, sample(os.getpid(), [self._repo, self._ours])

    def finish(self) -> int:
        """End the load; updates that it made. Every recovery point that is left is verified once more."""
        updates = sum(int(summary["updates"]) for load in self._loads for summary in load.stop())
        verify(str(self._repo)).raise_for_damage()
        return updates


@contextmanager
def _temporaries_in(folder: Path) -> Iterator[None]:
    """Temporary files of this process go there."""
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before


def soak(
    seconds: float, *, size: int = 128 * MIB, rate: int = 500, keep: int = 3, puncture_every: int = 5, every: float = 0
) -> dict[str, Any]:
    """Run it; the report. size: bytes of a volume; rate: updates a second of each; every: seconds a round at least."""
    begin = time.monotonic()
    at = 0.0
    from_sidefile = punctures = 0
    with tempfile.TemporaryDirectory(prefix="timezero-soak-", dir="/var/tmp") as folder, ExitStack() as stack:
        samples = Samples(Path(folder) / "samples")
        run = Soak(stack, Path(folder), size, rate)
        while at < seconds or samples.count < WARM_UP + 3:
            due = time.monotonic() + every
            puncture = samples.count % puncture_every == 1
            from_sidefile += run.round(puncture=puncture, keep=keep)
            punctures += puncture
            server, client = run.samples()
            at = time.monotonic() - begin
            samples.add(at, server, client)
            if samples.count % 50 == 0:
                print(f"{at:.0f} s, {samples.count} rounds: server {server}, client {client}", file=sys.stderr)
            time.sleep(max(due - time.monotonic(), 0))
        updates = run.finish()
        judged = {who: samples.judged(who) for who in ("server", "client")}
    not_flat = [f"{who}: {what}" for who, found in judged.items() for what in found["not_flat"]]
    return {
        "seconds": round(at),
        "backups": samples.count,
        "punctured": punctures,
        "updates": updates,
        "chunks_from_sidefile": from_sidefile,
        **judged,
        "client_is": "this process, in which all backups and verifications ran",
        "verdict": f"not flat: {'; '.join(not_flat)}" if not_flat else "flat",
        "ok": not not_flat and from_sidefile > 0,
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m proof.soak", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--size", type=int, default=128, help="MiB of each volume")
    parser.add_argument("--rate", type=int, default=500, help="updates a second of each volume")
    parser.add_argument("--every", type=float, default=2, help="seconds from round to round, at least")
    options = parser.parse_args()
    report = soak(options.minutes * 60, size=options.size * MIB, rate=options.rate, every=options.every)
    print(json.dumps(report, indent=1))
    return 0 if report["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
