"""What was built, what this machine allows, and which of it is in use: `timezero doctor`.

Nothing here changes anything. A finding is "good", "note" (works, but less well, or a tool for tests alone is missing)
or "bad" (timezero cannot do its work here), and says what to do about it.
"""

from __future__ import annotations

import errno
import importlib
import os
import platform
import resource
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from timezero import _linux
from timezero._version import __version__

State = Literal["good", "note", "bad"]

NATIVE = ("engine", "subsystem", "mover")
PEERS = ("qemu-img", "qemu-io", "nbdkit", "nbdinfo", "nbdcopy", "nbdfuse", "fio", "mkfs.xfs")
# The sidefile's memory tier is locked: below this, root's exemption apart, a default session does not fit.
MEMLOCK_WANTED = 256 << 20


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    name: str
    state: State
    detail: str
    advice: str = ""


def examine(path: str | os.PathLike[str] | None = None) -> dict[str, Any]:
    """Look at everything; direct I/O is tried at `path`, a file, device or directory (default: the current directory).

    `ok` is false when something essential is missing. `engine` is "uring", "threads" or None, `engine_reason` says why.
    """
    native = _native()
    engine, reason, engine_finding = _engine()
    checks: tuple[Callable[[], Finding], ...] = (
        lambda: native,
        lambda: engine_finding,
        _memfd,
        lambda: _direct(Path(path or ".")),
        _huge_pages,
        _memlock,
        lambda: _device("fuse", "/dev/fuse", "file systems on served volumes (nbdfuse)", "modprobe fuse"),
        lambda: _device("loop", "/dev/loop-control", "mounting served volumes and images", "modprobe loop"),
        _peers,
    )
    findings = [check() for check in checks]
    return {
        "ok": all(finding.state != "bad" for finding in findings),
        "version": __version__,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "engine": engine,
        "engine_reason": reason,
        "findings": [asdict(finding) for finding in findings],
    }


def render(report: dict[str, Any]) -> str:
    """The report as text for people, several lines."""
    return "\n".join(_lines(report))


def _lines(report: dict[str, Any]) -> Iterator[str]:
    yield f"timezero {report['version']}, {report['python']}, {report['kernel']}"
    width = max(len(finding["name"]) for finding in report["findings"])
    for finding in report["findings"]:
        yield f"  {finding['state']:4}  {finding['name']:{width}}  {finding['detail']}"
        if finding["advice"]:
            yield f"        {'':{width}}  → {finding['advice']}"
    yield "everything essential is here" if report["ok"] else "something essential is missing: see the lines marked bad"


def _native() -> Finding:
    """The compiled parts. Each is tried: a library may have gone since the build."""
    failed = []
    for name in NATIVE:
        try:
            importlib.import_module(f"timezero._native.{name}")
        except ImportError as error:
            failed.append(f"{name}: {error}")
    if failed:
        return Finding(
            "core", "bad", "; ".join(failed), "build timezero again (pip install --force-reinstall timezero)"
        )
    return Finding("core", "good", f"compiled parts load: {', '.join(NATIVE)}")


def _engine() -> tuple[str | None, str, Finding]:
    """The engine that "auto" or TIMEZERO_IO gives here, and why."""
    try:
        from timezero._native import engine
    except ImportError:
        return None, "the compiled core does not load", Finding("I/O engine", "bad", "the compiled core does not load")
    works, reason = engine.probe_uring() if engine.uring_compiled() else (False, "built without liburing")
    built = f"liburing {engine.liburing_version()}" if engine.uring_compiled() else ""
    forced = os.environ.get("TIMEZERO_IO", "")
    if forced == "threads":
        reason = f"TIMEZERO_IO=threads; io_uring {'works here' if works else f'does not work here: {reason}'}"
        return "threads", reason, Finding("I/O engine", "good", f"threads ({reason})")
    if forced not in ("", "auto", "uring"):
        reason = f"TIMEZERO_IO={forced} is not known"
        return None, reason, Finding("I/O engine", "bad", reason, "it may be uring or threads")
    if works:
        return "uring", built, Finding("I/O engine", "good", f"io_uring ({built})")
    if forced == "uring":
        return None, reason, Finding("I/O engine", "bad", f"TIMEZERO_IO=uring, but: {reason}", _uring_advice(built))
    return "threads", reason, Finding("I/O engine", "note", f"threads; no io_uring: {reason}", _uring_advice(built))


def _uring_advice(built: str) -> str:
    if not built:
        return "for io_uring: apt install liburing-dev, then build timezero again"
    switch = _word("/proc/sys/kernel/io_uring_disabled")
    if switch not in ("", "0"):
        return f"kernel.io_uring_disabled is {switch}: sysctl kernel.io_uring_disabled=0 allows it"
    return "io_uring needs Linux 6.1 or later and a sandbox (container, seccomp profile) that allows it"


def _memfd() -> Finding:
    try:
        _linux.memfd_seals()
    except OSError as error:
        return Finding(
            "shared memory", "bad", f"sealed memory: {error.strerror}", "serving volumes needs Linux 5.1 or later"
        )
    return Finding("shared memory", "good", "can be sealed against other processes")


def _direct(path: Path) -> Finding:
    """Direct I/O where the user's data is: on a file or device, or in a directory by way of a file without a name."""
    try:
        if not path.is_dir():
            return _alignment(path, path)
        with tempfile.TemporaryFile(dir=path) as file:
            return _alignment(path, file.fileno())
    except OSError as error:
        return Finding(
            "direct I/O", "note", f"{path}: {error.strerror}", "name a file, device or directory you may use"
        )


def _alignment(path: Path, file: Path | int) -> Finding:
    buffered = "buffered I/O is used there: slower, and it fills the page cache"
    try:
        alignment = _linux.direct_alignment(file)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        return _tried(path, file, buffered)
    if alignment is None:
        return Finding("direct I/O", "note", f"{path}: not to be had", buffered)
    return Finding("direct I/O", "good", f"{path}: offsets by {alignment.offset} bytes, memory by {alignment.memory}")


def _tried(path: Path, file: Path | int, buffered: str) -> Finding:
    """The kernel does not tell, so an open has to."""
    name = f"/proc/self/fd/{file}" if isinstance(file, int) else file
    try:
        os.close(os.open(name, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC))
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return Finding("direct I/O", "note", f"{path}: not to be had", buffered)
    return Finding("direct I/O", "good", f"{path}: yes; the kernel does not tell its alignment, it is tried on opening")


def _huge_pages() -> Finding:
    mode = _word("/sys/kernel/mm/transparent_hugepage/enabled", chosen=True)
    if mode in ("always", "madvise"):
        return Finding("huge pages", "good", f"transparent huge pages: {mode}")
    detail = f"transparent huge pages: {mode or 'not in this kernel'}"
    return Finding("huge pages", "note", detail, "small pages are used; /sys/kernel/mm/transparent_hugepage/enabled")


def _memlock() -> Finding:
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    if os.geteuid() == 0:
        return Finding("locked memory", "good", "without limit (root)")
    if limit == resource.RLIM_INFINITY or limit >= MEMLOCK_WANTED:
        amount = "without limit" if limit == resource.RLIM_INFINITY else f"{limit >> 20} MiB"
        return Finding("locked memory", "good", amount)
    advice = "serve: raise it (ulimit -l, LimitMEMLOCK= in systemd), or before-images may be swapped out"
    return Finding("locked memory", "note", f"{limit >> 10} KiB", advice)


def _device(name: str, path: str, use: str, advice: str) -> Finding:
    if os.access(path, os.R_OK | os.W_OK):
        return Finding(name, "good", path)
    what = "may not be used by this user" if Path(path).exists() else "is not there"
    return Finding(name, "note", f"{path} {what}: wanted only for {use}", advice)


def _peers() -> Finding:
    """Other tools that speak NBD or make file systems: for the demo and the tests, not for backups."""
    search = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    missing = [tool for tool in PEERS if shutil.which(tool, path=search) is None]
    if not missing:
        return Finding("other tools", "good", ", ".join(PEERS))
    return Finding(
        "other tools", "note", f"not installed: {', '.join(missing)}", "only make demo and make test want them"
    )


def _word(path: str, *, chosen: bool = False) -> str:
    """The content of a kernel setting; of a choice, the word in brackets. Empty when there is no such setting."""
    try:
        text = Path(path).read_text().strip()
    except OSError:
        return ""
    return text.partition("[")[2].partition("]")[0] if chosen else text
