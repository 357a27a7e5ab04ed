"""``torch.load`` over our own readers: which file it is, which unpickler reads it, and where its storages go."""

from __future__ import annotations

import io
import os
import pickle
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from typing import IO, Any

import msgspec
import torch
from torch.utils.serialization import config

from holdfast.compat.dill import check_dill
from holdfast.compat.refusals import UNSAFE, torch_errors, weights_only_refusals
from holdfast.compat.sources import check_source
from holdfast.compat.storages import Storages, is_meta, map_file, restorer, swapped_by_default
from holdfast.compat.unpickler import WeightsUnpickler
from holdfast.compat.untyped import untyped
from holdfast.formats import legacy, safetensors, tar
from holdfast.formats.archive import STORED, Archive
from holdfast.formats.base import Segment, StoredTensor
from holdfast.formats.detect import HEAD, identify
from holdfast.serialization.devices import Placement
from holdfast.serialization.reading import read_tensors
from holdfast.state.paths import printable
from holdfast.storage.source import ByteSource, FileSource, StreamSource

PICKLE_LIMIT = 1 << 30
"""Bytes of the largest ``data.pkl``; pickled modules carry more than state_dicts do."""
_TRUE = ("1", "y", "yes", "true")
_MOVED_MODULES = {"torch.tensor": "torch._tensor"}
_local = untyped.serialization._serialization_tls


class _Call(msgspec.Struct):
    """What one call of load asks for, defaults and environment applied.

    Attributes:
        file: what messages call the file.
        path: the file, when it was given as a path.
        map_location: as given.
        pickle_module: what unpickles; None for ``weights_only``.
        mmap: whether pages of the file are shared.
        arguments: for the unpickler.
    """

    file: str
    path: str | None
    map_location: Any
    pickle_module: Any
    mmap: bool
    arguments: dict[str, Any]


def load_object(
    f: str | os.PathLike[str] | IO[bytes],
    map_location: Any,
    *,
    pickle_module: Any,
    weights_only: bool | None,
    mmap: bool | None,
    pickle_load_args: dict[str, Any],
) -> Any:
    """See ``holdfast.compat.load``."""
    safe = _is_safe(weights_only, pickle_module)
    if safe and pickle_module is not None:
        raise RuntimeError("Can not safely load weights when explicit pickle_module is specified")
    if safe and pickle_load_args:
        warnings.warn("pickle_load_args only works if `weights_only=False`.", stacklevel=3)
    check_dill(pickle_module)
    path = os.fspath(f) if isinstance(f, str | os.PathLike) else None
    call = _Call(
        file=path if path is not None else str(getattr(f, "name", "stream")),
        path=path,
        map_location=map_location,
        pickle_module=None if safe else pickle_module or pickle,
        mmap=config.load.mmap if mmap is None else mmap,
        arguments={"encoding": "utf-8", **pickle_load_args},
    )
    with torch_errors():
        if path is not None and path.endswith(".safetensors"):
            return _load_safetensors(path, map_location)
        with _opened(f) as (source, start):
            return _load_any(f, source, start, call)


def _is_safe(weights_only: bool | None, pickle_module: Any) -> bool:
    """Whether nothing but weights may be loaded: the argument, the environment, the default."""
    forced, lifted = (
        os.getenv(name, "0").lower() in _TRUE
        for name in ("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")
    )
    if forced and lifted:
        raise RuntimeError(
            "Only one of `TORCH_FORCE_WEIGHTS_ONLY_LOAD` or `TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD` should be set, but both "
            "were set."
        )
    if forced:
        return True
    if lifted and weights_only is None:
        warnings.warn(
            "Environment variable TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD detected, since the`weights_only` argument was not "
            "explicitly passed to `torch.load`, forcing weights_only=False.",
            UserWarning,
            stacklevel=4,
        )
        return False
    return pickle_module is None if weights_only is None else bool(weights_only)


@contextmanager
def _opened(f: Any) -> Iterator[tuple[ByteSource, int]]:
    """The bytes of ``f`` from its position on, and that position; a path is opened and closed."""
    if isinstance(f, str | os.PathLike):
        with open(f, "rb") as file:  # raises what programs expect: FileNotFoundError, IsADirectoryError, ...
            source = FileSource(file.fileno(), name=os.fspath(f))
            try:
                yield source, 0
            finally:
                source.close()
        return
    _check_seekable(f)
    start = f.tell()
    yield StreamSource(f), start


def _check_seekable(f: Any) -> None:
    try:
        f.seek(f.tell())
    except (io.UnsupportedOperation, AttributeError) as reason:
        if "seek" not in str(reason) and "tell" not in str(reason):
            raise
        raise type(reason)(
            f"{reason}. You can only torch.load from a file that is seekable. Please pre-load the data into a buffer "
            "like io.BytesIO and try to load from it instead."
        ) from None


def _load_any(f: Any, source: ByteSource, start: int, call: _Call) -> Any:
    head = source.read(0, min(source.size, HEAD))
    if not head:
        raise EOFError("Ran out of input")
    if head.startswith(b"PK\x03\x04"):
        with torch_errors("PytorchStreamReader failed reading zip archive: "):
            result, end = _load_zip(f, source, start, call)
    else:
        if call.mmap:
            name = f"{f}, " if isinstance(f, str) else ""
            raise RuntimeError(
                f"mmap can only be used with files saved with `torch.save({name}_use_new_zipfile_serialization=True), "
                "please torch.save your checkpoint with this option in order to use mmap."
            )
        if legacy.sniff(head):
            with torch_errors("The file might be corrupted: "):
                result, end = _load_stream(source, call)
        elif start == 0 and tar.sniff(head):
            result, end = _load_tar(source, call), source.size
        else:
            raise _no_torch_file(head, call)
    if call.path is None:
        f.seek(start + end)
    return result


def _no_torch_file(head: bytes, call: _Call) -> Exception:
    """The error for a file of another kind; torch would unpickle it to find out."""
    if head[0] == 0x80 and len(head) > 1 and head[1] <= 5:
        return RuntimeError("Invalid magic number; corrupt file?")
    what, advice = identify(head)
    hint = f" `{printable(call.file)}` {what}; {advice}" if what else ""
    with weights_only_refusals() if call.pickle_module is None else torch_errors():
        raise pickle.UnpicklingError(f"invalid load key, {chr(head[0])!r}.{hint}")
    return RuntimeError(hint)


# -- containers


def _load_zip(f: Any, source: ByteSource, start: int, call: _Call) -> tuple[Any, int]:
    """A zip of torch >= 1.6: the object, and the first byte after what was read."""
    archive = Archive(source, call.file)
    if "constants.pkl" in archive.records:
        return _load_torchscript(f, start, call), source.size
    swapped = _is_swapped(archive)
    storages = Storages(
        lambda key: _record_segment(archive, f"data/{key}", swapped, mapped=call.mmap),
        restorer(call.map_location),
        call.file,
        to_meta=is_meta(call.map_location),
        mapped=_mapped(call),
    )
    data = archive.read("data.pkl", limit=PICKLE_LIMIT)
    record = archive.records["data.pkl"]
    return _unpickle(data, storages, call), max(record.start + record.packed, storages.end)


def _mapped(call: _Call) -> torch.UntypedStorage | None:
    if not call.mmap:
        return None
    if call.path is None:
        raise ValueError("f must be a file path in order to use the mmap argument")
    return map_file(call.path)


def _record_segment(archive: Archive, name: str, swapped: bool, *, mapped: bool) -> Segment:
    record = archive.records[name]
    if mapped and record.method != STORED:
        raise RuntimeError(
            f"`{printable(archive.file)}`: the record {printable(name)} is compressed and can't be mapped; load it "
            "with mmap=False"
        )
    source, offset = archive.place(name)
    return Segment(source, offset, record.size, name, crc32=record.crc or None, swapped=swapped)


def _is_swapped(archive: Archive) -> bool:
    if "byteorder" not in archive.records:
        return swapped_by_default()
    order = archive.read("byteorder", limit=64)
    if order not in (b"little", b"big"):
        raise ValueError(f"Unknown endianness type: {order.decode(errors='replace')}")
    return order.decode() != sys.byteorder


def _load_torchscript(f: Any, start: int, call: _Call) -> Any:
    warnings.warn(
        "'torch.load' received a zip file that looks like a TorchScript archive dispatching to 'torch.jit.load' (call "
        "'torch.jit.load' directly to silence this warning)",
        UserWarning,
        stacklevel=6,
    )
    if call.pickle_module is None:
        raise RuntimeError(
            f"Cannot use ``weights_only=True`` with TorchScript archives passed to ``torch.load``. {UNSAFE}"
        )
    if call.path is None:
        f.seek(start)
    return untyped.jit.load(f if call.path is None else call.path, map_location=call.map_location)


def _load_stream(source: ByteSource, call: _Call) -> tuple[Any, int]:
    """A stream of torch < 1.6. Its storages are found first, so that values can be read while it is unpickled."""
    stream = legacy.open(source, call.file)
    storages = Storages(
        stream.storages.__getitem__,
        restorer(call.map_location),
        call.file,
        to_meta=is_meta(call.map_location),
        fixed=False,
    )
    result = _unpickle(stream.pickle, storages, call)
    storages.check_sizes()
    return result, stream.end


def _load_tar(source: ByteSource, call: _Call) -> Any:
    """A tar of 2016: tensors are objects outside the pickle, by decimal keys."""
    if call.pickle_module is None:
        raise RuntimeError(f"Cannot use ``weights_only=True`` with files saved in the legacy .tar format. {UNSAFE}")
    archive = tar.open(source, call.file)
    restore = restorer(call.map_location)
    segments = {segment.name: segment for segment in archive.segments()}
    storages = Storages(segments.__getitem__, restore, call.file)

    def whole(leaf: StoredTensor) -> torch.TypedStorage:
        cls = untyped.serialization.StorageType(_class_of(leaf.spec.dtype))
        size = leaf.segment.length // leaf.spec.itemsize
        found: torch.TypedStorage = storages.load(("storage", cls, leaf.segment.name, leaf.segment.location, size))
        return found

    made: dict[int, Any] = {}
    for key, leaf in archive.storages.items():
        root = whole(leaf)
        part = root._untyped_storage[leaf.offset : leaf.offset + leaf.spec.nbytes]
        same = leaf.segment.length == leaf.spec.nbytes
        made[key] = root if same else untyped.TypedStorage(wrap_storage=part, dtype=root.dtype, _internal=True)
    for key, leaf in archive.tensors.items():
        root = whole(leaf)
        tensor = torch.empty((0,), dtype=root.dtype, device=root._untyped_storage.device)
        stride = leaf.spec.stride or torch.empty(leaf.spec.shape, device="meta").stride()
        made[key] = tensor.set_(root._untyped_storage, leaf.offset // leaf.spec.itemsize, leaf.spec.shape, stride)

    def persistent_load(saved_id: Any) -> Any:
        if isinstance(saved_id, tuple):
            check_source(*saved_id)
            return saved_id[0]
        return made[int(saved_id)]

    return _run_pickle(archive.pickle, persistent_load, call)


def _class_of(dtype: str) -> str:
    kind: str = torch.storage._dtype_to_storage_type_map()[getattr(torch, dtype)]
    return kind


def _load_safetensors(path: str, map_location: Any) -> dict[str, torch.Tensor]:
    """A safetensors file, which ``torch.load`` takes by its suffix: a flat dict of tensors."""
    if isinstance(map_location, Mapping) or (callable(map_location) and not isinstance(map_location, str)):
        kind = "dict" if isinstance(map_location, Mapping) else "callable"
        raise RuntimeError(
            f"Loading safetensors file with {kind} map_location is not supported. Use a device string or torch.device "
            "instead."
        )
    with closing(safetensors.open(FileSource(path), path)) as container:
        found = container.tensors()
        placement = Placement("cpu" if map_location is None else map_location)
        return dict(zip(found, read_tensors(list(found.values()), placement), strict=True))


# -- unpickling


def _unpickle(data: bytes, storages: Storages, call: _Call) -> Any:
    if call.pickle_module is not None:
        return _run_pickle(data, storages.load, call)
    encoding = str(call.arguments["encoding"])
    # sizes of sparse tensors are checked by torch only when asked to; indices outside them would reach other memory
    with _told_torch(call.map_location), untyped.sparse.check_sparse_tensor_invariants():
        with weights_only_refusals():
            result = WeightsUnpickler(io.BytesIO(data), storages.load, encoding=encoding).load()
        untyped._utils._validate_loaded_sparse_tensors()
    return result


def _run_pickle(data: bytes, persistent_load: Callable[[Any], Any], call: _Call) -> Any:
    """Runs a pickle with the caller's module: he asked for it with ``weights_only=False``."""
    module = call.pickle_module

    class Unpickler(module.Unpickler):  # type: ignore[misc, name-defined]  # the caller's module
        def find_class(self, module_name: str, name: str) -> Any:
            if type(name) is str and "Storage" in name:
                try:
                    return untyped.serialization.StorageType(name)
                except KeyError:
                    pass
            return super().find_class(_MOVED_MODULES.get(module_name, module_name), name)

    unpickler = Unpickler(io.BytesIO(data), **call.arguments)
    unpickler.persistent_load = persistent_load
    with _told_torch(call.map_location):
        result = unpickler.load()
        untyped._utils._validate_loaded_sparse_tensors()
    return result


@contextmanager
def _told_torch(map_location: Any) -> Iterator[None]:
    """Lets torch's own rebuild functions see ``map_location``, and forget it and what they noted when they fail."""
    before, _local.map_location = _local.map_location, map_location
    try:
        yield
    finally:
        _local.map_location = before
        torch._utils._sparse_tensors_to_validate.clear()
