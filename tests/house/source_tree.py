"""The package's source, parsed once, for the checks beside this file."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.house import layers

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "holdfast"


class Module(NamedTuple):
    """One source file: its dotted name, its room, its path from the repository's root, its tree."""

    name: str
    room: str
    file: str
    tree: ast.Module
    is_package: bool = False

    def at(self, node: ast.AST) -> str:
        return f"{self.file}:{getattr(node, 'lineno', 1)}"


class Import(NamedTuple):
    """One imported name, where it stands, and when it happens."""

    name: str
    node: ast.AST
    inside_function: bool
    for_typing: bool


@functools.cache
def modules() -> list[Module]:
    """Every module of the package."""
    return [parse(file.read_text(encoding="utf-8"), file) for file in sorted(PACKAGE.rglob("*.py"))]


def parse(text: str, file: Path) -> Module:
    """One module out of its source; ``file`` says which room it is in."""
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    is_package = parts[-1] == "__init__" and len(parts) > 1
    name = ".".join(("holdfast", *(parts[:-1] if is_package else parts)))
    return Module(name, parts[0], str(file.relative_to(ROOT)), ast.parse(text), is_package or parts == ("__init__",))


def imports(module: Module) -> Iterator[Import]:
    """Every import of a module, also those inside functions and under TYPE_CHECKING; relative ones resolved."""
    yield from _imports(module, module.tree, inside=False, typing=False)


def _imports(module: Module, node: ast.AST, *, inside: bool, typing: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, child, inside, typing) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            base = _absolute(module, child)
            # `from holdfast import errors` names a room; `from holdfast.spec import DType` names something inside one.
            names = [f"{base}.{alias.name}" for alias in child.names] if base == "holdfast" else [base]
            yield from (Import(name, child, inside, typing) for name in names)
        else:
            in_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            is_typing = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            yield from _imports(module, child, inside=inside or in_function, typing=typing or is_typing)


def _absolute(module: Module, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    parts = module.name.split(".")
    if module.name == "holdfast.__init__":
        parts = ["holdfast"]
    elif not module.is_package:
        parts = parts[:-1]
    base = parts[: len(parts) - (node.level - 1)]
    return ".".join([*base, *(node.module or "").split(".")]).rstrip(".")


def room_of(name: str) -> str | None:
    """The room of an imported name; None when it is not ours; ``__init__`` for a public name of the package."""
    first, _, rest = name.partition(".")
    if first != "holdfast" or rest == "__version__":  # the number is there before any room is
        return None
    room = rest.split(".")[0]
    is_room = room in layers.DIRECT or (PACKAGE / room).is_dir() or (PACKAGE / f"{room}.py").is_file()
    return room if room and is_room else "__init__"


def calls(module: Module) -> Iterator[tuple[ast.Call, str, str]]:
    """Every call of a module: the node, the called name's last part, and the whole callee as text."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call):
            callee = ast.unparse(node.func)
            yield node, callee.rsplit(".", 1)[-1], callee
