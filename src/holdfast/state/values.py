"""What trees are made of: atoms, lists, dicts, :class:`Typed` values, and what stands for objects.

The *inert tree* is what every container stores and what every reader yields: atoms (None, bool, int, float, complex,
str, bytes), lists, dicts with string keys, :class:`Typed` for every other type, and leaves for tensors. ``lowering``
makes one from live values, ``lifting`` turns one back: who only looks into files needs neither.
"""

from __future__ import annotations

from typing import Any

import msgspec

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
CLASSED = frozenset({"subclass", "wrapper"})
"""Kinds of tensors whose class is the user's own."""

Tree = Any
"""An inert tree. Typed as Any because recursive types hide more than they say."""


class Typed(msgspec.Struct, frozen=True):
    """A value whose type is not an atom, list or dict: ``Typed("path", "a/b")``.

    Attributes:
        kind: a name of ``KINDS`` in ``state.kinds``, or one that serialization adds for tensors.
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


def needed_class(tree: Tree) -> str | None:
    """The class that a value of a file needs and that nobody has vouched for, or None."""
    if type(tree) is Opaque:
        return tree.type_name
    return str(tree.payload["class"]) if type(tree) is Typed and tree.kind in CLASSED else None
