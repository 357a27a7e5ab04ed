from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.errors import CorruptFile, HoldfastError
from holdfast.state.encoding import dumps, from_json, is_plain, loads, to_json
from holdfast.state.flatten import child, keys, leaves
from holdfast.state.lifting import Lifting, lift
from holdfast.state.values import Opaque, Typed


def decoded(value: Any) -> Any:
    return from_json(value, lambda reference: ("leaf", reference), "f.pt")


def test_json_is_plain_where_it_can_be() -> None:
    tree = {"a": [1, 2.5, None, True, "x"], "t": Typed("tuple", [1]), "b": b"\0", "big": 2**80, "nan": float("nan")}
    assert to_json(tree, repr) == {
        "a": [1, 2.5, None, True, "x"],
        "t": {"$tuple": [1]},
        "b": {"$bytes": "AA=="},
        "big": {"$int": hex(2**80)},
        "nan": {"$float": "nan"},
    }


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"$float": "many"}, "no float 'many'"),
        ({"$opaque": [3, [], None]}, "no class name 3"),
    ],
)
def test_what_is_wrong_with_a_mark_is_said(value: Any, reason: str) -> None:
    with pytest.raises(CorruptFile, match=r"`f\.pt`: its tree of values is damaged: ") as caught:
        decoded(value)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (Typed("datetime", {"iso": "2024-01-01", "fold": 0, "zone": "Mars/Base"}), "no time zone 'Mars/Base' here"),
        (Typed("bytearray", 10**12), "it is made of bytes"),
    ],
)
def test_what_is_wrong_with_a_value_is_said(value: Typed, reason: str) -> None:
    with pytest.raises(CorruptFile, match=r"`f\.pt`: ") as caught:
        lift({"a": value}, Lifting(leaf=lambda leaf: leaf, file="f.pt"))
    assert reason in str(caught.value)


def test_the_leaf_stands_as_its_reference() -> None:
    assert to_json({"w": object}, lambda leaf: [3]) == {"w": {"$tensor": [3]}}
    assert decoded({"w": {"$tensor": [3]}}) == {"w": ("leaf", [3])}


def test_a_dict_with_marked_keys_is_no_mark() -> None:
    tree = {"$tensor": 1}
    assert to_json(tree, repr) == {"$dict": [["$tensor", 1]]}
    assert decoded(to_json(tree, repr)) == tree
    assert decoded({"$a": 1, "b": 2}) == {"$a": 1, "b": 2}


def test_opaque_comes_back() -> None:
    tree = Opaque("my.Net", [1, Typed("set", [2])], {"x": b"y"})
    assert decoded(json.loads(dumps(to_json(tree, repr)))) == tree


@pytest.mark.parametrize(
    "value",
    [
        {"$float": "1e5"},
        {"$float": ["nan"]},
        {"$int": "zz"},
        {"$int": 5},
        {"$str": "%"},
        {"$str": 1},
        {"$bytes": "A"},
        {"$bytes": "AA==\n"},
        {"$complex": [1]},
        {"$complex": ["a", 1]},
        {"$complex": 5},
        {"$opaque": ["a"]},
        {"$opaque": [5, [], None]},
        {"$dict": 5},
        {"$dict": [[1, 2, 3]]},
        {"$dict": ["ab"]},
        {"$ordered_dict": {"a": 1}},
        {"$counter": [[1]]},
        {"$state_dict": 5},
        {"$state_dict": {"items": {}}},
        {"$state_dict": {"items": {}, "metadata": 5}},
        {"$state_dict": {"items": 5, "metadata": []}},
        {"$defaultdict": {"factory": "list"}},
        {"$defaultdict": []},
        {"$namespace": [1]},
        {"$record": {"class": 5, "form": "enum", "fields": {}}},
        {"$record": {"class": "a.B", "form": "enum", "fields": []}},
        {"$record": []},
        {"$parameter": 5},
        {"$sparse": [1]},
        {"$quantized": None},
        {"$meta": "x"},
        {"$torch.storage": 1},
    ],
    ids=json.dumps,
)
def test_marked_values_that_lie(value: Any) -> None:
    with pytest.raises(CorruptFile, match=r"`f.pt`: its tree of values is damaged: ."):
        decoded([{"deep": value}])


def nested(levels: int) -> Any:
    value: Any = 1
    for index in range(levels):
        value = [value] if index % 2 else {"$tuple": [value]}
    return value


@pytest.mark.parametrize("levels", [400, 600, 100_000])
def test_nesting_is_bounded(levels: int) -> None:
    with pytest.raises(CorruptFile, match=r"`f.pt`: its tree is nested deeper than 500 levels"):
        decoded(nested(levels))


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"nan", b"[" * 100_000, b'{"a":1}x', b'"\\ud800"'])
def test_what_is_no_json(data: bytes) -> None:
    with pytest.raises(CorruptFile, match=r"`f.pt`: is not valid JSON: ."):
        loads(data, "f.pt")


def test_the_name_of_the_file_is_escaped() -> None:
    with pytest.raises(CorruptFile) as caught:
        from_json({"$int": "x"}, repr, "a\x1b[2Jb")
    assert "\\x1b[2J" in str(caught.value)
    assert "\x1b" not in str(caught.value)


KINDS = [
    "tuple",
    "dict",
    "state_dict",
    "defaultdict",
    "record",
    "namespace",
    "parameter",
    "sparse",
    "quantized",
    "meta",
]
KINDS += ["ordered_dict", "counter", "deque", "set", "bytes", "float", "int", "opaque", "complex", "tensor", "path"]
KINDS += ["numpy.array", "numpy.scalar", "torch.dtype", "torch.storage", "conj", "attributed", "bytearray", "warp"]
NAMES = ["items", "metadata", "data", "fields", "class", "form", "factory", "a", "dtype", "shape"]
hostile = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4)
        | st.lists(st.tuples(inner, inner).map(list), max_size=3)
        | st.tuples(st.sampled_from(KINDS), inner).map(lambda pair: {f"${pair[0]}": pair[1]})
    ),
    max_leaves=20,
)


@settings(max_examples=400, deadline=None)
@given(value=hostile)
def test_hostile_trees_are_walked_and_lifted_or_refused(value: Any) -> None:
    try:
        tree = from_json(value, lambda reference: 1.5, "f.pt")
    except CorruptFile:
        return
    for path, _ in leaves(tree):
        assert isinstance(path, tuple)
    for key in keys(tree):
        child(tree, key)
    with contextlib.suppress(HoldfastError):
        lift(tree, Lifting(leaf=lambda leaf: leaf, file="f.pt"))


@pytest.mark.parametrize("value", [{}, {"a": [1, 2.5, None, True, "x"]}, [{"": {}}], "é", {"money": [[]] * 100}])
def test_plain_json_is_its_own_tree(value: Any) -> None:
    assert is_plain(dumps(value))
    assert decoded(value) == value


@pytest.mark.parametrize(
    "data",
    [
        b'{"$tuple": [1]}',
        b'{"\\u0024tuple": [1]}',
        b'["5 $"]',
        b"[" * 500 + b"]" * 500,
        b'{"a":' * 400 + b"[" * 100 + b"]" * 100 + b"}" * 400,
    ],
)
def test_json_that_may_mean_more_than_it_says_is_not_plain(data: bytes) -> None:
    assert not is_plain(data)
