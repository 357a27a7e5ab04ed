"""Many reads or writes at once: values that say what goes where, done by a few threads, digested on the way.

Work is cut by bytes, not by tensor: a large tensor becomes several pieces at digest-chunk borders, thousands of small
ones become one job and, where they lie close together in the file, one system call for each MiB of them. Bytes are
digested in blocks of 1 MiB right before they are written (or after they are read), while the processor's cache still
holds them. Writing, reading and hashing let go of the interpreter lock, so threads really run side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

import msgspec
import xxhash

from holdfast.errors import ArgumentError, CorruptFile
from holdfast.spec import CHUNK
from holdfast.storage import meter
from holdfast.storage.digest import ALGORITHM, crc32, hasher_like, joined_crc
from holdfast.storage.output import BufferedOutput, DirectOutput, Feed, NoOutput, Output, write_piece
from holdfast.storage.source import ByteSource, MemorySource, SubSource, byte_view, check_inside
from holdfast.storage.syscalls import LOCAL, Syscalls
from holdfast.storage.workers import BLOCK, Piece, cut_jobs, lent_block, run_jobs

_SMALL, _GAP = 64 << 10, 4 << 10
"""Bytes of a piece that is read together with its neighbours, and bytes between two that may be read in vain."""

Memory = bytes | bytearray | memoryview
_MEMORY = (bytes, bytearray, memoryview)


# gc=False below: there may be fifty thousand of these, and they form no cycles
class WriteRequest(msgspec.Struct, eq=False, gc=False):
    """Bytes and where they go in the file that is written.

    Attributes:
        offset: first byte in the file.
        source: the bytes where they live: memory, not copied, or any ByteSource.
        start: first byte in ``source``.
        length: bytes; None means to the end of ``source``.
    """

    offset: int
    source: Memory | ByteSource
    start: int = 0
    length: int | None = None

    @property
    def size(self) -> int:
        """Bytes to write."""
        if self.length is not None:
            return self.length
        whole = memoryview(self.source).nbytes if isinstance(self.source, _MEMORY) else self.source.size
        return whole - self.start


class Written(msgspec.Struct, frozen=True, gc=False):
    """What one request wrote.

    Attributes:
        chunks: one XXH3-128 digest (hex) for each 8 MiB, empty where none were asked for.
        crc32: the CRC-32 of all its bytes, where it was asked for.
    """

    chunks: tuple[str, ...]
    crc32: int | None = None


class ReadRequest(msgspec.Struct, eq=False, gc=False):
    """Memory and the bytes that go into it.

    Attributes:
        source: where the bytes are.
        offset: first byte there.
        into: writable contiguous memory; its size says how many bytes.
        chunks: expected digests of each 8 MiB; None leaves them unchecked.
        crc32: the expected CRC-32; None leaves it unchecked.
        name: what a report of damage calls it.
    """

    source: ByteSource
    offset: int
    into: memoryview
    chunks: tuple[str, ...] | None = None
    crc32: int | None = None
    name: str = ""

    @property
    def length(self) -> int:
        return self.into.nbytes


class Check(msgspec.Struct, eq=False):
    """Bytes and what is known of them. With neither ``chunks`` nor ``crc32`` only their presence is checked."""

    source: ByteSource
    offset: int
    length: int
    chunks: tuple[str, ...] | None = None
    crc32: int | None = None
    name: str = ""


class Damage(msgspec.Struct, frozen=True):
    """Bytes that are not what they should be.

    Attributes:
        name: what they are: a tensor, a record.
        file: the source's name.
        offset: first byte concerned, in the source.
        length: bytes concerned.
        expected: the digest, CRC or length that is recorded.
        found: what is there instead.
    """

    name: str
    file: str
    offset: int
    length: int
    expected: str
    found: str


def write_requests(
    fd: int,
    requests: Sequence[WriteRequest],
    *,
    digest: bool = True,
    crc: bool = False,
    direct: int | None = None,
    syscalls: Syscalls = LOCAL,
    workers: int | None = None,
) -> list[Written]:
    """Writes all requests to an open file and digests them in the same pass.

    Args:
        fd: descriptor, open for writing.
        requests: in the order of the file for the best speed; they must not overlap.
        digest: whether to compute a digest for each 8 MiB.
        crc: whether to compute CRC-32s.
        direct: another descriptor of the file, open past the page cache, for all that fills whole pages.
        syscalls: what writes.
        workers: threads; None means one for each core, 8 at most.

    Returns:
        One Written for each request, in their order.

    Raises:
        CorruptFile: a source is shorter than its request says.
        OSError: the file can't be written.
        ArgumentError: memory is not contiguous or too short, or an offset is negative.
    """

    def output(block: memoryview) -> Output:
        return BufferedOutput(fd, syscalls, block) if direct is None else DirectOutput(fd, direct, syscalls, block)

    return _in_one_pass(requests, output, digest, crc, workers)


def digest_requests(
    requests: Sequence[WriteRequest], *, digest: bool = True, crc: bool = False, workers: int | None = None
) -> list[Written]:
    """Digests what requests would write, and writes nothing: their sources are read and keep their bytes.

    Args, Returns, Raises: as :func:`write_requests`.
    """
    return _in_one_pass(requests, NoOutput, digest, crc, workers)


def _in_one_pass(
    requests: Sequence[WriteRequest],
    output: Callable[[memoryview], Output],
    digest: bool,
    crc: bool,
    workers: int | None,
) -> list[Written]:
    feeds = [_feed(request) for request in requests]
    lengths = [feed[2] for feed in feeds]
    parts = [[_NOTHING] * (-(-length // CHUNK) or 1) for length in lengths]
    workers = _workers((feed[3] for feed in feeds), workers)

    def do(job: list[Piece]) -> None:
        with lent_block() as block:
            out = output(block)
            for index, start, length in job:
                parts[index][start // CHUNK] = write_piece(out, feeds[index], start, length, digest, crc)
            out.flush()
        meter.pass_by(sum(length for _, _, length in job))

    meter.begin("writing", sum(lengths))
    run_jobs(cut_jobs(lengths, workers), do, workers)
    return [
        Written(
            tuple([hexed for hexed, _ in found]) if digest and length else (),
            joined_crc([value for _, value in found], length) if crc else None,
        )
        for found, length in zip(parts, lengths, strict=True)
    ]


def read_requests(requests: Sequence[ReadRequest], *, workers: int | None = None) -> list[Damage]:
    """Reads bytes straight into the memory where they are wanted, and checks those that come with digests.

    Args:
        requests: in the order of the file for the best speed.
        workers: threads; None means one for each core, 8 at most.

    Returns:
        What does not have its expected digest or CRC, in order; empty when all is well.

    Raises:
        CorruptFile: a source has fewer bytes than a request says. Memory may be partly filled.
        StorageError: reading failed.
    """
    return _scan(requests, workers, strict=True)


def verify_ranges(items: Sequence[Check], *, workers: int | None = None) -> list[Damage]:
    """Reads bytes once, through a small buffer, and compares them with their digests.

    Args:
        items: what to check.
        workers: threads; None means one for each core, 8 at most.

    Returns:
        All damage in order; a source that is cut short is damage too.

    Raises:
        StorageError: reading failed.
    """
    return _scan(items, workers, strict=False)


# ---- what both sides need -------------------------------------------------------------------------------------------


def _resolved(source: ByteSource, offset: int) -> tuple[ByteSource, int]:
    """The source beneath parts of it, where neighbours show as neighbours."""
    while isinstance(source, SubSource):
        offset += source.offset
        source = source.base
    return source, offset


# ---- writing -------------------------------------------------------------------------------------------------------

_NOTHING = ("", 0)


def _feed(request: WriteRequest) -> Feed:
    given, start = request.source, request.start
    if request.offset < 0:
        raise ArgumentError(f"a write at byte {request.offset:,}: offsets start at 0")
    if isinstance(given, _MEMORY):
        view = byte_view(given)
        length = view.nbytes - start if request.length is None else request.length
        if start < 0 or length < 0 or start + length > view.nbytes:
            raise ArgumentError(f"{length:,} bytes from byte {start:,} of memory that has {view.nbytes:,}")
        return request.offset, start, length, view
    length = request.size
    check_inside(given.name, given.size, start, length)
    source, start = _resolved(given, start)
    return request.offset, start, length, source.view if isinstance(source, MemorySource) else source


# ---- reading -------------------------------------------------------------------------------------------------------


def _workers(sources: Iterable[object], workers: int | None) -> int | None:
    """Threads to use: for sources that are far away more than there are cores, since their threads wait."""
    if workers is not None:
        return workers
    return max((getattr(source, "parallel", 0) for source in sources), default=0) or None


def _scan(items: Sequence[ReadRequest | Check], workers: int | None, *, strict: bool) -> list[Damage]:
    scan = _Scan(items, strict=strict)
    if workers != 1:  # which is how a job of another pass reads something else first
        meter.begin("reading", sum(scan.lengths))
    workers = _workers(scan.sources, workers)
    run_jobs(cut_jobs(scan.lengths, workers), scan.do, workers)
    return scan.result()


class _Scan:
    """One pass over many ranges; ``do`` is called by several threads, each with jobs of its own."""

    def __init__(self, items: Sequence[ReadRequest | Check], *, strict: bool) -> None:
        self._items = items
        self._strict = strict
        self._places = [_resolved(item.source, item.offset) for item in items]
        self._into = [byte_view(item.into) if isinstance(item, ReadRequest) else None for item in items]
        self._damage: list[tuple[int, int, Damage]] = []
        self._chunks: list[tuple[str, ...] | None] = []
        self._crcs: dict[int, list[int]] = {}
        self.lengths = [self._plan(index, item) for index, item in enumerate(items)]

    @property
    def sources(self) -> Collection[ByteSource]:
        """What is read, each once."""
        return {id(source): source for source, _ in self._places}.values()

    def _plan(self, index: int, item: ReadRequest | Check) -> int:
        """Checks what can be checked without reading; returns how many bytes to read."""
        chunks, size, length = item.chunks, item.source.size, item.length
        self._chunks.append(chunks)
        if item.offset < 0 or length < 0 or item.offset + length > size:  # before any piece is made of a huge length
            if self._strict:
                check_inside(item.source.name, size, item.offset, length)
            self._chunks[index] = None
            self._report(index, 0, length, f"{length:,} bytes", f"the file ends at byte {size:,}")
            return 0
        count = -(-length // CHUNK)
        problem = None if chunks is None else _unusable(chunks, count)
        if problem:
            self._chunks[index] = chunks = None
            self._report(index, 0, length, *problem)
        if item.crc32 is not None:
            self._crcs[index] = [0] * max(1, count)
        return length if chunks is not None or item.crc32 is not None or isinstance(item, ReadRequest) else 0

    def do(self, job: list[Piece]) -> None:
        """Reads and checks pieces: small ones that lie close together at once, large ones by themselves."""
        with lent_block() as block:
            group: list[Piece] = []
            source: ByteSource | None = None
            begin = end = 0
            for piece in job:
                its, offset = self._place(piece)
                step = getattr(its, "step", 0)
                small, gap, most = (step // 2, step // 8, step) if step else (_SMALL, _GAP, BLOCK)
                if piece[2] > small:
                    self._guarded(piece, self._blocks(piece, block))
                    continue
                if its is not source or not 0 <= offset - end <= gap or offset + piece[2] - begin > most:
                    self._together(group, block, end - begin)
                    group, source, begin = [], its, offset
                group.append(piece)
                end = offset + piece[2]
            self._together(group, block, end - begin)
        meter.pass_by(sum(length for _, _, length in job))

    def _place(self, piece: Piece) -> tuple[ByteSource, int]:
        source, offset = self._places[piece[0]]
        return source, offset + piece[1]

    def _together(self, group: list[Piece], block: memoryview, size: int) -> None:
        """Reads small neighbours by way of the block; where that fails, one by one, so that the damage has a name."""
        if not group:
            return
        source, begin = self._place(group[0])
        if size > block.nbytes:  # from far away, where each read costs more than the memory
            block = memoryview(bytearray(size))
        try:
            source.read_into(begin, block[:size])
        except CorruptFile:
            if self._strict:
                raise
            for piece in group:
                self._guarded(piece, self._blocks(piece, block))
            return
        for piece in group:
            index, start, length = piece
            at = self._places[index][1] + start - begin
            view = block[at : at + length]
            into, chunks = self._into[index], self._chunks[index]
            if into is not None:
                into[start : start + length] = view
            if index in self._crcs:
                self._crcs[index][start // CHUNK] = crc32(view)
            if chunks and xxhash.xxh3_128_hexdigest(view) != chunks[start // CHUNK]:
                self._compare(piece, (view,))  # damage, or a digest of another form

    def _guarded(self, piece: Piece, blocks: Iterable[memoryview]) -> None:
        try:
            self._compare(piece, blocks)
        except CorruptFile:
            if self._strict:
                raise
            self._report(*piece, "bytes that are there", "the file was cut while it was read")

    def _blocks(self, piece: Piece, block: memoryview) -> Iterator[memoryview]:
        index, start, length = piece
        source, offset = self._place(piece)
        into = self._into[index]
        if into is None and isinstance(source, MemorySource):  # it can be looked at where it lies
            memory = source.view[offset : offset + length]
            yield from (memory[at : at + BLOCK] for at in range(0, length, BLOCK))
            return
        step = max(BLOCK, getattr(source, "step", 0))  # far away, each read costs a way there and back
        if into is None and step > BLOCK:
            block = memoryview(bytearray(min(step, length)))
        for at in range(0, length, step):
            size = min(step, length - at)
            view = block[:size] if into is None else into[start + at : start + at + size]
            source.read_into(offset + at, view)
            yield view

    def _compare(self, piece: Piece, blocks: Iterable[memoryview]) -> None:
        """Takes each block through the digest and the CRC, whichever is known, while it is warm."""
        index, start, length = piece
        chunks, values = self._chunks[index], self._crcs.get(index)
        expected = chunks[start // CHUNK] if chunks else ""
        hasher, prefix = hasher_like(expected)
        value = 0
        for block in blocks:
            if chunks:
                hasher.update(block)
            if values is not None:
                value = crc32(block, value)
        if values is not None:
            values[start // CHUNK] = value
        if chunks and prefix + hasher.hexdigest() != expected.lower():
            self._report(index, start, length, expected, prefix + hasher.hexdigest())

    def _report(self, index: int, start: int, length: int, expected: str, found: str) -> None:
        item = self._items[index]
        damage = Damage(item.name, item.source.name, item.offset + start, length, expected, found)
        self._damage.append((index, start, damage))

    def result(self) -> list[Damage]:
        for index, values in self._crcs.items():
            item = self._items[index]
            found = joined_crc(values, item.length) if len(values) > 1 else values[0]
            if found != item.crc32:
                self._report(index, 0, item.length, f"crc32 {item.crc32:08x}", f"crc32 {found:08x}")
        return [damage for _, _, damage in sorted(self._damage, key=lambda row: row[:2])]


def _unusable(chunks: Sequence[str], count: int) -> tuple[str, str] | None:
    """(expected, found) when these can't be the digests of ``count`` chunks."""
    if len(chunks) != count:
        return f"{count:,} digests of 8 MiB each", f"{len(chunks):,} digests are recorded"
    for chunk in chunks:
        if ":" in chunk:
            try:
                hasher_like(chunk)
            except CorruptFile as error:
                return f"a digest of {ALGORITHM} or sha256", str(error)
    return None
