"""The recipes: what each does, and who does it."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from holdfast.errors import ArgumentError


class Recipe(msgspec.Struct, frozen=True):
    """One way to quantize a model.

    Attributes:
        name: as ``holdfast.quantize`` takes it.
        by: who does it: ``torch`` packs int8 layers for the CPU, ``torchao`` makes other tensors of the weights.
        takes: the layers that it quantizes, for people.
        calibrated: whether it has to see data.
    """

    name: str
    by: Literal["torch", "torchao"]
    takes: str
    calibrated: bool = False


RECIPES = {
    one.name: one
    for one in (
        Recipe("dynamic-int8", "torch", "nn.Linear, nn.LSTM, nn.GRU, nn.LSTMCell, nn.GRUCell and nn.RNNCell"),
        Recipe("static-int8", "torch", "convolutions, nn.Linear and what stands between them", calibrated=True),
        Recipe("int8-weight-only", "torchao", "nn.Linear"),
        Recipe("int8-dynamic", "torchao", "nn.Linear"),
        Recipe("float8-weight-only", "torchao", "nn.Linear"),
        Recipe("float8-dynamic", "torchao", "nn.Linear"),
    )
}


def recipe_named(name: Any) -> Recipe:
    """The recipe of a name. Raises ArgumentError, listing them, for any other."""
    if not isinstance(name, str) or name not in RECIPES:
        raise ArgumentError(f"recipe is {name!r:.100}; it takes one of {', '.join(RECIPES)}")
    return RECIPES[name]
