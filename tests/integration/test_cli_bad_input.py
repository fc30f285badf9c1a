"""Bad input gets one clear line and the right exit code, and changes nothing."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.command import MIB, image, snapshot, succeed, timezero
from timezero.cli import main
from timezero.repository import opened

DEEP = "recovery-points/*/"


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place with sources, targets and a repository of two recovery points with two datasets."""
    place = tmp_path_factory.mktemp("template")
    image(place / "a.img", 3 * MIB + 17)
    image(place / "b.img", 2 * MIB, seed=2)
    (place / "twin").mkdir()
    image(place / "twin" / "a.img", MIB)
    os.link(place / "a.img", place / "alias.img")
    (place / "empty").mkdir()
    (place / "foreign").mkdir()
    (place / "foreign" / "thesis.txt").write_text("years of work")
    (place / "existing.img").write_bytes(b"precious")
    (place / "dangling").symlink_to("nowhere/at/all")
    os.mkfifo(place / "fifo")
    for _ in range(2):
        succeed("backup", "--repo", place / "repo", place / "a.img", place / "b.img")
    return place


@pytest.fixture
def place(template: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "place"
    for path in template.iterdir():
        copy.mkdir(exist_ok=True)
        if path.name == "fifo":
            os.mkfifo(copy / "fifo")
        elif path.name == "alias.img":
            os.link(copy / "a.img", copy / "alias.img") if (copy / "a.img").exists() else None
        elif path.is_dir():
            shutil.copytree(path, copy / path.name)
        else:
            shutil.copy2(path, copy / path.name, follow_symlinks=False)
    if not (copy / "alias.img").exists():
        os.link(copy / "a.img", copy / "alias.img")
    return copy


CASES = [
    # what the arguments are, exit code, words of the message
    ("", 2, "COMMAND"),
    ("fly", 2, "invalid choice"),
    ("copy a.img", 2, "TARGET"),
    ("copy a.img new.img --buffer 1X", 2, "not a size"),
    ("copy a.img new.img --buffer 1M", 2, "too small"),
    ("copy a.img new.img --rate -5", 2, "rate"),
    ("copy a.img new.img --depth 5000", 2, "out of range"),
    ("copy a.img new.img --mode fast", 2, "invalid choice"),
    ("verify --repo repo --mode full", 2, "unrecognized arguments: --mode"),
    ("restore --repo repo latest/a.img new.img --mode full", 2, "unrecognized arguments: --mode"),
    ("copy a.img new.img --chunk-size 3M", 2, "power of two"),
    ("copy a.img new.img --chunk-size 64M", 2, "16 MiB"),
    ("copy a.img new.img --track-size 1K", 2, "track"),
    ("copy a.img new.img --deadline 0", 2, "no time"),
    ("copy ./missing new.img", 1, "No such file"),
    ("copy empty new.img", 1, "neither a file nor a block device"),
    ("copy fifo new.img", 1, "neither a file nor a block device"),
    ("copy /dev/null new.img", 1, "neither a file nor a block device"),
    ("copy dangling new.img", 1, "No such file"),
    ("copy a.img existing.img", 1, "--force"),
    ("copy a.img empty", 1, "is a directory"),
    ("copy a.img fifo", 1, "neither a file nor a block device"),
    ("copy a.img nowhere/new.img", 1, "there is no directory"),
    ("copy a.img dangling", 1, "link to nothing"),
    ("copy a.img a.img --force", 2, "same as the source"),
    ("copy a.img alias.img --force", 2, "same as the source"),
    ("copy x= new.img", 2, "lacks its path"),
    ("copy disk1 new.img --control nobody.sock", 1, "nobody.sock"),
    ("copy disk1 new.img --control dead.sock", 1, "dead.sock"),
    ("backup --repo new", 2, "DATASET"),
    ("backup a.img", 2, "--repo"),
    ("backup --repo new ./missing", 1, "No such file"),
    ("backup --repo new a.img twin/a.img", 2, "two datasets"),
    ("backup --repo new a.img alias.img", 2, "name it once"),
    ("backup --repo foreign a.img", 10, "not empty"),
    ("backup --repo a.img b.img", 10, "no repository"),
    ("backup --repo nowhere/new a.img", 10, "no directory"),
    ("backup --repo new disk1 --control nobody.sock", 1, "nobody.sock"),
    ("list", 2, "--repo"),
    ("list --repo new", 10, "no repository"),
    ("list --repo empty", 10, "no repository"),
    ("list --repo foreign", 10, "no repository"),
    ("list --repo a.img", 10, "no repository"),
    ("show --repo repo nonsense", 2, "no recovery point"),
    ("show --repo repo 2", 2, "could be"),
    ("verify --repo repo ../..", 2, "no recovery point"),
    ("restore --repo repo latest/c.img new.img", 2, "no dataset is or matches"),
    ("restore --repo repo latest/ new.img", 2, "lacks its dataset"),
    ("restore --repo repo latest existing.img", 2, "POINT/DATASET"),
    ("restore --repo repo latest -", 2, "POINT/DATASET"),
    ("restore --repo repo latest/a.img existing.img", 1, "--force"),
    ("restore --repo repo latest/a.img nowhere/new.img", 1, "there is no directory"),
    ("restore --repo repo latest .", 1, "--force"),
    ("restore --repo repo latest/a.img repo/packs/new.img", 2, "in the repository"),
    ("restore --repo repo latest repo/packs", 2, "in the repository"),
    ("prune --repo repo --keep 0", 2, "at least one"),
    ("prune --repo repo --keep x", 2, "not a number"),
    ("prune --repo repo --point nonsense", 2, "no recovery point"),
    ("status --control nobody.sock", 1, "nobody.sock"),
]


def told(err: str) -> None:
    assert err.startswith("timezero: ") and err.endswith("\n") and err.count("\n") == 1, err


@pytest.fixture
def signals() -> Iterator[None]:
    """The handlers that the command line installs are not for the process that runs the tests."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize(("words", "code", "message"), CASES, ids=[case[0] or "nothing" for case in CASES])
def test_bad_input(
    place: Path,
    words: str,
    code: int,
    message: str,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    signals: None,
) -> None:
    """In this process: there are many cases, and starting Python takes most of their time."""
    for variable in ("TIMEZERO_REPO", "TIMEZERO_CONTROL", "TIMEZERO_IO"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(place)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind("dead.sock")
    before = snapshot(place)
    try:
        ended = main(words.split())
    except SystemExit as error:
        ended = error.code
    out, err = capfd.readouterr()
    told(err)
    assert message in err
    assert (ended, out) == (code, "")
    assert snapshot(place) == before


DAMAGE = [
    ("repo/repository.json", 6),
    ("repo/recovery-points/*/manifest.json", 6),
    ("repo/recovery-points/*/a.img.idx", 6),
    ("repo/packs/*.pack", 6),
]


@pytest.mark.parametrize("how", ["altered", "truncated", "emptied", "removed"])
@pytest.mark.parametrize(("pattern", "code"), DAMAGE, ids=[case[0].rpartition("/")[2] for case in DAMAGE])
def test_damage_is_named_and_nothing_is_restored(place: Path, pattern: str, code: int, how: str) -> None:
    victim = sorted(place.glob(pattern))[-1]
    if how == "altered":
        content = bytearray(victim.read_bytes())
        content[len(content) // 3] ^= 0x40
        victim.write_bytes(content)
    elif how == "removed":
        victim.unlink()
    else:
        os.truncate(victim, 0 if how == "emptied" else victim.stat().st_size - 1)
    before = snapshot(place)
    if (victim.name, how) == ("repository.json", "removed"):
        code = 10
    if (victim.name, how) == ("manifest.json", "removed"):
        # Without its manifest a recovery point does not exist, and the older one is the latest.
        assert succeed("verify", "--repo", place / "repo")["intact"]
        assert len(succeed("list", "--repo", place / "repo")["points"]) == 1
        return
    restored = timezero("restore", "--repo", place / "repo", "latest", place / "restored")
    told(restored.err)
    assert restored.code == code
    verified = timezero("verify", "--repo", place / "repo", "latest")
    assert verified.code == code
    if code == 6:
        assert (".img: damaged" if victim.suffix == ".pack" and how == "altered" else victim.name) in verified.err
    assert snapshot(place) == before


def test_all_damage_is_reported(place: Path) -> None:
    pack = sorted(place.glob("repo/packs/*.pack"))[-1]
    content = bytearray(pack.read_bytes())
    for offset in range(0, len(content), MIB):
        content[offset + 5] ^= 1
    pack.write_bytes(content)
    outcome = timezero("verify", "--repo", place / "repo", "latest", "--json")
    assert outcome.code == 6
    found = {(damage["dataset"], damage["offset"]) for damage in outcome.document["damage"]}
    # Each file has data in its first two MiB and in its fourth chunk and after; zeros and holes are stored nowhere.
    assert found == {("a.img", 0), ("a.img", MIB), ("b.img", 0), ("b.img", MIB)}
    assert outcome.document["intact"] is False
    listed = timezero("verify", "--repo", place / "repo")
    assert listed.code == 6
    assert listed.err.count("damaged at byte") == 4


def test_damaged_points_are_listed_as_such(place: Path) -> None:
    manifest = sorted(place.glob("repo/recovery-points/*/manifest.json"))[0]
    manifest.write_text("{}")
    outcome = timezero("list", "--repo", place / "repo")
    assert outcome.code == 6
    assert b"DAMAGED" in outcome.out
    told(outcome.err)
    document = timezero("list", "--repo", place / "repo", "--json").document
    assert [len(document["points"]), len(document["damaged"])] == [1, 1]


def test_locked(place: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, signals: None) -> None:
    monkeypatch.setattr(opened, "_PATIENCE_S", 0.2)
    with open(place / "repo" / "repository.json", "rb+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        before = snapshot(place)
        for words in (["prune"], ["backup", str(place / "a.img")]):
            assert main([words[0], "--repo", str(place / "repo"), *words[1:]]) == 11
            told(capfd.readouterr().err)
        assert snapshot(place) == before


def test_newer_format(place: Path) -> None:
    from timezero.repository import documents

    path = place / "repo" / "repository.json"
    path.write_bytes(documents.render({"format": 9, "what": "nobody knows"}))
    before = snapshot(place)
    for words in (["list"], ["verify"], ["restore", "latest", place / "x"], ["backup", place / "a.img"], ["prune"]):
        outcome = timezero(words[0], "--repo", place / "repo", *words[1:])
        assert (outcome.code, "newer timezero" in outcome.err) == (1, True)
        told(outcome.err)
    assert snapshot(place) == before


def test_names_cannot_write_to_a_terminal(place: Path) -> None:
    outcome = timezero("copy", "./\x1b[31mevil\nname", place / "x", cwd=place)
    assert outcome.code == 1
    told(outcome.err)
    assert "\x1b" not in outcome.err


def test_errors_as_documents(place: Path) -> None:
    outcome = timezero("restore", "--repo", place / "repo", "latest/a.img", place / "existing.img", "--json")
    assert outcome.code == 1
    assert outcome.document["exit_code"] == 1
    assert "--force" in outcome.document["error"]
    told(outcome.err)


def test_engine_of_the_environment(place: Path) -> None:
    outcome = timezero("copy", place / "a.img", place / "new.img", env={"TIMEZERO_IO": "magic"})
    assert outcome.code == 2
    assert "TIMEZERO_IO" in outcome.err
    assert not (place / "new.img").exists()
