"""Which format a file is: its content decides, its name only helps to say what is wrong."""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Iterator

from holdfast.errors import NotFound, UnknownFormat
from holdfast.formats import safetensors
from holdfast.formats.base import INDEX_SUFFIX, Container, Format
from holdfast.state.paths import printable
from holdfast.storage.places import is_url, open_source
from holdfast.storage.source import ByteSource, FileSource

HEAD = 4096
"""Bytes that are looked at."""


def _formats() -> Iterator[Format]:
    """What can be opened, in the order in which it is tried.

    Each is imported when those before it did not know the file: importing all takes as long as inspecting a small one.
    """
    yield safetensors
    from holdfast.formats import zips

    yield zips
    from holdfast.formats import legacy

    yield legacy
    from holdfast.formats import tar

    yield tar


def open_path(path: str | os.PathLike[str]) -> Container:
    """Opens a file, an index of shards (``*.index.json``), or a folder: a distributed checkpoint, or one with an index.

    Args:
        path: the file or folder.

    Raises:
        NotFound: there is nothing under this name, or a shard is missing.
        FormatError: as :func:`open_container`.
    """
    name = os.fspath(path)
    if is_url(name):
        return _open_source(open_source(name), name)
    if os.path.isdir(name):
        from holdfast.formats import dcp

        if dcp.is_folder(os.listdir(name)):
            return dcp.open_folder(name)
        from holdfast.formats import index

        name = index.find(name)
    elif not os.path.exists(name):
        raise NotFound(f"`{printable(name)}`: no such file or folder", file=name)
    if name.endswith(INDEX_SUFFIX):
        from holdfast.formats import index

        return index.open_index(name, open_container)
    return _open_source(FileSource(name), name)


def _open_source(source: ByteSource, name: str) -> Container:
    try:
        return open_container(source, name)
    except BaseException:
        source.close()
        raise


def open_container(source: ByteSource, file: str) -> Container:
    """Opens a file by what it holds.

    Args:
        source: its bytes. The container closes it; when this call fails, it stays open.
        file: what messages call it.

    Raises:
        UnknownFormat: nothing here reads it; the message says what it is and what to do.
        FormatError: the format is known, and the file is damaged or refused.
    """
    head = source.read(0, min(source.size, HEAD))
    for known in _formats():
        if known.sniff(head):
            return known.open(source, file)
    what, advice = identify(head)
    if not what and file.endswith(safetensors.SUFFIXES):
        return safetensors.open(source, file)  # it says what is wrong with the header
    what = what or f"begins with {head[:8].hex(' ')}, which no format known here begins with"
    raise UnknownFormat(f"`{printable(file)}`: {what}; {advice}", file=file, offset=0)


# ---- what else it may be ---------------------------------------------------------------------------------------------

_UNPACK = "decompress it and open what is inside"
_ELSEWHERE = "it holds no torch data; open it with the program that wrote it"

_SIGNATURES: tuple[tuple[bytes, str, str], ...] = (
    (b"\x1f\x8b", "is compressed with gzip", _UNPACK),
    (b"BZh", "is compressed with bzip2", _UNPACK),
    (b"\xfd7zXZ\0", "is compressed with xz", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "is compressed with zstd", _UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "is a 7z archive", _UNPACK),
    (b"PK", "is a zip archive, but not one of torch.save", _UNPACK),
    (b"\x93NUMPY", "is a numpy array", "read it with numpy.load(path, allow_pickle=False)"),
    (b"\x89HDF\r\n\x1a\n", "is an HDF5 file (Keras, h5py)", "read it with h5py and save its arrays as tensors"),
    (b"GGUF", "is a GGUF model (llama.cpp)", "convert it with the gguf package"),
    (b"\x89PNG", "is a PNG image", _ELSEWHERE),
    (b"\xff\xd8\xff", "is a JPEG image", _ELSEWHERE),
    (b"%PDF-", "is a PDF document", _ELSEWHERE),
    (b"\x7fELF", "is a program or shared library", _ELSEWHERE),
)


def identify(head: bytes) -> tuple[str, str]:
    """(what a file is that begins with ``head``, what to do); the first is empty when nothing is recognised."""
    if not head:
        return "is empty (0 bytes)", "the save or the download was cut off; fetch or save it again"
    if not any(head):
        return (
            f"begins with {len(head):,} zero bytes",
            "room was reserved and never filled: an unfinished download or save; fetch or save it again",
        )
    for signature, what, advice in _SIGNATURES:
        if head.startswith(signature):
            return what, advice
    return _tar(head) or _pickle(head) or _text(head) or ("", "fetch it again, or ask where it came from")


def _tar(head: bytes) -> tuple[str, str] | None:
    if head[257:262] == b"ustar":
        return "is a tar archive", _UNPACK
    return None


def _pickle(head: bytes) -> tuple[str, str] | None:
    if head[0] != 0x80 or len(head) < 2 or head[1] > 5:
        return None
    return (
        f"is a bare pickle (protocol {head[1]}) that torch.save did not write",
        "unpickling runs what the file says; where you trust it, load it where it was made and save its tensors",
    )


def _text(head: bytes) -> tuple[str, str] | None:
    try:
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(head).lstrip()
    except UnicodeDecodeError:
        return None
    if "\0" in text:
        return None
    start = text[:200].lower()
    if start.startswith(("<!doctype html", "<html")):
        return "is a web page (HTML)", "the address gave a page instead of the file, often to log in; download it again"
    if start.startswith(("<?xml", "<error")):
        return "is an XML answer", "the server refused the download; ask for the file again with access to it"
    if start.startswith("version https://git-lfs.github.com/spec/"):
        size = re.search(r"^size (\d{1,20})$", text, re.MULTILINE)
        held = f" for {int(size[1]):,} bytes" if size else ""
        return f"is a git-lfs pointer{held}, not the file itself", "run `git lfs pull` in its repository"
    if start.startswith(("{", "[")):
        if '"weight_map"' in text:
            return "is an index of shards", f"open it by its path, named *{INDEX_SUFFIX}, with the shards beside it"
        return "is JSON text", "name the file that holds the weights"
    line = printable(text.splitlines()[0][:60]) if text else ""
    return f"is plain text that begins `{line}`", "name the file that holds the weights"
