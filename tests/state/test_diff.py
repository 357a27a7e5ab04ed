from __future__ import annotations

from typing import Any

import pytest

from holdfast.spec import TensorSpec
from holdfast.state.diff import Diff, Numbers, Pairing, Side, ValueChange, alike, describe, may_be_renamed, pair
from holdfast.state.diff_text import diff_lines, summary_text

ROW = TensorSpec("float32", (3,))
EVIL = "\x1b[2J\u202e<b>\n"


def side(name: str, *names: str, **fields: Any) -> Side:
    return Side(name, dict.fromkeys(names, ROW), **fields)


def found(left: Side, right: Side, equal: set[str] = frozenset(), glob: str | None = None) -> Diff:  # type: ignore[assignment]
    return describe(left, right, pair(left, right, glob), equal, {}, glob)


def test_wrappers_alone_make_no_difference_and_are_said() -> None:
    left = side("a", "module.submodule.w", "module.fc.w")
    right = side("b", "submodule.w", "fc._orig_mod.w")
    diff = found(left, right, {"module.submodule.w", "module.fc.w"})
    assert diff.identical
    assert diff.aligned == {"module.submodule.w": "submodule.w", "module.fc.w": "fc._orig_mod.w"}
    assert "  taken for the same: module.fc.* as fc._orig_mod.*" in diff_lines(diff)


@pytest.mark.parametrize("swap", [False, True])
def test_weights_alone_are_compared_with_the_part_that_has_their_names(swap: bool) -> None:
    weights, whole = side("weights", "fc.w", "fc.b"), side("whole", "model.fc.w", "model.module.fc.b", "opt.0.avg")
    left, right = (whole, weights) if swap else (weights, whole)
    pairing = pair(left, right)
    assert set(pairing.pairs.items()) == (
        {("model.fc.w", "fc.w"), ("model.module.fc.b", "fc.b")}
        if swap
        else {("fc.w", "model.fc.w"), ("fc.b", "model.module.fc.b")}
    )
    assert (pairing.removed, pairing.added) == ((["opt.0.avg"], []) if swap else ([], ["opt.0.avg"]))


def test_a_part_is_not_searched_where_names_are_equal() -> None:
    left = side("a", "fc.w", "ema.fc.w")
    right = side("b", "fc.w", "ema.fc.w", "other.fc.w")
    assert pair(left, right) == Pairing({"fc.w": "fc.w", "ema.fc.w": "ema.fc.w"}, [], ["other.fc.w"])


def test_each_tensor_is_in_one_list() -> None:
    left = Side("a", {"same": ROW, "other": ROW, "dtype": ROW, "shape": ROW, "old": ROW, "gone": ROW})
    right = Side(
        "b",
        {
            "same": ROW,
            "other": ROW,
            "dtype": TensorSpec("float16", (3,)),
            "shape": TensorSpec("float32", (4,)),
            "new": ROW,
            "more": ROW,
        },
    )
    pairing = pair(left, right)
    assert alike(left, right, pairing) == [("same", "same"), ("other", "other")]
    assert may_be_renamed(left, right, pairing) == (["old", "gone"], ["new", "more"])
    diff = describe(left, right, pairing, {"same"}, {"old": "new"})
    assert diff.same == ["same"]
    assert [one.name for one in diff.changed] == ["other"]
    assert [one.name for one in diff.recast] == ["dtype"]
    assert [one.name for one in diff.reshaped] == ["shape"]
    assert [(one.name, one.other) for one in diff.renamed] == [("old", "new")]
    assert [one.name for one in diff.removed] == ["gone"]
    assert [one.name for one in diff.added] == ["more"]
    assert not diff.identical
    assert summary_text(diff) == (
        "1 changed, 1 recast, 1 reshaped, 1 renamed, 1 only in A, 1 only in B, 1 tensor the same"
    )


def test_values_are_compared_exactly_and_by_name() -> None:
    left = side("a", values={"epoch": ("1", "1"), "module.lr": ("0.1", "0.1"), "long": ("[1, 2]", "[1, ...]")})
    right = side("b", values={"lr": ("0.1", "0.1"), "long": ("[1, 3]", "[1, ...]"), "seed": ("7", "7")})
    diff = found(left, right)
    assert diff.values == [
        ValueChange("epoch", "1", None),
        ValueChange("long", "[1, ...]", "[1, ...]"),
        ValueChange("seed", None, "7"),
    ]
    lines = "\n".join(diff_lines(diff))
    assert "[1, ...] (further in)" in lines
    assert found(left, left).identical


def test_facts_that_one_side_does_not_record_are_a_note() -> None:
    run = side("a", facts={"metrics": {"loss": ("0.5", "0.5")}, "metadata": {"by": ("'x'", "'x'")}})
    file = side("b", facts={"metadata": {"by": ("'y'", "'y'")}})
    diff = found(run, file)
    assert diff.values == [ValueChange("metadata.by", "'x'", "'y'")]
    assert diff.notes == ["only A records metrics"]
    assert found(run, side("b")).identical


def test_a_glob_takes_what_fits_on_either_side() -> None:
    left = side("a", "fc.w", "fc.b", values={"epoch": ("1", "1")})
    right = side("b", "model.fc.w", "model.fc.b", "opt.avg", values={"epoch": ("2", "2")})
    diff = found(left, right, {"fc.w", "fc.b"}, "model.*")
    assert diff.same == ["fc.w", "fc.b"]
    assert diff.identical
    assert [one.name for one in found(left, right, set(), "epoch").values] == ["epoch"]


def test_tied_weights_that_the_other_side_lacks_are_explained() -> None:
    left = side("a", "embed.w", "head.w", ties={"head.w": ["embed.w"], "embed.w": ["head.w"]})
    diff = found(left, side("b", "embed.w"), {"embed.w"})
    assert [one.name for one in diff.removed] == ["head.w"]
    assert diff.notes == ["`head.w` of A shares the memory of `embed.w`"]


def numbers(**fields: Any) -> Numbers:
    return Numbers(
        **{"elements": 4, "differing": 1, "norm": 1.0, "relative": 0.5, "largest": 1.0, "cosine": 0.5, **fields}
    )


def test_what_moved_furthest_comes_first() -> None:
    left = side("a", "small", "large", "from.zero", "odd")
    diff = found(left, left).measured(
        {
            "small": numbers(relative=0.001),
            "large": numbers(relative=0.5, nan=(0, 2), infinite=(1, 0)),
            "from.zero": numbers(relative=None, cosine=None),
        }
    )
    head, *rest = [line for line in diff_lines(diff) if line.startswith(("changed", "  "))]
    assert head.split() == ["changed", "(4)", "norm", "relative", "largest", "cosine", "elements"]
    assert [line.split()[0] for line in rest] == ["from.zero", "large", "small", "odd"]
    assert rest[1].endswith("1 of 4  0 NaN in A, 2 in B; 1 infinite in A, 0 in B")
    assert rest[3].endswith("no arithmetic with this dtype")


def test_long_lists_are_cut_unless_all_is_asked_for() -> None:
    diff = found(side("a"), side("b", *(f"t{number}" for number in range(30))))
    assert "  ... 10 more lines" in diff_lines(diff)
    assert any("t29" in line for line in diff_lines(diff, everything=True))


def test_repeated_blocks_without_numbers_are_one_line() -> None:
    diff = found(side("a", *(f"layers.{number}.w" for number in range(32))), side("b"))
    assert ["layers.{0..31}.w", "(3,)", "float32", "x32"] in [line.split() for line in diff_lines(diff)]


def test_hostile_names_are_escaped_in_text_and_html() -> None:
    left = side(EVIL, EVIL, f"{EVIL}2", values={EVIL: (EVIL, EVIL)})
    diff = found(left, side("b", f"model.{EVIL}", values={EVIL: ("", "")}))
    text, page = str(diff), diff._repr_html_()
    for bad in ("\x1b", "\u202e", "<b>"):
        assert bad not in page
        assert bad not in text or bad == "<b>"
    assert "&lt;b&gt;" in page
    assert text.count("\n") == page.count("<tr>") + 4  # no name makes a line of its own


def test_a_diff_as_plain_data() -> None:
    diff = found(side("a", "w"), side("b", "w")).measured({"w": numbers()})
    assert diff.to_dict()["changed"][0] == {
        "name": "w",
        "other": "w",
        "left": {"dtype": "float32", "shape": (3,)},
        "right": {"dtype": "float32", "shape": (3,)},
        "numbers": {
            "elements": 4,
            "differing": 1,
            "norm": 1.0,
            "relative": 0.5,
            "largest": 1.0,
            "cosine": 0.5,
            "nan": (0, 0),
            "infinite": (0, 0),
            "cast": None,
        },
    }
    assert diff.to_dict()["identical"] is False
