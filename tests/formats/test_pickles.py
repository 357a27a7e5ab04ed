"""Parsing without running: values of every protocol, names kept as names, and what is shared stays shared."""

from __future__ import annotations

import collections
import pickle
import pickletools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.formats.base import Segment
from holdfast.formats.codes import integer
from holdfast.formats.emit import emit
from holdfast.formats.nodes import Call, Dict, Global, Persistent, Set
from holdfast.formats.opcodes import MARKED, SIMPLE
from holdfast.formats.pickles import parse
from holdfast.formats.rebuild import build_tree
from holdfast.state.lifting import Lifting, lift
from holdfast.state.lowering import Lowering, lower
from holdfast.state.values import Typed

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.complex_numbers(allow_nan=False)
    | st.text()
    | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=4) | st.integers(), inner, max_size=4)
        | st.dictionaries(st.text(max_size=4), inner, max_size=3).map(collections.OrderedDict)
        | st.sets(st.integers(), max_size=3)
        | st.frozensets(st.text(max_size=3), max_size=3)
    ),
    max_leaves=12,
)


def no_storage(key: str, location: str, length: int) -> Segment:
    raise AssertionError("no tensor here")


def lifted(data: bytes) -> Any:
    return lift(build_tree(data, no_storage, "values.pt"), Lifting(leaf=lambda leaf: leaf))


def lowered(value: Any) -> Any:
    return lower(value, Lowering(leaf=lambda *_: None, replace=lambda *_: None))


def no_persistent(data: bytes) -> Any:
    return pickle.loads(data)


@given(plain, st.integers(0, 5))
def test_what_pickle_writes_is_read_equal(value: Any, protocol: int) -> None:
    found = lifted(pickle.dumps(value, protocol))
    assert found == value
    assert type(found) is type(value)


@given(plain)
def test_what_we_emit_pickle_reads_as_the_nearest_plain_value(value: Any) -> None:
    data = emit(lowered(value)).data
    assert no_persistent(data) == nearest(value)
    pickletools.dis(data, out=_Nowhere())  # refuses what leaves something on the stack


class _Nowhere:
    def write(self, text: str) -> None:
        pass


def nearest(value: Any) -> Any:
    """Frozensets become lists; in this test they never stand inside a key."""
    if isinstance(value, frozenset):
        return list(value)
    if isinstance(value, dict):
        return type(value)((key, nearest(item)) for key, item in value.items())
    return type(value)(nearest(item) for item in value) if isinstance(value, list | tuple) else value


@given(st.integers(-(2**2030), 2**2030))
@settings(max_examples=300)
def test_integers_of_every_size(value: int) -> None:
    data = b"\x80\x02" + integer(value) + b"."
    assert parse(data, "values.pt").root == value == no_persistent(data)


def test_the_borders_of_the_integer_opcodes() -> None:
    for value in (0, 255, 256, 65535, 65536, 2**31 - 1, 2**31, -1, -(2**31), -(2**31) - 1, 127, 128, -128, -129):
        assert parse(integer(value) + b".", "values.pt").root == value
    with pytest.raises(OverflowError):
        integer(2**2040)


def test_every_opcode_that_python_knows_is_known() -> None:
    """Those of the loop itself are counted from the bytes that they read."""
    in_the_loop = set(b"qrh(tXK\x85RQ).")
    known = set(SIMPLE) | set(MARKED) | in_the_loop
    assert known == {ord(opcode.code) for opcode in pickletools.opcodes}


def test_names_and_calls_are_nodes() -> None:
    root = parse(pickle.dumps(collections.Counter("aab"), 2), "values.pt").root
    assert type(root) is Call
    assert root.func == Global("collections", "Counter", "collections.Counter")
    assert type(root.args[0]) is Dict
    assert root.args[0].flat == ["a", 2, "b", 1]


def test_old_names_of_modules_are_the_new_ones() -> None:
    assert parse(b"c__builtin__\nset\n.", "values.pt").root.path == "builtins.set"
    assert parse(b"ccopy_reg\n_reconstructor\n.", "values.pt").root.path == "copyreg._reconstructor"


def test_ids_of_things_outside_are_kept() -> None:
    root = parse(b"(K\x01K\x02tQ.", "values.pt").root
    assert type(root) is Persistent
    assert root.id == (1, 2)
    assert parse(b"Pan id\n.", "values.pt").root.id == "an id"


def test_sets_and_byte_arrays() -> None:
    root = parse(pickle.dumps([{1}, frozenset({2}), bytearray(b"x")], 5), "values.pt").root
    assert [type(item) for item in root] == [Set, Set, bytearray]
    assert [root[0].frozen, root[1].frozen] == [False, True]


def test_shared_values_are_one_node_and_one_value() -> None:
    part = ["x"]
    data = pickle.dumps([part, part], 2)
    root = parse(data, "values.pt").root
    assert root[0] is root[1]
    tree = build_tree(data, no_storage, "values.pt")
    assert tree[0] is tree[1]


def test_the_end_of_a_pickle_is_known() -> None:
    one, two = pickle.dumps([1], 2), pickle.dumps("two", 4)
    first = parse(one + two + b"rest", "values.pt")
    second = parse(one + two + b"rest", "values.pt", start=first.end)
    assert (first.end, second.end) == (len(one), len(one) + len(two))
    assert (first.root, second.root) == ([1], "two")


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b"S'text'\n.", "text"),
        (b'S"a\\nb"\n.', "a\nb"),
        (b"S'\\xc3\\xa9'\n.", "é"),
        (b"S'\\xff'\n.", b"\xff"),
        (b"U\x02ab.", "ab"),
        (b"T\x01\x00\x00\x00\xff.", b"\xff"),
        (b"Va\\u00e9\n.", "aé"),
        (b"I01\n.", True),
        (b"I00\n.", False),
        (b"I7\n.", 7),
        (b"L7L\n.", 7),
        (b"F1.5\n.", 1.5),
        (b"\x8b\x02\x00\x00\x00\x00\x01.", 256),
        (b"\x8a\x00.", 0),
        (b"(K\x01K\x02l.", [1, 2]),
        (b"K\x01(K\x0210.", None),
    ],
)
def test_old_opcodes(data: bytes, value: Any) -> None:
    if value is None:
        data = b"N" + data
    found = parse(data, "values.pt").root
    assert found == value
    assert type(found) is type(value)


def test_a_python_2_ordered_dict_is_a_list_of_pairs() -> None:
    data = b"ccollections\nOrderedDict\n(](](U\x01aK\x01e](U\x01bK\x02eetR."
    assert build_tree(data, no_storage, "values.pt") == Typed("ordered_dict", [["a", 1], ["b", 2]])
