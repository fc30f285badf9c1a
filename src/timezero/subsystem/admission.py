"""Admission: may a session begin? Decided before it takes anything: one that may not touches nothing that runs.

What a session takes is known beforehand: its caps count everything, and it allocates them when it is prepared. So the
limits are compared with what was admitted, and what the machine has left with what was admitted and is not allocated
yet. Of memory the server keeps its own upkeep: clients that come or get busy later must not find it all in sessions.

A disk may take its time to say what it has left. So it is looked at before anything is decided, and while nobody waits
(`look`): first at what others have of it by then, then at what is left. What somebody allocates between the two counts
twice, and who is admitted after that counts in full: two that look at the same time never get the same room.

Where the limits are full, the new one is refused. Under "puncture-largest" running ones give way instead, the largest
first, as many as it takes, but never one that is smaller than the newcomer, and none when that would not help. Memory
and disk that the machine lacks are no reason to puncture: they come back only when the mover that shares them has gone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from timezero._linux import machine
from timezero.config import Limits
from timezero.control.server import RequestError
from timezero.memory import held as memory_held
from timezero.subsystem.upkeep import Upkeep

DESCRIPTORS_A_VOLUME = 9  # of a session at most, while it is prepared
_GIVEN_BACK = 5  # of them at least, when it ends
_DESCRIPTORS_LEFT = 16  # for the connections of those who run
_MEMORY_LEFT = 16 << 20  # bytes: the kernel, for sockets, and peers on the machine need some to go on


class Claim(Protocol):
    """A session, as far as admission looks at it. It is itself and equals no other."""

    name: str
    volumes: tuple[str, ...]
    memory: int  # bytes admitted
    file: int
    leaving: bool  # gives way, or has

    @property
    def coming(self) -> int:
        """Of memory: bytes that the machine has not given it yet."""

    def allocated(self) -> int:
        """Of file: bytes that the disk has given it. May take as long as the disk does."""

    @property
    def may_give_way(self) -> bool:
        """It has its T0. (One that has not takes up its place for a moment only.)"""


@dataclass(frozen=True)
class Machine:
    """What there is left, in bytes and descriptors. held: bytes of memory that this server has, with its sessions."""

    memory: Callable[[], int] = machine.memory_available
    held: Callable[[], int] = memory_held
    disk: Callable[[str], int] = machine.disk_available
    descriptors: Callable[[], int] = machine.descriptors_available


class Room(NamedTuple):
    """Of the directory of file tiers: bytes that it had left, and what some sessions had of it before that."""

    directory: str
    left: int
    there: Mapping[Claim, int]


def look(new: Claim, others: Iterable[Claim], directory: str | None, there_is: Machine) -> Room | None:
    """The room for the file tier of `new`; None: it has none. Raises RequestError."""
    if not new.file or not directory:
        return None
    there = {claim: claim.allocated() for claim in others}
    try:
        return Room(directory, there_is.disk(directory), there)
    except OSError as error:
        raise RequestError("io", f"sidefile directory {directory}: {error.strerror}") from None


def taken_by(claim: Claim) -> int:
    """How large a session is: the bytes that it has taken."""
    return claim.memory + claim.file


def admit(
    new: Claim, others: Sequence[Claim], limits: Limits, upkeep: Upkeep, room: Room | None, there_is: Machine
) -> Sequence[Claim]:
    """The sessions that have to give way to `new`, mostly none. room: from `look`. Raises RequestError.

    Asks no disk. Whoever calls it lets no other session in until it has counted `new` among the others.
    """
    _check_volumes(new, others, limits)
    _check_memory(new, others, upkeep, there_is)
    if room:
        _check_disk(new, others, room)
    files = there_is.descriptors()
    leaving: list[Claim] = []
    lacking = first = _lacking(new, others, leaving, limits, files)
    candidates = iter(_candidates(new, others) if limits.when_full == "puncture-largest" else ())
    while lacking:
        claim = next(candidates, None)
        if claim is None:
            raise RequestError("limit", first or lacking)
        leaving.append(claim)
        lacking = _lacking(new, others, leaving, limits, files)
    for claim in list(leaving):  # the largest may have had nothing of what was wanting
        rest = [other for other in leaving if other is not claim]
        if not _lacking(new, others, rest, limits, files):
            leaving = rest
    return leaving


def _candidates(new: Claim, others: Iterable[Claim]) -> Sequence[Claim]:
    """Those that may be asked to give way, the largest first; of equals the newest, which has done the least."""
    there = [claim for claim in others if claim.may_give_way and taken_by(claim) >= taken_by(new)]
    there.reverse()
    return sorted(there, key=taken_by, reverse=True)


def _lacking(new: Claim, others: Iterable[Claim], leaving: Sequence[Claim], limits: Limits, files: int) -> str | None:
    """What is not enough for all but those that leave, in words; None: nothing. files: that may still be opened."""
    staying = [claim for claim in others if claim not in leaving]
    memory = sum(claim.memory for claim in staying)
    if memory + new.memory > limits.memory:
        return (
            f"the session needs {new.memory} bytes of memory, {memory} of {limits.memory} are taken; "
            "ask for less, wait, or raise limits.memory"
        )
    file = sum(claim.file for claim in staying)
    if file + new.file > limits.file:
        return (
            f"the session needs {new.file} bytes of file tier, {file} of {limits.file} are taken; "
            "ask for less, wait, or raise limits.file"
        )
    coming = len(new.volumes) + sum(len(claim.volumes) for claim in staying if claim.coming)
    files += _GIVEN_BACK * sum(len(claim.volumes) for claim in leaving)
    missing = DESCRIPTORS_A_VOLUME * coming + _DESCRIPTORS_LEFT - files
    if missing > 0:
        return f"the session needs {missing} more open files than this server may have; wait, or raise its LimitNOFILE"
    return None


def _check_volumes(new: Claim, others: Iterable[Claim], limits: Limits) -> None:
    names = [name for claim in others for name in claim.volumes]
    for volume in new.volumes:
        if names.count(volume) >= limits.sessions:
            raise RequestError("limit", f"volume {volume} has {limits.sessions} sessions already")


def _check_memory(new: Claim, others: Sequence[Claim], upkeep: Upkeep, there_is: Machine) -> None:
    spare = _memory_for_sessions(others, upkeep, there_is) - sum(claim.memory for claim in others)
    if new.memory > spare:
        then = "ask for less, or wait" if others else "ask for less (--sidefile-memory), or lower limits.connections"
        raise RequestError(
            "limit",
            f"the session needs {new.memory} bytes of memory, and this machine can spare {max(spare, 0)} beside what "
            f"the server and its clients may still need; {then}",
        )


def _memory_for_sessions(others: Sequence[Claim], upkeep: Upkeep, there_is: Machine) -> int:
    """Bytes for all of them together: the same whether clients take what is kept for them just now, or not."""
    allocated = sum(claim.memory - claim.coming for claim in others)
    besides = max(there_is.held() - allocated, 0)  # has the server now
    room = there_is.memory() - _MEMORY_LEFT + allocated + besides
    return room - max(upkeep.keep(room), besides)


def _check_disk(new: Claim, others: Iterable[Claim], room: Room) -> None:
    # A file system that cannot allocate gives a file its blocks as they are written: they are still to come, too.
    coming = sum(max(claim.file - room.there.get(claim, 0), 0) for claim in others if not claim.leaving)
    disk = room.left - coming
    if new.file > disk:
        raise RequestError(
            "limit",
            f"the session needs {new.file} bytes of file tier, and {room.directory} has {max(disk, 0)} left; "
            "ask for less, or make room there",
        )
