"""Before a backup: how many before-images its sidefiles will have to hold, and whether they can. Pure arithmetic.

A track needs a before-image when it is written before it is copied. With

    T      seconds that the copy takes: bytes to copy / speed
    D(t)   distinct tracks that are written within t seconds
    x      place of a track in the order of copying, 0 to 1: it is copied at x T

and writes that favour no part of the volume, a track at x has been written by then with probability D(xT) / N, so

    before-images, all together        N  integral of D(xT)/N dx  =  the mean of D over 0 to T
    before-images held at the time t   D(t) (1 - t/T)             (what is copied has been given back)

An application that writes w tracks a second that it did not write before has D(t) = w t: w T / 2 before-images in all,
and at most w T / 4 at once, half-way. D is never more than N.

D is not a straight line: what an application writes again costs nothing, so D grows ever more slowly (it is concave).
The storage subsystem observes the rate u of all updated blocks, and two points of D, over about a minute and over the
newer half of that, in distinct blocks of 4 KiB. Up to the nearer point D is taken as that of writes all over a set of S
blocks, S (1 - exp(-u t / S)), with the S that meets the point; from there on as the straight line through the farther
one, which bends only as the volume fills. Since D is concave, that is not less than D beyond what was observed, and a
set of tracks that is written over and over is told from one that grows. With coarser tracks an update of several blocks
touches fewer tracks, and a block counts for its share of one.

How far off. For writes that favour no part of the volume, be they uniform, to a set, or skewed, a tenth too low at
most, and too high by up to double, or three times for skewed writes and a copy that is much shorter than the
observation, or a wait that is much longer (tests/unit/test_preflight.py copies under such loads, write by write).
Writes to one part of the volume only need at most twice as many images as estimated (all of it is copied last), and at
most four times as many at once; or none (it is copied first). The mover takes such a part first once usage passes the
low mark, which the estimate does not count on. An application that changes its ways is beyond any estimate.

A copy that begins W seconds after T0, because its hours do, copies a track at x at W + xT: D(W + xT) takes the place
of D(xT). While it waits nothing is given back until usage passes the low mark; then the mover makes room by copying
what is written, outside its hours, too. So no more than the low mark counts for what was written by then. The same
holds of every rest on the way, where its hours end before the copy does, and it goes on when they begin again.

Where nothing was observed, IBM's planning figure for Concurrent Copy serves: a tenth of the data.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from timezero.jobs.windows import ALWAYS, Hours
from timezero.units import MIB, format_seconds, format_size

BLOCK = 4096  # bytes: the grain of what is observed (csrc/subsystem/volume_recent.h)
OBSERVED_S = 2.0  # what was observed for less than this says nothing
PLANNING_PART = 0.1
#: Bytes a second where no copy was observed: what a disk of today gives beside an application that it also serves.
ASSUMED_SPEED = 200 * MIB
_STEPS = 512  # of the integral
_REST_S = 1.0  # what is less is rounding


class Writes(NamedTuple):
    """What was written to a volume lately: distinct blocks within `seconds`, and within the newer part of them."""

    seconds: float
    updates: int
    bytes: int
    blocks: int
    newer_seconds: float
    newer_blocks: int

    @classmethod
    def of_status(cls, found: Any) -> Writes | None:
        """From `recent_writes` of the control protocol; None when an older server has none, or for too short a time."""
        keys = ("ns", "updates", "bytes", "blocks", "newer_ns", "newer_blocks")
        if not isinstance(found, Mapping) or not all(type(found.get(key)) is int for key in keys):
            return None
        ns, updates, written, blocks, newer_ns, newer_blocks = (int(found[key]) for key in keys)
        if min(ns, updates, written, blocks, newer_ns, newer_blocks) < 0 or ns < OBSERVED_S * 1e9:
            return None
        return cls(ns / 1e9, updates, written, blocks, newer_ns / 1e9, newer_blocks)

    def distinct(self, t: float, most: float) -> float:
        """Distinct blocks within `t` seconds: D(t). most: blocks there are."""
        short, long = self.newer_seconds, self.seconds
        farther = min(float(self.blocks), most)
        nearer = min(float(self.newer_blocks), farther)
        if not 0 < short < long:
            return _growing(farther / long * t, most)
        if t >= short:
            slope = (farther - nearer) / (long - short)
            # D is known up to `long`; a straight line there, and less and less once there is little left to grow into
            known = nearer + slope * (min(t, long) - short)
            return known if t <= long else known + _growing(slope * (t - long), most - known)
        rate = max(self.bytes / BLOCK, self.updates) / self.seconds
        written = _working_set(rate * short, nearer)
        return nearer * t / short if written is None else written * -math.expm1(-rate * t / written)

    def tracks_a_block(self, track_size: int) -> float:
        """How many tracks an updated block stands for: 1, or less where updates are longer than a block."""
        if not self.updates:
            return 1.0
        blocks = max(self.bytes / BLOCK / self.updates, 1.0)
        return min((1 + (blocks - 1) * BLOCK / track_size) / blocks, 1.0)


def _growing(added: float, room: float) -> float:
    """So many writes all over `room` blocks touch so many of them."""
    return room * -math.expm1(-added / room) if room > 0 else 0.0


@functools.lru_cache(maxsize=64)
def _working_set(updates: float, distinct: float) -> float | None:
    """The size of a set of which `updates` updates, all over it, touch `distinct` blocks; None: too large to tell."""
    if distinct <= 0 or distinct > 0.95 * updates:
        return None
    low, high = distinct, 20 * distinct  # of a set that large, less than 5 % are written twice
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if middle * -math.expm1(-updates / middle) < distinct else (low, middle)
    return high


class Speed(NamedTuple):
    """How fast data will be copied, bytes a second. source: "observed", "assumed", or "asked" (a rate was given)."""

    bytes_s: float
    source: str


class Volume(NamedTuple):
    """What is known of a volume under a session. size: bytes to be copied of it. slots: tracks its sidefile holds;
    low_mark: past which the mover drains it first.
    """

    name: str
    size: int
    track_size: int
    slots: int
    low_mark: int
    writes: Writes | None

    @property
    def rests_with(self) -> int:
        """Tracks that the sidefile holds at most after a rest, in which no more than necessary was copied."""
        return min(self.low_mark, self.slots)


class Expected(NamedTuple):
    """Of one volume, in tracks: images: before-images in all; peak: most at once; room: what the sidefile holds.

    full_after_s: seconds after which it is full, None when it never is. basis: "observed", or "planned", by rule of
    thumb.
    """

    volume: str
    track_size: int
    images: int
    peak: int
    room: int
    full_after_s: float | None
    basis: str

    @property
    def verdict(self) -> str:
        """ "fits" without anything being given back, "tight" when that is counted on, "overflows"."""
        if self.peak > self.room:
            return "overflows"
        return "fits" if self.images <= self.room else "tight"


class Preflight(NamedTuple):
    """The estimate for a whole job. size: bytes to copy; seconds: for how long.

    waits_s: seconds from T0 before it begins; ends_s: until it ends, with all the hours in which it rests.
    """

    size: int
    seconds: float
    speed: Speed
    volumes: tuple[Expected, ...]
    waits_s: float
    ends_s: float

    @property
    def verdict(self) -> str:
        """The worst of all volumes."""
        return max((volume.verdict for volume in self.volumes), key=["fits", "tight", "overflows"].index)

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        volumes = [{**volume._asdict(), "verdict": volume.verdict} for volume in self.volumes]
        speed = {"bytes_s": round(self.speed.bytes_s), "source": self.speed.source}
        return {
            "size": self.size, "seconds": round(self.seconds, 3), "waits_s": round(self.waits_s, 3),
            "ends_s": round(self.ends_s, 3), "speed": speed, "verdict": self.verdict, "volumes": volumes,
            "warning": self.warning(), "late": self.late(),
        }  # fmt: skip

    def line(self) -> str:
        """In one line."""
        images = sum(volume.images for volume in self.volumes)
        needed = sum(volume.images * volume.track_size for volume in self.volumes)
        peak = sum(volume.peak * volume.track_size for volume in self.volumes)
        room = sum(volume.room * volume.track_size for volume in self.volumes)
        begins = f", beginning in {format_seconds(self.waits_s)}" if self.waits_s else ""
        basis = "" if all(volume.basis == "observed" for volume in self.volumes) else " by rule of thumb"
        return (
            f"estimate: {format_size(self.size)} in about {format_seconds(self.seconds)}{begins} "
            f"({format_size(self.speed.bytes_s)}/s {self.speed.source}); {images} before-images{basis}, "
            f"{format_size(needed)}, {format_size(peak)} at once; sidefile {format_size(room)}: {self.verdict}"
        )

    def late(self) -> str | None:
        """In one line when it ends and what to do, where its hours end first; None where they do not."""
        if self.ends_s - self.waits_s - self.seconds < _REST_S:
            return None
        return (
            "the hours of --window will probably end before the copying does: it goes on in the next ones, and ends "
            f"{format_seconds(self.ends_s)} after T0, until when the sidefile has to last: give it longer hours, or "
            "copy faster"
        )

    def warning(self) -> str | None:
        """In one line what is wrong with sidefiles and what to do; None when nothing is."""
        worst = [volume for volume in self.volumes if volume.verdict == "overflows"]
        if not worst:
            return None
        names = ", ".join(volume.volume for volume in worst)
        after = min(volume.full_after_s or 0.0 for volume in worst)
        wanted = max(volume.peak * volume.track_size for volume in worst)
        return (
            f"volume {names}: the sidefile will probably be full after {format_seconds(after)}, and the backup fail "
            f"(the application is not harmed): give it {format_size(wanted * 1.25)} (--sidefile-memory, "
            "--sidefile-file), copy faster, or at a quieter time"
        )


def speed_of(observed: Sequence[float], rate: int) -> Speed:
    """From what was observed of the volumes (bytes a second) and the rate asked for (0: none)."""
    known = [speed for speed in observed if speed > 0]
    found = Speed(min(known), "observed") if known else Speed(float(ASSUMED_SPEED), "assumed")
    return Speed(float(rate), "asked") if rate and rate < found.bytes_s else found


def expect(volume: Volume, seconds: float, hours: Hours = ALWAYS) -> Expected:
    """What a copy of that many seconds, in such hours from T0 on, will need of the sidefile of one volume."""
    tracks = -(-volume.size // volume.track_size)
    if volume.writes is None:
        images = round(tracks * PLANNING_PART)
        full = hours.passed(seconds) if images > volume.slots else None
        return Expected(volume.name, volume.track_size, images, images, volume.slots, full, "planned")
    share, blocks = volume.writes.tracks_a_block(volume.track_size), volume.size / BLOCK
    total = peak = given_back = awake = 0.0
    full = None
    for step in range(_STEPS + 1):  # the first is the beginning
        part = (step - 0.5) / _STEPS if step else 0.0
        now = hours.passed(part * seconds)
        distinct = min(volume.writes.distinct(now, blocks) * share, float(tracks))
        if now - part * seconds - awake >= _REST_S:  # it has rested
            awake = now - part * seconds
            given_back = max(distinct - volume.rests_with / (1 - part), given_back)
        total += distinct / _STEPS if step else 0.0
        held = (distinct - given_back) * (1 - part)
        peak = max(peak, held)
        if held > volume.slots and full is None:
            full = now
    return Expected(volume.name, volume.track_size, round(total), round(peak), volume.slots, full, "observed")


def foresee(volumes: Sequence[Volume], total: int, speed: Speed, hours: Hours = ALWAYS) -> Preflight:
    """The estimate for all volumes of a job that copies `total` bytes, these among them, at the same time.

    hours: from T0 on, in which it may.
    """
    seconds = total / speed.bytes_s
    expected = tuple(expect(volume, seconds, hours) for volume in volumes)
    return Preflight(total, seconds, speed, expected, hours.waits_s, hours.passed(seconds))
