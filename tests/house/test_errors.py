"""The exception tree in the docstring of errors.py is the real one, and every class in it is raised."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from holdfast import errors
from tests.house.source_tree import modules

FOREIGN = ("Exception", "BaseException", "RuntimeError", "OSError", "AssertionError", "NotImplementedError")

NOT_YET: dict[str, str] = {}
"""Classes that nothing raises so far, each with the capability that will."""


def documented() -> dict[str, str]:
    """Child to parent, read from the drawing: a deeper branch belongs to the last shallower one above it."""
    parents: dict[str, str] = {}
    above: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"^[ │]+(?:[├└]─ )?([A-Z]\w+)\s", line)
        if match is None or not (above or match[1] == "HoldfastError"):
            continue
        above = [entry for entry in above if entry[0] < match.start(1)]
        if above:
            parents[match[1]] = above[-1][1]
        above.append((match.start(1), match[1]))
    return parents


def real() -> dict[str, str]:
    classes = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, errors.HoldfastError)]
    return {c.__name__: c.__base__.__name__ for c in classes if c is not errors.HoldfastError and c.__base__}


def test_the_drawing_is_the_tree() -> None:
    assert documented() == real()


def test_every_class_has_an_exit_code_of_the_table() -> None:
    codes = {name: getattr(errors, name).exit_code for name in real()}
    assert set(codes.values()) <= {1, 2, 3, 4, 5}, codes


def test_every_class_is_raised_somewhere() -> None:
    named = {
        node.id if isinstance(node, ast.Name) else node.attr
        for module in modules()
        if module.room not in ("errors", "__init__")
        for call in ast.walk(module.tree)
        if isinstance(call, ast.Call)
        for node in [call.func]
        if isinstance(node, ast.Name | ast.Attribute)
    }
    bases = set(real().values())
    unraised = set(real()) - named - bases
    assert unraised == set(NOT_YET), (
        f"raised by nothing: {sorted(unraised - set(NOT_YET))}; raised by now: {sorted(set(NOT_YET) - unraised)}"
    )


def test_nothing_else_is_raised() -> None:
    """What a caller meets is a HoldfastError. Private functions, and those whose docstring says so, may raise
    ValueError or TypeError to a caller that adds the file and the path. The drop-in raises what torch raises, since
    programs catch that by type and text."""
    found = []
    for module in modules():
        for functions, node in _raises(module.tree, ()) if module.room != "compat" else ():
            name = ast.unparse(node.exc.func) if isinstance(node.exc, ast.Call) else ""
            inner = len(functions) > 1 or any(function.name.startswith("_") for function in functions)
            said = any(name in (ast.get_docstring(function) or "") for function in functions)
            if name in FOREIGN or (name in ("ValueError", "TypeError") and not inner and not said):
                found.append(f"{module.at(node)}: raises {name}; use the class of holdfast.errors that fits")
    assert not found, "\n".join(found)


def _raises(
    node: ast.AST, functions: tuple[ast.FunctionDef, ...]
) -> Iterator[tuple[tuple[ast.FunctionDef, ...], ast.Raise]]:
    """Every raise with the functions it stands in, outermost first."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Raise):
            yield functions, child
        yield from _raises(child, (*functions, child) if isinstance(child, ast.FunctionDef) else functions)
