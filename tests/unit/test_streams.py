"""What nobody reads does not change how a program ends."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from timezero.streams import tell

PROGRAM = "import sys; from timezero.streams import tell; tell('one\\n'); tell('two\\n'); sys.exit(7)"


def run(redirection: str) -> subprocess.CompletedProcess[bytes]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = ["sh", "-c", f'"$0" -c "$1" {redirection}', sys.executable, PROGRAM]
    return subprocess.run(command, capture_output=True, timeout=60, check=False, env=environment)


@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&-", "2>/dev/null"])
def test_the_exit_code_is_ours(redirection: str) -> None:
    assert run(redirection).returncode == 7


def test_the_exit_code_is_ours_when_the_reader_has_gone() -> None:
    read, write = os.pipe()
    os.close(read)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    try:
        done = subprocess.run([sys.executable, "-c", PROGRAM], stderr=write, timeout=60, check=False, env=environment)
    finally:
        os.close(write)
    assert done.returncode == 7


def test_what_is_told_arrives() -> None:
    assert run("").stderr == b"one\ntwo\n"


def test_names_that_are_no_text_are_told_too(capfd: pytest.CaptureFixture[str]) -> None:
    tell("disk\udcff\n")
    assert capfd.readouterr().err in ("disk\udcff\n", "disk\\udcff\n")


def test_a_stand_in_is_written_to(capsys: pytest.CaptureFixture[str]) -> None:
    tell("here\n")
    assert capsys.readouterr().err == "here\n"
