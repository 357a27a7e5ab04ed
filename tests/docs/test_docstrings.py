"""The examples in docstrings run and print what they say."""

from __future__ import annotations

import doctest
import importlib
import inspect
from pathlib import Path

import pytest

import holdfast


def documented() -> list[str]:
    return sorted(name for name in holdfast.__all__ if not name.startswith("__"))


@pytest.mark.parametrize("name", documented())
def test_the_example_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seeded: int) -> None:
    monkeypatch.chdir(tmp_path)
    thing = getattr(holdfast, name)
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
