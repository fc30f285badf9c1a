"""Prints what pyproject.toml asks for, one requirement a line: build, run time, test; and the extras that are named."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

pyproject = tomllib.loads(Path("pyproject.toml").read_text())
project = pyproject["project"]
wanted = [*pyproject["build-system"]["requires"], *project["dependencies"]]
for extra in ["test", *sys.argv[1:]]:
    wanted += project["optional-dependencies"][extra]
print("\n".join(dict.fromkeys(wanted)))
