"""TorchScript: a compiled model that Python and C++ run without its class; deprecated by torch for ``torch.export``."""

from __future__ import annotations

import io
from typing import Any

import torch
from torch import nn

from holdfast.export.example import Example
from holdfast.export.product import Product, refused, said_by
from holdfast.export.quiet import caught_stderr

SUCCESSOR = "TorchScript is deprecated by torch: its successor is torch.export, a file named .pt2"


def make_torchscript(module: nn.Module, example: Example, way: str | None, file: str) -> Product:
    """A TorchScript archive.

    Args:
        module: the model, in eval mode.
        example: its inputs.
        way: ``script``, ``trace``, or None: script, and trace where that does not take the model.
        file: named in errors.

    Raises:
        UnsupportedValue: neither takes the model.
    """
    notes = [SUCCESSOR]
    how, scripted = _made(module, example, way, file, notes)
    stream = io.BytesIO()
    torch.jit.save(scripted, stream)
    return Product(how, stream.getbuffer(), notes)


def _made(module: nn.Module, example: Example, way: str | None, file: str, notes: list[str]) -> tuple[str, Any]:
    before = ""
    if way != "trace":
        try:
            with caught_stderr() as told:
                scripted = _script(module, example)
            notes += [f"script warns: {line}" for line in told]
            return "script", scripted
        except Exception as reason:  # what the compiler of TorchScript raises
            if way == "script":
                advice = "Write forward in what TorchScript knows, or give format='torchscript-trace'"
                raise refused(file, "torch.jit.script", reason, advice) from reason
            before = said_by(reason)
            notes.append(f"traced, since torch.jit.script does not take the model: {before}")
    try:
        return "trace", _trace(module, example)
    except Exception as reason:  # likewise
        advice = "The successor may: name the file .pt2"
        if before:
            advice = f"Nor does torch.jit.script: {before}. {advice}"
        raise refused(file, "torch.jit.trace", reason, advice) from reason


def _script(module: nn.Module, example: Example) -> Any:
    """Compiled, and run once: what forward takes is checked by its annotations, and that only when it is called."""
    scripted = torch.jit.script(module)
    args, kwargs = example.arguments()
    scripted(*args, **kwargs)
    return scripted


def _trace(module: nn.Module, example: Example) -> Any:
    trace: Any = torch.jit.trace
    args, kwargs = example.arguments()
    if kwargs:  # by keyword, all of them
        given = {**dict(zip(example.parameters, args, strict=True)), **kwargs}
        return trace(module, example_kwarg_inputs=given, strict=False, check_trace=False)
    return trace(module, args, strict=False, check_trace=False)
