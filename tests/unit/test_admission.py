"""Admission: who may begin, who has to give way, and what the machine has left."""

import mmap
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import pytest

from timezero._linux import machine
from timezero.config import Limits, ServeConfig, SidefileConfig, VolumeConfig
from timezero.control.server import RequestError
from timezero.subsystem.admission import DESCRIPTORS_A_VOLUME, Machine, admit, look
from timezero.subsystem.sessions import Registry
from timezero.subsystem.upkeep import Upkeep, upkeep
from timezero.subsystem.volumes import Volumes

MIB = 1 << 20
MUCH = Machine(memory=lambda: 1 << 50, held=lambda: 0, disk=lambda path: 1 << 50, descriptors=lambda: 1 << 20)
NONE = Upkeep(0, 0)


@dataclass(eq=False)
class Claim:
    name: str
    memory: int = MIB
    file: int = 0
    volumes: tuple[str, ...] = ("db",)
    coming: int = 0
    there: int | None = None  # of file; None: all of it
    may_give_way: bool = True
    leaving: bool = False

    def allocated(self):
        return self.file if self.there is None else self.there


def names(new, others, limits, there_is=MUCH, kept=NONE):
    return [claim.name for claim in admit(new, others, limits, kept, look(new, others, "/spill", there_is), there_is)]


def refused(new, others, limits, there_is=MUCH, kept=NONE):
    with pytest.raises(RequestError) as error:
        names(new, others, limits, there_is, kept)
    assert error.value.code == "limit"
    assert "\n" not in str(error.value)
    return str(error.value)


REFUSE = Limits(memory=10 * MIB, file=10 * MIB)
REFUSE_NOTHING = Limits()
PUNCTURE = Limits(memory=10 * MIB, file=10 * MIB, when_full="puncture-largest")


@pytest.mark.parametrize("limits", [REFUSE, PUNCTURE])
def test_what_fits_begins_and_costs_nobody_anything(limits):
    assert names(Claim("new", memory=10 * MIB, file=10 * MIB), [], limits) == []
    others = [Claim("a", memory=4 * MIB, file=9 * MIB), Claim("b", memory=5 * MIB, volumes=("log",))]
    assert names(Claim("new", file=MIB), others, limits) == []


def test_by_default_the_newest_is_refused():
    others = [Claim("a", memory=9 * MIB, file=9 * MIB)]
    assert "limits.memory" in refused(Claim("new", memory=2 * MIB), others, REFUSE)
    assert "limits.file" in refused(Claim("new", file=2 * MIB), others, REFUSE)


def test_the_largest_gives_way_and_no_more_than_have_to():
    others = [Claim("small", memory=2 * MIB), Claim("large", memory=5 * MIB), Claim("middle", memory=3 * MIB)]
    assert names(Claim("new", memory=MIB), others, PUNCTURE) == ["large"]
    assert names(Claim("new", memory=2 * MIB), others, PUNCTURE) == ["large"]
    others[1].may_give_way = False
    assert names(Claim("new", memory=2 * MIB), others, PUNCTURE) == ["middle"]
    two = [Claim(name, memory=5 * MIB) for name in ("older", "newer")]
    assert names(Claim("new", memory=5 * MIB), two, PUNCTURE) == ["newer"]  # of equals: it has done the least
    several = [Claim("a", memory=3 * MIB), Claim("b", memory=4 * MIB), Claim("c", memory=3 * MIB)]
    assert names(Claim("new", memory=3 * MIB), several, PUNCTURE) == ["b"]
    by_file = [Claim("a", memory=2 * MIB), Claim("b", file=8 * MIB), Claim("c", file=2 * MIB)]
    assert names(Claim("new", file=MIB), by_file, PUNCTURE) == ["b"]


def test_one_that_has_nothing_of_what_is_wanting_stays():
    """It is the largest, but of memory; what there is not enough of is file tier."""
    others = [Claim("memory", memory=6 * MIB), Claim("file", memory=MIB, file=4 * MIB), Claim("rest", file=6 * MIB)]
    others[2].may_give_way = False
    assert names(Claim("new", file=4 * MIB), others, PUNCTURE) == ["file"]


def test_nobody_smaller_gives_way_and_nobody_in_vain():
    others = [Claim("a", memory=3 * MIB), Claim("b", memory=4 * MIB)]
    assert "limits.memory" in refused(Claim("new", memory=5 * MIB), others, PUNCTURE)
    assert "limits.memory" in refused(Claim("new", memory=11 * MIB), [Claim("a", memory=2 * MIB)], PUNCTURE)
    # b could go, and would not be enough
    others = [Claim("a", memory=3 * MIB), Claim("b", memory=4 * MIB), Claim("c", memory=3 * MIB, may_give_way=False)]
    assert "limits.memory" in refused(Claim("new", memory=int(4 * MIB) + 1), others, PUNCTURE)


def test_sessions_on_one_volume_are_no_reason_to_give_way():
    limits = Limits(sessions=2, when_full="puncture-largest")
    others = [Claim("a"), Claim("b", volumes=("log", "db"))]
    assert "volume db has 2 sessions" in refused(Claim("new"), others, limits)
    assert names(Claim("new", volumes=("log",)), others, limits) == []


def test_memory_that_the_machine_has_not_got():
    there_is = replace(MUCH, memory=lambda: 100 * MIB)
    limits = Limits(when_full="puncture-largest")
    assert names(Claim("new", memory=80 * MIB), [], limits, there_is) == []
    assert "this machine can spare" in refused(Claim("new", memory=100 * MIB), [], limits, there_is)
    # what others were promised is not there any more; what they have is not there in the first place
    coming = [Claim("a", memory=50 * MIB, coming=50 * MIB)]
    assert "this machine can spare" in refused(Claim("new", memory=40 * MIB), coming, limits, there_is)
    assert names(Claim("new", memory=40 * MIB), [Claim("a", memory=50 * MIB)], limits, there_is) == []
    # nobody gives way: the memory would not be back in time
    assert "this machine" in refused(Claim("new", memory=90 * MIB), [Claim("a", memory=90 * MIB)], limits, there_is)


def machine_of(left, held):
    """So much memory is left, and so much has this server."""
    return replace(MUCH, memory=lambda: left * MIB, held=lambda: held * MIB)


def spare(there_is, kept, others=()):
    """MiB that the largest session may have. All that is more is refused."""
    sizes = [size for size in range(1000) if _fits(Claim("new", memory=size * MIB), others, there_is, kept)]
    assert sizes == list(range(len(sizes)))
    return len(sizes) - 1


def _fits(new, others, there_is, kept):
    try:
        admit(new, others, REFUSE_NOTHING, kept, None, there_is)
    except RequestError as error:
        assert "this machine can spare" in str(error)
        return False
    return True


def test_the_server_keeps_what_it_and_its_clients_may_still_take():
    """16 MiB of 300 are anybody's. What the server has already is not kept a second time."""
    kept = Upkeep(base=64 * MIB, clients=100 * MIB)
    assert spare(machine_of(300, 0), kept) == 300 - 16 - 64 - 100
    assert spare(machine_of(260, 40), kept) == 120  # the same machine, once the server is running,
    assert spare(machine_of(136, 164), kept) == 120  # and once its clients are at their busiest
    assert spare(machine_of(100, 200), kept) == 84  # beyond its bounds it cannot spare what it has


def test_clients_get_no_more_than_half_of_a_small_machine():
    kept = upkeep(volumes=1, reactors=1, connections=128)
    assert kept.clients > 8 << 30
    assert spare(machine_of(256, 0), kept) == (256 - 16 - 65) // 2
    assert spare(machine_of(60, 20), kept) == -1  # not one without anything
    few = upkeep(volumes=2, reactors=1, connections=1)
    assert few == (66 * MIB, (64 + 2 * 64 + 1 + 128) * MIB)


def test_several_sessions_together_leave_clients_their_half():
    kept = Upkeep(base=64 * MIB, clients=1 << 40)
    others = [Claim("a", memory=50 * MIB), Claim("b", memory=30 * MIB, coming=30 * MIB)]
    alone = spare(machine_of(280, 40), kept)
    assert alone == (280 + 40 - 16 - 64) // 2
    assert spare(machine_of(230, 90), kept, others) == alone - 80


def test_room_in_the_sidefile_directory():
    asked = []
    there_is = Machine(
        memory=MUCH.memory, disk=lambda path: asked.append(path) or 100 * MIB, descriptors=MUCH.descriptors
    )
    limits = Limits(when_full="puncture-largest")
    assert names(Claim("new", file=100 * MIB), [], limits, there_is) == []
    assert asked == ["/spill"]
    assert "/spill has" in refused(Claim("new", file=101 * MIB), [], limits, there_is)
    coming = [Claim("a", file=60 * MIB, there=0)]
    assert "/spill has" in refused(Claim("new", file=50 * MIB), coming, limits, there_is)
    assert names(Claim("new", file=50 * MIB), [Claim("a", file=60 * MIB)], limits, there_is) == []


def test_who_was_let_in_since_the_disk_was_looked_at_counts_in_full():
    there_is = Machine(memory=MUCH.memory, disk=lambda path: 100 * MIB, descriptors=MUCH.descriptors)
    new, other = Claim("new", file=50 * MIB), Claim("other", file=60 * MIB)
    room = look(new, [], "/spill", there_is)
    with pytest.raises(RequestError, match="has 41943040 left"):
        admit(new, [other], REFUSE_NOTHING, NONE, room, there_is)  # it may have allocated everything after the look
    other.leaving = True
    assert admit(new, [other], REFUSE_NOTHING, NONE, room, there_is) == []


def test_a_session_without_a_file_tier_asks_no_disk():
    def disk(path):
        raise AssertionError

    there_is = Machine(memory=MUCH.memory, disk=disk, descriptors=MUCH.descriptors)
    assert look(Claim("new"), [], "/spill", there_is) is None
    assert look(Claim("new", file=MIB), [], None, there_is) is None


def test_descriptors():
    others = [Claim("a"), Claim("b", memory=4 * MIB, volumes=("log",))]

    def there_is(count):
        return Machine(memory=MUCH.memory, disk=MUCH.disk, descriptors=lambda: count)

    assert names(Claim("new"), others, REFUSE, there_is(DESCRIPTORS_A_VOLUME + 16)) == []
    assert "1 more open files" in refused(Claim("new"), others, REFUSE, there_is(DESCRIPTORS_A_VOLUME + 15))
    assert names(Claim("new"), others, PUNCTURE, there_is(DESCRIPTORS_A_VOLUME + 15)) == ["b"]
    others[0].coming = 1
    assert "9 more open files" in refused(Claim("new"), others, REFUSE, there_is(DESCRIPTORS_A_VOLUME + 16))


# ---- the registry: who looks at a disk keeps nobody else waiting, and loses no race ----


@pytest.fixture
def registry(tmp_path):
    """makes one over the volumes db and log, with a directory for file tiers; disk: what is left there."""
    paths = {name: tmp_path / name for name in ("db", "log")}
    for path in paths.values():
        path.write_bytes(bytes(MIB))
    volumes = Volumes(ServeConfig(volumes={name: VolumeConfig(str(path)) for name, path in paths.items()}))
    groups = []

    def make(disk):
        there_is = Machine(memory=MUCH.memory, disk=disk, descriptors=MUCH.descriptors)
        made = Registry(volumes, SidefileConfig(path=str(tmp_path)), Limits(), print, there_is)

        def prepare(name, volume, file=0):
            groups.append((made, made.prepare(name, [volume], made.wish([volume], None, MIB, file))))

        return made, prepare

    yield make
    for made, group in groups:
        made.end(group, cancel=True)
    volumes.close()


def test_a_disk_that_hangs_keeps_only_those_waiting_who_want_room_on_it(registry):
    asked, answers = threading.Event(), threading.Event()

    def hanging(path):
        asked.set()
        assert answers.wait(30)
        return 1 << 40

    made, prepare = registry(hanging)
    with ThreadPoolExecutor() as pool:
        try:
            slow = pool.submit(prepare, "slow", "db", MIB)
            assert asked.wait(10)
            pool.submit(prepare, "other", "log").result(10)
            assert [report["session"] for report in pool.submit(made.status).result(10)] == ["other"]
        finally:
            answers.set()
        slow.result(10)
    assert {report["session"] for report in made.status()} == {"slow", "other"}


def test_two_that_look_at_the_same_time_do_not_get_the_same_room(registry):
    """The second is let in, and has allocated all of its file tier, while the first looks at what is left."""
    inside = []

    def disk(path):
        if not inside:
            inside.append("second")
            prepare("second", "log", 6 * MIB)
        return 10 * MIB

    made, prepare = registry(disk)
    with pytest.raises(RequestError, match="has 4194304 left"):
        prepare("first", "db", 5 * MIB)
    assert [report["session"] for report in made.status()] == ["second"]


# ---- the machine ----


def make(directory, **files):
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (directory / name.replace("_", ".", 1)).write_text(text)


def test_memory_available_is_the_least_of_machine_and_control_groups(tmp_path):
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    make(proc, meminfo="MemTotal: 9000 kB\nMemAvailable:    8000 kB\n")
    assert machine.memory_available(str(proc), str(groups)) == 8000 * 1024
    make(proc / "self", cgroup="1:cpu:/x\n0::/outer/inner\n")
    assert machine.memory_available(str(proc), str(groups)) == 8000 * 1024
    make(groups / "outer/inner", memory_max="max\n", memory_current="500000\n")
    assert machine.memory_available(str(proc), str(groups)) == 8000 * 1024
    stat = "anon 1\nactive_file 1000\ninactive_file 1500\nslab_reclaimable 500\nslab_unreclaimable 7000\n"
    make(groups / "outer", memory_max="4000000\n", memory_current="1500000\n", memory_stat=stat)
    assert machine.memory_available(str(proc), str(groups)) == 2_503_000
    make(groups / "outer/inner", memory_max="600000\n")
    assert machine.memory_available(str(proc), str(groups)) == 100_000
    make(groups, memory_max="10\n", memory_current="500\n")
    assert machine.memory_available(str(proc), str(groups)) == 0


V1 = "12:pids:/x\n4:cpu,memory:/outer/inner\n1:name=systemd:/x\n"
UNLIMITED = "9223372036854771712\n"  # of version 1


def old_group(directory, limit=UNLIMITED, usage="0\n", stat=""):
    make(directory)
    for name, text in (("memory.limit_in_bytes", limit), ("memory.usage_in_bytes", usage), ("memory.stat", stat)):
        (directory / name).write_text(text)


def test_groups_of_version_1_and_those_above_them(tmp_path):
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    make(proc, meminfo="MemAvailable:    8000 kB\n")
    make(proc / "self", cgroup=V1)
    assert machine.memory_available(str(proc), str(groups)) == 8000 * 1024
    old_group(groups / "memory/outer/inner", usage="700\n")
    old_group(groups / "memory")
    assert machine.memory_available(str(proc), str(groups)) == 8000 * 1024
    stat = "active_file 7\ninactive_file 7\ntotal_active_file 1000\ntotal_inactive_file 2000\n"
    old_group(groups / "memory/outer", "4000000\n", "1500000\n", stat)
    assert machine.memory_available(str(proc), str(groups)) == 2_503_000
    old_group(groups / "memory/outer/inner", "600000\n", "500000\n")
    assert machine.memory_available(str(proc), str(groups)) == 100_000
    old_group(groups / "memory", "10\n", "500\n")
    assert machine.memory_available(str(proc), str(groups)) == 0


def test_what_may_be_swapped_out_counts_where_it_is_asked_for(tmp_path):
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    make(proc, meminfo="MemAvailable:    8000 kB\nSwapFree:    1000 kB\n")
    assert machine.memory_available(str(proc), str(groups), swap=True) == 9000 * 1024
    make(proc / "self", cgroup="4:memory:/old\n0::/new\n")
    make(groups / "new", memory_max="3000\n", memory_current="1000\n")
    assert machine.memory_available(str(proc), str(groups), swap=True) == 2000 + 1000 * 1024
    for most, left in (("max", 2000 + 1000 * 1024), ("700", 2500), ("100", 2000)):
        make(groups / "new", **{"memory_swap.max": most, "memory_swap.current": "200"})
        assert machine.memory_available(str(proc), str(groups), swap=True) == left
        assert machine.memory_available(str(proc), str(groups)) == 2000
    old_group(groups / "memory/old", "3000\n", "1500\n")
    make(groups / "memory/old", **{"memory_memsw.limit_in_bytes": "4000", "memory_memsw.usage_in_bytes": "2200"})
    assert machine.memory_available(str(proc), str(groups), swap=True) == 1800  # of both together
    assert machine.memory_available(str(proc), str(groups)) == 1500


def test_of_several_mounts_that_which_shows_the_group_counts(tmp_path):
    """In a container the host's hierarchy may be mounted as well, and before its own."""
    proc, groups = tmp_path / "proc", tmp_path / "usual"
    table = "".join(
        f"3{n} 23 0:28 {root} {tmp_path}/{point} rw - cgroup cgroup rw,memory\n"
        for n, (root, point) in enumerate((("/../..", "host"), ("/", "own"), ("/", "later")))
    )
    make(proc / "self", cgroup="4:memory:/\n", mountinfo=table)
    old_group(tmp_path / "host")
    old_group(tmp_path / "own", "5000\n", "1000\n")
    old_group(tmp_path / "later", "1\n")
    assert machine.memory_available(str(proc), str(groups)) == 4000


def test_both_versions_at_once(tmp_path):
    """Hybrid: memory is where one of them has it."""
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    make(proc / "self", cgroup=V1 + "0::/unit\n", mountinfo=f"41 31 0:38 / {groups}/unified rw - cgroup2 cgroup2 rw\n")
    old_group(groups / "memory/outer", "3000\n", "1000\n")
    assert machine.memory_available(str(proc), str(groups)) == 2000
    make(groups / "unified/unit", memory_max="1500\n", memory_current="500\n")
    assert machine.memory_available(str(proc), str(groups)) == 1000


@pytest.mark.parametrize(
    ("path", "root"),
    [
        ("/lxc/a\\x2db/own", "/lxc/a\\134x2db"),  # what is above is not to be seen
        ("/", "/lxc/box"),  # a name space of its own, in what was mounted before it
        ("/../elsewhere", "/"),
    ],
)
def test_in_a_container_groups_are_where_they_are_mounted(tmp_path, path, root):
    """What is mounted is a part of the hierarchy; the limit of its root is that of the container."""
    proc, groups, point = tmp_path / "proc", tmp_path / "usual", tmp_path / "a place"
    table = f"""\
30 23 0:27 / {tmp_path}/cpu rw - cgroup cgroup rw,cpu,cpuacct
31 23 0:28 {root} {str(point).replace(" ", chr(92) + "040")} rw,relatime shared:1 - cgroup cgroup rw,memory
"""
    make(proc / "self", cgroup=f"4:memory:{path}\n", mountinfo=table)
    old_group(groups / "memory", "1\n")
    old_group(tmp_path / "elsewhere", "1\n")
    assert machine.memory_available(str(proc), str(groups)) == 1 << 60
    old_group(point, "5000\n", "1000\n")
    assert machine.memory_available(str(proc), str(groups)) == 4000
    if path.endswith("own"):
        old_group(point / "own", "900\n", "100\n")
        assert machine.memory_available(str(proc), str(groups)) == 800


def test_the_real_machine(tmp_path):
    assert machine.memory_available() > 0
    before = Machine().held()
    with mmap.mmap(-1, 32 * MIB) as shared:  # as a session's is
        shared.write(b"x" * 32 * MIB)
        assert Machine().held() - before > 30 * MIB
    assert machine.disk_available(str(tmp_path)) > 0
    before = machine.descriptors_available()
    with open(tmp_path / "x", "w"):
        assert machine.descriptors_available() == before - 1
