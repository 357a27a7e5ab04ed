from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True)
def steady(seeded: int) -> None:
    """Models and examples are the same in every order of the tests."""


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(2, 3, 8, 8)


@pytest.fixture
def left() -> Callable[[Path], list[str]]:
    """left(folder): the names of everything in a folder, hidden ones too."""

    def names(folder: Path) -> list[str]:
        return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))

    return names
