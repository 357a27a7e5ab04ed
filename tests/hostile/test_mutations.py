"""Changed files through every verb: refused by name or read, never a crash, never read otherwise than torch does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import holdfast
from tests.hostile import mutations


def test_changed_files_are_refused_by_name_or_read_as_torch_does(repository: Path, tmp_path: Path) -> None:
    mutations.judge(mutations.fuzzed(repository, tmp_path, seed=1, seconds=15), enough=100)


def test_the_search_finds_what_it_looks_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A positive control: an error of another class, a control character and a false value."""

    def refuse() -> None:
        raise holdfast.HoldfastError("moves the cursor \x1b[2J")

    def verbs(_: Path) -> Iterator[tuple[str, Callable[[], Any]]]:
        yield "load", lambda: {"w": 1}
        yield "open", lambda: {}["missing"]
        yield "scan", refuse

    monkeypatch.setattr(mutations, "every_verb", verbs)
    with closing(mutations.Trial(tmp_path)) as trial:
        trial.one(7, "torch.pt", mutations.made_by_torch({"w": 2}))
    assert [line.split(": ")[0] for line in trial.bad] == ["7 torch.pt open", "7 torch.pt scan", "7 torch.pt"]
    assert "KeyError" in trial.bad[0]
    assert "both read it, and differ" in trial.bad[2]
