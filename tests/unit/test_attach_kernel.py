"""The kernel's NBD client, with a stand-in for nbd-client and for what the kernel shows: sysfs is a directory here."""

from __future__ import annotations

from pathlib import Path

import pytest

from timezero.attach import devices, kernel, tools
from timezero.attach.kernel import KernelNbd
from timezero.attach.place import Place
from timezero.errors import TimezeroError
from timezero.nbd.uri import Endpoint

NBD_CLIENT = """#!/bin/sh
# As in netlink mode: the kernel notes who connected a device, and that process ends.
echo "$@" >> {folder}/calls
[ -e {folder}/fail ] && {{ echo "Error: Exited."; echo "Error: {name} is busy" >&2; exit 1; }}
case "$1" in
-d) name=${{2#/dev/}}; rm {sysfs}/block/$name/pid; echo 0 > {sysfs}/block/$name/size ;;
*)  for word; do case "$word" in /dev/nbd*) name=${{word#/dev/}} ;; esac; done
    echo 2048 > {sysfs}/block/$name/size; echo $$ > {sysfs}/block/$name/pid ;;
esac
"""


class Machine:
    """A kernel with four NBD devices."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sysfs = folder / "sys"
        for number in range(4):
            node = self.sysfs / "block" / f"nbd{number}"
            node.mkdir(parents=True)
            (node / "size").write_text("0\n")
            (node / "ro").write_text("0\n")
        program = folder / "bin" / "nbd-client"
        program.parent.mkdir()
        program.write_text(NBD_CLIENT.format(folder=folder, sysfs=self.sysfs, name="nbd0"))
        program.chmod(0o755)

    def connected(self) -> dict[str, int]:
        found = sorted(self.sysfs.glob("block/nbd*/pid"))
        return {path.parent.name: int(path.read_text()) for path in found}

    def calls(self) -> list[str]:
        return (self.folder / "calls").read_text().splitlines()


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine(tmp_path)
    monkeypatch.setattr(tools, "SYSFS", made.sysfs)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    monkeypatch.setattr(kernel, "_READY_S", 0.3)
    monkeypatch.setattr(devices, "is_readable", lambda path: True)
    monkeypatch.setattr(devices, "flush", lambda path: True)
    return made


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setattr("timezero.attach.place.runtime_directory", lambda: tmp_path / "run")
    with Place("disk", "/control") as made:
        return made


ENDPOINT = Endpoint(socket="/run/nbd.sock")


def test_is_it_there(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    assert KernelNbd.is_available()
    (machine.folder / "bin" / "nbd-client").unlink()
    assert not KernelNbd.is_available() or tools.find("nbd-client")


def test_attach_and_detach(machine: Machine, place: Place) -> None:
    (machine.sysfs / "block/nbd0/pid").write_text("1\n")  # somebody else's
    volume = KernelNbd(place)
    assert volume.find() is None
    assert volume.make(ENDPOINT, 512, read_only=False) == "/dev/nbd1"
    assert machine.calls() == ["-unix /run/nbd.sock /dev/nbd1 -N disk -b 512"]
    assert KernelNbd(place).find() == "/dev/nbd1"
    assert KernelNbd(place).device(2048 * 512 + 100, 512) == "/dev/nbd1"
    assert KernelNbd(place).device(4096 * 512, 512) is None  # another size, another volume
    assert volume.take_down() and not volume.take_down()
    assert machine.connected() == {"nbd0": 1}
    assert volume.find() is None


def test_over_tcp_and_read_only(machine: Machine, place: Place) -> None:
    KernelNbd(place).make(Endpoint(host="127.0.0.1", port=10810), 4096, read_only=True)
    assert machine.calls() == ["127.0.0.1 10810 /dev/nbd0 -N disk -b 4096 -readonly"]


def test_a_device_that_was_connected_anew_is_not_ours(machine: Machine, place: Place) -> None:
    volume = KernelNbd(place)
    volume.make(ENDPOINT, 512, read_only=False)
    (machine.sysfs / "block/nbd0/pid").write_text("1\n")
    assert volume.find() is None and not volume.take_down()
    assert machine.connected() == {"nbd0": 1}  # left alone


def test_what_was_written_before_a_restart_is_not_believed(
    machine: Machine, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = KernelNbd(place)
    volume.make(ENDPOINT, 512, read_only=False)
    monkeypatch.setattr(kernel, "_boot", lambda: "the next one")
    assert volume.find() is None


def test_an_attach_killed_after_connecting_is_found(machine: Machine, place: Place) -> None:
    """nbd-client had done its work; whoever had started it was gone by then."""
    volume = KernelNbd(place)
    volume._connect("nbd2", ENDPOINT, 512, False)
    assert KernelNbd(place).find() == "/dev/nbd2"
    assert KernelNbd(place).take_down()
    assert machine.connected() == {}


def test_failures(machine: Machine, place: Place) -> None:
    volume = KernelNbd(place)
    (machine.folder / "fail").touch()
    with pytest.raises(TimezeroError, match="disk: /bin/sh: Error: nbd0 is busy"):
        volume.make(ENDPOINT, 512, read_only=False)
    assert volume.find() is None and not place.beside("nbd").exists()
    (machine.folder / "fail").unlink()
    for number in range(4):
        (machine.sysfs / f"block/nbd{number}/pid").write_text("1\n")
    with pytest.raises(TimezeroError, match="no NBD device is free"):
        volume.make(ENDPOINT, 512, read_only=False)


def test_a_client_without_netlink_is_refused(machine: Machine, place: Place) -> None:
    """Then the kernel names another process, and the device could not be told from anybody's."""
    program = machine.folder / "bin" / "nbd-client"
    program.write_text(program.read_text().replace("echo $$ >", "echo 1 >"))
    with pytest.raises(TimezeroError, match="does not use netlink"):
        KernelNbd(place).make(ENDPOINT, 512, read_only=False)
    assert machine.connected() == {}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"device": "../x", "boot": ""}', '{"device": 1, "boot": ""}'])
def test_a_damaged_record_is_nothing(machine: Machine, place: Place, text: str) -> None:
    place.beside("nbd").write_text(text)
    place.beside("nbd-pid").write_text("1")
    assert KernelNbd(place).find() is None
