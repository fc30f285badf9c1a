"""A short soak (proof/soak.py runs for an hour): backups in a row under load, and what must not grow."""

from __future__ import annotations

import json

from proof.soak import MIB, WARM_UP, judge, soak


def test_backups_in_a_row_leave_nothing_behind() -> None:
    report = soak(15, size=32 * MIB)
    assert report["ok"], json.dumps(report, indent=1)
    assert report["backups"] > WARM_UP + 3 and report["punctured"] > 0


def test_what_grows_is_told() -> None:
    flat = {"memory": 100 * MIB, "descriptors": 20, "threads": 5, "files": 0}
    seconds = [float(n) for n in range(30)]
    assert judge([flat] * 30, seconds)["wrong"] == []
    for key, step in (("memory", MIB), ("descriptors", 1), ("threads", 1), ("files", 1)):
        growing = [{**flat, key: flat[key] + n * step} for n in range(30)]
        assert len(judge(growing, seconds)["wrong"]) == 1
