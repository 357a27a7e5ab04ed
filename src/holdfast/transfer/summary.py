"""What a live object, a tree or a file holds, as a table for people."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import msgspec
from torch import nn

from holdfast.formats.base import Document, StoredTensor
from holdfast.objects.module import unwrap
from holdfast.objects.quantized import origin_of
from holdfast.serialization.reading import read_tree
from holdfast.spec import Path
from holdfast.state.flatten import child, keys, leaves
from holdfast.state.paths import dotted, printable
from holdfast.state.quantization import quantization_line
from holdfast.state.values import Tree
from holdfast.transfer.locate import looks_like

_NAMES = ("params", "param_names")
_Groups = list[dict[str, Any]]
_Known = dict[Path, dict[Any, str]]
"""Path of each optimizer -> number of a parameter -> its name."""


class TensorRow(msgspec.Struct, frozen=True):
    """One tensor of a summary.

    Attributes:
        name: its dotted path, with the parameter's name in place of an optimizer's number.
        shape: elements per dimension.
        dtype: torch's name, ``float32``.
        device: where it lives, or was saved.
        bytes: of its elements.
        shares_with: the first name whose memory it shares, or None.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    device: str
    bytes: int
    shares_with: str | None = None


class Summary(msgspec.Struct, frozen=True):
    """What something holds. ``print(summary)`` is a table; the fields are for programs.

    Attributes:
        title: what was summarised.
        tensors: in order.
        structure: the module's layers as torch prints them, those of each module in a tree by name, or None.
        groups: the param_groups of each optimizer by its path, ``""`` where it is all there is, with the names of the
            parameters where they are known: from the model beside it, or from ``Adam(net.named_parameters())``.
        values: other plain values by name.
        quantized: how it is quantized, and what that did to it where this is known, or None.
    """

    title: str
    tensors: list[TensorRow]
    structure: str | None = None
    groups: dict[str, list[dict[str, Any]]] = {}
    values: dict[str, Any] = {}
    quantized: str | None = None

    @property
    def bytes(self) -> int:
        """Bytes of all tensors, shared ones once."""
        return sum(row.bytes for row in self.tensors if row.shares_with is None)

    def __str__(self) -> str:
        lines = [f"{self.title}: {len(self.tensors)} tensors, {self.bytes:,} bytes"]
        width = max((len(row.name) for row in self.tensors), default=0)
        for row in self.tensors:
            shared = f"  = {printable(row.shares_with)}" if row.shares_with else ""
            lines.append(f"  {printable(row.name):<{width}}  {row.shape!s:<18} {row.dtype:<9} {row.device}{shared}")
        if self.quantized:
            lines += ["quantized:", *(f"  {line}" for line in self.quantized.splitlines())]
        if self.structure:
            lines += ["structure:", *(f"  {line}" for line in self.structure.splitlines())]
        for path, groups in self.groups.items():
            for index, group in enumerate(groups):
                options = ", ".join(f"{key}={value!r}" for key, value in group.items() if key not in _NAMES)
                params = ", ".join(printable(str(name)) for name in group["params"])
                lines += [f"{printable(path)} group {index}: {options}".lstrip(), f"  params: {params}"]
        lines += [f"{printable(str(name))} = {value!r}" for name, value in self.values.items()]
        return "\n".join(lines)


def summarise(obj: Any, document: Document, title: str) -> Summary:
    """The summary of a document; ``obj`` is the live object behind it where there is one."""
    optimizers = _optimizers(document.tree)
    names = _names_in(optimizers) | _parameter_names(document)
    rows: list[TensorRow] = []
    first: dict[int, str] = {}
    for path, leaf in leaves(document.tree):
        if isinstance(leaf, StoredTensor):
            name = _named(path, names)
            shares = first.setdefault(id(leaf.segment), name) if leaf.segment.length else name
            rows.append(
                TensorRow(
                    name=name,
                    shape=leaf.spec.shape,
                    dtype=leaf.spec.dtype,
                    device=leaf.segment.location,
                    bytes=leaf.spec.nbytes,
                    shares_with=None if shares == name else shares,
                )
            )
    groups = {dotted(path) if path else "": _named_groups(one, names.get(path, {})) for path, one in optimizers.items()}
    values = {} if () in optimizers else _values(document.tree, optimizers)
    return Summary(title, rows, _structure(obj), groups, values, _quantized(obj, document))


def _optimizers(tree: Tree) -> dict[Path, _Groups]:
    """The groups of each state of an optimizer that the tree is, or has as a part."""
    parts = [((), tree)] if looks_like("optimizer", tree) else [((key,), child(tree, key)) for key in keys(tree)]
    found = ((path, _groups(part)) for path, part in parts if looks_like("optimizer", part))
    return {path: groups for path, groups in found if groups is not None}


def _groups(optimizer: Tree) -> _Groups | None:
    """Its param_groups; None when a file only has the names of these keys."""
    groups = read_tree(child(optimizer, "param_groups"), "param_groups", opaque=True)
    return groups if isinstance(groups, list) and all(map(_is_group, groups)) else None


def _is_group(group: Any) -> bool:
    params = group.get("params") if isinstance(group, dict) else None
    return isinstance(params, list) and all(type(one) is int for one in params)


def _structure(obj: Any) -> str | None:
    if isinstance(obj, nn.Module):
        return repr(unwrap(obj))
    parts = obj.items() if isinstance(obj, dict) else ()
    return "\n".join(f"{name}: {unwrap(part)!r}" for name, part in parts if isinstance(part, nn.Module)) or None


def _quantized(obj: Any, document: Document) -> str | None:
    """The report of what quantized a live module, else what is recorded of each object."""
    origin = origin_of(unwrap(obj)) if isinstance(obj, nn.Module) else None
    if origin is not None and origin.report is not None:
        return str(origin.report)
    said = ((path, quantization_line(record)) for path, record in document.objects.items())
    lines = [f"{printable(path)}: {line}" if path else line for path, line in said if line is not None]
    return "\n".join(lines) or None


def _parameter_names(document: Document) -> _Known:
    """The names that are recorded of each optimizer."""
    return {
        tuple(path.split(".")) if path else (): dict(enumerate(record["param_names"]))
        for path, record in document.objects.items()
        if record.get("param_names")
    }


def _names_in(optimizers: Mapping[Path, _Groups]) -> _Known:
    """The names that torch itself keeps in the groups of an optimizer that was given named parameters."""
    found: _Known = {}
    for path, groups in optimizers.items():
        for group in groups:
            numbers, names = group["params"], group.get("param_names")
            if isinstance(names, list) and len(names) == len(numbers):
                found.setdefault(path, {}).update(zip(numbers, map(str, names), strict=True))
    return found


def _named(path: Path, names: _Known) -> str:
    for prefix, known in names.items():
        rest = path[len(prefix) :]
        ours = path[: len(prefix)] == prefix and len(rest) > 1 and rest[0] == "state"
        if ours and rest[1] in known:
            return dotted((*prefix, "state", known[rest[1]], *rest[2:]))
    return dotted(path)


def _named_groups(groups: _Groups, names: Mapping[Any, str]) -> _Groups:
    return [{**group, "params": [names.get(index, index) for index in group["params"]]} for group in groups]


def _values(tree: Tree, optimizers: Collection[Path]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key in keys(tree):
        part = child(tree, key)
        if (key,) not in optimizers and not any(isinstance(leaf, StoredTensor) for _, leaf in leaves(part)):
            values[str(key)] = read_tree(part, str(key), opaque=True)
    return values
