"""A served volume as a block device of this machine.

By the kernel's own NBD client (nbd-client) where there is one, else by nbdfuse, which makes a file of an NBD export,
and a loop device, which makes a disk of a file.

What is attached is found out from the kernel each time: from processes, mounts, loop devices. So an attach that was
killed at any moment is finished or cleaned up by the next attach or detach, and nothing written down can be stale.

Errors: UsageError, LockedError (a device that is in use, another attach at the same time), TimezeroError.
"""

from timezero.attach.attaching import Attached, Detached, attach, detach

__all__ = ["Attached", "Detached", "attach", "detach"]
