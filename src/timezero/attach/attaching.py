"""attach and detach."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from typing import Any

from timezero import config, places
from timezero.attach import devices, fuse, kernel
from timezero.attach.fuse import FuseLoop
from timezero.attach.kernel import KernelNbd
from timezero.attach.place import Place
from timezero.errors import LockedError, TimezeroError, UsageError
from timezero.nbd import uri


@dataclass(frozen=True)
class Attached:
    """A volume that is a block device. Sizes in bytes; is_new: it was not attached before.

    method: "nbd" (the kernel's client) or "nbdfuse". warnings: what could not be done for it.
    """

    name: str
    device: str
    method: str
    size: int
    volume_size: int
    sector_size: int
    read_only: bool
    is_new: bool
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Detached:
    """A volume that is no block device any more; was_attached: it was one, or a part of one was left."""

    name: str
    was_attached: bool
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class _Volume:
    """What the server says of a volume."""

    size: int
    sector: int
    read_only: bool
    endpoint: uri.Endpoint


def attach(name: str, control: str | None = None, *, read_only: bool = False) -> Attached:
    """Make a served volume a block device, or find that it is one.

    control: the server's control socket, None for the default one. Raises UsageError (no such volume), LockedError
    (attached already, otherwise or out of order, and in use), TimezeroError.
    """
    control = os.path.abspath(control or places.default_control())
    volume = _ask(config.check_name(name), control)
    read_only = read_only or volume.read_only
    with Place(name, control) as place:
        by_kernel, by_fuse = KernelNbd(place), FuseLoop(place)
        full = volume.endpoint.uri(name)
        device = by_kernel.device(volume.size, volume.sector)
        method = kernel.METHOD
        if device is None and (device := by_fuse.device(full, volume.size, volume.sector)):
            method = fuse.METHOD
        if device is not None:
            _check_access(name, device, read_only)
            return _attached(name, device, method, volume, is_new=False)
        _take_down(name, by_kernel, by_fuse)
        if KernelNbd.is_available():
            device = by_kernel.make(volume.endpoint, volume.sector, read_only=read_only)
        else:
            method = fuse.METHOD
            device = by_fuse.make(full, volume.sector, read_only=read_only)
        return _attached(name, device, method, volume, is_new=True, warnings=by_kernel.warnings + by_fuse.warnings)


def detach(name: str, control: str | None = None) -> Detached:
    """Take a volume's block device down. The server may be gone. Raises LockedError when the device is in use."""
    control = os.path.abspath(control or places.default_control())
    with Place(config.check_name(name), control) as place:
        by_kernel, by_fuse = KernelNbd(place), FuseLoop(place)
        parts = [by_kernel.take_down(), by_fuse.take_down()]
        return Detached(name, any(parts), tuple(by_kernel.warnings + by_fuse.warnings))


def _ask(name: str, control: str) -> _Volume:
    from timezero import session

    status = session.status(control)
    try:
        facts = {str(volume["name"]): volume for volume in status["volumes"]}
        if name not in facts:
            raise UsageError(f"{name}: no such volume; served are {', '.join(sorted(facts)) or 'none'}")
        size, path, read_only = int(facts[name]["size"]), str(facts[name]["path"]), bool(facts[name]["read_only"])
        endpoints = [uri.parse(str(text)) for text in status["nbd"]]
    except (KeyError, TypeError, ValueError):
        raise TimezeroError(f"control socket {control}: its answer makes no sense: is it of this version?") from None
    # A Unix socket first: it needs no network to be up, and no port to be right.
    endpoints.sort(key=lambda endpoint: endpoint.socket is None)
    if not endpoints:
        raise TimezeroError(f"{name}: its server listens nowhere")
    sector = devices.sector_of(path)
    if size < sector:
        raise UsageError(f"{name}: a volume of {size} bytes is too small for a block device with sectors of {sector}")
    return _Volume(size, sector, read_only, endpoints[0])


def _check_access(name: str, device: str, read_only: bool) -> None:
    if devices.is_read_only(device) != read_only:
        how = "for writing" if read_only else "read-only"
        raise LockedError(f"{name}: is attached {how} as {device}: detach it first")


def _take_down(name: str, by_kernel: KernelNbd, by_fuse: FuseLoop) -> None:
    """What is left of an attach that was killed, of an nbdfuse that died, or of a server that was restarted."""
    try:
        by_kernel.take_down()
        by_fuse.take_down()
    except LockedError as error:
        raise LockedError(f"{error}; it does not answer any more") from None
    # What was lost was lost before, and is no news of the device that is made now.
    by_kernel.warnings.clear()
    by_fuse.warnings.clear()


def _attached(
    name: str, device: str, method: str, volume: _Volume, *, is_new: bool, warnings: list[str] | None = None
) -> Attached:
    size = devices.size_of(device)
    told = list(warnings or [])
    if size != volume.size:
        told.append(f"{volume.size - size} bytes at the end of the volume are no whole sector, and not in {device}")
    return Attached(
        name=name,
        device=device,
        method=method,
        size=size,
        volume_size=volume.size,
        sector_size=volume.sector,
        read_only=devices.is_read_only(device),
        is_new=is_new,
        warnings=tuple(told),
    )
