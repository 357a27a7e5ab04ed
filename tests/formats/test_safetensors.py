"""Our safetensors files: what is written comes back, and plain readers find names and rows."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from holdfast.errors import ArgumentError, CorruptFile, UnknownFormat, UnsupportedValue
from holdfast.formats import safetensors, safetensors_writing
from holdfast.formats.base import Document, Segment, StoredTensor
from holdfast.formats.packing import Swapped, pack
from holdfast.formats.safetensors_writing import write_tensors
from holdfast.formats.tensors import needed_bytes
from holdfast.spec import CHUNK, DTYPES, TensorSpec
from holdfast.state.values import Typed
from holdfast.storage.atomic import replace_file
from holdfast.storage.digest import chunk_digests
from holdfast.storage.source import FileSource, MemorySource


def segment(data: bytes, **known: Any) -> Segment:
    return Segment(MemorySource(data), 0, len(data), **known)


def tensor(data: bytes, dtype: str = "uint8", shape: tuple[int, ...] | None = None, **more: Any) -> StoredTensor:
    return StoredTensor(TensorSpec(dtype, (len(data),) if shape is None else shape), segment(data), **more)


def view(
    of: Segment, dtype: str, shape: tuple[int, ...], stride: tuple[int, ...] | None = None, offset: int = 0
) -> Any:
    return StoredTensor(TensorSpec(dtype, shape, stride), of, offset)


def numbers(count: int, code: str = "i") -> bytes:
    return struct.pack(f"<{count}{code}", *range(count))


def content(stored: StoredTensor) -> bytes:
    """The bytes from the tensor's first element on, to the end of its segment."""
    part = stored.segment
    return part.source.read(part.offset + stored.offset, part.length - stored.offset)


def save(path: Path, document: Document) -> list[str]:
    with replace_file(path) as staged:
        return safetensors.write(staged, document)["notes"]


def load(path: Path) -> Document:
    with safetensors.open(FileSource(path), str(path)) as container:
        document = container.document()
        for part in container.segments():
            assert part.chunks == chunk_digests(part.source.read(part.offset, part.length))
        document.tree = _read_now(document.tree)
        return document


def _read_now(tree: Any) -> Any:
    """The same tree with the segments in memory: the file is closed when the test looks at them."""
    seen: dict[int, Segment] = {}

    def moved(item: Any) -> Any:
        if isinstance(item, dict):
            return {key: moved(value) for key, value in item.items()}
        if isinstance(item, list):
            return [moved(value) for value in item]
        if isinstance(item, Typed):
            return Typed(item.kind, moved(item.payload))
        if not isinstance(item, StoredTensor):
            return item
        old = item.segment
        if id(old) not in seen:
            seen[id(old)] = segment(old.source.read(old.offset, old.length), name=old.name, chunks=old.chunks)
        return StoredTensor(item.spec, seen[id(old)], item.offset, item.requires_grad, item.live_stride)

    return moved(tree)


def raw_header(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])


def test_a_flat_state_dict_keeps_exactly_its_keys(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    state = {"fc.weight": tensor(numbers(6), "int32", (2, 3)), "fc.bias": tensor(b"\1\2", "bool")}
    assert save(path, Document(state, {"": {"kind": "module"}}, {"author": "A: \u00fc"})) == []
    header = raw_header(path)
    assert header.pop("__metadata__").keys() == {"holdfast", "format", "author"}
    assert header == {
        "fc.weight": {"dtype": "I32", "shape": [2, 3], "data_offsets": [0, 24]},
        "fc.bias": {"dtype": "BOOL", "shape": [2], "data_offsets": [24, 26]},
    }
    document = load(path)
    assert document.objects == {"": {"kind": "module"}}
    assert document.metadata == {"author": "A: \u00fc"}
    assert list(document.tree) == ["fc.weight", "fc.bias"]
    assert document.tree["fc.weight"].spec == TensorSpec("int32", (2, 3))
    assert content(document.tree["fc.weight"]) == numbers(6)
    assert content(document.tree["fc.bias"]) == b"\1\2"


def test_data_is_aligned_and_the_largest_items_come_first(tmp_path: Path) -> None:
    path = tmp_path / "mixed.safetensors"
    tree = {"a": tensor(b"\1"), "b": tensor(numbers(3, "d"), "float64", (3,)), "c": tensor(numbers(1), "int32", ())}
    save(path, Document(tree))
    with safetensors.open(FileSource(path), "f") as container:
        offsets = {part.name: part.offset for part in container.segments()}
    assert offsets["b"] % 64 == 0
    assert sorted(offsets, key=offsets.__getitem__) == ["b", "c", "a"]
    assert list(load(path).tree) == ["a", "b", "c"]  # the tree has its own order


def test_the_tree_comes_back_with_its_types(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    weight = tensor(numbers(2), "int32", (2,), requires_grad=True)
    tree = {
        "epoch": 3,
        "loss": float("inf"),
        "where": Typed("path", "a/b"),
        "both": Typed("tuple", [weight, None, b"\0\xff"]),
        "$odd": {"$tensor": "no reference, just a user's key"},
        "by number": Typed("dict", [[0, tensor(b"\5")], ["0", tensor(b"\6")]]),
        "net": Typed("state_dict", {"items": {"w": tensor(b"\7")}, "metadata": [["", {"version": 1}]]}),
        "param": Typed("parameter", {"data": tensor(b"\x08"), "requires_grad": True}),
    }
    save(path, Document(tree))
    got = load(path).tree
    assert list(got) == list(tree)
    assert {key: got[key] for key in ("epoch", "loss", "where", "$odd")} == {
        key: tree[key] for key in ("epoch", "loss", "where", "$odd")
    }
    first, nothing, binary = got["both"].payload
    assert (first.requires_grad, nothing, binary) == (True, None, b"\0\xff")
    assert [(key, content(item)) for key, item in got["by number"].payload] == [(0, b"\5"), ("0", b"\6")]
    assert got["net"].payload["metadata"] == [["", {"version": 1}]]
    names = set(raw_header(path)) - {"__metadata__"}
    assert names == {"both.0", "by number.0", "by number.0~2", "net.w", "param"}


def test_names_are_unique_whatever_the_keys_are(tmp_path: Path) -> None:
    path = tmp_path / "names.safetensors"
    tree = {
        "a": {"b": tensor(b"\1")},
        "a.b": tensor(b"\2"),
        "a.b~2": tensor(b"\3"),
        "__metadata__": tensor(b"\4"),
        "\ud800": tensor(b"\5"),
        "": tensor(b"\6"),
    }
    save(path, Document(tree))
    assert set(raw_header(path)) == {"__metadata__", "a.b", "a.b~2", "a.b~2~2", "__metadata__~2", "\\ud800", ""}
    got = load(path).tree
    assert [content(got[key]) for key in list(tree)[1:]] == [b"\2", b"\3", b"\4", b"\5", b"\6"]
    assert content(got["a"]["b"]) == b"\1"


def test_a_lone_tensor_is_a_document_too(tmp_path: Path) -> None:
    save(tmp_path / "one", Document(tensor(b"\1\2")))
    assert content(load(tmp_path / "one").tree) == b"\1\2"
    assert "tensor" in raw_header(tmp_path / "one")


def test_tied_weights_are_stored_once_and_tied_again(tmp_path: Path) -> None:
    path = tmp_path / "tied.safetensors"
    shared = segment(numbers(6))
    tree = {"embed": view(shared, "int32", (2, 3)), "head": view(shared, "int32", (2, 3))}
    notes = save(path, Document(tree))
    assert notes == ["`head` share the memory of `embed`; plain readers find that name only"]
    assert set(raw_header(path)) == {"__metadata__", "embed"}
    got = load(path).tree
    assert got["embed"].segment is got["head"].segment
    assert got["head"].spec == TensorSpec("int32", (2, 3))


def test_views_of_one_memory_are_named_after_the_tensor_that_covers_it(tmp_path: Path) -> None:
    path = tmp_path / "views.safetensors"
    shared = segment(numbers(6))
    tree = {
        "column": view(shared, "int32", (2,), (3,), 4),
        "whole": view(shared, "int32", (2, 3)),
        "turned": view(shared, "int32", (3, 2), (1, 3)),
        "expanded": view(shared, "int32", (5, 2), (0, 1), 16),
    }
    save(path, Document(tree))
    assert raw_header(path)["whole"]["shape"] == [2, 3]
    got = load(path).tree
    for name, leaf in tree.items():
        assert (got[name].spec, got[name].offset) == (leaf.spec, leaf.offset)
        assert got[name].segment is got["whole"].segment


def test_views_that_nobody_covers_are_stored_as_bytes(tmp_path: Path) -> None:
    path = tmp_path / "overlap.safetensors"
    shared = segment(b"unused" + numbers(4) + b"unused too")
    tree = {"left": view(shared, "int32", (3,), None, 6), "right": view(shared, "int32", (3,), None, 10)}
    notes = save(path, Document(tree))
    assert notes == ["`left`, `right` lie in one memory, stored as `left.storage`; plain readers find bytes there"]
    assert raw_header(path)["left.storage"] == {"dtype": "U8", "shape": [16], "data_offsets": [0, 16]}
    got = load(path).tree
    assert content(got["left"])[:12] == numbers(4)[:12]
    assert content(got["right"]) == numbers(4)[4:]
    assert got["left"].segment is got["right"].segment


def test_tensors_side_by_side_in_one_storage_become_entries_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "flat.safetensors"
    shared = segment(numbers(100))
    tree = {
        "b": view(shared, "int32", (2,), None, 8),
        "a": view(shared, "int32", (2,)),
        "n": view(shared, "int32", (0,), None, 8),
    }
    assert save(path, Document(tree)) == ["`n` share the memory of `b`; plain readers find that name only"]
    header = raw_header(path)
    assert (header["a"]["shape"], header["b"]["shape"], header["b"]["data_offsets"]) == ([2], [2], [0, 8])
    got = load(path).tree
    assert (content(got["a"]), content(got["b"])) == (numbers(2), numbers(4)[8:])
    assert path.stat().st_size < 2000


def test_a_strided_tensor_is_written_row_major_and_remembers_its_stride(tmp_path: Path) -> None:
    path = tmp_path / "channels_last.safetensors"
    tree = {
        "turned": view(segment(numbers(6)), "int32", (3, 2), (1, 3)),
        "gaps": view(segment(numbers(10)), "int32", (3,), (4,), 4),
        "complex": view(segment(numbers(8, "d")), "complex64", (2, 4), (1, 2)),
    }
    tied = tree["turned"].segment
    tree["again"] = view(tied, "int32", (3, 2), (1, 3))
    save(path, Document(tree))
    got = load(path).tree
    assert struct.unpack("<6i", content(got["turned"])) == (0, 3, 1, 4, 2, 5)
    assert got["turned"].spec == TensorSpec("int32", (3, 2))
    assert got["turned"].live_stride == (1, 3)
    assert got["again"].segment is got["turned"].segment
    assert got["again"].live_stride == (1, 3)
    assert struct.unpack("<3i", content(got["gaps"])) == (1, 5, 9)
    assert got["gaps"].live_stride is None
    assert struct.unpack("<8d", content(got["complex"])) == (0, 2, 4, 6, 1, 3, 5, 7)


def test_a_stride_that_was_lost_on_the_way_in_is_remembered(tmp_path: Path) -> None:
    save(tmp_path / "f", Document({"w": tensor(numbers(6), "int32", (3, 2), live_stride=(1, 3))}))
    assert load(tmp_path / "f").tree["w"].live_stride == (1, 3)


def test_an_expanded_tensor_is_not_blown_up(tmp_path: Path) -> None:
    path = tmp_path / "expanded.safetensors"
    save(path, Document({"e": view(segment(numbers(2)), "int32", (1_000_000, 2), (0, 1))}))
    assert path.stat().st_size < 2000
    assert load(path).tree["e"].spec == TensorSpec("int32", (1_000_000, 2), (0, 1))


@pytest.mark.parametrize("dtype", [row.name for row in DTYPES.values() if row.safetensors is None])
def test_a_dtype_that_safetensors_lacks_is_stored_as_bytes(tmp_path: Path, dtype: str) -> None:
    data = bytes(range(needed_bytes(TensorSpec(dtype, (3,)))))  # some dtypes hold several elements in a byte
    notes = save(tmp_path / "f", Document({"z": tensor(data, dtype, (3,))}))
    assert notes == [f"`z` is {dtype}, which safetensors lacks: plain readers find its bytes as uint8"]
    got = load(tmp_path / "f").tree["z"]
    assert (got.spec, content(got)) == (TensorSpec(dtype, (3,)), data)


@pytest.mark.parametrize("dtype", [row.name for row in DTYPES.values() if row.safetensors])
def test_every_dtype_that_safetensors_has_is_itself(tmp_path: Path, dtype: str) -> None:
    row = DTYPES[dtype]
    data = bytes(range(row.itemsize * 4))
    assert (
        save(
            tmp_path / "f",
            Document({"z": tensor(data, dtype, (2, 2)), "scalar": tensor(data[: row.itemsize], dtype, ())}),
        )
        == []
    )
    assert raw_header(tmp_path / "f")["z"]["dtype"] == row.safetensors
    got = load(tmp_path / "f").tree
    assert (got["z"].spec, content(got["z"])) == (TensorSpec(dtype, (2, 2)), data)
    assert got["scalar"].spec.shape == ()


def test_big_endian_bytes_are_turned(tmp_path: Path) -> None:
    big = struct.pack(">4d", 1, 2, 3, 4)
    tree = {
        "d": StoredTensor(TensorSpec("float64", (4,)), segment(big, swapped=True)),
        "c": StoredTensor(TensorSpec("complex128", (2,)), segment(big, swapped=True)),
        "t": StoredTensor(TensorSpec("float64", (2, 2), (1, 2)), segment(big, swapped=True)),
        "b": StoredTensor(TensorSpec("int8", (2,)), segment(b"\1\2", swapped=True)),
    }
    save(tmp_path / "f", Document(tree))
    got = load(tmp_path / "f").tree
    assert struct.unpack("<4d", content(got["d"])) == (1, 2, 3, 4)
    assert struct.unpack("<4d", content(got["c"])) == (1, 2, 3, 4)
    assert struct.unpack("<4d", content(got["t"])) == (1, 3, 2, 4)
    assert content(got["b"]) == b"\1\2"
    mixed = segment(big, swapped=True)
    with pytest.raises(UnsupportedValue, match="`x`, `y` share big-endian memory with different item sizes"):
        pack({"x": view(mixed, "float64", (4,)), "y": view(mixed, "int32", (8,))})


def test_parts_of_a_turned_source_are_the_same_bytes() -> None:
    source = Swapped(MemorySource(numbers(8, "q")[::-1]), 8)
    whole = source.read(0, source.size)
    assert struct.unpack("<8q", whole) == tuple(range(7, -1, -1))
    assert all(source.read(at, 5) == whole[at : at + 5] for at in range(59))
    with pytest.raises(CorruptFile, match="the file ends at byte 64"):
        source.read(60, 5)


def test_large_tensors_have_a_digest_for_each_chunk(tmp_path: Path) -> None:
    path = tmp_path / "large.safetensors"
    data = bytes(CHUNK + 5)
    save(path, Document({"small": tensor(b"\1"), "large": tensor(data), "none": tensor(b"")}))
    got = load(path).tree
    assert got["large"].segment.chunks == chunk_digests(data)
    assert len(got["large"].segment.chunks) == 2
    assert got["none"].segment.chunks == ()


def test_plain_files_are_a_dict_of_their_tensors(tmp_path: Path) -> None:
    path = tmp_path / "plain.safetensors"
    with replace_file(path) as staged:
        placed = write_tensors(
            staged,
            [("b", tensor(b"\1\2")), ("a", tensor(numbers(2), "int32", (2,))), ("z", tensor(b"1234", "quint8"))],
            {"k": "v"},
        )
    data = path.read_bytes()
    assert [one.name for one in placed] == ["b", "a", "z"]
    assert [data[one.offset : one.offset + one.length] for one in placed] == [b"\1\2", numbers(2), b"1234"]
    assert [one.chunks for one in placed] == [chunk_digests(part) for part in (b"\1\2", numbers(2), b"1234")]
    assert raw_header(path)["__metadata__"] == {"format": "pt", "k": "v"}
    with safetensors.open(FileSource(path), "f") as container:
        document = container.document()
        assert document.metadata == {"k": "v"}
        assert list(document.tree) == ["a", "b", "z"]
        assert content(document.tree["a"]) == numbers(2)
        assert document.tree["a"] is container.document().tree["a"]
        assert document.tree["a"].segment.chunks is None


def test_write_tensors_reads_a_view_where_it_lies(tmp_path: Path) -> None:
    with replace_file(tmp_path / "f") as staged:
        placed = write_tensors(staged, [("v", view(Segment(MemorySource(b"..abcdef"), 2, 6), "int16", (2,), None, 2))])
    assert (tmp_path / "f").read_bytes()[placed[0].offset :] == b"cdef"


@pytest.mark.parametrize("names", [["a", "a"], ["__metadata__"]])
def test_write_tensors_refuses_names_that_the_header_cannot_hold(tmp_path: Path, names: list[str]) -> None:
    with (
        pytest.raises(ArgumentError, match="tensor names must be unique and not '__metadata__'"),
        replace_file(tmp_path / "f") as staged,
    ):
        write_tensors(staged, [(name, tensor(b"\1")) for name in names])
    assert list(tmp_path.iterdir()) == []


def test_metadata_that_cannot_be_kept_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedValue, match="metadata key 'holdfast' is taken by the record"):
        save(tmp_path / "f", Document({}, metadata={"holdfast": "x"}))
    with pytest.raises(UnsupportedValue, match="a name or metadata text is no valid Unicode"):
        save(tmp_path / "f", Document({}, metadata={"x": "\ud800"}))
    assert list(tmp_path.iterdir()) == []


def test_a_header_past_the_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safetensors_writing, "HEADER_LIMIT", 1000)
    with pytest.raises(
        UnsupportedValue, match=r"take 1,\d\d\d bytes, a safetensors header has 1,000 at most; save as .pt"
    ):
        save(tmp_path / "f", Document({"text": "x" * 1000}))


def test_a_record_of_a_later_version_is_named(tmp_path: Path) -> None:
    save(tmp_path / "f", Document({}))
    data = (tmp_path / "f").read_bytes().replace(b'{\\"holdfast\\":0,', b'{\\"holdfast\\":7,')
    with pytest.raises(
        UnknownFormat, match="its record has version 7, this holdfast reads version 0; a newer holdfast"
    ):
        safetensors.open(MemorySource(data), "f")


def test_a_file_without_tensors_keeps_its_values(tmp_path: Path) -> None:
    save(tmp_path / "f", Document({"epoch": 3}))
    assert load(tmp_path / "f").tree == {"epoch": 3}
    save(tmp_path / "g", Document({}))
    assert load(tmp_path / "g") == Document({})
