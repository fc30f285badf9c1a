"""Where the file systems of served volumes are mounted on this machine.

A mount stands on a device, and that, through a partition or a loop device or both, on a kernel NBD device or on the
file of an nbdfuse, whose server and export name say which volume it is:

    mount ─ partition (start) ─ loop device (offset) ─ file of nbdfuse ─ NBD URI ─ volume
    mount ─ partition (start) ─ kernel NBD device ───── its client's words ─ volume

The sum of the offsets is where the file system begins within the volume. Anything else, device mapper above all, is
refused: its addresses are not the volume's.
"""

from __future__ import annotations

import mmap
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from timezero._linux.escapes import unescape
from timezero.errors import UsageError
from timezero.nbd import uri as nbd_uri

SECTOR = 512  # of sysfs, whatever the device has

_SYSFS = Path("/sys")
_PROC = Path("/proc")
_ALIGNED = 4096

#: Reads `length` bytes of a volume from `offset` on, as they are now.
VolumeReader = Callable[[int, int], bytes]


@dataclass(frozen=True)
class Mount:
    """A file system and the volume that it lives on."""

    volume: str
    point: str  # where it is mounted; one of several places, if there are
    device: int  # st_dev of its files
    fs_type: str
    offset: int  # bytes: where the device of the file system begins within the volume
    block_size: int  # bytes
    read_only: bool


@dataclass(frozen=True)
class Served:
    """What `status` of a subsystem says: its volumes, and the NBD URIs that it listens at."""

    volumes: Sequence[str]
    nbd: Sequence[str]

    @classmethod
    def of(cls, status: Mapping[str, object]) -> Served:
        """From the reply to `status`."""
        volumes, nbd = status["volumes"], status["nbd"]
        assert isinstance(volumes, list) and isinstance(nbd, list)
        return cls([volume["name"] for volume in volumes], nbd)

    def volume(self, endpoint: nbd_uri.Endpoint) -> str | None:
        """The volume that an NBD client sees who is connected there. None: it is another server's."""
        if not any(_same_server(endpoint, nbd_uri.parse(text)) for text in self.nbd):
            return None
        name = endpoint.name
        if not name and len(self.volumes) == 1:
            name = self.volumes[0]
        return name if name in self.volumes else None


class NotHereError(UsageError):
    """A device that is no part of a served volume, or of none that can be told; the message says why."""


class _Line(NamedTuple):
    """A line of /proc/self/mountinfo, see proc_pid_mountinfo(5)."""

    number: int
    device: int
    root: str
    point: str
    options: list[str]
    fs_type: str
    source: str


def find(served: Served | Iterable[Served], volumes: Iterable[str] | None = None) -> list[Mount]:
    """All mounts of the given volumes (None: of all served ones), each file system once.

    Of several places the one that shows the whole file system, and can be written to, comes first.
    """
    servers = [served] if isinstance(served, Served) else list(served)
    wanted = None if volumes is None else set(volumes)
    lines: dict[int, list[_Line]] = {}
    for line in _mountinfo():
        if os.major(line.device) != 0:
            lines.setdefault(line.device, []).append(line)
    found = []
    for device, places in lines.items():
        try:
            bottom, offset = _descend(device)
        except NotHereError:
            continue
        name = _volume_of(bottom, servers)
        if name is not None and (wanted is None or name in wanted):
            found.append(_mount(name, _best(places), offset))
    return found


def given(text: str, served: Served | Iterable[Served]) -> Mount:
    """The mount that NAME=PATH means: volume NAME lives under the file system that PATH is on.

    The way down is followed as far as it can be, for the offset, and a way that leads to another volume is refused.
    Where it cannot be told which volume it is (a kernel NBD device without a word from its client), the user's is
    taken: verify() is the proof.

    Raises UsageError.
    """
    name, separator, path = text.partition("=")
    if not separator or not name or not path.startswith("/"):
        raise UsageError(f"--mount {text!r}: write NAME=PATH, with the name of a served volume and an absolute path")
    servers = [served] if isinstance(served, Served) else list(served)
    if not any(name in server.volumes for server in servers):
        raise UsageError(f"--mount {text!r}: no volume is called {name!r} here")
    try:
        device = os.stat(path).st_dev
    except OSError as error:
        raise UsageError(f"--mount {text!r}: {path}: {error.strerror}") from None
    places = [line for line in _mountinfo() if line.device == device]
    if os.major(device) == 0 or not places:
        raise UsageError(f"--mount {text!r}: {path} is on a file system without a block device of its own")
    bottom, offset = _descend(device)
    volume = _volume_of(bottom, servers)
    if volume is not None and volume != name:
        raise UsageError(f"--mount {text!r}: {path} lives on volume {volume}, not on {name}")
    if volume is None and bottom.endpoint is not None:
        raise UsageError(f"--mount {text!r}: {path} lives on {bottom.endpoint.uri()}, which is not served here")
    return _mount(name, _best(places), offset)


def verify(mount: Mount, read: VolumeReader, size: int, *, attempts: int = 3) -> None:
    """Compare what the device of the mount holds with the volume of `size` bytes: its start, and a few places more.

    The device is read past the page cache. Places that differ are compared again: an application may be writing.
    Raises UsageError: this mount does not live on that volume, or not at that offset.
    """
    path = _node_of(mount.device)
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    try:
        length = os.lseek(descriptor, 0, os.SEEK_END)
        if mount.offset + length > size:
            raise UsageError(
                f"{mount.point}: its device has {length} bytes, more than volume {mount.volume} from {mount.offset} on"
            )
        for at, count in _places(length):
            if not any(_pread(descriptor, at, count) == read(mount.offset + at, count) for _ in range(attempts)):
                raise UsageError(
                    f"{mount.point} does not live on volume {mount.volume} at byte {mount.offset}: "
                    f"its device holds something else at byte {at}"
                )
    finally:
        os.close(descriptor)


# ---- the way down ----


class _Bottom(NamedTuple):
    """Where the way down ended: what the client of an NBD server is connected to. None: nothing tells."""

    endpoint: nbd_uri.Endpoint | None


def _descend(device: int) -> tuple[_Bottom, int]:
    """The NBD client below a device, and where the device begins in its export. Raises NotHereError."""
    offset = 0
    node = (_SYSFS / "dev" / "block" / f"{os.major(device)}:{os.minor(device)}").resolve()
    if not node.exists():
        raise NotHereError(f"device {os.major(device)}:{os.minor(device)} is not in sysfs")
    if (node / "partition").exists():
        offset += int((node / "start").read_text()) * SECTOR
        node = node.parent
    name = node.name
    if (node / "dm").exists() or (node / "md").exists():
        raise NotHereError(f"{name} is made of other devices (device mapper, md): addresses on it are not the volume's")
    if name.startswith("nbd"):
        return _Bottom(_kernel_client(node)), offset
    if name.startswith("loop") and (node / "loop").exists():
        offset += int((node / "loop" / "offset").read_text())
        backing = (node / "loop" / "backing_file").read_text().rstrip("\n")
        endpoint = _fuse_client(backing)
        if endpoint is None:
            raise NotHereError(f"{name} stands on {backing}, which is not the file of an nbdfuse")
        return _Bottom(endpoint), offset
    raise NotHereError(f"{name} is no NBD device, and no loop device over the file of an nbdfuse")


def _volume_of(bottom: _Bottom, servers: Sequence[Served]) -> str | None:
    if bottom.endpoint is None:
        return None
    return next((name for server in servers if (name := server.volume(bottom.endpoint)) is not None), None)


def _kernel_client(node: Path) -> nbd_uri.Endpoint | None:
    """What a kernel NBD device is connected to, by the command line of its client.

    `pid` is the process that waits in the kernel for the device to end (Documentation/ABI, sysfs-block: there while
    it is connected), nbd-client(8) when started without -netlink. `backend` is an identifier of the client's choice
    that came by netlink (NBD_ATTR_BACKEND_IDENTIFIER, Linux 5.14): a URI, where the client is ours.
    """
    try:
        pid = (node / "pid").read_text().strip()
    except OSError:
        raise NotHereError(f"{node.name} is not connected") from None
    try:
        return nbd_uri.parse((node / "backend").read_text().strip())
    except (OSError, UsageError):
        pass
    words = _command_line(pid)
    if not words or os.path.basename(words[0]) != "nbd-client":
        return None
    return parse_nbd_client(words[1:], _working_directory(pid))


def parse_nbd_client(words: Sequence[str], directory: str) -> nbd_uri.Endpoint | None:
    """Where `nbd-client` with these arguments connects to (nbd-client(8)); None: it does not say.

    nbd-client HOST [PORT] DEVICE [-N NAME ...],  nbd-client -unix PATH DEVICE [-N NAME ...]
    """
    name, socket = "", None
    plain: list[str] = []
    rest = iter(words)
    for word in rest:
        option, has_value, value = word.partition("=")
        option = "-" + option.lstrip("-") if option.startswith("-") else ""
        if option in ("-N", "-name"):
            name = value if has_value else next(rest, "")
        elif option in ("-u", "-unix"):
            socket = value if has_value else next(rest, "")
        elif _NBD_CLIENT_VALUES.fullmatch(option):
            value = value or next(rest, "")
        elif not option:
            plain.append(word)
    if socket is not None:
        return nbd_uri.Endpoint(socket=os.path.join(directory, socket), name=name) if socket else None
    if len(plain) == 3 and plain[1].isdecimal():
        return nbd_uri.Endpoint(host=plain[0], port=int(plain[1]), name=name)
    return nbd_uri.Endpoint(host=plain[0], name=name) if len(plain) == 2 else None


#: Options of nbd-client with a value that is no place to connect to.
_NBD_CLIENT_VALUES = re.compile(
    r"-(b|block-size|t|timeout|C|connections|i|id|B|T|D|F|cacertfile|certfile|K|keyfile|H|tlshostname|y|priority|A|R"
    r"|dead-timeout)"
)


def _fuse_client(backing: str) -> nbd_uri.Endpoint | None:
    """What the nbdfuse is connected to whose file that is; None: it is nobody's, or its command line does not say."""
    for entry in _PROC.iterdir():
        if entry.name.isdecimal():
            words = _command_line(entry.name)
            if words and os.path.basename(words[0]) == "nbdfuse":
                directory = _working_directory(entry.name)
                found = parse_nbdfuse(words[1:], directory)
                if found is not None and os.path.realpath(found[0]) == os.path.realpath(backing):
                    return found[1]
    return None


def parse_nbdfuse(words: Sequence[str], directory: str) -> tuple[str, nbd_uri.Endpoint] | None:
    """The file that `nbdfuse` with these arguments makes, and where it connects to (nbdfuse(1)); None: it does not say.

    nbdfuse [options] MOUNTPOINT[/FILENAME] URI,  ... --unix SOCKET,  ... --tcp HOST PORT
    """
    rest = list(words)
    while rest and rest[0].startswith("-"):
        option = rest.pop(0)
        if option in ("-C", "-o", "-P", "--connections", "--pidfile") and rest:
            rest.pop(0)
    if len(rest) < 2:
        return None
    file = os.path.join(directory, rest[0])
    if os.path.isdir(file):
        file = os.path.join(file, "nbd")
    mode, arguments = rest[1], rest[2:]
    if mode == "--unix" and len(arguments) == 1:
        return file, nbd_uri.Endpoint(socket=os.path.join(directory, arguments[0]))
    if mode == "--tcp" and len(arguments) == 2 and arguments[1].isdecimal():
        return file, nbd_uri.Endpoint(host=arguments[0], port=int(arguments[1]))
    try:
        endpoint = nbd_uri.parse(mode)
    except UsageError:
        return None
    if endpoint.socket is not None:
        endpoint = nbd_uri.Endpoint(socket=os.path.join(directory, endpoint.socket), name=endpoint.name)
    return file, endpoint


def _same_server(one: nbd_uri.Endpoint, other: nbd_uri.Endpoint) -> bool:
    if one.socket is not None and other.socket is not None:
        try:
            return os.path.samefile(one.socket, other.socket)
        except OSError:
            return os.path.abspath(one.socket) == os.path.abspath(other.socket)
    if one.socket is not None or other.socket is not None or one.port != other.port:
        return False
    return one.host == other.host or (one.loopback and (other.loopback or other.host in ("0.0.0.0", "::")))


def _command_line(pid: str) -> list[str]:
    try:
        words = (_PROC / pid / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return []
    return [os.fsdecode(word) for word in words[:-1]]


def _working_directory(pid: str) -> str:
    try:
        return os.readlink(_PROC / pid / "cwd")
    except OSError:
        return "/"


# ---- the mount table and the device ----


def _mountinfo() -> Iterator[_Line]:
    for line in (_PROC / "self" / "mountinfo").read_text(errors="surrogateescape").splitlines():
        left, _, right = line.partition(" - ")
        number, _, device, root, point, options = left.split(" ")[:6]
        major, minor = device.split(":")
        fs_type, source = right.split(" ")[:2]
        yield _Line(
            int(number),
            os.makedev(int(major), int(minor)),
            unescape(root),
            unescape(point),
            options.split(","),
            fs_type,
            unescape(source),
        )


def _best(places: Sequence[_Line]) -> _Line:
    """The whole file system before a part of it (a bind mount), writable before read-only, then the oldest.

    A place that is hidden, because something else is mounted over it, does not count, unless all are.
    """
    seen = [place for place in places if _device_at(place.point) == place.device]
    return min(seen or places, key=lambda place: (place.root != "/", "ro" in place.options, place.number))


def _device_at(point: str) -> int | None:
    try:
        return os.stat(point).st_dev
    except OSError:
        return None


def _mount(volume: str, line: _Line, offset: int) -> Mount:
    try:
        status = os.statvfs(line.point)
    except OSError as error:
        raise UsageError(f"{line.point}: {error.strerror}") from None
    read_only = bool(status.f_flag & os.ST_RDONLY)
    return Mount(volume, line.point, line.device, line.fs_type, offset, status.f_bsize, read_only)


def _node_of(device: int) -> str:
    """A path of the device; udev's, or the kernel's own name for it. Raises UsageError."""
    number = f"{os.major(device)}:{os.minor(device)}"
    words = (_SYSFS / "dev" / "block" / number / "uevent").read_text().split()
    name = next((word.removeprefix("DEVNAME=") for word in words if word.startswith("DEVNAME=")), "")
    for path in (f"/dev/{name}", f"/dev/block/{number}"):
        try:
            status = os.stat(path)
        except OSError:
            continue
        if stat.S_ISBLK(status.st_mode) and status.st_rdev == device:
            return path
    raise UsageError(f"block device {number} ({name}) has no node in /dev: it cannot be compared with its volume")


def _places(length: int) -> Iterator[tuple[int, int]]:
    """Offset and length: the start, where superblocks lie, and some places spread over the device."""
    yield 0, min(64 * 1024, length)
    whole = length - length % _ALIGNED
    for eighth in range(1, 8):
        at = whole * eighth // 8
        at -= at % _ALIGNED
        if 64 * 1024 <= at <= length - _ALIGNED:
            yield at, _ALIGNED
    if whole >= 64 * 1024 + _ALIGNED:
        yield whole - _ALIGNED, _ALIGNED


def _pread(descriptor: int, offset: int, length: int) -> bytes:
    """A direct read: it needs memory that is aligned."""
    with mmap.mmap(-1, max(length, _ALIGNED)) as memory, memoryview(memory) as view:
        with view[:length] as part:
            got = os.preadv(descriptor, [part], offset)
        return bytes(memory[:got])
