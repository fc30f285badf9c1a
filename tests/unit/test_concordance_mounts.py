"""Which volume a mount lives on: command lines of NBD clients, and the way down through sysfs."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from timezero.concordance import mounts
from timezero.concordance.mounts import NotHereError, Served, parse_nbd_client, parse_nbdfuse
from timezero.errors import UsageError
from timezero.nbd.uri import Endpoint

SOCKET = "/run/timezero/nbd.sock"


@pytest.mark.parametrize(
    ("command", "endpoint"),
    [
        ("-unix /run/nbd.sock /dev/nbd0 -N data", Endpoint(socket="/run/nbd.sock", name="data")),
        ("-N data -u run/nbd.sock /dev/nbd0 -b 4096 -p", Endpoint(socket="/home/base/run/nbd.sock", name="data")),
        ("127.0.0.1 10810 /dev/nbd3 -name=logs -C 4", Endpoint(host="127.0.0.1", port=10810, name="logs")),
        ("localhost /dev/nbd3", Endpoint(host="localhost")),
        ("-d /dev/nbd3", None),
        ("-unix", None),
    ],
)
def test_command_lines_of_nbd_client(command: str, endpoint: Endpoint | None) -> None:
    assert parse_nbd_client(command.split(), "/home/base") == endpoint


@pytest.mark.parametrize(
    ("command", "found"),
    [
        (f"/mnt/x/volume nbd+unix:///data?socket={SOCKET}", ("/mnt/x/volume", Endpoint(socket=SOCKET, name="data"))),
        ("x/volume nbd+unix:///data?socket=s", ("/home/base/x/volume", Endpoint(socket="/home/base/s", name="data"))),
        ("-C 2 -o allow_other /mnt/v nbd://localhost/data", ("/mnt/v", Endpoint(host="localhost", name="data"))),
        ("--connections=2 -r /mnt/v --unix /s", ("/mnt/v", Endpoint(socket="/s"))),
        ("/mnt/v --tcp 127.0.0.1 4000", ("/mnt/v", Endpoint(host="127.0.0.1", port=4000))),
        ("/tmp nbd://localhost", ("/tmp/nbd", Endpoint(host="localhost"))),
        ("/mnt/v --command nbdkit null", None),
        ("/mnt/v", None),
    ],
)
def test_command_lines_of_nbdfuse(command: str, found: tuple[str, Endpoint] | None) -> None:
    assert parse_nbdfuse(command.split(), "/home/base") == found


def test_servers_are_told_apart_by_where_they_listen() -> None:
    served = Served(["data", "logs"], [f"nbd+unix:///?socket={SOCKET}", "nbd://127.0.0.1:10810"])
    assert served.volume(Endpoint(socket=SOCKET, name="data")) == "data"
    assert served.volume(Endpoint(host="localhost", port=10810, name="logs")) == "logs"
    assert served.volume(Endpoint(socket="/run/timezero/../timezero/nbd.sock", name="data")) == "data"
    for other in (
        Endpoint(socket="/run/other.sock", name="data"),
        Endpoint(host="127.0.0.1", port=10809, name="data"),
        Endpoint(host="192.0.2.1", port=10810, name="data"),
        Endpoint(socket=SOCKET, name="unknown"),
        Endpoint(socket=SOCKET),
    ):
        assert served.volume(other) is None
    assert Served(["one"], [f"nbd+unix:///?socket={SOCKET}"]).volume(Endpoint(socket=SOCKET)) == "one"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A made-up /sys and /proc: machine({"nbd0/pid": "7", ...}, {7: "nbd-client ..."})."""
    system, processes = tmp_path / "sys", tmp_path / "proc"
    numbers = {
        "nbd0": "43:0", "nbd0/nbd0p1": "43:1", "nbd1": "43:16", "loop0": "7:0", "loop0/loop0p2": "259:0",
        "dm-0": "253:0", "sda": "8:0",
    }  # fmt: skip

    def build(entries: dict[str, str], commands: dict[int, str]) -> None:
        for name, number in numbers.items():
            (system / "devices" / name).mkdir(parents=True, exist_ok=True)
            (system / "dev" / "block").mkdir(parents=True, exist_ok=True)
            (system / "dev" / "block" / number).symlink_to(system / "devices" / name)
        for name, content in entries.items():
            path = system / "devices" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content + "\n")
        (processes / "self").mkdir(parents=True)
        for pid, command in commands.items():
            (processes / str(pid)).mkdir()
            (processes / str(pid) / "cmdline").write_text(command.replace(" ", "\0") + "\0")
            (processes / str(pid) / "cwd").symlink_to("/home/base")
        monkeypatch.setattr(mounts, "_SYSFS", system)
        monkeypatch.setattr(mounts, "_PROC", processes)

    return build


def way_down(major: int, minor: int) -> tuple[Endpoint | None, int]:
    bottom, offset = mounts._descend(os.makedev(major, minor))
    return bottom.endpoint, offset


def test_a_kernel_device_by_its_client(machine: Callable[..., None]) -> None:
    partition = {"nbd0/nbd0p1/partition": "1", "nbd0/nbd0p1/start": "2048"}
    machine({"nbd0/pid": "7", **partition}, {7: f"/usr/sbin/nbd-client -unix {SOCKET} /dev/nbd0 -N data"})
    assert way_down(43, 0) == (Endpoint(socket=SOCKET, name="data"), 0)
    assert way_down(43, 1) == (Endpoint(socket=SOCKET, name="data"), 1 << 20)
    with pytest.raises(NotHereError, match="nbd1 is not connected"):
        way_down(43, 16)


def test_a_kernel_device_by_its_backend(machine: Callable[..., None]) -> None:
    machine({"nbd0/pid": "7", "nbd0/backend": f"nbd+unix:///logs?socket={SOCKET}"}, {})
    assert way_down(43, 0) == (Endpoint(socket=SOCKET, name="logs"), 0)


def test_a_kernel_device_of_a_client_that_is_gone(machine: Callable[..., None]) -> None:
    machine({"nbd0/pid": "7"}, {})
    assert way_down(43, 0) == (None, 0)


def test_a_partition_of_a_loop_device_with_an_offset(machine: Callable[..., None]) -> None:
    loop = {"loop0/loop/backing_file": "/mnt/x/volume", "loop0/loop/offset": "4096"}
    partition = {"loop0/loop0p2/partition": "2", "loop0/loop0p2/start": "8"}
    machine({**loop, **partition}, {9: f"nbdfuse /mnt/x/volume nbd+unix:///data?socket={SOCKET}"})
    assert way_down(259, 0) == (Endpoint(socket=SOCKET, name="data"), 8192)


def test_what_is_no_part_of_a_volume_is_refused(machine: Callable[..., None]) -> None:
    machine({"dm-0/dm/name": "x", "loop0/loop/backing_file": "/image", "loop0/loop/offset": "0"}, {})
    with pytest.raises(NotHereError, match="device mapper"):
        way_down(253, 0)
    with pytest.raises(NotHereError, match="not the file of an nbdfuse"):
        way_down(7, 0)
    with pytest.raises(NotHereError, match="sda is no NBD device"):
        way_down(8, 0)


@pytest.mark.parametrize(
    "text", ["data", "data=", "=/x", "data=relative", "unknown=/proc", "data=/nothing/there", "data=/proc"]
)
def test_mounts_that_cannot_be_given(text: str) -> None:
    with pytest.raises(UsageError, match="--mount"):
        mounts.given(text, Served(["data"], []))
