"""A picture of what `python -m bench.intercept --json FILE` measured: IOPS kept and p99 against the backup's time.

    python -m bench.plots FILE PICTURE          (pip install timezero[plots])

Joined are those of timezero's points that none of its others beats in both, for they are the curve one can choose from.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

Row = tuple[float, float, float, str]  # seconds, IOPS, p99 in us, name


def rows(points: list[dict[str, Any]], system: str) -> list[Row]:
    """Medians of a system's points under load with a backup, quickest first."""
    found = [p for p in points if p["system"] == system and p["load"] == "fio" and p["settings"] is not None]
    found = [p for p in found if p["samples"] and not p.get("punctured")]

    def median(point: dict[str, Any], key: str) -> float:
        return statistics.median(sample[key] for sample in point["samples"])

    return sorted((median(p, "seconds"), median(p, "iops"), median(p, "p99"), p["name"]) for p in found)


def front(found: list[Row], column: int, most: bool) -> list[Row]:
    """The rows, quickest first, that are better in a column than every quicker one."""
    best: list[Row] = []
    for row in found:
        if not best or (row[column] > best[-1][column] if most else row[column] < best[-1][column]):
            best.append(row)
    return best


def draw(document: dict[str, Any], picture: Path) -> None:
    """Two panels over the backup's seconds: IOPS, and p99 on a logarithmic scale."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 8), layout="constrained")
    panels = figure.subplots(2, 1, sharex=True)
    for panel, column, label in zip(panels, (1, 2), ("IOPS during the backup", "p99, us"), strict=True):
        for system, style, colour in (("timezero", "o", "tab:blue"), ("qemu", "s", "tab:orange")):
            found = rows(document["points"], system)
            panel.plot([r[0] for r in found], [r[column] for r in found], style, color=colour, label=system)
            if system == "timezero":
                curve = front(found, column, most=column == 1)
                panel.plot([r[0] for r in curve], [r[column] for r in curve], "-", color=colour)
            for row in found:
                panel.annotate(row[3].removeprefix(system).strip(), (row[0], row[column]), fontsize=7)
        panel.set_ylabel(label)
        panel.grid(alpha=0.3)
    panels[1].set_yscale("log")
    panels[1].set_xlabel(f"seconds for a backup of {document['size'] / (1 << 30):g} GiB")
    panels[0].legend()
    figure.savefig(picture, dpi=90)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("picture", type=Path)
    options = parser.parse_args()
    try:
        draw(json.loads(options.file.read_text()), options.picture)
    except ImportError:
        print("bench.plots: matplotlib is not installed: pip install timezero[plots]", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
