"""The control protocol between data movers and a storage subsystem: wire, client, server (docs/control-protocol.md)."""

from timezero.control.client import Client, ConnectionLostError, ControlError

__all__ = ["Client", "ConnectionLostError", "ControlError"]
