"""What the I/O core was built with, and what this kernel allows it."""

def uring_compiled() -> bool:
    """Is the io_uring engine part of this build?"""

def liburing_version() -> str:
    """The liburing that the build found, such as "2.3"; empty when it found none."""

def probe_uring() -> tuple[bool, str]:
    """Can this process use io_uring here and now? When not, the step that failed and its reason.

    Makes a ring and gives it back; costs about a millisecond.
    """
