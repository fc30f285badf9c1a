"""Hooks: what they mean, their order, their deadlines; no signal comes between a pre step and its post step."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from timezero.errors import DeadlineError, TimezeroError, UsageError
from timezero.quiesce import Context, Hook, Quiesced, parse, parse_all
from timezero.quiesce.command import ExecHook
from timezero.quiesce.patience import Patience

# ---- what they mean ----


@pytest.mark.parametrize(
    ("text", "pre", "post"),
    [
        ("exec:pre=a", "a", None),
        ("exec:post=b", None, "b"),
        ("exec:pre=a,post=b", "a", "b"),
        ("exec:pre=a -x 1,2,post=b 3,4", "a -x 1,2", "b 3,4"),
        ("exec:pre=a, post=b", "a, post=b", None),
        ("exec:pre=a,compost=b", "a,compost=b", None),
        (r"exec:pre=a\,post=b", "a,post=b", None),
        (r"exec:pre=a\,post=b,post=c\,pre=d", "a,post=b", "c,pre=d"),
        (r"exec:pre=a\\n,b", r"a\\n,b", None),
        ("exec:pre=a=b:c,post= d", "a=b:c", " d"),
    ],
)
def test_commands(text: str, pre: str | None, post: str | None) -> None:
    hook = parse(text)
    assert isinstance(hook, ExecHook)
    assert (hook.pre_command, hook.post_command) == (pre, post)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "exec",
        "exec:",
        "exec:a",
        "exec:pre=",
        "exec:pre= ,post=b",
        "exec:pre=a,post=",
        "exec:pre=a,pre=b",
        "exec:post=a,pre=b",
        "exec:pre=a,post=b,post=c",
        "exec:pre=a\0b",
        "fsfreeze:",
        "qga:",
        "qga",
        "unknown:x",
    ],
)
def test_nonsense_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as raised:
        parse(text)
    assert "\n" not in str(raised.value)


def test_what_cannot_work_is_refused_beforehand(tmp_path: Path) -> None:
    for text, why in (
        (f"fsfreeze:{tmp_path}", "not a mount point"),
        (f"fsfreeze:{tmp_path}/none", "No such file"),
        (f"qga:{tmp_path}/none", "no such socket"),
    ):
        with pytest.raises(UsageError, match=why):
            parse_all([text])
    with pytest.raises(UsageError, match="twice"):
        parse_all(["exec:pre=a", "exec:pre=a"])


# ---- order ----


class Recorded(Hook):
    """Says what it does; fails where it is told to."""

    def __init__(self, name: str, log: list[str], **fail: BaseException) -> None:
        super().__init__(name)
        self._log = log
        self._fail = fail

    def _step(self, step: str) -> None:
        self._log.append(f"{step} {self.text}")
        if step in self._fail:
            raise self._fail[step]

    def prepare(self, patience: Patience) -> None:
        self._step("prepare")

    def pre(self, context: Context, patience: Patience) -> None:
        self._step("pre")

    def post(self, context: Context, patience: Patience) -> None:
        self._step("post")

    def close(self) -> None:
        self._log.append(f"close {self.text}")


def steps(log: list[str]) -> list[str]:
    return [entry for entry in log if entry.startswith(("pre ", "post ", "body"))]


def test_order_and_times() -> None:
    log: list[str] = []
    with Quiesced([Recorded(name, log) for name in "abc"]) as quiesced:
        log.append("body")
    assert steps(log) == ["pre a", "pre b", "pre c", "body", "post c", "post b", "post a"]
    assert log[:3] == ["prepare a", "prepare b", "prepare c"]
    assert log[-3:] == ["close c", "close b", "close a"]
    assert set(quiesced.times) == set("abc")
    assert all(set(times) == {"pre_us", "post_us"} for times in quiesced.times.values())
    assert quiesced.total_us == sum(sum(times.values()) for times in quiesced.times.values())


def test_no_hooks_is_nothing() -> None:
    with Quiesced([]) as quiesced:
        pass
    assert quiesced.times == {} and quiesced.total_us == 0


@pytest.mark.parametrize(
    ("error", "kind", "told"),
    [
        (TimezeroError("broken"), TimezeroError, "quiesce b: pre: broken"),
        (OSError(5, "Input/output error"), TimezeroError, "quiesce b: pre: Input/output error"),
        (TimeoutError(), DeadlineError, "quiesce b: pre: took longer than 10 s"),
        (ZeroDivisionError("a bug"), ZeroDivisionError, "a bug"),
    ],
)
def test_a_failed_pre_step_gets_its_post_step(error: BaseException, kind: type, told: str) -> None:
    log: list[str] = []
    hooks = [Recorded("a", log), Recorded("b", log, pre=error), Recorded("c", log)]
    with pytest.raises(kind, match=told), Quiesced(hooks):
        log.append("body")
    assert steps(log) == ["pre a", "pre b", "post b", "post a"]
    assert log[-3:] == ["close c", "close b", "close a"]


def test_a_failed_preparation_stills_nothing() -> None:
    log: list[str] = []
    hooks = [Recorded("a", log), Recorded("b", log, prepare=TimezeroError("cannot"))]
    with pytest.raises(TimezeroError, match="quiesce b: cannot"), Quiesced(hooks):
        log.append("body")
    assert steps(log) == []
    assert log[-2:] == ["close b", "close a"]


@pytest.mark.parametrize("error", [DeadlineError("too late"), KeyboardInterrupt(), ZeroDivisionError()])
def test_a_failed_suspension_gets_all_post_steps(error: BaseException) -> None:
    log: list[str] = []
    with pytest.raises(type(error)), Quiesced([Recorded("a", log), Recorded("b", log)]):
        raise error
    assert steps(log) == ["pre a", "pre b", "post b", "post a"]


def test_a_failed_post_step_is_told_and_keeps_no_other_from_its_turn() -> None:
    log: list[str] = []

    def stuck() -> Hook:
        return Recorded("a", log, post=TimezeroError("stuck"))

    with pytest.raises(TimezeroError) as raised, Quiesced([stuck(), Recorded("b", log, post=TimeoutError())]):
        pass
    assert steps(log) == ["pre a", "pre b", "post b", "post a"]
    assert "quiesce b: post: took longer" in str(raised.value) and "quiesce a: post: stuck" in str(raised.value)
    # With an error of the body's, that one keeps its kind and exit code.
    with pytest.raises(DeadlineError, match="too late; quiesce a: post: stuck"), Quiesced([stuck()]):
        raise DeadlineError("too late")
    # Who interrupts has to know as well.
    with pytest.raises(TimezeroError, match="interrupted; quiesce a: post: stuck"), Quiesced([stuck()]):
        raise KeyboardInterrupt


# ---- commands ----


def run_hook(text: str, deadline_s: float = 10.0) -> Quiesced:
    with Quiesced([parse(text)], deadline_s, volumes=["data", "log"], session="4711") as quiesced:
        pass
    return quiesced


def test_what_a_command_is_given(tmp_path: Path) -> None:
    run_hook(f'exec:pre=echo "$TIMEZERO_VOLUMES:$TIMEZERO_SESSION:$(cat)" > {tmp_path}/out; ps -o pgid= $$ | wc -l')
    assert (tmp_path / "out").read_text() == "data log:4711:\n"


def test_a_command_has_its_own_group_and_ordinary_signals(tmp_path: Path) -> None:
    run_hook(f"exec:post=exec cat /proc/self/stat /proc/self/status > {tmp_path}/out")
    text = (tmp_path / "out").read_text()
    pid, group = text.split()[0], text.split()[4]
    assert pid == group
    masks = dict(line.split(":\t") for line in text.splitlines()[1:] if ":\t" in line)
    assert int(masks["SigBlk"], 16) == 0
    assert not int(masks["SigIgn"], 16) & (1 << (signal.SIGPIPE - 1))


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("echo first; echo last >&2; echo; exit 3", "ended with 3: last$"),
        ("exit 3", "ended with 3, and said nothing$"),
        ("kill -9 $$", "was ended by SIGKILL, and said nothing$"),
        ("no-such-command-at-all", "ended with 127: .*not found$"),
        ("head -c 30000000 /dev/zero | tr '\\0' x; echo; echo last; exit 1", "ended with 1: last$"),
        ("printf '\\377\\001'; exit 1", "ended with 1: .{1,4}$"),
    ],
)
def test_what_a_failed_command_said(command: str, told: str) -> None:
    with pytest.raises(TimezeroError, match=told) as raised:
        run_hook(f"exec:pre={command}")
    assert len(str(raised.value)) < 500


def test_a_background_process_does_not_hold_the_command_up(tmp_path: Path) -> None:
    began = time.monotonic()
    run_hook(f"exec:pre=sleep 30 & echo $! > {tmp_path}/pid")
    assert time.monotonic() - began < 10
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)  # it was left alone


def test_a_command_is_killed_with_its_children_at_its_deadline(tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(DeadlineError, match=r"took longer than 0\.3 s"):
        run_hook(f"exec:pre=trap '' TERM; sleep 30 & echo $! > {tmp_path}/pid; wait,post=touch {tmp_path}/post", 0.3)
    assert time.monotonic() - began < 10
    assert (tmp_path / "post").exists()
    assert is_gone(int((tmp_path / "pid").read_text()))


def test_a_post_command_has_its_own_deadline() -> None:
    with pytest.raises(TimezeroError, match=r"post: took longer than 0\.3 s: the application may not run") as raised:
        run_hook("exec:pre=sleep 0.2,post=sleep 30", 0.3)
    assert not isinstance(raised.value, DeadlineError)


def is_gone(pid: int) -> bool:
    """Ended, or a zombie that nobody waits for."""
    end = time.monotonic() + 5
    while time.monotonic() < end:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.02)
    return False


def test_nothing_is_left_open() -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        run_hook("exec:pre=true,post=true")
        with pytest.raises(TimezeroError):
            run_hook("exec:pre=false")
    assert len(os.listdir("/proc/self/fd")) == before


# ---- signals ----

CHILD = """
    import os, signal, sys, threading, time
    from timezero.quiesce import Quiesced, parse
    if "handled" in sys.argv:
        def handler(*_):
            raise KeyboardInterrupt
        signal.signal(signal.SIGTERM, handler)
    stage, folder = sys.argv[1:3]
    ask = f"touch {folder}/reached; sleep 2"
    step = lambda name: (ask + "; " if stage == name else "") + f"touch {folder}/{name}"
    hook = parse(f"exec:pre={step('pre')},post={step('post')}; echo > {folder}/undone")
    try:
        with Quiesced([hook], 20):
            if stage == "body":
                open(f"{folder}/reached", "w").close()
                time.sleep(20)
    except KeyboardInterrupt:
        sys.exit(130)
    print("not interrupted")
"""


@pytest.mark.parametrize("stage", ["pre", "body", "post"])
@pytest.mark.parametrize("handled", [True, False])
def test_a_signal_at_any_stage_leaves_nothing_still(tmp_path: Path, stage: str, handled: bool) -> None:
    words = [sys.executable, "-c", textwrap.dedent(CHILD), stage, str(tmp_path)] + ["handled"] * handled
    child = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    try:
        while not (tmp_path / "reached").exists():
            assert child.poll() is None
            time.sleep(0.01)
        began = time.monotonic()
        child.send_signal(signal.SIGTERM)
        out = child.communicate(timeout=30)[0]
    finally:
        child.kill()
        child.wait()
    assert (tmp_path / "undone").exists()
    assert (tmp_path / "pre").exists() == (stage != "pre")  # the command was killed, and not waited for
    assert child.returncode == (130 if handled else -signal.SIGTERM)
    assert out == ""
    assert time.monotonic() - began < 15


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


SHOTS = 20_000
ORDERLY = ([], ["pre a", "post a"], ["pre a", "pre b", "post b", "post a"])


def test_no_signal_comes_between_a_step_and_its_undoing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fire at any moment; whatever was begun must have been undone, and no signal may be lost.

    By a timer, which strikes between any two instructions; a thread would strike only where this one gives way. Without
    the collector of garbage: what a handler raises inside one of its callbacks (Hypothesis has one) or a finalizer, the
    interpreter drops.
    """
    gc.collect()
    gc.disable()
    monkeypatch.setattr("timezero.quiesce.signals._ENDING", (signal.SIGALRM,))
    before = signal.signal(signal.SIGALRM, interrupt)
    caught = within = 0
    descriptors = os.listdir("/proc/self/fd")
    try:
        began = time.perf_counter()
        for _ in range(20):
            with Quiesced([Recorded("a", []), Recorded("b", [])]):
                pass
        longest = (time.perf_counter() - began) / 20 * 1.5
        for attempt in range(SHOTS):
            log: list[str] = []
            try:
                signal.setitimer(signal.ITIMER_REAL, 1e-6 + longest * attempt / SHOTS)
                with Quiesced([Recorded("a", log), Recorded("b", log)]):
                    pass
                end = time.monotonic() + 10
                while time.monotonic() < end:
                    pass
            except KeyboardInterrupt:
                caught += 1
            within += 0 < len(log) < 8
            assert steps(log) in ORDERLY, log
            assert sorted(entry for entry in log if entry.startswith("close")) in ([], ["close a", "close b"])
            assert signal.getsignal(signal.SIGALRM) is interrupt
    finally:
        gc.enable()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert caught == SHOTS and within > SHOTS / 100
    assert len(os.listdir("/proc/self/fd")) == len(descriptors)


def test_ignored_signals_stay_ignored_and_handlers_come_back() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Quiesced([]):
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) != before[signal.SIGTERM]
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) == before[signal.SIGTERM]
    finally:
        signal.signal(signal.SIGHUP, before[signal.SIGHUP])


def test_in_another_thread(tmp_path: Path) -> None:
    failed: list[BaseException] = []

    def work() -> None:
        try:
            run_hook(f"exec:pre=true,post=touch {tmp_path}/post")
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not failed and (tmp_path / "post").exists()


# ---- freezing ----


class FakeFreezer:
    """Fails as it is told to."""

    def __init__(self, log: list[str], fail: dict[str, TimezeroError]) -> None:
        self._log = log
        self._fail = fail

    def _do(self, what: str) -> None:
        self._log.append(what)
        if what.split()[0] in self._fail:
            raise self._fail[what.split()[0]]

    def sync(self) -> None:
        self._do("sync")

    def freeze(self, deadline_s: float) -> None:
        self._do(f"freeze {deadline_s:g}")

    def thaw(self) -> None:
        self._do("thaw")

    def close(self) -> None:
        self._log.append("close")


def frozen(**fail: TimezeroError) -> list[str]:
    log: list[str] = []
    hooks = parse_all(["fsfreeze:/", "exec:post=true"], make_freezer=lambda points: FakeFreezer(log, fail))
    try:
        with Quiesced(hooks, 2.0, body_s=0.5):
            log.append("body")
    except TimezeroError as error:
        log.append(f"{error.exit_code} {error}")
    return log


def test_freezing() -> None:
    # Its own pre step, both steps of the hook after it, and the suspension.
    assert frozen() == ["sync", "freeze 6.5", "body", "thaw", "close"]
    told = "1 quiesce fsfreeze:/: pre: / is frozen already"
    # A freezer that raises has frozen nothing.
    assert frozen(freeze=TimezeroError("/ is frozen already")) == ["sync", "freeze 6.5", "close", told]
    told = "4 quiesce fsfreeze:/: post: the deadline passed"
    assert frozen(thaw=DeadlineError("the deadline passed")) == ["sync", "freeze 6.5", "body", "thaw", "close", told]
    assert frozen(sync=TimezeroError("EIO")) == ["sync", "close", "1 quiesce fsfreeze:/: EIO"]
