"""The points of the curve, and how one is measured."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.intercept.application import Figures, Fio, Paced
from bench.intercept.systems import EXPORT, Qemu, Timezero, drop

IDLE_SECONDS = 3.0
KIB = 1 << 10


@dataclass(frozen=True)
class Sample:
    """One run: the application's figures in the backup's window, and the backup's seconds (0: no backup)."""

    figures: Figures | None
    seconds: float
    details: Mapping[str, Any]


@dataclass
class Point:
    """One setting of one system. load: "fio", "paced" or "" (nobody writes); backup: None for none.

    samples: of backups that were made; punctured: how many were not, because their sidefile was too small.
    """

    name: str
    system: type[Timezero] | type[Qemu]
    backup: Sequence[str] | Mapping[str, int] | None
    load: str = "fio"
    serve: Sequence[str] = ()
    samples: list[Sample] = field(default_factory=list)
    punctured: int = 0

    def median(self, value: Callable[[Sample], float]) -> float:
        return statistics.median(map(value, self.samples))

    @property
    def seconds(self) -> float:
        return self.median(lambda s: s.seconds)

    def figure(self, name: str) -> float:
        return self.median(lambda s: float(getattr(s.figures, name)))

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name, "system": self.system.__name__.lower(), "load": self.load, "settings": self.backup,
            "punctured": self.punctured, "samples": [
                {"seconds": s.seconds, **(asdict(s.figures) if s.figures else {}), **s.details} for s in self.samples
            ],
        }  # fmt: skip


@dataclass(frozen=True)
class Place:
    """Where it happens: the volume, the target (made anew each time), a folder for sockets and logs."""

    volume: Path
    target: Path
    folder: Path
    size: int


def run(point: Point, place: Place) -> Sample:
    """One run of one point. Raises RuntimeError when anything of it failed; Punctured: its sidefile was too small."""
    drop(place.target)
    with point.system(place.volume, place.folder, point.serve) as server:
        if not point.load:
            begin, end, details = _backup(point, server, place)
            return Sample(None, end - begin, details)
        with _application(point.load, server, place) as application:
            begin, end, details = _backup(point, server, place)
            application.stop()
            seconds = end - begin if point.backup is not None else 0.0
            return Sample(application.figures(begin, end), seconds, details)


def _application(load: str, server: Timezero | Qemu, place: Place) -> Fio | Paced:
    if load == "fio":
        return Fio(server.uri, place.size, place.folder)
    return Paced(server.socket, EXPORT, place.size, place.folder)


def _backup(point: Point, server: Timezero | Qemu, place: Place) -> tuple[float, float, Mapping[str, Any]]:
    """(begin, end, details): the backup's window, or that of doing nothing."""
    begin = time.time()
    details: Mapping[str, Any] = {}
    if point.backup is None:
        time.sleep(IDLE_SECONDS)
    else:
        details = server.backup(place.target, point.backup)  # type: ignore[arg-type]
    return begin, time.time(), details


# ---- what is measured ----


def _timezero(name: str, *settings: str, load: str = "fio", serve: Sequence[str] = ()) -> Point:
    return Point(f"timezero {name}", Timezero, settings, load, serve)


def _qemu(name: str, workers: int = 0, chunk: int = 0, load: str = "fio") -> Point:
    tuned = {"max-workers": workers, "max-chunk": chunk} if workers else {}
    return Point(f"qemu {name}", Qemu, tuned, load)


def baselines() -> list[Point]:
    """The application without a backup, the backup without an application."""
    return [
        Point("timezero, no backup", Timezero, None),
        Point("qemu, no backup", Qemu, None),
        _timezero("alone", load=""),
        _timezero("alone, --mode full", "--mode", "full", load=""),
    ]


def curve(quick: bool) -> list[Point]:
    """The curve, and qemu's points beside it."""
    points = [
        _timezero("default"),
        _timezero("full speed", "--mode", "full"),
        _timezero("full, 1 x 1M", "--mode", "full", "--depth", "1"),
        _timezero("full, 1 x 256K", "--mode", "full", "--depth", "1", "--chunk-size", "256K"),
        _qemu("defaults"),
        _qemu("8 x 64K", 8, 64 * KIB),
        _qemu("1 x 256K", 1, 256 * KIB),
        _qemu("1 x 64K", 1, 64 * KIB),
    ]
    if quick:
        return points
    fixed = [("2 x 1M", "2", "1M"), ("4 x 1M", "4", "1M"), ("2 x 256K", "2", "256K"), ("4 x 256K", "4", "256K"),
             ("1 x 64K", "1", "64K"), ("1 x 512K", "1", "512K")]  # fmt: skip
    points += [_timezero(f"full, {n}", "--mode", "full", "--depth", d, "--chunk-size", c) for n, d, c in fixed]
    points += [_timezero(f"default, --rate {rate}", "--rate", rate) for rate in ("300M", "500M", "700M")]
    points += [_qemu("2 x 256K", 2, 256 * KIB), _qemu("4 x 64K", 4, 64 * KIB), _qemu("1 x 1M", 1, 1024 * KIB)]
    return points


def variants(folder: Path) -> list[Point]:
    """The default with other tracks and more memory, and with before-images that have to go to the file tier."""
    tiers = ("--sidefile-memory", "16M", "--sidefile-file", "1G", "--sidefile-path", str(folder))
    return [
        *(_timezero(f"default, tracks of {t}", serve=("--track", t)) for t in ("16K", "64K", "256K")),
        *(_timezero(f"default, {t}, 256M", serve=("--track", t, "--sidefile-memory", "256M")) for t in ("4K", "16K")),
        *(_timezero(f"default, file tier, {t}", serve=(*tiers, "--track", t)) for t in ("16K", "64K", "256K")),
    ]


def paced() -> list[Point]:
    """500 updates a second, each latency counted from the instant it was due."""
    return [
        Point("timezero, no backup", Timezero, None, "paced"),
        Point("qemu, no backup", Qemu, None, "paced"),
        _timezero("default", load="paced"),
        _timezero("full speed", "--mode", "full", load="paced"),
        _qemu("defaults", load="paced"),
        _qemu("1 x 64K", 1, 64 * KIB, load="paced"),
    ]
