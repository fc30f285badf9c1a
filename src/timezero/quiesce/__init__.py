"""Asking applications to be still for the moment of T0: hooks around a suspension.

A hook has a pre step and a post step. Pre steps run in the order given, before the gates close; post steps run in
reverse, after the gates are open again, for every hook whose pre step was begun, whatever happened meanwhile. Each
step has a deadline of its own.

    fsfreeze:PATH              freeze the file system that is mounted on PATH
    exec:pre=CMD,post=CMD      run commands, by /bin/sh
    qga:SOCKET                 have a QEMU guest agent freeze the file systems of its machine

Errors: UsageError (a hook that makes no sense, found before anything is suspended), DeadlineError (a pre step took too
long), TimezeroError. Threads: one; held signals need the main one.
"""

from timezero.quiesce.hooks import Context, Hook
from timezero.quiesce.parsing import parse, parse_all
from timezero.quiesce.quiesced import DEADLINE_S, Quiesced

__all__ = ["DEADLINE_S", "Context", "Hook", "Quiesced", "parse", "parse_all"]
