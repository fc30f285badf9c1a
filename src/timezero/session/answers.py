"""What a storage subsystem answers, checked before it is used: it may be of another version, or something else at all.

Errors: ControlError with code "internal".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from timezero.control.client import ControlError

_NUMBERS_MAX = 2**64 - 1


def _nonsense(what: str) -> NoReturn:
    raise ControlError("internal", f"the storage subsystem's answer makes no sense: {what}: is it of this version?")


def _objects(reply: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    found = reply.get(key)
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        _nonsense(f"{key!r} is no list of objects")
    return found


def _texts(item: Mapping[str, Any], *keys: str) -> None:
    for key in keys:
        if not isinstance(item.get(key), str):
            _nonsense(f"{key!r} is no text")


def _number(item: Mapping[str, Any], key: str, least: int = 0) -> None:
    value = item.get(key, least)
    if type(value) is not int or not least <= value <= _NUMBERS_MAX:
        _nonsense(f"{key!r} is no number from {least} on")


def times(reply: Mapping[str, Any]) -> dict[str, int]:
    """Of a suspension, in nanoseconds."""
    found = reply.get("times")
    if not isinstance(found, dict):
        _nonsense("'times' is no object")
    for name in found:
        _number(found, name)
    return dict(found)


def reports(reply: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of a session's parts."""
    found = _objects(reply, "parts")
    for report in found:
        _texts(report, "volume", "state", "puncture")
        _number(report, "track_size", 1)
        for key in ("slots", "used_slots", "low_mark", "intercepted"):
            _number(report, key)
    return found


def status(reply: Mapping[str, Any]) -> dict[str, Any]:
    """Of the whole subsystem: `volumes` have their names, paths and sizes, `sessions` are objects."""
    for volume in _objects(reply, "volumes"):
        _texts(volume, "name", "path")
        _number(volume, "size")
    _objects(reply, "sessions")
    return {key: value for key, value in reply.items() if key not in ("id", "ok")}
