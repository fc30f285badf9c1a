"""The crash sweep: at every named step of a session a process dies, and what is left has to be plain and safe.

    python -m proof.crash            every step, whoever may die at it; a table of what came of it
    python -m proof.crash gate       those whose names begin so
    python -m proof.crash delta      those of this kind

Steps are crash points (tz/crash.h, timezero/_crash.py), which only a build of their own has (package.py makes it).
All of them are listed in steps.py. After a death everything is started again and looked at from outside: see case.py.
"""
