"""While a model is exported: in eval mode and without gradients; afterwards all is as it was, also on an error."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from holdfast.objects.probe import as_in_eval
from holdfast.objects.rng import capture_rng, restore_rng

_TABLES = ("_parameters", "_buffers", "_modules")


@contextlib.contextmanager
def untouched(module: nn.Module) -> Iterator[None]:
    """The module computes as in inference; it, the generators and torch's settings are put back at the end."""
    rng = capture_rng()
    dtype = torch.get_default_dtype()
    try:
        with (
            _as_it_was(module),
            as_in_eval(module),
            torch.inference_mode(False),
            torch.no_grad(),
            torch.autocast("cpu", enabled=False),
            _on_the_cpu(),
        ):
            yield
    finally:
        torch.set_default_dtype(dtype)
        restore_rng(rng)


def _on_the_cpu() -> contextlib.AbstractContextManager[Any]:
    """What forward makes without saying where is made on the CPU, whatever the program's default is."""
    return contextlib.nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu")


@contextlib.contextmanager
def _as_it_was(module: nn.Module) -> Iterator[None]:
    """Keeps what a forward pass or an exporter may change in a module: values of buffers, gradients, attributes."""
    parts = [part for part in module.modules() if not isinstance(part, torch.jit.ScriptModule)]
    attributes = [dict(part.__dict__) for part in parts]
    tables = [{name: dict(part.__dict__[name]) for name in _TABLES} for part in parts]
    parameters = [(one, one.requires_grad, one.grad) for one in module.parameters()]
    tensors = [*module.parameters(), *module.buffers()]
    versions = [(one, one._version) for one in tensors if not one.is_inference()]
    values = [(one, one.detach().clone()) for one in module.buffers()]
    try:
        yield
    finally:
        for part, kept, inner in zip(parts, attributes, tables, strict=True):
            _put_back(part.__dict__, kept)
            for name in _TABLES:
                _put_back(part.__dict__[name], inner[name])
        changed = {id(one) for one, version in versions if one._version != version}
        with torch.no_grad():
            for tensor, value in values:
                if id(tensor) in changed:
                    tensor.copy_(value)
        for parameter, requires_grad, grad in parameters:
            if parameter.requires_grad is not requires_grad:
                parameter.requires_grad_(requires_grad)
            if parameter.grad is not grad:
                parameter.grad = grad


def _put_back(table: dict[str, Any], kept: dict[str, Any]) -> None:
    for name in table.keys() - kept.keys():
        del table[name]
    for name, value in kept.items():
        if table.get(name) is not value:
            table[name] = value
