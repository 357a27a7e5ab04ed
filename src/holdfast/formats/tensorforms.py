"""What tensors of more than one run of elements look like in a pickle, and tensors of classes that are not torch's.

Each form turns the parts of a call into a value, or says None: then the call stays opaque, which is always safe. What
the numbers inside mean (offsets of nested tensors, say) is checked when a live tensor is made of them. Source of the
forms: ``torch/_utils.py``, ``torch/_tensor.py`` and ``torch/nested/_internal/nested_tensor.py`` of torch 2.13.
"""

from __future__ import annotations

from typing import Any, TypeGuard

from holdfast.formats.arrays import numpy_code
from holdfast.formats.base import Segment, StoredTensor
from holdfast.formats.parts import Form, Parts, items_of
from holdfast.spec import DTYPES, TensorSpec
from holdfast.state.values import TENSOR_KINDS, Opaque, Tree, Typed
from holdfast.storage.source import MemorySource


def _is_tensor(tree: Tree) -> bool:
    return type(tree) is StoredTensor or (type(tree) is Typed and tree.kind in TENSOR_KINDS)


def _parameter(parts: Parts) -> Tree | None:
    """``_rebuild_parameter(data, requires_grad, hooks[, state])``."""
    if not parts.only_args or not 3 <= len(parts.args) <= 4:
        return None
    data, grad, hooks, *state = parts.args
    if not _is_tensor(data) or type(grad) is not bool or hooks not in (None, {}, Typed("ordered_dict", [])):
        return None
    payload = {"data": data, "requires_grad": grad}
    return Typed("parameter", payload | {"state": state[0]} if state and state[0] else payload)


def _old_parameter(parts: Parts) -> Tree | None:
    """``Parameter(data)`` of torch < 0.4, with ``(requires_grad, volatile, hooks)`` as its state."""
    grad = _old_grad(parts)
    data = parts.args[0] if parts.args else None
    return Typed("parameter", {"data": data, "requires_grad": grad}) if grad is not None and _is_tensor(data) else None


def _variable(parts: Parts) -> Tree | None:
    """``Variable(data)`` of torch < 0.4: what is a tensor since."""
    grad = _old_grad(parts)
    data = parts.args[0] if parts.args else None
    if grad is None or type(data) is not StoredTensor:
        return None
    return StoredTensor(data.spec, data.segment, data.offset, grad)


def _old_grad(parts: Parts) -> bool | None:
    """requires_grad of a Parameter or Variable of torch < 0.4; None when it is not pickled as these were."""
    state = items_of(parts.state) if parts.built else [parts.args[1] if len(parts.args) == 2 else False, None, None]
    if len(parts.args) not in (1, 2) or parts.items or parts.pairs or state is None or len(state) != 3:
        return None
    grad, _, hooks = state
    return grad if type(grad) is bool and hooks in (None, {}, Typed("ordered_dict", [])) else None


def _sparse(parts: Parts) -> Tree | None:
    """``_rebuild_sparse_tensor(layout, (indices, values, size, coalesced))``, or two index lists, values and size."""
    if not parts.only_args or len(parts.args) != 2:
        return None
    layout, data = parts.args[0], items_of(parts.args[1])
    if type(layout) is not Typed or layout.kind != "torch.layout" or data is None:
        return None
    if layout.payload == "sparse_coo":
        names = ("indices", "values", "size", "coalesced")
        data = [*data, False] if len(data) == 3 else data  # before torch 2.1
    else:
        names = ("compressed", "plain", "values", "size")
    if len(data) != 4:
        return None
    payload: dict[str, Any] = {"layout": layout.payload, **dict(zip(names, data, strict=True))}
    size = payload["size"]
    payload["size"] = size.payload if type(size) is Typed and size.kind in ("torch.Size", "tuple") else None
    payload["coalesced"] = bool(payload["coalesced"]) if "coalesced" in payload else None
    if payload["coalesced"] is None:
        del payload["coalesced"]
    tensors = all(type(payload[name]) is StoredTensor for name in names[: 2 if names[0] == "indices" else 3])
    fits = (
        tensors and type(payload["size"]) is list and all(type(size) is int and size >= 0 for size in payload["size"])
    )
    return Typed("sparse", payload) if fits else None


def _nested(parts: Parts) -> Tree | None:
    """``_rebuild_nested_tensor(buffer, sizes, strides, offsets)``: tensors of several shapes in one buffer."""
    if not parts.only_args or len(parts.args) != 4 or any(type(arg) is not StoredTensor for arg in parts.args):
        return None
    names = ("data", "sizes", "strides", "offsets")
    return Typed("nested", dict(zip(names, parts.args, strict=True)))


def _jagged(parts: Parts) -> Tree | None:
    """``_rebuild_njt({"values": ..., "offsets": ..., ...})``: tensors that differ in the length of one dimension."""
    given = parts.args[0] if len(parts.args) == 1 and parts.only_args else None
    if type(given) is not dict:
        return None
    data, offsets, lengths = (_bare(given.get(name)) for name in ("values", "offsets", "lengths"))
    dimension, grad = given.get("_ragged_idx", 1), given.get("requires_grad", False)
    if type(data) is not StoredTensor or type(offsets) is not StoredTensor:
        return None
    if type(lengths) not in (StoredTensor, type(None)) or type(dimension) is not int or type(grad) is not bool:
        return None
    cache = given.get("_metadata_cache")
    spans = [_bare(cache.get(name)) if type(cache) is dict else None for name in ("min_seqlen", "max_seqlen")]
    # torch keeps the shortest and the longest length as the first size of a tensor without elements
    shortest, longest = (one.spec.shape[0] if type(one) is StoredTensor and one.spec.shape else None for one in spans)
    payload = {"data": data, "offsets": offsets, "lengths": lengths, "dimension": dimension}
    return Typed("jagged", payload | {"shortest": shortest, "longest": longest, "requires_grad": grad})


def _bare(tree: Tree) -> Tree:
    """A tensor without attributes: torch.compile leaves marks on the parts of a jagged one."""
    return tree.payload["data"] if type(tree) is Typed and tree.kind == "attributed" else tree


def _wrapper(parts: Parts) -> Tree | None:
    """``_rebuild_wrapper_subclass(class, dtype, size, stride, offset, layout, device, requires_grad)``.

    Such a tensor has no elements: those of the tensors in its attributes are what it shows.
    """
    if not parts.only_args or len(parts.args) != 8:
        return None
    cls, dtype, size, stride, offset, layout, _, grad = parts.args
    shape, steps = _numbers(size), _numbers(stride)
    known = type(cls) is Opaque and cls.args is None and _is_kind(dtype, "torch.dtype")
    if not known or shape is None or steps is None or type(grad) is not bool or offset != 0:
        return None
    if not _is_kind(layout, "torch.layout") or layout.payload != "strided":
        return None
    payload = {"class": cls.type_name, "dtype": dtype.payload, "shape": shape, "stride": steps}
    return Typed("wrapper", payload | {"requires_grad": grad, "state": None})


def _is_kind(tree: Tree, kind: str) -> TypeGuard[Typed]:
    return type(tree) is Typed and tree.kind == kind


def _numbers(tree: Tree) -> list[int] | None:
    """Sizes or strides, given plainly or as a torch.Size."""
    items = tree.payload if _is_kind(tree, "torch.Size") else items_of(tree)
    fits = type(items) is list and all(type(item) is int and item >= 0 for item in items)
    return items if fits else None


def of_class(cls: str, data: Tree, state: Tree) -> Tree | None:
    """The value of ``_rebuild_from_type_v2``: what its function made, with a class and attributes.

    Args:
        cls: full name of the class.
        data: what the function made.
        state: the attributes that it would get.
    """
    if cls == "torch.nested._internal.nested_tensor.NestedTensor":
        return data if _is_kind(data, "jagged") else None
    if _is_kind(data, "wrapper"):
        return Typed("wrapper", {**data.payload, "state": state}) if data.payload["class"] == cls else None
    if not _is_tensor(data) and not _is_kind(data, "parameter"):
        return None
    if cls == "torch.Tensor":
        return Typed("attributed", {"data": data, "state": state})
    return Typed("subclass", {"class": cls, "data": data, "state": state})


# -- tensors of devices whose memory torch can't write


def _from_cpu(parts: Parts) -> Tree | None:
    """``_rebuild_device_tensor_from_cpu_tensor(data, dtype, device, requires_grad)``; it arrives on the CPU."""
    data, dtype, _, grad = parts.args if len(parts.args) == 4 and parts.only_args else (None, None, None, None)
    if type(data) is not StoredTensor or type(grad) is not bool:
        return None
    if not _is_kind(dtype, "torch.dtype") or dtype.payload != data.spec.dtype:
        return None
    return StoredTensor(data.spec, data.segment, data.offset, grad)


def _from_numpy(parts: Parts) -> Tree | None:
    """``_rebuild_device_tensor_from_numpy(array, dtype, device, requires_grad)``, once ``_rebuild_xla_tensor``.

    The array stands in the pickle. numpy has no bfloat16, so that one was written as float32, whose upper half it is.
    """
    array, dtype, _, grad = parts.args if len(parts.args) == 4 and parts.only_args else (None, None, None, None)
    if not _is_kind(array, "numpy.array") or not _is_kind(dtype, "torch.dtype") or type(grad) is not bool:
        return None
    payload: dict[str, Any] = array.payload
    kind, data, name = payload.get("dtype"), payload.get("data"), dtype.payload
    if type(data) is not bytes or name not in DTYPES:
        return None
    if name == "bfloat16" and kind == "<f4" and not any(data[0::4]) and not any(data[1::4]):
        halves = bytearray(len(data) // 2)
        halves[0::2], halves[1::2] = data[2::4], data[3::4]
        data = bytes(halves)
    elif kind != numpy_code(name):
        return None
    spec = TensorSpec(name, tuple(payload["shape"]))
    if spec.nbytes != len(data):
        return None
    return StoredTensor(spec, Segment(MemorySource(data), 0, len(data), "data.pkl"), 0, grad)


TENSOR_FORMS: dict[str, Form] = {
    "torch.autograd.variable.Variable": _variable,
    "torch.nn.parameter.Parameter": _old_parameter,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._utils._rebuild_sparse_tensor": _sparse,
    "torch._utils._rebuild_sparse_csr_tensor": _sparse,  # torch 1.9 to 1.13
    "torch._utils._rebuild_nested_tensor": _nested,
    "torch.nested._internal.nested_tensor._rebuild_njt": _jagged,
    "torch._utils._rebuild_wrapper_subclass": _wrapper,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _from_cpu,
    "torch._utils._rebuild_device_tensor_from_numpy": _from_numpy,
    "torch._utils._rebuild_xla_tensor": _from_numpy,
}
