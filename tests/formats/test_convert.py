"""Converting: what is proved, what is refused, and that nothing is replaced unless the proof holds."""

from __future__ import annotations

import io
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from holdfast.errors import ArgumentError, CorruptFile, RefusedFile, StorageError, UnsupportedValue
from holdfast.formats import safetensors, torchzip, writing
from holdfast.formats.base import Document, Segment, StoredTensor
from holdfast.formats.convert import ConvertReport, convert_container
from holdfast.formats.detect import open_path
from holdfast.formats.lost import Lost
from holdfast.formats.proof import array_differences, differences
from holdfast.formats.writing import write_document
from holdfast.spec import CHUNK, TensorSpec
from holdfast.state.values import Opaque, Typed
from holdfast.storage.source import MemorySource


def tensor(data: bytes, dtype: str = "uint8", shape: tuple[int, ...] | None = None, **more: Any) -> StoredTensor:
    spec = TensorSpec(dtype, (len(data),) if shape is None else shape, more.pop("stride", None))
    return StoredTensor(spec, Segment(MemorySource(data), 0, len(data), **more.pop("segment", {})), **more)


def saved(path: Path, tree: Any, **more: Any) -> Path:
    write_document(Document(tree, **more), path, "safetensors" if path.suffix == ".safetensors" else "pt")
    return path


def convert(source: Path, destination: Any, **options: Any) -> ConvertReport:
    with open_path(source) as container:
        return convert_container(container, destination, **options)


def test_the_report_says_what_was_written(tmp_path: Path) -> None:
    memory = Segment(MemorySource(b"abcdef"), 0, 6)
    tree = {
        "a": StoredTensor(TensorSpec("uint8", (6,)), memory),
        "b": StoredTensor(TensorSpec("uint8", (3,)), memory, 2),
        "c": {"d": tensor(b"xy")},
        "c.d": tensor(b"z"),
        "epoch": 3,
    }
    source = saved(tmp_path / "a.pt", tree, metadata={"who": "me", "why": "so"})
    report = convert(source, tmp_path / "b.safetensors", drop=["ep*", "metadata.why"])
    assert report.file == str(tmp_path / "b.safetensors")
    assert report.format == "safetensors"
    assert report.tensors == 4
    assert report.bytes == (tmp_path / "b.safetensors").stat().st_size
    assert report.seconds > 0
    assert report.shared == [["a", "b"]]
    assert report.renamed == {"c.d": "c.d~2"}
    assert report.dropped == ["epoch", "metadata.why"]
    assert report.notes == ["`b` share the memory of `a`; plain readers find that name only"]
    with open_path(tmp_path / "b.safetensors") as container:
        assert container.document().metadata == {"who": "me"}
        assert list(container.document().tree) == ["a", "b", "c", "c.d"]


def test_what_a_format_lacks_is_listed_and_nothing_is_written(tmp_path: Path) -> None:
    source = saved(tmp_path / "a.safetensors", {"net": Opaque("my.Net", []), "w": tensor(b"1"), "epoch": 1})
    (tmp_path / "b.pt").write_bytes(b"old")
    with pytest.raises(UnsupportedValue) as caught:
        convert(source, tmp_path / "b.pt")
    assert str(caught.value) == (
        f"`{tmp_path}/b.pt`: pt can't carry `net`: an object of class my.Net. Nothing was written. Leave them out by "
        "name or glob, drop=['net', ...] or --drop 'net', or convert to another format"
    )
    assert caught.value.path == "net"
    assert (tmp_path / "b.pt").read_bytes() == b"old"
    assert convert(source, tmp_path / "b.pt", drop=["net"]).dropped == ["net"]
    with pytest.raises(
        UnsupportedValue, match=r"npz can't carry `net`: an object of class my.Net, `epoch`: a int\. Not"
    ):
        convert(source, tmp_path / "b.npz")
    assert convert(source, tmp_path / "b.npz", drop=["net", "epoch"]).tensors == 1


def test_a_stream_of_torch_keeps_no_exact_types(tmp_path: Path) -> None:
    source = saved(tmp_path / "a.pt", {"p": Typed("path", "x"), "w": tensor(b"1")}, metadata={"k": "v"})
    with pytest.raises(UnsupportedValue, match=r"torch-legacy can't carry `metadata.k`: metadata\. Nothing"):
        convert(source, tmp_path / "b.pt", format="torch-legacy")
    with pytest.raises(UnsupportedValue, match=r"torch-legacy can't carry `p`: a path becomes str 'x'\. Nothing"):
        convert(source, tmp_path / "b.pt", format="torch-legacy", drop=["metadata.*"])
    assert not (tmp_path / "b.pt").exists()
    assert convert(source, tmp_path / "b.pt", format="torch-legacy", drop=["metadata.*", "p"]).tensors == 1


def test_npz_says_what_it_does_not_keep(tmp_path: Path) -> None:
    memory = Segment(MemorySource(b"ab"), 0, 2)
    tree = {
        "a": StoredTensor(TensorSpec("uint8", (2,)), memory, requires_grad=True),
        "b": StoredTensor(TensorSpec("uint8", (2,)), memory),
    }
    assert convert(saved(tmp_path / "a.pt", tree), tmp_path / "b.npz").notes == [
        "tensors that lie in one memory are stored once for each name",
        "npz keeps neither requires_grad nor versions of modules nor records of objects",
    ]


def test_a_damaged_source_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    source = saved(tmp_path / "a.pt", {"w": tensor(bytes(100_000))})
    data = bytearray(source.read_bytes())
    data[50_000] ^= 1
    source.write_bytes(data)
    with pytest.raises(CorruptFile, match=r"a.pt`: at byte \d+: .*`data/0`.* corrupt"):
        convert(source, tmp_path / "b.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pt"]


@pytest.mark.parametrize("name", ["b.pt", "b.safetensors", "b.npz"])
@pytest.mark.parametrize("stage", ["lie", "damage"])
def test_what_comes_back_different_replaces_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, stage: str
) -> None:
    """Writers that get it wrong: each format writes other bytes than it was given, or damages them afterwards."""
    source = saved(tmp_path / "a.pt", {"w": tensor(bytes(3 * CHUNK // 2)), "v": tensor(b"right")})
    (tmp_path / name).write_bytes(b"old")
    form = {"b.pt": "pt", "b.safetensors": "safetensors", "b.npz": "npz"}[name]
    honest = writing.FORMATS[form]

    class Wrong:
        SUFFIXES = honest.SUFFIXES

        @staticmethod
        def write(staged: Any, document: Document, *, top: str = "archive") -> Any:
            tree = {**document.tree, "v": tensor(b"wrong")} if stage == "lie" else document.tree
            told = honest.write(staged, Document(tree, document.objects, document.metadata), top=top)
            if stage == "damage":
                os.pwrite(staged.fd, b"\1", CHUNK)
            return told

    monkeypatch.setitem(writing.FORMATS, form, Wrong)
    with pytest.raises(CorruptFile, match=rf"`{tmp_path}/{name}`: read again, `[vw]` differs from the source: memory"):
        convert(source, tmp_path / name)
    assert (tmp_path / name).read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["a.pt", name])


def test_a_glob_that_matches_nothing_is_an_error(tmp_path: Path) -> None:
    source = saved(tmp_path / "a.pt", {"model": {"w": tensor(b"1")}})
    with pytest.raises(ArgumentError, match=r"a.pt`: drop 'modle' matches nothing; there are: model.w$"):
        convert(source, tmp_path / "b.pt", drop=["modle"])


def test_a_file_may_be_converted_onto_itself_and_into_an_object(tmp_path: Path) -> None:
    source = saved(tmp_path / "a.pt", {"w": tensor(b"abc")})
    convert(source, source, format="safetensors")
    with open_path(source) as container:
        assert container.format == safetensors.NAME
        stream = io.BytesIO()
        assert convert_container(container, stream, format="pt").file == "<BytesIO>"
    container = torchzip.open(MemorySource(stream.getvalue()), "stream")
    assert list(container.document().tree) == ["w"]


def test_what_can_not_be_written_leaves_nothing(tmp_path: Path) -> None:
    source = saved(tmp_path / "a.pt", {"w": tensor(b"abc")})
    with pytest.raises(StorageError, match="is a folder"):
        convert(source, tmp_path)
    with pytest.raises(ArgumentError, match="format 'zip' is unknown; there are: pt, safetensors, npz, torch-legacy"):
        convert(source, tmp_path / "b", format="zip")
    with pytest.raises(ArgumentError, match="ftp:// is no object store known here"):
        convert(source, "ftp://host/b.pt")


def test_a_tree_that_is_too_deep_is_refused(tmp_path: Path) -> None:
    tree: Any = {"w": torch.ones(1)}
    for _ in range(300):
        tree = {"x": (tree,)}
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(10_000)
    try:
        torch.save(tree, tmp_path / "a.pt")
    finally:
        sys.setrecursionlimit(limit)
    with pytest.raises(RefusedFile, match=r"a.pt`: .*nested"):
        convert(tmp_path / "a.pt", tmp_path / "b.safetensors")


def called_from(depth: int, what: Callable[[], object]) -> object:
    return what() if depth == 0 else called_from(depth - 1, what)


def test_a_caller_that_is_too_deep_itself_is_told(tmp_path: Path) -> None:
    tree: Any = torch.ones(1)
    for _ in range(100):
        tree = {"x": tree}
    torch.save(tree, tmp_path / "a.pt")
    room = sys.getrecursionlimit() - len(list(traceback.walk_stack(None))) - 120
    with pytest.raises(RefusedFile, match=r"a.pt`: is nested too deep to be converted from here"):
        called_from(room, lambda: convert(tmp_path / "a.pt", tmp_path / "b.pt"))


# ---- the proof itself ------------------------------------------------------------------------------------------------


W = {"w": tensor(b"abcd")}

DIFFERENT: dict[str, tuple[Any, Any, list[Lost]]] = {
    "a bit": (W, {"w": tensor(b"abce")}, [Lost("w", "its bytes differ")]),
    "a dtype": (W, {"w": tensor(b"abcd", "int8")}, [Lost("w", "a tensor (4,) uint8 becomes a tensor (4,) int8")]),
    "a shape": (
        W, {"w": tensor(b"abcd", shape=(2, 2))}, [Lost("w", "a tensor (4,) uint8 becomes a tensor (2, 2) uint8")],
    ),
    "gradient": (
        W, {"w": tensor(b"abcd", requires_grad=True)},
        [Lost("w", "a tensor (4,) uint8 becomes a tensor (4,) uint8, requires_grad")],
    ),
    "a name": (W, {"v": W["w"]}, [Lost("(root)", "a dict of 1 becomes a dict of 1")]),
    "an order": ({"a": 1, "b": 2}, {"b": 2, "a": 1}, [Lost("(root)", "a dict of 2 becomes a dict of 2")]),
    "a length": ([1], [1, 2], [Lost("(root)", "a list of 1 becomes a list of 2")]),
    "a type": ({"a": True}, {"a": 1}, [Lost("a", "bool True becomes int 1")]),
    "a kind": ({"a": Typed("set", [])}, {"a": Typed("tuple", [])}, [Lost("a", "a set becomes a tuple")]),
    "inside": ({"a": Typed("tuple", [1])}, {"a": Typed("tuple", [2])}, [Lost("a.0", "int 1 becomes int 2")]),
    "a sign": ({"a": 0.0}, {"a": -0.0}, [Lost("a", "float 0.0 becomes float -0.0")]),
    "a complex sign": ([0j], [complex(0.0, -0.0)], [Lost("0", "complex 0j becomes complex -0j")]),
    "a class": (
        [Opaque("a.A", [])], [Opaque("a.B", [])], [Lost("0", "an object of class a.A becomes an object of class a.B")],
    ),
    "a state": ([Opaque("a.A", [1])], [Opaque("a.A", [2])], [Lost("0.args.0", "int 1 becomes int 2")]),
    "an object": ([Opaque("a.A", [])], [None], [Lost("0", "an object of class a.A becomes NoneType None")]),
}  # fmt: skip


@pytest.mark.parametrize("case", DIFFERENT)
def test_every_difference_is_seen(case: str) -> None:
    wanted, found, lost = DIFFERENT[case]
    assert differences(Document(wanted), Document(found)) == lost
    assert differences(Document(wanted), Document(wanted)) == []


def test_nan_is_itself_and_fields_have_no_order() -> None:
    left = {"a": float("nan"), "b": Typed("sparse", {"x": 1, "y": 2})}
    right = {"a": float("nan"), "b": Typed("sparse", {"y": 2, "x": 1})}
    assert differences(Document(left), Document(right)) == []


def test_lost_sharing_is_a_difference() -> None:
    memory = Segment(MemorySource(b"abcd"), 0, 4)
    tied = {name: StoredTensor(TensorSpec("uint8", (4,)), memory) for name in "ab"}
    apart = {name: tensor(b"abcd") for name in "ab"}
    assert differences(Document(tied), Document(apart)) == [Lost("a", "shares its memory with b on one side only")]
    beside = {
        "a": StoredTensor(TensorSpec("uint8", (2,)), memory),
        "b": StoredTensor(TensorSpec("uint8", (2,)), memory, 2),
    }
    assert differences(Document(beside), Document({"a": tensor(b"ab"), "b": tensor(b"cd")})) == []


def test_objects_and_metadata_are_compared() -> None:
    left, right = Document({}, {"m": {"kind": "module"}}, {"k": "v"}), Document({}, {"m": {"kind": "other"}})
    assert differences(left, right) == [
        Lost("objects.m.kind", "str 'module' becomes str 'other'"),
        Lost("metadata.k", "str 'v' becomes NoneType None"),
    ]


def test_tensors_that_lie_differently_are_equal_when_their_elements_are() -> None:
    rows, columns = tensor(b"abcdef", shape=(2, 3)), tensor(b"adbecf", shape=(2, 3), stride=(1, 2))
    assert differences(Document({"w": rows}), Document({"w": columns})) == []
    swapped = tensor(b"\0\1\0\2", "int16", (2,), segment={"swapped": True})
    assert differences(Document({"w": swapped}), Document({"w": tensor(b"\1\0\2\0", "int16", (2,))})) == []
    expanded = tensor(b"aa", shape=(2, 2), stride=(0, 1))
    assert differences(Document({"w": expanded}), Document({"w": tensor(b"aaaa", shape=(2, 2))})) != []
    assert differences(Document({"w": expanded}), Document({"w": expanded})) == []


@pytest.mark.parametrize("found", [{}, {"w": tensor(b"abce")}, {"w": tensor(b"abcd"), "v": tensor(b"")}])
def test_arrays_are_compared_by_name(found: Any) -> None:
    assert array_differences(Document({"w": tensor(b"abcd", requires_grad=True)}), Document(W)) == []
    assert len(array_differences(Document(W), Document(found))) == 1


def test_large_tensors_are_compared_to_the_end() -> None:
    data = bytearray(5 * CHUNK + 3)
    same = Document({"w": tensor(bytes(data))})
    data[-1] = 1
    assert differences(same, Document({"w": tensor(bytes(data))})) == [Lost("w", "its bytes differ")]
