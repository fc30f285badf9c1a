"""The estimate before a backup, against copies that are simulated write by write."""

import json
import random

import pytest

from timezero.jobs import preflight
from timezero.jobs.preflight import ASSUMED_SPEED, Speed, Volume, Writes, expect, foresee, speed_of
from timezero.jobs.windows import ALWAYS, DAY_S, Hours
from timezero.units import MIB

BLOCK = 4096
TRACKS = 40_000
ROOM = 10_000


def uniform(rng):
    return rng.randrange(TRACKS)


def working_set(rng):
    """Over and over a twentieth of the tracks, which lie all over the volume."""
    return rng.randrange(TRACKS // 20) * 20


def hot_and_all(rng):
    """Nine of ten writes to a hundredth, the rest to all."""
    return rng.randrange(TRACKS // 100) * 100 if rng.random() < 0.9 else rng.randrange(TRACKS)


def skewed(rng):
    """Few places often, many seldom (Pareto), scattered over the volume."""
    return int(rng.paretovariate(0.5)) * 7919 % TRACKS


def at_the_end(rng):
    return TRACKS - 1 - rng.randrange(TRACKS // 10)


def at_the_beginning(rng):
    return rng.randrange(TRACKS // 10)


def observe(load, rate, seconds, newer):
    rng = random.Random(7)
    everything, recent = set(), set()
    for number in range(int(rate * seconds)):
        block = load(rng)
        everything.add(block)
        if number >= rate * (seconds - newer):
            recent.add(block)
    updates = int(rate * seconds)
    return Writes(seconds, updates, updates * BLOCK, len(everything), newer, len(recent))


def copied(load, rate, seconds, hours=ALWAYS, low=TRACKS):
    """(before-images, most at once) of a copy in order of that many seconds, one track after the other.

    low: where it rests, what is written past so many before-images is copied.
    """
    rng = random.Random(8)
    preserved, drained, credit, images, most, then = set(), set(), 0.0, 0, 0, 0.0
    for track in range(TRACKS):
        now = hours.passed(track * seconds / TRACKS)
        rests = now - then > 2 * seconds / TRACKS
        credit += rate * (now - then)
        then = now
        while credit >= 1:
            credit -= 1
            written = load(rng)
            if written >= track and written not in preserved and written not in drained:
                preserved.add(written)
                images += 1
            if rests and len(preserved) > low:
                drained.add(preserved.pop())
        most = max(most, len(preserved))
        preserved.discard(track)
    return images, most


def volume(name, size, track_size, slots, writes, low=None):
    """low: its low mark; a quarter unless named, as a server has it."""
    return Volume(name, size, track_size, slots, slots // 4 if low is None else low, writes)


def later(waits):
    return Hours(((waits, DAY_S - waits),))


def estimated(load, rate, seconds, observed=(60.0, 28.0), hours=ALWAYS, room=ROOM, low=None):
    writes = observe(load, rate, *observed)
    return expect(volume("db", TRACKS * BLOCK, BLOCK, room, writes, low), seconds, hours)


@pytest.mark.parametrize("load", [uniform, working_set, hot_and_all, skewed])
@pytest.mark.parametrize("seconds", [4, 20, 100, 400])
@pytest.mark.parametrize("rate", [20, 300])
def test_hardly_fewer_than_a_copy_needs_and_not_many_more(load, seconds, rate):
    factor = 2 if load is not skewed or seconds >= 60 else 3.5
    found = estimated(load, rate, seconds)
    for needed, told in zip(copied(load, rate, seconds), (found.images, found.peak), strict=True):
        assert 0.9 * needed - 10 <= told <= factor * needed


@pytest.mark.parametrize("seconds", [20, 100, 400])
def test_uniform_writes_are_told_within_a_tenth(seconds):
    images, peak = copied(uniform, 300, seconds)
    found = estimated(uniform, 300, seconds)
    assert found.images == pytest.approx(images, rel=0.1)
    assert found.peak == pytest.approx(peak, rel=0.1)


@pytest.mark.parametrize("load", [uniform, working_set, hot_and_all, skewed])
@pytest.mark.parametrize("waits", [10, 100, 400])
@pytest.mark.parametrize("seconds", [20, 100])
def test_what_is_written_while_its_hours_have_not_begun_counts(load, waits, seconds):
    """With room for all of it: nothing has to be given back early. What lies far beyond the observation may be less."""
    found = estimated(load, 100, seconds, hours=later(waits), room=4 * TRACKS)
    factor = 2 if load is not skewed and waits <= 100 else 3.5
    for needed, told in zip(copied(load, 100, seconds, later(waits)), (found.images, found.peak), strict=True):
        assert 0.9 * needed - 10 <= told <= factor * needed
    assert found.verdict == "fits"


def test_a_sidefile_that_fills_while_it_waits_is_made_room_in():
    """No more than the low mark holds of what came before; the rest of the formula is that of a copy at once."""
    found = estimated(uniform, 100, 100, hours=later(3600))
    assert found.images > ROOM
    assert found.peak < ROOM
    assert (found.verdict, found.full_after_s) == ("tight", None)
    # 100 a second, 625 of them there when the copy begins: 2500 when (625 + 100 t) (1 - t / 200) is that
    writes = Writes(60.0, 6000, 6000 * BLOCK, 6000, 30.0, 3000)
    waiting = expect(volume("db", 10**9 * BLOCK, BLOCK, 2500, writes), 200.0, later(20.0))
    assert waiting.verdict == "overflows"
    assert waiting.full_after_s == pytest.approx(20 + 21.8, abs=0.5)


@pytest.mark.parametrize("load", [uniform, working_set, hot_and_all, skewed])
@pytest.mark.parametrize("rest", [30, 100])
@pytest.mark.parametrize("low", [TRACKS, 500])
def test_what_is_written_while_it_rests_counts(load, rest, low):
    """Its hours end half-way, and once more: the sidefile fills meanwhile, as far as it is not made room in."""
    hours = Hours(((0.0, 50.0), (50.0 + rest, 25.0), (75.0 + 2 * rest, DAY_S - 75.0 - 2 * rest)))
    found = estimated(load, 100, 100, hours=hours, room=4 * TRACKS, low=low)
    images, peak = copied(load, 100, 100, hours, low)
    assert found.images > estimated(load, 100, 100, room=4 * TRACKS).images
    assert 0.9 * images - 10 <= found.images
    assert 0.9 * peak - 10 <= found.peak <= 2.5 * peak


def test_a_low_mark_is_the_servers():
    """Where a copy begins late it holds what that says, of the slots there are."""
    writes = Writes(60.0, 6000, 6000 * BLOCK, 6000, 30.0, 3000)
    for low, peak in ((100, 100), (400, 400), (10**6, 1000), (0, 0)):
        found = expect(volume("db", 10**9 * BLOCK, BLOCK, 1000, writes, low), 0.1, later(3600.0))
        assert found.peak == pytest.approx(peak, abs=10)


def test_hours_that_end_too_soon_are_told():
    writes = Writes(60.0, 60, 60 * BLOCK, 60, 30.0, 30)
    volumes = [volume("db", 6000 * MIB, BLOCK, 10**6, writes)]
    for stretches, late in (
        (((0.0, DAY_S),), False),
        (((0.0, 60.0),), False),
        (((0.0, 59.0),), True),
        (((7200.0, 61.0),), False),
        (((7200.0, 59.0),), True),
        (((0.0, 40.0), (DAY_S - 40.0, 40.0)), True),  # the window before this day's goes on in the morning
        (((0.0, 10.0), (10.0, 50.0)), False),
    ):
        found = foresee(volumes, 6000 * MIB, Speed(100.0 * MIB, "observed"), Hours(stretches))
        assert (found.late() is not None) == late, stretches
        assert found.to_json()["late"] == found.late()
    found = foresee(volumes, 6000 * MIB, Speed(100.0 * MIB, "observed"), Hours(((3600.0, 30.0), (7200.0, 20.0))))
    text = found.late()
    assert text is not None and "\n" not in text
    assert "ends 25:00:10 after T0" in text and "--window" in text
    assert found.to_json()["ends_s"] == DAY_S + 3610
    # What its sidefile has to hold is of a day, not of a minute.
    assert found.volumes[0].images > 10 * foresee(volumes, 6000 * MIB, found.speed).volumes[0].images


def test_writes_to_one_part_are_off_by_no_more_than_is_said():
    for seconds in (20, 100):
        images, peak = copied(at_the_end, 20, seconds)
        found = estimated(at_the_end, 20, seconds)
        assert found.images < images <= 2.2 * found.images
        assert found.peak < peak <= 4.4 * found.peak
        images, _ = copied(at_the_beginning, 20, seconds)
        assert images < found.images


def test_the_formula_of_writes_that_are_all_new():
    """w T / 2 in all, w T / 4 at once, half-way; never more than there are tracks."""
    writes = Writes(60.0, 6000, 6000 * BLOCK, 6000, 30.0, 3000)
    found = expect(volume("db", 10**9 * BLOCK, BLOCK, 10**9, writes), 200.0)
    assert found.images == pytest.approx(100 * 200 / 2, rel=0.01)
    assert found.peak == pytest.approx(100 * 200 / 4, rel=0.01)
    assert found.full_after_s is None
    bounded = expect(volume("db", 500 * BLOCK, BLOCK, 10, writes), 1e6)
    assert bounded.images <= 500
    assert bounded.peak <= 500


def test_what_is_written_again_costs_nothing():
    hot = estimated(working_set, 300, 400)  # 120000 writes
    assert hot.images <= TRACKS // 20 * 1.1


def test_when_it_is_full():
    """100 a second, half of them held for good half-way: 2500 slots are full when t (1 - t / 200) is 25."""
    writes = Writes(60.0, 6000, 6000 * BLOCK, 6000, 30.0, 3000)
    found = expect(volume("db", 10**9 * BLOCK, BLOCK, 2500, writes), 200.0)
    assert found.verdict == "overflows"
    assert found.full_after_s == pytest.approx(29.3, abs=0.5)


@pytest.mark.parametrize(
    ("slots", "verdict"), [(10_001, "fits"), (9_900, "tight"), (5_100, "tight"), (4_900, "overflows")]
)
def test_verdicts(slots, verdict):
    writes = Writes(60.0, 6000, 6000 * BLOCK, 6000, 30.0, 3000)
    assert expect(volume("db", 10**9 * BLOCK, BLOCK, slots, writes), 200.0).verdict == verdict


def test_coarse_tracks_are_shared_by_the_blocks_of_an_update():
    small = Writes(60.0, 6000, 6000 * BLOCK, 6000, 30.0, 3000)
    large = Writes(60.0, 375, 6000 * BLOCK, 6000, 30.0, 3000)  # 16 blocks each
    assert small.tracks_a_block(1 << 20) == 1
    assert large.tracks_a_block(BLOCK) == 1
    assert large.tracks_a_block(65536) == pytest.approx((1 + 15 / 16) / 16)


def test_an_idle_volume_needs_nothing():
    found = expect(volume("db", MIB, BLOCK, 10, Writes(60.0, 0, 0, 0, 30.0, 0)), 100.0)
    assert (found.images, found.peak, found.verdict, found.basis) == (0, 0, "fits", "observed")


def test_without_an_observation_a_tenth_is_planned():
    found = expect(volume("db", 1000 * BLOCK, BLOCK, 99, None), 10.0)
    assert (found.images, found.verdict, found.basis) == (100, "overflows", "planned")
    assert expect(volume("db", 1000 * BLOCK, BLOCK, 100, None), 10.0).verdict == "fits"


GOOD = {"ns": 60 * 10**9, "updates": 1, "bytes": 2, "blocks": 3, "newer_ns": 30 * 10**9, "newer_blocks": 4}


@pytest.mark.parametrize(
    "found",
    [None, {}, [], "x", {**GOOD, "ns": "60"}, {**GOOD, "ns": 10**9}, {**GOOD, "blocks": -1}, {**GOOD, "ns": True}],
)
def test_what_a_server_says_is_checked(found):
    assert Writes.of_status(found) is None


def test_what_a_server_says():
    assert Writes.of_status(GOOD) == Writes(60.0, 1, 2, 3, 30.0, 4)


@pytest.mark.parametrize(
    "writes",
    [
        Writes(60.0, 1, 1, 10, 30.0, 0),
        Writes(60.0, 0, 0, 10, 30.0, 20),  # contradicts itself: a sketch is not exact
        Writes(5.0, 100, 100, 50, 5.0, 50),
        Writes(60.0, 10**12, 10**15, 10**9, 1e-9, 1),
    ],
)
@pytest.mark.parametrize("seconds", [0.0, 1e-6, 1.0, 1e7])
def test_any_observation_has_an_estimate(writes, seconds):
    found = expect(volume("db", 10**6 * BLOCK, BLOCK, 5, writes), seconds)
    assert 0 <= found.peak <= 10**6
    assert 0 <= found.images <= 10**6


def test_speeds():
    assert speed_of([], 0) == Speed(ASSUMED_SPEED, "assumed")
    assert speed_of([3e8, 2e8], 0) == Speed(2e8, "observed")
    assert speed_of([3e8], 10**6) == Speed(1e6, "asked")
    assert speed_of([3e8], 10**9) == Speed(3e8, "observed")


def test_the_words():
    writes = Writes(60.0, 60_000, 60_000 * BLOCK, 60_000, 30.0, 30_000)
    volumes = [volume("db", 8 << 30, BLOCK, 1000, writes), volume("log", 1 << 30, BLOCK, 10**6, None)]
    found = foresee(volumes, 9 << 30, Speed(100 * MIB, "assumed"))
    assert found.verdict == "overflows"
    assert found.line() == (
        "estimate: 9.00 GiB in about 1:32 (100 MiB/s assumed); 72265 before-images by rule of thumb, "
        "282 MiB, 192 MiB at once; sidefile 3.82 GiB: overflows"
    )
    warning = found.warning()
    assert warning is not None
    assert warning.startswith("volume db: the sidefile will probably be full after 1 s")
    assert "--sidefile-memory" in warning
    assert "\n" not in found.line() + warning
    document = json.loads(json.dumps(found.to_json()))
    assert document["verdict"] == "overflows"
    assert [volume["verdict"] for volume in document["volumes"]] == ["overflows", "fits"]
    assert document["speed"] == {"bytes_s": 100 * MIB, "source": "assumed"}
    delayed = foresee(volumes, 9 << 30, Speed(100 * MIB, "assumed"), later(7200.0))
    assert "9.00 GiB in about 1:32, beginning in 2:00:00 (100 MiB/s assumed); " in delayed.line()
    assert (document["waits_s"], delayed.to_json()["waits_s"]) == (0.0, 7200.0)
    assert foresee(volumes[1:], 1 << 30, Speed(100 * MIB, "assumed")).warning() is None
    assert preflight.BLOCK == 4096
