"""Building a model out of a file, quantized ones too: constructed, quantized as the file says, and restored."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import msgspec
import torch
from torch import nn

from holdfast.errors import ArgumentError, DeviceUnavailable, MissingPart
from holdfast.export.loading import holds_program, load_program
from holdfast.export.quantization.applying import quantized_again, undisturbed
from holdfast.export.quantization.torch_ao import quietly
from holdfast.formats.base import Document, StoredTensor
from holdfast.objects.builder import construct, source_digest
from holdfast.objects.layers import construct_blank
from holdfast.objects.quantized import Origin, Quantized, engine, packed_layers, quantized_layers, remember
from holdfast.serialization.devices import MapLocation, Placement
from holdfast.serialization.reading import read_tree
from holdfast.state.flatten import leaves
from holdfast.state.layers import layer_from_json
from holdfast.state.lifting import trusted_class
from holdfast.state.paths import printable
from holdfast.transfer.opened import opened_file
from holdfast.transfer.quantized import quantized_record
from holdfast.transfer.rescue import build_layers
from holdfast.transfer.restore import RestoreOptions, restore_objects

_Made = tuple[nn.Module, Any]
"""A module, and the config by which it was constructed, or None."""


class Built(msgspec.Struct):
    """A model out of a file.

    Attributes:
        model: the module.
        file: as errors name it.
        config: how it was constructed, as the file records it, or None.
        probe: what the file records of an example input, or None.
    """

    model: nn.Module
    file: str
    config: Any = None
    probe: Any = None


def build_model(
    f: Any,
    map_location: MapLocation = None,
    *,
    factory: Callable[..., nn.Module] | None,
    trusted: Collection[str],
    mode: str,
) -> Built:
    """Constructs a model and gives it the weights of a file; see ``holdfast.build``."""
    with opened_file(f) as (document, file, container):
        if factory is None and container is not None and holds_program(container):
            return Built(load_program(container, map_location, trusted, mode=mode), file)
        made, config = _build(document, file, factory or _trusted_factory(document, trusted), mode)
        probes = [record["probe"] for record in document.objects.values() if "probe" in record]
    if map_location is not None:
        made = _moved(made, _single_device(map_location), file)
    return Built(made, file, config, probes[0] if len(probes) == 1 else None)


def _moved(made: nn.Module, device: torch.device, file: str) -> nn.Module:
    if device.type != "cpu" and packed_layers(made):
        raise DeviceUnavailable(
            f"`{file}`: its int8 layers are packed for the CPU and can't go to {device}; build it with "
            "map_location='cpu', or quantize the float model by a torchao recipe such as int8-dynamic"
        )
    return made.to(device)


def _build(document: Document, file: str, factory: Callable[..., nn.Module] | None, mode: str) -> _Made:
    record = _quantized_module(document)
    if record is not None:
        return _build_quantized(document, file, record, factory, mode)
    if factory is None:
        return build_layers(document, file, Placement("cpu")).train(mode == "train"), None
    config = _recorded_config(document, file)
    made = construct(factory, config, file=file)
    restore_objects(document, file, {"model": made}, RestoreOptions(mode=mode))
    return made, config


def _single_device(map_location: MapLocation) -> torch.device:
    if isinstance(map_location, str | torch.device):
        return Placement(map_location).device("cpu")
    raise ArgumentError("build's map_location takes a device, its name or 'auto'; a module lives in one place")


def _trusted_factory(document: Document, trusted: Collection[str]) -> Callable[..., nn.Module] | None:
    named = {str(record.get("class")) for record in document.objects.values() if record.get("kind") == "module"}
    found = named & set(trusted)
    return trusted_class(found.pop()) if len(found) == 1 else None


def _recorded_config(document: Document, file: str) -> Any:
    configs = [record["config"] for record in document.objects.values() if "config" in record]
    if len(configs) > 1:
        raise MissingPart(
            f"`{file}`: records {len(configs)} models; build one with its factory and restore(at=)", file=file
        )
    return read_tree(configs[0], file) if configs else None


def _quantized_module(document: Document) -> dict[str, Any] | None:
    """What the file records of its only module, when that is quantized."""
    modules = [record for record in document.objects.values() if record.get("kind") == "module"]
    return modules[0] if len(modules) == 1 and modules[0].get("quantized") is not None else None


def _build_quantized(
    document: Document, file: str, record: dict[str, Any], factory: Callable[..., nn.Module] | None, mode: str
) -> _Made:
    quantized = quantized_record(record, file)
    config = _recorded_config(document, file)
    options = RestoreOptions(mode=mode)
    if factory is not None:
        made = construct(factory, config, file=file)
    else:
        made = _from_structure(document, record, quantized, file)
    if quantized is None or quantized.recipe is None or quantized_layers(made):  # the factory quantizes it itself
        with quietly():
            restore_objects(document, file, {"model": made}, options)
        return made, config
    origin = Origin(
        recipe=quantized.recipe,
        backend=quantized.backend,
        class_name=str(record.get("class")),
        source=source_digest(type(made)),
        config=config,
        structure=record.get("structure") if isinstance(record.get("structure"), dict) else None,
        torchao=quantized.torchao,
    )
    made = quantized_again(made.eval(), quantized, file)
    remember(made, origin)
    with quietly(), engine(quantized.backend):
        restore_objects(document, file, {"model": made}, options)
    return made, config


def _from_structure(document: Document, record: dict[str, Any], quantized: Quantized | None, file: str) -> nn.Module:
    """The float module of a file whose layers are all torch.nn's own."""
    layer = layer_from_json(record.get("structure"))
    if layer is None or quantized is None or quantized.recipe is None:
        by_recipe = quantized is not None and quantized.recipe is not None
        named = printable(str(record.get("class"))[:100])
        raise ArgumentError(
            f"`{file}`: holds a quantized {named}: build needs to be told which code it may use, "
            + (
                "factory=Net (the class, or a function that makes the float model), or its name in trusted="
                if by_recipe
                else "and no recipe is recorded: factory=lambda: quantize_dynamic(Net(), ...), or whatever made it"
            ),
            file=file,
        )
    stored = [leaf for _, leaf in leaves(document.tree) if isinstance(leaf, StoredTensor)]
    with undisturbed():
        return construct_blank(layer, len(stored), sum(leaf.spec.numel for leaf in stored), file)
