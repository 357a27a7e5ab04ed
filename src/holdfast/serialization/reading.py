"""Stored tensors to live ones: into new memory, or straight into tensors that exist already."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from holdfast.errors import CorruptFile
from holdfast.formats.base import Segment, StoredTensor
from holdfast.formats.collector import collector_paused
from holdfast.formats.damage import raise_damage as raise_damage
from holdfast.formats.damage import verify_segments as verify_segments
from holdfast.serialization.devices import Placement
from holdfast.serialization.kinds import TENSOR_KINDS
from holdfast.serialization.kinds import live_dtype as live_dtype
from holdfast.serialization.memory import BLOCK, is_plain, view_memory
from holdfast.serialization.side_stream import has_streams
from holdfast.serialization.upload import Upload, UploadRequest, bytes_of
from holdfast.spec import CHUNK, TensorSpec, contiguous_stride
from holdfast.state.flatten import leaves
from holdfast.state.lifting import Lifting, lift
from holdfast.state.paths import dotted, printable
from holdfast.state.values import Tree
from holdfast.storage.requests import ReadRequest, read_requests

_WINDOW = 256 * 1024 * 1024
"""Bytes that wait in CPU memory at a time on their way to another device."""


@collector_paused
def read_tree(
    tree: Tree,
    file: str,
    *,
    placement: Placement | None = None,
    trusted: Collection[str] = (),
    opaque: bool = False,
) -> Any:
    """A document's tree with real tensors and values in it.

    Args:
        tree: inert, with StoredTensor leaves; a leaf that is a live tensor already stays.
        file: named in errors.
        placement: where tensors go; by default where they were saved.
        trusted: full names of classes that may be rebuilt.
        opaque: whether other objects come back as inert placeholders.

    Raises:
        FormatError, UntrustedType, StorageError: see ``lift`` and ``read_requests``.
    """
    # values first: what can't be loaded is refused before the first tensor byte is read
    lift(
        tree, Lifting(leaf=lambda stored: _Placeholder, trusted=trusted, opaque=opaque, file=file, kinds=_PLACEHOLDERS)
    )
    stored = [leaf for _, leaf in leaves(tree) if isinstance(leaf, StoredTensor)]
    with located(tree):
        tensors = dict(zip(map(id, stored), read_tensors(stored, placement or Placement()), strict=True))

    def live(leaf: Any) -> torch.Tensor:
        return leaf if isinstance(leaf, torch.Tensor) else tensors[id(leaf)]

    how = Lifting(leaf=live, trusted=trusted, opaque=opaque, file=file, kinds=TENSOR_KINDS)
    return lift(tree, how)


@contextmanager
def located(tree: Tree) -> Iterator[None]:
    """Puts a damaged tensor's place in the tree beside the name that its container has for the bytes."""
    try:
        yield
    except CorruptFile as error:
        stored = ((path, leaf) for path, leaf in leaves(tree) if isinstance(leaf, StoredTensor))
        place = next((dotted(path) for path, leaf in stored if path and leaf.segment.name == error.path), error.path)
        if error.path is None or place is None or place == error.path:
            raise
        known = f"`{printable(error.path)}`"
        raise CorruptFile(
            str(error).replace(known, f"`{printable(place)}` ({known})", 1),
            file=error.file,
            path=place,
            offset=error.offset,
        ) from None


class _Placeholder:
    """Stands for a tensor while a tree is checked."""


def read_tensors(stored: Sequence[StoredTensor], placement: Placement) -> list[torch.Tensor]:
    """Reads tensors into new memory, in parallel; those that share a segment share memory again."""
    users = Counter([id(leaf.segment) for leaf in stored])
    tensors: list[torch.Tensor | None] = [None] * len(stored)
    blank = _Blank(placement)
    at_once: list[ReadRequest] = []
    up: list[tuple[StoredTensor, torch.Tensor]] = []
    through: list[tuple[StoredTensor, torch.Tensor]] = []
    together: dict[int, list[int]] = {}
    uploaded: dict[int, torch.Tensor] = {}
    for index, leaf in enumerate(stored):
        if users[id(leaf.segment)] == 1 and _fills_segment(leaf) and not placement.by_callable:
            tensor = tensors[index] = blank.like(leaf)
            if not leaf.segment.length:
                continue
            if _goes_up(leaf, tensor):
                up.append((leaf, tensor))
            elif tensor.is_cpu and leaf.live_stride is None and not leaf.segment.swapped:
                at_once.append(_whole(leaf.segment, tensor))
            else:
                through.append((leaf, tensor))
            continue
        key = id(leaf.segment)
        if key not in together and _uploads_whole(leaf.segment, placement):
            uploaded[key] = _blank_bytes(leaf.segment, placement)
            up.append((_as_bytes(leaf.segment), uploaded[key]))
        together.setdefault(key, []).append(index)
    _read(at_once)
    verify_segments(leaf.segment for leaf, _ in through)
    fill(up + through)  # what goes up is checked on its way
    for key, memory in uploaded.items():
        for index in together.pop(key):
            tensors[index] = _view(stored[index], memory.untyped_storage())
    for group in _windows([[stored[index] for index in members] for members in together.values()]):
        storages = _read_storages([members[0].segment for members in group], [members[0] for members in group])
        for members, storage in zip(group, storages, strict=True):
            placed = placement.place(storage, members[0].segment.location)
            for leaf, index in zip(members, together[id(members[0].segment)], strict=True):
                tensors[index] = _view(leaf, placed)
    result = [tensor for tensor in tensors if tensor is not None]
    for leaf, tensor in zip(stored, result, strict=True):
        if leaf.requires_grad:
            tensor.requires_grad_(True)
    return result


def _uploads_whole(segment: Segment, placement: Placement) -> bool:
    """Whether the memory that several tensors share is filled on its device."""
    if placement.by_callable or segment.swapped or not segment.length:
        return False
    return has_streams(placement.device(segment.location)) and _has_usable_digests(segment)


def _blank_bytes(segment: Segment, placement: Placement) -> torch.Tensor:
    return torch.empty(segment.length, dtype=torch.uint8, device=placement.device(segment.location))


def _as_bytes(segment: Segment) -> StoredTensor:
    return StoredTensor(TensorSpec("uint8", (segment.length,)), segment)


def _has_usable_digests(segment: Segment) -> bool:
    """Whether they can be compared chunk by chunk; those that can't are for ``verify_segments`` to refuse."""
    return segment.chunks is None or len(segment.chunks) == -(-segment.length // CHUNK)


def _fills_segment(leaf: StoredTensor) -> bool:
    return leaf.offset == 0 and _row_major_bytes(leaf.spec) == leaf.segment.length


@functools.lru_cache(maxsize=1024)
def _row_major_bytes(spec: TensorSpec) -> int | None:
    """The bytes of a tensor without a stride of its own; models repeat few specs."""
    return spec.nbytes if spec.stride is None else None


class _Blank:
    """Makes tensors in memory that nobody has written; of the many of one kind, the later ones in the first's image."""

    def __init__(self, placement: Placement) -> None:
        self._placement = placement
        self._made: dict[tuple[TensorSpec, str], torch.Tensor] = {}

    def like(self, leaf: StoredTensor) -> torch.Tensor:
        kind = leaf.spec, leaf.segment.location
        made = self._made.get(kind)
        if made is not None and leaf.live_stride is None:
            return torch.empty_like(made)
        device, dtype = self._placement.device(leaf.segment.location), live_dtype(leaf.spec)
        if leaf.live_stride is not None:
            return torch.empty_strided(leaf.spec.shape, leaf.live_stride, dtype=dtype, device=device)
        made = self._made[kind] = torch.empty(leaf.spec.shape, dtype=dtype, device=device)
        return made


def _windows(groups: Iterable[list[StoredTensor]]) -> Iterable[list[list[StoredTensor]]]:
    window: list[list[StoredTensor]] = []
    size = 0
    for group in groups:
        if window and size + group[0].segment.length > _WINDOW:
            yield window
            window, size = [], 0
        window.append(group)
        size += group[0].segment.length
    if window:
        yield window


def _read_storages(segments: Sequence[Segment], leaves_: Sequence[StoredTensor]) -> list[torch.UntypedStorage]:
    raw = [torch.empty(segment.length, dtype=torch.uint8) for segment in segments]
    _read([_whole(segment, tensor) for segment, tensor in zip(segments, raw, strict=True)])
    storages = [tensor.untyped_storage() for tensor in raw]
    for segment, storage, leaf in zip(segments, storages, leaves_, strict=True):
        if segment.swapped:
            storage.byteswap(live_dtype(leaf.spec))  # type: ignore[no-untyped-call]  # torch has no types here
    return storages


def _view(leaf: StoredTensor, storage: torch.UntypedStorage) -> torch.Tensor:
    spec = leaf.spec
    offset, rest = divmod(leaf.offset, spec.itemsize)
    if rest:
        raise CorruptFile(
            f"`{leaf.segment.name}`: a {spec.dtype} tensor begins at byte {leaf.offset} of it, inside an element"
        )
    tensor = torch.empty(0, dtype=live_dtype(spec), device=storage.device)
    tensor.set_(storage, offset, spec.shape, spec.stride or contiguous_stride(spec.shape))
    if leaf.live_stride is None:
        return tensor
    return torch.empty_strided(spec.shape, leaf.live_stride, dtype=tensor.dtype, device=tensor.device).copy_(tensor)


def fill(pairs: Sequence[tuple[StoredTensor, torch.Tensor]]) -> None:
    """Reads stored tensors into live ones of the same shape, with no second copy of the whole.

    Bytes go straight into memory where the live tensor lies as the file does, and through a ring of pinned blocks where
    it does so on an accelerator; otherwise (another dtype or stride) they pass through a small block.

    Raises:
        FormatError, StorageError: the source could not be read; some tensors may be written then.
    """
    direct: list[ReadRequest] = []
    uploads: dict[torch.device, list[UploadRequest]] = {}
    through: list[tuple[StoredTensor, torch.Tensor]] = []
    for leaf, tensor in pairs:
        if leaf.spec.numel == 0:
            continue
        if _goes_up(leaf, tensor):
            uploads.setdefault(tensor.device, []).append(_upload_request(leaf, tensor))
        elif tensor.is_cpu and _lies_alike(leaf, tensor):
            direct.append(_request(leaf, tensor))
        else:
            through.append((leaf, tensor))
    _read(direct)
    for device, requests in uploads.items():
        raise_damage(Upload(device).carry_out(requests))
    for leaf, tensor in through:
        _fill_through_block(leaf, tensor)


def compared_while_filled(leaf: StoredTensor, tensor: torch.Tensor) -> bool:
    """Whether :func:`fill` reads a stored tensor straight into a live one, and compares its digests on the way."""
    known = leaf.segment.chunks is not None or leaf.segment.crc32 is not None
    lies = _goes_up(leaf, tensor) or (tensor.is_cpu and _lies_alike(leaf, tensor))
    return known and lies and _fills_segment(leaf) and tuple(tensor.shape) == leaf.spec.shape


def _request(leaf: StoredTensor, tensor: torch.Tensor) -> ReadRequest:
    if _fills_segment(leaf):
        return _whole(leaf.segment, tensor)
    offset = leaf.segment.offset + leaf.offset
    return ReadRequest(leaf.segment.source, offset, view_memory(tensor.data_ptr(), leaf.spec.nbytes))


def _upload_request(leaf: StoredTensor, tensor: torch.Tensor) -> UploadRequest:
    segment, into = leaf.segment, bytes_of(tensor)
    if _fills_segment(leaf):
        return UploadRequest(segment.source, segment.offset, into, segment.chunks, segment.crc32, segment.name)
    return UploadRequest(segment.source, segment.offset + leaf.offset, into, name=segment.name)


def _whole(segment: Segment, tensor: torch.Tensor) -> ReadRequest:
    """A read of all of a segment, checked against what is known of it in the same pass."""
    into = view_memory(tensor.data_ptr(), segment.length)
    return ReadRequest(segment.source, segment.offset, into, segment.chunks, segment.crc32, segment.name)


def _read(requests: Sequence[ReadRequest]) -> None:
    raise_damage(read_requests(requests))


def _goes_up(leaf: StoredTensor, tensor: torch.Tensor) -> bool:
    return has_streams(tensor.device) and _lies_alike(leaf, tensor) and _has_usable_digests(leaf.segment)


def _lies_alike(leaf: StoredTensor, tensor: torch.Tensor) -> bool:
    return (
        is_plain(tensor)
        and tensor.dtype == live_dtype(leaf.spec)
        and leaf.spec.is_contiguous
        and tensor.is_contiguous()
        and not leaf.segment.swapped
        and not tensor.is_conj()
        and not tensor.is_neg()
    )


def _fill_through_block(leaf: StoredTensor, tensor: torch.Tensor) -> None:
    target = tensor.detach()
    if not leaf.spec.is_contiguous or leaf.segment.swapped:
        segment = leaf.segment
        (storage,) = _read_storages([segment], [leaf])
        with torch.no_grad():
            target.copy_(_view(StoredTensor(leaf.spec, segment, leaf.offset), storage))
        return
    for piece, start in _pieces(target):
        block = _read_block(leaf, piece.shape, start)
        with torch.no_grad():
            piece.copy_(block.real if block.is_complex() and not piece.is_complex() else block)


def _read_block(leaf: StoredTensor, shape: Sequence[int], start: int) -> torch.Tensor:
    """Elements of a row-major stored tensor, from the one with the number ``start``."""
    block = torch.empty(shape, dtype=live_dtype(leaf.spec))
    offset = leaf.segment.offset + leaf.offset + start * leaf.spec.itemsize
    into = view_memory(block.data_ptr(), block.numel() * leaf.spec.itemsize)
    _read([ReadRequest(leaf.segment.source, offset, into)])
    return block


def count_lost(leaf: StoredTensor, dtype: torch.dtype) -> int:
    """How many finite values of a stored tensor would not be finite in ``dtype``; reads it in blocks."""
    if not leaf.spec.is_contiguous or leaf.segment.swapped:
        (whole,) = read_tensors([leaf], Placement("cpu"))
        return _lost(whole, dtype)
    lost, step = 0, BLOCK // leaf.spec.itemsize
    for first in range(0, leaf.spec.numel, step):
        lost += _lost(_read_block(leaf, (min(step, leaf.spec.numel - first),), first), dtype)
    return lost


def _lost(block: torch.Tensor, dtype: torch.dtype) -> int:
    return int((block.isfinite() & ~block.to(dtype).isfinite()).sum())


def _pieces(tensor: torch.Tensor, start: int = 0) -> Iterable[tuple[torch.Tensor, int]]:
    """Parts of at most one block along the leading dimensions, with their first row-major element."""
    if not tensor.dim() or tensor.numel() * max(tensor.element_size(), 8) <= BLOCK:
        yield tensor, start
        return
    row = tensor.numel() // tensor.shape[0]
    rows = BLOCK // max(1, row * max(tensor.element_size(), 8))
    if rows == 0:
        for index in range(tensor.shape[0]):
            yield from _pieces(tensor[index], start + index * row)
        return
    for first in range(0, tensor.shape[0], rows):
        yield tensor[first : first + rows], start + first * row


_PLACEHOLDERS = dict.fromkeys((*TENSOR_KINDS, "numpy.array"), lambda payload: _Placeholder)
