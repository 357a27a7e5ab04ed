"""Zip files of torch: which of its three kinds one is, seen by the names of its records."""

from __future__ import annotations

from holdfast.formats import exported, torchscript, torchzip
from holdfast.formats.archive import Archive
from holdfast.formats.base import Container
from holdfast.formats.collector import collector_paused
from holdfast.storage.source import ByteSource

NAME = torchzip.NAME
SUFFIXES = torchzip.SUFFIXES
write = torchzip.write
sniff = torchzip.sniff


def open(source: ByteSource, file: str) -> Container:  # noqa: A001 - a Format's verb
    """Opens a file of ``torch.save``, or the weights of a TorchScript or ``torch.export`` archive.

    Raises:
        CorruptFile: parts are missing, damaged or disagree.
        RefusedFile: ambiguous, or past a limit.
        UnknownFormat: a zip of another kind.
    """
    old = exported.sniff_old(source.read(0, min(source.size, 256)))
    with collector_paused:
        archive = Archive(source, file, flat=old)
        if exported.fits(archive):
            return exported.Exported(archive)
        if torchscript.fits(archive):
            return torchscript.TorchScript(archive)
        return torchzip.TorchZip(archive)
