"""What a run of proof/faulted.py does, drawn from its seed: a volume, a load, a backup, and what befalls them."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from proof import shim

KIB, MIB = 1 << 10, 1 << 20

VOLUME, TIER, TARGET = "volume", "tier", "target"


@dataclass(frozen=True)
class Fault:
    """A rule for the calls of a program (proof/shim.py). whose: "server" or "mover"; on: VOLUME, TIER or TARGET."""

    name: str
    whose: str
    on: str
    calls: int
    error: int = 0
    nth: int = 0
    per_million: int = 0
    delay_us: int = 0
    shorten: int = 0


@dataclass(frozen=True)
class Signal:
    """What is sent to a program, seconds after it began. name: kill, interrupt, terminate, stop (for `lasts` seconds),
    server-kill."""

    name: str
    after: float
    lasts: float = 0.0


@dataclass(frozen=True)
class Plan:
    """One run. Sizes in bytes, rate in bytes a second."""

    seed: int
    engine: str
    in_memory: bool
    size: int
    track: int
    chunk: int
    sidefile_memory: int
    sidefile_file: int
    job: str
    mover_engine: str
    mode: str
    rate: int
    load: dict[str, int]
    connections: int
    depth: int
    faults: tuple[Fault, ...] = ()
    signals: tuple[Signal, ...] = ()
    names: tuple[str, ...] = field(default=())

    @property
    def server_dies(self) -> bool:
        """Is the server killed?"""
        return any(signal.name == "server-kill" for signal in self.signals)

    @property
    def mover_is_killed(self) -> bool:
        """May the mover leave things behind?"""
        return any(signal.name == "kill" for signal in self.signals)


Draw = Callable[[random.Random], Fault | Signal]


def _often(r: random.Random, least: int, most: int) -> int:
    """From `least` to `most` in a million, small ones as often as large ones."""
    return int(least * (most / least) ** r.random())


def _slow(name: str, whose: str, on: str, calls: int) -> Draw:
    return lambda r: Fault(
        name, whose, on, calls, per_million=_often(r, 20_000, 500_000), delay_us=r.randrange(200, 30_000)
    )


def _short(name: str, whose: str, on: str, calls: int) -> Draw:
    return lambda r: Fault(name, whose, on, calls, per_million=_often(r, 50_000, 900_000), shorten=4096)


def _fails(name: str, whose: str, on: str, calls: int, most: int = 300_000) -> Draw:
    return lambda r: Fault(
        name, whose, on, calls, error=r.choice((errno.EIO, errno.ENOSPC)), per_million=_often(r, 500, most)
    )


DRAWS: dict[str, Draw] = {
    "image-error": _fails("image-error", "server", VOLUME, shim.READ, 30_000),
    "image-slow": _slow("image-slow", "server", VOLUME, shim.READ),
    "image-short": _short("image-short", "server", VOLUME, shim.READ),
    "update-slow": _slow("update-slow", "server", VOLUME, shim.WRITE),
    "update-short": _short("update-short", "server", VOLUME, shim.WRITE),
    "tier-error": _fails("tier-error", "server", TIER, shim.WRITE, 30_000),
    "tier-slow": _slow("tier-slow", "server", TIER, shim.WRITE),
    "tier-short": _short("tier-short", "server", TIER, shim.WRITE),
    "copy-error": _fails("copy-error", "mover", VOLUME, shim.READ),
    "copy-slow": _slow("copy-slow", "mover", VOLUME, shim.READ),
    "copy-short": _short("copy-short", "mover", VOLUME, shim.READ),
    "tier-read-error": _fails("tier-read-error", "mover", TIER, shim.READ),
    "tier-read-short": _short("tier-read-short", "mover", TIER, shim.READ),
    "target-error": lambda r: Fault(
        "target-error", "mover", TARGET, shim.MAKING, error=r.choice((errno.EIO, errno.ENOSPC)), nth=r.randrange(1, 45)
    ),
    "target-slow": _slow("target-slow", "mover", TARGET, shim.WRITE | shim.SYNC),
    "target-short": _short("target-short", "mover", TARGET, shim.WRITE),
    "kill": lambda r: Signal("kill", r.uniform(0.1, 1.2)),
    "interrupt": lambda r: Signal(r.choice(("interrupt", "terminate")), r.uniform(0.1, 1.2)),
    "stop": lambda r: Signal("stop", r.uniform(0.2, 0.8), r.uniform(0.05, 0.5)),
    "server-kill": lambda r: Signal("server-kill", r.uniform(0.2, 1.2)),
}
#: Those that a run has more often than others.
WEIGHTS = {"image-error": 2, "copy-error": 2, "kill": 3, "stop": 2}


def draw(seed: int) -> Plan:
    """The plan of a seed."""
    r = random.Random(f"faulted {seed}")
    names: set[str] = set()
    if r.random() > 0.08:
        count = r.choice((1, 1, 1, 2, 2, 3))
        names = set(r.choices(list(DRAWS), [WEIGHTS.get(name, 1) for name in DRAWS], k=count))
    drawn = [DRAWS[name](r) for name in sorted(names)]
    faults = tuple(one for one in drawn if isinstance(one, Fault))
    signals = tuple(one for one in drawn if isinstance(one, Signal))
    needs_tier = any(fault.on == TIER for fault in faults)
    track = r.choice((4 * KIB, 4 * KIB, 16 * KIB, 64 * KIB))
    overflows = r.random() < 0.15
    tier = r.choice((2 * MIB, 16 * MIB)) if needs_tier or r.random() < 0.2 else 0
    size = r.randrange(256, 1536) * 4 * KIB
    tables = size // track + tier // track * 40 + 32 * KIB
    few = tables * 5 // 4 + r.choice((4, 8, 16)) * track
    memory = few if overflows or needs_tier else r.choice((4 * MIB, 16 * MIB))
    # An update that is no block's multiple would be read for, and get the error that is meant for before-images.
    grain = 4096 if "image-error" in names else r.choice((512, 4096))
    return Plan(
        seed=seed,
        # What goes to io_uring is not seen by the library that makes calls fail.
        engine="threads" if any(fault.whose == "server" for fault in faults) else r.choice(("uring", "threads")),
        in_memory=r.random() < 0.4,
        size=size,
        track=track,
        chunk=r.choice((64 * KIB, 256 * KIB, MIB)),
        sidefile_memory=memory,
        sidefile_file=tier,
        job=r.choice(("backup", "backup", "copy")),
        mover_engine="threads" if any(fault.whose == "mover" for fault in faults) else r.choice(("uring", "threads")),
        mode=r.choice(("fixed", "fixed", "opportunistic")),
        rate=int(size / r.uniform(0.05, 0.7)),
        load={
            "min": grain,
            "max": r.choice((4096, 16384, 65536)),
            "grain": grain,
            "zero": r.choice((0, 5)),
            "trim": r.choice((0, 5)),
            "fua": r.choice((0, 1)),
            "rate": r.choice((300, 1000, 3000)),
        },
        connections=r.choice((1, 2)),
        depth=r.choice((1, 4, 8)),
        faults=faults,
        signals=signals,
        names=tuple(sorted(names)) + (("overflow",) if overflows else ()),
    )
