"""numpy's archives: what numpy wrote is read, and numpy reads what is written."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.errors import CorruptFile, UnsupportedValue
from holdfast.formats import npz, torchzip
from holdfast.formats.base import Document, Segment, StoredTensor
from holdfast.formats.detect import open_path
from holdfast.formats.packing import tensor_bytes
from holdfast.spec import DTYPES, TensorSpec, contiguous_stride
from holdfast.state.values import Opaque, Typed
from holdfast.storage.atomic import replace_file
from holdfast.storage.requests import Check, verify_ranges
from holdfast.storage.source import MadeSource, MemorySource


def archived(save: Any = np.savez, **arrays: Any) -> bytes:
    buffer = io.BytesIO()
    save(buffer, **arrays)
    return buffer.getvalue()


def opened(data: bytes) -> npz.Npz:
    return npz.open(MemorySource(data), "a.npz")


def content(leaf: StoredTensor) -> bytes:
    source = tensor_bytes(leaf)
    return source.read(0, source.size)


def tensor(data: bytes, dtype: str = "uint8", shape: tuple[int, ...] | None = None, **more: Any) -> StoredTensor:
    spec = TensorSpec(dtype, (len(data),) if shape is None else shape, more.pop("stride", None))
    return StoredTensor(spec, Segment(MemorySource(data), 0, len(data)), **more)


def save(path: Path, tree: Any, **more: Any) -> Path:
    with replace_file(path) as staged:
        npz.write(staged, Document(tree, **more))
    return path


NUMBERS = [code for kind, sizes in (("i", "1248"), ("u", "1248"), ("f", "248")) for code in (kind + s for s in sizes)]


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("code", [*NUMBERS, "b1", "c8", "c16"])
def test_every_dtype_of_both_has_its_bits(code: str, order: str, write: Any) -> None:
    values = np.array([[0, 1, 3], [1, 0, 2]]).astype(order + code)
    container = opened(archived(write, x=values))
    leaf = container.document().tree["x"]
    assert content(leaf) == values.astype("<" + code).tobytes()
    assert leaf.spec.shape == (2, 3)
    assert DTYPES[leaf.spec.dtype].itemsize == values.itemsize


def test_names_orders_shapes_and_versions_as_numpy_has_them() -> None:
    arrays = {
        "a/b": np.arange(3),
        "W": np.zeros(1),
        "w": np.ones(1),
        "zero-d": np.array(2.5),
        "none": np.zeros((0, 3), "f4"),
        "columns": np.asfortranarray(np.arange(24).reshape(2, 3, 4)),
        ".hidden": np.arange(2, dtype="u1"),
        "größe": np.arange(1),
    }
    tree = opened(archived(**arrays)).document().tree
    assert list(tree) == list(arrays)
    for name, array in arrays.items():
        assert content(tree[name]) == array.tobytes(), name
        assert tree[name].spec.shape == array.shape, name
    assert tree["columns"].spec.stride == (1, 2, 6)
    assert tree["W"].spec.stride is None
    for version in ((1, 0), (2, 0), (3, 0)):
        array, buffer = np.arange(4.0), io.BytesIO()
        np.lib.format.write_array(buffer, array, version=version)
        assert content(opened(zipped({"x.npy": buffer.getvalue()})).document().tree["x"]) == array.tobytes()


def zipped(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def test_text_and_dates_are_values_of_numpy() -> None:
    text, dates = np.asfortranarray([["a", "bcd"], ["é", ""]]), np.array(["2020-01-01"], "M8[D]")
    tree = opened(archived(text=text, dates=dates)).document().tree
    assert tree["text"] == Typed("numpy.array", {"dtype": "<U3", "shape": [2, 2], "data": text.tobytes()})
    assert tree["dates"] == Typed("numpy.array", {"dtype": "<M8[D]", "shape": [1], "data": dates.tobytes()})


def test_the_header_of_python_2_and_of_other_programs() -> None:
    for header in (
        b"{'descr': '<i4', 'fortran_order': False, 'shape': (2L, 1L), }",
        b'{"shape":(2,1),"descr":"<i4","fortran_order":False}',
        b"{ 'fortran_order' : False , 'descr' : '=i4' , 'shape' : ( 2 , 1 , ) }\n",
    ):
        data = b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header + b"abcdefgh"
        leaf = opened(zipped({"x.npy": data})).document().tree["x"]
        assert leaf.spec == TensorSpec("int32", (2, 1))
        assert content(leaf) == b"abcdefgh"


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_each_tensor_has_the_crc_of_its_own_bytes(write: Any) -> None:
    data = archived(write, x=np.arange(1000), none=np.zeros(0))
    (segment, empty) = opened(data).segments()
    check = Check(segment.source, segment.offset, segment.length, None, segment.crc32, segment.name)
    assert verify_ranges([check]) == []
    assert empty.length == 0
    assert empty.crc32 == 0  # of no bytes; the header's part is taken out
    if write is np.savez:
        at = segment.offset + 4321
        damaged = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        (segment, _) = opened(damaged).segments()
        check = Check(segment.source, segment.offset, segment.length, None, segment.crc32, segment.name)
        assert [one.name for one in verify_ranges([check])] == ["x"]


def test_a_crc_of_zero_was_not_computed() -> None:
    data = bytearray(archived(x=np.arange(3)))
    end = zipfile.ZipFile(io.BytesIO(data)).infolist()[0]
    stored = end.CRC.to_bytes(4, "little")
    assert data.count(stored) == 2
    (segment,) = opened(bytes(data.replace(stored, bytes(4)))).segments()
    assert segment.crc32 is None


def test_numpy_reads_what_is_written(tmp_path: Path) -> None:
    numbers = np.arange(24, dtype="<f4").reshape(2, 3, 4)
    raw = numbers.tobytes()
    shared = Segment(MemorySource(raw), 0, len(raw))
    tree = {
        "model": Typed(
            "state_dict",
            {
                "items": {
                    "rows": tensor(raw, "float32", (2, 3, 4)),
                    "columns": tensor(raw, "float32", (4, 3, 2), stride=(1, 4, 12)),
                    "slice": StoredTensor(TensorSpec("float32", (2, 2), (12, 2)), shared, 4),
                },
                "metadata": [],
            },
        ),
        "list": [Typed("parameter", {"data": tensor(b"\1\0", "bool"), "requires_grad": True}), tensor(b"", shape=(0,))],
        "text": Typed("numpy.array", {"dtype": "<U1", "shape": [2], "data": np.array(["a", "b"]).tobytes()}),
        "scalar": tensor(b"\5", "int8", ()),
        "swapped": StoredTensor(TensorSpec("int16", (2,)), Segment(MemorySource(b"\0\1\0\2"), 0, 4, swapped=True)),
        "ω": tensor(b"\1"),
    }
    with np.load(save(tmp_path / "a.npz", tree), allow_pickle=False) as found:
        assert list(found) == [
            "model.rows", "model.columns", "model.slice", "list.0", "list.1", "text", "scalar", "swapped", "ω",
        ]  # fmt: skip
        assert (found["model.rows"] == numbers).all()
        assert (found["model.columns"] == numbers.transpose(2, 1, 0)).all()
        assert found["model.columns"].flags.f_contiguous
        assert (found["model.slice"] == numbers.reshape(-1)[1:][[[0, 2], [12, 14]]]).all()
        assert found["list.0"].dtype == bool
        assert found["list.1"].shape == (0,)
        assert found["text"].tolist() == ["a", "b"]
        assert found["scalar"] == np.int8(5)
        assert found["swapped"].tolist() == [1, 2]
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        assert archive.testzip() is None


@given(st.lists(st.integers(0, 5), max_size=4), st.sampled_from(["uint8", "int32", "float64", "complex128"]), st.data())
def test_any_order_of_dimensions_comes_back(tmp_path_factory: Any, shape: list[int], dtype: str, data: Any) -> None:
    order = data.draw(st.permutations(range(len(shape))))
    stride = [0] * len(shape)
    for axis, step in zip(order, contiguous_stride([shape[axis] for axis in order]), strict=True):
        stride[axis] = step
    spec = TensorSpec(dtype, tuple(shape), tuple(stride))
    raw = bytes(index % 251 for index in range(spec.nbytes))
    leaf = StoredTensor(spec, Segment(MemorySource(raw), 0, len(raw)))
    path = save(tmp_path_factory.mktemp("npz") / "a.npz", {"x": leaf})
    with open_path(path) as container:
        got = container.document().tree["x"]
        assert content(got) == content(leaf)
    with np.load(path) as found:
        assert found["x"].tobytes() == content(leaf)


def test_an_array_alone_has_the_name_that_numpy_gives(tmp_path: Path) -> None:
    with np.load(save(tmp_path / "a.npz", tensor(b"ab"))) as found:
        assert list(found) == ["arr_0"]


def test_a_zip_is_told_from_one_of_torch(tmp_path: Path) -> None:
    path = save(tmp_path / "a.npz", {"x": tensor(b"ab")})
    head = path.read_bytes()
    assert npz.sniff(head)
    with replace_file(tmp_path / "a.pt") as staged:
        torchzip.write(staged, Document({"x.npy": tensor(b"ab")}), top="x.npy")
    assert not npz.sniff((tmp_path / "a.pt").read_bytes())
    assert not npz.sniff(b"PK\3\4")
    with open_path(path) as container:
        assert container.format == "npz"
        assert container.segments()[0].name == "x"


def test_everything_that_is_no_array_is_listed(tmp_path: Path) -> None:
    tree = {
        "epoch": 3,
        "none": None,
        "bf": tensor(b"ab", "bfloat16", (1,)),
        "path": Typed("path", "a"),
        "sparse": Typed("sparse", {}),
        "net": Opaque("my.Net"),
        "empty": {},
        "expanded": tensor(b"a", shape=(3,), stride=(0,)),
        "a": {"b": tensor(b"1")},
        "a.b": tensor(b"2"),
        "../up": tensor(b"1"),
        "sur\udc80rogate": tensor(b"1"),
        "x" * 70_000: tensor(b"1"),
        "nothing": [],
    }
    with pytest.raises(UnsupportedValue) as caught:
        save(tmp_path / "a.npz", tree, metadata={"k": "v"})
    message = str(caught.value)
    assert message.startswith(f"`{tmp_path}/a.npz`: an npz holds arrays only, and can't carry `epoch`: a int, ")
    for part in (
        "`none`: None",
        "`bf`: bfloat16, which numpy lacks",
        "`path`: a path",
        "`sparse`: a sparse tensor",
        "`net`: an object of class my.Net",
        "`empty`: an empty dict",
        "`expanded`: its elements share memory: it was expanded",
        "`a.b`: the name is taken by ['a', 'b']",
        "`../up`: a zip can't hold that name",
        " and 4 more",
    ):
        assert part in message
    assert not (tmp_path / "a.npz").exists()


def test_many_parts_of_one_object_are_counted(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedValue, match=r"can't carry `opt` \(5 parts, such as `opt.0`: a int\)$"):
        save(tmp_path / "a.npz", {"opt": list(range(5)), "x": tensor(b"1")})


def test_nothing_is_no_npz(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedValue, match="there is no tensor to write; an npz holds arrays"):
        save(tmp_path / "a.npz", {})


def test_a_compressed_array_is_in_memory_only_while_it_is_read() -> None:
    arrays = {f"x{index}": np.full(1 << 18, index, "u1") for index in range(4)}
    segments = opened(archived(np.savez_compressed, **arrays)).segments()
    for segment in segments:
        half = segment.length // 2
        for _ in range(2):
            pieces = [segment.source.read(segment.offset + at, half) for at in (0, half)]
            assert b"".join(pieces) == arrays[segment.name].tobytes()
        assert isinstance(segment.source, MadeSource)
        assert segment.source._made is None


def test_a_damaged_compressed_array_says_where() -> None:
    data = bytearray(archived(np.savez_compressed, x=np.arange(100_000)))
    at = len(data) // 2
    data[at : at + 8] = b"\xff" * 8
    (segment,) = opened(bytes(data)).segments()
    with pytest.raises(CorruptFile, match=r"`a.npz`: at byte [\d,]+ the compressed record x.npy can't be inflated"):
        segment.source.read(segment.offset, segment.length)
