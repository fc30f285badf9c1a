"""The volumes of a storage subsystem: opened all or none, each underlying file or device once."""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from timezero._linux.stack import Identity, identity_of, standing_on
from timezero._native.subsystem import Reactor, Volume
from timezero.config import ServeConfig, VolumeConfig
from timezero.errors import LockedError, UsageError
from timezero.nbd.handshake import Export, Negotiated


class Volumes:
    """All served volumes and their reactors, by name; also the exports of the NBD handshake."""

    def __init__(self, config: ServeConfig) -> None:
        check_overlaps(config.volumes)
        self._connections = config.limits.connections
        self._exempt = {name for name, volume in config.volumes.items() if volume.exempt_from_delay}
        self._served: dict[str, Volume] = {}
        with ExitStack() as undo:
            self._reactors = []
            for _ in range(config.reactors):
                self._reactors.append(Reactor(config.engine, poll_us=config.poll_us))
                undo.callback(self._reactors[-1].close)
            for number, (name, volume) in enumerate(config.volumes.items()):
                self._served[name] = _open(name, volume, self._reactors[number % len(self._reactors)])
                undo.callback(self._served[name].close)
            undo.pop_all()

    @property
    def reactors(self) -> int:
        """How many there are."""
        return len(self._reactors)

    @property
    def engine(self) -> str:
        return self._reactors[0].engine

    def __getitem__(self, name: str) -> Volume:
        return self._served[name]

    def __contains__(self, name: object) -> bool:
        return name in self._served

    def is_exempt(self, name: str) -> bool:
        """Its writers are never delayed for a sidefile's sake."""
        return name in self._exempt

    def names(self) -> Sequence[str]:
        return list(self._served)

    def identities(self) -> dict[str, Identity]:
        return {name: volume.identity for name, volume in self._served.items()}

    def find(self, name: str) -> Export | None:
        if not name and len(self._served) == 1:
            name = next(iter(self._served))
        volume = self._served.get(name)
        if volume is None:
            return None
        return Export(name, volume.size, volume.transmission_flags(), volume.block_size)

    def adopt(self, descriptor: int, negotiated: Negotiated) -> None:
        """Serve a negotiated connection. Raises OSError, also when the volume has as many as it may."""
        volume = self._served[negotiated.export.name]
        if volume.stats()["connections"] >= self._connections:
            raise OSError(errno.EMFILE, f"volume {negotiated.export.name} has {self._connections} connections already")
        volume.adopt(descriptor, structured=negotiated.structured, base_allocation_id=negotiated.base_allocation_id)

    def disconnect(self, timeout: float) -> bool:
        """End all NBD connections, each volume within `timeout` seconds; False when a request did not complete."""
        outcomes = [volume.disconnect_all(timeout) for volume in self._served.values()]
        return all(outcomes)

    def close(self) -> None:
        for volume in self._served.values():
            volume.close()
        for reactor in self._reactors:
            reactor.close()


def check_overlaps(volumes: Mapping[str, VolumeConfig]) -> None:
    """Refuse aliases, and volumes of which one stands on the other. Raises UsageError."""
    identities: dict[str, Identity] = {}
    below: dict[str, set[Identity]] = {}
    for name, volume in volumes.items():
        try:
            identities[name] = identity_of(Path(volume.path).stat())
            below[name] = standing_on(volume.path)
        except OSError as error:
            raise UsageError(f"volume {name}: {volume.path}: {error.strerror}") from None
    for name, identity in identities.items():
        for other in identities:
            if other != name and identity in below[other]:
                how = "are the same" if identities[other] == identity else f"overlap: {other} stands on {name}"
                raise UsageError(
                    f"volumes {name} and {other} {how} ({volumes[name].path}, {volumes[other].path}); serve one of them"
                )


def _open(name: str, config: VolumeConfig, reactor: Reactor) -> Volume:
    try:
        return Volume(reactor, config.path, read_only=config.read_only, buffered=config.buffered)
    except OSError as error:
        if error.errno in (errno.EBUSY, errno.EAGAIN):
            raise LockedError(
                f"volume {name}: {config.path} is in use (served by another server, mounted or claimed); free it first"
            ) from None
        if error.errno == errno.ENOTSUP:
            raise UsageError(f"volume {name}: {config.path} is neither a regular file nor a block device") from None
        raise UsageError(f"volume {name}: {config.path}: {error.strerror}") from None
