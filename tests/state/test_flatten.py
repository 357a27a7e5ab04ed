from __future__ import annotations

from collections import OrderedDict, deque
from typing import Any

import pytest

from holdfast.state.encoding import to_json
from holdfast.state.flatten import child, keys, leaves, seen_parts
from holdfast.state.lowering import Lowering, lower
from holdfast.state.values import Opaque, Typed


class Leaf:
    """Stands for a tensor: any type that is no tree node."""

    def __init__(self, name: str) -> None:
        self.name = name


def lowered(value: Any) -> Any:
    return lower(value, Lowering(lambda v, _: v if isinstance(v, Leaf) else None, lambda _v, _p: None))


def paths(tree: Any) -> dict[str, tuple[Any, ...]]:
    return {leaf.name: path for path, leaf in leaves(tree)}


def test_paths_are_what_people_write() -> None:
    state = OrderedDict({"fc.weight": Leaf("w")})
    state._metadata = OrderedDict({"": {"version": 1}})  # type: ignore[attr-defined]
    tree = lowered(
        {
            "model": state,
            "optimizer": {"state": {0: {"exp_avg": Leaf("m")}}, "param_groups": [{"lr": 0.1}]},
            "history": deque([Leaf("a"), Leaf("b")]),
            "pair": (Leaf("x"), 3),
            "odd": {(1, 2): Leaf("t"), None: Leaf("n")},
        }
    )
    found = paths(tree)
    assert found["w"] == ("model", "fc.weight")
    assert found["m"] == ("optimizer", "state", 0, "exp_avg")
    assert found["a"] == ("history", 0)
    assert found["b"] == ("history", 1)
    assert found["x"] == ("pair", 0)
    assert found["n"] == ("odd", None)
    assert found["t"] == ("odd", "[1, 2]")


def test_tensor_wrappers_add_no_level_that_the_user_did_not_write() -> None:
    parameter = Typed("parameter", {"data": Leaf("p"), "requires_grad": True})
    sparse = Typed("sparse", {"indices": Leaf("i"), "values": Leaf("v")})
    assert paths({"w": parameter, "s": sparse, "c": Typed("conj", Leaf("c"))}) == {
        "p": ("w",),
        "i": ("s", "indices"),
        "v": ("s", "values"),
        "c": ("c",),
    }


def test_a_field_called_items_is_not_a_wrapper_in_a_plain_dict_or_namespace() -> None:
    tree = {"items": Leaf("a"), "args": Typed("namespace", {"data": Leaf("b")})}
    assert paths(tree) == {"a": ("items",), "b": ("args", "data")}


@pytest.mark.parametrize(
    "tree",
    [
        {"a": [Leaf("1"), {"b": Leaf("2")}], "c": Leaf("3")},
        {"d": Typed("dict", [[0, Leaf("1")], [Typed("tuple", [Leaf("k")]), Leaf("2")]]), "e": Leaf("3")},
        {"o": Opaque("my.Net", [Leaf("1")], {"x": Leaf("2")}), "p": Leaf("3")},
        Typed("state_dict", {"items": {"data": Leaf("1"), "items": [Leaf("2")]}, "metadata": [["", Leaf("3")]]}),
    ],
)
def test_the_order_is_that_of_the_encoder(tree: Any) -> None:
    seen: list[str] = []
    to_json(tree, lambda leaf: seen.append(leaf.name))
    assert [leaf.name for _, leaf in leaves(tree)] == seen
    assert len(seen) >= 3


def test_depth_is_no_recursion() -> None:
    tree: Any = Leaf("deep")
    for _ in range(5000):
        tree = Typed("tuple", [tree])
    assert len(next(iter(leaves(tree)))[0]) == 5000


LIES = [
    Typed("dict", 3),
    Typed("dict", [1, [2], [3, 4, 5]]),
    Typed("dict", {"a": 1}),
    Typed("defaultdict", 3),
    Typed("defaultdict", {}),
    Typed("state_dict", []),
    Typed("state_dict", {"items": 3, "metadata": None}),
    Typed("state_dict", {"items": [[1]], "metadata": 3}),
    Typed("namespace", [1]),
    Typed("namespace", None),
    Typed("no such kind", {"items": 1}),
    Typed("dict", [[Typed("tuple", 3), 1], [[1], 2], [{}, 3]]),
]


@pytest.mark.parametrize("tree", LIES, ids=str)
def test_a_payload_that_lies_is_walked_without_an_error(tree: Typed) -> None:
    beside = {"lie": tree, "x": Leaf("x")}
    assert [leaf.name for _, leaf in leaves(beside)] == ["x"]
    assert keys(tree) is not None
    assert child(tree, "no such key") is None
    seen_parts((), tree)
