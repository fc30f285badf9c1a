"""Threads that serve a connection each: those that are never born, or too late, or cannot be had."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from timezero import crew
from timezero.crew import Crew

Birth = Callable[[], object]


@pytest.fixture
def births(monkeypatch: pytest.MonkeyPatch) -> list[Birth]:
    """Threads that were asked for; they begin when they are called."""
    waiting: list[Birth] = []

    def start(function: Callable[..., object], args: tuple[Any, ...]) -> int:
        waiting.append(lambda: function(*args))
        return 0

    monkeypatch.setattr(crew._thread, "start_new_thread", start)
    return waiting


def test_one_that_is_born_too_late_serves_nothing(births: list[Birth], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its item was dropped: it may be somebody else's descriptor by now."""
    served: list[str] = []
    dropped: list[str] = []
    members = Crew(served.append, dropped.append)
    assert members.start("a") and len(members) == 1
    monkeypatch.setattr(crew, "_BEGIN_S", -1.0)
    assert len(members) == 0 and dropped == ["a"]
    births[0]()
    assert served == [] and dropped == ["a"]


def test_one_that_has_begun_is_not_dropped(births: list[Birth], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "_BEGIN_S", -1.0)
    dropped: list[str] = []
    seen: list[int] = []
    members: Crew[str] = Crew(lambda item: seen.append(len(members)), dropped.append)
    with monkeypatch.context() as patient:
        patient.setattr(crew, "_BEGIN_S", 5.0)
        assert members.start("a")
    births[0]()
    assert seen == [1] and dropped == [] and len(members) == 0


def test_who_is_asked_to_make_room_is_alive(births: list[Birth], monkeypatch: pytest.MonkeyPatch) -> None:
    dropped: list[str] = []
    members = Crew(lambda item: None, dropped.append)
    assert members.start("a")
    assert members.oldest() is not None
    monkeypatch.setattr(crew, "_BEGIN_S", -1.0)
    assert members.oldest() is None and dropped == ["a"]


@pytest.mark.parametrize("error", [RuntimeError, MemoryError])
def test_one_that_cannot_be_had_leaves_the_item_with_the_caller(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(*_: object) -> int:
        raise error

    monkeypatch.setattr(crew._thread, "start_new_thread", start)
    dropped: list[str] = []
    members = Crew(lambda item: None, dropped.append)
    assert not members.start("a")
    assert len(members) == 0 and dropped == []


def test_the_end_waits_for_those_who_live_and_not_for_ever() -> None:
    go = threading.Event()
    members: Crew[threading.Event] = Crew(lambda item: bool(item.wait(30)), lambda item: None)
    assert members.start(go)
    assert not members.wait(0.05)
    members.end(lambda item: item.set())
    assert members.wait(30)
    assert not members.start(go)
