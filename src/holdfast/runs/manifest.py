"""manifest.json: what a checkpoint is. Its presence, with a matching digest of itself, is the commit."""

from __future__ import annotations

import datetime
import math
import os
import re
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from holdfast.errors import ArgumentError, CorruptFile, RefusedFile, UnknownFormat
from holdfast.runs.layout import MANIFEST, MAX_STEP, inside, is_safe_name
from holdfast.state.encoding import from_json, is_plain, to_json
from holdfast.state.paths import printable
from holdfast.storage.digest import digest_bytes
from holdfast.storage.places import open_source

VERSION = 0
"""The format that this version writes, and the newest that it reads."""
MANIFEST_LIMIT = 16 * 1024 * 1024
"""Bytes a manifest may have. One of ours has a few thousand."""

_T = TypeVar("_T")
_TAIL = re.compile(rb'"digest": ?"([^"\\]{0,100})"\s*}\s*')
_TAIL_LENGTH = 200
_NO_NUMBERS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


class FileRecord(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """One file of a checkpoint.

    Attributes:
        size: bytes.
        digest: ``xxh3-128:`` and hex, of the first ``head`` bytes.
        head: bytes that ``digest`` covers; None for all. In a container these are its header, and the rest is covered
            by the chunk digests of ``entries.json``.
        links: checkpoints in a row that share this file with the one before them; 0 where it was written anew.
    """

    size: int
    digest: str
    head: int | None = None
    links: int = 0


class Manifest(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a checkpoint is, without its tensors.

    Attributes:
        run: id of the run that wrote it.
        step: completed items of the loader since the run began; the next free number where that is taken.
        time: when it was committed, with a time zone; UTC in the file.
        epoch: the epoch to go on with, None when the run counts none.
        batch: items of that epoch that are done.
        items: completed items, where the step is another number: the end of an epoch after a save behind its last item.
        metrics: by name; NaN and infinities are kept, None is "not measured".
        files: every other file of the folder.
        objects: what was recorded of each object, by name: ``kind``, ``class``, how to construct it.
        environment: versions, host, world size, git commit.
        metadata: the user's own strings.
        data: the folder of its files below the run, ``step-00001000/`` and a key of its own, as in an object store;
            empty when they lie beside the manifest.
    """

    run: str
    step: int
    time: datetime.datetime
    epoch: int | None = None
    batch: int | None = None
    metrics: dict[str, float | None] = {}
    files: dict[str, FileRecord] = {}
    objects: dict[str, dict[str, Any]] = {}
    environment: dict[str, Any] = {}
    metadata: dict[str, str] = {}
    data: str = ""
    items: int | None = None

    @property
    def items_done(self) -> int:
        """Completed items of the loader since the run began."""
        return self.step if self.items is None else self.items


class _Version(msgspec.Struct):
    version: int


class _Wire(msgspec.Struct):
    """manifest.json field by field. ``digest`` stays last: the check cuts it off the end."""

    version: int
    run: str
    step: int
    time: datetime.datetime
    epoch: int | None
    batch: int | None
    metrics: dict[str, float | str | None]
    files: dict[str, FileRecord]
    objects: dict[str, Any]
    environment: dict[str, Any]
    metadata: dict[str, str]
    data: str | msgspec.UnsetType = msgspec.UNSET
    items: int | msgspec.UnsetType = msgspec.UNSET
    digest: str = ""


def encode(manifest: Manifest) -> bytes:
    """A manifest as the bytes of manifest.json, indented for people, with its own digest.

    Raises:
        ArgumentError: a time without a zone, a negative count, an object record that is no plain data.
    """
    _check_counts(manifest)
    if manifest.time.tzinfo is None:
        raise ArgumentError(f"step {manifest.step}: the time of a checkpoint needs a time zone", step=manifest.step)
    wire = _Wire(
        version=VERSION,
        run=manifest.run,
        step=manifest.step,
        time=manifest.time.astimezone(datetime.UTC),
        epoch=manifest.epoch,
        batch=manifest.batch,
        metrics=metrics_to_json(manifest.metrics),
        files=manifest.files,
        objects={name: to_json(record, _not_plain) for name, record in manifest.objects.items()},
        environment=to_json(manifest.environment, _not_plain),
        metadata=manifest.metadata,
        data=manifest.data or msgspec.UNSET,
        items=msgspec.UNSET if manifest.items is None else manifest.items,
        digest="",
    )
    body = msgspec.json.format(msgspec.json.encode(wire), indent=2)
    return _with_digest(body, digest_bytes(body))


def decode(data: bytes, file: str) -> Manifest:
    """The bytes of manifest.json as a manifest, checked.

    Raises:
        UnknownFormat: a newer holdfast wrote it.
        CorruptFile: it is cut short, changed, or says what can't be.
    """
    try:
        wire = decode_versioned(data, _Wire, file)
    except UnknownFormat:
        _check_own_digest(data, file)  # a version that was damaged is damage, and no newer version
        raise
    _check_own_digest(data, file)
    plain = is_plain(data)
    manifest = Manifest(
        run=wire.run,
        step=wire.step,
        time=wire.time,
        epoch=wire.epoch,
        batch=wire.batch,
        metrics=metrics_from_json(wire.metrics, file),
        files=wire.files,
        objects={name: _object_from_json(name, record, file, plain) for name, record in wire.objects.items()},
        environment=wire.environment if plain else from_json(wire.environment, _no_tensor, file),
        metadata=wire.metadata,
        data=wire.data if isinstance(wire.data, str) else "",
        items=wire.items if isinstance(wire.items, int) else None,
    )
    _check_decoded(manifest, file)
    return manifest


def read_manifest(folder: str) -> Manifest:
    """The manifest of a checkpoint's folder.

    Raises:
        NotFound: the folder has none: it is no committed checkpoint.
        FormatError: it can't be trusted; see :func:`decode`.
        StorageError: it can't be read.
    """
    return decode(read_small(folder, MANIFEST, MANIFEST_LIMIT), os.path.join(folder, MANIFEST))


def read_small(folder: str, name: str, limit: int) -> bytes:
    """All bytes of the file ``name`` of ``folder``.

    Raises:
        NotFound, StorageError: there is no such file, or it can't be read.
        RefusedFile: it is longer than ``limit`` bytes, or leads out of the folder.
    """
    path = inside(folder, name)
    source = open_source(path)
    try:
        if source.size > limit:
            raise RefusedFile(
                f"`{printable(path)}`: has {source.size:,} bytes, at most {limit:,} are read for this file", file=path
            )
        return source.read(0, source.size)
    finally:
        source.close()


def decode_versioned(data: bytes, kind: type[_T], file: str) -> _T:
    """JSON bytes with a ``version`` as ``kind``.

    Raises:
        UnknownFormat: a newer holdfast wrote it.
        CorruptFile: it is no JSON, or lacks what ``kind`` has.
    """
    check_version(_decode(data, _Version, file).version, file)
    return _decode(data, kind, file)


def _decode(data: bytes, kind: type[_T], file: str) -> _T:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as reason:
        raise CorruptFile(f"`{printable(file)}`: is damaged: {printable(str(reason))}", file=file) from None


def check_version(version: int, file: str) -> None:
    """Raises UnknownFormat when a newer holdfast wrote ``file``."""
    if version != VERSION:
        raise UnknownFormat(
            f"`{printable(file)}`: has format version {version}, this holdfast reads version {VERSION}; "
            "read it with the holdfast that wrote it, or a newer one",
            file=file,
        )


def _check_own_digest(data: bytes, file: str) -> None:
    body, recorded = _split_digest(data, file)
    found = digest_bytes(body)
    if found != recorded:
        raise CorruptFile(
            f"`{printable(file)}`: has digest {found}, it says {printable(recorded)}: it was changed after it was "
            "written",
            file=file,
        )


def _with_digest(body: bytes, digest: str) -> bytes:
    start = body.rindex(b'""')
    return body[: start + 1] + digest.encode() + body[start + 1 :]


def _split_digest(data: bytes, file: str) -> tuple[bytes, str]:
    """The bytes that the digest was made of, and the digest."""
    tail = data[-_TAIL_LENGTH:]
    for match in _TAIL.finditer(tail):
        if match.end() == len(tail):
            before = len(data) - len(tail)
            return data[: before + match.start(1)] + data[before + match.end(1) :], match[1].decode("ascii", "replace")
    raise CorruptFile(f"`{printable(file)}`: does not end with its digest: it is cut short or was edited", file=file)


def metrics_to_json(metrics: Mapping[str, float | None]) -> dict[str, float | str | None]:
    """Metrics as JSON can hold them: NaN and the infinities as text."""
    return {
        name: value if value is None or math.isfinite(value) else str(float(value)) for name, value in metrics.items()
    }


def metrics_from_json(metrics: Mapping[str, float | str | None], file: str) -> dict[str, float | None]:
    """What :func:`metrics_to_json` made as numbers. Raises CorruptFile for other text."""
    found: dict[str, float | None] = {}
    for name, value in metrics.items():
        if isinstance(value, str) and value not in _NO_NUMBERS:
            raise CorruptFile(
                f"`{printable(file)}`: metric {printable(name)} is {printable(value)!r}, no number", file=file
            )
        found[name] = _NO_NUMBERS[value] if isinstance(value, str) else value
    return found


def _object_from_json(name: str, record: Any, file: str, plain: bool) -> dict[str, Any]:
    found = record if plain else from_json(record, _no_tensor, file)
    if type(found) is not dict:
        raise CorruptFile(
            f"`{printable(file)}`: what it records of object {printable(name)} is no JSON object", file=file
        )
    return found


def _not_plain(value: Any) -> Any:
    raise ArgumentError(f"a manifest holds plain values only, not {type(value).__name__}")


def _no_tensor(reference: Any) -> Any:
    raise ValueError(f"a manifest has no tensors, here is one: {printable(repr(reference)[:100])}")


def _check_counts(manifest: Manifest) -> None:
    for name in ("step", "epoch", "batch", "items"):
        value = getattr(manifest, name)
        if value is not None and not 0 <= value <= MAX_STEP:
            raise ArgumentError(f"{name} {value} of a checkpoint is not between 0 and {MAX_STEP}", step=manifest.step)


def _check_decoded(manifest: Manifest, file: str) -> None:
    shown = printable(file)
    try:
        _check_counts(manifest)
    except ArgumentError as reason:
        raise CorruptFile(f"`{shown}`: {reason}", file=file) from None
    if manifest.time.tzinfo is None:
        raise CorruptFile(f"`{shown}`: its time has no time zone", file=file)
    for name, record in manifest.files.items():
        if not is_safe_name(name):
            raise RefusedFile(
                f"`{shown}`: names the file {printable(name)!r}, which is no plain name inside the folder", file=file
            )
        if record.size < 0 or not 0 <= (record.size if record.head is None else record.head) <= record.size:
            raise CorruptFile(
                f"`{shown}`: file {name}: its size {record.size} or head {record.head} can't be", file=file
            )
    if len({name.casefold() for name in manifest.files}) != len(manifest.files):
        raise CorruptFile(f"`{shown}`: two of its file names differ only in case", file=file)
