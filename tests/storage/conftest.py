"""Shared by the tests of storage."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def open_files(tmp_path: Path) -> Callable[[], int]:
    """Counts this process's descriptors of what lies in the test's own folder; other tests' garbage stays out."""

    def count() -> int:
        found = 0
        for descriptor in Path("/proc/self/fd").iterdir():
            try:
                found += os.readlink(descriptor).startswith(str(tmp_path))
            except FileNotFoundError:  # the descriptor that lists them
                continue
        return found

    return count
