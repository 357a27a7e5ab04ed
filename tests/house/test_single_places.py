"""Some things happen in one place only, so that one reader can check them."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path

import pytest

from holdfast.spec import DTYPES
from tests.house.source_tree import PACKAGE, Module, calls, modules, parse

ON_DISK = {"rename", "renames", "unlink", "rmdir", "rmtree", "removedirs", "link", "symlink", "hardlink_to"}
TENSORS_FROM_BYTES = {"frombuffer", "from_file", "from_buffer", "fromfile", "from_blob", "memmap", "UntypedStorage"}


def changes_names(module: Module) -> list[str]:
    """Calls that rename or remove a file. ``str.replace`` takes two arguments, ``Path.replace`` one."""
    found = []
    for node, name, callee in calls(module):
        if callee == name and name not in imported_from_os(module):
            continue
        by_os = callee in ("os.replace", "os.remove", "shutil.move")
        by_path = name == "replace" and len(node.args) == 1 and not node.keywords
        if name in ON_DISK or by_os or by_path:
            found.append(f"{module.at(node)}: {callee}() changes names on disk; call storage.atomic instead")
    return found


def imported_from_os(module: Module) -> set[str]:
    """Names that stand alone in a call and are still the operating system's: ``from os import rename``."""
    nodes = (node for node in ast.walk(module.tree) if isinstance(node, ast.ImportFrom))
    return {alias.asname or alias.name for node in nodes if node.module in ("os", "shutil") for alias in node.names}


def makes_tensors(module: Module) -> list[str]:
    return [
        f"{module.at(node)}: {callee}() makes a tensor or array out of bytes; that is serialization's"
        for node, name, callee in calls(module)
        if name in TENSORS_FROM_BYTES
    ]


def lists_dtypes(module: Module) -> list[str]:
    """Literals with three or more dtypes in them: a second table, which will differ from the first."""
    found = []
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Dict):
            parts: list[ast.expr] = [part for part in (*node.keys, *node.values) if part is not None]
        elif isinstance(node, ast.List | ast.Set | ast.Tuple):
            parts = node.elts
        else:
            continue
        names = {_dtype(part) for part in parts} - {None}
        if len(names) >= 3:
            found.append(f"{module.at(node)}: lists dtypes ({', '.join(sorted(map(str, names)))}); ask spec.DTYPES")
    return found


def _dtype(node: ast.expr) -> str | None:
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in set(DTYPES) - {"bool"}:
        return node.value
    if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "torch" and node.attr in DTYPES:
        return node.attr
    return None


def decides_strictness(module: Module) -> list[str]:
    return [
        f"{module.at(node)}: load_state_dict(strict=...): strictness is decided in policy/match.py"
        for node, name, _ in calls(module)
        if name == "load_state_dict" and any(keyword.arg == "strict" for keyword in node.keywords)
    ]


PLACES: list[tuple[Callable[[Module], list[str]], dict[str, str]]] = [
    (
        changes_names,
        {
            "storage.atomic": "the place",
            "storage.syscalls": "the calls it makes, so that a test can stop each of them",
            "storage.filesystem": "tries whether storage.atomic's folders get links here",
            "integrations.transformers": "links in a folder of its own, for the trainer to read a checkpoint through",
        },
    ),
    (
        makes_tensors,
        {
            "serialization": "the place",
            "export.wire": "what a process that we started answers: no file, and its lengths are checked",
            "state.foreign": "numpy arrays are plain values, made of bytes that were checked to have their length",
        },
    ),
    (
        lists_dtypes,
        {
            "spec": "the place",
            "policy.dtype": "which dtype holds every value of which: a relation, not a list",
            "formats.arrays": "numpy's own codes",
            "export.parity": "how far each may be off: a measure of its own",
            "serialization.kinds": "the integers behind quantized dtypes",
        },
    ),
    (decides_strictness, {"objects.module": "rolling back: extra state has no other way in, and all else is in place"}),
]
"""Each check with the modules where it may happen, and why there."""


@pytest.mark.parametrize(("check", "places"), PLACES, ids=[check.__name__ for check, _ in PLACES])
def test_only_one_place(check: Callable[[Module], list[str]], places: dict[str, str]) -> None:
    elsewhere = [m for m in modules() if not any(f"{m.name}.".startswith(f"holdfast.{place}.") for place in places)]
    found = [line for module in elsewhere for line in check(module)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("check", "line"),
    [
        (changes_names, "os.replace(a, b)"),
        (changes_names, "from os import rename\nrename(a, b)"),
        (changes_names, "partial.replace(target)"),
        (changes_names, "syscalls.unlink(path)"),
        (makes_tensors, "torch.frombuffer(data, dtype=dtype)"),
        (lists_dtypes, "SIZES = {'float32': 4, 'float16': 2, 'bfloat16': 2}"),
        (lists_dtypes, "if dtype in (torch.float32, torch.float16, torch.bfloat16): pass"),
        (decides_strictness, "net.load_state_dict(state, strict=False)"),
    ],
)
def test_the_check_sees_what_is_wrong(check: Callable[[Module], list[str]], line: str) -> None:
    assert check(parse(line, Path(PACKAGE / "runs" / "layout.py")))


@pytest.mark.parametrize("line", ["name = text.replace('a', 'b')", "rename(key)"])
def test_text_is_no_file(line: str) -> None:
    assert changes_names(parse(line, PACKAGE / "runs" / "layout.py")) == []
