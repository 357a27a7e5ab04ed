from __future__ import annotations

import datetime
from pathlib import Path

import pytest

from holdfast.errors import StorageError
from holdfast.runs.catalog import Listed, scan
from holdfast.runs.manifest import FileRecord
from holdfast.runs.retention import KeepLast, KeepWithin
from holdfast.runs.room import advise, check_run_room
from holdfast.runs.run_file import BestRule, RunFile, write_run_file
from tests.runs.hand_made import NOON, commit, facts

DIGEST = "xxh3-128:" + "0" * 32
LOSS = BestRule("loss", "min")


def listed(*losses: float) -> list[Listed]:
    """Checkpoints of 2 GB."""
    files = {"model.safetensors": FileRecord(2 * 10**9, DIGEST)}
    return [
        Listed(step, "", facts(step, metrics={"loss": loss}, files=files, time=NOON - datetime.timedelta(days=1)))
        for step, loss in enumerate(losses, 1)
    ]


def test_the_runs_own_rules_come_first() -> None:
    found = advise("runs/a", listed(0.5, 0.4, 0.3), [KeepWithin(3600)], NOON)
    assert found == (
        "holdfast prune runs/a would free up to 4 GB (--dry-run shows what goes), or make room on the disk, or save "
        "the run on another one"
    )


def test_else_the_strictest_that_keep_the_best_and_the_pins() -> None:
    losses = listed(0.1, 0.4, 0.3, 0.2)
    found = advise("my runs/a", losses, [KeepLast(4)], NOON, bests=[LOSS], pins={"paper": 2})
    assert found.startswith("holdfast prune 'my runs/a' --keep last:1 would free up to 2 GB (--dry-run shows what goes")
    found = advise("runs/a", losses, [], NOON)
    assert found.startswith("holdfast prune runs/a --keep last:1 would free up to 6 GB")


def test_a_run_that_has_nothing_to_spare_says_so() -> None:
    nothing = "no rule would free any of the run's 4 GB: make room on the disk, or save the run on another one"
    assert advise("runs/a", listed(0.1, 0.4), [KeepLast(1)], NOON, bests=[LOSS]) == nothing
    assert advise("runs/a", [], [], NOON).startswith("no rule would free any of the run's 0 B")


def test_the_rules_of_the_folder_are_asked_and_nothing_is_deleted(root: Path) -> None:
    for step in (1, 2, 3):
        commit(root, step, metrics={"loss": step})
    write_run_file(root, RunFile("abc123", NOON, best="loss:min"))
    check_run_room(str(root), 10)
    with pytest.raises(StorageError, match=f"are free; .* holdfast prune {root} --keep last:1 would free up to 1.* kB"):
        check_run_room(str(root), 10**18)
    (root / "run.json").write_text("{}")
    with pytest.raises(StorageError, match="would free up to"):
        check_run_room(str(root), 10**18)
    assert [one.step for one in scan(root).readable] == [1, 2, 3]
