"""What a file is, told from its content; and for what is not ours, what it is and what to do."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from holdfast.errors import CorruptFile, NotFound, StorageError, UnknownFormat
from holdfast.formats import safetensors, torchzip
from holdfast.formats.base import Document, Format, Segment, StoredTensor
from holdfast.formats.detect import open_container, open_path
from holdfast.formats.writing import FORMATS, format_for
from holdfast.spec import TensorSpec
from holdfast.storage.atomic import replace_file
from holdfast.storage.source import MemorySource

TREE = {"w": StoredTensor(TensorSpec("uint8", (3,)), Segment(MemorySource(b"abc"), 0, 3))}


def tarred(name: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo(name))
    return buffer.getvalue()


def numpy_file() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.ones(3))
    return buffer.getvalue()


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 123456789\n"

OTHERS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty (0 bytes); the save or the download was cut off"),
    "zeros": (bytes(5000), "begins with 4,096 zero bytes; room was reserved and never filled"),
    "web page": (
        b"\xef\xbb\xbf\n<!DOCTYPE HTML><html>...",
        "is a web page (HTML); the address gave a page instead of the file",
    ),
    "web page without doctype": (b"<html lang=en>", "is a web page (HTML)"),
    "refusal of an object store": (b"<?xml version='1.0'?><Error>AccessDenied", "is an XML answer; the server refused"),
    "git-lfs pointer": (POINTER, "is a git-lfs pointer for 123,456,789 bytes, not the file itself; run `git lfs pull`"),
    "cut git-lfs pointer": (POINTER[:44], "is a git-lfs pointer, not the file itself"),
    "gzip": (gzip.compress(b"x"), "is compressed with gzip; decompress it"),
    "bzip2": (bz2.compress(b"x"), "is compressed with bzip2"),
    "xz": (lzma.compress(b"x"), "is compressed with xz"),
    "zstd": (b"\x28\xb5\x2f\xfd....", "is compressed with zstd"),
    "7z": (b"7z\xbc\xaf\x27\x1c....", "is a 7z archive"),
    "empty zip": (b"PK\x05\x06" + bytes(18), "is a zip archive, but not one of torch.save"),
    "tar with a part of torch's": (
        tarred("storages"),
        "is a tar archive without pickle, tensors, which a torch file of 2016 has; unpack it and open what is inside",
    ),
    "tar": (tarred("photo.jpg"), "is a tar archive; decompress it"),
    "pickle": (pickle.dumps({"a": 1}, protocol=4), "is a bare pickle (protocol 4) that torch.save did not write"),
    "numpy": (numpy_file(), "is a numpy array; read it with numpy.load(path, allow_pickle=False)"),
    "HDF5": (b"\x89HDF\r\n\x1a\n....", "is an HDF5 file (Keras, h5py)"),
    "GGUF": (b"GGUF\3\0\0\0", "is a GGUF model (llama.cpp)"),
    "image": (b"\x89PNG\r\n\x1a\n", "is a PNG image; it holds no torch data"),
    "photo": (b"\xff\xd8\xff\xe0", "is a JPEG image"),
    "document": (b"%PDF-1.7", "is a PDF document"),
    "program": (b"\x7fELF\2\1\1", "is a program or shared library"),
    "index": (b'{"metadata": {}, "weight_map": {}}', "is an index of shards; open it by its path, named *.index.json"),
    "JSON": (b'{"hidden_size": 768}', "is JSON text; name the file that holds the weights"),
    "text": (
        "Gr\u00fc\u00dfe\x1b[2J\nand more".encode(),
        "is plain text that begins `Gr\u00fc\u00dfe\\x1b[2J`; name the file",
    ),
    "blank text": (b"  \n", "is plain text that begins ``"),
    "text cut inside a letter": (b"a" * 4095 + "\u00fc".encode(), "is plain text that begins `aaaa"),
    "noise": (
        b"\xde\xad\xbe\xef\0\1\2\3\4",
        "begins with de ad be ef 00 01 02 03, which no format known here begins with",
    ),
    "text with zeros": (b"abc\0def\0", "begins with 61 62 63 00 64 65 66 00"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_not_ours_is_named(kind: str) -> None:
    data, reason = OTHERS[kind]
    with pytest.raises(UnknownFormat) as caught:
        open_container(MemorySource(data), "m\x1bodel.pt")
    assert str(caught.value).startswith(f"`m\\x1bodel.pt`: {reason}")
    assert "\x1b" not in str(caught.value)
    assert caught.value.file == "m\x1bodel.pt"


@pytest.mark.parametrize(("name", "form"), [("a.safetensors", safetensors), ("a.pt", torchzip), ("a", torchzip)])
def test_a_file_is_written_by_its_suffix_and_opened_by_its_content(tmp_path: Path, name: str, form: Format) -> None:
    path = tmp_path / name
    assert FORMATS[format_for(name, None)] is form
    with replace_file(path) as staged:
        form.write(staged, Document(TREE))
    path.rename(tmp_path / "misnamed.safetensors.pt")
    with open_path(tmp_path / "misnamed.safetensors.pt") as container:
        assert container.format == form.NAME
        leaf = container.document().tree["w"]
        assert leaf.segment.source.read(leaf.segment.offset, 3) == b"abc"


def test_a_broken_safetensors_file_is_told_what_is_wrong_with_it() -> None:
    with pytest.raises(
        CorruptFile, match=r"`a.safetensors`: the header should have 16,909,060 bytes, the file ends after 9"
    ):
        open_container(MemorySource(b"\4\3\2\1\0\0\0\0\xff{}......"), "a.safetensors")


def test_a_file_that_was_refused_is_closed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"no")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        with pytest.raises(UnknownFormat):
            open_path(tmp_path / "a")
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_what_is_no_file_is_an_error_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"gone.pt`: no such file or folder"):
        open_path(tmp_path / "gone.pt")
    with pytest.raises(StorageError, match="is a FIFO, socket or device, a regular file is wanted"):
        open_path("/dev/null")


def test_a_zip_of_something_else_is_no_torch_file() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("hello.txt", "hello")
    with pytest.raises((UnknownFormat, CorruptFile), match=r"`a.pt`: "):
        open_container(MemorySource(buffer.getvalue()), "a.pt")
