"""Each command: options to the Python API, its result to output. Imports are late: a command pays for what it uses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from timezero.cli.output import Output, plain, table
from timezero.errors import UsageError
from timezero.units import GIB, format_instant, format_size

#: Files that are told one by one where nobody asked for all.
_FILES_TOLD = 20

if TYPE_CHECKING:
    from timezero.jobs.bench import BenchResult
    from timezero.jobs.options import MoverOptions, SessionOptions
    from timezero.repository import Manifest


def run(options: Any, output: Output) -> int:
    """Run the command that `options` name; the exit code. Raises TimezeroError."""
    output.buffer_bytes = getattr(options, "buffer", None)
    return _COMMANDS[options.command](options, output)


def _serve(options: Any, output: Output) -> int:
    from timezero import subsystem

    return int(subsystem.main(options))


def _mover(options: Any) -> MoverOptions:
    from timezero.jobs.options import MoverOptions, engine_from_environment

    made = MoverOptions(
        buffer_bytes=options.buffer,
        depth=options.depth,
        workers=options.workers,
        rate=options.rate,
        engine=engine_from_environment(),
        device_deadline_s=options.device_deadline / 1e6,
    )
    if hasattr(options, "window"):  # of commands that have an application to be kind to
        made = made._replace(mode=options.mode, latency_target=options.latency_target, window=tuple(options.window))
    made.check()
    return made


def _session(options: Any) -> SessionOptions:
    from timezero.jobs.options import SessionOptions

    return SessionOptions(
        control=options.control,
        track_size=options.track_size,
        memory_bytes=options.sidefile_memory,
        file_bytes=options.sidefile_file,
        deadline_us=options.deadline,
        quiesce=tuple(options.quiesce),
        quiesce_deadline_us=options.quiesce_deadline,
    )


def _backup(options: Any, output: Output) -> int:
    from timezero.jobs.backup import PartialBackupError, backup
    from timezero.jobs.options import FileOptions

    try:
        result = backup(
            options.repo,
            options.datasets,
            fuzzy=options.fuzzy,
            chunk_size=options.chunk_size,
            session=_session(options),
            files=FileOptions(tuple(options.mount), options.read_through),
            mover=_mover(options),
            progress=output.progress(),
            foresee=output.foresee,
        )
    except PartialBackupError as error:
        if not output.json:
            text = _manifest_text(error.result.manifest)
            output.result(dict, lambda: text)
        raise
    for name, doubts in result.doubts.items():
        output.line(f"timezero: {name}: fuzzy: {doubts[0]}")
    for name in result.gone[:_FILES_TOLD]:
        output.line(f"timezero: {plain(name)}: was not there any more at T0")
    if (more := len(result.gone) - _FILES_TOLD) > 0:
        output.line(f"timezero: {more} more files were not there any more at T0: --json names them")
    output.result(result.to_json, lambda: _manifest_text(result.manifest))
    return 0


def _copy(options: Any, output: Output) -> int:
    from timezero.jobs.copy import CHUNK_DEFAULT, copy

    output.to_stderr = options.target == "-"
    result = copy(
        options.source,
        options.target,
        force=options.force,
        fuzzy=options.fuzzy,
        chunk_size=options.chunk_size or CHUNK_DEFAULT,
        session=_session(options),
        mover=_mover(options),
        progress=output.progress(),
        foresee=output.foresee,
    )
    for doubt in result.doubts:
        output.line(f"timezero: {result.source}: fuzzy: {doubt}")
    rate = result.size / result.seconds if result.seconds > 0 else 0.0
    text = f"{format_size(result.size)} in {result.seconds:.2f} s, {format_size(rate)}/s, {result.method}"
    output.result(result.to_json, lambda: text + _suspension_text(result.suspension))
    return 0


def _list(options: Any, output: Output) -> int:
    from timezero.errors import VerificationError
    from timezero.repository import Repository

    repository = Repository(options.repo)
    points, damaged = repository.points()

    def document() -> Any:
        return {
            "repository": repository.path,
            "points": [_brief(point.manifest) for point in points],
            "damaged": [{"id": name, "problem": problem} for name, problem in damaged.items()],
        }

    def text() -> str:
        rows = [
            (
                m.id,
                format_instant(m.t0_ns)[:19] + "Z",
                m.method,
                str(len(m.datasets)),
                format_size(m.size),
                format_size(m.stored),
                _names(m) + (f" ({len(m.failed)} failed)" if m.failed else ""),
            )
            for m in (point.manifest for point in points)
        ]
        rows += [(name, "", "DAMAGED", "", "", "", "") for name in damaged]
        return table(("ID", "T0", "METHOD", "DATASETS ", "SIZE ", "STORED ", "NAMES"), sorted(rows))

    if damaged and output.json:
        for problem in damaged.values():
            output.line(f"timezero: {problem}")
    output.result(document, text)
    if damaged and not output.json:
        raise VerificationError(next(iter(damaged.values())))
    return VerificationError.exit_code if damaged else 0


def _names(manifest: Manifest) -> str:
    """Its volumes by name, and how many files of which."""
    plain_ones = [dataset.name for dataset in manifest.datasets if dataset.inode is None]
    counted = [f"{volume}: {count} file{'s' * (count > 1)}" for volume, count in _file_counts(manifest).items()]
    return ", ".join([*([" ".join(plain_ones)] if plain_ones else []), *counted])


def _file_counts(manifest: Manifest) -> dict[str, int]:
    """{volume: how many of its files are datasets}."""
    counts: dict[str, int] = {}
    for dataset in manifest.datasets:
        if dataset.inode is not None:
            counts[dataset.inode.volume] = counts.get(dataset.inode.volume, 0) + 1
    return counts


def _brief(manifest: Manifest) -> dict[str, Any]:
    return {
        "id": manifest.id,
        "t0": format_instant(manifest.t0_ns),
        "t0_ns": manifest.t0_ns,
        "method": manifest.method,
        "size": manifest.size,
        "stored": manifest.stored,
        "datasets": [dataset.name for dataset in manifest.datasets if dataset.inode is None],
        "files": _file_counts(manifest),
        "failed": [failure.name for failure in manifest.failed],
    }


def _show(options: Any, output: Output) -> int:
    from timezero.repository import Repository

    manifest = Repository(options.repo).point(options.point).manifest
    output.result(
        lambda: {"t0": format_instant(manifest.t0_ns), **manifest.to_json()},
        lambda: _manifest_text(manifest, every_file=True),
    )
    return 0


def _manifest_text(manifest: Manifest, *, every_file: bool = False) -> str:
    lines = [
        f"{manifest.id}  T0 {format_instant(manifest.t0_ns)}  on {plain(manifest.host)}"
        + _suspension_text(manifest.suspension)
    ]
    rows = []
    files = [dataset for dataset in manifest.datasets if dataset.inode is not None]
    leave_out = len(files) > _FILES_TOLD and not every_file
    for dataset in manifest.datasets:
        if leave_out and dataset.inode is not None:
            continue
        counts = dataset.counts
        from_sidefile = counts.get("chunks_sidefile", 0) + counts.get("chunks_mixed", 0)
        requested = "" if dataset.method_used == dataset.method_requested else f" (asked: {dataset.method_requested})"
        rows.append(
            (
                dataset.name,
                dataset.method_used + requested,
                format_size(dataset.size),
                str(counts.get("chunks_zero", 0)),
                str(counts.get("chunks_direct", 0)),
                str(from_sidefile),
                str(dataset.intercepted) if dataset.session else "-",
                format_size(dataset.sidefile_high_water_bytes) if dataset.session else "-",
            )
        )
    headings = ("DATASET", "METHOD", "SIZE ", "ZERO ", "DIRECT ", "SIDEFILE ", "INTERCEPTED ", "HIGH WATER ")
    if rows:
        lines.append(table(headings, rows))
    if files:
        size, held = (
            format_size(sum(dataset.size for dataset in files)),
            sum(dataset.inode.data_size for dataset in files if dataset.inode),
        )
        told = ", ".join(f"{volume}: {count}" for volume, count in _file_counts(manifest).items())
        lines.append(plain(f"{len(files)} files ({told}), {size}, {format_size(held)} without holes"))
    lines += [f"failed: {plain(failure.error)}" for failure in manifest.failed]
    return "\n".join(lines)


def _suspension_text(suspension: dict[str, int] | None) -> str:
    if not suspension or "total_us" not in suspension:
        return ""
    parts = [f"{name} {suspension[f'{name}_us']}" for name in ("drain", "map", "install") if f"{name}_us" in suspension]
    hooks = f", hooks {suspension['hooks_us']} us" if "hooks_us" in suspension else ""
    frozen = f", files frozen {suspension['frozen_us']} us" if "frozen_us" in suspension else ""
    return f"  suspended {suspension['total_us']} us ({', '.join(parts)}){frozen}{hooks}"


def _verify(options: Any, output: Output) -> int:
    from timezero.errors import VerificationError
    from timezero.jobs.verify import verify

    if options.seed is not None and options.sample is None:
        raise UsageError("--seed: of a choice that is made with --sample only")
    result = verify(
        options.repo,
        options.points,
        sample=options.sample,
        seed=options.seed,
        mover=_mover(options),
        progress=output.progress(),
    )
    places = len(result.damage) + result.damage_left_off
    _tell(output, [damage.problem for damage in result.damage], places, "places are damaged")
    if result.damage_left_off:
        output.line(f"timezero: --json has no more than {len(result.damage)} of them either")
    _tell(output, [f"{loss.point}: {loss}" for loss in result.losses], len(result.losses), "datasets are damaged")
    if result.losses:
        output.line("timezero: what is not lost can be had with `timezero restore --salvage`")
    if result.cached:
        output.line("timezero: packs were read through the page cache: their file system knows no other way")
    lines = [f"{len(result.points)} recovery points, {result.datasets} datasets, {format_size(result.size)}"]
    lines[0] += f": DAMAGED in {places} places" if places else ": intact"
    if (sample := result.sample) is not None:
        lines[0] += f", as far as {sample.read} of {sample.stored} stored chunks show (seed {sample.seed})"
        lines.append(f"damage of 1 % of the chunks would be noticed with a chance of {100 * sample.notices:.4g} %")
    output.result(result.to_json, lambda: "\n".join(lines))
    return VerificationError.exit_code if places else 0


def _tell(output: Output, problems: Sequence[str], count: int, what: str) -> None:
    """The first of them, a line each."""
    for problem in problems[:_FILES_TOLD]:
        output.line(f"timezero: {problem}")
    if (more := count - _FILES_TOLD) > 0:
        output.line(f"timezero: {more} more {what}: see --json")


def _restore(options: Any, output: Output) -> int:
    from timezero.jobs.restore import DamagedRestoreError, PartialRestoreError, restore

    point, slash, dataset = options.point.partition("/")
    if slash and not dataset:
        raise UsageError(f"{options.point!r}: POINT/DATASET lacks its dataset")
    output.to_stderr = options.target == "-"
    try:
        result = restore(
            options.repo,
            point,
            options.target,
            dataset=dataset or None,
            in_place=options.in_place,
            force=options.force,
            salvage=options.salvage,
            delta=options.delta,
            resume=options.resume,
            map_file=options.map,
            mover=_mover(options),
            progress=output.progress(),
        )
    except PartialRestoreError as error:
        for problem in list(error.result.failed.values())[1:]:
            output.line(f"timezero: {problem}")
        raise
    except DamagedRestoreError as error:
        lost = [
            f"{loss.dataset}: bytes {offset} to {offset + length - 1} are damaged"
            for loss in error.result.losses
            for offset, length in loss.lost
        ]
        left_off = sum(loss.lost_left_off for loss in error.result.losses)
        _tell(output, lost, len(lost) + left_off, "ranges are damaged")
        if left_off:
            output.line(f"timezero: --json has no more than {len(lost)} of them either; --map, for one image, has all")
        for problem in error.result.failed.values():
            output.line(f"timezero: {problem}")
        raise
    if result.notes:
        name, notes = next(iter(result.notes.items()))
        more = f" (and {len(result.notes) - 1} more files)" if len(result.notes) > 1 else ""
        output.line(f"timezero: {name}: not restored of its metadata: {'; '.join(notes)}{more}")
    lines = [f"{plain(name)} -> {plain(target)}" for name, target in result.targets.items()]
    if len(lines) > _FILES_TOLD:
        lines = [f"{len(lines)} datasets -> {plain(options.target or '/')}"]
    kept = f", {format_size(result.written)} written" if options.delta or options.resume else ""
    lines.append(f"{format_size(result.size)} in {result.seconds:.2f} s{kept}")
    output.result(result.to_json, lambda: "\n".join(lines))
    return 0


def _prune(options: Any, output: Output) -> int:
    from timezero.repository import Repository

    report = Repository(options.repo).prune(keep=options.keep, points=tuple(options.point))
    lines = [f"removed {name}" for name in report.removed]
    lines += [f"swept {name}, left by a backup that did not end" for name in report.swept]
    lines += [f"left {name} alone: its backup is running" for name in report.running]
    lines.append(
        f"{len(report.kept)} kept, {report.packs_removed} packs removed, {format_size(report.bytes_freed)} freed"
    )
    output.result(lambda: vars(report), lambda: "\n".join(lines))
    return 0


def _attach(options: Any, output: Output) -> int:
    from timezero.attach import attach

    attached = attach(options.name, options.control, read_only=options.read_only)
    for warning in attached.warnings:
        output.line(f"timezero: {attached.name}: {warning}")
    output.result(attached.to_json, lambda: attached.device)
    return 0


def _detach(options: Any, output: Output) -> int:
    from timezero.attach import detach

    detached = detach(options.name, options.control)
    for warning in detached.warnings:
        output.line(f"timezero: {detached.name}: {warning}")
    output.result(
        detached.to_json,
        lambda: f"{detached.name}: {'detached' if detached.was_attached else 'is not attached'}",
    )
    return 0


def _status(options: Any, output: Output) -> int:
    from timezero import session

    status = session.status(options.control or session.default_control())

    def text() -> str:
        rows = [
            (
                str(volume.get("name", "")),
                format_size(int(volume.get("size", 0))),
                str(volume.get("connections", "")),
                str(volume.get("reads", "")),
                str(volume.get("writes", "")),
                str(volume.get("path", "")),
            )
            for volume in status.get("volumes", [])
        ]
        lines = [table(("VOLUME", "SIZE ", "CONNECTIONS ", "READS ", "WRITES ", "PATH"), rows)]
        for part in status.get("sessions", []):
            line = f"session {part.get('session')} on {part.get('volume')}: {part.get('state')}"
            lines.append(plain(line + _load_text(part)))
        return "\n".join(lines)

    output.result(lambda: status, text)
    return 0


def _load_text(part: dict[str, Any]) -> str:
    """The application's latencies since T0, beside what was usual before."""
    told = []
    for kind in ("read", "update"):
        now, usual = int(part.get(f"{kind}_p99_ns", 0)), int(part.get(f"usual_{kind}_p99_ns", 0))
        if now:
            told.append(f"{kind}s p99 {now / 1e6:.2f} ms" + (f" (usual {usual / 1e6:.2f})" if usual else ""))
    return "".join(f", {text}" for text in told)


def _doctor(options: Any, output: Output) -> int:
    from timezero import doctor

    report = doctor.examine(options.path)
    output.result(lambda: report, lambda: doctor.render(report))
    return 0 if report["ok"] else 1


def _bench(options: Any, output: Output) -> int:
    if options.serve is not None:
        return _bench_serve(options, output)
    if options.source is None or options.target is None:
        raise UsageError("bench: name SOURCE and TARGET, or --serve PATH")
    from timezero.jobs.bench import bench

    result = bench(
        options.source,
        options.target,
        rounds=options.rounds,
        force=options.force,
        progress=lambda line: output.line(f"timezero: {line}"),
    )
    output.result(result.to_json, lambda: _bench_text(result))
    return 0


def _bench_serve(options: Any, output: Output) -> int:
    from timezero.jobs.bench_serve import run

    if options.source is not None:
        raise UsageError("bench: either SOURCE and TARGET or --serve PATH")
    served = run(
        options.serve,
        size=options.size,
        rounds=options.rounds,
        say=lambda line: output.line(f"timezero: {line}"),
    )
    output.result(served.to_json, served.text)
    return 0


def _bench_text(result: BenchResult) -> str:
    rows = [
        (
            row.name,
            f"{row.median('seconds'):.2f}",
            f"{format_size(result.size / row.median('seconds'))}/s",
            f"{row.median('cpu_seconds') * GIB / result.size:.3f}",
            f"{result.ratio(row):.2f}",
        )
        for row in result.rows
    ]
    headings = ("COMMAND", "SECONDS ", "RATE ", "CPU s/GiB ", "COPY IS FASTER BY ")
    best = result.best_dd
    lead = f"timezero copy is {result.ratio(best):.2f} times as fast as the best dd ({best.name.removeprefix('dd ')})"
    return f"{table(headings, rows)}\n{format_size(result.size)}, medians of {len(best.runs)} rounds: {lead}"


_COMMANDS: dict[str, Callable[[Any, Output], int]] = {
    "serve": _serve,
    "backup": _backup,
    "copy": _copy,
    "list": _list,
    "show": _show,
    "verify": _verify,
    "restore": _restore,
    "prune": _prune,
    "attach": _attach,
    "detach": _detach,
    "status": _status,
    "doctor": _doctor,
    "bench": _bench,
}
