"""The native part of the build: one static library of csrc, linked into every Cython extension, and one cffi module.

Everything is built in build/native-KEY, where KEY stands for the interpreter and the flags: a sanitizer build and an
ordinary one never share an object, and a second build compiles only what changed (pip hands out a new temporary
directory each time, so distutils alone would start afresh).

TIMEZERO_SANITIZE=address   build with AddressSanitizer and UBSan
TIMEZERO_CRASH_POINTS=1     build for the crash sweep (tz/crash.h, proof/crash): never for use
"""

from __future__ import annotations

import filecmp
import functools
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import NamedTuple

from setuptools import Extension, setup
from setuptools.command.build_clib import build_clib
from setuptools.command.build_ext import build_ext
from setuptools.errors import SetupError

MODULES = ("data", "io", "subsystem", "mover", "concordance")
SOURCES = sorted(path for module in MODULES for path in glob(f"csrc/{module}/*.c"))
#: Programs of the package, apart from the library: the watchdog is started before it is needed, and needs nothing then.
PROGRAMS = {"timezero/_linux/freezer": "csrc/watchdog/freezer.c"}
HEADERS = sorted(glob("csrc/**/*.h", recursive=True))
CYTHON = sorted(glob("src/timezero/_native/*.pyx"))
CYTHON_DEPENDS = [*CYTHON, *sorted(glob("src/timezero/_native/*.p[xy][di]"))]
SANITIZE = {
    "": [],
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer", "-O1"],
}


@dataclass(frozen=True)
class Toolchain:
    """Flags of everything that is compiled and linked here."""

    compile: list[str]
    link: list[str]

    @functools.cached_property
    def directory(self) -> Path:
        """Where the objects of exactly these flags and this interpreter are."""
        what = [sys.implementation.cache_tag, sysconfig.get_platform(), *self.compile, *self.link]
        what += [os.environ.get(name, "") for name in ("CC", "CFLAGS", "LDFLAGS")]
        return Path("build") / f"native-{hashlib.sha256(repr(what).encode()).hexdigest()[:12]}"


class Library(NamedTuple):
    """What pkg-config says of a library."""

    cflags: list[str]
    libs: list[str]
    version: str


def pkg_config(module: str, minimum: str = "0") -> Library | None:
    """None when it is not there, or too old."""
    tool = os.environ.get("PKG_CONFIG", "pkg-config")
    if shutil.which(tool) is None:
        raise SetupError("pkg-config is missing. Debian: apt install pkg-config")
    if subprocess.run([tool, "--exists", f"{module} >= {minimum}"], check=False).returncode != 0:
        return None
    cflags, libs, version = (
        subprocess.run([tool, option, module], check=True, capture_output=True, text=True).stdout.split()
        for option in ("--cflags", "--libs", "--modversion")
    )
    return Library(cflags, libs, version[0])


@functools.cache
def toolchain() -> Toolchain:
    """Looked up once, and only when something is compiled: making an sdist needs no libraries."""
    sanitize = os.environ.get("TIMEZERO_SANITIZE", "")
    if sanitize not in SANITIZE:
        raise SetupError(f"TIMEZERO_SANITIZE={sanitize} is not known; it may be: address")
    xxhash = pkg_config("libxxhash")
    if xxhash is None:
        raise SetupError("libxxhash is missing. Debian: apt install libxxhash-dev")
    uring = pkg_config("liburing", "2.3")
    if uring is None:
        print(
            "timezero: no liburing 2.3 or later: building with the thread engine only (apt install liburing-dev)",
            file=sys.stderr,
        )
    found = [xxhash, uring] if uring else [xxhash]
    have = ["-DTZ_HAVE_URING=1", f'-DTZ_URING_VERSION="{uring.version}"'] if uring else []
    # The core's asserts guard the data of a backup: they stay on, although Python's own flags say -DNDEBUG.
    flags = ["-std=gnu11", "-D_GNU_SOURCE", "-O2", "-g", "-UNDEBUG", "-fvisibility=hidden", "-pthread"]
    if os.environ.get("TIMEZERO_CRASH_POINTS") == "1":
        flags.append("-DTZ_CRASH_POINTS")
    cflags = [flag for library in found for flag in library.cflags]
    libs = [flag for library in found for flag in library.libs]
    return Toolchain(
        compile=[*flags, "-Icsrc/include", *have, *cflags, *SANITIZE[sanitize]],
        link=["-pthread", "-Wl,--exclude-libs,ALL", *libs, *SANITIZE[sanitize]],
    )


def stale(target: Path, inputs: Iterable[str | Path]) -> bool:
    """Must the target be made again? The rules of the build are one of its inputs."""
    if not target.exists():
        return True
    made = target.stat().st_mtime_ns
    return any(Path(path).stat().st_mtime_ns > made for path in [*inputs, "setup.py"])


def compile_if_stale(compiler, source: str, made: Path, inputs: list[str], flags: list[str], **options) -> None:
    """Compile one source to one object, unless that is newer than everything it is made of."""
    if not stale(made, [source, *inputs]):
        return
    made.parent.mkdir(parents=True, exist_ok=True)
    # The compiler class chooses a name below its output directory; ours does without the source's folders.
    built = compiler.compile([source], output_dir=f"{made}.d", extra_postargs=flags, **options)
    shutil.move(built[0], made)
    shutil.rmtree(f"{made}.d")


class BuildCore(build_clib):
    """libtz.a: only what changed is compiled, on all processors."""

    def finalize_options(self) -> None:
        super().finalize_options()
        # build_ext looks for the library here.
        self.build_clib = self.build_temp = str(toolchain().directory)

    def archive(self) -> Path:
        return toolchain().directory / "libtz.a"

    def build_libraries(self, libraries: list) -> None:
        archive = self.archive()
        # One archive, so names that are unique without their folders.
        made = [archive.parent / "core" / source.removeprefix("csrc/").replace("/", "_") for source in SOURCES]
        made = [path.with_suffix(".o") for path in made]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(self.compile, SOURCES, made))
        if stale(archive, made) or self.members(archive) != [path.name for path in made]:
            archive.unlink(missing_ok=True)
            archive.parent.mkdir(parents=True, exist_ok=True)
            subprocess.run(["ar", "rcs", archive, *made], check=True)

    def compile(self, source: str, made: Path) -> None:
        compile_if_stale(self.compiler, source, made, HEADERS, [*toolchain().compile, "-Wall", "-Wextra"])

    @staticmethod
    def members(archive: Path) -> list[str]:
        """A source that was removed leaves an object that must not stay in the archive."""
        return subprocess.run(["ar", "t", archive], check=True, capture_output=True, text=True).stdout.split()


class BuildExtensions(build_ext):
    """Cython and cffi extensions: translated, compiled and linked only when something they are made of changed."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.parallel = self.parallel or os.cpu_count()
        self.build_temp = str(toolchain().directory)

    def run(self) -> None:
        # In-place and editable builds do not run it by themselves.
        self.run_command("build_clib")
        super().run()

    def build_extensions(self) -> None:
        from Cython.Build import cythonize

        ours = [ext for ext in self.extensions if any(source.endswith(".pyx") for source in ext.sources)]
        translated = cythonize(
            ours, build_dir=str(toolchain().directory / "cython"), compiler_directives={"language_level": 3}, quiet=True
        )
        for ext, made in zip(ours, translated, strict=True):
            ext.sources = made.sources
        super().build_extensions()
        for name, source in PROGRAMS.items():
            self.build_program(name, source)

    def build_program(self, name: str, source: str) -> None:
        made = toolchain().directory / "programs" / Path(name).name
        if stale(made, [source]):
            made.parent.mkdir(parents=True, exist_ok=True)
            flags = [flag for flag in toolchain().compile if not flag.startswith(("-I", "-fsanitize"))]
            command = [*self.compiler.compiler, *flags, "-Wall", "-Wextra", source, "-o", str(made), "-pthread"]
            # Small, and locked in memory as a whole; where there is no static C library, the shared one is locked too.
            if subprocess.run([*command, "-static"], check=False, capture_output=True).returncode != 0:
                subprocess.run(command, check=True)
        self.install(made, self.program_path(name))

    def program_path(self, name: str) -> Path:
        """Beside the extension modules, wherever those go."""
        return Path(self.get_ext_fullpath(str(Path(name).parent / "_").replace("/", "."))).parent / Path(name).name

    def copy_extensions_to_source(self) -> None:
        """What an editable build does at its end."""
        super().copy_extensions_to_source()
        for name in PROGRAMS:
            self.install(toolchain().directory / "programs" / Path(name).name, self.program_path(name))

    def get_outputs(self) -> list[str]:
        return [*super().get_outputs(), *(str(self.program_path(name)) for name in PROGRAMS)]

    def build_extension(self, ext: Extension) -> None:
        made = toolchain().directory / "modules" / Path(self.get_ext_filename(ext.name)).name
        objects = [self.compile(ext, source, made.parent / ext.name) for source in ext.sources]
        archive = self.get_finalized_command("build_clib").archive()
        if stale(made, [*objects, archive]):
            # distutils puts -ltz before these, and so before the libraries that it needs (liburing may be static).
            link = [*toolchain().link, *(ext.extra_link_args or [])]
            inputs = [str(path) for path in objects]
            # The compiler class looks at the objects alone, and would leave out what is new in the archive.
            made.unlink(missing_ok=True)
            self.compiler.link_shared_object(inputs, str(made), extra_postargs=link, build_temp=self.build_temp)
        self.install(made, Path(self.get_ext_fullpath(ext.name)))

    @staticmethod
    def install(made: Path, target: Path) -> None:
        if not target.exists() or not filecmp.cmp(made, target, shallow=False):
            # A new file, not new content: a process may have the old one mapped.
            target.unlink(missing_ok=True)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(made, target)
            target.chmod(0o755)

    def compile(self, ext: Extension, source: str, directory: Path) -> Path:
        made = directory / f"{Path(source).stem}.o"
        flags = [*toolchain().compile, *(ext.extra_compile_args or [])]
        options = {"macros": ext.define_macros, "include_dirs": ext.include_dirs}
        compile_if_stale(self.compiler, source, made, ext.depends, flags, **options)
        return made


setup(
    libraries=[("tz", {"sources": SOURCES, "obj_deps": {"": HEADERS}, "include_dirs": ["csrc/include"]})],
    ext_modules=[
        Extension(
            f"timezero._native.{Path(path).stem}",
            [path],
            depends=[*CYTHON_DEPENDS, *HEADERS],
            include_dirs=["csrc/include"],
        )
        for path in CYTHON
    ],
    cffi_modules=["src/timezero/_linux/_build.py:ffi"],
    cmdclass={"build_clib": BuildCore, "build_ext": BuildExtensions},
)
