"""A run under a process group: real processes on gloo, started by torchrun."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.distributed.launching import alone, torchrun


@pytest.mark.timeout(180)
def test_two_ranks_save_resume_fail_and_leave_together(tmp_path: Path) -> None:
    said = torchrun(2, "run_together.py", "resume,failing,damaged,told", tmp_path)
    assert said.count("done") == 8


@pytest.mark.timeout(180)
def test_a_background_save_of_several_ranks_copies_on_step(tmp_path: Path) -> None:
    said = torchrun(2, "run_together.py", "copy_on_step,torn,erring", tmp_path)
    assert said.count("done") == 6
    assert said.count("It is saved again, and from now on everything is copied first") == 2


@pytest.mark.timeout(180)
def test_each_wrapper_is_restored_from_a_run_of_another(tmp_path: Path) -> None:
    assert torchrun(4, "run_together.py", "mixed", tmp_path).count("done") == 4


@pytest.mark.timeout(180)
@pytest.mark.parametrize(("before", "after"), [(3, 2), pytest.param(1, 3, marks=pytest.mark.long)])
def test_another_number_of_ranks_goes_on(tmp_path: Path, before: int, after: int) -> None:
    torchrun(before, "run_together.py", "leave", tmp_path)
    (tmp_path / "world" / "before").write_text(str(before))
    said = torchrun(after, "run_together.py", "go_on", tmp_path)
    assert f"was saved by {before} processes and goes on in {after}" in said


@pytest.mark.timeout(180)
def test_a_rank_that_does_not_come_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    assert torchrun(2, "run_together.py", "absent", tmp_path).count("done") == 1


@pytest.mark.timeout(180)
def test_what_a_rank_raises_fails_dcp_on_all_and_the_old_checkpoint_stays(tmp_path: Path) -> None:
    assert torchrun(3, "run_together.py", "dcp_failing", tmp_path).count("done") == 3


@pytest.mark.timeout(180)
@pytest.mark.parametrize("how", ["run", "dcp"])
def test_a_rank_that_is_killed_leaves_the_last_checkpoint(tmp_path: Path, how: str) -> None:
    found = json.loads(alone("killed.py", tmp_path, 12, how).splitlines()[-1])
    assert found["kills"] >= 4
    assert found["old"] + found["new"] == found["kills"]


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("how", ["run", "dcp"])
def test_a_rank_that_is_killed_anywhere_leaves_the_last_checkpoint(tmp_path: Path, how: str) -> None:
    found = json.loads(alone("killed.py", tmp_path, 1, how, timeout=880).splitlines()[-1])
    assert found["kills"] == found["calls"]
    assert found["old"] + found["new"] == found["kills"]
