"""Distributed checkpoints made by hand: each part can be made to lie."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

Box = tuple[tuple[int, ...], tuple[int, ...]]
FILE = "__0_0.distcp"


def saved(value: Any) -> bytes:
    """The bytes of torch.save."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def folder(
    path: Path,
    values: Mapping[str, Any],
    boxes: Mapping[str, list[Box]] | None = None,
    *,
    change: Callable[[Metadata], Any] = lambda metadata: metadata,
    files: int = 1,
) -> Path:
    """A checkpoint of tensors and values by flat name.

    Args:
        path: the folder to make.
        values: tensors and other values.
        boxes: offsets and sizes of the rectangles of a tensor; one for all of it by default.
        change: may lie in the metadata; returns what is pickled.
        files: among how many files the items are dealt.
    """
    path.mkdir(parents=True)
    metadata = Metadata({}, planner_data={name: tuple(name.split(".")) for name in values}, storage_data={})
    contents = [bytearray() for _ in range(files)]
    count = 0

    def put(index: MetadataIndex, value: Any) -> None:
        nonlocal count
        number = count % files
        data = saved(value)
        metadata.storage_data[index] = _StorageInfo(f"__{number}_0.distcp", len(contents[number]), len(data))
        contents[number] += data
        count += 1

    for name, value in values.items():
        if not isinstance(value, torch.Tensor):
            metadata.state_dict_metadata[name] = BytesStorageMetadata()
            put(MetadataIndex(name), value)
            continue
        chunks = []
        for number, (offsets, sizes) in enumerate((boxes or {}).get(name, [((0,) * value.dim(), tuple(value.shape))])):
            part = value[tuple(slice(at, at + size) for at, size in zip(offsets, sizes, strict=True))]
            chunks.append(ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes)))
            put(MetadataIndex(name, offsets, number), part.clone())
        properties = TensorProperties(dtype=value.dtype, requires_grad=value.requires_grad)
        metadata.state_dict_metadata[name] = TensorStorageMetadata(properties, value.size(), chunks)
    for number, data in enumerate(contents):
        (path / f"__{number}_0.distcp").write_bytes(data)
    (path / ".metadata").write_bytes(pickle.dumps(change(metadata)))
    return path
