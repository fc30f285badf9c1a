"""All Python fuzz targets, and their kept inputs."""

from __future__ import annotations

from pathlib import Path

from tests.fuzz import protocols, stored, texts
from tests.fuzz.base import Target

CORPUS = Path(__file__).with_name("corpus")
TARGETS = {target.name: target for target in (*protocols.TARGETS, *stored.TARGETS, *texts.TARGETS)}


def kept(target: Target) -> list[Path]:
    """Inputs that once broke it, or reach what no other does."""
    return sorted(path for path in (CORPUS / target.name).glob("*") if path.is_file())
