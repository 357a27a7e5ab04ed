"""Values of numpy shown without numpy."""

from __future__ import annotations

import numpy as np
import pytest

from holdfast.state.foreign import scalar_text
from holdfast.state.tree_view import value_lines
from holdfast.state.values import Typed


@pytest.mark.parametrize(
    "value",
    [np.float64(0.9), np.float32(0.5), np.float16(2), np.int64(-3), np.uint8(7), np.bool_(True), np.float64("nan")],
)
def test_scalars_as_text(value: np.generic) -> None:
    for order in "<>":
        there = np.array(value).astype(value.dtype.newbyteorder(order))
        payload = {
            "dtype": np.dtype(value.dtype).newbyteorder(order).str,
            "data": np.array(there, there.dtype.newbyteorder(order)).tobytes(),
        }
        assert scalar_text(payload) == repr(value.item())


@pytest.mark.parametrize(
    "payload",
    [None, {}, {"dtype": "<f8", "data": b"123"}, {"dtype": "<M8[s]", "data": b"12345678"}, {"dtype": "", "data": b""}],
)
def test_what_only_numpy_reads_or_nobody(payload: object) -> None:
    assert scalar_text(payload) is None


def test_a_scalar_is_one_line_of_a_tree() -> None:
    tree = {"acc": Typed("numpy.scalar", {"dtype": "<f8", "data": np.float64(0.9).tobytes()})}
    assert list(value_lines(tree)) == [("acc", "0.9")]
