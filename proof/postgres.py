"""A PostgreSQL that runs on served volumes, its clients' acknowledged commits, and the judgement of a restored copy.

The data directory lies on one volume (ext4), the write-ahead log on another (xfs). Clients are pgbench's, with a
transaction that keeps its invariants (the sums of accounts, tellers, branches and history are equal) and notes in a
table which transaction of which client it was; pgbench's own log says when each commit was acknowledged.

    python -m proof.postgres [--rounds 10] [--seconds 5] [--scale 5]

Each round backs the group up at a random moment, with no help from the database, restores both volumes, mounts them and
starts PostgreSQL on them: recovery must succeed, amcheck find nothing, the invariants hold, and every commit that was
acknowledged before T0 be there. Needs root and PostgreSQL's server and pgbench.
"""

from __future__ import annotations

import argparse
import json
import os
import pwd
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from proof.served import Serving
from proof.stack import mounted_export, mounted_image

MIB = 1 << 20
SIZES = {"pgdata": 512 * MIB, "pgwal": 512 * MIB}
CLIENTS = 4
TIMEOUT = 120.0

_TRANSACTION = """\\set n :n + 1
\\set aid random(1, 100000 * :scale)
\\set bid random(1, 1 * :scale)
\\set tid random(1, 10 * :scale)
\\set delta random(-5000, 5000)
BEGIN;
UPDATE pgbench_accounts SET abalance = abalance + :delta WHERE aid = :aid;
INSERT INTO acknowledged (client, n) VALUES (:client_id, :n);
UPDATE pgbench_tellers SET tbalance = tbalance + :delta WHERE tid = :tid;
UPDATE pgbench_branches SET bbalance = bbalance + :delta WHERE bid = :bid;
INSERT INTO pgbench_history (tid, bid, aid, delta, mtime) VALUES (:tid, :bid, :aid, :delta, CURRENT_TIMESTAMP);
END;
"""

_SUMS = """SELECT (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(tbalance) FROM pgbench_tellers),
(SELECT sum(bbalance) FROM pgbench_branches), (SELECT coalesce(sum(delta), 0) FROM pgbench_history)"""

_INDEXES = """SELECT count(bt_index_check(c.oid, true)) FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
JOIN pg_am a ON a.oid = c.relam WHERE a.amname = 'btree' AND c.relpersistence = 'p' AND i.indisready AND i.indisvalid"""

_HEAPS = """SELECT count(v.*) FROM pg_class c, LATERAL verify_heapam(c.oid) v
WHERE c.relkind = 'r' AND c.relpersistence = 'p'"""


def program(name: str) -> str:
    """A program of PostgreSQL: where Debian keeps those of a version, else from the PATH. Raises RuntimeError."""
    versions = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: float(path.parts[4]))
    found = str(versions[-1]) if versions else shutil.which(name)
    if not found:
        raise RuntimeError(f"{name} is not installed: scripts/bootstrap.sh all")
    return found


def _as_postgres() -> dict[str, Any]:
    user = pwd.getpwnam("postgres")
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def _run(*command: object, **options: Any) -> str:
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=TIMEOUT, cwd="/", **_as_postgres(), **options
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))[:200]}: {(done.stderr or done.stdout).strip()[-1000:]}")
    return done.stdout.strip()


@dataclass
class Database:
    """A PostgreSQL on a data directory; `folder` has its socket and its log."""

    data: Path
    folder: Path

    def sql(self, statement: str) -> str:
        return _run(program("psql"), "-h", self.folder, "-d", "postgres", "-XAtqc", statement)

    @contextmanager
    def running(self) -> Iterator[Database]:
        self.folder.mkdir(exist_ok=True)
        owner = pwd.getpwnam("postgres")
        os.chown(self.folder, owner.pw_uid, owner.pw_gid)
        log = self.folder / "log"
        with log.open("w") as output:
            server = subprocess.Popen(
                [program("postgres"), "-D", str(self.data), "-k", str(self.folder), "-c", "listen_addresses="],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd="/", **_as_postgres(),
            )  # fmt: skip
        try:
            self._wait(server, log)
            yield self
        finally:
            if server.poll() is None:
                server.send_signal(signal.SIGINT)  # fast shutdown
            server.wait(TIMEOUT)

    def _wait(self, server: subprocess.Popen[bytes], log: Path) -> None:
        end = time.monotonic() + 60
        while True:
            try:
                self.sql("SELECT 1")
                return
            except RuntimeError as error:
                if server.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(f"PostgreSQL did not start: {log.read_text()[-2000:]}") from error
            time.sleep(0.05)


def create(data: Path, wal: Path, folder: Path, scale: int) -> Database:
    """A new cluster with pgbench's tables; the log of what is written ahead lies in `wal`."""
    owner = pwd.getpwnam("postgres")
    for path in (data, wal):
        path.mkdir()
        os.chown(path, owner.pw_uid, owner.pw_gid)
    _run(program("initdb"), "-D", data, "-X", wal, "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync")
    with (data / "postgresql.conf").open("a") as config:
        config.write("max_wal_size = 128MB\ncheckpoint_timeout = 30s\nshared_buffers = 64MB\nlog_checkpoints = on\n")
    os.sync()  # what is not durable may be missing from any T0, and initdb and we have not synced a thing
    database = Database(data, folder)
    with database.running():
        _run(program("pgbench"), "-h", folder, "-i", "-q", "-s", scale, "postgres")
        database.sql("CREATE EXTENSION amcheck")
        database.sql("CREATE TABLE acknowledged (client int, n int, PRIMARY KEY (client, n))")
    return database


@dataclass
class Clients:
    """pgbench at work. After `wait`: which commits were acknowledged, and when (seconds since the epoch)."""

    database: Database
    folder: Path
    seconds: int
    scale: int
    acknowledged: dict[tuple[int, int], float] = field(default_factory=dict)

    def start(self, first: int) -> Clients:
        """first: what the clients' transactions are numbered from."""
        owner = pwd.getpwnam("postgres")
        self.folder.mkdir()
        os.chown(self.folder, owner.pw_uid, owner.pw_gid)
        script = self.folder / "transaction.sql"
        script.write_text(_TRANSACTION)
        self._first = first
        self._process = subprocess.Popen(
            [program("pgbench"), "-h", str(self.database.folder), "-n", "-M", "prepared", "-c", str(CLIENTS), "-j", "2",
             "-T", str(self.seconds), "-D", f"n={first}", "-D", f"scale={self.scale}", "-f", str(script), "-l",
             "--log-prefix", str(self.folder / "log"), "postgres"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=self.folder,
            **_as_postgres(),
        )  # fmt: skip
        return self

    def wait(self) -> int:
        """To the end of the load; how many commits were acknowledged. Raises RuntimeError when a client failed."""
        err = self._process.communicate(timeout=self.seconds + TIMEOUT)[1]
        if self._process.returncode:
            raise RuntimeError(f"pgbench: {err.strip()[-1000:]}")
        for log in self.folder.glob("log.*"):
            for line in log.read_text().splitlines():
                client, _, _, _, second, microsecond, *_ = map(int, line.split())
                count = self._counts[client] = self._counts.get(client, self._first) + 1
                self.acknowledged[client, count] = second + microsecond / 1e6
        return len(self.acknowledged)

    def __post_init__(self) -> None:
        self._counts: dict[int, int] = {}

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.communicate()


def judge(images: dict[str, Path], folder: Path, acknowledged: dict[tuple[int, int], float], t0_ns: int) -> list[str]:
    """Starts PostgreSQL on restored images of both volumes; what is wrong with it. Raises RuntimeError: no start."""
    with ExitStack() as stack:
        data = stack.enter_context(mounted_image(images["pgdata"], folder / "data", "rw"))
        wal = stack.enter_context(mounted_image(images["pgwal"], folder / "wal", "rw,nouuid"))
        link = data / "cluster" / "pg_wal"
        link.unlink()
        link.symlink_to(wal / "wal")
        (data / "cluster" / "postmaster.pid").unlink(missing_ok=True)
        with Database(data / "cluster", folder / "run").running() as database:
            there = {
                tuple(map(int, row.split("|"))) for row in database.sql("SELECT client, n FROM acknowledged").split()
            }
            sums = database.sql(_SUMS).split("|")
            faults = [f"the sums of accounts, tellers, branches, history differ: {sums}"] * (len(set(sums)) != 1)
            owed = {key for key, instant in acknowledged.items() if instant < t0_ns / 1e9}
            faults += [f"commit {key} was acknowledged before T0 and is gone" for key in sorted(owed - there)]
            if int(database.sql(_INDEXES)) < 10 or int(database.sql(_HEAPS)):
                faults.append("amcheck: a heap is corrupt")
            if not owed:
                faults.append("no commit was acknowledged before T0: nothing is proved")
    return faults


class World:
    """The server of both volumes and the cluster on them."""

    def __init__(self, stack: ExitStack, folder: Path, scale: int) -> None:
        self.folder, self.scale = folder, scale
        self.control, nbd = folder / "control.sock", folder / "nbd.sock"
        words = ["--control", str(self.control), "--nbd", f"nbd+unix:///?socket={nbd}"]
        for name, size in SIZES.items():
            (folder / f"{name}.img").touch()
            os.truncate(folder / f"{name}.img", size)
            words += ["--volume", f"{name}={folder / name}.img"]
        stack.enter_context(Serving(words, folder / "serve.log"))
        roots = {
            name: stack.enter_context(mounted_export(f"nbd+unix:///{name}?socket={nbd}", folder / name, make))
            for name, make in (("pgdata", ["mkfs.ext4", "-q"]), ("pgwal", ["mkfs.xfs", "-q"]))
        }
        self.database = create(roots["pgdata"] / "cluster", roots["pgwal"] / "wal", folder / "run", scale)
        stack.enter_context(self.database.running())
        self.acknowledged: dict[tuple[int, int], float] = {}

    def timezero(self, *words: object) -> Any:
        done = subprocess.run(
            [sys.executable, "-m", "timezero", *map(str, words), "--json"],
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
        )
        if done.returncode:
            raise RuntimeError(f"timezero {words[0]}: exit code {done.returncode}: {done.stderr.strip()[-1000:]}")
        return json.loads(done.stdout)

    def round(
        self, number: int, seconds: int, pause: float, late_s: float = 0
    ) -> tuple[dict[str, Any], int, list[str]]:
        """A backup after `pause` seconds of load; its document, the commits of the round, what is wrong.

        late_s: judge as if T0 had been so many seconds later. Then something has to be wrong, or the judge is blind.
        """
        folder = self.folder / f"round{number}"
        folder.mkdir()
        folder.chmod(0o755)
        clients = Clients(self.database, folder / "clients", seconds, self.scale).start(number * 1_000_000)
        try:
            time.sleep(pause)
            repo = folder / "repository"
            backup = self.timezero("backup", "--repo", repo, "--control", self.control, "--deadline", "20s", *SIZES)
            commits = clients.wait()
        finally:
            clients.kill()
        self.acknowledged |= clients.acknowledged
        images = {name: folder / f"{name}.img" for name in SIZES}
        for name, image in images.items():
            self.timezero("restore", "--repo", repo, f"latest/{name}", image)
        faults = judge(images, folder, self.acknowledged, backup["t0_ns"] + round(late_s * 1e9))
        shutil.rmtree(folder)
        return backup, commits, faults


@contextmanager
def world(folder: Path, scale: int = 5) -> Iterator[World]:
    folder.chmod(0o755)  # the database's user walks through it
    with ExitStack() as stack:
        yield World(stack, folder, scale)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=int, default=5, help="of load a round")
    parser.add_argument("--scale", type=int, default=5, help="of pgbench")
    options = parser.parse_args()
    wrong = 0
    with (
        tempfile.TemporaryDirectory(prefix="timezero-postgres-", dir="/var/tmp") as base,
        world(Path(base), options.scale) as here,
    ):
        for number in range(options.rounds):
            backup, commits, faults = here.round(number, options.seconds, random.uniform(0.3, options.seconds / 2))
            wrong += bool(faults)
            intercepted = sum(dataset["intercepted"] for dataset in backup["datasets"])
            print(
                f"round {number + 1}: {commits} commits, suspended {backup['suspension']['total_us']} us, "
                f"{intercepted} updates intercepted: {'; '.join(faults[:3]) or 'recovered, whole, nothing lost'}",
                flush=True,
            )
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
