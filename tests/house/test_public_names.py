"""The public face: what it is called, how much of it there is, and that each name explains itself."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys

import pytest

import holdfast

NAMES = {
    "Exact",
    "HoldfastError",
    "KeepBest",
    "KeepEvery",
    "KeepLast",
    "KeepSize",
    "LoadReport",
    "Opaque",
    "Pinned",
    "Record",
    "Run",
    "Warm",
    "__version__",
    "build",
    "compat",
    "convert",
    "diff",
    "export",
    "load",
    "record_config",
    "open",
    "quantize",
    "rescue",
    "restore",
    "save",
    "scan",
    "snapshot",
    "summary",
    "surgery",
    "verify",
}


def test_the_public_names_are_these() -> None:
    assert set(holdfast.__all__) == NAMES
    assert len(holdfast.__all__) == len(set(holdfast.__all__)) <= 30


def test_dir_shows_them() -> None:
    assert set(dir(holdfast)) >= NAMES


def test_a_wrong_name_is_an_attribute_error_that_names_it() -> None:
    with pytest.raises(AttributeError, match="sav3"):
        _ = holdfast.sav3  # type: ignore[attr-defined]


def test_a_room_does_not_take_the_place_of_a_function() -> None:
    """``holdfast.export`` is both, and Python binds a room to its name when it is first imported."""
    code = "import holdfast.export.wire, holdfast.api\nassert holdfast.export is holdfast.api.export"
    code += "\nassert holdfast.compat.load and holdfast.surgery.rename"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    importlib.import_module("holdfast.export.report")
    assert holdfast.export is importlib.import_module("holdfast.api").export


@pytest.mark.parametrize("name", sorted(NAMES - {"__version__"}))
def test_each_name_explains_itself(name: str) -> None:
    thing = getattr(holdfast, name)
    text = inspect.getdoc(thing) or ""
    assert text.strip(), f"holdfast.{name} has no docstring"
    if inspect.isfunction(thing):
        assert ">>>" in text or "Example" in text, f"holdfast.{name} has no example"
