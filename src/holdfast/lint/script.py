"""A parsed script and what rules ask of it: who calls what, what a name was given, what is around a line."""

from __future__ import annotations

import ast
import io
import itertools
import re
import warnings
from collections import defaultdict
from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

from holdfast.errors import RefusedFile, UnknownFormat
from holdfast.lint.source import Source
from holdfast.state.paths import printable

Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
Loop = ast.For | ast.AsyncFor | ast.While
Placed = ast.expr | ast.stmt
"""What has a line and a column."""

_USUAL = {
    "DDP": "torch.nn.parallel.DistributedDataParallel",
    "DataLoader": "torch.utils.data.DataLoader",
    "F": "torch.nn.functional",
    "lr_scheduler": "torch.optim.lr_scheduler",
    "nn": "torch.nn",
    "np": "numpy",
    "optim": "torch.optim",
}
"""What these names mean in a fragment that does not show its imports."""


MOST_VALUES = 8
"""Of a name's values, and of a function's calls, so many are looked at: a script that is an attack has thousands."""


class Call(NamedTuple):
    """One call: its node, the callee's full name (``torch.save``) or "", and the name's last part."""

    node: ast.Call
    name: str
    method: str

    @property
    def receiver(self) -> ast.expr | None:
        """What stands before the dot of a method."""
        return self.node.func.value if isinstance(self.node.func, ast.Attribute) else None

    def argument(self, position: int, keyword: str) -> ast.expr | None:
        """An argument, by its position or its name."""
        for one in self.node.keywords:
            if one.arg == keyword:
                return one.value
        plain = not any(isinstance(one, ast.Starred) for one in self.node.args[: position + 1])
        return self.node.args[position] if plain and len(self.node.args) > position else None


class Binding(NamedTuple):
    """A name is given a value; None for what can't be told, such as the items of a loop."""

    node: ast.AST
    value: ast.expr | None


class Script:
    """A parsed script.

    Args:
        source: the code; a tree that is too deep or no Python at all is an error that names the line.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self.lines = io.StringIO(source.text, newline="").readlines()
        self._bytes = [line.encode("utf-8", "surrogatepass") for line in self.lines]
        self._starts = [0, *itertools.accumulate(map(len, self.lines))]
        self.tree = _parse(source)
        self.nodes: list[ast.AST] = []
        self.parent: dict[ast.AST, ast.AST] = {}
        self.scope: dict[ast.AST, ast.AST] = {}
        self._walk()
        self.aliases = dict(self._imports())
        self.bindings: dict[tuple[ast.AST, str], list[Binding]] = defaultdict(list)
        self.everywhere: dict[str, list[Binding]] = defaultdict(list)
        self._bind_names()
        self.calls = [self.call(node) for node in self.nodes if isinstance(node, ast.Call)]
        self.calls_by: dict[str, list[Call]] = defaultdict(list)
        self._index_calls()
        self.kinds: dict[tuple[ast.AST, str], str | None] = {}
        self._bound: dict[ast.AST, frozenset[str]] = {}
        self.functions = {n.name: n for n in self.nodes if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)}
        self.classes = {n.name: n for n in self.nodes if isinstance(n, ast.ClassDef)}

    def _walk(self) -> None:
        """Every node in the order of the source, with its parent and the function that it stands in."""
        todo: list[tuple[ast.AST, ast.AST]] = [(self.tree, self.tree)]
        while todo:
            node, scope = todo.pop()
            self.nodes.append(node)
            self.scope[node] = scope
            inner = node if isinstance(node, Function) else scope
            for child in reversed([*ast.iter_child_nodes(node)]):
                self.parent[child] = node
                todo.append((child, inner))

    def _imports(self) -> Iterator[tuple[str, str]]:
        yield from _USUAL.items()
        for node in self.nodes:
            if isinstance(node, ast.Import):
                for one in node.names:
                    yield (one.asname, one.name) if one.asname else (one.name.split(".")[0], one.name.split(".")[0])
            elif isinstance(node, ast.ImportFrom) and not node.level:
                for one in node.names:
                    yield one.asname or one.name, f"{node.module}.{one.name}"

    def _bind_names(self) -> None:
        for node in self.nodes:
            if isinstance(node, ast.Assign):
                for target in node.targets:
                    self._bind(node, target, node.value)
            elif isinstance(node, ast.AnnAssign | ast.NamedExpr) and node.value is not None:
                self._bind(node, node.target, node.value)
            elif isinstance(node, ast.AugAssign | ast.For | ast.AsyncFor | ast.comprehension):
                self._bind(node, node.target, None)
            elif isinstance(node, ast.withitem) and node.optional_vars is not None:
                self._bind(node, node.optional_vars, node.context_expr)

    def _bind(self, node: ast.AST, target: ast.expr, value: ast.expr | None) -> None:
        if isinstance(target, ast.Tuple | ast.List):
            pairs = value.elts if isinstance(value, ast.Tuple | ast.List) else []
            matched = len(pairs) == len(target.elts)
            for at, one in enumerate(target.elts):
                self._bind(node, one, pairs[at] if matched else None)
            return
        key = self.key(target)
        if key:
            self.bindings[self.scope[node], key].append(Binding(node, value))
            self.everywhere[key].append(Binding(node, value))

    def call(self, node: ast.Call) -> Call:
        """A call with the names in it."""
        name = self.name(node.func)
        method = node.func.attr if isinstance(node.func, ast.Attribute) else name.rsplit(".", 1)[-1]
        return Call(node, name, method)

    def _index_calls(self) -> None:
        """The calls by the last part of their name, and by what stands before it: ``save``, ``model.``."""
        for call in self.calls:
            self.calls_by[call.method].append(call)
            before = self.key(call.receiver)
            if before:
                self.calls_by[f"{before}."].append(call)

    @cached_property
    def read(self) -> dict[str, list[ast.Name]]:
        """Where each plain name is read."""
        found: dict[str, list[ast.Name]] = defaultdict(list)
        for node in self.nodes:
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
                found[node.id].append(node)
        return found

    @cached_property
    def following(self) -> dict[ast.AST, ast.stmt]:
        """The statement after each one, in the same list."""
        return {one: after for suite in self.suites() for one, after in itertools.pairwise(suite)}

    def bound_in(self, node: ast.AST) -> frozenset[str]:
        """The names that are given a value below a node, such as a loop."""
        if node not in self._bound:
            names = (n for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store))
            self._bound[node] = frozenset(n.id for n in names)
        return self._bound[node]

    def key(self, node: ast.AST | None) -> str:
        """``self.model`` as it is written; "" for what is no chain of names."""
        parts: list[str] = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""

    def name(self, node: ast.AST | None) -> str:
        """The full name behind ``node``: ``torch.optim.SGD`` for ``optim.SGD``; "" for what is no chain of names."""
        first, dot, rest = self.key(node).partition(".")
        return self.aliases.get(first, first) + dot + rest

    def text(self, node: Placed) -> str:
        """The source of a node on one line."""
        first, last = node.lineno - 1, (node.end_lineno or node.lineno) - 1
        parts = self._bytes[first : last + 1]
        parts[-1] = parts[-1][: node.end_col_offset]
        parts[0] = parts[0][node.col_offset :]
        return re.sub(r"\s*[\r\n]\s*", " ", b"".join(parts).decode("utf-8", "replace"))

    def offset(self, line: int, column: int) -> int:
        """Characters before a place, which ast gives as a line and the bytes in it."""
        before = self._bytes[line - 1][:column].decode("utf-8", "surrogatepass")
        return self._starts[line - 1] + len(before)

    def values(self, node: ast.expr) -> list[Binding]:
        """What the name was given: in its own function, else around it; an attribute anywhere in the script."""
        key = self.key(node)
        if "." in key:
            return self.everywhere.get(key, [])[:MOST_VALUES]
        scope = self.scope[node]
        while key:
            found = self.bindings.get((scope, key))
            if found or scope is self.tree or self.is_parameter(scope, key):
                return (found or [])[:MOST_VALUES]
            scope = self.scope[scope]
        return []

    def is_parameter(self, function: ast.AST, name: str) -> bool:
        """Whether a function has a parameter of this name."""
        return isinstance(function, Function) and any(one.arg == name for one in parameters(function))

    def around(self, node: ast.AST) -> Iterator[ast.AST]:
        """What a node stands in, innermost first, up to its function."""
        scope = self.scope[node]
        while node is not scope and node in self.parent:
            node = self.parent[node]
            yield node

    def loop(self, node: ast.AST) -> Loop | None:
        """The innermost loop around a node, in its function."""
        return next((one for one in self.around(node) if isinstance(one, Loop)), None)

    def statement(self, node: ast.AST) -> ast.stmt | None:
        """The statement that a node belongs to."""
        while not isinstance(node, ast.stmt):
            if node not in self.parent:
                return None
            node = self.parent[node]
        return node

    def suites(self) -> Iterator[list[ast.stmt]]:
        """Every list of statements that run one after the other."""
        for node in self.nodes:
            for field in ("body", "orelse", "finalbody"):
                suite = getattr(node, field, None)
                if isinstance(suite, list) and suite:
                    yield suite

    def calls_in(self, node: ast.AST) -> Iterator[Call]:
        """The calls below a node."""
        return (self.call(one) for one in ast.walk(node) if isinstance(one, ast.Call))

    def names_in(self, node: ast.AST) -> set[str]:
        """The plain names below a node."""
        return {one.id for one in ast.walk(node) if isinstance(one, ast.Name)}

    def calls_of(self, function: ast.AST) -> list[Call]:
        """The places where the script calls one of its own functions."""
        name = getattr(function, "name", "")
        return self.calls_by[name][:MOST_VALUES] if name else []


def parameters(function: Function) -> list[ast.arg]:
    """The parameters of a function in their order."""
    arguments = function.args
    return [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]


def constant(node: ast.AST | None) -> str | None:
    """The text of a string literal."""
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def _parse(source: Source) -> ast.Module:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the script's own escapes: not ours to tell
            return ast.parse(source.text)
    except SyntaxError as error:
        place = source.place(error.lineno or 1)
        raise UnknownFormat(f"`{printable(place)}`: is no Python: {printable(error.msg)}", file=source.file) from error
    except ValueError as error:
        raise UnknownFormat(f"`{printable(source.file)}`: is no Python: {error}", file=source.file) from error
    except (RecursionError, MemoryError) as error:
        message = f"`{printable(source.file)}`: is nested too deep to be read"
        raise RefusedFile(message, file=source.file) from error
