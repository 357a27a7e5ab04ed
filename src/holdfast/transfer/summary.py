"""What a live object, a tree or a file holds, as a table for people."""

from __future__ import annotations

from typing import Any

import msgspec
from torch import nn

from holdfast.formats.base import Document, StoredTensor
from holdfast.objects.module import unwrap
from holdfast.objects.quantized import origin_of
from holdfast.serialization.reading import read_tree
from holdfast.state.flatten import child, keys, leaves
from holdfast.state.paths import dotted, printable
from holdfast.state.quantization import quantization_line
from holdfast.transfer.locate import looks_like


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
        structure: the module's layers as torch prints them, or None.
        groups: an optimizer's param_groups, with parameter names where they are known.
        values: other plain values by name.
        quantized: how it is quantized, and what that did to it where this is known, or None.
    """

    title: str
    tensors: list[TensorRow]
    structure: str | None = None
    groups: list[dict[str, Any]] = []
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
        for index, group in enumerate(self.groups):
            options = ", ".join(f"{key}={value!r}" for key, value in group.items() if key != "params")
            lines += [f"group {index}: {options}", f"  params: {', '.join(map(str, group['params']))}"]
        lines += [f"{printable(str(name))} = {value!r}" for name, value in self.values.items()]
        return "\n".join(lines)


def summarise(obj: Any, document: Document, title: str) -> Summary:
    """The summary of a document; ``obj`` is the live object behind it where there is one."""
    names = _parameter_names(document)
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
    groups: list[dict[str, Any]] = []
    if looks_like("optimizer", document.tree):
        groups = _groups(document, names.get((), []))
    values = {} if groups else _values(document)
    structure = repr(unwrap(obj)) if isinstance(obj, nn.Module) else None
    return Summary(title, rows, structure, groups, values, _quantized(obj, document))


def _quantized(obj: Any, document: Document) -> str | None:
    """The report of what quantized a live module, else what is recorded of each object."""
    origin = origin_of(unwrap(obj)) if isinstance(obj, nn.Module) else None
    if origin is not None and origin.report is not None:
        return str(origin.report)
    said = ((path, quantization_line(record)) for path, record in document.objects.items())
    lines = [f"{printable(path)}: {line}" if path else line for path, line in said if line is not None]
    return "\n".join(lines) or None


def _parameter_names(document: Document) -> dict[tuple[str, ...], list[str]]:
    """Path of each optimizer -> names of its parameters, where they are known."""
    return {
        tuple(path.split(".")) if path else (): record["param_names"]
        for path, record in document.objects.items()
        if record.get("param_names")
    }


def _named(path: tuple[Any, ...], names: dict[tuple[str, ...], list[str]]) -> str:
    for prefix, known in names.items():
        rest = path[len(prefix) :]
        ours = path[: len(prefix)] == prefix and len(rest) > 1 and rest[0] == "state"
        if ours and type(rest[1]) is int and rest[1] < len(known):
            return dotted((*prefix, "state", known[rest[1]], *rest[2:]))
    return dotted(path)


def _groups(document: Document, names: list[str]) -> list[dict[str, Any]]:
    groups = read_tree(child(document.tree, "param_groups"), "param_groups", opaque=True)
    for group in groups:
        group["params"] = [names[index] if index < len(names) else index for index in group["params"]]
    return list(groups)


def _values(document: Document) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key in keys(document.tree):
        part = child(document.tree, key)
        if not any(isinstance(leaf, StoredTensor) for _, leaf in leaves(part)):
            values[str(key)] = read_tree(part, str(key), opaque=True)
    return values
