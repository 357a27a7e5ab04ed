"""The parts of a call in a pickle, and the shapes that arguments come in."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from holdfast.state.values import Tree, Typed


class Parts(msgspec.Struct):
    """What a pickle would do to make an object.

    Attributes:
        args: what it would call the class with.
        state: what it would set, if ``built``.
        built: whether it would set a state.
        items: what it would append.
        pairs: [key, value] that it would set.
    """

    args: list[Tree]
    state: Tree = None
    built: bool = False
    items: list[Tree] = []
    pairs: list[list[Tree]] = []

    @property
    def only_args(self) -> bool:
        return not (self.built or self.items or self.pairs)


Form = Callable[[Parts], Tree | None]


def of_args(*types: type | tuple[type, ...]) -> Callable[[Callable[..., Tree | None]], Form]:
    """A form that consists of arguments of these types and nothing else."""

    def decorate(make: Callable[..., Tree | None]) -> Form:
        def form(parts: Parts) -> Tree | None:
            args = parts.args
            if not parts.only_args or len(args) != len(types):
                return None
            fits = all(
                type(arg) in (cls if type(cls) is tuple else (cls,)) for arg, cls in zip(args, types, strict=True)
            )
            return make(*args) if fits else None

        return form

    return decorate


def items_of(tree: Tree) -> list[Tree] | None:
    """The items of a list or tuple."""
    if type(tree) is Typed and tree.kind == "tuple":
        return list(tree.payload)
    return tree if type(tree) is list else None


def pairs_of(tree: Tree) -> list[list[Tree]] | None:
    """The pairs of a dict, or of a list of pairs."""
    if type(tree) is dict:
        return [[key, value] for key, value in tree.items()]
    if type(tree) is Typed and tree.kind in ("dict", "ordered_dict"):
        return list(tree.payload)
    pairs = [items_of(item) for item in tree] if type(tree) is list else [None]
    return None if any(pair is None or len(pair) != 2 for pair in pairs) else [pair for pair in pairs if pair]
