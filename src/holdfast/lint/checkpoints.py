"""The checkpoints of a script: what it saves, under which keys, and what it restores."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

from holdfast.lint.kinds import is_state, kind, owner, subscript
from holdfast.lint.script import Call, Script, constant, parameters


class Item(NamedTuple):
    """One entry of a checkpoint's dict."""

    key: str
    value: ast.expr


class Save(NamedTuple):
    """One call of torch.save: its object, its file, and the dicts that the object may be."""

    call: Call
    obj: ast.expr
    file: ast.expr | None
    items: tuple[Item, ...]


class Restored(NamedTuple):
    """One ``X.load_state_dict(state)``."""

    call: Call
    owner: ast.expr
    state: ast.expr | None


class Checkpoints:
    """What a script saves and restores with torch."""

    def __init__(self, script: Script) -> None:
        self.script = script

    @cached_property
    def saves(self) -> list[Save]:
        """Every ``torch.save``."""
        found = []
        for call in self.script.calls:
            obj = call.argument(0, "obj")
            if call.name == "torch.save" and obj is not None:
                found.append(Save(call, obj, call.argument(1, "f"), tuple(self._items(obj))))
        return found

    @cached_property
    def states(self) -> list[tuple[Save, ast.expr, ast.expr]]:
        """Every ``X.state_dict()`` that is saved, alone or in a dict: the save, the call, and X."""
        return [
            (save, value, model)
            for save in self.saves
            for value in (save.obj, *(item.value for item in save.items))
            if is_state(value) and (model := owner(value)) is not None
        ]

    @cached_property
    def loads(self) -> list[Call]:
        """Every ``torch.load``."""
        return [call for call in self.script.calls if call.name == "torch.load"]

    @cached_property
    def restored(self) -> list[Restored]:
        """Every ``load_state_dict``."""
        return [
            Restored(call, call.receiver, call.argument(0, "state_dict"))
            for call in self.script.calls
            if call.method == "load_state_dict" and call.receiver is not None
        ]

    @cached_property
    def keys_read(self) -> set[str]:
        """The keys that the script reads of any dict."""
        reads = (n for n in self.script.nodes if not isinstance(getattr(n, "ctx", None), ast.Store))
        return {key for node in reads if (key := subscript(node)) is not None}

    @cached_property
    def resumes(self) -> bool:
        """Whether the script goes on with a training: it restores an optimizer."""
        return any(kind(self.script, one.owner) == "optimizer" for one in self.restored)

    def is_restored(self, item: Item) -> bool:
        """Whether an entry's object, or anything under its key, is restored or read."""
        key = self.script.key(owner(item.value))
        return item.key in self.keys_read or any(self.script.key(one.owner) == key for one in self.restored)

    def _items(self, obj: ast.expr, depth: int = 3) -> Iterator[Item]:
        """The entries of the dict that ``obj`` is: written there, in a variable, or by who calls the function."""
        script = self.script
        if isinstance(obj, ast.Dict):
            yield from (
                Item(key, value)
                for at, value in zip(obj.keys, obj.values, strict=True)
                if (key := constant(at)) is not None
            )
        elif isinstance(obj, ast.Call) and script.name(obj.func) == "dict":
            yield from (Item(one.arg, one.value) for one in obj.keywords if one.arg)
        elif isinstance(obj, ast.Name) and depth:
            values = script.values(obj)
            for one in values:
                if one.value is not None:
                    yield from self._items(one.value, depth - 1)
            yield from self._added(obj)
            scope = script.scope[obj]
            if not values and script.is_parameter(scope, obj.id):
                for value in arguments_for(script, scope, obj.id):
                    yield from self._items(value, depth - 1)

    def _added(self, name: ast.Name) -> Iterator[Item]:
        """``state["epoch"] = epoch`` after the dict was made."""
        for node in self._stores.get((self.script.scope[name], name.id), ()):
            key = subscript(node.targets[0])
            if key is not None:
                yield Item(key, node.value)

    @cached_property
    def _stores(self) -> dict[tuple[ast.AST, str], list[ast.Assign]]:
        """The assignments to keys of a dict, by the function and the dict's name."""
        found: dict[tuple[ast.AST, str], list[ast.Assign]] = defaultdict(list)
        for node in self.script.nodes:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Subscript):
                found[self.script.scope[node], self.script.key(node.targets[0].value)].append(node)
        return found

    @cached_property
    def moves(self) -> set[ast.AST]:
        """The functions that rename a file: what they save is perhaps written elsewhere first."""
        return {self.script.scope[call.node] for call in self.script.calls if _moves(call)}

    @cached_property
    def unwrapped(self) -> set[tuple[ast.AST, str]]:
        """The functions in which ``model.module`` is read, with the model's name: those know of the wrapper."""
        script = self.script
        return {
            (script.scope[node], script.key(node.value))
            for node in script.nodes
            if isinstance(node, ast.Attribute) and node.attr in ("module", "_orig_mod")
        }


def _moves(call: Call) -> bool:
    of_path = call.method == "replace" and len(call.node.args) == 1  # that of a str takes two arguments
    return of_path or call.method == "rename" or call.name in ("os.replace", "os.renames", "shutil.move")


def arguments_for(script: Script, function: ast.AST, name: str) -> Iterator[ast.expr]:
    """What the script's own calls of a function give for one of its parameters."""
    if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
        return
    names = [one.arg for one in parameters(function)]
    is_method = bool(names) and names[0] in ("self", "cls")
    for call in script.calls_of(function):
        value = call.argument(names.index(name) - is_method, name)
        if value is not None:
            yield value


def states_of(script: Script, what: str) -> list[ast.Call]:
    """Every ``X.state_dict()`` whose X is of a kind."""
    return [call.node for call in script.calls if is_state(call.node) and kind(script, call.receiver) == what]
