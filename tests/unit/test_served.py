"""How proofs start a server and a load (proof/served.py, load.py): with deadlines, and its own words when it fails."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from proof.load import Load, build
from proof.served import Serving

QUICK_S = 2.0


def scripted(text: str, log: Path, patience_s: float = 30.0) -> Serving:
    return Serving([], log, command=[sys.executable, "-c", text], patience_s=patience_s)


def test_a_real_one(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(bytes(1 << 20))
    control, log = tmp_path / "control", tmp_path / "log"
    words = [
        "--volume",
        f"data={tmp_path / 'image'}",
        "--control",
        control,
        "--nbd",
        f"nbd+unix:///?socket={tmp_path}/n",
    ]
    log.write_text("of the one before\n")
    with Serving(words, log, env={"TIMEZERO_IO": "threads"}) as server:
        assert server.is_running and control.exists()
        assert "before" not in server.errors()
    assert not server.is_running and server.process.returncode == 0 and not control.exists()
    assert server.stop() == 0
    with pytest.raises(RuntimeError, match=r"did not get ready: timezero: there is nothing to serve"):
        Serving(["--control", control], log)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import sys; sys.exit('no disk')", "no disk"),
        ("print('steady', flush=True); import time; time.sleep(60)", "it says nothing"),
        ("import time; time.sleep(60)", "it says nothing"),
        ("print('read', end='', flush=True); import time; time.sleep(60)", "it says nothing"),
        ("import sys, time; print('why', file=sys.stderr, flush=True); time.sleep(60)", "why"),
    ],
)
def test_one_that_does_not_get_ready(tmp_path: Path, text: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    class Noted(subprocess.Popen):
        def __init__(self, *given, **named):
            super().__init__(*given, **named)
            started.append(self)

    monkeypatch.setattr(subprocess, "Popen", Noted)
    began = time.monotonic()
    with pytest.raises(RuntimeError, match=f"did not get ready: {said}"):
        scripted(text, tmp_path / "log", QUICK_S)
    assert time.monotonic() - began < 20
    assert started[0].returncode is not None


def test_one_that_does_not_end_well_is_told_of(tmp_path: Path) -> None:
    dies = "print('ready', flush=True); import time, sys; print('oh', file=sys.stderr, flush=True); time.sleep(60)"
    with pytest.raises(RuntimeError, match="ended with -15: oh"), scripted(dies, tmp_path / "log") as server:
        while not server.errors():
            time.sleep(0.01)
    with pytest.raises(ZeroDivisionError), scripted(dies, tmp_path / "log"):
        raise ZeroDivisionError
    assert scripted(dies, tmp_path / "log").stop(signal.SIGKILL) == -signal.SIGKILL


def test_one_that_does_not_end_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proof.served.STOP_S", QUICK_S)
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); "
    server = scripted(deaf + "time.sleep(60)", tmp_path / "log")
    with pytest.raises(subprocess.TimeoutExpired):
        server.stop()
    assert server.process.returncode == -signal.SIGKILL


def test_a_load_does_not_wait_for_ever_for_a_server_that_says_nothing(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(tmp_path / "n"))
        mute.listen()
        load = Load(build(tmp_path), tmp_path / "n", "data", 0, 1 << 20, tmp_path, connections=2, patience_s=QUICK_S)
        with pytest.raises(RuntimeError, match="did not connect: the server says nothing"):
            load.start()
    assert [process.returncode for process in load.processes] == [-signal.SIGKILL] * 2
