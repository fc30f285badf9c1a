"""What a file is besides its content: kept as JSON, given to another file, and honest about what could not be."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest

from timezero.concordance.metadata import Metadata

METADATA = Metadata(0o2640, 1, 2, -3, 4 * 10**18, {"user.x": b"\0\xff", "user.\udcff": b""})


def test_json_there_and_back() -> None:
    assert Metadata.from_json(json.loads(json.dumps(METADATA.to_json()))) == METADATA


@pytest.mark.parametrize(
    "change",
    [
        {"mode": 0o10000}, {"mode": True}, {"mode": "1"}, {"uid": -1}, {"uid": 2**32 - 1}, {"gid": None},
        {"mtime_ns": 2**63}, {"atime_ns": 1.0}, {"xattrs": []}, {"xattrs": {"user.x": "not base64!"}},
        {"xattrs": {"user.x": 1}}, {"xattrs": {"": "AA=="}}, {"xattrs": {"a\0b": "AA=="}},
    ],
)  # fmt: skip
def test_other_json_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="metadata"):
        Metadata.from_json({**METADATA.to_json(), **change})
    with pytest.raises(ValueError, match="metadata"):
        Metadata.from_json([])


def test_what_cannot_be_applied_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for an ordinary user: somebody else's setuid file does not become the user's own."""

    def refused(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "fchown", refused)
    wish = dataclasses.replace(METADATA, mode=0o6755, xattrs={"unknown.name": b"x"})
    with (tmp_path / "file").open("w") as file:
        problems = wish.apply(file.fileno())
        status = os.fstat(file.fileno())
    assert problems == [
        "owner 1:2: Operation not permitted",
        "setuid and setgid: left out, because the owner is another",
        "attribute unknown.name: Operation not supported",
    ]
    assert status.st_mode & 0o7777 == 0o755
    assert (status.st_mtime_ns, status.st_atime_ns) == (-3, 4 * 10**18)
