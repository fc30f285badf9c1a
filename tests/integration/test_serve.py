"""`timezero serve` as a process: its start, what it refuses, its sockets and its end."""

import ctypes
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from proof.served import wait_ready
from timezero import session
from timezero.subsystem import serve as subsystem_serve

MIB = 1 << 20
TIMEOUT = 60.0
FOREIGN = {key: value for key, value in os.environ.items() if key != "LD_PRELOAD"}  # a sanitizer is for our code alone


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "disk.img"
    path.write_bytes(os.urandom(MIB))
    return path


def refused(*arguments, env=None):
    """Start a server that must not come up; (exit code, its one line)."""
    command = [sys.executable, "-m", "timezero", "serve", *map(str, arguments)]
    environment = {**os.environ, **(env or {})}
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, env=environment, check=False)
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    return done.returncode, done.stderr


def sockets(directory):
    """Options for sockets of their own in a directory."""
    return "--nbd", f"nbd+unix:///?socket={directory}/n.sock", "--control", f"{directory}/c.sock"


def nbd_size(uri):
    done = subprocess.run(
        ["nbdinfo", "--json", uri], capture_output=True, text=True, timeout=TIMEOUT, check=True, env=FOREIGN
    )
    return json.loads(done.stdout)["exports"][0]["export-size"]


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("engine", ["uring", "threads"])
def test_ready_then_a_clean_end(serve, image, sign, engine):
    server = serve({"disk": image}, engine=engine)
    for path in (server.nbd_socket, server.control):
        mode = os.stat(path).st_mode
        assert stat.S_ISSOCK(mode)
        assert stat.S_IMODE(mode) == 0o600
    assert session.status(server.control)["engine"] == engine
    assert nbd_size(server.nbd_uri("disk")) == MIB
    assert server.stop(sign) == 0
    assert not os.path.lexists(server.nbd_socket)
    assert not os.path.lexists(server.control)


def test_the_end_comes_also_with_clients_in_every_phase(serve, image):
    server = serve({"disk": image})
    idle = [socket.socket(socket.AF_UNIX) for _ in range(4)]
    try:
        for number, sock in enumerate(idle):
            sock.connect(server.control if number % 2 else server.nbd_socket)
        idle[0].settimeout(TIMEOUT)
        assert idle[0].recv(18)
        assert server.stop() == 0
    finally:
        for sock in idle:
            sock.close()


def test_stale_sockets_are_replaced(serve, image):
    killed = serve({"disk": image})
    killed.process.kill()
    killed.process.wait(TIMEOUT)
    assert os.path.lexists(killed.nbd_socket)
    server = serve({"disk": image}, at=killed)
    assert nbd_size(server.nbd_uri("disk")) == MIB


def test_a_live_servers_sockets_are_never_stolen(serve, image, tmp_path):
    server = serve({"disk": image})
    other = tmp_path / "other.img"
    other.write_bytes(bytes(MIB))
    nbd = f"nbd+unix:///?socket={server.nbd_socket}"
    for arguments in (
        ["--nbd", nbd, "--control", tmp_path / "c.sock"],
        ["--nbd", f"nbd+unix:///?socket={tmp_path}/n.sock", "--control", server.control],
    ):
        code, line = refused("--volume", f"x={other}", *arguments)
        assert code == 11
        assert "another server" in line
    assert sorted(tmp_path.iterdir()) == [image, other]  # nothing was left behind
    assert nbd_size(server.nbd_uri("disk")) == MIB
    assert session.status(server.control)["volumes"][0]["name"] == "disk"


def test_a_socket_that_became_anothers_is_not_removed(serve, image):
    server = serve({"disk": image})
    os.unlink(server.control)
    Path(server.control).write_text("mine now")
    assert server.stop() == 0
    assert Path(server.control).read_text() == "mine now"


def test_something_else_in_the_sockets_place_stays(image, tmp_path):
    for path in (tmp_path / "n.sock", tmp_path / "c.sock"):
        path.write_text("precious")
        code, line = refused("--volume", f"x={image}", *sockets(tmp_path))
        assert (code, path.read_text()) == (2, "precious")
        assert str(path) in line
        path.unlink()


def test_a_second_server_on_the_same_volume(serve, image, tmp_path):
    server = serve({"disk": image})
    code, line = refused("--volume", f"x={image}", *sockets(tmp_path))
    assert code == 11
    assert str(image) in line
    assert list(tmp_path.iterdir()) == [image]
    assert nbd_size(server.nbd_uri("disk")) == MIB


def test_aliases_are_refused(image, tmp_path):
    hard, soft = tmp_path / "hard", tmp_path / "soft"
    hard.hardlink_to(image)
    soft.symlink_to(image)
    for alias in (image, hard, soft):
        code, line = refused("--volume", f"a={image}", "--volume", f"b={alias}", *sockets(tmp_path))
        assert code == 2
        assert "volumes a and b are the same" in line


def test_a_loop_device_and_its_file_are_one(image, tmp_path, loop):
    device = loop(image)
    code, line = refused("--volume", f"file={image}", "--volume", f"loop={device}", *sockets(tmp_path))
    assert code == 2
    assert "loop stands on file" in line


def test_a_disk_and_its_partition_overlap(tmp_path, loop, stack):
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(8 * MIB))
    device = loop(disk)
    subprocess.run(["addpart", device, "1", "2048", "4096"], timeout=TIMEOUT, check=True)
    # A detached loop device keeps its partitions, and whoever attaches it next gets them.
    stack.callback(subprocess.run, ["delpart", device, "1"], timeout=TIMEOUT, check=True)
    number = Path(f"/sys/class/block/{device.name}p1/dev").read_text()
    part = tmp_path / "part"  # without udev the kernel knows the partition, and /dev does not
    os.mknod(part, stat.S_IFBLK | 0o600, os.makedev(*map(int, number.split(":"))))
    code, line = refused("--volume", f"disk={device}", "--volume", f"part={part}", *sockets(tmp_path))
    assert code == 2
    assert "part stands on disk" in line


def test_a_mounted_device_is_refused(tmp_path, image, loop, mount):
    file = tmp_path / "fs"
    file.write_bytes(bytes(16 * MIB))
    device = loop(file)
    subprocess.run(["mkfs.ext4", "-q", device], timeout=TIMEOUT, check=True)
    mount(device, tmp_path / "mnt")
    code, line = refused("--volume", f"x={device}", *sockets(tmp_path))
    assert code == 11
    assert "mounted" in line


def test_a_sidefile_on_a_served_volume_is_refused(tmp_path, loop, mount):
    file = tmp_path / "fs"
    file.write_bytes(bytes(16 * MIB))
    device = loop(file)
    subprocess.run(["mkfs.ext4", "-q", device], timeout=TIMEOUT, check=True)
    spill = mount(device, tmp_path / "mnt") / "spill"
    spill.mkdir()
    code, line = refused(
        "--volume", f"x={file}", "--sidefile-path", spill, "--sidefile-file", "1M", *sockets(tmp_path)
    )  # fmt: skip
    assert code == 2
    assert "stands on volume x" in line


@pytest.mark.parametrize("kind", ["missing", "directory", "fifo", "empty", "unreadable name"])
def test_what_cannot_be_a_volume(tmp_path, kind):
    path = tmp_path / "x"
    match kind:
        case "directory":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case "empty":
            path.touch()
        case "unreadable name":
            path = "/dev/null/x"
    code, line = refused("--volume", f"x={path}", *sockets(tmp_path))
    assert code == 2
    assert "volume x" in line


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--nbd", "nbd://0.0.0.0:0"], "--allow-remote"),
        (["--nbd", "nbd://[::]:0"], "--allow-remote"),
        (["--nbd", "nonsense"], "NBD URI"),
        (["--nbd", "nbd+unix:///disk?socket=/tmp/x"], "export name"),
        (["--control", "/nonexistent/directory/c.sock"], "/nonexistent/directory/c.sock"),
        (["--control", "x" * 120], "longer than"),
        (["--config", "/nonexistent"], "/nonexistent"),
        (["--engine-of-doom"], "--engine-of-doom"),
        (["--sidefile-path", "/proc", "--sidefile-file", "1M", "--track", "3K"], "track"),
    ],
)
def test_bad_options_are_one_line(image, tmp_path, arguments, says):
    given = {word for word in arguments if word.startswith("--")}
    usual = [word for pair in zip(*[iter(sockets(tmp_path))] * 2, strict=True) if pair[0] not in given for word in pair]
    code, line = refused("--volume", f"x={image}", *arguments, *usual)
    assert code in (1, 2)
    assert says in line
    assert list(tmp_path.iterdir()) == [image]


def test_tcp_on_loopback_and_the_default_export(serve, image):
    server = serve({"disk": image}, nbd="nbd://127.0.0.1:0")
    _, tcp = session.status(server.control)["nbd"]
    assert nbd_size(tcp) == MIB
    assert nbd_size(f"{tcp}/disk") == MIB


def test_a_configuration_file(serve, image, tmp_path):
    config = tmp_path / "timezero.toml"
    config.write_text(f'[serve]\nquiet = true\nreactors = 2\n[volumes.disk]\npath = "{image.name}"\nread_only = true\n')
    more = tmp_path / "more.img"
    more.write_bytes(bytes(MIB))
    server = serve({"more": more}, config=config)
    volumes = {volume["name"]: volume for volume in session.status(server.control)["volumes"]}
    assert volumes["disk"]["read_only"]
    assert volumes["disk"]["path"] == str(image)
    assert not volumes["more"]["read_only"]
    assert server.stderr() == ""


def test_systemd_is_told(serve, image, tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        notified.bind(str(tmp_path / "notify"))
        notified.settimeout(TIMEOUT)
        server = serve({"disk": image}, env={"NOTIFY_SOCKET": str(tmp_path / "notify")})
        assert notified.recv(100) == b"READY=1"
        server.stop()
        assert notified.recv(100) == b"STOPPING=1"


def test_a_log_that_nobody_reads_is_no_reason_to_end(image, tmp_path):
    command = [sys.executable, "-m", "timezero", "serve", "--volume", f"disk={image}", *sockets(tmp_path)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert wait_ready(server)
        server.stderr.close()
        server.stdout.close()
        for _ in range(2):
            with session.prepare(f"{tmp_path}/c.sock", ["disk"]) as group:
                group.suspend()
                group.end()
        server.send_signal(signal.SIGTERM)
        assert server.wait(TIMEOUT) == 0
        assert list(tmp_path.iterdir()) == [image]
    finally:
        server.kill()
        server.wait(TIMEOUT)


def test_what_was_acknowledged_before_the_end_is_in_the_file(serve, image):
    server = serve({"disk": image})
    writer = subprocess.Popen(
        ["qemu-io", "-f", "raw", "-t", "none", server.nbd_uri("disk")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=FOREIGN,
    )  # fmt: skip
    try:
        writer.stdin.write("write -P 0xab 12288 65536\n")
        writer.stdin.flush()
        line = writer.stdout.readline()
        while "wrote 65536/65536" not in line:
            assert line, "qemu-io ended"
            line = writer.stdout.readline()
        assert server.stop() == 0  # the client is still connected
        assert image.read_bytes()[12288 : 12288 + 65536] == b"\xab" * 65536
    finally:
        writer.kill()
        writer.communicate(timeout=TIMEOUT)


def test_connections_are_limited(serve, image, tmp_path):
    config = tmp_path / "timezero.toml"
    config.write_text("[limits]\nconnections = 1\n")
    server = serve({"disk": image}, config=config)
    client = subprocess.Popen(
        ["qemu-io", "-f", "raw", server.nbd_uri("disk")],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env=FOREIGN,
    )
    try:
        deadline = time.monotonic() + TIMEOUT
        while session.status(server.control)["volumes"][0]["connections"] != 1:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        second = subprocess.run(
            ["nbdcopy", server.nbd_uri("disk"), "null:"], capture_output=True, timeout=TIMEOUT, check=False, env=FOREIGN
        )
        assert second.returncode != 0
    finally:
        client.kill()
        client.communicate(timeout=TIMEOUT)


def test_connections_and_sessions_leave_no_descriptors(serve, image):
    server = serve({"disk": image})
    count = lambda: len(os.listdir(f"/proc/{server.process.pid}/fd"))  # noqa: E731
    level = None
    for _ in range(4):
        for _ in range(5):
            assert nbd_size(server.nbd_uri("disk")) == MIB
            with session.prepare(server.control, ["disk"]) as group:
                group.suspend()
                group.end()
        deadline = time.monotonic() + TIMEOUT
        while session.status(server.control)["volumes"][0]["connections"]:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        # the server closes its end of a control connection a moment after us
        while level is not None and count() > level:
            assert time.monotonic() < deadline, f"{count()} descriptors, {level} before"
            time.sleep(0.02)
        level = count()


def test_being_stopped_and_continued_ends_nothing(serve, tmp_path):
    """Longer than the server's own waits, and more than once."""
    volume = tmp_path / "volume"
    volume.write_bytes(bytes(1 << 20))
    server = serve({"v": volume})
    for pause in (0.2, 1.5, 2.2):
        server.process.send_signal(signal.SIGSTOP)
        time.sleep(pause)
        server.process.send_signal(signal.SIGCONT)
        time.sleep(0.2)
        assert session.status(server.control)["volumes"][0]["name"] == "v"
    assert server.stop() == 0


def test_a_server_under_nohup_outlives_its_terminal(tmp_path):
    volume = tmp_path / "volume"
    volume.write_bytes(bytes(1 << 20))
    command = ["nohup", sys.executable, "-m", "timezero", "serve", "--volume", f"v={volume}"]
    command += ["--nbd", f"nbd+unix:///?socket={tmp_path / 'nbd'}", "--control", str(tmp_path / "control")]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as server:
        assert wait_ready(server)
        server.send_signal(signal.SIGHUP)
        with pytest.raises(subprocess.TimeoutExpired):
            server.wait(1.5)
        server.send_signal(signal.SIGTERM)
        assert server.wait(TIMEOUT) == 0


# ---- when memory runs out ----

PR_CAPBSET_DROP, CAP_SYS_RESOURCE = 24, 24


def oom_score(process):
    return int(Path(f"/proc/{process}/oom_score_adj").read_text())


def may_lower_it():
    """Even root may not, in many a container."""
    status = Path("/proc/self/status").read_text()
    return bool(int(status.partition("CapEff:")[2].split()[0], 16) >> CAP_SYS_RESOURCE & 1)


def test_where_it_may_it_is_the_last_that_is_killed(serve, image):
    expected = -999 if may_lower_it() and oom_score("self") == 0 else oom_score("self")
    assert oom_score(serve({"disk": image}).process.pid) == expected


def test_where_it_may_not_it_serves_all_the_same(root, serve, image):
    server = serve({"disk": image}, enter=lambda: ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_SYS_RESOURCE, 0, 0, 0))
    assert oom_score(server.process.pid) == oom_score("self")
    assert nbd_size(server.nbd_uri("disk")) == MIB
    assert "killed" not in server.stderr() and "ermission" not in server.stderr()


@pytest.mark.parametrize(("before", "after"), [("0", "-999"), ("200", "200"), ("-999", "-999"), ("-1000", "-1000")])
def test_its_score_is_lowered_and_never_raised(monkeypatch, tmp_path, before, after):
    place = tmp_path / "oom_score_adj"
    monkeypatch.setattr(subsystem_serve, "_OOM_SCORE", place)
    subsystem_serve._survive_oom()  # there is none
    place.write_text(before)
    subsystem_serve._survive_oom()
    assert place.read_text() == after
