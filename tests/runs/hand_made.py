"""Checkpoints made by hand: documents over bytes in memory, no torch."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

from holdfast.formats.base import Document, Segment, StoredTensor
from holdfast.runs.layout import step_name
from holdfast.runs.manifest import Manifest
from holdfast.runs.writing import write_checkpoint
from holdfast.spec import DTYPES, TensorSpec
from holdfast.state.values import Typed
from holdfast.storage.atomic import StagedFolder
from holdfast.storage.source import MemorySource

NOON = datetime.datetime(2025, 1, 1, 12, tzinfo=datetime.UTC)


def segment(data: bytes, name: str = "memory") -> Segment:
    return Segment(MemorySource(data), 0, len(data), name)


def tensor(*shape: int, dtype: str = "float32", fill: int = 1) -> StoredTensor:
    spec = TensorSpec(dtype, shape)
    length = DTYPES[dtype].itemsize
    for size in shape:
        length *= size
    return StoredTensor(spec, segment(bytes((fill + at) % 251 for at in range(length))))


def small_tree(fill: int = 1) -> dict[str, Any]:
    """A model with tied weights, an optimizer with integer keys, plain values."""
    embed = tensor(4, 3, fill=fill)
    tied = StoredTensor(embed.spec, embed.segment)
    return {
        "model": {"embed.weight": embed, "head.weight": tied, "head.bias": tensor(4, fill=fill + 1)},
        "optimizer": {
            "state": Typed("dict", [[0, {"step": tensor(fill=3), "exp_avg": tensor(4, 3, fill=fill + 2)}]]),
            "param_groups": [{"lr": 0.1, "params": [0]}],
        },
        "args": Typed("namespace", {"lr": 0.1, "name": "résumé", "nan": float("nan")}),
    }


def facts(step: int = 0, **fields: Any) -> Manifest:
    return Manifest(**{"run": "abc123", "step": step, "time": NOON, "epoch": 1, "batch": 0, **fields})


def commit(root: Path, step: int, tree: Any = None, **fields: Any) -> Path:
    """Commits a checkpoint into a run's folder and returns its own folder."""
    document = Document(small_tree(step) if tree is None else tree, fields.pop("objects", {}), {"note": "hand made"})
    with StagedFolder(root, step_name(step)) as folder:
        write_checkpoint(folder, document, facts(step, **fields))
        folder.commit()
    return root / step_name(step)


def read(stored: StoredTensor) -> bytes:
    """The bytes of a contiguous tensor."""
    return stored.segment.source.read(stored.segment.offset + stored.offset, stored.spec.nbytes)


def flip(file: Path, at: int, bit: int = 0) -> None:
    """Damages one bit of a file in place."""
    data = bytearray(file.read_bytes())
    data[at] ^= 1 << bit
    file.chmod(0o644)
    file.write_bytes(data)
