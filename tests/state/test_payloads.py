"""What a file says that a value is made of: the shape is checked before anything walks or writes it."""

from __future__ import annotations

from typing import Any

import pytest

from holdfast.errors import CorruptFile
from holdfast.state.encoding import from_json
from holdfast.state.kinds import KINDS
from holdfast.state.payloads import check_payload
from holdfast.state.values import Typed

LEAF = object()
GOOD: dict[str, Any] = {
    "tuple": [1],
    "dict": [[1, 2]],
    "state_dict": {"items": {"w": LEAF}, "metadata": []},
    "deque": {"items": [], "maxlen": None},
    "slice": [None, 1, None],
    "range": [0, 3, 1],
    "fraction": [1, 3],
    "torch.Size": [2, 3],
    "path": "a",
    "bytearray": b"x",
    "numpy.array": {"dtype": "<f4", "shape": [1], "data": b"1234"},
    "parameter": {"data": Typed("sparse", {}), "requires_grad": True},
    "subclass": {"class": "a.B", "data": LEAF, "state": None},
    "sparse": {"layout": "sparse_coo", "indices": LEAF, "values": LEAF, "size": [2], "coalesced": True},
    "quantized": {"scheme": "per_tensor_affine", "data": LEAF, "scale": 0.5, "zero_point": 0},
    "meta": {"dtype": "float32", "shape": [1], "stride": [1], "requires_grad": False},
    "jagged": {"data": LEAF, "offsets": LEAF, "lengths": None, "dimension": 1, "requires_grad": False},
    "conj": LEAF,
}
BAD: list[tuple[str, Any]] = [
    ("tuple", 0.5),
    ("dict", {"a": 1}),
    ("dict", [[1]]),
    ("state_dict", {"items": {}}),
    ("deque", {"items": [], "maxlen": "x"}),
    ("slice", [1, 2]),
    ("range", [0, None, 1]),
    ("fraction", [1]),
    ("torch.Size", [2.0]),
    ("path", ["a"]),
    ("bytearray", 10**9),
    ("numpy.array", {"dtype": "<f4", "shape": [1]}),
    ("parameter", {"data": Typed("path", "a"), "requires_grad": True}),
    ("parameter", {"data": LEAF, "requires_grad": 1}),
    ("subclass", {"data": LEAF, "state": None}),
    ("sparse", {"layout": "sparse_coo", "values": LEAF, "size": [2]}),
    ("sparse", {"layout": "sparse_csr", "compressed": LEAF, "plain": 1, "values": LEAF, "size": [2]}),
    ("quantized", {"scheme": "per_tensor_affine", "data": LEAF, "scale": 1, "zero_point": 0}),
    ("quantized", {"scheme": "per_channel_affine", "data": LEAF, "scales": LEAF, "zero_points": LEAF}),
    ("quantized", {"scheme": "per_tensor_affine", "packed": 1, "data": LEAF, "scale": 0.5, "zero_point": 0}),
    ("meta", {"dtype": "float32", "shape": [None], "stride": [1], "requires_grad": False}),
    ("jagged", {"data": LEAF, "offsets": LEAF, "lengths": 3, "dimension": 1, "requires_grad": False}),
    ("conj", 5),
]


@pytest.mark.parametrize("kind", GOOD)
def test_what_is_written_passes(kind: str) -> None:
    check_payload(kind, GOOD[kind])


@pytest.mark.parametrize(("kind", "payload"), BAD)
def test_anything_else_is_refused(kind: str, payload: Any) -> None:
    with pytest.raises(TypeError, match=f"a {kind} has other parts than it should: "):
        check_payload(kind, payload)


def test_a_file_with_such_a_payload_is_corrupt() -> None:
    with pytest.raises(CorruptFile, match=r"`f`: its tree .* is damaged: a tuple has other parts than it should: 0"):
        from_json({"$tuple": 0.5}, lambda reference: reference, "f")


def test_unknown_kinds_are_for_lift_to_refuse() -> None:
    check_payload("of the future", 5)


def test_every_kind_of_value_is_checked() -> None:
    unchecked = []
    for kind in KINDS:
        try:
            check_payload(kind, LEAF)
        except TypeError:
            continue
        unchecked.append(kind)
    assert unchecked == ["ellipsis"], "which is made of nothing"
