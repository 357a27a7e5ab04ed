"""Whole programs with torch.save and torch.load exchanged for ours: they run unchanged and print the same."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import holdfast

EXCHANGE = """
import runpy, sys
import torch
from holdfast import compat

class Counted:
    def __init__(self, call):
        self.call, self.times = call, 0
    def __call__(self, *args, **kwargs):
        self.times += 1
        return self.call(*args, **kwargs)

def gone(*args, **kwargs):
    raise AssertionError("torch's own implementation was used")

torch.save, torch.load = Counted(compat.save), Counted(compat.load)
for name in ("_save", "_load", "_legacy_save", "_legacy_load"):
    setattr(torch.serialization, name, gone)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
print("saves:", torch.save.times, "loads:", torch.load.times)
"""

TRAINING = '''
"""A training script that knows torch alone: checkpoints, resuming, the best model, a whole model, streams, mmap."""
import io, os, sys
import torch
from torch import nn

folder = sys.argv[1]
latest, best = os.path.join(folder, "latest.pth.tar"), os.path.join(folder, "best.pt")
torch.manual_seed(0)
inputs = torch.randn(64, 8)
targets = inputs.sum(1, keepdim=True)
net = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 1))
optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 6)
start, lowest = 0, float("inf")
if os.path.exists(latest):
    checkpoint = torch.load(latest, map_location="cpu", weights_only=True)
    net.load_state_dict(checkpoint["state_dict"])
    optimizer.load_state_dict(checkpoint["optimizer"])
    scheduler.load_state_dict(checkpoint["scheduler"])
    torch.set_rng_state(checkpoint["rng"])
    start, lowest = checkpoint["epoch"], checkpoint["lowest"]
    print("resumed at", start)
for epoch in range(start, start + 3):
    loss = nn.functional.mse_loss(net(inputs), targets)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    scheduler.step()
    print(epoch, loss.item().hex())
    state = {"epoch": epoch + 1, "state_dict": net.state_dict(), "optimizer": optimizer.state_dict()}
    state |= {"scheduler": scheduler.state_dict(), "rng": torch.get_rng_state(), "lowest": min(lowest, loss.item())}
    torch.save(state, latest)
    if loss.item() < lowest:
        lowest = loss.item()
        torch.save(net.state_dict(), best, _use_new_zipfile_serialization=epoch % 2 == 0)
buffer = io.BytesIO()
torch.save(net, buffer)
buffer.seek(0)
again = torch.load(buffer, weights_only=False)
net.eval(), again.eval()
assert torch.equal(net(inputs), again(inputs))
torch.save(net.state_dict(), best)
mapped = torch.load(best, mmap=True)
assert all(torch.equal(mapped[name], tensor) for name, tensor in net.state_dict().items())
try:
    torch.load(io.BytesIO(b""))
except EOFError as error:
    print("empty:", type(error).__name__)
'''


def run(folder: Path, *command: object) -> str:
    environment = {**os.environ, "PYTHONPATH": str(Path(holdfast.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    whole = [sys.executable, "-W", "error", *map(str, command)]
    done = subprocess.run(whole, capture_output=True, text=True, env=environment, cwd=folder, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def exchange(tmp_path: Path) -> Path:
    path = tmp_path / "exchange.py"
    path.write_text(EXCHANGE)
    return path


def test_the_tutorial(repository: Path, exchange: Path, tmp_path: Path) -> None:
    printed = run(tmp_path, exchange, repository / "examples" / "tutorial.py", tmp_path / "tutorial")
    saves, loads = map(int, re.search(r"saves: (\d+) loads: (\d+)", printed).groups())
    assert saves >= 1
    assert loads >= 2
    assert "net.pt: 10 tensors, equal: True" in printed


def test_a_training_script_resumes_from_either_and_is_the_same_to_the_last_bit(exchange: Path, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(TRAINING)
    printed = {}
    for first in ("theirs", "ours"):
        for second in ("theirs", "ours"):
            folder = tmp_path / f"{first}-{second}"
            folder.mkdir()
            pieces = [run(tmp_path, *([exchange] if who == "ours" else []), script, folder) for who in (first, second)]
            assert ("saves:" in pieces[0]) == (first == "ours")
            printed[first, second] = [line for text in pieces for line in text.splitlines() if "saves" not in line]
            final = torch.load(folder / "latest.pth.tar", weights_only=True)
            assert final["epoch"] == 6
    expected = printed["theirs", "theirs"]
    assert "resumed at 3" in expected
    assert printed == dict.fromkeys(printed, expected)
