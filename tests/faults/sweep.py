"""Making each call fail that a job makes on something, one after the other (proof/shim.py)."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from proof.shim import Shim
from proof.words import after_the_estimate
from tests.command import Outcome

#: The library that makes calls fail would not see what goes to io_uring.
THREADS = {"TIMEZERO_IO": "threads"}
#: A size that is refused beforehand is tried by writing.
MAY_FAIL = {"size"}
#: Names of what is not finished.
TEMPORARY = ".timezero-*"


def sweep(
    shim: Shim,
    target: Path,
    calls: int,
    errors: Sequence[int],
    run: Callable[[int], Outcome],
    *,
    well: int = 0,
    failed: Collection[int] = (1,),
) -> set[str]:
    """run(n), with the n-th of `calls` on what begins with `target` failing, for every n there is; n = 0: none does.

    A run that fails says so in one line, which has the error. errors: taken in turn. well, failed: exit codes.
    The kinds of the calls with which it went well all the same.
    """
    shim.rule(0, calls, target, nth=1 << 40)
    outcome = run(0)
    assert outcome.code == well, f"it does not work without a fault either: {outcome.err}"
    count = shim.seen(0)
    assert count >= 5, "the library sees no calls"
    kinds = set()
    for n in range(1, count + 1):
        error = errors[n % len(errors)]
        shim.rule(0, calls, target, error=error, nth=n)
        outcome = run(n)
        if shim.hits(0) == 0:  # something else had failed before it
            assert outcome.code in failed, f"call {n} of {count} did not come"
            continue
        if outcome.code == well:
            kinds.add(shim.last(0))
            continue
        what = f"call {n} of {count}, {shim.last(0)}: {outcome.code} {outcome.err}"
        err = after_the_estimate(outcome.err)
        assert outcome.code in failed, what
        lines = err.splitlines()
        assert lines and all(line.startswith("timezero: ") for line in lines), what
        assert len(lines) == 1 or outcome.code == 3, what  # one for each file that failed
        assert os.strerror(error) in err, what
    shim.clear()
    return kinds
