"""Torch zips that lie or are damaged: one generator a lie, and every byte of an honest file flipped."""

from __future__ import annotations

import contextlib
import io
import json
import struct
import sys
import traceback
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from holdfast.errors import CorruptFile, FormatError, RefusedFile, UnknownFormat
from holdfast.formats import torchzip
from holdfast.formats.base import Document, Segment, StoredTensor
from holdfast.spec import CHUNK, TensorSpec
from holdfast.storage.atomic import replace_file
from holdfast.storage.digest import digest_bytes
from holdfast.storage.requests import Check, verify_ranges
from holdfast.storage.source import MemorySource

FLOATS = struct.pack("<4f", 1, 2, 3, 4)
PICKLE = (
    b"\x80\x02}(X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
    b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQK\x00K\x04\x85K\x01\x85\x89ccollections\nOrderedDict\n)RtRu."
)
RECORDS = {"top/data.pkl": PICKLE, "top/byteorder": b"little", "top/data/0": FLOATS, "top/version": b"3\n"}


def zipped(records: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """A zip of the standard library's making: no descriptors, no alignment."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in records.items():
            archive.writestr(zipfile.ZipInfo(name), data, compression)
    return buffer.getvalue()


def ours(tmp_path: Path, *, large: bool = False) -> bytes:
    """A file that we wrote: two tensors and some values."""
    size = CHUNK + 4096 if large else 1024
    first, second = (MemorySource(bytes(range(256)) * (length // 256)) for length in (size, 512))
    tree = {
        "w": StoredTensor(TensorSpec("uint8", (size,)), Segment(first, 0, size)),
        "b": StoredTensor(TensorSpec("float32", (128,)), Segment(second, 0, 512)),
        "epoch": 3,
    }
    path = tmp_path / "model.pt"
    with replace_file(path, durable=False) as staged:
        torchzip.write(staged, Document(tree, {}, {"note": "x"}), top="model")
    return path.read_bytes()


def load(data: bytes) -> Any:
    """Opens, builds the tree, and verifies every byte that has a digest or CRC, as `holdfast verify` does."""
    with torchzip.open(MemorySource(data, name="evil.pt"), "evil.pt") as container:
        document = container.document()
        checks = [
            Check(part.source, part.offset, part.length, part.chunks, part.crc32, part.name)
            for part in container.segments()
        ]
        damage = verify_ranges(checks)
        if damage:
            raise CorruptFile(f"`evil.pt`: {damage[0].name} is damaged", file="evil.pt", path=damage[0].name)
        return document.tree


def replaced(data: bytes, old: bytes, new: bytes, *, last: bool = False) -> bytes:
    assert old in data
    if last:
        head, _, tail = data.rpartition(old)
        return head + new + tail
    return data.replace(old, new)


def at(data: bytes, offset: int, new: bytes) -> bytes:
    return data[:offset] + new + data[offset + len(new) :]


HONEST = zipped(RECORDS)
END = HONEST.rindex(b"PK\x05\x06")
CENTRAL = HONEST.index(b"PK\x01\x02")
THIRD = HONEST.index(b"PK\x01\x02", HONEST.index(b"PK\x01\x02", CENTRAL + 1) + 1)
"""The directory entry of top/data/0."""
LOCAL = struct.unpack_from("<I", HONEST, THIRD + 42)[0]


def test_the_honest_file_is_read() -> None:
    assert load(with_zip64())["w"].spec.shape == (4,)
    tree = load(HONEST)
    assert tree["w"].spec.shape == (4,)
    assert tree["w"].segment.source.read(tree["w"].segment.offset, 16) == FLOATS


def twice(name: str, other: str) -> bytes:
    records = dict(RECORDS)
    records[name] = b"x"
    data = zipped(records)
    return data.replace(name.encode(), other.encode())


def with_zip64(*, mark: bytes = b"PK\x06\x06", count: int = len(RECORDS), before: int = 0) -> bytes:
    """The same archive with the second kind of end records before its end; ``before``: how far they are off."""
    _, _, _, _, _, size, start, _ = struct.unpack_from("<4s4H2IH", HONEST, END)
    end = struct.pack("<4sQ2H2I4Q", mark, 44, 45, 45, 0, 0, count, count, size, start)
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, END - before, 1)
    return HONEST[:END] + end + locator + HONEST[END:]


LIES: dict[str, tuple[Callable[[], bytes], type[FormatError], str]] = {
    "a zip64 end elsewhere": (lambda: with_zip64(before=1), CorruptFile, "and is not right before this"),
    "a zip64 end that is none": (lambda: with_zip64(mark=b"PK++"), CorruptFile, "the zip64 end record is damaged"),
    "two ends that disagree": (lambda: with_zip64(count=3), CorruptFile, "its two end records disagree"),
    "a header with a longer name": (lambda: at(HONEST, LOCAL + 26, b"\x0b"), CorruptFile, "data/0 has another name"),
    "a descriptor that is not there": (
        lambda: at(at(HONEST, LOCAL + 6, b"\x08"), THIRD + 8, b"\x08"),
        CorruptFile,
        "what follows the bytes of top/data/0 disagrees",
    ),
    "cut short": (lambda: HONEST[:-30], CorruptFile, "cut short"),
    "nothing but a beginning": (lambda: b"PK\x03\x04", CorruptFile, "begins as a zip but its end is missing: cut"),
    "two ends": (
        lambda: at(HONEST, END + 20, b"\x16\x00") + b"PK\x05\x06" + bytes(18),
        RefusedFile,
        "has two ends; programs would disagree about its content",
    ),
    "bytes between directory and end": (
        lambda: HONEST[:END] + b"junk" + HONEST[END:],
        CorruptFile,
        "does not end here",
    ),
    "bytes before the archive": (lambda: b"junk" + HONEST, CorruptFile, "does not end here"),
    "more entries than there are": (
        lambda: at(HONEST, END + 8, b"\x05\x00\x05\x00"),
        CorruptFile,
        "entries take another number",
    ),
    "fewer entries than there are": (
        lambda: at(HONEST, END + 8, b"\x03\x00\x03\x00"),
        CorruptFile,
        "entries take another number",
    ),
    "several disks": (lambda: at(HONEST, END + 4, b"\x01\x00"), RefusedFile, "is one part of a zip in several parts"),
    "an entry that is none": (lambda: at(HONEST, THIRD, b"XX"), CorruptFile, "does not begin here"),
    "two names for one record": (
        lambda: at(HONEST, LOCAL + 30, b"top/data/9"),
        CorruptFile,
        "and the directory disagree",
    ),
    "two lengths for one record": (lambda: at(HONEST, LOCAL + 18, b"\x08"), CorruptFile, "and the directory disagree"),
    "two checksums for one record": (lambda: at(HONEST, LOCAL + 14, b"\0\0\0\0"), CorruptFile, "directory disagree"),
    "two methods for one record": (lambda: at(HONEST, LOCAL + 8, b"\x08"), CorruptFile, "and the directory disagree"),
    "stored, with two lengths": (lambda: at(HONEST, THIRD + 24, b"\x08"), RefusedFile, "two different lengths"),
    "encrypted": (lambda: at(HONEST, THIRD + 8, b"\x01"), RefusedFile, "is encrypted"),
    "marked as a folder": (lambda: at(HONEST, THIRD + 38, b"\x10"), RefusedFile, "has bytes and is marked as a folder"),
    "unknown flags": (lambda: at(HONEST, THIRD + 8, b"\x20"), RefusedFile, "unknown flags 0x0020"),
    "bzip2": (lambda: zipped(RECORDS, zipfile.ZIP_BZIP2), RefusedFile, "compressed with method 12"),
    "overlapping records": (
        lambda: at(HONEST, THIRD + 42, HONEST[CENTRAL + 42 : CENTRAL + 46]),
        CorruptFile,
        "overlaps|disagree",
    ),
    "a record inside another": (
        lambda: at(HONEST, THIRD + 20, b"\xff\0\0\0\xff"),
        CorruptFile,
        "overlaps what follows",
    ),
    "a record past the end": (
        lambda: at(HONEST, THIRD + 42, b"\xff\xff\xff\x7f"),
        CorruptFile,
        "overlaps another record",
    ),
    "a zip64 entry without its field": (
        lambda: at(HONEST, THIRD + 42, b"\xff\xff\xff\xff"),
        CorruptFile,
        "without its zip64 field",
    ),
    "the same name twice": (lambda: twice("top/data/1", "top/data/0"), RefusedFile, "two records have the same name"),
    "the same name in capitals": (lambda: twice("top/DATA/0", "top/DATA/0"), RefusedFile, "same name .case aside."),
    "a name that climbs": (lambda: twice("top/a/bb", "top/a/.."), RefusedFile, "unsafe name"),
    "an absolute part": (lambda: twice("top/a/bb", "top//a/b"), RefusedFile, "unsafe name"),
    "a backslash": (lambda: twice("top/a/bb", "top/a\\bb"), RefusedFile, "unsafe name"),
    "a terminal escape": (lambda: twice("top/a/bb", "top/\x1b[0m"), RefusedFile, r"unsafe name top/\\x1b"),
    "a second folder": (lambda: twice("top/a", "pot/a"), RefusedFile, "lies outside the folder"),
    "no UTF-8": (
        lambda: twice("top/aa", "top/aa").replace(b"top/aa", b"top/\xff\xff"),
        RefusedFile,
        "a name is not UTF-8",
    ),
    "no pickle": (lambda: zipped({"a.txt": b"x"}), UnknownFormat, "no torch file .no data.pkl.: holds a.txt"),
    "an old script": (lambda: zipped({"m/model.json": b"x"}), UnknownFormat, "TorchScript archive of a torch before"),
    "a script": (lambda: zipped(RECORDS | {"top/constants.pkl": b""}), UnknownFormat, "a program with its weights"),
    "an exported program": (
        lambda: zipped(RECORDS | {"top/archive_format": b"pt2"}),
        UnknownFormat,
        r"torch\.export archive \(\.pt2\); torch\.export\.load reads it; its weights are no tree of torch\.save",
    ),
    "a package": (
        lambda: zipped(RECORDS | {"top/.data/extern_modules": b""}),
        UnknownFormat,
        "PackageImporter reads it",
    ),
    "version 11": (lambda: zipped(RECORDS | {"top/version": b"11"}), UnknownFormat, "is a torch file of version b'11'"),
    "version 0": (lambda: zipped(RECORDS | {"top/version": b"0"}), UnknownFormat, "version b'0'"),
    "no version": (
        lambda: zipped({name: data for name, data in RECORDS.items() if name != "top/version"}),
        CorruptFile,
        "the record .data/version is missing: not complete",
    ),
    "a version without end": (lambda: zipped(RECORDS | {"top/version": b"3" * 99}), RefusedFile, "the limit is 64"),
    "another byte order": (lambda: zipped(RECORDS | {"top/byteorder": b"mixed"}), CorruptFile, "byteorder is b'mixed'"),
    "no storage": (
        lambda: zipped({name: data for name, data in RECORDS.items() if name != "top/data/0"}),
        CorruptFile,
        "data.pkl says that data/0 has 16 bytes, the archive has no such record: corrupt",
    ),
    "a short storage": (lambda: zipped(RECORDS | {"top/data/0": FLOATS[:-1]}), CorruptFile, "the record has 15"),
    "a long storage": (lambda: zipped(RECORDS | {"top/data/0": FLOATS * 2}), CorruptFile, "the record has 32"),
    "a damaged pickle": (lambda: replaced(HONEST, b"FloatStorage", b"FloatStoragf"), CorruptFile, "has CRC-32"),
}


@pytest.mark.parametrize("lie", LIES)
def test_lies_are_named(lie: str) -> None:
    make, error, message = LIES[lie]
    with pytest.raises(error, match=message) as caught:
        load(make())
    assert caught.value.file == "evil.pt"
    assert "`evil.pt`" in str(caught.value)
    assert str(caught.value).isprintable()


def test_a_checksum_of_zero_is_not_computed() -> None:
    data = at(at(HONEST, LOCAL + 14, bytes(4)), THIRD + 16, bytes(4))
    assert load(data)["w"].segment.crc32 is None


def test_a_name_may_climb_into_nothing_by_a_pickle() -> None:
    pickle = PICKLE.replace(b"X\x01\x00\x00\x000", b"X\x0c\x00\x00\x00../../passwd")
    with pytest.raises(CorruptFile, match="no such record"):
        load(zipped(RECORDS | {"top/data.pkl": pickle}))


# -- compression


def test_compressed_records_are_read() -> None:
    tree = load(zipped(RECORDS, zipfile.ZIP_DEFLATED))
    assert tree["w"].segment.source.read(0, 16) == FLOATS


def bomb(megabytes: int, *, claim: int | None = None) -> bytes:
    """A pickle with a storage of zeros that is a thousand times smaller in the file."""
    size = megabytes << 20
    pickle = PICKLE.replace(b"FloatStorage", b"ByteStorage").replace(b"K\x04tQ", b"J" + struct.pack("<i", size) + b"tQ")
    data = zipped(RECORDS | {"top/data.pkl": pickle, "top/data/0": bytes(size)}, zipfile.ZIP_DEFLATED)
    if claim is not None:
        data = data.replace(struct.pack("<I", size), struct.pack("<I", claim))
    return data


def test_a_deflate_bomb_is_refused_before_it_grows() -> None:
    data = bomb(200)
    tracemalloc.start()
    with pytest.raises(RefusedFile, match="grow past 32 times"):
        load(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < len(data) + (64 << 20)


def test_growth_that_deflate_can_not_do_is_a_lie() -> None:
    data = zipped(RECORDS, zipfile.ZIP_DEFLATED)
    entry = data.index(b"top/data/0", data.index(b"PK\x01\x02")) - 46
    with pytest.raises(CorruptFile, match="grow more than deflate can"):
        load(at(data, entry + 24, b"\0\0\0\x40"))


@pytest.mark.parametrize("change", ["shorter", "longer", "damaged"])
def test_compressed_records_that_lie(change: str) -> None:
    data = zipped(RECORDS, zipfile.ZIP_DEFLATED)
    packed = zlib.compressobj(9, zlib.DEFLATED, -15)
    stream = packed.compress(PICKLE) + packed.flush()
    if change == "damaged":
        found = data.index(b"top/data.pkl") + len("top/data.pkl")
        data = at(data, found + 10, bytes(4))
    else:
        wrong = len(PICKLE) + (1 if change == "longer" else -1)
        data = data.replace(struct.pack("<II", len(stream), len(PICKLE)), struct.pack("<II", len(stream), wrong))
    with pytest.raises(CorruptFile, match=r"can't be inflated|CRC-32|disagree"):
        load(data)


# -- our own record


def own_record(data: bytes) -> dict[str, Any]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return json.loads(archive.read("model/.data/holdfast"))


def resealed(data: bytes, change: Callable[[dict[str, Any]], None], *, seal: bool = True) -> bytes:
    """The same archive with a changed record, its digest and the archive's CRCs put right again."""
    record = own_record(data)
    change(record)
    if seal:
        record["digest"] = ""
        record["digest"] = digest_bytes(msgspec.json.encode(record))
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w") as new:
        for name in old.namelist():
            new.writestr(name, msgspec.json.encode(record) if name.endswith("holdfast") else old.read(name))
    return buffer.getvalue()


def put(*keys: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(record: dict[str, Any]) -> None:
        inside: Any = record
        for key in keys[:-1]:
            inside = inside[key]
        inside[keys[-1]] = value

    return change


def deep(record: dict[str, Any]) -> None:
    tree: Any = 1
    for _ in range(600):
        tree = [tree]
    record["tree"] = tree


RECORD_LIES: dict[str, tuple[Callable[[dict[str, Any]], None], type[FormatError], str]] = {
    "a storage that is not there": (put("tree", "w", "$tensor", 0, value=7), CorruptFile, "no storage 7"),
    "a negative storage": (put("tree", "w", "$tensor", 0, value=-1), CorruptFile, "no storage -1"),
    "a shape past the end": (put("tree", "w", "$tensor", 2, value=[9999]), CorruptFile, "needs 9,999 bytes"),
    "a shape that is text": (put("tree", "w", "$tensor", 2, value="abc"), CorruptFile, "at least 0"),
    "a shape that is a number": (put("tree", "w", "$tensor", 2, value=5), CorruptFile, "is damaged"),
    "a reference that is too long": (put("tree", "w", "$tensor", value=[0] * 9), CorruptFile, "is damaged"),
    "a reference that is a number": (put("tree", "w", "$tensor", value=5), CorruptFile, "is damaged"),
    "an unknown dtype": (put("tree", "w", "$tensor", 1, value="os.system"), CorruptFile, "no dtype is called"),
    "a length that differs": (put("lengths", 0, value=1023), CorruptFile, "says that data/0 has 1,023 bytes"),
    "a storage too few": (put("lengths", value=[1024]), CorruptFile, "differ in their number of storages"),
    "digests too few": (put("digests", 0, value=""), CorruptFile, "0 chunks"),
    "a digest that differs": (put("digests", 0, value="0" * 32), CorruptFile, "data/0 is damaged"),
    "another pickle": (put("pickle", value="xxh3-128:" + "0" * 32), CorruptFile, "another program has changed one"),
    "a newer version": (put("version", value=99), UnknownFormat, "its record .data/holdfast is of version 99"),
    "a type that differs": (put("lengths", value="x"), CorruptFile, "holdfast is damaged"),
    "a tree that is too deep": (deep, CorruptFile, "deep"),
}


@pytest.mark.parametrize("lie", RECORD_LIES)
def test_a_record_that_lies_with_a_good_digest(lie: str, tmp_path: Path) -> None:
    change, error, message = RECORD_LIES[lie]
    with pytest.raises(error, match=message) as caught:
        load(resealed(ours(tmp_path), change))
    assert "evil.pt" in str(caught.value)


def called_from(depth: int, what: Callable[[], object]) -> object:
    return what() if depth == 0 else called_from(depth - 1, what)


def test_a_record_that_is_deeper_than_the_stack_of_its_reader_is_refused(tmp_path: Path) -> None:
    data = resealed(ours(tmp_path), lambda record: record.update(tree=[[[[[[[[[[[[1]]]]]]]]]]]]))
    frames = len(list(traceback.walk_stack(None)))
    room = range(sys.getrecursionlimit() - frames - 60, sys.getrecursionlimit() - frames, 2)
    said = set()
    for depth in room:  # where exactly the stack ends is Python's own affair
        with contextlib.suppress(RecursionError):
            try:
                called_from(depth, torchzip.open(MemorySource(data, name="evil.pt"), "evil.pt").document)
            except CorruptFile as error:
                said.add(str(error))
    assert "`evil.pt`: its record is nested too deep" in said


def test_a_record_that_was_edited_is_noticed(tmp_path: Path) -> None:
    data = ours(tmp_path)
    assert load(resealed(data, lambda record: None))["epoch"] == 3
    with pytest.raises(CorruptFile, match="differs from its digest"):
        load(resealed(data, put("tree", "epoch", value=4), seal=False))


def test_a_pickle_that_was_exchanged_is_noticed(tmp_path: Path) -> None:
    data = ours(tmp_path)
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w") as new:
        for name in old.namelist():
            new.writestr(name, PICKLE if name.endswith("data.pkl") else old.read(name))
    with pytest.raises(CorruptFile, match="another program has changed one of them"):
        load(buffer.getvalue())


# -- damage


def test_every_flipped_byte_of_our_file_is_noticed_or_without_effect(tmp_path: Path) -> None:
    """A flip is found, and named when it is a tensor's; or it is in padding or a date, and nothing differs."""
    data = bytearray(ours(tmp_path))
    wanted = repr_of(load(bytes(data)))
    places: set[str | None] = set()
    for index in range(len(data)):
        data[index] ^= 0x10
        try:
            assert repr_of(load(bytes(data))) == wanted, index
        except FormatError as error:
            places.add(error.path)
        data[index] ^= 0x10
    assert {"data/0", "data/1"} <= places


def repr_of(tree: Any) -> Any:
    """A tree with the bytes of its tensors."""
    return {
        name: (leaf.spec, leaf.segment.source.read(leaf.segment.offset, leaf.segment.length))
        if isinstance(leaf, StoredTensor)
        else leaf
        for name, leaf in tree.items()
    }


def test_every_cut_of_our_file_is_noticed(tmp_path: Path) -> None:
    data = ours(tmp_path)
    for length in range(0, len(data), 7):
        with pytest.raises(CorruptFile, match=r"evil\.pt"):
            load(data[:length])


def test_damage_in_a_large_tensor_is_located_to_its_chunk(tmp_path: Path) -> None:
    data = bytearray(ours(tmp_path, large=True))
    container = torchzip.open(MemorySource(data, name="evil.pt"), "evil.pt")
    segment = container.document().tree["w"].segment
    assert len(segment.chunks) == 2
    data[segment.offset + CHUNK + 5] ^= 1
    damage = verify_ranges([Check(segment.source, segment.offset, segment.length, segment.chunks, None, segment.name)])
    assert [(part.name, part.offset) for part in damage] == [("data/0", segment.offset + CHUNK)]
