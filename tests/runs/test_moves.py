from __future__ import annotations

import datetime
import fcntl
from pathlib import Path

from holdfast.runs.catalog import scan
from holdfast.runs.layout import step_name
from holdfast.runs.moves import prune, quarantine, sweep_run
from holdfast.runs.retention import KeepLast, plan_prune
from holdfast.runs.run_file import read_pins, remove_pin, write_pin
from tests.runs.hand_made import commit

UNFINISHED = ".paper.0123456789abcdef.partial"


def test_the_next_writer_sweeps_every_folder_of_the_run(root: Path) -> None:
    for step in (1, 2):
        commit(root, step)
    write_pin(root, "paper", 1)
    reasons = Path(quarantine(root, 2, "flipped"))
    left = [root / "pins" / UNFINISHED, reasons / ".reason.json.0123456789abcdef.partial"]
    for file in left:
        file.write_bytes(b"half")
    (root / ".step-00000003.partial").mkdir()
    sweep_run(root)
    assert not [path for path in root.rglob(".*") if path.name != ".lock"]
    assert read_pins(root) == {"paper": 1}
    assert scan(root).quarantined == ("step-00000002",)


def test_a_pin_that_a_living_process_is_writing_stays(root: Path) -> None:
    commit(root, 1)
    (root / "pins").mkdir()
    with (root / "pins" / UNFINISHED).open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        sweep_run(root)
        assert (root / "pins" / UNFINISHED).exists()
    sweep_run(root)
    assert not (root / "pins" / UNFINISHED).exists()


def test_a_removed_pin_leaves_nothing(root: Path) -> None:
    commit(root, 1)
    write_pin(root, "paper", 1)
    remove_pin(root, "paper")
    assert list((root / "pins").iterdir()) == []


def test_a_prune_finishes_what_an_earlier_one_could_not_delete(root: Path) -> None:
    for step in (1, 2, 3):
        commit(root, step)
    (root / step_name(1)).rename(root / f".{step_name(1)}.deleting")
    (root / f".{step_name(3)}.deleting").mkdir()  # of another step 3, which was saved again since
    catalog = scan(root)
    decisions = plan_prune(catalog.checkpoints, [KeepLast(2)], datetime.datetime.now(datetime.UTC))
    assert prune(catalog, decisions) == []
    assert not (root / f".{step_name(1)}.deleting").exists()
    assert [one.step for one in scan(root).readable] == [2, 3]
