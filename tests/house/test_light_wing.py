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


def test_importing_holdfast_loads_nothing_else() -> None:
    done = python("import sys; before = set(sys.modules)\nimport holdfast\nprint(*set(sys.modules) - before)")
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) <= {"holdfast", "__future__"}


LOOKING = """
import sys
from holdfast.cli.main import main
try:
    main()
finally:
    print(*sys.modules, file=sys.stderr)
"""
WRITERS = {"storage.atomic", "storage.staged", "storage.output", "storage.workers", "formats.packing", "formats.emit"}
TABLES = {"state.kinds", "state.lowering", "state.lifting", "state.plain"}
RARE = {"argparse", "concurrent.futures", "dataclasses", "difflib", "fractions", "hashlib", "json", "logging"}
RARE |= {"pathlib", "rich", "zoneinfo"}


def loaded(*arguments: str) -> set[str]:
    """The modules that a verb loads."""
    done = python(LOOKING, *arguments)
    assert done.returncode == 0, done.stderr
    return set(done.stderr.split())


# What is loaded is most of the time that a look into a small file takes: a module more costs each call of every verb.
@pytest.mark.parametrize(
    ("verb", "file", "most"),
    [
        ("inspect", "net.safetensors", 35),
        ("inspect", "ckpt.pt", 38),
        ("inspect", "plain.pth", 50),
        ("inspect", "run", 42),
        ("ls", "run", 30),
        ("path", "run@last", 28),
    ],
)
def test_looking_loads_only_what_it_needs(saved: Path, verb: str, file: str, most: int) -> None:
    found = loaded(verb, str(saved / file))
    assert not RARE & found
    assert not {f"holdfast.{name}" for name in WRITERS | TABLES} & found
    ours = {name for name in found if name.startswith("holdfast")}
    assert len(ours) <= most, sorted(ours)
    assert "holdfast.runs.manifest" in ours or not file.startswith("run")
    assert "holdfast.runs.manifest" not in ours or file.startswith("run")


def test_the_check_would_see_a_writer(saved: Path, tmp_path: Path) -> None:
    found = loaded("convert", str(saved / "net.safetensors"), str(tmp_path / "net.pt"))
    assert {f"holdfast.{name}" for name in WRITERS} <= found
    assert "holdfast.state.kinds" in found
    assert RARE & found


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
