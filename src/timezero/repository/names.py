"""Names in a repository: ids of recovery points, files of datasets, packs, our own temporary files."""

from __future__ import annotations

import os
import re
import time

FORMAT = 1
#: The newest format of a manifest that is understood: see Manifest.format.
MANIFEST_FORMAT = 2
REPOSITORY_FILE = "repository.json"
POINTS_DIR = "recovery-points"
PACKS_DIR = "packs"
MANIFEST_FILE = "manifest.json"
LOCK_FILE = "lock"
INDEX_SUFFIX = ".idx"
#: Holds the indexes of many datasets; without the suffix, so that no dataset's own index is called so.
GATHERED_FILE = "indexes"
TEMPORARY_PREFIX = ".timezero-"

_ID = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{4,16}", re.ASCII)
_PACK = re.compile(r"(\d{8}T\d{6}Z-[0-9a-f]{4,16})-(\d{4,9})\.pack", re.ASCII)
_ENCODED = re.compile(rb"%([0-9A-F]{2})")
_UNSAFE = re.compile(rb"[^A-Za-z0-9_\-+=,.]|\A\.")

#: Longest encoded dataset name, leaving room for a suffix below the 255 bytes that file systems allow.
_ENCODED_MAX = 200
#: Longest name of a dataset, in bytes; a path fits.
NAME_MAX_BYTES = 4096


def new_id() -> str:
    """A fresh recovery point id: UTC second, then its fraction in 1/65536 and two random bytes, in hex.

    Ids sort by time, also within a second.
    """
    now = time.time_ns()
    seconds, rest = divmod(now, 10**9)
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(seconds))
    return f"{stamp}-{rest * 65536 // 10**9:04x}{os.urandom(2).hex()}"


def is_id(text: str) -> bool:
    """Is `text` the full id of a recovery point?"""
    return _ID.fullmatch(text) is not None


def pack_owner(name: str) -> str | None:
    """The id of the recovery point that wrote the pack `name`; None when it is not the name of a pack."""
    match = _PACK.fullmatch(name)
    return match[1] if match else None


def pack_name(point_id: str, number: int) -> str:
    """The file name of pack `number` of a recovery point."""
    return f"{point_id}-{number:04}.pack"


def dataset_name_problem(name: str) -> str | None:
    """Why `name` cannot name a dataset; None when it can."""
    if not name:
        return "it is empty"
    if "\0" in name:
        return "it holds a zero byte"
    try:
        length = len(os.fsencode(name))
    except UnicodeEncodeError:
        return "it is no text"
    return f"it is longer than {NAME_MAX_BYTES} bytes" if length > NAME_MAX_BYTES else None


def encode_component(name: str) -> str:
    """`name` as one component of a path, for any name: other bytes than letters, digits and a few signs as %XX.

    Two names never share an encoding; long ones are cut and end in a part of their SHA-256.
    """
    raw = os.fsencode(name)
    text = _UNSAFE.sub(lambda byte: b"%%%02X" % byte[0][0], raw).decode("ascii")
    if len(text) > _ENCODED_MAX:
        import hashlib

        # "~" is not a safe sign, so no short name can look like a cut one.
        text = f"{text[:128]}~{hashlib.sha256(raw).hexdigest()}"
    return text


def decode_component(text: str) -> str:
    """The name that encode_component(name) is of; of a long one, which was cut, the encoding itself."""
    if "~" in text:
        return text
    return os.fsdecode(_ENCODED.sub(lambda found: bytes([int(found[1], 16)]), text.encode("ascii", "replace")))


def index_file(dataset: str) -> str:
    """The file name of a dataset's index in the directory of its recovery point."""
    return encode_component(dataset) + INDEX_SUFFIX


def temporary_name() -> str:
    """A name of ours that nobody else makes and that may be swept when its maker is gone."""
    return f"{TEMPORARY_PREFIX}{os.urandom(8).hex()}.tmp"


def partial_name(name: str) -> str:
    """Where the file `name` is while it is restored and to be gone on with: a name of ours beside it."""
    partial = f"{TEMPORARY_PREFIX}{name}.partial"
    if len(os.fsencode(partial)) > 255:
        import hashlib

        partial = f"{TEMPORARY_PREFIX}{hashlib.sha256(os.fsencode(name)).hexdigest()}.partial"
    return partial


def is_temporary(name: str) -> bool:
    """Is `name` one that temporary_name() makes?"""
    return name.startswith(TEMPORARY_PREFIX) and name.endswith(".tmp")
