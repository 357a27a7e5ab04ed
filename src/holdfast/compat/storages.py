"""The storages that an unpickler asks for by their ids: found in the file, checked, put where the caller wants them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch

from holdfast.compat.sources import check_source
from holdfast.compat.untyped import untyped
from holdfast.formats.base import Segment
from holdfast.serialization.storages import empty_storage, mapped_storage, read_storage
from holdfast.state.paths import printable

_local = untyped.serialization._serialization_tls


class Storages:
    """Makes each storage of one file once.

    Args:
        find: key -> its bytes in the file; raises KeyError.
        restore: (CPU storage, location) -> the storage where it belongs.
        file: named in errors.
        to_meta: whether all storages go to the meta device, and nothing is read.
        mapped: the file as one storage, when its pages are to be shared.
        fixed: whether storages may not be resized, as those of a zip may not.
    """

    def __init__(
        self,
        find: Callable[[str], Segment],
        restore: Callable[[Any, str], Any],
        file: str,
        *,
        to_meta: bool = False,
        mapped: torch.UntypedStorage | None = None,
        fixed: bool = True,
    ) -> None:
        self._find = find
        self._restore = restore
        self._file = file
        self._to_meta = to_meta
        self._mapped = mapped
        self._fixed = fixed
        self._found: dict[str, torch.TypedStorage] = {}
        self._views: dict[Any, torch.TypedStorage] = {}
        self._sizes: list[tuple[torch.UntypedStorage, int]] = []
        self.end = 0

    def load(self, saved_id: Any) -> Any:
        """What a persistent id means: a storage, or a class whose source was saved with it."""
        if not isinstance(saved_id, tuple):
            raise AssertionError(f"saved_id must be a tuple, got {type(saved_id).__name__}")
        kind, *data = saved_id
        kind = _text(kind)
        if kind == "module":
            check_source(*data)
            return data[0]
        if kind != "storage":
            raise RuntimeError(f"Unknown saved id type: {kind}")
        cls, key, location, numel, *view = data
        dtype = torch.uint8 if cls is torch.UntypedStorage else cls.dtype
        storage = self._storage(_text(key), dtype, numel * dtype.itemsize, _text(location))
        return storage if not view or view[0] is None else self._view(storage, *view[0])

    def check_sizes(self) -> None:
        """Raises RuntimeError when a tensor of the file was larger than its storage and made it grow."""
        for storage, size in self._sizes:
            if storage.nbytes() != size:
                raise RuntimeError(
                    f"`{printable(self._file)}`: storage has wrong byte size: expected {size} got {storage.nbytes()}"
                )

    def _storage(self, key: str, dtype: torch.dtype, size: int, location: str) -> torch.TypedStorage:
        known = self._found.get(key)
        if known is not None:
            if known.dtype != dtype:
                raise RuntimeError(
                    f"`{printable(self._file)}`: the storage {printable(key)} is said to hold {known.dtype} and "
                    f"{dtype}; one of them is a lie"
                )
            return known
        try:
            segment = self._find(key)
        except KeyError:
            raise RuntimeError(f"`{printable(self._file)}`: has no storage {printable(key)}") from None
        if segment.length != size:
            raise RuntimeError(
                f"`{printable(self._file)}`: the storage {printable(key)} should have {size:,} bytes, the file has "
                f"{segment.length:,}"
            )
        made: torch.TypedStorage = untyped.TypedStorage(
            wrap_storage=self._placed(segment, dtype, location), dtype=dtype, _internal=True
        )
        if size:
            self._found[key] = made
        return made

    def _placed(self, segment: Segment, dtype: torch.dtype, location: str) -> Any:
        fake = torch._guards.detect_fake_mode(None) is not None
        if fake or self._to_meta:
            storage = empty_storage(segment.length, "meta")
            storage._checkpoint_offset = segment.offset
            if fake:
                storage._fake_device = location
            return storage
        storage = self._made(segment)
        if segment.swapped:
            storage.byteswap(dtype)
        self._sizes.append((storage, segment.length))
        return self._restore(storage, location)

    def _made(self, segment: Segment) -> Any:
        if _local.skip_data:
            return empty_storage(segment.length)
        if self._mapped is not None:
            return self._mapped[segment.offset : segment.offset + segment.length]
        self.end = max(self.end, segment.offset + segment.length)
        return read_storage(segment, fixed=self._fixed)

    def _view(self, root: torch.TypedStorage, key: Any, first: int, numel: int) -> torch.TypedStorage:
        """A storage that was part of another one, up to torch 0.3."""
        if key not in self._views:
            size = root.dtype.itemsize
            whole = root._untyped_storage
            if first < 0 or numel < 0 or (first + numel) * size > whole.nbytes():
                raise RuntimeError(f"`{printable(self._file)}`: the view {printable(str(key))} leaves its storage")
            part = whole[first * size : (first + numel) * size]
            self._views[key] = untyped.TypedStorage(wrap_storage=part, dtype=root.dtype, _internal=True)
        return self._views[key]


def _text(value: Any) -> Any:
    """Names that Python 2 wrote as bytes, which ``encoding="bytes"`` leaves as they are."""
    return value.decode("ascii") if isinstance(value, bytes) else value


def restorer(map_location: Any) -> Callable[[Any, str], Any]:
    """(CPU storage, location) -> the storage where ``map_location`` wants it.

    Locations are looked up in the registry of ``torch.serialization.register_package``.
    """
    default: Callable[[Any, Any], Any] = untyped.serialization.default_restore_location
    if map_location is None:
        return default
    if isinstance(map_location, Mapping):
        return lambda storage, location: default(storage, map_location.get(location, location))
    if isinstance(map_location, str | bytes | torch.device):
        name = str(map_location) if isinstance(map_location, torch.device) else map_location
        return lambda storage, location: default(storage, name)

    def call(storage: Any, location: str) -> Any:
        placed = map_location(storage, location)
        return default(storage, location) if placed is None else placed

    return call


def is_meta(map_location: Any) -> bool:
    """Whether everything goes to the meta device, so that no byte need be read."""
    if isinstance(map_location, torch.device):
        return map_location.type == "meta"
    return isinstance(map_location, str) and map_location == "meta"


def swapped_by_default() -> bool:
    """Whether numbers of a file that does not say are to be swapped: ``set_default_load_endianness``."""
    order = torch.serialization.get_default_load_endianness()
    native = torch.serialization.LoadEndianness.NATIVE
    if order is native:
        return False
    name = "little" if order is None else order.name.lower()
    return name != sys.byteorder


def map_file(path: str) -> torch.UntypedStorage:
    """A file as one storage, shared or private as ``torch.serialization.set_default_mmap_options`` says."""
    flags = torch.serialization.get_default_mmap_options()
    return mapped_storage(path, shared=flags == getattr(torch.serialization, "MAP_SHARED", None))
