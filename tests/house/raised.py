"""Every message that a HoldfastError of the package can have, as templates read from the source.

A template is the text of one message with holes: ``("`", Hole("script"), "`: no such script")``. It is read where the
error is made, which is where its class is called. What the message is made of is followed through f-strings, sums,
conditional expressions, constants of the module, local variables and functions that return text. A function that does
nothing but make an error is followed to its callers, so that each of their reasons is a message of its own.
"""

from __future__ import annotations

import ast
import functools
import itertools
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from holdfast import errors
from tests.house.source_tree import Module, modules

CLASSES = {
    name: one for name, one in vars(errors).items() if isinstance(one, type) and issubclass(one, errors.HoldfastError)
}
REASONS = ("ValueError", "TypeError", "IndexError")
"""What private functions raise to a caller that puts the text into a HoldfastError."""


class Hole:
    """Where a value is put in; its name, out of the source, is for readers and makes no other hole of it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Hole)

    def __hash__(self) -> int:
        return hash(Hole)


Parts = tuple[str | Hole, ...]
"""The text of a message, with holes."""
DEPTH = 6
SAYS = 20
"""Letters that a choice inside a message needs to be a part that is told: less is a word that is put in."""
SHOWING = ("printable", "shown", "str")
"""Functions that change nothing in a text of our own."""
Functions = tuple[ast.FunctionDef, ...]


class Site(NamedTuple):
    """One place that makes an error, what its message can be, and what can stand in a hole of it."""

    kind: str
    room: str
    where: str
    templates: tuple[Parts, ...]
    parts: tuple[Parts, ...] = ()


class Call(NamedTuple):
    """A call in the package: what is called, and the functions that it stands in, outermost first."""

    name: str
    module: Module
    node: ast.Call
    functions: Functions


@functools.cache
def sites() -> tuple[Site, ...]:
    """Every place of the package that makes a HoldfastError or says the reason of one, in the order of the source."""
    return tuple(sites_of(tuple(modules())))


def sites_of(package: tuple[Module, ...]) -> Iterator[Site]:
    """The places in these modules."""
    calls = [call for module in package if module.room != "errors" for call in _calls(module, module.tree, ())]
    raised = {id(node.exc) for module in package for node in ast.walk(module.tree) if isinstance(node, ast.Raise)}
    for call in calls:
        kind = _kind(call, id(call.node) in raised)
        for chain in _chains(calls, (call,)) if kind else ():
            place = chain[-1].module
            texts, parts = (tuple(dict.fromkeys(map(_joined, found))) for found in _texts(chain))
            yield Site(kind, place.room, place.at(chain[-1].node), texts, parts)


def _kind(call: Call, is_raised: bool) -> str:
    """The class of the error that a call makes; empty when it makes none."""
    if call.name in CLASSES:
        return call.name
    if not is_raised or call.module.room == "compat":
        return ""
    if ast.unparse(call.node.func).startswith("type("):  # of the class that was caught
        return "FormatError"
    return call.name if call.name in REASONS else ""


def shown(parts: Parts, hole: str = "<{}>") -> str:
    """A template as text; ``hole`` says how a value is shown."""
    return "".join(hole.format(part.name) if isinstance(part, Hole) else part for part in parts)


def words(parts: Parts) -> list[str]:
    """The constant texts of a template that say something."""
    return [part for part in parts if isinstance(part, str) and re.search("[a-z]", part)]


def _calls(module: Module, node: ast.AST, functions: Functions) -> Iterator[Call]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Call):
            func = child.func
            name = func.id if isinstance(func, ast.Name) else func.attr if isinstance(func, ast.Attribute) else ""
            yield Call(name, module, child, functions)
        yield from _calls(module, child, (*functions, child) if isinstance(child, ast.FunctionDef) else functions)


def _chains(calls: list[Call], chain: tuple[Call, ...]) -> Iterator[tuple[Call, ...]]:
    """The call that makes an error, then the callers of functions that only make errors, up to where it is meant."""
    maker = chain[-1].functions[-1] if chain[-1].functions else None
    callers = _callers(calls, chain[-1].module, maker) if maker is not None and _only_makes(maker) else []
    if not callers or len(chain) > DEPTH:
        yield chain
        return
    for caller in callers:
        yield from _chains(calls, (*chain, caller))


def _texts(chain: tuple[Call, ...]) -> tuple[list[Parts], list[Parts]]:
    """What a message can be, and parts of it: the reason goes down the calls, to where the class is called."""
    given: dict[str, list[Parts]] = {}
    parts: list[Parts] = []
    for called, caller in reversed(list(itertools.pairwise(chain))):
        reader = _Reader(caller.module.tree, caller.functions, given)
        given = reader.arguments(caller.node, called.functions[-1])
        parts += reader.parts
    made = chain[0]
    text = [*made.node.args[:1], *(word.value for word in made.node.keywords if word.arg == "message")]
    reader = _Reader(made.module.tree, made.functions, given)
    found = reader.read(text[0]) if text else [(Hole("reason"),)]
    silent = not any(map(words, found))
    told = silent and not reader.parts and _of_a_caught_error(text[0], made.functions)
    return [] if told else found, parts + reader.parts


def _of_a_caught_error(node: ast.expr, functions: Functions) -> bool:
    """Whether a text is that of an error that was caught, which has been told already."""
    caught = {one.name for outer in functions for one in ast.walk(outer) if isinstance(one, ast.ExceptHandler)}
    return any(isinstance(part, ast.Name) and part.id in caught for part in ast.walk(node))


def _only_makes(function: ast.FunctionDef) -> bool:
    returns = ast.unparse(function.returns).strip("'\"") if function.returns else ""
    return returns in CLASSES or returns == "NoReturn"


def _callers(calls: list[Call], module: Module, maker: ast.FunctionDef) -> list[Call]:
    """Calls of a function by its name: in its own module, and where it is imported from there."""
    there = (module.name, maker.name)
    return [
        call
        for call in calls
        if call.name == maker.name
        and (call.module.name == module.name or {there, ("", module.name)} & _imported(call.module))
    ]


@functools.cache
def _imported(module: Module) -> set[tuple[str, str]]:
    """What a module imports by name, and the modules that it imports whole."""
    found = [node for node in ast.walk(module.tree) if isinstance(node, ast.ImportFrom)]
    names = {(node.module or "", alias.name) for node in found for alias in node.names}
    return names | {("", f"{base}.{name}") for base, name in names}


class _Reader:
    """Reads the text that an expression makes, as far as the source alone tells it."""

    def __init__(
        self,
        tree: ast.Module,
        functions: Functions,
        given: Mapping[str, list[Parts]],
        opened: frozenset[str] = frozenset(),
    ) -> None:
        self._tree = tree
        self._functions = functions
        self._given = given
        self._open = opened
        self.parts: list[Parts] = []

    def read(self, node: ast.expr) -> list[Parts]:
        """Every text that the expression can be."""
        match node:
            case ast.Constant(value=str(text)):
                return [(text,)]
            case ast.JoinedStr(values=values):
                return self._sequence(values)
            case ast.FormattedValue(value=value):
                return self._inside(value)
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                return self._sequence([left, right])
            case ast.IfExp(body=body, orelse=orelse):
                return self.read(body) + self.read(orelse)
            case ast.BoolOp(values=values):
                return [text for value in values for text in self.read(value)]
            case ast.Name(id=name):
                return self._named(name)
            case ast.Constant(value=None):
                return []
            case ast.Call(func=ast.Name(id=name), args=[ast.Name(id=given)]) if (
                name in SHOWING and given in self._given
            ):
                return self._given[given]
            case ast.Call(func=ast.Name()):
                return self._returned(node)
        return [(Hole(_name(node)),)]

    def _inside(self, value: ast.expr) -> list[Parts]:
        """A value in an f-string: its text, where there is one; several are a hole, and each is a part of its own."""
        found = list(dict.fromkeys(self.read(value)))
        if len(found) == 1:
            return found
        self.parts += filter(_says, found)
        return [(Hole(_name(value)),)]

    def _sequence(self, nodes: list[ast.expr]) -> list[Parts]:
        choices = [self.read(node) for node in nodes]
        return [tuple(itertools.chain(*chosen)) for chosen in itertools.product(*choices)]

    def _named(self, name: str) -> list[Parts]:
        if name in self._given:
            return self._given[name]
        for scope in (*reversed(self._functions), self._tree):
            nodes = self._tree.body if scope is self._tree else ast.walk(scope)
            values = [value for node in nodes for value in _assigned(node, name)]
            if values and name not in self._open:
                inner = self._deeper(self._functions, self._given, name)
                return [text for value in values for text in inner.read(value)]
            if isinstance(scope, ast.FunctionDef) and name in _parameters(scope):
                break
        return [(Hole(_name(ast.Name(name))),)]

    def _returned(self, call: ast.Call) -> list[Parts]:
        name = ast.unparse(call.func)
        for function in self._tree.body:
            if isinstance(function, ast.FunctionDef) and function.name == name and name not in self._open:
                inner = self._deeper((function,), self.arguments(call, function), name)
                returns = [node.value for node in ast.walk(function) if isinstance(node, ast.Return) and node.value]
                return [text for value in returns for text in inner.read(value)]
        return [(Hole(_name(call)),)]

    def _deeper(self, functions: Functions, given: Mapping[str, list[Parts]], name: str) -> _Reader:
        inner = _Reader(self._tree, functions, given, self._open | {name})
        inner.parts = self.parts
        return inner

    def arguments(self, call: ast.Call, function: ast.FunctionDef) -> dict[str, list[Parts]]:
        """What a call gives for each parameter, as text."""
        names = [one.arg for one in (*function.args.posonlyargs, *function.args.args)]
        names = names[1:] if names[:1] == ["self"] else names
        words = [(word.arg, word.value) for word in call.keywords if word.arg]
        return {name: self.read(value) for name, value in (*zip(names, call.args, strict=False), *words)}


def _says(parts: Parts) -> bool:
    return sum(map(len, words(parts))) >= SAYS


def _name(node: ast.expr) -> str:
    """What a value is called: by its variable or attribute, and that of which it is the text or the number."""
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name.strip("_").replace("_", " ").lower()
        case ast.Call(func=ast.Name(id="len"), args=[one]):
            return f"number of {_name(one)}"
        case ast.Call(args=[one, *_]) | ast.Subscript(value=one) | ast.FormattedValue(value=one):
            return _name(one)
    return "..."


def _assigned(node: ast.AST, name: str) -> list[ast.expr]:
    match node:
        case (
            ast.Assign(targets=[ast.Name(id=target)], value=ast.expr() as value)
            | ast.AnnAssign(target=ast.Name(id=target), value=ast.expr() as value)
            | ast.NamedExpr(target=ast.Name(id=target), value=value)
        ) if target == name:
            return [value]
    return []


def _parameters(function: ast.FunctionDef) -> set[str]:
    every = function.args
    return {one.arg for one in (*every.posonlyargs, *every.args, *every.kwonlyargs)}


def _joined(parts: Parts) -> Parts:
    """Neighbouring texts as one, neighbouring holes as one."""
    joined: list[str | Hole] = []
    for is_text, group in itertools.groupby((part for part in parts if part != ""), lambda part: isinstance(part, str)):
        few = list(group)
        joined.append("".join(map(str, few)) if is_text else few[0])
    return tuple(joined)
