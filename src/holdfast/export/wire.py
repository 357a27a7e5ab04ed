"""What passes between this process and the one that runs an exported file: JSON, and tensors. Needs no torch."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any, NamedTuple

_ALIGNED = 64
_HEAD = 8
_BLOCK = 1 << 30


class Blob(NamedTuple):
    """A tensor's bytes in row-major order, with its dtype by torch's name."""

    dtype: str
    shape: list[int]
    data: Any


def pack(value: Any, blobs: list[Blob]) -> Any:
    """Nested tuples, lists and dicts of blobs and plain values as JSON; blobs are appended to ``blobs``.

    Raises:
        TypeError: a value of another type is among them.
    """
    if isinstance(value, Blob):
        blobs.append(value)
        return ["blob", len(blobs) - 1]
    if isinstance(value, dict):
        return ["dict", [[key, pack(item, blobs)] for key, item in value.items()]]
    if isinstance(value, tuple | list):
        return ["tuple" if isinstance(value, tuple) else "list", [pack(item, blobs) for item in value]]
    if value is None or isinstance(value, bool | int | float | str):
        return ["plain", value]
    raise TypeError(f"{type(value).__name__} is neither a tensor nor a plain value")


def unpack(packed: Any, blobs: list[Blob], made: Callable[[Blob], Any]) -> Any:
    """What was packed, with what ``made`` makes of them in place of the blobs."""
    kind, content = packed
    if kind == "blob":
        return made(blobs[content])
    if kind == "dict":
        return {key: unpack(item, blobs, made) for key, item in content}
    if kind in ("tuple", "list"):
        items = [unpack(item, blobs, made) for item in content]
        return tuple(items) if kind == "tuple" else items
    return content


def send(fd: int, message: Any, blobs: list[Blob]) -> None:
    """Writes a message to an empty file."""
    table: list[dict[str, Any]] = []
    at = 0
    for blob in blobs:
        size = memoryview(blob.data).nbytes
        table.append({"dtype": blob.dtype, "shape": blob.shape, "offset": at, "size": size})
        at += -(-size // _ALIGNED) * _ALIGNED
    text = json.dumps({"message": message, "blobs": table}).encode()
    _write(fd, len(text).to_bytes(_HEAD, "little") + text, 0)
    start = _start(len(text))
    for blob, row in zip(blobs, table, strict=True):
        _write(fd, memoryview(blob.data).cast("B"), start + row["offset"])
    os.ftruncate(fd, max(start + at, os.fstat(fd).st_size))


def receive(fd: int) -> tuple[Any, list[Blob]]:
    """Reads a message.

    Raises:
        ValueError: the file holds none, or half of one.
    """
    length = int.from_bytes(_read(fd, _HEAD, 0), "little")
    content = json.loads(_read(fd, length, _HEAD))
    start = _start(length)
    rows = content["blobs"]
    blobs = [Blob(row["dtype"], row["shape"], _read(fd, row["size"], start + row["offset"])) for row in rows]
    return content["message"], blobs


def _start(length: int) -> int:
    return -(-(_HEAD + length) // _ALIGNED) * _ALIGNED


def _write(fd: int, data: bytes | memoryview, offset: int) -> None:
    rest = memoryview(data)
    while rest:
        count = os.pwrite(fd, rest[:_BLOCK], offset)
        rest, offset = rest[count:], offset + count


def _read(fd: int, length: int, offset: int) -> bytearray:
    if length < 0 or offset + length > os.fstat(fd).st_size:
        raise ValueError(f"{length} bytes at {offset} are not there")
    data = bytearray(length)
    rest = memoryview(data)
    while rest:
        count = os.preadv(fd, [rest[:_BLOCK]], offset)
        if not count:
            raise ValueError(f"{length} bytes at {offset} are not there")
        rest, offset = rest[count:], offset + count
    return data


def tensor_blob(tensor: Any) -> Blob:
    """A torch tensor on the CPU as a blob."""
    import torch

    flat = tensor.detach().cpu().contiguous().reshape(-1)
    data = flat.view(torch.uint8).numpy() if flat.numel() else b""
    return Blob(str(tensor.dtype).removeprefix("torch."), list(tensor.shape), data)


def blob_tensor(blob: Blob) -> Any:
    """A blob as a torch tensor.

    Raises:
        ValueError: torch has no such dtype.
    """
    import torch

    dtype = getattr(torch, blob.dtype, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"torch has no dtype {blob.dtype}")
    if not len(blob.data):
        return torch.empty(blob.shape, dtype=dtype)
    return torch.frombuffer(blob.data, dtype=dtype).reshape(blob.shape)


def array_blob(array: Any) -> Blob:
    """A numpy array as a blob."""
    import numpy as np

    data = np.ascontiguousarray(array).reshape(-1)
    return Blob(array.dtype.name, list(array.shape), data.view(np.uint8) if data.size else b"")


def blob_array(blob: Blob) -> Any:
    """A blob as a numpy array.

    Raises:
        ValueError: numpy has no such dtype.
    """
    import numpy as np

    try:
        return np.frombuffer(blob.data, dtype=np.dtype(blob.dtype)).reshape(blob.shape)
    except TypeError:
        raise ValueError(f"onnxruntime takes no {blob.dtype} through numpy") from None
