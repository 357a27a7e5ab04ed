"""The examples in docstrings run and print what they say."""

from __future__ import annotations

import doctest
import importlib
import inspect
import operator
from pathlib import Path

import pytest

import holdfast


def documented() -> list[str]:
    """Public names, and those of public modules: ``surgery.rename``."""
    names = []
    for name in holdfast.__all__:
        thing = getattr(holdfast, name)
        inner = thing.__all__ if inspect.ismodule(thing) else ()
        names += [f"{name}.{one}" for one in inner] or [name]
    return sorted(name for name in names if not name.startswith("__"))


@pytest.mark.parametrize("name", documented())
def test_the_example_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seeded: int) -> None:
    monkeypatch.chdir(tmp_path)
    thing = operator.attrgetter(name)(holdfast)
    module = importlib.import_module(thing.__module__)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    report: list[str] = []
    tries = 0
    finder = doctest.DocTestFinder(recurse=inspect.isclass(thing))
    for test in finder.find(thing, name, module=module, globs={name: thing}):
        tries += len(test.examples)
        runner.run(test, out=report.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(report)
    if inspect.isfunction(thing):
        assert tries, f"holdfast.{name} has no example"
