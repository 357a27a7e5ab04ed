"""What ours saves, torch loads, and the other way round: every kind of value, in both containers."""

from __future__ import annotations

import collections
import io
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from holdfast import compat
from tests.compat.conftest import Pair

pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{text}")
    for text in ("Sparse CSR", "torch.quantize_per_tensor", "The PyTorch API of nested", "TypedStorage is deprecated")
]


def sparse() -> torch.Tensor:
    return torch.sparse_coo_tensor(torch.tensor([[0, 1], [2, 0]]), torch.tensor([3.0, 4.0]), (2, 3)).coalesce()


def shared() -> list[torch.Tensor]:
    base = torch.arange(12.0)
    return [base, base[3:7], base.view(3, 4).t(), base[::2]]


VALUES: dict[str, Callable[[], Any]] = {
    "plain": lambda: {"a": 1, "b": [1.5, None, True, "text", b"bytes", 2j], "c": (1, 2), "d": {3, 4}, 5: "five"},
    "ordered": lambda: collections.OrderedDict(a=torch.ones(2)),
    "state_dict": lambda: nn.BatchNorm1d(3).state_dict(),
    "shared": shared,
    "empty": lambda: [torch.empty(0), torch.empty(2, 0, 3)],
    "scalar": lambda: torch.tensor(3.5),
    "strided": lambda: torch.arange(24.0).view(2, 3, 4).permute(2, 0, 1),
    "expanded": lambda: torch.ones(1, 3).expand(4, 3),
    "parameter": lambda: nn.Parameter(torch.ones(2), requires_grad=False),
    "requires_grad": lambda: torch.ones(2, requires_grad=True),
    "sparse": sparse,
    "csr": lambda: torch.eye(3).to_sparse_csr(),
    "quantized": lambda: torch.quantize_per_tensor(torch.arange(6.0), 0.5, 1, torch.qint8),
    "per channel": lambda: torch.quantize_per_channel(
        torch.arange(6.0).view(2, 3), torch.tensor([0.5, 0.25]), torch.tensor([0, 1]), 0, torch.quint8
    ),
    "conjugate": lambda: torch.tensor([1 + 2j]).conj(),
    "meta": lambda: torch.empty(2, 3, device="meta"),
    "torch values": lambda: [torch.Size([1, 2]), torch.device("cpu"), torch.float16, torch.strided],
    "typed storage": lambda: torch.ones(3)._typed_storage(),
    "untyped storage": lambda: torch.arange(5, dtype=torch.uint8).untyped_storage(),
    "big": lambda: torch.arange(3_000_000),
    **{
        str(dtype): lambda dtype=dtype: torch.arange(8).to(dtype)
        for dtype in (torch.float64, torch.bfloat16, torch.float16, torch.complex64, torch.int8, torch.bool)
    },
    **{
        str(dtype): lambda dtype=dtype: torch.arange(8, dtype=torch.uint8).view(dtype)
        for dtype in (torch.float8_e4m3fn, torch.float8_e5m2, torch.uint16, torch.uint32)
    },
}
ZIP_ONLY = {"torch.float8_e4m3fn", "torch.float8_e5m2", "torch.uint16", "torch.uint32", "untyped storage"}
"""What torch writes into a stream and can't read from it; ours reads them."""


def same(left: Any, right: Any) -> None:
    """Asserts type, layout and bits. Torch gives a typed storage of bytes where an untyped one was saved."""
    if isinstance(right, torch.UntypedStorage):
        right = torch.TypedStorage(wrap_storage=right, dtype=torch.uint8, _internal=True)
    assert type(left) is type(right)
    if isinstance(left, torch.storage.TypedStorage):
        assert left.dtype == right.dtype
        assert left._untyped_storage.tolist() == right._untyped_storage.tolist()
    elif isinstance(left, torch.Tensor):
        same_tensor(left, right)
    elif isinstance(left, dict):
        assert list(left) == list(right)
        for key in left:
            same(left[key], right[key])
        assert getattr(left, "_metadata", None) == getattr(right, "_metadata", None)
    elif isinstance(left, list | tuple):
        assert len(left) == len(right)
        for one, other in zip(left, right, strict=True):
            same(one, other)
    else:
        assert left == right


def same_tensor(left: torch.Tensor, right: torch.Tensor) -> None:
    facts = [
        (t.dtype, t.shape, t.layout, t.device, t.requires_grad, t.is_conj(), t.is_quantized) for t in (left, right)
    ]
    assert facts[0] == facts[1]
    if left.is_meta:
        return
    if left.is_quantized:
        assert left.qscheme() == right.qscheme()
        left, right = left.dequantize(), right.dequantize()
    if left.layout is torch.strided:
        assert left.stride() == right.stride()
    dense = [t.detach().to_dense().resolve_conj().contiguous().flatten() for t in (left, right)]
    assert torch.equal(dense[0].view(torch.uint8), dense[1].view(torch.uint8))


@pytest.mark.parametrize("kind", VALUES)
def test_round_trip(kind: str, pair: Pair, layout: dict[str, bool]) -> None:
    if kind in ZIP_ONLY and pair.load is torch.load and not layout["_use_new_zipfile_serialization"]:
        pytest.skip("torch can't read this out of a stream")
    torch.manual_seed(0)
    value = VALUES[kind]()
    buffer = io.BytesIO()
    pair.save(value, buffer, **layout)
    buffer.seek(0)
    same(pair.load(buffer, weights_only=True), value)
    buffer.seek(0)
    if kind not in ZIP_ONLY or layout["_use_new_zipfile_serialization"] or pair.load is compat.load:
        same(pair.load(buffer, weights_only=False), value)


def test_memory_stays_shared(pair: Pair, layout: dict[str, bool]) -> None:
    buffer = io.BytesIO()
    equal = torch.ones(4)
    pair.save({"views": shared(), "one": equal, "two": equal, "copy": equal.clone()}, buffer, **layout)
    buffer.seek(0)
    loaded = pair.load(buffer)
    base, part, *_ = loaded["views"]
    part.fill_(-1)
    assert base[3:7].tolist() == [-1.0] * 4
    assert loaded["one"] is loaded["two"]
    assert loaded["copy"].data_ptr() != loaded["one"].data_ptr()


def test_a_storage_and_a_tensor_over_it_share(pair: Pair) -> None:
    buffer = io.BytesIO()
    tensor = torch.arange(4, dtype=torch.uint8)
    pair.save([tensor.untyped_storage(), tensor], buffer)
    buffer.seek(0)
    storage, loaded = pair.load(buffer)
    assert storage._untyped_storage.data_ptr() == loaded.data_ptr()


class Net(nn.Module):
    """A module that is pickled whole."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)  # type: ignore[no-any-return]


def test_whole_modules(pair: Pair, layout: dict[str, bool]) -> None:
    net = Net()
    buffer = io.BytesIO()
    pair.save(net, buffer, **layout)
    buffer.seek(0)
    loaded = pair.load(buffer, weights_only=False)
    assert type(loaded) is Net
    same(loaded.state_dict(), net.state_dict())


def test_what_torch_reads_of_a_stream_is_what_ours_reads() -> None:
    """fp8 in a stream: torch can't read what it wrote."""
    value = VALUES["torch.float8_e4m3fn"]()
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=False)
    buffer.seek(0)
    same(compat.load(buffer), value)


def test_nothing_is_said(pair: Pair, layout: dict[str, bool]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        buffer = io.BytesIO()
        pair.save({"net": nn.Linear(2, 2).state_dict(), "storage": torch.ones(2)._typed_storage()}, buffer, **layout)
        buffer.seek(0)
        pair.load(buffer)


def test_nested_tensors_of_a_stream() -> None:
    """Their values are read while they are unpickled; torch has not read the bytes by then."""
    value = torch.nested.nested_tensor([torch.ones(2), torch.zeros(3)])
    buffer = io.BytesIO()
    compat.save(value, buffer, _use_new_zipfile_serialization=False)
    buffer.seek(0)
    loaded = compat.load(buffer)
    assert [part.tolist() for part in loaded.unbind()] == [[1.0, 1.0], [0.0, 0.0, 0.0]]
