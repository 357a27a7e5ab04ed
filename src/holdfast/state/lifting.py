"""An inert tree to live values: nothing that a file names is imported or called, except classes in ``trusted``."""

from __future__ import annotations

import collections
import enum
import importlib
import sys
from collections.abc import Callable, Collection, Mapping
from typing import Any

import msgspec

from holdfast.errors import CorruptFile, MismatchError, RefusedFile, UntrustedType
from holdfast.state.kinds import KINDS
from holdfast.state.paths import printable
from holdfast.state.values import ATOMS, CLASSED, Opaque, Record, Tree, Typed, needed_class


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
    if tree.kind in CLASSED:
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
