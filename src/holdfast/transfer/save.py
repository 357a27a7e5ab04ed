"""One save from end to end: live objects to a document to a file."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import msgspec
import torch

from holdfast.errors import ArgumentError, UnsupportedValue
from holdfast.formats.base import Document, StoredTensor
from holdfast.formats.collector import collector_paused
from holdfast.formats.writing import ROW_MAJOR, Destination, shown_name, write_document
from holdfast.objects.builder import find_config, module_source
from holdfast.objects.capture import adapt, is_object
from holdfast.objects.module import ModulePart, parameter_names
from holdfast.objects.probe import make_probe
from holdfast.objects.stateful import StatefulPart
from holdfast.serialization.lowering import lower_state
from holdfast.spec import Path
from holdfast.state.flatten import leaves
from holdfast.state.paths import dotted


class Saved(msgspec.Struct, frozen=True):
    """What one save wrote.

    Attributes:
        file: where, as the caller named it.
        format: ``pt``, ``safetensors``, ``npz`` or ``torch-legacy``.
        tensors: how many tensors the tree has, aliases included.
        bytes: size of the file.
        seconds: from the call to the commit.
        notes: what a reader of the file should know: tensors stored detached, names stored once.
    """

    file: str
    format: str
    tensors: int
    bytes: int
    seconds: float
    notes: list[str] = []


@collector_paused
def save_file(
    obj: Any,
    f: Destination,
    *,
    name: str,
    metadata: Mapping[str, str] | None = None,
    config: Any = None,
    probe: Any = None,
    durable: bool = True,
) -> Saved:
    """Saves ``obj`` to ``f`` in the format ``name``; see ``holdfast.save``."""
    begin = time.perf_counter()
    document, notes = document_of(obj, row_major=name in ROW_MAJOR, config=config, probe=probe, metadata=metadata)
    size, told = write_document(document, f, name, durable=durable)
    return Saved(
        file=shown_name(f),
        format=name,
        tensors=sum(isinstance(leaf, StoredTensor) for _, leaf in leaves(document.tree)),
        bytes=size,
        seconds=time.perf_counter() - begin,
        notes=notes + told,
    )


@collector_paused
def document_of(
    obj: Any,
    *,
    row_major: bool,
    config: Any = None,
    probe: Any = None,
    metadata: Mapping[str, str] | None = None,
    shards: bool = False,
) -> tuple[Document, list[str]]:
    """The document for any nesting of live objects, tensors and plain values, and notes on it.

    Args:
        obj: what to save; every object inside is captured by its ``state_dict``.
        row_major: whether the container stores only row-major tensors.
        config: how the model is constructed, recorded with the only module of ``obj``.
        probe: an example input for the only module of ``obj``.
        metadata: the user's own strings.
        shards: whether tensors that several processes share may be in it; see ``lower_state``.

    Raises:
        UnsupportedValue: names the path and the type.
        ArgumentError: a config without exactly one module, or metadata that is not strings.
    """
    parts: dict[str, StatefulPart] = {}
    names: dict[int, str] = {}

    def replace(value: Any, path: Path) -> Any | None:
        if isinstance(value, torch.ScriptObject):
            raise UnsupportedValue(
                f"`{dotted(path)}`: packed parameters of a quantized layer, an object of torch. Save the module and "
                "not its state_dict, holdfast.save(model, ...): what is packed is then stored as plain tensors",
                path=dotted(path),
            )
        if not is_object(value):
            return None
        part = parts[dotted(path) if path else ""] = adapt(value, dotted(path), names)
        return part.capture()

    lowered = lower_state(obj, row_major=row_major, replace=replace, shards=shards)
    modules = {key: part.obj for key, part in parts.items() if isinstance(part, ModulePart)}
    names.update(parameter_names(modules))  # an optimizer may stand before its model: described when all are known
    described = {key: part.describe() for key, part in parts.items()}
    notes = list(lowered.notes)
    for key, module in modules.items():
        notes += _record_construction(described[key], module, config if len(modules) == 1 else None, row_major)
    for word, given in (("config", config), ("probe", probe)):
        if given is not None and len(modules) != 1:
            raise ArgumentError(f"{word}= belongs to one module, {len(modules)} are saved; save them apart")
    if probe is not None:
        ((key, module),) = modules.items()
        described[key]["probe"] = make_probe(module, probe)
    for key, value in (metadata or {}).items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise ArgumentError(f"metadata maps strings to strings; {key!r} is {value!r}")
    return Document(lowered.tree, described, dict(metadata or {})), notes


def _record_construction(record: dict[str, Any], module: Any, config: Any, row_major: bool) -> list[str]:
    """Adds how a module was constructed to its record. A config that it only happens to have may be left out, said."""
    notes = _on_quantization(record)
    digest = module_source(module)
    if digest is not None:
        record["source"] = digest
    found = find_config(module) if config is None else config
    if found is None:
        return notes
    try:
        tree = lower_state(found, row_major=row_major).tree
        if next(leaves(tree), None) is not None:
            raise UnsupportedValue("a config is plain data; this one holds a tensor")
        record["config"] = tree
    except UnsupportedValue as reason:
        if config is not None:
            raise
        notes.append(f"the config of {record['class']} is not plain data and was not recorded: {reason}")
    return notes


def _on_quantization(record: dict[str, Any]) -> list[str]:
    """What to say of a module that was quantized without a recipe: a file can't tell how to do it again."""
    quantized = record.get("quantized")
    if quantized is None or quantized.get("recipe") is not None:
        return []
    shown = ", ".join(f"`{name}`" for name in list(quantized["layers"])[:3])
    more = ", ..." if len(quantized["layers"]) > 3 else ""
    note = (
        f"the module is quantized ({shown}{more}), but not by holdfast.quantize: its state is complete, and "
        "holdfast.build needs a factory that quantizes in the same way"
    )
    return [note]
