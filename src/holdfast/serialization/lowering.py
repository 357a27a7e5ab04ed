"""Live trees to documents: every tensor becomes a leaf over a segment of bytes that nobody has copied yet."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import msgspec
import torch
from torch._subclasses.fake_tensor import FakeTensor

from holdfast.errors import UnsupportedValue
from holdfast.formats.base import Segment, StoredTensor
from holdfast.formats.tensors import PACKED, packed_bytes
from holdfast.serialization.kinds import bytes_of
from holdfast.serialization.memory import TensorMemory, TensorSource
from holdfast.serialization.sharded import is_sharded, local_part
from holdfast.spec import DTYPES, Path, TensorSpec, contiguous_stride
from holdfast.state.lowering import Lowering, lower
from holdfast.state.paths import dotted
from holdfast.state.values import Tree, Typed
from holdfast.storage.source import MemorySource

DTYPE_NAMES = {getattr(torch, name): name for name in DTYPES if hasattr(torch, name)}
_PLAIN = (torch.Tensor, torch.nn.Parameter)
_REDUCERS = (torch.Tensor.__reduce_ex__, torch.nn.Parameter.__reduce_ex__)
"""How torch pickles tensors; a class that does it differently has something to keep that only it knows."""
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
    value: Any,
    *,
    row_major: bool,
    replace: Callable[[Any, Path], Any | None] = lambda *_: None,
    shards: bool = False,
) -> Lowered:
    """Lowers live values; no tensor byte is touched before the document is written.

    Args:
        value: nested containers, plain values and tensors.
        row_major: whether the container stores only row-major tensors (safetensors); a torch zip keeps strides.
        replace: (value, path) -> what to store instead of a live object, or None.
        shards: whether a tensor that several processes share is lowered to what this one has of it: to ``sharded``,
            a kind that is in no file, with the shape of the whole and where in it this part begins.

    Raises:
        UnsupportedValue: names the path and the type.
    """
    pending: list[_Pending] = []
    notes: list[str] = []
    open_tensors: list[int] = []

    def leaf(item: Any, path: Path) -> Tree | None:
        if not isinstance(item, torch.Tensor):
            return None
        if type(item) in _PLAIN and not vars(item):
            return _leaf(item, path, pending, notes)
        if shards and is_sharded(item):
            local, box = local_part(item, dotted(path))
            part = _leaf(local.detach(), path, pending, notes)
            return Typed("sharded", {"data": part, "shape": list(item.shape), "at": list(box.offsets)})
        if id(item) in open_tensors:
            text = f"`{dotted(path)}`: contains itself; break the cycle before saving"
            raise UnsupportedValue(text, path=dotted(path))
        open_tensors.append(id(item))
        try:
            return _Dressed(pending, notes, how).leaf(item, path)
        finally:
            open_tensors.pop()

    how = Lowering(leaf=leaf, replace=replace)
    tree = lower(value, how)
    _assign_segments(pending, row_major, notes)
    return Lowered(tree, notes)


def _leaf(tensor: torch.Tensor, path: Path, pending: list[_Pending], notes: list[str]) -> Tree:
    """A tensor of torch's own classes, without its attributes."""
    requires_grad = tensor.requires_grad
    if requires_grad and tensor._backward_hooks:
        notes.append(f"`{dotted(path)}` has hooks (functions), which are not stored")
    if type(tensor) is torch.nn.Parameter:
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
        parts = {
            "data": tensor.values(),
            "sizes": tensor._nested_tensor_size(),
            "strides": tensor._nested_tensor_strides(),
            "offsets": tensor._nested_tensor_storage_offsets(),
        }
        stored = {name: _strided(part, _below(path, name), pending) for name, part in parts.items()}
        return Typed("nested", {**stored, "requires_grad": requires_grad})
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


def _below(path: Path, name: str) -> Path:
    """The path of a part; that of the elements is the path of the tensor."""
    return path if name == "data" else (*path, name)


def _quantized(tensor: torch.Tensor, path: Path, pending: list[_Pending]) -> Typed:
    scheme, dtype = str(tensor.qscheme()).removeprefix("torch."), _dtype_name(tensor, path)
    payload: dict[str, Any] = {"scheme": scheme}
    if dtype in PACKED:
        if tensor.storage_offset() or not tensor.is_contiguous():
            raise UnsupportedValue(
                f"`{dotted(path)}`: a part of a {dtype} tensor can't be stored; store dequantize()", path=dotted(path)
            )
        length = packed_bytes(TensorSpec(dtype, tuple(tensor.shape)))
        data = bytes_of(tensor)[:length]
        payload |= {"packed": dtype, "shape": list(tensor.shape), "data": _strided(data, path, pending)}
    else:
        payload["data"] = _strided(tensor, path, pending)
    if scheme == "per_tensor_affine":
        payload |= {"scale": tensor.q_scale(), "zero_point": tensor.q_zero_point()}
    else:
        payload["scales"] = _strided(tensor.q_per_channel_scales(), (*path, "scales"), pending)
        payload["zero_points"] = _strided(tensor.q_per_channel_zero_points(), (*path, "zero_points"), pending)
        payload["axis"] = tensor.q_per_channel_axis()
    return Typed("quantized", payload)


class _Dressed:
    """Lowers tensors that have a class or attributes of their own.

    Args:
        pending: takes the tensors in them.
        notes: takes what is not stored.
        how: lowers attributes.
    """

    def __init__(self, pending: list[_Pending], notes: list[str], how: Lowering) -> None:
        self._pending = pending
        self._notes = notes
        self._how = how

    def leaf(self, tensor: torch.Tensor, path: Path) -> Tree:
        try:
            return self._leaf(tensor, path)
        except UnsupportedValue:
            raise
        except Exception as reason:  # whatever the class's own code raises when it is asked what it is
            raise self._unsupported(tensor, path, f"raises {type(reason).__name__} ({reason})") from reason

    def _leaf(self, tensor: torch.Tensor, path: Path) -> Tree:
        cls = type(tensor)
        if tensor.layout is torch.jagged:
            return self._jagged(tensor, path)
        if cls in _PLAIN:
            plain = _leaf(tensor, path, self._pending, self._notes)
            state = self._attributes(vars(tensor), path)
            if not state:
                return plain
            if cls is torch.nn.Parameter:
                return Typed("parameter", {**plain.payload, "state": state})
            return Typed("attributed", {"data": plain, "state": state})
        if cls.__reduce_ex__ not in _REDUCERS or isinstance(tensor, FakeTensor):
            raise self._unsupported(tensor, path, "is pickled in a way of its own")
        if _has_memory(tensor):
            with torch._C.DisableTorchFunctionSubclass():
                inner = tensor.detach().as_subclass(torch.Tensor)
                if tensor.requires_grad and tensor.is_leaf:
                    inner = inner.detach().requires_grad_(True)
            data = _leaf(inner, path, self._pending, self._notes)
            state = self._attributes(vars(tensor), path)
            return Typed("subclass", {"class": f"{cls.__module__}.{cls.__qualname__}", "data": data, "state": state})
        return self._wrapper(tensor, path)

    def _unsupported(self, tensor: torch.Tensor, path: Path, why: str) -> UnsupportedValue:
        cls = type(tensor)
        return UnsupportedValue(
            f"`{dotted(path)}`: a tensor of class {cls.__module__}.{cls.__qualname__} can't be stored: it {why}. Store "
            "its plain form, such as full_tensor(), dequantize() or as_subclass(torch.Tensor)",
            path=dotted(path),
        )

    def _attributes(self, attributes: dict[str, Any], path: Path) -> dict[str, Tree]:
        """Attributes that can be stored; the others are said."""
        state: dict[str, Tree] = {}
        for name, value in attributes.items():
            before = len(self._pending)
            try:
                state[name] = lower(value, self._how, (*path, "state", name))
            except UnsupportedValue:
                del self._pending[before:]
                kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
                self._notes.append(f"`{dotted(path)}`: its attribute {name}, a {kind}, can't be stored and is left out")
        return state

    def _wrapper(self, tensor: torch.Tensor, path: Path) -> Typed:
        """A tensor without elements, which shows what the tensors in its attributes hold."""
        before, cls = len(self._pending), type(tensor)
        if tensor.storage_offset():
            raise self._unsupported(tensor, path, "begins inside the memory of another")
        try:
            state = lower(dict(vars(tensor)), self._how, (*path, "state"))
        except UnsupportedValue as reason:
            del self._pending[before:]
            raise self._unsupported(tensor, path, f"has parts that can't ({reason})") from None
        payload = {"class": f"{cls.__module__}.{cls.__qualname__}", "dtype": _dtype_name(tensor, path)}
        shape, grad = {"shape": list(tensor.shape), "stride": list(tensor.stride())}, tensor.requires_grad
        return Typed("wrapper", {**payload, **shape, "requires_grad": grad and tensor.is_leaf, "state": state})

    def _jagged(self, tensor: Any, path: Path) -> Typed:
        cache = tensor._metadata_cache
        parts = {"data": tensor.values(), "offsets": tensor.offsets(), "lengths": tensor.lengths()}
        stored = {
            name: None if part is None else _strided(part.detach(), _below(path, name), self._pending)
            for name, part in parts.items()
        }
        # as torch keeps them: the first size of a tensor without elements
        shortest, longest = (cache[name].shape[0] if name in cache else None for name in ("min_seqlen", "max_seqlen"))
        grad = tensor.requires_grad and tensor.is_leaf
        if tensor.requires_grad and not grad:
            self._notes.append(f"`{dotted(path)}` has a graph: stored detached, without requires_grad")
        numbers = {"dimension": tensor._ragged_idx, "shortest": shortest, "longest": longest, "requires_grad": grad}
        return Typed("jagged", {**stored, **numbers})


def _has_memory(tensor: torch.Tensor) -> bool:
    """Whether a tensor of a subclass has elements of its own."""
    if type(tensor).__torch_dispatch__ is torch.Tensor.__torch_dispatch__:
        return True
    return tensor.data_ptr() != tensor.storage_offset() * tensor.element_size()


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
