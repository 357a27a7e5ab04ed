"""What the tests of the rules share: a script as text, linted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from holdfast.lint.linting import Finding, lint

Lint = Callable[..., tuple[Finding, ...]]


@pytest.fixture
def found(tmp_path: Path) -> Lint:
    """found(text) writes a script and gives what lint finds in it."""

    def run(text: str | bytes, name: str = "script.py", **options: object) -> tuple[Finding, ...]:
        file = tmp_path / name
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return lint(str(file), **options).findings  # type: ignore[arg-type]

    return run
