"""The audit of a ``.pt2``: whether ``torch.export.load`` of it, and a call of what it gives, could run code of its own.

Every member is looked at. A file whose audit has no findings is one of which each part is known to be harmless; what is
given to torch then is written anew from what was read here, so that no second reader can understand it differently.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from holdfast.errors import FormatError, RefusedFile
from holdfast.formats import torchzip
from holdfast.formats.archive import Archive
from holdfast.formats.base import StoredTensor
from holdfast.formats.exported import Exported
from holdfast.formats.programs import schema
from holdfast.formats.programs.text import check_inert, shown
from holdfast.formats.verdicts import Finding
from holdfast.state.paths import printable
from holdfast.state.values import Tree, Typed
from holdfast.storage.source import MemorySource
from holdfast.storage.source import shown as shown_name

JSON_LIMIT = 256 << 20
"""Bytes of the largest JSON member that is read."""
SAMPLE_LIMIT = 1 << 30
"""Bytes of the sample inputs, and of a tensor that is pickled."""
_FORMAT, _VERSION = b"pt2", b"0"
_MODEL = re.compile(r"models/([A-Za-z0-9_-]{1,100})\.json")
_FRAME = frozenset(
    {"archive_format", "archive_version", "byteorder", "version", ".data/version", ".data/serialization_id"}
    | {".format_version", ".storage_alignment"}
)
_TENSORS = re.compile(r"data/(?:weights/weight|constants/tensor)_[0-9]{1,9}")
_KNOWN: tuple[tuple[str, str], ...] = (
    ("data/aotinductor/", "compiled code, which torch loads or compiles when it opens the file"),
    ("data/constants/custom_obj_", "an object of a class that a library defines in C++"),
    ("data/constants/opaque_obj_", "a pickle of an object of any class, which runs what it says"),
    ("data/weights/", "weights in a form that torch unpickles"),
    ("data/constants/", "constants in a form that torch unpickles"),
    ("executorch/", "a program for ExecuTorch"),
)
_SHOWN = 5
_PLAIN = (type(None), bool, int, float, complex, str)
_DEPTH = 64
_SHORT = 300


class Audit(msgspec.Struct):
    """What was found in a ``.pt2``; without findings, all that is needed to write it anew.

    Attributes:
        file: as the caller named it.
        findings: what is not known to be harmless.
        name: what the archive calls its program.
        program: its JSON, read.
        weights: where its parameters and buffers are.
        constants: where its constants are.
        samples: the inert tree of its sample inputs, (arguments, keywords); None when there are none.
    """

    file: str
    findings: list[Finding] = []
    name: str = ""
    program: schema.Program | None = None
    weights: schema.Payloads | None = None
    constants: schema.Payloads | None = None
    samples: Tree = None

    def refuse_findings(self) -> None:
        """Raises RefusedFile, naming the findings, when there are any."""
        if not self.findings:
            return
        some = "; ".join(f"{printable(one.member)}: {one.what}" for one in self.findings[:_SHOWN])
        more = f"; and {len(self.findings) - _SHOWN} more" if len(self.findings) > _SHOWN else ""
        raise RefusedFile(
            f"`{shown_name(self.file)}`: this program is not loaded, since parts of it are not known to be harmless: "
            f"{some}{more}. Its weights are safe to read: holdfast.load, or build with factory=",
            file=self.file,
        )


def audit_program(archive: Archive) -> Audit:
    """Looks at every member of a ``.pt2``.

    Args:
        archive: an opened archive of ``torch.export.save``.

    Returns:
        The audit; its findings say what is not known to be harmless.

    Raises:
        CorruptFile: a member is damaged.
    """
    audit = Audit(archive.file)
    if "archive_format" not in archive.records:
        old = "a program of torch 2.1 to 2.7; load it there and save it with torch 2.8 or newer"
        audit.findings.append(Finding("serialized_exported_program.json", old))
        return audit
    _audit_frame(archive, audit)
    _audit_members(archive, audit)
    if not audit.name:
        return audit
    weights, constants = (f"data/{part}/{audit.name}_{part}_config.json" for part in ("weights", "constants"))
    audit.program = _json(archive, audit, f"models/{audit.name}.json", schema.Program)
    audit.weights = _json(archive, audit, weights, schema.Payloads)
    audit.constants = _json(archive, audit, constants, schema.Payloads)
    for part, payloads in (("weights", audit.weights), ("constants", audit.constants)):
        _audit_tensors(archive, audit, part, payloads)
    _audit_samples(archive, audit)
    return audit


def _audit_frame(archive: Archive, audit: Audit) -> None:
    wanted = {"archive_format": (_FORMAT,), "archive_version": (_VERSION,), "byteorder": (b"little",)}
    for name, values in wanted.items():
        found = archive.read(name, limit=64) if name in archive.records else b""
        if found not in values and (found or name == "archive_format"):
            audit.findings.append(Finding(name, f"says {shown(repr(found))}; only {values[0].decode()} is known"))


def _audit_members(archive: Archive, audit: Audit) -> None:
    """Finds the program, and members that have no place beside it."""
    names = [found[1] for found in map(_MODEL.fullmatch, archive.records) if found]
    if len(names) != 1:
        what = f"holds {len(names)} programs ({', '.join(names[:_SHOWN])}); one is wanted"
        audit.findings.append(Finding("models", what))
    else:
        audit.name = names[0]
    parts = {f"data/{part}/{name}_{part}_config.json" for name in names for part in ("weights", "constants")}
    parts |= {f"models/{name}.json" for name in names} | {f"data/sample_inputs/{name}.pt" for name in names}
    for name in archive.records:
        if name in _FRAME or name in parts or name.startswith("extra/") or _TENSORS.fullmatch(name):
            continue
        what = next((what for start, what in _KNOWN if name.startswith(start)), "nothing that torch.export.save writes")
        audit.findings.append(Finding(name, f"is {what}"))


def _json(archive: Archive, audit: Audit, member: str, kind: type[Any]) -> Any:
    if member not in archive.records:
        audit.findings.append(Finding(member, "is missing"))
        return None
    try:
        return schema.decoded(archive.read(member, limit=JSON_LIMIT), kind)
    except ValueError as reason:
        audit.findings.append(Finding(member, _short(printable(str(reason)))))
    return None


def _short(text: str) -> str:
    return text if len(text) <= _SHORT else text[:_SHORT] + "..."


# -- tensors and sample inputs


def _audit_tensors(archive: Archive, audit: Audit, part: str, payloads: schema.Payloads | None) -> None:
    """Each tensor lies in its record, and those that are pickled are tensors and nothing else."""
    if payloads is None:
        return
    opened = Exported(archive)
    for name, payload in payloads.config.items():
        member = f"data/{part}/{payload.path_name}"
        what = ""
        try:
            if member not in archive.records:
                what = "is missing"
            elif not payload.use_pickle:
                opened.tensor(name, member, payload.tensor_meta)
            elif not is_tensor(opened.pickled(member)):
                what = "is a pickle of something other than a plain tensor"
        except FormatError as reason:
            what = _short(str(reason))
        if what:
            audit.findings.append(Finding(member, f"{what} (`{printable(name)}`)"))


def _audit_samples(archive: Archive, audit: Audit) -> None:
    """The sample inputs are a pickle: of tensors and plain values, in tuples, lists and dicts."""
    member = f"data/sample_inputs/{audit.name}.pt"
    if member not in archive.records:
        audit.findings.append(Finding(member, "is missing"))
        return
    data = archive.read(member, limit=SAMPLE_LIMIT)
    if not data:
        return
    try:
        tree = torchzip.open(MemorySource(data, archive.file), archive.file).document().tree
        check_samples(tree)
    except (FormatError, ValueError) as reason:
        audit.findings.append(Finding(member, _short(printable(str(reason)))))
        return
    audit.samples = tree


def is_tensor(tree: Tree) -> bool:
    """Whether a tree is one plain tensor, or a parameter that is one."""
    if type(tree) is Typed and tree.kind == "parameter":
        tree = tree.payload["data"]
    return type(tree) is StoredTensor


def check_samples(tree: Tree) -> None:
    """Sample inputs: (arguments, keywords). Raises ValueError for what is not known to be harmless in them."""
    pair = tree.payload if type(tree) is Typed and tree.kind == "tuple" else None
    if type(pair) is not list or len(pair) != 2 or type(pair[0]) is not Typed or pair[0].kind != "tuple":
        raise ValueError("the sample inputs are no pair of arguments and keywords")
    if _entries(pair[1]) is None:
        raise ValueError("the keywords of the sample inputs are no dict")
    _check_plain(tree, 0)


def _check_plain(tree: Tree, depth: int) -> None:
    if depth > _DEPTH:
        raise ValueError("the sample inputs are nested too deeply")
    entries = _entries(tree)
    if entries is not None:
        for key, value in entries:
            if type(key) is str:
                check_inert(key)
            elif type(key) is not int:
                raise ValueError(f"a dict of the sample inputs has a key of type {type(key).__name__}")
            _check_plain(value, depth + 1)
    elif type(tree) is list or (type(tree) is Typed and tree.kind == "tuple"):
        items: list[Any] = tree.payload if isinstance(tree, Typed) else tree
        for one in items:
            _check_plain(one, depth + 1)
    elif not is_tensor(tree) and type(tree) not in _PLAIN:
        name = getattr(tree, "type_name", None) or (tree.kind if type(tree) is Typed else type(tree).__name__)
        raise ValueError(
            f"the sample inputs hold a {shown(name)}; only tensors and plain values are known to be harmless"
        )


def _entries(tree: Tree) -> list[Any] | None:
    """The keys and values of a dict; None for anything else."""
    if type(tree) is dict:
        return list(tree.items())
    return list(tree.payload) if type(tree) is Typed and tree.kind in ("dict", "ordered_dict") else None
