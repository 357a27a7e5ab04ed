"""Eight writers and four readers on one run, and on one file: one writes, the rest are told, no read is torn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from shutil import rmtree
from typing import Any

import pytest

import holdfast
from holdfast.errors import NotFound
from holdfast.runs.verify import verify
from tests.faults.scenarios import fill, go_on, loaded_whole, same, state

Script = Callable[..., list[dict[str, Any]]]
CLEAN = {"held", "saved", "told who", "told the pid", "whole", "not found"}


def race(script: Script, disk: Path, what: str, commits: int, timeout: int = 100) -> Counter[str]:
    """What all processes saw, added up; nothing of it may be torn."""
    *lines, last = script("racing", disk, what, commits, timeout=timeout)
    assert last["failed"] == 0
    assert last["commits"] >= commits
    seen = sum((Counter(line["seen"]) for line in lines), Counter({"killed": last["killed"]}))
    assert set(seen) <= CLEAN | {"killed"}, seen
    return seen


def race_for_a_run(script: Script, disk: Path, commits: int, timeout: int = 100) -> Counter[str]:
    seen = race(script, disk, "run", commits, timeout)
    assert seen["told the pid"] > 0.9 * seen["told who"] > 0  # the rest came while the holder was signing
    assert seen["whole"] > 5
    assert holdfast.verify(disk / "run").status == "OK"
    assert go_on(disk) is None
    return seen


def race_for_a_file(script: Script, disk: Path, commits: int, timeout: int = 100) -> Counter[str]:
    seen = race(script, disk, "file", commits, timeout)
    assert [path.name for path in disk.iterdir()] == ["a.pt"]
    assert any(same(holdfast.load(disk / "a.pt"), state(step)) for step in range(1, 61))
    return seen


def test_one_of_eight_writers_holds_the_run_and_readers_see_whole_checkpoints(
    script: Script, memory_disk: Path
) -> None:
    race_for_a_run(script, memory_disk, 12)


def test_of_eight_writers_of_one_file_the_last_one_wins(script: Script, memory_disk: Path) -> None:
    race_for_a_file(script, memory_disk, 40)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_long_race_for_a_run(script: Script, memory_disk: Path, counted: Callable[[str], None]) -> None:
    seen = race_for_a_run(script, memory_disk, 300, 600)
    assert seen["killed"] > 10
    counted(
        f"8 writers, 4 readers, one run: {seen['told who']:,} told who holds it, {seen['killed']} killed, "
        f"{seen['whole']:,} whole reads, {seen['not found']} of what was pruned, 0 torn"
    )


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_long_race_for_a_file(script: Script, memory_disk: Path, counted: Callable[[str], None]) -> None:
    seen = race_for_a_file(script, memory_disk, 2000, 600)
    counted(f"8 writers, 4 readers, one file: {seen['saved']:,} saves, {seen['whole']:,} whole reads, 0 torn")


def test_a_checkpoint_that_is_pruned_while_it_is_verified_is_not_called_damaged(tmp_path: Path) -> None:
    fill(tmp_path, 1, 2)
    with pytest.raises(NotFound, match="was deleted while it was read"):
        verify(f"{tmp_path / 'run'}@step=1", progress=rmtree)
    fill(tmp_path / "other", 1, 2)
    first = str(tmp_path / "other" / "run" / "step-00000001")
    report = verify(tmp_path / "other" / "run", progress=lambda name: rmtree(name) if name == first else None)
    assert [item.step for item in report.items] == [2]
    assert report.status == "OK"
    assert loaded_whole(f"{tmp_path / 'other' / 'run'}@last", 2) is None
