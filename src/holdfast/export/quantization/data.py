"""What a model is asked: an example and calibration data, as calls."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec
import torch
from torch import nn

from holdfast.errors import ArgumentError
from holdfast.export.example import as_call
from holdfast.export.quiet import first_line


class Batch(msgspec.Struct, frozen=True):
    """One call of a model.

    Attributes:
        args: positional arguments.
        kwargs: arguments by name.
    """

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}

    def asked_of(self, model: nn.Module) -> Any:
        """The model's answer; tensors go to where its weights are."""
        device = next((tensor.device for tensor in (*model.parameters(), *model.buffers())), torch.device("cpu"))
        there = [_on(value, device) for value in self.args]
        return model(*there, **{name: _on(value, device) for name, value in self.kwargs.items()})

    def __str__(self) -> str:
        shown = [_text(value) for value in self.args]
        return f"({', '.join([*shown, *(f'{name}={_text(value)}' for name, value in self.kwargs.items())])})"


def _on(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, torch.Tensor) else value


def _text(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    return type(value).__name__


def told(reason: Exception) -> str:
    """What an error of torch or of a model says, in one line."""
    return f"{type(reason).__name__}: {first_line(reason)}"


def example_call(example: Any) -> Batch | None:
    """An example as a call: a tensor, a tuple of arguments, or a dict of keywords; None for None."""
    return None if example is None else Batch(*as_call(example))


def calibration_calls(calibration: Any, example: Batch | None) -> Iterator[Batch]:
    """Calibration data as calls.

    Args:
        calibration: an iterable of tensors, of tuples or lists whose leading entries are the inputs (a loader's inputs
            and targets), or of dicts of keywords.
        example: as many leading entries are inputs as it has; the first alone without one.

    Raises:
        ArgumentError: it is no such iterable, or one of its items is something else.
    """
    if isinstance(calibration, torch.Tensor | str | bytes | Mapping) or not isinstance(calibration, Iterable):
        raise ArgumentError(
            f"calibration is a {type(calibration).__name__}; give an iterable of batches, such as a DataLoader or "
            "[inputs]"
        )
    inputs = len(example.args) if example is not None and example.args else 1
    for index, item in enumerate(calibration):
        if isinstance(item, torch.Tensor):
            yield Batch((item,))
        elif isinstance(item, Mapping):
            yield Batch((), dict(item))
        elif isinstance(item, tuple | list) and len(item) >= inputs:
            yield Batch(tuple(item[:inputs]))
        else:
            raise ArgumentError(
                f"calibration: batch {index} is {_text(item)}; a tensor, a tuple that begins with {inputs} "
                "inputs, or a dict of keywords is wanted"
            )
