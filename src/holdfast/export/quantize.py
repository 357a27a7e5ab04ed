"""``holdfast.quantize``: a smaller model out of a float one, and what that did to it."""

from __future__ import annotations

import copy
import itertools
import logging
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from holdfast.errors import ArgumentError
from holdfast.export.building import build_model
from holdfast.export.quantization.applying import backend_for, quantized_by, undisturbed
from holdfast.export.quantization.data import Batch, calibration_calls, example_call, told
from holdfast.export.quantization.recipes import Recipe, recipe_named
from holdfast.export.quantization.report import QuantizeReport, compare, state_bytes, time_both
from holdfast.export.quantization.torch_ao import quietly
from holdfast.export.quantization.torchao_recipes import torchao_version
from holdfast.objects.builder import find_config, module_source
from holdfast.objects.layers import structure_of
from holdfast.objects.module import unwrap
from holdfast.objects.quantized import Origin, engine, origin_of, quantized_layers, remember, settle_cells
from holdfast.objects.stateful import class_name
from holdfast.state.layers import layer_json
from holdfast.transfer.opened import is_source

log = logging.getLogger("holdfast")
_KEPT = 4
"""Batches of the calibration on which the answers are compared."""


def quantize(
    model: Any,
    recipe: str,
    *,
    calibration: Iterable[Any] | None = None,
    example: Any = None,
    backend: str | None = None,
    evaluate: Callable[[nn.Module], float] | None = None,
    factory: Callable[..., nn.Module] | None = None,
    trusted: Collection[str] = (),
) -> nn.Module:
    """Makes a quantized module of a float one: smaller, and on many machines faster. The model stays as it was.

    What it did to size, answers and speed is logged, and shown by ``holdfast.summary(q)``. ``holdfast.save`` records
    the recipe with the weights, and ``holdfast.build`` makes the quantized module again.

    Args:
        model: a module, in wrappers or not, or a file that ``holdfast.build`` can build.
        recipe: ``"dynamic-int8"`` (linear and recurrent layers, on the CPU), ``"static-int8"`` (convolutions too;
            needs ``calibration``), and with torchao ``"int8-weight-only"``, ``"int8-dynamic"``,
            ``"float8-weight-only"`` and ``"float8-dynamic"`` (linear layers; the last on an accelerator only).
        calibration: batches as the model will see them: an iterable of tensors, of tuples that begin with the inputs
            (as many as ``example`` has, else one), or of dicts of keywords. All of it is used.
        example: a tensor, a tuple of arguments or a dict of keywords, on which answers and speed are compared.
        backend: for whose CPU kernels int8 layers are packed: ``"x86"``, ``"fbgemm"``, ``"onednn"`` or ``"qnnpack"``;
            by default the one that torch uses on this machine.
        evaluate: called with the float and with the quantized module; gives a metric of yours.
        factory: for a file: as in ``holdfast.build``.
        trusted: likewise.

    Returns:
        A new module in eval mode.

    Raises:
        ArgumentError: an unknown recipe or backend, a model with nothing to quantize or that can't be traced, or
            calibration data that is missing, empty or does not fit.
        MissingExtra: torchao is needed and not installed.
        DeviceUnavailable: the recipe needs hardware that is not here.

    Example:
        >>> import holdfast, torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
        >>> q = holdfast.quantize(net, "dynamic-int8")
        >>> saved = holdfast.save(q, "q.pt")
        >>> x = torch.randn(3, 4)
        >>> torch.equal(holdfast.build("q.pt")(x), q(x))
        True
    """
    chosen = recipe_named(recipe)
    packing = backend_for(chosen, backend)
    asked = example_call(example)
    if chosen.calibrated and calibration is None:
        raise ArgumentError(f"{recipe} learns its ranges from data: give calibration=, an iterable of batches")
    with undisturbed():
        given, config = _float_module(model, factory, trusted)
        plain = _copied(given, chosen)
        watched = _Watched(() if calibration is None else calibration_calls(calibration, asked))
        with quietly(), engine(packing):
            made, seen = quantized_by(copy.deepcopy(plain), chosen, packing, watched)
            settle_cells(made)
        if chosen.calibrated and not seen:
            raise ArgumentError("calibration is empty: an iterator that was used up, or a loader without data")
        structure = structure_of(given)
        origin = Origin(
            recipe=chosen.name,
            backend=packing,
            class_name=class_name(given),
            source=module_source(given),
            config=find_config(given) if config is None else config,
            structure=None if structure is None else layer_json(structure),
            torchao=torchao_version() if chosen.by == "torchao" else None,
        )
        remember(made, origin)
        batches = list(watched.kept) or list(itertools.islice(watched, _KEPT))
        origin.report = report = _report(plain, made, origin, seen)
        _measure(report, plain, made, [asked] if asked is not None else batches)
        if evaluate is not None:
            with torch.no_grad():
                report.metric_before, report.metric_after = float(evaluate(plain)), float(evaluate(made))
    log.info("quantized %s", report)
    return made


def quantize_report(model: nn.Module) -> QuantizeReport | None:
    """What quantizing did to a module that ``quantize`` returned; None for any other."""
    origin = origin_of(unwrap(model))
    return origin.report if origin is not None and isinstance(origin.report, QuantizeReport) else None


class _Watched:
    """Passes calls on, and keeps the first ones."""

    def __init__(self, calls: Iterable[Batch]) -> None:
        self._calls = iter(calls)
        self.kept: list[Batch] = []

    def __iter__(self) -> Iterator[Batch]:
        for call in self._calls:
            if len(self.kept) < _KEPT:
                self.kept.append(call)
            yield call


def _float_module(model: Any, factory: Any, trusted: Collection[str]) -> tuple[nn.Module, Any]:
    """The module to quantize, and its config where a file records one."""
    if isinstance(model, torch.jit.ScriptModule):
        raise ArgumentError("a TorchScript module can't be quantized; quantize the module that it was made of")
    if isinstance(model, nn.Module):
        if factory is not None or trusted:
            raise ArgumentError("factory= and trusted= are for a file; this is a module already")
        given, config = unwrap(model), None
    elif not is_source(model):
        raise ArgumentError(
            f"model is a {class_name(model).removeprefix('builtins.')}; give a torch module, or a file of one"
        )
    else:
        built = build_model(model, factory=factory, trusted=trusted, mode="eval")
        given, config = built.model, built.config
    already = quantized_layers(given)
    if already:
        raise ArgumentError(f"the model is quantized already: `{next(iter(already))}`; quantize the float model")
    for name, tensor in itertools.chain(given.named_parameters(), given.named_buffers()):
        if is_lazy(tensor) or tensor.is_meta:
            raise ArgumentError(f"`{name}` has no values yet; run the model or restore it before quantizing it")
    return given, config


def _copied(given: nn.Module, recipe: Recipe) -> nn.Module:
    try:
        plain = copy.deepcopy(given).eval()
    except Exception as reason:  # whatever the model's own parts raise
        raise ArgumentError(f"the model can't be copied, and quantizing must not change it: {told(reason)}") from reason
    return plain.cpu() if recipe.by == "torch" else plain


def _report(plain: nn.Module, made: nn.Module, origin: Origin, seen: int) -> QuantizeReport:
    return QuantizeReport(
        model=origin.class_name.rpartition(".")[2],
        recipe=origin.recipe,
        backend=origin.backend,
        layers=quantized_layers(made),
        calibrated=seen,
        bytes_before=state_bytes(plain),
        bytes_after=state_bytes(made),
    )


def _measure(report: QuantizeReport, plain: nn.Module, made: nn.Module, batches: list[Batch]) -> None:
    if not batches:
        return
    try:
        with quietly():
            compare(report, plain, made, batches)
            time_both(report, plain, made, batches[0])
    except Exception as reason:  # whatever the model's forward raises
        raise ArgumentError(f"the model does not take {batches[0]}: {told(reason)}") from reason
