"""Folders of torch.distributed.checkpoint: what torch wrote is read, without its reader and without a process group."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

import holdfast
from holdfast.errors import ArgumentError, CorruptFile, NotFound, UnknownFormat
from holdfast.formats.detect import open_path
from holdfast.runs.opening import open_any
from holdfast.runs.verify import verify
from holdfast.serialization.reading import read_tree
from tests.formats.dcp_material import FILE, folder

alone = pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")


def load(path: Path) -> Any:
    with open_path(path) as container:
        assert container.format == "dcp"
        return read_tree(container.document().tree, str(path))


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def equal(left: Any, right: Any) -> bool:
    """Values of one type, tensors bit by bit."""
    if isinstance(left, torch.Tensor):
        same = left.dtype == right.dtype and left.shape == right.shape and left.requires_grad == right.requires_grad
        return same and bits(left).equal(bits(right))
    if isinstance(left, dict):
        return list(left) == list(right) and all(equal(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return type(left) is type(right) and len(left) == len(right) and all(map(equal, left, right))
    return type(left) is type(right) and bool(left == right)


@alone
def test_what_torch_writes_alone(tmp_path: Path) -> None:
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    opt = torch.optim.Adam(net.parameters())
    net(torch.randn(2, 3)).sum().backward()
    opt.step()
    state = {
        "model": {name: value.detach() for name, value in net.state_dict().items()},
        "optim": opt.state_dict(),
        "kinds": {
            str(dtype): torch.arange(6).to(dtype).reshape(2, 3)
            for dtype in (torch.bfloat16, torch.float16, torch.float64, torch.bool, torch.int8, torch.complex64)
        },
        "columns": torch.arange(6.0).reshape(2, 3).t(),
        "slice": torch.arange(100.0)[:10],
        "scalar": torch.tensor(2.5),
        "none": torch.empty(0, 3),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "lr": 0.1,
        "name": "é",
        "flags": [1, torch.ones(2), {"a": None}],
        "plain": [1, (2, 3)],
    }
    dcp.save(state, checkpoint_id=tmp_path / "ckpt")
    found = load(tmp_path / "ckpt")
    state["optim"]["state"] = {str(key): value for key, value in state["optim"]["state"].items()}
    state["parameter"] = torch.ones(2, requires_grad=True)
    assert list(found) == list(state)
    for key in state:
        assert equal(found[key], state[key]), key
    assert verify(tmp_path / "ckpt").status == "OK"


def by_name(tree: Any) -> Any:
    return {key: by_name(tree[key]) for key in sorted(tree)} if isinstance(tree, dict) else tree


def test_what_two_processes_write_together(tmp_path: Path) -> None:
    script = Path(__file__).with_name("two_ranks.py")
    arguments = [str(tmp_path / "store"), str(tmp_path / "ckpt"), str(tmp_path / "whole.pt")]
    ranks = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", str(script), str(rank), *arguments],
            env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for rank in ranks:
        _, errors = rank.communicate(timeout=110)
        assert rank.returncode == 0, errors
    assert sorted(path.name for path in (tmp_path / "ckpt").iterdir()) == [".metadata", "__0_0.distcp", "__1_0.distcp"]
    whole = torch.load(tmp_path / "whole.pt")
    found = load(tmp_path / "ckpt")
    assert equal(by_name(found), by_name(whole))  # torch itself changes the order
    assert verify(tmp_path / "ckpt").status == "OK"


def quarters(shape: tuple[int, int], rows: int, columns: int) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    return [
        ((0, 0), (rows, columns)),
        ((0, columns), (rows, shape[1] - columns)),
        ((rows, 0), (shape[0] - rows, columns)),
        ((rows, columns), (shape[0] - rows, shape[1] - columns)),
    ]


def test_rectangles_in_several_files(tmp_path: Path) -> None:
    values = {"w": torch.randn(5, 7), "a.b": torch.arange(12).reshape(3, 4)}
    boxes = {"w": quarters((5, 7), 2, 3), "a.b": quarters((3, 4), 1, 4)}
    found = load(folder(tmp_path / "ckpt", values, boxes, files=3))
    assert found["w"].equal(values["w"])
    assert found["a"]["b"].equal(values["a.b"])


def test_every_verb_takes_such_a_folder(tmp_path: Path) -> None:
    values = {"weight": torch.randn(2, 3), "bias": torch.randn(2)}
    path = folder(tmp_path / "ckpt", values, {"weight": [((0, 0), (1, 3)), ((1, 0), (1, 3))]})
    net = torch.nn.Linear(3, 2)
    holdfast.restore(path, model=net)
    assert net.weight.equal(values["weight"])
    assert holdfast.load(path)["bias"].equal(values["bias"])
    with holdfast.open(path) as checkpoint:
        assert checkpoint.format == "dcp"
        assert checkpoint["weight"].read().equal(values["weight"])


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@alone
@pytest.mark.parametrize("boxes", [{}, {"w": [((0, 0), (300, 40)), ((300, 0), (300, 40))]}])
def test_a_flipped_bit_is_found_where_torch_says_nothing(tmp_path: Path, boxes: Any) -> None:
    path = folder(tmp_path / "ckpt", {"w": torch.zeros(600, 40)}, boxes)
    at = (path / FILE).stat().st_size * 3 // 4
    flip(path / FILE, at)
    silent = {"w": torch.ones(600, 40)}
    dcp.load(silent, checkpoint_id=path)
    assert silent["w"].count_nonzero() == 1
    report = verify(path)
    assert report.status == "CORRUPT"
    (finding,) = report.findings
    assert finding.file == str(path / FILE)
    assert finding.name == "w: data/0"
    assert finding.offset is not None
    assert finding.length is not None
    assert finding.offset <= at < finding.offset + finding.length
    with pytest.raises(CorruptFile, match=rf"`{path}/{FILE}`: at byte [\d,]+: .*`w: data/0`.* has crc32"):
        holdfast.load(path)


def test_a_save_that_was_never_finished_is_told(tmp_path: Path) -> None:
    path = folder(tmp_path / "ckpt", {"w": torch.zeros(2)})
    (path / ".metadata").rename(path / ".metadata.tmp")
    with pytest.raises(UnknownFormat, match=r"without .metadata: the save was not finished: .metadata.tmp was never"):
        open_any(path)
    (path / ".metadata.tmp").rename(path / "__0.metadata")
    with pytest.raises(UnknownFormat, match=r"each rank wrote metadata of its own \(use_collectives=False\)"):
        open_any(path)


def test_a_missing_file_of_one_rank_is_named(tmp_path: Path) -> None:
    path = folder(tmp_path / "ckpt", {"a": torch.zeros(2), "b": torch.zeros(2)}, files=2)
    (path / "__1_0.distcp").unlink()
    with pytest.raises(NotFound, match=r"\.metadata`: 1 of its tensors are in `__1_0.distcp`, which is not there"):
        open_path(path)


def test_a_file_that_was_cut_short_is_named(tmp_path: Path) -> None:
    path = folder(tmp_path / "ckpt", {"a": torch.zeros(2), "b": torch.zeros(2)})
    data = (path / FILE).read_bytes()
    (path / FILE).write_bytes(data[:-100])
    with pytest.raises(
        CorruptFile, match=r"`b` should end at byte [\d,]+, the file ends at [\d,]+: cut short"
    ) as caught:
        open_path(path)
    assert caught.value.offset == len(data) - 100
    (path / FILE).write_bytes(data[:-600] + bytes(600))
    with pytest.raises(CorruptFile, match=r"\(in the item of `b`, which begins at byte [\d,]+\)$"):
        open_path(path)


def test_a_container_is_closed_with_its_files(tmp_path: Path) -> None:
    path = folder(tmp_path / "ckpt", {"a": torch.zeros(2)})
    with open_path(path) as container:
        leaf = container.document().tree["a"]
    with pytest.raises(ArgumentError, match="read after it was closed"):
        leaf.segment.source.read(0, 1)
