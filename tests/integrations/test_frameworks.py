"""What the four have in common: examples that run, an import that says what is missing, a table that is true."""

from __future__ import annotations

import ast
import doctest
import importlib
import importlib.util
import sys
from pathlib import Path

import pytest

from holdfast.errors import MissingExtra
from tests.docs.pages import ROOT

FRAMEWORKS = {
    "lightning": ("lightning.fabric.plugins.io.checkpoint_io", "this needs lightning, which can't be imported here"),
    "accelerate": ("accelerate", "this needs accelerate, which can't be imported here"),
    "transformers": ("transformers", "this needs transformers, which can't be imported here"),
    "ignite": ("ignite.distributed", "this needs pytorch-ignite, which can't be imported here"),
}
"""By file: a module of the framework that it imports, and what it says when that is not there."""
ROOTS = {
    "lightning": "lightning.py",
    "lightning_fabric": "lightning.py",
    "pytorch_lightning": "lightning.py",
    "accelerate": "accelerate.py",
    "transformers": "transformers.py",
    "ignite": "ignite.py",
}
"""Who may import which package."""


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_a_framework_that_is_not_there_is_named_with_the_line_to_type(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, said = FRAMEWORKS[name]
    package = said.split()[2].rstrip(",")
    monkeypatch.setitem(sys.modules, module, None)
    file = ROOT / f"src/holdfast/integrations/{name}.py"
    spec = importlib.util.spec_from_file_location(f"fresh_{name}", file)
    assert spec is not None
    assert spec.loader is not None
    with pytest.raises(MissingExtra, match=rf"{said} \(.*\): pip install -U {package}$"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


@pytest.mark.parametrize("name", ["lightning", "accelerate", "ignite"])
def test_the_examples_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(f"holdfast.integrations.{name}")
    done = doctest.testmod(module)
    assert done.attempted >= 4
    assert done.failed == 0


def test_a_framework_is_imported_by_its_own_file_only() -> None:
    imported = {}
    for file in (ROOT / "src/holdfast").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for root in {name.partition(".")[0] for name in names} & ROOTS.keys():
                imported.setdefault(root, set()).add(file.name)
    assert imported == {root: {file} for root, file in ROOTS.items()}


def test_the_page_names_the_versions_that_the_tests_pass_with() -> None:
    page = (ROOT / "docs/integrations.md").read_text(encoding="utf-8")
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    for name, shown in (("Lightning", "lightning"), ("Accelerate", "accelerate"), ("transformers", "transformers")):
        major, minor, *_ = pinned[shown].split(".")
        assert f"{name} {major}.{minor}" in page
    assert f"Ignite {pinned['pytorch-ignite']}" in page
