"""Gate and mover as one state machine against a plain model: Hypothesis draws every step, the engine's too.

The C side (gate_machine.c) does nothing on its own: I/O is carried out in parts, and completes, when a rule says so.
The model is what the volume must hold, and an image of the file at every T0. What must hold at any moment:

- what a mover holds of a session that is not punctured is T0;
- every read answers what the model holds, every update succeeds, whatever becomes of the sessions;
- at the end nothing waits, no slot is lost, and the volume is the model.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from cffi import FFI
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

ROOT = Path(__file__).resolve().parents[2]
READ, WRITE, FLUSH, TRIM, ZERO = range(5)
FUA, NO_HOLE = 1, 2
ACTIVE, PUNCTURED, ENDED = 1, 2, 3
PASS_ALL, ISSUE_EARLY, _, STALE_NEED, NO_DRAIN, DOUBLE_FREE = (1 << bit for bit in range(6))

TRACK = 4096
TRACKS = 12
SIZE = TRACKS * TRACK
SESSIONS = 2
CHUNK = 3  # tracks
UPDATES = 6  # in flight

DECLARATIONS = """
typedef struct machine machine;
machine *machine_open(const char *path, int buffered, uint32_t faults);
void machine_close(machine *m);
int machine_idle(machine *m);
uint32_t machine_zero_align(machine *m);
uint32_t machine_ops(machine *m);
void machine_step(machine *m, uint32_t i);
void machine_submit(machine *m, uint32_t i, int kind, uint32_t flags, uint64_t offset, uint64_t length,
                    const char *data);
int machine_done(machine *m, uint32_t i, int64_t *result);
const char *machine_buffer(machine *m, uint32_t i);
int machine_prepare(machine *m, uint32_t i, uint64_t track, uint64_t memory, uint64_t file, uint32_t faults);
int machine_close_gate(machine *m, uint32_t i);
int machine_drained(machine *m, uint32_t i);
int machine_install(machine *m, uint32_t i);
void machine_open_gate(machine *m, uint32_t i);
void machine_fire_deadline(machine *m);
int machine_settled(machine *m, uint32_t i);
int machine_state(machine *m, uint32_t i);
uint32_t machine_used(machine *m, uint32_t i);
void machine_end_start(machine *m, uint32_t i, int cancel);
int machine_ended(machine *m, uint32_t i);
void machine_destroy_session(machine *m, uint32_t i);
void machine_mover_read(machine *m, uint32_t i, uint64_t offset, uint64_t length);
int64_t machine_mover_has_read(machine *m, uint32_t i);
const char *machine_frame(machine *m, uint32_t i);
int machine_mark_copied(machine *m, uint32_t i, uint64_t track);
int64_t machine_take(machine *m, uint32_t i, uint64_t track);
void machine_give_back(machine *m, uint32_t i, uint32_t slot);
"""


def build(target: Path) -> None:
    """The subsystem on the tests' engine, as a shared library of its own."""
    parts = ("volume*", "gate", "session*", "preserve", "sidefile")
    sources = [path for part in parts for path in sorted((ROOT / "csrc/subsystem").glob(f"{part}.c"))]
    sources += [*sorted((ROOT / "csrc/data").glob("digest*.c")), ROOT / "csrc/data/load.c", ROOT / "csrc/io/file.c"]
    command = [os.environ.get("CC", "cc"), "-shared", "-fPIC", "-O1", "-std=gnu11", "-D_GNU_SOURCE", "-pthread"]
    command += [
        f"-I{ROOT / 'csrc/include'}",
        "-o",
        target,
        ROOT / "tests/property/gate_machine.c",
        *sources,
        "-lxxhash",
    ]
    subprocess.run(command, check=True, timeout=300)


@cache
def load(target: str) -> tuple[Any, Any]:
    ffi = FFI()
    ffi.cdef(DECLARATIONS)
    return ffi, ffi.dlopen(target)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> str:
    target = tmp_path_factory.mktemp("gate-machine") / "machine.so"
    build(target)
    return str(target)


@dataclass
class Update:
    kind: int
    offset: int
    length: int
    data: bytes


@dataclass
class Part:
    """A session and its mover, as the model sees them."""

    stage: str = "none"  # none, closing, running, ending
    t0: bytes = b""
    todo: list[int] = field(default_factory=list)  # chunks, by first track
    chunk: int | None = None
    preserved: list[int] | None = None  # tracks of the chunk still to be taken; None: not validated yet
    frame: bytearray = field(default_factory=bytearray)
    deadline_fired: bool = False


class GateMachine(RuleBasedStateMachine):
    library = ""  # path
    volume_faults = 0
    session_faults = 0
    sessions = SESSIONS

    @initialize(seed=st.integers(0, 2**32), buffered=st.booleans())
    def start(self, seed: int, buffered: bool) -> None:
        self.ffi, self.lib = load(self.library)
        self.random = random.Random(seed)
        tracks = [self.random.choice([bytes(TRACK), self.random.randbytes(TRACK)]) for _ in range(TRACKS)]
        self.model = bytearray(b"".join(tracks))
        descriptor, self.path = tempfile.mkstemp(prefix="timezero-gate-")
        os.write(descriptor, self.model)
        os.close(descriptor)
        self.machine = self.lib.machine_open(self.path.encode(), buffered, self.volume_faults)
        self.updates: dict[int, Update] = {}
        self.parts = [Part() for _ in range(self.sessions)]

    # ---- application ----

    @rule(
        kind=st.sampled_from([WRITE, WRITE, WRITE, READ, TRIM, ZERO]),
        flags=st.sampled_from([0, 0, 0, FUA, NO_HOLE]),
        grain=st.sampled_from([TRACK, TRACK, 512, 77]),
        place=st.integers(0, 1000) | st.integers(0, 12),
        length=st.integers(1, 12),
    )
    def submit(self, kind: int, flags: int, grain: int, place: int, length: int) -> None:
        offset = place * grain % SIZE
        length = min(length * grain, SIZE - offset)
        busy = any(u.offset < offset + length and offset < u.offset + u.length for u in self.updates.values())
        if busy or len(self.updates) == UPDATES:
            return  # what overlapping updates leave behind is nobody's business
        number = min(set(range(UPDATES)) - set(self.updates))
        data = self.random.randbytes(length) if kind == WRITE else self.ffi.NULL
        self.updates[number] = Update(kind, offset, length, data if kind == WRITE else b"")
        self.lib.machine_submit(self.machine, number, kind, flags, offset, length, data)
        self.look()

    def apply(self, number: int, update: Update) -> None:
        align = self.lib.machine_zero_align(self.machine)
        start, stop = update.offset, update.offset + update.length
        if update.kind == READ:
            got = self.ffi.buffer(self.lib.machine_buffer(self.machine, number), update.length)[:]
            assert got == self.model[start:stop], "a read answers something else"
        elif update.kind == WRITE:
            self.model[start:stop] = update.data
        else:
            if update.kind == TRIM:
                start, stop = -(-start // align) * align, stop // align * align
            if start < stop:
                self.model[start:stop] = bytes(stop - start)

    def look(self) -> None:
        """Take note of what has completed."""
        result = self.ffi.new("int64_t *")
        for number, update in list(self.updates.items()):
            if self.lib.machine_done(self.machine, number, result):
                del self.updates[number]
                assert result[0] == 0, "an update failed"
                self.apply(number, update)

    # ---- the engine ----

    @rule(draw=st.integers(0, 1000), times=st.integers(1, 8))
    def engine(self, draw: int, times: int) -> None:
        for _ in range(times):
            if ops := self.lib.machine_ops(self.machine):
                self.lib.machine_step(self.machine, draw % ops)
        self.look()

    # ---- sessions ----

    @rule(i=st.integers(0, SESSIONS - 1), memory=st.sampled_from([40, 48, 256]), file=st.booleans())
    def close_gate(self, i: int, memory: int, file: bool) -> None:
        i %= self.sessions
        if self.parts[i].stage != "none" or any(p.stage in ("closing", "opening") for p in self.parts):
            return
        limits = (memory * 1024, 16 * TRACK if file else 0)
        assert self.lib.machine_prepare(self.machine, i, TRACK, *limits, self.session_faults) == 0
        assert self.lib.machine_close_gate(self.machine, i) == 0
        self.parts[i] = Part(stage="closing")
        self.look()

    def closing(self) -> int | None:
        return next((i for i, p in enumerate(self.parts) if p.stage == "closing" and not p.deadline_fired), None)

    @precondition(lambda self: self.closing() is not None)
    @rule()
    def install(self) -> None:
        i = self.closing()
        if self.lib.machine_drained(self.machine, i) and not self.parts[i].t0:
            self.parts[i].t0 = Path(self.path).read_bytes()
            assert self.lib.machine_install(self.machine, i) == 0

    @precondition(lambda self: self.closing() is not None)
    @rule()
    def open_gate(self) -> None:
        i = self.closing()
        if self.parts[i].t0:
            self.lib.machine_open_gate(self.machine, i)
            chunks = list(range(0, TRACKS, CHUNK))
            self.random.shuffle(chunks)
            self.parts[i].todo = chunks
            self.parts[i].stage = "opening"

    @precondition(lambda self: self.closing() is not None)
    @rule(really=st.integers(0, 5))
    def deadline(self, really: int) -> None:
        if really == 0:
            self.lib.machine_fire_deadline(self.machine)
            self.parts[self.closing()].deadline_fired = True

    # ---- the mover ----

    @rule(i=st.integers(0, SESSIONS - 1))
    def mover(self, i: int) -> None:
        i %= self.sessions
        part = self.parts[i]
        if part.stage in ("closing", "opening") and self.lib.machine_settled(self.machine, i):
            part.stage = "running"
            if part.deadline_fired:
                self.end(i, cancel=False)
        elif part.stage == "running":
            self.run_mover(i, part)
        elif part.stage == "ending" and self.lib.machine_ended(self.machine, i):
            self.finish(i, part)

    def run_mover(self, i: int, part: Part) -> None:
        if part.chunk is None:
            if not part.todo or self.lib.machine_state(self.machine, i) != ACTIVE:
                self.end(i, cancel=False)
            else:
                part.chunk, part.preserved = part.todo.pop(), None
                self.lib.machine_mover_read(self.machine, i, part.chunk * TRACK, CHUNK * TRACK)
        elif part.preserved is None:
            if self.lib.machine_mover_has_read(self.machine, i) >= 0:
                part.frame = bytearray(self.ffi.buffer(self.lib.machine_frame(self.machine, i), CHUNK * TRACK))
                tracks = range(part.chunk, part.chunk + CHUNK)
                part.preserved = [t for t in tracks if self.lib.machine_mark_copied(self.machine, i, t)]
        elif part.preserved:
            self.take(i, part, part.preserved.pop())
        else:
            want = part.t0[part.chunk * TRACK : (part.chunk + CHUNK) * TRACK]
            if self.lib.machine_state(self.machine, i) == ACTIVE:
                assert part.frame == want, "what the mover holds is not T0"
            part.chunk = None

    def take(self, i: int, part: Part, track: int) -> None:
        slot = self.lib.machine_take(self.machine, i, track)
        assert slot != -2, "a preserved track has no before-image"
        at = (track - part.chunk) * TRACK
        part.frame[at : at + TRACK] = self.ffi.buffer(self.lib.machine_frame(self.machine, i), TRACK)[:]
        if slot >= 0:
            self.lib.machine_give_back(self.machine, i, slot)

    @rule(i=st.integers(0, SESSIONS - 1), really=st.integers(0, 9))
    def cancel(self, i: int, really: int) -> None:
        i %= self.sessions
        part = self.parts[i]
        if really == 0 and part.stage == "running" and (part.chunk is None or part.preserved is not None):
            self.end(i, cancel=True)

    def end(self, i: int, cancel: bool) -> None:
        self.lib.machine_end_start(self.machine, i, cancel)
        self.parts[i].stage = "ending"
        self.look()

    def finish(self, i: int, part: Part) -> None:
        state = self.lib.machine_state(self.machine, i)
        if part.t0:
            assert state in (PUNCTURED, ENDED)
            assert not (part.deadline_fired and state == ENDED), "a broken gate's session is not intact"
        self.lib.machine_destroy_session(self.machine, i)
        self.parts[i] = Part()

    # ---- the end ----

    def is_busy(self) -> bool:
        return not self.lib.machine_idle(self.machine) or any(part.stage != "none" for part in self.parts)

    def drain(self) -> None:
        for step in range(20000):
            if not self.is_busy():
                return
            self.engine(self.random.randrange(1000), 1)
            if self.closing() is not None:
                self.install()
                self.open_gate()
            self.mover(step % self.sessions)
        raise AssertionError("something waits for ever")

    def teardown(self) -> None:
        if not hasattr(self, "machine"):
            return
        try:
            self.drain()
            self.lib.machine_close(self.machine)
            assert Path(self.path).read_bytes() == self.model, "the volume does not hold what was written"
        finally:
            os.unlink(self.path)


def run(
    library: str, examples: int, steps: int, *, session_faults: int = 0, volume_faults: int = 0, sessions: int = 2
) -> None:
    machine = type("Machine", (GateMachine,), {"library": library, "sessions": sessions})
    machine.session_faults, machine.volume_faults = session_faults, volume_faults
    broken = session_faults or volume_faults
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            phases=[Phase.generate] if broken else [Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
            database=None,
            derandomize=True,
        ),
    )


def test_gate_and_mover(library: str) -> None:
    run(library, 150, 120)


@pytest.mark.parametrize(
    "faults",
    [
        {"session_faults": PASS_ALL},
        {"session_faults": ISSUE_EARLY},
        {"session_faults": DOUBLE_FREE},
        {"volume_faults": STALE_NEED},
        {"volume_faults": NO_DRAIN},
    ],
    ids=["gate", "order", "one owner", "need last", "drained"],
)
def test_each_rule_is_needed(library: str, faults: dict[str, int]) -> None:
    """A machine that breaks a rule is found out; in a process each, for what breaks need not clean up.

    (Rules 1 and 8 need longer histories: tests/c/test_subsystem_gate.c.)
    """
    script = f"from test_gate_machine import run; run({library!r}, 500, 120, sessions=1, **{faults!r})"
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode != 0, "the machine noticed nothing"
    assert "AssertionError" in done.stderr, done.stderr
