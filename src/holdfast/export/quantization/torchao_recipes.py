"""Recipes of torchao: the weights of linear layers become tensors of its classes. It is imported when it is needed."""

from __future__ import annotations

import contextlib
import importlib
import logging
from collections.abc import Collection, Iterator
from typing import Any

from torch import nn

from holdfast.errors import DeviceUnavailable, MissingExtra
from holdfast.objects.quantized import is_torchao

_CONFIGS = {
    "int8-weight-only": "Int8WeightOnlyConfig",
    "int8-dynamic": "Int8DynamicActivationInt8WeightConfig",
    "float8-weight-only": "Float8WeightOnlyConfig",
    "float8-dynamic": "Float8DynamicActivationFloat8WeightConfig",
}
_NOISE = {
    "torchao": "Failed to load ",
    "torchao.kernel.intmm": "Detected no triton",
    "torch.utils._pytree": " is an Enum subclass and is now natively supported",
}
"""Logger -> what it says while torchao is imported: kernels for accelerators that are not here, and its own age."""


def linear_layers(model: nn.Module) -> dict[str, str]:
    """Name -> class of the layers that torchao's recipes quantize; "" is the model itself."""
    return {
        name: type(part).__name__
        for name, part in model.named_modules()
        if type(part) is nn.Linear and not is_torchao(part.weight)
    }


def make_torchao(model: nn.Module, recipe: str, layers: Collection[str]) -> nn.Module:
    """Quantizes some layers of a model by name, in place.

    Raises:
        MissingExtra: torchao is not installed, or too old for this recipe.
        DeviceUnavailable: the recipe needs hardware that is not here.
    """
    quantization = _quantization()
    config = getattr(quantization, _CONFIGS[recipe], None)
    if config is None:
        raise MissingExtra(
            f"torchao {torchao_version()} has no {_CONFIGS[recipe]}, which {recipe} needs: "
            'pip install -U "holdfast[quant]"'
        )
    try:
        quantization.quantize_(model, config(), filter_fn=lambda _, name: name in layers)
    except (AssertionError, NotImplementedError, ImportError) as reason:
        raise DeviceUnavailable(f"{recipe} can't be done here: {reason}") from reason
    return model


def torchao_version() -> str:
    """The version of the torchao that is imported."""
    return str(importlib.import_module("torchao").__version__)


def _quantization() -> Any:
    try:
        with _without_noise():
            return importlib.import_module("torchao.quantization")
    except ImportError as reason:
        raise MissingExtra(
            f'this recipe needs torchao, which can\'t be imported ({reason}): pip install "holdfast[quant]"'
        ) from reason


@contextlib.contextmanager
def _without_noise() -> Iterator[None]:
    filters = {name: _Dropping(text) for name, text in _NOISE.items()}
    for name, dropping in filters.items():
        logging.getLogger(name).addFilter(dropping)
    try:
        yield
    finally:
        for name, dropping in filters.items():
            logging.getLogger(name).removeFilter(dropping)


class _Dropping(logging.Filter):
    def __init__(self, text: str) -> None:
        super().__init__()
        self._text = text

    def filter(self, record: logging.LogRecord) -> bool:
        return self._text not in record.getMessage()
