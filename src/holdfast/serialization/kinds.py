"""Live tensors of the kinds that are more than one run of elements, each made of its parts.

The parts come from files: what torch itself would believe unseen (offsets, axes, lengths) is checked here first.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch

from holdfast.errors import UnsupportedValue
from holdfast.formats.tensors import PACKED
from holdfast.spec import TensorSpec

_AS_INTEGERS = {"qint8": "int8", "quint8": "uint8", "qint32": "int32"}
_QUANTIZED = {getattr(torch, plain): getattr(torch, name) for name, plain in _AS_INTEGERS.items()}
_PACKED_DTYPES = {name: getattr(torch, name) for name in PACKED}


def live_dtype(spec: TensorSpec) -> torch.dtype:
    """The torch dtype of a spec; the integers behind it for a quantized one.

    Raises:
        UnsupportedValue: this torch lacks the dtype.
    """
    return _dtype_named(spec.dtype)


@functools.cache
def _dtype_named(name: str) -> torch.dtype:
    dtype = getattr(torch, _AS_INTEGERS.get(name, name), None)
    if not isinstance(dtype, torch.dtype):
        raise UnsupportedValue(f"this torch ({torch.__version__}) has no dtype {name}; a newer one can load the file")
    return dtype


def _lift_parameter(payload: Any) -> torch.Tensor:
    parameter = torch.nn.Parameter(payload["data"], requires_grad=bool(payload["requires_grad"]))
    return _with_attributes(parameter, payload.get("state"))


def _lift_attributed(payload: Any) -> torch.Tensor:
    return _with_attributes(payload["data"], payload["state"])


def _with_attributes(tensor: torch.Tensor, state: Any) -> torch.Tensor:
    """Puts back what a program had written on a tensor: into its own dict, so that no setter of torch is called."""
    attributes = state[0] if isinstance(state, tuple) else state
    vars(tensor).update(attributes or {})
    return tensor


def _lift_storage(payload: Any) -> Any:
    data = payload["data"]
    untyped = data.untyped_storage()
    if untyped.nbytes() != data.nbytes:  # it was a part of another storage, and shares its memory still
        start = data.storage_offset() * data.element_size()
        untyped = untyped[start : start + data.nbytes]
    if payload["dtype"] is None:
        return untyped
    dtype = payload["data"].dtype
    return torch.storage.TypedStorage(wrap_storage=untyped, dtype=dtype, _internal=True)  # type: ignore[no-untyped-call]


def _lift_sparse(payload: Any) -> torch.Tensor:
    layout, size, values = payload["layout"], payload["size"], payload["values"]
    if layout == "sparse_coo":
        tensor = torch.sparse_coo_tensor(payload["indices"], values, size, check_invariants=True)
        return tensor._coalesced_(bool(payload["coalesced"]))
    named = getattr(torch, layout)
    return torch.sparse_compressed_tensor(
        payload["compressed"], payload["plain"], values, size, layout=named, check_invariants=True
    )


def _lift_quantized(payload: Any) -> torch.Tensor:
    with warnings.catch_warnings():  # of a file's reader torch need not ask that it quantize otherwise
        warnings.filterwarnings("ignore", r"torch\.quantize_per_tensor, torch\.quantize_per_channel", UserWarning)
        return _quantized(payload)


def _quantized(payload: Any) -> torch.Tensor:
    data, scheme = payload["data"], payload["scheme"]
    if scheme == "per_tensor_affine":
        return torch._make_per_tensor_quantized_tensor(data, payload["scale"], payload["zero_point"])
    if scheme not in ("per_channel_affine", "per_channel_affine_float_qparams"):
        raise ValueError(f"quantization scheme {scheme!r} is unknown")
    scales, zeros, axis = payload["scales"], payload["zero_points"], payload["axis"]
    shape = tuple(payload.get("shape", data.shape))
    # torch itself looks at neither before it reads the scales of each channel
    if type(axis) is not int or not 0 <= axis < len(shape):
        raise ValueError(f"axis {axis!r:.50} of a tensor of shape {shape}")
    if scales.shape != (shape[axis],) or zeros.shape != scales.shape:
        raise ValueError(f"{tuple(scales.shape)} scales, {tuple(zeros.shape)} zero points, {shape[axis]} channels")
    if "packed" not in payload and scheme == "per_channel_affine":
        return torch._make_per_channel_quantized_tensor(data, scales, zeros, axis)
    dtype = _PACKED_DTYPES.get(payload.get("packed"), _QUANTIZED.get(data.dtype))
    if dtype is None:
        raise ValueError(f"a quantized tensor of {data.dtype}")
    empty = torch._empty_per_channel_affine_quantized
    tensor = empty(shape, scales=scales, zero_points=zeros, axis=axis, dtype=dtype, device=data.device)
    bytes_of(tensor).copy_(data.contiguous().view(torch.uint8).flatten())
    return tensor


def bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    """All bytes of a tensor's storage, as a tensor."""
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.untyped_storage())


def _lift_nested(payload: Any) -> torch.Tensor:
    data, sizes, strides, offsets = (payload[name] for name in ("data", "sizes", "strides", "offsets"))
    if sizes.dim() == strides.dim() == 0 and not offsets.numel():  # of no tensors; torch can't read its own
        return torch.nested.nested_tensor([], dtype=data.dtype, device=data.device)
    if {sizes.dtype, strides.dtype, offsets.dtype} != {torch.int64}:
        raise ValueError("a nested tensor whose sizes are not all int64")
    shapes, steps, starts = sizes.tolist(), strides.tolist(), offsets.tolist()
    # torch would look at the memory behind the buffer
    for shape, step, start in zip(shapes, steps, starts, strict=True):
        last = sum((size - 1) * by for size, by in zip(shape, step, strict=True))
        if min(*shape, *step, start, 0) < 0 or (0 not in shape and start + last >= data.numel()):
            raise ValueError(f"a nested tensor of shape {shape} at {start} of {data.numel()} elements")
    tensor: torch.Tensor = torch._nested_view_from_buffer(data.contiguous(), sizes.cpu(), strides.cpu(), offsets.cpu())
    return tensor.requires_grad_(True) if payload.get("requires_grad") else tensor


def _lift_jagged(payload: Any) -> torch.Tensor:
    data, offsets, lengths, dimension = (payload[name] for name in ("data", "offsets", "lengths", "dimension"))
    if type(dimension) is not int or not 1 <= dimension <= data.dim() or offsets.dim() != 1 or not offsets.numel():
        raise ValueError(f"a jagged tensor of {data.dim()} dimensions with dimension {dimension!r:.50} jagged")
    spans = offsets.diff() if lengths is None else lengths
    if spans.shape != offsets[1:].shape or spans.is_floating_point() or offsets.is_floating_point():
        raise ValueError("a jagged tensor whose offsets and lengths disagree")
    room = data.shape[dimension - 1]
    if bool((offsets < 0).any() or (spans < 0).any() or (offsets > room).any() or (offsets[:-1] + spans > room).any()):
        raise ValueError(f"a jagged tensor that reaches past its {room} elements")
    # worked out again: kernels believe them
    shortest = int(spans.min()) if payload["shortest"] is not None and spans.numel() else None
    longest = int(spans.max()) if payload["longest"] is not None and spans.numel() else None
    tensor: torch.Tensor = torch.nested.nested_tensor_from_jagged(
        data, offsets, lengths, jagged_dim=dimension, min_seqlen=shortest, max_seqlen=longest
    )
    return tensor.requires_grad_(True) if payload["requires_grad"] else tensor


def _lift_subclass(payload: Any) -> torch.Tensor:
    data, cls = payload["data"], _tensor_class(payload["class"])
    with torch._C.DisableTorchFunctionSubclass():
        tensor: torch.Tensor = data.detach().as_subclass(cls).requires_grad_(data.requires_grad)
    return _with_state(tensor, payload["state"])


def _lift_wrapper(payload: Any) -> torch.Tensor:
    cls, state = _tensor_class(payload["class"]), payload["state"]
    inside = [item for item in (state if isinstance(state, dict) else {}).values() if isinstance(item, torch.Tensor)]
    tensor = torch.Tensor._make_wrapper_subclass(
        cls,
        payload["shape"],
        strides=payload["stride"],
        dtype=live_dtype(TensorSpec(payload["dtype"], ())),
        device=inside[0].device if inside else torch.device("cpu"),
        requires_grad=payload["requires_grad"],
    )
    return _with_state(tensor, state)


def _tensor_class(cls: Any) -> Any:
    if not issubclass(cls, torch.Tensor):
        raise TypeError("it is no class of tensors")
    return cls


def _with_state(tensor: torch.Tensor, state: Any) -> torch.Tensor:
    """Gives a tensor of a trusted class its attributes, as torch does: by its own ``__setstate__`` where it has one."""
    if type(tensor).__setstate__ is not torch.Tensor.__setstate__:
        tensor.__setstate__(state)  # type: ignore[no-untyped-call]  # torch has no types here
        return tensor
    if isinstance(state, tuple) and len(state) == 2:
        for name, item in (state[1] or {}).items():
            object.__setattr__(tensor, name, item)
    return _with_attributes(tensor, state)


def _lift_meta(payload: Any) -> torch.Tensor:
    dtype = live_dtype(TensorSpec(payload["dtype"], ()))
    return torch.empty_strided(
        payload["shape"], payload["stride"], dtype=dtype, device="meta", requires_grad=bool(payload["requires_grad"])
    )


TENSOR_KINDS: dict[str, Callable[[Any], Any]] = {
    "parameter": _lift_parameter,
    "attributed": _lift_attributed,
    "torch.storage": _lift_storage,
    "sparse": _lift_sparse,
    "quantized": _lift_quantized,
    "meta": _lift_meta,
    "nested": _lift_nested,
    "jagged": _lift_jagged,
    "subclass": _lift_subclass,
    "wrapper": _lift_wrapper,
    "conj": torch.conj,
    "neg": torch._neg_view,
}
"""Tensors that are more than one run of elements: kind -> what makes one of its lifted payload."""
