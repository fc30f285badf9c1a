"""The configuration of `timezero serve`: a TOML file, overlaid by the command line. docs/serving.md shows all of it."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from timezero.errors import UsageError
from timezero.places import default_control, default_nbd
from timezero.units import GIB, KIB, MIB, parse_duration_us, parse_size

TRACK_MIN, TRACK_MAX = 4 * KIB, MIB  # tz/common.h
TRACK_USUAL = 4 * KIB  # bench/intercept/README.md
SLOT_BYTES = 40  # of tables, for a slot of the file tier at most
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", re.ASCII)
_ENGINES = ("auto", "uring", "threads")
WHEN_FULL = ("refuse-newest", "puncture-largest")
MAX_DELAY_US = 1_000_000  # a writer is not to take a delay for a failure


def size(value: Any, what: str) -> int:
    """Bytes from a whole number, or a text like "64M". Raises UsageError, which says `what` it is."""
    if type(value) is int and value >= 0:
        return value
    if not isinstance(value, str):
        raise UsageError(f"{what}: {value!r} is not a size: write 4096, 64K, 1MiB or 10G")
    try:
        return parse_size(value)
    except UsageError as error:
        raise UsageError(f"{what}: {error}") from None


def duration_us(value: Any, what: str) -> int:
    """Microseconds from a text like "2ms", or 0. Raises UsageError, which says `what` it is."""
    if value == 0 and type(value) is int:
        return 0
    if not isinstance(value, str):
        raise UsageError(f'{what}: {value!r} is not a duration: write "500us", "2ms" or 0')
    try:
        return parse_duration_us(value)
    except UsageError as error:
        raise UsageError(f"{what}: {error}") from None


def check_name(name: str) -> str:
    """A volume's name: it is an export name and a file name of a repository. Raises UsageError."""
    if not _NAME.fullmatch(name):
        raise UsageError(f"volume name {name!r}: use up to 128 letters, digits, '.', '_', '-'; a letter or digit first")
    return name


@dataclass(frozen=True)
class VolumeConfig:
    """One volume to serve. buffered: never O_DIRECT. exempt_from_delay: its writers are never slowed down."""

    path: str
    read_only: bool = False
    buffered: bool = False
    exempt_from_delay: bool = False


@dataclass(frozen=True)
class SidefileConfig:
    """Defaults for each volume of a session, in bytes.

    memory: cap of all that the session takes of memory (tables and bitmaps included). file: cap of the file tier in
    the directory `path`. track: grain of interception; None for `track_for`. Of all a session has for before-images,
    in percent: low_percent: from here on the mover drains the sidefile first; high_percent: from here on writers whose
    tracks have to be saved are delayed, more the fuller it is, by up to max_delay_us microseconds (0: never).
    """

    memory: int = 128 * MIB
    path: str | None = None
    file: int = 0
    track: int | None = None
    low_percent: int = 25
    high_percent: int = 80
    max_delay_us: int = 2000


@dataclass(frozen=True)
class Limits:
    """Admission control: what is over a limit is refused, and nothing that runs is touched, unless `when_full` says so.

    sessions: on one volume at the same time. memory, file: bytes of all sessions' caps together. connections: NBD
    clients of one volume. volume_answer_s, sidefile_answer_s: seconds that an update waits for its before-image to be
    read, and to be written to the file tier, before the session is punctured for it. when_full: "refuse-newest", or
    "puncture-largest": a running session gives way to a new one that is not larger.
    """

    sessions: int = 16
    memory: int = 2 * GIB
    file: int = 64 * GIB
    connections: int = 128
    volume_answer_s: int = 30
    sidefile_answer_s: int = 5
    when_full: str = "refuse-newest"


@dataclass(frozen=True)
class ServeConfig:
    """All that `timezero serve` needs to know."""

    volumes: Mapping[str, VolumeConfig] = field(default_factory=dict)
    nbd: tuple[str, ...] = ()
    control: str = ""
    allow_remote: bool = False
    reactors: int = 1
    engine: str = "auto"
    poll_us: int = 50  # a reactor looks this long for work before it sleeps, where that has paid off; 0: never
    quiet: bool = False
    sidefile: SidefileConfig = SidefileConfig()
    limits: Limits = Limits()

    def checked(self) -> ServeConfig:
        """Itself, complete: defaults filled in. Raises UsageError for what makes no sense."""
        if not self.volumes:
            raise UsageError("there is nothing to serve; name a volume with --volume NAME=PATH or in the configuration")
        for name in self.volumes:
            check_name(name)
        if not 1 <= self.reactors <= 64:
            raise UsageError(f"reactors: {self.reactors} is not between 1 and 64")
        if not 0 <= self.poll_us <= 1_000_000:
            raise UsageError(f"poll_us: {self.poll_us} is not between 0 and 1000000")
        if self.engine not in _ENGINES:
            raise UsageError(f"engine: {self.engine!r} is none of {', '.join(_ENGINES)}")
        _check_sidefile(self.sidefile)
        for item in fields(self.limits):
            if item.name != "when_full" and getattr(self.limits, item.name) < 1:
                raise UsageError(f"limits.{item.name}: must be at least 1")
            if item.name.endswith("_s") and getattr(self.limits, item.name) > 3600:
                raise UsageError(f"limits.{item.name}: is more than an hour")
        if self.limits.when_full not in WHEN_FULL:
            raise UsageError(f"limits.when_full: {self.limits.when_full!r} is none of {', '.join(WHEN_FULL)}")
        return replace(self, nbd=self.nbd or (default_nbd(),), control=self.control or default_control())


def check_track(track: int) -> int:
    """A track size in bytes. Raises UsageError."""
    if not TRACK_MIN <= track <= TRACK_MAX or track & (track - 1):
        raise UsageError(f"track: {track} is not a power of two from 4K to 1M")
    return track


def track_for(volume: int, memory: int, file: int = 0) -> int:
    """The grain of interception when nobody names one, for a volume, a cap of memory and a file tier, all in bytes.

    TRACK_USUAL; coarser where bitmaps (half a byte a track) and the tables of the file tier's slots would take more
    than a quarter of the memory.
    """
    track = TRACK_USUAL
    while track < TRACK_MAX and volume // track // 2 + file // track * SLOT_BYTES > memory // 4:
        track *= 2
    return track


def _check_sidefile(sidefile: SidefileConfig) -> None:
    track = check_track(sidefile.track) if sidefile.track is not None else TRACK_USUAL
    if sidefile.memory < track:
        raise UsageError(f"sidefile.memory: {sidefile.memory} bytes hold not even one track of {track}")
    if sidefile.file and not sidefile.path:
        raise UsageError("sidefile.file: a file tier needs a directory; give it with --sidefile-path")
    if sidefile.path and not sidefile.file:
        raise UsageError("sidefile.path: a file tier needs a size; give it with --sidefile-file")
    if sidefile.path and not Path(sidefile.path).is_dir():
        raise UsageError(f"sidefile.path: {sidefile.path} is not a directory")
    for name, value in (("low_percent", sidefile.low_percent), ("high_percent", sidefile.high_percent)):
        if not 1 <= value <= 100:
            raise UsageError(f"sidefile.{name}: {value} is not between 1 and 100")
    if sidefile.low_percent >= sidefile.high_percent:
        raise UsageError(
            f"sidefile.low_percent: {sidefile.low_percent} is not below high_percent ({sidefile.high_percent}): the "
            "mover drains the sidefile before writers are delayed"
        )
    if sidefile.max_delay_us > MAX_DELAY_US:
        raise UsageError(f"sidefile.max_delay: {sidefile.max_delay_us} us are more than a second")


# ---- TOML ----


def load(path: str | os.PathLike[str]) -> ServeConfig:
    """Read a configuration file. Relative paths in it are relative to its directory. Raises UsageError."""
    try:
        with open(path, "rb") as stream:
            document = tomllib.load(stream)
    except OSError as error:
        raise UsageError(f"configuration {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"configuration {path}: {error}") from None
    try:
        return _from_document(document, Path(path).resolve().parent)
    except UsageError as error:
        raise UsageError(f"configuration {path}: {error}") from None


def _from_document(document: dict[str, Any], base: Path) -> ServeConfig:
    _known(document, "", "serve", "volumes", "sidefile", "limits")
    serve, sidefile, limits = (_table(document, key, key) for key in ("serve", "sidefile", "limits"))
    _known(serve, "serve.", "nbd", "control", "allow_remote", "reactors", "engine", "poll_us", "quiet")
    _known(sidefile, "sidefile.", "memory", "path", "file", "track", "low_percent", "high_percent", "max_delay")
    _known(limits, "limits.", *(item.name for item in fields(Limits)))
    kinds = {"control": str, "allow_remote": bool, "reactors": int, "engine": str, "poll_us": int, "quiet": bool}
    values = _typed(serve, "serve.", nbd=list, **kinds)
    if "nbd" in values:
        if not all(isinstance(uri, str) for uri in values["nbd"]):
            raise UsageError("serve.nbd: must be a list of strings")
        values["nbd"] = tuple(values["nbd"])
    if "control" in values:
        values["control"] = str(base / values["control"])
    tiers = _typed(sidefile, "sidefile.", path=str, low_percent=int, high_percent=int)
    if "path" in tiers:
        tiers["path"] = str(base / tiers["path"])
    if "max_delay" in sidefile:
        tiers["max_delay_us"] = duration_us(sidefile["max_delay"], "sidefile.max_delay")
    tiers |= {key: size(sidefile[key], f"sidefile.{key}") for key in ("memory", "file", "track") if key in sidefile}
    caps = _typed(limits, "limits.", when_full=str, volume_answer_s=int, sidefile_answer_s=int)
    caps |= {key: size(value, f"limits.{key}") for key, value in limits.items() if key not in caps}
    volumes = _table(document, "volumes", "volumes")
    return ServeConfig(
        volumes={name: _volume(name, _table(volumes, name, f"volumes.{name}"), base) for name in volumes},
        sidefile=SidefileConfig(**tiers),
        limits=Limits(**caps),
        **values,
    )


def _volume(name: str, table: dict[str, Any], base: Path) -> VolumeConfig:
    where = f"volumes.{check_name(name)}."
    _known(table, where, "path", "read_only", "buffered", "exempt_from_delay")
    values = _typed(table, where, path=str, read_only=bool, buffered=bool, exempt_from_delay=bool)
    if not values.get("path"):
        raise UsageError(f"{where}path: is missing")
    return VolumeConfig(**{**values, "path": str(base / values["path"])})


def _known(table: dict[str, Any], where: str, *keys: str) -> None:
    for key in table:
        if key not in keys:
            raise UsageError(f"{where}{key}: unknown; known are {', '.join(keys)}")


def _table(table: dict[str, Any], key: str, where: str) -> dict[str, Any]:
    value = table.get(key, {})
    if not isinstance(value, dict):
        raise UsageError(f"{where}: must be a table")
    return value


def _typed(table: dict[str, Any], where: str, **kinds: type) -> dict[str, Any]:
    for key, kind in kinds.items():
        if key in table and type(table[key]) is not kind:
            raise UsageError(f"{where}{key}: must be of type {kind.__name__}, not {type(table[key]).__name__}")
    return {key: table[key] for key in kinds if key in table}
