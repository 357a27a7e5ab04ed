"""Tensors of every sort through both formats: values, types, strides, sharing."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import holdfast
from holdfast.errors import CorruptFile, UnsupportedValue
from holdfast.formats.base import Segment, StoredTensor
from holdfast.serialization.lowering import DTYPE_NAMES
from holdfast.serialization.reading import live_dtype, read_tree
from holdfast.spec import TensorSpec
from holdfast.storage.source import MemorySource

FORMATS = ["pt", "safetensors"]
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*beta state:UserWarning",
    "ignore:ComplexHalf support:UserWarning",
    "ignore:Sparse invariant checks:UserWarning",
    "ignore:TypedStorage is deprecated:UserWarning",
    "ignore:.*prototype stage:UserWarning",
    "ignore:.*quantize.*deprecat:UserWarning",
)


def written(value: Any, form: str) -> tuple[io.BytesIO, holdfast.api.Saved]:  # type: ignore[name-defined]
    stream = io.BytesIO()
    saved = holdfast.save(value, stream, format=form)  # type: ignore[arg-type]
    stream.seek(0)
    return stream, saved


def there_and_back(value: Any, form: str) -> Any:
    return holdfast.load(written(value, form)[0])


def raw(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.contiguous().untyped_storage()) if tensor.numel() else b""


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (5,), (2, 3)], ids=str)
@pytest.mark.parametrize("dtype", sorted(DTYPE_NAMES, key=str), ids=str)
def test_every_dtype(dtype: torch.dtype, shape: tuple[int, ...], form: str) -> None:
    if str(dtype).startswith(("torch.q", "torch.quint")):
        pytest.skip("made by quantization only")
    tensor = torch.empty(0, dtype=dtype)
    size = tensor.element_size() * TensorSpec("uint8", shape).numel
    tensor.set_(torch.arange(size, dtype=torch.uint8).untyped_storage(), 0, shape)
    if dtype is torch.bool:
        tensor = torch.arange(TensorSpec("uint8", shape).numel).reshape(shape) % 2 == 0
    loaded = there_and_back({"t": tensor}, form)["t"]
    assert loaded.dtype == dtype
    assert loaded.shape == tensor.shape
    assert loaded.stride() == tensor.stride()
    assert bytes(loaded.untyped_storage()) == bytes(tensor.untyped_storage())


LAYOUTS: dict[str, Callable[[], torch.Tensor]] = {
    "transposed": lambda: torch.arange(6.0).reshape(2, 3).t(),
    "channels_last": lambda: torch.arange(120.0).reshape(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "permuted": lambda: torch.arange(24.0).reshape(2, 3, 4).permute(1, 2, 0),
    "with_ones": lambda: torch.arange(6.0).reshape(1, 6, 1).transpose(0, 1),
}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", LAYOUTS)
def test_dense_layouts_keep_their_strides(name: str, form: str) -> None:
    tensor = LAYOUTS[name]()
    stream, _ = written({"t": tensor}, form)
    loaded = holdfast.load(stream)["t"]
    assert torch.equal(loaded, tensor)
    assert loaded.stride() == tensor.stride()
    if form == "pt":
        stream.seek(0)
        theirs = torch.load(stream, weights_only=True)["t"]
        assert torch.equal(theirs, tensor)
        assert theirs.stride() == tensor.stride()


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    "view",
    [lambda x: x[:10], lambda x: x[500:510], lambda x: x[::100], lambda x: x.reshape(10, 100)[:, 3], lambda x: x[3]],
    ids=["head", "middle", "stepped", "column", "scalar"],
)
def test_a_view_of_a_large_tensor_stores_only_itself(view: Callable[[torch.Tensor], torch.Tensor], form: str) -> None:
    large = torch.arange(100_000.0)
    small = view(large[:1000])
    stream, saved = written({"t": small}, form)
    assert saved.bytes < 6000
    loaded = holdfast.load(stream)["t"]
    assert torch.equal(loaded, small)
    assert loaded.untyped_storage().nbytes() == small.numel() * 4


@pytest.mark.parametrize("form", FORMATS)
def test_an_expanded_tensor(form: str) -> None:
    tensor = torch.tensor([1.0, 2.0]).reshape(2, 1).expand(2, 50_000)
    stream, saved = written({"t": tensor}, form)
    loaded = holdfast.load(stream)["t"]
    assert torch.equal(loaded, tensor)
    if form == "pt":
        assert saved.bytes < 6000
        assert loaded.stride() == (1, 0)
        stream.seek(0)
        assert torch.equal(torch.load(stream, weights_only=True)["t"], tensor)


@pytest.mark.parametrize("form", FORMATS)
def test_tied_weights_are_stored_once_and_tied_again(form: str) -> None:
    shared = torch.randn(100, 100)
    stream, saved = written({"a": shared, "deep": [shared, {"b": shared}]}, form)
    assert saved.bytes < 2 * 40_000
    loaded = holdfast.load(stream)
    loaded["a"][0, 0] = 7.0
    assert loaded["deep"][0][0, 0] == 7.0
    assert loaded["deep"][1]["b"].data_ptr() == loaded["a"].data_ptr()


@pytest.mark.parametrize("form", FORMATS)
def test_overlapping_views_share_memory_again(form: str) -> None:
    base = torch.arange(1000.0)
    tree = {"tail": base[600:], "all": base, "grid": base[:100].reshape(10, 10).t(), "step": base[::2]}
    stream, saved = written(tree, form)
    assert saved.bytes < 4000 + 4000
    loaded = holdfast.load(stream)
    for name, tensor in tree.items():
        assert torch.equal(loaded[name], tensor)
        assert loaded[name].stride() == tensor.stride()
    loaded["all"][600] = -1.0
    assert loaded["tail"][0] == -1.0
    assert loaded["step"][300] == -1.0


@pytest.mark.parametrize("form", FORMATS)
def test_separate_parts_of_one_storage_stay_separate(form: str) -> None:
    base = torch.arange(100_000.0)
    stream, saved = written([base[:10], base[-10:]], form)
    assert saved.bytes < 6000
    first, last = holdfast.load(stream)
    assert torch.equal(first, base[:10])
    assert torch.equal(last, base[-10:])


@pytest.mark.parametrize("form", FORMATS)
def test_the_same_memory_under_two_dtypes_is_said(form: str) -> None:
    base = torch.arange(8.0)
    stream, saved = written({"f": base, "i": base.view(torch.int32), "other": torch.ones(1)}, form)
    assert [note for note in saved.notes if "share memory under several dtypes" in note] == [
        "`f`, `i` share memory under several dtypes: stored apart, no longer shared when loaded"
    ]
    loaded = holdfast.load(stream)
    assert torch.equal(loaded["f"], base)
    assert torch.equal(loaded["i"], base.view(torch.int32))


SPARSE: dict[str, Callable[[], torch.Tensor]] = {
    "coo": lambda: torch.eye(4).to_sparse(),
    "coo_uncoalesced": lambda: torch.sparse_coo_tensor(torch.tensor([[0, 0]]), torch.ones(2), (3,)),
    "coo_hybrid": lambda: torch.sparse_coo_tensor(torch.tensor([[0, 2]]), torch.ones(2, 5), (3, 5)),
    "coo_empty": lambda: torch.sparse_coo_tensor(torch.zeros(2, 0, dtype=torch.int64), torch.zeros(0), (2, 3)),
    "csr": lambda: torch.eye(4).to_sparse_csr(),
    "csc": lambda: torch.eye(4).to_sparse_csc(),
    "bsr": lambda: torch.eye(4).to_sparse_bsr((2, 2)),
    "bsc": lambda: torch.eye(4).to_sparse_bsc((2, 2)),
}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", SPARSE)
def test_sparse(name: str, form: str) -> None:
    tensor = SPARSE[name]()
    stream, _ = written({"t": tensor}, form)
    loaded = holdfast.load(stream)["t"]
    assert loaded.layout == tensor.layout
    assert loaded.shape == tensor.shape
    assert torch.equal(loaded.to_dense(), tensor.to_dense())
    if name.startswith("coo"):
        assert loaded.is_coalesced() == tensor.is_coalesced()
        assert torch.equal(loaded._indices(), tensor._indices())
    if form == "pt":
        stream.seek(0)
        assert torch.equal(torch.load(stream, weights_only=True)["t"].to_dense(), tensor.to_dense())


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("dtype", [torch.qint8, torch.quint8, torch.qint32])
def test_quantized_per_tensor(dtype: torch.dtype, form: str) -> None:
    tensor = torch.quantize_per_tensor(torch.randn(4, 5), 0.1, 3, dtype)
    loaded = there_and_back({"t": tensor}, form)["t"]
    assert loaded.dtype == dtype
    assert (loaded.q_scale(), loaded.q_zero_point()) == (0.1, 3)
    assert torch.equal(loaded.int_repr(), tensor.int_repr())


@pytest.mark.parametrize("form", FORMATS)
def test_quantized_per_channel(form: str) -> None:
    scales, zeros = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64), torch.tensor([0, 1, 2])
    tensor = torch.quantize_per_channel(torch.randn(2, 3), scales, zeros, 1, torch.qint8)
    stream, _ = written({"t": tensor}, form)
    loaded = holdfast.load(stream)["t"]
    assert loaded.q_per_channel_axis() == 1
    assert torch.equal(loaded.q_per_channel_scales(), scales)
    assert torch.equal(loaded.q_per_channel_zero_points(), zeros)
    assert torch.equal(loaded.int_repr(), tensor.int_repr())
    if form == "pt":
        stream.seek(0)
        assert torch.equal(torch.load(stream, weights_only=True)["t"].int_repr(), tensor.int_repr())


@pytest.mark.parametrize("form", FORMATS)
def test_meta_tensors_stay_without_bytes(form: str) -> None:
    tensor = torch.empty(10_000, 1000, device="meta", dtype=torch.bfloat16).t()
    stream, saved = written({"t": tensor, "p": nn.Parameter(torch.empty(3, device="meta"))}, form)
    assert saved.bytes < 6000
    loaded = holdfast.load(stream)
    assert loaded["t"].is_meta
    assert (loaded["t"].shape, loaded["t"].stride(), loaded["t"].dtype) == (tensor.shape, tensor.stride(), tensor.dtype)
    assert isinstance(loaded["p"], nn.Parameter)
    assert loaded["p"].is_meta


@pytest.mark.parametrize("form", FORMATS)
def test_conjugate_and_negative_views_store_what_they_show(form: str) -> None:
    base = torch.tensor([1 + 2j, 3 - 4j])
    tree = {"conj": base.conj(), "imag": base.conj().imag, "base": base}
    loaded = there_and_back(tree, form)
    for name, tensor in tree.items():
        assert torch.equal(loaded[name], tensor), name
        assert not loaded[name].is_conj()


@pytest.mark.parametrize("form", FORMATS)
def test_requires_grad_parameters_and_graphs(form: str) -> None:
    leaf = torch.ones(2, requires_grad=True)
    tree = {
        "leaf": leaf,
        "graph": leaf * 2,
        "parameter": nn.Parameter(torch.ones(3)),
        "frozen": nn.Parameter(torch.ones(3), requires_grad=False),
        "sparse": nn.Parameter(torch.eye(2).to_sparse()),
        "plain": torch.ones(1),
    }
    stream, saved = written(tree, form)
    assert saved.notes == ["`graph` has a graph: stored detached, without requires_grad"]
    loaded = holdfast.load(stream)
    assert {name: tensor.requires_grad for name, tensor in loaded.items()} == {
        "leaf": True,
        "graph": False,
        "parameter": True,
        "frozen": False,
        "sparse": True,
        "plain": False,
    }
    assert {name for name, tensor in loaded.items() if isinstance(tensor, nn.Parameter)} == {
        "parameter",
        "frozen",
        "sparse",
    }
    assert all(tensor.grad_fn is None for tensor in loaded.values())


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
def test_attributes_and_storages_that_torch_stored_come_back() -> None:
    tensor = torch.ones(3)
    tensor.mine = {"a": (1, 2)}  # type: ignore[attr-defined]
    parameter = nn.Parameter(torch.ones(2))
    parameter.decay = 0.1  # type: ignore[attr-defined]
    bare = torch.arange(3)
    stream = io.BytesIO()
    torch.save({"t": tensor, "p": parameter, "typed": torch.ones(2).storage(), "bare": bare.untyped_storage()}, stream)
    stream.seek(0)
    loaded = holdfast.load(stream)
    assert loaded["t"].mine == {"a": (1, 2)}
    assert loaded["p"].decay == 0.1
    assert loaded["typed"].dtype == torch.float32
    assert loaded["typed"].tolist() == [1.0, 1.0]
    assert bytes(loaded["bare"]) == bytes(bare.untyped_storage())


def test_a_dtype_that_this_torch_lacks() -> None:
    with pytest.raises(UnsupportedValue, match=r"this torch \(.*\) has no dtype float3_e1m1; a newer one can load"):
        live_dtype(TensorSpec("float3_e1m1", ()))
    assert live_dtype(TensorSpec("qint8", ())) is torch.int8


@pytest.mark.parametrize("form", FORMATS)
def test_one_changed_byte_is_located(form: str) -> None:
    stream, _ = written({"a": torch.ones(10), "b": {"w": torch.full((1000,), 7.0)}}, form)
    data = bytearray(stream.getvalue())
    at = data.index(torch.full((4,), 7.0).numpy().tobytes())
    data[at + 401] ^= 1
    with pytest.raises(CorruptFile, match=r"at byte [\d,]+: .* the file says .*: corrupt. Nothing") as caught:
        holdfast.load(io.BytesIO(bytes(data)))
    assert caught.value.offset is not None
    assert caught.value.path == "b.w"
    assert "`b.w`" in str(caught.value)


def test_large_strided_tensors_go_through_blocks() -> None:
    base = torch.randn(3000, 2100)
    tree = {"cut": base[:, :2000], "other": base.double()[:, ::2]}
    for form in FORMATS:
        loaded = there_and_back(tree, form)
        assert torch.equal(loaded["cut"], tree["cut"])
        assert torch.equal(loaded["other"], tree["other"])


def test_a_dtype_that_no_file_knows_is_refused() -> None:
    with pytest.raises(UnsupportedValue, match=r"`w`: dtype torch\.int4 is unknown to this version"):
        holdfast.save({"w": torch.empty(2, dtype=torch.int4)}, io.BytesIO())


def test_a_tensor_that_begins_inside_an_element_is_corrupt() -> None:
    segment = Segment(MemorySource(bytes(16)), 0, 16, "data/0")
    leaf = StoredTensor(TensorSpec("float32", (2,)), segment, 2)
    with pytest.raises(CorruptFile, match="`data/0`: a float32 tensor begins at byte 2 of it, inside an element"):
        read_tree({"w": leaf}, "f.pt")
