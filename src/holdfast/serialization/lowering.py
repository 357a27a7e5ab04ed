"""Live trees to documents: every tensor becomes a leaf over a segment of bytes that nobody has copied yet."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import msgspec
import torch

from holdfast.errors import UnsupportedValue
from holdfast.formats.base import Segment, StoredTensor
from holdfast.serialization.memory import TensorMemory, TensorSource
from holdfast.spec import DTYPES, Path, TensorSpec, contiguous_stride
from holdfast.state.paths import dotted
from holdfast.state.values import Lowering, Tree, Typed, lower
from holdfast.storage.source import MemorySource

DTYPE_NAMES = {getattr(torch, name): name for name in DTYPES if hasattr(torch, name)}
_EMPTY = MemorySource(b"")
_NO_SEGMENT = Segment(_EMPTY, 0, 0)
"""Stands in every leaf until all tensors are known."""


class Lowered(msgspec.Struct):
    """A tree ready to be written.

    Attributes:
        tree: inert, its leaves are StoredTensors.
        notes: what a caller should be told: tensors stored detached, memory that is no longer shared.
    """

    tree: Tree
    notes: list[str]


class _Pending(msgspec.Struct, eq=False):
    """A tensor whose leaf waits for its segment."""

    leaf: StoredTensor
    tensor: torch.Tensor
    path: Path


def lower_state(
    value: Any, *, row_major: bool, replace: Callable[[Any, Path], Any | None] = lambda *_: None
) -> Lowered:
    """Lowers live values; no tensor byte is touched before the document is written.

    Args:
        value: nested containers, plain values and tensors.
        row_major: whether the container stores only row-major tensors (safetensors); a torch zip keeps strides.
        replace: (value, path) -> what to store instead of a live object, or None.

    Raises:
        UnsupportedValue: names the path and the type.
    """
    pending: list[_Pending] = []
    notes: list[str] = []

    def leaf(item: Any, path: Path) -> Tree | None:
        return _leaf(item, path, pending, notes) if isinstance(item, torch.Tensor) else None

    tree = lower(value, Lowering(leaf=leaf, replace=replace))
    _assign_segments(pending, row_major, notes)
    return Lowered(tree, notes)


def _leaf(tensor: torch.Tensor, path: Path, pending: list[_Pending], notes: list[str]) -> Tree:
    cls = type(tensor)
    if cls not in (torch.Tensor, torch.nn.Parameter):
        raise UnsupportedValue(
            f"`{dotted(path)}`: a tensor of class {cls.__module__}.{cls.__qualname__} can't be stored yet; store "
            "its plain form (such as full_tensor(), dequantize() or as_subclass(torch.Tensor))",
            path=dotted(path),
        )
    if attributes := vars(tensor):
        notes.append(f"`{dotted(path)}` carries attributes of its own, which are not stored: {', '.join(attributes)}")
    requires_grad = tensor.requires_grad
    if cls is torch.nn.Parameter:
        return Typed(
            "parameter", {"data": _plain(tensor.detach(), path, pending, False), "requires_grad": requires_grad}
        )
    if requires_grad and not tensor.is_leaf:
        notes.append(f"`{dotted(path)}` has a graph: stored detached, without requires_grad")
        requires_grad = False
    return _plain(tensor.detach() if tensor.requires_grad else tensor, path, pending, requires_grad)


def _plain(tensor: torch.Tensor, path: Path, pending: list[_Pending], requires_grad: bool) -> Tree:
    """A tensor without a graph, of any layout."""
    if tensor.layout is not torch.strided:
        return _sparse(tensor, path, pending)
    if tensor.is_quantized:
        return _quantized(tensor, path, pending)
    if tensor.is_meta:
        return Typed(
            "meta",
            {
                "dtype": _dtype_name(tensor, path),
                "shape": list(tensor.shape),
                "stride": list(tensor.stride()),
                "requires_grad": requires_grad,
            },
        )
    if tensor.is_nested:
        raise UnsupportedValue(
            f"`{dotted(path)}`: nested tensors can't be stored yet; store unbind()", path=dotted(path)
        )
    if tensor.is_conj() or tensor.is_neg():
        tensor = tensor.resolve_conj().resolve_neg()
    return _strided(tensor, path, pending, requires_grad)


def _dtype_name(tensor: torch.Tensor, path: Path) -> str:
    name = DTYPE_NAMES.get(tensor.dtype)
    if name is None:
        raise UnsupportedValue(f"`{dotted(path)}`: dtype {tensor.dtype} is unknown to this version", path=dotted(path))
    return name


def _strided(tensor: torch.Tensor, path: Path, pending: list[_Pending], requires_grad: bool = False) -> StoredTensor:
    shape, stride = tensor.shape, None
    if not tensor.is_contiguous() or (1 in shape and tensor.stride() != contiguous_stride(shape)):
        stride = tensor.stride()
    spec = _spec(DTYPE_NAMES.get(tensor.dtype) or _dtype_name(tensor, path), shape, stride)
    leaf = StoredTensor(spec, _NO_SEGMENT, 0, requires_grad)
    pending.append(_Pending(leaf, tensor, path))
    return leaf


@functools.lru_cache(maxsize=1024)
def _spec(dtype: str, shape: torch.Size, stride: tuple[int, ...] | None) -> TensorSpec:
    """A spec; models repeat few of them."""
    return TensorSpec(dtype, tuple(shape), stride)


def _sparse(tensor: torch.Tensor, path: Path, pending: list[_Pending]) -> Typed:
    layout = str(tensor.layout).removeprefix("torch.")
    if layout == "sparse_coo":
        parts = {"indices": tensor._indices(), "values": tensor._values()}
    elif layout in ("sparse_csr", "sparse_bsr"):
        parts = {"compressed": tensor.crow_indices(), "plain": tensor.col_indices(), "values": tensor.values()}
    elif layout in ("sparse_csc", "sparse_bsc"):
        parts = {"compressed": tensor.ccol_indices(), "plain": tensor.row_indices(), "values": tensor.values()}
    else:
        raise UnsupportedValue(
            f"`{dotted(path)}`: layout {layout} can't be stored; store to_dense()", path=dotted(path)
        )
    payload: dict[str, Any] = {"layout": layout, "size": list(tensor.shape)}
    if layout == "sparse_coo":
        payload["coalesced"] = tensor.is_coalesced()
    for name, part in parts.items():
        payload[name] = _strided(part.detach(), (*path, name), pending)
    return Typed("sparse", payload)


def _quantized(tensor: torch.Tensor, path: Path, pending: list[_Pending]) -> Typed:
    scheme = str(tensor.qscheme()).removeprefix("torch.")
    payload: dict[str, Any] = {"scheme": scheme, "data": _strided(tensor, path, pending)}
    if scheme == "per_tensor_affine":
        payload |= {"scale": tensor.q_scale(), "zero_point": tensor.q_zero_point()}
    else:
        payload["scales"] = _strided(tensor.q_per_channel_scales(), (*path, "scales"), pending)
        payload["zero_points"] = _strided(tensor.q_per_channel_zero_points(), (*path, "zero_points"), pending)
        payload["axis"] = tensor.q_per_channel_axis()
    return Typed("quantized", payload)


def _assign_segments(pending: list[_Pending], row_major: bool, notes: list[str]) -> None:
    """Gives every leaf its segment; leaves whose bytes overlap in memory get the same one."""
    storages: dict[tuple[torch.device, int], list[_Pending]] = {}
    for item in pending:
        tensor = item.tensor
        if 0 not in item.leaf.spec.shape:
            key = (tensor.device, tensor.untyped_storage().data_ptr())
            storages.setdefault(key, []).append(item)
        else:
            item.leaf.spec = TensorSpec(item.leaf.spec.dtype, item.leaf.spec.shape)
            item.leaf.segment = Segment(_EMPTY, 0, 0, location=_location(tensor.device))
    for members in storages.values():
        if len(members) == 1 and members[0].leaf.spec.stride is None and members[0].tensor.is_cpu:
            members[0].leaf.segment = _memory_segment(members[0].tensor, 0, members[0].tensor.nbytes)
            continue
        for cluster in [members] if len(members) == 1 else _clusters(members, notes):
            if len(cluster) == 1 or all(_same_view(cluster[0].tensor, item.tensor) for item in cluster[1:]):
                _assign_one(cluster, row_major)
            else:
                _assign_shared(cluster)


def _bounds(item: _Pending) -> tuple[int, int]:
    """First byte and end of a tensor inside its storage."""
    itemsize = item.tensor.element_size()
    start = int(item.tensor.storage_offset()) * itemsize
    return start, start + item.leaf.spec.extent * itemsize


def _clusters(members: list[_Pending], notes: list[str]) -> list[list[_Pending]]:
    """Splits the tensors of one storage into groups that overlap; a group keeps the order of the tree."""
    order = {id(item): index for index, item in enumerate(members)}
    groups: list[list[_Pending]] = []
    end = -1
    for item in sorted(members, key=lambda item: _bounds(item)[0]):
        start, stop = _bounds(item)
        if start >= end:
            groups.append([])
        groups[-1].append(item)
        end = max(end, stop)
    result: list[list[_Pending]] = []
    for group in groups:
        by_dtype: dict[str, list[_Pending]] = {}
        for item in sorted(group, key=lambda item: order[id(item)]):
            by_dtype.setdefault(item.leaf.spec.dtype, []).append(item)
        if len(by_dtype) > 1:
            names = ", ".join(f"`{dotted(item.path)}`" for item in group)
            notes.append(f"{names} share memory under several dtypes: stored apart, no longer shared when loaded")
        result.extend(by_dtype.values())
    return result


def _same_view(left: torch.Tensor, right: torch.Tensor) -> bool:
    return (
        left.storage_offset() == right.storage_offset()
        and left.shape == right.shape
        and left.stride() == right.stride()
    )


def _assign_one(cluster: list[_Pending], row_major: bool) -> None:
    """One tensor, perhaps under several names."""
    tensor, spec = cluster[0].tensor, cluster[0].leaf.spec
    on_cpu, live_stride = tensor.device.type == "cpu", None
    dense = spec.stride is None or _is_dense(tensor)
    repeats = not dense and spec.extent < spec.numel  # expanded: fewer elements in memory than in the tensor
    if spec.stride is None or (not row_major and (dense or (repeats and on_cpu))):
        length = spec.extent * spec.itemsize
        segment = _memory_segment(tensor, 0, length) if on_cpu else _copied_segment(tensor)
    else:
        segment = _copied_segment(tensor)
        live_stride = spec.stride if dense else None
        spec = TensorSpec(spec.dtype, spec.shape)
    if not on_cpu and (stride := spec.stride) is not None:
        # the bytes of a dense tensor elsewhere, in the order in which they lie
        order = sorted(range(tensor.dim()), key=lambda axis: (-stride[axis], axis))
        segment.source = TensorSource(tensor.permute(order))
    for item in cluster:
        item.leaf.spec, item.leaf.segment, item.leaf.live_stride = spec, segment, live_stride


def _assign_shared(cluster: list[_Pending]) -> None:
    """Different views of the same bytes: the bytes from the first to the last one are stored once."""
    bounds = [_bounds(item) for item in cluster]
    low, high = min(start for start, _ in bounds), max(stop for _, stop in bounds)
    tensor, start = cluster[0].tensor, bounds[0][0]
    if tensor.device.type == "cpu":
        segment = _memory_segment(tensor, low - start, high - low)
    else:
        raw = torch.empty(0, dtype=torch.uint8, device=tensor.device)
        raw.set_(tensor.untyped_storage(), low, (high - low,), (1,))
        segment = _copied_segment(raw)
        segment.location = _location(tensor.device)
    for item, (begin, _) in zip(cluster, bounds, strict=True):
        item.leaf.segment, item.leaf.offset = segment, begin - low
        if item.leaf.spec.stride is None:
            item.leaf.spec = TensorSpec(
                item.leaf.spec.dtype, item.leaf.spec.shape, contiguous_stride(item.tensor.shape)
            )


def _memory_segment(tensor: torch.Tensor, start: int, length: int) -> Segment:
    return Segment(TensorMemory(tensor, start, length), 0, length, location=_location(tensor.device))


def _copied_segment(tensor: torch.Tensor) -> Segment:
    source = TensorSource(tensor)
    return Segment(source, 0, source.size, location=_location(tensor.device))


def _is_dense(tensor: torch.Tensor) -> bool:
    """Whether the elements fill their extent, each once: a transposed or channels_last tensor, not a slice."""
    expected = 1
    for size, step in sorted(zip(tensor.shape, tensor.stride(), strict=True), key=lambda pair: pair[1]):
        if size != 1:
            if step != expected:
                return False
            expected *= size
    return True


@functools.cache
def _location(device: torch.device) -> str:
    return device.type if device.index is None else f"{device.type}:{device.index}"
