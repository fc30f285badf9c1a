"""Areas of a buffer space, one step at a time.

The mover takes and gives frames in C. This is the same buffer space for models that check its invariants
(csrc/include/tz/bufspace.h argues them) and for planners that ask how memory would be shared out. One thread at a time.
"""

class AreaSpace:
    """A buffer space of `frames` frames of `frame_size` bytes (a multiple of 4096), really mapped and prefaulted.

    minimum: frames an area must be able to get before it is granted, 1 to `frames`. ValueError, MemoryError.
    Goes with its last reference; areas hold one.
    """

    def __init__(
        self, frame_size: int, frames: int, *, minimum: int = 2, huge: bool = False, lock: bool = False
    ) -> None: ...
    def stats(self) -> dict[str, int | bool]:
        """Fields of tz_bufspace_stats."""

    def request(self, useful: int) -> Area:
        """Join the line for an area of a dataset that can use `useful` frames, 1 at least (ValueError)."""

class Area:
    """One dataset's share. Every method and property but `told` raises ValueError after release."""

    @property
    def granted(self) -> bool:
        """False while it waits in line."""

    @property
    def quota(self) -> int:
        """Frames it may hold now; it may still hold more from before others came. 0 while it waits in line."""

    @property
    def told(self) -> int:
        """How often it was told to look again: granted after waiting, or a frame for it after a take that gave None."""

    def take(self) -> int | None:
        """The number of a free frame, now this area's; None: it waits in line, is at its quota, or no frame is free."""

    def give(self, frame: int) -> None:
        """Give a frame back. ValueError when the area does not hold it."""

    def release(self) -> None:
        """End the area, or its wait, and let the next in line in. ValueError while it holds frames."""
