"""A short soak (proof/soak.py runs for an hour): backups in a row under load, and what must not grow."""

from __future__ import annotations

import json
import os
from pathlib import Path
from threading import Event, Thread

from proof.soak import MIB, WARM_UP, judge, sample, soak
from tests.sanitized import IS_SANITIZED


def test_backups_in_a_row_leave_nothing_behind() -> None:
    report = soak(15, size=32 * MIB)
    if IS_SANITIZED:  # keeps what was freed for a while; and its rounds are slow: a third of them is one or two
        growing = [word for whose in ("server", "client") for word in report[whose]["not_flat"]]
        assert all(word.startswith(("memory", "kernel_workers")) for word in growing), json.dumps(report, indent=1)
        assert report["chunks_from_sidefile"] > 0
    else:
        assert report["ok"] and report["verdict"] == "flat", json.dumps(report, indent=1)
    assert report["backups"] >= WARM_UP + 3 and report["punctured"] > 0


def test_what_grows_is_told() -> None:
    flat = {"memory": 100 * MIB, "descriptors": 20, "threads": 5, "kernel_workers": 8, "files": 0}
    seconds = [float(n) for n in range(30)]
    assert judge([flat] * 30, seconds)["not_flat"] == []
    steps = {"memory": 40 << 10, "descriptors": 1, "threads": 1, "kernel_workers": 1, "files": 1}
    for key, step in steps.items():
        growing = [{**flat, key: flat[key] + n * step} for n in range(30)]
        assert len(judge(growing, seconds)["not_flat"]) == 1
    one_look = [{**flat, "threads": 5 + (n == 29)} for n in range(30)]
    settled = [{**flat, "memory": 100 * MIB + (n >= 10) * 50 * MIB} for n in range(30)]
    one_more = [{**flat, "kernel_workers": 8 + (n >= 20)} for n in range(30)]
    for samples in (one_look, settled, one_more):
        assert judge(samples, seconds)["not_flat"] == []


def test_what_the_client_has_counts(tmp_path: Path) -> None:
    (tmp_path / "repo").mkdir()
    before = sample(os.getpid(), [tmp_path / "repo"])
    (tmp_path / "repo" / "left").touch()
    end = Event()
    thread = Thread(target=end.wait, daemon=True)
    thread.start()
    with (tmp_path / "open").open("w"):
        after = sample(os.getpid(), [tmp_path / "repo"])
    end.set()
    thread.join()
    assert {key: after[key] - before[key] for key in ("files", "descriptors", "threads")} == {
        "files": 1,
        "descriptors": 1,
        "threads": 1,
    }
