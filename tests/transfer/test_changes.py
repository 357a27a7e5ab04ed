"""How far tensors moved between checkpoints, against torch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import holdfast
from holdfast.runs.catalog import Listed, scan
from holdfast.state.statistics import Changes
from holdfast.transfer.changes import changes
from tests.runs.hand_made import flip

STEPS = (1, 2, 3, 4)


@pytest.fixture
def run(tmp_path: Path) -> list[Listed]:
    """Four checkpoints: ``moves`` moves, ``still`` does not, ``late`` moves once, ``bad`` becomes NaN."""
    net = torch.nn.Module()
    for name in ("moves", "still", "late", "bad", "zero"):
        net.register_parameter(name, torch.nn.Parameter(torch.ones(3) if name != "zero" else torch.zeros(3)))
    with holdfast.Run(tmp_path / "run", model=net, keep="last:9") as run:
        for step in STEPS:
            run.save(step=step)
            run.wait()
            with torch.no_grad():
                net.moves += 1
                if step == 2:
                    net.late *= 3
                    net.zero += 1
                    net.bad[0] = torch.nan
    return list(scan(tmp_path / "run").readable)


NAMES = [f"model.{name}" for name in ("moves", "still", "late", "bad", "zero")]


def of(found: Changes, name: str) -> tuple[list[float | None], list[float | None]]:
    at = found.names.index(f"model.{name}")
    return list(found.change[at]), list(found.norm[at])


def near(values: list[float]) -> object:
    return pytest.approx(values)


def test_changes_and_norms_are_torchs(run: list[Listed]) -> None:
    found = changes(run, NAMES, limit=10**6, norms={"model.still": 3**0.5, "model.moves": 48**0.5})
    assert found.steps == STEPS
    assert found.note == ""
    assert of(found, "moves") == (near([3**0.5] * 3), near([(3 * k * k) ** 0.5 for k in (1, 2, 3, 4)]))
    assert of(found, "still") == ([0.0, 0.0, 0.0], near([3**0.5] * 4))
    change, norm = of(found, "late")
    assert change == near([0.0, 12**0.5, 0.0])
    assert norm[:2] == near([3**0.5, 3**0.5])


def test_a_norm_that_nothing_tells_is_not_made_up(run: list[Listed]) -> None:
    found = changes(run, NAMES, limit=10**6)
    assert of(found, "still") == ([0.0, 0.0, 0.0], [None] * 4)
    assert of(found, "moves")[1][3] is None


def test_from_zero_and_to_nan(run: list[Listed]) -> None:
    found = changes(run, NAMES, limit=10**6)
    assert of(found, "zero")[0] == near([0.0, 3**0.5, 0.0])
    assert of(found, "zero")[1][:2] == [0.0, 0.0]
    assert of(found, "bad")[0] == [0.0, None, 0.0]


def test_what_the_limit_leaves_out_is_said(run: list[Listed]) -> None:
    found = changes(run, NAMES, limit=30)
    assert "Only the first 30 B were read" in found.note
    assert of(found, "moves")[0] == [near(3**0.5), None, None]
    assert of(found, "still")[0] == [0.0, 0.0, 0.0], "digests say so, and nothing is read"


def test_a_tensor_that_is_missing_has_no_change(run: list[Listed]) -> None:
    found = changes(run, ["model.gone"], limit=10**6)
    assert of(found, "gone") == ([None] * 3, [None] * 4)


def test_a_damaged_checkpoint_is_left_out_and_said(run: list[Listed]) -> None:
    flip(Path(run[1].path) / "entries.json", 20)
    found = changes(run, NAMES, limit=10**6)
    assert found.steps == (1, 3, 4)
    assert found.note == "Step 2 can't be read and is left out."
    assert of(found, "moves")[0] == near([12**0.5, 3**0.5])


def test_a_damaged_document_is_left_out_too(run: list[Listed]) -> None:
    flip(Path(run[1].path) / "state.json", 20)
    found = changes(run, NAMES, limit=10**6)
    assert found.steps == (1, 3, 4)
