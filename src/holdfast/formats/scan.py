"""What the pickles in a file would import and call, found without running them.

A pickle that breaks off half-way has run its first half by then, so what a damaged one would have done counts too.
Nothing that can't be looked into is called harmless.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any

import msgspec

from holdfast.errors import CorruptFile, FormatError, NotFound
from holdfast.formats import legacy, safetensors, tar, torchzip
from holdfast.formats.archive import Archive
from holdfast.formats.nodes import Call, Global
from holdfast.formats.opcodes import Machine
from holdfast.formats.pickles import run
from holdfast.formats.verdicts import ORDER, Finding, Verdict, judge
from holdfast.state.paths import printable
from holdfast.storage.places import is_url, open_source
from holdfast.storage.source import ByteSource, MemorySource, StreamSource, SubSource

PICKLE_LIMIT = 256 << 20
"""Bytes of the largest pickle that is looked into."""
_FIRST_WINDOW = 1 << 16
_PICKLES = 1000
"""Pickles back to back in one file; more are not looked into, and that is said."""
_PICKLED = (".pkl", ".pickle")
_STORAGE = re.compile(r"[^/]+/data/\d+")
"""Numbers, where torch.save puts them: nothing unpickles those."""
_PROGRAMS = ("serialized_exported_program.json", "/archive_format")
"""What an archive of torch.export has: before torch 2.8, and since."""
_DEPTH = 4
"""Archives inside archives."""
_PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_GETATTR = "builtins.getattr"


class Found(msgspec.Struct):
    """One name that a pickle would import.

    Attributes:
        name: ``module.name``; of ``getattr(module.name, "x")`` it is ``module.name.x``.
        verdict: ``plain``, ``torch``, ``unknown`` or ``dangerous``.
        why: in a few words.
        calls: how often the pickle would call it.
    """

    name: str
    verdict: Verdict
    why: str
    calls: int = 0


class PickleFound(msgspec.Struct):
    """One pickle of a file.

    Attributes:
        where: the member of an archive; empty for the file itself.
        offset: its first byte there.
        names: what it would import.
        problem: why it could not be looked at to its end, or None.
    """

    where: str
    offset: int
    names: list[Found] = []
    problem: str | None = None


class ScanReport(msgspec.Struct):
    """What the pickles of a file would do.

    Attributes:
        file: as the caller named it.
        pickles: in the order of the file; none in a file of another kind.
        problems: what else could not be looked into.
        program: for an archive of torch.export, what in its program is not known to be harmless; None for other files.
    """

    file: str
    pickles: list[PickleFound] = []
    problems: list[str] = []
    program: list[Finding] | None = None

    @property
    def verdict(self) -> Verdict:
        """The worst of all names; ``dangerous`` when a program has a finding."""
        if self.program:
            return "dangerous"
        return max((one.verdict for part in self.pickles for one in part.names), key=ORDER.index, default="plain")

    @property
    def unread(self) -> list[str]:
        """Everything that could not be looked into."""
        return [*(part.problem for part in self.pickles if part.problem), *self.problems]

    @property
    def is_dangerous(self) -> bool:
        """Whether loading it with pickle may run code of its own, or a part of it could not be looked into."""
        return self.verdict == "dangerous" or bool(self.unread)


def scan(f: str | os.PathLike[str] | IO[bytes]) -> ScanReport:
    """Lists what the pickles in a file would import and call if they were loaded; nothing of it is run.

    Zips of torch, TorchScript and torch.export, streams before 1.6, tars of 2016, bare pickles and arrays with objects
    are looked into, and archives inside archives.

    Args:
        f: a path or a binary file object.

    Returns:
        A report: names with verdicts, and what could not be looked into.

    Raises:
        NotFound: no such file.
        StorageError: reading failed.

    Example:
        >>> import holdfast, torch
        >>> torch.save({"w": torch.ones(2)}, "w.pt")
        >>> holdfast.scan("w.pt").verdict
        'plain'
    """
    if not isinstance(f, str | os.PathLike):
        stream = StreamSource(f)
        return _report(stream, stream.name)
    file = os.fspath(f)
    if not is_url(file) and not os.path.isfile(file):
        raise NotFound(f"`{printable(file)}`: no such file", file=file)
    source = open_source(file)
    try:
        return _report(source, file)
    finally:
        source.close()


def _report(source: ByteSource, file: str) -> ScanReport:
    report = ScanReport(file)
    _look(source, "", report, 0)
    return report


def _look(source: ByteSource, where: str, report: ScanReport, depth: int) -> None:
    """Looks into a file or a member by what it begins with."""
    head = source.read(0, min(source.size, 4096))
    packed = next((name for mark, name in _PACKED.items() if head.startswith(mark)), None)
    if packed is not None:
        report.problems.append(f"{_named(where)}is compressed with {packed}; decompress it and scan what is inside")
    elif torchzip.sniff(head):
        _guarded(lambda: _look_into_zip(source, where, report, depth), where, report)
    elif tar.sniff(head):
        _guarded(lambda: _look_into_tar(source, where, report), where, report)
    elif head.startswith(b"\x93NUMPY"):
        size, begin = (2, 10) if head[6:7] == b"\x01" else (4, 12)
        begin += int.from_bytes(head[8 : 8 + size], "little")
        if b"O" in head[10:begin] and begin < source.size:  # an array of objects: a pickle
            report.pickles += _in_a_row(SubSource(source, begin, source.size - begin), where, report.file, base=begin)
    elif not safetensors.sniff(head):
        _look_into_stream(source, where, report)


def _guarded(look: Callable[[], None], where: str, report: ScanReport) -> None:
    """What can't be opened is said, and does not hide what was found before."""
    try:
        look()
    except FormatError as reason:
        report.problems.append(f"{_named(where)}{reason}")


def _named(where: str) -> str:
    return f"{printable(where)}: " if where else ""


# -- containers


def _look_into_zip(source: ByteSource, where: str, report: ScanReport, depth: int) -> None:
    archive = Archive(source, report.file, flat=True)
    if not where and any(name.endswith(_PROGRAMS) for name in archive.records):
        from holdfast.formats.programs.audit import audit_program  # with its schema, only for a file that has one

        rooted = archive if _PROGRAMS[0] in archive.records else Archive(source, report.file)
        report.program = audit_program(rooted).findings
    for name in archive.records:
        path = f"{where}/{name}" if where else name
        if _STORAGE.fullmatch(name):
            continue
        head = archive.head(name, 16)
        nested = head.startswith((b"PK\x03\x04", b"\x93NUMPY"))
        if not (name.endswith(_PICKLED) or nested or head[:1] == b"\x80"):
            continue
        if nested and depth >= _DEPTH:
            report.problems.append(f"{printable(path)}: an archive inside {_DEPTH} others")
            continue
        _guarded(lambda name=name, path=path: _look_into_record(archive, name, path, report, depth), path, report)  # type: ignore[misc]


def _look_into_record(archive: Archive, name: str, path: str, report: ScanReport, depth: int) -> None:
    inside = MemorySource(archive.read(name, limit=PICKLE_LIMIT), path)
    if name.endswith(_PICKLED):
        report.pickles += _in_a_row(inside, path, report.file)
        return
    inner = ScanReport(report.file)
    _look(inside, path, inner, depth + 1)
    report.pickles += [one for one in inner.pickles if one.names or not one.problem]  # numbers may begin like a pickle
    report.problems += inner.problems


def _look_into_tar(source: ByteSource, where: str, report: ScanReport) -> None:
    opened = tar.TorchTar(source, report.file)
    if "sys_info" in opened.members:
        report.pickles += _in_a_row(opened.members["sys_info"], f"{where}sys_info", report.file)
    names: dict[str, Found] = {}
    for parsed in opened.parsed:
        for one in found_names(parsed.globals, parsed.calls):
            known = names.setdefault(one.name, one)
            known.calls += 0 if known is one else one.calls
    report.pickles.append(PickleFound(where, 0, list(names.values())))


def _look_into_stream(source: ByteSource, where: str, report: ScanReport) -> None:
    """Pickles back to back; in torch's stream the storages lie between the pickles of one object and the next."""
    at = 0
    while at < source.size:
        rest = SubSource(source, at, source.size - at)
        found = _in_a_row(rest, where, report.file, base=at)
        report.pickles += found
        if not legacy.sniff(rest.read(0, min(rest.size, 64))) or any(one.problem for one in found):
            return
        try:
            at += legacy.TorchLegacy(rest, report.file).end
        except FormatError as reason:
            report.problems.append(f"{_named(where)}{reason}")
            return


# -- pickles


def _in_a_row(source: ByteSource, where: str, file: str, *, base: int = 0) -> list[PickleFound]:
    """The pickles that stand one after another in ``source``, the first at its start; ``base`` is where that is.

    From protocol 2 on a pickle begins with its number. Before, any byte may begin one, so what imports nothing and
    breaks off is taken for something else.
    """
    found: list[PickleFound] = []
    at = 0
    while at < source.size:
        one, end = _pickle_at(source, file, at)
        marked = source.read(at, 1) == b"\x80" and source.size - at > 1 and source.read(at + 1, 1) <= b"\x05"
        if not marked and one.problem and not one.names:
            break
        if len(found) == _PICKLES:
            found[-1].problem = f"more than {_PICKLES:,} pickles, the rest was not looked into"
            break
        found.append(msgspec.structs.replace(one, where=where, offset=base + at))
        if end is None:
            break
        at = end
    return found


def _pickle_at(source: ByteSource, file: str, at: int) -> tuple[PickleFound, int | None]:
    """One pickle, and the byte after it; None when it could not be followed to its end."""
    left, window = source.size - at, _FIRST_WINDOW
    while True:
        machine = Machine(source.read(at, min(window, left)), file)
        problem, end = None, None
        try:
            _, end = run(machine, 0)
        except FormatError as reason:
            if isinstance(reason, CorruptFile) and window < min(left, PICKLE_LIMIT):
                window *= 8
                continue
            problem = str(reason)
        names = found_names(list(machine.names.values()), machine.calls)
        return PickleFound("", at, names, problem), None if end is None else at + end


def found_names(names: Sequence[Global], calls: Sequence[Call]) -> list[Found]:
    """Verdicts on what a pickle would import, with the number of calls of each."""
    counts: dict[str, int] = {}
    for call in calls:
        if type(call.func) is Global:
            counts[call.func.path] = counts.get(call.func.path, 0) + 1
    found: list[Found] = []
    for one in names:
        if one.path == _GETATTR:
            found += _reached(calls)
        else:
            verdict, why = judge(one.module, one.name)
            found.append(Found(one.path, verdict, why, counts.get(one.path, 0)))
    return found


def _reached(calls: Sequence[Call]) -> Iterator[Found]:
    """What ``getattr`` would reach: of an imported name it is a name as well, of anything else it may be all."""
    for call in calls:
        if type(call.func) is not Global or call.func.path != _GETATTR:
            continue
        target, name = call.args if type(call.args) is tuple and len(call.args) == 2 else (None, None)
        if type(target) is Global and type(name) is str:
            verdict, why = judge(target.path, name)
            yield Found(f"{target.path}.{name}", verdict, why, 1)
        else:
            what: Any = name if type(name) is str else "?"
            yield Found(_GETATTR, "dangerous", f"reaches {what!a:.60} of an object that the pickle makes", 1)
    if not any(type(call.func) is Global and call.func.path == _GETATTR for call in calls):
        yield Found(_GETATTR, "dangerous", "reaches any attribute of what it is given")
