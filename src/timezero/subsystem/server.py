"""A storage subsystem: volumes, NBD and control server. It comes up whole or not at all."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from typing import Any

from timezero import memory
from timezero.config import ServeConfig
from timezero.control.server import Peer
from timezero.control.server import Server as ControlServer
from timezero.errors import UsageError
from timezero.nbd import uri
from timezero.nbd.server import Server as NbdServer
from timezero.subsystem import sidefile
from timezero.subsystem.commands import Commands
from timezero.subsystem.sessions import Registry
from timezero.subsystem.sockets import TcpListener, UnixListener
from timezero.subsystem.volumes import Volumes

STOP_TIMEOUT = 30.0  # seconds for requests that were issued to complete

Log = Callable[[str], None]


class Subsystem:
    """Serving from the constructor on, until `stop`. Raises TimezeroError and leaves nothing behind."""

    def __init__(self, config: ServeConfig, log: Log) -> None:
        self._config = config
        self._log = log
        self._began = time.monotonic()
        with ExitStack() as undo:
            self._volumes = Volumes(config)
            undo.callback(self._volumes.close)
            if config.sidefile.path:
                sidefile.check_directory(config.sidefile.path, self._volumes.identities())
            self._listeners = [undo.enter_context(closing(_listen(text, config.allow_remote))) for text in config.nbd]
            self._control_listener = undo.enter_context(closing(UnixListener(config.control)))
            self.nbd = [listener.endpoint.uri() for listener in self._listeners]
            self._registry = Registry(self._volumes, config.sidefile, config.limits, log)
            self._nbd = NbdServer([item.socket for item in self._listeners], self._volumes, self._volumes.adopt)
            self._control = ControlServer(self._control_listener.socket, self._commands, log=log)
            self._nbd.start()
            self._control.start()
            undo.pop_all()

    def _commands(self, peer: Peer) -> Commands:
        return Commands(self._volumes, self._registry, self._config.limits, self.status)

    @property
    def control(self) -> str:
        """The control socket's path."""
        return self._control_listener.path

    def tick(self) -> None:
        """To be called about once a second: tells the log what happened by itself."""
        self._registry.tell_punctures()
        self._registry.sweep()

    def status(self) -> dict[str, Any]:
        """What the control protocol answers to `status`."""
        return {
            "volumes": [self._volume_status(name) for name in self._volumes.names()],
            "sessions": self._registry.status(),
            "engine": self._volumes.engine,
            "memory": {
                "resident_bytes": memory.resident(),
                "peak_bytes": memory.peak(),
                "sessions_bytes": self._registry.memory(),
                "sessions_limit_bytes": self._config.limits.memory,
            },
            "uptime_s": round(time.monotonic() - self._began, 3),
            "nbd": self.nbd,
        }

    def _volume_status(self, name: str) -> dict[str, Any]:
        volume = self._volumes[name]
        facts = {key: getattr(volume, key) for key in ("path", "size", "direct", "block_size", "read_only")}
        writes = {"recent_writes": volume.recent_writes(), "copy_bytes_s": self._registry.copy_speed(name)}
        return {"name": name, **facts, **volume.stats(), **writes}

    def stop(self) -> bool:
        """Accept no more, cancel sessions, let issued requests complete, free everything, remove the sockets.

        False when something issued did not complete in time: then files are still open, and only the end of the process
        closes them.
        """
        self._nbd.stop()
        for listener in self._listeners:
            listener.close()
        self._control.stop(STOP_TIMEOUT)
        self._control_listener.close()
        quiet = self._volumes.disconnect(STOP_TIMEOUT)
        quiet = self._free_sessions(STOP_TIMEOUT if quiet else 0.0) and quiet
        try:
            if quiet:
                self._volumes.close()
        except (OSError, RuntimeError):  # before-images that are being read, or a session that waits for one
            return False
        return quiet

    def _free_sessions(self, timeout: float) -> bool:
        until = time.monotonic() + timeout
        while not self._registry.sweep():
            if time.monotonic() > until:
                return False
            time.sleep(0.01)
        return True


def _listen(text: str, allow_remote: bool) -> UnixListener | TcpListener:
    endpoint = uri.parse(text)
    if endpoint.name:
        raise UsageError(f"{text}: an endpoint serves all volumes; leave the export name out")
    if endpoint.socket is not None:
        return UnixListener(endpoint.socket)
    return TcpListener(endpoint.host, endpoint.port, allow_remote=allow_remote)
