"""Hooks around real suspensions: by the command line, with real file systems, and with the real guest agent.

The agent is QEMU's own, run on this machine with a list of commands that it must refuse. A freeze is one of them: it
would freeze every file system of the machine that the test runs on.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from proof.words import after_the_estimate
from tests.command import COMMAND, MIB, digest, environment, image, succeed, timezero
from timezero._linux import freeze, thaw
from timezero.errors import DeadlineError, TimezeroError
from timezero.quiesce import Quiesced, parse_all
from timezero.quiesce.agent import Agent
from timezero.quiesce.fsfreeze import Freezer, watchdog
from timezero.quiesce.patience import Patience


@pytest.fixture
def volume(serve: Callable, tmp_path: Path) -> dict[str, str]:
    """Environment of a server with the volume `disk`."""
    served = serve({"disk": image(tmp_path / "volume", 4 * MIB)})
    return environment(TIMEZERO_CONTROL=served.control, TIMEZERO_REPO=str(tmp_path / "repo"))


# ---- the command line ----


def test_hooks_of_a_backup(tmp_path: Path, volume: dict[str, str]) -> None:
    log = tmp_path / "log"
    hooks = [
        f"exec:pre=echo pre 1 $TIMEZERO_VOLUMES $TIMEZERO_SESSION >> {log},post=echo post 1 >> {log}",
        f"exec:post=echo post 2 >> {log}",
        f"exec:pre=echo pre 3 >> {log}; sleep 0.05",
    ]
    words = [word for hook in hooks for word in ("--quiesce", hook)]
    document = succeed("backup", "disk", *words, env=volume)
    lines = log.read_text().splitlines()
    assert lines[0].startswith("pre 1 disk ") and len(lines[0].split()[3]) == 36
    assert lines[1:] == ["pre 3", "post 2", "post 1"]
    assert set(document["hooks"]) == set(hooks)
    assert document["hooks"][hooks[2]]["pre_us"] >= 50_000
    total = sum(sum(times.values()) for times in document["hooks"].values())
    assert document["suspension"]["hooks_us"] == total
    assert document["suspension"]["total_us"] < total  # the gates' own time has no hooks in it
    shown = succeed("show", env=volume)
    assert shown["suspension"]["hooks_us"] == total
    # A command line may hold a password: it is told to whoever started the backup, and not kept.
    assert "hooks" not in shown
    assert f"hooks {total} us" in timezero("show", env=volume).out.decode()


def test_hooks_of_a_copy(tmp_path: Path, volume: dict[str, str]) -> None:
    hook = f"exec:pre=touch {tmp_path}/pre,post=touch {tmp_path}/post"
    document = succeed("copy", "disk", tmp_path / "out", "--quiesce", hook, env=volume)
    assert (tmp_path / "pre").exists() and (tmp_path / "post").exists()
    assert document["suspension"]["hooks_us"] == sum(document["hooks"][hook].values())
    assert digest(tmp_path / "out") == digest(tmp_path / "volume")


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["--quiesce", "exec:pre=echo no >&2; exit 9"], 1, "pre: the command ended with 9: no"),
        (["--quiesce", "exec:pre=sleep 9", "--quiesce-deadline", "200ms"], 4, "took longer than 0.2 s"),
        (["--quiesce", "exec:post=exit 9"], 1, "post: the command ended with 9"),
        (["--quiesce", "exec:nonsense"], 2, "write exec:pre=CMD,post=CMD"),
        (["--quiesce", "fsfreeze:/no/such/place"], 2, "No such file or directory"),
        (["--quiesce", "qga:/no/such/socket"], 2, "no such socket"),
        (["--quiesce", "exec:pre=true", "--quiesce", "exec:pre=true"], 2, "given twice"),
    ],
)
def test_a_hook_that_fails_commits_nothing(
    tmp_path: Path, volume: dict[str, str], words: Sequence[str], code: int, told: str
) -> None:
    first = f"exec:pre=touch {tmp_path}/pre,post=touch {tmp_path}/post"
    outcome = timezero("backup", "disk", "--quiesce", first, *words, env=volume)
    err = after_the_estimate(outcome.err)
    assert outcome.code == code and told in err and err.count("\n") == 1, outcome.err
    assert (err != outcome.err) == (code != 2)  # what cannot be meant is told first
    assert (tmp_path / "pre").exists() == (tmp_path / "post").exists() == (code != 2)
    listed = timezero("list", "--json", env=volume)
    assert listed.code == 10 or listed.document["points"] == []


def test_hooks_without_a_suspension_are_refused(tmp_path: Path) -> None:
    source = image(tmp_path / "source", MIB)
    for words in (["backup", source, "--repo", tmp_path / "repo"], ["copy", source, tmp_path / "target"]):
        outcome = timezero(*words, "--quiesce", f"exec:pre=touch {tmp_path}/pre")
        assert outcome.code == 2 and "nothing is suspended for sources at rest" in outcome.err
    assert sorted(os.listdir(tmp_path)) == ["source"]


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_an_interrupted_backup_undoes_its_hooks(tmp_path: Path, volume: dict[str, str], sign: int) -> None:
    first = f"exec:pre=touch {tmp_path}/pre,post=touch {tmp_path}/post"
    second = f"exec:pre=touch {tmp_path}/reached; sleep 60,post=touch {tmp_path}/second"
    child = subprocess.Popen(
        [*COMMAND, "backup", "disk", "--quiesce", first, "--quiesce", second, "--quiesce-deadline", "1m"],
        env=volume, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        wait_until(lambda: (tmp_path / "reached").exists())
        child.send_signal(sign)
        told = child.communicate(timeout=20)[1]
    finally:
        child.kill()
        child.wait()
    assert child.returncode == 130 and "interrupted" in told and "Traceback" not in told
    assert (tmp_path / "post").exists() and (tmp_path / "second").exists()


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


# ---- real file systems ----


class FreezerHere:
    """What the watchdog does, without the dog: in this process."""

    def __init__(self, points: Sequence[str]) -> None:
        self._open = [os.open(point, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC) for point in points]
        self._frozen: list[int] = []

    def sync(self) -> None:
        pass

    def freeze(self, deadline_s: float) -> None:
        for descriptor in self._open:
            try:
                freeze(descriptor)
            except OSError as error:
                raise TimezeroError("frozen already") from error
            self._frozen.append(descriptor)

    def thaw(self) -> None:
        while self._frozen:
            try:
                thaw(self._frozen.pop())
            except OSError as error:
                raise TimezeroError("thawed by somebody else") from error

    def close(self) -> None:
        self.thaw()
        while self._open:
            os.close(self._open.pop())


def make_freezer(points: Sequence[str]) -> Freezer:
    """The watchdog, where there is one."""
    if importlib.util.find_spec("timezero.concordance"):
        return watchdog(points)
    return FreezerHere(points)


@pytest.fixture
def mounted(tmp_path: Path, loop: Callable, mount: Callable) -> Path:
    """An ext4 of its own."""
    with open(tmp_path / "ext4", "wb") as file:
        file.truncate(32 * MIB)
    device = loop(tmp_path / "ext4")
    subprocess.run(["mkfs.ext4", "-q", device], check=True)
    return mount(device, tmp_path / "mnt")


def test_a_file_system_is_frozen_and_thawed(mounted: Path) -> None:
    hooks = parse_all([f"fsfreeze:{mounted}"], make_freezer=make_freezer)
    with Quiesced(hooks) as quiesced:
        # Nobody can freeze it again: it is frozen.
        descriptor = os.open(mounted, os.O_RDONLY)
        try:
            with pytest.raises(OSError, match="busy"):
                freeze(descriptor)
        finally:
            os.close(descriptor)
    (mounted / "file").write_text("thawed")
    assert quiesced.times[hooks[0].text]["pre_us"] > 0


def test_a_hook_that_freezes_the_sidefile_is_refused(mounted: Path, serve: Callable, tmp_path: Path) -> None:
    """Its file tier lies there: updates to what is not copied yet would wait for the thaw."""
    served = serve({"disk": image(tmp_path / "volume", 4 * MIB)}, sidefile_path=mounted, sidefile_file="4M")
    env = environment(TIMEZERO_CONTROL=served.control, TIMEZERO_REPO=str(tmp_path / "repo"))
    outcome = timezero("backup", "disk", "--quiesce", f"fsfreeze:{mounted}", env=env)
    assert outcome.code == 2, outcome.err
    assert f"fsfreeze:{mounted}" in outcome.err and "sidefile of volume disk" in outcome.err
    (mounted / "file").write_bytes(b"not frozen")
    succeed("backup", "disk", "--sidefile-file", "0", "--quiesce", f"fsfreeze:{mounted}", env=env)


def test_a_file_system_that_somebody_else_froze_stays_frozen(mounted: Path) -> None:
    descriptor = os.open(mounted, os.O_RDONLY)
    freeze(descriptor)
    try:
        with (
            pytest.raises(TimezeroError, match="frozen already"),
            Quiesced(parse_all([f"fsfreeze:{mounted}"], make_freezer=make_freezer)),
        ):
            pass
    finally:
        thaw(descriptor)  # EINVAL if it had been thawed
        os.close(descriptor)


def test_thawed_in_between_is_no_still_moment(mounted: Path) -> None:
    with (
        pytest.raises(TimezeroError, match="thawed by somebody else"),
        Quiesced(parse_all([f"fsfreeze:{mounted}"], make_freezer=make_freezer)),
    ):
        subprocess.run(["fsfreeze", "--unfreeze", mounted], check=True)


def test_a_command_that_waits_for_the_frozen_file_system_holds_nothing_up(mounted: Path) -> None:
    """It cannot even be killed before the file system is thawed: the thaw must not wait for it."""
    began = time.monotonic()
    hooks = parse_all([f"fsfreeze:{mounted}", f"exec:pre=touch {mounted}/file"], make_freezer=make_freezer)
    with pytest.raises(DeadlineError, match="took longer"), Quiesced(hooks, 0.5):
        pass
    assert time.monotonic() - began < 10
    (mounted / "other").write_text("thawed")


# ---- the real guest agent ----

_BLOCKED = (
    "guest-fsfreeze-freeze", "guest-fsfreeze-freeze-list", "guest-fsfreeze-thaw", "guest-fstrim", "guest-shutdown",
    "guest-suspend-disk", "guest-suspend-ram", "guest-suspend-hybrid", "guest-exec", "guest-file-open",
    "guest-set-time", "guest-set-vcpus", "guest-set-user-password",
)  # fmt: skip


@pytest.fixture(scope="session")
def qemu_ga(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The agent's program. From its package, but not installed: that would start it as a service."""
    if found := shutil.which("qemu-ga", path=os.environ["PATH"] + ":/usr/sbin:/usr/local/sbin"):
        return found
    folder = tmp_path_factory.mktemp("qemu-ga")
    try:
        for command in (["apt-get", "download", "qemu-guest-agent"], ["apt-get", "update"]):
            if subprocess.run(command, cwd=folder, capture_output=True, timeout=120).returncode == 0:
                break
        if not (packages := [*folder.glob("*.deb")]):
            subprocess.run(["apt-get", "download", "qemu-guest-agent"], cwd=folder, check=True, timeout=120)
            packages = [*folder.glob("*.deb")]
        subprocess.run(["dpkg", "-x", packages[0], folder], check=True, timeout=60)
        return str(next(folder.glob("usr/*bin/qemu-ga")))
    except (OSError, subprocess.SubprocessError, IndexError, StopIteration) as error:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"no qemu-ga: {error}")


@pytest.fixture
def guest(qemu_ga: str, tmp_path: Path) -> Iterator[Path]:
    """The socket of an agent that freezes nothing."""
    path = tmp_path / "qga.sock"
    command = [qemu_ga, "--method=unix-listen", f"--path={path}", f"--statedir={tmp_path}", f"--pidfile={tmp_path}/pid"]
    listed = subprocess.run([*command, "-b", "help"], capture_output=True, text=True).stdout
    assert "guest-fsfreeze-freeze" in listed
    process = subprocess.Popen([*command, "-b", ",".join(_BLOCKED)])
    try:
        wait_until(path.exists)
        # Not before it has been seen to refuse may anything here ask it for a freeze.
        agent = Agent(str(path))
        agent.connect(Patience(10))
        commands = {
            entry["name"]: entry["enabled"] for entry in agent.call("guest-info", Patience(10))["supported_commands"]
        }
        agent.close()
        assert not any(commands.get(name) for name in _BLOCKED)
        yield path
    finally:
        process.terminate()
        process.wait(20)


def test_the_real_agent_answers(guest: Path) -> None:
    agent = Agent(str(guest))
    try:
        for _ in range(2):  # a connection after another, as after a failure
            agent.connect(Patience(10))
            assert agent.call("guest-fsfreeze-status", Patience(10)) == "thawed"
            with pytest.raises(TimezeroError, match=r"the agent says: .*not-a-command"):
                agent.call("not-a-command", Patience(10))
            assert agent.call("guest-ping", Patience(10)) == {}
    finally:
        agent.close()


def test_what_the_real_agent_refuses_is_told(guest: Path, volume: dict[str, str]) -> None:
    outcome = timezero("backup", "disk", "--quiesce", f"qga:{guest}", "--json", env=volume)
    assert outcome.code == 1
    message = json.loads(outcome.out)["error"]
    assert "pre: the agent says: " in message and "guest-fsfreeze-freeze" in message
    # Whether it froze something all the same is not for it to say: so the thaw was tried, twice.
    assert "post: cannot be thawed, twice: the agent says: " in message


def test_half_a_request_of_an_earlier_client_does_no_harm(guest: Path) -> None:
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.connect(str(guest))
        client.sendall(b'{"execute": "guest-pi')
        agent = Agent(str(guest))
        client.close()
        agent.connect(Patience(10))
        assert agent.call("guest-ping", Patience(10)) == {}
        agent.close()
