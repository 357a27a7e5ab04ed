"""What a pickle is made of, taken apart: inert nodes that import nothing and call nothing."""

from __future__ import annotations

from typing import Any

import msgspec

Node = Any
"""None, bool, int, float, str, bytes, bytearray, tuple and list are themselves; the rest are the classes below."""


class Global(msgspec.Struct, frozen=True):
    """A name that a pickle would import. ``path`` is ``module.name``."""

    module: str
    name: str
    path: str


class Persistent(msgspec.Struct, eq=False):
    """A reference to something outside the pickle, by its id."""

    id: Node


class Dict(msgspec.Struct, eq=False):
    """A dict, as its keys and values by turns, in the order of the file; a later key replaces an equal one."""

    flat: list[Node]


class Set(msgspec.Struct, eq=False):
    """A set or frozenset."""

    items: list[Node]
    frozen: bool = False


class Call(msgspec.Struct, eq=False):
    """A call that a pickle would make, and what it would do with the result.

    Attributes:
        func: what would be called: a Global, as a rule.
        args: its arguments, a tuple in every honest file.
        state: what ``__setstate__`` would get; meaningless unless ``built``.
        built: whether there is a state.
        items: what would be appended.
        flat: what would be set by key, keys and values by turns.
        kwargs: arguments by name.
    """

    func: Node
    args: Node
    state: Node = None
    built: bool = False
    items: list[Node] | None = None
    flat: list[Node] | None = None
    kwargs: Node = None
