"""benchmarks/gpu.py where there is no GPU."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import holdfast
from holdfast.training.snapshots.staging import host_memory
from tests.training.late_stream import Api


class Counting(Api):
    """A device that counts no memory and has nothing to wait for."""

    def synchronize(self, _: torch.device) -> None:
        pass

    def memory_allocated(self, _: torch.device) -> int:
        return 0

    max_memory_allocated = memory_allocated

    def reset_peak_memory_stats(self, _: torch.device) -> None:
        pass


@pytest.fixture
def gpu(repository: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(repository / "benchmarks")
    return importlib.import_module("gpu")


@pytest.fixture
def bench(gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(gpu, "GPT2", lambda layers: torch.nn.Linear(50, 3 + layers))
    return gpu.Bench(torch.device("cpu"), Counting(), tmp_path, pairs=1, layers=1)


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_so(repository: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(repository / "benchmarks" / "gpu.py"), "--pairs=1"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(holdfast.__file__).parents[1])},
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "no GPU here\n", "")


def test_its_rows_are_made(gpu: ModuleType, bench: Any) -> None:
    rows = [*gpu.saves(bench), *gpu.drains(bench, host_memory), *gpu.restores(bench)]
    assert [row[0] for row in rows] == [
        "run.save() returns",
        "before the next step",
        "torch.save returns",
        "drain: one pinned copy",
        "drain: ours",
        "restore: torch.load",
        "restore: ours .pt",
        "restore: ours .safetensors",
        "restore: ours, torch's .pt",
    ]
    assert [row[4] for row in rows if row[4]] == ["<= 2 ms", ">= 0.9x the probe", *["<= 0.25x torch"] * 3]


def test_a_restore_that_is_wrong_is_seen(gpu: ModuleType, bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holdfast, "restore", lambda *_, **__: None)
    with pytest.raises(SystemExit, match=r"ours .pt: what was restored is not what was saved"):
        gpu.restores(bench)
