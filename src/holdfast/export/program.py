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


def trace_program(module: nn.Module, example: Example, axes: Axes, file: str) -> torch.export.ExportedProgram:
    """The model as a program, without the folders of this machine that torch records for each operator.

    Raises:
        UnsupportedValue: torch.export does not take the model.
    """
    args, kwargs = example.arguments(traced_leaves(axes, example.leaves))
    try:
        program = torch.export.export(module, args, kwargs, dynamic_shapes=export_shapes(axes, example), strict=False)
    except Exception as reason:  # it raises what torch's compiler raises
        raise refused(file, "torch.export", reason, _ADVICE) from reason
    for part in program.graph_module.modules():
        if isinstance(part, torch.fx.GraphModule):
            for node in part.graph.nodes:
                node.meta.pop("stack_trace", None)
    return program


def make_program(module: nn.Module, example: Example, axes: Axes, file: str) -> Product:
    """A ``.pt2``. The example is left out of it: torch keeps it as a pickle, which whoever loads the file would run.

    Raises:
        UnsupportedValue: torch.export does not take the model, or can't save it.
    """
    program = trace_program(module, example, axes, file)
    program.example_inputs = None
    stream = io.BytesIO()
    try:
        torch.export.save(program, stream)
    except Exception as reason:  # an output class that is unknown to it, say
        raise refused(file, "torch.export.save", reason, "Answer with tensors, tuples, lists and dicts") from reason
    return Product("torch.export", stream.getbuffer(), [])
