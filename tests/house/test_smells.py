"""Habits that are cheap to check: names that say nothing, errors that are swallowed, asserts for bad input."""

from __future__ import annotations

import ast

from tests.house.source_tree import ROOT, modules

NAMELESS = {"utils", "util", "helpers", "helper", "common", "misc"}
EMPTY_ROLES = ("Manager", "Handler", "Helper")


def test_files_and_classes_are_named_for_what_they_do() -> None:
    found = [
        f"{m.file}: a file named {m.name.rsplit('.', 1)[-1]}" for m in modules() if NAMELESS & set(m.name.split("."))
    ]
    for module in modules():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ClassDef) and node.name.endswith(EMPTY_ROLES):
                found.append(f"{module.at(node)}: class {node.name} names no thing")
    assert not found, "\n".join(found)


def test_bad_input_is_an_error_and_not_an_assertion() -> None:
    found = [
        f"{module.at(node)}: assert vanishes under python -O; raise an error of holdfast.errors"
        for module in modules()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Assert) and module.room != "testing"
    ]
    assert not found, "\n".join(found)


def test_no_error_is_swallowed() -> None:
    found = [
        f"{module.at(node)}: catches everything and does not raise; name the errors that can happen"
        for module in modules()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ExceptHandler) and _catches_all(node) and not _goes_on(node)
    ]
    assert not found, "\n".join(found)


def _catches_all(node: ast.ExceptHandler) -> bool:
    return node.type is None or ast.unparse(node.type) in ("Exception", "BaseException")


def _goes_on(node: ast.ExceptHandler) -> bool:
    """Whether the handler raises, or keeps the error for someone who will."""
    raises = any(isinstance(part, ast.Raise) for part in ast.walk(node))
    kept = node.name is not None and any(isinstance(p, ast.Name) and p.id == node.name for p in ast.walk(node))
    return raises or kept


def test_nothing_is_left_for_later() -> None:
    found = [
        f"{module.file}:{number}: {mark}"
        for module in modules()
        for number, line in enumerate((ROOT / module.file).read_text(encoding="utf-8").splitlines(), 1)
        for mark in ("TODO", "FIXME", "XXX", "raise NotImplementedError")
        if mark in line
    ]
    assert not found, "\n".join(found)
