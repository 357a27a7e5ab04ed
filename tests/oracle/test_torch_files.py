"""Our reader against torch.save, torch.load against our writer, and the real files of older torch versions."""

from __future__ import annotations

import argparse
import collections
import contextlib
import datetime
import decimal
import fractions
import io
import pathlib
import warnings
import zipfile
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch

from holdfast.errors import FormatError, HoldfastError
from holdfast.formats import torchzip
from holdfast.formats.base import Document, Segment, StoredTensor
from holdfast.formats.rebuild import build_tree
from holdfast.serialization.lowering import DTYPE_NAMES, lower_state
from holdfast.spec import DTYPES, TensorSpec, contiguous_stride
from holdfast.state.lifting import Lifting, lift
from holdfast.state.values import Opaque, Typed
from holdfast.storage.atomic import replace_file
from holdfast.storage.requests import Check, verify_ranges
from holdfast.storage.source import FileSource, MemorySource

pytestmark = pytest.mark.filterwarnings("ignore")  # torch's own, about sparse and quantized tensors
TORCH_DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}


CONTAINERS = {"dict": dict, "ordered_dict": collections.OrderedDict, "tuple": tuple}


def as_tensor(leaf: StoredTensor) -> torch.Tensor:
    """The tensor of a leaf, made by this test alone out of the bytes of its segment."""
    data = bytearray(leaf.segment.source.read(leaf.segment.offset, leaf.segment.length))
    dtype = TORCH_DTYPES[leaf.spec.dtype]
    if leaf.segment.swapped:
        width = leaf.spec.itemsize // (2 if dtype.is_complex else 1)
        data = bytearray(numpy.frombuffer(data, f"V{width}").view(f"u{width}").byteswap().tobytes())
    raw = torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
    made = torch.empty(0, dtype=dtype)
    stride = leaf.spec.stride or torch.empty(leaf.spec.shape, device="meta").stride()
    made.set_(raw.untyped_storage(), leaf.offset // leaf.spec.itemsize, leaf.spec.shape, stride)
    return made.requires_grad_(leaf.requires_grad) if leaf.requires_grad else made


def same(tree: Any, live: Any) -> None:
    """Asserts that an inert tree is what torch.load gave: types, values, bytes, strides."""
    if isinstance(tree, StoredTensor):
        made = as_tensor(tree)
        assert made.dtype == live.dtype
        assert made.shape == live.shape
        assert made.stride() == live.stride()
        assert made.requires_grad == live.requires_grad
        same_bytes(made, live)
    elif isinstance(tree, dict):
        assert type(live) is dict
        assert list(tree) == list(live)
        for key, item in tree.items():
            same(item, live[key])
    elif isinstance(tree, list):
        assert type(live) is list
        assert len(tree) == len(live)
        for item, other in zip(tree, live, strict=True):
            same(item, other)
    elif isinstance(tree, Opaque):
        assert tree.type_name.endswith(f".{type(live).__qualname__}")
    elif isinstance(tree, Typed):
        same_typed(tree, live)
    else:
        assert type(tree) is type(live)
        assert tree == live or tree != tree


def same_bytes(left: torch.Tensor, right: torch.Tensor) -> None:
    """Equal in every bit, NaN and all."""
    if left.numel():
        left, right = (part.detach().clone(memory_format=torch.contiguous_format) for part in (left, right))
        left, right = (part.flatten().as_strided((part.numel(),), (1,)).view(torch.uint8) for part in (left, right))
        assert torch.equal(left, right)


def same_typed(tree: Typed, live: Any) -> None:
    payload = tree.payload
    if tree.kind == "parameter":
        assert type(live) is torch.nn.Parameter
        assert live.requires_grad == payload["requires_grad"]
        same(payload["data"], live.data)
        assert payload.get("state", {}) == vars(live)
    elif tree.kind == "state_dict":
        items = payload["items"]
        assert type(live) is collections.OrderedDict
        assert list(live) == list(items)
        for key, item in items.items():
            same(item, live[key])
        assert dict(payload["metadata"]) == dict(live._metadata)
    elif tree.kind in CONTAINERS:
        assert type(live) is CONTAINERS[tree.kind]
        same(payload, [list(pair) for pair in live.items()] if isinstance(live, dict) else list(live))
    elif tree.kind == "sparse":
        same_sparse(payload, live)
    elif tree.kind == "quantized":
        same_quantized(payload, live)
    elif tree.kind == "meta":
        assert live.is_meta
        assert list(live.shape) == payload["shape"]
        assert list(live.stride()) == payload["stride"]
    elif tree.kind in ("conj", "neg"):
        flag = live.is_conj() if tree.kind == "conj" else live.is_neg()
        assert flag
        same(payload, live.conj() if tree.kind == "conj" else torch._neg_view(live))
    elif tree.kind == "attributed":
        same(payload["data"], live)
        assert payload["state"] == vars(live)
    elif tree.kind == "torch.storage":
        same_bytes(as_tensor(payload["data"]), torch.tensor(list(live), dtype=getattr(live, "dtype", torch.uint8)))
    else:
        found = lift(tree, Lifting(leaf=as_tensor))
        assert type(found) is type(live)
        assert numpy.array_equal(found, live) if isinstance(live, numpy.ndarray) else found == live


def same_sparse(payload: dict[str, Any], live: torch.Tensor) -> None:
    assert str(live.layout) == f"torch.{payload['layout']}"
    assert list(live.shape) == payload["size"]
    if live.layout is torch.sparse_coo:
        assert live.is_coalesced() == payload["coalesced"]
        same(payload["indices"], live._indices())
        same(payload["values"], live._values())
        return
    rows = live.layout in (torch.sparse_csr, torch.sparse_bsr)
    same(payload["compressed"], live.crow_indices() if rows else live.ccol_indices())
    same(payload["plain"], live.col_indices() if rows else live.row_indices())
    same(payload["values"], live.values())


def same_quantized(payload: dict[str, Any], live: torch.Tensor) -> None:
    assert DTYPE_NAMES[live.dtype] == payload["data"].spec.dtype
    assert live.qscheme() == getattr(torch, payload["scheme"])
    if payload["scheme"] == "per_tensor_affine":
        assert (live.q_scale(), live.q_zero_point()) == (payload["scale"], payload["zero_point"])
    else:
        assert live.q_per_channel_axis() == payload["axis"]
        same(payload["scales"], live.q_per_channel_scales())
        same(payload["zero_points"], live.q_per_channel_zero_points())
    data = payload["data"]
    plain = TensorSpec(data.spec.dtype.removeprefix("q"), data.spec.shape, data.spec.stride)
    same_bytes(as_tensor(StoredTensor(plain, data.segment, data.offset)), live.int_repr())


def saved(value: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def opened(data: bytes) -> torchzip.TorchZip:
    return torchzip.open(MemorySource(data, name="model.pt"), "model.pt")


def of_every_dtype() -> dict[str, torch.Tensor]:
    """One tensor of each plain dtype, out of the same random bytes."""
    raw = torch.arange(64, dtype=torch.uint8)
    plain = {name: dtype for name, dtype in TORCH_DTYPES.items() if name[0] != "q" and name != "bool"}
    return {name: raw.clone().view(dtype) for name, dtype in plain.items()} | {"bool": raw > 7}


def views() -> dict[str, torch.Tensor]:
    base = torch.arange(60.0).reshape(3, 4, 5)
    return {
        "base": base,
        "transposed": base.transpose(0, 2),
        "slice": base[1:, ::2, 1],
        "expanded": torch.arange(3.0).expand(4, 3),
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 3),
        "empty at the end": base.flatten()[60:],
        "channels last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "overlapping": torch.arange(10.0).as_strided((4, 4), (1, 2)),
    }


def attributed() -> dict[str, Any]:
    tensor, parameter = torch.ones(2), torch.nn.Parameter(torch.ones(3), requires_grad=False)
    tensor.note, parameter.tag = "kept", 7  # type: ignore[attr-defined]
    return {"tensor": tensor, "parameter": parameter}


def trained() -> dict[str, Any]:
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.randn(2, 1, 5, 5)).sum().backward()
    optimizer.step()
    return {"model": net.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}


STATES: dict[str, Callable[[], Any]] = {
    "atoms": lambda: [None, True, 0, -1, 255, 256, 2**31, -(2**40), 2**200, 1.5, float("nan"), float("-inf"), 1 + 2j],
    "text": lambda: ["", "é😀", "\ud800", "a\x00b", b"", b"\x00\xff", bytearray(b"ab")],
    "containers": lambda: {"t": (1, (2, [])), "s": {1, 2}, "f": frozenset({3}), 4: {}, (5, 6): [{}], None: ()},
    "collections": lambda: [
        collections.OrderedDict(a=1),
        collections.Counter("aab"),
        collections.defaultdict(list, {"a": [1]}),
        collections.deque([1, 2], 5),
    ],
    "standard library": lambda: [
        argparse.Namespace(lr=0.1, layers=[1, 2]),
        pathlib.Path("a/b"),
        datetime.datetime(2024, 2, 29, 1, 2, 3, 4, datetime.timezone(datetime.timedelta(hours=-5))),
        datetime.date(2024, 2, 29),
        datetime.time(1, 2, 3),
        datetime.timedelta(-1, 2, 3),
        fractions.Fraction(-1, 3),
        decimal.Decimal("1.50"),
        slice(1, None, 2),
        range(0, 9, 3),
    ],
    "torch values": lambda: (
        [
            torch.Size([2, 3]),
            torch.float16,
            torch.device("cuda", 1),
            torch.device("cpu"),
            torch.sparse_csr,
            torch.per_tensor_affine,
        ]
    ),
    "numpy": lambda: [
        numpy.float32(1.5),
        numpy.int64(-3),
        numpy.bool_(True),
        numpy.arange(6.0).reshape(2, 3),
        numpy.asfortranarray(numpy.arange(24, dtype=numpy.int16).reshape(2, 3, 4)),
        numpy.asfortranarray(numpy.arange(6, dtype=numpy.complex128).reshape(2, 3)),
        numpy.arange(3, dtype=">f8"),
        numpy.array(["a", "bcd"]),
        numpy.datetime64("2024-02-29", "D"),
    ],
    "every dtype": of_every_dtype,
    "views": views,
    "requires_grad": lambda: torch.ones(3, requires_grad=True),
    "parameters": lambda: [torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2), requires_grad=False)],
    "attributes": attributed,
    "lazy bits": lambda: [
        torch.tensor([1 + 2j]).conj(),
        torch._neg_view(torch.ones(2)),
        torch.tensor([1j]).conj().imag,
    ],
    "sparse": lambda: [
        torch.eye(4).to_sparse(),
        torch.sparse_coo_tensor([[0, 0]], [1.0, 2.0], (3,)),
        torch.eye(4).to_sparse_csr(),
        torch.eye(4).to_sparse_csc(),
        torch.eye(4).to_sparse_bsr((2, 2)),
        torch.eye(4).to_sparse_bsc((2, 2)),
    ],
    "quantized": lambda: [
        torch.quantize_per_tensor(torch.arange(6.0).reshape(2, 3), 0.1, 3, torch.quint8),
        torch.quantize_per_tensor(torch.arange(6.0), 0.1, 0, torch.qint32),
        torch.quantize_per_channel(torch.ones(2, 3), torch.tensor([0.1, 0.2]), torch.zeros(2), 0, torch.qint8),
        torch.quantize_per_channel(
            torch.ones(2, 3), torch.tensor([0.1, 0.2]).double(), torch.zeros(2, dtype=torch.int64), 0, torch.quint8
        ),
    ],
    "meta": lambda: torch.empty(2, 3, device="meta").t(),
    "storages": lambda: [torch.arange(3.0).untyped_storage()],
    "trained": trained,
}


@pytest.mark.parametrize("kind", STATES)
def test_what_torch_saves_is_read_equal(kind: str) -> None:
    data = saved(STATES[kind]())
    with opened(data) as container:
        same(container.document().tree, torch.load(io.BytesIO(data), weights_only=False))


def test_a_whole_module_becomes_an_inert_description() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(2, 3))
    tree = opened(saved(net)).document().tree
    assert isinstance(tree, Opaque)
    assert tree.type_name == "torch.nn.modules.container.Sequential"
    weight = tree.state["_modules"]["0"].state["_parameters"]["weight"]
    same(weight, net[0].weight)


@pytest.mark.parametrize("protocol", range(1, 6))
def test_every_pickle_protocol_is_read_equal(protocol: int) -> None:
    values = [STATES[kind]() for kind in ("atoms", "containers", "collections", "standard library", "numpy", "trained")]
    data = saved(values, pickle_protocol=protocol)
    same(opened(data).document().tree, torch.load(io.BytesIO(data), weights_only=False))


@pytest.mark.parametrize("option", ["alignment", "no crc", "deflated", "big-endian"])
def test_other_ways_of_writing_are_read_equal(option: str, tmp_path: pathlib.Path) -> None:
    state = {"dtypes": of_every_dtype(), "views": views()}
    data = saved(state)
    wanted = torch.load(io.BytesIO(data))
    if option == "alignment":
        config = torch.utils.serialization.config
        with config.patch("save.storage_alignment", 4096):
            data = saved(state)
    elif option == "no crc":
        torch.serialization.set_crc32_options(False)
        try:
            data = saved(state)
        finally:
            torch.serialization.set_crc32_options(True)
        assert all(segment.crc32 is None for segment in opened(data).segments())
    elif option == "deflated":
        data = rezipped(data, compression=zipfile.ZIP_DEFLATED)
    else:
        data = big_endian(data, state)
    same(opened(data).document().tree, wanted)


def rezipped(data: bytes, *, compression: int, replace: dict[str, bytes] | None = None) -> bytes:
    """The same records in a zip of the standard library's making."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, (replace or {}).get(name, old.read(name)))
    return buffer.getvalue()


def big_endian(data: bytes, state: dict[str, dict[str, torch.Tensor]]) -> bytes:
    """What a big-endian machine would have written: every storage with its words swapped."""
    replace = {"archive/byteorder": b"big"}
    swapped: set[str] = set()
    for leaf in (leaf for group in opened(data).document().tree.values() for leaf in group.values()):
        if leaf.segment.name in swapped:
            continue
        swapped.add(leaf.segment.name)
        width = leaf.spec.itemsize // (2 if TORCH_DTYPES[leaf.spec.dtype].is_complex else 1)
        raw = leaf.segment.source.read(leaf.segment.offset, leaf.segment.length)
        replace[f"archive/{leaf.segment.name}"] = numpy.frombuffer(raw, f"u{width}").byteswap().tobytes()
    return rezipped(data, compression=zipfile.ZIP_STORED, replace=replace)


def test_a_flipped_byte_of_torchs_file_is_noticed_or_without_effect() -> None:
    """With the checksums that torch writes and never reads, no flip gives other values."""
    data = bytearray(saved({"w": torch.arange(40.0), "b": torch.ones(3, dtype=torch.int64), "epoch": 3}))
    wanted = torch.load(io.BytesIO(data))
    noticed = 0
    for index in range(len(data)):
        data[index] ^= 1 << index % 8
        try:
            with opened(bytes(data)) as container:
                tree = container.document().tree
                damaged = verify_ranges(
                    [
                        Check(part.source, part.offset, part.length, None, part.crc32, part.name)
                        for part in container.segments()
                    ]
                )
                if not damaged:
                    same(tree, wanted)
                noticed += bool(damaged)
        except FormatError:
            noticed += 1
        data[index] ^= 1 << index % 8
    assert noticed > len(data) // 3  # the rest is padding, dates and attributes


# -- our writer, torch's reader


def written(value: Any, path: pathlib.Path, *, metadata: dict[str, str] | None = None) -> pathlib.Path:
    lowered = lower_state(value, row_major=False)
    with replace_file(path) as staged:
        torchzip.write(staged, Document(lowered.tree, {}, metadata or {}), top=path.stem)
    return path


READABLE = ["atoms", "text", "containers", "collections", "torch values", "every dtype", "views", "requires_grad"]
READABLE += ["parameters", "sparse", "quantized", "meta", "trained"]


@pytest.mark.parametrize("kind", [*READABLE, "standard library", "numpy"])
@pytest.mark.parametrize("mmap", [False, True])
def test_what_we_write_torch_loads_with_weights_only(kind: str, mmap: bool, tmp_path: pathlib.Path) -> None:
    path = written({"value": STATES[kind]()}, tmp_path / "model.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*[Ss]parse.*|.*quantize.*|ComplexHalf.*|TypedStorage.*")
        loaded = torch.load(path, weights_only=True, mmap=mmap)
    assert list(loaded) == ["value"]
    with torchzip.open(FileSource(path), "model.pt") as container:
        pickle = container._pickle
        same(build_tree(pickle, container._storage, "model.pt"), loaded)


@pytest.mark.parametrize("kind", [*READABLE, "standard library", "numpy"])
def test_what_we_write_we_read_with_exact_types(kind: str, tmp_path: pathlib.Path) -> None:
    live = STATES[kind]()
    path = written(live, tmp_path / "model.pt", metadata={"who": "é"})
    with torchzip.open(FileSource(path), "model.pt") as container:
        document = container.document()
        assert document.metadata == {"who": "é"}
        wanted = lower_state(live, row_major=False).tree
        assert shape_of(document.tree) == shape_of(wanted)
        for found, leaf in zip(leaves(document.tree), leaves(wanted), strict=True):
            size = leaf.segment.length
            assert found.segment.source.read(found.segment.offset, size) == leaf.segment.source.read(0, size)


def leaves(tree: Any) -> list[StoredTensor]:
    if isinstance(tree, StoredTensor):
        return [tree]
    if isinstance(tree, dict | list):
        return [leaf for item in (tree.values() if isinstance(tree, dict) else tree) for leaf in leaves(item)]
    return leaves(tree.payload) if isinstance(tree, Typed) else []


def shape_of(tree: Any) -> Any:
    """A tree with printable descriptions in place of its tensors; NaN equals NaN."""
    if isinstance(tree, StoredTensor):
        stride = tree.spec.stride or contiguous_stride(tree.spec.shape)
        return (
            tree.spec.dtype,
            tree.spec.shape,
            stride,
            tree.offset,
            tree.requires_grad,
            tree.segment.length,
            tree.segment.location,
        )
    if isinstance(tree, dict):
        return {key: shape_of(item) for key, item in tree.items()}
    if isinstance(tree, list):
        return [shape_of(item) for item in tree]
    return (tree.kind, shape_of(tree.payload)) if isinstance(tree, Typed) else (type(tree), repr(tree))


def test_sharing_survives_in_both_readers(tmp_path: pathlib.Path) -> None:
    base = torch.arange(10.0)
    path = written({"a": base, "b": base, "c": base[2:5]}, tmp_path / "model.pt")
    loaded = torch.load(path)
    loaded["a"][3] = 77
    assert loaded["b"][3] == 77
    assert loaded["c"][1] == 77
    tree = torchzip.open(FileSource(path), "model.pt").document().tree
    assert tree["a"].segment is tree["b"].segment is tree["c"].segment
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert [name for name in archive.namelist() if "/data/" in name] == ["model/data/0"]


def test_layout_is_that_of_torch(tmp_path: pathlib.Path) -> None:
    """Same records at the same places, our own one aside; torch then finds storages by arithmetic."""
    live = {"weight": torch.randn(100), "bias": torch.randn(3), "none": torch.empty(0)}
    ours = written(live, tmp_path / "ours" / "model.pt")
    (tmp_path / "theirs").mkdir()
    torch.save(live, tmp_path / "theirs" / "model.pt")
    names: list[list[tuple[str, int, int]]] = []
    for path in (ours, tmp_path / "theirs" / "model.pt"):
        with zipfile.ZipFile(path) as archive:
            infos = [info for info in archive.infolist() if info.filename != "model/.data/holdfast"]
            names.append([(info.filename, info.flag_bits, info.CRC != 0) for info in infos])
            storages = [info for info in archive.infolist() if "/data/" in info.filename]
            assert all(data_start(path, info) % 64 == 0 for info in storages)
    assert names[0] == names[1]
    with torch.utils.serialization.config.patch("load.calculate_storage_offsets", True):
        loaded = torch.load(ours, mmap=True)
    assert all(torch.equal(loaded[name], live[name]) for name in live)


def data_start(path: pathlib.Path, info: zipfile.ZipInfo) -> int:
    head = path.read_bytes()[info.header_offset : info.header_offset + 30]
    return info.header_offset + 30 + int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little")


def test_the_file_of_a_headless_torch_reader_is_byte_equal_in_its_frame(tmp_path: pathlib.Path) -> None:
    """Rewriting torch's own records through our frame writer gives torch's own bytes, up to the order of the ids."""
    from holdfast.formats.zipwriter import directory, plan
    from holdfast.storage.digest import crc32

    path = tmp_path / "model.pt"
    torch.save({"w": torch.randn(70), "e": torch.empty(0)}, path)
    with zipfile.ZipFile(path) as archive:
        records = [(name.partition("/")[2], archive.read(name)) for name in archive.namelist()]
    planned = plan([(name, len(data)) for name, data in records], "model")
    made = bytearray()
    for record, (_, data) in zip(planned, records, strict=True):
        record.crc = crc32(data)
        made += record.head() + data + record.tail()
    assert bytes(made + directory(planned)) == path.read_bytes()


# -- real files


def test_real_files_are_read_equal_or_refused(material: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Zips of torch 1.4 to 1.8, with storage keys that are addresses: equal to what torch reads, or refused by name."""
    counts: collections.Counter[str] = collections.Counter()
    unnamed: list[str] = []
    for path in sorted(material.rglob("*.pt")):
        if not path.read_bytes().startswith(b"PK"):
            counts["not a zip"] += 1
            continue
        with contextlib.closing(FileSource(path)) as source:
            try:
                tree = torchzip.open(source, path.name).document().tree
            except HoldfastError as refusal:
                counts[type(refusal).__name__] += 1
                unnamed.extend([path.name] if path.name not in str(refusal) else [])
                continue
            same(tree, torch.load(path, weights_only=False))
        counts["equal"] += 1
    assert not unnamed
    with capsys.disabled():
        print(f"\nreal zip files: {dict(counts)}")
    assert counts["equal"] >= 7
    assert set(counts) <= {"equal", "not a zip", "UnknownFormat"}


def test_a_segment_knows_its_place(tmp_path: pathlib.Path) -> None:
    path = written({"w": torch.arange(5.0)}, tmp_path / "model.pt")
    container = torchzip.open(FileSource(path), "model.pt")
    segment = container.document().tree["w"].segment
    assert isinstance(segment, Segment)
    assert segment.name == "data/0"
    assert segment.length == 20
    assert container.segments().count(segment) == 1
    assert segment.source.read(segment.offset, 4) == torch.tensor(0.0).numpy().tobytes()
    assert len(DTYPES) >= len(TORCH_DTYPES)
