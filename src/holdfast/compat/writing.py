"""``torch.save`` over our own writers: the caller's object is pickled, its storages are written from where they lie."""

from __future__ import annotations

import io
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any

import torch
from torch.utils.serialization import config

from holdfast.compat.dill import check_dill
from holdfast.compat.refusals import torch_errors
from holdfast.compat.sources import class_source, warn_unknown
from holdfast.compat.untyped import untyped
from holdfast.formats.base import Segment
from holdfast.formats.legacy import stream_requests
from holdfast.formats.zipwriter import Planned, directory, directory_size, plan, serialization_id
from holdfast.serialization.memory import TensorMemory, TensorSource
from holdfast.storage.atomic import replace_file
from holdfast.storage.digest import crc32
from holdfast.storage.requests import WriteRequest
from holdfast.storage.source import ByteSource, MemorySource
from holdfast.storage.staged import StagedFile
from holdfast.storage.streamed import stage_into

_LARGEST_ALIGNMENT = 1 << 16
"""Padding is counted in two bytes; past this torch writes archives that it can't read."""
_ID = ".data/serialization_id"
_STORAGES = (torch.storage.TypedStorage, torch.UntypedStorage)
_SMALL = 1 << 16
"""Bytes of a storage that is written together with its neighbours and their headers."""
_BLOCK = 8 << 20
_local = untyped.serialization._serialization_tls


def save_object(
    obj: object,
    f: str | os.PathLike[str] | IO[bytes],
    *,
    pickle_module: Any,
    protocol: int,
    zipped: bool,
    byte_order: bool,
) -> None:
    """See ``holdfast.compat.save``."""
    check_dill(pickle_module)
    if not isinstance(f, str | os.PathLike) and not hasattr(f, "write"):
        raise AttributeError("expected 'f' to be string, path, or a file-like object with a 'write' attribute")
    if not zipped and _local.skip_data:
        raise RuntimeError("Cannot use skip_data=True with _use_new_zipfile_serialization=False")
    alignment = config.save.storage_alignment
    if zipped and not 1 <= alignment <= _LARGEST_ALIGNMENT:
        raise ValueError(f"storage_alignment is {alignment:,}; 1 to {_LARGEST_ALIGNMENT:,} can be read again")
    # pickled before anything is opened: an object that can't be pickled leaves the old file as it was
    data, stored = _pickled(obj, pickle_module, protocol, stream=not zipped)
    with torch_errors(), _staged(f) as staged:
        if zipped:
            _write_zip(staged, data, stored, _top(f), byte_order=byte_order, alignment=alignment)
        else:
            _write_stream(staged, data, stored)


@contextmanager
def _staged(f: Any) -> Iterator[StagedFile]:
    """Where the file is built: beside its path, or in memory for what can only be written to."""
    if isinstance(f, str | os.PathLike):
        path = os.fspath(f)
        folder = os.path.dirname(path)
        if folder and not os.path.isdir(folder):
            raise RuntimeError(f"Parent directory {folder} does not exist.")
        if not os.path.exists(path) or stat.S_ISREG(os.stat(path).st_mode) or os.path.isdir(path):
            with replace_file(path) as staged:
                yield staged
            return
        with open(path, "wb") as device, stage_into(device, path) as staged:  # a pipe, /dev/null
            yield staged
        return
    with stage_into(f, str(getattr(f, "name", "stream"))) as staged:
        yield staged
    f.flush()


def _top(f: Any) -> str:
    """The folder inside the archive, named as torch names it."""
    if not isinstance(f, str | os.PathLike):
        return "archive"
    name = os.path.basename(os.fspath(f))
    stem = name[: name.rindex(".")] if "." in name else name
    return stem if stem and os.fspath(f).isascii() else "archive"


# -- pickling


class _Stored:
    """The storages that a pickler came across, each once, by the number that is its key."""

    def __init__(self, *, stream: bool) -> None:
        self._stream = stream
        self._keys: dict[int, int] = {}
        self._dtypes: dict[int, torch.dtype] = {}
        self._classes: set[type] = set()
        self.found: list[tuple[torch.UntypedStorage, int]] = []

    def persistent_id(self, obj: Any) -> tuple[Any, ...] | None:
        """What the pickle holds instead of a storage; None for everything else."""
        if self._stream and isinstance(obj, type) and issubclass(obj, torch.nn.Module):
            return self._module(obj)
        if not isinstance(obj, _STORAGES):
            return None
        if isinstance(obj, torch.storage.TypedStorage):
            typed: Any = obj
            storage, dtype, elements = typed._untyped_storage, typed.dtype, typed._size()
            cls = getattr(torch, typed._pickle_storage_type())
        else:
            storage, dtype, elements = obj, torch.uint8, obj.nbytes()
            cls = getattr(torch, type(obj).__name__)
        self._check_dtype(storage, dtype)
        number = self._keys.setdefault(storage._cdata, len(self.found))
        if number == len(self.found):
            self.found.append((storage, elements))
        fake = getattr(obj, "_fake_device", None)
        location = torch.serialization.location_tag(storage) if fake is None else str(fake)
        found = ("storage", cls, str(number), location, elements)
        return (*found, None) if self._stream else found

    def _check_dtype(self, storage: torch.UntypedStorage, dtype: torch.dtype) -> None:
        """One storage under two dtypes can't be loaded again by torch."""
        if storage.device.type == "meta" or not storage.data_ptr():
            return
        if self._dtypes.setdefault(storage.data_ptr(), dtype) != dtype:
            raise RuntimeError("Cannot save multiple tensors or storages that view the same data as different types")

    def _module(self, cls: type) -> tuple[Any, ...] | None:
        if cls in self._classes:
            return None
        self._classes.add(cls)
        source, file = class_source(cls)
        if source is None:
            warn_unknown(cls)
        return "module", cls, file, source


def _pickled(obj: object, pickle_module: Any, protocol: int, *, stream: bool) -> tuple[bytes, _Stored]:
    stored = _Stored(stream=stream)

    class Pickler(pickle_module.Pickler):  # type: ignore[misc]  # the caller's module
        def persistent_id(self, obj: Any) -> Any:
            return stored.persistent_id(obj)

    buffer = io.BytesIO()
    Pickler(buffer, protocol=protocol).dump(obj)
    return buffer.getvalue(), stored


def _segment(storage: torch.UntypedStorage) -> Segment:
    """The bytes of a storage where they lie; those on another device pass through CPU memory in blocks."""
    size = storage.nbytes()
    if not size:
        return Segment(MemorySource(b""), 0, 0)
    raw = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
    source: ByteSource = TensorMemory(raw, 0, size) if raw.device.type == "cpu" else TensorSource(raw)
    return Segment(source, 0, size)


# -- writing


def _write_stream(staged: StagedFile, data: bytes, stored: _Stored) -> None:
    staged.write(stream_requests(data, [(count, _segment(storage)) for storage, count in stored.found]), digest=False)


def _write_zip(staged: StagedFile, data: bytes, stored: _Stored, top: str, *, byte_order: bool, alignment: int) -> None:
    """Records in the order of torch 2.13, with its promise that storages follow one another in the order of keys."""
    storages = {f"data/{number}": storage for number, (storage, _) in enumerate(stored.found)}
    contents: dict[str, bytes | torch.UntypedStorage] = {
        "data.pkl": data,
        ".format_version": b"1",
        ".storage_alignment": b"%d" % alignment,
        **({"byteorder": sys.byteorder.encode()} if byte_order else {}),
        **storages,
        "version": b"3\n",
        _ID: b"0" * 40,
    }
    sizes = [(name, len(part) if isinstance(part, bytes) else part.nbytes()) for name, part in contents.items()]
    planned = dict(zip(contents, plan(sizes, top, alignment=alignment), strict=True))
    records = list(planned.values())
    checked = torch.serialization.get_crc32_options()
    if _local.skip_data:
        for name in storages:
            staged.leave_empty(planned[name].start, planned[name].size)
    else:
        staged.allocate(records[-1].end + directory_size(records))
        contents.update(_write_large(staged, storages, planned, checked=checked))
    for name, part in contents.items():
        if isinstance(part, bytes):
            contents[name] = inline = serialization_id(records[:-1]) if name == _ID else part
            planned[name].crc = crc32(inline) if checked else 0
    _write_frame(staged, records, list(contents.values()))


def _write_large(
    staged: StagedFile, storages: dict[str, torch.UntypedStorage], planned: dict[str, Planned], *, checked: bool
) -> dict[str, bytes]:
    """Writes large storages, in parallel; returns the bytes of the others."""
    large, small = [], {}
    requests = []
    for name, storage in storages.items():
        segment = _segment(storage)
        if segment.length > _SMALL:
            large.append(name)
            requests.append(WriteRequest(planned[name].start, segment.source, 0, segment.length))
        else:
            small[name] = segment.source.read(0, segment.length)
    for name, written in zip(large, staged.write(requests, digest=False, crc=checked), strict=True):
        planned[name].crc = written.crc32 or 0
    return small


def _write_frame(staged: StagedFile, planned: Sequence[Planned], contents: Sequence[Any]) -> None:
    """Everything that stands between the large storages, in blocks."""
    at, frame, size = 0, list[bytes](), 0

    def flush(following: int) -> None:
        nonlocal at, frame, size
        staged.write([WriteRequest(at, b"".join(frame))], digest=False)
        at, frame, size = following, [], 0

    for record, part in zip(planned, contents, strict=True):
        if isinstance(part, bytes):
            frame += (record.head(), part, record.tail())
            size += record.end - record.header
            if size > _BLOCK:
                flush(record.end)
            continue
        frame.append(record.head())
        flush(record.start + record.size)
        frame.append(record.tail())
    frame.append(directory(planned))
    flush(0)
