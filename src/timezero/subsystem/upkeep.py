"""What the storage subsystem takes of memory besides its sessions: the bounds that docs/memory.md states."""

from __future__ import annotations

from typing import NamedTuple

from timezero.control.server import CONNECTIONS_MAX
from timezero.units import KIB, MIB

_BASE = 64 * MIB  # the interpreter, libraries, threads
_VOLUME = MIB
_REACTOR = 64 * MIB  # payload buffers that are kept for reuse (TZ_NBD_PAYLOAD_IDLE)
_NBD_CONNECTION = 64 * MIB + 512 * KIB  # payload in flight (tz_nbd_config.max_bytes), and its own buffers
_CONTROL_CONNECTION = 2 * MIB


class Upkeep(NamedTuple):
    """Bytes at most. base: sooner or later. clients: for as many as may come, all of them at their busiest."""

    base: int
    clients: int

    def keep(self, room: int) -> int:
        """What sessions may not have of `room` bytes: the base, and for clients what they can take, or else a half.

        So many clients at their busiest (8 GiB a volume, with the default of 128) are more than a small machine has,
        and more than it will see. Half of it leaves one of 256 MiB a client at its busiest and a session that is worth
        having; and what clients were left is no session's, however many there are.
        """
        return self.base + min(self.clients, max(room - self.base, 0) // 2)


def upkeep(volumes: int, reactors: int, connections: int) -> Upkeep:
    """Of a server of so many volumes and reactors. connections: NBD clients of one volume at most."""
    clients = reactors * _REACTOR + volumes * connections * _NBD_CONNECTION + CONNECTIONS_MAX * _CONTROL_CONNECTION
    return Upkeep(_BASE + volumes * _VOLUME, clients)
