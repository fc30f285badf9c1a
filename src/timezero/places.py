"""Where sockets live when nobody says."""

from __future__ import annotations

import os

from timezero.errors import UsageError


def runtime_directory() -> str:
    """/run/timezero for root, else $XDG_RUNTIME_DIR/timezero. Raises UsageError.

    Root's is the same whoever called sudo, so that a backup finds the server that the init system started.
    """
    if os.geteuid() == 0:
        return "/run/timezero"
    if base := os.environ.get("XDG_RUNTIME_DIR"):
        return os.path.join(base, "timezero")
    raise UsageError("XDG_RUNTIME_DIR is not set, so sockets have no default place; name them with --control and --nbd")


def default_control() -> str:
    """$TIMEZERO_CONTROL, or control.sock in the runtime directory."""
    return os.environ.get("TIMEZERO_CONTROL") or os.path.join(runtime_directory(), "control.sock")


def default_nbd() -> str:
    """Where `serve` listens when no --nbd is given."""
    from timezero.nbd.uri import Endpoint

    return Endpoint(socket=os.path.join(runtime_directory(), "nbd.sock")).uri()
