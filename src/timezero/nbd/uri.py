"""NBD URIs (doc/uri.md): nbd+unix:///NAME?socket=PATH and nbd://HOST:PORT/NAME."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit

from timezero.errors import UsageError
from timezero.nbd.constants import DEFAULT_PORT


@dataclass(frozen=True)
class Endpoint:
    """Where an NBD server listens: a Unix socket, or a host and port."""

    socket: str | None = None
    host: str = ""
    port: int = DEFAULT_PORT
    name: str = ""  # export

    @property
    def loopback(self) -> bool:
        """True when no other machine can connect."""
        if self.socket is not None or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False  # a name may mean anything

    def uri(self, name: str | None = None) -> str:
        """The URI of this endpoint, or of the export `name` on it."""
        path = quote(self.name if name is None else name, safe="")
        if self.socket is not None:
            return f"nbd+unix:///{path}?" + urlencode({"socket": self.socket}, quote_via=quote, safe="/")
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port == DEFAULT_PORT else f":{self.port}"
        return f"nbd://{host}{port}/{path}".removesuffix("/")


def parse(uri: str) -> Endpoint:
    """The endpoint that a URI names. Raises UsageError."""
    try:
        return _parse(uri)
    except ValueError as error:
        raise UsageError(
            f"{uri!r} is not an NBD URI of a kind known here: {error}; "
            "write nbd+unix:///?socket=PATH or nbd://127.0.0.1:10809"
        ) from None


def _parse(uri: str) -> Endpoint:
    uri.encode()  # UnicodeEncodeError is a ValueError: no URI has bytes that are no text
    parts = urlsplit(uri)
    if parts.fragment:
        raise ValueError("it has a fragment")
    name = unquote(parts.path.removeprefix("/"), errors="strict")
    if parts.scheme == "nbd+unix":
        return Endpoint(socket=_socket_path(parts.netloc, parts.query), name=name)
    if parts.scheme == "nbd":
        if parts.query or parts.username is not None:
            raise ValueError("nbd:// takes neither a query nor a user")
        if not parts.hostname:
            raise ValueError("the host is missing")
        return Endpoint(host=parts.hostname, port=DEFAULT_PORT if parts.port is None else parts.port, name=name)
    raise ValueError(f"its scheme is {parts.scheme!r}")


def _socket_path(authority: str, query: str) -> str:
    if authority:
        raise ValueError("nbd+unix:// takes no host (write three slashes)")
    fields = parse_qs(query, keep_blank_values=True, strict_parsing=bool(query), errors="strict")
    if set(fields) != {"socket"} or len(fields["socket"]) != 1 or not fields["socket"][0]:
        raise ValueError("it needs ?socket=PATH and nothing else")
    if "\0" in fields["socket"][0]:
        raise ValueError("the socket's path holds a NUL")
    return fields["socket"][0]
