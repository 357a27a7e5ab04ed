"""What counts as the same answer, and which inputs are tried."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from holdfast.errors import ArgumentError
from holdfast.export.cases import cases_for
from holdfast.export.dynamic import resolve_axes, traced_leaves
from holdfast.export.example import bind_example
from holdfast.export.parity import TOLERANCES, compare
from holdfast.export.report import Comparison, ExportReport


def one(theirs: Any, mine: Any, tolerance: float | None = None) -> Comparison:
    (found,) = compare("example", [theirs], [mine], ["y"], tolerance)
    return found


@pytest.mark.parametrize(("dtype", "allowed"), TOLERANCES.items())
def test_the_tolerance_is_of_the_largest_value(dtype: torch.dtype, allowed: float) -> None:
    mine = torch.tensor([1000.0, 0.0], dtype=torch.float64)
    for share, same in ((0.4, True), (3.0, False)):
        theirs = (mine + torch.tensor([0.0, 1000 * allowed * share])).to(dtype)
        found = one(theirs, mine.to(dtype))
        assert found.is_same is same, found
        assert found.allowed == allowed
    assert one(theirs, mine.to(dtype), 1.0).is_same, "tolerance= is what the caller says"


def test_figures() -> None:
    found = one(torch.tensor([[1.0, 2.0], [4.0, 3.5]]), torch.tensor([[1.0, 2.0], [3.0, 3.5]]))
    assert (found.max_abs, found.max_rel, found.argmax) == (1.0, 1 / 3.5, 0.5)
    assert found.cosine == pytest.approx((1 + 4 + 12 + 12.25) / math.sqrt((1 + 4 + 16 + 12.25) * (1 + 4 + 9 + 12.25)))
    assert str(found) == "up to 1 off, 2.9e-01 of the largest value, 1e-04 is allowed"


@pytest.mark.parametrize(
    ("theirs", "mine", "fault"),
    [
        (torch.ones(2), torch.ones(3), "(2,) float32, the model has (3,) float32"),
        (torch.ones(2).double(), torch.ones(2), "(2,) float64, the model has (2,) float32"),
        (torch.tensor([math.nan, 1.0]), torch.tensor([1.0, math.nan]), "NaN in 1 places, the model has 1"),
        (torch.tensor([math.inf, 1.0]), torch.tensor([-math.inf, 1.0]), "infinite in 1 places, the model in 1"),
        (torch.tensor([math.inf, 1.0]), torch.tensor([1.0, 1.0]), "infinite in 1 places, the model in 0"),
        (3, 4, "3, the model has 4"),
        (True, 1, "True, the model has 1"),
        (torch.tensor(3), 3, "() int64, the model has 3"),
    ],
)
def test_what_no_tolerance_covers(theirs: Any, mine: Any, fault: str) -> None:
    found = one(theirs, mine, 1e9)
    assert not found.is_same
    assert found.fault == fault


def test_nan_and_infinities_at_the_same_places_are_the_same() -> None:
    values = torch.tensor([math.nan, math.inf, -math.inf, 2.0])
    found = one(values + torch.tensor([0, 0, 0, 1e-5]), values)
    assert found.is_same
    assert found.max_abs == pytest.approx(1e-5, rel=0.1)
    assert one(torch.full((2,), math.nan), torch.full((2,), math.nan)).is_same
    assert one(torch.zeros(0), torch.zeros(0)).is_same
    assert not one(torch.tensor([1e-3]), torch.zeros(1)).is_same, "of nothing but zeros, one is the scale"


def test_integers_and_bools_are_exact() -> None:
    assert not one(torch.tensor([2**60 + 1]), torch.tensor([2**60])).is_same
    assert not one(torch.tensor([7]), torch.tensor([8])).is_same
    assert one(torch.tensor([7]), torch.tensor([8]), 0.2).is_same
    assert not one(torch.tensor([True]), torch.tensor([False]), 0.2).is_same
    assert one(torch.tensor([1 + 2j]), torch.tensor([1 + 2j])).is_same


def test_a_missing_output_is_a_difference() -> None:
    (found,) = compare("example", [torch.ones(1)], [torch.ones(1), torch.ones(1)], None)
    assert found.fault == "1 outputs, the model has 2"


def test_inputs_that_are_tried() -> None:
    """Always the same ones; integers stay in the example's range, and open axes take other sizes."""

    class Takes(nn.Module):
        def forward(self, x: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
            return x

    example = bind_example(Takes(), (torch.randn(4, 3) + 10, torch.randint(5, 9, (4,)), torch.ones(4).bool(), 2.0))
    axes = resolve_axes({"x": {0: "batch"}, "ids": {-1: "batch"}}, example, None)
    cases = cases_for(example, axes)
    again = cases_for(example, axes)
    for case, other in zip(cases, again, strict=True):
        assert case.name == other.name
        assert all(a.equal(b) for a, b in zip(case.leaves[:3], other.leaves[:3], strict=True))
        assert case.leaves[3] == 2.0
        assert case.leaves[1].min() >= 5
        assert case.leaves[1].max() <= 8
        assert case.leaves[1].shape[0] == case.leaves[0].shape[0]
        assert case.leaves[2].shape == (4,), "an axis that is not open keeps its size"
    named = {case.name: case.leaves for case in cases}
    assert list(named)[5:] == ["batch=1", "batch=2", "batch=3", "batch=7"]
    assert named["negated"][0].equal(-example.leaves[0])
    assert named["shuffled"][0].sort().values.sum() == pytest.approx(float(example.leaves[0].sum()), rel=1e-5)
    assert float(named["fresh, as the example"][0].mean()) == pytest.approx(10, abs=2)
    assert abs(float(named["fresh, around zero"][0].mean())) < 3
    assert not named["negated"][2].any()


def test_an_axis_of_one_is_traced_with_two() -> None:
    example = bind_example(nn.Identity(), torch.full((1, 3), 5.0))
    axes = resolve_axes({"input": {0: "batch"}}, example, ["mine"])
    assert traced_leaves(axes, example.leaves)[0].tolist() == [[5.0] * 3] * 2
    assert example.leaves[0].shape == (1, 3)


def test_axes_without_a_name_are_one_where_their_sizes_are() -> None:
    class Takes(nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
            return a

    example = bind_example(Takes(), (torch.ones(2, 5), torch.ones(2, 5), torch.ones(3, 5)))
    axes = resolve_axes({"a": {0, 1}, 1: [0], "c": (0,)}, example, None)
    assert axes == {0: {0: "axis0", 1: "axis1"}, 1: {0: "axis0"}, 2: {0: "axis0_2"}}


def test_starred_arguments_have_names() -> None:
    class Takes(nn.Module):
        def forward(self, a: torch.Tensor, *more: torch.Tensor, last: Any = None) -> torch.Tensor:
            return a

    example = bind_example(Takes(), (torch.ones(1), torch.ones(2), torch.ones(3)))
    assert example.names == ["a", "more_0", "more_1"]
    assert example.by_parameter([1, 2, 3]) == {"a": 1, "more": (2, 3)}
    with pytest.raises(ArgumentError, match="does not take it: missing a required argument: 'a'"):
        bind_example(Takes(), {"last": [torch.ones(1)]})


def test_a_report_is_a_small_table() -> None:
    report = ExportReport(
        "evil\x1b[2J.onnx", format="onnx", how="dynamo", runtime="onnxruntime 1", bytes=2048, seconds=1.0
    )
    report.compared = [
        one(torch.ones(2), torch.ones(2)),
        Comparison("example", "z", 0.5, 0.25, None, None, 1e-4),
        Comparison("negated", "y", 0.0, 0.0, 1.0, 0.5, 1e-4),
    ]
    report.notes = ["said"]
    lines = str(report).splitlines()
    assert lines[0] == r"evil\x1b[2J.onnx: onnx (dynamo), 2.05 kB, 1.0 s, OTHER ANSWERS in onnxruntime 1"
    assert [line.split() for line in lines[1:4]] == [
        ["compared", "on", "worst", "output", "max", "abs", "max", "rel", "cosine", "argmax"],
        ["example", "z", "5.0e-01", "2.5e-01", "-", "-"],
        ["negated", "y", "0.0e+00", "0.0e+00", "1.000000", "50%"],
    ]
    assert lines[4:] == ["notes (1):", "  said"]
    assert report.worst.output == "z"
    assert report.to_dict()["compared"][1]["max_abs"] == 0.5
