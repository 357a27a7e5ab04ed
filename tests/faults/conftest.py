"""What the long tests counted, printed at the end of ``make faults``; how a test starts a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from holdfast.runs import placing, shards
from holdfast.storage import staged
from holdfast.storage.workers import PAGE
from tests.faults.scenarios import SMALL, resize

Script = Callable[..., list[dict[str, Any]]]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    lines = [
        str(text)
        for report in terminalreporter.getreports("passed")
        for name, text in report.user_properties
        if name == "counted"
    ]
    if lines:
        terminalreporter.section("counted")
        for line in sorted(lines):
            terminalreporter.line(line)


@pytest.fixture
def counted(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """counted("3 of 4") is printed at the end."""
    return lambda text: record_property("counted", text)


@pytest.fixture
def script(repository: Path) -> Script:
    """script("killing", ...) runs a file of this folder in a process of its own; the JSON lines that it printed."""

    def run(name: str, *arguments: object, timeout: int = 100) -> list[dict[str, Any]]:
        done = subprocess.run(
            [sys.executable, "-m", f"tests.faults.{name}", *map(str, arguments)],
            cwd=repository,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(repository / "src"), str(repository)])},
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    return run


@pytest.fixture
def memory_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one: what a killed process wrote is in the page cache on any disk."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(prefix="holdfast-faults-", dir="/dev/shm") as folder:
        yield Path(folder)


@pytest.fixture
def small_files_are_linked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run links files here as it does large ones."""
    monkeypatch.setattr(placing, "SPLIT", SMALL)
    monkeypatch.setattr(shards, "SPLIT", SMALL)


@pytest.fixture
def files_go_past_the_cache(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Files of a few pages are written past the page cache here, as large ones are."""
    monkeypatch.setattr(staged, "_DIRECT", PAGE)
    resize(40, 50, 40)
    yield
    resize(3)
