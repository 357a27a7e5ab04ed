"""Imports point inward: tests/house/layers.py says who may import whom."""

from __future__ import annotations

import sys

import pytest

from tests.house import layers
from tests.house.source_tree import PACKAGE, Module, imports, modules, parse, room_of


def violations(module: Module) -> list[str]:
    """What a module imports against the table, one line each."""
    if module.room not in layers.DIRECT:
        return [f"{module.file}: room {module.room} has no row in tests/house/layers.py; add one"]
    found = []
    for item in imports(module):
        room = room_of(item.name)
        may = layers.allowed(module.room)
        if item.inside_function or item.for_typing:
            may |= layers.INSIDE_FUNCTIONS.get(module.room, set())
        if room is not None and room not in may:
            found.append(
                f"{module.at(item.node)}: {module.room} imports {room} ({item.name}); it may see {sorted(may)}"
            )
        elif room is None and not item.inside_function and not item.for_typing:
            found += heavy(module, item.name, module.at(item.node))
    return found


def heavy(module: Module, name: str, where: str) -> list[str]:
    """A third-party import at the top of a light room that it may not have."""
    package = name.split(".")[0]
    may = layers.LIGHT_PACKAGES | (layers.FRONT_PACKAGES if module.room in layers.FRONT else set())
    if module.room not in layers.LIGHT or package in sys.stdlib_module_names or package in may:
        return []
    return [f"{where}: the light room {module.room} imports {package} at its top; move it into the function"]


def test_every_import_points_inward() -> None:
    found = [line for module in modules() for line in violations(module)]
    assert not found, "\n".join(found)


def test_the_table_has_no_cycle() -> None:
    for room in layers.DIRECT:
        for other in layers.allowed(room) - {room}:
            assert room not in layers.allowed(other), f"{room} and {other} see each other"


def test_policy_and_objects_do_not_see_each_other() -> None:
    assert "objects" not in layers.allowed("policy")
    assert "policy" not in layers.allowed("objects")
    assert not {"policy", "objects"} & layers.allowed("runs")


@pytest.mark.parametrize(
    ("file", "line", "says"),
    [
        ("storage/atomic.py", "from holdfast.formats.base import Segment", "storage imports formats"),
        ("policy/match.py", "from holdfast import objects", "policy imports objects"),
        ("runs/layout.py", "from ..transfer import restoring", "runs imports transfer"),
        ("cli/ls.py", "from holdfast import api", "cli imports api"),
        ("formats/pickles.py", "import torch.serialization", "imports torch at its top"),
        ("storage/digest.py", "import rich", "imports rich at its top"),
        ("attic/old.py", "import os", "has no row"),
    ],
)
def test_the_check_sees_what_is_wrong(file: str, line: str, says: str) -> None:
    assert any(says in text for text in violations(parse(line, PACKAGE / file)))


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("cli/ls.py", "def run():\n    from holdfast import api"),
        ("runs/layout.py", "from .manifest import Manifest"),
        ("formats/pickles.py", "def probe():\n    import torch"),
        ("__init__.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch"),
    ],
)
def test_the_check_lets_good_imports_pass(file: str, line: str) -> None:
    assert violations(parse(line, PACKAGE / file)) == []
