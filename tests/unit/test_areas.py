"""Areas: bad input, and that nothing outlives its users."""

from __future__ import annotations

import gc

import pytest

from timezero._native.areas import AreaSpace


def test_bad_sizes() -> None:
    for size, frames, minimum in ((0, 4, 1), (4095, 4, 1), (4096, 0, 1), (4096, 4, 0), (4096, 4, 5)):
        with pytest.raises(ValueError, match="multiple of 4096"):
            AreaSpace(size, frames, minimum=minimum)
    with pytest.raises(MemoryError):
        AreaSpace(1 << 46, 64)
    with pytest.raises(OverflowError):
        AreaSpace(4096, -1)
    with pytest.raises(ValueError, match="1 frame at least"):
        AreaSpace(4096, 4).request(0)


def test_misuse_is_refused() -> None:
    area = AreaSpace(4096, 4).request(4)
    frame = area.take()
    assert frame is not None
    with pytest.raises(ValueError, match="does not hold frame 3"):
        area.give(3)
    with pytest.raises(ValueError, match="still holds 1 frames"):
        area.release()
    area.give(frame)
    with pytest.raises(ValueError, match="does not hold"):
        area.give(frame)
    area.release()
    for use in (area.take, area.release, lambda: area.give(0), lambda: area.quota, lambda: area.granted):
        with pytest.raises(ValueError, match="was released"):
            use()


def test_a_forgotten_area_gives_everything_back() -> None:
    space = AreaSpace(4096, 4, minimum=4)
    area, waiting = space.request(9), space.request(9)
    assert [area.take() for _ in range(5)] == [0, 1, 2, 3, None]
    assert not waiting.granted
    del area
    gc.collect()
    assert waiting.granted and waiting.told == 1
    assert waiting.take() == 3, "the frame given back last is the warmest"
    assert space.stats()["frames_taken"] == 1


def test_huge_and_locked_are_what_the_kernel_says() -> None:
    stats = AreaSpace(1 << 20, 4, huge=True, lock=True).stats()
    assert {type(stats[name]) for name in ("huge", "locked")} == {bool}
    plain = AreaSpace(4096, 4).stats()
    assert not plain["huge"] and not plain["locked"]
