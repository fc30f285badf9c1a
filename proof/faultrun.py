"""Doing what a plan says (proof/faultplan.py), and judging it: what is listed, or named, is exactly T0, or it is wrong.

A server serves many runs; each fills its volume anew, loads it, backs it up while faults befall it, and looks at all
that is left: results, words, exit code, sessions, descriptors, files.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from proof.explain import explain
from proof.faultplan import TARGET, TIER, VOLUME, Plan
from proof.load import Load, fill
from proof.served import Serving
from proof.shim import Shim
from proof.words import after_the_estimate
from timezero import session
from timezero.errors import TimezeroError
from timezero.jobs.restore import restore
from timezero.repository import Repository

TIMEOUT = 60.0
CODES = {0, 1, 4, 5, 130, -signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT}
_SIGNALS = {"kill": signal.SIGKILL, "interrupt": signal.SIGINT, "terminate": signal.SIGTERM}


class Server:
    """`timezero serve` with a volume `data` in `folder`, started when it is needed."""

    def __init__(self, folder: Path, place: Path, engine: str) -> None:
        folder.mkdir(parents=True)
        place.mkdir(parents=True)
        self.tier = folder / "tier"
        self.tier.mkdir()
        self.image = place / "data.img"
        self.image.touch()
        self.nbd, self.control = folder / "nbd.sock", str(folder / "control.sock")
        self.shim = Shim(folder, "server")
        self._log = folder / "log"
        self._engine = engine
        self._serving: Serving | None = None
        self.idle = 0  # descriptors

    def start(self, size: int) -> None:
        """Serve the volume at this size; at once when it is served already."""
        if self.is_running:
            if self.image.stat().st_size == size:
                return
            self.stop()
        os.truncate(self.image, size)
        words = [
            "--volume", f"data={self.image}", "--control", self.control, "--nbd", f"nbd+unix:///?socket={self.nbd}",
            "--sidefile-path", self.tier, "--sidefile-file", "1M",
        ]  # fmt: skip
        self._serving = Serving(words, self._log, env=self.shim.environment | {"TIMEZERO_IO": self._engine})
        time.sleep(0.1)  # it has some more a moment after it is ready
        self.idle = self.descriptors()

    @property
    def is_running(self) -> bool:
        """Is there one that has not ended?"""
        return self._serving is not None and self._serving.is_running

    def empty(self) -> None:
        """Zeros all over the volume, below an idle server."""
        size = self.image.stat().st_size
        os.truncate(self.image, 0)
        os.truncate(self.image, size)

    def descriptors(self) -> int:
        """How many it has open."""
        assert self._serving
        return len(os.listdir(f"/proc/{self._serving.pid}/fd"))

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """End it; its exit code."""
        serving, self._serving = self._serving, None
        return serving.stop(number) if serving else 0


@dataclass
class Report:
    """How a run went. wrong: what must not be; code: the job's exit code; judged: results that were explained."""

    plan: Plan
    code: int | None = None
    err: str = ""
    judged: int = 0
    wrong: list[str] = field(default_factory=list)

    @property
    def outcome(self) -> str:
        """In a word."""
        if self.wrong:
            return "WRONG"
        return {0: "exactly T0", 5: "punctured", 130: "interrupted"}.get(
            self.code or 0, "killed" if (self.code or 0) < 0 else "failed"
        )


class Run:
    """One run on a server, in a folder of its own."""

    def __init__(self, plan: Plan, server: Server, blockload: Path, folder: Path) -> None:
        self.plan, self.server, self.folder = plan, server, folder
        self.blockload = blockload
        self.report = Report(plan)
        self.target = folder / "target"
        self._windows: dict[str, tuple[int, int]] = {}  # of results
        folder.mkdir(parents=True)
        self.target.mkdir()
        self.mover = Shim(folder, "mover", seed=plan.seed + 1)

    def wrong(self, what: str) -> None:
        self.report.wrong.append(what)

    def run(self) -> Report:
        """All of it."""
        plan, server = self.plan, self.server
        server.start(plan.size)
        server.empty()
        fill(self.blockload, server.image, 1, 0, plan.size // 2 // 4096 * 4096)
        load = Load(
            self.blockload, server.nbd, "data", 1, plan.size, self.folder, connections=plan.connections,
            depth=plan.depth, seconds=60, options={**plan.load, "seed": plan.seed, "survive": int(plan.server_dies)},
        )  # fmt: skip
        load.start()
        try:
            time.sleep(0.03)
            self._set_rules()
            self._job("first")
            self._clear_rules()
            if server.is_running:
                self._look_at_server()
                if self.report.code != 0:
                    self._job("second")  # whatever happened: the next one is none the worse for it
                    self._look_at_server()
            load.stop()
        finally:
            self._clear_rules()
            load.kill()
        self._judge(load)
        return self.report

    # ---- doing ----

    def _set_rules(self) -> None:
        places = {VOLUME: self.server.image, TIER: self.server.tier, TARGET: self.target}
        for number, fault in enumerate(self.plan.faults):
            (self.server.shim if fault.whose == "server" else self.mover).rule(
                number, fault.calls, places[fault.on], error=fault.error, nth=fault.nth,
                per_million=fault.per_million, delay_us=fault.delay_us, shorten=fault.shorten,
            )  # fmt: skip

    def _clear_rules(self) -> None:
        self.server.shim.clear()
        self.mover.clear()

    def _command(self, name: str) -> list[str]:
        plan, first = self.plan, name == "first"
        words = [sys.executable, "-m", "timezero", plan.job, "--control", self.server.control]
        words += ["--deadline", "10s", "--track-size", str(plan.track), "--chunk-size", str(plan.chunk)]
        words += ["--mode", plan.mode if first else "fixed", "--buffer", str(max(4 << 20, 4 * plan.chunk))]
        words += ["--rate", str(plan.rate if first else 0)]
        words += ["--sidefile-memory", str(plan.sidefile_memory if first else 32 << 20)]
        words += ["--sidefile-file", str(plan.sidefile_file if first else 0)]
        if plan.job == "backup":
            return [*words, "--repo", str(self.target / "repo"), "data"]
        return [*words, "data", str(self.target / f"{name}.img")]

    def _job(self, name: str) -> None:
        first = name == "first"
        environment = os.environ | {"TIMEZERO_IO": self.plan.mover_engine} | (self.mover.environment if first else {})
        before, known = time.monotonic_ns(), self._results()
        job = subprocess.Popen(
            self._command(name), env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        if first:
            self._send_signals(job)
        try:
            _, err = job.communicate(timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            job.kill()
            _, err = job.communicate()
            self.wrong(f"{name}: it hangs")
        code, after = job.returncode, time.monotonic_ns()
        new = self._results() - known
        self._windows |= dict.fromkeys(new, (before, after))
        self._look_at_words(name, code, err, new)
        if first:
            self.report.code, self.report.err = code, err.strip()
        elif code != 0:
            self.wrong(f"the backup after it fails: {code} {err}")

    def _send_signals(self, job: subprocess.Popen[str]) -> None:
        began = time.monotonic()
        for one in sorted(self.plan.signals, key=lambda signal: signal.after):
            left = one.after - (time.monotonic() - began)
            with suppress(subprocess.TimeoutExpired):
                job.wait(max(left, 0.001))
                return
            if one.name == "server-kill":
                self.server.stop(signal.SIGKILL)
            elif one.name == "stop":
                job.send_signal(signal.SIGSTOP)
                time.sleep(one.lasts)
                job.send_signal(signal.SIGCONT)
            else:
                job.send_signal(_SIGNALS[one.name])

    # ---- looking ----

    def _results(self) -> set[str]:
        if self.plan.job == "copy":
            return {path.name for path in self.target.iterdir()}
        repo = self.target / "repo"
        return set(Repository(str(repo)).ids()) if (repo / "repository.json").exists() else set()

    def _look_at_words(self, name: str, code: int, err: str, new: set[str]) -> None:
        if code not in CODES:
            self.wrong(f"{name}: exit code {code}: {err}")
        err = after_the_estimate(err)
        one_line = err.startswith("timezero: ") and err.count("\n") == 1 and err.endswith("\n")
        # An interrupt that comes before there is anything to say needs no words. Still before that is the interpreter,
        # which has words of its own.
        early = (code == 130 and not err) or (code == 1 and "KeyboardInterrupt" in err and "timezero/__" not in err)
        if code > 0 and not one_line and not early:
            self.wrong(f"{name}: no line for the user: {code} {err!r}")
        if code == 0 and not new:
            self.wrong(f"{name}: exit code 0, and nothing is there")
        if code in (4, 5) and new:
            self.wrong(f"{name}: exit code {code}, and {new} are there")
        if code == 1 and new and "is there" not in err:
            self.wrong(f"{name}: exit code 1, and {new} are there: {err}")
        self._look_at_leavings(name, code)

    def _look_at_leavings(self, name: str, code: int) -> None:
        if self.plan.job == "copy":
            left = [path.name for path in self.target.glob(".timezero-*")]
        else:
            repo = self.target / "repo"
            if not (repo / "repository.json").exists():
                return
            if code < 0:
                Repository(str(repo)).prune()
            ids = set(Repository(str(repo)).ids())
            left = [path.name for path in repo.glob("packs/*") if path.name.rsplit("-", 1)[0] not in ids]
            left += [path.name for path in repo.glob("recovery-points/*") if path.name not in ids]
        if left:
            self.wrong(f"{name}: exit code {code}, and {left} are left")

    def _look_at_server(self) -> None:
        end = time.monotonic() + 10
        most = self.server.idle + self.plan.connections
        while True:
            sessions = session.status(self.server.control)["sessions"]
            open_now = self.server.descriptors()
            if not sessions and open_now <= most:
                return
            if time.monotonic() > end:
                self.wrong(f"the server keeps {len(sessions)} sessions, {open_now} descriptors (it had {most})")
                return
            time.sleep(0.02)

    # ---- judging ----

    def _judge(self, load: Load) -> None:
        for result, window in self._windows.items():
            image = self.target / result
            if self.plan.job == "backup":
                image = self.folder / f"{result}.img"
                try:
                    restore(str(self.target / "repo"), result, str(image), dataset="data")
                except TimezeroError as error:
                    self.wrong(f"{result} is listed and cannot be restored: {error}")
                    continue
            verdict = explain([(image, 1, load.logs)], window)
            self.report.judged += 1
            if not verdict.explained:
                self.wrong(f"{result}: {verdict.faults[:3]}")
            if self.plan.job == "backup":
                image.unlink()

    def discard(self) -> None:
        """Its folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
