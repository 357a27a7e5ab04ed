"""Leaving parts of a tree out by the globs of their paths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from holdfast.errors import ArgumentError
from holdfast.spec import Path
from holdfast.state.flatten import PAIR_KINDS
from holdfast.state.paths import dotted, matches, printable
from holdfast.state.values import Tree, Typed

_WITH_ITEMS = frozenset({"state_dict", "defaultdict"})
_SHOWN = 8


def dropped(tree: Tree, globs: Sequence[str]) -> tuple[Tree, list[str]]:
    """A tree without what the globs name.

    Args:
        tree: inert.
        globs: shell-style patterns of dotted paths; ``*`` also crosses dots. Items of dicts can be left out.

    Returns:
        The rest, and the dotted paths that were left out.

    Raises:
        ArgumentError: a glob names an element of a list: those behind it would move up.
    """
    dropping = _Dropping(globs)
    return dropping.rest(tree, ()), dropping.names


def refuse_unmatched(globs: Sequence[str], names: Sequence[str], kept: Sequence[str], file: str) -> None:
    """Raises ArgumentError for a glob that named nothing: a typing error would leave in what was to go."""
    for glob in globs:
        if not any(matches((name,), glob) for name in names):
            some = ", ".join(printable(name) for name in kept[:_SHOWN])
            raise ArgumentError(
                f"`{printable(file)}`: drop {printable(glob)!r} matches nothing; there are: {some}"
                f"{', ...' if len(kept) > _SHOWN else ''}",
                file=file,
            )


class _Dropping:
    def __init__(self, globs: Sequence[str]) -> None:
        self._globs = globs
        self.names: list[str] = []

    def _goes(self, path: Path) -> bool:
        if not any(matches(path, glob) for glob in self._globs):
            return False
        self.names.append(dotted(path))
        return True

    def rest(self, tree: Tree, path: Path) -> Tree:
        cls = type(tree)
        if cls is dict:
            return {key: self.rest(item, (*path, key)) for key, item in tree.items() if not self._goes((*path, key))}
        if cls is list:
            return self._elements(tree, path)
        if cls is not Typed:
            return tree
        kind, payload = tree.kind, tree.payload
        if kind in PAIR_KINDS and type(payload) is list:
            return Typed(kind, self._pairs(payload, path))
        if kind in _WITH_ITEMS and type(payload) is dict and "items" in payload:
            items = payload["items"]
            left = self.rest(items, path) if type(items) is dict else self._pairs(items, path)
            return Typed(kind, {**payload, "items": left})
        if kind in ("namespace", "tuple"):
            return Typed(kind, self.rest(payload, path))
        return tree

    def _pairs(self, pairs: Any, path: Path) -> list[Any]:
        left = []
        for pair in pairs:
            if type(pair) is not list or len(pair) != 2:
                left.append(pair)
                continue
            key = str(pair[0].payload) if type(pair[0]) is Typed else pair[0]
            if not self._goes((*path, key)):
                left.append([pair[0], self.rest(pair[1], (*path, key))])
        return left

    def _elements(self, items: list[Tree], path: Path) -> list[Tree]:
        for index in range(len(items)):
            if self._goes((*path, index)):
                raise ArgumentError(
                    f"`{printable(self.names[-1])}` is an element of a list, and those behind it would move up; drop "
                    f"`{printable(dotted(path))}` as a whole"
                )
        return [self.rest(item, (*path, index)) for index, item in enumerate(items)]
