"""Live values to an inert tree. What can't be stored is said with its path."""

from __future__ import annotations

import collections
import dataclasses
import enum
from collections.abc import Callable
from typing import Any

import msgspec

from holdfast.errors import UnsupportedValue
from holdfast.spec import Path
from holdfast.state.kinds import kind_of
from holdfast.state.paths import dotted
from holdfast.state.plain import pairs
from holdfast.state.values import ATOMS, SAVE_DEPTH, Record, Tree, Typed

_PAIRED = frozenset({"dict", "ordered_dict", "counter", "defaultdict"})


class Lowering(msgspec.Struct):
    """What ``lower`` asks about values it does not know itself.

    Attributes:
        leaf: (value, path) -> the inert leaf for a tensor, or None when the value is no tensor.
        replace: (value, path) -> a simpler live value to lower instead (a module's state_dict), or None.
    """

    leaf: Callable[[Any, Path], Any | None]
    replace: Callable[[Any, Path], Any | None]


def lower(value: Any, how: Lowering, path: Path = ()) -> Tree:
    """Live values to an inert tree.

    Raises:
        UnsupportedValue: a value that can't be stored, a cycle, or nesting past ``SAVE_DEPTH``; names its path.
    """
    try:
        return _lower(value, how, path, [])
    except RecursionError:  # the caller's own stack is deep already
        raise UnsupportedValue(f"`{dotted(path)}`: nested too deep to be saved from here", path=dotted(path)) from None


def _lower(value: Any, how: Lowering, path: Path, above: list[int]) -> Tree:
    cls = type(value)
    if cls in ATOMS:
        return value
    leaf = how.leaf(value, path)
    if leaf is not None:
        return leaf
    if id(value) in above:
        raise UnsupportedValue(f"`{dotted(path)}`: contains itself; break the cycle before saving", path=dotted(path))
    if len(above) >= SAVE_DEPTH:
        raise UnsupportedValue(f"`{dotted(path)}`: nested deeper than {SAVE_DEPTH} levels", path=dotted(path))
    above.append(id(value))
    try:
        return _lower_composite(value, cls, how, path, above)
    finally:
        above.pop()


def _lower_composite(value: Any, cls: type, how: Lowering, path: Path, above: list[int]) -> Tree:
    if cls is list:
        return [_lower(item, how, (*path, index), above) for index, item in enumerate(value)]
    if cls is dict and all(type(key) is str for key in value):
        return {key: _lower(item, how, (*path, key), above) for key, item in value.items()}
    if cls is collections.OrderedDict and vars(value):
        return _lower_state_dict(value, how, path, above)
    kind = kind_of(cls)
    if kind is not None:
        try:
            payload = kind.lower(value)
        except TypeError as reason:
            raise UnsupportedValue(
                f"`{dotted(path)}`: {_name(cls)} can't be stored: {reason}", path=dotted(path)
            ) from None
        return Typed(kind.name, _lower_payload(kind.name, payload, how, path, above))
    if cls is not Record and (simpler := how.replace(value, path)) is not None:
        return _lower(simpler, how, path, above)
    fields = _record_fields(value, cls, path)
    return Typed("record", {**fields, "fields": _lower_payload("namespace", fields["fields"], how, path, above)})


def _lower_state_dict(value: Any, how: Lowering, path: Path, above: list[int]) -> Tree:
    attributes = vars(value)
    if set(attributes) != {"_metadata"}:
        names = ", ".join(sorted(set(attributes) - {"_metadata"}))
        raise UnsupportedValue(
            f"`{dotted(path)}`: an OrderedDict with attributes ({names}) that a file would lose; delete them first",
            path=dotted(path),
        )
    items = _lower_pairs(pairs(value), how, path, above)
    if all(type(key) is str for key in value):
        items = dict(items)
    metadata = _lower_pairs(pairs(attributes["_metadata"]), how, (*path, "_metadata"), above)
    return Typed("state_dict", {"items": items, "metadata": metadata})


def _lower_payload(kind: str, payload: Any, how: Lowering, path: Path, above: list[int]) -> Tree:
    """Payloads are made here, not by the user: their parts add no level to the path."""
    if kind == "namespace":
        return {name: _lower(item, how, (*path, name), above) for name, item in payload.items()}
    if type(payload) is dict:
        return {name: _lower_part(kind, part, how, path, above) for name, part in payload.items()}
    return _lower_part(kind, payload, how, path, above)


def _lower_part(kind: str, part: Any, how: Lowering, path: Path, above: list[int]) -> Tree:
    if type(part) is not list:
        return _lower(part, how, path, above)
    if kind in _PAIRED:
        return _lower_pairs(part, how, path, above)
    return [_lower(item, how, (*path, index), above) for index, item in enumerate(part)]


def _lower_pairs(pairs: list[list[Any]], how: Lowering, path: Path, above: list[int]) -> Tree:
    return [[_lower(key, how, path, above), _lower(item, how, (*path, key), above)] for key, item in pairs]


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}".removeprefix("builtins.")


def _record_fields(value: Any, cls: type, path: Path) -> dict[str, Any]:
    if cls is Record:  # loaded without being trusted, and saved again
        return {"class": value.type_name, "form": value.form, "fields": value.fields}
    if isinstance(value, enum.Enum):
        return {"class": _name(cls), "form": "enum", "fields": {"name": value.name, "value": value.value}}
    if isinstance(value, tuple) and hasattr(cls, "_fields"):
        return {"class": _name(cls), "form": "namedtuple", "fields": dict(zip(cls._fields, value, strict=True))}
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value)]
        return {"class": _name(cls), "form": "dataclass", "fields": {name: getattr(value, name) for name in names}}
    raise UnsupportedValue(
        f"`{dotted(path)}`: a value of type {_name(cls)} can't be stored. Store what it is made of (numbers, strings, "
        "lists, dicts, tensors), or give the class state_dict() and load_state_dict()",
        path=dotted(path),
    )
