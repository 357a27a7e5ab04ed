"""What `holdfast view` writes, without a browser; tests/report looks at it in one."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import holdfast as library
from holdfast.cli import view
from tests.cli.conftest import Result
from tests.house.test_light_wing import BLOCKED
from tests.runs.hand_made import flip

Holdfast = Callable[..., Result]


def data_of(page: Path) -> dict[str, Any]:
    text = re.search(r'id="data">(.*?)</script>', page.read_text(), re.DOTALL)[1]
    return json.loads(text)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    library.save({"net": {"a": torch.ones(4, 4), "b": torch.randn(100)}, "epoch": 3}, tmp_path / "net.pt")
    return tmp_path / "net.pt"


def test_the_page_is_written_beside_the_user(
    holdfast: Holdfast, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, _ = holdfast("view", f"{run}@best")
    assert code == 0
    assert out.startswith("run@best.html: ")
    data = data_of(tmp_path / "run@best.html")
    assert [one["step"] for one in data["run"]["checkpoints"]] == [10, 20, 30]
    assert data["kind"] == "training run, at step 20"
    assert data["run"]["checkpoints"][2]["metrics"] == {"val_loss": "nan"}
    assert data["changes"]["steps"] == [10, 20, 30]


def test_json_says_what_was_written(holdfast: Holdfast, file: Path, tmp_path: Path) -> None:
    code, out, _ = holdfast("view", file, "-o", tmp_path / "x.html", "--json")
    size = (tmp_path / "x.html").stat().st_size
    assert (code, json.loads(out)) == (
        0,
        {"page": str(tmp_path / "x.html"), "bytes": size, "tensors": 2, "counted": 2},
    )


def test_without_torch_there_are_no_statistics_and_the_page_says_so(run: Path, file: Path, tmp_path: Path) -> None:
    for ref in (run, file):
        command = [sys.executable, "-c", BLOCKED, "view", str(ref), "-o", str(tmp_path / "x.html"), "--diff", str(file)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert (done.returncode, done.stderr) == (0, "")
        data = data_of(tmp_path / "x.html")
        assert 'pip install "holdfast[torch]"' in data["tensors"]["without"]
        assert data["tensors"]["stats"]["of"] == []
        assert data["changes"] is None
        assert data["difference"] is not None


def test_only_so_many_bytes_are_read(holdfast: Holdfast, file: Path, tmp_path: Path) -> None:
    holdfast("view", file, "-o", tmp_path / "x.html", "--limit", "100B")
    data = data_of(tmp_path / "x.html")
    assert data["tensors"]["stats"]["of"] == [0]
    assert "Statistics of 1 of 2 tensors: a page reads 100 B for them (--limit)" in data["tensors"]["without"]
    assert holdfast("view", file, "--limit", "much").code == 3


def test_only_so_many_tensors_are_counted_and_pictured(
    holdfast: Holdfast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(view, "MOST_COUNTED", 5)
    monkeypatch.setattr(view, "MOST_PICTURES", 2)
    library.save({str(at): torch.randn(3, 3) for at in range(9)}, tmp_path / "many.pt")
    holdfast("view", tmp_path / "many.pt", "-o", tmp_path / "x.html")
    stats = data_of(tmp_path / "x.html")["tensors"]["stats"]
    assert stats["of"] == [0, 1, 2, 3, 4]
    assert list(stats["thumbnail"]) == ["0", "1"]


def test_only_so_many_checkpoints_are_compared(
    holdfast: Holdfast, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(view, "MOST_COMPARED", 2)
    monkeypatch.setattr(view, "MOST_FOLLOWED", 4)
    holdfast("view", run, "-o", tmp_path / "x.html")
    changes = data_of(tmp_path / "x.html")["changes"]
    assert changes["steps"] == [10, 30]
    assert len(changes["of"]) == 4
    assert changes["note"] == "2 of 3 checkpoints are compared. 4 of 9 tensors are."


def test_damage_is_shown_and_does_not_stop_the_page(holdfast: Holdfast, file: Path, tmp_path: Path) -> None:
    library.save({"a": torch.ones(1000), "b": torch.ones(1000)}, tmp_path / "w.safetensors")
    flip(tmp_path / "w.safetensors", 2000)
    assert holdfast("view", tmp_path / "w.safetensors", "-o", tmp_path / "x.html").code == 0
    stats = data_of(tmp_path / "x.html")["tensors"]["stats"]
    assert "corrupt" in stats["note"]["0"]
    assert stats["count"] == [0, 1000]


def test_what_is_not_there_leaves_no_page(holdfast: Holdfast, tmp_path: Path) -> None:
    assert holdfast("view", tmp_path / "gone.pt", "-o", tmp_path / "x.html").code == 4
    assert not (tmp_path / "x.html").exists()


def test_a_differing_file_is_measured(holdfast: Holdfast, file: Path, tmp_path: Path) -> None:
    library.save({"net": {"a": torch.full((4, 4), 3.0), "c": torch.ones(2)}, "epoch": 4}, tmp_path / "new.pt")
    holdfast("view", file, "--diff", tmp_path / "new.pt", "-o", tmp_path / "x.html")
    found = data_of(tmp_path / "x.html")["difference"]
    (changed,) = found["unlike"]
    assert (changed["name"], changed["norm"], changed["relative"]) == ("net.a", 8.0, 2.0)
    assert [name for name, _ in found["removed"]] == ["net.b"]
    assert [name for name, _ in found["added"]] == ["net.c"]
    assert found["values"] == [["epoch", "3", "4"]]
