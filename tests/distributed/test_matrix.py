"""Saved under one wrapper on some ranks, loaded under another on others: to the bit; and by one process alone."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import holdfast
from holdfast.cli.main import main as command
from holdfast.errors import CorruptFile
from tests.distributed.launching import torchrun
from tests.distributed.matrix import SAVES
from tests.distributed.wrapped import Net, differences


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every save of the matrix, with its truth beside it; the loads have been compared by then."""
    folder = tmp_path_factory.mktemp("matrix")
    torchrun(4, "matrix.py", folder)
    return folder


def truth(saved: Path, name: str) -> Any:
    return torch.load(saved / f"{name}.truth")


@pytest.mark.timeout(180)
@pytest.mark.parametrize("name", SAVES)
def test_one_process_reads_what_many_wrote(saved: Path, name: str) -> None:
    assert holdfast.verify(saved / name).status == "OK"
    assert differences(truth(saved, name), holdfast.load(saved / name)) == []
    net = Net()
    report = holdfast.restore(saved / name, model=net)
    assert len(report.loaded) == len(net.state_dict())
    assert differences(truth(saved, name)["model"], dict(net.state_dict())) == []


@pytest.mark.timeout(180)
def test_there_is_a_container_for_each_rank_and_no_pickle(saved: Path) -> None:
    names = sorted(os.listdir(saved / "fsdp-4"))
    assert names == ["entries.json", "manifest.json", *(f"rank-{n:05d}.safetensors" for n in range(4)), "state.json"]
    for name in names[2:-1]:
        assert load_file(saved / "fsdp-4" / name), "a plain reader opens each container"
    for name in names:
        assert b"\x80\x02" not in (saved / "fsdp-4" / name).read_bytes()[:2]


@pytest.mark.timeout(180)
def test_what_is_replicated_is_written_once_and_spread(saved: Path) -> None:
    sizes = [os.path.getsize(saved / "ddp-4" / f"rank-{n:05d}.safetensors") for n in range(4)]
    held = sum(t.nbytes for t in _tensors(truth(saved, "ddp-4")))
    assert sum(sizes) < held + 4 * 8000  # headers
    with holdfast.open(saved / "ddp-4") as ckpt:
        assert sum(ckpt[name].spec.nbytes for name in ckpt) == held


def _tensors(tree: Any) -> list[torch.Tensor]:
    if isinstance(tree, dict):
        return [one for value in tree.values() for one in _tensors(value)]
    return [tree] if isinstance(tree, torch.Tensor) else []


@pytest.mark.timeout(180)
def test_a_sharded_checkpoint_becomes_one_file(saved: Path, tmp_path: Path) -> None:
    holdfast.convert(saved / "fsdp+tp-4", tmp_path / "one.safetensors")
    whole = load_file(tmp_path / "one.safetensors")
    assert torch.equal(whole["model.up.weight"], truth(saved, "fsdp+tp-4")["model"]["up.weight"])
    assert differences(truth(saved, "fsdp+tp-4"), holdfast.load(tmp_path / "one.safetensors")) == []


@pytest.mark.timeout(180)
@pytest.mark.parametrize("ranks", [2, 3])
def test_shards_and_a_single_file_go_back_onto_many_ranks(saved: Path, tmp_path: Path, ranks: int) -> None:
    place = tmp_path / "converted"
    holdfast.convert(saved / "fsdp-4", place / "one.safetensors")
    assert holdfast.convert(place / "one.safetensors", place / "shards", shards=4).shards == 4
    shutil.copy(saved / "fsdp-4.truth", place / "truth")
    assert torchrun(ranks, "run_together.py", "converted", tmp_path).count("done") == ranks


@pytest.mark.timeout(180)
def test_the_command_line_shows_whole_tensors(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command(["inspect", str(saved / "fsdp-4"), "--json"])
    assert not ended.value.code
    shapes = {one["name"]: one["shape"] for one in json.loads(capsys.readouterr().out)["tensors"]}
    assert shapes["model.up.weight"] == [12, 5]
    assert "model.up.weight.0:3,0:5" not in shapes


@pytest.mark.timeout(180)
@pytest.mark.parametrize("rank", [0, 3])
def test_a_flipped_bit_is_located_to_the_tensor(saved: Path, tmp_path: Path, rank: int) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(saved / "fsdp-4", copy)
    file = copy / f"rank-{rank:05d}.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 4
    file.chmod(0o644)
    file.write_bytes(data)
    assert holdfast.verify(copy).findings[0].name.startswith(("model.", "optim."))
    with pytest.raises(CorruptFile, match="corrupt"):
        holdfast.load(copy)
