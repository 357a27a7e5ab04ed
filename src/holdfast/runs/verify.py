"""Verification: every digest and CRC of a file, a checkpoint or a run, read from the disk and compared."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import msgspec

from holdfast.errors import CorruptFile, FormatError, HoldfastError, NotFound, RefusedFile, StorageError
from holdfast.formats.base import Container, Segment
from holdfast.runs.catalog import is_run, scan
from holdfast.runs.checkpoint import Checkpoint
from holdfast.runs.entries import ENTRIES_LIMIT, STATE_LIMIT, decode_entries, decode_state
from holdfast.runs.layout import ENTRIES, MANIFEST, STATE, data_folder, inside
from holdfast.runs.manifest import FileRecord, Manifest, read_manifest, read_small
from holdfast.runs.opening import Openable, open_any
from holdfast.runs.reference import locate
from holdfast.spec import Entry
from holdfast.state.paths import dotted, printable
from holdfast.storage.digest import check_digest
from holdfast.storage.places import is_folder, is_there, open_source
from holdfast.storage.requests import Check, verify_ranges
from holdfast.storage.source import ByteSource

Status = Literal["OK", "CORRUPT", "NOT VERIFIABLE"]


class Finding(msgspec.Struct, frozen=True):
    """One damaged place.

    Attributes:
        file: where.
        name: the tensor or record.
        problem: what is wrong, for people.
        offset: first byte concerned.
        length: bytes concerned.
        expected: the digest, CRC or length that is recorded.
        found: what is there.
    """

    file: str
    name: str
    problem: str
    offset: int | None = None
    length: int | None = None
    expected: str | None = None
    found: str | None = None


class Verified(msgspec.Struct, frozen=True):
    """What became of one file, or of one checkpoint.

    Attributes:
        file: its path.
        status: OK, CORRUPT or NOT VERIFIABLE: nothing contradicts it, but it holds no digest for some of its bytes.
        checked: bytes that were compared with a digest or CRC.
        unchecked: bytes of tensors without one.
        findings: what is damaged.
        step: of a checkpoint, else None.
    """

    file: str
    status: Status
    checked: int = 0
    unchecked: int = 0
    findings: tuple[Finding, ...] = ()
    step: int | None = None


class VerifyReport(msgspec.Struct, frozen=True):
    """The result of verifying.

    Attributes:
        file: what was asked for.
        items: one for each file or checkpoint.
    """

    file: str
    items: tuple[Verified, ...]

    @property
    def status(self) -> Status:
        """The worst of the items."""
        found = {item.status for item in self.items}
        return "CORRUPT" if "CORRUPT" in found else "NOT VERIFIABLE" if "NOT VERIFIABLE" in found else "OK"

    @property
    def findings(self) -> tuple[Finding, ...]:
        """All damage."""
        return tuple(finding for item in self.items for finding in item.findings)

    def __str__(self) -> str:
        lines = [f"{printable(self.file)}: {self.status}"]
        lines += [f"  {printable(one.file)}: {printable(one.name)}: {one.problem}" for one in self.findings]
        return "\n".join(lines)


def verify(f: Openable | Container, *, progress: Callable[[str], None] | None = None) -> VerifyReport:
    """Reads every stored byte and compares it with its digest or CRC.

    Args:
        f: a file, stream, checkpoint, run (all its steps) or reference, or a container that is open.
        progress: called with the name of each file or checkpoint before it is read.

    Returns:
        What is OK, what is damaged (tensor and bytes named) and what can't be verified for want of digests.

    Raises:
        NotFound: there is nothing of that name.
        UnknownFormat: it is no format known here.
        StorageError: reading failed.
    """
    say = progress or (lambda _: None)
    if isinstance(f, Checkpoint):
        return VerifyReport(f.file, (_verify_checkpoint(f.file, say),))
    if isinstance(f, Container):
        return VerifyReport(f.file, (_verify_container(f),))
    if not isinstance(f, str | bytes | os.PathLike):
        with open_any(f) as container:
            return VerifyReport(container.file, (_verify_container(container),))
    path = os.fsdecode(f)
    if is_folder(path) and not is_there(os.path.join(path, MANIFEST)) and is_run(path):
        found = [_verify_checkpoint(one.path, say, one.step) for one in scan(path).checkpoints]
        return VerifyReport(path, tuple(one for one in found if not _is_gone(one)))
    folder = locate(path)
    one = _verify_file(path, say) if folder is None else _verify_checkpoint(folder, say)
    if _is_gone(one):
        raise NotFound(f"`{printable(one.file)}`: was deleted while it was read", file=one.file)
    return VerifyReport(path, (one,))


def _is_gone(one: Verified) -> bool:
    """Whether what was found wrong is that a training pruned the checkpoint meanwhile."""
    return bool(one.findings) and not is_there(one.file)


def _verify_file(path: str, say: Callable[[str], None]) -> Verified:
    say(path)
    try:
        with open_any(path) as container:
            return _verify_container(container)
    except CorruptFile as reason:
        return Verified(path, "CORRUPT", findings=(_from_error(path, reason),))


def refuse_damage(folder: str, manifest: Manifest | None = None) -> None:
    """Reads a checkpoint that was just written back from the disk, or from the store.

    Args:
        folder: of its files.
        manifest: where none is among them yet, since it is what commits.

    Raises:
        StorageError: it is not what was written: the disk, or the memory on the way to it, is failing.
    """
    found = (
        _verify_checkpoint(folder, lambda _: None) if manifest is None else _verify_files(folder, manifest)
    ).findings
    if found:
        first = found[0]
        raise StorageError(
            f"`{printable(first.file)}`: read back after writing, {printable(first.name)} is not what was written: "
            f"{first.problem}; the disk or this machine's memory is failing. Older checkpoints are as they were",
            file=first.file,
        )


def _verify_container(container: Container) -> Verified:
    document = container.document()  # the tree beside the tensors has a digest or a CRC of its own
    findings: list[Finding] = []
    try:
        container.check(document)
    except CorruptFile as reason:
        findings.append(_from_error(container.file, reason))
    segments = container.segments()
    findings += _damage(
        Check(segment.source, segment.offset, segment.length, segment.chunks, segment.crc32, segment.name)
        for segment in segments
    )
    checked = sum(segment.length for segment in segments if _known(segment))
    unchecked = sum(segment.length for segment in segments if not _known(segment))
    status: Status = "CORRUPT" if findings else "NOT VERIFIABLE" if unchecked else "OK"
    return Verified(container.file, status, checked, unchecked, tuple(findings))


def _known(segment: Segment) -> bool:
    return segment.chunks is not None or segment.crc32 is not None


def _damage(checks: Iterable[Check]) -> list[Finding]:
    return [
        Finding(
            one.file,
            one.name,
            f"bytes {one.offset:,} to {one.offset + one.length:,}: expected {one.expected}, found {one.found}: corrupt",
            one.offset,
            one.length,
            one.expected,
            one.found,
        )
        for one in verify_ranges(list(checks))
    ]


def _from_error(file: str, reason: HoldfastError) -> Finding:
    return Finding(reason.file or file, reason.path or os.path.basename(file), str(reason), reason.offset)


def _verify_checkpoint(folder: str, say: Callable[[str], None], step: int | None = None) -> Verified:
    """Every file of a checkpoint: what can be read is checked, also when another file is damaged or gone."""
    say(folder)
    try:
        manifest = read_manifest(folder)
    except (FormatError, NotFound) as reason:
        return Verified(folder, "CORRUPT", findings=(_from_error(os.path.join(folder, MANIFEST), reason),), step=step)
    findings: list[Finding] = []
    if step is not None and manifest.step != step:
        findings.append(Finding(folder, MANIFEST, f"says step {manifest.step}: the folder was renamed or copied"))
    try:
        return _verify_files(folder, manifest, findings)
    except (RefusedFile, NotFound) as reason:  # its files are said to be where they can't be, or are not
        return Verified(folder, "CORRUPT", findings=(*findings, _from_error(folder, reason)), step=manifest.step)


def _verify_files(folder: str, manifest: Manifest, findings: list[Finding] | None = None) -> Verified:
    findings = [] if findings is None else findings
    data = data_folder(folder, manifest.data)
    entries = _verify_small(data, manifest, findings)
    sources: dict[str, ByteSource] = {}
    try:
        for name, record in manifest.files.items():
            if name not in (ENTRIES, STATE):
                _verify_head(data, name, record, sources, findings)
        stored = [entry for entry in entries if entry.alias_of is None and entry.file in sources]
        findings += _damage(
            Check(sources[entry.file], entry.offset, entry.length, entry.chunks, None, dotted(entry.path))
            for entry in stored
        )
    finally:
        for source in sources.values():
            source.close()
    checked = sum(entry.length for entry in stored) + sum(_covered(record) for record in manifest.files.values())
    return Verified(folder, "CORRUPT" if findings else "OK", checked, 0, tuple(findings), manifest.step)


def _verify_small(folder: str, manifest: Manifest, findings: list[Finding]) -> Sequence[Entry]:
    """Checks entries.json and state.json; returns the entries, none when they can't be trusted."""
    entries: Sequence[Entry] | None = None
    for name, limit in ((ENTRIES, ENTRIES_LIMIT), (STATE, STATE_LIMIT)):
        path = os.path.join(folder, name)
        record = manifest.files.get(name)
        if record is None:
            findings.append(Finding(path, name, "is not listed in the manifest"))
            continue
        try:
            data = read_small(folder, name, limit)
            check_digest(data, record.digest, file=path)
            if name == ENTRIES:
                entries = decode_entries(data, manifest.files, path)
            elif entries is not None:
                decode_state(data, [entry.spec for entry in entries].__getitem__, len(entries), path)
        except (FormatError, NotFound) as reason:
            findings.append(_from_error(path, reason))
    return entries or ()


def _verify_head(
    folder: str, name: str, record: FileRecord, sources: dict[str, ByteSource], findings: list[Finding]
) -> None:
    """Opens a container and checks its size and the digest of its header."""
    path = os.path.join(folder, name)
    try:
        source = sources[name] = open_source(inside(folder, name))
        if source.size != record.size:
            at = min(source.size, record.size)
            problem = f"has {source.size:,} bytes, the manifest says {record.size:,}"
            findings.append(Finding(path, name, problem, at, abs(record.size - source.size)))
        head = _covered(record)
        if head <= source.size:
            check_digest(source.read(0, head), record.digest, file=path)
    except (FormatError, NotFound) as reason:
        findings.append(_from_error(path, reason))


def _covered(record: FileRecord) -> int:
    return record.size if record.head is None else record.head
