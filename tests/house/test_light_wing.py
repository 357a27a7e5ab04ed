"""Looking into files and runs needs neither torch nor numpy, and does not load them where they are installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import holdfast
from tests.house import layers
from tests.house.source_tree import modules

SRC = str(Path(holdfast.__file__).parents[1])

BLOCKED = """
import sys
sys.modules["torch"] = sys.modules["numpy"] = None      # importing them fails from here on
from holdfast.cli.main import main
sys.argv = ["holdfast", *sys.argv[1:]]
main()
"""


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": SRC, "NO_COLOR": "1"}
    command = [sys.executable, "-W", "error", "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)


def test_importing_the_light_wing_loads_no_torch() -> None:
    names = [m.name.removesuffix(".__init__") for m in modules() if m.room in layers.LIGHT - {"__main__"}]
    assert len(names) > 20
    code = f"""
import importlib, sys
for name in {names!r}:
    importlib.import_module(name)
    heavy = {{"torch", "numpy"}} & set(sys.modules)
    assert not heavy, f"{{name}} loads {{heavy}}"
"""
    done = python(code)
    assert done.returncode == 0, done.stderr


def test_the_check_would_see_torch() -> None:
    done = python("import sys, torch\nassert 'torch' not in sys.modules")
    assert done.returncode == 1


def test_importing_holdfast_loads_little() -> None:
    done = python("import sys, holdfast\nprint(*sorted({name.split('.')[0] for name in sys.modules}))")
    assert done.returncode == 0, done.stderr
    assert not {"torch", "numpy", "click", "rich"} & set(done.stdout.split())


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one file of each format and a run of two checkpoints."""
    folder = tmp_path_factory.mktemp("saved")
    net = torch.nn.Linear(4, 2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    holdfast.save({"model": net, "optimizer": optimizer, "epoch": 3}, folder / "ckpt.pt")
    holdfast.save(net, folder / "net.safetensors")
    torch.save(net.state_dict(), folder / "plain.pth")
    with holdfast.Run(folder / "run", model=net, optimizer=optimizer, best="loss:min", keep="last:2") as run:
        for epoch in run.epochs(2):
            for x in run.batches([torch.ones(4)] * 3):
                net(x).sum().backward()
                optimizer.step()
            run.end(epoch, loss=1.0 / (epoch + 1))
    return folder


@pytest.mark.parametrize("file", ["ckpt.pt", "net.safetensors", "plain.pth", "run", "run@best"])
@pytest.mark.parametrize("verb", [["inspect"], ["inspect", "--json"], ["verify"]])
def test_files_are_read_without_torch(saved: Path, verb: list[str], file: str) -> None:
    done = python(BLOCKED, *verb, str(saved / file))
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    assert done.stdout.strip()


@pytest.mark.parametrize("command", [["ls", "run"], ["show", "run@last"], ["path", "run@best"]])
def test_runs_are_read_without_torch(saved: Path, command: list[str]) -> None:
    done = python(BLOCKED, command[0], str(saved / command[1]))
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    assert "step" in done.stdout
