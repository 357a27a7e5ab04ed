"""The caller's own code, named on the command line: ``pkg.module:Net`` or ``path/to/file.py:Net``."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from typing import Any

from holdfast.errors import ArgumentError, NotFound
from holdfast.state.paths import printable


def load_factory(name: str) -> Callable[[], Any]:
    """The class or function that the caller names; importing it runs the caller's own code, and nothing of the file."""
    place, _, attribute = name.rpartition(":")
    if not place or not attribute:
        raise ArgumentError(f"{printable(name)!r}: write the model as pkg.module:Net or path/to/file.py:Net")
    sys.path.insert(0, os.getcwd())
    if place.endswith(".py"):
        spec = importlib.util.spec_from_file_location("holdfast_checked", place)
        if spec is None or spec.loader is None or not os.path.isfile(place):
            raise NotFound(f"`{printable(place)}`: no such file", file=place)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    else:
        try:
            module = importlib.import_module(place)
        except ModuleNotFoundError as reason:
            raise NotFound(f"{printable(place)!r} can't be imported from here: {reason}") from None
    found = getattr(module, attribute, None)
    if not callable(found):
        raise NotFound(f"{printable(place)!r} has no class or function {printable(attribute)!r}")
    made: Callable[[], Any] = found
    return made
