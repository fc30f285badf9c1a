"""What the gate costs once everything is copied: the same server under the same load, with and without a session.

The session is a real one: suspended, T0 taken, all of its domain moved (to nowhere) by a mover, and not ended. So every
track is copied, every update is judged, and none is held. fio has a CPU of its own: where the scheduler puts client and
server together makes a difference of a third, and what is looked for is one per cent.

Rounds of a second lie further apart than that, so the gate's own calls are timed too, by themselves and in C
(gate_calls.c): what they take, as a share of the server's time for an update, is an answer that noise does not hide.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from timezero._native.mover import Sink
from timezero.errors import TimezeroError
from timezero.jobs.bench_serve import Contender, Figures, Load, alternate, run_load, running, timezero
from timezero.jobs.moving import Moving, raise_first
from timezero.jobs.options import MoverOptions, SessionOptions
from timezero.jobs.serving import Served

ROOT = Path(__file__).parents[2]
LOADS = (
    Load("4k random write, depth 1", "randwrite", 4096, 1),
    Load("4k random write, depth 16", "randwrite", 4096, 16),
)


@contextmanager
def armed(control: Path) -> Iterator[None]:
    """A session on the server's volume, everything copied. Raises TimezeroError when an update was held."""
    with Served(["volume"], SessionOptions(control=str(control))) as served:
        served.suspend()
        with Moving(MoverOptions(), 1 << 20, [served.size("volume")]) as moving:
            moving.add("volume", served.source("volume"), Sink.null(), target="nowhere")
            moving.run(lambda done: None)
            raise_first(moving.transfers)
            yield
        if held := served.look()[1]:
            raise TimezeroError(f"{held} updates were held: not everything was copied")


def measure_gate(
    volume: Path, folder: Path, rounds: int, seconds: float, say: Callable[[str], None]
) -> tuple[Contender, Contender]:
    """(with a session, without one): the runs of both on one server, alternating."""
    server = Contender("timezero", timezero())
    with_session, without = Contender("session, all copied", server.command), Contender("no session", server.command)
    with running(server, volume, folder) as (pid, uri):

        def once(contender: Contender, load: Load) -> Figures:
            if contender is without:
                return run_load(pid, uri, load, seconds, apart=True)
            with armed(folder / "control"):
                return run_load(pid, uri, load, seconds, apart=True)

        alternate([with_session, without], LOADS, rounds, once, say)
    return with_session, without


def calls_ns(folder: Path, volume_gib: int) -> dict[str, float]:
    """{"no session" or "session, all copied": ns of the gate's own for one update of 4 KiB}, on a sparse volume."""
    build, binary = folder / "gate-calls-build", folder / "gate-calls"
    if not binary.exists():
        library = build / "libtz.a"
        subprocess.run(
            ["make", "-s", "-C", ROOT / "tests/c", f"BUILD={build}", "MODULES=data io subsystem", library],
            check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        source = Path(__file__).with_name("gate_calls.c")
        flags = ["-std=gnu11", "-D_GNU_SOURCE", "-O2", "-pthread", "-I", ROOT / "csrc/include"]
        libraries = subprocess.run(
            "pkg-config --libs libxxhash; pkg-config --libs liburing || true",
            shell=True, check=True, capture_output=True, text=True,
        ).stdout.split()  # fmt: skip
        subprocess.run(["cc", *flags, "-o", binary, source, library, *libraries, "-pthread"], check=True)
    out = subprocess.run([binary, str(volume_gib)], check=True, capture_output=True, text=True).stdout
    return {who: float(each) for who, each in json.loads(out)}
