"""Zip archives, read so that no two programs can disagree about what is in them.

The standard's ``zipfile`` trusts the central directory alone; another reader may trust the headers before each record,
and a file can be made to tell them different things. Here both are read and must agree, records must not overlap, and
names must be plain. Facts from the ZIP application note, 6.3.10 (https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from functools import partial

import msgspec

from holdfast.errors import CorruptFile, FormatError, RefusedFile, UnknownFormat
from holdfast.formats.window import WINDOW, Window
from holdfast.state.paths import printable
from holdfast.storage.digest import crc32
from holdfast.storage.source import ByteSource, MadeSource, shown

LOCAL = struct.Struct("<4s5H3I2H")
CENTRAL = struct.Struct("<4s6H3I5H2I")
END = struct.Struct("<4s4H2IH")
LOCATOR = struct.Struct("<4sIQI")
END64 = struct.Struct("<4sQ2H2I4Q")
LOCAL_MARK, CENTRAL_MARK, END_MARK = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
LOCATOR_MARK, END64_MARK, DESCRIPTOR_MARK = b"PK\x06\x07", b"PK\x06\x06", b"PK\x07\x08"
BIG, BIG16 = 0xFFFFFFFF, 0xFFFF
HAS_DESCRIPTOR, UTF8 = 0x0008, 0x0800
_UNDERSTOOD = HAS_DESCRIPTOR | UTF8 | 0x0006
"""Flag bits that may be set; 1 and 2 tell how hard a compressor tried."""
STORED, DEFLATED = 0, 8
_FOLDER = 0x10
"""The attribute of a folder: torch takes what has it for empty, and returns memory that nobody filled."""
_RATIO = 1032
"""No deflate stream grows by more: https://zlib.net/zlib_tech.html."""
_INFLATED_BASE, _INFLATED_FACTOR = 64 << 20, 32
"""Inflated bytes that an archive may have: a base and a multiple of its size."""
_BEFORE, _AFTER = 256, 2 << 10
"""Bytes around a local header that are fetched from far away: the descriptor of the record before it, and itself."""
_SLACK = 1 << 10
"""Bytes that deflate may add to what it can't shrink, for the beginning of a record."""


class Record(msgspec.Struct, gc=False):
    """One file inside the archive.

    Attributes:
        name: as the archive has it, ``top/data/0``.
        method: stored or deflated.
        flags: the zip's bits.
        crc: CRC-32; some writers put 0 for "not computed".
        packed: bytes in the archive.
        size: bytes of its content.
        header: where its local header begins.
        start: where its bytes begin.
    """

    name: str
    method: int
    flags: int
    crc: int
    packed: int
    size: int
    header: int
    start: int = 0


class Archive:
    """An opened zip whose structure has been checked.

    Args:
        source: the bytes.
        file: named in errors.
        flat: whether names are taken as they are; otherwise all lie in one folder, as torch has it.

    Attributes:
        records: by name without the top folder (``data/0``), in the order of the central directory.
        top: the one folder that holds everything; empty when ``flat``.

    Raises:
        CorruptFile: parts are missing or disagree.
        RefusedFile: encrypted, compressed in an unknown way, ambiguous, or past a limit.
        UnknownFormat: a zip of another program.
    """

    def __init__(self, source: ByteSource, file: str, *, flat: bool = False) -> None:
        self.source = source
        self.file = file
        count, start, size = _find_directory(source, file)
        records = _read_directory(source, file, count, start, size)
        _check_headers(source, file, records, start)
        self.top, self.records = ("", _flat(records, file)) if flat else _rooted(records, file)
        self._left = _INFLATED_BASE + _INFLATED_FACTOR * source.size

    def read(self, name: str, *, limit: int) -> bytes:
        """All bytes of a record, checked against its CRC.

        Raises:
            CorruptFile: absent, or its CRC differs.
            RefusedFile: larger than ``limit``.
        """
        record = self.records.get(name)
        if record is None:
            raise CorruptFile(f"`{shown(self.file)}`: the record {name} is missing: not complete", file=self.file)
        if record.size > limit:
            raise RefusedFile(
                f"`{shown(self.file)}`: {name} has {record.size:,} bytes, the limit is {limit:,}", file=self.file
            )
        data = self.source.read(record.start, record.packed)
        if record.method == DEFLATED:
            self._allow(record)
            data = self._inflate(record, data)
        if record.crc and crc32(data) != record.crc:
            raise CorruptFile(
                f"`{shown(self.file)}`: at byte {record.start:,} the record {name} has CRC-32 {crc32(data):08x}, "
                f"the archive says {record.crc:08x}: corrupt",
                file=self.file,
                offset=record.start,
            )
        return data

    def head(self, name: str, length: int) -> bytes:
        """The first bytes of a record, as many as there are up to ``length``; its CRC is not checked."""
        record = self.records[name]
        length = min(length, record.size)
        if record.method == STORED:
            return self.source.read(record.start, length)
        packed = self.source.read(record.start, min(record.packed, length + _SLACK))
        try:
            return zlib.decompressobj(-15).decompress(packed, length) if length else b""
        except zlib.error as reason:
            raise self._uninflatable(record, str(reason)) from None

    def place(self, name: str, *, skip: int = 0) -> tuple[ByteSource, int]:
        """Where a record's content is, after its first ``skip`` bytes.

        It is in the file, or inflated when it is asked for and let go after that.
        """
        record = self.records[name]
        if record.method == STORED:
            return self.source, record.start + skip
        self._allow(record)
        packed = partial(self.source.read, record.start, record.packed)
        return MadeSource(self.file, record.size - skip, lambda: memoryview(self._inflate(record, packed()))[skip:]), 0

    def _allow(self, record: Record) -> None:
        """Counts the inflated bytes of a record; refuses an archive that grows without measure."""
        if record.size > self._left:
            raise RefusedFile(
                f"`{shown(self.file)}`: compressed records grow past {_INFLATED_FACTOR} times the file's size; "
                "unzip it and zip it again without compression (zip -0) if you trust it",
                file=self.file,
            )
        self._left -= record.size

    def _inflate(self, record: Record, packed: bytes) -> bytes:
        stream = zlib.decompressobj(-15)
        try:
            data = stream.decompress(packed, record.size + 1)
        except zlib.error as reason:
            data, problem = b"", str(reason)
        else:
            problem = "its length differs" if len(data) != record.size or not stream.eof or stream.unused_data else ""
        if problem:
            raise self._uninflatable(record, problem)
        return data

    def _uninflatable(self, record: Record, problem: str) -> CorruptFile:
        return CorruptFile(
            f"`{shown(self.file)}`: at byte {record.start:,} the compressed record {shown(record.name)} can't be "
            f"inflated to {record.size:,} bytes: {problem}",
            file=self.file,
            offset=record.start,
        )


def _find_directory(source: ByteSource, file: str) -> tuple[int, int, int]:
    """Number of records, first byte and length of the central directory."""
    tail_size = min(source.size, END.size + BIG16)
    tail_start = source.size - tail_size
    tail = source.read(tail_start, tail_size)
    found = [at for at in _occurrences(tail, END_MARK) if _ends_file(tail, at)]
    if not found:
        raise CorruptFile(f"`{shown(file)}`: begins as a zip but its end is missing: cut short", file=file)
    if len(found) > 1:
        raise RefusedFile(f"`{shown(file)}`: has two ends; programs would disagree about its content", file=file)
    at = found[0]
    end = tail_start + at
    _, disk, start_disk, here, count, size, start, _ = END.unpack_from(tail, at)
    locator = source.read(end - LOCATOR.size, LOCATOR.size) if end >= LOCATOR.size else b""
    if locator[:4] == LOCATOR_MARK:
        big, end = _read_end64(source, file, locator, end - LOCATOR.size)
        if not all(
            small in (large, full)
            for small, large, full in zip((count, size, start), big, (BIG16, BIG, BIG), strict=True)
        ):
            raise _lie(file, end, "its two end records disagree")
        count, size, start = here, _, _ = big
    if disk not in (0, BIG16) or start_disk not in (0, BIG16) or here != count:
        raise RefusedFile(f"`{shown(file)}`: is one part of a zip in several parts", file=file)
    if start + size != end:
        raise _lie(file, end, f"the directory is said to be at {start:,} to {start + size:,}, and does not end here")
    return count, start, size


def _occurrences(data: bytes, mark: bytes) -> list[int]:
    found, at = [], data.find(mark)
    while at >= 0:
        found.append(at)
        at = data.find(mark, at + 1)
    return found


def _ends_file(tail: bytes, at: int) -> bool:
    """Whether an end record at ``at`` with its comment reaches the file's end, zeros aside."""
    if at + END.size > len(tail):
        return False
    stop = at + END.size + END.unpack_from(tail, at)[-1]
    return stop <= len(tail) and not tail[stop:].strip(b"\0")


def _read_end64(source: ByteSource, file: str, locator: bytes, end: int) -> tuple[tuple[int, int, int], int]:
    _, disk, start, disks = LOCATOR.unpack(locator)
    if disk != 0 or disks > 1 or start + END64.size != end:
        raise _lie(file, end, f"the zip64 end record is said to be at {start:,}, and is not right before this")
    mark, length, _, _, disk, start_disk, here, count, size, directory = END64.unpack(source.read(start, END64.size))
    if mark != END64_MARK or length != END64.size - 12 or disk or start_disk or here != count:
        raise _lie(file, start, "the zip64 end record is damaged")
    return (count, size, directory), start


def _read_directory(source: ByteSource, file: str, count: int, start: int, size: int) -> list[Record]:
    data = source.read(start, size)
    records, at = [], 0
    try:
        for _ in range(count):
            (
                mark,
                _,
                _,
                flags,
                method,
                _,
                _,
                crc,
                packed,
                full,
                name_size,
                extra_size,
                comment_size,
                disk,
                _,
                attributes,
                header,
            ) = CENTRAL.unpack_from(data, at)
            if mark != CENTRAL_MARK:
                raise _lie(file, start + at, "a directory entry does not begin here")
            name_end = at + CENTRAL.size + name_size
            name = data[at + CENTRAL.size : name_end].decode()
            if full == BIG or packed == BIG or header == BIG:
                extra = data[name_end : name_end + extra_size]
                full, packed, header = _zip64(extra, [full, packed, header], file, start + at)
            if (
                disk
                or flags & ~_UNDERSTOOD
                or method not in (STORED, DEFLATED)
                or (method == STORED and full != packed)
            ):
                raise _unreadable(file, name, flags, method)
            if attributes & _FOLDER and full:
                raise RefusedFile(f"`{shown(file)}`: {shown(name)} has bytes and is marked as a folder", file=file)
            if full > _RATIO * packed + 64:
                raise _lie(file, start + at, f"{shown(name)} claims to grow more than deflate can")
            records.append(Record(name, method, flags, crc, packed, full, header))
            at = name_end + extra_size + comment_size
    except UnicodeDecodeError:
        raise RefusedFile(f"`{shown(file)}`: at byte {start + at:,} a name is not UTF-8", file=file) from None
    except struct.error:
        at = size + 1
    if at != size:
        raise _lie(file, start, f"the directory has {size:,} bytes, its {count:,} entries take another number")
    return records


def _zip64(extra: bytes, values: list[int], file: str, offset: int) -> tuple[int, int, int]:
    """Replaces saturated values, in their order, by those of the zip64 extra field."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        if kind == 1 and at + 4 + length <= len(extra):
            wide = list(struct.unpack_from(f"<{length // 8}Q", extra, at + 4))
            if len(wide) < values.count(BIG):
                break
            full, packed, header = (wide.pop(0) if value == BIG else value for value in values)
            return full, packed, header
        at += 4 + length
    raise _lie(file, offset, "a zip64 entry without its zip64 field")


def _unreadable(file: str, name: str, flags: int, method: int) -> FormatError:
    if flags & 0x2041:
        what = "is encrypted"
    elif method not in (STORED, DEFLATED):
        what = f"is compressed with method {method}; only stored and deflated records are read"
    elif flags & ~_UNDERSTOOD:
        what = f"has unknown flags {flags:#06x}"
    else:
        what = "has two different lengths"
    return RefusedFile(f"`{shown(file)}`: the record {shown(name)} {what}", file=file)


def _check_headers(source: ByteSource, file: str, records: Sequence[Record], directory: int) -> None:
    """Compares each local header (and descriptor) with the directory, and lets no two records overlap."""
    ordered = sorted(records, key=lambda record: record.header)
    window = Window(source)
    prefetch = getattr(source, "prefetch", None)
    if prefetch is not None:  # from far away: one by one, each would cost a way there and back
        prefetch([(max(0, record.header - _BEFORE), _BEFORE + _AFTER) for record in ordered])
    free = 0
    for index, record in enumerate(ordered):
        following = ordered[index + 1].header if index + 1 < len(ordered) else directory
        if record.header < free or record.header + LOCAL.size > directory:
            raise _lie(file, record.header, f"{shown(record.name)} overlaps another record or the directory")
        free = _check_local(window, file, record, following)
        if free > following:
            raise _lie(file, record.header, f"{shown(record.name)} overlaps what follows it")


def _check_local(window: Window, file: str, record: Record, following: int) -> int:
    """Fills in ``record.start`` and returns the byte after the record."""
    near = following if record.packed < WINDOW else record.header + 2 * WINDOW
    name = record.name.encode()
    head = window.read(record.header, LOCAL.size + len(name), next_offset=near)
    try:
        mark, _, flags, method, _, _, crc, packed, full, name_size, extra_size = LOCAL.unpack_from(head)
    except struct.error:
        mark = b""
    if mark != LOCAL_MARK or flags != record.flags or method != record.method or head[LOCAL.size :] != name:
        raise _lie(file, record.header, f"the header of {shown(record.name)} and the directory disagree")
    if name_size != len(name):
        raise _lie(file, record.header, f"the header of {shown(record.name)} has another name")
    record.start = record.header + LOCAL.size + name_size + extra_size
    end = record.start + record.packed
    if end > following:
        raise _lie(file, record.header, f"{shown(record.name)} overlaps what follows it")
    if not flags & HAS_DESCRIPTOR:
        if full == BIG or packed == BIG:
            at = record.header + LOCAL.size + name_size
            full, packed, _ = _zip64(window.read(at, extra_size, next_offset=near), [full, packed, 0], file, at)
        if (crc, packed, full) != (record.crc, record.packed, record.size):
            raise _lie(file, record.header, f"the header of {shown(record.name)} and the directory disagree")
        return end
    if packed not in (0, BIG, record.packed) or full not in (0, BIG, record.size) or crc not in (0, BIG, record.crc):
        raise _lie(file, record.header, f"the header of {shown(record.name)} and the directory disagree")
    return _check_descriptor(window, file, record, end, following)


def _check_descriptor(window: Window, file: str, record: Record, end: int, following: int) -> int:
    """The descriptor after the bytes: with or without a mark, lengths of four or of eight bytes."""
    data = window.read(end, min(24, following - end), next_offset=following)
    for form in ("<3I", "<I2Q"):
        try:
            body = struct.pack(form, record.crc, record.packed, record.size)
        except struct.error:
            continue
        for known in (DESCRIPTOR_MARK + body, body):
            if data.startswith(known):
                return end + len(known)
    raise _lie(file, end, f"what follows the bytes of {shown(record.name)} disagrees with the directory")


def _rooted(records: Sequence[Record], file: str) -> tuple[str, dict[str, Record]]:
    """Names without their one top folder; checks that they are plain."""
    if not any(record.name.endswith(("/data.pkl", "/archive_format")) for record in records):
        some = ", ".join(shown(record.name) for record in records[:3]) or "nothing"
        old = any("/code/" in record.name or record.name.endswith("/model.json") for record in records)
        kind = "a TorchScript archive of a torch before 1.4" if old else "a zip archive but no torch file (no data.pkl)"
        raise UnknownFormat(f"`{shown(file)}`: is {kind}: holds {some}", file=file)
    top = records[0].name.partition("/")[0]
    prefix = top + "/"
    found: dict[str, Record] = {}
    folded: set[str] = set()
    for record in records:
        name = record.name
        if not name.startswith(prefix):
            raise RefusedFile(
                f"`{shown(file)}`: {shown(name)} lies outside the folder {shown(prefix)}; a torch file has one folder",
                file=file,
            )
        _refuse_odd(name, file)
        folded.add(name.casefold())
        if name[-1] != "/":
            found[name[len(prefix) :]] = record
    if len(folded) != len(records):
        raise RefusedFile(f"`{shown(file)}`: two records have the same name (case aside): {_twice(records)}", file=file)
    return top, found


def _flat(records: Sequence[Record], file: str) -> dict[str, Record]:
    """Names as they are. They are keys and no files, so two may differ in case alone."""
    found: dict[str, Record] = {}
    for record in records:
        _refuse_odd(record.name, file)
        if record.name in found:
            raise RefusedFile(f"`{shown(file)}`: two records have the same name: {shown(record.name)}", file=file)
        found[record.name] = record
    return found


def _refuse_odd(name: str, file: str) -> None:
    if not name or not is_plain(name):
        raise RefusedFile(f"`{shown(file)}`: a record has the unsafe name {printable(name)}", file=file)


def _twice(records: Sequence[Record]) -> str:
    seen: set[str] = set()
    for record in records:
        name = record.name.casefold()
        if name in seen:
            return shown(record.name)
        seen.add(name)
    return ""


def is_plain(name: str) -> bool:
    """Relative, printable, and without empty, ``.`` or ``..`` parts; a folder's own entry may end with a slash."""
    if not name.isprintable() or "\\" in name:
        return False
    if "//" not in name and "/." not in name and name[0] not in "./":
        return True
    parts = name.removesuffix("/").split("/")
    return all(part not in ("", ".", "..") for part in parts)


def _lie(file: str, offset: int, what: str) -> CorruptFile:
    return CorruptFile(f"`{shown(file)}`: at byte {offset:,}: {what}: corrupt", file=file, offset=offset)
