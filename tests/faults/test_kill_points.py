"""kill -9 at every call by which a save changes the disk, and in the middle of every write, in a process of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faults.scenarios import SCENARIOS

Script = Callable[..., list[dict[str, Any]]]


def judged(lines: list[dict[str, Any]]) -> tuple[int, int]:
    """The kills and saves of a script that found nothing wrong."""
    wrong = {line["scenario"]: line["wrong"] for line in lines if line["wrong"]}
    assert wrong == {}
    return sum(line["kills"] for line in lines), sum(line["saves"] for line in lines)


def test_a_kill_leaves_the_old_or_the_new(script: Script, memory_disk: Path) -> None:
    """A few points of each scenario; the long form takes all of them."""
    lines = script("killing", memory_disk, 0, len(SCENARIOS), 6)
    assert {line["scenario"] for line in lines} == set(SCENARIOS)
    kills, _ = judged(lines)
    assert kills > 70


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("shard", range(6))
def test_kill_at_every_call(shard: int, script: Script, memory_disk: Path, counted: Callable[[str], None]) -> None:
    """Six of these kill more than 20,000 times, in more than 500 saves, each of other objects."""
    lines = script("killing", memory_disk, 1000 * shard, 2 * len(SCENARIOS) + 2, 1, timeout=1200)
    files = script("killing", memory_disk, 1000 * shard + 500, 20, 1, "single files", timeout=1200)
    kills, saves = judged(lines + files)
    assert kills > 20_000 / 6
    assert saves > 500 / 6
    counted(f"kill -9, shard {shard}: {kills:,} kills in {saves} saves, 0 lost, 0 mixed")


def test_the_check_finds_a_save_that_is_not_atomic(script: Script, memory_disk: Path) -> None:
    """The same kills, of programs that save as it should not be done."""
    in_place, deleted_first = script("killing", memory_disk, 0, 2, 1, "in place,deleted first")
    assert any("a.pt: " in wrong for wrong in in_place["wrong"]), in_place
    assert any("a.pt is gone" in wrong for wrong in deleted_first["wrong"]), deleted_first
