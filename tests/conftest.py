"""What every test may ask for: the corpus of real files, seeds, a folder for a run."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

# Each worker computes on one core: small models are slower when every worker asks for all of them.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parents[1]
MATERIAL = Path(os.environ.get("HOLDFAST_MATERIAL", ROOT.parent / "shared" / "material"))


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def material() -> Path:
    """The folder of files that older torch versions wrote; without it the test is skipped and says so."""
    if not MATERIAL.is_dir():
        pytest.skip(f"no real files at {MATERIAL}; set HOLDFAST_MATERIAL to the folder that has torch_history/")
    return MATERIAL


@pytest.fixture
def seeded() -> Iterator[int]:
    """The seed that python, numpy and torch start this test from; their states are put back afterwards."""
    import numpy as np
    import torch

    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    seed = 1234
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    yield seed
    random.setstate(before[0])
    np.random.set_state(before[1])
    torch.set_rng_state(before[2])


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """Where a run may be made; the folder is not there yet."""
    return tmp_path / "runs" / "a"
