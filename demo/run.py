"""Two busy volumes, one T0 backup of both, both restored, and proof that does not rest on timezero's own bookkeeping.

volume `files`     a real ext4, mounted (root: nbdfuse, a loop device; otherwise at rest), busy with file activity
volume `blocks`    writers over NBD at depth, each sector self-describing, every write logged

python demo/run.py [--size MIB] [--keep DIRECTORY]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from proof.explain import NEVER, RECORD, Verdict, explain
from proof.files import Activity, Ledger, judge, machine_files
from proof.load import Load, build, fill
from proof.served import Serving
from proof.stack import mounted_export, mounted_image

MIB = 1 << 20
TIMEZERO = str(Path(sys.executable).with_name("timezero"))
BEFORE_SECONDS = 4.0  # of activity ahead of the backup, the yardstick of the write latency


def say(text: str) -> None:
    print(text, flush=True)


class Demo:
    """One run: its folder, its command lines, and what is to be told in the end."""

    def __init__(self, folder: Path, size: int) -> None:
        self.folder, self.size = folder, size
        self.nbd, self.control, self.repo = folder / "nbd.sock", folder / "control.sock", folder / "repository"
        self.commands: list[str] = []
        self.root = os.geteuid() == 0
        self.ledger = Ledger()

    def image(self, name: str) -> Path:
        return self.folder / f"{name}.img"

    def uri(self, name: str) -> str:
        return f"nbd+unix:///{name}?socket={self.nbd}"

    def timezero(self, *arguments: object) -> dict[str, Any]:
        """Runs a command, keeps its line for the end, returns its JSON document."""
        words = [str(a) for a in arguments]
        self.commands.append(" ".join(["timezero", *words]))
        done = subprocess.run([TIMEZERO, *words, "--json"], capture_output=True, text=True, timeout=150)
        if done.returncode:
            raise SystemExit(f"demo: {self.commands[-1]}: exit code {done.returncode}\n{done.stderr}")
        return json.loads(done.stdout)

    def serve(self, stack: ExitStack) -> None:
        words = ["--volume", f"files={self.image('files')}", "--volume", f"blocks={self.image('blocks')}",
                 "--nbd", f"nbd+unix:///?socket={self.nbd}", "--control", str(self.control), "--quiet"]  # fmt: skip
        self.commands.append(" ".join(["timezero", "serve", *words, "&"]))
        stack.enter_context(Serving(words, self.folder / "serve.log", command=[TIMEZERO, "serve"]))

    def prepare(self) -> None:
        for name in ("files", "blocks"):
            self.image(name).touch()
            os.truncate(self.image(name), self.size)
        fill(build(self.folder), self.image("blocks"), 1, 0, self.size // 2)
        if not self.root:
            subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", "/usr/share/doc", self.image("files")], check=True)

    def start_activity(self, stack: ExitStack) -> Activity | None:
        if not self.root:
            say("  not root: the file system of `files` stays at rest")
            return None
        mount = stack.enter_context(mounted_export(self.uri("files"), self.folder / "live", ["mkfs.ext4", "-q"]))
        activity = Activity(mount, machine_files(1500, 96 * MIB), self.ledger)
        activity.populate("stable")
        activity.start()
        return activity

    def check_files(self, restored: Path, verdict: Verdict) -> list[str]:
        """e2fsck after journal replay, then every file that was durable before T0 and not touched since."""
        subprocess.run(["e2fsck", "-y", "-E", "journal_only", restored], capture_output=True, timeout=60)
        clean = subprocess.run(["e2fsck", "-f", "-n", restored], capture_output=True, text=True, timeout=60)
        faults = [] if clean.returncode == 0 else [f"e2fsck: {clean.stdout.strip()}"]
        say(f"  e2fsck of the restored file system, journal replayed: {'clean' if not faults else 'NOT CLEAN'}")
        if self.root:
            owed = self.ledger.owed(verdict.earliest, verdict.latest)
            with mounted_image(restored, self.folder / "restored") as mount:
                wrong = judge(mount, owed)
            say(f"  {len(owed)} files were durable before T0 and not touched by then: {len(wrong)} differ")
            faults += wrong + ([] if len(owed) > 500 else ["too few files to prove anything"])
        return faults


def latencies(logs: list[Path], begin: int, end: int) -> tuple[float, float, int]:
    """p50 and p99 in us, and the number, of the writes that began in an interval."""
    log = np.concatenate([np.fromfile(path, dtype=RECORD) for path in logs])
    log = log[(log["acknowledged"] != NEVER) & (log["start"] >= begin) & (log["start"] < end)]
    us = (log["acknowledged"] - log["start"]) / 1000
    return (float(np.percentile(us, 50)), float(np.percentile(us, 99)), len(us)) if len(us) else (0.0, 0.0, 0)


def run(demo: Demo) -> int:
    with ExitStack() as stack:
        say(f"1. two volumes of {demo.size // MIB} MiB, served and busy")
        demo.prepare()
        demo.serve(stack)
        load = Load(demo.folder / "blockload", demo.nbd, "blocks", 1, demo.size, demo.folder, depth=4, seconds=150,
                    options={"min": 512, "max": 65536, "grain": 512, "zero": 2, "trim": 2, "rate": 1000})  # fmt: skip
        stack.callback(load.kill)
        activity = demo.start_activity(stack)
        begin = time.monotonic_ns()
        load.start()
        time.sleep(BEFORE_SECONDS)

        say("2. one backup of the group, T0 for both, while both are busy")
        window = [time.monotonic_ns()]
        backup = demo.timezero("backup", "--repo", demo.repo, "--control", demo.control, "files", "blocks")
        window.append(time.monotonic_ns())
        time.sleep(1.0)
        load.stop()
        if activity:
            activity.stop()

    say("3. verify, restore, and proof from outside")
    demo.timezero("verify", "--repo", demo.repo, "latest")
    for name in ("files", "blocks"):
        demo.timezero("restore", "--repo", demo.repo, f"latest/{name}", demo.folder / f"restored-{name}.img")
    verdict = explain([(demo.folder / "restored-blocks.img", 1, load.logs)], (window[0], window[1]))
    say(f"  {verdict.cells} sectors, {verdict.updates} logged writes: "
        + (f"one instant explains them all, known to {max(0, verdict.latest - verdict.earliest) / 1000:.0f} us"
           if verdict.explained else "NO instant explains them"))  # fmt: skip
    faults = verdict.faults + demo.check_files(demo.folder / "restored-files.img", verdict)
    report(demo, backup, load, begin, window)
    for fault in faults[:10]:
        say(f"  FAILED: {fault}")
    say("\nthe backup is the state of one instant" if not faults else "\nthe proof FAILED")
    return 1 if faults else 0


def report(demo: Demo, backup: dict[str, Any], load: Load, begin: int, window: list[int]) -> None:
    before, during = latencies(load.logs, begin, window[0]), latencies(load.logs, window[0], window[1])
    times, datasets = backup["suspension"], backup["datasets"]
    total = sum(d["size"] for d in datasets)
    rows = [
        (
            "suspension",
            f"{times['total_us']} us: drain {times['drain_us']}, map {times['map_us']}, install {times['install_us']}",
        ),
        ("throughput", f"{total / backup['seconds'] / 1e6:.0f} MB/s ({total // MIB} MiB in {backup['seconds']:.2f} s)"),
        ("writes intercepted", f"{sum(d['intercepted'] for d in datasets)}"),
        ("sidefile high-water mark", f"{sum(d['sidefile_high_water_bytes'] for d in datasets) / MIB:.1f} MiB"),
        ("write latency before", f"p50 {before[0]:.0f} us, p99 {before[1]:.0f} us ({before[2]} writes)"),
        ("write latency during", f"p50 {during[0]:.0f} us, p99 {during[1]:.0f} us ({during[2]} writes)"),
    ]  # fmt: skip
    say("\n" + "\n".join(f"  {name:<26}{value}" for name, value in rows))
    say("\n  the command lines:\n" + "\n".join(f"    {command}" for command in demo.commands))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512, help="MiB a volume (default 512)")
    parser.add_argument("--keep", type=Path, help="work in this directory and leave everything there")
    options = parser.parse_args()
    if options.keep:
        options.keep.mkdir(parents=True)
        return run(Demo(options.keep.resolve(), options.size * MIB))
    with tempfile.TemporaryDirectory(prefix="timezero-demo-", dir="/var/tmp") as folder:
        return run(Demo(Path(folder), options.size * MIB))


if __name__ == "__main__":
    raise SystemExit(main())
