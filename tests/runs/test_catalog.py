from __future__ import annotations

import datetime
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from holdfast.errors import NotFound, StorageError
from holdfast.runs import catalog as catalog_module
from holdfast.runs.catalog import best, by_metric, choose_resume, is_run, metric_of, scan
from holdfast.runs.layout import step_name
from holdfast.runs.manifest import Manifest, encode
from holdfast.runs.opening import open_any
from holdfast.runs.run_file import BestRule, RunFile, write_run_file
from holdfast.runs.standing import scan_run, standing
from holdfast.runs.verify import verify
from tests.runs.hand_made import commit, facts, flip

TREE = {"epoch": 1}
NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
LOW, HIGH = BestRule("loss", "min"), BestRule("loss", "max")


def test_steps_are_ordered_as_numbers_whatever_their_time(root: Path) -> None:
    for step in (9, 100_000_000, 10, 1):
        commit(root, step, TREE)
    os.utime(root / step_name(1), (2**31, 2**31))
    catalog = scan(root)
    assert [one.step for one in catalog.checkpoints] == [1, 9, 10, 100_000_000]
    assert choose_resume(catalog).step == 100_000_000


def test_what_is_no_checkpoint_is_passed_over_or_named(root: Path) -> None:
    commit(root, 1, TREE)
    for name in (
        "notes",
        "step-2",
        "step-000000003",
        ".step-00000004.partial",
        ".step-00000005.deleting",
        "step-00000006",
    ):
        (root / name).mkdir()
    (root / "step-00000007").write_text("a file")
    for name in ("quarantine/step-00000008", "superseded/step-00000009", "superseded/other"):
        (root / name).mkdir(parents=True)
    catalog = scan(root)
    assert [one.step for one in catalog.checkpoints] == [1, 6, 7]
    assert [one.step for one in catalog.readable] == [1]
    assert catalog.partial == (4, 5)
    assert catalog.quarantined == ("step-00000008",)
    assert catalog.superseded == ("step-00000009",)
    assert "was not committed by holdfast" in (catalog.checkpoints[1].problem or "")
    assert catalog.find(6) is catalog.checkpoints[1]
    assert catalog.find(5) is None


def test_a_damaged_manifest_is_listed_with_the_reason_and_not_resumed(root: Path) -> None:
    commit(root, 1, TREE)
    flip(commit(root, 2, TREE) / "manifest.json", 40)
    (root / ".step-00000003.partial").mkdir()
    choice = choose_resume(scan(root))
    assert choice.step == 1
    assert choice.reasons[0] == "step 1 is the newest of 1 checkpoint"
    assert "step 2 is passed over" in choice.reasons[1]
    assert choice.reasons[2] == "step 3 was never committed"


def test_a_folder_that_was_renamed_is_not_taken_for_another_step(root: Path) -> None:
    commit(root, 1, TREE).rename(root / step_name(2))
    (listed,) = scan(root).checkpoints
    assert listed.manifest is None
    assert listed.problem == "its manifest says step 1: the folder was renamed or copied"


def test_no_checkpoint_to_go_on_from_says_why(root: Path) -> None:
    root.mkdir()
    assert choose_resume(scan(root)).reasons == ("no checkpoint yet: a fresh start",)
    (root / step_name(3)).mkdir()
    choice = choose_resume(scan(root))
    assert (choice.step, choice.stops) == (None, True)
    assert choice.reasons[0] == "no checkpoint can be read: a training stops here, it does not begin anew"
    assert choice.reasons[1].startswith("step 3 is passed over")


def test_best_is_never_nan_and_zero_is_a_value_and_ties_go_to_the_later(root: Path) -> None:
    for step, loss in enumerate((float("nan"), 0.5, 0.0, 0.0, None, 0.7, float("nan"))):
        commit(root, step, TREE, metrics={"loss": loss})
    commit(root, 50, TREE)
    listed = scan(root).readable
    low, high = best(listed, LOW), best(listed, HIGH)
    assert low is not None
    assert low.step == 3
    assert high is not None
    assert high.step == 5
    assert [one.step for one in by_metric(listed, LOW)] == [3, 2, 1, 5]
    assert best(listed, BestRule("accuracy", "max")) is None
    assert metric_of(listed[0], "loss") is None


def test_infinities_are_ordered(root: Path) -> None:
    for step, loss in enumerate((float("inf"), 1.0, float("-inf"))):
        commit(root, step, TREE, metrics={"loss": loss})
    assert [one.step for one in by_metric(scan(root).readable, LOW)] == [2, 1, 0]


def test_size_is_that_of_the_files(root: Path) -> None:
    folder = commit(root, 1)
    files = [item for item in folder.iterdir() if item.name != "manifest.json"]
    assert scan(root).checkpoints[0].size == sum(item.stat().st_size for item in files)


def test_is_run(root: Path, tmp_path: Path) -> None:
    assert not is_run(tmp_path / "gone")
    assert not is_run(tmp_path)
    commit(root, 1, TREE)
    assert is_run(root)
    (tmp_path / "fresh").mkdir()
    (tmp_path / "fresh" / "run.json").write_text("{}")
    assert is_run(tmp_path / "fresh")


@pytest.mark.parametrize("names", [[".lock"], [".lock", ".run.json.4039.partial"], [".step-00000000.partial", "x"]])
def test_a_run_that_is_about_to_begin_is_one(names: list[str], tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).touch()
    assert is_run(tmp_path)
    assert verify(tmp_path).items == ()
    with pytest.raises(NotFound, match="no checkpoint"):
        open_any(tmp_path)


def test_a_lock_beside_other_files_makes_no_run(tmp_path: Path) -> None:
    for name in (".lock", "data.bin"):
        (tmp_path / name).touch()
    assert not is_run(tmp_path)


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="gone`: no such folder"):
        scan(tmp_path / "gone")
    (tmp_path / "file").write_text("x")
    with pytest.raises(NotFound, match="file`: no such folder"):
        scan(tmp_path / "file")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(StorageError, match="loop`: can't be listed: Too many levels"):
        scan(tmp_path / "loop")


def test_a_step_that_is_pruned_meanwhile_is_not_listed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit(root, 1, TREE)
    commit(root, 2, TREE)
    read = catalog_module.read_manifest

    def prune_first(folder: str) -> Manifest:
        if folder.endswith(step_name(1)):
            shutil.rmtree(folder)
        return read(folder)

    monkeypatch.setattr(catalog_module, "read_manifest", prune_first)
    assert [one.step for one in scan(root).checkpoints] == [2]


def test_a_file_where_a_folder_is_expected_hides_nothing(root: Path) -> None:
    commit(root, 1, TREE)
    for name in ("quarantine", "superseded", "pins"):
        (root / name).write_text("x")
    assert [one.step for one in scan(root).readable] == [1]
    assert scan(root).quarantined == ()


def test_a_list_opens_each_manifest_once_and_nothing_else(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """5,000 are listed in well under a second: by one look, one open and one read each."""
    write_run_file(root, RunFile("r", NOW, best="loss:min", keep="last:3"))
    for step in range(200):
        folder = root / step_name(step)
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_bytes(encode(facts(step, metrics={"loss": 1.0 / (step + 1)})))
    opened: Counter[str] = Counter()
    looked: Counter[str] = Counter()
    open_, stat, preadv = os.open, os.stat, os.preadv
    reads = []

    def counted_open(path: Any, *rest: Any, **named: Any) -> int:
        opened[os.path.basename(path)] += 1
        return open_(path, *rest, **named)

    def counted_stat(path: Any, **named: Any) -> os.stat_result:
        looked[os.path.basename(path)] += 1
        return stat(path, **named)

    def counted_read(fd: int, *rest: Any) -> int:
        reads.append(fd)
        return preadv(fd, *rest)

    monkeypatch.setattr(os, "open", counted_open)
    monkeypatch.setattr(os, "stat", counted_stat)
    monkeypatch.setattr(os, "preadv", counted_read)
    run = standing(scan_run(root), NOW)
    monkeypatch.undo()
    assert len(run.catalog.readable) == len(run.decisions) == 200
    assert opened == {"manifest.json": 200, "run.json": 1}
    assert looked["manifest.json"] == 200
    assert len(reads) == 201
