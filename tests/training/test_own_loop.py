"""A loop that counts for itself: signals wait for its next save, and say so."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import holdfast
from holdfast.errors import ArgumentError
from holdfast.runs.catalog import scan

SCRIPT = """
import os, signal, sys, torch, holdfast
net = torch.nn.Linear(600, 600)
optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
run = holdfast.Run(sys.argv[1], model=net, optimizer=optimizer, save="signal", background=sys.argv[2] == "background")
at = run.resume()
for step in range(at.step if at else 0, 10):
    net(torch.ones(600)).sum().backward()
    if step == 3 and at is None:
        os.kill(os.getpid(), signal.SIGTERM)
        print("goes on", flush=True)
    optimizer.step()
    if step % 2:
        run.save(step=step + 1)
        print("saved", step + 1, flush=True)
run.close()
"""


def train(root: Path, how: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", SCRIPT, str(root), how]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=100)


@pytest.mark.parametrize("how", ["background", "foreground"])
def test_a_signal_waits_for_the_next_save(how: str, run_dir: Path) -> None:
    stopped = train(run_dir, how)
    assert stopped.returncode == 143
    assert stopped.stdout == "saved 2\ngoes on\n"  # the save of step 4 ended the program, when it was on the disk
    assert "signal 15: the next run.save() saves, then leaving" in stopped.stderr
    assert [one.step for one in scan(run_dir).readable] == [2, 4]
    again = train(run_dir, how)
    assert (again.returncode, again.stdout) == (0, "saved 6\nsaved 8\nsaved 10\n")


def test_a_part_of_the_run_itself_is_no_name_for_an_object(run_dir: Path) -> None:
    with pytest.raises(ArgumentError, match="'ranks' is a part that the run writes itself; give the object another"):
        holdfast.Run(run_dir, model=torch.nn.Linear(1, 1), ranks=torch.nn.Linear(1, 1))
