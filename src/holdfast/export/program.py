"""``torch.export``: a model as a program of its operators, saved as ``.pt2`` or given on to the ONNX exporter."""

from __future__ import annotations

import io

import torch
from torch import nn

from holdfast.export.dynamic import Axes, export_shapes, traced_leaves
from holdfast.export.example import Example
from holdfast.export.product import Product, refused

_ADVICE = (
    "torch.export follows one path through forward, for all values: a branch on values needs torch.cond, and an open "
    "axis must not be fixed by forward; format='torchscript' keeps branches"
)


def trace_program(
    module: nn.Module, example: Example, axes: Axes, file: str
) -> tuple[torch.export.ExportedProgram, list[str]]:
    """The model as a program, without the folders of this machine that torch records for each operator; and notes.

    Raises:
        UnsupportedValue: torch.export does not take the model.
    """
    args, kwargs = example.arguments(traced_leaves(axes, example.leaves))

    def traced(bounded: bool) -> torch.export.ExportedProgram:
        shapes = export_shapes(axes, example, bounded=bounded)
        return torch.export.export(module, args, kwargs, dynamic_shapes=shapes, strict=False)

    try:
        try:
            program = traced(bounded=False)
        except Exception as reason:
            if "in the specified range satisfy" not in str(reason):
                raise
            program = traced(bounded=True)  # as for positions that are counted up to 512
    except Exception as reason:  # it raises what torch's compiler raises
        raise refused(file, "torch.export", reason, _ADVICE) from reason
    for part in program.graph_module.modules():
        if isinstance(part, torch.fx.GraphModule):
            for node in part.graph.nodes:
                node.meta.pop("stack_trace", None)
    return program, _limits(program, example, axes)


def _limits(program: torch.export.ExportedProgram, example: Example, axes: Axes) -> list[str]:
    """How far the open axes may go in this program, where it knows an end."""
    ends = {str(symbol): known.upper for symbol, known in program.range_constraints.items()}
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    kinds = torch.export.graph_signature.InputKind
    inputs = [spec.arg for spec in program.graph_signature.input_specs if spec.kind == kinds.USER_INPUT]
    found: dict[str, str] = {}
    for leaf, given in enumerate(inputs):
        for axis, name in axes.get(leaf, {}).items():
            end = str(ends.get(str(nodes[given.name].meta["val"].shape[axis]), ""))
            if end.isdecimal():
                found[name] = f"in this file `{name}` may be at most {end}"
    return list(found.values())


def make_program(module: nn.Module, example: Example, axes: Axes, file: str) -> Product:
    """A ``.pt2``. The example is left out of it: torch keeps it as a pickle, which whoever loads the file would run.

    Raises:
        UnsupportedValue: torch.export does not take the model, or can't save it.
    """
    program, notes = trace_program(module, example, axes, file)
    program.example_inputs = None
    stream = io.BytesIO()
    try:
        torch.export.save(program, stream)
    except Exception as reason:  # an output class that is unknown to it, say
        raise refused(file, "torch.export.save", reason, "Answer with tensors, tuples, lists and dicts") from reason
    return Product("torch.export", stream.getbuffer(), notes)
