"""The tar of 2016: made by hand as torch 0.1 made it, read by torch and by us, and read again with lies in it."""

from __future__ import annotations

import io
import pathlib
import pickle
import struct
import tarfile
from collections.abc import Callable
from typing import Any

import pytest
import torch

from holdfast import compat
from holdfast.errors import CorruptFile, HoldfastError, RefusedFile, UnknownFormat, UnsupportedValue
from holdfast.formats import tar
from holdfast.formats.base import Document
from holdfast.formats.detect import open_container
from holdfast.serialization.reading import read_tree, verify_segments
from holdfast.state.values import Opaque
from holdfast.storage.atomic import replace_file
from holdfast.storage.source import MemorySource


class Key:
    """What the pickle refers to by a persistent id."""

    def __init__(self, name: Any) -> None:
        self.name = name


class Pickler(pickle.Pickler):
    """Writes keys as torch 0.1 did: as decimal strings."""

    def persistent_id(self, obj: Any) -> Any:
        return obj.name if isinstance(obj, Key) else None


def dumped(obj: Any) -> bytes:
    buffer = io.BytesIO()
    Pickler(buffer, protocol=2).dump(obj)
    return buffer.getvalue()


def storage_part(key: Any, location: Any, values: bytes, elements: int, cls: Any = torch.FloatStorage) -> bytes:
    return dumped((key, location, cls)) + struct.pack("<q", elements) + values


def tensor_part(key: Any, storage: Any, sizes: tuple[int, ...], strides: tuple[int, ...], first: int = 0) -> bytes:
    rank = len(sizes)
    return dumped((key, storage, torch.FloatTensor)) + struct.pack(
        f"<iI{rank}q{rank}qq", rank, 0, *sizes, *strides, first
    )


ROW = struct.pack("<6f", *range(6))


def members(**changes: bytes) -> dict[str, bytes]:
    """Two tensors over one storage, a storage that is a part of it, and a class with its source."""
    parts = {
        "sys_info": dumped({"protocol_version": 1000}),
        "pickle": dumped({"a": Key("11"), "again": Key("11"), "b": Key("12"), "s": Key("8"), "n": [1, "x"]}),
        "tensors": dumped(2) + tensor_part(11, 7, (2, 3), (3, 1)) + tensor_part(12, 8, (2,), (1,), 1),
        "storages": dumped(1) + storage_part(7, "cpu", ROW, 6) + dumped([(8, 7, 2, 3)]),
    }
    return parts | changes


def archived(parts: dict[str, bytes], *, kind: bytes = tarfile.REGTYPE, headers: dict[str, str] | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in parts.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.type = (len(data) if kind == tarfile.REGTYPE else 0), kind
            entry.pax_headers = {"mtime": "1480000000.5", **(headers or {})}
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def opened(data: bytes) -> tar.TorchTar:
    return tar.open(MemorySource(data, name="old.tar"), "old.tar")


def test_what_torch_reads_of_it_is_what_we_read(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "old.pt"
    path.write_bytes(archived(members()))
    theirs = torch.load(path, weights_only=False)
    drop_in = compat.load(path, weights_only=False)
    container = open_container(MemorySource(path.read_bytes()), "old.pt")
    assert container.format == "torch-tar"
    ours = read_tree(container.document().tree, "old.pt")
    for loaded in (ours, drop_in):
        assert loaded["a"].tolist() == theirs["a"].tolist() == [[0, 1, 2], [3, 4, 5]]
        assert loaded["b"].tolist() == theirs["b"].tolist() == [3, 4]
        assert loaded["again"] is loaded["a"]
        assert loaded["n"] == [1, "x"]
        assert loaded["s"]._untyped_storage.tolist() == theirs["s"]._untyped_storage.tolist()
        loaded["a"][1, 0] = 9
        assert loaded["b"][0] == 9, "the storage of b is a part of that of a"
    with pytest.raises(RuntimeError, match=r"weights_only=True`` with files saved in the legacy \.tar format"):
        compat.load(path)


def test_nothing_can_be_verified_but_lengths() -> None:
    container = opened(archived(members()))
    assert verify_segments(container.segments()) == 1
    assert container.document().tree["a"] is container.document().tree["again"], "a document can be asked for twice"


def test_classes_stay_inert() -> None:
    obj = b"\x80\x02(cos\nsystem\nX\x01\0\0\0fX\x01\0\0\0stQ)\x81."
    tree = opened(archived(members(pickle=obj))).document().tree
    assert type(tree) is Opaque
    assert tree.type_name == "os.system"


def test_it_is_not_written(tmp_path: pathlib.Path) -> None:
    with (
        pytest.raises(UnsupportedValue, match=r"new\.tar`: the tar format of 2016 is only read; save as \.pt instead"),
        replace_file(tmp_path / "new.tar") as staged,
    ):
        tar.write(staged, Document({}))


def test_sniff() -> None:
    assert tar.sniff(archived(members())[:4096])
    assert not tar.sniff(archived({"photo.jpg": b""}))
    assert not tar.sniff(b"storages")
    assert not tar.sniff(b"")


def in_blocks(data: bytes) -> bytes:
    """An archive without the empty blocks at its end."""
    data = data.rstrip(b"\0")
    return data + bytes(-len(data) % 512)


LIES: dict[str, tuple[Callable[[], bytes], type[HoldfastError], str]] = {
    "no storages": (
        lambda: archived({name: data for name, data in members().items() if name != "storages"}),
        UnknownFormat,
        "is a tar archive without storages, which a torch file of 2016 has",
    ),
    "a link": (lambda: archived(members(), kind=tarfile.SYMTYPE), RefusedFile, "sys_info is a link or device in a tar"),
    "a name in a header": (
        lambda: archived(members(), headers={"path": "../pickle"}),
        RefusedFile,
        "an extended header changes a member's path",
    ),
    "a member twice": (
        lambda: in_blocks(archived(members())) + archived(members()),
        RefusedFile,
        "two members are called sys_info",
    ),
    "cut": (lambda: archived(members())[:3620], CorruptFile, " are left: cut short"),
    "cut between members": (lambda: archived(members())[:3000], CorruptFile, "at byte 3,072: no tar header"),
    "a broken header": (lambda: archived(members())[:2048] + b"x" * 512, CorruptFile, "at byte 2,048: no tar header"),
    "a count of text": (
        lambda: archived(members(storages=dumped("many"))),
        CorruptFile,
        "'many' is no number of parts",
    ),
    "a count too large": (lambda: archived(members(tensors=dumped(1 << 40))), CorruptFile, "is no number of parts"),
    "a part of one": (lambda: archived(members(tensors=dumped(1) + dumped(3))), CorruptFile, "3 describes no part"),
    "a storage of no type": (
        lambda: archived(members(storages=dumped(1) + storage_part(7, "cpu", ROW, 6, Key))),
        CorruptFile,
        "the storage 7 has no known type",
    ),
    "a storage without location": (
        lambda: archived(members(storages=dumped(1) + storage_part(7, None, ROW, 6))),
        CorruptFile,
        "a storage has no location",
    ),
    "a storage too large": (
        lambda: archived(members(storages=dumped(1) + storage_part(7, "cpu", ROW, 1 << 50))),
        CorruptFile,
        "the storage 7 has 1,125,899,906,842,624 elements, 24 bytes are left",
    ),
    "a storage below nothing": (
        lambda: archived(members(storages=dumped(1) + storage_part(7, "cpu", ROW, -1))),
        CorruptFile,
        "the storage 7 has -1 elements",
    ),
    "views of text": (
        lambda: archived(members(storages=dumped(1) + storage_part(7, "cpu", ROW, 6) + dumped("v"))),
        CorruptFile,
        "the list of views is damaged",
    ),
    "a view of nothing": (
        lambda: archived(members(storages=dumped(1) + storage_part(7, "cpu", ROW, 6) + dumped([(8, 9, 0, 1)]))),
        CorruptFile,
        "there is no storage 9",
    ),
    "a view past its storage": (
        lambda: archived(members(storages=dumped(1) + storage_part(7, "cpu", ROW, 6) + dumped([(8, 7, 5, 2)]))),
        CorruptFile,
        "needs 8 bytes, the record has 24",
    ),
    "a tensor past its view": (
        lambda: archived(members(tensors=dumped(1) + tensor_part(11, 8, (3,), (1,), 1))),
        CorruptFile,
        "reaches past its storage 8",
    ),
    "a tensor before its view": (
        lambda: archived(members(tensors=dumped(1) + tensor_part(11, 8, (1,), (1,), -1))),
        CorruptFile,
        "reaches past its storage 8",
    ),
    "a tensor without type": (
        lambda: archived(members(tensors=dumped(1) + dumped((11, 7, None)))),
        CorruptFile,
        "the tensor 11 has no type",
    ),
    "a rank of a thousand": (
        lambda: archived(members(tensors=dumped(1) + dumped((11, 7, torch.FloatTensor)) + struct.pack("<iI", 1000, 0))),
        CorruptFile,
        "the tensor 11 has 1000 dimensions; 64 is the most: corrupt",
    ),
    "a reference to nothing": (
        lambda: archived(members(pickle=dumped([Key("99")]))),
        CorruptFile,
        "the object refers to '99', which is neither a tensor nor a storage",
    ),
    "a reference of another kind": (
        lambda: archived(members(pickle=dumped([Key(b"9" * 5000)]))),
        CorruptFile,
        "which is neither a tensor nor a storage",
    ),
    "a storage of its own": (
        lambda: archived(
            members(
                pickle=b"\x80\x02ctorch._utils\n_rebuild_tensor\n((X\x07\0\0\0storagectorch\nFloatStorage\n"
                b"X\x01\0\0\x000X\x03\0\0\0cpuK\x03tQK\0(K\x01t(K\x01ttR."
            )
        ),
        CorruptFile,
        "the object has a storage 0 of its own",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_lies(lie: str) -> None:
    make, error, text = LIES[lie]
    with pytest.raises(error) as caught:
        opened(make()).document()
    assert text in str(caught.value)


def test_flipped_bytes_raise_nothing_else() -> None:
    honest = archived(members())
    for at in range(0, len(honest), 3):
        data = bytearray(honest)
        data[at] ^= 0x81
        try:
            opened(bytes(data)).document()
        except HoldfastError:
            continue
