"""Checkpoints of more files than a process may have open, in processes that may have few."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import safetensors.torch as theirs
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemWriter

import holdfast
from holdfast.distributed.rank_file import Part, write_rank_file
from holdfast.formats.base import Document, Segment, StoredTensor
from holdfast.runs.layout import step_name
from holdfast.runs.sharded import Wanted, write_sharded
from holdfast.spec import TensorSpec
from holdfast.storage.atomic import StagedFolder
from holdfast.storage.source import MemorySource
from tests.distributed.launching import environment
from tests.runs.hand_made import facts

RANKS = 400
WEIGHT = torch.arange(2.0 * RANKS).reshape(RANKS, 2)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One weight, each row in a file of its own: as ranks write it, as shards with an index, as torch does."""
    root = tmp_path_factory.mktemp("many")
    folder = StagedFolder(root / "run", step_name(1))
    parts = []
    for rank in range(RANKS):
        row = Segment(MemorySource(WEIGHT[rank : rank + 1].numpy().tobytes()), 0, 8)
        part = Part("model.weight", StoredTensor(TensorSpec("float32", (1, 2)), row), (rank, 0))
        parts.append(write_rank_file(folder.partial, rank, [part], durable=False))
    tree = {"model": {"weight": Wanted("model.weight", TensorSpec("float32", (RANKS, 2)))}}
    write_sharded(folder, Document(tree), facts(1), parts)
    folder.commit()
    rows = {f"row.{n}": WEIGHT[n].clone() for n in range(RANKS)}
    theirs.save_file(rows, root / "rows.safetensors")
    holdfast.convert(root / "rows.safetensors", root / "shards", shards=RANKS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(rows, storage_writer=FileSystemWriter(root / "theirs", single_file_per_rank=False), no_dist=True)
    return root


def run(code: str, *args: object) -> None:
    """Runs a program that may have 64 descriptors."""
    limited = "import resource, sys\nresource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))\n" + code
    command = [sys.executable, "-c", limited, *map(str, args)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", ["run", "shards", "theirs"])
def test_every_verb_works_with_64_descriptors(many: Path, tmp_path: Path, name: str) -> None:
    code = """
import holdfast
from holdfast.cli.main import main
given, out = sys.argv[1:]
for verb in (["verify", given], ["inspect", given], ["convert", given, out + "/one.safetensors"],
             ["convert", given, out + "/shards", "--shards", "1"]):
    try:
        main(verb)
    except SystemExit as end:
        assert not end.code, verb
tree = holdfast.load(given)
flat = tree["model"] if "model" in tree else tree
import torch
net = {name: torch.zeros_like(tensor) for name, tensor in flat.items()}
import warnings
warnings.simplefilter("ignore")
import torch.distributed.checkpoint as dcp
from holdfast.distributed import HoldfastReader
into = {"model": net} if "model" in tree else net
dcp.load(into, storage_reader=HoldfastReader(given), no_dist=True)
assert all(torch.equal(net[name], flat[name]) for name in flat)
rows = flat["weight"] if "weight" in flat else torch.stack([flat[f"row.{n}"] for n in range(len(flat))])
assert torch.equal(rows, torch.arange(800.0).reshape(400, 2))
"""
    run(code, many / name, tmp_path)
    assert holdfast.verify(tmp_path / "one.safetensors").status == "OK"


@pytest.mark.timeout(120)
def test_a_model_is_restored_with_64_descriptors(many: Path) -> None:
    code = """
import holdfast, torch
net = torch.nn.Linear(2, 400, bias=False)
assert holdfast.restore(sys.argv[1], model=net).is_exact
assert torch.equal(net.weight.detach(), torch.arange(800.0).reshape(400, 2))
"""
    run(code, many / "run")


@pytest.mark.timeout(120)
def test_without_a_bound_64_descriptors_are_too_few(many: Path) -> None:
    """The check can fail."""
    code = """
import holdfast
from holdfast.errors import StorageError
from holdfast.storage import descriptors
descriptors._limit = lambda: 1000
descriptors._FULL = ()
try:
    holdfast.load(sys.argv[1])
except StorageError as error:
    sys.exit("Too many open files" not in str(error))
sys.exit(1)
"""
    run(code, many / "run")
