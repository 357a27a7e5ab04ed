"""A float module to a quantized one: by a recipe, or as a file says that another one was made."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import nn

from holdfast.errors import ArgumentError, CorruptFile, DeviceUnavailable, MismatchError
from holdfast.export.quantization.data import Batch
from holdfast.export.quantization.recipes import RECIPES, Recipe
from holdfast.export.quantization.torch_ao import (
    BACKENDS,
    chosen_backend,
    dynamic_layers,
    make_dynamic,
    make_static,
    supported_backends,
)
from holdfast.export.quantization.torchao_recipes import linear_layers, make_torchao
from holdfast.objects.quantized import Quantized, engine, quantized_layers
from holdfast.objects.rng import capture_rng, restore_rng
from holdfast.state.paths import printable

_SHOWN = 4


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Puts the random state and torch's int8 engine back as they were."""
    before, packing = capture_rng(), torch.backends.quantized.engine
    try:
        yield
    finally:
        torch.backends.quantized.engine = packing
        restore_rng(before)


def backend_for(recipe: Recipe, backend: str | None) -> str | None:
    """The engine that a recipe packs for; None for torchao's, which pack nothing. Raises ArgumentError."""
    if recipe.by == "torch":
        return chosen_backend(backend)
    if backend is not None:
        raise ArgumentError(
            f"backend= is for the int8 layers of torch; {recipe.name} is done by torchao and takes none"
        )
    return None


def quantized_by(
    model: nn.Module, recipe: Recipe, backend: str | None, batches: Iterable[Batch]
) -> tuple[nn.Module, int]:
    """Quantizes a module in eval mode, which is used up; returns the quantized one and how many batches it saw.

    Raises:
        ArgumentError: there is nothing to quantize, it can't be traced, or a batch does not fit it.
        MissingExtra, DeviceUnavailable: what the recipe needs is not here.
    """
    with engine(backend):
        if recipe.calibrated and backend is not None:
            made, seen = make_static(model, backend, batches)
        else:
            layers, seen = _candidates(model, recipe), 0
            if not layers:
                raise _nothing(model, recipe)
            made = _made(model, recipe, layers)
    if not quantized_layers(made):
        raise _nothing(model, recipe)
    return made.eval(), seen


def _candidates(model: nn.Module, recipe: Recipe) -> dict[str, str]:
    return dynamic_layers(model) if recipe.by == "torch" else linear_layers(model)


def _made(model: nn.Module, recipe: Recipe, layers: Mapping[str, str]) -> nn.Module:
    return make_dynamic(model, layers) if recipe.by == "torch" else make_torchao(model, recipe.name, layers)


def _nothing(model: nn.Module, recipe: Recipe) -> ArgumentError:
    return ArgumentError(
        f"{recipe.name} quantizes {recipe.takes}; this {type(model).__name__} has none, so there is nothing to quantize"
    )


def quantized_again(model: nn.Module, record: Quantized, file: str) -> nn.Module:
    """Gives a float module the quantized structure that a file records; its values are for a restore to fill in.

    The record is only compared: no name in it is imported or called.

    Args:
        model: in eval mode; it is used up.
        record: what the file says.
        file: named in errors.

    Raises:
        CorruptFile: it names a recipe or backend that is not known.
        DeviceUnavailable: its backend or recipe can't be used on this machine.
        MismatchError: the module does not have the layers that it names.
    """
    recipe = RECIPES.get(record.recipe or "")
    if recipe is None:
        raise CorruptFile(
            f"`{file}`: was quantized by the recipe {printable(repr(record.recipe)[:100])}, unknown to this version "
            f"({', '.join(RECIPES)}); a newer holdfast wrote it",
            file=file,
        )
    backend = _recorded_backend(recipe, record.backend, file)
    with undisturbed(), engine(backend):
        if recipe.calibrated and backend is not None:
            made, _ = make_static(model, backend, ())
        else:
            _refuse_missing(record.layers, _candidates(model, recipe), model, file)
            made = _made(model, recipe, record.layers)
    here = quantized_layers(made)
    if here != record.layers:
        _refuse_missing(record.layers, here, model, file)
        extra = sorted(set(here) - set(record.layers))
        raise _misfit(model, file, f"{_some(extra)} would be quantized too, which the file does not say")
    return made.eval()


def _recorded_backend(recipe: Recipe, backend: str | None, file: str) -> str | None:
    if recipe.by == "torchao":
        return None
    if backend not in BACKENDS:
        raise CorruptFile(
            f"`{file}`: was quantized for the backend {printable(repr(backend)[:100])}, which is none of "
            f"{', '.join(BACKENDS)}",
            file=file,
        )
    here = supported_backends()
    if backend not in here:
        raise DeviceUnavailable(
            f"`{file}`: was quantized for the backend {backend}, which this machine lacks (it has "
            f"{', '.join(here) or 'none'}): quantize the float model here, for one of these",
            file=file,
        )
    return backend


def _refuse_missing(wanted: Mapping[str, str], here: Mapping[str, str], model: nn.Module, file: str) -> None:
    for name, kind in wanted.items():
        if here.get(name) != kind:
            has = f"a {here[name]}" if name in here else "no such layer"
            raise _misfit(
                model,
                file,
                f"`{printable(name[:100])}` is a quantized {printable(kind[:60])} in the file, and {has} here",
            )


def _misfit(model: nn.Module, file: str, says: str) -> MismatchError:
    return MismatchError(
        f"`{file}`: {type(model).__name__} can't be quantized as the file was: {says}. Give the factory of the model "
        "that was quantized, in the version of its code (and of torch) that made the file",
        file=file,
    )


def _some(names: list[str]) -> str:
    shown = ", ".join(f"`{printable(name[:100])}`" for name in names[:_SHOWN])
    return shown + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
