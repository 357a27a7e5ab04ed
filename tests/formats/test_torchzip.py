"""Torch zips without torch: writing, reading, sizes past 4 GiB, and values that need another form in the pickle."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest

from holdfast.errors import CorruptFile, UnsupportedValue
from holdfast.formats import torchzip
from holdfast.formats.archive import Archive
from holdfast.formats.arrays import plain_array, plain_scalar, row_major
from holdfast.formats.base import Document, Segment, StoredTensor
from holdfast.formats.emit import DEPTH_LIMIT, emit
from holdfast.formats.tensors import stored_tensor
from holdfast.formats.torchzip_frame import odd_byte
from holdfast.formats.zipwriter import BIG, Planned, directory, directory_size, plan
from holdfast.spec import CHUNK, TensorSpec
from holdfast.state.values import Opaque, Typed
from holdfast.storage.atomic import replace_file
from holdfast.storage.digest import crc32
from holdfast.storage.source import MemorySource, check_inside


def floats(*values: float, location: str = "cpu") -> StoredTensor:
    data = struct.pack(f"<{len(values)}f", *values)
    segment = Segment(MemorySource(data), 0, len(data), location=location)
    return StoredTensor(TensorSpec("float32", (len(values),)), segment)


def write(tree: Any, path: Path, **parts: Any) -> bytes:
    with replace_file(path, durable=False) as staged:
        assert torchzip.write(staged, Document(tree, **parts), top=path.stem) == {"notes": []}
    return path.read_bytes()


def opened(data: bytes) -> torchzip.TorchZip:
    return torchzip.open(MemorySource(data), "model.pt")


class Loader(pickle.Unpickler):
    """What a torch would make of our pickle, with calls of torch's own names as tuples."""

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("torch"):
            return type(name, (tuple,), {"__new__": lambda cls, *args: tuple.__new__(cls, args)})
        return super().find_class(module, name)

    def persistent_load(self, pid: Any) -> Any:
        return (pid[1].__name__, *pid[2:])


def read(tree: Any) -> Any:
    return Loader(io.BytesIO(emit(tree).data)).load()


def test_a_document_comes_back_with_everything(tmp_path: Path) -> None:
    shared = floats(1, 2, 3, 4, location="cuda:1")
    view = StoredTensor(TensorSpec("float32", (2,), (2,)), shared.segment, 4, requires_grad=True)
    view.live_stride = (7,)
    tree = {"a": shared, "b": view, "c": Typed("tuple", [1, Typed("set", [2])])}
    objects = {"model": {"kind": "module", "class": "m.Net"}}
    data = write(tree, tmp_path / "net.pt", objects=objects, metadata={"note": "x"})
    document = opened(data).document()
    assert (document.objects, document.metadata) == (objects, {"note": "x"})
    a, b = document.tree["a"], document.tree["b"]
    assert a.segment is b.segment
    assert (a.segment.location, a.segment.name, a.segment.crc32) == (
        "cuda:1",
        "data/0",
        crc32(bytes(shared.segment.source.view)),
    )  # type: ignore[attr-defined]
    assert (b.spec, b.offset, b.requires_grad, b.live_stride) == (view.spec, 4, True, (7,))
    assert document.tree["c"] == tree["c"]


def test_two_saves_are_byte_equal(tmp_path: Path) -> None:
    tree = {"a": floats(1, 2), "b": [floats(3)]}
    assert write(tree, tmp_path / "a" / "m.pt") == write(tree, tmp_path / "b" / "m.pt")


def test_the_archive_is_a_plain_zip(tmp_path: Path) -> None:
    large = bytes(range(256)) * (1 + CHUNK // 256)
    stored = StoredTensor(TensorSpec("uint8", (len(large),)), Segment(MemorySource(large), 0, len(large)))
    data = write({"large": stored, "small": floats(1), "none": floats()}, tmp_path / "net.pt")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        assert archive.read("net/data/0") == large
    assert names == [
        *("net/data.pkl", "net/.format_version", "net/.storage_alignment", "net/byteorder"),
        *("net/data/0", "net/data/1", "net/data/2"),
        *("net/version", "net/.data/holdfast", "net/.data/serialization_id"),
    ]
    segments = {segment.name: segment for segment in opened(data).segments()}
    assert all(segments[f"data/{index}"].offset % 64 == 0 for index in range(3))
    assert len(segments["data/0"].chunks or ()) == 2
    assert segments["data/2"].crc32 is None


def test_a_byte_between_the_records_is_missed_by_verification_alone(tmp_path: Path) -> None:
    data = bytearray(write({"a": floats(1, 2)}, tmp_path / "net.pt"))
    at = data.index(b"ZZZZ")
    data[at] ^= 1
    with opened(bytes(data)) as container:
        document = container.document()
        with pytest.raises(CorruptFile, match=rf"at byte {at:,}, between its records, is another byte than was"):
            container.check(document)


def test_a_file_that_another_program_packed_anew_is_whole(tmp_path: Path) -> None:
    """Its records have their digests; how they are packed is that program's affair."""
    data = write({"a": floats(1, 2)}, tmp_path / "net.pt")
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as before, zipfile.ZipFile(file, "w") as after:
        for name in before.namelist():
            after.writestr(name, before.read(name))
    with opened(file.getvalue()) as container:
        container.check(container.document())


@pytest.mark.parametrize(
    ("top", "folder"),
    [
        ("archive", "archive"),
        ("plain.name", "plain.name"),
        ("a b", "a b"),
        ("..", "archive"),
        ("", "archive"),
        ("a\nb", "archive"),
        ("a/b", "archive"),
        ("a\\b", "archive"),
        ("größe", "archive"),
    ],
)
def test_the_folder_is_the_callers_where_it_can_be(top: str, folder: str, tmp_path: Path) -> None:
    with replace_file(tmp_path / "m.pt", durable=False) as staged:
        torchzip.write(staged, Document({"a": 1}), top=top)
    data = (tmp_path / "m.pt").read_bytes()
    assert Archive(MemorySource(data), "m.pt").top == folder
    assert opened(data).document().tree == {"a": 1}


def test_sniffing() -> None:
    assert torchzip.sniff(b"PK\x03\x04rest")
    assert not torchzip.sniff(b"\x80\x02")


# -- sizes that need eight bytes


class Sparse:
    """A file of many gigabytes, most of them zeros that nobody stores."""

    name = "sparse"

    def __init__(self, pieces: list[tuple[int, bytes]], size: int) -> None:
        self._pieces = pieces
        self.size = size

    def read(self, offset: int, length: int) -> bytes:
        check_inside(self.name, self.size, offset, length)
        found = bytearray(length)
        for start, data in self._pieces:
            low, high = max(start, offset), min(start + len(data), offset + length)
            if low < high:
                found[low - offset : high - offset] = data[low - start : high - start]
        return bytes(found)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        buffer[:] = self.read(offset, buffer.nbytes)

    def close(self) -> None:
        pass


def archive_of(lengths: dict[str, int], contents: dict[str, bytes]) -> Sparse:
    planned = plan(list(lengths.items()), "m")
    pieces = []
    for record, name in zip(planned, lengths, strict=True):
        pieces += [
            (record.header, record.head() + contents.get(name, b"")),
            (record.start + record.size, record.tail()),
        ]
    end = planned[-1].end
    pieces.append((end, directory(planned)))
    assert len(directory(planned)) == directory_size(planned)
    return Sparse(pieces, end + directory_size(planned))


@pytest.mark.parametrize("size", [BIG - 1, BIG, BIG + 1, 5 << 30])
def test_records_past_4_gib_are_framed_and_found(size: int) -> None:
    lengths = {"data.pkl": 1, "data/0": size, "data/1": 7, "data/2": 0, "version": 2}
    archive = Archive(archive_of(lengths, {"data.pkl": b"N", "version": b"3\n"}), "big.pt")
    assert {name: record.size for name, record in archive.records.items()} == lengths
    assert all(record.start % 64 == 0 for record in archive.records.values())
    assert archive.read("version", limit=10) == b"3\n"
    assert odd_byte(archive) is None


def test_a_small_record_past_4_gib_has_a_long_descriptor() -> None:
    """As torch writes it: 24 bytes when its own header is past 4 GiB, though its length fits in four."""
    assert len(Planned(b"m/x", 7, BIG, BIG + 64).tail()) == 24
    assert len(Planned(b"m/x", 7, BIG - 1, BIG + 63).tail()) == 16
    assert Planned(b"m/x", 0, BIG, BIG + 64).tail() == b""


def test_more_records_than_two_bytes_count() -> None:
    planned = plan([("data.pkl", 0), *((f"data/{index}", 0) for index in range(70_000)), ("version", 0)], "m")
    data = b"".join([piece for record in planned for piece in (record.head(), record.tail())]) + directory(planned)
    assert len(Archive(MemorySource(data), "m.pt").records) == 70_002
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert len(archive.namelist()) == 70_002


def test_a_hundred_gigabytes_open_without_being_read() -> None:
    lengths = {"data.pkl": 1, **{f"data/{index}": 1 << 30 for index in range(100)}, "version": 2}
    source = archive_of(lengths, {"data.pkl": b"N", "version": b"3\n"})
    container = torchzip.open(source, "big.pt")  # reads only what Sparse has pieces for
    assert sum(segment.length for segment in container.segments()) == 100 << 30


# -- values in the pickle


def test_keys_that_would_not_be_hashable_become_tuples() -> None:
    keys = [
        Typed("frozenset", [1, 2]),
        Typed("tuple", [Typed("frozenset", [3])]),
        Typed("range", [0, 3, 1]),
        Typed("record", {"class": "m.Color", "form": "enum", "fields": {"name": "RED", "value": 7}}),
        Typed("record", {"class": "m.P", "form": "dataclass", "fields": {"x": 1}}),
        Typed("path", "a/b"),
    ]
    wanted: list[Any] = [(1, 2), ((3,),), (0, 3, 1), 7, (("x", 1),), "a/b"]
    assert list(read(Typed("dict", [[key, None] for key in keys]))) == wanted
    assert read(Typed("set", keys)) == set(wanted)


def test_other_types_become_the_nearest() -> None:
    tree = {
        "deque": Typed("deque", {"items": [1], "maxlen": 3}),
        "defaultdict": Typed("defaultdict", {"factory": "list", "items": [["a", [1]]]}),
        "namespace": Typed("namespace", {"lr": 0.1}),
        "record": Typed("record", {"class": "m.C", "form": "dataclass", "fields": {"x": Typed("tuple", [1])}}),
        "datetime": Typed("datetime", {"iso": "2024-02-29T00:00:00", "fold": 0}),
        "fraction": Typed("fraction", [1, 3]),
        "slice": Typed("slice", [1, None, 2]),
        "format": Typed("torch.memory_format", "channels_last"),
        "text": Typed("numpy.array", {"dtype": "<U1", "shape": [1], "data": b"a\0\0\0"}),
    }
    assert read(tree) == {
        "deque": [1],
        "defaultdict": {"a": [1]},
        "namespace": {"lr": 0.1},
        "record": {"x": (1,)},
        "datetime": "2024-02-29T00:00:00",
        "fraction": [1, 3],
        "slice": [1, None, 2],
        "format": "torch.channels_last",
        "text": {"dtype": "<U1", "shape": [1], "data": b"a\0\0\0"},
    }


def test_a_storage_under_two_dtypes_is_written_untyped() -> None:
    leaf = floats(1, 2)
    other = StoredTensor(TensorSpec("int32", (2,)), leaf.segment)
    first, second = read([leaf, other])
    assert (type(first).__name__, first[0]) == ("_rebuild_tensor_v3", ("UntypedStorage", "0", "cpu", 8))
    assert first[0] == second[0]


def test_what_has_no_form_is_named_with_its_path() -> None:
    cases: list[tuple[Any, str]] = [
        (2**3000, "more than 255 bytes"),
        (Opaque("m.Net", []), r"class m\.Net can't be written"),
        (Typed("unheard of", []), "a value of kind unheard of has no form in a torch file"),
        (StoredTensor(TensorSpec("float32", (1,)), floats(1, 2).segment, 2), "in the middle of a float32"),
        (Typed("torch.dtype", "float32\nos\nsystem"), "is no name in torch"),
        (Typed("conj", [1]), "a lazy conjugate of something that is no tensor"),
        (Typed("quantized", {"scheme": "per_tensor_affine", "data": 1}), "a quantized tensor without its integers"),
        (object(), "a object is no value"),
    ]
    for value, message in cases:
        with pytest.raises(UnsupportedValue, match=message) as caught:
            emit({"args": [0, value]})
        assert caught.value.path == "args.1"
        assert str(caught.value).startswith("`args.1`: ")


def test_byte_orders_are_not_mixed(tmp_path: Path) -> None:
    big, little = floats(1, 2), floats(3, 4)
    big.segment.swapped = True
    with pytest.raises(UnsupportedValue, match="big-endian and little-endian"):
        write([big, little], tmp_path / "m.pt")
    assert not (tmp_path / "m.pt").exists()
    data = write([big], tmp_path / "m.pt")
    assert opened(data).document().tree[0].segment.swapped


def test_numpy_values_without_numpy() -> None:
    def scalar(dtype: str, data: bytes) -> Any:
        return plain_scalar({"dtype": dtype, "data": data})

    assert scalar("<f4", struct.pack("<f", 1.5)) == 1.5
    assert scalar(">i2", b"\x01\x00") == 256
    assert scalar("|b1", b"\x01") is True
    assert scalar("<c8", struct.pack("<2f", 1, 2)) == 1 + 2j
    assert scalar("<U2", "é\0".encode("utf-32-le")) == "é"
    assert scalar("|S3", b"ab\0") == b"ab"
    assert scalar("<M8[ns]", b"\x05" + bytes(7)) == 5
    assert scalar("<f16", bytes(16)) == bytes(16)
    array = plain_array({"dtype": ">i4", "shape": [2], "data": struct.pack(">2i", 1, 2)})
    assert array.spec == TensorSpec("int32", (2,))
    assert array.segment.source.read(0, 8) == struct.pack("<2i", 1, 2)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 8, 16])
def test_column_major_items_are_put_in_rows(size: int) -> None:
    shape = (2, 3, 4)
    where = {(i, j, k): i + 2 * (j + 3 * k) for i in range(shape[0]) for j in range(shape[1]) for k in range(shape[2])}
    columns = b"".join(bytes([index]) * size for index in range(24))
    rows = b"".join(bytes([where[index]]) * size for index in sorted(where))
    assert row_major(columns, shape, size) == rows
    assert row_major(b"", (0, 3), size) == b""


def test_packed_dtypes_need_a_byte_for_each_row() -> None:
    segment = Segment(MemorySource(bytes(12)), 0, 12, "data/0")
    assert stored_tensor(segment, TensorSpec("quint4x2", (4, 6)), file="m.pt").spec.shape == (4, 6)
    assert stored_tensor(segment, TensorSpec("quint4x2", (4, 5)), file="m.pt").spec.shape == (4, 5)
    with pytest.raises(CorruptFile, match="needs 16 bytes"):
        stored_tensor(segment, TensorSpec("quint4x2", (4, 7)), file="m.pt")


@pytest.mark.parametrize("kind", ["list", "tuple", "dict", "pairs"])
def test_whatever_depth_is_written_is_read_back(kind: str, tmp_path: Path) -> None:
    def nested(depth: int) -> Any:
        tree: Any = 1
        for _ in range(depth):
            wrapped = {"list": [tree], "tuple": Typed("tuple", [tree]), "dict": {"a": tree}}
            tree = wrapped.get(kind, Typed("dict", [[1, tree]]))
        return tree

    assert opened(write(nested(DEPTH_LIMIT), tmp_path / "m.pt")).document().tree == nested(DEPTH_LIMIT)
    with pytest.raises(UnsupportedValue, match=f"nested deeper than {DEPTH_LIMIT} levels"):
        write(nested(DEPTH_LIMIT + 1), tmp_path / "deeper.pt")


def test_a_caller_near_the_end_of_the_stack_gets_an_error_of_ours(tmp_path: Path) -> None:
    tree: Any = 1
    for _ in range(100):
        tree = Typed("dict", [[1, tree]])

    def deep(left: int) -> None:
        deep(left - 1) if left else write(tree, tmp_path / "m.pt")

    with pytest.raises(UnsupportedValue, match="nested too deep to be written from here"):
        deep(600)
    assert not (tmp_path / "m.pt").exists()
