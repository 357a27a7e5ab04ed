"""Files and checkpoints of a store, kept on a disk of this machine: verified when they come, and when they are used."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator

import msgspec

from holdfast.errors import CorruptFile
from holdfast.formats.detect import open_container
from holdfast.runs.checkpoint import Checkpoint, open_checkpoint
from holdfast.runs.layout import MANIFEST
from holdfast.runs.manifest import encode
from holdfast.runs.reference import locate
from holdfast.runs.verify import VerifyReport, verify
from holdfast.state.paths import printable
from holdfast.storage.atomic import StagedFolder, make_folders, remove_folder, sweep
from holdfast.storage.descriptors import close_reading
from holdfast.storage.digest import digest_bytes
from holdfast.storage.places import is_there, is_url, open_source
from holdfast.storage.requests import WriteRequest
from holdfast.storage.source import ByteSource

StrPath = str | os.PathLike[str]


def fetch(ref: StrPath, folder: StrPath) -> str:
    """Brings a file or a checkpoint out of a store, once, and says where it is now.

    What is in ``folder`` already and still the same in the store is read and compared with its digests, and fetched
    again when it was damaged. Several processes that ask at once fetch it once. Nothing is ever removed from
    ``folder`` but what is damaged.

    Args:
        ref: a URL, or a reference such as ``s3://bucket/runs/a@best``. A path of this machine is given back as it is.
        folder: where copies are kept; created when missing. It holds one folder for each version of each object.

    Returns:
        The path of the copy: a file, or a checkpoint's folder, whole by itself.

    Raises:
        NotFound: there is nothing of that name.
        CorruptFile: what the store holds does not match its digests; nothing of it is kept.
        UnknownFormat: a file that is no container.
        StorageError: the store does not answer, or the disk is full.

    Example:
        >>> import holdfast, torch
        >>> from holdfast.runs.fetching import fetch
        >>> saved = holdfast.save({"w": torch.ones(2)}, "memory://models/w.pt")
        >>> holdfast.load(fetch("memory://models/w.pt", "cache"))["w"].sum()
        tensor(2.)
    """
    url = os.fspath(ref)
    if not is_url(url):
        return url
    checkpoint = locate(url)
    make_folders(folder)
    if checkpoint is None:
        with contextlib.closing(open_source(url)) as source:
            return _kept(folder, url, _identity(source), source)
    with contextlib.closing(open_checkpoint(checkpoint)) as opened:
        return _kept(folder, checkpoint, opened.manifest.data + opened.manifest.time.isoformat(), opened)


def _identity(source: ByteSource) -> str:
    meta = getattr(source, "meta", None)
    return f"{source.size} {getattr(meta, 'tag', None)} {getattr(meta, 'modified', None)}"


def _kept(folder: StrPath, url: str, identity: str, what: ByteSource | Checkpoint) -> str:
    """The copy of one version, made when it is not there or not good."""
    name = digest_bytes(f"{url}\n{identity}".encode()).rpartition(":")[2][:16]
    home = os.path.join(os.fspath(folder), name)
    path = os.path.join(home, os.path.basename(url))
    with _alone(folder):
        if is_there(home):
            if is_there(path) and verify(path).status != "CORRUPT":
                return path
            remove_folder(home)
        if isinstance(what, Checkpoint):
            _copy_checkpoint(what, home)
        else:
            _copy_file(what, home)
    return path


@contextlib.contextmanager
def _alone(folder: StrPath) -> Iterator[None]:
    """One process at a time; the others wait, since what they want is on its way. The kernel lets go for the dead."""
    fd = os.open(os.path.join(os.fspath(folder), ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        sweep(os.fspath(folder), folders=True)
        yield
    finally:
        close_reading(fd)


def _copy_file(source: ByteSource, home: str) -> None:
    with StagedFolder(*os.path.split(home)) as staged:
        with staged.file(os.path.basename(source.name)) as file:
            file.allocate(source.size)
            file.write([WriteRequest(0, source)], digest=False)
            copy = file.written()
            with open_container(copy, source.name) as container:  # which closes it
                _refuse(verify(container), source.name)
        staged.commit()


def _copy_checkpoint(checkpoint: Checkpoint, home: str) -> None:
    """Copies a checkpoint so that it is whole by itself: its files lie beside its manifest."""
    with StagedFolder(*os.path.split(home)) as outer:
        inner = os.path.join(outer.partial, os.path.basename(checkpoint.file))
        with StagedFolder(*os.path.split(inner)) as staged:
            for name in checkpoint.manifest.files:
                with (
                    contextlib.closing(open_source(f"{checkpoint.data}/{name}")) as source,
                    staged.file(name) as file,
                ):
                    file.allocate(source.size)
                    file.write([WriteRequest(0, source)], digest=False)
            staged.write_bytes(MANIFEST, encode(msgspec.structs.replace(checkpoint.manifest, data="")))
            with open_checkpoint(staged.partial) as copy:
                _refuse(verify(copy), checkpoint.file)
            staged.commit()
        outer.commit()


def _refuse(report: VerifyReport, url: str) -> None:
    if report.findings:
        first = report.findings[0]
        raise CorruptFile(
            f"`{printable(url)}`: as it came out of the store, {printable(first.name)} does not match its digest: "
            f"{first.problem}; nothing of it was kept",
            file=url,
            offset=first.offset,
        )
