"""The stream of torch < 1.6: read as torch reads it, and written so that torch reads it."""

from __future__ import annotations

import collections
import io
import logging
import pathlib
import struct
from typing import Any

import pytest
import torch

from holdfast.errors import UnsupportedValue
from holdfast.formats import legacy
from holdfast.formats.base import Document, Segment, StoredTensor
from holdfast.serialization.lowering import lower_state
from holdfast.serialization.reading import read_tree, verify_segments
from holdfast.spec import TensorSpec
from holdfast.state.values import Opaque, Typed
from holdfast.storage.atomic import replace_file
from holdfast.storage.source import FileSource, MemorySource

LONG = struct.Struct("<q")
pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor"),
    pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental"),
    pytest.mark.filterwarnings("ignore:TypedStorage is deprecated"),  # torch, when it reads quantized tensors
]


def saved(value: Any, **arguments: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=False, **arguments)
    return buffer.getvalue()


def opened(data: bytes) -> legacy.TorchLegacy:
    return legacy.open(MemorySource(data), "old.pt")


def load(data: bytes) -> Any:
    return read_tree(opened(data).document().tree, "old.pt")


def written(value: Any, path: pathlib.Path, **facts: Any) -> list[str]:
    with replace_file(path) as staged:
        told = legacy.write(staged, Document(lower_state(value, row_major=False).tree, **facts))
    return list(told["notes"])


def test_sniff() -> None:
    assert legacy.sniff(saved(1))
    assert legacy.sniff(saved(1, pickle_protocol=4))
    assert legacy.sniff(saved(1, pickle_protocol=1))
    assert not legacy.sniff(b"\x80\x02}.")
    assert not legacy.sniff(b"")


@pytest.mark.parametrize("protocol", [1, 2, 3, 4, 5])
def test_what_torch_writes(protocol: int) -> None:
    base = torch.arange(6.0)
    value = {"w": base.view(2, 3).t(), "part": base[2:4], "n": [1, "two", None], "e": torch.empty(0, 3)}
    loaded = load(saved(value, pickle_protocol=protocol))
    assert torch.equal(loaded["w"], value["w"])
    assert loaded["w"].stride() == (1, 3)
    assert loaded["w"].untyped_storage().data_ptr() == loaded["part"].untyped_storage().data_ptr()
    assert loaded["n"] == [1, "two", None]
    assert loaded["e"].shape == (0, 3)


def test_whole_modules_stay_inert() -> None:
    """Their classes stand in the stream as ("module", class, file, source)."""
    tree = opened(saved(torch.nn.Linear(2, 1))).document().tree
    assert type(tree) is Opaque
    assert tree.type_name == "torch.nn.modules.linear.Linear"
    assert tree.state["in_features"] == 2


def test_the_end_and_what_follows(caplog: pytest.LogCaptureFixture) -> None:
    first, second = saved([torch.ones(3)]), saved({"a": 1})
    container = opened(first + second)
    assert container.end == len(first)
    with caplog.at_level(logging.WARNING, logger="holdfast"):
        container.document()
    assert f"`old.pt`: {len(second)} bytes follow its first object and are left alone" in caplog.text
    caplog.clear()
    opened(first).document()
    assert not caplog.records


def test_nothing_can_be_verified_but_lengths() -> None:
    segments = opened(saved([torch.ones(3), torch.zeros(2)])).segments()
    assert sorted(segment.length for segment in segments) == [8, 12]
    assert verify_segments(segments) == 2


def test_a_large_pickle_is_read_in_growing_windows() -> None:
    value = {"text": "x" * 300_000, "w": torch.ones(2)}
    assert load(saved(value))["text"] == value["text"]


# -- what older torch wrote, by hand


def stream(pickled: bytes, storages: dict[str, tuple[int, bytes]]) -> bytes:
    """A stream of any object: its pickle, and (elements, bytes) of each storage."""
    frame = b"".join(request.source for request in legacy.stream_requests(b"\x80\x02" + pickled + b".", []))
    keys = b"".join(b"U%c%b" % (len(key), key.encode()) for key in sorted(storages))
    data = frame.removesuffix(b"\x80\x02](e.") + b"\x80\x02](" + keys + b"e."
    return data + b"".join(LONG.pack(storages[key][0]) + storages[key][1] for key in sorted(storages))


def old_text(value: str) -> bytes:
    """As Python 2 pickled it."""
    return b"U%c%b" % (len(value), value.encode())


def storage(key: str, elements: int, *, view: bytes = b"N", cls: str = "FloatStorage", module: str = "torch") -> bytes:
    name = f"c{module}\n{cls}\n".encode()
    return b"(%b%b%b%bK%c%btQ" % (old_text("storage"), name, old_text(key), old_text("cpu"), elements, view)


ROW = struct.pack("<4f", 1, 2, 3, 4)


def test_storages_that_are_parts_of_others() -> None:
    """view_metadata, up to torch 0.3: (key of the view, first element, elements)."""
    view = b"(%bK\x01K\x02t" % old_text("77")
    pickled = b"ctorch._utils\n_rebuild_tensor\n(" + storage("5", 4, view=view) + b"K\x01(K\x01t(K\x01ttR"
    tensor = load(stream(pickled, {"5": (4, ROW)}))
    assert tensor.tolist() == [3.0]
    whole = load(stream(storage("5", 4, view=view), {"5": (4, ROW)}))
    assert whole._untyped_storage.nbytes() == 8


@pytest.mark.parametrize("cls", ["torch\nFloatTensor", "torch.cuda\nFloatTensor", "torch\nTensor"])
def test_tensors_of_the_first_versions(cls: str) -> None:
    """A class called with four arguments, or made empty and given them as its state."""
    module, _, name = cls.partition("\n")
    arguments = b"(" + storage("5", 4, module=module) + b"K\x00(K\x02K\x02t(K\x02K\x01tt"
    for pickled in (f"c{cls}\n".encode() + arguments + b"R", f"c{cls}\n".encode() + b")R" + arguments + b"b"):
        assert load(stream(pickled, {"5": (4, ROW)})).tolist() == [[1, 2], [3, 4]]
    assert name in cls


@pytest.mark.parametrize("name", ["torch.nn.parameter\nParameter", "torch.autograd.variable\nVariable"])
def test_parameters_and_variables_of_before_0_4(name: str) -> None:
    tensor = b"ctorch._utils\n_rebuild_tensor\n(" + storage("5", 4) + b"K\x00(K\x04t(K\x01ttR"
    state = b"(\x88\x89ccollections\nOrderedDict\n)Rt"
    loaded = load(stream(f"c{name}\n".encode() + tensor + b"\x85\x81" + state + b"b", {"5": (4, ROW)}))
    assert loaded.requires_grad
    assert isinstance(loaded, torch.nn.Parameter) == name.endswith("Parameter")
    assert loaded.tolist() == [1, 2, 3, 4]


def test_sparse_storages_of_several_keys_lie_in_the_order_of_their_text() -> None:
    pickled = b"(" + storage("9", 1) + storage("10", 2) + b"t"
    data = stream(pickled, {"9": (1, struct.pack("<f", 9)), "10": (2, struct.pack("<2f", 10, 11))})
    nine, ten = load(data)
    assert (nine._untyped_storage.nbytes(), ten._untyped_storage.nbytes()) == (4, 8)


# -- writing


def test_what_we_write_torch_reads(tmp_path: pathlib.Path) -> None:
    base = torch.arange(12.0)
    value = {
        "w": base.view(3, 4),
        "part": base[4:8],
        "ordered": collections.OrderedDict(a=torch.ones(2, dtype=torch.int64)),
        "bool": torch.tensor([True, False]),
        "quantized": torch.quantize_per_tensor(torch.arange(4.0), 0.5, 1, torch.quint8),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "sizes": torch.Size([1, 2]),
        "many": [torch.full((2,), float(index)) for index in range(12)],
    }
    path = tmp_path / "old.pt"
    assert written(value, path) == []
    for weights_only in (True, False):
        loaded = torch.load(path, weights_only=weights_only)
        assert loaded["w"].tolist() == value["w"].tolist()
        assert loaded["part"].untyped_storage().data_ptr() == loaded["w"].untyped_storage().data_ptr()
        assert loaded["ordered"]["a"].tolist() == [1, 1]
        assert loaded["quantized"].dequantize().tolist() == value["quantized"].dequantize().tolist()
        assert type(loaded["parameter"]) is torch.nn.Parameter
        assert [tensor[0].item() for tensor in loaded["many"]] == list(range(12))
    again = read_tree(legacy.open(FileSource(path), "old.pt").document().tree, "old.pt")
    assert again["sizes"] == torch.Size([1, 2])


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.uint16, torch.complex32, torch.bfloat16])
def test_dtypes_that_torch_writes_into_a_stream_and_can_not_read(dtype: torch.dtype, tmp_path: pathlib.Path) -> None:
    value = torch.arange(8, dtype=torch.uint8).view(dtype)
    path = tmp_path / "old.pt"
    written({"w": value}, path)
    loaded = torch.load(path)["w"]
    assert loaded.dtype == dtype
    assert loaded.view(torch.uint8).tolist() == list(range(8))


def test_the_preamble_is_that_of_torch(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "old.pt"
    written({}, path)
    ours, theirs = path.read_bytes(), saved({})
    assert ours[:21] == theirs[:21]


def test_what_a_stream_has_no_place_for_is_said(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "old.pt"
    notes = written({"d": collections.deque([1]), "p": pathlib.Path("a")}, path, metadata={"k": "v"})
    assert notes == [
        "the stream of torch < 1.6 has no exact form for: deque, path; they come back plainer",
        "the stream of torch < 1.6 has no place for metadata and records of objects: they are left out",
    ]
    assert torch.load(path) == {"d": [1], "p": "a"}


def test_big_endian_tensors_are_refused(tmp_path: pathlib.Path) -> None:
    segment = Segment(MemorySource(bytes(4)), 0, 4, swapped=True)
    tree = {"w": StoredTensor(TensorSpec("float32", (1,)), segment)}
    with (
        pytest.raises(UnsupportedValue, match=r"old\.pt`: a torch stream is little-endian, the tensors are not"),
        replace_file(tmp_path / "old.pt") as staged,
    ):
        legacy.write(staged, Document(tree))
    assert not (tmp_path / "old.pt").exists()


def test_a_bare_storage_goes_through(tmp_path: pathlib.Path) -> None:
    data = stream(storage("5", 4), {"5": (4, ROW)})
    tree = opened(data).document().tree
    assert type(tree) is Typed
    path = tmp_path / "again.pt"
    with replace_file(path) as staged:
        legacy.write(staged, Document(tree))
    assert torch.load(path)._untyped_storage.nbytes() == 16
