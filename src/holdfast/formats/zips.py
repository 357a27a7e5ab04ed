"""Zip files: which kind one is, seen by the names of its records. Three are torch's, one is numpy's."""

from __future__ import annotations

from holdfast.formats import torchzip
from holdfast.formats.archive import LOCAL, LOCAL_MARK, Archive
from holdfast.formats.base import Container
from holdfast.formats.collector import collector_paused
from holdfast.storage.source import ByteSource

NAME = torchzip.NAME
SUFFIXES = torchzip.SUFFIXES
write = torchzip.write
sniff = torchzip.sniff

_HEAD = 4096


def open(source: ByteSource, file: str) -> Container:  # noqa: A001 - a Format's verb
    """Opens a file of ``torch.save``, the weights of a TorchScript or ``torch.export`` archive, or an npz.

    What reads a kind is imported for a file of that kind.

    Raises:
        CorruptFile: parts are missing, damaged or disagree.
        RefusedFile: ambiguous, or past a limit.
        UnknownFormat: a zip of another kind.
    """
    first = first_name(source.read(0, min(source.size, _HEAD)))
    if first.endswith(b".npy"):
        from holdfast.formats import npz

        return npz.open(source, file)
    with collector_paused:
        # an export of before 2.8 has no folder around its files
        archive = Archive(source, file, flat=first.startswith(b"serialized_"))
        if "archive_format" in archive.records or "serialized_state_dict.pt" in archive.records:
            from holdfast.formats import exported

            return exported.Exported(archive)
        if "constants.pkl" in archive.records or any(name.startswith("code/") for name in archive.records):
            from holdfast.formats import torchscript

            return torchscript.TorchScript(archive)
        return torchzip.TorchZip(archive)


def first_name(head: bytes) -> bytes:
    """The name of the first record of a zip that begins with ``head``; empty for any other file."""
    if not head.startswith(LOCAL_MARK) or len(head) < LOCAL.size:
        return b""
    length = LOCAL.unpack_from(head)[-2]
    return head[LOCAL.size : LOCAL.size + length]
