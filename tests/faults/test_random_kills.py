"""Trainings with every kind of loader, killed with SIGKILL at random batches and at random times."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

TRAINING = Path(__file__).parents[1] / "training"
POINTS = 5
SHARDS = 6


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("shard", range(SHARDS))
def test_every_loader_survives_kills_at_random_points(
    shard: int, repository: Path, tmp_path: Path, counted: Callable[[str], None]
) -> None:
    seed = random.SystemRandom().randrange(1 << 40)
    environment = {**os.environ, "PYTHONPATH": str(repository / "src")}
    listing = "import small_training; print(*small_training.LOADERS, sep=chr(10))"
    kinds = subprocess.run(
        [sys.executable, "-c", listing], cwd=TRAINING, env=environment, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert len(kinds) > 30
    for kind in kinds[shard::SHARDS]:
        root = tmp_path / kind.replace(",", "")
        root.mkdir()
        command = [sys.executable, str(TRAINING / "small_training.py"), str(root), kind, str(seed), str(POINTS)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        assert len(lines) == POINTS
        assert [line for line in lines if not line["same"]] == [], f"{kind}, seed {seed}"
    counted(f"random kills, shard {shard}: {POINTS} of a training with each of {len(kinds[shard::SHARDS])} loaders")
