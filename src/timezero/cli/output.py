"""What the user sees: one document or a table on standard output, progress and errors on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from timezero.streams import columns_of, print_line, tell
from timezero.units import format_seconds, format_size

if TYPE_CHECKING:
    from timezero.jobs.preflight import Preflight
    from timezero.jobs.progress import Progress

#: Seconds between two updates: of a bar, of lines without a terminal.
_BAR_S = 0.2
_LINE_S = 10.0
_JSON_S = 1.0


def plain(text: str) -> str:
    """`text` on one line and harmless to a terminal: what cannot be printed is escaped."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


class Output:
    """Where a command writes. json: a document instead of text. to_stderr: standard output belongs to an image."""

    def __init__(self, *, json: bool) -> None:
        self.json = json
        self.to_stderr = False
        #: Of a command that moves data: the buffer space it was given, in bytes.
        self.buffer_bytes: int | None = None
        self._bar = False

    def result(self, document: Callable[[], Any], text: Callable[[], str]) -> None:
        """Print the result, as a document or as text."""
        if self.json and self.buffer_bytes is not None:
            from timezero import memory

            moved, used = document(), {"buffer_bytes": self.buffer_bytes, "peak_bytes": memory.peak()}
            self._show(lambda: {**moved, "memory": used}, text)
        else:
            self._show(document, text)

    def _show(self, document: Callable[[], Any], text: Callable[[], str]) -> None:
        self.end_bar()
        rendered = _document(document(), indent=None if self.to_stderr else 1) if self.json else text()
        if self.to_stderr and rendered:
            tell(rendered + "\n")
        elif rendered:
            print_line(rendered)

    def failed(self, message: str, exit_code: int, result: Any = None) -> None:
        """One line on stderr; with json also a document, with what was done all the same."""
        if self.json:
            document: dict[str, Any] = {"error": message, "exit_code": exit_code}
            if result is not None:
                document["result"] = result.to_json()
            self._show(lambda: document, str)
        self.line(f"timezero: {message}")

    def line(self, text: str) -> None:
        """A line on stderr."""
        self.end_bar()
        tell(plain(text) + "\n")

    def end_bar(self) -> None:
        """Leave the progress bar's line."""
        if self._bar:
            self._bar = False
            tell("\r\x1b[K")

    def foresee(self, estimate: Preflight) -> None:
        """What the sidefiles will have to hold: a line, or one of JSON; and warnings if they cannot, or not in time."""
        if self.json:
            tell(_document({"estimate": estimate.to_json()}) + "\n")
            return
        self.line(f"timezero: {estimate.line()}")
        for warning in filter(None, (estimate.late(), estimate.warning())):
            self.line(f"timezero: warning: {warning}")

    def progress(self) -> Callable[[Progress], None]:
        """A callback that shows progress: a bar on a terminal, lines of JSON or text at intervals elsewhere."""
        terminal = sys.stderr is not None and sys.stderr.isatty() and not self.json
        interval = _JSON_S if self.json else _BAR_S if terminal else _LINE_S
        shown = time.monotonic() - (interval if terminal else 0.0)
        phase = ""

        def show(progress: Progress) -> None:
            nonlocal shown, phase
            now = time.monotonic()
            # A change of phase is news, but not to somebody who has not been told of any phase.
            if now - shown < interval and progress.phase == (phase or progress.phase):
                return
            shown, phase = now, progress.phase
            if self.json:
                tell(_document({"progress": progress._asdict()}) + "\n")
            elif terminal:
                self._bar = True
                tell("\r" + render_bar(progress, columns_of(2)) + "\x1b[K")
            else:
                tell(render_line(progress) + "\n")

        return show


def _document(value: Any, indent: int | None = None) -> str:
    import json

    return json.dumps(value, indent=indent)


def render_line(progress: Progress) -> str:
    """Progress as a line of text."""
    percent = 100 * progress.done // progress.total if progress.total else 100
    parts = [f"{percent:3} %", f"{format_size(progress.done)} of {format_size(progress.total)}"]
    if progress.phase == "finishing":
        parts.append("making it durable")
    elif progress.phase == "waiting":
        parts.append(f"waiting for its hours, from {progress.waits_until}")
    else:
        parts.append(f"{format_size(progress.rate)}/s")
        if progress.remaining_s is not None:
            parts.append(f"{format_seconds(progress.remaining_s)} left")
        if progress.yields:
            parts.append("giving way")
    if progress.intercepted is not None:
        parts.append(f"sidefile {format_size(progress.sidefile_bytes or 0)}, {progress.intercepted} intercepted")
    return ", ".join(parts)


def render_bar(progress: Progress, columns: int) -> str:
    """Progress as a bar that fits the terminal."""
    text = render_line(progress)
    room = min(30, columns - len(text) - 4)
    if room < 5:
        return text[: columns - 1]
    full = room * progress.done // progress.total if progress.total else room
    return f"[{'#' * full}{'.' * (room - full)}] {text}"


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as they need; numbers (headings that end in a blank) to the right."""
    cells = [[heading.strip() for heading in headings], *([plain(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headings))]
    right = [heading.endswith(" ") for heading in headings]
    lines = []
    for row in cells:
        fitted = (c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True))
        lines.append("  ".join(fitted).rstrip())
    return "\n".join(lines)
