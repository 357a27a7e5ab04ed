"""A run of several processes in a store: real processes on gloo, started by torchrun, and a real server."""

from __future__ import annotations

import pytest

import holdfast
from holdfast.runs.catalog import scan
from tests.distributed.launching import torchrun
from tests.distributed.wrapped import Net
from tests.remote.servers import Bucket

SCRIPT = "../remote/stored_together.py"


@pytest.mark.timeout(180)
def test_two_ranks_save_resume_fail_and_fall_back_in_a_store(bucket: Bucket) -> None:
    said = torchrun(2, SCRIPT, "resume,failing,damaged", bucket.url, timeout=170)
    assert said.count("done") == 6
    assert bucket.uploads() == 0


@pytest.mark.timeout(180)
def test_another_number_of_ranks_goes_on_in_a_store(bucket: Bucket) -> None:
    torchrun(3, SCRIPT, "leave", bucket.url)
    assert "was saved by 3 processes and goes on in 2" in torchrun(2, SCRIPT, "go_on", bucket.url)


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("where", "steps"),
    [
        ("1:upload", [1]),
        ("0:upload", [1]),
        ("1:after-upload", [1]),
        ("0:create", [1]),
        ("0:after-create", [1, 2]),
    ],
)
def test_a_rank_that_is_killed_leaves_the_last_checkpoint_in_a_store(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, where: str, steps: list[int]
) -> None:
    monkeypatch.setenv("KILLED", where)
    with pytest.raises(AssertionError, match="SIGKILL"):
        torchrun(2, SCRIPT, "killed", bucket.url)
    root = f"{bucket.url}/killed/run"
    assert [one.step for one in scan(root).checkpoints] == steps
    assert holdfast.verify(root).status == "OK"
    with holdfast.Run(root, model=Net()) as run:  # another program, alone, on the same machine
        run.save(step=3)
    assert [one.step for one in scan(root).readable] == [*steps, 3]
    used = {one.manifest.data for one in scan(root).readable if one.manifest}
    data = {"/".join(key.split("/")[2:4]) for key in bucket.names("killed/run/") if key.count("/") == 4}
    assert data == used, "what the killed ones had uploaded is gone"
    assert holdfast.verify(root).status == "OK"
