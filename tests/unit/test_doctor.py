"""The doctor says what is so: findings are checked against this machine, and against one that lacks the thing."""

from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from timezero import _linux, doctor
from timezero._native import engine


def finding(report: dict[str, Any], name: str) -> dict[str, str]:
    [found] = [entry for entry in report["findings"] if entry["name"] == name]
    return found


def test_report_is_json_and_names_the_engine_that_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TIMEZERO_IO", raising=False)
    report = doctor.examine(tmp_path)
    assert json.loads(json.dumps(report)) == report
    works = engine.uring_compiled() and engine.probe_uring()[0]
    assert report["engine"] == ("uring" if works else "threads")
    assert report["kernel"].split()[1] == os.uname().release


def test_render_shows_every_finding_and_its_advice(tmp_path: Path) -> None:
    report = doctor.examine(tmp_path)
    text = doctor.render(report)
    for entry in report["findings"]:
        assert entry["detail"] in text
        assert entry["advice"] in text


@pytest.mark.parametrize("forced", ["", "auto", "uring"])
def test_why_not_uring(monkeypatch: pytest.MonkeyPatch, forced: str) -> None:
    monkeypatch.setenv("TIMEZERO_IO", forced)
    monkeypatch.setattr(engine, "uring_compiled", lambda: True)
    monkeypatch.setattr(engine, "probe_uring", lambda: (False, "io_uring_setup: Operation not permitted"))
    report = doctor.examine()
    assert report["engine"] == (None if forced == "uring" else "threads")
    assert "Operation not permitted" in report["engine_reason"]
    assert finding(report, "I/O engine")["state"] == ("bad" if forced == "uring" else "note")


def test_a_build_without_liburing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TIMEZERO_IO", raising=False)
    monkeypatch.setattr(engine, "uring_compiled", lambda: False)
    report = doctor.examine()
    assert (report["engine"], report["engine_reason"]) == ("threads", "built without liburing")
    assert "liburing-dev" in finding(report, "I/O engine")["advice"]


def test_forced_threads_and_nonsense(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIMEZERO_IO", "threads")
    assert doctor.examine()["engine"] == "threads"
    monkeypatch.setenv("TIMEZERO_IO", "steam")
    report = doctor.examine()
    assert report["engine"] is None
    assert "steam" in finding(report, "I/O engine")["detail"]


def test_a_core_that_does_not_load_is_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timezero._native.mover", None)
    report = doctor.examine()
    assert not report["ok"]
    assert finding(report, "core")["state"] == "bad"
    assert "mover: " in finding(report, "core")["detail"]


def test_no_sealed_memory_is_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(_linux, "memfd_seals", refuse)
    report = doctor.examine()
    assert not report["ok"]
    assert finding(report, "shared memory")["state"] == "bad"


def test_direct_io_of_a_file_and_of_its_directory_agree(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(4096))
    details = [finding(doctor.examine(path), "direct I/O") for path in (tmp_path, tmp_path / "file")]
    assert details[0]["state"] == details[1]["state"]
    assert details[0]["detail"].split(": ", 1)[1] == details[1]["detail"].split(": ", 1)[1]
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_direct_io_where_there_is_nothing(tmp_path: Path) -> None:
    report = doctor.examine(tmp_path / "nothing")
    assert finding(report, "direct I/O")["state"] == "note"
    assert "nothing" in finding(report, "direct I/O")["detail"]


def test_direct_io_where_the_kernel_does_not_tell() -> None:
    with Path("/proc/self/stat").open() as file:
        assert doctor._direct(Path(file.name)).detail.endswith("not to be had")


def test_a_small_limit_of_locked_memory_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64 << 10, 64 << 10))
    assert doctor._memlock().state == "note"
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert doctor._memlock().state == "good"


def test_missing_peers_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PEERS", ("sh", "no-such-tool-anywhere"))
    found = doctor._peers()
    assert (found.state, found.detail) == ("note", "not installed: no-such-tool-anywhere")


def test_engine_module_is_what_the_stub_says() -> None:
    assert isinstance(engine, ModuleType)
    assert engine.uring_compiled() == bool(engine.liburing_version())
    works, reason = engine.probe_uring()
    assert works == (reason == "")


def test_the_command_tells_and_its_exit_code_agrees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run() -> tuple[int, dict[str, Any]]:
        command = [sys.executable, "-m", "timezero", "doctor", "--json", str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        return done.returncode, json.loads(done.stdout)

    monkeypatch.delenv("TIMEZERO_IO", raising=False)
    code, report = run()
    assert (code, report["ok"]) == (0, True)
    assert str(tmp_path) in finding(report, "direct I/O")["detail"]
    monkeypatch.setenv("TIMEZERO_IO", "steam")
    code, report = run()
    assert (code, report["ok"]) == (1, False)
