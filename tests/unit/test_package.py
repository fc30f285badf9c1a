"""What is packed: the metadata, an sdist that is whole, and a wheel made from nothing but that sdist."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

import timezero._version

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(ROOT.glob("csrc/**/*.[ch]"))
TYPED = sorted(ROOT.glob("src/timezero/**/*.pyi"))


def python(*arguments: str | Path, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist, unpacked."""
    place = tmp_path_factory.mktemp("sdist")
    program = "import sys; from setuptools import build_meta; print(build_meta.build_sdist(sys.argv[1]))"
    python("-c", program, place, cwd=ROOT)
    [archive] = place.glob("*.tar.gz")
    shutil.unpack_archive(archive, place)
    return place / archive.name.removesuffix(".tar.gz")


@pytest.fixture(scope="module")
def wheel(unpacked: Path) -> Path:
    """A wheel built from the sdist alone, as pip does it."""
    arguments = ("--no-build-isolation", "--no-deps", "--no-index", "--wheel-dir", unpacked.parent)
    python("-m", "pip", "wheel", "-q", *arguments, unpacked, cwd=unpacked.parent)
    [wheel] = unpacked.parent.glob("*.whl")
    return wheel


def test_metadata_of_the_installed_package() -> None:
    found = metadata.metadata("timezero")
    assert found["Name"] == "timezero"
    assert found["Version"] == timezero._version.__version__
    assert found["Requires-Python"] == ">=3.11"
    assert found["License-Expression"] == "Apache-2.0"
    [command] = [entry for entry in metadata.entry_points(group="console_scripts") if entry.name == "timezero"]
    assert command.value == "timezero.cli:main"


def test_sdist_holds_every_source(unpacked: Path) -> None:
    sources = [*SOURCES, *TYPED, *ROOT.glob("src/timezero/**/*.py*[xdiy]"), ROOT / "LICENSE", ROOT / "README.md"]
    assert len(sources) > 40
    missing = [path for path in sources if not (unpacked / path.relative_to(ROOT)).exists()]
    assert missing == []
    assert list(unpacked.rglob("*.so")) == []


def test_wheel_holds_types_and_every_extension(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        watchdog = archive.getinfo("timezero/_linux/freezer")
    assert watchdog.external_attr >> 16 & 0o111 == 0o111, "it is a program"
    for path in [*TYPED, ROOT / "src/timezero/py.typed"]:
        assert str(path.relative_to(ROOT / "src")) in names
    extensions = {name.rsplit("/", 1)[1].split(".")[0] for name in names if name.endswith(".so")}
    assert extensions == {"_cffi", *(path.stem for path in ROOT.glob("src/timezero/_native/*.pyx"))}
    assert not [name for name in names if name.endswith((".c", ".h", ".pyx"))]


def test_wheel_works_where_it_is_unpacked(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import timezero; from timezero import _linux; from timezero._native import engine\n"
        "_linux.memfd_seals(); engine.probe_uring(); print(timezero.__file__)"
    )
    where = python("-I", "-c", program, tmp_path, cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(tmp_path)


def test_no_symbol_of_the_core_shows(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if "/engine." in name and name.endswith(".so")]
        library = archive.extract(name, tmp_path)
    shown = subprocess.run(
        ["nm", "--dynamic", "--defined-only", library], capture_output=True, text=True, timeout=60, check=True
    ).stdout.split()
    assert "PyInit_engine" in shown
    assert [symbol for symbol in shown if symbol.startswith("tz_")] == []
