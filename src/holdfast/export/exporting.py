"""One export from end to end: made, staged, run in its own runtime, compared, and only then in its place."""

from __future__ import annotations

import contextlib
import copy
import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import msgspec
import torch
from torch import nn
from torch.utils import _pytree as pytree

from holdfast.errors import ArgumentError, UnsupportedValue
from holdfast.export import onnx, program, torchscript
from holdfast.export.asking import ask
from holdfast.export.building import build_model
from holdfast.export.cases import cases_for
from holdfast.export.dynamic import Axes, resolve_axes, shown_shape
from holdfast.export.example import Example, bind_example, foreign_class, output_names
from holdfast.export.onnx import graph_names
from holdfast.export.parity import Asked, ask_model, first_answer, judge
from holdfast.export.product import Product
from holdfast.export.quiet import first_line, quiet
from holdfast.export.report import ExportReport, Port
from holdfast.export.untouched import untouched
from holdfast.objects.module import unwrap
from holdfast.objects.probe import probe_inputs
from holdfast.state.paths import printable
from holdfast.storage.atomic import remove_file, replace_file
from holdfast.storage.requests import WriteRequest
from holdfast.storage.staged import StagedFile
from holdfast.transfer.opened import is_source

FORMATS = ("onnx", "torch-export", "torchscript", "torchscript-script", "torchscript-trace")
"""What ``format=`` takes."""
_SUFFIXES = {".onnx": "onnx", ".pt2": "torch-export", ".ts": "torchscript"}
_FIXED = "every size is that of the example; dynamic={{{0!r}: {{0: 'batch'}}}} leaves the first axis open"
_NOT_TRIED = (
    "other sizes than the example's were not tried; dynamic={{{0!r}: {{0: 'batch'}}}} says that they are meant to work"
)


class ExportOptions(msgspec.Struct, frozen=True):
    """What a caller of ``export`` may say, beside the model and where it goes."""

    example: Any = None
    format: str | None = None
    dynamic: Any = None
    input_names: Sequence[str] | None = None
    output_names: Sequence[str] | None = None
    tolerance: float | None = None


def export_any(
    model: Any,
    path: str | os.PathLike[str],
    options: ExportOptions,
    *,
    factory: Callable[..., nn.Module] | None,
    trusted: Collection[str],
) -> ExportReport:
    """Exports a live module, or the one that a file holds, on the example that the file has when none is given.

    Raises:
        NotFound, FormatError, ConfigMissing: as in ``holdfast.build``; and what :func:`export_model` raises.
    """
    if is_source(model):
        built = build_model(model, factory=factory, trusted=trusted, mode="eval")
        model = built.model
        if options.example is None and built.probe is not None:
            options = msgspec.structs.replace(options, example=probe_inputs(built.probe, built.file))
    return export_model(model, path, options)


def export_model(model: nn.Module, path: str | os.PathLike[str], options: ExportOptions) -> ExportReport:
    """Writes a model for another runtime, and compares what that answers with what the model answers.

    Args:
        model: a live module, wrapped or not. It is left as it was.
        path: where the file goes.
        options: as the public function says.

    Raises:
        ArgumentError, UnsupportedValue, MissingExtra, MismatchError, StorageError: as the public function says.
    """
    start = time.monotonic()
    file = _file_name(path)
    wanted = format_of(file, options.format)
    if options.tolerance is not None and not options.tolerance >= 0:
        raise ArgumentError(f"tolerance= is {options.tolerance!r}; a number from 0 on is wanted, such as 1e-3")
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"a module, or a file that has one, is wanted, not {type(model).__name__}")
    if options.example is None:
        raise ArgumentError(
            f"`{printable(file)}`: export needs an example of the inputs: example=x, or a tuple of the arguments of "
            "forward; a file that was saved with probe= has one"
        )
    if wanted == "onnx":
        with quiet():
            onnx.need_packages(file)
    report = ExportReport(file=file, format="torchscript" if "torchscript" in wanted else wanted)
    module = _on_cpu(unwrap(model), report)
    with untouched(module):
        _export(module, wanted, options, report, start)
    return report


def _file_name(path: Any) -> str:
    if not isinstance(path, str | os.PathLike):
        raise ArgumentError(f"export writes to a path, not to a {type(path).__name__}")
    file = os.fsdecode(path)
    if "://" in file:
        raise ArgumentError(
            f"`{printable(file)}`: exporting to a URL is not in this version; export to a path", file=file
        )
    return file


def format_of(file: str, wanted: str | None) -> str:
    """The format by name, else by suffix.

    Raises:
        ArgumentError: it is unknown, or the suffix says none.
    """
    if wanted is None:
        wanted = _SUFFIXES.get(os.path.splitext(file)[1].lower())
        if wanted is None:
            raise ArgumentError(
                f"`{printable(file)}`: the name does not say for which runtime: end it in {', '.join(_SUFFIXES)}, or "
                f"give format=, one of {', '.join(FORMATS)}",
                file=file,
            )
    if wanted not in FORMATS:
        raise ArgumentError(f"format {wanted!r} is unknown; there are: {', '.join(FORMATS)}")
    return wanted


def _on_cpu(module: nn.Module, report: ExportReport) -> nn.Module:
    """The module, or a copy of it on the CPU: what is written there runs everywhere."""
    devices = _devices(module)
    if "meta" in devices:
        raise UnsupportedValue(
            f"`{printable(report.file)}`: the model has tensors on the meta device, without values; restore it first",
            file=report.file,
        )
    if devices <= {"cpu"}:
        return module
    report.notes.append(
        f"exported and compared as a copy on the CPU; the model itself is on {', '.join(sorted(devices))}"
    )
    try:
        return copy.deepcopy(module).to("cpu")
    except Exception as reason:  # whatever the attributes of the module raise
        said = f"{type(reason).__name__}: {first_line(reason)}"
        raise UnsupportedValue(
            f"`{printable(report.file)}`: the model can't be copied to the CPU, where it is exported: {said}; move it "
            "there yourself: model.cpu()",
            file=report.file,
        ) from reason


def _devices(module: nn.Module) -> set[str]:
    return {tensor.device.type for tensor in (*module.parameters(), *module.buffers())}


def _export(module: nn.Module, wanted: str, options: ExportOptions, report: ExportReport, start: float) -> None:
    example = bind_example(module, options.example)
    tensors = example.tensors
    inputs = graph_names(options.input_names, [example.names[leaf] for leaf in tensors], "input_names")
    axes = resolve_axes(options.dynamic, example, options.input_names)
    answer = first_answer(module, example)
    outputs = _outputs(answer, inputs, wanted, options, report)
    for name, leaf in zip(inputs, tensors, strict=True):
        report.inputs.append(_port(name, example.leaves[leaf], axes.get(leaf, {})))
    asked = ask_model(module, example, cases_for(example, axes))
    for at, (name, leaf) in enumerate(zip(outputs, pytree.tree_leaves(answer), strict=True)):
        if isinstance(leaf, torch.Tensor):
            report.outputs.append(_port(name, leaf, _moving_axes(at, leaf, asked)))
    report.notes += asked.notes
    if not axes:
        report.notes.append((_NOT_TRIED if report.format == "torchscript" else _FIXED).format(inputs[0]))
    with quiet() as told:
        product = _made(module, example, axes, wanted, (inputs, [port.name for port in report.outputs]), report.file)
    report.how = product.how
    report.notes += [*product.notes, *(f"{product.how} warns: {line}" for line in told)]
    with _committed(product, report) as descriptors:
        answered = ask(
            report.format, *descriptors, example, [case.leaves for case in asked.cases], seconds=asked.seconds,
            file=report.file,
        )  # fmt: skip
        report.runtime = answered.runtime
        judge(report, asked, answered.cases, outputs, options.tolerance)
    report.seconds = time.monotonic() - start


def _port(name: str, tensor: torch.Tensor, named: dict[int, str]) -> Port:
    return Port(name, shown_shape(tensor, named), str(tensor.dtype).removeprefix("torch."))


def _moving_axes(at: int, leaf: torch.Tensor, asked: Asked) -> dict[int, str]:
    """Which axes of an output follow which open axis: seen by trying."""
    found: dict[int, str] = {}
    for case, answers in zip(asked.cases, asked.answers, strict=True):
        tried = answers[at] if at < len(answers) else None
        if case.resized is None or not isinstance(tried, torch.Tensor) or tried.ndim != leaf.ndim:
            continue
        name, size = case.resized
        for axis, (now, was) in enumerate(zip(tried.shape, leaf.shape, strict=True)):
            if now != was:
                found[axis] = name if now == size else f"of {name}"
    return found


def _outputs(answer: Any, inputs: list[str], wanted: str, options: ExportOptions, report: ExportReport) -> list[str]:
    """A name for each leaf of the answer, the caller's where given; in ONNX none is an input's."""
    leaves = pytree.tree_leaves(answer)
    own = output_names(answer)
    if len(own) != len(leaves):  # a class of the user's that torch takes apart
        own = [f"output_{at}" for at in range(len(leaves))]
    plain = [name for name, leaf in zip(own, leaves, strict=True) if not isinstance(leaf, torch.Tensor | None)]
    if wanted == "onnx" and plain:
        raise UnsupportedValue(
            f"`{printable(report.file)}`: the model answers with plain values ({', '.join(map(printable, plain))}); "
            "ONNX has tensors only: leave them out, or write .pt2",
            file=report.file,
        )
    if wanted == "torch-export" and (foreign := foreign_class(answer)):
        raise UnsupportedValue(
            f"`{printable(report.file)}`: the model answers with a {foreign}, and a .pt2 of it opens only where that "
            "class is known; answer with tensors, tuples and dicts (transformers: return_dict=False), or write .onnx",
            file=report.file,
        )
    at = [index for index, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
    names = graph_names(options.output_names, [own[index] for index in at], "output_names")
    if options.output_names is None:
        names = [f"{name}_out" if name in inputs else name for name in names]
    if wanted == "onnx" and set(names) & set(inputs):
        raise ArgumentError(f"output_names=: {', '.join(set(names) & set(inputs))} names an input too")
    if wanted != "onnx" and (options.input_names or options.output_names):
        report.notes.append(f"{report.format} keeps no names for inputs and outputs; yours are in this report only")
    for index, name in zip(at, names, strict=True):
        own[index] = name
    return own


def _made(
    module: nn.Module, example: Example, axes: Axes, wanted: str, names: tuple[list[str], list[str]], file: str
) -> Product:
    if wanted == "onnx":
        return onnx.make_onnx(module, example, axes, *names, file)
    if wanted == "torch-export":
        return program.make_program(module, example, axes, file)
    way = wanted.partition("-")[2] or None
    return torchscript.make_torchscript(module, example, way, file)


@contextlib.contextmanager
def _committed(product: Product, report: ExportReport) -> Iterator[tuple[int, dict[str, int]]]:
    """Stages what was made; the block tries it, and when it ends well the file takes its place, its data first."""
    target = os.path.realpath(report.file)
    folder, base = os.path.split(target)
    data = None if product.location is None else os.path.join(folder, product.location)
    was_there = data is not None and os.path.lexists(data)
    try:
        with replace_file(report.file) as staged:
            staged.write([WriteRequest(0, product.content)], digest=False)
            report.files, report.bytes = [report.file], staged.size
            if data is None or product.location is None:
                yield staged.fd, {}
            else:
                with replace_file(data) as beside:
                    _write_pieces(beside, product)
                    near = folder if os.path.islink(report.file) else os.path.dirname(report.file)
                    report.files.append(os.path.join(near, product.location))
                    report.bytes += beside.size
                    yield staged.fd, {product.location: beside.fd}
    except BaseException:
        if data is not None and not was_there and os.path.lexists(data):
            remove_file(data)  # its model did not come
        raise
    for name in os.listdir(folder):
        if onnx.is_data_name(name, base) and name != product.location:
            remove_file(os.path.join(folder, name))  # of the export that was replaced


def _write_pieces(staged: StagedFile, product: Product) -> None:
    at = 0
    for piece in product.pieces:
        staged.write([WriteRequest(at, bytes(piece.offset - at)), WriteRequest(piece.offset, piece.tensor.tobytes())],
                     digest=False)  # fmt: skip
        at = piece.offset + piece.size
