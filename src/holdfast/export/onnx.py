"""ONNX through torch.export: one file that says all, or, past 2 GB, a file of weights beside it."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import xxhash
from torch import nn

from holdfast.errors import ArgumentError, MissingExtra, RefusedFile, UnsupportedValue
from holdfast.export.dynamic import Axes
from holdfast.export.example import Example
from holdfast.export.product import Piece, Product, refused
from holdfast.export.program import trace_program
from holdfast.state.paths import printable

ONE_FILE = 2_000_000_000
"""Bytes of weights up to which they are in the .onnx itself: a message of protobuf ends at 2**31."""
_SMALL = 1024
"""Tensors below are always in the .onnx: shapes and such, which checkers look into."""
_ALIGNED = 64
_NEEDED = ("onnx", "onnxscript", "onnxruntime")
_ADVICE = "The same model as .pt2 needs no operators of ONNX"


def need_packages(file: str) -> None:
    """Imports what writing and checking ONNX needs.

    Raises:
        MissingExtra: a package is not installed.
    """
    for name in _NEEDED:
        try:
            importlib.import_module(name)
        except ImportError as reason:
            raise MissingExtra(
                f"`{printable(file)}`: ONNX needs {', '.join(_NEEDED)}, and {name} can't be imported: "
                f'pip install "holdfast[export]" ({reason})',
                file=file,
            ) from None


def make_onnx(
    module: nn.Module, example: Example, axes: Axes, inputs: Sequence[str], outputs: Sequence[str], file: str
) -> Product:
    """An ONNX model with these names, checked by onnx.checker.

    Raises:
        UnsupportedValue: torch.export or the ONNX exporter does not take the model, or the checker its result.
    """
    onnx_ir: Any = importlib.import_module("onnx_ir")
    program, notes = trace_program(module, example, axes, file)
    try:
        made: Any = torch.onnx.export(
            program, dynamo=True, input_names=list(inputs), output_names=list(outputs), verbose=False
        )
    except Exception as reason:  # it raises what torch's compiler raises
        raise refused(file, "torch.onnx", reason, _ADVICE) from reason
    if made is None or len(made.model.graph.inputs) != len(inputs) or len(made.model.graph.outputs) != len(outputs):
        raise UnsupportedValue(f"`{printable(file)}`: torch.onnx left out inputs or outputs of this model", file=file)
    _name_axes(made, example, axes)
    location, pieces = _outside(made.model, file) if _weigh(made.model) > ONE_FILE else (None, ())
    proto = onnx_ir.to_proto(made.model)
    _check(proto, file)
    return Product("dynamo", proto.SerializeToString(), notes, location, pieces)


def _name_axes(made: Any, example: Example, axes: Axes) -> None:
    """Gives the open axes their names; the exporter calls them s77."""
    names = {}
    for value, leaf in zip(made.model.graph.inputs, example.tensors, strict=True):
        for axis, name in axes.get(leaf, {}).items():
            symbol = getattr(value.shape[axis], "value", None)
            if isinstance(symbol, str):
                names[symbol] = name
    made.rename_axes(names)


def _weigh(model: Any) -> int:
    values = (value.const_value for value in model.graph.initializers.values())
    return sum(value.nbytes for value in values if value is not None)


def _outside(model: Any, file: str) -> tuple[str, tuple[Piece, ...]]:
    """Puts the large tensors of a model into a file beside it, whose name tells its content.

    So a new export never writes into the data of the one that it replaces, which stays whole until the end.
    """
    onnx_ir: Any = importlib.import_module("onnx_ir")
    large = [(name, value) for name, value in model.graph.initializers.items() if (value.const_value.nbytes >= _SMALL)]
    hasher, at, pieces = xxhash.xxh3_128(), 0, []
    for _, value in large:
        data = value.const_value.tobytes()
        hasher.update(data)
        pieces.append(Piece(at, len(data), value.const_value))
        at = -(-(at + len(data)) // _ALIGNED) * _ALIGNED
    location = data_name(os.path.basename(file), hasher.hexdigest())
    for (name, value), piece in zip(large, pieces, strict=True):
        tensor = value.const_value
        value.const_value = onnx_ir.ExternalTensor(
            location, piece.offset, piece.size, tensor.dtype, shape=tensor.shape, name=name, base_dir=""
        )
    return location, tuple(pieces)


def data_name(base: str, digest: str) -> str:
    """``net.onnx.0123456789abcdef.data``: the name of a file of external data."""
    return f"{base}.{digest[:16]}.data"


def is_data_name(name: str, base: str) -> bool:
    """Whether a file is external data that an export to ``base`` wrote."""
    return re.fullmatch(rf"{re.escape(base)}\.[0-9a-f]{{16}}\.data", name) is not None


def locations(proto: Any) -> set[str]:
    """Every place of external data in a model, in nested graphs, attributes and functions too.

    Raises:
        RefusedFile: one leads out of the model's folder.
    """
    found = set()
    for tensor in _tensors(proto):
        for entry in tensor.external_data:
            if entry.key == "location":
                found.add(entry.value)
    for place in found:
        if not place or place in (".", "..") or re.search(r"[/\\\0:]", place):
            raise RefusedFile(f"external data at {printable(place)!r} is outside of the model's folder")
    return found


def _tensors(message: Any) -> Iterator[Any]:
    """Every TensorProto inside of a protobuf message."""
    if message.DESCRIPTOR.name == "TensorProto":
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for one in [value] if hasattr(value, "ListFields") else value:
                yield from _tensors(one)


def _check(proto: Any, file: str) -> None:
    onnx: Any = importlib.import_module("onnx")
    try:
        outside = locations(proto)
        onnx.checker.check_model(_without_data(proto) if outside else proto)
    except (onnx.checker.ValidationError, RefusedFile, ValueError) as reason:
        raise refused(file, "onnx.checker", reason, _ADVICE) from reason


def _without_data(proto: Any) -> Any:
    """The same model with its external tensors as inputs: their data is not on any disk yet."""
    onnx: Any = importlib.import_module("onnx")
    bare = onnx.ModelProto()
    bare.CopyFrom(proto)
    outside = [one for one in bare.graph.initializer if one.external_data]
    for one in outside:
        bare.graph.input.append(onnx.helper.make_tensor_value_info(one.name, one.data_type, list(one.dims)))
        bare.graph.initializer.remove(one)
    return bare


def graph_names(given: Sequence[str] | None, own: Sequence[str], what: str) -> list[str]:
    """The names of inputs or outputs: the caller's, else the model's.

    Raises:
        ArgumentError: not as many as there are, or one twice.
    """
    if given is None:
        return list(own)
    if isinstance(given, str) or not all(isinstance(name, str) and name for name in given):
        raise ArgumentError(f"{what}= is a list of names: {what}=[{own[0]!r}]")
    if len(given) != len(own):
        raise ArgumentError(
            f"{what}= has {len(given)} names; there are {len(own)}: {', '.join(printable(name) for name in own)}"
        )
    if len(set(given)) != len(given):
        raise ArgumentError(f"{what}= has a name twice: {', '.join(printable(name) for name in given)}")
    return list(given)
