"""npz archives that lie: one generator a lie, and every one is the right error with file and reason."""

from __future__ import annotations

import io
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from holdfast.errors import CorruptFile, FormatError, RefusedFile, UnknownFormat
from holdfast.formats import npz
from holdfast.formats.base import Document
from holdfast.storage.source import MemorySource

FILE = "evil\x1b[2J.npz"
SHOWN = "`evil\\x1b[2J.npz`: "


def array(header: str, data: bytes = b"", *, version: int = 1, length: int | None = None) -> bytes:
    text = header.encode("latin-1")
    count = len(text) if length is None else length
    return b"\x93NUMPY" + bytes([version, 0]) + count.to_bytes(2 if version == 1 else 4, "little") + text + data


def zipped(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def one(header: str, data: bytes = b"", **more: int) -> bytes:
    return zipped({"x.npy": array(header, data, **more)})


def read(data: bytes) -> Document:
    return npz.open(MemorySource(data), FILE).document()


class Planted:
    """An object whose unpickling leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return open, (str(self.mark), "w")


GOOD = "{'descr': '<i4', 'fortran_order': False, 'shape': (2,), }"


def test_the_generator_makes_files_that_can_be_read() -> None:
    assert read(one(GOOD, bytes(8))).tree["x"].spec.shape == (2,)


OBJECTS = (
    "x.npy holds Python objects (dtype |O), which is not read: objects would be made by running a pickle; load it "
    "where it was made and save its numbers"
)
LIES: dict[str, tuple[bytes, type[FormatError], str]] = {
    "no array": (zipped({"x.npy": b"hello, world!"}), CorruptFile, "x.npy: begins with b'hello,', an array begins"),
    "cut magic": (zipped({"x.npy": b"\x93NUMPY\1\0"}), CorruptFile, "x.npy: begins with"),
    "another version": (one(GOOD, bytes(8), version=9), UnknownFormat, "an array file of version 9; 1 to 3 are known"),
    "header past the file": (one(GOOD, length=200), CorruptFile, "its header should have 210 bytes, it ends after 67"),
    "header past the limit": (
        one(GOOD, length=60_000),
        RefusedFile,
        "the header of x.npy has 60,010 bytes, the limit is 10,000",
    ),
    "huge header": (one(GOOD, version=2, length=2**32 - 1), RefusedFile, "has 4,294,967,307 bytes, the limit is"),
    "no dict": (one("['<i4', False, (2,)]", bytes(8)), CorruptFile, ", which numpy does not write"),
    "no brace": (one(GOOD[:-1], bytes(8)), CorruptFile, "x.npy: its header is"),
    "two dicts": (one(GOOD + GOOD, bytes(8)), CorruptFile, "x.npy: its header is"),
    "code": (one("{'descr': __import__('os'), 'shape': ()}"), CorruptFile, "x.npy: its header is"),
    "no shape": (one("{'descr': '<i4', 'fortran_order': False}"), CorruptFile, "x.npy: its header is"),
    "another field": (one(GOOD.replace("}", "'more': True}"), bytes(8)), CorruptFile, "x.npy: its header is"),
    "shape of text": (one(GOOD.replace("(2,)", "'2'"), bytes(8)), CorruptFile, "x.npy: its header is"),
    "shape with a gap": (one(GOOD.replace("(2,)", "(2,,3)"), bytes(8)), CorruptFile, "its shape is (2,,3)"),
    "shape of two numbers": (one(GOOD.replace("(2,)", "(2 2)"), bytes(8)), CorruptFile, "its shape is (2 2)"),
    "negative": (one(GOOD.replace("(2,)", "(-2,)"), bytes(8)), CorruptFile, "x.npy: its header is"),
    "order": (one(GOOD.replace("False", "'C'"), bytes(8)), CorruptFile, "x.npy: its header is"),
    "too large": (one(GOOD.replace("(2,)", "(3,)"), bytes(8)), CorruptFile, "shape (3,) of <i4 does not take the 8"),
    "too small": (one(GOOD.replace("(2,)", "(1,)"), bytes(8)), CorruptFile, "shape (1,) of <i4 does not take the 8"),
    "absurd": (one(GOOD.replace("(2,)", f"({9**19},)")), CorruptFile, "of <i4 does not take the 0 bytes that follow"),
    "absurd and empty": (
        one(GOOD.replace("(2,)", f"({2**63},0)").replace("<i4", "<f8")),
        CorruptFile,
        "are not all integers of at least 0",
    ),
    "dimensions": (one(GOOD.replace("(2,)", f"({'1,' * 65})"), bytes(4)), CorruptFile, "65 dimensions; 64 is the most"),
    "objects": (one(GOOD.replace("<i4", "|O"), bytes(8)), RefusedFile, OBJECTS),
    "records": (one("{'descr': [('a', '<i4')], 'shape': (2,)}"), RefusedFile, "x.npy holds records (a structured dtyp"),
    "void": (one(GOOD.replace("<i4", "|V4"), bytes(8)), RefusedFile, "x.npy holds values (dtype |V4)"),
    "a dtype of escapes": (one(GOOD.replace("<i4", "\x1b[2J"), bytes(8)), RefusedFile, "(dtype \\x1b[2J)"),
    "no .npy": (zipped({"x.npy": array(GOOD, bytes(8)), "y.txt": b""}), UnknownFormat, "y.txt, which is no .npy array"),
    "up": (zipped({"../x.npy": array(GOOD, bytes(8))}), RefusedFile, "the unsafe name ../x.npy"),
    "escape": (zipped({"\x1b[2Jx.npy": array(GOOD, bytes(8))}), RefusedFile, "the unsafe name \\x1b[2Jx.npy"),
    "no deflate": (
        zipped({"x.npy": array(GOOD, bytes(8))}, zipfile.ZIP_DEFLATED).replace(b"\x9b\xec\x17\xea", b"\xff" * 4),
        CorruptFile,
        "the compressed record x.npy can't be inflated",
    ),
    "text past the limit": (
        zipped(
            {"x.npy": array(GOOD.replace("<i4", "<U1").replace("2", str(1 << 25)), bytes(1 << 27))},
            zipfile.ZIP_DEFLATED,
        ),
        RefusedFile,
        "the limit is 67,108,864",
    ),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_lies_are_named(lie: str) -> None:
    data, error, reason = LIES[lie]
    with pytest.raises(FormatError) as caught:
        read(data)
    assert type(caught.value) is error, caught.value
    message = str(caught.value)
    assert message.startswith(SHOWN)
    assert reason in message
    assert len(message) < 1000
    assert caught.value.file == FILE
    assert "\x1b" not in message


def test_two_arrays_of_one_name_are_refused() -> None:
    data = zipped({"x.npy": array(GOOD, bytes(8)), "y.npy": array(GOOD, bytes(8))}).replace(b"y.npy", b"x.npy")
    with pytest.raises(RefusedFile, match=r"two records have the same name: x.npy"):
        read(data)


def test_objects_are_never_unpickled(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    planted = np.array([Planted(mark)], dtype=object)
    buffer = io.BytesIO()
    np.savez(buffer, x=planted)
    assert not mark.exists()
    with pytest.raises(RefusedFile, match="holds Python objects"):
        read(buffer.getvalue())
    assert not mark.exists()
    buffer.seek(0)
    np.load(buffer, allow_pickle=True)["x"][0].close()
    assert mark.exists()  # the attack is a real one


def test_a_bomb_is_refused_before_it_grows() -> None:
    header = GOOD.replace("<i4", "|u1").replace("2", str(1 << 28))
    data = zipped({"x.npy": array(header, bytes(1 << 28))}, zipfile.ZIP_DEFLATED)
    assert len(data) < 1 << 19
    tracemalloc.start()
    try:
        with pytest.raises(RefusedFile, match="compressed records grow past 32 times the file's size"):
            read(data)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
