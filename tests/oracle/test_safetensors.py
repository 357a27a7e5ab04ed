"""Ours against the safetensors library: it reads what we write, we read what it writes, both refuse the same lies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch as theirs
import torch

from holdfast.errors import FormatError
from holdfast.formats import safetensors as ours
from holdfast.formats.base import Document, Segment, StoredTensor
from holdfast.formats.safetensors_writing import write_tensors
from holdfast.spec import DTYPES, TensorSpec
from holdfast.storage.atomic import replace_file
from holdfast.storage.source import FileSource, MemorySource
from tests.hostile.test_safetensors import LIES

KNOWN = [row.name for row in DTYPES.values() if row.safetensors and hasattr(torch, row.name)]


def raw(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).numpy()) if tensor.numel() else b""


def stored(tensor: torch.Tensor) -> StoredTensor:
    data = raw(tensor)
    name = str(tensor.dtype).removeprefix("torch.")
    return StoredTensor(TensorSpec(name, tuple(tensor.shape)), Segment(MemorySource(data), 0, len(data)))


def live(leaf: StoredTensor) -> torch.Tensor:
    part, spec = leaf.segment, leaf.spec
    dtype = getattr(torch, spec.dtype)
    data = bytearray(part.source.read(part.offset + leaf.offset, spec.nbytes))
    return torch.frombuffer(data, dtype=dtype).reshape(spec.shape) if data else torch.empty(spec.shape, dtype=dtype)


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    assert left.keys() == right.keys()
    return all(
        a.dtype == b.dtype and a.shape == b.shape and raw(a) == raw(b)
        for a, b in ((left[name], right[name]) for name in left)
    )


def samples() -> dict[str, torch.Tensor]:
    found = {"": torch.tensor(1.5), "empty": torch.empty(3, 0), "na\u00efve \u2603": torch.arange(5)}
    for dtype in KNOWN:
        size = DTYPES[dtype].itemsize
        data = (
            torch.arange(6 * size, dtype=torch.uint8) % 2
            if dtype == "bool"
            else torch.arange(6 * size, dtype=torch.uint8)
        )
        found[f"layer.{dtype}"] = data.view(getattr(torch, dtype)).reshape(2, 3)
    return found


def save(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    with replace_file(path) as staged:
        ours.write(staged, Document({name: stored(tensor) for name, tensor in tensors.items()}, metadata={"a": "b"}))


SHARED_WITH_THEM = samples()


def test_they_read_what_we_write(tmp_path: Path) -> None:
    path = tmp_path / "ours.safetensors"
    save(path, SHARED_WITH_THEM)
    assert same(theirs.load_file(path), SHARED_WITH_THEM)
    with safetensors.safe_open(path, framework="pt") as opened:
        assert opened.metadata().keys() == {"holdfast", "format", "a"}
        assert opened.get_slice("layer.float32")[1:, :2].tolist() == SHARED_WITH_THEM["layer.float32"][1:, :2].tolist()


def test_they_read_what_write_tensors_writes(tmp_path: Path) -> None:
    path = tmp_path / "ours.safetensors"
    with replace_file(path) as staged:
        write_tensors(staged, [(name, stored(tensor)) for name, tensor in SHARED_WITH_THEM.items()])
    assert same(theirs.load_file(path), SHARED_WITH_THEM)


def test_we_read_what_they_write(tmp_path: Path) -> None:
    path = tmp_path / "theirs.safetensors"
    theirs.save_file(SHARED_WITH_THEM, path, metadata={"format": "pt", "step": "7"})
    with ours.open(FileSource(path), str(path)) as container:
        document = container.document()
        assert document.metadata == {"step": "7"}
        assert same({name: live(leaf) for name, leaf in document.tree.items()}, SHARED_WITH_THEM)


def test_a_module_saved_by_us_loads_into_a_module_through_them(tmp_path: Path) -> None:
    torch.manual_seed(3)
    net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    save(tmp_path / "f", dict(net.state_dict()))
    other = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    other.load_state_dict(theirs.load_file(tmp_path / "f"))
    assert same(dict(other.state_dict()), dict(net.state_dict()))


def test_row_major_rows_of_a_channels_last_weight_reach_plain_readers(tmp_path: Path) -> None:
    weight = torch.randn(8, 5, 3, 3).to(memory_format=torch.channels_last)
    data = bytes(weight.permute(0, 2, 3, 1).reshape(-1).view(torch.uint8).numpy())
    leaf = StoredTensor(
        TensorSpec("float32", tuple(weight.shape), weight.stride()), Segment(MemorySource(data), 0, len(data))
    )
    with replace_file(tmp_path / "f") as staged:
        ours.write(staged, Document({"w": leaf}))
    assert torch.equal(theirs.load_file(tmp_path / "f")["w"], weight)
    with ours.open(FileSource(tmp_path / "f"), "f") as container:
        assert container.document().tree["w"].live_stride == weight.stride()


def they_accept(data: bytes) -> bool:
    try:
        safetensors.deserialize(data)
    except safetensors.SafetensorError:
        return False
    return True


STRICTER = {
    "too many dimensions": "torch has at most 64",
    "an empty shape that wraps": "its stride has no number",
    "a name twice": "they keep the last one, another reader the first",
    "a name twice, escaped": "the same",
    "a metadata key twice": "the same",
}
"""What we refuse and they read."""


def test_every_lie_that_they_notice_is_one_and_where_we_are_stricter_is_known() -> None:
    assert {lie for lie, (data, _, _) in LIES.items() if they_accept(data)} == set(STRICTER)


def test_what_they_refuse_we_refuse(tmp_path: Path) -> None:
    """Every single change of one character in a small header: never read by us where they refuse or differ."""
    header = {"__metadata__": {"k": "v"}, "a": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}}
    text = json.dumps(header, separators=(",", ":")).encode()
    assert they_accept(len(text).to_bytes(8, "little") + text + b"ab")
    differ, refusals = [], 0
    for at in range(len(text)):
        for char in b'{}[]",:\\0129U8x ':
            changed = text[:at] + bytes([char]) + text[at + 1 :]
            data = len(changed).to_bytes(8, "little") + changed + b"ab"
            refusals += not they_accept(data)
            if readings(data):
                differ.append((changed, readings(data)))
    assert differ == []
    assert refusals > 500


def readings(data: bytes) -> tuple[Any, Any] | None:
    """(ours, theirs) where we read a file that they refuse or read otherwise; None where all is well."""
    try:
        tree = ours.open(MemorySource(data), "f").document().tree
    except FormatError:
        return None
    mine = {name: (list(leaf.spec.shape), raw(live(leaf))) for name, leaf in tree.items()}
    try:
        other = {name: (part["shape"], bytes(part["data"])) for name, part in safetensors.deserialize(data)}
    except safetensors.SafetensorError as error:
        return mine, error
    return None if mine == other else (mine, other)
