"""Plain values with their types: live Python values on one side, an inert tree on the other.

The *inert tree* is what every container stores and what every reader yields: atoms (None, bool, int, float, complex,
str, bytes), lists, dicts with string keys, :class:`Typed` for every other type, and leaves for tensors. ``lower`` makes
one from live values, ``lift`` turns one back. Neither imports or calls anything that a file names, except a class that
the caller listed in ``trusted``.
"""

from __future__ import annotations

import collections
import dataclasses
import enum
import importlib
import sys
from collections.abc import Callable, Collection, Mapping
from typing import Any

import msgspec

from holdfast.errors import CorruptFile, MismatchError, RefusedFile, UnsupportedValue, UntrustedType
from holdfast.spec import Path
from holdfast.state.foreign import foreign_kinds, numpy_type
from holdfast.state.paths import dotted, printable
from holdfast.state.plain import pairs, plain_kinds

MAX_DEPTH = 500
"""Nesting that a tree in a file may have; Python's own recursion limit is 1000."""
SAVE_DEPTH = 64
"""Nesting that is saved. A level takes up to four in a file: what was saved can be loaded from any caller's stack."""

ATOMS = frozenset({type(None), bool, int, float, complex, str, bytes})
TENSOR_KINDS = frozenset(
    {"conj", "neg", "sparse", "quantized", "meta", "nested", "jagged", "attributed", "subclass", "wrapper"}
)
"""Kinds that are tensors of more than one run of elements; serialization makes them."""
DRESSED = frozenset({"parameter", "attributed", "subclass"})
"""Kinds that are one tensor, ``data``, and what a program put around it."""
_CLASSED = frozenset({"subclass", "wrapper"})
"""Kinds of tensors whose class is the user's own."""

Tree = Any
"""An inert tree. Typed as Any because recursive types hide more than they say."""


class Typed(msgspec.Struct, frozen=True):
    """A value whose type is not an atom, list or dict: ``Typed("path", "a/b")``.

    Attributes:
        kind: a name of :data:`KINDS`, or one that serialization adds for tensors.
        payload: an inert tree.
    """

    kind: str
    payload: Any


class Record:
    """A value of a class that was not trusted: the class name and its fields, by attribute.

    Example:
        >>> config = Record("my.pkg.Config", {"width": 64})
        >>> config.width
        64
    """

    def __init__(self, type_name: str, fields: dict[str, Any], form: str = "dataclass") -> None:
        self.__dict__.update(fields)
        self.__dict__["_record"] = (type_name, form)

    @property
    def type_name(self) -> str:
        """The class that was saved, ``my.pkg.Config``."""
        return str(self.__dict__["_record"][0])

    @property
    def form(self) -> str:
        """What kind of class it was: ``dataclass``, ``namedtuple`` or ``enum``."""
        return str(self.__dict__["_record"][1])

    @property
    def fields(self) -> dict[str, Any]:
        """The values by name."""
        return {name: value for name, value in self.__dict__.items() if name != "_record"}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Record) and self.__dict__ == other.__dict__

    __hash__ = None  # type: ignore[assignment]  # fields may be lists

    def __repr__(self) -> str:
        inside = ", ".join(f"{name}={value!r}" for name, value in self.fields.items())
        return f"Record({self.type_name}: {inside})"


class Opaque(msgspec.Struct):
    """What stands where a file holds an object of a class that is not rebuilt: its name and what it was made of.

    Attributes:
        type_name: ``my.pkg.Net``.
        args: the arguments that the file would have passed to it.
        state: what the file would have put into it afterwards.
    """

    type_name: str
    args: Any = ()
    state: Any = None


class Kind(msgspec.Struct, frozen=True):
    """How one Python type is taken apart and put together.

    Attributes:
        name: what the file calls it.
        type: the exact class, or its full name where the module is one that may be absent (torch, numpy).
        lower: live value -> a payload of simpler live values (lowered further).
        lift: lifted payload -> live value. May raise TypeError, ValueError or LookupError on a payload that lies.
        plain: lifted payload -> the nearest type that ``torch.load(weights_only=True)`` accepts.
    """

    name: str
    type: type | str
    lower: Callable[[Any], Any]
    lift: Callable[[Any], Any]
    plain: Callable[[Any], Any]


_PAIRED = frozenset({"dict", "ordered_dict", "counter", "defaultdict"})
KINDS: dict[str, Kind] = {}
_BY_TYPE: dict[type | str, Kind] = {}
for _kind in (*plain_kinds(Kind), *foreign_kinds(Kind)):
    KINDS[_kind.name] = _kind
    _BY_TYPE[_kind.type] = _kind


def _kind_of(cls: type) -> Kind | None:
    found = _BY_TYPE.get(cls)
    if found is None and cls.__module__.partition(".")[0] in ("torch", "numpy"):
        found = _BY_TYPE.get(numpy_type(cls) or f"{cls.__module__}.{cls.__qualname__}")
    return found


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
    kind = _kind_of(cls)
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


class Lifting(msgspec.Struct):
    """What ``lift`` asks about leaves and classes.

    Attributes:
        leaf: an inert leaf -> a tensor.
        trusted: full names of classes that may be imported and rebuilt.
        opaque: whether objects of other classes come back as :class:`Opaque` instead of an error.
        file: named in errors.
        kinds: what makes a value of a kind that is not in :data:`KINDS`, or is to be made differently.
    """

    leaf: Callable[[Any], Any]
    trusted: Collection[str] = ()
    opaque: bool = False
    file: str = "file"
    kinds: Mapping[str, Callable[[Any], Any]] = {}


def lift(tree: Tree, how: Lifting) -> Any:
    """An inert tree to live values.

    Raises:
        CorruptFile: a payload that does not fit its kind.
        RefusedFile: nesting past what Python's stack takes from here.
        UntrustedType: a class that is not in ``trusted``, unless ``opaque``.
        MismatchError: a trusted class does not take the fields that were saved.
    """
    try:
        return _lift(tree, how)
    except RecursionError:
        raise RefusedFile(f"`{how.file}`: its tree is nested too deep to be loaded from here", file=how.file) from None


def _lift(tree: Tree, how: Lifting) -> Any:
    cls = type(tree)
    if cls in ATOMS:
        return tree
    if cls is dict:
        return {key: _lift(item, how) for key, item in tree.items()}
    if cls is list:
        return [_lift(item, how) for item in tree]
    if cls is Opaque:
        return _lift_opaque(tree, how)
    if cls is not Typed:
        return how.leaf(tree)
    if tree.kind == "record":
        return _lift_record(tree.payload, how)
    if tree.kind in _CLASSED:
        return _lift_classed(tree, how)
    make = how.kinds.get(tree.kind) or (tree.kind in KINDS and KINDS[tree.kind].lift)
    if not make and tree.kind != "state_dict":
        raise CorruptFile(
            f"`{how.file}`: holds a value of kind {tree.kind!r}, unknown to this version; a newer holdfast wrote it",
            file=how.file,
        )
    try:
        return make(_lift(tree.payload, how)) if make else _lift_state_dict(tree.payload, how)
    except RecursionError:
        raise
    except (TypeError, ValueError, LookupError, ArithmeticError, RuntimeError, AttributeError) as reason:
        text = f"`{how.file}`: a value of kind {tree.kind!r} is damaged: {printable(str(reason))}"
        raise CorruptFile(text, file=how.file) from None


def _lift_opaque(tree: Opaque, how: Lifting) -> Any:
    if tree.type_name in how.trusted:
        return _lift_trusted(tree, how)
    if how.opaque:
        return Opaque(tree.type_name, _lift(tree.args, how), _lift(tree.state, how))
    raise _refused(tree.type_name, how)


def _refused(name: str, how: Lifting) -> UntrustedType:
    return UntrustedType(
        f"`{how.file}`: holds an object of class {name}, which is not rebuilt from a file. Ways on: "
        f"holdfast.restore or holdfast.open for the parts you need, trusted={{{name!r}}} if that code is "
        f"yours, or opaque=True for inert placeholders",
        file=how.file,
    )


def needed_class(tree: Tree) -> str | None:
    """The class that a value of a file needs and that nobody has vouched for, or None."""
    if type(tree) is Opaque:
        return tree.type_name
    return str(tree.payload["class"]) if type(tree) is Typed and tree.kind in _CLASSED else None


def _lift_classed(tree: Typed, how: Lifting) -> Any:
    """A tensor of a class of the user's own."""
    payload, name = tree.payload, needed_class(tree) or ""
    if name not in how.trusted and not how.opaque:
        raise _refused(name, how)
    parts = {key: _lift(part, how) for key, part in payload.items() if key != "class"}
    if name not in how.trusted:
        return Opaque(name, [parts["data"]] if "data" in parts else [], parts["state"])
    cls = trusted_class(name)
    try:
        return how.kinds[tree.kind]({**parts, "class": cls})
    except Exception as reason:  # as for any trusted class: its own code runs
        raise _changed(name, reason, how) from reason


def _lift_trusted(tree: Opaque, how: Lifting) -> Any:
    """An object of a class that the caller named, as pickle would make it: its ``__new__``, then its state."""
    cls = trusted_class(tree.type_name)
    if tree.args is None:
        return cls
    args, state = _lift(tree.args, how), _lift(tree.state, how)
    try:
        if issubclass(cls, enum.Enum) or (state is None and args):
            return cls(*args)
        value = cls.__new__(cls, *args)
        if hasattr(value, "__setstate__"):
            value.__setstate__(state)
        elif state is not None:
            attributes, slots = state if isinstance(state, tuple) and len(state) == 2 else (state, None)
            for name, item in {**(attributes or {}), **(slots or {})}.items():
                object.__setattr__(value, name, item)
    except Exception as reason:  # whatever the trusted class raises: its code changed since the file was written
        raise _changed(tree.type_name, reason, how) from reason
    return value


def _changed(name: str, reason: Exception, how: Lifting) -> CorruptFile:
    return CorruptFile(
        f"`{how.file}`: {name} does not take what the file has for it: {type(reason).__name__}: "
        f"{printable(str(reason))}",
        file=how.file,
    )


def _lift_state_dict(payload: Any, how: Lifting) -> Any:
    items = _lift(payload["items"], how)
    result = collections.OrderedDict(items.items() if isinstance(items, dict) else items)
    metadata = collections.OrderedDict(_lift(payload["metadata"], how))
    result._metadata = metadata  # type: ignore[attr-defined]  # where torch keeps module versions
    return result


def _lift_record(payload: Any, how: Lifting) -> Any:
    name, form, fields = payload["class"], payload["form"], _lift(payload["fields"], how)
    if name not in how.trusted:
        return Record(name, fields, form)
    cls = trusted_class(name)
    try:
        if form == "enum":
            return cls[fields["name"]]
        if form == "namedtuple":
            return cls(**fields)
        value = cls.__new__(cls)  # as copy and pickle do: __init__ may have side effects and other arguments
        for field, item in fields.items():
            object.__setattr__(value, field, item)
    except (TypeError, LookupError, AttributeError) as reason:
        raise MismatchError(
            f"`{how.file}`: holds a {name} with the fields {', '.join(fields)}, which the class here does not take "
            f"({type(reason).__name__}: {reason}); without trusted= it comes as a holdfast.Record",
            file=how.file,
        ) from reason
    return value


def trusted_class(name: str) -> Any:
    """Imports a class that the caller named in ``trusted=``."""
    parts = name.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        module = sys.modules.get(".".join(parts[:cut]))
        if module is None:
            try:
                module = importlib.import_module(".".join(parts[:cut]))
            except ModuleNotFoundError:
                continue
        found: Any = module
        for part in parts[cut:]:
            found = getattr(found, part, None)
        if isinstance(found, type):
            return found
    raise UntrustedType(f"trusted name {name!r} is no class that can be imported here")
