"""int8 layers of torch: the only module that knows ``torch.ao.quantization``, which later versions of torch may lack.

Its warnings that it is deprecated, and that a model converted without data has no ranges yet, say nothing to who asked
for a recipe: they are kept away here, each by its text.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Collection, Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from holdfast.errors import ArgumentError, MissingExtra
from holdfast.export.quantization.data import Batch, told

BACKENDS = ("x86", "fbgemm", "onednn", "qnnpack")
_DYNAMIC = (nn.Linear, nn.LSTM, nn.GRU, nn.LSTMCell, nn.GRUCell, nn.RNNCell)
_KNOWN = (
    (DeprecationWarning, r"torch\.ao\.quantization is deprecated"),
    (UserWarning, r"torch\.quantize_per_tensor, torch\.quantize_per_channel"),
    (UserWarning, r"must run observer before calling calculate_qparams"),
    (UserWarning, r"Please use quant_min and quant_max to specify the range"),
    (UserWarning, r"_aminmax is deprecated"),
)


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Without the warnings of torch's int8 layers that tell a user nothing; every other one is shown."""
    with warnings.catch_warnings():
        for category, text in _KNOWN:
            warnings.filterwarnings("ignore", message=text, category=category)
        yield


def supported_backends() -> list[str]:
    """The engines that this machine can pack for."""
    return [name for name in BACKENDS if name in torch.backends.quantized.supported_engines]


def chosen_backend(backend: str | None) -> str:
    """The engine to pack for.

    Raises:
        ArgumentError: none of that name is here; lists those that are.
    """
    here = supported_backends()
    chosen = torch.backends.quantized.engine if backend is None else backend
    if chosen not in here:
        raise ArgumentError(
            f"backend is {chosen!r:.100}; int8 layers can be packed here for {', '.join(here) or 'none'}"
        )
    return str(chosen)


def dynamic_layers(model: nn.Module) -> dict[str, str]:
    """Name -> class of the layers that dynamic-int8 quantizes; "" is the model itself."""
    return {name: type(part).__name__ for name, part in model.named_modules() if type(part) in _DYNAMIC}


def make_dynamic(model: nn.Module, layers: Collection[str]) -> nn.Module:
    """Quantizes some layers of a model by name; the model itself becomes the quantized one, and may be replaced."""
    _refuse_other_dtypes(model, layers)
    torch_ao = _torch_ao()
    around = nn.Sequential()
    around.add_module("0", model)  # torch replaces children: the model may be one
    wanted = {f"0.{name}" if name else "0": torch_ao.default_dynamic_qconfig for name in layers}
    with quietly():
        made: nn.Module = torch_ao.quantize_dynamic(around, wanted, inplace=True)[0]
    return made


def make_static(model: nn.Module, backend: str, batches: Iterable[Batch]) -> tuple[nn.Module, int]:
    """Traces a model, watches it on batches and converts it.

    Args:
        model: in eval mode; it is used up.
        backend: the engine.
        batches: what to watch it on. Without any, the ranges are for a restore to fill in.

    Returns:
        The quantized model, and how many batches it saw.

    Raises:
        ArgumentError: it can't be traced, or does not take a batch.
    """
    _refuse_other_dtypes(model, [""])
    torch_ao = _torch_ao()
    with quietly():
        try:
            prepared = torch_ao.prepare_fx(model, torch_ao.get_default_qconfig_mapping(backend), ())
        except Exception as reason:  # tracing runs the model's own forward, which may raise anything
            raise _untraceable(model, reason) from reason
        seen = 0
        with torch.no_grad():
            for batch in batches:
                try:
                    batch.asked_of(prepared)
                except Exception as reason:  # as above
                    raise ArgumentError(
                        f"calibration: the model does not take batch {seen}, {batch}: {told(reason)}"
                    ) from reason
                seen += 1
        try:
            return torch_ao.convert_fx(prepared), seen
        except Exception as reason:  # torch's own conversion, which lacks some operators and combinations
            raise ArgumentError(
                f"static-int8: torch can't convert {type(model).__name__} after it was traced: "
                f"{told(reason)}. Take dynamic-int8 or a torchao recipe, or write what it names as a "
                "layer of torch.nn"
            ) from reason


def _untraceable(model: nn.Module, reason: Exception) -> ArgumentError:
    return ArgumentError(
        f"static-int8 follows the model's forward with torch.fx, which can't follow {type(model).__name__}'s: "
        f"{told(reason)}. A branch, loop or len() that depends on a tensor's values or shape is the "
        "usual cause: write it without, or take dynamic-int8 or a torchao recipe, which follow nothing"
    )


def _refuse_other_dtypes(model: nn.Module, layers: Collection[str]) -> None:
    for layer in layers:
        part = model.get_submodule(layer)
        for name, tensor in part.named_parameters(recurse=not layer):
            if tensor.dtype != torch.float32:
                kind = str(tensor.dtype).removeprefix("torch.")
                raise ArgumentError(
                    f"`{layer}{'.' if layer else ''}{name}` is {kind}; torch packs float32 weights only: quantize "
                    "copy.deepcopy(model).float(), or take a torchao recipe"
                )


def _torch_ao() -> Any:
    """What is used of torch.ao.quantization.

    Raises:
        MissingExtra: this torch lacks it.
    """
    try:
        with quietly():
            from torch.ao.quantization import default_dynamic_qconfig, get_default_qconfig_mapping, quantize_dynamic
            from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx
    except ImportError as reason:
        raise MissingExtra(
            f"this torch ({torch.__version__}) has no torch.ao.quantization any more ({reason}), which dynamic-int8 "
            "and static-int8 need: take a torchao recipe such as int8-dynamic, or an earlier torch"
        ) from reason
    return SimpleNamespace(
        default_dynamic_qconfig=default_dynamic_qconfig,
        get_default_qconfig_mapping=get_default_qconfig_mapping,
        quantize_dynamic=quantize_dynamic,
        prepare_fx=prepare_fx,
        convert_fx=convert_fx,
    )
