"""The kernel's NBD client, by nbd-client and netlink.

A device is ours when the kernel says that it was connected by the very process that we had started for it, since this
boot: that process writes its number down before it connects, so that an attach that is killed leaves nothing unknown.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

from timezero.attach import devices, tools
from timezero.attach.place import Place
from timezero.errors import TimezeroError
from timezero.nbd.uri import Endpoint

METHOD = "nbd"
_READY_S = 10.0


class KernelNbd:
    """A volume by a kernel NBD device. Hold the place's lock."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._record = place.beside("nbd")
        self._pid = place.beside("nbd-pid")
        self.warnings: list[str] = []

    @staticmethod
    def is_available() -> bool:
        """Is there a kernel NBD client, and a program that speaks for it? Loads the module if it has to."""
        if tools.find("nbd-client") is None:
            return False
        if not _nodes() and (modprobe := tools.find("modprobe")):
            with contextlib.suppress(TimezeroError):
                tools.run("nbd", [modprobe, "nbd"])
        return bool(_nodes())

    def find(self) -> str | None:
        """The device that this volume is on."""
        try:
            record = json.loads(self._record.read_text())
            name, boot, pid = record["device"], record["boot"], int(self._pid.read_text())
        except (OSError, ValueError, KeyError, TypeError):
            return None
        if not isinstance(name, str) or "/" in name or boot != _boot() or _connected_by(name) != pid:
            return None
        return f"/dev/{name}"

    def device(self, size: int, sector: int) -> str | None:
        """The device, when it is there and answers."""
        device = self.find()
        whole = device is not None and devices.size_of(device) == size // sector * sector
        return device if device and whole and devices.is_readable(device) else None

    def make(self, endpoint: Endpoint, sector: int, *, read_only: bool) -> str:
        """Attach; the device. What was begun is taken down again on failure."""
        try:
            failed = TimezeroError(f"{self._place.name}: no NBD device is free: see /dev/nbd*")
            for name in _free():
                try:
                    self._connect(name, endpoint, sector, read_only)
                except TimezeroError as error:
                    if _connected_by(name) is None:
                        raise  # it was free, and is
                    failed = error  # somebody was quicker
                    self._forget()
                    continue
                self._check_connected(name)
                return f"/dev/{name}"
            raise failed
        except BaseException:
            with contextlib.suppress(TimezeroError, OSError):
                self.take_down()
            raise

    def _connect(self, name: str, endpoint: Endpoint, sector: int, read_only: bool) -> None:
        self._record.write_text(json.dumps({"device": name, "boot": _boot()}))
        with contextlib.suppress(FileNotFoundError):
            self._pid.unlink()
        where = ["-unix", endpoint.socket] if endpoint.socket else [endpoint.host, str(endpoint.port)]
        command = [tools.need("nbd-client", "nbd-client"), *where, f"/dev/{name}", "-N", self._place.name]
        command += ["-b", str(sector), *(["-readonly"] if read_only else [])]
        script = 'echo $$ >"$0" && exec "$@"'
        tools.run(self._place.name, ["/bin/sh", "-c", script, self._pid, *command])

    def _check_connected(self, name: str) -> None:
        if tools.wait_for(lambda: self.find() is not None, _READY_S):
            return
        # Ours all the same, as nbd-client ended well; but nobody could tell later.
        with contextlib.suppress(TimezeroError):
            tools.run(self._place.name, [tools.need("nbd-client", "nbd-client"), "-d", f"/dev/{name}"])
        raise TimezeroError(f"{self._place.name}: this nbd-client does not use netlink: one that does is needed")

    def take_down(self) -> bool:
        """False when there was nothing. Safe to repeat. Raises LockedError when it is in use."""
        device = self.find()
        if device:
            devices.refuse_in_use(self._place.name, device)
            if not devices.flush(device):
                self.warnings.append(f"{device}: what was written last could not be flushed, and may be lost")
            tools.run(self._place.name, [tools.need("nbd-client", "nbd-client"), "-d", device])
            if not tools.wait_for(lambda: self.find() is None, _READY_S):
                raise TimezeroError(f"{self._place.name}: {device} does not disconnect: try again")
        self._forget()
        return device is not None

    def _forget(self) -> None:
        for file in (self._record, self._pid):
            with contextlib.suppress(FileNotFoundError):
                file.unlink()


def _nodes() -> list[Path]:
    return [node for node in (tools.SYSFS / "block").glob("nbd*") if node.name[3:].isdigit()]


def _free() -> list[str]:
    names = sorted((node.name for node in _nodes()), key=lambda name: int(name[3:]))
    return [name for name in names if _connected_by(name) is None and devices.size_of(f"/dev/{name}") == 0]


def _connected_by(name: str) -> int | None:
    """The process that connected an NBD device; it may have ended long ago. None: it is not connected."""
    try:
        return int((tools.SYSFS / "block" / name / "pid").read_text())
    except (OSError, ValueError):
        return None


def _boot() -> str:
    with contextlib.suppress(OSError):
        return (tools.PROC / "sys/kernel/random/boot_id").read_text().strip()
    return str(os.stat("/proc/1").st_ctime_ns)
