"""The session coordinator: one T0 for a group of served volumes.

with session.prepare(None, ["db", "log"]) as group:
    group.suspend(deadline_us=100_000)     # T0; the application runs on
    ...                                    # copy from group.parts
    group.end()                            # commit only if this returns
"""

from timezero.session.federation import Federation, prepare_all
from timezero.session.group import Group, Part, default_control, prepare, status

__all__ = ["Federation", "Group", "Part", "default_control", "prepare", "prepare_all", "status"]
