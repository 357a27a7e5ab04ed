"""What a file says of a quantized module: as one line for people, and the form of what is packed in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from holdfast.state.paths import printable
from holdfast.state.values import Tree

PACKED = frozenset({"linear", "conv", "quantized_dynamic", "quantized_fp16"})
"""What packed parameters can be: the field ``packed`` of the dict that stands for them in a state_dict."""
_LONG = 60
_KINDS = 6


def quantization_line(record: Mapping[str, Any]) -> str | None:
    """``dynamic-int8 for x86, 3 layers (2 Linear, 1 LSTM)``; None when the record of an object says nothing of it.

    What it says is not believed, only shown.

    Args:
        record: what a file records of one object.
    """
    said = record.get("quantized")
    if said is None:
        return None
    if not isinstance(said, Mapping):
        return "quantized, in a way that can't be read"
    recipe, backend, layers = said.get("recipe"), said.get("backend"), said.get("layers")
    name = "without a recipe" if recipe is None else _text(recipe)
    engine = "" if backend is None else f" for {_text(backend)}"
    kinds = Counter(map(_text, layers.values())) if isinstance(layers, Mapping) else Counter()
    shown = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(_KINDS))
    more = ", ..." if len(kinds) > _KINDS else ""
    return f"{name}{engine}, {kinds.total()} layers" + (f" ({shown}{more})" if shown else "")


def is_packed(tree: Tree) -> bool:
    """Whether a value of a state_dict stands for packed parameters."""
    if type(tree) is not dict or type(tree.get("packed")) is not str:
        return False
    return tree["packed"] in PACKED and ("weight" in tree or "weights" in tree)


def _text(value: Any) -> str:
    return printable(str(value)[:_LONG])
