"""Tensors of several shapes, of few bits, without memory, and of classes that are not torch's."""

from __future__ import annotations

import io
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import holdfast
from holdfast.errors import CorruptFile, UnsupportedValue, UntrustedType
from holdfast.formats.base import Segment, StoredTensor
from holdfast.serialization.kinds import TENSOR_KINDS
from holdfast.serialization.reading import read_tree
from holdfast.spec import TensorSpec
from holdfast.state.values import Typed
from holdfast.storage.source import MemorySource

pytestmark = [
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors"),
    pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor"),
    pytest.mark.filterwarnings("ignore:TypedStorage is deprecated"),
]

FORMATS = ["pt", "safetensors"]
WRITERS = ["torch", "torch-legacy", *FORMATS]

SOURCE = """
import torch

class Tagged(torch.Tensor):
    pass

class Doubled(torch.Tensor):
    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        inside = [arg.inner if isinstance(arg, cls) else arg for arg in args]
        return func(*inside, **(kwargs or {}))

class Keeping(torch.Tensor):
    def __setstate__(self, state):
        self.kept = state["kept"]

class Marked(torch.nn.Parameter):
    pass
"""


@pytest.fixture(autouse=True)
def theirs(monkeypatch: pytest.MonkeyPatch) -> Any:
    module = types.ModuleType("their_tensors")
    monkeypatch.setitem(sys.modules, "their_tensors", module)
    exec(SOURCE, module.__dict__)
    return module


def written(value: Any, writer: str) -> io.BytesIO:
    """A file; the name in `WRITERS` says who wrote it."""
    stream = io.BytesIO()
    if writer.startswith("torch"):
        torch.save(value, stream, _use_new_zipfile_serialization=writer == "torch")
    else:
        holdfast.save(value, stream, format=writer)
    stream.seek(0)
    return stream


def stored(tensor: torch.Tensor) -> StoredTensor:
    """A tensor as a leaf of a file that lies."""
    data = tensor.contiguous().numpy().tobytes()
    spec = TensorSpec(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
    return StoredTensor(spec, Segment(MemorySource(data), 0, len(data)))


# -- nested


NESTED: dict[str, Callable[[], torch.Tensor]] = {
    "two": lambda: torch.nested.nested_tensor([torch.arange(6.0).reshape(2, 3), torch.ones(3, 5)]),
    "transposed": lambda: torch.nested.nested_tensor([torch.arange(6.0).reshape(2, 3), torch.ones(4, 3)]).transpose(
        1, 2
    ),
    "bools": lambda: torch.nested.nested_tensor([torch.ones(2) > 0, torch.zeros(3) > 0]),
    "some_empty": lambda: torch.nested.nested_tensor([torch.ones(0, 3), torch.ones(2, 3)]),
    "none": lambda: torch.nested.nested_tensor([]),
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("name", NESTED)
def test_nested(name: str, writer: str) -> None:
    tensor = NESTED[name]()
    stream = written({"t": tensor, "w": torch.ones(2)}, writer)
    loaded = holdfast.load(stream)["t"]
    assert loaded.is_nested
    assert loaded.dtype == tensor.dtype
    assert len(loaded.unbind()) == len(tensor.unbind())
    assert all(torch.equal(a, b) for a, b in zip(loaded.unbind(), tensor.unbind(), strict=True))
    if writer == "pt" and name != "none":  # which torch writes and can't read
        stream.seek(0)
        theirs = torch.load(stream, weights_only=True)["t"]
        assert all(torch.equal(a, b) for a, b in zip(theirs.unbind(), tensor.unbind(), strict=True))


def test_nested_sizes_of_another_dtype() -> None:
    parts = {"data": torch.ones(6), "sizes": torch.tensor([[6]], dtype=torch.int32), "strides": torch.tensor([[1]])}
    tree = Typed("nested", {name: stored(part) for name, part in (parts | {"offsets": torch.tensor([0])}).items()})
    with pytest.raises(CorruptFile, match="a nested tensor whose sizes are not all int64"):
        read_tree(tree, "f.pt")


@pytest.mark.parametrize("form", FORMATS)
def test_nested_with_gradient(form: str) -> None:
    tensor = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], requires_grad=True)
    assert holdfast.load(written([tensor], form))[0].requires_grad


def test_nested_in_the_old_stream_is_refused_since_torch_would_read_garbage(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedValue, match=r"`t`: a nested tensor in the stream of torch < 1.6.*; store unbind"):
        holdfast.save({"t": NESTED["two"]()}, tmp_path / "f.pt", format="torch-legacy")


@pytest.mark.parametrize(
    ("size", "step", "start"),
    [([2, 3], [3, 1], 1), ([2, -3], [3, 1], 0), ([2, 3], [3, -1], 0), ([2, 3], [3, 1], -1), ([1 << 62, 3], [3, 1], 0)],
)
def test_a_nested_tensor_that_reaches_outside_its_buffer(size: list[int], step: list[int], start: int) -> None:
    parts = {"data": torch.ones(6), "sizes": torch.tensor([size]), "strides": torch.tensor([step])}
    tree = Typed("nested", {name: stored(part) for name, part in (parts | {"offsets": torch.tensor([start])}).items()})
    with pytest.raises(CorruptFile, match=r"`f.pt`: a value of kind 'nested' is damaged: a nested tensor of shape"):
        read_tree(tree, "f.pt")


# -- jagged


def jagged(**options: Any) -> Any:
    return torch.nested.nested_tensor([torch.arange(3.0), torch.arange(2.0)], layout=torch.jagged, **options)


def turned(parts: list[torch.Tensor]) -> Any:
    return torch.nested.nested_tensor(parts, layout=torch.jagged).transpose(1, 2)


JAGGED: dict[str, Callable[[], Any]] = {
    "plain": jagged,
    "gradient": lambda: jagged(requires_grad=True),
    "lengths": lambda: torch.nested.narrow(
        torch.arange(20.0).reshape(2, 10), 1, torch.tensor([0, 3]), torch.tensor([4, 5]), layout=torch.jagged
    ),
    "transposed": lambda: turned([torch.ones(3, 4), torch.zeros(2, 4)]),
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("name", JAGGED)
def test_jagged(name: str, writer: str) -> None:
    tensor = JAGGED[name]()
    stream = written({"t": tensor}, writer)
    loaded = holdfast.load(stream)["t"]
    assert loaded.layout is torch.jagged
    assert loaded.requires_grad == tensor.requires_grad
    assert loaded._ragged_idx == tensor._ragged_idx
    assert all(torch.equal(a, b) for a, b in zip(loaded.unbind(), tensor.unbind(), strict=True))
    assert loaded._metadata_cache.keys() == tensor._metadata_cache.keys()
    if writer == "pt":
        stream.seek(0)
        theirs = torch.load(stream, weights_only=True)["t"]
        assert theirs.requires_grad == tensor.requires_grad
        assert all(torch.equal(a, b) for a, b in zip(theirs.unbind(), tensor.unbind(), strict=True))


def test_a_jagged_tensor_of_a_graph_is_said_to_be_detached() -> None:
    saved = holdfast.save([jagged(requires_grad=True) * 2], io.BytesIO())
    assert saved.notes == ["`0` has a graph: stored detached, without requires_grad"]


@pytest.mark.parametrize(
    ("offsets", "lengths", "dimension", "message"),
    [
        ([0, 3, 9], None, 1, "a jagged tensor that reaches past its 5 elements"),
        ([0, -3, 5], None, 1, "reaches past"),
        ([4, 2, 5], None, 1, "reaches past"),
        ([0, 3, 5], [3, 3], 1, "reaches past"),
        ([0, 3, 5], [3], 1, "offsets and lengths disagree"),
        ([0.0, 5.0], None, 1, "offsets and lengths disagree"),
        ([0, 3, 5], None, 2, "of 1 dimensions with dimension 2 jagged"),
        ([], None, 1, "of 1 dimensions with"),
    ],
)
def test_a_jagged_tensor_that_lies(offsets: list[int], lengths: Any, dimension: int, message: str) -> None:
    payload = {"data": stored(torch.ones(5)), "offsets": stored(torch.tensor(offsets)), "dimension": dimension}
    payload["lengths"] = None if lengths is None else stored(torch.tensor(lengths))
    with pytest.raises(CorruptFile, match=message):
        read_tree(Typed("jagged", payload | {"shortest": 1, "longest": 9, "requires_grad": False}), "f.pt")


def test_the_extremes_of_lengths_are_worked_out_and_not_believed() -> None:
    payload = {"data": stored(torch.ones(5)), "offsets": stored(torch.tensor([0, 3, 5])), "lengths": None}
    numbers = {"dimension": 1, "shortest": 0, "longest": 1 << 40, "requires_grad": False}
    loaded = read_tree(Typed("jagged", payload | numbers), "f.pt")
    assert (loaded._get_min_seqlen(), loaded._get_max_seqlen()) == (2, 3)


# -- quantized with parameters of floats, and several elements to a byte


def floating(dtype: torch.dtype, columns: int = 6) -> torch.Tensor:
    values = torch.arange(4.0 * columns).reshape(4, columns)
    scales, zeros = torch.tensor([0.5, 1.0, 2.0, 3.0]), torch.tensor([0.25, 1.0, 0.0, 2.0])
    return torch.quantize_per_channel(values, scales, zeros, 0, dtype)


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("columns", [6, 5])
@pytest.mark.parametrize("dtype", [torch.quint8, torch.quint4x2, torch.quint2x4])
def test_parameters_of_floats_and_packed_elements(dtype: torch.dtype, columns: int, writer: str) -> None:
    tensor = floating(dtype, columns)
    stream = written({"t": tensor}, writer)
    loaded = holdfast.load(stream)["t"]
    assert loaded.qscheme() is torch.per_channel_affine_float_qparams
    assert loaded.dtype is dtype
    assert torch.equal(loaded.dequantize(), tensor.dequantize())
    if writer == "pt":
        stream.seek(0)
        assert torch.equal(torch.load(stream, weights_only=True)["t"].dequantize(), tensor.dequantize())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"axis": 2}, r"axis 2 of a tensor of shape \(4, 6\)"),
        ({"axis": True}, "axis True"),
        ({"scales": torch.ones(3)}, r"\(3,\) scales, \(4,\) zero points, 4 channels"),
        ({"zero_points": torch.ones(5)}, "5,"),
        ({"scheme": "per_universe"}, "quantization scheme 'per_universe' is unknown"),
        ({"data": torch.ones(4, 6)}, "a quantized tensor of torch.float32"),
        ({"packed": "quint4x2", "shape": [4, 6]}, "size|shape"),
    ],
)
def test_a_quantized_tensor_that_lies(changes: dict[str, Any], message: str) -> None:
    parts = {"data": torch.ones(4, 6, dtype=torch.uint8), "scales": torch.ones(4), "zero_points": torch.ones(4)}
    payload = {"scheme": "per_channel_affine_float_qparams", "axis": 0, **parts, **changes}
    with pytest.raises(CorruptFile, match=f"of kind 'quantized' is damaged: .*{message}"):
        read_tree(
            Typed("quantized", {k: stored(v) if isinstance(v, torch.Tensor) else v for k, v in payload.items()}), "f"
        )


# -- attributes and hooks


@pytest.mark.parametrize("form", FORMATS)
def test_attributes_come_back_and_others_are_said(form: str) -> None:
    tensor, parameter = torch.ones(3), nn.Parameter(torch.ones(2))
    tensor.mine = {"a": (1, 2), "t": torch.zeros(2)}  # type: ignore[attr-defined]
    tensor.call = print  # type: ignore[attr-defined]
    parameter.decay = 0.1  # type: ignore[attr-defined]
    hooked = torch.ones(3, requires_grad=True)
    hooked.register_hook(lambda grad: grad)
    stream = io.BytesIO()
    saved = holdfast.save({"t": tensor, "p": parameter, "h": hooked}, stream, format=form)
    assert saved.notes[-2:] == [
        "`t`: its attribute call, a builtin_function_or_method, can't be stored and is left out",
        "`h` has hooks (functions), which are not stored",
    ]
    stream.seek(0)
    loaded = holdfast.load(stream)
    assert loaded["t"].mine["a"] == (1, 2)
    assert torch.equal(loaded["t"].mine["t"], torch.zeros(2))
    assert not hasattr(loaded["t"], "call")
    assert isinstance(loaded["p"], nn.Parameter)
    assert loaded["p"].decay == 0.1
    assert loaded["h"].requires_grad
    if form == "pt":
        stream.seek(0)
        theirs = torch.load(stream, weights_only=True)
        assert torch.equal(theirs["t"], tensor)
        assert theirs["p"].decay == 0.1


def test_a_tensor_that_is_its_own_attribute() -> None:
    tensor = torch.ones(2)
    tensor.me = tensor  # type: ignore[attr-defined]
    stream = io.BytesIO()
    saved = holdfast.save({"t": tensor}, stream)
    assert saved.notes == ["`t`: its attribute me, a torch.Tensor, can't be stored and is left out"]


# -- classes of the user's own


def tagged(theirs: Any) -> torch.Tensor:
    tensor: torch.Tensor = torch.arange(6.0).reshape(2, 3).as_subclass(theirs.Tagged)
    tensor.tag = "x"  # type: ignore[attr-defined]
    return tensor


@pytest.mark.parametrize("writer", WRITERS)
def test_a_class_comes_back_when_it_is_trusted_and_its_bytes_always(theirs: Any, writer: str) -> None:
    tensor = tagged(theirs)
    stream = written({"t": tensor, "w": torch.ones(2)}, writer)
    loaded = holdfast.load(stream, trusted={"their_tensors.Tagged"})["t"]
    assert type(loaded) is theirs.Tagged
    assert loaded.tag == "x"
    assert torch.equal(loaded.as_subclass(torch.Tensor), torch.arange(6.0).reshape(2, 3))
    stream.seek(0)
    with pytest.raises(UntrustedType, match=r"not rebuilt from a file: their_tensors\.Tagged\. Ways on"):
        holdfast.load(stream)
    stream.seek(0)
    opaque = holdfast.load(stream, opaque=True)["t"]
    stream.seek(0)
    assert (opaque.type_name, opaque.state) == ("their_tensors.Tagged", {"tag": "x"})
    assert torch.equal(opaque.args[0], torch.arange(6.0).reshape(2, 3))
    with holdfast.open(stream) as ckpt:
        assert ckpt.keys() == ["t", "w"]
        assert torch.equal(ckpt["t"].read(), torch.arange(6.0).reshape(2, 3))


@pytest.mark.parametrize("writer", WRITERS)
def test_a_module_takes_the_bytes_of_a_class_that_nobody_trusts(theirs: Any, writer: str) -> None:
    net = nn.Linear(3, 2)
    stream = written({"weight": tagged(theirs), "bias": torch.ones(2)}, writer)
    report = holdfast.restore(stream, model=net)
    assert len(report.loaded) == 2
    assert torch.equal(net.weight, torch.arange(6.0).reshape(2, 3))


def test_in_a_pt_it_is_a_plain_tensor_to_torch(theirs: Any) -> None:
    loaded = torch.load(written({"t": tagged(theirs)}, "pt"), weights_only=True)["t"]
    assert type(loaded) is torch.Tensor
    assert torch.equal(loaded, torch.arange(6.0).reshape(2, 3))


@pytest.mark.parametrize("writer", WRITERS)
def test_parameters_of_a_class(theirs: Any, writer: str) -> None:
    parameter = nn.Parameter(torch.ones(2).as_subclass(theirs.Tagged))
    loaded = holdfast.load(written([parameter], writer), trusted={"their_tensors.Tagged"})[0]
    assert type(loaded) is theirs.Tagged
    assert isinstance(loaded, nn.Parameter)
    assert loaded.requires_grad
    assert loaded.is_leaf


@pytest.mark.parametrize("form", FORMATS)
def test_a_class_of_parameters_and_one_with_its_own_setstate(theirs: Any, form: str) -> None:
    marked, keeping = theirs.Marked(torch.ones(2)), torch.ones(3).as_subclass(theirs.Keeping)
    keeping.kept = 5
    names = {"their_tensors.Marked", "their_tensors.Keeping"}
    loaded = holdfast.load(written([marked, keeping], form), trusted=names)
    assert type(loaded[0]) is theirs.Marked
    assert loaded[0].requires_grad
    assert (type(loaded[1]), loaded[1].kept) == (theirs.Keeping, 5)


@pytest.mark.parametrize("writer", WRITERS)
def test_a_wrapper_is_made_of_its_attributes(theirs: Any, writer: str) -> None:
    stream = written({"t": theirs.Doubled(torch.arange(4.0))}, writer)
    loaded = holdfast.load(stream, trusted={"their_tensors.Doubled"})["t"]
    assert type(loaded) is theirs.Doubled
    assert (loaded.shape, loaded.dtype) == ((4,), torch.float32)
    assert torch.equal(loaded.inner, torch.arange(4.0))
    stream.seek(0)
    with pytest.raises(UntrustedType, match=r"their_tensors\.Doubled"):
        holdfast.load(stream)
    stream.seek(0)
    assert torch.equal(holdfast.load(stream, opaque=True)["t"].state["inner"], torch.arange(4.0))
    stream.seek(0)
    with holdfast.open(stream) as ckpt:
        assert torch.equal(ckpt["t.state.inner"].read(), torch.arange(4.0))
    if writer == "pt":
        stream.seek(0)
        assert torch.equal(torch.load(stream, weights_only=True)["t"]["inner"], torch.arange(4.0))


def test_a_class_that_changed(theirs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = written([tagged(theirs)], "pt")
    monkeypatch.setattr(theirs, "Tagged", type("Tagged", (), {}))
    with pytest.raises(CorruptFile, match=r"Tagged does not take .*: TypeError: it is no class of tensors"):
        holdfast.load(stream, trusted={"their_tensors.Tagged"})


# -- tensors of devices that are not here


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_tensors_of_other_devices_arrive_on_the_cpu(dtype: torch.dtype) -> None:
    wanted = torch.tensor([0.0, 1.0, 2.0, -3.0]).to(dtype).reshape(2, 2)

    class FromCpu:
        def __reduce__(self) -> Any:
            return torch._utils._rebuild_device_tensor_from_cpu_tensor, (wanted, dtype, "xla:0", True)

    class FromNumpy:
        def __reduce__(self) -> Any:
            array = wanted.float().numpy() if dtype is torch.bfloat16 else wanted.numpy()
            return torch._utils._rebuild_device_tensor_from_numpy, (array, dtype, "xla:0", False)

    loaded = holdfast.load(written([FromCpu() if dtype.is_floating_point else wanted, FromNumpy()], "torch"))
    assert [(one.dtype, one.device.type) for one in loaded] == [(dtype, "cpu")] * 2
    assert loaded[0].requires_grad == dtype.is_floating_point
    assert all(torch.equal(one, wanted) for one in loaded)


def test_numbers_that_are_no_bfloat16_stay_opaque() -> None:
    class FromNumpy:
        def __reduce__(self) -> Any:
            array = np.array([1.1], dtype=np.float32)
            return torch._utils._rebuild_device_tensor_from_numpy, (array, torch.bfloat16, "xla:0", False)

    with pytest.raises(UntrustedType, match="_rebuild_device_tensor_from_numpy"):
        holdfast.load(written([FromNumpy()], "torch"))


# -- what can't be stored


class Own(torch.Tensor):
    def __reduce_ex__(self, protocol: Any) -> Any:
        return Own, ()


def unstorable(theirs: Any) -> dict[str, Any]:
    doubled = theirs.Doubled(torch.ones(2))
    doubled.call = print
    inside = torch.Tensor._make_wrapper_subclass(theirs.Doubled, (2,), strides=(1,), storage_offset=1)
    sparse = torch.Tensor._make_wrapper_subclass(theirs.Doubled, (2, 2), layout=torch.sparse_csr)
    return {
        "inside": inside,
        "sparse": sparse,
        "own": torch.ones(2).as_subclass(Own),
        "lazy": nn.UninitializedParameter(),
        "wrapper": doubled,
    }


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("inside", r"class their_tensors\.Doubled can't be stored: it begins inside the memory of another"),
        ("sparse", r"class their_tensors\.Doubled can't be stored: it raises RuntimeError \(layout_impl"),
        ("own", r"class .*Own can't be stored: it is pickled in a way of its own\. Store its plain form"),
        ("lazy", r"class .*UninitializedParameter can't be stored: it is pickled in a way of its own"),
        ("wrapper", r"class their_tensors\.Doubled can't be stored: it has parts that can't \(`m\.0\.state\.call`"),
    ],
)
def test_classes_that_cant_be_stored(theirs: Any, name: str, message: str, form: str) -> None:
    with pytest.raises(UnsupportedValue, match=rf"`m\.0`: a tensor of {message}") as caught:
        written({"m": [unstorable(theirs)[name]]}, form)
    assert caught.value.path == "m.0"


@pytest.mark.parametrize("form", FORMATS)
def test_mkldnn_cant_be_stored(form: str) -> None:
    with pytest.raises(UnsupportedValue, match=r"`m.0`: layout _mkldnn can't be stored; store to_dense\(\)"):
        written({"m": [torch.ones(2, 2).to_mkldnn()]}, form)


def test_a_part_of_packed_elements_cant_be_stored() -> None:
    tensor = floating(torch.quint4x2)
    part = torch._empty_per_channel_affine_quantized(
        (2, 6), scales=torch.ones(2), zero_points=torch.ones(2), axis=0, dtype=torch.quint4x2
    )
    part.set_(tensor.untyped_storage(), 2, (2, 3), (3, 1))
    with pytest.raises(UnsupportedValue, match=r"`0`: a part of a quint4x2 tensor can't be stored; store dequantize"):
        holdfast.save([part], io.BytesIO())


def test_every_kind_has_its_maker() -> None:
    assert {"nested", "jagged", "subclass", "wrapper", "quantized", "attributed"} <= set(TENSOR_KINDS)
