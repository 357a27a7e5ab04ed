"""While a model is exported: in eval mode, without gradients, quiet; afterwards all is as it was, also on an error."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from holdfast.objects.probe import as_in_eval
from holdfast.objects.rng import capture_rng, restore_rng
from holdfast.state.paths import printable

_CHATTERS = ("torch", "onnx", "onnxscript", "onnx_ir", "onnxruntime")
"""Loggers, with all below them, that exporters write to."""
_NOTES = 4
_TABLES = ("_parameters", "_buffers", "_modules")


@contextlib.contextmanager
def untouched(module: nn.Module) -> Iterator[None]:
    """The module computes as in inference; its tensors, attributes and modes, the generators and torch's settings are
    put back at the end."""
    rng = capture_rng()
    dtype = torch.get_default_dtype()
    try:
        with (
            _as_it_was(module),
            as_in_eval(module),
            torch.inference_mode(False),
            torch.no_grad(),
            torch.autocast("cpu", enabled=False),
            torch.device("cpu"),
        ):
            yield
    finally:
        torch.set_default_dtype(dtype)
        restore_rng(rng)


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
            parameter.requires_grad_(requires_grad)
            parameter.grad = grad


def _put_back(table: dict[str, Any], kept: dict[str, Any]) -> None:
    for name in table.keys() - kept.keys():
        del table[name]
    for name, value in kept.items():
        if table.get(name) is not value:
            table[name] = value


class _Aside(io.TextIOBase):
    """A text stream that drops what one thread writes and passes on what others do."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._thread = threading.get_ident()

    def write(self, text: str) -> int:
        if threading.get_ident() != self._thread:
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        if self._stream is not None:
            self._stream.flush()


@contextlib.contextmanager
def quiet() -> Iterator[list[str]]:
    """Nothing that this thread's exporters print, log or warn of reaches the user; gives what they warned of.

    Warnings that something is deprecated are dropped: they are for whoever calls these functions, which is us.
    """
    told: list[str] = []
    thread = threading.get_ident()

    def passes(record: logging.LogRecord) -> bool:
        return record.thread != thread or record.name.split(".")[0] not in _CHATTERS

    handlers = _handlers()
    for handler in handlers:
        handler.addFilter(passes)
    try:
        with (
            warnings.catch_warnings(record=True) as caught,
            contextlib.redirect_stdout(_Aside(sys.stdout)),
            contextlib.redirect_stderr(_Aside(sys.stderr)),
        ):
            warnings.simplefilter("always")
            yield told
    finally:
        for handler in handlers:
            handler.removeFilter(passes)
    for warning in caught:
        line = first_line(warning.message)
        if not issubclass(warning.category, DeprecationWarning | FutureWarning) and line not in told[: _NOTES + 1]:
            told.append(line)
    del told[_NOTES:]


def _handlers() -> list[logging.Handler]:
    loggers = [logging.getLogger(), *logging.root.manager.loggerDict.values()]
    found = [handler for logger in loggers if isinstance(logger, logging.Logger) for handler in logger.handlers]
    last = logging.lastResort
    return list(dict.fromkeys([*found, *([last] if last is not None else [])]))


def first_line(reason: object, most: int = 300) -> str:
    """The first line that says something of an error of torch's, short and printable."""
    lines = [line.strip() for line in str(reason).splitlines() if line.strip()]
    line = printable(lines[0] if lines else type(reason).__name__)
    return line if len(line) <= most else line[: most - 3] + "..."
