"""The items of a DCP plan as parts of a rank's container: tensors as they are, bytes taken apart and never run.

What is no tensor comes from the planner as a file of ``torch.save``, and its reader would unpickle it. It is parsed
like any file from outside; only plain values go on, and what would need code to come back is refused.
"""

from __future__ import annotations

import io
import math
from typing import Any

import msgspec
import torch

from holdfast.distributed.rank_file import Part
from holdfast.errors import HoldfastError, UnsupportedValue
from holdfast.formats.base import Segment, StoredTensor
from holdfast.formats.detect import open_container
from holdfast.formats.packing import tensor_bytes
from holdfast.runs.sharded import Wanted
from holdfast.serialization.lowering import lower_state
from holdfast.spec import TensorSpec
from holdfast.state.flatten import map_leaves
from holdfast.state.paths import dotted, printable
from holdfast.state.values import Opaque, Tree, Typed
from holdfast.storage.source import MemorySource


class Item(msgspec.Struct, frozen=True):
    """What one item of a plan became, for rank 0.

    Attributes:
        name: of the item.
        value: the inert value of an item that is no tensor; None for a tensor.
        dtype: torch's name, of a tensor.
    """

    name: str
    value: Tree = None
    dtype: str | None = None


def tensor_part(name: str, tensor: torch.Tensor, offsets: tuple[int, ...], shape: tuple[int, ...]) -> Part | None:
    """A tensor of a plan; None for a rectangle without elements of a tensor that has some.

    Args:
        name: of the item.
        tensor: what this rank has of it.
        offsets: of its first element in the whole.
        shape: of the whole.

    Raises:
        UnsupportedValue: it is more than one run of elements.
    """
    leaf = lower_state(tensor.detach(), row_major=True).tree
    if not isinstance(leaf, StoredTensor) or leaf.offset:
        kind = leaf.kind if isinstance(leaf, Typed) else type(leaf).__name__
        raise UnsupportedValue(
            f"`{printable(name)}`: a {kind} tensor can't be stored as a part of a sharded checkpoint; store "
            "to_dense() or dequantize()",
            path=name,
        )
    plain = StoredTensor(TensorSpec(leaf.spec.dtype, leaf.spec.shape), leaf.segment)
    if plain.spec.shape == shape:
        return Part(name, plain)
    return Part(name, plain, offsets) if math.prod(plain.spec.shape) or not math.prod(shape) else None


def value_parts(name: str, data: io.BytesIO) -> tuple[Tree, list[Part]]:
    """A value as the planner pickled it: the inert value, and the tensors inside of it.

    Raises:
        UnsupportedValue: it is more than plain data; names the class that unpickling it would call.
    """
    parts: list[Part] = []

    def wanted(leaf: Any) -> Wanted:
        key = f"{name}~{len(parts)}"
        parts.append(Part(key, StoredTensor(TensorSpec(leaf.spec.dtype, leaf.spec.shape), _row_major(leaf))))
        return Wanted(key, parts[-1].leaf.spec, requires_grad=leaf.requires_grad)

    try:
        container = open_container(MemorySource(data.getvalue()), f"the item {printable(name)}")
        tree = container.document().tree
        _refuse_code(tree, name)
        return map_leaves(tree, wanted), parts
    except UnsupportedValue:
        raise
    except HoldfastError as reason:
        raise UnsupportedValue(
            f"`{printable(name)}`: the planner gives bytes that are no plain value: {reason}", path=name
        ) from reason


def _row_major(leaf: StoredTensor) -> Segment:
    source = tensor_bytes(leaf)
    return Segment(source, 0, leaf.spec.nbytes, leaf.segment.name)


def _refuse_code(tree: Tree, name: str, path: tuple[Any, ...] = ()) -> None:
    """Raises for the first object in a tree that only a class could bring back."""
    stack = [(path, tree)]
    while stack:
        at, node = stack.pop()
        if type(node) is Opaque:
            raise UnsupportedValue(
                f"`{printable(dotted((name, *at)))}`: is a {printable(node.type_name)}, which loading would have to "
                "call; a checkpoint holds plain data: store its numbers, or give its class state_dict() and "
                "load_state_dict()",
                path=name,
            )
        if type(node) is Typed:
            stack.append((at, node.payload))
        elif type(node) is dict:
            stack += [((*at, key), item) for key, item in node.items()]
        elif type(node) is list:
            stack += [((*at, index), item) for index, item in enumerate(node)]
