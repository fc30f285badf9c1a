import argparse
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from timezero import config, places, subsystem
from timezero.config import Limits, ServeConfig, SidefileConfig, VolumeConfig, track_for
from timezero.errors import UsageError
from timezero.subsystem.serve import configuration
from timezero.units import GIB, KIB, MIB

FULL = """
[serve]
nbd = ["nbd+unix:///?socket=/run/x.sock", "nbd://127.0.0.1"]
control = "control.sock"
allow_remote = true
reactors = 2
engine = "threads"
poll_us = 20
quiet = true

[volumes.disk]
path = "/dev/vdb"

[volumes.image]
path = "images/a.raw"
read_only = true
buffered = true
exempt_from_delay = true

[sidefile]
memory = "128M"
path = "spill"
file = "2G"
track = "4K"
low_percent = 10
high_percent = 90
max_delay = "5ms"

[limits]
sessions = 4
memory = 1048576
file = "10G"
connections = 3
when_full = "puncture-largest"
volume_answer_s = 20
sidefile_answer_s = 3
"""


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "timezero.toml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def parse(*arguments):
    parser = argparse.ArgumentParser()
    subsystem.add_arguments(parser)
    return configuration(parser.parse_args(arguments))


def test_every_key_of_a_file(write, tmp_path):
    assert config.load(write(FULL)) == ServeConfig(
        volumes={
            "disk": VolumeConfig("/dev/vdb"),
            "image": VolumeConfig(str(tmp_path / "images/a.raw"), True, True, True),
        },
        nbd=("nbd+unix:///?socket=/run/x.sock", "nbd://127.0.0.1"),
        control=str(tmp_path / "control.sock"),
        allow_remote=True,
        reactors=2,
        engine="threads",
        poll_us=20,
        quiet=True,
        sidefile=SidefileConfig(128 * MIB, str(tmp_path / "spill"), 2 * GIB, 4 * KIB, 10, 90, 5000),
        limits=Limits(4, MIB, 10 * GIB, 3, 20, 3, "puncture-largest"),
    )


def test_the_documented_example_is_what_it_says(tmp_path):
    document = Path(__file__).parents[2].joinpath("docs/serving.md").read_text()
    example = document.split("```toml\n")[1].split("```")[0]
    path = tmp_path / "example.toml"
    path.write_text(example)
    loaded = config.load(path)
    assert set(loaded.volumes) == {"db", "log"}
    assert (loaded.sidefile, loaded.limits) == (SidefileConfig(), Limits())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[serve", "timezero.toml"),
        (b"\xff", "timezero.toml"),
        ("[server]", "server: unknown"),
        ("[serve]\nport = 1", "serve.port: unknown"),
        ("[serve]\nreactors = true", "serve.reactors"),
        ("[serve]\nreactors = '2'", "serve.reactors"),
        ("[serve]\nnbd = 'nbd://x'", "serve.nbd"),
        ("[serve]\nnbd = [1]", "serve.nbd"),
        ("serve = 1", "serve: must be a table"),
        ("[volumes]\ndisk = '/dev/vdb'", "volumes.disk: must be a table"),
        ("[volumes.disk]\nread_only = true", "volumes.disk.path: is missing"),
        ("[volumes.disk]\npath = ''", "volumes.disk.path: is missing"),
        ("[volumes.disk]\npath = 1", "volumes.disk.path"),
        ("[volumes.disk]\npath = '/x'\nreadonly = true", "volumes.disk.readonly: unknown"),
        ("[volumes.'a/b']\npath = '/x'", "a/b"),
        ("[sidefile]\nmemory = -1", "sidefile.memory"),
        ("[sidefile]\nmemory = '64X'", "sidefile.memory"),
        ("[sidefile]\nmemory = 1.5", "sidefile.memory"),
        ("[sidefile]\npath = 1", "sidefile.path"),
        ("[sidefile]\nlow_percent = '10'", "sidefile.low_percent"),
        ("[sidefile]\nhigh_percent = 1.5", "sidefile.high_percent"),
        ("[sidefile]\nmax_delay = 5", "sidefile.max_delay: 5 is not a duration"),
        ("[sidefile]\nmax_delay = false", "sidefile.max_delay"),
        ("[sidefile]\nmax_delay = '5x'", "sidefile.max_delay: '5x' is not a duration"),
        ("[volumes.disk]\npath = '/x'\nexempt_from_delay = 1", "volumes.disk.exempt_from_delay"),
        ("[limits]\nsessions = true", "limits.sessions"),
        ("[limits]\nwhen_full = 1", "limits.when_full"),
        ("[limits]\nvolume_answer_s = '30s'", "limits.volume_answer_s: must be of type int"),
    ],
)
def test_a_bad_file_is_told_in_one_line_with_the_place(write, text, says):
    with pytest.raises(UsageError) as error:
        config.load(write(text))
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[sidefile]\nlow_percent = 0", "sidefile.low_percent: 0 is not between 1 and 100"),
        ("[sidefile]\nhigh_percent = 101", "sidefile.high_percent: 101"),
        ("[sidefile]\nlow_percent = 80", "sidefile.low_percent: 80 is not below high_percent (80)"),
        ("[sidefile]\nhigh_percent = 20", "sidefile.low_percent: 25 is not below high_percent (20)"),
        ("[sidefile]\nmax_delay = '2s'", "sidefile.max_delay: 2000000 us are more than a second"),
        ("[limits]\nwhen_full = 'panic'", "'panic' is none of refuse-newest, puncture-largest"),
    ],
)
def test_values_out_of_range(write, text, says):
    with pytest.raises(UsageError) as error:
        parse("--config", str(write(text)), "--volume", "a=x")
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_no_delay_and_marks_at_the_ends(write):
    text = "[sidefile]\nlow_percent = 1\nhigh_percent = 100\nmax_delay = 0"
    found = parse("--config", str(write(text)), "--volume", "a=x").sidefile
    assert (found.low_percent, found.high_percent, found.max_delay_us) == (1, 100, 0)


def test_a_missing_file():
    with pytest.raises(UsageError, match="No such file"):
        config.load("/nonexistent/timezero.toml")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "nothing to serve"),
        (["--volume", "disk"], "NAME=PATH"),
        (["--volume", "=x"], "volume name"),
        (["--volume", "a/b=x"], "volume name"),
        (["--volume", ".a=x"], "volume name"),
        (["--volume", "a" * 129 + "=x"], "volume name"),
        (["--volume", "a="], "NAME=PATH"),
        (["--volume", "a=x", "--volume", "a=y"], "already"),
        (["--volume", "a=x", "--read-only", "b"], "volume b"),
        (["--volume", "a=x", "--exempt-from-delay", "b"], "volume b"),
        (["--volume", "a=x", "--reactors", "0"], "reactors"),
        (["--volume", "a=x", "--poll-us", "-1"], "poll_us"),
        (["--volume", "a=x", "--track", "48K"], "track"),
        (["--volume", "a=x", "--track", "2K"], "track"),
        (["--volume", "a=x", "--track", "2M"], "track"),
        (["--volume", "a=x", "--track", "nonsense"], "--track"),
        (["--volume", "a=x", "--sidefile-memory", "2K"], "sidefile.memory"),
        (["--volume", "a=x", "--sidefile-file", "4M"], "--sidefile-path"),
        (["--volume", "a=x", "--sidefile-path", "/tmp"], "--sidefile-file"),
        (["--volume", "a=x", "--sidefile-path", "/nonexistent", "--sidefile-file", "1M"], "not a directory"),
        (["--volume", "a=x", "--max-sessions", "0"], "limits.sessions"),
    ],
)
def test_bad_command_lines(arguments, says):
    with pytest.raises(UsageError) as error:
        parse(*arguments)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_the_command_line_adds_to_the_file_and_overrides_it(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "spill").mkdir()
    file = write(FULL)
    merged = parse("--config", str(file), "--volume", "more=m.raw", "--read-only", "disk", "--buffered", "more",
                   "--nbd", "nbd+unix:///?socket=/y", "--control", "/c", "--reactors", "3", "--engine", "uring",
                   "--track", "1M", "--max-sessions", "9", "--max-session-memory", "2G", "--poll-us", "0",
                   "--exempt-from-delay", "disk", "--when-full", "refuse-newest")  # fmt: skip
    assert set(merged.volumes) == {"disk", "image", "more"}
    assert merged.volumes["disk"] == VolumeConfig("/dev/vdb", read_only=True, exempt_from_delay=True)
    assert merged.volumes["image"].read_only
    assert merged.volumes["more"] == VolumeConfig(str(tmp_path / "m.raw"), buffered=True)
    assert (merged.nbd, merged.control) == (("nbd+unix:///?socket=/y",), "/c")
    assert (merged.reactors, merged.engine, merged.allow_remote, merged.poll_us) == (3, "uring", True, 0)
    assert merged.sidefile == SidefileConfig(128 * MIB, str(tmp_path / "spill"), 2 * GIB, MIB, 10, 90, 5000)
    assert merged.limits == Limits(9, 2 * GIB, 10 * GIB, 3, 20, 3, "refuse-newest")


def test_defaults_and_environment(monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1000")
    monkeypatch.setenv("TIMEZERO_CONTROL", "/run/elsewhere.sock")
    monkeypatch.setenv("TIMEZERO_IO", "threads")
    plain = parse("--volume", "a=x")
    assert (plain.control, plain.engine) == ("/run/elsewhere.sock", "threads")
    assert plain.nbd == (places.default_nbd(),)
    assert parse("--volume", "a=x", "--engine", "uring").engine == "uring"
    monkeypatch.setenv("TIMEZERO_IO", "magic")
    with pytest.raises(UsageError, match="magic"):
        parse("--volume", "a=x")


def test_runtime_directory(monkeypatch):
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/0")
    assert places.runtime_directory() == "/run/timezero"
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert places.runtime_directory() == "/run/user/0/timezero"
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    with pytest.raises(UsageError, match="--control"):
        places.runtime_directory()


@given(st.text(max_size=20))
def test_a_name_that_is_allowed_is_a_plain_file_name(name):
    try:
        config.check_name(name)
    except UsageError:
        return
    assert name.isascii()
    assert "/" not in name
    assert not name.startswith((".", "-"))


@pytest.mark.parametrize(
    ("volume", "memory", "file", "track"),
    [
        (0, 64 * MIB, 0, 4 << 10),
        (128 * GIB, 64 * MIB, 0, 4 << 10),
        (128 * GIB + (1 << 20), 64 * MIB, 0, 8 << 10),
        (16 << 40, 64 * MIB, 0, 512 << 10),
        (16 << 40, GIB, 0, 32 << 10),
        (1 << 60, MIB, 0, MIB),
        (0, 64 * MIB, GIB, 4 << 10),
        (4 * GIB, 64 * MIB, 4 * GIB, 16 << 10),
    ],
)
def test_unless_named_tracks_are_fine_and_their_tables_a_quarter_of_the_memory(volume, memory, file, track):
    assert track_for(volume, memory, file) == track
