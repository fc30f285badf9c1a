"""The Cython surface of the subsystem: errors, lifetimes in any order, calls from several threads."""

import errno
import gc
import os
import socket
import threading

import numpy as np
import pytest

from timezero._native.mover import SessionView, Source
from timezero._native.subsystem import Reactor, Session, Suspension, Volume

MIB = 1 << 20


@pytest.fixture(params=["uring", "threads"])
def reactor(request):
    with_close = Reactor(request.param)
    yield with_close
    with_close.close()


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "volume"
    path.write_bytes(bytes(MIB))
    return str(path)


@pytest.fixture
def volume(reactor, path):
    volume = Volume(reactor, path)
    yield volume
    volume.close()


def prepare(volume, **options):
    return Session(volume, **{"track_size": 65536, "memory_bytes": 2 * MIB, **options})


def descriptors():
    return len(os.listdir("/proc/self/fd"))


def test_facts_of_a_volume(reactor, volume, path):
    found = os.stat(path)
    assert (volume.path, volume.size, volume.read_only) == (path, MIB, False)
    assert volume.identity == (found.st_dev, found.st_ino)
    assert volume.block_size >= 512
    assert volume.transmission_flags() & 1
    assert set(volume.stats().values()) == {0}
    with pytest.raises(BlockingIOError) as error:
        Volume(reactor, path)
    assert (error.value.errno, error.value.filename) == (errno.EBUSY, path)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("missing", FileNotFoundError), ("", FileNotFoundError), (".", IsADirectoryError), ("x" * 300, OSError)],
)
def test_a_volume_that_cannot_be_opened(reactor, tmp_path, name, kind):
    with pytest.raises(kind):
        Volume(reactor, str(tmp_path / name) if name else "")


def test_bad_arguments(reactor, volume):
    with pytest.raises(ValueError, match="engine"):
        Reactor("magic")
    with pytest.raises(TypeError):
        Volume(None, "x")
    with pytest.raises(TypeError):
        Session(None, track_size=4096, memory_bytes=MIB)
    for sizes in ({"track_size": 5000}, {"track_size": 2048}, {"track_size": 2 * MIB}, {"file_bytes": MIB}):
        with pytest.raises(OSError) as error:
            prepare(volume, **sizes)
        assert error.value.errno == errno.EINVAL
    with pytest.raises(OSError) as error:
        prepare(volume, memory_bytes=4096)
    assert error.value.errno == errno.ENOSPC
    with pytest.raises(OverflowError):
        prepare(volume, memory_bytes=-1)
    with pytest.raises(OSError):
        Suspension([])
    with pytest.raises(TypeError):
        Suspension([volume])


def test_a_session_from_prepare_to_end(volume):
    before = descriptors()
    session = prepare(volume)
    handles = session.handles()
    assert handles["file_fd"] == -1
    assert os.fstat(handles["owned_fd"]).st_size == handles["owned_bytes"]
    assert session.report()["state"] == "prepared"
    times = Suspension([session]).run(20_000_000)
    assert times["total_ns"] > 0
    assert session.report()["state"] == "active"
    assert volume.stats()["sessions"] == 1
    final = session.end()
    assert (final["state"], final["puncture"]) == ("ended", "none")
    assert session.end(cancel=True) == final  # the first word counts
    assert volume.stats()["sessions"] == 0
    session.close()
    session.close()
    assert descriptors() == before
    with pytest.raises(ValueError, match="closed"):
        session.report()


def test_a_domain_is_set_before_install_and_constant_afterwards(volume):
    session = prepare(volume, domain=True)
    domain = session.handles()["domain_fd"]
    assert os.fstat(domain).st_size == 8  # 16 tracks
    assert session.lacks_domain
    with pytest.raises(OSError) as error:
        Suspension([session]).run(20_000_000)
    assert error.value.errno == errno.ENODATA
    assert session.report()["state"] == "prepared"
    os.pwrite(domain, b"\x05", 0)
    session.set_domain()
    session.set_domain()
    assert not session.lacks_domain
    Suspension([session]).run(20_000_000)
    with pytest.raises(BlockingIOError):
        session.set_domain()
    session.close()
    for call in (session.set_domain, lambda: session.lacks_domain):
        with pytest.raises(ValueError, match="closed"):
            call()


def test_a_whole_volume_has_no_domain(volume):
    session = prepare(volume)
    assert session.handles()["domain_fd"] == -1
    assert not session.lacks_domain
    with pytest.raises(OSError) as error:
        session.set_domain()
    assert error.value.errno == errno.EINVAL
    session.close()


def test_views_and_sources_of_files(volume):
    session = prepare(volume, domain=True)
    before = descriptors()
    view = SessionView(session.handles())
    assert (view.size, view.track_size) == (MIB, 65536)

    def columns(*extents):
        return np.array(extents, dtype=np.uint64).reshape(-1, 3).T.copy()

    good = columns((0, 4096, 8192), (65536, 0, 4096))
    source = Source.extents(view, 100_000, *good)
    assert source.size == 100_000
    assert Source.extents(view, 0, *columns()).size == 0
    for number, extents in {
        errno.EINVAL: [(0, 0, 8192), (4096, 65536, 4096)],
        errno.ERANGE: [(0, MIB - 4096, 8192)],
        errno.EOVERFLOW: [(0, 2**64 - 4096, 4096)],
    }.items():
        with pytest.raises(OSError) as error:
            Source.extents(view, 100_000, *columns(*extents))
        assert error.value.errno == number
    with pytest.raises(ValueError, match="one length"):
        Source.extents(view, 1, good[0], good[1], good[2][:1])
    with pytest.raises(ValueError, match=r"dtype|mismatch"):
        Source.extents(view, 1, *good.astype(np.int64))
    with pytest.raises(TypeError):
        Source.extents(None, 1, *good)
    view.close()
    view.close()
    for refused in (lambda: view.size, lambda: view.track_size, lambda: Source.session(view)):
        with pytest.raises(ValueError, match="closed"):
            refused()
    with pytest.raises(ValueError, match="closed"):
        Source.extents(view, 1, *good)
    assert descriptors() > before  # a source keeps what it needs
    del source
    gc.collect()
    assert descriptors() == before
    session.close()


def test_a_file_tier_is_taken_over_only_on_success(volume):
    file = os.memfd_create("tier")
    with pytest.raises(OSError):
        prepare(volume, file_fd=file, file_bytes=MIB, memory_bytes=4096)
    os.fstat(file)
    session = prepare(volume, file_fd=file, file_bytes=MIB)
    assert session.handles()["file_fd"] not in (-1, file)
    session.close()
    with pytest.raises(OSError):
        os.fstat(file)


def test_adopt_takes_over_only_what_it_can_serve(volume):
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs, pytest.raises(OSError):
        volume.adopt(theirs.fileno(), structured=False)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        with pytest.raises(OSError):  # a meta context without structured replies
            volume.adopt(theirs.fileno(), structured=False, base_allocation_id=1)
        volume.adopt(theirs.detach(), structured=True, base_allocation_id=1)
        assert volume.stats()["connections"] == 1
        assert volume.disconnect_all(20.0)
        assert volume.stats()["connections"] == 0
        assert ours.recv(1) == b""


def test_nothing_closes_under_something_else(reactor, volume):
    session = prepare(volume)
    for handle in (volume, reactor):
        with pytest.raises(RuntimeError):
            handle.close()
    suspension = Suspension([session])
    suspension.close_gates(20_000_000)
    for forbidden in (session.close, session.end, lambda: suspension.close_gates(1)):
        with pytest.raises(RuntimeError):
            forbidden()
    suspension.abort()
    suspension.abort()
    with pytest.raises(RuntimeError):
        suspension.install()
    session.close()
    with pytest.raises(ValueError, match="closed"):
        suspension.run(1000)


def test_a_suspension_in_steps(volume):
    session = prepare(volume)
    suspension = Suspension([session])
    suspension.close_gates(20_000_000)
    suspension.install()
    assert suspension.open_gates()["total_ns"] > 0
    assert session.end()["state"] == "ended"
    session.close()


def test_a_deadline_that_passed(volume):
    session = prepare(volume)
    suspension = Suspension([session])
    suspension.close_gates(200_000)  # enough to close; then it passes
    threading.Event().wait(0.4)
    with pytest.raises(TimeoutError):
        suspension.install()
    assert session.end()["state"] != "ended"
    session.close()


def test_dropping_everything_at_once_in_any_order(path):
    before = descriptors()
    for order in ("rvs", "svr", "vrs", "srv"):
        things = {"r": Reactor("threads")}
        things["v"] = Volume(things["r"], path)
        things["s"] = prepare(things["v"])
        suspension = Suspension([things["s"]])
        suspension.close_gates(20_000_000)
        for letter in order:
            del things[letter]
        del suspension
        gc.collect()
    assert descriptors() == before
    reactor = Reactor()
    Volume(reactor, path).close()  # the lock is free again
    reactor.close()


def test_close_waits_for_calls_of_other_threads(reactor, path):
    for _ in range(20):
        volume = Volume(reactor, path)
        session = prepare(volume)
        stopped = []

        def look(volume=volume, session=session, stopped=stopped):
            try:
                while True:
                    session.report()
                    volume.stats()
            except ValueError:
                stopped.append(True)

        threads = [threading.Thread(target=look) for _ in range(3)]
        for thread in threads:
            thread.start()
        session.close()
        volume.close()
        for thread in threads:
            thread.join(20)
        assert len(stopped) == 3


def test_sizes_are_checked_without_allocating(volume):
    before = descriptors()
    Session.check_sizes(volume, track_size=4096, memory_bytes=2 * MIB, file_bytes=MIB, domain=True)
    for sizes, code in [
        ({"track_size": 5000, "memory_bytes": 2 * MIB}, errno.EINVAL),
        ({"track_size": 4096, "memory_bytes": 4096}, errno.ENOSPC),
        ({"track_size": 4096, "memory_bytes": 2 * MIB, "file_bytes": 1 << 40}, errno.ENOSPC),
    ]:
        with pytest.raises(OSError) as error:
            Session.check_sizes(volume, **sizes)
        assert error.value.errno == code
    assert descriptors() == before


def test_giving_way(volume):
    with pytest.raises(OSError):
        prepare(volume, low_percent=80, high_percent=20)
    session = prepare(volume, low_percent=10, high_percent=20, max_delay_us=5, exempt=True)
    session.give_way()  # not at T0: nothing to lose
    assert session.report()["state"] == "prepared"
    Suspension([session]).run(20_000_000)
    session.give_way()
    report = session.end()
    assert (report["state"], report["puncture"]) == ("punctured", "admission")
    session.close()
    assert session.end() == report


def test_recent_writes_of_an_idle_volume(volume):
    found = volume.recent_writes()
    assert set(found) == {"ns", "updates", "bytes", "blocks", "newer_ns", "newer_blocks"}
    assert (found["updates"], found["bytes"], found["blocks"], found["newer_blocks"]) == (0, 0, 0, 0)
