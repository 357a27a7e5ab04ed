"""Parts of a tree left out by name."""

from __future__ import annotations

from typing import Any

import pytest

from holdfast.errors import ArgumentError
from holdfast.state.dropping import dropped, refuse_unmatched
from holdfast.state.values import Typed

TREE = {
    "model": Typed("state_dict", {"items": {"head.w": 1, "body.w": 2}, "metadata": [["", {"version": 2}]]}),
    "ordered": Typed("ordered_dict", [["a", 1], ["b", [1, {"c": 2}]]]),
    "numbers": Typed("dict", [[1, "one"], [Typed("tuple", [1]), "two"]]),
    "args": Typed("namespace", {"lr": 0.1, "seed": 3}),
    "default": Typed("defaultdict", {"factory": None, "items": [["x", 1]]}),
    "tuple": Typed("tuple", [{"a": 1}, 2]),
    "size": Typed("torch.Size", [2, 3]),
    "list": [1, {"d": 4}],
}


@pytest.mark.parametrize(
    ("glob", "names", "path", "rest"),
    [
        ("model.head*", ["model.head.w"], "model", {"items": {"body.w": 2}, "metadata": [["", {"version": 2}]]}),
        ("ordered.a", ["ordered.a"], "ordered", [["b", [1, {"c": 2}]]]),
        ("ordered.b.1.c", ["ordered.b.1.c"], "ordered", [["a", 1], ["b", [1, {}]]]),
        ("numbers.1", ["numbers.1"], "numbers", [[Typed("tuple", [1]), "two"]]),
        ("args.s*", ["args.seed"], "args", {"lr": 0.1}),
        ("default.x", ["default.x"], "default", {"factory": None, "items": []}),
        ("tuple.0.a", ["tuple.0.a"], "tuple", [{}, 2]),
        ("list.1.d", ["list.1.d"], "list", [1, {}]),
    ],
)
def test_items_of_every_kind_of_dict(glob: str, names: list[str], path: str, rest: Any) -> None:
    left, found = dropped(TREE, [glob])
    assert found == names
    assert (left[path].payload if type(left[path]) is Typed else left[path]) == rest
    assert {key: value for key, value in left.items() if key != path} == {k: v for k, v in TREE.items() if k != path}


def test_a_part_goes_as_a_whole() -> None:
    left, names = dropped(TREE, ["model*", "list"])
    assert names == ["model", "list"]
    assert list(left) == [key for key in TREE if key not in names]


@pytest.mark.parametrize(("glob", "path", "whole"), [("list.0", "list.0", "list"), ("tuple.1", "tuple.1", "tuple")])
def test_elements_of_lists_stay(glob: str, path: str, whole: str) -> None:
    with pytest.raises(ArgumentError, match=rf"`{path}` is an element of a list.*drop `{whole}` as a whole"):
        dropped(TREE, [glob])


def test_a_glob_without_a_match() -> None:
    refuse_unmatched(["a*"], ["abc"], [], "f")
    with pytest.raises(ArgumentError, match=r"`f`: drop 'b\*' matches nothing; there are: x0, .*x7, \.\.\.$"):
        refuse_unmatched(["a*", "b*"], ["abc"], [f"x{index}" for index in range(9)], "f")
