"""Tests that cannot work in a build with sanitizers (make asan) say why; everywhere else they run."""

from __future__ import annotations

from pathlib import Path

import pytest

IS_SANITIZED = "/libasan.so" in Path("/proc/self/maps").read_text()


def not_with_asan(reason: str) -> pytest.MarkDecorator:
    """A mark for a test, or for all of a module."""
    return pytest.mark.skipif(IS_SANITIZED, reason=f"not under AddressSanitizer: {reason}")
