"""Quantized parts of files: what a file says of its quantization, and whether it fits a live module's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
import torch

from holdfast.errors import CorruptFile, MismatchError, RefusedFile
from holdfast.formats.base import StoredTensor
from holdfast.objects.module import ModulePart
from holdfast.objects.quantized import Quantized, described, is_torchao, unpacked
from holdfast.policy.report import LoadReport
from holdfast.state.flatten import child, keys
from holdfast.state.paths import dotted, printable
from holdfast.state.quantization import is_packed
from holdfast.state.values import DRESSED, Opaque, Tree, Typed, needed_class

_SHOWN = 4
_SCRIPT_OBJECT = "torch.ScriptObject"
_PACKED_PAIR = "_packed_params._packed_params"
"""How the name of a packed layer's weight and bias ends; they are a tuple."""
_PACKED_IN = ("._packed_params.", "._all_weight_values.", "._packed_weight_")


def quantized_record(record: Mapping[str, Any], file: str) -> Quantized | None:
    """What a file says of its module's quantization, checked; None when it says nothing.

    Raises:
        CorruptFile: it is not made of what it should be.
    """
    said = record.get("quantized")
    if said is None:
        return None
    try:
        return msgspec.convert(said, Quantized)
    except msgspec.ValidationError as reason:
        raise CorruptFile(
            f"`{file}`: what it records of its quantization is damaged: {printable(str(reason))}", file=file
        ) from None


def refuse_script_objects(tree: Tree, file: str) -> None:
    """Refuses a state_dict, or a dict of them, that plain torch saved with objects that only its pickle makes.

    Raises:
        RefusedFile: names them and says what to do.
    """
    found: list[str] = []
    for path in ((), *((key,) for key in keys(tree))):
        part = child(tree, path[0]) if path else tree
        for name in keys(part):
            node = child(part, name)
            if isinstance(node, Opaque) and node.type_name == _SCRIPT_OBJECT:
                found.append(dotted((*path, name)))
    if found:
        raise RefusedFile(
            f"`{file}`: holds packed parameters of quantized layers as objects that only torch's pickle makes: "
            f"{_some(found)}. Where you trust it, load it with torch.load(weights_only=False) into a model that is "
            "quantized in the same way, and save that with holdfast.save(model, ...)",
            file=file,
            path=found[0],
        )


def refuse_other_kind(
    part: ModulePart, tree: Tree, record: Quantized | None, report: LoadReport, *, file: str, name: str
) -> None:
    """Refuses quantized weights for a float module, and the converse: no policy can make one of the other.

    Args:
        part: the live module.
        tree: its part of the file.
        record: what the file says of the quantization.
        report: how the names pair up; the error carries it.
        file: named in errors.
        name: what the caller calls the module.

    Raises:
        MismatchError: names the layers, and says what to do.
    """
    whole = [str(key) for key in keys(tree) if _is_whole_torchao(_undressed(child(tree, key)))]
    if whole:
        says = (
            f"{_some(whole)} are tensors of torchao's own classes, which only torch's pickle rebuilds. Where you trust "
            "the file, torch.load it after importing torchao into a model that is quantized in the same way, and save "
            "that with holdfast.save(model, ...)"
        )
        raise _refusal(file, name, says, report)
    stored = sorted({*quantized_names(tree), *(record.layers if record is not None else ())})
    made = described(part.obj)
    live = sorted(made.layers) if made is not None else []
    if bool(stored) == bool(live):
        differing = _other_layers(stored, live, part, tree) if stored else None
        if differing is not None:
            raise _refusal(file, name, differing, report)
        if record is not None and made is not None:
            _refuse_other_tensors(record, made, report, file=file, name=name)
        return
    if stored:
        recipe = f" ({printable(record.recipe)})" if record is not None and record.recipe is not None else ""
        says = (
            f"the file is quantized{recipe}, {_some(stored)}, and the model is not: it wants "
            f"{_some(report.missing) if report.missing else 'float weights'}. "
            + (
                "holdfast.build(f, factory=...) makes the quantized model"
                if recipe
                else "Quantize the model in the same way first"
            )
            + ", and float weights come from the file that was quantized"
        )
    else:
        says = (
            f"the model is quantized, {_some(live)}, and the file is not: it has float weights. Restore the float "
            "model, and quantize that with holdfast.quantize"
        )
    raise _refusal(file, name, says, report)


def _refusal(file: str, name: str, says: str, report: LoadReport) -> MismatchError:
    error = MismatchError(f"`{file}`: does not fit `{name}`, nothing was changed: {says}", file=file, path=name)
    report.notes.append(says)
    error.report = report
    return error


def _other_layers(stored: list[str], live: list[str], part: ModulePart, tree: Tree) -> str | None:
    """What to say when a layer of one name is quantized on one side alone."""
    named = set(part.obj.state_dict())
    for layer in sorted(set(stored) ^ set(live)):
        weight = f"{layer}.weight"
        if layer in stored and weight in named:
            return f"`{layer}` is quantized in the file, and float in the model"
        if layer in live and isinstance(_undressed(child(tree, weight)), StoredTensor):
            return f"`{layer}` is quantized in the model, and float in the file"
    return None


def _refuse_other_tensors(record: Quantized, made: Quantized, report: LoadReport, *, file: str, name: str) -> None:
    for tensor, live in made.tensors.items():
        stored = record.tensors.get(tensor)
        if stored is None:
            continue
        known = {key: text for key, text in stored.made.items() if live.made.get(key, text) != text}
        if stored.type != live.type or known:
            key = next(iter(known), "class")
            theirs, ours = (stored.made[key], live.made[key]) if known else (stored.type, live.type)
            says = (
                f"`{printable(tensor)}`: its {printable(key)} is {printable(theirs[:100])} in the file, {ours[:100]} "
                "in the model: quantize the model with the file's recipe"
            )
            raise _refusal(file, name, says, report)


def quantized_names(tree: Tree) -> set[str]:
    """The layers of a stored state_dict that are quantized, as their names and values show."""
    found: set[str] = set()
    for key in keys(tree):
        name, value = str(key), _undressed(child(tree, key))
        cut = next((name.partition(text)[0] for text in _PACKED_IN if text in f".{name}"), None)
        if cut is not None:
            found.add(cut if name.startswith(cut) else "")
        elif name.endswith(".qdata") or _is_quantized(value):
            found.add(name.removesuffix(".qdata").rpartition(".")[0])
        elif is_packed(value):  # of a function in a traced module
            found.add(name)
    return found


def _is_quantized(value: Tree) -> bool:
    if isinstance(value, Opaque):
        return value.type_name == _SCRIPT_OBJECT
    return isinstance(value, Typed) and value.kind == "quantized"


def _is_whole_torchao(value: Tree) -> bool:
    return (needed_class(value) or "").startswith("torchao.")


def _undressed(tree: Tree) -> Tree:
    while isinstance(tree, Typed) and tree.kind in DRESSED:
        tree = tree.payload["data"]
    return tree


def refuse_other_packing(part: ModulePart, tree: Tree, *, file: str, name: str) -> None:
    """Compares what is packed in a live module with what a file has for it, part by part: torch itself would not.

    Raises:
        MismatchError: a shape, dtype or number differs, or something is missing.
    """
    for key, value in part.obj.state_dict().items():
        live, stored = value, child(tree, key)
        if isinstance(value, torch.ScriptObject):
            live = unpacked(value, key)
        elif isinstance(value, torch.Tensor):
            if is_torchao(value) or not value.is_quantized:
                continue
        elif not key.endswith(_PACKED_PAIR):
            continue
        if stored is None:  # what is missing is for the module's own loader to say
            continue
        for path, theirs, ours in _differences(stored, live, (key,)):
            full = printable(f"{name}.{dotted(path)}")
            raise MismatchError(
                f"`{file}`: `{full}`: file has {theirs}, model wants {ours}; nothing was changed", file=file, path=full
            )


def _differences(stored: Tree, live: Any, path: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], str, str]]:
    if isinstance(live, torch.Tensor):
        theirs, ours = _tensor_text(stored), _live_text(live)
        if theirs != ours:
            yield path, theirs, ours
    elif isinstance(live, dict):
        if not isinstance(stored, dict):
            yield path, _shown(stored), "packed parameters"
            return
        for key, value in live.items():
            yield from _differences(child(stored, key), value, (*path, key))
    elif isinstance(live, list | tuple):
        items = stored.payload if isinstance(stored, Typed) and stored.kind == "tuple" else stored
        if not isinstance(items, list) or len(items) != len(live):
            yield path, _shown(stored), f"{len(live)} parts"
            return
        for index, value in enumerate(live):
            yield from _differences(items[index], value, (*path, index))
    elif type(stored) is not type(live) or stored != live:
        yield path, _shown(stored), repr(live)


def _shown(stored: Tree) -> str:
    if isinstance(stored, StoredTensor) or isinstance(_undressed(stored), StoredTensor | Typed):
        return _tensor_text(stored)
    return printable(f"{stored!r:.60}")


def _tensor_text(tree: Tree) -> str:
    tree = _undressed(tree)
    scheme = ""
    if isinstance(tree, Typed) and tree.kind == "quantized":
        scheme = f" {printable(str(tree.payload['scheme'])[:60])}"
        if "axis" in tree.payload:
            scheme += f" {tree.payload['axis']}"
        tree = tree.payload["data"]
    if not isinstance(tree, StoredTensor):
        return printable(f"{tree!r:.60}")
    return f"{tree.spec.shape} {tree.spec.dtype}{scheme}"


def _live_text(tensor: torch.Tensor) -> str:
    scheme = ""
    if tensor.is_quantized:
        scheme = f" {str(tensor.qscheme()).removeprefix('torch.')}"
        if tensor.qscheme() != torch.per_tensor_affine:
            scheme += f" {tensor.q_per_channel_axis()}"
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}{scheme}"


def _some(names: list[str]) -> str:
    shown = ", ".join(f"`{printable(name[:100] or '(the module itself)')}`" for name in names[:_SHOWN])
    return shown + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
