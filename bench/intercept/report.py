"""The table: every point against the idle application of its own server, and the targets against the points."""

from __future__ import annotations

from collections.abc import Sequence

from bench.intercept.points import Point, Qemu, Sample, Timezero

COLUMNS = {
    "IOPS": 8,
    "kept": 7,
    "p50 us": 8,
    "p99 us": 9,
    "x idle": 8,
    "worst ms": 10,
    "backup s": 10,
    "x alone": 9,
    "updates": 9,
}
HEADER = " " * 32 + "".join(f"{name:>{width}}" for name, width in COLUMNS.items())


def line(point: Point, sample: Sample | None) -> str:
    """One run, for the log. None: it was punctured."""
    parts = [f"{point.name}{', ' + point.load if point.load else ''}:"]
    if sample is None:
        return f"{parts[0]} punctured"
    if sample.figures:
        parts.append(f"{sample.figures.iops:.0f} IOPS, p99 {sample.figures.p99:.0f} us")
    if sample.seconds:
        parts.append(f"backup {sample.seconds:.2f} s")
    return " ".join(parts)


def _find(every: Sequence[Point], name: str, load: str) -> Point | None:
    return next((p for p in every if p.name == name and p.load == load), None)


def idle_of(every: Sequence[Point], point: Point) -> Point | None:
    """The same application on the same server, without a backup."""
    return _find(every, "timezero, no backup" if point.system is Timezero else "qemu, no backup", point.load)


def row(every: Sequence[Point], point: Point) -> str:
    idle, alone = idle_of(every, point), _find(every, "timezero alone, --mode full", "")
    cells = f"{point.name:<32}"
    if not point.samples:
        return f"{cells}  punctured: its sidefile is too small for so slow a copy"
    if point.load:
        cells += f"{point.figure('iops'):>8.0f}"
        cells += f"{point.figure('iops') / idle.figure('iops'):>7.0%}" if idle else f"{'':>7}"
        cells += f"{point.figure('p50'):>8.0f}{point.figure('p99'):>9.0f}"
        cells += f"{point.figure('p99') / idle.figure('p99'):>8.1f}" if idle else f"{'':>8}"
        cells += f"{point.figure('worst') / 1e3:>10.1f}"
    else:
        cells += " " * 50
    if point.seconds:
        cells += f"{point.seconds:>10.2f}"
        cells += f"{point.seconds / alone.seconds:>9.2f}" if alone else " " * 9
        cells += f"{point.median(lambda s: s.figures.iops * s.seconds if s.figures else 0):>9.0f}" if point.load else ""
    if point.punctured:
        cells += f"  (and {point.punctured} punctured)"
    return cells.rstrip()


def ahead(every: Sequence[Point]) -> list[str]:
    """For each of qemu's points: the best of ours that takes no longer, and how many times its IOPS it keeps."""
    lines = []
    for peer in (p for p in every if p.system is Qemu and p.load == "fio" and p.backup is not None):
        ours = [p for p in every if p.system is Timezero and p.load == "fio" and p.backup is not None]
        ours = [p for p in ours if p.samples and not p.punctured]
        in_time = [p for p in ours if p.seconds <= peer.seconds * 1.02]
        if not in_time:
            lines.append(f"{peer.name}: none of ours takes {peer.seconds:.2f} s or less")
            continue
        best = max(in_time, key=lambda p: p.figure("iops"))
        kept, wait = best.figure("iops") / max(peer.figure("iops"), 1), best.figure("p99") / peer.figure("p99")
        lines.append(f"{peer.name}: in its time {best.name} keeps {kept:.2f} times its IOPS, {wait:.2f} times its p99")
    return lines


def table(every: Sequence[Point]) -> str:
    """x idle: p99 against the same server without a backup; x alone: against timezero's full speed, nobody writing.

    updates: done during one backup. Other work slows the disk down for application and backup alike, so this one figure
    stays comparable between runs that are not.
    """
    lines = [HEADER, *(row(every, p) for p in every if p.load != "paced")]
    if steady := [p for p in every if p.load == "paced"]:
        lines += ["", "500 updates a second, latency from the instant each was due", *(row(every, p) for p in steady)]
    return "\n".join([*lines, "", *ahead(every)])
