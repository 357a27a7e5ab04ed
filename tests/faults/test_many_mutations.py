"""The search of tests/hostile/test_mutations.py for minutes, from another place each time."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.hostile import mutations


@pytest.mark.long
@pytest.mark.timeout(900)
def test_many_changed_files(repository: Path, tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(1 << 40)
    mutations.judge(mutations.fuzzed(repository, tmp_path, seed=seed, seconds=300), enough=5000)
